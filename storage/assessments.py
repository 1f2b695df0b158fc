"""Assessments: what people, code and judges say of a trace or of one of its spans, as rows of `assessments`.

Keeps them, reads those of a trace, changes and removes them. An assessment may come before its trace. Called from the
threads of the API and from the settling thread; writes take turns, so that a change sees what it changes.
"""

import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from storage.engine import Engine

KINDS = ("feedback", "expectation", "score")
SOURCES = ("human", "code", "llm_judge")
WHOLE_TRACE = bytes(8)
LABEL_CHARS_MAX = 250
OF_TRACE_MAX = 1_000
"""Assessments of one trace in an answer, the oldest first."""
WRITE_ROWS_MAX = 1_000

_COLUMNS = (
    "Tenant", "TraceId", "AssessmentId", "SpanId", "Name", "Kind", "Number", "Text", "Value", "SourceType", "SourceId",
    "Rationale", "Error", "Metadata", "Created", "Deleted", "Updated",
)  # fmt: skip

_READ = """SELECT
    AssessmentId, SpanId, toString(Name), toString(Kind), Text, Value, toString(SourceType), SourceId, Rationale, Error,
    Metadata, toUnixTimestamp64Micro(Created), toUnixTimestamp64Micro(Updated)
FROM spanhouse.assessments FINAL
WHERE TraceId = toFixedString(unhex({{trace_id:String}}), 16) AND Deleted = 0{more}
ORDER BY Created, AssessmentId
LIMIT {{limit:UInt64}}"""
_OF_TRACE = _READ.format(more="")
_ONE = _READ.format(more=" AND AssessmentId = {assessment_id:String}")

_KNOWN = """SELECT TraceId, AssessmentId, toUnixTimestamp64Micro(Created), toUnixTimestamp64Micro(Updated)
FROM spanhouse.assessments FINAL
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
    AND AssessmentId IN {ids:Array(String)}"""


@dataclass(frozen=True, slots=True)
class Assessment:
    """One assessment. Times are nanoseconds since 1970, kept to the microsecond; 0 is not known yet.

    `value` is JSON: a number, a bool, a text, a list, an object, or None. `label` is the word beside a value that is
    not a text ("relevant" for 0.92). `error` says why there is no value: a text or an object.
    """

    trace_id: bytes
    name: str
    value: Any
    source_type: str
    source_id: str = ""
    kind: str = "feedback"
    span_id: bytes = WHOLE_TRACE
    label: str = ""
    rationale: str = ""
    error: Any = None
    metadata: dict[str, Any] = field(default_factory=dict)
    assessment_id: str = ""
    created_unix_nano: int = 0
    updated_unix_nano: int = 0

    @property
    def number(self) -> float:
        """The value as a number; NaN if it is none."""
        return float(self.value) if isinstance(self.value, (bool, int, float)) else math.nan

    @property
    def text(self) -> str:
        """What is counted and compared as a word."""
        return self.label or _word(self.value)


