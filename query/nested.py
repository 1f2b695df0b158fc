"""Nested attribute values read from their wire bytes and written as JSON, at any depth and without recursion.

Runs on the thread of the request that asked. A value nests as deep as its sender likes, and protobuf's own reader and
every JSON library recurse and give up; here a level costs one entry of a list. Nothing has looked into these bytes
before, so they may be anything: what is no ArrayValue or KeyValueList, or holds a string that is not UTF-8, is not
valid, and is shown as bytes.

The reader takes what encoders write: no groups, and no field twice that holds one value. What else protobuf allows
is left to protobuf, which encodes it anew.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1.common_pb2 import ArrayValue, KeyValueList

from storage.spans import Nested, Value

Kind = Literal["array", "kvlist"]
_MESSAGES: dict[Kind, type[Message]] = {"array": ArrayValue, "kvlist": KeyValueList}


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write values as JSON: what stands around the members of a container, and how a scalar looks."""

    opening: dict[Kind, bytes]
    closing: dict[Kind, bytes]
    pair: tuple[bytes, bytes, bytes]
    """Before a key, between key and value, after the value."""
    scalar: Callable[[Value], Any]
    unique_keys: bool
    """Of the pairs with one key in a list, only the last is written, and the values of the others not looked at."""


def nested_json(value: Nested, form: Form) -> orjson.Fragment | None:
    """JSON text of a nested value; None if its bytes are not valid."""
    try:
        return orjson.Fragment(_written(value.kind, value.wire, form))
    except ValueError:
        pass
    try:
        message = _MESSAGES[value.kind].FromString(value.wire)
    except DecodeError:
        return None
    message.DiscardUnknownFields()
    return orjson.Fragment(_written(value.kind, message.SerializeToString(), form))


def is_valid(value: Nested, form: Form) -> bool:
    """Whether nested_json can write it. Quick, unless it is deeper than protobuf's own reader goes."""
    try:
        _MESSAGES[value.kind].FromString(value.wire)
    except DecodeError:
        return nested_json(value, form) is not None
    return True


# Writing


@dataclass(slots=True)
class _Container:
    """An ArrayValue or KeyValueList that is being written."""

    kind: Kind
    at: int
    end: int
    """Of an array, what is still to be read."""
    pairs: list[tuple[bytes, int, int]]
    """Of a list of pairs, those that are still to be written, from the last to the first."""

    def next(self, wire: bytes) -> tuple[bytes, int, int] | None:
        """The key of the next value, b"" in an array, and where the value begins and ends."""
        if self.pairs:
            return self.pairs.pop()
        while self.at < self.end:
            tag, start, self.at = _field(wire, self.at, self.end)
            if tag == _VALUES:
                return b"", start, self.at
        return None


def _container(kind: Kind, wire: bytes, at: int, end: int, form: Form) -> _Container:
    if kind == "array":
        return _Container(kind, at, end, [])
    pairs = [_pair(wire, start, stop) for tag, start, stop in _fields(wire, at, end) if tag == _VALUES]
    if form.unique_keys:
        pairs = list({pair[0]: pair for pair in pairs}.values())
    return _Container(kind, end, end, pairs[::-1])


def _written(kind: Kind, wire: bytes, form: Form) -> bytes:
    """JSON text. Raises ValueError if `wire` is not valid, or not as encoders write."""
    before_key, after_key, after_value = form.pair
    text = bytearray(form.opening[kind])
    containers = [_container(kind, wire, 0, len(wire), form)]
    while containers:
        inner = containers[-1]
        following = inner.next(wire)
        if following is None:
            text += form.closing[inner.kind]
            containers.pop()
            if containers and containers[-1].kind == "kvlist":
                text += after_value
            continue
        key, start, stop = following
        if text[-1] not in b"[{":  # no value ends with these
            text += b","
        if inner.kind == "kvlist":
            text += before_key + orjson.dumps(key.decode()) + after_key
        member, start, stop = _member(wire, start, stop)
        if member in _CONTAINERS:
            text += form.opening[_CONTAINERS[member]]
            containers.append(_container(_CONTAINERS[member], wire, start, stop, form))
            continue
        text += orjson.dumps(form.scalar(_SCALARS[member](wire[start:stop])))
        if inner.kind == "kvlist":
            text += after_value
    return bytes(text)


