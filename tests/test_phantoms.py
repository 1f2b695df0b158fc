"""The engine is killed between noting a part's token and storing the part: its segment still loads, and once."""

import shutil
from pathlib import Path

import pytest
from sender import numbered
from store import Store

from storage.phantoms import forget_phantoms

TABLES = ("spans", "content", "traces", "origins", "volumes")


def counts(store: Store) -> list[int]:
    asked = (
        "count() FROM spans", "count() FROM content", "sum(Spans) FROM traces", "uniqExact(OriginId) FROM origins",
        "sum(Spans) FROM volumes",
    )  # fmt: skip
    return [store.number(f"SELECT {what.replace('FROM ', 'FROM spanhouse.')}") for what in asked]


@pytest.mark.parametrize("table", TABLES)
def test_a_part_that_was_noted_and_not_stored_is_stored_by_the_next_load(tmp_path: Path, table: str) -> None:
    store = Store(tmp_path)
    first, _ = store.segment([numbered(1, 1, 4).body])
    second, _ = store.segment([numbered(2, 1, 4).body])
    store.engine.load(first, "first")
    store.engine.load(second, "second")
    [[part]] = store.engine.rows(
        f"SELECT path FROM system.parts WHERE table = '{table}' AND active ORDER BY max_block_number DESC LIMIT 1"
    )
    store.close()
    # What the kill leaves: the note in the log, and the part under its temporary name, which the next start removes.
    shutil.rmtree(part)

    assert forget_phantoms(tmp_path / "store") == 1
    assert forget_phantoms(tmp_path / "store") == 0
    store = Store(tmp_path)
    try:
        store.engine.load(first, "first")
        store.engine.load(second, "second")
        assert counts(store) == [8, 4, 8, 2, 8]
        store.engine.load(first, "first")
        store.engine.load(second, "second")
        assert counts(store) == [8, 4, 8, 2, 8]
    finally:
        store.close()


def test_parts_that_were_merged_are_still_known(tmp_path: Path) -> None:
    store = Store(tmp_path)
    segments = [store.segment([numbered(1, number, 4).body]) for number in range(1, 6)]
    for path, token in segments:
        store.engine.load(path, token)
    for table in TABLES:
        store.engine.command(f"OPTIMIZE TABLE spanhouse.{table} FINAL")
    store.close()
    assert forget_phantoms(tmp_path / "store") == 0
    store = Store(tmp_path)
    try:
        for path, token in segments:
            store.engine.load(path, token)
        assert counts(store)[:3] == [20, 10, 20]
    finally:
        store.close()
