"""What of one day is kept no longer, and its removal: whole partitions where that is possible.

Rows lie in partitions of their day and of the class that their span was loaded by. What counts is the class of their
trace (storage/verdicts.py). So the traces that stay leave a partition that goes, and those that go are removed from one
that stays. Traces that stand for others from now on move to a class of their own, and get their weight;
nothing else moves. Each step can be cut short and done again: rows that were copied are
counted before those they were copied from go.

Where nearly all of a partition goes that stays, its rows are removed all the same: to copy the rest out and drop the
partition reads as much, and took a third more (docs/benchmarks.md).
"""

import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from datetime import date, timedelta

from storage.engine import Engine
from storage.errors import StoreUnavailable
from storage.pins import Pins
from storage.policies import RetentionPolicies
from storage.retention import CLASS_MAX, DEFAULT, DROPPED, PINNED, THINNED, Due
from storage.settlement import FACTS
from storage.verdicts import ASSESSED_TRACES, Verdicts

ROW = {"spans": "(TraceId, SpanId, Timestamp, Duration, SpanName)", "content": "(TraceId, SpanKey)"}
"""What a row of a day is told by."""
COPIED_ROWS_MAX = 5_000_000
"""So many are copied at once: their keys are held against each other."""
_POLL_S = 0.1
_FAILING_S = 60.0
_MOVING = (
    "max_threads = 1, max_insert_threads = 1, max_block_size = 8192, min_insert_block_size_bytes = 67108864, "
    "max_partitions_per_insert_block = 0, insert_deduplicate = 0, async_insert = 0, max_execution_time = 0, "
    "max_local_read_bandwidth = 104857600"
)
_MUTATING = "SETTINGS allow_nondeterministic_mutations = 1, mutations_sync = 0"
_MASKING = f"{_MUTATING}, lightweight_deletes_sync = 0"

_WEIGHTS = (
    "(SELECT Tenant, TraceId, max(Weight) AS NewWeight FROM spanhouse.spans WHERE {day} GROUP BY Tenant, TraceId) AS of"
)
_OF_FACTS = {"Weight": "NewWeight", "Settled": "greatest(now64(3), Settled + INTERVAL 1 MILLISECOND)"}
# `links` follow from `facts` by themselves. A row of `traces` without spans adds nothing but the weight.
_WEIGH = (
    f"""INSERT INTO spanhouse.facts ({", ".join(FACTS)})
SELECT {", ".join(_OF_FACTS.get(name, name) for name in FACTS)}
FROM (SELECT * FROM spanhouse.facts FINAL WHERE {{traces}}) AS known INNER JOIN {_WEIGHTS} USING (Tenant, TraceId)
WHERE Weight != NewWeight
SETTINGS {_MOVING}""",
    f"""INSERT INTO spanhouse.traces (Tenant, Day, TraceId, Start, End, Received, Loaded, Weight)
SELECT Tenant, Day, TraceId, FirstStart, LastEnd, LastReceived, LastLoaded, NewWeight
FROM
(
    SELECT Tenant, Day, TraceId, min(Start) AS FirstStart, max(End) AS LastEnd, max(Received) AS LastReceived,
        max(Loaded) AS LastLoaded, max(Weight) AS OldWeight
    FROM spanhouse.traces WHERE {{day}}
    GROUP BY Tenant, Day, TraceId
) AS known INNER JOIN {_WEIGHTS} USING (Tenant, TraceId)
WHERE OldWeight != NewWeight
SETTINGS {_MOVING}""",
)
Stopped = Callable[[], bool]
Going = list[tuple[str, str]]
"""Ids of partitions, and a condition on the rows that go from each."""


class Interrupted(Exception):
    """It was asked to stop. What was begun is gone on with another time."""


@dataclass(slots=True)
class Removed:
    """What was done. `partitions` are table and id of those dropped."""

    partitions: list[tuple[str, str]] = field(default_factory=list)
    rows: int = 0
    moved: int = 0


