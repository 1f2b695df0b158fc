"""What policies would come to: bytes a day, in steady state, and what of what is stored they would let go.

Reads what was stored in the last whole days, gives each trace its class by the policies in force and by those that are
asked about (planned.sql), and spreads what a day takes on disk over that (as storage/volumes.py does). Nothing is
changed. What policies in force have let go of a day already is missing from it: such days do not count for them.

Of a large day a share of the traces is looked at, and payload of some of its hours: what a statement reads is bounded.
Called from any thread, for one plan at a time.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from storage.engine import Engine
from storage.errors import QueryTimeout, QueryTooLarge
from storage.expiry import STRAY
from storage.pins import PINNED_TRACES, Pins
from storage.policies import RetentionPolicies
from storage.retention import PINNED, Keep, Policies
from storage.retention_figures import (
    Amount,
    Look,
    Outcome,
    Piece,
    Plan,
    Weights,
    add_daily,
    add_going,
    age_days,
    as_large,
    nothing,
    on_disk,
    total,
)  # fmt: skip
from storage.retention_sql import ClassSql
from storage.vocabulary import Vocabulary
from storage.volumes import By, Rows, Volumes

DAYS, DAYS_MAX = 7, 31
SPANS_MAX = 1_000_000
"""So many spans of a day are looked at, roughly; of log records, traces with so many rows."""
CONTENT_BYTES_MAX = 4 << 30
"""So much payload of all days, before compression; at least an hour of each."""
OLD_SPANS_MAX, OLD_DAYS_MAX = 100_000, 60
"""The same of days before the last ones, of which is asked only what would go; other days stand for more than these."""
TRIES_MAX = 3
"""A day that is too much for a statement is tried again with a quarter of its traces."""
SECONDS_MAX = 300
"""A plan that takes longer is given up."""
NAMES = 20
_HOURS = (1, 2, 3, 4, 6, 8, 12, 24)
_VERSIONS_MAX = 100
_ONE_DAY = timedelta(days=1)
_SQL = Path(__file__).with_name("planned.sql").read_text()


class Busy(Exception):
    """Somebody else's plan is being worked out. The text says the way out."""


