"""What is stored of whom, and what it costs: the sums in `volumes`, held against the parts that are there.

`volumes` says lengths before compression, by tenant, day, service, agent and model; the engine's parts say how many
rows and bytes each table has of a day. What a day takes on disk is spread over its rows in proportion to their lengths.
Where there are fewer rows than `volumes` says, since they expired or were erased, its figures shrink in proportion
until storage/recounting.py has put them right; where there are more, what was not counted yet is in no figure.

Called from any thread; owns no state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from storage.engine import Engine

By = Literal["tenant", "service", "agent", "model", "day"]
TENANTS_MAX = 10_000
"""Those with most spans, of a day."""
OTHERS = "…"
"""The name of those that are not told apart."""
COLUMNS = (
    "Spans", "SkeletonBytes", "Contents", "ContentBytes", "Records", "RecordSkeletonBytes", "RecordContentBytes",
)  # fmt: skip
TABLES = ("spans", "content", "records")
_NAMES: dict[By, str] = {
    "tenant": "toString(Tenant)",
    "service": "Service",
    "agent": "Agent",
    "model": "Model",
    "day": "toString(Day)",
}
_BY_NAME = Path(__file__).with_name("volumes.sql").read_text()
_BY_DAY = f"SELECT toString(Day), {', '.join(f'sum({name})' for name in COLUMNS)} FROM spanhouse.volumes GROUP BY Day"
_DATABASES = ("spanhouse", "spanhouse_local")
_REMOTE_BYTES = 1 << 60
"""Of object storage ClickHouse says that there is more free than any disk has."""


class Counts(NamedTuple):
    """Sums of `volumes`. `contents` are spans with payload. Lengths are in bytes."""

    spans: int = 0
    skeleton: int = 0
    contents: int = 0
    content: int = 0
    records: int = 0
    record_skeleton: int = 0
    record_content: int = 0

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of each of TABLES."""
        return self.spans, self.contents, self.records


class Rows(NamedTuple):
    """What a table has: rows, bytes on disk with indices, and before compression as the engine counts them."""

    rows: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0


@dataclass(slots=True)
class Stored:
    """What is stored of something. Bytes of one copy: as lengths (`raw`), and their part of what is on disk."""

    spans: float = 0
    log_records: float = 0
    skeleton_raw: float = 0
    skeleton_stored: float = 0
    content_raw: float = 0
    content_stored: float = 0

    @property
    def stored(self) -> float:
        """Bytes on disk."""
        return self.skeleton_stored + self.content_stored

    def plus(self, other: "Stored") -> None:
        """And another one's."""
        self.spans += other.spans
        self.log_records += other.log_records
        self.skeleton_raw += other.skeleton_raw
        self.skeleton_stored += other.skeleton_stored
        self.content_raw += other.content_raw
        self.content_stored += other.content_stored

    def add(self, counts: Counts, day: "Scale") -> None:
        """These of a day as well."""
        spans, contents, records = day
        self.spans += counts.spans * spans.kept
        self.log_records += counts.records * records.kept
        self.skeleton_raw += counts.skeleton * spans.kept + counts.record_skeleton * records.kept
        self.content_raw += counts.content * contents.kept + counts.record_content * records.kept
        self.skeleton_stored += counts.skeleton * spans.cost + counts.record_skeleton * records.cost
        self.content_stored += counts.content * contents.cost + counts.record_content * records.cost


class Share(NamedTuple):
    """How the sums of a day and a table become figures: what part of them is there, and bytes on disk for each."""

    kept: float
    cost: float


class Scale(NamedTuple):
    """Of a day, for each of TABLES."""

    spans: Share
    content: Share
    records: Share


class Group(NamedTuple):
    """What is stored under a name, on a day."""

    day: str
    name: str
    counts: Counts


class Disk(NamedTuple):
    """A file system of the store."""

    host: str
    name: str
    free_bytes: int
    total_bytes: int


