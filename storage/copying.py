"""Copies an embedded store to ClickHouse servers: what is missing there, unit by unit, and nothing twice.

Of each unit (storage/copy_units.py) both sides say how many rows it has and the sum of their hashes. Where they differ,
the rows that the target lacks are inserted; nothing is ever removed there. So a copy that was interrupted goes on, one
that is repeated inserts what came since, and the target may take spans of its own meanwhile.

Rows of `traces` are sums, which cannot be compared. They are worked out from the spans that are inserted, and inserted
before them. Both blocks lie in `pending` until they are stored, under tokens that the target remembers: whatever is cut
short in between is sent again first, and counts once.

On the caller's thread, with one more that sends a unit while the next is read.
"""

import json
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from storage.copy_source import AskForSnapshot, CannotCopy, OpenStore, State, Workplace
from storage.copy_target import Target, code_of
from storage.copy_traces import TraceRows, settled_unix_s
from storage.copy_units import (
    PROBE,
    TABLES,
    UNIT_BYTES,
    UNIT_ROWS_MAX,
    Columns,
    Table,
    Unit,
    days,
    plan,
    sums_of,
    units,
)
from storage.disk import sync_directory, write_file
from storage.embedded import Embedded
from storage.errors import StoreUnavailable
from storage.literals import literal
from storage.migrate import migrated
from storage.server import Server

SHARES_MAX = 4096
MEMORY_CODE = 241


class Show(Protocol):
    """Who shows a person how far a copy is."""

    def begin(self, title: str, rows: int, size_bytes: int) -> None:
        """Something begins that is so long, `size_bytes` roughly."""

    def advance(self, rows: int, size_bytes: int) -> None:
        """So much of it is done."""

    def note(self, text: str) -> None:
        """Something to know, a sentence."""


@dataclass(slots=True)
class Checked:
    """A day of a table, or a whole table without days: how the target's rows compare with those of the source.

    `checksum` is of the source's rows, whatever their order. `there`: rows of the target; `missing`: rows of the source
    that are not among them, nor replaced by newer ones; `altered`: they are the
    same but for what was worked out anew on either side.
    """

    table: str
    day: str
    rows: int = 0
    checksum: int = 0
    there: int = 0
    missing: int = 0
    inserted: int = 0
    altered: bool = False


@dataclass(slots=True)
class Report:
    """What a copy did, and what its verification found. `log_bytes`: of the log beside the store, not in it yet."""

    checked: list[Checked] = field(default_factory=list)
    log_bytes: int = 0
    snapshot: str = ""

    @property
    def complete(self) -> bool:
        """Whether every row of the source is on the target."""
        return not any(each.missing for each in self.checked)


@dataclass(slots=True)
class _Sums:
    rows: int
    sum: int
    xor: int
    whole: int
    bytes: int

    def same(self, other: "_Sums") -> bool:
        return (self.rows, self.sum, self.xor) == (other.rows, other.sum, other.xor)


def copy(
    data_dir: Path,
    target: str,
    *,
    open_store: OpenStore,
    open_target: Callable[[], Server],
    ask: AskForSnapshot,
    show: Show,
    verify_only: bool = False,
) -> Report:
    """Copy the store in `data_dir/store` to `target`, or only verify that it is there.

    Raises CannotCopy, StoreError; what was copied until then stays, and the same call goes on from there.
    """
    workplace = Workplace(data_dir, target)
    try:
        if verify_only and workplace.state() is not None:
            raise CannotCopy("cannot verify: a copy was interrupted; complete it first, without --verify-only")
        server = migrated(open_target)
        try:
            assert isinstance(server, Server)
            source, state = workplace.open(open_store, ask)
            try:
                assert isinstance(source, Embedded)
                report = Copy(source, server, workplace, state, show).run(verify_only=verify_only)
            finally:
                source.close()
        finally:
            server.close()
        if not workplace.held():
            report.log_bytes = workplace.log_bytes()
        workplace.complete()
        return report
    finally:
        workplace.close()


