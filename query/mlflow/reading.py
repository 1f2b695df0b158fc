"""What MLflow's API gives of traces, whoever sent them: TraceInfo, spans, assessments. Runs on the threads of the API.

A trace of which MLflow's client spoke has the TraceInfo that it sent. Any other has one made of its spans and facts, so
that MLflow's client reads traces of every SDK; what somebody set on it through this API is added.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from query.mlflow import assessments_json, spans_json, trace_info
from query.mlflow.refusals import MlflowRefused, not_found
from query.traces import sql
from storage.assessments import Assessment
from storage.engine import Engine
from storage.mlflow_traces import MlflowTrace, MlflowTraces
from storage.spans import Span

SPANS_MAX = 50_000
"""Spans of one trace that this API gives; the trace API of Spanhouse gives more."""
PREVIEW_SPANS_MAX = 1_000
"""Spans among which the root is looked for whose input and output a TraceInfo shows."""
_LINKED = {
    "run": trace_info.RUN,
    "logged_model": trace_info.MODEL,
    "session": trace_info.SESSION,
    "user": trace_info.USER,
}
_TAG_PREFIX = "mlflow.traceTag."
_ERROR = 2


class SpanReader(Protocol):
    """Where spans come from: query.traces.Traces."""

    def spans_of(self, tenant: str, trace_id: bytes, content: bool, limit: int) -> list[Span]:
        """Spans of one trace by start, at most `limit`, each once; without content attributes if not `content`."""
        ...


class AssessmentReader(Protocol):
    """Where assessments come from: storage.assessments.Assessments."""

    def of_trace(self, tenant: str, trace_id: bytes) -> list[Assessment]:
        """Assessments of a trace and of its spans, the oldest first."""
        ...


@dataclass(slots=True)
class _Summary:
    """What is known of a trace by its spans and, where it is settled, by its facts."""

    start_unix_nano: int
    end_unix_nano: int
    name: str
    rooted: bool
    failed: bool
    usage: dict[str, int] = field(default_factory=dict)
    cost_usd: float = 0
    links: dict[str, str] = field(default_factory=dict)
    """Entity → id; of several the first."""


class Reading:
    """The traces of a store as MLflow's API has them. What is hidden from it does not exist here."""

    def __init__(self, engine: Engine, rows: MlflowTraces, traces: SpanReader, assessments: AssessmentReader) -> None:
        self._engine = engine
        self._rows = rows
        self._traces = traces
        self._assessments = assessments

    def spans_known(self, tenant: str, trace_ids: Iterable[bytes]) -> dict[bytes, int]:
        """How many spans of each are stored."""
        asked = {"traces": [trace_id.hex() for trace_id in trace_ids]}
        columns = self._engine.read(tenant, sql("mlflow_spans_known"), asked)
        return dict(zip(*columns, strict=True)) if columns else {}

    def infos(self, tenant: str, trace_ids: Iterable[bytes]) -> dict[bytes, MlflowTrace]:
        """TraceInfo of these traces, in their order, without previews where they are to be made of spans."""
        wanted = list(dict.fromkeys(trace_ids))
        rows = self._rows.of(tenant, wanted)
        told = [row for row in rows.values() if row.deleted or (row.announced and trace_info.COST in row.metadata)]
        summaries = self._summaries(tenant, [one for one in wanted if one not in {row.trace_id for row in told}])
        found = {}
        for trace_id in wanted:
            row = rows.get(trace_id)
            if row is not None and row.deleted:
                continue
            if row is not None and row.announced:
                found[trace_id] = _priced(row, summaries.get(trace_id))
            elif trace_id in summaries:
                found[trace_id] = _made(trace_id, summaries[trace_id], row)
        return found

    def info(self, tenant: str, trace_id: bytes) -> MlflowTrace:
        """TraceInfo of a trace. Raises MlflowRefused."""
        found = self.infos(tenant, [trace_id]).get(trace_id)
        if found is None:
            raise missing(trace_id)
        if found.announced:
            return found
        return completed(found, self._traces.spans_of(tenant, trace_id, True, PREVIEW_SPANS_MAX))

    def spans(self, tenant: str, trace_id: bytes) -> list[Span]:
        """Spans of a trace, with all they carry. Raises MlflowRefused."""
        spans = self._traces.spans_of(tenant, trace_id, True, SPANS_MAX + 1)
        if len(spans) > SPANS_MAX:
            raise MlflowRefused(
                "INVALID_PARAMETER_VALUE",
                f"cannot give trace {trace_info.text_of(trace_id)}: it has more than {SPANS_MAX} spans; "
                f"read it from /api/v1/traces/{trace_id.hex()}",
            )
        return spans

    def assessments(self, tenant: str, trace_ids: Iterable[bytes]) -> dict[bytes, list[dict[str, Any]]]:
        """Assessments of these traces, as MLflow's client reads them."""
        wanted = list(trace_ids)
        columns = self._engine.read(tenant, sql("mlflow_assessed"), {"traces": [one.hex() for one in wanted]})
        assessed = set(columns[0]) if columns else set()
        return {
            one: [assessments_json.to_json(a) for a in self._assessments.of_trace(tenant, one)]
            if one in assessed
            else []
            for one in wanted
        }

    def infos_json(self, tenant: str, infos: Mapping[bytes, MlflowTrace]) -> list[dict[str, Any]]:
        """TraceInfo of version 3 with the assessments, in the order of `infos`."""
        assessed = self.assessments(tenant, infos)
        return [trace_info.to_v3(info, assessed[trace_id]) for trace_id, info in infos.items()]

    def _summaries(self, tenant: str, trace_ids: list[bytes]) -> dict[bytes, _Summary]:
        if not trace_ids:
            return {}
        asked = {"traces": [trace_id.hex() for trace_id in trace_ids]}
        columns = self._engine.read(tenant, sql("mlflow_summaries"), asked)
        return {row[0]: _summary(row) for row in zip(*columns, strict=True)}