class Volumes:
    """Reads them. Everything raises what the engine's reads raise."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def scales(self) -> tuple[dict[str, Scale], float]:
        """By day, and how much of the rows that there are has been counted."""
        parts, counted = self.by_day(), self.sums()
        there = sum(table.rows for tables in parts.values() for table in tables)
        known = 0
        scales = {}
        for day, tables in parts.items():
            counts = counted.get(day, Counts())
            lengths = counts.skeleton, counts.content, counts.record_skeleton + counts.record_content
            scales[day] = Scale(*map(_share, tables, counts.rows, lengths))
            known += sum(min(table.rows, max(rows, 0)) for table, rows in zip(tables, counts.rows, strict=True))
        return scales, known / there if there else 1.0

    def groups(self, tenant: str | None, by: By, limit: int) -> list[Group]:
        """Sums by day and name, of a tenant or, for the operator, of all: `limit` names, and OTHERS."""
        sql, parameters = _BY_NAME.replace("NAME", _NAMES[by]), {"limit": limit}
        read = self._engine.read_all(sql, parameters) if tenant is None else self._engine.read(tenant, sql, parameters)
        if not read:
            return []
        days, names, *columns = read
        return [
            Group(day.decode(), name.decode(errors="replace"), Counts(*map(int, sums)))
            for day, name, sums in zip(days, names, zip(*columns, strict=True), strict=True)
        ]

    def of_tenants(self) -> tuple[dict[str, float], int]:
        """Bytes on disk of each tenant, and of all tables with the parts that were replaced and not removed yet.

        Of one copy. What a tenant has of tables that follow from spans is in proportion to its spans and content.
        """
        whole = sum(table.stored_bytes for table in self.tables().values())
        figures = stored(self.groups(None, "tenant", TENANTS_MAX), self.scales()[0])
        known = sum(each.stored for each in figures.values())
        times = max(1.0, whole / known) if known else 0.0
        return {name: each.stored * times for name, each in figures.items() if name != OTHERS}, self._on_disk()

    def _on_disk(self) -> int:
        sql = f"SELECT sum(bytes_on_disk) FROM {self._engine.one_copy('parts')} WHERE database IN {_DATABASES}"
        return int(self._engine.rows(sql)[0][0])

    def sums(self) -> dict[str, Counts]:
        """Of all tenants, by day."""
        return {str(day): Counts(*map(int, sums)) for day, *sums in self._engine.rows(_BY_DAY)}

    def by_day(self) -> dict[str, tuple[Rows, Rows, Rows]]:
        """What there is of each of TABLES, by day: of one copy."""
        found: dict[str, dict[str, Rows]] = {}
        for table, day, *numbers in self._engine.rows(
            "SELECT table, extract(partition, '\\\\d{4}-\\\\d\\\\d-\\\\d\\\\d') AS day, sum(rows), sum(bytes_on_disk),"
            f" sum(data_uncompressed_bytes) FROM {self._engine.one_copy('parts')}"
            f" WHERE active AND database = '{self._engine.database}' AND table IN {TABLES} GROUP BY table, day"
        ):
            found.setdefault(str(day), {})[str(table)] = Rows(*map(int, numbers))
        none = Rows()
        return {
            day: (of.get("spans", none), of.get("content", none), of.get("records", none)) for day, of in found.items()
        }

    def tables(self) -> dict[str, Rows]:
        """What there is of every table: of one copy."""
        return self._tables(self._engine.one_copy("parts"))

    def bytes_of_all_copies(self) -> int:
        """Bytes on disk, of all tables on all nodes."""
        return sum(table.stored_bytes for table in self._tables(self._engine.system_table("parts")).values())

    def disks(self) -> list[Disk]:
        """The file systems of all nodes; object storage, which does not become full, aside."""
        return [
            Disk(str(host), str(name), int(free), int(total))
            for host, name, free, total in self._engine.rows(
                "SELECT hostName(), name, free_space, total_space"
                f" FROM {self._engine.system_table('disks')} WHERE total_space < {_REMOTE_BYTES} ORDER BY 1, 2"
            )
        ]

    def rooms(self) -> list[tuple[str, int, int]]:
        """The same as a name, bytes free and bytes in all."""
        return [(f"disk {d.name} of {d.host}", d.free_bytes, d.total_bytes) for d in self.disks()]

    def sizes(self, days: int) -> list[tuple[str, int]]:
        """Days and the bytes of all copies that were noted last on each, of so many of the newest, oldest first."""
        rows = self._engine.rows(
            "SELECT toString(Day), argMax(Bytes, Noted) FROM spanhouse.sizes"
            f" GROUP BY Day ORDER BY Day DESC LIMIT {int(days)}"
        )
        return [(str(day), int(size)) for day, size in reversed(rows)]

    def _tables(self, parts: str) -> dict[str, Rows]:
        return {
            str(table): Rows(*map(int, numbers))
            for table, *numbers in self._engine.rows(
                f"SELECT table, sum(rows), sum(bytes_on_disk), sum(data_uncompressed_bytes) FROM {parts}"
                f" WHERE active AND database IN {_DATABASES} GROUP BY table ORDER BY table"
            )
        }


def stored(groups: Sequence[Group], scales: Mapping[str, Scale], *, by_day: bool = False) -> dict[str, Stored]:
    """Figures by name, or by day. What has no part left is not among them."""
    figures: dict[str, Stored] = {}
    for group in groups:
        if (scale := scales.get(group.day)) is not None and any(share.kept for share in scale):
            figures.setdefault(group.day if by_day else group.name, Stored()).add(group.counts, scale)
    return {name: each for name, each in figures.items() if each.spans or each.log_records or each.stored}


def _share(table: Rows, counted: int, length: int) -> Share:
    if counted <= 0 or table.rows == 0:
        return Share(0, 0)
    known = min(1.0, counted / table.rows)
    return Share(min(1.0, table.rows / counted), table.stored_bytes * known / length if length > 0 else 0)


def columns_of(counts: Counts) -> dict[str, Any]:
    """By the names of the columns."""
    return dict(zip(COLUMNS, counts, strict=True))
