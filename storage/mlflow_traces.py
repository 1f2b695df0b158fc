"""What MLflow's client said of traces: rows of `mlflow_traces`, a row a trace.

Called from the threads of the API. A change reads a row and writes it anew, one at a time for a trace. Rows that
several threads write at once go to the store together: an insert takes some 10 ms however many rows it has, and an
MLflow program ends its traces on ten threads.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from storage.engine import Engine

WRITE_ROWS_MAX = 1_000
"""Rows of one insert."""

_TIME_MAX_MS = 4_102_444_800_000
"""2100: later than this no trace begins, whatever its sender's clock says."""
_LOCKS = 64
_COLUMNS = (
    "Tenant", "TraceId", "ExperimentId", "Requested", "DurationMs", "State", "ClientRequestId", "RequestPreview",
    "ResponsePreview", "Metadata", "Tags", "Runs", "Prompts", "Announced", "Deleted", "Updated",
)  # fmt: skip

_READ = """SELECT
    TraceId, toString(ExperimentId), toUnixTimestamp64Milli(Requested), DurationMs, toString(State), ClientRequestId,
    RequestPreview, ResponsePreview, mapKeys(Metadata), mapValues(Metadata), mapKeys(Tags), mapValues(Tags), Runs,
    Prompts, Announced, Deleted, toUnixTimestamp64Micro(Updated)
FROM spanhouse.mlflow_traces FINAL
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))"""


@dataclass(frozen=True, slots=True)
class MlflowTrace:
    """MLflow's TraceInfo of a trace, without its assessments. Times are milliseconds since 1970.

    `state` is OK, ERROR, IN_PROGRESS or STATE_UNSPECIFIED. What nobody said is an empty text, or None for the duration.
    """

    trace_id: bytes
    experiment_id: str = ""
    requested_ms: int = 0
    duration_ms: int | None = None
    state: str = "STATE_UNSPECIFIED"
    client_request_id: str = ""
    request_preview: str = ""
    response_preview: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    announced: bool = True
    deleted: bool = False
    updated_unix_micro: int = 0


class MlflowTraces:
    """The rows of a store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._waiting: list[tuple[Sequence[Any], Future[None]]] = []
        self._queue = threading.Lock()
        self._inserting = threading.Lock()

    def of(self, tenant: str, trace_ids: Iterable[bytes]) -> dict[bytes, MlflowTrace]:
        """The rows of these traces, hidden ones among them. Raises what Engine.read raises."""
        wanted = sorted({trace_id.hex() for trace_id in trace_ids})
        if not wanted:
            return {}
        columns = self._engine.read(tenant, _READ, {"traces": wanted})
        return {row[0]: _trace(row) for row in zip(*columns, strict=True)}

    def change(
        self, tenant: str, trace_id: bytes, change: Callable[[MlflowTrace | None], MlflowTrace | None]
    ) -> MlflowTrace | None:
        """Write what `change` makes of the row that is there, and give it; None leaves everything as it is.

        On return it is on disk. Raises what Engine.read raises, StoreUnavailable, and what `change` raises.
        """
        with self._locks[hash((tenant, trace_id)) % _LOCKS]:
            before = self.of(tenant, [trace_id]).get(trace_id)
            after = change(before)
            if after is None:
                return None
            # A clock that was set back must not undo what is there.
            updated = max(time.time_ns() // 1000, before.updated_unix_micro + 1 if before else 0)
            after = replace(after, updated_unix_micro=updated)
            self._write(_row(tenant, after))
            return after

    def hide(self, tenant: str, traces: Iterable[MlflowTrace]) -> None:
        """Mark traces as deleted. On return it is on disk."""
        now = time.time_ns() // 1000
        rows = [
            _row(tenant, replace(trace, deleted=True, updated_unix_micro=max(now, trace.updated_unix_micro + 1)))
            for trace in traces
        ]
        for at in range(0, len(rows), WRITE_ROWS_MAX):
            self._engine.insert("mlflow_traces", _COLUMNS, rows[at : at + WRITE_ROWS_MAX])

    def _write(self, row: Sequence[Any]) -> None:
        """Insert a row together with those that others wait to insert. Whoever comes to it first inserts for all."""
        written: Future[None] = Future()
        with self._queue:
            self._waiting.append((row, written))
        with self._inserting:
            while not written.done():
                self._insert_waiting()
        written.result()

    def _insert_waiting(self) -> None:
        with self._queue:
            batch, self._waiting = self._waiting[:WRITE_ROWS_MAX], self._waiting[WRITE_ROWS_MAX:]
        try:
            self._engine.insert("mlflow_traces", _COLUMNS, [row for row, _ in batch])
        except Exception as error:
            for _, written in batch:
                written.set_exception(error)
        else:
            for _, written in batch:
                written.set_result(None)


def _row(tenant: str, trace: MlflowTrace) -> tuple[Any, ...]:
    requested = min(max(trace.requested_ms, 0), _TIME_MAX_MS)
    duration = -1 if trace.duration_ms is None else trace.duration_ms
    return (
        tenant, trace.trace_id, trace.experiment_id, requested, duration, trace.state, trace.client_request_id,
        trace.request_preview, trace.response_preview, trace.metadata, trace.tags, list(trace.runs),
        list(trace.prompts), int(trace.announced), int(trace.deleted), trace.updated_unix_micro,
    )  # fmt: skip


def _trace(row: tuple[Any, ...]) -> MlflowTrace:
    trace_id, experiment, requested, duration, state, client_request, request, response = row[:8]
    metadata_keys, metadata_values, tag_keys, tag_values, runs, prompts, announced, deleted, updated = row[8:]
    return MlflowTrace(
        trace_id=trace_id,
        experiment_id=experiment.decode(),
        requested_ms=requested,
        duration_ms=None if duration < 0 else duration,
        state=state.decode(),
        client_request_id=client_request.decode(),
        request_preview=request.decode(),
        response_preview=response.decode(),
        metadata=_texts(metadata_keys, metadata_values),
        tags=_texts(tag_keys, tag_values),
        runs=tuple(run.decode() for run in runs),
        prompts=tuple(prompt.decode() for prompt in prompts),
        announced=bool(announced),
        deleted=bool(deleted),
        updated_unix_micro=updated,
    )


def _texts(keys: Sequence[bytes], values: Sequence[bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in zip(keys, values, strict=True)}
