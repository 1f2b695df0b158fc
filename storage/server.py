"""The store on a ClickHouse server, over HTTP.

Segments are decoded here, by a chDB without data of its own, so that decoding scales with the collectors; the server
takes blocks in its own format, with the segment's token.
"""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import clickhouse_connect
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.external import ExternalData

from storage import recheck
from storage.cluster import DISTRIBUTED, LOCAL, altered, on_cluster
from storage.decode import Rows
from storage.embedded import SMALL, add_functions
from storage.engine import DEFAULT, MEMORY_CODES, MIB, Bounds, Client, Engine, Signal, text_of, yield_to_others
from storage.errors import StoreUnavailable
from storage.hosts import Handle, Hosts
from storage.vocabulary import Vocabulary

# One block is one part in each table, and the same one when it is sent again; every column of ours is known.
_LOADING: dict[str, Any] = {
    "insert_deduplicate": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "async_insert": 0,
    "max_insert_threads": 1,
    "max_partitions_per_insert_block": 0,
    "min_insert_block_size_rows": 0,
    "min_insert_block_size_bytes": 0,
    "max_insert_block_size": 4294967296,
    "input_format_skip_unknown_fields": 0,
}


# What came in many blocks becomes one part; of a Distributed table, one a shard.
_WHOLE = {"min_insert_block_size_rows": 4294967296}
RECORDS_S = 2.0
HARMLESS_BYTES = 32 * MIB
"""When a server has no memory for a block smaller than this, it is not the block's fault."""
PREPARED_MAX = 3
"""Of a segment its spans and its log records, and the spans of the next."""
CLOCKS_S = 60
"""How far the clocks of a collector and a server may be apart."""

logger = logging.getLogger(__name__)