class RetentionPlans:
    """Makes them. `clock` gives seconds since 1970."""

    def __init__(  # noqa: PLR0917 (what it stands on)
        self, engine: Engine, vocabulary: Vocabulary, policies: RetentionPolicies, volumes: Volumes, pins: Pins,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._engine, self._vocabulary, self._policies = engine, vocabulary, policies
        self._volumes, self._pins, self._clock = volumes, pins, clock
        self._one = threading.Lock()

    def plan(self, wanted: Policies | None, days: int = DAYS, names: int = NAMES) -> Plan:
        """What these would come to, or those in force for None, by the last `days` whole days.

        Raises BadRules, Busy, and what Engine.read raises.
        """
        if not self._one.acquire(blocking=False):
            raise Busy("cannot plan while another plan is being worked out: try again when that is done")
        try:
            now = self._policies.current
            then = now if wanted is None else now.succeeded_by(wanted)
            ClassSql(then, self._vocabulary).resource_bits  # noqa: B018 (it raises)
            return self._planned(now, then, days, names)
        finally:
            self._one.release()

    def _planned(self, now: Policies, then: Policies, days: int, names: int) -> Plan:
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        stored = {date.fromisoformat(day): _with_rows(tables) for day, tables in self._volumes.by_day().items()}
        window = _window(today, stored, days)
        until_s = time.monotonic() + SECONDS_MAX
        reading = _Reading(
            self._engine, self._vocabulary, now, then, self._pinned(), self._names(names), stored, until_s
        )
        looks = {day: reading.look(day, SPANS_MAX, CONTENT_BYTES_MAX // len(window)) for day in window if day in stored}
        outcomes = Outcome(nothing(now)), Outcome(nothing(then))
        least = self._least(now, window)
        for day, look in looks.items():
            add_daily(outcomes, (now, then), look, Weights(window, day, today, least))
        old = _old(then, today, set(stored) - looks.keys())
        looked: dict[date, Look] = {}
        for day, instead in old.items():
            if instead not in looked:
                looked[instead] = reading.look(instead, OLD_SPANS_MAX, CONTENT_BYTES_MAX // OLD_DAYS_MAX)
            looks[day] = as_large(looked[instead], stored[instead], stored[day])
        for day, look in looks.items():
            add_going(outcomes, (now, then), look, age_days(day, today))
        return Plan(
            days=window,
            partial=window == [today],
            traces_share=min((look.traces_share for look in looks.values()), default=1.0),
            content_share=min((look.content_share for look in looks.values()), default=1.0),
            stored=total(on_disk(tables) for tables in stored.values()),
            now=outcomes[0],
            then=outcomes[1],
        )

    def _pinned(self) -> str:
        return PINNED_TRACES if self._pins.any() else "0"

    def _names(self, limit: int) -> dict[str, list[str]]:
        """Services and agents that are told apart: those with most bytes."""
        by: tuple[By, By] = ("service", "agent")
        return {f"{one}s": sorted({group.name for group in self._volumes.groups(None, one, limit)}) for one in by}

    def _least(self, now: Policies, window: Sequence[date]) -> Callable[[int], Keep]:
        """The fewest days for which a class was kept by any version that was in force since that began."""
        begun_s = datetime.combine(window[0], datetime.min.time(), UTC).timestamp() if window else 0.0
        versions, until_s = [now], float("inf")
        for version in self._policies.versions(_VERSIONS_MAX):
            if until_s >= begun_s:
                versions.append(version)
            until_s = version.since_unix_nano / 1e9

        def least(class_: int) -> Keep:
            keeps = [version.keep(class_) for version in versions]
            thinned = [keep.thin_after_days for keep in keeps if keep.thin_after_days]
            return Keep(
                min([keep.skeleton_days for keep in keeps] + thinned),
                min([keep.content_days for keep in keeps] + thinned),
            )

        return least


@dataclass(frozen=True, slots=True)
class _Reading:
    """What all statements of a plan have in common. `stored` are rows of the tables by day.

    Nothing more is read after `until_s`, of the monotonic clock.
    """

    engine: Engine
    vocabulary: Vocabulary
    now: Policies
    then: Policies
    pinned: str
    names: Mapping[str, Sequence[str]]
    stored: Mapping[date, tuple[Rows, Rows, Rows]]
    until_s: float

    def look(self, day: date, spans_max: int, content_bytes_max: int) -> Look:
        """At a day; at fewer of its traces where they are too much for a statement."""
        spans, content, records = self.stored[day]
        shares = 1 + max(spans.rows, records.rows) // spans_max
        wanted = -(-content.raw_bytes // content_bytes_max) if content_bytes_max else 24
        every = next((hours for hours in _HOURS if hours >= wanted), 24)
        for tries_left in reversed(range(TRIES_MAX)):
            if time.monotonic() > self.until_s:
                break
            try:
                found = self._read(day, shares, every)
            except (QueryTooLarge, QueryTimeout):
                if not tries_left:
                    raise
                shares, every = shares * 4, 24
            else:
                return Look(list(_pieces(found, shares, self.stored[day])), 1 / shares, 1 / (shares * every))
        raise QueryTimeout(f"cannot plan within {SECONDS_MAX} s; look at fewer days")

    def _read(self, day: date, shares: int, every: int) -> list[tuple[Piece, int, int]]:
        """Pieces with their lengths, and the lengths of payload and of log records."""
        sql = _SQL.replace("PINNED", self.pinned)
        sql = sql.replace("CLASS_WAS", ClassSql(self.now, self.vocabulary).of_spans())
        sql = sql.replace("CLASS_WILL", ClassSql(self.then, self.vocabulary).of_spans())
        parameters = {
            "day": day, "shares": shares, "every": every, "hour": day.toordinal() % every,
            "was": list(self.now.plain), "will": list(self.then.plain), **self.names,
        }  # fmt: skip
        columns = self.engine.read_all(sql, parameters)
        found = []
        for was, will, pinned, service, agent, *numbers in zip(*columns, strict=True):
            traces, spans, skeleton, content, records = map(int, numbers)
            classes = (PINNED, PINNED) if pinned else (self.now.plain[was - 1], self.then.plain[will - 1])
            names = service.decode(errors="replace"), agent.decode(errors="replace")
            piece = Piece(classes[0], classes[1], names[0], names[1], Amount(traces, spans, skeleton))
            found.append((piece, content, records))
        return found


def _pieces(found: Sequence[tuple[Piece, int, int]], shares: int, tables: tuple[Rows, Rows, Rows]) -> Iterator[Piece]:
    """What a day takes on disk, in proportion to lengths. Where none are known of payload, those of skeletons do."""
    lengths = [(piece.amount.skeleton, content, records) for piece, content, records in found]
    whole = [sum(column) for column in zip(*lengths, strict=True)]
    for (piece, *_), of_piece in zip(found, lengths, strict=True):
        parts = [
            one / all_of_them if all_of_them else of_piece[0] / max(whole[0], 1)
            for one, all_of_them in zip(of_piece, whole, strict=True)
        ]
        skeleton, content, records = (table.stored_bytes * part for table, part in zip(tables, parts, strict=True))
        amount = Amount(piece.amount.traces * shares, piece.amount.spans * shares, skeleton, content + records)
        yield piece._replace(amount=amount)


def _with_rows(tables: tuple[Rows, Rows, Rows]) -> tuple[Rows, Rows, Rows]:
    """Parts without rows take a few bytes until they are merged away."""
    spans, content, records = (table if table.rows else Rows() for table in tables)
    return spans, content, records


def _window(today: date, stored: Mapping[date, object], days: int) -> list[date]:
    """The last whole days since there is anything, oldest first; today if there are none."""
    whole = [today - n * _ONE_DAY for n in range(days, 0, -1)]
    begun = min((day for day in whole if day in stored), default=None)
    if begun is None:
        return [today]
    return [day for day in whole if day >= begun]


def _old(then: Policies, today: date, days: set[date]) -> dict[date, date]:
    """Of the other days those of which anything may be due, and which of them is to be looked at for each."""
    least = min(keep.content_days for keep in (then.default, *(policy.keep for policy in then.policies)))
    due = sorted((day for day in days if day != STRAY and age_days(day, today) >= least), reverse=True)
    stride = -(-len(due) // OLD_DAYS_MAX) or 1
    return {day: due[number - number % stride] for number, day in enumerate(due)}
