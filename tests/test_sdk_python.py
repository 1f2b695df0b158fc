"""The OpenTelemetry Python SDK exports over gRPC and HTTP; what comes back has every value and type that went in."""

import json
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression as HttpCompression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags
from program import Program

EXPORTERS = {
    "grpc": lambda at: GrpcExporter(endpoint=at.grpc, insecure=True),
    "grpc gzip": lambda at: GrpcExporter(endpoint=at.grpc, insecure=True, compression=grpc.Compression.Gzip),
    "http": lambda at: HttpExporter(endpoint=f"{at.otlp_http}/v1/traces"),
    "http gzip": lambda at: HttpExporter(endpoint=f"{at.otlp_http}/v1/traces", compression=HttpCompression.Gzip),
    "http deflate": lambda at: HttpExporter(endpoint=f"{at.otlp_http}/v1/traces", compression=HttpCompression.Deflate),
}
ATTRIBUTES: dict[str, Any] = {
    "text": 'naïve 🦊 "quoted"\n\x00',
    "text.empty": "",
    "text.long": "prompt " * 5000,
    "yes": True,
    "no": False,
    "int.zero": 0,
    "int.min": -(2**63),
    "int.max": 2**63 - 1,
    "double": 2.5,
    "double.whole": 1.0,
    "double.tiny": 5e-324,
    "list.text": ["a", "", "ü"],
    "list.int": [1, -(2**63), 2**63 - 1],
    "list.double": [1.0, 2.5],
    "list.bool": [True, False],
    "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"hi"}]}]',
}
RESOURCE = {"service.name": "python-shop", "service.instance.id": 7, "shop.open": True, "shop.rating": 4.0}
LINKED = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, True, TraceFlags(1))


class Exported(SpanExporter):
    """Notes whether the real exporter delivered; the SDK only logs it when it did not."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.results: list[SpanExportResult] = []

    def export(self, spans) -> SpanExportResult:
        self.results.append(self._exporter.export(spans))
        return self.results[-1]

    def shutdown(self) -> None:
        self._exporter.shutdown()


@pytest.fixture(params=EXPORTERS)
def exported(request: pytest.FixtureRequest, spanhouse: Program) -> tuple[ReadableSpan, ReadableSpan]:
    """A trace of two spans, child first, as the SDK has them after it exported them."""
    exporter, memory = Exported(EXPORTERS[request.param](spanhouse)), InMemorySpanExporter()
    provider = TracerProvider(resource=Resource(RESOURCE, "https://opentelemetry.io/schemas/1.37.0"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.add_span_processor(BatchSpanProcessor(memory))
    tracer = provider.get_tracer("shop", "1.2.3", "https://opentelemetry.io/schemas/1.36.0", {"scope.kind": "test"})
    links = [Link(LINKED, {"why": "retry", "count": 2})]
    with tracer.start_as_current_span("checkout", kind=SpanKind.SERVER, attributes=ATTRIBUTES, links=links) as root:
        root.add_event("cart", {"items": 3, "total": 4.0})
        with tracer.start_as_current_span("charge card", kind=SpanKind.CLIENT) as child:
            child.record_exception(ValueError("card declined"))
            child.set_status(StatusCode.ERROR, "card declined")
        root.set_status(StatusCode.OK)
    provider.shutdown()
    assert exporter.results == [SpanExportResult.SUCCESS]
    child_span, root_span = memory.get_finished_spans()
    return root_span, child_span


def exactly(value: Any) -> str:
    """A text that tells 1 from 1.0 and from true."""
    return json.dumps(value, sort_keys=True)


def test_the_tree_comes_back_with_its_types(spanhouse: Program, exported: tuple[ReadableSpan, ReadableSpan]) -> None:
    root, child = exported
    trace_id = trace.format_trace_id(root.context.trace_id)
    tree = spanhouse.read_trace(trace_id, 2, format="tree")

    assert tree["trace_id"] == trace_id
    assert (tree["root"]["service"], tree["root"]["name"]) == ("python-shop", "checkout")
    assert (tree["span_count"], tree["error_count"], tree["services"]) == (2, 1, ["python-shop"])
    assert tree["start_time_unix_nano"] == str(root.start_time)
    assert tree["duration_nano"] == str(root.end_time - root.start_time)
    assert tree["integrity"]["complete"] is True

    [got] = tree["spans"]
    assert exactly(got["attributes"]) == exactly(ATTRIBUTES)
    assert exactly(got["resource"]["attributes"]) == exactly(RESOURCE)
    assert got["resource"]["schema_url"] == "https://opentelemetry.io/schemas/1.37.0"
    assert (got["scope"]["name"], got["scope"]["version"]) == ("shop", "1.2.3")
    assert got["scope"]["schema_url"] == "https://opentelemetry.io/schemas/1.36.0"
    assert got["scope"]["attributes"] == {"scope.kind": "test"}
    assert (got["kind"], got["status"]["code"], got["parent_span_id"]) == ("server", "ok", "")
    assert got["start_time_unix_nano"] == str(root.start_time)
    assert got["end_time_unix_nano"] == str(root.end_time)
    [cart] = got["events"]
    assert (cart["name"], cart["time_unix_nano"]) == ("cart", str(root.events[0].timestamp))
    assert exactly(cart["attributes"]) == exactly({"items": 3, "total": 4.0})
    [link] = got["links"]
    assert (link["trace_id"], link["span_id"]) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert exactly(link["attributes"]) == exactly({"why": "retry", "count": 2})

    [below] = got["children"]
    assert below["span_id"] == trace.format_span_id(child.context.span_id)
    assert below["parent_span_id"] == got["span_id"] == trace.format_span_id(root.context.span_id)
    assert below["status"] == {"code": "error", "message": "card declined"}
    [exception] = below["events"]
    assert exception["attributes"]["exception.type"] == "ValueError"
    assert "card declined" in exception["attributes"]["exception.stacktrace"]
