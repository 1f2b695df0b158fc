"""Whatever an exporter sent can be rebuilt as OTLP: the recorded requests of real SDKs go in by the protocol they were
recorded from and come back span by span, attribute by attribute."""

import base64
import json
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, TracesData
from program import Program
from recorded import CASES, Recorded, requests

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def meaning(value: AnyValue) -> Any:
    """A value in a form that compares: type and content, where no value and an empty one are the same."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return kind, [meaning(v) for v in value.array_value.values]
    if kind == "kvlist_value":
        return kind, [(pair.key, meaning(pair.value)) for pair in value.kvlist_value.values]
    return kind, repr(getattr(value, kind)) if kind else None


def attributes(pairs: Any) -> list[tuple[str, Any]]:
    """Attributes in an order of their own: a set with repetitions is what OTLP says they are."""
    return sorted(((pair.key, meaning(pair.value)) for pair in pairs), key=repr)


def facts(block: ResourceSpans, scope_spans: Any, span: Span) -> dict[str, Any]:
    """All that a span says, its resource and its scope included, in a form that compares."""
    scope, resource = scope_spans.scope, block.resource
    return {
        "resource": (attributes(resource.attributes), resource.dropped_attributes_count, block.schema_url),
        "scope": (scope.name, scope.version, attributes(scope.attributes), scope.dropped_attributes_count),
        "scope_schema_url": scope_spans.schema_url,
        "ids": (span.trace_id, span.span_id, span.parent_span_id, span.trace_state, span.flags),
        "name": (span.name, span.kind),
        "times": (span.start_time_unix_nano, span.end_time_unix_nano),
        "status": (span.status.code, span.status.message),
        "attributes": attributes(span.attributes),
        "events": [
            (e.time_unix_nano, e.name, attributes(e.attributes), e.dropped_attributes_count) for e in span.events
        ],
        "links": [
            (x.trace_id, x.span_id, x.trace_state, attributes(x.attributes), x.dropped_attributes_count, x.flags)
            for x in span.links
        ],
        "dropped": (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
    }


def by_id(blocks: Any) -> dict[tuple[bytes, bytes], dict[str, Any]]:
    return {
        (span.trace_id, span.span_id): facts(block, scope_spans, span)
        for block in blocks
        for scope_spans in block.scope_spans
        for span in scope_spans.spans
    }


def from_json(body: bytes) -> ExportTraceServiceRequest:
    """An OTLP/JSON request by a reader of the test's own: what it must mean, not what our receiver thinks."""
    members = {"stringValue": str, "boolValue": bool, "intValue": int, "doubleValue": float}

    def value(said: dict[str, Any]) -> AnyValue:
        answer = AnyValue()
        for name, given in said.items():
            if name == "arrayValue":
                answer.array_value.SetInParent()
                answer.array_value.values.extend(value(v) for v in given.get("values", ()))
            elif name == "kvlistValue":
                answer.kvlist_value.SetInParent()
                answer.kvlist_value.values.extend(pairs(given.get("values", ())))
            elif name == "bytesValue":
                answer.bytes_value = base64.b64decode(given)
            else:
                field = name.replace("Value", "_value")
                setattr(answer, field, members[name](given))
        return answer

    def pairs(said: list[dict[str, Any]]) -> list[KeyValue]:
        return [KeyValue(key=pair["key"], value=value(pair.get("value", {}))) for pair in said]

    request = ExportTraceServiceRequest()
    for said_block in json.loads(body)["resourceSpans"]:
        block = request.resource_spans.add(schema_url=said_block.get("schemaUrl", ""))
        block.resource.attributes.extend(pairs(said_block["resource"].get("attributes", [])))
        block.resource.dropped_attributes_count = said_block["resource"].get("droppedAttributesCount", 0)
        for said_scope in said_block["scopeSpans"]:
            scope_spans = block.scope_spans.add(schema_url=said_scope.get("schemaUrl", ""))
            scope_spans.scope.name = said_scope["scope"].get("name", "")
            scope_spans.scope.version = said_scope["scope"].get("version", "")
            scope_spans.scope.attributes.extend(pairs(said_scope["scope"].get("attributes", [])))
            for said in said_scope["spans"]:
                span = scope_spans.spans.add(
                    trace_id=bytes.fromhex(said["traceId"]),
                    span_id=bytes.fromhex(said["spanId"]),
                    parent_span_id=bytes.fromhex(said.get("parentSpanId", "")),
                    name=said.get("name", ""),
                    kind=said.get("kind", 0),
                    flags=said.get("flags", 0),
                    trace_state=said.get("traceState", ""),
                    start_time_unix_nano=int(said.get("startTimeUnixNano", 0)),
                    end_time_unix_nano=int(said.get("endTimeUnixNano", 0)),
                    attributes=pairs(said.get("attributes", [])),
                    dropped_attributes_count=said.get("droppedAttributesCount", 0),
                    dropped_events_count=said.get("droppedEventsCount", 0),
                    dropped_links_count=said.get("droppedLinksCount", 0),
                )
                span.status.code = said.get("status", {}).get("code", 0)
                span.status.message = said.get("status", {}).get("message", "")
                for e in said.get("events", ()):
                    span.events.add(
                        time_unix_nano=int(e["timeUnixNano"]),
                        name=e.get("name", ""),
                        attributes=pairs(e.get("attributes", [])),
                        dropped_attributes_count=e.get("droppedAttributesCount", 0),
                    )
                for link in said.get("links", ()):
                    span.links.add(
                        trace_id=bytes.fromhex(link["traceId"]),
                        span_id=bytes.fromhex(link["spanId"]),
                        attributes=pairs(link.get("attributes", [])),
                        flags=link.get("flags", 0),
                    )
    return request


