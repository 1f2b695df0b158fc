"""Nested values in wire bytes as JSON, against protobuf's own reader: what is valid, what is not, and what is deep."""

import base64
import json
import math
import time

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from nested_values import any_values, deep, field, stored_value
from opentelemetry.proto.common.v1.common_pb2 import ArrayValue, KeyValueList

from query.nested import is_valid, nested_json
from query.otlp import OTLP_JSON
from query.plain import PLAIN_JSON
from storage.spans import Nested

MESSAGES = {"array": ArrayValue, "kvlist": KeyValueList}
kinds = st.sampled_from(sorted(MESSAGES))
containers = any_values(st.floats()).map(stored_value).filter(lambda value: isinstance(value, Nested))

# What no encoder writes and protobuf allows, or does not: any fields, in any order and number, of any type.
pieces = st.one_of(
    st.binary(max_size=4),
    st.builds(lambda number, value: bytes((number << 3, value)), st.integers(1, 7), st.integers(0, 127)),
    st.builds(lambda number, value: bytes((number << 3 | 1,)) + value, st.integers(1, 7), st.binary(min_size=8)),
    st.builds(field, st.integers(1, 7), st.sampled_from([b"", b"text", b"\xff", b"\xed\xa0\x80", b"\x08\x01"])),
    st.sampled_from(
        [b"\x10" + b"\x80" * 9 + b"\x7e", b"\x18" + b"\xff" * 9 + b"\x01", b"\x8a\x00\x00", b"\x7b\x08\x01\x7c"]
    ),
)
wires = st.recursive(
    pieces, lambda inner: st.lists(st.builds(field, st.integers(1, 7), inner) | inner, max_size=4).map(b"".join)
)


def by_protobuf(value):
    """The message as protobuf reads it, None if it does not."""
    try:
        return MESSAGES[value.kind].FromString(value.wire)
    except DecodeError:
        return None


def as_plain(message):
    """The message in plain JSON, by recursion."""
    if isinstance(message, ArrayValue):
        return [as_plain(item) for item in message.values]
    if isinstance(message, KeyValueList):
        return {pair.key: as_plain(pair.value) for pair in message.values}
    member = message.WhichOneof("value")
    value = getattr(message, member) if member else None
    if member in ("array_value", "kvlist_value"):
        return as_plain(value)
    if member == "string_value_strindex":  # of profiles
        return None
    if member == "bytes_value":
        return {"bytes": base64.b64encode(value).decode()}
    if member == "double_value" and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def as_otlp(message):
    """The message in OTLP/JSON, by recursion."""
    if isinstance(message, ArrayValue):
        return {"arrayValue": {"values": [as_otlp(item) for item in message.values]}}
    if isinstance(message, KeyValueList):
        pairs = [{"key": pair.key, "value": as_otlp(pair.value)} for pair in message.values]
        return {"kvlistValue": {"values": pairs}}
    member = message.WhichOneof("value")
    if member in ("array_value", "kvlist_value"):
        return as_otlp(getattr(message, member))
    return {} if member == "string_value_strindex" else json_format.MessageToDict(message)


def same_as_protobuf(value):
    message = by_protobuf(value)
    assert is_valid(value, OTLP_JSON) == (message is not None)
    in_otlp, in_plain = nested_json(value, OTLP_JSON), nested_json(value, PLAIN_JSON)
    if message is None:
        assert in_otlp is None
        json.loads(orjson.dumps(in_plain))  # the fault may be in a value that another one with the same key hides
    else:
        assert as_text(in_otlp) == json.dumps(as_otlp(message))
        assert as_text(in_plain) == json.dumps(as_plain(message))


def as_text(written):
    """As json.dumps has it: 1, 1.0 and true are not the same."""
    return json.dumps(json.loads(orjson.dumps(written)))


@given(containers)
@settings(max_examples=300, deadline=None)
def test_what_encoders_write(value):
    assert by_protobuf(value) is not None
    same_as_protobuf(value)


