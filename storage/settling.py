"""Settles traces: works out what each comes to and belongs to, after its spans are stored and whenever that changes.

Runs a thread of its own, nicer than the receivers', which sleeps until something was loaded or somebody touched a
trace. A trace is settled as a whole, from its spans: docs/decisions/0005-settled-facts.md says why. While a trace still
grows it waits, the longer the larger it is, so that what it costs does not grow with the square of its size.

What is settled is written down now and then (settling_note.py), and what is after that is settled again at the next
start.

Where several processes share a store, each settles what somebody touched through it, and one of them, by a lease, looks
for what was loaded.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from storage.annotations import TRACES, traces_hex
from storage.arrivals import OVERLAP_S, Arrival, Arrivals, Kept, Key, Memory
from storage.deployments import Deployments
from storage.engine import Engine, yield_to_others
from storage.errors import DataError, QueryTimeout, QueryTooLarge, StoreError
from storage.facts import Price
from storage.late_scores import LateScores
from storage.lease import Lease
from storage.loads import Loads
from storage.settlement import SKEW_NANO, Extent, Imply, Outcome, Settlement
from storage.settling_note import Position, SettlingNote
from storage.vocabulary import Vocabulary

BATCH_TRACES_MAX = 5_000
BATCH_SPANS_MAX = 60_000
BATCH_NANO_MAX = 3600 * 1_000_000_000
"""Traces of a batch begin and end within so long, a single trace aside: its spans are looked for in that time."""
WAITING_TRACES_MAX = 200_000
"""When so many wait to be settled, nobody looks for more."""
WAIT_S_MAX = 60.0
ROOTLESS_WAIT_S = 6.0
"""The root is sent last, mostly, and its SDK sends every five seconds."""
SPANS_PER_WAIT_S = 3_000
"""A trace of so many spans waits a second; so does one that lasts LENGTH_PER_WAIT_S."""
LENGTH_PER_WAIT_S = 100
ROOTLESS_NANO = 900 * 1_000_000_000
"""Of a trace whose root has not come, spans that began so much earlier than those that just came are still found."""
RETRIES_S = (5.0, 60.0, 600.0, 3600.0)
"""A touched trace without spans is looked at again after so long: it may have been linked before it was sent."""
FAILURES_MAX = 3
NOTE_S = 10.0
SWEEP_S = 60.0
SHARED_S = 2.0
"""How often the store is asked what others did to it."""
RELOAD_S = 10.0

_EXTENTS = f"""SELECT TraceId, toUnixTimestamp64Nano(min(Start)), toUnixTimestamp64Nano(max(End)), sum(Spans)
FROM spanhouse.traces
WHERE TraceId IN {TRACES}
    AND (Day >= toDate({{first_day:UInt16}}) AND Day <= toDate({{last_day:UInt16}}) OR Day = toDate(0))
