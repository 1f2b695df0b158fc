"""`spanhouse demo`: one conversation of two agents in two services, sent by the OpenTelemetry SDK over OTLP/gRPC.

A customer was charged twice. A triage agent hands over to a billing agent in another service; its refund tool fails
once and is tried again. Times are given to the SDK, so that seven seconds of conversation take none to send. Names are
those of the GenAI semantic conventions; resources say the run and the model version, model calls their prompt. Runs on
the caller's thread; the SDK's exporter has one of its own.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cli.client import Trouble

CONVERSATION = "chat-20c4"
CONVERSATION_MS = 7200
RUN = "nightly-214"
BOT, BOT_VERSION = "support-bot", "4"
PROMPT_VERSIONS = {"triage": "3", "billing": "7"}
MODEL = "claude-sonnet-4-5"
EXPORT_TIMEOUT_S = 5

PROMPTS = {
    "triage": "You are the first to read what a customer writes. Answer yourself or hand over to: billing, shipping.",
    "billing": "You are the billing agent. Look before you act. Refund only what was charged twice.",
}
QUESTION = "Hi, I was charged twice for order 8841. Can I have one of them back?"
ANSWER = (
    "You are right, and I am sorry: invoice 8841 was charged twice on 3 November. I have sent EUR 49.00 back to your "
    "card; your bank shows it within five days."
)
INVOICE = {
    "invoice": 8841,
    "currency": "EUR",
    "charges": [{"id": "ch_71", "amount": 49.0}, {"id": "ch_72", "amount": 49.0}],
}
DONE = "EUR 49.00 refunded, charge ch_72"
REFUND = {"charge": "ch_72", "amount": 49.0, "reason": "charged twice"}
REFUNDED = {"refund": "re_19", "state": "sent"}


@dataclass(frozen=True, slots=True)
class Sent:
    """What was exported: the trace's id in lower-case hex, and how many spans it has."""

    trace_id: str
    spans: int


def send(endpoint: str, tenant: str) -> Sent:
    """Export the conversation to an OTLP/gRPC endpoint such as `http://127.0.0.1:4317`. Raises Trouble."""
    desk, billing = (
        _Watched(
            OTLPSpanExporter(endpoint=endpoint, headers=(("x-spanhouse-tenant", tenant),), timeout=EXPORT_TIMEOUT_S)
        )
        for _ in range(2)
    )
    desk_provider = _provider(desk, "support-desk", "2.4.0")
    billing_provider = _provider(billing, "billing-agents", "0.9.1")
    trace_id = _Conversation(
        desk_provider.get_tracer("support_desk.agents", "2.4.0"),
        billing_provider.get_tracer("billing.agents", "0.9.1"),
        start_unix_nano=time.time_ns() - CONVERSATION_MS * 1_000_000,
    ).hold()
    for provider in (billing_provider, desk_provider):
        provider.shutdown()  # exports what has ended
    if desk.failed or billing.failed:
        raise Trouble(
            f"cannot send the conversation to {endpoint}",
            "start the server with `spanhouse serve`, or name its OTLP/gRPC address with --endpoint",
        )
    if not desk.spans:
        raise Trouble("cannot make spans: the OpenTelemetry SDK is switched off", "unset OTEL_SDK_DISABLED")
    return Sent(trace_id, desk.spans + billing.spans)


