"""The HTTP API of what is stored and what it costs, and the gauges of the same. In the framework's threads."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from query.answers import FAILURES, Answer
from query.errors import Refused
from query.forecast import DAYS, forecast
from query.parameters import Tenant, only_known
from storage.volumes import By, Disk, Scale, Stored, Volumes, stored

DAYS_MAX = 366
LIMIT_MAX = 1000


class Amount(Answer):
    """Bytes of one copy."""

    raw_bytes: int = Field(description="Before compression: lengths, as docs/storage.md has them.")
    stored_bytes: int = Field(description="Their part of what is on disk, indices included.")


class StoredAnswer(Answer):
    """What is stored of something."""

    spans: int
    log_records: int
    skeleton: Amount = Field(description="Names, times, ids, short attributes.")
    content: Amount = Field(description="Payload: prompts, answers, tool arguments and results.")


class GroupAnswer(StoredAnswer):
    """What is stored under a name."""

    name: str = Field(description="The tenant, service, agent, model or day; `…` are all others together.")


class DayAnswer(StoredAnswer):
    """What is stored of a day."""

    day: str = Field(description="The day of the spans; 1970-01-01 of those far from their arrival.")


class TableAnswer(Answer):
    """A table of the store, one copy."""

    table: str
    rows: int
    raw_bytes: int = Field(description="Before compression, as ClickHouse counts them.")
    stored_bytes: int


class DiskAnswer(Answer):
    """A file system of the store."""

    host: str
    name: str = Field(description="ClickHouse's name of the disk.")
    free_bytes: int
    total_bytes: int


class LogAnswer(Answer):
    """What this process keeps beside the store."""

    wal_bytes: int = Field(description="Acknowledged and not yet loaded.")
    quarantine_bytes: int


class SizeAnswer(Answer):
    """How large the store was."""

    day: str
    stored_bytes: int = Field(description="All tables and copies, as last noted on that day.")


class ForecastAnswer(Answer):
    """When the disk is full, if the store goes on growing in a straight line."""

    verdict: Literal["cannot tell", "not within a year", "full"]
    day: str | None = Field(description="The day on which it is.")
    bytes_per_day: float | None = Field(description="Growth of all copies, deletions included; null if unknown.")
    rests_on: str = Field(description="Which days it was worked out from.")


class StoreAnswer(Answer):
    """The store as a whole."""

    stored_bytes: int = Field(description="All tables, one copy.")
    stored_bytes_all_copies: int
    tables: list[TableAnswer]
    disks: list[DiskAnswer]
    log: LogAnswer | None = Field(description="null in a process that receives nothing.")
    sizes: list[SizeAnswer] = Field(description="Oldest first.")
    forecast: ForecastAnswer


class StorageAnswer(Answer):
    """What is stored, and what it costs."""

    tenant: str | None = Field(description="null for all.")
    counted: float = Field(description="How much of the store's rows has been counted, from 0 to 1.")
    total: StoredAnswer
    by: str
    groups: list[GroupAnswer] = Field(description="By stored bytes, the largest first.")
    days: list[DayAnswer] = Field(description="The newest days that have anything, oldest first.")
    store: StoreAnswer | None = Field(description="With all_tenants only.")


class StorageParameters(BaseModel):
    """Query parameters."""

    by: By = Field("service", description="What the groups are; `tenant` needs all_tenants.")
    days: int = Field(30, ge=1, le=DAYS_MAX, description="How many days are listed one by one.")
    limit: int = Field(20, ge=1, le=LIMIT_MAX, description="How many groups are listed; the others are one.")
    all_tenants: bool = Field(False, description="For the operator: of all tenants, and of the store as a whole.")


Beside = Callable[[], Mapping[str, int]]
"""`wal_bytes` and `quarantine_bytes`; nothing where nothing is received."""


def router(volumes: Volumes, beside: Beside = dict) -> APIRouter:
    """The route."""
    routes = APIRouter(prefix="/api/v1", tags=["operation"], responses=FAILURES)

    @routes.get(
        "/storage", summary="What is stored, and what it costs", dependencies=[Depends(only_known(StorageParameters))]
    )
    def storage(parameters: Annotated[StorageParameters, Query()], tenant: Tenant = "default") -> StorageAnswer:
        """Spans and bytes by tenant, service, agent, model and day, and when the disk is full."""
        if parameters.by == "tenant" and not parameters.all_tenants:
            raise Refused(400, "cannot tell tenants apart for one tenant: by=tenant needs all_tenants=true")
        whose = None if parameters.all_tenants else tenant
        scales, counted = volumes.scales()
        groups = _named(volumes, whose, parameters.by, parameters.limit, scales)
        days = stored(volumes.groups(whose, "day", DAYS_MAX), scales, by_day=True)
        newest = sorted(days)[-parameters.days :]
        return StorageAnswer(
            tenant=whose,
            counted=counted,
            total=StoredAnswer(**_figures(_total(days))),
            by=parameters.by,
            groups=groups,
            days=[DayAnswer(day=day, **_figures(days[day])) for day in newest],
            store=_store(volumes, beside(), parameters.days) if parameters.all_tenants else None,
        )

    return routes


def _named(volumes: Volumes, tenant: str | None, by: By, limit: int, scales: Mapping[str, Scale]) -> list[GroupAnswer]:
    figures = stored(volumes.groups(tenant, by, limit), scales)
    largest = sorted(figures.items(), key=lambda one: (-one[1].stored, one[0]))
    return [GroupAnswer(name=name, **_figures(each)) for name, each in largest]


def _total(days: Mapping[str, Stored]) -> Stored:
    total = Stored()
    for each in days.values():
        total.plus(each)
    return total


def _figures(of: Stored) -> dict[str, Any]:
    return {
        "spans": round(of.spans),
        "log_records": round(of.log_records),
        "skeleton": Amount(raw_bytes=round(of.skeleton_raw), stored_bytes=round(of.skeleton_stored)),
        "content": Amount(raw_bytes=round(of.content_raw), stored_bytes=round(of.content_stored)),
    }


def _store(volumes: Volumes, log: Mapping[str, int], days: int) -> StoreAnswer:
    tables, disks, sizes = volumes.tables(), volumes.disks(), volumes.sizes(max(days, DAYS + 2))
    noted = [(date.fromisoformat(day), size) for day, size in sizes]
    found = forecast(noted, room(disks), datetime.now(UTC).date())
    return StoreAnswer(
        stored_bytes=sum(table.stored_bytes for table in tables.values()),
        stored_bytes_all_copies=volumes.bytes_of_all_copies(),
        tables=[TableAnswer(table=name, **table._asdict()) for name, table in tables.items()],
        disks=[DiskAnswer(**disk._asdict()) for disk in disks],
        log=LogAnswer(**log) if log else None,
        sizes=[SizeAnswer(day=day, stored_bytes=size) for day, size in sizes[-days:]],
        forecast=ForecastAnswer(
            verdict=found.verdict,
            day=found.day.isoformat() if found.day else None,
            bytes_per_day=found.bytes_per_day,
            rests_on=found.rests_on,
        ),
    )


def room(disks: list[Disk]) -> int:
    """Bytes by which the store can grow until the first host is full, growing alike on all of them."""
    free: dict[str, int] = {}
    for disk in disks:
        free[disk.host] = free.get(disk.host, 0) + disk.free_bytes
    return min(free.values(), default=0) * len(free)
