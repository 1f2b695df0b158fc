"""The parts that settle, on the real engine, for tests: what is loaded is settled as `serve` would have it."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute
from store import Store, altered

from query.entities import Entities
from query.trace_links import TraceLinks
from storage.annotations import Annotations
from storage.assessments import Assessments
from storage.deployments import Deployments
from storage.settling import Settler
from storage.usage import Call

SECOND = 1_000_000_000
NOW = time.time_ns()
START = NOW // SECOND * SECOND - 86_400 * SECOND
"""A day ago: where spans begin that say nothing else."""


def price(call: Call) -> float | None:
    """A dollar for a thousand tokens, of models whose name begins with `priced`."""
    return call.total / 1000 if call.model.startswith("priced") else None


class House:
    """A store with a running settler on top, and what reads and writes beside it."""

    def __init__(self, directory: Path, store: Store | None = None, **options: Any) -> None:
        self.store = store or Store(directory)
        self.engine = self.store.engine
        self.deployments = Deployments(self.engine)
        self.settler = Settler(
            self.engine, self.store.vocabulary, self.deployments, price, **{"interval_s": 0.02, **options}
        )
        # It has its store for itself, on every footing; test_roles.py has several processes on one.
        self.settler._lease, self.settler._looking = None, True
        self.annotations = Annotations(self.engine, self.settler.touch)
        self.assessments = Assessments(self.engine, self.settler.touch)
        self.entities = Entities(self.engine, self.annotations)
        self.trace_links = TraceLinks(self.engine, self.deployments, self.annotations)
        self._load = self.settler.watched(self.engine.load)

    def long_running(self) -> "House":
        """As if nothing had been settled before this settler remembers."""
        self.settler._memory.complete_since_unix_s = 0
        return self

    def start(self) -> "House":
        self.settler.start()
        return self

    def load(
        self,
        *requests: ExportTraceServiceRequest,
        tenant: str = "default",
        context: Any = (),
        received: int = NOW,
    ) -> None:
        path, token = self.store.segment(requests, tenant, received, context)
        self._load(path, token, "traces")

    def backdate(self, table: str = "traces") -> None:
        """As if all rows had been loaded when they were received."""
        altered(self.engine, f"{table} UPDATE Loaded = Received WHERE 1")

    def settle(self, seconds_max: float = 60) -> None:
        """Wait until nothing is left to settle."""
        eventually(lambda: self.settler.idle, seconds_max)

    def facts(self, trace: bytes, tenant: str = "default") -> dict[str, Any] | None:
        """The row of `facts` of a trace."""
        columns = [name for name, *_ in self.engine.rows("DESCRIBE spanhouse.facts")]
        rows = self.engine.rows(
            f"SELECT * FROM spanhouse.facts FINAL WHERE Tenant = '{tenant}' AND TraceId = unhex('{trace.hex()}')"
        )
        return dict(zip(columns, rows[0], strict=True)) if rows else None

    def linked(self, trace: bytes) -> list[tuple[str, str, str, str]]:
        """Entity, id, version and provenance of the rows of `links` of a trace."""
        rows = self.engine.rows(
            "SELECT toString(Entity), Id, Version, toString(Provenance) FROM spanhouse.links FINAL"
            f" WHERE TraceId = unhex('{trace.hex()}') ORDER BY Entity, Id, Version"
        )
        return [tuple(row) for row in rows]

    def close(self) -> None:
        self.settler.stop()
        self.store.close()


def eventually(holds: Callable[[], Any], seconds_max: float = 20) -> Any:
    """What `holds` gives as soon as it is true."""
    deadline = time.monotonic() + seconds_max
    while not (found := holds()):
        assert time.monotonic() < deadline, f"still not so after {seconds_max} s"
        time.sleep(0.01)
    return found


def value(of: object) -> AnyValue:
    if isinstance(of, bool):
        return AnyValue(bool_value=of)
    if isinstance(of, int):
        return AnyValue(int_value=of)
    return AnyValue(double_value=of) if isinstance(of, float) else AnyValue(string_value=str(of))


def trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def span(
    trace: int,
    number: int,
    parent: int = 0,
    *,
    start_s: float = 0,
    seconds: float = 1,
    failed: bool = False,
    name: str | None = None,
    **said: object,
) -> Span:
    """Span `number` of a trace. `said` are attributes; `__` stands for a point."""
    start = START + int(start_s * SECOND)
    return Span(
        trace_id=trace_id(trace),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name=name or f"span {number}",
        start_time_unix_nano=start,
        end_time_unix_nano=start + int(seconds * SECOND),
        attributes=[attribute(key.replace("__", "."), value(of)) for key, of in said.items()],
        status={"code": 2} if failed else {},
    )


def call(
    trace: int, number: int, parent: int = 0, model: str = "priced-1", sent: int = 100, got: int = 10, **more: Any
):
    """A model call."""
    said = {
        "gen_ai__operation__name": "chat",
        "gen_ai__request__model": model,
        "gen_ai__usage__input_tokens": sent,
        "gen_ai__usage__output_tokens": got,
    }
    return span(trace, number, parent, **{**said, **more})


def request(*spans: Span, service: str = "agent", **resource: object) -> ExportTraceServiceRequest:
    """One resource with these attributes, one scope."""
    message = ExportTraceServiceRequest()
    sent = message.resource_spans.add()
    said = {"service__name": service, **resource}
    sent.resource.attributes.extend(attribute(key.replace("__", "."), value(of)) for key, of in said.items())
    scope = sent.scope_spans.add()
    scope.scope.name = "test.scope"
    scope.spans.extend(spans)
    return message


def ids(traces: Iterable[dict[str, Any]]) -> list[int]:
    return [int(one["trace_id"], 16) for one in traces]
