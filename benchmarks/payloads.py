"""Spans to measure with: two profiles, the same bytes for the same seed and start, as encoded OTLP requests in a file.

`agent` is a conversation: each turn sends the whole conversation so far to a model and may call a tool, so most of a
span is text, and most of the text was sent before. `service` is HTTP and database calls with short attributes. Pure,
no thread of its own.
"""

import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

Profile = Literal["agent", "service"]
Trace = tuple[str, list[Span]]
"""A service and the spans it sends of one trace, the root first."""

REQUEST_SPANS = 512  # what the batch processor of the SDKs sends at most
US, MS = 1_000, 1_000_000
TEXT_CHARS_CACHED = 100

_TEXT = (
    "the agent should look up order status and then call refund tool for customer because policy "
    "says returns within thirty days are accepted when item is unopened please answer briefly with "
    "json only include fields amount currency reason vector retrieval context document chunk score "
    "model temperature latency budget evaluation gate registry promote version rollback canary"
)
WORDS = _TEXT.split()


@dataclass(frozen=True)
class Payload:
    """Encoded requests, one after the other in a file: `requests` has the spans and the bytes of each."""

    path: Path
    requests: tuple[tuple[int, int], ...]

    @property
    def spans(self) -> int:
        """Spans in all requests."""
        return sum(spans for spans, _ in self.requests)

    @property
    def size_bytes(self) -> int:
        """Bytes of all requests."""
        return sum(length for _, length in self.requests)

    def bodies(self) -> Iterator[tuple[int, bytes]]:
        """Spans and bytes of each request, read from the file as they are asked for."""
        with self.path.open("rb") as file:
            for spans, length in self.requests:
                yield spans, file.read(length)


def write(path: Path, profile: Profile, spans: int, *, seed: int, request_spans: int = REQUEST_SPANS) -> Payload:
    """Write at least `spans` spans in requests of about `request_spans` (traces stay whole)."""
    random_traces = _Traces(random.Random(f"{profile} {seed}"), start_unix_nano())
    traces = random_traces.agent if profile == "agent" else random_traces.service
    requests: list[tuple[int, int]] = []
    left = spans
    with path.open("wb") as file:
        while left > 0:
            by_service: dict[str, list[Span]] = {}
            count = 0
            while count < min(left, request_spans):
                service, trace = traces()
                by_service.setdefault(service, []).extend(trace)
                count += len(trace)
            body = request(by_service)
            requests.append((count, file.write(body)))
            left -= count
    return Payload(path, tuple(requests))


def start_unix_nano() -> int:
    """Six in the morning, UTC, of this day: near its arrival, and never across midnight into a second partition."""
    day_s = 24 * 3600
    return (int(time.time()) // day_s * day_s + 6 * 3600) * 1_000_000_000


@dataclass
class _Traces:
    """Draws one trace after the other. `now` is the start of the last one, in Unix nanoseconds."""

    random: random.Random
    now: int

    def service(self) -> Trace:
        draw = self.random
        self.now += draw.randrange(MS, 10 * MS)
        trace_id, root_id = self._id(16), self._id(8)
        spans = []
        for index in range(draw.randrange(4, 14)):
            start = self.now + index * draw.randrange(100 * US, MS)
            route = draw.randrange(40)
            spans.append(
                span_of(
                    trace_id=trace_id,
                    span_id=self._id(8) if index else root_id,
                    parent_span_id=root_id if index else b"",
                    name=draw.choice(_CALLS) if index else f"GET /api/resource/{route}",
                    kind=Span.SPAN_KIND_CLIENT if index else Span.SPAN_KIND_SERVER,
                    start=start,
                    end=start + draw.randrange(100 * US, 100 * MS),
                    failed=draw.random() < 0.02,
                    attributes={
                        "http.request.method": "GET",
                        "http.route": f"/api/resource/{draw.randrange(40)}",
                        "http.response.status_code": 500 if draw.random() < 0.1 else 200,
                        "url.path": f"/api/resource/{draw.randrange(10**6)}",
                        "server.address": f"10.0.0.{draw.randrange(255)}",
                        "server.port": 8080,
                        "user_agent.original": "python-requests/2.32",
                        "network.protocol.version": "1.1",
                    },
                )
            )
        return f"svc-{draw.randrange(20)}", spans

    def agent(self) -> Trace:
        self.now += self.random.randrange(10 * MS, 100 * MS)
        conversation = _Conversation(self, f"agent-{self.random.randrange(8)}")
        for _ in range(self.random.randrange(2, 7)):
            conversation.ask_model()
            if self.random.random() < 0.8:
                conversation.call_tool()
        return conversation.service, conversation.spans()

    def text(self, words_min: int, words_max: int) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(words_min, words_max)))

    def _id(self, length: int) -> bytes:
        return self.random.randbytes(length)


_CALLS = ("SELECT orders", "redis GET", "HTTP GET", "render", "publish")
_MODELS = ("gpt-4.1", "gpt-4o-mini", "claude-sonnet-4", "qwen3-32b")


