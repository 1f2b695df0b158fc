"""Removes what the retention policies no longer keep: every few minutes, day by day (storage/expiry_day.py).

A day is gone through when a class of it is due, and once more whenever the policies or the pins come to something else
for it: so a changed policy reaches what is stored. It is noted which days were gone through by which rules, so that
this goes on where it was after a stop. Days end at midnight UTC; what began on a day is kept so many whole days after
it.
"""

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

from storage.engine import Engine, yield_to_others
from storage.errors import StoreError
from storage.expiry_day import Changes, Day, Going, Interrupted, Removed, partitions
from storage.lease import Lease
from storage.pins import PINNED_TRACES, Pins
from storage.policies import RetentionPolicies
from storage.retention import CLASS_MAX, PINNED, Due, Policies
from storage.row_clock import RowClock
from storage.verdicts import BOUNDED

EVERY_S = 600
RETRY_S = 30
LOOK_S = 2.0
"""How often it looks whether the policies or the pins were changed."""
STRAY = date(1970, 1, 1)
"""The day of spans whose clock is far from that of their arrival: those expire by arrival."""
DAYS_AT_ONCE = 32
"""One change rewrites parts of so many days: each touches all parts of a table on disk."""
TRACES_MAX = 2_000_000
"""So many, roughly, are told apart at once, of one day or several: some 100 bytes of memory each."""
_OF_TRACE = ("facts", "links", "explicit_links", "assessments", "mlflow_traces")
_DAY_S = 86_400
_SPAN_KEY = "cityHash64(SpanId, Timestamp, Duration, SpanName)"
_WITH_SPANS = "SELECT Tenant, Day, TraceId FROM spanhouse.spans WHERE Day IN ({days}) AND {share}"
_GONE, _THERE = 0, 1
"""Of traces in `verdicts` under the day STRAY, which has no verdicts: they have days without spans left, and with."""
_DEPART = """INSERT INTO spanhouse.verdicts
SELECT DISTINCT Tenant, toDate('{stray}'), TraceId, {what}
FROM spanhouse.traces
WHERE {traces}
SETTINGS {settings}"""
_DEPARTED = f"SELECT Tenant, TraceId FROM spanhouse.verdicts WHERE Day = '{STRAY}' AND Class = {{}}"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExpiryProgress:
    """How far the policies in force have reached what is stored. Sums are since this process started."""

    days: int
    days_done: int
    working_on: date | None
    rows_removed: int
    rows_moved: int
    partitions_dropped: int


class _Noted(NamedTuple):
    """By which rules a day was gone through, and whether pins kept something of it."""

    rules: int
    pinned: bool


