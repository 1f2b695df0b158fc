"""OTLP/JSON at the door. What comes out is read with opentelemetry-proto, which is not what made it."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.otlp_json import to_protobuf
from collector.sifting import sift
from collector.status import BadRequest

TRACE, SPAN = "5B8EFFF798038103D269B633813FC60C", "EEE19B7EC3C1B174"


def convert(document) -> ExportTraceServiceRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return ExportTraceServiceRequest.FromString(to_protobuf(body))


def document(**fields) -> dict:
    return {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": TRACE, "spanId": SPAN, **fields}]}]}]}


def convert_span(**fields):
    return convert(document(**fields)).resource_spans[0].scope_spans[0].spans[0]


def convert_value(value):
    return convert_span(attributes=[{"key": "a", "value": value}]).attributes[0].value


def test_every_field_of_a_request_arrives():
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}], "droppedAttributesCount": 1}
    scope = {
        "name": "lib",
        "version": "1.2",
        "attributes": [{"key": "s", "value": {"boolValue": True}}],
        "droppedAttributesCount": 2,
    }
    attributes = [{"key": "k", "value": {"intValue": "5"}}]
    event = {"timeUnixNano": "7", "name": "e", "attributes": attributes, "droppedAttributesCount": 3}
    link = {
        "traceId": TRACE.lower(),
        "spanId": SPAN.lower(),
        "traceState": "l=1",
        "attributes": attributes,
        "droppedAttributesCount": 4,
        "flags": 257,
    }
    span = {
        "traceId": TRACE,
        "spanId": SPAN,
        "parentSpanId": "00f067aa0ba902b7",
        "traceState": "a=b",
        "flags": 769,
        "name": "checkout",
        "kind": 2,
        "startTimeUnixNano": "1544712660000000001",
        "endTimeUnixNano": "18446744073709551615",
        "attributes": attributes,
        "droppedAttributesCount": 5,
        "events": [event],
        "droppedEventsCount": 6,
        "links": [link],
        "droppedLinksCount": 7,
        "status": {"message": "no", "code": 2},
    }
    got = convert(
        {
            "resourceSpans": [
                {
                    "resource": resource,
                    "schemaUrl": "https://r",
                    "scopeSpans": [{"scope": scope, "schemaUrl": "https://s", "spans": [span]}],
                }
            ]
        }
    )

    want = ExportTraceServiceRequest()
    resource_spans = want.resource_spans.add(schema_url="https://r")
    resource_spans.resource.dropped_attributes_count = 1
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope_spans = resource_spans.scope_spans.add(schema_url="https://s")
    scope_spans.scope.name, scope_spans.scope.version, scope_spans.scope.dropped_attributes_count = "lib", "1.2", 2
    scope_spans.scope.attributes.add(key="s").value.bool_value = True
    one = scope_spans.spans.add(
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex(SPAN),
        parent_span_id=bytes.fromhex("00f067aa0ba902b7"),
        trace_state="a=b",
        flags=769,
        name="checkout",
        kind=2,
        start_time_unix_nano=1544712660000000001,
        end_time_unix_nano=2**64 - 1,
        dropped_attributes_count=5,
        dropped_events_count=6,
        dropped_links_count=7,
    )
    one.status.message, one.status.code = "no", 2
    one.attributes.add(key="k").value.int_value = 5
    one.events.add(time_unix_nano=7, name="e", dropped_attributes_count=3).attributes.add(key="k").value.int_value = 5
    one.links.add(
        trace_id=bytes.fromhex(TRACE),
        span_id=bytes.fromhex(SPAN),
        trace_state="l=1",
        dropped_attributes_count=4,
        flags=257,
    ).attributes.add(key="k").value.int_value = 5
    assert got == want


@pytest.mark.parametrize("hex_id", [TRACE, TRACE.lower(), TRACE.title()])
def test_ids_are_hex_in_either_case(hex_id):
    assert convert_span(traceId=hex_id).trace_id == bytes.fromhex(TRACE)


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        ({"traceId": "xyz"}, "'xyz' is not hex"),
        ({"traceId": "z" * 16}, "'zzzzzzzzzzzzzzzz' is not hex"),
        ({"traceId": "z" * 5}, "is not hex"),
        ({"traceId": TRACE[:-1]}, "is not hex"),
        ({"traceId": f" {TRACE[:-1]}"}, "is not hex"),
        ({"traceId": "W47/95gDgQPSabYzgT/GDA=="}, "is not hex"),
        ({"traceId": "AB" * 17}, "not 17"),
        ({"traceId": ""}, "not 0"),
        ({"traceId": None}, "not 0"),
        ({"traceId": "0" * 32}, "all zero"),
        ({"spanId": "é" * 4}, "spanId: 'éééé' is not hex"),
        ({"spanId": "0" * 16}, "all zero"),
        ({"parentSpanId": "nothex"}, "parentSpanId: 'nothex' is not hex"),
        ({"parentSpanId": "ab"}, "parent_span_id must be 8 bytes"),
        ({"links": [{}, {"traceId": "nothex"}]}, "links[1].traceId: 'nothex' is not hex"),
    ],
    ids=str,
)
def test_a_bad_id_spoils_its_span_only(bad, shown):
    spans = [{"traceId": TRACE, "spanId": SPAN, **fields} for fields in ({"name": "a"}, bad, {"name": "b"})]
    sifted = sift(to_protobuf(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode()), 10)
    assert (sifted.items, sifted.rejected) == (2, 1)
    assert "spans[1]" in sifted.message
    assert shown.encode() in sifted.message.encode() or repr(shown.encode())[2:-1] in sifted.message


@pytest.mark.parametrize(
    ("value", "nanos"),
    [
        ("1544712660000000001", 1544712660000000001),
        (1544712660000000001, 1544712660000000001),
        (2**64 - 1, 2**64 - 1),
        (str(2**64 - 1), 2**64 - 1),
        (1.5e18, 1500000000000000000),
        ("1.5e18", 1500000000000000000),
        ("15.0", 15),
        (None, 0),
    ],
)
def test_64_bit_integers_are_strings_or_numbers(value, nanos):
    assert convert_span(startTimeUnixNano=value).start_time_unix_nano == nanos


@pytest.mark.parametrize(
    "value",
    [-1, 2**64, str(2**64), "1e999", "9" * 100_000, "1.5", 1.5, "", " 1", "1_000", "0x1", "١", "NaN", True, [], {}],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_unsigned_64_bit_integer_is_a_bad_request(value):
    with pytest.raises(BadRequest) as refused:
        convert_span(startTimeUnixNano=value)
    assert refused.value.place == "resourceSpans[0].scopeSpans[0].spans[0].startTimeUnixNano"


def test_integers_are_exact():
    assert convert_value({"intValue": "9007199254740993"}).int_value == 9007199254740993
    assert convert_value({"intValue": 9007199254740993}).int_value == 9007199254740993
    assert convert_value({"intValue": str(-(2**63))}).int_value == -(2**63)
    with pytest.raises(BadRequest):
        convert_value({"intValue": str(2**63)})


@pytest.mark.parametrize(("value", "number"), [(2, 2), ("SPAN_KIND_SERVER", 2), ("2", 2), (99, 99), (-1, -1), (0, 0)])
def test_kinds_are_integers_or_names_and_unknown_ones_survive(value, number):
    assert convert_span(kind=value).kind == number


def test_status_codes_are_integers_or_names():
    assert convert_span(status={"code": 2}).status.code == 2
    assert convert_span(status={"code": "STATUS_CODE_ERROR"}).status.code == 2


@pytest.mark.parametrize("kind", ["SPAN_KIND_NONE", "server", 2.5, 2**31, True])
def test_what_is_no_kind_is_a_bad_request(kind):
    with pytest.raises(BadRequest):
        convert_span(kind=kind)


def test_unknown_fields_are_ignored_at_every_level():
    got = convert(
        {
            "future": {"deep": [1]},
            "resourceSpans": [
                {
                    "resource": {"entityRefs": [{"type": "host"}]},
                    "scopeSpans": [{"spans": [{"traceId": TRACE, "spanId": SPAN, "": 1, "name": "n"}], "x": None}],
                }
            ],
        }
    )
    assert got.resource_spans[0].scope_spans[0].spans[0].name == "n"


def test_snake_case_names_are_unknown_names():
    assert convert({"resource_spans": document()["resourceSpans"]}) == ExportTraceServiceRequest()
    assert convert_span(start_time_unix_nano="5").start_time_unix_nano == 0


def test_null_is_the_default_of_anything():
    empty = convert(document())
    assert empty == convert(
        document(name=None, kind=None, attributes=None, events=None, links=None, status=None, startTimeUnixNano=None)
    )
    assert convert({"resourceSpans": None}) == ExportTraceServiceRequest()
    assert convert_value({"stringValue": None}).WhichOneof("value") is None
    assert convert_value({"stringValue": None, "intValue": 1}).int_value == 1


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0),
        (0.1, 0.1),
        ("0.1", 0.1),
        ("-1e-3", -0.001),
        ("Infinity", math.inf),
        ("-Infinity", -math.inf),
        (-0.0, -0.0),
    ],
)
def test_doubles(value, number):
    got = convert_value({"doubleValue": value}).double_value
    assert got == number
    assert math.copysign(1, got) == math.copysign(1, number)


def test_not_a_number_is_a_double():
    assert math.isnan(convert_value({"doubleValue": "NaN"}).double_value)


@pytest.mark.parametrize("value", ["nan", "inf", "-NaN", "1e400", "1_0", "", True, None, [1]])
def test_what_is_no_double(value):
    if value is None:
        assert convert_value({"doubleValue": value}).WhichOneof("value") is None
        return
    with pytest.raises(BadRequest):
        convert_value({"doubleValue": value})


@pytest.mark.parametrize("text", ["-_8=", "-_8", "+/8=", "+/8"])
def test_bytes_are_base64_of_either_alphabet_padded_or_not(text):
    assert convert_value({"bytesValue": text}).bytes_value == b"\xfb\xff"


@pytest.mark.parametrize("text", ["!", "A", "+/8=\n=", "é", 5, []])
def test_what_is_not_base64_is_a_bad_request(text):
    with pytest.raises(BadRequest):
        convert_value({"bytesValue": text})


@pytest.mark.parametrize(
    ("value", "member"),
    [
        ({"stringValue": ""}, "string_value"),
        ({"boolValue": False}, "bool_value"),
        ({"intValue": 0}, "int_value"),
        ({"intValue": "0"}, "int_value"),
        ({"doubleValue": 0}, "double_value"),
        ({"bytesValue": ""}, "bytes_value"),
        ({"arrayValue": {}}, "array_value"),
        ({"arrayValue": {"values": None}}, "array_value"),
        ({"kvlistValue": {"values": []}}, "kvlist_value"),
        ({}, None),
        ({"stringValueStrindex": 3}, None),
    ],
    ids=str,
)
def test_a_value_that_is_zero_is_there(value, member):
    assert convert_value(value).WhichOneof("value") == member


def test_an_empty_value_is_not_a_missing_one():
    got = convert_span(attributes=[{"key": "a", "value": {}}, {"key": "b"}, {"key": "c", "value": None}])
    assert [one.HasField("value") for one in got.attributes] == [True, False, False]


def test_two_values_in_one_are_a_bad_request():
    with pytest.raises(BadRequest, match="second value"):
        convert_value({"stringValue": "a", "intValue": 1})


def test_arrays_and_maps_nest_with_all_their_types():
    got = convert_value(
        {
            "arrayValue": {
                "values": [
                    {"stringValue": "é\u0000😀"},
                    {
                        "kvlistValue": {
                            "values": [{"key": "k", "value": {"arrayValue": {"values": [{"intValue": "-1"}]}}}]
                        }
                    },
                    {},
                    {"doubleValue": "NaN"},
                ]
            }
        }
    ).array_value.values
    assert got[0].string_value == "é\0😀"
    assert got[1].kvlist_value.values[0].value.array_value.values[0].int_value == -1
    assert got[2].WhichOneof("value") is None
    assert math.isnan(got[3].double_value)


def nested(depth: int) -> bytes:
    value = b'{"arrayValue":{"values":[' * depth + b'{"intValue":"1"}' + b"]}}" * depth
    return json.dumps(document(attributes=[{"key": "a", "value": "HERE"}])).encode().replace(b'"HERE"', value)


def test_what_other_stores_refuse_to_nest_is_kept():
    # protobuf's own parsers stop at a hundred messages, so the wire bytes are taken apart by hand.
    value = sift(to_protobuf(nested(200)), 10).request
    assert value.count(b"\x2a") >= 200


@pytest.mark.parametrize("depth", [330, 1000, 100_000])
def test_a_depth_bomb_is_a_bad_request(depth):
    with pytest.raises(BadRequest):
        to_protobuf(nested(depth))
    with pytest.raises(BadRequest):
        to_protobuf(b"[" * depth * 4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"x"',
        b"{",
        b"{}{}",
        b"\x0a\x00",
        b'{"a":NaN}',
        b"\xff{}",
        b'{"a":"\xff"}',
        b'{"resourceSpans":{}}',
        b'{"resourceSpans":[null]}',
        b'{"resourceSpans":[5]}',
        rb'{"a":"\ud800"}',
        rb'{"a":"\udc00\ud800"}',
        b"\xff\xfe{\0}\0",
    ],
)
def test_what_is_no_request_is_a_bad_request(body):
    with pytest.raises(BadRequest):
        to_protobuf(body)


def test_a_byte_order_mark_is_skipped():
    assert convert(b"\xef\xbb\xbf" + json.dumps(document(name="n")).encode()) == convert(document(name="n"))


def test_of_two_equal_keys_the_last_counts():
    assert convert(b'{"resourceSpans":5,"resourceSpans":[]}') == ExportTraceServiceRequest()


def test_a_long_string_is_kept():
    assert convert_value({"stringValue": "x" * 10_000_000}).string_value == "x" * 10_000_000


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"name": 5}, "name"),
        ({"traceId": 5}, "traceId"),
        ({"attributes": {"a": "b"}}, "attributes"),
        ({"attributes": [{"key": "a", "value": 5}]}, "attributes[0].value"),
        ({"attributes": [{}, {"key": "a", "value": {"boolValue": 0}}]}, "attributes[1].value.boolValue"),
        ({"events": [{}, {"timeUnixNano": "x"}]}, "events[1].timeUnixNano"),
        ({"status": []}, "status"),
        (
            {"attributes": [{"key": "a", "value": {"arrayValue": {"values": [{}, {"intValue": "x"}]}}}]},
            "attributes[0].value.arrayValue.values[1].intValue",
        ),
        (
            {"attributes": [{"key": "a", "value": {"kvlistValue": {"values": [{"value": {"stringValue": 1}}]}}}]},
            "attributes[0].value.kvlistValue.values[0].value.stringValue",
        ),
    ],
)
def test_a_wrong_type_is_a_bad_request_that_names_the_place(fields, place):
    with pytest.raises(BadRequest) as refused:
        convert_span(**fields)
    assert refused.value.place == f"resourceSpans[0].scopeSpans[0].spans[0].{place}"
    assert refused.value.place in refused.value.message


NAMES = st.sampled_from(
    [
        *(
            "resourceSpans",
            "scopeSpans",
            "spans",
            "resource",
            "scope",
            "traceId",
            "spanId",
            "parentSpanId",
            "traceState",
        ),
        *("name", "kind", "status", "code", "message", "events", "links", "flags", "attributes", "schemaUrl", "other"),
        *("key", "value", "values", "stringValue", "boolValue", "intValue", "doubleValue", "bytesValue", "arrayValue"),
        *("kvlistValue", "timeUnixNano", "startTimeUnixNano", "droppedAttributesCount"),
    ]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([TRACE, SPAN, "7"])
)
DOCUMENTS = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=30
)


@settings(max_examples=500, deadline=None)
@given(DOCUMENTS)
def test_any_json_is_converted_or_a_bad_request(inner):
    for body in (inner, {"resourceSpans": inner}, document(**inner) if isinstance(inner, dict) else inner):
        try:
            converted = to_protobuf(json.dumps(body, allow_nan=False).encode())
        except (BadRequest, ValueError) as error:
            assert isinstance(error, BadRequest) or "JSON compliant" in str(error)
        else:
            ExportTraceServiceRequest.FromString(converted)