class Copy:
    """One copy, from the scratch store to the target."""

    def __init__(self, source: Embedded, target: Server, workplace: Workplace, state: State, show: Show) -> None:
        self._source, self._target, self._show = source, Target(target, show.note), show
        self._workplace, self._state = workplace, state
        self._there = workplace.path / "there.bin"
        self._checked: dict[tuple[str, str], Checked] = {}
        self._sent: list[tuple[Columns, Unit, _Sums]] = []
        self._records_unix_s = settled_unix_s(source, "Records")
        self._traces = TraceRows(source, self._target)

    def run(self, *, verify_only: bool = False) -> Report:
        """Copy what is missing, then look at every unit that was not the same before. Raises StoreError."""
        if self._source.rows(PROBE) != self._target.rows(PROBE):
            raise CannotCopy("cannot compare rows with this version of ClickHouse: it computes other hashes")
        self._resume()
        self._target.level()
        tables = self._planned()
        total_bytes = sum(each.rows * size for _, planned, size in tables for each in planned)
        self._show.begin(
            "comparing" if verify_only else "copying", sum(u.rows for _, all_, _ in tables for u in all_), total_bytes
        )
        with ThreadPoolExecutor(1, "copy") as sender:
            sending: Future[None] | None = None
            for columns, planned, _ in tables:
                for unit in planned:
                    for share, sums in self._bounded(columns, unit):
                        there = self._compared(columns, share, sums)
                        if there is None:
                            continue
                        if verify_only:
                            self._differing(columns, share, sums)
                            continue
                        send = self._read(columns, share, sums, there)
                        if sending is not None:
                            sending.result()
                        sending = sender.submit(send)
                        self._sent.append((columns, share, sums))
            if sending is not None:
                sending.result()
        self._target.level()
        self._verify()
        self._check_traces()
        return Report([self._checked[key] for key in self._checked], snapshot=self._state.snapshot)

    def _planned(self) -> list[tuple[Columns, list[Unit], int]]:
        """The units of all tables, with the bytes of a row, roughly."""
        planned = []
        for table in TABLES:
            columns = self._columns(table)
            size = int(self._source.rows(
                "SELECT toUInt64(ifNotFinite(sum(data_uncompressed_bytes) / sum(rows), 1)) + 1 FROM system.parts"
                f" WHERE active AND database = 'spanhouse' AND table = {literal(table.name)}"
            )[0][0])  # fmt: skip
            rows = max(min(UNIT_BYTES // size, UNIT_ROWS_MAX), 1)
            found = [
                unit
                for [day] in (self._source.rows(days(table)) if table.day else [("",)])
                for unit in units(table, day, self._source.rows(plan(table, day, rows)))
            ]
            for unit in found:
                self._checked.setdefault((table.name, unit.day), Checked(table.name, unit.day))
            planned.append((columns, found, size))
        return planned

    def _columns(self, table: Table) -> Columns:
        sql = (
            "SELECT name FROM system.columns WHERE database = 'spanhouse'"
            f" AND default_kind NOT IN ('MATERIALIZED', 'ALIAS') AND table = {literal(table.name)} ORDER BY position"
        )
        there = {name for [name] in self._target.rows(sql)}
        names = tuple(name for [name] in self._source.rows(sql))
        if lacking := [name for name in names if name not in there]:
            raise CannotCopy(f"cannot copy to {table.name}: the target lacks {', '.join(lacking)}")
        [[sorting]] = self._source.rows(
            f"SELECT sorting_key FROM system.tables WHERE database = 'spanhouse' AND name = {literal(table.name)}"
        )
        shards = self._target.shards(table.name) if table.everywhere else 1
        return Columns(table, names, sorting, self._records_unix_s, shards)

    def _bounded(self, columns: Columns, unit: Unit) -> Iterator[tuple[Unit, _Sums]]:
        """The unit, or shares of it if it is too large to be held, each with its sums."""
        try:
            sums = _Sums(*self._source.rows(columns.sums(unit))[0])
        except StoreUnavailable as error:
            if code_of(error) != MEMORY_CODE or unit.share[1] >= SHARES_MAX:
                raise
            shares = 2
        else:
            shares = max(sums.bytes // UNIT_BYTES, sums.rows // UNIT_ROWS_MAX)
        if shares < 2 or unit.share[1] >= SHARES_MAX:
            yield unit, sums
            return
        for share in unit.shares(shares):
            yield from self._bounded(columns, share)

    def _compared(self, columns: Columns, unit: Unit, sums: _Sums) -> int | None:
        """None if the target has the same rows; else how many it has."""
        checked = self._checked[(unit.table.name, unit.day)]
        checked.rows += sums.rows
        checked.checksum = (checked.checksum + sums.sum) % 2**64
        there = int(self._target.rows(columns.number(unit))[0][0])
        if there:
            theirs = _Sums(*self._target.rows(columns.sums(unit))[0])
            there = theirs.rows
            if sums.same(theirs) and columns.shards == 1:
                self._show.advance(unit.rows, sums.bytes)
                checked.there += there
                checked.altered |= unit.table.name == "spans" and sums.whole != theirs.whole
                return None
        elif not sums.rows:
            self._show.advance(unit.rows, 0)
            return None
        return there

    def _read(self, columns: Columns, unit: Unit, sums: _Sums, there: int) -> Callable[[], None]:
        """Read what the target lacks of a unit; what is given inserts it."""
        missing = columns.missing(unit, self._keys(columns, unit) if there else None)
        rows, total, xor = self._source.rows(sums_of(missing))[0] if there else (sums.rows, sums.sum, sums.xor)
        checked = self._checked[(unit.table.name, unit.day)]
        checked.inserted += rows
        token = f"copy-{self._state.id}-{unit.table.name}-{rows}-{total:016x}-{xor:016x}"
        inserts = []
        if rows:
            if unit.table.name == "spans":
                block = self._traces.block(missing, unit.day)
                inserts.append(_Insert("traces", self._traces.columns, token, block))
            block = self._source.block(columns.rows(missing))
            inserts.append(_Insert(unit.table.name, columns.names, token, block, columns.shards))

        def send() -> None:
            if len(inserts) > 1:
                self._note_pending(inserts)
            self._insert(inserts)
            self._show.advance(unit.rows, sums.bytes)

        return send

    def _keys(self, columns: Columns, unit: Unit) -> str:
        """A file of what tells the target's rows of a unit apart."""
        rows = self._target.rows(columns.keys(unit))
        width = len(rows[0]) if rows else 0
        flat = array("Q", bytes(8 * len(rows) * width))
        for i in range(width):
            flat[i::width] = array("Q", [row[i] for row in rows])
        self._there.write_bytes(flat.tobytes())
        return str(self._there)

    def _insert(self, inserts: "Sequence[_Insert]") -> None:
        for each in inserts:
            self._target.insert(each.table, each.columns, each.block, each.token, each.shards)
        if self._workplace.pending.exists():
            shutil.rmtree(self._workplace.pending)

    def _note_pending(self, inserts: "Sequence[_Insert]") -> None:
        """Keep blocks that must be stored together until they are."""
        temporary = self._workplace.path / "pending.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for i, each in enumerate(inserts):
            write_file(temporary / f"{i}.native", [each.block], durable=True)
            said = {"table": each.table, "columns": each.columns, "token": each.token}
            write_file(temporary / f"{i}.json", [json.dumps(said).encode()], durable=True)
        sync_directory(temporary)
        temporary.rename(self._workplace.pending)

    def _resume(self) -> None:
        """Insert once more what the last run may have inserted in part."""
        inserts = []
        for path in sorted(self._workplace.pending.glob("*.json")):
            said = json.loads(path.read_text())
            inserts.append(_Insert(**said, block=path.with_suffix(".native").read_bytes()))
        self._insert(inserts)

    def _verify(self) -> None:
        self._show.begin(
            "verifying", sum(unit.rows for _, unit, _ in self._sent), sum(s.bytes for _, _, s in self._sent)
        )
        for columns, unit, sums in self._sent:
            self._differing(columns, unit, sums)

    def _differing(self, columns: Columns, unit: Unit, sums: _Sums) -> None:
        """Note of a unit how many of its rows the target lacks."""
        checked = self._checked[(unit.table.name, unit.day)]
        theirs = _Sums(*self._target.rows(columns.sums(unit))[0])
        checked.there += theirs.rows // columns.shards
        if sums.same(theirs) and columns.shards == 1:
            checked.altered |= unit.table.name == "spans" and sums.whole != theirs.whole
        else:
            missing = columns.missing(unit, self._keys(columns, unit))
            checked.missing += self._source.rows(sums_of(missing))[0][0]
        self._show.advance(unit.rows, sums.bytes)

    def _check_traces(self) -> None:
        """Hold the rows of `traces` on the target against its spans, on the days that the source has."""
        found = sorted(day for table, day in self._checked if table == "spans")
        if not found:
            return
        where = f"WHERE Day IN ({', '.join(map(literal, found))}) GROUP BY Day ORDER BY Day"
        for _ in range(5):  # a load that is running now has filled one table and not the other
            spans = self._by_day(f"SELECT toString(Day), count() FROM spanhouse.spans {where}")
            counted = self._by_day(f"SELECT toString(Day), sum(Spans) FROM spanhouse.traces {where}")
            if spans == counted:
                break
            time.sleep(1)
        for day in found:
            rows, there = spans.get(day, 0), counted.get(day, 0)
            self._checked[("traces", day)] = Checked("traces", day, rows, 0, there, abs(rows - there))

    def _by_day(self, sql: str) -> dict[str, int]:
        return {day: int(number) for day, number in self._target.rows(sql)}


@dataclass(frozen=True, slots=True)
class _Insert:
    table: str
    columns: Sequence[str]
    token: str
    block: bytes
    shards: int = 1