@given(kinds, wires)
@settings(max_examples=200, deadline=None)
def test_any_fields_in_any_order(kind, wire):
    same_as_protobuf(Nested(kind, wire))


@given(kinds, st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_bytes(kind, wire):
    same_as_protobuf(Nested(kind, wire))


@given(containers, st.data())
@settings(max_examples=200, deadline=None)
def test_a_value_with_a_byte_changed_or_the_end_cut_off(value, data):
    at = data.draw(st.integers(0, len(value.wire)))
    same_as_protobuf(Nested(value.kind, value.wire[:at]))
    changed = data.draw(st.binary(max_size=2))
    same_as_protobuf(Nested(value.kind, value.wire[:at] + changed + value.wire[at + 1 :]))


@pytest.mark.parametrize(
    ("kind", "wire", "text"),
    [
        ("array", field(1, b"\x10\x01" + b"\x18\x07"), "[7]"),
        ("array", field(1, field(5, field(1, b"\x18\x01")) + field(5, field(1, b"\x18\x02"))), "[[1,2]]"),
        ("array", field(1, field(5, field(1, b"\x18\x01")) + b"\x18\x07" + field(5, b"")), "[[]]"),
        ("array", field(1, b"\x7b\x08\x01\x7c" + b"\x18\x07"), "[7]"),
        ("array", b"\x8a\x80\x80\x80\x00" + b"\x00", "[null]"),
        ("array", b"\x10\x05" + field(9, b"\xff") + b"\x0d" + bytes(4) + b"\x09" + bytes(8), "[]"),
        ("kvlist", field(1, field(2, b"\x18\x07") + field(1, b"k")), '{"k":7}'),
        ("kvlist", field(1, field(1, b"k") + field(1, b"l") + field(2, b"")), '{"l":null}'),
        ("kvlist", field(1, b"") * 2 + field(1, field(2, b"\x10\x01")), '{"":true}'),
        (
            "kvlist",
            field(1, field(1, b"k") + field(2, field(1, b"\xff"))) + field(1, field(1, b"k")),
            '{"k":null}',
        ),
    ],
    ids=[
        "the last member counts",
        "a container twice is one",
        "but not with another member between",
        "a group is skipped",
        "a tag longer than it need be",
        "fields that are not known or of another type are skipped",
        "a value before its key",
        "the last key counts",
        "no key, and the same again",
        "what another pair hides is not looked at",
    ],
)
def test_what_protobuf_allows_and_encoders_do_not_write(kind, wire, text):
    assert orjson.dumps(nested_json(Nested(kind, wire), PLAIN_JSON)).decode() == text


def test_what_is_deeper_than_any_library_goes():
    value = deep(20_000, b"\x18\x07")
    assert is_valid(value, OTLP_JSON)
    in_plain = orjson.dumps(nested_json(value, PLAIN_JSON)).decode()
    assert in_plain == "[" + '{"k":[' * 20_000 + "7" + "]}" * 20_000 + "]"
    pair, end = '{"kvlistValue":{"values":[{"key":"k","value":{"arrayValue":{"values":[', "]}}}]}}"
    in_otlp = orjson.dumps(nested_json(value, OTLP_JSON)).decode()
    assert in_otlp == '{"arrayValue":{"values":[' + pair * 20_000 + '{"intValue":"7"}' + end * 20_000 + "]}}"


@pytest.mark.parametrize("innermost", [b"\x0a\x01\xff", b"\x0a\x05cut", b"\x0f", b"\x18", b"\x00\x00"])
def test_a_fault_at_the_bottom_of_a_deep_value_is_found(innermost):
    value = deep(20_000, innermost)
    assert not is_valid(value, OTLP_JSON)
    assert nested_json(value, PLAIN_JSON) is None


def test_time_grows_with_the_bytes_and_not_with_the_depth():
    def seconds(levels):
        value = deep(levels)
        began = time.process_time()
        assert nested_json(value, PLAIN_JSON) is not None
        return time.process_time() - began

    assert seconds(80_000) < 16 * max(seconds(20_000), 0.05)
