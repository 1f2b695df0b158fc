"""The texts within lists, maps and links, which are stored in their wire bytes: taken out, and put back changed.

The engine calls these two functions while it loads, a row at a time, since SQL cannot walk a tree: what is done to the
texts in between is SQL. Bytes come and go in hex, since the engine takes what Python is given for text. They never
raise: what cannot be read is replaced as a whole.
"""

import json
from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span

UNREADABLE = b"s[removed: it cannot be read]"
_LETTERS = {"string_value": "s", "int_value": "i", "double_value": "d", "bool_value": "b", "bytes_value": "y"}
_MESSAGES: dict[int, Any] = {ord("a"): ArrayValue, ord("m"): KeyValueList, ord("l"): Span.Link}


def texts(value: str) -> str:
    """JSON: a pair for each scalar within, of its key ('' in a list) and its text with a letter for its type.

    `value` is hex of a letter (`a` list, `m` map, `l` link) and wire bytes. The order is that of `with_texts`.
    """
    try:
        _, message = _read(value)
        return json.dumps([[key, _letter(leaf) + _text(leaf)] for key, leaf in _scalars(message)])
    except Exception:  # whatever a sender makes up, loads go on
        return "[]"


def with_texts(value: str, changed: str) -> str:
    """The same value with other texts, a JSON list of them; what is as it was keeps its type."""
    try:
        letter, message = _read(value)
        leaves, wanted = list(_scalars(message)), json.loads(changed)
        if len(leaves) != len(wanted):
            return UNREADABLE.hex()
        touched = False
        for (_, leaf), text in zip(leaves, wanted, strict=True):
            if text != _letter(leaf) + _text(leaf):
                touched = True
                if text[:1] == "y":
                    leaf.bytes_value = text[1:].encode()
                else:
                    leaf.string_value = text[1:]
        return (bytes([letter]) + message.SerializeToString()).hex() if touched else value
    except Exception:
        return UNREADABLE.hex()


def _read(value: str) -> tuple[int, Any]:
    data = bytes.fromhex(value)
    message = _MESSAGES[data[0]]()
    message.ParseFromString(data[1:])
    return data[0], message


def _scalars(message: Any) -> Iterator[tuple[str, AnyValue]]:
    """Key and value of each scalar, in the order of the wire; a list's elements have the key of the list."""
    if isinstance(message, ArrayValue):
        pairs = [("", value) for value in message.values]
    else:
        entries = message.attributes if isinstance(message, Span.Link) else message.values
        pairs = [(entry.key, entry.value) for entry in entries]
    pairs.reverse()
    while pairs:
        key, value = pairs.pop()
        kind = value.WhichOneof("value")
        if kind == "array_value":
            pairs += [(key, element) for element in reversed(value.array_value.values)]
        elif kind == "kvlist_value":
            pairs += [(entry.key, entry.value) for entry in reversed(value.kvlist_value.values)]
        elif kind in _LETTERS:
            yield key, value


def _letter(leaf: AnyValue) -> str:
    return _LETTERS[leaf.WhichOneof("value") or ""]


def _text(leaf: AnyValue) -> str:
    match leaf.WhichOneof("value"):
        case "bool_value":
            return "true" if leaf.bool_value else "false"
        case "double_value":
            return repr(leaf.double_value)
        case "int_value":
            return str(leaf.int_value)
        case "bytes_value":
            return leaf.bytes_value.decode(errors="replace")
        case _:
            return leaf.string_value