class Changes:
    """Changes of stored rows, one after the other, each to its end. Raises StoreUnavailable and Interrupted."""

    def __init__(self, engine: Engine, stopped: Stopped, removed: Removed) -> None:
        self._engine, self._stopped, self.removed = engine, stopped, removed

    def delete(self, table: str, conditions: Going) -> None:
        """Rewrite the parts of some partitions of a table without the rows for which their condition holds.

        In one statement: where tables are not replicated, each touches all their parts on disk, if only by a link.
        """
        self._wait(table)
        commands = ", ".join(f"DELETE IN PARTITION ID '{partition}' WHERE {where}" for partition, where in conditions)
        self._engine.alter(f"ALTER TABLE spanhouse.{table} {commands} {_MUTATING}", {})
        self._wait(table)

    def mask(self, table: str, where: str) -> None:
        """Have no query find the rows any more for which `where` holds; merges remove them."""
        self._wait(table)
        self._engine.alter(f"DELETE FROM spanhouse.{table} WHERE {where} {_MASKING}", {})
        self._wait(table)

    def drop(self, table: str, partition: str) -> None:
        """Remove a partition at once."""
        self._engine.alter(f"ALTER TABLE spanhouse.{table} DROP PARTITION ID '{partition}'", {})
        self.removed.partitions.append((table, partition))

    def _wait(self, table: str) -> None:
        failing_s = time.monotonic() + _FAILING_S
        while waiting := [reason for _, done, reason in self._engine.mutations(table) if not done]:
            if self._stopped():
                raise Interrupted
            reason = next(filter(None, waiting), "")
            if not reason:
                failing_s = time.monotonic() + _FAILING_S
            elif time.monotonic() > failing_s:
                raise StoreUnavailable(f"cannot remove rows of {table}: {reason}")
            time.sleep(_POLL_S)