class Expiry:
    """Removes what is due. `start` and `stop` it; `run` does it once. `clock` gives seconds since 1970."""

    def __init__(
        self, engine: Engine, policies: RetentionPolicies, pins: Pins, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine, self._policies, self._pins, self._clock = engine, policies, pins, clock
        self._lease = Lease(engine, "expiry") if engine.shared else None
        self._row_clock: RowClock | None = None
        self._sums = Removed()
        self._working_on: date | None = None
        self._stop, self._full = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="expiry", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End after the statement in hand."""
        self._stop.set()
        self._thread.join(60)

    def make_room(self) -> None:
        """Have `run_early` called soon."""
        self._full.set()

    def progress(self) -> ExpiryProgress:
        """How far it is, whoever does it. Raises StoreUnavailable."""
        policies, noted = self._policies.current, self._noted()
        days = [day for day in self._days() if day != STRAY]
        done = sum(
            self._is_done(policies, policies.due(day, self._clock(), policies.order), noted.get(day)) for day in days
        )
        sums = self._sums
        return ExpiryProgress(len(days), done, self._working_on, sums.rows, sums.moved, len(sums.partitions))

    def run(self) -> list[tuple[str, str]]:
        """Remove what is due, and give the partitions that were dropped: table and id. Raises StoreError."""
        policies, noted = self._policies.current, self._noted()
        dropped = len(self._sums.partitions)
        changes = Changes(self._engine, self._stopped, self._sums)
        days = [] if policies.paused else self._days()
        try:
            for some in self._batches(days):
                self._expire(policies, some, noted, changes)
        except Interrupted:
            logger.info("stopped to expire on %s", self._working_on)
        finally:
            self._working_on = None
        return self._sums.partitions[dropped:]

    def run_early(self) -> date | None:
        """Remove the oldest day of what policies let go before its time, content first. Gives it. Raises StoreError.

        Today stays: its traces are not complete.
        """
        policies, today = self._policies.current, datetime.fromtimestamp(self._clock(), UTC).date()
        for table in () if policies.paused else ("content", "spans"):
            for day, classes in sorted(self._classes(table).items()):
                early = frozenset(
                    class_ for class_ in classes if class_ & CLASS_MAX != PINNED and policies.keep(class_).expire_early
                )
                if early and STRAY < day < today:
                    due = Due(early if table == "spans" else frozenset(), early)
                    logger.warning("the disk is full: %s of %s expire early", table, day)
                    self._remove({day: due}, Changes(self._engine, self._stopped, self._sums), {})
                    return day
        return None

    def _loop(self) -> None:
        yield_to_others()
        next_s, seen = 0.0, ""
        while not self._stop.wait(LOOK_S):
            try:
                if self._lease is not None and not self._lease.held():
                    continue
                if self._full.is_set():
                    self._full.clear()
                    self.run_early()
                now = f"{self._policies.current.version} {self._pins.taken_back()}"
                if now == seen and time.monotonic() < next_s:
                    continue
                self.run()
                next_s, seen = time.monotonic() + EVERY_S, now
            except StoreError as error:
                logger.warning("cannot expire what is due, will try again: %s", error)
                self._stop.wait(RETRY_S)
        if self._lease is not None:
            self._lease.release()

    def _stopped(self) -> bool:
        if self._lease is not None and not self._lease.held():
            return True
        return self._stop.is_set() or self._policies.current.paused

    def _days(self) -> list[date]:
        """The newest first."""
        days = self._classes("spans").keys() | self._classes("content").keys()
        days |= {_date(partition) for partition in partitions(self._engine, "records")}
        return sorted(days, reverse=True)

    def _batches(self, days: list[date]) -> Iterator[list[date]]:
        """Days together that have no more than TRACES_MAX traces, or one day."""
        rows = self._engine.rows("SELECT Day, count() FROM spanhouse.traces GROUP BY Day")
        of_day, batch, traces = {day: int(count) for day, count in rows}, list[date](), 0
        for day in days:
            if batch and (len(batch) == DAYS_AT_ONCE or traces + of_day.get(day, 0) > TRACES_MAX):
                yield batch
                batch, traces = [], 0
            batch.append(day)
            traces += of_day.get(day, 0)
        if batch:
            yield batch

    def _classes(self, table: str) -> dict[date, set[int]]:
        found: dict[date, set[int]] = {}
        for partition in partitions(self._engine, table):
            day, _, class_ = partition.partition("-")
            found.setdefault(_date(day), set()).add(int(class_))
        return found

    def _expire(self, policies: Policies, days: list[date], noted: Mapping[date, _Noted], changes: Changes) -> None:
        """Some days together."""
        dues: dict[date, Due] = {}
        anew: dict[date, Due] = {}
        classes = {table: self._classes(table) for table in ("spans", "content")}
        for day in days:
            if self._stopped():
                raise Interrupted
            self._working_on = day
            spans, content = (of.get(day, set[int]()) for of in classes.values())
            due = policies.due(day, self._clock(), {*policies.order, *spans, *content})
            of_order = policies.due(day, self._clock(), policies.order)
            if day == STRAY:
                continue
            done = self._is_done(policies, of_order, noted.get(day))
            if not done:
                anew[day] = of_order
            if any(due) and (spans & (due.spans | due.thin) or content & due.content or not done):
                dues[day] = due
        strays: dict[str, Going] = {}
        if STRAY in days:
            for table, partition, condition in self._strays(policies):
                strays.setdefault(table, []).append((partition, condition))
        pinned = self._remove(dues, changes, strays)
        for day in {*anew, *dues}:
            due = anew.get(day) or policies.due(day, self._clock(), policies.order)
            self._note(day, self._rules(policies, due, day in pinned), day in pinned)

    def _remove(self, dues: Mapping[date, Due], changes: Changes, strays: Mapping[str, Going]) -> set[date]:
        """What is rewritten is, a table at a time, in one go. Gives the days of which pins keep something."""
        going = {table: list(conditions) for table, conditions in strays.items()}
        begun: dict[date, Day] = {}
        classes = {table: self._classes(table) for table in ("spans", "content")}
        for day, due in dues.items():
            if self._stopped():
                raise Interrupted
            self._working_on = day
            begun[day] = Day(self._engine, self._policies, self._pins, changes, day, classes)
            for table, conditions in begun[day].expire(due).items():
                going.setdefault(table, []).extend(conditions)
        for table in ("content", "records", "spans"):
            if going.get(table):
                changes.delete(table, going[table])
        self._forget([*dues, *([STRAY] if strays else [])], changes)
        for one in begun.values():
            one.weigh()
            one.forget()
        return {day for day, one in begun.items() if one.pinned}

    def _is_done(self, policies: Policies, due: Due, noted: _Noted | None) -> bool:
        """Whether a day was gone through by the rules that there are."""
        return noted is not None and noted.rules == self._rules(policies, due, noted.pinned)

    def _rules(self, policies: Policies, due: Due, pinned: bool) -> int:
        """What decides on a day, as a number: which classes are due, what they match, and what is pinned no more."""
        said: list[Any] = [*map(sorted, due)]
        if any(due):
            said += [(class_, astuple(match)) for class_, match in policies.matching]
            said.append(self._pins.taken_back() if pinned else 0)
        return int.from_bytes(hashlib.blake2b(json.dumps(said).encode(), digest_size=8).digest())

    def _noted(self) -> dict[date, _Noted]:
        newest = "argMax(Rules, Noted), argMax(Pinned, Noted)"
        rows = self._engine.rows(f"SELECT Day, {newest} FROM spanhouse.expired_days GROUP BY Day")
        return {day: _Noted(int(rules), bool(pinned)) for day, rules, pinned in rows}

    def _note(self, day: date, rules: int, pinned: bool) -> None:
        self._row_clock = self._row_clock or RowClock.of(self._engine, 1_000_000, "Noted", "expired_days")
        row = (day, rules, pinned, self._row_clock.next())
        self._engine.insert("expired_days", ("Day", "Rules", "Pinned", "Noted"), [row])

    def _strays(self, policies: Policies) -> Iterator[tuple[str, str, str]]:
        """What goes of the spans that expire by when they arrived, each by its own class: table, partition, condition.

        They are few, of wrong clocks and old imports, and lie in one partition a class.
        """
        pinned = f"NOT ({PINNED_TRACES})" if self._pins.any() else "1"
        day_s = int(self._clock()) // _DAY_S * _DAY_S
        for class_ in sorted(self._classes("spans").get(STRAY, set()) - {PINNED}):
            keep = policies.keep(class_)
            of_class = f"Day = '{STRAY}' AND Class = {class_}"
            spans, content = (
                f"{of_class} AND Received < toDateTime({day_s - _DAY_S * days}, 'UTC') AND {pinned}"
                for days in (keep.skeleton_days, keep.content_days)
            )
            of_those = f"SpanKey IN (SELECT {_SPAN_KEY} FROM spanhouse.spans WHERE {content})"
            for table, condition in (("content", f"{of_class} AND {of_those}"), ("spans", spans)):
                if count := self._number(f"SELECT count() FROM spanhouse.{table} WHERE {condition}"):
                    self._sums.rows += count
                    yield table, f"{STRAY:%Y%m%d}-{class_}", condition

    def _forget(self, days: list[date], changes: Changes) -> None:
        """Remove what is known of traces that have no spans left on these days."""
        if not days:
            return
        listed = ", ".join(f"'{day}'" for day in days)
        shares = 1 + self._number(f"SELECT count() FROM spanhouse.traces WHERE Day IN ({listed})") // TRACES_MAX
        left = self._classes("spans").keys()
        for number in range(shares):
            share = f"cityHash64(TraceId) % {shares} = {number}"
            gone = f"Day IN ({listed}) AND {share} AND (Tenant, Day, TraceId) NOT IN ({_WITH_SPANS})"
            gone = gone.format(days=listed, share=share)
            if not (departed := self._departed(gone, share)):
                continue
            for table in _OF_TRACE:
                rows = f"SELECT count() FROM spanhouse.{table}"
                if self._number(rows) and self._number(f"{rows} WHERE {departed}"):
                    changes.mask(table, departed)
            if left & set(days):
                changes.mask("traces", gone)
        for table in ("records", "traces", "inherited"):
            for partition in partitions(self._engine, table):
                if _date(partition) in set(days) - left and self._has_traces(_date(partition)):
                    changes.drop(table, partition)
        self._drop_departed()

    def _departed(self, gone: str, share: str) -> str:
        """A condition on the trace of a row: it is gone from some day, and there is none where it is. '' for no trace.

        Written down, since many statements ask for it.
        """
        self._drop_departed()
        self._engine.fill(_DEPART.format(stray=STRAY, what=_GONE, traces=gone, settings=BOUNDED), {})
        if not self._number(f"SELECT count() FROM ({_DEPARTED.format(_GONE)})"):
            return ""
        there = f"{share} AND (Tenant, TraceId) IN ({_DEPARTED.format(_GONE)}) AND NOT ({gone})"
        self._engine.fill(_DEPART.format(stray=STRAY, what=_THERE, traces=there, settings=BOUNDED), {})
        gone_from, there_on = (f"IN ({_DEPARTED.format(what)})" for what in (_GONE, _THERE))
        return f"(Tenant, TraceId) {gone_from} AND (Tenant, TraceId) NOT {there_on}"

    def _drop_departed(self) -> None:
        self._engine.alter(f"ALTER TABLE spanhouse.verdicts DROP PARTITION ID '{STRAY:%Y%m%d}'", {})

    def _has_traces(self, day: date) -> bool:
        return f"{day:%Y%m%d}" in partitions(self._engine, "traces")

    def _number(self, sql: str) -> int:
        return int(self._engine.rows(sql)[0][0])


def _date(text: str) -> date:
    return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).date()