class Assessments:
    """The assessments of a store. `touch` is told the tenant and the traces of which something changed."""

    def __init__(self, engine: Engine, touch: Callable[[str, Iterable[bytes]], None]) -> None:
        self._engine = engine
        self._touch = touch
        self._writing = threading.Lock()

    def put(self, tenant: str, assessments: Sequence[Assessment]) -> list[Assessment]:
        """Keep assessments, and give them with their ids and times. An id that the trace has already is replaced.

        Of several with one id the last counts. Raises StoreUnavailable; the same call may then be made again.
        """
        now = _now()
        with self._writing:
            known = self._known(tenant, [a for a in assessments if a.assessment_id])
            kept = {}
            for i, given in enumerate(assessments):
                created, updated = known.get((given.trace_id, given.assessment_id), (0, 0))
                stored = replace(
                    given,
                    assessment_id=given.assessment_id or f"a-{uuid.uuid4().hex}",
                    created_unix_nano=given.created_unix_nano or created or now + 1000 * i,  # in their order
                    updated_unix_nano=max(now, updated + 1000),  # a clock that was set back must not undo this
                )
                kept[stored.trace_id, stored.assessment_id] = stored
            self._insert(tenant, kept.values())
        self._touch(tenant, {a.trace_id for a in kept.values()})
        return list(kept.values())

    def put_found(self, tenant: str, found: Sequence[Assessment]) -> list[Assessment]:
        """Keep what spans say, and give what of it is new. They have ids and times. Touches nothing.

        What is there already stays, changed or removed as it may be by now, unless what is found was said later.
        """
        now = _now()
        new = {}
        with self._writing:
            known = self._known(tenant, found)
            for one in sorted(found, key=lambda a: a.created_unix_nano):
                created, updated = known.get((one.trace_id, one.assessment_id), (-1, 0))
                if one.created_unix_nano // 1000 > created // 1000:
                    new[one.trace_id, one.assessment_id] = replace(one, updated_unix_nano=max(now, updated + 1000))
            self._insert(tenant, new.values())
        return list(new.values())

    def change(self, tenant: str, trace_id: bytes, assessment_id: str, changes: dict[str, Any]) -> Assessment | None:
        """The assessment with other values for some of its fields; None if there is no such."""
        with self._writing:
            before = self.one(tenant, trace_id, assessment_id)
            if before is None:
                return None
            updated = max(_now(), before.updated_unix_nano + 1000)
            after = replace(before, **changes, updated_unix_nano=updated)
            self._insert(tenant, [after])
        self._touch(tenant, [trace_id])
        return after

    def delete(self, tenant: str, trace_id: bytes, assessment_id: str) -> bool:
        """Remove an assessment. False if there is no such."""
        with self._writing:
            before = self.one(tenant, trace_id, assessment_id)
            if before is None:
                return False
            updated = max(_now(), before.updated_unix_nano + 1000)
            self._insert(tenant, [replace(before, updated_unix_nano=updated)], deleted=True)
        self._touch(tenant, [trace_id])
        return True

    def of_trace(self, tenant: str, trace_id: bytes, limit: int = OF_TRACE_MAX) -> list[Assessment]:
        """Assessments of a trace and of its spans, the oldest first. Raises what Engine.read raises."""
        columns = self._engine.read(tenant, _OF_TRACE, {"trace_id": trace_id.hex(), "limit": limit})
        return [_assessment(trace_id, row) for row in zip(*columns, strict=True)]

    def one(self, tenant: str, trace_id: bytes, assessment_id: str) -> Assessment | None:
        """One assessment of a trace."""
        asked = {"trace_id": trace_id.hex(), "assessment_id": assessment_id, "limit": 1}
        columns = self._engine.read(tenant, _ONE, asked)
        return next((_assessment(trace_id, row) for row in zip(*columns, strict=True)), None)

    def _known(self, tenant: str, wanted: Iterable[Assessment]) -> dict[tuple[bytes, str], tuple[int, int]]:
        """When those of them that are there were created and updated, removed ones among them, in nanoseconds."""
        traces = sorted({a.trace_id.hex() for a in wanted})
        if not traces:
            return {}
        asked = {"traces": traces, "ids": sorted({a.assessment_id for a in wanted})}
        columns = self._engine.read(tenant, _KNOWN, asked)
        return {
            (trace, one.decode()): (created * 1000, updated * 1000)
            for trace, one, created, updated in zip(*columns, strict=True)
        }

    def _insert(self, tenant: str, assessments: Iterable[Assessment], deleted: bool = False) -> None:
        rows = [_row(tenant, a, deleted) for a in assessments]
        for at in range(0, len(rows), WRITE_ROWS_MAX):
            self._engine.insert("assessments", _COLUMNS, rows[at : at + WRITE_ROWS_MAX])


def _row(tenant: str, a: Assessment, deleted: bool) -> tuple[Any, ...]:
    value, metadata = (orjson.dumps(part).decode() for part in (a.value, a.metadata))
    error = "" if a.error is None else orjson.dumps(a.error).decode()
    return (
        tenant, a.trace_id, a.assessment_id, a.span_id, a.name, a.kind, a.number, a.text, value, a.source_type,
        a.source_id, a.rationale, error, metadata, a.created_unix_nano // 1000, int(deleted),
        a.updated_unix_nano // 1000,
    )  # fmt: skip


def _assessment(trace_id: bytes, row: tuple[Any, ...]) -> Assessment:
    one, span_id, name, kind, text, value, source_type, source_id, rationale, error, metadata, created, updated = row
    said = orjson.loads(value)
    word = text.decode()
    return Assessment(
        trace_id=trace_id,
        name=name.decode(),
        value=said,
        source_type=source_type.decode(),
        source_id=source_id.decode(),
        kind=kind.decode(),
        span_id=span_id,
        label="" if word == _word(said) else word,
        rationale=rationale.decode(),
        error=orjson.loads(error) if error else None,
        metadata=orjson.loads(metadata),
        assessment_id=one.decode(),
        created_unix_nano=created * 1000,
        updated_unix_nano=updated * 1000,
    )


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) and len(value) <= LABEL_CHARS_MAX else ""


def _now() -> int:
    return time.time_ns() // 1000 * 1000
