"""OTLP requests to send in tests, and a sink that stands where the WAL is."""

import threading
from concurrent.futures import Future

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from collector.admission import Admission
from collector.ledger import Ledger
from collector.wal import Frame


def span(number: int, **fields) -> Span:
    """A valid span; `number` makes its ids."""
    values = {
        "trace_id": b"t" * 15 + bytes([number % 255 + 1]),
        "span_id": number.to_bytes(8, "big") if number else b"\xff" * 8,
        "name": f"span {number}",
        "start_time_unix_nano": 1_700_000_000_000_000_000 + number,
        "end_time_unix_nano": 1_700_000_001_000_000_000 + number,
        "attributes": [attribute("number", AnyValue(int_value=number))],
    }
    return Span(**{**values, **fields})


def attribute(key: str, value: AnyValue) -> KeyValue:
    return KeyValue(key=key, value=value)


def request(*spans: Span, service: str = "test") -> ExportTraceServiceRequest:
    """One resource, one scope, these spans."""
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.append(attribute("service.name", AnyValue(string_value=service)))
    scope_spans = resource_spans.scope_spans.add()
    scope_spans.scope.name = "test.scope"
    scope_spans.spans.extend(spans)
    return message


def body(*spans: Span, service: str = "test") -> bytes:
    return request(*spans, service=service).SerializeToString()


def record(number: int, **fields) -> LogRecord:
    """A log record of `span(number)`."""
    of = span(number)
    values = {
        "trace_id": of.trace_id,
        "span_id": of.span_id,
        "time_unix_nano": of.start_time_unix_nano + 1000,
        "severity_number": 9,
        "body": AnyValue(string_value=f"record {number}"),
    }
    return LogRecord(**{**values, **fields})


def logs(*records: LogRecord, service: str = "test") -> ExportLogsServiceRequest:
    """One resource, one scope, these log records."""
    message = ExportLogsServiceRequest()
    resource_logs = message.resource_logs.add()
    resource_logs.resource.attributes.append(attribute("service.name", AnyValue(string_value=service)))
    scope_logs = resource_logs.scope_logs.add()
    scope_logs.scope.name = "test.scope"
    scope_logs.log_records.extend(records)
    return message


def logs_body(*records: LogRecord) -> bytes:
    return logs(*records).SerializeToString()


class Sink:
    """Takes frames as the WAL does; each is durable at once, unless `hold` or `failure` says otherwise."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.failure: Exception | None = None
        self.hold = False
        self.held: list[Future[None]] = []
        self._lock = threading.Lock()

    def append(self, frame: Frame) -> "Future[None]":
        if self.failure is not None:
            raise self.failure
        future: Future[None] = Future()
        with self._lock:
            self.frames.append(frame)
            if self.hold:
                self.held.append(future)
                return future
        future.set_result(None)
        return future

    def names(self) -> list[str]:
        """The names of all spans that were appended."""
        return [
            one.name
            for frame in self.frames
            for resource_spans in ExportTraceServiceRequest.FromString(frame.request).resource_spans
            for scope_spans in resource_spans.scope_spans
            for one in scope_spans.spans
        ]


class Intake:
    """An Admission with a sink for a WAL and a real ledger."""

    def __init__(self, **limits) -> None:
        self.sink = Sink()
        self.ledger = Ledger()
        self.admission = Admission(self.sink.append, self.ledger, **limits)

    def counts(self, tenant: str = "default") -> tuple[int, int, int, int]:
        """(received, rejected, deduplicated, in the WAL) of a tenant's spans."""
        spans = self.ledger.spans()[tenant]
        return spans.received, spans.rejected, spans.deduplicated, spans.in_wal

    def log_counts(self, tenant: str = "default") -> tuple[int, int, int, int]:
        """The same of its log records."""
        records = self.ledger.log_records()[tenant]
        return records.received, records.rejected, records.deduplicated, records.in_wal

    def refusals(self) -> dict[str, float]:
        """How many requests were refused, by reason."""
        return {
            sample.labels["reason"]: sample.value
            for metric in self.ledger.refusals.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        }
