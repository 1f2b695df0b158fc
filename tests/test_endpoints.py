"""Every vendor's exporter reaches the real program by changing its host only: its path, its headers, its encodings."""

import json
import re
from pathlib import Path

import httpx
import pytest
from frame_samples import until
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otlp_building import logs_body, record, request, span
from program import Program
from recorded import CORPUS

from collector.endpoints import BASES, ENDPOINTS, OTHER_SIGNALS

PAGE = (Path(__file__).parent.parent / "docs" / "endpoints.md").read_text()
PROTOBUF = "application/x-protobuf"
SECRET = "made-up-credential-of-the-test"

# What each product's SDK or page sends: base path, headers, and what these say of the spans.
VENDORS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "Langfuse": (
        "/api/public/otel",
        {
            "Authorization": f"Basic {SECRET}",
            "x-langfuse-sdk-name": "python",
            "x-langfuse-sdk-version": "5.0.4",
            "x-langfuse-public-key": "pk-lf-1",
            "x-langfuse-ingestion-version": "4",
        },
        {},
    ),
    "LangSmith": (
        "/otel", {"x-api-key": SECRET, "Langsmith-Project": "support-bot"}, {"experiment_id": "support-bot"},
    ),
    "LangSmith self-hosted": ("/api/v1/otel", {"x-api-key": SECRET}, {}),
    "Weave": ("/otel", {"wandb-api-key": SECRET, "project_id": "team/bot"}, {"experiment_id": "team/bot"}),
    "Weave agents": ("/agents/otel", {"wandb-api-key": SECRET, "project_id": "team/b"}, {"experiment_id": "team/b"}),
    "Weave dedicated": ("/traces/otel", {"wandb-api-key": SECRET, "project_id": "t/b"}, {"experiment_id": "t/b"}),
    "Braintrust": (
        "/otel",
        {"Authorization": f"Bearer {SECRET}", "x-bt-parent": "experiment_id:e-1"},
        {"run_id": "e-1", "experiment_id": "e-1"},
    ),
    "Opik self-hosted": (
        "/api/v1/private/otel",
        {"Authorization": SECRET, "Comet-Workspace": "demo", "projectName": "support"},
        {"experiment_id": "support"},
    ),
    "Opik": ("/opik/api/v1/private/otel", {"Authorization": SECRET, "Comet-Workspace": "demo"}, {}),
    "LangWatch": ("/api/otel", {"Authorization": f"Bearer {SECRET}"}, {}),
    "HoneyHive": ("/opentelemetry", {"Authorization": f"Bearer {SECRET}"}, {}),
    "MLflow": (
        "",
        {"x-mlflow-experiment-id": "7", "x-mlflow-run-id": "abc", "x-mlflow-client-version": "3.17.2"},
        {"run_id": "abc", "experiment_id": "7"},
    ),
    "MLflow (tracking URI)": ("/mlflow", {"x-mlflow-run-id": "abc"}, {"run_id": "abc"}),
    "OpenTelemetry": (
        "",
        {"x-spanhouse-run-id": "r-1", "x-spanhouse-model": "support/bot/12"},
        {"run_id": "r-1", "model_name": "support/bot", "model_version": "12"},
    ),
}  # fmt: skip


def one_span(number: int) -> ExportTraceServiceRequest:
    return request(span(number, trace_id=(0xE << 120 | number).to_bytes(16, "big")))


def test_every_base_has_a_vendor_here() -> None:
    assert {base for base, _, _ in VENDORS.values()} == set(BASES)


