"""A trace given back as OTLP, in both encodings, against messages of opentelemetry-proto made at random."""

import base64
import json
from collections import Counter

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from make_spans import SCOPE, SHOP, resource, span
from nested_values import any_values, deep, field, nested, stored_value, text
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status, TracesData
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from query import otlp
from storage.spans import Event, Link, Nested, Resource, Scope, Span

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
enumeration = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5)
values = any_values(st.floats(allow_nan=False))  # NaN is not equal to itself: tested apart
attributes = st.lists(st.builds(KeyValue, key=text, value=values), max_size=4)
events = st.builds(
    SpanMessage.Event, time_unix_nano=uint64, name=text, attributes=attributes, dropped_attributes_count=uint32
)
links = st.builds(
    SpanMessage.Link,
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    trace_state=text,
    attributes=attributes,
    dropped_attributes_count=uint32,
    flags=uint32,
)
spans = st.builds(
    SpanMessage,
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(min_size=8, max_size=8),
    parent_span_id=st.just(b"") | st.just(bytes(8)) | st.binary(min_size=8, max_size=8),
    trace_state=text,
    flags=uint32,
    name=text,
    kind=enumeration,
    start_time_unix_nano=uint64,
    end_time_unix_nano=uint64,
    attributes=attributes,
    dropped_attributes_count=uint32,
    events=st.lists(events, max_size=2),
    dropped_events_count=uint32,
    links=st.lists(links, max_size=2),
    dropped_links_count=uint32,
    status=st.builds(Status, code=enumeration, message=text),
)
requests = st.builds(
    TracesData,
    resource_spans=st.lists(
        st.builds(
            ResourceSpans,
            resource=st.builds(ResourceMessage, attributes=attributes, dropped_attributes_count=uint32),
            scope_spans=st.lists(
                st.builds(
                    ScopeSpans,
                    scope=st.builds(
                        InstrumentationScope,
                        name=text,
                        version=text,
                        attributes=attributes,
                        dropped_attributes_count=uint32,
                    ),
                    spans=st.lists(spans, min_size=1, max_size=2),
                    schema_url=text,
                ),
                min_size=1,
                max_size=2,
            ),
            schema_url=text,
        ),
        max_size=2,
    ),
)


def pairs(messages):
    return [(one.key, stored_value(one.value)) for one in messages]


def stored(data: TracesData) -> list[Span]:
    """What the store gives back for a request: the objects of storage.spans."""
    found = []
    for of_resource in data.resource_spans:
        sent = of_resource.resource
        by = Resource(pairs(sent.attributes), sent.dropped_attributes_count, of_resource.schema_url)
        for of_scope in of_resource.scope_spans:
            lib = of_scope.scope
            scope = Scope(
                lib.name, lib.version, pairs(lib.attributes), lib.dropped_attributes_count, of_scope.schema_url
            )
            found += [stored_span(one, by, scope) for one in of_scope.spans]
    return found


def stored_span(one: SpanMessage, by: Resource, scope: Scope) -> Span:
    return Span(
        one.trace_id,
        one.span_id,
        one.parent_span_id,
        one.trace_state,
        one.flags,
        one.name,
        one.kind,
        one.start_time_unix_nano,
        one.end_time_unix_nano,
        one.status.code,
        one.status.message,
        pairs(one.attributes),
        one.dropped_attributes_count,
        [Event(e.time_unix_nano, e.name, pairs(e.attributes), e.dropped_attributes_count) for e in one.events],
        one.dropped_events_count,
        [
            Link(k.trace_id, k.span_id, k.trace_state, pairs(k.attributes), k.dropped_attributes_count, k.flags)
            for k in one.links
        ],
        one.dropped_links_count,
        by,
        scope,
        "",
        0,
    )


def each_with_its_origin(data: TracesData) -> Counter[tuple[bytes, ...]]:
    """Every span with the resource, the scope and the schema URLs it came with, as bytes that can be compared."""
    found: Counter[tuple[bytes, ...]] = Counter()
    for of_resource in data.resource_spans:
        for of_scope in of_resource.scope_spans:
            for one in of_scope.spans:
                parts = (of_resource.resource, of_scope.scope, one)
                encoded = tuple(part.SerializeToString(deterministic=True) for part in parts)
                found[*encoded, of_resource.schema_url.encode(), of_scope.schema_url.encode()] += 1
    return found


def read_json(body: bytes) -> TracesData:
    """OTLP/JSON by protobuf's own JSON reader, after its hex ids are made base64, which is where the two differ."""

    def with_base64_ids(one):
        if isinstance(one, list):
            return [with_base64_ids(item) for item in one]
        if not isinstance(one, dict):
            return one
        ids = ("traceId", "spanId", "parentSpanId")
        return {
            key: base64.b64encode(bytes.fromhex(item)).decode() if key in ids else with_base64_ids(item)
            for key, item in one.items()
        }

    # Python's decoder would turn 1e300 and -0.0 into the same floats again; json_format then reads those.
    return json_format.ParseDict(with_base64_ids(json.loads(body)), TracesData())


def protobuf(found: list[Span]) -> TracesData:
    return TracesData.FromString(b"".join(otlp.protobuf_pieces(found)))


@given(requests)
@settings(max_examples=60, deadline=None)
def test_protobuf_comes_back_as_it_was_sent(data):
    assert each_with_its_origin(protobuf(stored(data))) == each_with_its_origin(data)


