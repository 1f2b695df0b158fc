"""What a copy takes of a store, cut into units of a bounded size, and the SQL that reads, sums up and compares them.

Pure text, no engine here. A unit is a range of a table's sorting key within a day, so that both sides read only what is
theirs. Rows are told apart by a hash of their columns, which ClickHouse computes alike inside and elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from storage.literals import literal

UNIT_ROWS_MAX = 200_000
UNIT_BYTES = 48 << 20
"""What a unit is aimed at; one of more than twice that is read in shares."""
LOADED = "Loaded"
"""The column by which the settling finds what is new: the time of the load."""
_SETTINGS = "SETTINGS max_threads = 2, max_block_size = 1024, log_queries = 0"

Kind = Literal["text", "time", "trace", "number"]


class Cut(NamedTuple):
    """An expression of a sorting key between whose values a table may be cut."""

    column: str
    kind: Kind = "text"

    @property
    def step(self) -> str:
        """The value that rows are counted by, as a text for `value`. Traces go by their first two bytes."""
        return {
            "text": f"hex({self.column})",
            "time": f"toString(toUnixTimestamp({self.column}))",
            "trace": f"hex(substring({self.column}, 1, 2))",
            "number": f"toString({self.column})",
        }[self.kind]

    @property
    def order(self) -> str:
        """What the steps are ordered by."""
        return f"substring({self.column}, 1, 2)" if self.kind == "trace" else self.column

    def value(self, step: str) -> str:
        """The value as SQL."""
        return {
            "text": f"unhex({literal(step)})",
            "time": f"toDateTime({literal(step)}, 'UTC')",
            "trace": f"toFixedString(unhex({literal(step.ljust(32, '0'))}), 16)",
            "number": literal(step),
        }[self.kind]


class Replaces(NamedTuple):
    """Of rows with the same key the one of the greatest version counts."""

    key: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Table:
    """A table that is copied.

    `day`: whether it is partitioned by Day. `alters`: columns that depend on where and when a row was loaded or worked
    on, and so do not tell rows apart. `tombstones`: only its rows with Deleted = 1 are copied. `everywhere`: every
    shard of a cluster needs its rows, since statements join them where the spans are.
    """

    name: str
    cuts: tuple[Cut, ...]
    day: bool = False
    replaces: Replaces | None = None
    alters: tuple[str, ...] = ()
    tombstones: bool = False
    everywhere: bool = False

    @property
    def source(self) -> str:
        """Its rows that count, for FROM."""
        if self.tombstones:
            assert self.replaces is not None
            key, version = ", ".join(self.replaces.key), self.replaces.version
            return (
                f"(SELECT * FROM spanhouse.{self.name} WHERE Deleted = 1 ORDER BY {version} DESC LIMIT 1 BY {key})"
                f" AS {self.name}"
            )
        return f"spanhouse.{self.name}{' FINAL' if self.replaces else ''}"


TENANT, TRACE = Cut("Tenant"), Cut("TraceId", "trace")


def _replacing(
    name: str, cuts: tuple[Cut, ...], key: str, version: str = "Updated", *, tombstones: bool = False
) -> Table:
    return Table(name, cuts, replaces=Replaces(tuple(key.split()), version), tombstones=tombstones)


TABLES = (
    # Before what they keep: the target would let go of it by its own policies.
    _replacing("retention", (Cut("Version", "number"),), "Version"),
    _replacing("sampling", (Cut("Version", "number"),), "Version"),
    _replacing("pins", (TENANT, Cut("Entity"), Cut("Id")), "Tenant Entity Id Version"),
    Table(
        "spans",
        (TENANT, Cut("toStartOfMinute(Timestamp)", "time"), TRACE),
        day=True,
        alters=("Canonical", "Class", "Weight"),
    ),
    Table(
        "content",
        (TENANT, Cut("toStartOfInterval(Hour, INTERVAL 6 HOUR)", "time"), Cut("SessionKey", "number"), TRACE),
        day=True,
        alters=("Class",),
    ),
    Table("records", (TENANT, TRACE), day=True, alters=(LOADED,)),
    replace(_replacing("origins", (TENANT, Cut("OriginId", "number")), "Tenant OriginId", "Received"), everywhere=True),
    _replacing("explicit_links", (TENANT, TRACE), "Tenant TraceId Entity Slot"),
    _replacing("deployments", (TENANT, Cut("DeploymentId")), "Tenant DeploymentId"),
    _replacing("entities", (TENANT, Cut("Entity"), Cut("Id")), "Tenant Entity Id Version"),
    _replacing("assessments", (TENANT, TRACE), "Tenant TraceId AssessmentId"),
    _replacing("mlflow_traces", (TENANT, TRACE), "Tenant TraceId"),
    _replacing("implied", (Cut("Entity"), Cut("Id")), "Entity Id"),
    _replacing("facts", (TENANT, TRACE), "Tenant TraceId", "Settled"),
    # Links that a trace has no more. Those it has, and `seen`, come of facts, by the views of the target.
    _replacing(
        "links",
        (TENANT, Cut("Entity"), Cut("Id"), TRACE),
        "Tenant Entity Id Version TraceId",
        "Settled",
        tombstones=True,
    ),
)
"""In the order in which they are copied: facts after the spans they are of. `traces` goes with `spans`."""


@dataclass(frozen=True)
class Unit:
    """Rows of a table between two steps of its cuts, the second excluded; None is no bound. `rows`: how many there are.

    `share`: of rows too many or too large to be read at once, those whose hash leaves this remainder by that number.
    """

    table: Table
    day: str
    low: tuple[str, ...] | None
    high: tuple[str, ...] | None
    rows: int
    share: tuple[int, int] = (0, 1)

    def shares(self, count: int) -> list["Unit"]:
        """The same rows in so many units."""
        part, of = self.share
        rows = -(-self.rows // count)
        return [replace(self, rows=rows, share=(part + of * i, of * count)) for i in range(count)]

    def where(self, shared_by: str) -> str:
        """The condition of its rows; `shared_by` is the hash by which shares are made."""
        conditions = [f"{self.table.name}.Day = {literal(self.day)}"] if self.table.day else []
        if self.low is not None:
            conditions.append(_beyond(self.table.cuts, self.low, ">"))
        if self.high is not None:
            conditions.append(_beyond(self.table.cuts, self.high, "<"))
        part, of = self.share
        if of > 1:
            conditions.append(f"{shared_by} % {of} = {part}")
        return " AND ".join(conditions) or "1"


def _beyond(cuts: Sequence[Cut], steps: Sequence[str], side: str) -> str:
    """Whether a row's key is beyond these steps, or above them and equal."""
    cut, value = cuts[0], cuts[0].value(steps[0])
    if len(cuts) == 1:
        return f"{cut.column} >= {value}" if side == ">" else f"{cut.column} < {value}"
    return f"({cut.column} {side} {value} OR ({cut.column} = {value} AND {_beyond(cuts[1:], steps[1:], side)}))"


