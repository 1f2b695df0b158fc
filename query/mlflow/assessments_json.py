"""MLflow's Assessment: from the JSON of its REST API to a row of ours, and back. Pure.

A value goes back in the form in which it came: `feedback.value`, `expectation.value`, or an expectation's
`serialized_value`, which is JSON text. An assessment that came by another way than MLflow reads as feedback, or as an
expectation if it is one.

Source: mlflow 3.17, mlflow/entities/assessment.py and protos/assessments.proto.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from query.mlflow.refusals import invalid
from query.mlflow.trace_info import member, milliseconds_of_time, text_of, texts, time_of
from storage.assessments import WHOLE_TRACE, Assessment

ISSUE = "issue"
"""The kind of an IssueReference: its name is the id of an issue, its value the issue's name."""
OVERRIDES, OVERRIDDEN = "mlflow.assessment.overrides", "mlflow.assessment.overridden"
"""Members of an assessment's metadata for what has no column of its own: the assessment that it takes the place of, and
the one that took its place."""

_SOURCES = {"SOURCE_TYPE_UNSPECIFIED": "code", "HUMAN": "human", "LLM_JUDGE": "llm_judge", "CODE": "code"}
_SERIALIZED = "JSON_FORMAT"
_ERROR_MEMBERS = ("error_code", "error_message", "stack_trace")


def from_json(json: Any, trace_id: bytes) -> Assessment:
    """An assessment of the trace as the client sends it. Raises MlflowRefused."""
    if not isinstance(json, dict):
        raise invalid("cannot take the assessment: the body has no `assessment`")
    kind, value, error = _value(json)
    name = member(json, "assessment_name")
    if not isinstance(name, str) or not name:
        raise invalid("cannot take the assessment: it has no assessment_name")
    source = member(json, "source")
    created, updated = member(json, "create_time"), member(json, "last_update_time")
    span_id = member(json, "span_id") or ""
    try:
        span = bytes.fromhex(span_id) if span_id else WHOLE_TRACE
    except (TypeError, ValueError):
        span = b""
    if len(span) != len(WHOLE_TRACE):
        raise invalid(f"cannot take span_id={str(span_id)[:200]!r}: it has 16 hexadecimal digits")
    return Assessment(
        trace_id=trace_id,
        name=name,
        value=value,
        source_type=_SOURCES.get(str(member(source, "source_type")), "code"),
        source_id=str(member(source, "source_id") or ""),
        kind=kind,
        span_id=span,
        rationale=str(member(json, "rationale") or ""),
        error=error,
        metadata={
            **texts(member(json, "metadata")),
            **({OVERRIDES: str(member(json, "overrides"))} if member(json, "overrides") else {}),
        },
        assessment_id=str(member(json, "assessment_id") or ""),
        created_unix_nano=milliseconds_of_time(created) * 1_000_000 if created else 0,
        updated_unix_nano=milliseconds_of_time(updated) * 1_000_000 if updated else 0,
    )


def to_json(one: Assessment) -> dict[str, Any]:
    """The assessment as the client reads it."""
    metadata = {
        key: value if isinstance(value, str) else orjson.dumps(value).decode() for key, value in one.metadata.items()
    }
    overrides, overridden = metadata.pop(OVERRIDES, ""), metadata.pop(OVERRIDDEN, "")
    json: dict[str, Any] = {
        "assessment_id": one.assessment_id,
        "assessment_name": one.name,
        "trace_id": text_of(one.trace_id),
        "source": {"source_type": one.source_type.upper(), **({"source_id": one.source_id} if one.source_id else {})},
        "create_time": time_of(one.created_unix_nano // 1_000_000),
        "last_update_time": time_of(one.updated_unix_nano // 1_000_000),
        "valid": not overridden,
        **_value_json(one),
    }
    if one.span_id != WHOLE_TRACE:
        json["span_id"] = one.span_id.hex()
    for name, value in (("rationale", one.rationale), ("metadata", metadata), ("overrides", overrides)):
        if value:
            json[name] = value
    return json


def changes(json: Mapping[str, Any], paths: list[str], before: Assessment) -> dict[str, Any]:
    """What an UpdateAssessment changes of an assessment's fields. Raises MlflowRefused."""
    given = member(json, "assessment")
    changed: dict[str, Any] = {}
    for path in paths:
        if path == "assessment_name":
            changed["name"] = str(member(given, "assessment_name") or before.name)
        elif path == "rationale":
            changed["rationale"] = str(member(given, "rationale") or "")
        elif path == "metadata":
            changed["metadata"] = before.metadata | texts(member(given, "metadata"))
        elif path in ("feedback", "expectation"):
            kind, value, error = _value(given)
            if (kind == "expectation") != (before.kind == "expectation"):
                raise invalid(
                    f"cannot make {before.kind} {before.assessment_id!r} {kind}: log a new assessment instead"
                )
            changed |= {"value": value, "error": error, "label": ""}
        elif path != "valid":
            raise invalid(f"cannot change {path!r} of an assessment")
    return changed


def overridden(one: Assessment, by: str) -> Assessment:
    """The assessment with another in its place, or with its place again if `by` is empty."""
    metadata = {key: value for key, value in one.metadata.items() if key != OVERRIDDEN}
    return replace(one, metadata=metadata | ({OVERRIDDEN: by} if by else {}))


def _value(json: Any) -> tuple[str, Any, Any]:
    """Kind, value and error."""
    if (feedback := member(json, "feedback")) is not None:
        error = member(feedback, "error") or member(json, "error")
        return "feedback", member(feedback, "value"), error or None
    if (expectation := member(json, "expectation")) is not None:
        serialized = member(expectation, "serialized_value")
        if serialized is None:
            return "expectation", member(expectation, "value"), None
        try:
            return "expectation", orjson.loads(member(serialized, "value")), None
        except (TypeError, orjson.JSONDecodeError):
            raise invalid("cannot take the expectation: its serialized_value is not JSON") from None
    if (issue := member(json, "issue")) is not None:
        return ISSUE, member(issue, "issue_name"), None
    raise invalid("cannot take the assessment: it has neither feedback, nor expectation, nor issue")


def _value_json(one: Assessment) -> dict[str, Any]:
    if one.kind == ISSUE:
        return {ISSUE: {"issue_name": str(one.value)}}
    if one.kind == "expectation":
        if isinstance(one.value, (list, dict)):
            text = orjson.dumps(one.value).decode()
            return {"expectation": {"serialized_value": {"serialization_format": _SERIALIZED, "value": text}}}
        return {"expectation": {"value": one.value}}
    feedback: dict[str, Any] = {"value": one.label if one.value is None and one.label else one.value}
    if one.error is not None:
        feedback["error"] = _error_json(one.error)
    return {"feedback": feedback}


def _error_json(error: Any) -> dict[str, str]:
    said = {name: str(error[name]) for name in _ERROR_MEMBERS if name in error} if isinstance(error, dict) else {}
    return said or {
        "error_code": "ERROR",
        "error_message": error if isinstance(error, str) else orjson.dumps(error).decode(),
    }
