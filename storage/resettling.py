"""Settles again what is stored: after the vocabulary, the deployments or the prices changed. One job at a time.

A job runs a thread of its own that goes through a tenant's traces by the time they begin, and hands a few thousand at
once to the settling thread, so that new traces are settled in between. A job ends with the program, for good.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from storage.engine import Engine, yield_to_others
from storage.errors import StoreError
from storage.settling import Settler, Stopped

TRACES_AT_ONCE = 4_000
STRETCH_TRACES_MAX = 50_000
"""Traces whose ids are read at once; those of a single minute are, however many they are."""
TRIES_MAX = 5
_HOUR_S, _MINUTE_S = 3600, 60

_WITHIN = """(Day BETWEEN toDate({first_day:UInt16}) AND toDate({last_day:UInt16}) OR Day = toDate(0))
    AND Start >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
    AND Start < fromUnixTimestamp64Nano({until:Int64}, 'UTC')"""
_COUNTED = f"""SELECT toInt64(intDiv(toUnixTimestamp(Start), {{step_s:UInt32}})) * {{step_s:UInt32}} AS Step, count()
FROM spanhouse.traces
WHERE {_WITHIN}
GROUP BY Step
ORDER BY Step DESC"""
_TRACES = f"""SELECT TraceId
FROM spanhouse.traces
WHERE {_WITHIN}
GROUP BY TraceId
ORDER BY min(Start) DESC"""
_NANO = 1_000_000_000
_DAY_NANO = 86_400 * _NANO

Kind = Literal["relink", "reprice"]
Recanonicalize = Callable[[str, tuple[int, int], Callable[[], bool]], None]
"""Applies the vocabulary anew to a tenant's spans that begin within two times (nanoseconds since 1970, the second
exclusive). It comes back early when its last argument says no."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is. Times are nanoseconds since 1970; `ended` is 0 while it runs."""

    kind: Kind
    tenant: str
    state: Literal["running", "done", "failed", "stopped"]
    stage: Literal["spans", "traces"]
    since_unix_nano: int
    until_unix_nano: int
    started_unix_nano: int
    ended_unix_nano: int = 0
    share: float = 0.0
    """Of the traces' stage, from 0 to 1."""
    traces: int = 0
    """Settled so far."""
    error: str = ""


class Busy(Exception):
    """Another job runs. The text says which."""


class Resettling:
    """Runs the jobs. `recanonicalize` comes first in a relink, `reload_prices` in a reprice."""

    def __init__(
        self,
        engine: Engine,
        settler: Settler,
        recanonicalize: Recanonicalize | None = None,
        reload_prices: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._settler = settler
        self._recanonicalize = recanonicalize
        self._reload_prices = reload_prices
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._last: dict[Kind, Progress] = {}
        self._thread: threading.Thread | None = None

    def start(self, kind: Kind, tenant: str, since_unix_nano: int, until_unix_nano: int) -> Progress:
        """Begin a job on a tenant's traces that begin from `since` until `until`, exclusive. Raises Busy."""
        with self._lock:
            for running in self._last.values():
                if running.state == "running":
                    raise Busy(f"cannot {kind}: a {running.kind} is running, {running.traces} traces so far")
            progress = Progress(
                kind,
                tenant,
                "running",
                "spans" if kind == "relink" and self._recanonicalize else "traces",
                since_unix_nano,
                until_unix_nano,
                time.time_ns(),
            )
            self._last[kind] = progress
            self._thread = threading.Thread(target=self._run, args=(progress,), name=kind, daemon=True)
            self._thread.start()
            return progress

    def progress(self, kind: Kind) -> Progress | None:
        """How far the last job of a kind is; None if there was none since the program's start."""
        return self._last.get(kind)

    def stop(self, timeout_s: float = 30) -> None:
        """End the job that runs, if any, after what it has in hand. Call it before the settling stops."""
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _run(self, progress: Progress) -> None:
        yield_to_others()
        kind = progress.kind
        try:
            if kind == "reprice" and self._reload_prices is not None:
                self._reload_prices()
            if kind == "relink" and self._recanonicalize is not None:
                times = progress.since_unix_nano, progress.until_unix_nano
                self._recanonicalize(progress.tenant, times, lambda: not self._stop.is_set())
                self._note(kind, stage="traces")
            finished = self._settle(progress)
            self._note(kind, state="done" if finished else "stopped", share=1.0 if finished else self._last[kind].share)
        except Stopped:
            self._note(kind, state="stopped")
        except Exception as error:  # whoever asks for the progress is told
            logger.exception("cannot %s", kind)
            self._note(kind, state="failed", error=str(error)[:500])
        self._note(kind, ended_unix_nano=time.time_ns())

    def _note(self, kind: Kind, **changes: object) -> None:
        self._last[kind] = replace(self._last[kind], **changes)  # type: ignore[arg-type]

    def _settle(self, progress: Progress) -> bool:
        """Settle all traces of that time. False if the program ends before."""
        kind, tenant = progress.kind, progress.tenant
        stretches = list(self._stretches(progress))
        traces = 0
        for number, (since, until) in enumerate(stretches):
            trace_ids = self._read(tenant, _TRACES, since, until)[0]
            for at in range(0, len(trace_ids), TRACES_AT_ONCE):
                if self._stop.is_set():
                    return False
                some = trace_ids[at : at + TRACES_AT_ONCE]
                self._settle_patiently(tenant, some, since, until)
                traces += len(some)
                self._note(kind, traces=traces)
            self._note(kind, share=(number + 1) / len(stretches))
        return True

    def _settle_patiently(self, tenant: str, trace_ids: Sequence[bytes], since: int, until: int) -> None:
        failures = 0
        while True:
            try:
                return self._settler.settle_again(tenant, trace_ids, since, until)
            except Stopped:
                raise
            except StoreError:
                failures += 1
                if failures == TRIES_MAX or self._stop.wait(2**failures):
                    raise

    def _stretches(self, progress: Progress) -> Iterator[tuple[int, int]]:
        """Stretches of time with so many traces that their ids can be held in memory, newest first."""
        for since, until, traces in self._counted(
            progress.tenant, progress.since_unix_nano, progress.until_unix_nano, _HOUR_S
        ):
            if traces <= STRETCH_TRACES_MAX:
                yield since, until
            else:
                for minute, next_minute, _ in self._counted(progress.tenant, since, until, _MINUTE_S):
                    yield minute, next_minute

    def _counted(self, tenant: str, since: int, until: int, step_s: int) -> list[tuple[int, int, int]]:
        """Steps of time in which traces begin, with how many rows of `traces` those are."""
        steps = zip(*self._read(tenant, _COUNTED, since, until, step_s=step_s), strict=True)
        return [
            (max(start_s * _NANO, since), min((start_s + step_s) * _NANO, until), count) for start_s, count in steps
        ]

    def _read(self, tenant: str, statement: str, since: int, until: int, **more: int) -> list[Sequence[Any]]:
        days = {"first_day": max(since // _DAY_NANO, 0), "last_day": min(until // _DAY_NANO, 65_535)}
        return self._engine.read(tenant, statement, {"since": since, "until": until, **days, **more}) or [(), ()]
