"""Waiting for a trace to arrive: what was acknowledged can be read some two seconds later, and MLflow's programs read
at once what they wrote. Runs on the event loop; the looking is done on threads.
"""

import asyncio
import time
from collections.abc import Iterable

from starlette.concurrency import run_in_threadpool

from query.mlflow.reading import Reading
from query.mlflow.trace_info import announced_spans
from storage.mlflow_traces import MlflowTraces

WAIT_S_MAX = 5.0
UNKNOWN_WAIT_S_MAX = 3.0
"""For a trace of which nothing has come: there may be no such."""
LOOK_AGAIN_S = 0.1
RECENT_S = 60
"""A trace that ended longer ago has all the spans that will come."""
WAITING_MAX = 32


class Arrivals:
    """Who waits for which traces. Beyond WAITING_MAX nobody waits: there is an answer at once, of what is there."""

    def __init__(self, rows: MlflowTraces, reading: Reading) -> None:
        self._rows = rows
        self._reading = reading
        self._waiting = 0

    async def known(self, tenant: str, trace_ids: Iterable[bytes]) -> None:
        """Wait until something is known of each of these traces, UNKNOWN_WAIT_S_MAX at most."""
        await self._wait(tenant, list(trace_ids), False)

    async def complete(self, tenant: str, trace_ids: Iterable[bytes]) -> None:
        """Wait until all spans of these traces can be read, WAIT_S_MAX at most."""
        await self._wait(tenant, list(trace_ids), True)

    async def _wait(self, tenant: str, trace_ids: list[bytes], complete: bool) -> None:
        if self._waiting >= WAITING_MAX:
            return
        self._waiting += 1
        begun = time.monotonic()
        try:
            while True:
                unknown, incomplete = await run_in_threadpool(self._look, tenant, trace_ids, complete)
                waited = time.monotonic() - begun
                if not incomplete or waited > WAIT_S_MAX or (unknown == incomplete and waited > UNKNOWN_WAIT_S_MAX):
                    return
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            self._waiting -= 1

    def _look(self, tenant: str, trace_ids: list[bytes], complete: bool) -> tuple[int, int]:
        """Of how many nothing is known, and how many, those included, are not there yet."""
        rows = self._rows.of(tenant, trace_ids)
        if not complete and len(rows) == len(set(trace_ids)):
            return 0, 0
        stored = self._reading.spans_known(tenant, trace_ids)
        unknown = sum(one not in rows and one not in stored for one in trace_ids)
        if not complete:
            return unknown, unknown
        now = time.time_ns() // 1000
        recent = {id_: row for id_, row in rows.items() if now - row.updated_unix_micro < RECENT_S * 1_000_000}
        missing = sum(stored.get(id_, 0) < announced_spans(row) for id_, row in recent.items())
        return unknown, unknown + missing
