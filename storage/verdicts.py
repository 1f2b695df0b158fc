"""Which class counts for each trace of a day: that of the first policy that matches any of its spans, or pinned.

Loads gave spans the classes of the policies of then. Where these match as the policies of now, the rows say all there
is to know; else, and for what was pinned once, the policies are asked anew. A trace may go on over midnight: what goes
of it on one day leaves its verdict to the rest, on the day before or after.

Where a class is thinned, a hash of the trace's id says whether the trace stays: its verdict is then the class with the
bit THINNED, or with DROPPED. Assessed traces stay.
"""

from collections.abc import Set
from datetime import date, timedelta
from functools import cached_property

from storage.engine import Engine
from storage.pins import PINNED_TRACES, Pins
from storage.policies import RetentionPolicies
from storage.retention import CLASS_MAX, DEFAULT, DROPPED, PINNED, THINNED

SPANS_MAX = 20_000_000
"""So many spans, roughly, are looked at by one statement."""
MEMORY_BYTES_MAX = 512 << 20
_ONE_DAY = timedelta(days=1)
_VERDICTS = """INSERT INTO spanhouse.verdicts
WITH arrayElement({order}, min(Rank)) AS First
SELECT Tenant, toDate('{day}'), TraceId, {class_}
FROM
(
    SELECT Tenant, TraceId, Day, indexOf({order}, {class_of_span}) AS Rank
    FROM spanhouse.spans
    WHERE Day >= '{before}' AND Day <= '{after}' AND {share}
    UNION ALL
    SELECT Tenant, TraceId, Day, indexOf({order}, Class) AS Rank
    FROM spanhouse.inherited
    WHERE Day = '{day}' AND Rank > 0 AND {share}
)
GROUP BY Tenant, TraceId
HAVING max(Day = '{day}')
SETTINGS {settings}"""
_BEQUEST = """INSERT INTO spanhouse.inherited
SELECT DISTINCT Tenant, Day, TraceId, toUInt16({class_})
FROM spanhouse.traces
WHERE Day IN ('{before}', '{after}') AND {traces}
SETTINGS {settings}"""
ASSESSED_TRACES = (
    "(Tenant, TraceId) GLOBAL IN (SELECT Tenant, TraceId FROM spanhouse.assessments FINAL WHERE Deleted = 0)"
)
"""A condition on a row with Tenant and TraceId."""
BOUNDED = (
    f"max_threads = 1, max_insert_threads = 1, max_block_size = 8192, max_memory_usage = {MEMORY_BYTES_MAX}, "
    f"max_bytes_before_external_group_by = {MEMORY_BYTES_MAX // 4}, optimize_aggregation_in_order = 0, "
    "insert_deduplicate = 0, async_insert = 0, max_execution_time = 0"
)


class Verdicts:
    """The verdicts on one day, in a table, from `write` to `forget`. Raises StoreUnavailable.

    `stored` are the classes that the day and its neighbours have rows of.
    """

    def __init__(self, engine: Engine, policies: RetentionPolicies, pins: Pins, day: date, *, stored: Set[int]) -> None:
        self._engine, self._policies, self._pins, self._day, self._stored = engine, policies, pins, day, stored

    def write(self, thin: Set[int] = frozenset()) -> None:
        """Work them out; traces of some classes are thinned."""
        self.forget()
        shares = 1 + self._spans() // SPANS_MAX
        order = f"[{', '.join(f'toUInt16({class_})' for class_ in self._policies.current.order)}]"
        class_of_span = "Class"
        if not self._matched_alike:
            class_of_span = f"bitOr({self._policies.sql.of_spans()}, bitAnd(Class, toUInt16({THINNED})))"
        class_ = self._thinned(thin)
        if self._pins.any():
            class_ = f"if({PINNED_TRACES}, bitOr(toUInt16({PINNED}), bitAnd(First, toUInt16({THINNED}))), {class_})"
        for number in range(shares):
            statement = _VERDICTS.format(
                day=self._day, before=self._day - _ONE_DAY, after=self._day + _ONE_DAY, order=order, class_=class_,
                class_of_span=class_of_span, share=f"cityHash64(TraceId) % {shares} = {number}", settings=BOUNDED,
            )  # fmt: skip
            self._engine.fill(statement, {})

    def classes(self) -> set[int]:
        """Those that count for any trace."""
        rows = self._engine.rows(f"SELECT DISTINCT Class FROM spanhouse.verdicts WHERE {self._is}")
        return {class_ for (class_,) in rows}

    def of(self, classes: Set[int]) -> str:
        """A condition on the trace of a row: its verdict is one of these."""
        listed = ", ".join(map(str, sorted(classes)))
        traces = f"SELECT Tenant, TraceId FROM spanhouse.verdicts WHERE {self._is} AND Class IN ({listed})"
        return f"(Tenant, TraceId) IN ({traces})"

    def bequeath(self, classes: Set[int]) -> None:
        """Leave the verdicts of these classes to what there is of the same traces on the days beside this one."""
        for class_ in sorted(classes - {DEFAULT}):
            statement = _BEQUEST.format(
                class_=class_ & CLASS_MAX, before=self._day - _ONE_DAY, after=self._day + _ONE_DAY,
                traces=self.of({class_}), settings=BOUNDED,
            )  # fmt: skip
            self._engine.fill(statement, {})

    def forget(self) -> None:
        """Remove them."""
        self._engine.alter(f"ALTER TABLE spanhouse.verdicts DROP PARTITION ID '{self._day:%Y%m%d}'", {})

    def _thinned(self, thin: Set[int]) -> str:
        """The verdict, where `First` is the class that wins."""
        cases = []
        for class_ in sorted(thin):
            below = round(self._policies.current.keep(class_).thin_keep * 2**64)
            stays = f"xxHash64(concat('thin', TraceId)) < {below} OR {ASSESSED_TRACES}"
            cases.append(f"First = {class_}, bitOr(First, toUInt16(if({stays}, {THINNED}, {DROPPED})))")
        return f"multiIf({', '.join(cases)}, First)" if cases else "First"

    @property
    def _is(self) -> str:
        return f"Day = '{self._day}'"

    def _spans(self) -> int:
        return int(self._engine.rows(f"SELECT count() FROM spanhouse.spans WHERE {self._is}")[0][0])

    def are_as_stored(self) -> bool:
        """Whether they follow from the classes that rows have."""
        inherited = f"SELECT count() FROM spanhouse.inherited WHERE {self._is}"
        return self._matched_alike and not self._pins.any() and not self._engine.rows(inherited)[0][0]

    @cached_property
    def _matched_alike(self) -> bool:
        if not self._stored <= set(self._policies.current.order):
            return False
        near = f"Day >= '{self._day - _ONE_DAY}' AND Day <= '{self._day + _ONE_DAY}'"
        received = "toUnixTimestamp(min(Received)), toUnixTimestamp(max(Received))"
        ((since_s, until_s),) = self._engine.rows(f"SELECT {received} FROM spanhouse.spans WHERE {near}")
        return self._policies.matched_alike(since_s, until_s)