@given(requests)
@settings(max_examples=60, deadline=None)
def test_json_comes_back_as_it_was_sent(data):
    body = b"".join(otlp.json_pieces(stored(data)))
    assert each_with_its_origin(read_json(body)) == each_with_its_origin(data)


def test_json_has_the_forms_of_the_specification():
    one = span(
        0xEEE19B7EC3C1B174,
        0xEEE19B7EC3C1B173,
        kind=2,
        attributes=[
            ("i", 2**63 - 1),
            ("d", float("nan")),
            ("m", float("-inf")),
            ("one", 1.0),
            ("b", b"\x00\xff"),
            ("n", None),
            (
                "l",
                nested(ArrayValue(values=[AnyValue(double_value=float("nan")), AnyValue(int_value=-1), AnyValue()])),
            ),
        ],
    )
    body = b"".join(otlp.json_pieces([one]))
    assert json.loads(body) == {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "made", "version": "1.0"},
                        "spans": [
                            {
                                "traceId": "5b8efff798038103d269b633813fc60c",
                                "spanId": "eee19b7ec3c1b174",
                                "parentSpanId": "eee19b7ec3c1b173",
                                "flags": 1,
                                "name": one.name,
                                "kind": 2,
                                "startTimeUnixNano": "1764000000000000000",
                                "endTimeUnixNano": "1764000000000001000",
                                "attributes": [
                                    {"key": "i", "value": {"intValue": "9223372036854775807"}},
                                    {"key": "d", "value": {"doubleValue": "NaN"}},
                                    {"key": "m", "value": {"doubleValue": "-Infinity"}},
                                    {"key": "one", "value": {"doubleValue": 1.0}},
                                    {"key": "b", "value": {"bytesValue": "AP8="}},
                                    {"key": "n", "value": {}},
                                    {
                                        "key": "l",
                                        "value": {
                                            "arrayValue": {"values": [{"doubleValue": "NaN"}, {"intValue": "-1"}, {}]}
                                        },
                                    },
                                ],
                                "status": {},
                            }
                        ],
                    }
                ],
            }
        ]
    }


def test_equal_resources_and_scopes_are_one_group_and_different_ones_stay_apart():
    twin = resource("shop")  # equal to SHOP, as it would come in another request
    other_schema = Resource(SHOP.attributes, 0, "https://schema")
    other_scope = Scope("made", "2.0", [], 0, "")
    spans = [
        span(1),
        span(2, resource=other_schema),
        span(3, resource=twin),
        span(4, scope=other_scope),
        span(5, scope=Scope("made", "1.0", [], 0, "")),
    ]
    groups = otlp.group(spans)
    assert [
        (one.resource.schema_url, [(scope.version, [s.name for s in members]) for scope, members in one.scopes])
        for one in groups
    ] == [
        ("", [("1.0", ["span 1", "span 3", "span 5"]), ("2.0", ["span 4"])]),
        ("https://schema", [("1.0", ["span 2"])]),
    ]


def test_nan_survives_protobuf():
    pair = protobuf([span(1, attributes=[("x", float("nan"))])]).resource_spans[0].scope_spans[0].spans[0].attributes[0]
    assert pair.value.WhichOneof("value") == "double_value"
    assert pair.value.double_value != pair.value.double_value


def test_a_large_trace_comes_in_pieces_that_are_one_message():
    spans = [span(number, number - 1 or None) for number in range(1, 2 * otlp.BATCH_SPANS + 2)]
    pieces = list(otlp.protobuf_pieces(spans))
    assert len(pieces) == 3
    data = TracesData.FromString(b"".join(pieces))
    assert sum(len(scope.spans) for part in data.resource_spans for scope in part.scope_spans) == len(spans)
    assert {part.resource.SerializeToString() for part in data.resource_spans} == {
        ResourceMessage(
            attributes=[KeyValue(key="service.name", value=AnyValue(string_value="shop"))]
        ).SerializeToString()
    }
    assert {scope.scope.name for part in data.resource_spans for scope in part.scope_spans} == {SCOPE.name}


def test_a_value_deeper_than_protobuf_reads_goes_out_as_it_came():
    value = deep(5_000)
    spans = [span(1, attributes=[("deep", value)])]
    assert value.wire in b"".join(otlp.protobuf_pieces(spans))
    assert b"".join(otlp.json_pieces(spans)).count(b'{"arrayValue":{"values":[') == 5_001


def test_nested_bytes_are_not_encoded_anew():
    wire = field(1, b"\x18\x07" + field(9, b"not known yet")) + b"\x8a\x00\x00"
    written = b"".join(otlp.protobuf_pieces([span(1, attributes=[("l", Nested("array", wire))])]))
    assert field(1, b"l") + field(2, field(5, wire)) in written


@pytest.mark.parametrize("kind", ["array", "kvlist"])
@pytest.mark.parametrize("wire", [b"\xff", b"\x0a\x02", field(1, field(1, b"\xff"))])
def test_a_nested_value_that_is_not_valid_is_given_as_bytes_and_spoils_nothing(kind, wire):
    one = span(1, attributes=[("bad", Nested(kind, wire)), ("good", 1)])
    as_bytes = span(1, attributes=[("bad", wire), ("good", 1)])
    assert protobuf([one]) == protobuf([as_bytes])
    assert b"".join(otlp.json_pieces([one])) == b"".join(otlp.json_pieces([as_bytes]))