class Server(Engine):
    """ClickHouse elsewhere: one server, or the nodes of a cluster of that name.

    `bounds.memory_bytes_max` bounds the decoding together with the rest of this process.
    """

    shared = True

    def __init__(
        self, hosts: Hosts, vocabulary: Vocabulary, bounds: Bounds = DEFAULT, *, cluster: str | None = None
    ) -> None:
        self._hosts, self._cluster = hosts, cluster
        if cluster is not None:
            self.database = LOCAL
        self._decoding = f":memory:?{urlencode({'max_server_memory_usage': bounds.memory_bytes_max, **SMALL})}"
        self._chdb: Client = None  # until something is to be decoded
        self._decoding_thread = ThreadPoolExecutor(1, "decoder", yield_to_others)
        self._prepared: dict[str, Future[bytes]] = {}
        self._loader = Handle(hosts)
        super().__init__(vocabulary, bounds)

    def _open(self) -> Client:
        return Handle(self._hosts)

    def close(self) -> None:
        """Close all handles, and the decoder."""
        self._decoding_thread.shutdown(cancel_futures=True)
        super().close()
        self._loader.close()
        if self._chdb is not None:
            self._chdb.close()

    @property
    def record_loads(self) -> int:
        """Others load, too: it rises every RECORDS_S."""
        return self._record_loads + int(time.monotonic() / RECORDS_S)

    def definitions(self, statement: str) -> Iterable[str]:
        """What a statement of the schema comes to, on all nodes."""
        return (statement,) if self._cluster is None else on_cluster(statement, self._cluster)

    def alter(self, sql: str, parameters: Mapping[str, Any]) -> None:
        """Begin a change of stored rows, on all shards; `mutations` tells how far it is."""
        super().alter(sql if self._cluster is None else altered(sql, self._cluster), parameters)

    def system_table(self, name: str) -> str:
        """What to read a table of ClickHouse's own state from, for all nodes."""
        return f"system.{name}" if self._cluster is None else f"clusterAllReplicas('{self._cluster}', system.{name})"

    def behind(self) -> list[str]:
        """Replicas, as host and table, that have not fetched yet what another one has; those that are away aside."""
        if self._cluster is None:
            return []
        # A log without entries shows 0 for both, like one whose first entry nobody has seen yet.
        unseen = "log_max_index > 0 AND log_pointer <= log_max_index"
        rows = self.rows(
            f"SELECT concat(hostName(), ' ', table) FROM {self.system_table('replicas')}"
            f" WHERE database IN ('{DISTRIBUTED}', '{LOCAL}') AND (inserts_in_queue > 0 OR {unseen})"
            " SETTINGS skip_unavailable_shards = 1"
        )
        return [name for (name,) in rows]

    def one_copy(self, name: str) -> str:
        """The same of one replica of each shard."""
        return f"system.{name}" if self._cluster is None else f"cluster('{self._cluster}', system.{name})"

    def on_each_node(self, select: str) -> str:
        """What to read the rows of a statement from that each node is to run for itself."""
        return f"({select})" if self._cluster is None else f"clusterAllReplicas('{self._cluster}', view({select}))"

    def insert_block(self, table: str, columns: Sequence[str], block: bytes, token: str, shard: int = 0) -> None:
        """Insert rows in ClickHouse's own format, all of one partition, as one part and once for a token.

        On return they are on disk, on the shards they belong to, or on that of this number from 1. Raises
        StoreUnavailable, after which the same call is safe.
        """
        settings = {**_LOADING, "insert_deduplication_token": token, **_WHOLE}
        if shard:
            settings["insert_shard_id"] = shard
        try:
            self._loader.raw_insert(f"spanhouse.{table}", columns, block, settings)
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot insert into {table}: {text_of(error)}") from error

    def prepare(self, segment: Path, token: str, signal: Signal) -> None:
        """Decode it beside the loads before it: the server works on those meanwhile."""
        if token not in self._prepared and len(self._prepared) < PREPARED_MAX:
            rows = self._rows(segment, signal, token)
            self._prepared[token] = self._decoding_thread.submit(self._decode, rows.select)

    def _decode(self, select: str) -> bytes:
        block: bytes = self._decoder().raw_query(select, fmt="Native")
        return block

    def _decoder(self) -> Client:
        if self._chdb is None:
            self._chdb = clickhouse_connect.get_client(interface="chdb", path=self._decoding)
        return self._chdb

    def _probe(self, select: str) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = self._decoding_thread.submit(
            lambda: self._decoder().query(select).result_rows
        ).result()
        return rows

    def _add_functions(self) -> None:
        add_functions()

    def _block(self, rows: Rows, token: str) -> bytes:
        """The rows of a segment. Not prepared, it may have failed before, for want of memory: then others wait."""
        prepared = self._prepared.pop(token, None)
        if prepared is None:
            self._prepared.clear()
            prepared = self._decoding_thread.submit(self._decode, rows.select)
        return prepared.result()

    def _load(self, rows: Rows, token: str) -> None:
        trusted = self._trusted(rows, token)
        block = self._block(rows, token) if trusted else b""
        token = trusted
        if block:
            settings = {**_LOADING, "insert_deduplication_token": token}
            try:
                self._loader.raw_insert(f"spanhouse.{rows.table}", rows.columns, block, settings)
            except ClickHouseError as error:
                if getattr(error, "code", None) in MEMORY_CODES and len(block) < HARMLESS_BYTES:
                    raise StoreUnavailable(f"cannot load now: {text_of(error)}") from error
                raise

    def _add(self, rows: Rows) -> None:
        block = self._decoding_thread.submit(self._decode, rows.select).result()
        if block:
            settings = {**_LOADING, "insert_deduplicate": 0}
            self._loader.raw_insert(f"spanhouse.{rows.table}", rows.columns, block, settings)

    def _trusted(self, rows: Rows, token: str) -> str:
        """The token to load with; empty if the rows are stored. See recheck.py: replicas share a log that is sound."""
        born = recheck.born_unix_nano(token)
        if born is None or self._cluster is not None:
            return token
        started_s = int(self._loader.command("SELECT toUnixTimestamp(now()) - uptime()"))
        if born >= (started_s + CLOCKS_S) * 1_000_000_000:
            return token
        block = self._decoding_thread.submit(self._decode, recheck.sent(rows)).result()
        sent = ExternalData(
            file_name=recheck.SENT, data=block, fmt="Native", structure=recheck.structure(rows).split(", ")
        )
        if not self._loader.query(recheck.unstored(rows), external_data=sent).result_rows[0][0]:
            logger.info("%s is stored already", token)
            return ""
        return f"{token}+{started_s}"

    def _forget_schema_files(self) -> None:
        try:
            self._chdb.command("SYSTEM DROP FORMAT SCHEMA CACHE")
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot remove a damaged schema file: {text_of(error)}") from error