class Day:
    """One day of `spans` and `content`. `classes` are those that each table has rows of, by day."""

    def __init__(  # noqa: PLR0917 (what it stands between)
        self, engine: Engine, policies: RetentionPolicies, pins: Pins, changes: Changes, day: date,
        classes: dict[str, dict[date, set[int]]],
    ) -> None:  # fmt: skip
        self._engine, self._policies, self._changes, self._day = engine, policies, changes, day
        self._found = {table: of.get(day, set()) for table, of in classes.items()}
        near = (classes["spans"].get(day + timedelta(days=days), set()) for days in (-1, 0, 1))
        self._near = set[int]().union(*near)
        self._verdicts = Verdicts(engine, policies, pins, day, stored=self._near)
        self.pinned = PINNED in self._found["spans"]
        """Whether something is there since it is pinned, or was."""

    def expire(self, due: Due) -> dict[str, Going]:
        """Remove the classes that are due. Gives the rows that have to go from others, by table.

        The verdicts stay until `forget`, since those conditions ask for them.
        """
        going: dict[str, Going] = {}
        before = {table: self._rows(table) for table in ROW}
        thin, alike = due.thin, self._verdicts.are_as_stored()
        if alike and len(self._near) < 2 and not thin & self._near:
            self._forget_records(due.content, self._found["spans"], self._with_spans, going)
        else:
            self._verdicts.write(thin)
            classes = self._verdicts.classes()
            self.pinned |= any(class_ & CLASS_MAX == PINNED for class_ in classes)
            dropped = {class_ | DROPPED for class_ in thin}
            self._verdicts.bequeath(classes & (due.spans | dropped))
            for table, over in (("content", due.content), ("spans", due.spans)):
                self._separate(table, over | thin, classes & (over | dropped), classes - over - dropped, going)
            self._forget_records(due.content | dropped, classes, self._verdicts.of, going)
        for table, over in (("content", due.content), ("spans", due.spans)):
            for class_ in sorted(self._found[table] & (over | thin)):
                if self._rows(table).get(class_) != before[table].get(class_):
                    raise StoreUnavailable(f"cannot drop class {class_} of {self._day} in {table} yet: rows arrived")
                self._changes.drop(table, self._partition(class_))
                self._changes.removed.rows += before[table].get(class_, 0)
        return going

    def forget(self) -> None:
        """Remove what was written for `expire`."""
        self._verdicts.forget()

    def weigh(self) -> None:
        """Write the weight that spans of traces have which stand for others to what is known of these."""
        thinned = {class_ for class_ in self._verdicts.classes() if class_ & THINNED}
        if thinned:
            traces = self._verdicts.of(thinned)
            for statement in _WEIGH:
                self._engine.fill(statement.format(day=f"Day = '{self._day}' AND {traces}", traces=traces), {})

    def _separate(self, table: str, dropped: Set[int], go: Set[int], stay: Set[int], going: dict[str, Going]) -> None:
        """Copy what stays out of the partitions that are dropped, and find what goes from the others.

        `go` and `stay` are verdicts. What stands for others leaves the others too, since its weight is on its rows.
        """
        found, thinned = self._found[table], {class_ for class_ in stay if class_ & THINNED}
        for class_ in sorted(found):
            self._rescue(table, class_, stay if class_ in dropped else () if class_ & THINNED else thinned)
        gone: Going = self._going(table, self._verdicts.of(go), found - dropped) if go else []
        if thinned:
            plain = {class_ for class_ in found - dropped if not class_ & THINNED}
            gone += self._going(table, self._verdicts.of(thinned), plain)
        if gone:
            going[table] = gone

    def _rescue(self, table: str, class_: int, stay: Iterable[int]) -> None:
        """Copy the rows of traces that stay out of a class that goes."""
        for target in sorted(stay):
            rows = f"Day = '{self._day}' AND {self._verdicts.of({target})}"
            count = self._number(f"SELECT count() FROM spanhouse.{table} WHERE {rows} AND Class = {class_}")
            shares = 1 + count // COPIED_ROWS_MAX
            for number in range(shares if count else 0):
                self._copy(table, f"{rows} AND cityHash64(TraceId) % {shares} = {number}", class_, target)
            self._changes.removed.moved += count

    def _copy(self, table: str, rows: str, class_: int, target: int) -> None:
        """Copy rows to another class, and see that they are there before their partition is dropped."""
        key = f"cityHash64{ROW[table]}"
        source = f"SELECT {{}} FROM spanhouse.{table} WHERE {rows} AND Class = {class_}"
        copied = f"{key} IN ({source.format(key)})"
        there = f"SELECT count() FROM spanhouse.{table} WHERE Day = '{self._day}' AND Class = {target} AND {copied}"
        count, arrived = self._number(source.format("count()")), self._number(there)
        if arrived == count:
            return
        if arrived:  # it was cut short
            self._changes.delete(table, [(self._partition(target), copied)])
        new = f"toUInt16({target}) AS Class"
        if table == "spans" and target & THINNED and not class_ & THINNED:
            new += (
                f", if({ASSESSED_TRACES}, Weight, Weight / {self._policies.current.keep(target).thin_keep}) AS Weight"
            )
        # A subquery, since an alias Class would be what WHERE compares.
        self._engine.fill(
            f"INSERT INTO spanhouse.{table} SELECT * REPLACE ({new}) FROM ({source.format('*')}) SETTINGS {_MOVING}",
            {},
        )
        if (arrived := self._number(there)) != count:
            raise StoreUnavailable(
                f"cannot expire class {class_} of {self._day} in {table}: {count} rows were "
                f"copied to class {target}, and {arrived} are there"
            )

    def _going(self, table: str, condition: str, classes: set[int]) -> Going:
        """The rows of these classes for which the condition holds, where there are any."""
        rows = {class_: count for class_, count in self._rows(table, condition).items() if class_ in classes}
        self._changes.removed.rows += sum(rows.values())
        return [(self._partition(class_), condition) for class_ in sorted(rows)]

    def _forget_records(
        self, over: Set[int], classes: set[int], of: Callable[[set[int]], str], going: dict[str, Going]
    ) -> None:
        """Remove the log records of traces whose content goes: they are content. Those of none go as the default."""
        partition = f"{self._day:%Y%m%d}"
        if not over or partition not in partitions(self._engine, "records"):
            return
        if classes | {DEFAULT} <= over:
            self._changes.drop("records", partition)
        elif go := classes & over:
            rows = f"SELECT count() FROM spanhouse.records WHERE Day = '{self._day}' AND {of(go)}"
            if count := self._number(rows):
                self._changes.removed.rows += count
                going["records"] = [(partition, of(go))]

    def _with_spans(self, _: set[int]) -> str:
        return f"(Tenant, TraceId) IN (SELECT Tenant, TraceId FROM spanhouse.spans WHERE Day = '{self._day}')"

    def _partition(self, class_: int) -> str:
        return f"{self._day:%Y%m%d}-{class_}"

    def _rows(self, table: str, condition: str = "1") -> dict[int, int]:
        """Rows of each class for which the condition holds."""
        rows = self._engine.rows(
            f"SELECT Class, count() FROM spanhouse.{table} WHERE Day = '{self._day}' AND {condition} GROUP BY Class"
        )
        return {class_: int(count) for class_, count in rows}

    def _number(self, sql: str) -> int:
        return int(self._engine.rows(sql)[0][0])


def partitions(engine: Engine, table: str) -> list[str]:
    """Ids of the partitions of a table."""
    rows = engine.rows(
        f"SELECT DISTINCT partition_id FROM {engine.system_table('parts')}"
        f" WHERE active AND rows > 0 AND database = '{engine.database}' AND table = '{table}' ORDER BY partition_id"
    )
    return [partition for (partition,) in rows]
