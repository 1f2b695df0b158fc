"""Content that comes as logs, over the real program: recorded requests of real instrumentations, and the real SDK."""

import gzip
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest
from frame_samples import until
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from program import Program
from prometheus_client.parser import text_string_to_metric_families
from recorded import CORPUS

LOGS = Path(__file__).with_name("corpus_logs")
"""Log requests in the form of tests/corpus, under the names of its cases, numbered with the traces there."""


def send(program: Program, sidecar: Path, tenant: str) -> bytes:
    """One recorded request by the protocol, path and encoding it was recorded with. Returns the response."""
    said, body = json.loads(sidecar.read_text()), sidecar.with_suffix(".bin").read_bytes()
    if said["protocol"] == "grpc":
        message = gzip.decompress(body[5:]) if body[0] else body[5:]
        with grpc.insecure_channel(program.grpc) as channel:
            call = channel.unary_unary(said["path"])
            answer: bytes = call(message, metadata=(("x-spanhouse-tenant", tenant),), timeout=20)
            return answer
    headers = {"content-type": said["content_type"], "x-spanhouse-tenant": tenant}
    if said["content_encoding"]:
        headers["content-encoding"] = said["content_encoding"]
    response = httpx.post(program.otlp_http + said["path"], content=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.content


def counts(program: Program, tenant: str, items: str = "log_records") -> Counter[str]:
    """The counters of a tenant's log records."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{program.http}/metrics").text):
        for sample in family.samples:
            if sample.name.startswith(f"spanhouse_{items}_") and sample.labels.get("tenant") == tenant:
                found[sample.name.removeprefix(f"spanhouse_{items}_").removesuffix("_total")] = int(sample.value)
    return found


def wait_until_stored(program: Program, tenant: str) -> None:
    until(lambda: not any(counts(program, tenant, items)["in_wal"] for items in ("log_records", "spans")), 20)


def replay(program: Program, case: str, tenant: str, logs_first: bool) -> list[bytes]:
    """All requests of a case, logs first or last. Returns the responses to the logs, when everything is stored."""
    traces, logs = sorted((CORPUS / case).glob("*.json")), sorted((LOGS / case).glob("*.json"))
    answers = []
    for sidecar in [*logs, *traces] if logs_first else [*traces, *logs]:
        answer = send(program, sidecar, tenant)
        if sidecar in logs:
            answers.append(answer)
    wait_until_stored(program, tenant)
    return answers


def spans_of(program: Program, tenant: str, **parameters: str) -> list[dict]:
    """All spans of a tenant."""
    headers = {"x-spanhouse-tenant": tenant}
    found = httpx.get(f"{program.http}/api/v1/traces", params={"limit": 100}, headers=headers).json()["traces"]
    return [
        span
        for trace in found
        for span in httpx.get(
            f"{program.http}/api/v1/traces/{trace['trace_id']}",
            params={"format": "flat", **parameters},
            headers=headers,
        ).json()["spans"]
    ]


@pytest.mark.parametrize("logs_first", [True, False])
def test_messages_that_openai_sends_as_logs_are_events_of_their_spans(spanhouse: Program, logs_first: bool) -> None:
    tenant = f"openai-{logs_first}"
    assert replay(spanhouse, "openai_v2_legacy", tenant, logs_first) == [b""]
    assert counts(spanhouse, tenant) == {"received": 92, "stored": 92, "rejected": 0, "deduplicated": 0,
                                         "quarantined": 0, "sampled": 0, "in_wal": 0}  # fmt: skip
    spans = spans_of(spanhouse, tenant)
    assert (len(spans), sum(len(span["events"]) for span in spans)) == (23, 92)
    [call] = [span for span in spans if any(
        event["attributes"].get("body") == {"content": "I want a refund for order A-1042, it arrived damaged."}
        and [e["name"] for e in span["events"]] == ["gen_ai.system.message", "gen_ai.user.message", "gen_ai.choice"]
        for event in span["events"]
    )]  # fmt: skip
    system, _, choice = call["events"]
    assert system["attributes"]["body"] == {"content": "You are a careful support agent."}
    assert system["attributes"]["gen_ai.system"] == "openai"
    assert choice["attributes"]["body"]["finish_reason"] == "tool_calls"
    assert choice["attributes"]["body"]["message"]["tool_calls"][0]["function"]["name"] == "lookup_order"
    url, headers = f"{spanhouse.http}/api/v1/traces/{call['trace_id']}", {"x-spanhouse-tenant": tenant}
    as_sent = httpx.get(url, params={"format": "otlp"}, headers=headers).text
    assert call["span_id"] in as_sent
    assert "gen_ai.choice" not in as_sent, "spans as they were sent"
    for span in spans:
        times = [int(event["time_unix_nano"]) for event in span["events"]]
        assert times == sorted(times)
    light = [event for span in spans_of(spanhouse, tenant, content="false") for event in span["events"]]
    assert len(light) == 92
    assert not any("body" in event["attributes"] for event in light)


def test_logs_of_no_span_are_kept_out_counted_and_said(spanhouse: Program) -> None:
    answers = replay(spanhouse, "apm_plain", "apm", logs_first=True)
    partial = [ExportLogsServiceResponse.FromString(answer).partial_success for answer in answers]
    assert [each.rejected_log_records for each in partial] == [1, 4, 16, 0]
    assert "rejected 16 of 17 log records, kept the others" in partial[2].error_message
    assert "has no trace_id, and only log records of a span are kept" in partial[2].error_message
    found = counts(spanhouse, "apm")
    assert (found["received"], found["rejected"], found["stored"]) == (23, 21, 2)
    events = [event for span in spans_of(spanhouse, "apm") for event in span["events"] if "body" in event["attributes"]]
    assert sorted((event["name"], str(event["attributes"]["body"])[:19]) for event in events) == [
        ("ERROR", "Exception on /order"),
        ("WARN", "unknown sku SKU-404"),
    ]


EXPORTERS: dict[str, Callable[[Program], object]] = {
    "grpc": lambda at: GrpcLogExporter(endpoint=at.grpc, insecure=True),
    "http": lambda at: HttpLogExporter(endpoint=f"{at.otlp_http}/v1/logs"),
}


@pytest.mark.filterwarnings("ignore:`LoggingHandler`")
@pytest.mark.parametrize("protocol", EXPORTERS)
def test_the_python_sdk_logs_within_a_span(spanhouse: Program, protocol: str) -> None:
    spans, logs = TracerProvider(), LoggerProvider()
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{spanhouse.otlp_http}/v1/traces")))
    logs.add_log_record_processor(BatchLogRecordProcessor(EXPORTERS[protocol](spanhouse)))
    logger = logging.Logger("shop")
    logger.addHandler(LoggingHandler(logger_provider=logs))
    with spans.get_tracer("shop").start_as_current_span("order") as span:
        logger.warning("stock of %s is low", "SKU-1", extra={"stock": 3})
    trace_id = f"{span.get_span_context().trace_id:032x}"
    logs.shutdown()
    spans.shutdown()
    spanhouse.read_trace(trace_id, 1)
    until(lambda: spanhouse.read_trace(trace_id, 1)["spans"][0]["events"], 20)
    [event] = spanhouse.read_trace(trace_id, 1)["spans"][0]["events"]
    assert event["name"] == "WARN"
    assert event["attributes"]["body"] == "stock of SKU-1 is low"
    assert event["attributes"]["stock"] == 3


def test_json_is_taken_and_answered_with_json(spanhouse: Program) -> None:
    sent = {"resourceLogs": [{"scopeLogs": [{"logRecords": [{"body": {"stringValue": "x"}}]}]}]}
    answer = httpx.post(f"{spanhouse.otlp_http}/v1/logs", json=sent)
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"


def test_records_survive_a_kill_and_are_stored_once(tmp_path: Path) -> None:
    case = "openai_v2_legacy"
    with Program(tmp_path / "data") as program:
        for sidecar in [*sorted((LOGS / case).glob("*.json")), *sorted((CORPUS / case).glob("*.json"))]:
            send(program, sidecar, "default")
        program.kill()
        program.start()
        [again] = (LOGS / case).glob("*.json")
        send(program, again, "default")
        wait_until_stored(program, "default")
        found = counts(program, "default")
        assert found["received"] == found["stored"] + found["deduplicated"]
        assert found["deduplicated"] == 92, "what was sent before the kill is known after it"
        assert sum(len(span["events"]) for span in spans_of(program, "default")) == 92


def test_the_recorded_requests_are_what_they_say() -> None:
    found = Counter()
    for sidecar in LOGS.glob("*/*.json"):
        said, body = json.loads(sidecar.read_text()), sidecar.with_suffix(".bin").read_bytes()
        message = body[5:] if said["protocol"] == "grpc" else gzip.decompress(body)
        for of_resource in ExportLogsServiceRequest.FromString(message).resource_logs:
            found[sidecar.parent.name] += sum(len(scope.log_records) for scope in of_resource.scope_logs)
    assert found == {"openai_v2_legacy": 92, "apm_plain": 23}
