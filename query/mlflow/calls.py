"""The trace calls of MLflow's REST API that read: TraceInfo, spans, search. And what a call is.

Runs on the threads of the API. Source: mlflow 3.17, mlflow/server/handlers.py and store/tracking/sqlalchemy_store.py.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from query.mlflow import spans_json, trace_info
from query.mlflow.arrivals import RECENT_S
from query.mlflow.reading import Reading, completed, missing
from query.mlflow.refusals import MlflowRefused, invalid, not_found
from query.mlflow.search import Search
from query.mlflow.trace_info import as_list, member
from storage.mlflow_traces import MlflowTrace

IDS_MAX = 500
"""Traces that a call may name."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call: the tenant, what stood in the path, the query's parameters, the body's JSON."""

    tenant: str
    trace_id: str = ""
    assessment_id: str = ""
    query: Mapping[str, list[str]] = field(default_factory=dict)
    json: Mapping[str, Any] = field(default_factory=dict)
    artifacts: str = ""
    """Where the experiment of the trace keeps its files, if the MLflow server said so."""

    @property
    def id(self) -> bytes:
        """The trace of the path. Raises MlflowRefused."""
        return trace_info.trace_id_of(self.trace_id)

    def parameter(self, name: str, default: str = "") -> str:
        """A parameter of the query."""
        return next(iter(self.query.get(name, ())), default)


Answer = dict[str, Any] | Iterator[bytes]
"""JSON, or the pieces of its text."""