def missing(trace_id: bytes) -> MlflowRefused:
    """There is no such trace."""
    return not_found(
        f"cannot find trace {trace_info.text_of(trace_id)}: it never came, was deleted here, or is another tenant's"
    )


def completed(info: MlflowTrace, spans: list[Span]) -> MlflowTrace:
    """A TraceInfo that was made of facts, with what only the root span and its resource say."""
    root = next((span for span in spans if not span.parent_span_id), None)
    if root is None:
        return info
    said = spans_json.attributes(root)
    resource = spans_json.texts(root.resource.attributes)
    tags = {key: text for key, text in resource.items() if not key.startswith(("telemetry.sdk.", "mlflow."))}
    tags |= {key.removeprefix(_TAG_PREFIX): str(value) for key, value in said.items() if key.startswith(_TAG_PREFIX)}
    return replace(
        info,
        state="ERROR" if root.status_code == _ERROR else "OK",
        tags=tags | info.tags,
        request_preview=spans_json.preview(said[spans_json.INPUTS]) if spans_json.INPUTS in said else "",
        response_preview=spans_json.preview(said[spans_json.OUTPUTS]) if spans_json.OUTPUTS in said else "",
    )


def _made(trace_id: bytes, summary: _Summary, row: MlflowTrace | None) -> MlflowTrace:
    """The TraceInfo of a trace of which MLflow's client did not speak; `row` has what was set on it since."""
    metadata = {key: summary.links[entity] for entity, key in _LINKED.items() if entity in summary.links}
    if any(summary.usage.values()):
        metadata[trace_info.TOKENS] = json.dumps(summary.usage)
    tags = {trace_info.SPANS_LOCATION: trace_info.HERE}
    if summary.rooted:
        tags[trace_info.NAME] = summary.name
    made = MlflowTrace(
        trace_id=trace_id,
        experiment_id=summary.links.get("experiment", trace_info.DEFAULT_EXPERIMENT),
        requested_ms=summary.start_unix_nano // 1_000_000,
        duration_ms=(summary.end_unix_nano - summary.start_unix_nano) // 1_000_000,
        state=("ERROR" if summary.failed else "OK") if summary.rooted else "IN_PROGRESS",
        metadata=metadata,
        tags=tags | (row.tags if row else {}),
        runs=row.runs if row else (),
        prompts=row.prompts if row else (),
        announced=False,
    )
    return _priced(made, summary)


def _priced(trace: MlflowTrace, summary: _Summary | None) -> MlflowTrace:
    """The TraceInfo with what the trace cost, as far as it is known. MLflow's client leaves this to its server."""
    if summary is None or not summary.cost_usd or trace_info.COST in trace.metadata:
        return trace
    return replace(trace, metadata=trace.metadata | {trace_info.COST: json.dumps({"total_cost": summary.cost_usd})})


def _summary(row: tuple[Any, ...]) -> _Summary:
    start, end, errors, name, service, settled, failed = row[1:8]
    input_tokens, output_tokens, total_tokens, cached, cost, entities, ids = row[8:]
    links: dict[str, str] = {}
    for entity, id_ in zip(entities, ids, strict=True):
        links.setdefault(entity.decode(), id_.decode())
    usage = {"input_tokens": input_tokens, "output_tokens": output_tokens, "total_tokens": total_tokens}
    return _Summary(
        start_unix_nano=start,
        end_unix_nano=end,
        name=name.decode(errors="replace"),
        rooted=bool(name or service),
        failed=bool(failed if settled else errors),
        usage={**usage, "cache_read_input_tokens": cached},
        cost_usd=cost,
        links=links,
    )