@dataclass
class _Conversation:
    """One trace of an agent: its spans so far, one after the other in time, and what was said."""

    traces: _Traces
    service: str
    _children: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        draw = self.traces.random
        self._trace_id, self._root_id = draw.randbytes(16), draw.randbytes(8)
        self._start = self._clock = self.traces.now
        self._model = draw.choice(_MODELS)
        self._said = [
            {"role": "system", "content": self.traces.text(120, 120)},
            {"role": "user", "content": self.traces.text(40, 40)},
        ]
        self._common = {
            "gen_ai.conversation.id": f"conv-{draw.randrange(10**6)}",
            "user.id": f"user-{draw.randrange(5000)}",
            "mlflow.sourceRun": hashlib.md5(str(draw.randrange(200)).encode()).hexdigest(),
            "gen_ai.agent.name": self.service,
            "model.name": f"support-{self.service}",
            "model.version": str(draw.randrange(1, 12)),
        }

    def ask_model(self) -> None:
        """Send all that was said so far; the answer adds to it."""
        draw, model = self.traces.random, self._model
        answer = {"role": "assistant", "content": self.traces.text(20, 79)}
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": model,
            "gen_ai.response.model": model,
            "gen_ai.request.temperature": 0.2,
            "gen_ai.usage.input_tokens": sum(len(message["content"]) for message in self._said) // 4,
            "gen_ai.usage.output_tokens": len(answer["content"]) // 4,
            "gen_ai.response.finish_reasons": ["tool_calls"],
            "gen_ai.response.id": f"resp-{draw.getrandbits(64):x}",
            "gen_ai.input.messages": json.dumps(self._said),
            "gen_ai.output.messages": json.dumps([answer]),
        }
        self._add(self._root_id, f"chat {model}", Span.SPAN_KIND_CLIENT, draw.uniform(200, 4000), attributes)
        self._said.append(answer)

    def call_tool(self) -> None:
        """A tool that makes one HTTP request; one in twenty fails, with a stack trace."""
        draw = self.traces.random
        result = self.traces.text(30, 199)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "search",
            "gen_ai.tool.call.id": f"call_{draw.getrandbits(48):x}",
            "gen_ai.tool.call.arguments": json.dumps({"q": self.traces.text(8, 8)}),
            "gen_ai.tool.call.result": result,
        }
        tool = self._add(
            self._root_id, "execute_tool search", Span.SPAN_KIND_INTERNAL, draw.uniform(10, 800), attributes
        )
        if draw.random() < 0.05:
            self._fail(tool)
        attributes = {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "url.full": "https://search.internal/v1/query",
        }
        self._add(tool.span_id, "HTTP POST", Span.SPAN_KIND_CLIENT, draw.uniform(5, 300), attributes)
        self._said.append({"role": "tool", "content": result})

    def spans(self) -> list[Span]:
        """The whole trace."""
        root = span_of(
            trace_id=self._trace_id,
            span_id=self._root_id,
            parent_span_id=b"",
            name=f"invoke_agent {self.service}",
            kind=Span.SPAN_KIND_INTERNAL,
            start=self._start,
            end=self._clock,
            failed=False,
            attributes={
                **self._common,
                "gen_ai.operation.name": "invoke_agent",
                "input.value": self._said[1]["content"],
                "output.value": self._said[-1]["content"],
            },
        )
        return [root, *self._children]

    def _add(
        self,
        parent_id: bytes,
        name: str,
        kind: Span.SpanKind.ValueType,
        milliseconds: float,
        attributes: dict[str, Any],
    ) -> Span:
        start, self._clock = self._clock, self._clock + int(milliseconds * MS)
        span = span_of(
            trace_id=self._trace_id,
            span_id=self.traces.random.randbytes(8),
            parent_span_id=parent_id,
            name=name,
            kind=kind,
            start=start,
            end=self._clock,
            failed=False,
            attributes={**self._common, **attributes},
        )
        self._children.append(span)
        return span

    def _fail(self, span: Span) -> None:
        span.status.code = Status.STATUS_CODE_ERROR
        exception = {
            "exception.type": "TimeoutError",
            "exception.message": "tool timed out",
            "exception.stacktrace": self.traces.text(60, 60),
        }
        span.events.add(time_unix_nano=span.end_time_unix_nano, name="exception", attributes=_key_values(exception))


# Protobuf


def span_of(
    *,
    trace_id: bytes,
    span_id: bytes,
    parent_span_id: bytes,
    name: str,
    kind: Span.SpanKind.ValueType,
    start: int,
    end: int,
    failed: bool,
    attributes: dict[str, Any],
) -> Span:
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=parent_span_id,
        flags=0x100,  # "it is known whether the parent is remote", as SDKs set it
        name=name,
        kind=kind,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=_key_values(attributes),
        status=_ERROR if failed else _OK,
    )


_OK = Status(code=Status.STATUS_CODE_OK)
_ERROR = Status(code=Status.STATUS_CODE_ERROR)
_SCOPE = InstrumentationScope(name="bench.instrumentation", version="0.66b2")


def request(by_service: dict[str, list[Span]]) -> bytes:
    resource_spans = [
        ResourceSpans(resource=_resource(service), scope_spans=[ScopeSpans(scope=_SCOPE, spans=spans)])
        for service, spans in by_service.items()
    ]
    return bytes(ExportTraceServiceRequest(resource_spans=resource_spans).SerializeToString())


@lru_cache
def _resource(service: str) -> Resource:
    attributes = {
        "service.name": service,
        "service.version": "1.4.2",
        "deployment.environment.name": "prod",
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": "1.45.2",
        "host.name": "node-7",
        "process.pid": 4242,
    }
    return Resource(attributes=_key_values(attributes))


def _key_values(attributes: dict[str, Any]) -> list[KeyValue]:
    return [
        _short_text(key, value)
        if isinstance(value, str) and len(value) <= TEXT_CHARS_CACHED
        else _key_value(key, value)
        for key, value in attributes.items()
    ]


@lru_cache(10_000)
def _short_text(key: str, value: str) -> KeyValue:
    return _key_value(key, value)


def _key_value(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=_any_value(value))


def _any_value(value: str | int | float | list[str]) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case _:
            return AnyValue(array_value=ArrayValue(values=[_any_value(item) for item in value]))
