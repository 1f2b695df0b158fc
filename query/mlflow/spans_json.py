"""Stored spans as MLflow's client reads them: OTLP as proto3 JSON in `traces/get`, and its own form in files. Pure.

In both an attribute is what MLflow itself would keep: a value, and not the JSON text of one that its OTLP exporter
makes of it. A span of another SDK gets MLflow's words for its kind, its input and output, its model and its tokens
beside its own, so that MLflow's client and pages show it as they show their own.

Source: mlflow 3.17, mlflow/entities/span.py (from_otel_proto, from_dict) and tracing/constant.py.
"""

import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from query.mlflow.trace_info import text_of
from query.nested import nested_json
from query.plain import PLAIN_JSON, json_double
from storage.spans import Attributes, Event, Link, Nested, Span, Value
from storage.vocabulary import MODEL_CALLS

EXPORTER_SCOPE = "mlflow.tracing.provider"
"""The scope of MLflow's OTLP exporter, which sends every attribute as JSON text."""
REQUEST_ID = "mlflow.traceRequestId"
SPAN_TYPE = "mlflow.spanType"
INPUTS, OUTPUTS = "mlflow.spanInputs", "mlflow.spanOutputs"
USAGE = "mlflow.chat.tokenUsage"
MODEL, PROVIDER = "mlflow.llm.model", "mlflow.llm.provider"
LEVELS_MAX = 100
"""A value of more levels is given as its JSON text, since JSON libraries recurse."""
DEPTH_MAX = 20
"""From this depth on a value is given as JSON text: the client's reader of protobuf gives up at a hundred messages."""

SPAN_TYPES = {
    "agent": "AGENT", "llm": "LLM", "embedding": "EMBEDDING", "reranker": "RERANKER", "retriever": "RETRIEVER",
    "tool": "TOOL", "chain": "CHAIN", "workflow": "WORKFLOW", "task": "TASK", "guardrail": "GUARDRAIL",
    "evaluator": "EVALUATOR", "parser": "PARSER", "memory": "MEMORY",
}  # fmt: skip
"""Operation kind → MLflow's type of span; any other is UNKNOWN."""
INT64_MAX = 2**63 - 1
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_BRACKETS = re.compile(rb"[][{}]")
_STATUSES = ("STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR")
_INPUT_KEYS = (
    "input.value", "gen_ai.input.messages", "gen_ai.tool.call.arguments", "traceloop.entity.input",
    "langfuse.observation.input", "ai.prompt", "ai.toolCall.args", "braintrust.input_json",
)  # fmt: skip
_OUTPUT_KEYS = (
    "output.value", "gen_ai.output.messages", "gen_ai.tool.call.result", "traceloop.entity.output",
    "langfuse.observation.output", "ai.response.text", "ai.toolCall.result", "braintrust.output_json",
)  # fmt: skip
_USAGE_MEMBERS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "total_tokens": "total_tokens",
    "cached_input_tokens": "cache_read_input_tokens",
    "cache_write_tokens": "cache_creation_input_tokens",
}


def in_order(spans: Sequence[Span]) -> list[Span]:
    """Roots first, then by start, as MLflow's store gives them."""
    return sorted(spans, key=lambda span: (bool(span.parent_span_id), span.start_time_unix_nano))


def otlp(span: Span) -> bytes:
    """An opentelemetry.proto.trace.v1.Span as proto3 JSON: ids in base64."""
    return orjson.dumps(
        {
            "trace_id": _base64(span.trace_id),
            "span_id": _base64(span.span_id),
            **({"parent_span_id": _base64(span.parent_span_id)} if span.parent_span_id else {}),
            "name": span.name,
            "start_time_unix_nano": span.start_time_unix_nano,
            "end_time_unix_nano": span.end_time_unix_nano,
            "attributes": _pairs(attributes(span)),
            "events": [_otlp_event(event) for event in span.events],
            "links": [_otlp_link(link) for link in span.links],
            "status": {"code": _status(span), "message": span.status_message},
        }
    )


def own(span: Span) -> bytes:
    """MLflow's own form, in which traces are kept in files: every attribute is JSON text."""
    return orjson.dumps(
        {
            "trace_id": _base64(span.trace_id),
            "span_id": _base64(span.span_id),
            "parent_span_id": _base64(span.parent_span_id) if span.parent_span_id else None,
            "name": span.name,
            "start_time_unix_nano": span.start_time_unix_nano,
            "end_time_unix_nano": span.end_time_unix_nano,
            "events": [
                {"name": event.name, "time_unix_nano": event.time_unix_nano, "attributes": _values(event.attributes)}
                for event in span.events
            ],
            "status": {"code": _status(span), "message": span.status_message},
            "attributes": {key: json_text(value) for key, value in attributes(span).items()},
            "links": [
                {
                    "trace_id": text_of(link.trace_id),
                    "span_id": link.span_id.hex(),
                    "attributes": _values(link.attributes) or None,
                }
                for link in span.links
            ],
        },
        default=_base64,
    )


