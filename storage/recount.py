"""Counts what is stored of a tenant's day, and puts `volumes` right, by rows that add up with those it has.

They are inserted if nothing of that tenant's day changed while it was counted: all at once, with a token of their own.
What is counted at once is bounded: some hours of a day or, of one hour, some of its traces; and so are the names.

For one thread.
"""

import logging
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from storage.decode import START_MAX_UNIX_NANO
from storage.engine import Engine
from storage.errors import QueryTimeout, QueryTooLarge
from storage.volumes import COLUMNS, OTHERS, Counts, Volumes

GROUPS_MAX = 1000
"""Groups of names that a tenant's day keeps; the smallest of more become one."""
SLICE_ROWS, SLICE_ROWS_MIN = 500_000, 1_000
SLICE_BYTES = 1 << 30
"""What is counted by one statement, at most and roughly."""
SHARES_MAX = 4096
_NANO = 1_000_000_000
_ODD_DAY = "1970-01-01"
"""Its partition has spans of all times (schema/0001_skeleton.sql)."""
_KEY = ("Service", "Agent", "Model")

_SPANS, _CONTENT, _RECORDS = (
    Path(__file__).with_name(f"counted_{table}.sql").read_text() for table in ("spans", "content", "records")
)
_SUMS = ", ".join(f"sum({name})" for name in COLUMNS)
_OF_TENANTS = """SELECT toString(Tenant), sum(S), sum(C), sum(R)
FROM
(
    SELECT Tenant, toInt64(count()) AS S, 0 AS C, 0 AS R FROM spanhouse.spans WHERE Day = {day:Date} GROUP BY Tenant
    UNION ALL
    SELECT Tenant, 0, toInt64(count()), 0 FROM spanhouse.content WHERE Day = {day:Date} GROUP BY Tenant
    UNION ALL
    SELECT Tenant, 0, 0, toInt64(count()) FROM spanhouse.records WHERE Day = {day:Date} GROUP BY Tenant
)
GROUP BY Tenant"""
_SUMMED_OF_TENANTS = f"SELECT toString(Tenant), {_SUMS} FROM spanhouse.volumes WHERE Day = {{day:Date}} GROUP BY Tenant"
_SUMMED = (
    f"SELECT {', '.join(_KEY)}, {_SUMS} FROM spanhouse.volumes WHERE Day = {{day:Date}} GROUP BY {', '.join(_KEY)}"
)
_HOURS = """SELECT hour, sum(n)
FROM
(
    SELECT toUnixTimestamp(toStartOfHour(Timestamp)) AS hour, count() AS n
    FROM spanhouse.spans WHERE Day = {day:Date} GROUP BY hour
    UNION ALL
    SELECT toUnixTimestamp(Hour) AS hour, count() FROM spanhouse.content WHERE Day = {day:Date} GROUP BY hour
)
GROUP BY hour ORDER BY hour"""
_CROWDED = f"""SELECT toString(Tenant), toString(Day)
FROM spanhouse.volumes
GROUP BY Tenant, Day
HAVING uniq({", ".join(_KEY)}) > {GROUPS_MAX + 1}"""

Key = tuple[bytes, bytes, bytes]
Sums = dict[Key, list[int]]
"""Service, agent and model → the sums of COLUMNS."""

logger = logging.getLogger(__name__)


class Slice(NamedTuple):
    """Hours of a day, in nanoseconds since 1970, and of their traces those whose hash leaves this remainder."""

    since: int
    last: int
    share: int = 0
    shares: int = 1


