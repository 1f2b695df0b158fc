"""The trace calls of MLflow's REST API that write: start and end, tags, links, deletion.

Runs on the threads of the API. A call is answered when what it wrote is on disk. What a TraceInfo says of run, logged
model, session, user, experiment and prompts becomes links of the trace, so that it is found by them here as by MLflow.
Source: mlflow 3.17, mlflow/server/handlers.py and store/tracking/sqlalchemy_store.py.
"""

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import replace

import orjson

from query.mlflow import assessments_json, trace_info
from query.mlflow.assessing import AssessmentStore
from query.mlflow.calls import Answer, Call, ids_of
from query.mlflow.linking import Linking, LinkStore
from query.mlflow.reading import Reading, missing
from query.mlflow.refusals import invalid, not_found
from query.mlflow.search import RESULTS_MAX, Search
from query.mlflow.trace_info import as_list, member
from storage.assessments import Assessment
from storage.mlflow_traces import MlflowTrace, MlflowTraces

LINKED_TRACES_MAX = 100
"""Traces of one call of link-to-run; MLflow's own limit."""
TAG_KEY_CHARS_MAX, TAG_VALUE_CHARS_MAX = 250, 8_000
DELETED_MAX = 10_000
"""Traces that one call of delete-traces hides."""


class WriteCalls:
    """The calls that write, one method each."""

    def __init__(
        self, rows: MlflowTraces, reading: Reading, search: Search, links: LinkStore, assessments: AssessmentStore
    ) -> None:
        self._rows = rows
        self._reading = reading
        self._search = search
        self._linking = Linking(links)
        self._assessments = assessments

    def start(self, call: Call) -> Answer:
        """StartTraceV3: MLflow's client calls it when the trace has ended."""
        json = member(member(call.json, "trace"), "trace_info")
        given = trace_info.from_v3(json)
        assessments = [assessments_json.from_json(one, given.trace_id) for one in as_list(member(json, "assessments"))]
        given = replace(given, tags=given.tags | {trace_info.SPANS_LOCATION: trace_info.HERE})
        kept = self._announce(call, given)
        # A client that hears nothing sends this again, and its assessments have no ids yet.
        put = self._assessments.put(
            call.tenant, [replace(one, assessment_id=one.assessment_id or _derived_id(one)) for one in assessments]
        )
        return {"trace": {"trace_info": trace_info.to_v3(kept, map(assessments_json.to_json, put))}}

    def start_v2(self, call: Call) -> Answer:
        """StartTrace of version 2, of clients before 3.0. They write spans to a file of the artifact store."""
        kept = self._announce(call, trace_info.from_v2(call.json, uuid.uuid4().bytes))
        return {"trace_info": trace_info.to_v2(kept)}

    def end_v2(self, call: Call) -> Answer:
        """EndTrace of version 2."""
        ended_ms = trace_info.whole(member(call.json, "timestamp_ms") or 0, "timestamp_ms")
        status = member(call.json, "status")
        metadata, tags = (trace_info.entries(member(call.json, name)) for name in ("request_metadata", "tags"))

        def end(trace: MlflowTrace) -> MlflowTrace:
            return replace(
                trace,
                duration_ms=max(0, ended_ms - trace.requested_ms),
                state=status if status in trace_info.STATES else "STATE_UNSPECIFIED",
                metadata=trace.metadata | metadata,
                tags=trace.tags | tags,
            )

        return {"trace_info": trace_info.to_v2(self._change(call.tenant, call.id, end))}

    def _announce(self, call: Call, given: MlflowTrace) -> MlflowTrace:
        """Keep a TraceInfo, and link the trace to what it names. What was set on the trace before stays."""
        if call.artifacts:
            location = f"{call.artifacts.rstrip('/')}/traces/{trace_info.text_of(given.trace_id)}/artifacts"
            given = replace(given, tags={trace_info.ARTIFACTS: location} | given.tags)

        def announce(before: MlflowTrace | None) -> MlflowTrace:
            if before is None:
                return given
            return replace(given, tags=before.tags | given.tags, runs=before.runs, prompts=before.prompts)

        kept = self._rows.change(call.tenant, given.trace_id, announce)
        assert kept is not None
        self._linking.of_one(call.tenant, kept.trace_id, trace_info.links(kept))
        return kept

    def set_tag(self, call: Call) -> Answer:
        """SetTraceTag."""
        key, value = str(member(call.json, "key") or ""), str(member(call.json, "value") or "")
        _check_tag(key)
        if len(key) > TAG_KEY_CHARS_MAX or len(value) > TAG_VALUE_CHARS_MAX:
            raise invalid(
                f"cannot set tag {key[:80]!r}: a key has {TAG_KEY_CHARS_MAX} characters at most, a value "
                f"{TAG_VALUE_CHARS_MAX}"
            )
        kept = self._change(call.tenant, call.id, lambda trace: replace(trace, tags=trace.tags | {key: value}))
        if key == trace_info.PROMPTS:
            prompts = [("prompt", *prompt) for prompt in trace_info.prompts(kept)]
            self._linking.of_one(call.tenant, kept.trace_id, prompts)
        return {}

    def delete_tag(self, call: Call) -> Answer:
        """DeleteTraceTag."""
        key = str(member(call.json, "key") or call.parameter("key"))
        _check_tag(key)

        def remove(trace: MlflowTrace) -> MlflowTrace:
            if key not in trace.tags:
                raise not_found(f"cannot delete tag {key[:200]!r} of trace {call.trace_id}: it has no such tag")
            return replace(trace, tags={name: value for name, value in trace.tags.items() if name != key})

        self._change(call.tenant, call.id, remove)
        return {}

    def link_to_run(self, call: Call) -> Answer:
        """LinkTracesToRun."""
        ids, run = ids_of(member(call.json, "trace_ids") or []), str(member(call.json, "run_id") or "")
        if not run or not ids:
            raise invalid("cannot link traces to a run: the body needs trace_ids and run_id")
        if len(ids) > LINKED_TRACES_MAX:
            raise invalid(f"cannot link {len(ids)} traces at once: {LINKED_TRACES_MAX} are the most")
        self._linking.to_one(call.tenant, ids, ("run", run, ""))

        def link(trace: MlflowTrace | None) -> MlflowTrace | None:
            return None if trace is None else replace(trace, runs=tuple(dict.fromkeys((*trace.runs, run))))

        # A trace without a row is found by the link alone.
        for trace_id in self._rows.of(call.tenant, ids):
            self._rows.change(call.tenant, trace_id, link)
        return {}

    def link_prompts(self, call: Call) -> Answer:
        """LinkPromptsToTrace."""
        trace_id = trace_info.trace_id_of(member(call.json, "trace_id"))
        listed = member(call.json, "prompt_versions")
        try:
            prompts = [(str(one["name"]), str(one["version"])) for one in as_list(listed)]
        except (TypeError, KeyError):
            raise invalid("cannot link prompts: each of prompt_versions has a name and a version") from None
        later = tuple(f"{name}/{version}" for name, version in prompts)
        self._change(
            call.tenant, trace_id, lambda trace: replace(trace, prompts=tuple(dict.fromkeys((*trace.prompts, *later))))
        )
        self._linking.of_one(call.tenant, trace_id, [("prompt", name, version) for name, version in prompts])
        return {}

    def delete(self, call: Call) -> Answer:
        """DeleteTraces: this API does not show them any more. Their spans stay in the store."""
        experiment = str(member(call.json, "experiment_id") or "")
        until, most = member(call.json, "max_timestamp_millis"), member(call.json, "max_traces")
        if ids := member(call.json, "request_ids"):
            infos = self._reading.infos(call.tenant, ids_of(ids))
            doomed = [info for info in infos.values() if info.experiment_id == experiment]
        elif until is None:
            raise invalid("cannot delete traces: say which by request_ids or max_timestamp_millis")
        else:
            least = min(DELETED_MAX, DELETED_MAX if most is None else trace_info.whole(most, "max_traces"))
            doomed = self._oldest(call.tenant, experiment, trace_info.whole(until, "max_timestamp_millis"), least)
        self._rows.hide(call.tenant, doomed)
        return {"traces_deleted": len(doomed)}

    def _oldest(self, tenant: str, experiment: str, until_ms: int, most: int) -> list[MlflowTrace]:
        found: dict[bytes, MlflowTrace] = {}
        token: str | None = ""
        while token is not None and len(found) < most:
            page = self._search.page(
                tenant,
                [experiment],
                filter_=f"timestamp_ms <= {until_ms}",
                order_by=["timestamp_ms ASC"],
                results_max=min(RESULTS_MAX, most - len(found)),
                token=token,
            )
            found |= self._reading.infos(tenant, page.trace_ids)
            token = page.next_token
        return list(found.values())

    def _change(self, tenant: str, trace_id: bytes, change: Callable[[MlflowTrace], MlflowTrace]) -> MlflowTrace:
        """Change what is kept of a trace, of which MLflow's client may never have spoken. Raises MlflowRefused."""

        def changed(before: MlflowTrace | None) -> MlflowTrace:
            if before is None:
                before = self._reading.infos(tenant, [trace_id]).get(trace_id)
            if before is None or before.deleted:
                raise missing(trace_id)
            return change(before)

        kept = self._rows.change(tenant, trace_id, changed)
        assert kept is not None
        return kept


def _derived_id(one: Assessment) -> str:
    """The same for the same assessment of the same trace."""
    said = orjson.dumps(
        (
            *(one.trace_id.hex(), one.span_id.hex(), one.name, one.kind, one.value, one.source_type, one.source_id),
            *(one.rationale, one.created_unix_nano),
        )
    )
    return f"a-{hashlib.blake2b(said, digest_size=16).hexdigest()}"


def _check_tag(key: str) -> None:
    if not key:
        raise invalid("cannot take a tag without a key")
    if key in trace_info.STORAGE_TAGS:
        raise invalid(f"cannot change tag {key!r}: it says where the spans are kept")
