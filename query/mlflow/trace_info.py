"""MLflow's TraceInfo: from the JSON of its REST API (versions 2 and 3) and back, what it links, and how it reads for a
trace of which MLflow's client never spoke. Pure.

Source: mlflow 3.17, mlflow/entities/trace_info.py, trace_info_v2.py and tracing/constant.py; field names are those of
its service.proto, in snake case as its Python client writes them or in camel case as proto3's JSON mapping does.
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from query.mlflow.linking import Link
from query.mlflow.refusals import invalid, not_found
from storage.mlflow_traces import MlflowTrace

NAME = "mlflow.traceName"
PROMPTS = "mlflow.linkedPrompts"
SPANS_LOCATION = "mlflow.trace.spansLocation"
ARTIFACTS = "mlflow.artifactLocation"
RUN = "mlflow.sourceRun"
MODEL = "mlflow.modelId"
SESSION = "mlflow.trace.session"
USER = "mlflow.trace.user"
TOKENS = "mlflow.trace.tokenUsage"
COST = "mlflow.trace.cost"
SIZE = "mlflow.trace.sizeStats"

STATES = ("STATE_UNSPECIFIED", "OK", "ERROR", "IN_PROGRESS")
HERE = "TRACKING_STORE"
"""Tells the client to ask this API for the spans, and not to write them to a file of the artifact store."""
STORAGE_TAGS = (SPANS_LOCATION, "mlflow.trace.archiveLocation", "mlflow.trace.archivalFailure")
"""Tags that say where spans lie; nobody sets them from outside."""
DEFAULT_EXPERIMENT = "0"
_DURATION_MAX_MS = 10**15


# Ids


def trace_id_of(text: Any) -> bytes:
    """The 16 bytes of `tr-<32 hex digits>`. Raises MlflowRefused: another id is no trace of this store."""
    match = re.fullmatch(r"(?:tr-)?([0-9a-fA-F]{32})", text) if isinstance(text, str) else None
    if match is None:
        raise not_found(f"cannot find trace {str(text)[:200]!r}: an id here is tr- and 32 hexadecimal digits")
    return bytes.fromhex(match[1])


def text_of(trace_id: bytes) -> str:
    """The id as MLflow writes it."""
    return f"tr-{trace_id.hex()}"


# From JSON


def member(json: Any, name: str) -> Any:
    """A member by its name in snake case, or in camel case; None of what is no object."""
    if not isinstance(json, dict):
        return None
    if name in json:
        return json[name]
    head, *rest = name.split("_")
    return json.get(head + "".join(word.capitalize() for word in rest))


def as_list(value: Any) -> list[Any]:
    """A list; an empty one of what is none."""
    return value if isinstance(value, list) else []


def from_v3(json: Any) -> MlflowTrace:
    """A TraceInfoV3. Raises MlflowRefused."""
    if not isinstance(json, dict):
        raise invalid("cannot start a trace: the body has no trace.trace_info")
    location = member(member(json, "trace_location"), "mlflow_experiment")
    state = member(json, "state")
    return MlflowTrace(
        trace_id=trace_id_of(member(json, "trace_id")),
        experiment_id=str(member(location, "experiment_id") or DEFAULT_EXPERIMENT),
        requested_ms=milliseconds_of_time(member(json, "request_time")),
        duration_ms=_milliseconds_of_duration(member(json, "execution_duration")),
        state=STATES[state] if isinstance(state, int) and 0 <= state < len(STATES) else _state(state),
        client_request_id=_text(member(json, "client_request_id")),
        request_preview=_text(member(json, "request_preview")),
        response_preview=_text(member(json, "response_preview")),
        metadata=texts(member(json, "trace_metadata")),
        tags=texts(member(json, "tags")),
    )


def from_v2(json: Mapping[str, Any], trace_id: bytes) -> MlflowTrace:
    """A StartTrace of version 2: the trace begins, and its id is given to it here."""
    return MlflowTrace(
        trace_id=trace_id,
        experiment_id=str(member(json, "experiment_id") or DEFAULT_EXPERIMENT),
        requested_ms=whole(member(json, "timestamp_ms") or 0, "timestamp_ms"),
        state="IN_PROGRESS",
        metadata=entries(member(json, "request_metadata")),
        tags=entries(member(json, "tags")),
    )


def entries(json: Any) -> dict[str, str]:
    """[{"key", "value"}, …] of version 2."""
    return {str(member(one, "key")): _text(member(one, "value")) for one in as_list(json) if member(one, "key")}


def whole(value: Any, name: str) -> int:
    """An integer, which proto3's JSON may write as a text. Raises MlflowRefused."""
    try:
        return int(value)
    except (TypeError, ValueError):
        raise invalid(f"cannot take {name}={str(value)[:200]!r}: it is an integer") from None