class Recount:
    """Of one store. Everything raises what the engine's reads and inserts raise."""

    def __init__(self, engine: Engine, volumes: Volumes) -> None:
        self._engine, self._volumes = engine, volumes

    def differing(self, day: str) -> list[str]:
        """Tenants of which there are other numbers of rows than `volumes` says."""
        there, counted = self._of_tenants(day)
        nothing = (0, 0, 0)
        return sorted(
            tenant
            for tenant in there.keys() | counted.keys()
            if there.get(tenant, nothing) != counted.get(tenant, Counts()).rows
        )

    def of(self, tenant: str, day: str) -> bool:
        """Count a tenant's day and insert what `volumes` lacks of it. False if it changed meanwhile."""
        before, counted_before = self._of_tenants(day)
        rows = before.get(tenant, (0, 0, 0))
        counted = self._count(tenant, day, sum(rows))
        current = self._summed(tenant, day)
        there, counted_after = self._of_tenants(day)
        changed = (
            counted_before.get(tenant) != counted_after.get(tenant)
            or there.get(tenant, (0, 0, 0)) != rows
            or tuple(sum(sums[i] for sums in counted.values()) for i in (0, 2, 4)) != rows
        )
        if changed:
            return False
        self._insert(tenant, day, _changes(current, counted))
        logger.info("counted what tenant %s has of %s: %d spans", tenant, day, rows[0])
        return True

    def fold(self) -> None:
        """Make one of the smallest groups of tenants' days that have more than GROUPS_MAX."""
        for tenant, day in _rows(self._engine.read_all(_CROWDED, {})):
            current = self._summed(tenant.decode(), day.decode())
            folded = {key: list(sums) for key, sums in current.items()}
            _fold_smallest(folded)
            self._insert(tenant.decode(), day.decode(), _changes(current, folded))

    def _of_tenants(self, day: str) -> tuple[dict[str, tuple[int, int, int]], dict[str, Counts]]:
        """Rows that each tenant has of a day, and what `volumes` says."""
        there = {
            tenant.decode(): (int(spans), int(contents), int(records))
            for tenant, spans, contents, records in _rows(self._engine.read_all(_OF_TENANTS, {"day": day}))
        }
        counted = {
            tenant.decode(): Counts(*map(int, sums))
            for tenant, *sums in _rows(self._engine.read_all(_SUMMED_OF_TENANTS, {"day": day}))
        }
        return there, counted

    def _count(self, tenant: str, day: str, rows: int) -> Sums:
        """What is stored of a tenant's day, `rows` rows roughly: GROUPS_MAX groups at most."""
        found: Sums = {}
        rows_max = self._slice_rows(day)
        for part in self._slices(tenant, day, rows, rows_max):
            self._count_slice(tenant, day, part, found)
            if len(found) > 4 * GROUPS_MAX:
                _fold_smallest(found)
        for part in _shares(Slice(0, 0), rows, rows_max):
            for sums in self._shared(tenant, day, _RECORDS, part):
                _add(found, (b"", b"", b""), 4, sums)
        _fold_smallest(found)
        return {key: sums for key, sums in found.items() if any(sums)}

    def _count_slice(self, tenant: str, day: str, part: Slice, found: Sums) -> None:
        for statement, first in ((_SPANS, 0), (_CONTENT, 2)):
            for service, agent, model, *sums in self._shared(tenant, day, statement, part):
                _add(found, (service, agent, model), first, sums)

    def _shared(self, tenant: str, day: str, statement: str, part: Slice) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement, in more and smaller shares where that is too much at once."""
        parameters = {"day": day, "groups": GROUPS_MAX, **part._asdict()}
        try:
            rows = _rows(self._engine.read(tenant, statement, parameters))
        except (QueryTooLarge, QueryTimeout):
            if part.shares >= SHARES_MAX:
                raise
            for i in range(4):
                share = part._replace(share=part.share + part.shares * i, shares=part.shares * 4)
                yield from self._shared(tenant, day, statement, share)
        else:
            yield from rows

    def _slices(self, tenant: str, day: str, rows: int, rows_max: int) -> Iterator[Slice]:
        """A day in pieces of a bounded size: hours together, or one hour in shares."""
        if rows <= rows_max or day == _ODD_DAY:
            yield from _shares(Slice(0, START_MAX_UNIX_NANO), rows, rows_max)
            return
        since_s, rows = 0, 0
        for hour_s, more in _rows(self._engine.read(tenant, _HOURS, {"day": day})):
            if rows and rows + more > rows_max:
                yield from _shares(Slice(since_s * _NANO, hour_s * _NANO - 1), rows, rows_max)
                since_s, rows = hour_s, 0
            rows += int(more)
        yield from _shares(Slice(since_s * _NANO, START_MAX_UNIX_NANO), rows, rows_max)

    def _slice_rows(self, day: str) -> int:
        tables = self._volumes.by_day().get(day, ())
        rows, size = sum(table.rows for table in tables), sum(table.raw_bytes for table in tables)
        return max(min(SLICE_ROWS, SLICE_BYTES * rows // max(size, 1)), SLICE_ROWS_MIN)

    def _summed(self, tenant: str, day: str) -> Sums:
        """What `volumes` says of a tenant's day."""
        return {
            (service, agent, model): list(map(int, sums))
            for service, agent, model, *sums in _rows(self._engine.read(tenant, _SUMMED, {"day": day}))
            if any(sums)
        }

    def _insert(self, tenant: str, day: str, changes: Mapping[Key, list[int]]) -> None:
        date = datetime.fromisoformat(day).date()
        rows = [(tenant, date, *key, *sums) for key, sums in changes.items()]
        if rows:
            self._engine.insert("volumes", ("Tenant", "Day", *_KEY, *COLUMNS), rows, uuid.uuid4().hex)


def _rows(columns: list[Any]) -> Iterator[tuple[Any, ...]]:
    return zip(*columns, strict=True)


def _shares(part: Slice, rows: int, rows_max: int) -> Iterator[Slice]:
    shares = min(-(-rows // rows_max), SHARES_MAX) or 1
    return (part._replace(share=i, shares=shares) for i in range(shares))


def _changes(current: Sums, wanted: Sums) -> Sums:
    """What is to be added to come from one to the other."""
    nothing = [0] * len(COLUMNS)
    changes = {
        key: [a - b for a, b in zip(wanted.get(key, nothing), current.get(key, nothing), strict=True)]
        for key in wanted.keys() | current.keys()
    }
    return {key: sums for key, sums in changes.items() if any(sums)}


def _add(found: Sums, key: Key, first: int, sums: Any) -> None:
    """Add to the columns from number `first` on."""
    total = found.setdefault(key, [0] * len(COLUMNS))
    for i, number in enumerate(sums, first):
        total[i] += int(number)


def _fold_smallest(found: Sums) -> None:
    """Leave GROUPS_MAX groups, those with most spans, and one of all the others."""
    other = OTHERS.encode()
    others: Key = (other, other, other)
    if len(found) <= GROUPS_MAX + (others in found):
        return
    named = sorted((key for key in found if key != others), key=lambda key: (-found[key][0], -sum(found[key]), key))
    for key in named[GROUPS_MAX:]:
        _add(found, others, 0, found.pop(key))