def send(program: Program, channel: grpc.Channel, request: Recorded, tenant: str) -> None:
    """Send a request as it was recorded: protocol, encoding and bytes."""
    if request.protocol == "grpc":
        call = channel.unary_unary(EXPORT)
        compression = grpc.Compression.Gzip if request.body[0] else None
        metadata = (("x-spanhouse-tenant", tenant),)
        assert call(request.grpc_message, metadata=metadata, compression=compression, timeout=30) == b""
        return
    headers = {"content-type": request.content_type, "x-spanhouse-tenant": tenant}
    if request.content_encoding:
        headers["content-encoding"] = request.content_encoding
    answer = httpx.post(f"{program.otlp_http}/v1/traces", content=request.body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.content in (b"", b"{}")


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_export_comes_back(spanhouse: Program, case: str) -> None:
    sent: dict[tuple[bytes, bytes], dict[str, Any]] = {}
    with grpc.insecure_channel(spanhouse.grpc) as channel:
        for request in requests(case):
            send(spanhouse, channel, request, case)
            is_json = "json" in request.content_type
            sent |= by_id((from_json(request.body) if is_json else request.decoded()).resource_spans)
    assert sent

    traces: dict[bytes, int] = {}
    for trace_id, _ in sent:
        traces[trace_id] = traces.get(trace_id, 0) + 1
    for trace_id, spans in traces.items():
        answer = spanhouse.read_trace(trace_id.hex(), spans, tenant=case)
        assert answer["span_count"] == spans
        url = f"{spanhouse.http}/api/v1/traces/{trace_id.hex()}?format=otlp"
        headers = {"x-spanhouse-tenant": case}
        wire = httpx.get(url, headers={**headers, "accept": "application/x-protobuf"}).content
        back = by_id(TracesData.FromString(wire).resource_spans)
        text = httpx.get(url, headers=headers).content
        assert by_id(from_json(text).resource_spans) == back
        assert len(back) == spans
        for key, told in back.items():
            assert told == sent[key]


def test_every_case_was_recorded_from_a_real_exporter() -> None:
    """The corpus holds all three encodings of OTLP, so that none of the tests above passes for want of it."""
    kinds = {(r.protocol, "json" in r.content_type, r.content_encoding) for case in CASES for r in requests(case)}
    assert {("grpc", False, "gzip"), ("http", False, "gzip"), ("http", True, None)} <= kinds
    assert len(CASES) == 32