def milliseconds_of_time(text: Any) -> int:
    """Milliseconds since 1970 of a Timestamp as proto3's JSON writes it. Raises MlflowRefused."""
    try:
        moment = datetime.fromisoformat(text)
        # Not timestamp(): a float's last digits are not the sender's.
        since = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except (TypeError, ValueError):
        raise invalid(f"cannot take {str(text)[:200]!r} as a time: write it as 2026-01-31T12:00:00.000Z") from None
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _milliseconds_of_duration(text: Any) -> int | None:
    if text is None:
        return None
    try:
        return min(max(0, int(Decimal(text.removesuffix("s")) * 1000)), _DURATION_MAX_MS)
    except (AttributeError, InvalidOperation, ValueError, OverflowError):
        raise invalid(f"cannot take {str(text)[:200]!r} as a duration: write it as 1.5s") from None


def _state(state: Any) -> str:
    return state if state in STATES else "STATE_UNSPECIFIED"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def texts(value: Any) -> dict[str, str]:
    """An object of texts; a value that is none as its JSON."""
    return {key: _text(one) for key, one in value.items()} if isinstance(value, dict) else {}


# To JSON


def to_v3(trace: MlflowTrace, assessments: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The TraceInfoV3."""
    json: dict[str, Any] = {
        "trace_id": text_of(trace.trace_id),
        "trace_location": {
            "type": "MLFLOW_EXPERIMENT",
            "mlflow_experiment": {"experiment_id": trace.experiment_id or DEFAULT_EXPERIMENT},
        },
        "request_time": time_of(trace.requested_ms),
        "state": trace.state,
        "trace_metadata": trace.metadata,
        "tags": trace.tags,
        "assessments": list(assessments),
    }
    if trace.duration_ms is not None:
        json["execution_duration"] = f"{trace.duration_ms // 1000}.{trace.duration_ms % 1000:03d}s"
    for name in ("client_request_id", "request_preview", "response_preview"):
        if value := getattr(trace, name):
            json[name] = value
    return json


def to_v2(trace: MlflowTrace) -> dict[str, Any]:
    """The TraceInfo of version 2."""
    json: dict[str, Any] = {
        "request_id": text_of(trace.trace_id),
        "experiment_id": trace.experiment_id or DEFAULT_EXPERIMENT,
        "timestamp_ms": trace.requested_ms,
        "status": "TRACE_STATUS_UNSPECIFIED" if trace.state == STATES[0] else trace.state,
        "request_metadata": [{"key": key, "value": value} for key, value in trace.metadata.items()],
        "tags": [{"key": key, "value": value} for key, value in trace.tags.items()],
    }
    if trace.duration_ms is not None:
        json["execution_time_ms"] = trace.duration_ms
    return json


def time_of(milliseconds: int) -> str:
    """A Timestamp as proto3's JSON writes it."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


# What it says


def links(trace: MlflowTrace) -> list[Link]:
    """What the trace belongs to by its TraceInfo."""
    said = trace.metadata
    found = [("experiment", trace.experiment_id, ""), ("run", said.get(RUN, ""), "")]
    found += [("run", run, "") for run in trace.runs]
    found += [("logged_model", said.get(MODEL, ""), ""), ("session", said.get(SESSION, ""), "")]
    found += [("user", said.get(USER, ""), "")]
    found += [("prompt", name, version) for name, version in prompts(trace)]
    return [link for link in dict.fromkeys(found) if link[1]]


def prompts(trace: MlflowTrace) -> list[tuple[str, str]]:
    """Name and version of the prompts that the client put into a tag, or linked later."""
    try:
        listed = json.loads(trace.tags.get(PROMPTS, "[]"))
        found = [(str(one["name"]), str(one["version"])) for one in listed]
    except (ValueError, TypeError, KeyError):
        found = []
    later = [(name, version) for name, _, version in (prompt.rpartition("/") for prompt in trace.prompts)]
    return list(dict.fromkeys(found + later))


def announced_spans(trace: MlflowTrace) -> int:
    """How many spans the client said the trace has; 0 if it did not say."""
    try:
        return int(json.loads(trace.metadata.get(SIZE, "{}")).get("num_spans", 0))
    except (ValueError, TypeError, AttributeError):
        return 0