GROUP BY TraceId"""
_DAY_NANO = 86_400 * 1_000_000_000
_DAYS_MAX = 65_535  # of a Date

Harvest = Callable[[str, Sequence[bytes], int, int], None]
"""Called for each batch before it is settled: tenant, trace ids, and the time in which their spans lie."""
_Load = TypeVar("_Load", bound=Callable[..., Any])

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """A trace that is to be settled at `due_s`. Times are monotonic, but for those that say which clock."""

    first_s: float
    due_s: float
    sign: int = 0
    loaded_unix_s: int | None = None
    start_unix_nano: int | None = None
    end_unix_nano: int | None = None
    spans: int = 0
    rooted: bool = False
    touched_unix_us: int | None = None
    """When somebody touched it: it is settled whether or not it has more spans than before."""
    scored_unix_s: int | None = None
    """When a score arrived as a log record."""
    tries: int = 0


@dataclass(slots=True)
class _Order:
    """Traces that somebody waits for to be settled again. They begin between `since` and `until`."""

    tenant: str
    trace_ids: Sequence[bytes]
    since_unix_nano: int
    until_unix_nano: int
    done: threading.Event = field(default_factory=threading.Event)
    error: StoreError | None = None


class Settler:
    """Settles what arrives and what is touched, from `start` to `stop`.

    `price` gives the cost of a model call in USD, or None. `interval_s` is the least time between two rounds.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        deployments: Deployments,
        price: Price,
        *,
        interval_s: float = 2.0,
        trace_spans_max: int = 200_000,
    ) -> None:
        self._engine = engine
        self._deployments = deployments
        self._interval_s = interval_s
        self._batch_spans_max = min(BATCH_SPANS_MAX, trace_spans_max)
        self._harvest: Harvest | None = None
        self.settlement = Settlement(engine, vocabulary, deployments, price, trace_spans_max=trace_spans_max)
        self._note = SettlingNote(engine)
        self._lease = Lease(engine, "settling") if engine.shared else None
        self._looking = self._lease is None
        self._begin_to_look()
        self._waiting: dict[Key, _Waiting] = {}
        self._touched: dict[Key, int] = {}
        self._orders: list[_Order] = []
        self._loads = Loads()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._more = True
        self._record_loads_seen = -1
        self._working = True
        self._noted_s = self._swept_s = self._reloaded_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="settling", daemon=True)
        self.settled_traces = 0
        """Traces settled since the start, each time counted."""
        self.failures = 0
        """Rounds and traces that could not be settled."""

    @property
    def waiting_traces(self) -> int:
        """Traces that are to be settled."""
        return len(self._waiting) + len(self._touched)

    @property
    def idle(self) -> bool:
        """Whether everything that was loaded and touched is settled, what has no spans yet aside."""
        if not self._looking or self._working or self._unseen or self._touched or self._orders:
            return False
        return all(waiting.tries for waiting in list(self._waiting.values()))

    @property
    def _unseen(self) -> bool:
        """Whether something may have been loaded since the last look."""
        return self._looking and (self._more or self._engine.record_loads != self._record_loads_seen)

    def start(self, harvest: Harvest | None = None, imply: Imply | None = None) -> None:
        """Begin to settle. `harvest` is called for each batch before; `imply` adds to a trace's links."""
        self._harvest = harvest
        if imply is not None:
            self.settlement.imply = imply
        self._thread.start()

    def stop(self, timeout_s: float = 30) -> None:
        """End after the batch in hand. What was not settled is settled after the next start."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("cannot stop the settling within %.1f s: a batch is still running", timeout_s)

    def watched(self, load: _Load) -> _Load:
        """The same load, but the settling knows when it runs and when it succeeded. All loads must go through it."""

        def watching(*arguments: Any, **named: Any) -> Any:
            self._loads.begin()
            sound = False
            try:
                result = load(*arguments, **named)
                sound = True
            except DataError:  # of such a load nothing is stored
                sound = True
                raise
            finally:
                self._loads.end(sound=sound)
            self._more = True
            self._wake.set()
            return result

        return watching  # type: ignore[return-value]

    def touch(self, tenant: str, trace_ids: Iterable[bytes]) -> None:
        """Settle these traces soon: what is said about them changed, and that is stored. From any thread."""
        now_us = time.time_ns() // 1000
        with self._lock:
            for trace_id in trace_ids:
                self._touched.setdefault((tenant, trace_id), now_us)
        self._wake.set()

    def settle_again(self, tenant: str, trace_ids: Sequence[bytes], since_unix_nano: int, until_unix_nano: int) -> None:
        """Settle these traces, which begin in that time, whether or not anything changed; come back when it is done.

        For other threads than this one's, with a few thousand traces at a time. Raises StoreError, and Stopped if the
        settling ends before.
        """
        order = _Order(tenant, trace_ids, since_unix_nano, until_unix_nano)
        with self._lock:
            self._orders.append(order)
        self._wake.set()
        while not order.done.wait(0.5):
            if not self._thread.is_alive():
                raise Stopped("cannot settle: the program is stopping")
        if order.error is not None:
            raise order.error

    def catch_up(self) -> None:
        """Come back when the round in hand is over: what it read of the store is written. Raises StoreError."""
        self.settle_again("default", [], 0, 0)

    # The thread

    def _run(self) -> None:
        yield_to_others()
        if self._looking:
            self._touch_since_noted()
        while not self._stop.is_set():
            began_s = time.monotonic()
            self._working = True
            try:
                self._share()
                self._round()
            except StoreError as error:
                self.failures += 1
                logger.warning("cannot settle traces, will try again: %s", error)
            except Exception:
                self.failures += 1
                logger.exception("cannot settle traces, will try again")
            self._working = False
            if time.monotonic() - self._noted_s > NOTE_S:
                self._write_note()
            # However much arrives, most of the time is left to others.
            spent_s = time.monotonic() - began_s
            if not self._stop.wait(max(self._interval_s, spent_s) if not self._orders else 0):
                self._wake.wait(self._sleep_s())
                self._wake.clear()
        self._write_note()
        if self._lease is not None:
            self._lease.release()

    def _share(self) -> None:
        """Take part in a store that others use, too: take or lose the lease, learn what they changed."""
        if self._lease is None:
            return
        held = self._lease.held()
        if held and not self._looking:
            logger.info("settles what is loaded from now on")
            self._begin_to_look()
            self._looking = True
            self._touch_since_noted()
        elif self._looking and not held:
            logger.info("another process settles what is loaded from now on")
            self._looking = False
            self._waiting = {key: one for key, one in self._waiting.items() if one.touched_unix_us is not None}
        now_s = time.monotonic()
        if now_s - self._reloaded_s > RELOAD_S:
            self._deployments.reload()
            self._reloaded_s = now_s
        if self._looking and now_s - self._swept_s > SWEEP_S and len(self._waiting) < BATCH_TRACES_MAX:
            for tenant, trace_id in self._note.missed():
                self.touch(tenant, [trace_id])
            self._swept_s = now_s

    def _begin_to_look(self) -> None:
        """Go on where the last one that looked ended."""
        self._memory = Memory()
        self._position = self._note.read()
        self._arrivals = Arrivals(
            self._engine,
            max(self._position.loaded_unix_s - OVERLAP_S, 0),
            self._deployments.services,
            self.settlement.links_by_origin,
        )
        self._late_scores = LateScores(self._engine, max(self._position.scored_unix_s - OVERLAP_S, 0))
        self._more, self._record_loads_seen = True, -1

    def _sleep_s(self) -> float | None:
        """Until the next trace is due; None if none waits."""
        if self._unseen or self._touched or self._orders:
            return 0
        due_s = min((waiting.due_s for waiting in self._waiting.values()), default=None)
        sleep_s = None if due_s is None else max(due_s - time.monotonic(), 0)
        return sleep_s if self._lease is None else min(SHARED_S, sleep_s or SHARED_S)

    def _round(self) -> None:
        """Look for what arrived, settle what is due, and what others wait for."""
        self._take_touched()
        if self._unseen and len(self._waiting) < WAITING_TRACES_MAX:
            self._look()
        now_s = time.monotonic()
        due: dict[str, list[bytes]] = {}
        for (tenant, trace_id), waiting in self._waiting.items():
            if waiting.due_s <= now_s:
                due.setdefault(tenant, []).append(trace_id)
        for tenant, trace_ids in due.items():
            for at in range(0, len(trace_ids), BATCH_TRACES_MAX):
                if self._stop.is_set():
                    return
                self._settle_due(tenant, trace_ids[at : at + BATCH_TRACES_MAX])
        self._serve_order()

    def _look(self) -> None:
        """Take what arrived into those that wait."""
        position = self._arrivals.position_unix_s
        self._more, looked = False, False
        try:
            found, more = self._arrivals.look(self._memory)
            # Of a load that is not over, the traces may be readable and their spans not.
            looked = self._loads.wait(self._stop)
        finally:
            if not looked:
                self._arrivals.position_unix_s = position
                self._more = True
        if not looked:
            return
        self._more |= more
        now_s = time.monotonic()
        for arrival in found:
            self._arrived(arrival, now_s)
        self._look_for_scores(now_s)

    def _arrived(self, arrival: Arrival, now_s: float) -> None:
        waiting = self._waiting.get(arrival.key)
        if waiting is None:
            waiting = self._waiting[arrival.key] = _Waiting(now_s, now_s)
        elif waiting.sign == arrival.sign:
            return
        waiting.sign = arrival.sign
        waiting.loaded_unix_s = min(waiting.loaded_unix_s or arrival.loaded_unix_s, arrival.loaded_unix_s)
        waiting.start_unix_nano = min(waiting.start_unix_nano or arrival.start_unix_nano, arrival.start_unix_nano)
        waiting.end_unix_nano = max(waiting.end_unix_nano or 0, arrival.end_unix_nano)
        waiting.spans = max(waiting.spans, arrival.spans)
        waiting.rooted |= arrival.rooted
        if waiting.touched_unix_us is None or waiting.tries:
            waiting.due_s, waiting.tries = min(now_s + self._pause_s(arrival), waiting.first_s + WAIT_S_MAX), 0

    def _look_for_scores(self, now_s: float) -> None:
        """Take traces of which scores arrived as log records into those that wait, if records were loaded at all."""
        loads = self._engine.record_loads
        if loads == self._record_loads_seen:
            return
        found, more = self._late_scores.look()
        if not self._loads.wait(self._stop):
            return
        for key, loaded_unix_s in found.items():
            waiting = self._waiting.get(key)
            if waiting is None:
                kept = self._memory.get(key)
                pause_s = min(kept.rows / SPANS_PER_WAIT_S, WAIT_S_MAX) if kept else 0
                waiting = self._waiting[key] = _Waiting(now_s, now_s + pause_s)
            waiting.touched_unix_us = waiting.touched_unix_us or time.time_ns() // 1000
            waiting.scored_unix_s = min(waiting.scored_unix_s or loaded_unix_s, loaded_unix_s)
        self._late_scores.go_on()
        if not more:
            self._record_loads_seen = loads

    def _pause_s(self, arrival: Arrival) -> float:
        """How long to wait for more of a trace: the longer, the more it costs to settle it again."""
        kept = self._memory.get(arrival.key)
        spans = arrival.spans + (kept.rows if kept else 0)
        length_s = (arrival.end_unix_nano - arrival.start_unix_nano) / 1e9
        again_s = spans / SPANS_PER_WAIT_S + length_s / LENGTH_PER_WAIT_S
        return min(again_s if arrival.rooted or kept else max(again_s, ROOTLESS_WAIT_S), WAIT_S_MAX)

    def _take_touched(self) -> None:
        with self._lock:
            touched, self._touched = self._touched, {}
        now_s = time.monotonic()
        for key, touched_us in touched.items():
            waiting = self._waiting.setdefault(key, _Waiting(now_s, now_s))
            waiting.touched_unix_us = min(waiting.touched_unix_us or touched_us, touched_us)
            waiting.due_s, waiting.tries = now_s, 0

    # Settling

    def _settle_due(self, tenant: str, trace_ids: Sequence[bytes]) -> None:
        """Settle those of the traces of which there is more than before, and those that were touched."""
        extents = {trace_id: self._known(tenant, trace_id) for trace_id in trace_ids}
        if unknown := [trace_id for trace_id, extent in extents.items() if extent is None]:
            extents |= self._looked_up(tenant, unknown)
        known = [extent for extent in extents.values() if extent is not None]
        for batch in _batches(known, self._batch_spans_max):
            if self._stop.is_set():
                return
            outcomes = self._settle(tenant, batch)
            for extent in batch:
                key, outcome = (tenant, extent.trace_id), outcomes.get(extent.trace_id)
                if outcome is None:
                    self._without_spans(key)
                else:
                    self._keep(key, self._waiting.pop(key).sign, outcome)
        for trace_id in unknown:
            if extents[trace_id] is None:
                self._without_spans((tenant, trace_id))

    def _known(self, tenant: str, trace_id: bytes) -> Extent | None:
        """Where a waiting trace lies, if that can be told without a look into the store, which has many traces.

        Of a trace that was settled lately it is known. One that began after all that was forgotten was settled must be
        new, and its root begins before all else, but for clocks that disagree.
        """
        waiting, kept = self._waiting[tenant, trace_id], self._memory.get((tenant, trace_id))
        start, end = waiting.start_unix_nano, waiting.end_unix_nano
        touched = waiting.touched_unix_us is not None
        if kept is not None:
            return Extent(
                trace_id,
                min(kept.start_unix_nano, start or kept.start_unix_nano),
                max(kept.end_unix_nano, end or kept.end_unix_nano),
                kept.rows + waiting.spans,
                kept.rows,
                kept.written,
                touched,
            )
        if start is None or end is None:
            return None
        before = 0 if waiting.rooted else ROOTLESS_NANO
        earliest = int(self._memory.complete_since_unix_s * 1e9) + before + SKEW_NANO
        if not earliest <= start <= time.time_ns() + SKEW_NANO:  # what begins in the future is dated by a wrong clock
            return None
        return Extent(trace_id, start - before, end, waiting.spans, None, False, touched)

    def _looked_up(
        self, tenant: str, trace_ids: Sequence[bytes], bounds: tuple[int, int] | None = None
    ) -> dict[bytes, Extent]:
        """Where traces lie that are not known. `bounds`: times within which they begin and end, if that is known."""
        waiting = [self._waiting.get((tenant, trace_id)) for trace_id in trace_ids]
        if bounds is None:
            times = [(one.start_unix_nano, one.end_unix_nano) for one in waiting if one and one.start_unix_nano]
            if len(times) == len(waiting):
                bounds = min(start or 0 for start, _ in times), max(end or 0 for _, end in times)
        first, last = (bounds[0] // _DAY_NANO - 2, bounds[1] // _DAY_NANO + 2) if bounds else (0, _DAYS_MAX)
        asked = {
            "traces": traces_hex(trace_ids),
            "first_day": max(first, 0),
            "last_day": min(last, _DAYS_MAX),
        }
        columns = self._engine.read(tenant, _EXTENTS, asked)
        touched = {
            trace_id
            for trace_id, one in zip(trace_ids, waiting, strict=True)
            if one is not None and one.touched_unix_us is not None
        }
        return {
            trace_id: Extent(trace_id, start, end, spans, touched=trace_id in touched)
            for trace_id, start, end, spans in zip(*columns, strict=True)
        }

    def _keep(self, key: Key, sign: int, outcome: Outcome) -> None:
        self._memory.put(key, Kept(sign, outcome.rows, outcome.written, outcome.start_unix_nano, outcome.end_unix_nano))

    def _without_spans(self, key: Key) -> None:
        """Forget a trace that has no spans in the store, or look again later if somebody touched it."""
        waiting = self._waiting[key]
        if (
            waiting.touched_unix_us is None
            or waiting.tries == len(RETRIES_S)
            or len(self._waiting) > WAITING_TRACES_MAX // 2
        ):
            del self._waiting[key]
            return
        waiting.due_s = time.monotonic() + RETRIES_S[waiting.tries]
        waiting.tries += 1
        # What it was touched by need not be noted any more.
        waiting.touched_unix_us, waiting.scored_unix_s = time.time_ns() // 1000, None

    def _settle(self, tenant: str, batch: Sequence[Extent]) -> dict[bytes, Outcome]:
        """Settle a batch, in halves where it is too much for the store. What cannot be settled is left as it is."""
        done: dict[bytes, Outcome] = {}
        parts = [batch]
        while parts:
            part = parts.pop()
            since = min(extent.start_unix_nano for extent in part)
            until = max(extent.end_unix_nano for extent in part)
            try:
                if self._harvest is not None:
                    self._harvest(
                        tenant, [extent.trace_id for extent in part], max(since - SKEW_NANO, 0), until + SKEW_NANO
                    )
                done |= self.settlement.settle(tenant, part)
            except (QueryTooLarge, QueryTimeout) as error:
                if len(part) > 1:
                    parts += [part[: len(part) // 2], part[len(part) // 2 :]]
                    continue
                self.failures += 1
                logger.error("cannot settle trace %s of tenant %s: %s", part[0].trace_id.hex(), tenant, error)
                done[part[0].trace_id] = Outcome(part[0].spans, part[0].written is not False, since, until)
        self.settled_traces += len(done)
        return done

    def _serve_order(self) -> None:
        """Settle what the first of the others waits for."""
        with self._lock:
            if not self._orders:
                return
            order = self._orders.pop(0)
        try:
            bounds = (order.since_unix_nano, order.until_unix_nano)
            extents = self._looked_up(order.tenant, order.trace_ids, bounds)
            for batch in _batches(extents.values(), self._batch_spans_max):
                for trace_id, outcome in self._settle(order.tenant, batch).items():
                    key = (order.tenant, trace_id)
                    kept = self._memory.get(key)
                    # A trace of which memory would tell that it is new, or how it was, is remembered as it is now.
                    if kept or (
                        outcome.written and outcome.first_received_unix_s >= self._memory.complete_since_unix_s
                    ):
                        self._keep(key, kept.sign if kept else 0, outcome)
        except StoreError as error:
            order.error = error
        finally:
            order.done.set()

    # Over restarts

    def _touch_since_noted(self) -> None:
        """Touch the traces that were changed after the last note."""
        try:
            for tenant, trace_id in self._note.touched_since(self._position):
                self.touch(tenant, [trace_id])
        except StoreError as error:
            self.failures += 1
            logger.error("cannot look for links and assessments of before the start: %s", error)

    def _write_note(self) -> None:
        """Write down how far everything is settled."""
        self._noted_s = time.monotonic()
        if not self._looking:
            return
        waiting = list(self._waiting.values())
        loaded = [one.loaded_unix_s for one in waiting if one.loaded_unix_s is not None]
        touched = [one.touched_unix_us for one in waiting if one.touched_unix_us is not None]
        scored = [one.scored_unix_s for one in waiting if one.scored_unix_s is not None]
        with self._lock:
            touched += self._touched.values()
        position = Position(
            min([self._arrivals.position_unix_s, *loaded]),
            min([time.time_ns() // 1000, *touched]),
            min([self._late_scores.position_unix_s, *scored]),
        )
        try:
            self._note.write(position)
        except StoreError as error:
            logger.warning("cannot note how far the settling is: %s", error)


class Stopped(StoreError):
    """The settling ended before it was done."""


def _batches(extents: Iterable[Extent], spans_max: int) -> list[list[Extent]]:
    """Extents in batches of traces that lie near each other in time; one of more spans than that is alone."""
    batches: list[list[Extent]] = []
    spans, end = 0, 0
    for extent in sorted(extents, key=lambda extent: extent.start_unix_nano):
        spans += extent.spans
        end = max(end, extent.end_unix_nano)
        batch = batches[-1] if batches else []
        if (
            not batch
            or len(batch) >= BATCH_TRACES_MAX
            or spans > spans_max
            or end - batch[0].start_unix_nano > BATCH_NANO_MAX
        ):
            batches.append([])
            spans, end = extent.spans, extent.end_unix_nano
        batches[-1].append(extent)
    return batches
