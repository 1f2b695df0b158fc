"""Scores that instrumentations send as attributes or events of a span, as assessments. Pure.

    OpenTelemetry GenAI   event (or log record, or attributes) gen_ai.evaluation.result
    OpenInference         [trace.|session.]evaluations.{i}.evaluation.*, [trace.|session.]annotations.{i}.annotation.*
    Braintrust            braintrust.scores, a JSON object of numbers
    Traceloop, OTel       gen_ai.guardrail.{name,status,triggered}
    OpenLIT               event guard.evaluation
    LangWatch             event langwatch.evaluation.custom

An id is made of what was said, where and of what: the same span sent twice says it once.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from storage import spans
from storage.assessments import WHOLE_TRACE, Assessment
from storage.spans import Event, Link, Value

EVENTS = ("gen_ai.evaluation.result", "guard.evaluation", "langwatch.evaluation.custom")
KEYS = (
    *(f"{scope}{one}s.0.{one}.name" for scope in ("", "trace.", "session.") for one in ("annotation", "evaluation")),
    "braintrust.scores",
    "gen_ai.evaluation.name",
    "gen_ai.guardrail.status",
)
"""Keys of texts that say that a span carries scores."""
TRIGGERED = "gen_ai.guardrail.triggered"
"""The same, of a bool."""
OF_SPAN_MAX = 1_000
TEXT_CHARS_MAX = 16_384
NAME_CHARS_MAX = 250

_INDEXED = re.compile(
    r"(trace\.|session\.|)(annotation|evaluation)s\.([0-9]{1,6})\.(?:annotation|evaluation)\.([a-z_]+)"
)
_JUDGES = {"HUMAN": "human", "LLM": "llm_judge", "CODE": "code"}
_TIME_MAX_NANO = 2**63 - 1

Attributes = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Carrier:
    """A span, as far as it can carry scores."""

    trace_id: bytes
    span_id: bytes
    end_time_unix_nano: int
    attributes: spans.Attributes
    events: list[Event]
    links: list[Link]


def from_span(span: Carrier) -> list[Assessment]:
    """What a span says, of itself or, if it only carries what was said later, of the span that it links to."""
    attributes = dict(span.attributes)
    trace_id, span_id = _target(span, attributes)
    base = Assessment(
        trace_id,
        "",
        None,
        "code",
        span_id=span_id,
        kind="score",
        created_unix_nano=min(span.end_time_unix_nano, _TIME_MAX_NANO),
    )
    found: dict[str, Assessment] = {}
    for one in _said(span, attributes, base):
        if len(found) == OF_SPAN_MAX:
            break
        named = replace(one, assessment_id=one.assessment_id or _id(span.span_id, one))
        found.setdefault(named.assessment_id, named)
    return list(found.values())


def from_event(trace_id: bytes, span_id: bytes, event: Event) -> Assessment | None:
    """What an event, or a log record that is one, says of the span it belongs to; None if that is nothing."""
    base = Assessment(trace_id, "", None, "code", span_id=span_id, kind="score")
    one = _of_event(event, base)
    return one and replace(one, assessment_id=one.assessment_id or _id(span_id, one))


def _said(span: Carrier, attributes: Attributes, base: Assessment) -> Iterator[Assessment]:
    yield from _indexed(attributes, base)
    yield from _braintrust(attributes, base)
    for read in (_genai, _guardrail):
        if one := read(attributes, base):
            yield one
    for event in span.events:
        if one := _of_event(event, base):
            yield one


def _target(span: Carrier, attributes: Attributes) -> tuple[bytes, bytes]:
    """The trace and span that are meant.

    OpenInference: feedback that came after the end of its span is on a new span with exactly one link, to the target;
    such a span is an EVALUATOR, or says of itself nothing at all.
    """
    kind = attributes.get("openinference.span.kind")
    carries = kind == "EVALUATOR" or (kind is None and "gen_ai.operation.name" not in attributes)
    if carries and len(span.links) == 1:
        link = span.links[0]
        if (len(link.trace_id), len(link.span_id)) == (16, 8) and any(link.trace_id) and any(link.span_id):
            return link.trace_id, link.span_id
    return span.trace_id, span.span_id


# Attributes


def _indexed(attributes: Attributes, base: Assessment) -> Iterator[Assessment]:
    """OpenInference: one flat object for each scope, word and index."""
    objects: dict[tuple[str, str, str], dict[str, Value]] = {}
    for key, value in attributes.items():
        if match := _INDEXED.fullmatch(key):
            objects.setdefault((match[1], match[2], match[3]), {})[match[4]] = value
    for (scope, _, _), said in objects.items():
        judge = _text(said.get("annotator_kind"))
        metadata = _object(said.get("metadata"))
        if judge and judge not in _JUDGES:
            metadata["annotator_kind"] = judge
        if scope == "session.":
            metadata |= {"scope": "session", "session_id": _text(attributes.get("session.id"))}
        one = _result(
            replace(base, span_id=WHOLE_TRACE if scope else base.span_id),
            name=said.get("name"),
            value=said.get("score"),
            label=said.get("label"),
            rationale=said.get("explanation"),
            source_type=_JUDGES.get(judge, "code"),
            source_id=said.get("identifier"),
            metadata=metadata,
        )
        if one is None:
            continue
        if one.source_id:  # with it, a result has an identity: said again, it replaces what was said before
            one = replace(one, assessment_id=_hash(scope, one.trace_id, one.span_id, one.name, one.source_id))
        yield one


def _braintrust(attributes: Attributes, base: Assessment) -> Iterator[Assessment]:
    for name, score in _object(attributes.get("braintrust.scores")).items():
        if one := _result(base, name=name, value=score, source_id="braintrust"):
            yield one


def _genai(attributes: Attributes, base: Assessment) -> Assessment | None:
    """OpenTelemetry's gen_ai.evaluation.*; who judged is not among them, but Microsoft's clients say it beside."""
    human = attributes.get("microsoft.gen_ai.evaluation.actor.type") == "human"
    return _result(
        base,
        name=attributes.get("gen_ai.evaluation.name"),
        value=attributes.get("gen_ai.evaluation.score.value"),
        label=attributes.get("gen_ai.evaluation.score.label"),
        rationale=attributes.get("gen_ai.evaluation.explanation"),
        error=attributes.get("error.type"),
        source_type="human" if human else "code",
        metadata=_given({"response_id": attributes.get("gen_ai.response.id")}),
    )


def _guardrail(attributes: Attributes, base: Assessment) -> Assessment | None:
    """Whether a guardrail was passed: Traceloop's status, or `triggered` of OpenTelemetry's agents instrumentation."""
    status, triggered = attributes.get("gen_ai.guardrail.status"), attributes.get(TRIGGERED)
    if not isinstance(status, str) and not isinstance(triggered, bool):
        return None
    name = _text(attributes.get("gen_ai.guardrail.name")) or "guardrail"
    return _result(
        base,
        name=name,
        value={"PASSED": True, "FAILED": False}.get(str(status)) if triggered is None else not triggered,
        rationale=attributes.get("gen_ai.guardrail.error.message"),
        error=attributes.get("gen_ai.guardrail.error.type") or ("ERROR" if status == "ERROR" else None),
        source_id=name,
        metadata=_given(
            {
                "guard_count": attributes.get("gen_ai.guardrail.guard_count"),
                "failed_guard_count": attributes.get("gen_ai.guardrail.failed_guard_count"),
            }
        ),
    )


# Events


def _of_event(event: Event, base: Assessment) -> Assessment | None:
    read = _EVENT_READERS.get(event.name)
    if read is None:
        return None
    time = min(event.time_unix_nano, _TIME_MAX_NANO) or base.created_unix_nano
    return read(dict(event.attributes), replace(base, created_unix_nano=time))


def _openlit(attributes: Attributes, base: Assessment) -> Assessment | None:
    name = _text(attributes.get("guard.name"))
    metadata = {key: attributes.get(f"guard.{key}") for key in ("phase", "classification", "denied")}
    return _result(
        base,
        name=name or "guard",
        value=attributes.get("guard.score"),
        label=attributes.get("guard.action"),
        rationale=attributes.get("guard.explanation"),
        source_id=name,
        metadata=_given(metadata),
    )


def _langwatch(attributes: Attributes, base: Assessment) -> Assessment | None:
    said = _object(attributes.get("json_encoded_event"))
    failure = said.get("error")
    span_id = _text(said.get("span_id"))
    if re.fullmatch("[0-9a-f]{16}", span_id):
        base = replace(base, span_id=bytes.fromhex(span_id))
    one = _result(
        base,
        name=said.get("name"),
        value=said.get("passed") if said.get("score") is None else said.get("score"),
        label=said.get("label"),
        rationale=said.get("details"),
        error=failure.get("message") if isinstance(failure, dict) else failure,
        source_id=said.get("evaluator_id"),
        metadata=_given({key: said.get(key) for key in ("passed", "type", "status", "is_guardrail")}),
    )
    given = _text(said.get("evaluation_id"))
    return replace(one, assessment_id=_hash("langwatch", base.trace_id, given)) if one and given else one


_EVENT_READERS: dict[str, Callable[[Attributes, Assessment], Assessment | None]] = dict(
    zip(EVENTS, (_genai, _openlit, _langwatch), strict=True)
)


# What all of them have in common


def _result(
    base: Assessment,
    *,
    name: Any,
    value: Any = None,
    label: Any = None,
    rationale: Any = None,
    error: Any = None,
    source_type: str = "code",
    source_id: Any = None,
    metadata: dict[str, Any] | None = None,
) -> Assessment | None:
    """An assessment of what was said; None without a name, or if it says nothing. A label alone is the value."""
    score = value if isinstance(value, (bool, int, float)) else None
    if isinstance(score, float) and not math.isfinite(score):
        score = None
    label, rationale, error, name = _text(label), _text(rationale), _text(error), _text(name)
    if not name or (score is None and not label and not rationale and not error):
        return None
    return replace(
        base,
        name=name[:NAME_CHARS_MAX],
        value=score if score is not None else label or None,
        label=label[:NAME_CHARS_MAX] if score is not None else "",
        rationale=rationale,
        error=error or None,
        kind="feedback" if source_type == "human" else "score",
        source_type=source_type,
        source_id=_text(source_id)[:NAME_CHARS_MAX],
        metadata=metadata or {},
    )


def _text(value: Any) -> str:
    return value[:TEXT_CHARS_MAX] if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    """A JSON object that was sent as a text; empty if it is none, or one that is too deep to be written again."""
    try:
        found = orjson.loads(value) if isinstance(value, str) and len(value) <= 4 * TEXT_CHARS_MAX else None
        orjson.dumps(found)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, (str, bool, int, float))}


def _id(span_id: bytes, said: Assessment) -> str:
    return _hash(
        span_id, said.trace_id, said.span_id, said.name, said.value, said.label, said.rationale, said.error,
        said.source_type, said.created_unix_nano,
    )  # fmt: skip


def _hash(*parts: Any) -> str:
    return "otlp-" + hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
