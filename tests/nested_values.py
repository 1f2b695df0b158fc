"""Attribute values of OTLP made at random, and nested ones as the store gives them back: in wire bytes."""

from typing import Any

from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from storage.spans import Nested, Value

text = st.text(max_size=8)


def any_values(doubles: st.SearchStrategy[float]) -> st.SearchStrategy[AnyValue]:
    scalars = st.one_of(
        st.just(AnyValue()),
        st.builds(AnyValue, string_value=text),
        st.builds(AnyValue, bool_value=st.booleans()),
        st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1)),
        st.builds(AnyValue, double_value=doubles),
        st.builds(AnyValue, bytes_value=st.binary(max_size=8)),
    )

    def containers(inner: st.SearchStrategy[AnyValue]) -> st.SearchStrategy[AnyValue]:
        pairs = st.builds(KeyValue, key=text, value=inner)
        return st.one_of(
            st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=3))),
            st.builds(AnyValue, kvlist_value=st.builds(KeyValueList, values=st.lists(pairs, max_size=3))),
        )

    return st.recursive(scalars, containers, max_leaves=6)


def nested(message: Any) -> Nested:
    """An ArrayValue or a KeyValueList as it is stored."""
    return Nested("array" if isinstance(message, ArrayValue) else "kvlist", message.SerializeToString())


def stored_value(message: AnyValue) -> Value:
    """What the store gives back for a value."""
    member = message.WhichOneof("value")
    value = getattr(message, member) if member else None
    return nested(value) if member in ("array_value", "kvlist_value") else value


def header(number: int, length: int) -> bytes:
    """What stands before the content of a field of this length."""
    encoded = bytearray((number << 3 | 2,))
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes((*encoded, length))


def field(number: int, content: bytes) -> bytes:
    """A field of content with a length, as protobuf writes it."""
    return header(number, len(content)) + content


def deep(levels: int, innermost: bytes = b"") -> Nested:
    """Maps in arrays in maps, more levels than any library reads; `innermost` is the last AnyValue."""
    before, length = [], len(innermost)
    for _ in range(levels):
        # An array of one, in a pair of the key "k", in a map, in an array.
        for number, beside in ((1, b""), (5, b""), (2, b"\x0a\x01k"), (1, b""), (6, b"")):
            before.append(beside + header(number, length))
            length += len(before[-1])
    before.append(header(1, length))
    return Nested("array", b"".join(reversed(before)) + innermost)
