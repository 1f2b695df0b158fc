"""What an older program stored comes under the keys of this one: partitions by day and class, payload by session."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from otlp_building import body, span
from store import FOOTING, Store, clear, server

from storage.embedded import Embedded
from storage.engine import Engine
from storage.migrate import SCHEMA, migrate, migrations
from storage.vocabulary import load

BY_CLASS = "0014_retention.sql"
TABLES = {
    "spans": ("Day, Class", "Tenant, toStartOfMinute(Timestamp), ServiceName, TraceId"),
    "content": ("Day, Class", "Tenant, toStartOfInterval(Hour, toIntervalHour(6)), SessionKey, TraceId"),
}
OLD_ROWS = """INSERT INTO spanhouse.ingest
    (Tenant, Day, Timestamp, TraceId, SpanId, ServiceName, SpanName, Duration, StringAttributes, Content, Canonical)
SELECT
    't', toDate('2026-11-01') + number % 3 AS day, toDateTime64(day, 9, 'UTC') + number,
    unhex(leftPad(hex(number % 40), 32, '0')),
    unhex(leftPad(hex(number), 16, '0')), 's', 'n', 1000, map('k', toString(number)),
    if(number % 5 = 0, map('input.value', repeat(toString(number), 2500)), map()),
    map('session_id', toString(number % 4))
FROM numbers({first}, 3000)"""
ROWS = {
    "spans": "SELECT count(), sum(cityHash64(TraceId, SpanId, Timestamp, toString(StringAttributes)))",
    "content": "SELECT count(), sum(cityHash64(TraceId, SpanKey, toString(Content)))",
}


def older_schema(directory: Path) -> Path:
    """The schema before there were classes."""
    directory.mkdir()
    for migration in migrations():
        if migration.name < BY_CLASS:
            shutil.copy(SCHEMA / migration.name, directory)
    return directory


def opened(directory: Path) -> Engine:
    return Embedded(directory / "store", load()) if FOOTING.urls is None else server()


def keys(engine: Engine, table: str) -> tuple[str, str]:
    where = f"database = '{engine.database}' AND name = '{table}'"
    [(partition, order)] = engine.rows(f"SELECT partition_key, sorting_key FROM system.tables WHERE {where}")
    return str(partition).strip("()"), str(order)


def rows(engine: Engine) -> dict[str, Any]:
    return {table: engine.rows(f"{sql} FROM spanhouse.{table}") for table, sql in ROWS.items()}


def test_what_was_stored_is_cut_as_what_is_loaded() -> None:
    cut = (SCHEMA.parent / "cut_content.sql").read_text().split("\n", 1)[1]
    assert " ".join(cut.split()) in " ".join((SCHEMA / BY_CLASS).read_text().split())


@pytest.mark.parametrize(
    "cut",
    [
        None,
        pytest.param(("CREATE TABLE IF NOT EXISTS", "content_by_class"), marks=pytest.mark.slow),
        pytest.param(("INSERT INTO", "spans_by_class"), marks=pytest.mark.slow),
        ("EXCHANGE TABLES", "content_by_class"),
        ("DROP TABLE", "spans_by_class"),
        pytest.param(("DROP TABLE", "content_by_class"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_what_is_stored_comes_under_the_new_keys(
    tmp_path: Path, cut: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the first try ends before the statement `cut`."""
    engine = opened(tmp_path)
    if FOOTING.urls is not None:
        clear(engine)  # type: ignore[arg-type]
    migrate(engine, older_schema(tmp_path / "older"))
    engine.close()
    engine = opened(tmp_path)
    assert keys(engine, "content") == ("Day", "Tenant, Hour, TraceId")
    engine.command(OLD_ROWS.format(first=0))
    before = rows(engine)
    assert before["spans"][0][0] == 3000
    assert before["content"][0][0] == 600
    if cut is not None:
        define, command = engine.define, engine.command
        with monkeypatch.context() as patch:

            def ending(run: Any) -> Any:
                def at(sql: str, *arguments: Any) -> Any:
                    if sql.lstrip().startswith(cut[0]) and cut[1] in sql:
                        raise KeyboardInterrupt
                    return run(sql, *arguments)

                return at

            patch.setattr(engine, "define", ending(define))
            patch.setattr(engine, "command", ending(command))
            with pytest.raises(KeyboardInterrupt):
                migrate(engine)
    assert BY_CLASS in migrate(engine)
    engine.close()
    engine = opened(tmp_path)
    for table, expected in TABLES.items():
        assert keys(engine, table) == expected
    assert rows(engine) == before
    left = engine.rows("SELECT name FROM system.tables WHERE name LIKE '%_by_class'")
    assert left == []
    engine.close()
    if FOOTING.urls is None:
        store = Store(tmp_path)
        store.load([body(span(1))])
        assert store.number("SELECT count() FROM spanhouse.spans") == 3001
        store.close()