class ReadCalls:
    """The calls that read, one method each."""

    def __init__(self, reading: Reading, search: Search) -> None:
        self._reading = reading
        self._search = search

    def info(self, call: Call) -> Answer:
        """GetTraceInfoV3."""
        return {"trace": {"trace_info": self._info_json(call)}}

    def info_v2(self, call: Call) -> Answer:
        """GetTraceInfo of version 2."""
        return {"trace_info": trace_info.to_v2(self._reading.info(call.tenant, call.id))}

    def get(self, call: Call) -> Answer:
        """GetTrace: TraceInfo and spans."""
        trace_id = trace_info.trace_id_of(call.parameter("trace_id"))
        partly = call.parameter("allow_partial").lower() == "true"
        infos = self._reading.infos(call.tenant, [trace_id])
        if not infos:
            raise missing(trace_id)
        found = next(self._traces(call.tenant, infos, partly), None)
        if found is None:
            raise not_found(
                f"cannot give trace {trace_info.text_of(trace_id)} yet: its spans are still arriving; ask again, or "
                "with allow_partial=true"
            )
        return iter((b'{"trace":', found, b"}"))

    def batch(self, call: Call) -> Answer:
        """BatchGetTraces: those of them of which all spans have come."""
        infos = self._infos(call, call.query.get("trace_ids", []))
        return _listed(b'{"traces":[', self._traces(call.tenant, infos, False))

    def batch_infos(self, call: Call) -> Answer:
        """BatchGetTraceInfos."""
        infos = self._infos(call, member(call.json, "trace_ids") or [])
        return {"trace_infos": self._reading.infos_json(call.tenant, infos)}

    def file(self, call: Call) -> Answer:
        """The spans as MLflow keeps them in a file, for its web pages."""
        if call.parameter("path"):
            raise not_found("cannot give attachments of a trace: they are in the artifact store of the MLflow server")
        trace_id = trace_info.trace_id_of(call.parameter("request_id"))
        self._reading.info(call.tenant, trace_id)
        spans = spans_json.in_order(self._reading.spans(call.tenant, trace_id))
        return _listed(b'{"spans":[', map(spans_json.own, spans))

    def search(self, call: Call) -> Answer:
        """SearchTracesV3."""
        locations = member(call.json, "locations")
        if not isinstance(locations, list):
            raise invalid("cannot search: the body has no `locations`")
        places = [member(one, "mlflow_experiment") for one in locations]
        experiments = [str(member(one, "experiment_id")) for one in places if member(one, "experiment_id")]
        asked = {name: member(call.json, name) for name in ("filter", "order_by", "max_results", "page_token")}
        found, token = self._page(call.tenant, experiments, asked)
        return {"traces": self._reading.infos_json(call.tenant, found), **_token_json(token)}

    def search_v2(self, call: Call) -> Answer:
        """SearchTraces of version 2."""
        asked: dict[str, Any] = {name: call.parameter(name) for name in ("filter", "max_results", "page_token")}
        asked["order_by"] = call.query.get("order_by")
        found, token = self._page(call.tenant, call.query.get("experiment_ids", []), asked)
        return {"traces": [trace_info.to_v2(info) for info in found.values()], **_token_json(token)}

    def _page(
        self, tenant: str, experiments: list[str], asked: Mapping[str, Any]
    ) -> tuple[dict[bytes, MlflowTrace], str | None]:
        order_by = asked["order_by"] or []
        if not isinstance(order_by, list) or not all(isinstance(one, str) for one in order_by):
            raise invalid("cannot read order_by: it is a list of texts")
        page = self._search.page(
            tenant,
            experiments,
            filter_=str(asked["filter"] or ""),
            order_by=order_by,
            results_max=trace_info.whole(asked["max_results"] or 100, "max_results"),
            token=str(asked["page_token"] or ""),
        )
        return self._reading.infos(tenant, page.trace_ids), page.next_token

    def _traces(self, tenant: str, infos: Mapping[bytes, MlflowTrace], partly: bool) -> Iterator[bytes]:
        """Traces as JSON, one held at a time. Without those of which spans are still to come, unless `partly`."""
        assessed = self._reading.assessments(tenant, infos)
        recently = time.time_ns() // 1000 - RECENT_S * 1_000_000
        for trace_id, info in infos.items():
            spans = spans_json.in_order(self._reading.spans(tenant, trace_id))
            arriving = info.updated_unix_micro > recently and len(spans) < trace_info.announced_spans(info)
            if arriving and not partly:
                continue
            shown = info if info.announced else completed(info, spans)
            head = orjson.dumps(trace_info.to_v3(shown, assessed[trace_id]))
            yield b'{"trace_info":' + head + b',"spans":[' + b",".join(map(spans_json.otlp, spans)) + b"]}"

    def _info_json(self, call: Call) -> dict[str, Any]:
        info = self._reading.info(call.tenant, call.id)
        return self._reading.infos_json(call.tenant, {info.trace_id: info})[0]

    def _infos(self, call: Call, ids: Any) -> dict[bytes, MlflowTrace]:
        """TraceInfo of traces; if the call names experiments, of those that belong to one of them."""
        given = call.query.get("experiment_ids") or as_list(member(call.json, "experiment_ids"))
        infos = self._reading.infos(call.tenant, ids_of(ids))
        return {one: info for one, info in infos.items() if not given or info.experiment_id in given}


def ids_of(texts: Any) -> list[bytes]:
    """The ids of a list of traces. Raises MlflowRefused."""
    if not isinstance(texts, list) or len(texts) > IDS_MAX:
        raise invalid(f"cannot take trace_ids: it is a list of {IDS_MAX} ids at most")
    return [trace_info.trace_id_of(text) for text in texts]


def not_here(call: Call) -> Answer:
    """Calls that only MLflow's own pages make, of the sums over its database."""
    raise MlflowRefused(
        "NOT_IMPLEMENTED",
        "cannot compute this here: sums over traces are at /api/v1/runs, /api/v1/models and /api/v1/sessions",
    )


def _listed(head: bytes, members: Iterable[bytes]) -> Iterator[bytes]:
    yield head
    for place, one in enumerate(members):
        yield b"," * bool(place) + one
    yield b"]}"


def _token_json(token: str | None) -> dict[str, str]:
    return {"next_page_token": token} if token else {}