@pytest.fixture(scope="module")
def sent(spanhouse: Program) -> dict[str, str]:
    """The trace id of a request that each vendor's exporter sent. All are sent before the first is looked for."""
    ids = {}
    for number, (vendor, (base, headers, _)) in enumerate(VENDORS.items(), 1):
        message = one_span(number)
        answer = httpx.post(
            f"{spanhouse.otlp_http}{base}/v1/traces",
            content=message.SerializeToString(),
            headers={"content-type": PROTOBUF, **headers},
        )
        assert (answer.status_code, answer.content) == (200, b""), vendor
        ids[vendor] = message.resource_spans[0].scope_spans[0].spans[0].trace_id.hex()
    return ids


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_exporter_is_taken_with_its_headers(spanhouse: Program, sent: dict[str, str], vendor: str) -> None:
    [stored] = spanhouse.read_trace(sent[vendor], 1)["spans"]
    linked = ("run_id", "experiment_id", "model_name", "model_version")
    assert {name: stored["canonical"][name] for name in linked if name in stored["canonical"]} == VENDORS[vendor][2]
    assert SECRET not in json.dumps(stored)
    assert SECRET not in spanhouse.log()


def test_an_sdk_with_another_host_exports_traces_and_logs(spanhouse: Program) -> None:
    """At every base."""
    contexts = {}
    for base in BASES:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(endpoint=f"{spanhouse.otlp_http}{base}/v1/traces")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with provider.get_tracer("t").start_as_current_span("work") as one:
            pass
        provider.shutdown()
        contexts[base] = one.get_span_context()
        ids = {"trace_id": contexts[base].trace_id.to_bytes(16), "span_id": contexts[base].span_id.to_bytes(8)}
        answer = httpx.post(
            f"{spanhouse.otlp_http}{base}/v1/logs",
            content=logs_body(record(1, **ids)),
            headers={"content-type": PROTOBUF},
        )
        assert (answer.status_code, answer.content) == (200, b"")
    for context in contexts.values():
        trace_id = f"{context.trace_id:032x}"
        until(lambda trace_id=trace_id: spanhouse.read_trace(trace_id, 1)["spans"][0]["events"], 20)


RECORDED = sorted(
    sidecar
    for sidecar in CORPUS.glob("*/*.json")
    if (said := json.loads(sidecar.read_text()))["protocol"] == "http" and said["path"] != "/v1/traces"
)


def test_requests_recorded_at_other_paths_are_taken_there(spanhouse: Program) -> None:
    """Langfuse's and Opik's, byte for byte, with the headers that were recorded."""
    assert {sidecar.parent.name for sidecar in RECORDED} == {"langfuse_sdk", "opik_otel"}
    for sidecar in RECORDED:
        said = json.loads(sidecar.read_text())
        headers = {
            **{name.lower(): value for name, value in said["headers"]},
            "content-type": said["content_type"],
            "x-spanhouse-tenant": "recorded",
        }
        if said["content_encoding"]:
            headers["content-encoding"] = said["content_encoding"]
        body = sidecar.with_suffix(".bin").read_bytes()
        answer = httpx.post(spanhouse.otlp_http + said["path"], content=body, headers=headers)
        assert answer.status_code == 200, (sidecar, answer.text)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"x-spanhouse-model": "bot"}, "cannot take 'bot' as x-spanhouse-model: write name/version"),
        ({"x-mlflow-run-id": "r" * 251}, "as run_id: 250 characters are the limit"),
    ],
)
def test_a_bad_header_is_refused_with_a_reason(spanhouse: Program, headers: dict[str, str], reason: str) -> None:
    data = one_span(900).SerializeToString()
    answer = httpx.post(f"{spanhouse.otlp_http}/v1/traces", content=data, headers={"content-type": PROTOBUF, **headers})
    assert answer.status_code == 400
    assert reason in Status.FromString(answer.content).message


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| `([^`]*)` \| ([^|]*) \| ([^|]*) \|$", PAGE, re.MULTILINE)
    expected = [
        (base or "/", ", ".join(at.products), f"`{at.project_header}`" if at.project_header else "")
        for base, at in BASES.items()
    ]
    assert [(base, products, header.strip()) for base, products, header in rows] == expected


def test_no_path_stands_for_two_things() -> None:
    assert len(ENDPOINTS) == 2 * len(BASES)
    assert not ENDPOINTS.keys() & OTHER_SIGNALS.keys()