def attributes(span: Span) -> dict[str, Any]:
    """Attributes with the values that MLflow's client shows; of a repeated key the last."""
    # MLflow's store, too, reads a text that is JSON as what it says, but for numbers and the like.
    decoded = _decoded if span.scope.name == EXPORTER_SCOPE else _decoded_container
    said = {key: decoded(value) for key, value in _values(span.attributes).items()}
    said[REQUEST_ID] = text_of(span.trace_id)
    untyped = said.get(SPAN_TYPE) in (None, "UNKNOWN")  # of another SDK
    translated = _translated(span, said) if untyped else _model(span.canonical)
    return said | {key: value for key, value in translated.items() if said.get(key) in (None, "UNKNOWN")}


def json_text(value: Any) -> str:
    """A value as MLflow writes it into an attribute."""
    return json.dumps(value, ensure_ascii=False, default=str)


def texts(pairs: Attributes) -> dict[str, str]:
    """Attributes as texts: what is none, as its JSON."""
    return {key: value if isinstance(value, str) else json_text(value) for key, value in _values(pairs).items()}


def preview(value: Any, chars_max: int = 1000) -> str:
    """What TraceInfo shows of an input or output."""
    text = json_text(value)
    return text if len(text) <= chars_max else text[: chars_max - 3] + "..."


def _translated(span: Span, said: Mapping[str, Any]) -> dict[str, Any]:
    """MLflow's words for what the span says in those of another SDK."""
    canonical: Mapping[str, Any] = span.canonical
    found: dict[str, Any] = {SPAN_TYPE: SPAN_TYPES.get(canonical.get("operation_kind", ""), "UNKNOWN")}
    for key, sources in ((INPUTS, _INPUT_KEYS), (OUTPUTS, _OUTPUT_KEYS)):
        source = next((source for source in sources if source in said), None)
        if source is not None:
            found[key] = _decoded(said[source])
    found |= _model(canonical)
    if usage := {theirs: canonical[ours] for ours, theirs in _USAGE_MEMBERS.items() if ours in canonical}:
        usage.setdefault("total_tokens", usage.get("input_tokens", 0) + usage.get("output_tokens", 0))
        found[USAGE] = usage
    return found


def _model(canonical: Mapping[str, Any]) -> dict[str, Any]:
    said = {
        MODEL: canonical.get("response_model") or canonical.get("request_model"),
        PROVIDER: canonical.get("provider"),
    }
    return (
        {key: value for key, value in said.items() if value} if canonical.get("operation_kind") in MODEL_CALLS else {}
    )


def _values(pairs: Attributes) -> dict[str, Any]:
    return {key: _value(value) for key, value in pairs}


def _value(value: Value) -> Any:
    if isinstance(value, Nested):
        text = nested_json(value, PLAIN_JSON)
        return b64encode(value.wire).decode() if text is None else _from_json(orjson.dumps(text))
    return value


def _from_json(text: bytes) -> Any:
    return orjson.loads(text) if _levels(text) <= LEVELS_MAX else text.decode()


def _levels(text: bytes) -> int:
    """How deep a JSON text nests."""
    if text.count(b"{") + text.count(b"[") <= LEVELS_MAX:
        return 0
    depth = deepest = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", text)):
        depth += 1 if bracket in b"{[" else -1
        deepest = max(deepest, depth)
    return deepest


def _decoded(value: Any) -> Any:
    """What a JSON text says; anything else as it is."""
    if not isinstance(value, str) or _levels(value.encode()) > LEVELS_MAX:
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _decoded_container(value: Any) -> Any:
    inner = _decoded(value) if isinstance(value, str) and value[:1] in '[{"' else value
    return inner if isinstance(inner, (str, list, dict)) else value


def _status(span: Span) -> str:
    return _STATUSES[span.status_code] if 0 <= span.status_code < len(_STATUSES) else _STATUSES[0]


def _base64(octets: bytes) -> str:
    return b64encode(octets).decode()


# AnyValue


def _otlp_event(event: Event) -> dict[str, Any]:
    return {
        "time_unix_nano": event.time_unix_nano,
        "name": event.name,
        "attributes": _pairs(_values(event.attributes)),
    }


def _otlp_link(link: Link) -> dict[str, Any]:
    return {
        "trace_id": _base64(link.trace_id),
        "span_id": _base64(link.span_id),
        "attributes": _pairs(_values(link.attributes)),
    }


def _pairs(values: Mapping[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value, depth)} for key, value in values.items()]


_SCALARS: tuple[tuple[type, Callable[[Any], dict[str, Any]]], ...] = (
    (str, lambda value: {"string_value": value}),
    (bool, lambda value: {"bool_value": value}),
    (int, lambda value: {"int_value": str(value)} if abs(value) <= INT64_MAX else {"double_value": float(value)}),
    (float, lambda value: {"double_value": value if math.isfinite(value) else json_double(value)}),
    (bytes, lambda value: {"bytes_value": _base64(value)}),
)


def _any_value(value: Any, depth: int) -> dict[str, Any]:
    for kind, written in _SCALARS:
        if isinstance(value, kind):
            return written(value)
    if value is None:
        return {}
    if depth >= DEPTH_MAX:
        return {"string_value": orjson.dumps(value).decode()}
    if isinstance(value, list):
        return {"array_value": {"values": [_any_value(one, depth + 1) for one in value]}}
    return {"kvlist_value": {"values": _pairs(value, depth + 1)}}
