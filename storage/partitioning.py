"""Brings `spans` and `content` of a store from before retention policies into partitions of day and class.

A partition key cannot be altered, so rows are copied, a day at a time, newest first, into tables that then take the
place of the old ones. Readers see the old rows until then, and what other processes load meanwhile is looked for at the
end. It can be cut short anywhere: a day whose copy has not as many rows as the day is copied anew. Part of a migration,
which one process does at a time.
"""

import logging
import re
from pathlib import Path

from storage.engine import Engine

TABLES = {
    "spans": "(Tenant, TraceId, SpanId, Timestamp, Duration, SpanName)",
    "content": "(Tenant, TraceId, SpanKey)",
}
"""What a row is told by from others of its day."""
_SETTINGS = (
    "max_threads = 1, max_insert_threads = 1, max_block_size = 8192, min_insert_block_size_rows = 0, "
    "min_insert_block_size_bytes = 67108864, max_partitions_per_insert_block = 0, insert_deduplicate = 0, "
    "async_insert = 0, max_execution_time = 0"
)
_CUT = {
    value.rsplit(" AS ", 1)[1].strip(): value
    for value in re.split(
        r"(?<=AS WholeContent),\n", Path(__file__).with_name("cut_content.sql").read_text().split("\n", 1)[1]
    )
}
"""What the new `content` has in the place of the old one's Content, by column."""
_MADE = re.compile(rf"CREATE (?:OR REPLACE )?TABLE (?:IF NOT EXISTS )?\w+\.({'|'.join(TABLES)})_by_class\b")
_HASHES_MAX = 2_000_000
"""Of so many rows at once it is asked whether they were copied."""

logger = logging.getLogger(__name__)


def by_class(engine: Engine) -> None:
    """Do it, if it is not done. Raises StoreUnavailable."""
    for table in TABLES:
        older = f"{table}_by_class"  # which it is from the exchange on
        copied: dict[str, int] = {}
        if _key(engine, table) == "Day":
            copied = _copy(engine, table, older)
            engine.define(f"EXCHANGE TABLES spanhouse.{table} AND spanhouse.{older}")
        if _key(engine, older) == "Day":
            for day, rows in _days(engine, older).items():
                if copied.get(day) != rows:
                    _copy_rest(engine, table, older, day, rows)
        engine.define(f"DROP TABLE IF EXISTS spanhouse.{older} SYNC")


def is_moved(engine: Engine, statement: str) -> bool:
    """Whether it makes a table whose rows are where they belong already, from a try that was cut short later on.

    It would be in the way: on a cluster its path in Keeper is that of the table which has taken the other one's place.
    """
    made = _MADE.match(statement)
    return made is not None and _key(engine, made[1]) not in {"", "Day"} and not _key(engine, f"{made[1]}_by_class")


def _key(engine: Engine, table: str) -> str:
    where = f"database = '{engine.database}' AND name = '{table}'"
    found = engine.rows(f"SELECT partition_key FROM system.tables WHERE {where}")
    return str(found[0][0]) if found else ""


def _days(engine: Engine, table: str) -> dict[str, int]:
    """Rows of each day, the newest first."""
    days = engine.rows(f"SELECT toString(Day) AS d, count() FROM spanhouse.{table} GROUP BY d ORDER BY d DESC")
    return {day: int(rows) for day, rows in days}


def _copy(engine: Engine, table: str, to: str) -> dict[str, int]:
    """Copy all days, and give their rows."""
    there, days = _days(engine, to), _days(engine, table)
    for number, (day, rows) in enumerate(days.items(), 1):
        if there.get(day) == rows:
            continue
        for partition in _partitions(engine, to, day):
            engine.alter(f"ALTER TABLE spanhouse.{to} DROP PARTITION ID '{partition}'", {})
        insert = f"{_insert(engine, table, to)} WHERE Day = {{day:Date}}"
        engine.command(f"{insert} SETTINGS {_SETTINGS}", {"day": day})
        logger.info(
            "%s: %d of %d days are in partitions of their own, %s with %d rows", table, number, len(days), day, rows
        )
    return _days(engine, to)


def _insert(engine: Engine, table: str, to: str) -> str:
    where = f"database = '{engine.database}' AND table = '{to}' AND default_kind != 'ALIAS'"
    names = [name for (name,) in engine.rows(f"SELECT name FROM system.columns WHERE {where} ORDER BY position")]
    values = [_CUT.get(name, name) for name in names]
    return f"INSERT INTO spanhouse.{to} ({', '.join(names)}) SELECT {', '.join(values)} FROM spanhouse.{table}"


def _partitions(engine: Engine, table: str, day: str) -> list[str]:
    rows = engine.rows(
        f"SELECT DISTINCT partition_id FROM {engine.system_table('parts')} WHERE active"
        f" AND database = '{engine.database}' AND table = '{table}' AND partition_id LIKE '{day.replace('-', '')}-%'"
    )
    return [partition for (partition,) in rows]


def _copy_rest(engine: Engine, table: str, older: str, day: str, rows: int) -> None:
    """Copy the rows of a day that were loaded after it was copied."""
    shares = rows // _HASHES_MAX + 1
    row = f"cityHash64{TABLES[table]}"
    for share in range(shares):
        part = f"Day = {{day:Date}} AND cityHash64(TraceId) % {shares} = {share}"
        engine.command(
            f"{_insert(engine, older, table)} WHERE {part}"
            f" AND {row} NOT IN (SELECT {row} FROM spanhouse.{table} WHERE {part}) SETTINGS {_SETTINGS}",
            {"day": day},
        )
