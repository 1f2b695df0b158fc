"""The store in one process: chDB, ClickHouse as a library, with its data in a directory.

chDB runs one engine a process and one process a directory. It works outside the GIL.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import chdb
import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError

from storage import nested_texts
from storage.decode import Rows
from storage.engine import DEFAULT, MIB, Bounds, Client, Engine, text_of, yield_to_others
from storage.errors import StoreUnavailable
from storage.nested_sql import TEXTS, WITH_TEXTS
from storage.phantoms import forget_phantoms
from storage.vocabulary import Vocabulary

SMALL = {
    "mark_cache_size": 32 * MIB,
    "primary_index_cache_size": 32 * MIB,
    "index_mark_cache_size": 8 * MIB,
    "query_condition_cache_size": 8 * MIB,
    "mmap_cache_size": 64,
    "background_pool_size": 2,
    "background_merges_mutations_concurrency_ratio": 8,
    "background_schedule_pool_size": 4,
    "max_thread_pool_size": 64,
    "max_thread_pool_free_size": 4,
}
"""Caches and pools of chDB suit a server of its own: five gigabytes each for marks and primary keys."""


@cache
def add_functions() -> None:
    """Give chDB, in all of this process, the functions that its statements call."""
    chdb.create_function(TEXTS, nested_texts.texts, ["String"], "String")
    chdb.create_function(WITH_TEXTS, nested_texts.with_texts, ["String", "String"], "String")


class Embedded(Engine):
    """ClickHouse in this process, with its data in `path`.

    `bounds.memory_bytes_max` is of the engine together with the rest of the process: it measures what is resident.
    """

    def __init__(self, path: Path, vocabulary: Vocabulary, bounds: Bounds = DEFAULT) -> None:
        self._path = path.absolute()
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            forget_phantoms(self._path)
        except OSError as error:
            raise StoreUnavailable(f"cannot use the store in {self._path}: {error.strerror}") from error
        self._server = urlencode({"max_server_memory_usage": bounds.memory_bytes_max, **SMALL})
        super().__init__(vocabulary, bounds)

    def _open(self) -> Client:
        return clickhouse_connect.get_client(interface="chdb", path=f"{self._path}?{self._server}")

    def _open_first(self) -> Client:
        # Whoever opens the engine first starts its threads, and threads inherit their niceness: loads and merges yield
        # to the receivers, whose acknowledgements somebody waits for.
        with ThreadPoolExecutor(1, "engine", yield_to_others) as opener:
            try:
                return opener.submit(self._open).result()
            except ClickHouseError as error:
                raise StoreUnavailable(f"cannot open the store in {self._path}: {text_of(error)}") from error

    def _load(self, rows: Rows, token: str) -> None:
        self._writer.command(rows.insert(token))

    def _add(self, rows: Rows) -> None:
        self._writer.command(f"INSERT INTO spanhouse.{rows.table} ({', '.join(rows.columns)})\n{rows.select}")

    def _probe(self, select: str) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = self._inserter.query(select).result_rows
        return rows

    def _add_functions(self) -> None:
        add_functions()

    def block(self, sql: str) -> bytes:
        """The rows of a statement in ClickHouse's own format. Raises StoreUnavailable."""
        try:
            with self._reader() as client:
                block: bytes = client.raw_query(sql, fmt="Native")
                return block
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot read from the store: {text_of(error)}") from error

    def _forget_schema_files(self) -> None:
        try:
            self._writer.command("SYSTEM DROP FORMAT SCHEMA CACHE")
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot remove a damaged schema file: {text_of(error)}") from error