# Reading: protobuf's "Encoding". A field is a tag, which is its number and the type of its content, and the content.


def _int64(content: bytes) -> int:
    return (_varint(content, 0, _VARINT_BYTES_MAX)[0] + 2**63) % 2**64 - 2**63


def _varint(wire: bytes, at: int, bytes_max: int) -> tuple[int, int]:
    """The number of which the bytes begin at `at`, and where they end. Raises ValueError."""
    if at < len(wire) and (number := wire[at]) < 0x80:  # nearly always
        return number, at + 1
    number = shift = 0
    for stop, byte in enumerate(wire[at : at + bytes_max], at + 1):
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, stop
        shift += 7
    raise ValueError("a number that is cut short")


_VARINT, _I64, _LEN, _I32 = 0, 1, 2, 5
_FIXED_BYTES = {_I64: 8, _I32: 4}
_VALUES = _KEY = 1 << 3 | _LEN  # ArrayValue.values and KeyValueList.values; KeyValue.key
_VALUE = 2 << 3 | _LEN  # KeyValue.value
_CONTAINERS: dict[int, Kind] = {5 << 3 | _LEN: "array", 6 << 3 | _LEN: "kvlist"}
_SCALARS: dict[int, Callable[[bytes], Value]] = {
    0: lambda _: None,
    1 << 3 | _LEN: lambda content: content.decode(),
    2 << 3 | _VARINT: lambda content: _int64(content) != 0,
    3 << 3 | _VARINT: _int64,
    4 << 3 | _I64: lambda content: float(struct.unpack("<d", content)[0]),
    7 << 3 | _LEN: lambda content: content,
    8 << 3 | _VARINT: lambda _: None,  # string_value_strindex, which has a meaning in profiles only
}
_MEMBERS = frozenset((*_CONTAINERS, *_SCALARS))
_TAG_BYTES_MAX = _LENGTH_BYTES_MAX = 5
_VARINT_BYTES_MAX = 10


def _member(wire: bytes, at: int, end: int) -> tuple[int, int, int]:
    """The member of an AnyValue: its tag, or 0 if it has none, and where its content begins and ends."""
    member, begin, stop = 0, at, at
    while at < end:
        tag, start, at = _field(wire, at, end)
        if tag in _MEMBERS:
            if member:
                raise ValueError("two members of one AnyValue")
            member, begin, stop = tag, start, at
    return member, begin, stop


def _pair(wire: bytes, at: int, end: int) -> tuple[bytes, int, int]:
    """The key of a KeyValue, and where its value begins and ends."""
    key, value = None, None
    while at < end:
        tag, start, stop = _field(wire, at, end)
        at = stop
        if tag == _KEY and key is None:
            key = wire[start:stop]
        elif tag == _VALUE and value is None:
            value = (start, stop)
        elif tag in (_KEY, _VALUE):
            raise ValueError("a key or value twice")
    return (key or b"", *(value or (at, at)))


def _fields(wire: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Tag, begin and end of each field's content."""
    while at < end:
        tag, start, at = _field(wire, at, end)
        yield tag, start, at


def _field(wire: bytes, at: int, end: int) -> tuple[int, int, int]:
    """Tag of the field at `at`, and where its content begins and ends. Raises ValueError."""
    tag, start = _varint(wire, at, _TAG_BYTES_MAX)
    content = tag & 7
    if content == _LEN:
        length, start = _varint(wire, start, _LENGTH_BYTES_MAX)
        stop = start + length
    elif content == _VARINT:
        stop = _varint(wire, start, _VARINT_BYTES_MAX)[1]
    elif content in _FIXED_BYTES:
        stop = start + _FIXED_BYTES[content]
    else:
        raise ValueError("a group, or what is not defined")
    if stop > end or not 0 < tag >> 3 < 1 << 29:
        raise ValueError("a field that is cut short, or one without a number")
    return tag, start, stop