class _Watched(SpanExporter):
    """The OTLP exporter, counting what it delivered. The SDK itself logs a failed export and forgets it."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.spans = 0
        self.failed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        self.spans += len(spans)
        self.failed |= result is not SpanExportResult.SUCCESS
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _provider(exporter: SpanExporter, service: str, version: str) -> TracerProvider:
    resource = Resource.create(
        {
            "service.name": service,
            "service.version": version,
            "service.instance.id": f"{service}-5d9f",
            "deployment.environment.name": "demo",
            "run.id": RUN,
            "model.name": BOT,
            "model.version": BOT_VERSION,
        }
    )
    provider = TracerProvider(resource=resource, sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


class _Conversation:
    """The story. `at` is always start and end, in milliseconds since the customer pressed Enter."""

    def __init__(self, desk: Tracer, billing: Tracer, start_unix_nano: int) -> None:
        self._desk = desk
        self._billing = billing
        self._start_unix_nano = start_unix_nano

    def hold(self) -> str:
        """Tell it from the start, and return the trace's id."""
        attributes = {
            "http.request.method": "POST",
            "http.route": "/chat",
            "url.path": "/chat",
            "http.response.status_code": 200,
            "user.id": "customer-3107",
            "session.id": CONVERSATION,
        }
        with self._span(self._desk, "POST /chat", (0, CONVERSATION_MS), attributes, SpanKind.SERVER) as root:
            self._triage()
        return trace.format_trace_id(root.get_span_context().trace_id)

    def _triage(self) -> None:
        ask = [_message("user", QUESTION)]
        hand_over = [_call("call_1", "hand_over", {"to": "billing", "why": "charged twice"})]
        told = [*ask, *hand_over, _result("call_1", DONE)]
        with self._agent(self._desk, "triage", (12, 7170), (1062, 117)):
            self._chat(self._desk, "gpt-5-mini", (20, 890), (318, 24), "triage", asked=ask, answered=hand_over)
            self._call_billing()
            answer = [_message("assistant", ANSWER)]
            self._chat(self._desk, "gpt-5-mini", (6260, 7160), (744, 93), "triage", asked=told, answered=answer)

    def _call_billing(self) -> None:
        attributes = {
            "http.request.method": "POST",
            "url.full": "http://billing-agents:8080/agents/billing",
            "server.address": "billing-agents",
            "server.port": 8080,
            "http.response.status_code": 200,
        }
        with self._span(self._desk, "POST billing-agents", (905, 6240), attributes, SpanKind.CLIENT):
            headers: dict[str, str] = {}
            TraceContextTextMapPropagator().inject(headers)
            self._serve_billing(headers)

    def _serve_billing(self, headers: Mapping[str, str]) -> None:
        """The other service: all it knows of the caller came in the request's headers."""
        attributes = {
            "http.request.method": "POST",
            "http.route": "/agents/{name}",
            "url.path": "/agents/billing",
            "http.response.status_code": 200,
        }
        caller = TraceContextTextMapPropagator().extract(headers)
        name = "POST /agents/{name}"
        with (
            self._span(self._billing, name, (918, 6228), attributes, SpanKind.SERVER, context=caller),
            self._agent(self._billing, "billing", (925, 6215), (4406, 234)),
        ):
            self._bill()

    def _bill(self) -> None:
        turns = [_message("user", f"{QUESTION} (handed over by triage: charged twice)")]
        look = _call("toolu_1", "look_up_invoice", {"invoice": 8841})
        self._chat(self._billing, MODEL, (940, 2105), (1211, 58), "billing", asked=turns, answered=[look])
        with self._tool("look_up_invoice", "toolu_1", (2110, 2290), {"invoice": 8841}, result=INVOICE):
            self._query((2118, 2281))
        turns += [look, _result("toolu_1", INVOICE)]
        refund = _call("toolu_2", "issue_refund", REFUND)
        self._chat(self._billing, MODEL, (2300, 3420), (1480, 71), "billing", asked=turns, answered=[refund])

        with self._tool("issue_refund", "toolu_2", (3430, 4440), REFUND) as failed:
            self._pay((3436, 4437), None)
            self._fail(failed, 4438, "PaymentTimeout", "the payment service did not answer within 1000 ms")
        again = [Link(failed.get_span_context(), {"retry.of": "toolu_2"})]
        with self._tool("issue_refund", "toolu_2", (4560, 4985), REFUND, result=REFUNDED, links=again):
            self._pay((4566, 4980), 201)

        turns += [refund, _result("toolu_2", REFUNDED)]
        done = [_message("assistant", DONE)]
        self._chat(self._billing, MODEL, (5000, 6200), (1715, 105), "billing", asked=turns, answered=done)

    def _query(self, at: tuple[int, int]) -> None:
        attributes = {
            "db.system.name": "postgresql",
            "db.namespace": "billing",
            "db.operation.name": "SELECT",
            "db.collection.name": "charges",
            "db.query.text": "SELECT id, amount FROM charges WHERE invoice = $1",
            "db.response.returned_rows": 2,
        }
        with self._span(self._billing, "SELECT charges", at, attributes, SpanKind.CLIENT):
            pass

    def _pay(self, at: tuple[int, int], status: int | None) -> None:
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "url.full": "https://payments.example/v1/refunds",
            "server.address": "payments.example",
            "server.port": 443,
        }
        if status:
            attributes["http.response.status_code"] = status
        with self._span(self._billing, "POST payments", at, attributes, SpanKind.CLIENT) as span:
            if not status:
                span.set_attribute("error.type", "timeout")
                span.set_status(StatusCode.ERROR, "no answer within 1000 ms")

    @contextmanager
    def _agent(self, tracer: Tracer, name: str, at: tuple[int, int], tokens: tuple[int, int]) -> Iterator[Span]:
        attributes = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": name,
            "gen_ai.agent.version": "12",
            "gen_ai.conversation.id": CONVERSATION,
            "gen_ai.usage.input_tokens": tokens[0],
            "gen_ai.usage.output_tokens": tokens[1],
        }
        with self._span(tracer, f"invoke_agent {name}", at, attributes) as span:
            yield span

    def _chat(
        self,
        tracer: Tracer,
        model: str,
        at: tuple[int, int],
        tokens: tuple[int, int],
        prompt: str,
        *,
        asked: Sequence[object],
        answered: Sequence[dict[str, Any]],
    ) -> None:
        calls_tool = any(part["type"] == "tool_call" for message in answered for part in message["parts"])
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic" if model == MODEL else "openai",
            "gen_ai.conversation.id": CONVERSATION,
            "gen_ai.request.model": model,
            "gen_ai.request.temperature": 0.2,
            "gen_ai.request.max_tokens": 1024,
            "gen_ai.response.model": model,
            "gen_ai.response.id": f"msg_{at[0]:05d}",
            "gen_ai.response.finish_reasons": ["tool_call" if calls_tool else "stop"],
            "gen_ai.usage.input_tokens": tokens[0],
            "gen_ai.usage.output_tokens": tokens[1],
            "gen_ai.prompt.name": prompt,
            "gen_ai.prompt.version": PROMPT_VERSIONS[prompt],
            "gen_ai.system_instructions": json.dumps([{"type": "text", "content": PROMPTS[prompt]}]),
            "gen_ai.input.messages": json.dumps(asked),
            "gen_ai.output.messages": json.dumps(answered),
        }
        with self._span(tracer, f"chat {model}", at, attributes, SpanKind.CLIENT):
            pass

    @contextmanager
    def _tool(
        self,
        name: str,
        call_id: str,
        at: tuple[int, int],
        arguments: dict[str, Any],
        *,
        result: dict[str, Any] | None = None,
        links: Sequence[Link] = (),
    ) -> Iterator[Span]:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": call_id,
            "gen_ai.conversation.id": CONVERSATION,
            "gen_ai.tool.call.arguments": json.dumps(arguments),
        }
        if result is not None:
            attributes["gen_ai.tool.call.result"] = json.dumps(result)
        with self._span(self._billing, f"execute_tool {name}", at, attributes, links=links) as span:
            yield span

    @contextmanager
    def _span(
        self,
        tracer: Tracer,
        name: str,
        at: tuple[int, int],
        attributes: Mapping[str, Any],
        kind: SpanKind = SpanKind.INTERNAL,
        *,
        context: Context | None = None,
        links: Sequence[Link] = (),
    ) -> Iterator[Span]:
        span = tracer.start_span(
            name, context=context, kind=kind, attributes=attributes, links=links, start_time=self._unix_nano(at[0])
        )
        with trace.use_span(span, end_on_exit=False):
            yield span
        span.end(self._unix_nano(at[1]))

    def _fail(self, span: Span, at_ms: int, kind: str, message: str) -> None:
        attributes = {
            "exception.type": kind,
            "exception.message": message,
            "exception.stacktrace": f'File "tools.py", line 88, in issue_refund\nbilling.tools.{kind}: {message}',
        }
        span.set_attribute("error.type", kind)
        span.add_event("exception", attributes, timestamp=self._unix_nano(at_ms))
        span.set_status(StatusCode.ERROR, message)

    def _unix_nano(self, ms: int) -> int:
        return self._start_unix_nano + ms * 1_000_000


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _call(call_id: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "parts": [{"type": "tool_call", "id": call_id, "name": tool, "arguments": arguments}]}


def _result(call_id: str, response: object) -> dict[str, Any]:
    return {"role": "tool", "parts": [{"type": "tool_call_response", "id": call_id, "response": response}]}