def days(table: Table) -> str:
    """The days of a table."""
    return f"SELECT DISTINCT toString(Day) FROM spanhouse.{table.name} ORDER BY 1 {_SETTINGS}"


def plan(table: Table, day: str, rows: int) -> str:
    """Of each unit of at least `rows` rows, the last aside, in order: how many it has, and its first step."""
    steps = [f"{cut.order} AS o{i}" for i, cut in enumerate(table.cuts)]
    texts = [f"any({cut.step}) AS s{i}" for i, cut in enumerate(table.cuts)]
    order = ", ".join(f"o{i}" for i in range(len(steps)))
    first = ", ".join(f"argMin(s{i}, before)" for i in range(len(steps)))
    names = ", ".join(f"s{i}" for i in range(len(steps)))
    where = f"Day = {literal(day)}" if table.day else "Deleted = 1" if table.tombstones else "1"
    return (
        f"SELECT sum(n), {first} FROM (SELECT n, {names}, sum(n) OVER (ORDER BY {order}"
        " ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) - n AS before"
        f" FROM (SELECT count() AS n, {', '.join(steps + texts)}"
        f" FROM spanhouse.{table.name} WHERE {where} GROUP BY {order}))"
        f" GROUP BY intDiv(before, {rows}) AS place ORDER BY place {_SETTINGS}"
    )


def units(table: Table, day: str, planned: Iterable[Sequence[object]]) -> list[Unit]:
    """The units of a day from what `plan` found. The first and the last have no bound: the other side may have more."""
    found = [(int(str(rows)), tuple(map(str, steps))) for rows, *steps in planned]
    bounds = [None, *(steps for _, steps in found[1:]), None]
    return [Unit(table, day, bounds[i], bounds[i + 1], rows) for i, (rows, _) in enumerate(found)]


class Columns(NamedTuple):
    """Columns of a table that both sides have, in their order.

    `settled_unix_s`: rows that were loaded since then are worth a look of the settling there. `shards` of the target,
    each of which is to have every row; 1 where one of them is.
    """

    table: Table
    names: tuple[str, ...]
    sorting: str
    settled_unix_s: int = 0
    shards: int = 1

    @property
    def told_by(self) -> str:
        """The hash that tells rows apart."""
        return _hash(name for name in self.names if name not in self.table.alters)

    @property
    def shared_by(self) -> str:
        """The hash by which shares are made: rows that replace each other are in one."""
        return _hash(self.table.replaces.key) if self.table.replaces else self.told_by

    def sums(self, unit: Unit) -> str:
        """Rows, sum and xor of their hashes, sum of the hashes of all columns, and bytes, of a unit."""
        return (
            f"SELECT count(), sum({self.told_by}), groupBitXor({self.told_by}), sum({_hash(self.names)}),"
            f" sum(byteSize({', '.join(self.names)})) FROM {self.table.source}"
            f" WHERE {unit.where(self.shared_by)} {_SETTINGS}"
        )

    def number(self, unit: Unit) -> str:
        """How many rows a unit has."""
        return f"SELECT count() FROM {self.table.source} WHERE {unit.where(self.shared_by)} {_SETTINGS}"

    def keys(self, unit: Unit) -> str:
        """What tells the rows of a unit apart, for `missing`: a key, then how many rows it has, or version and hash."""
        where = unit.where(self.shared_by)
        if self.table.replaces is None:
            return f"SELECT {self.told_by} AS k, count() FROM {self.table.source} WHERE {where} GROUP BY k {_SETTINGS}"
        key, version, told_by = _hash(self.table.replaces.key), self._version, self.told_by
        source = f"spanhouse.{self.table.name}" if self.table.tombstones else self.table.source
        found = f"{key} AS k, max({version}), argMax({told_by}, {version})"
        if self.shards > 1:
            by_shard = f"SELECT {key} AS k, max({version}) AS v, argMax({told_by}, {version}) AS h FROM {source}"
            return (
                f"SELECT k, if(count() = {self.shards}, min(v), 0), argMin(h, v)"
                f" FROM ({by_shard} WHERE {where} GROUP BY k, _shard_num) GROUP BY k {_SETTINGS}"
            )
        return f"SELECT {found} FROM {source} WHERE {where} GROUP BY k {_SETTINGS}"

    @property
    def _version(self) -> str:
        assert self.table.replaces is not None
        return f"toUInt64(toUnixTimestamp64Micro(toDateTime64({self.table.replaces.version}, 6, 'UTC')))"

    def missing(self, unit: Unit, there: str | None) -> str:
        """Rows of a unit that are not `there`, a file of what `keys` found; all of them without one. For FROM."""
        names = ", ".join(self.names)
        here = f"SELECT {names}, {self.told_by} AS told"
        of = f"FROM {self.table.source} WHERE {unit.where(self.shared_by)}"
        if there is None:
            return f"({here} {of})"
        if self.table.replaces is None:
            file = f"file({literal(there)}, 'RowBinary', 'k UInt64, copies UInt64')"
            return (
                f"(SELECT {names}, told FROM ({here}, row_number() OVER (PARTITION BY told) AS nth {of}) AS here"
                f" LEFT ANY JOIN {file} AS there ON told = k WHERE nth > copies)"
            )
        file = f"file({literal(there)}, 'RowBinary', 'k UInt64, version UInt64, hash UInt64')"
        here += f", {_hash(self.table.replaces.key)} AS key, {self._version} AS newest"
        return (
            f"(SELECT {names}, told FROM ({here} {of}) AS here LEFT ANY JOIN {file} AS there ON key = k"
            " WHERE version < newest OR (version = newest AND hash != told))"
        )

    def rows(self, missing: str) -> str:
        """The rows of `missing`, in the order in which the table keeps them."""
        last = f"{loaded(f'toUnixTimestamp(missing.{LOADED})', self.settled_unix_s)} AS {LOADED}"
        names = [last if name == LOADED else name for name in self.names]
        return f"SELECT {', '.join(names)} FROM {missing} AS missing ORDER BY {self.sorting} {_SETTINGS}"


def loaded(unix_s: str, settled_unix_s: int, more: str = "") -> str:
    """When a row counts as loaded on the target: as on the source, or now if the settling is to look at it."""
    return f"if({unix_s} >= {settled_unix_s}{more}, now('UTC'), toDateTime({unix_s}, 'UTC'))"


def sums_of(missing: str) -> str:
    """Rows, and sum and xor of the hashes, of what `Columns.missing` says."""
    return f"SELECT count(), sum(told), groupBitXor(told) FROM {missing} {_SETTINGS}"


def _hash(names: Iterable[str]) -> str:
    return f"cityHash64({', '.join(names)})"


_MAPS = "map('k', 'v', 'l', '')"
PROBE = f"""SELECT
    cityHash64('a', toLowCardinality('b'), toFixedString('c', 4), toInt64(-1), toFloat64(0.5), toUInt8(1), 'ä'),
    cityHash64(CAST({_MAPS}, 'Map(LowCardinality(String), String)'), CAST(map('b', true), 'Map(String, Bool)')),
    cityHash64(CAST([{_MAPS}], 'Array(Map(LowCardinality(String), String))'), [toUInt64(1)], CAST([], 'Array(String)')),
    cityHash64(CAST(map('k', ['v', 'w']), 'Map(LowCardinality(String), Array(LowCardinality(String)))')),
    cityHash64(CAST([('a', 'b', [1])], 'Array(Tuple(x LowCardinality(String), y String, z Array(UInt32)))')),
    cityHash64(toDate('2026-01-02'), toDateTime(1, 'UTC'), toDateTime64(1.5, 9, 'UTC'))"""
"""Hashes of every kind of column: the two sides have to agree on them."""
