"""ClickHouse as the rest of the program sees it, whether it runs inside this process or elsewhere.

storage/embedded.py has ClickHouse inside the process (chDB), storage/server.py talks to servers; both through
clickhouse-connect. A client handle does one statement at a time. So there is one handle for loads, used by the loader's
thread alone, one for the rows that the API and the settling write, taken in turns, and a few for reads, handed out one
to a query: that many run at once, and a further one waits its turn.

Every read goes through `read`, which names the tenant: ClickHouse itself adds `Tenant = …` to each table of ours that a
statement touches, so that no statement can forget it.
"""

import os
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clickhouse_connect.driver.exceptions import ClickHouseError

from storage.canonical import CanonicalSql
from storage.cluster import of_tenant
from storage.decided import decided_path
from storage.decode import Decoder, Rows
from storage.decode_records import RecordDecoder
from storage.errors import DataError, OutOfMemory, QueryTimeout, QueryTooLarge, StoreError, StoreUnavailable
from storage.literals import literal
from storage.recheck import born_unix_nano
from storage.redaction import Redaction
from storage.redaction_sql import RedactionSql
from storage.retention import Policies
from storage.retention_sql import ClassSql
from storage.rules import BadRules
from storage.shortening import Shortening
from storage.vocabulary import Vocabulary

MIB = 1 << 20
READ_WAIT_S = 10
"""How long a query waits for a free handle before its caller is asked to come again."""
NICENESS = 5
TENANT_TABLES = (
    "spans", "content", "traces", "origins", "facts", "links", "explicit_links", "deployments", "entities",
    "assessments", "records", "mlflow_traces", "volumes", "pins",
)  # fmt: skip

# Codes of ClickHouse (src/Common/ErrorCodes.cpp) that speak of the bytes of a segment: reading or converting them will
# fail again. What is not here is taken for trouble of the store, which passes.
_DATA_CODES = frozenset(
    {6, 26, 27, 32, 33, 34, 36, 38, 41, 43, 53, 69, 70, 72, 117, 125, 128, 131, 190, 321, 349, 407}
    | {434, 435, 436, 437, 444, 574, 686}
)
# 49 is LOGICAL_ERROR: what reading many millions of empty attributes comes to before a shortage of memory is noticed.
MEMORY_CODES = frozenset({241, 49})
_TIME_CODES = frozenset({159, 160, 394})
# BAD_ARGUMENTS and CANNOT_PARSE_PROTOBUF_SCHEMA, of the file in which chDB keeps the schema of a segment.
_SCHEMA_CODES = frozenset({36, 434})
_SCHEMA_FILE = "'__cache__/"
_SIZE_CODES = frozenset({158, 307, 396, 241, 191, 162, 167, 168})

Signal = Literal["traces", "logs"]


Client = Any
"""A handle of clickhouse-connect, or of storage/hosts.py: `command`, `query`, `insert` and `close` are used of it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`memory_bytes_max` is of the whole process, the others of one read; `readers` is how many run at once."""

    memory_bytes_max: int = 1536 * MIB
    query_memory_bytes_max: int = 512 * MIB
    query_timeout_s: float = 30
    readers: int = 4


DEFAULT = Bounds()


class Engine(ABC):
    """A store; `vocabulary` is what loads apply."""

    def __init__(self, vocabulary: Vocabulary, bounds: Bounds) -> None:
        self._vocabulary = vocabulary
        self._canonical = CanonicalSql(vocabulary)
        self._versions: Sequence[Policies] = ()
        self._redaction: RedactionSql | None = None
        self._shortening: Shortening | None = None
        self._building = threading.Lock()
        self._build()
        self._record_loads = 0
        self._read_settings = {
            "max_memory_usage": bounds.query_memory_bytes_max,
            "max_execution_time": bounds.query_timeout_s,
            "max_threads": 2,
            "max_block_size": 8192,
            "log_queries": 0,
        }
        self._writer = self._open_first()
        self._inserter = self._open()
        self._inserting = threading.Lock()
        self._readers: queue.LifoQueue[Client] = queue.LifoQueue()
        for _ in range(bounds.readers):
            self._readers.put(self._open())
        self._reader_count = bounds.readers

    shared = False
    """Whether other processes read and write the same store."""
    database = "spanhouse"
    """Where the tables are that have rows of their own."""

    @abstractmethod
    def _open(self) -> Client:
        """A handle."""

    def _open_first(self) -> Client:
        """The first one."""
        return self._open()

    @abstractmethod
    def _load(self, rows: Rows, token: str) -> None:
        """Insert the rows of a segment, once for a token. Raises ClickHouseError."""

    @abstractmethod
    def _add(self, rows: Rows) -> None:
        """Insert the rows, for better or worse more than once. Raises ClickHouseError."""

    @abstractmethod
    def _forget_schema_files(self) -> None:
        """Have chDB write them again: what it wrote on a full disk is cut, and it goes on believing that."""

    def close(self) -> None:
        """Close all handles. Waits for running statements."""
        for _ in range(self._reader_count):
            self._readers.get().close()
        with self._inserting:
            self._inserter.close()
        self._writer.close()

    def ready(self) -> dict[str, str]:
        """What is not ready, by name, with the reason. Empty when the store answers."""
        try:
            with self._reader() as client:
                client.query("SELECT 1")
        except (ClickHouseError, StoreError) as error:
            return {"store": text_of(error)}
        return {}

    def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """Run a statement that is ours and not a tenant's: schema, maintenance. Gives the scalar it answers, if any."""
        try:
            return self._writer.command(sql, parameters=dict(parameters or {}))
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot change the store: {text_of(error)}") from error

    @property
    def record_loads(self) -> int:
        """A number that rises when log records may have been loaded: as long as it stands, who had none has none."""
        return self._record_loads

    def definitions(self, statement: str) -> Iterable[str]:
        """What a statement of the schema comes to on this store."""
        return (statement,)

    def define(self, statement: str) -> None:
        """Run a statement of the schema. Raises StoreUnavailable; it may then run again."""
        for one in self.definitions(statement):
            self.command(one)

    def system_table(self, name: str) -> str:
        """What to read a table of ClickHouse's own state from, for all of the store."""
        return f"system.{name}"

    def one_copy(self, name: str) -> str:
        """The same of one copy of each row: of one replica of each shard."""
        return f"system.{name}"

    def on_each_node(self, select: str) -> str:
        """What to read the rows of a statement from that each node is to run for itself."""
        return f"({select})"

    def mutations(self, table: str) -> list[tuple[str, bool, str]]:
        """Name, whether it is done and why it fails, of each change of a table's rows that was begun."""
        rows = self.rows(
            "SELECT mutation_id, is_done, latest_fail_reason"
            f" FROM {self.system_table('mutations')} WHERE database IN ('spanhouse', '{self.database}')"
            f" AND table = '{table}'"
        )
        return [(name, bool(done), reason) for name, done, reason in rows]

    def alter(self, sql: str, parameters: Mapping[str, Any]) -> None:
        """Begin a change of stored rows; the engine carries it out in its background (`mutations`)."""
        try:
            with self._inserting:
                self._inserter.command(sql, parameters=dict(parameters))
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot change stored rows: {text_of(error)}") from error

    def fill(self, sql: str, parameters: Mapping[str, Any]) -> None:
        """INSERT INTO a table of ours what a statement selects, however long that takes; its settings bound it.

        Raises StoreUnavailable, after which the same call is safe. What ClickHouse says may quote the parameters, so
        that only its code is passed on.
        """
        try:
            with self._reader() as client:
                client.command(sql, parameters=dict(parameters))
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot fill a table: error {getattr(error, 'code', None)}") from None

    def rows(self, sql: str) -> Sequence[Sequence[Any]]:
        """Rows of a statement over the engine's own state: parts, merges, migrations. No tenant's data."""
        try:
            with self._reader() as client:
                rows: Sequence[Sequence[Any]] = client.query(sql).result_rows
                return rows
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot ask the store: {text_of(error)}") from error

    def insert(
        self, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], token: str | None = None
    ) -> None:
        """Insert rows into a table of ours. On return they are on disk and every read sees them (some 10 ms).

        FixedString takes bytes, DateTime64 its ticks since 1970, a Tuple a tuple. Raises StoreUnavailable, after which
        the same rows may be inserted again: the tables written this way replace rows of the same key. Where rows add up
        instead, they need a token, once for which they are inserted.
        """
        settings: dict[str, Any] = {"async_insert": 0, "insert_deduplicate": 0}
        if token is not None:
            settings |= {"insert_deduplicate": 1, "insert_deduplication_token": token}
        try:
            with self._inserting:
                self._inserter.insert(f"spanhouse.{table}", rows, column_names=list(columns), settings=settings)
        except ClickHouseError as error:
            raise StoreUnavailable(f"cannot write to {table}: {text_of(error)}") from error

    def classify(self, versions: Sequence[Policies]) -> None:
        """Let loads give spans their classes: each segment by the newest of these versions that is older than it."""
        with self._building:
            self._versions = versions
            self._build()

    def redact(self, redaction: Redaction) -> None:
        """Let loads apply these rules; to be called before the first load. Raises BadRules, StoreUnavailable.

        A segment whose load was cut short is stored once, as far as its rows are the same under the rules it is loaded
        again with; those that replace what policies match may move a span to another class.
        """
        sql = RedactionSql(redaction)
        self._add_functions()
        for rule, select in sql.probes():
            try:
                rows = self._probe(select)
            except ClickHouseError as error:
                text = f"cannot use the pattern {rule.pattern!r} of rule {rule.name!r}: {text_of(error)}"
                raise BadRules(text) from error
            if rows[0][0]:
                raise BadRules(
                    f"cannot use the pattern {rule.pattern!r} of rule {rule.name!r}: it matches a text without "
                    "characters; write + where * stands"
                )
        with self._building:
            self._redaction = sql
            self._build()

    def shorten(self, tenants: Iterable[str], bytes_max: int) -> None:
        """Let loads from now on shorten the content of these tenants that is longer, instead of those before.

        A segment that is loaded again need not be shortened as it was: what identifies its rows is not touched.
        """
        wanted = sorted(tenants)
        if wanted:
            self._add_functions()
        with self._building:
            self._shortening = Shortening(wanted, bytes_max) if wanted else None
            self._build()

    def _build(self) -> None:
        changes: dict[str, Any] = {"redaction": self._redaction, "shortening": self._shortening}
        decoders = []
        for policies in sorted(self._versions, key=lambda policies: policies.since_unix_nano, reverse=True):
            sql = ClassSql(policies, self._vocabulary)
            decoder = Decoder(self._canonical, sql.of_ingest(), sql.resource_bits, **changes)
            decoders.append((policies.since_unix_nano, decoder))
        self._decoders = decoders or [(0, Decoder(self._canonical, **changes))]
        self._records = RecordDecoder(**changes)

    @abstractmethod
    def _probe(self, select: str) -> Sequence[Sequence[Any]]:
        """Rows of a statement that is run where segments are decoded. Raises ClickHouseError."""

    @abstractmethod
    def _add_functions(self) -> None:
        """Let those statements use the functions of nested_texts.py. May be called again."""

    def prepare(self, segment: Path, token: str, signal: Signal) -> None:  # noqa: B027 (chDB decodes as it stores)
        """Begin with what can be done of a load while another one runs: that of this segment will be the next."""

    def _rows(self, segment: Path, signal: Signal, token: str) -> Rows:
        if signal == "logs":
            return self._records.rows(segment.absolute())
        decided = decided_path(segment.absolute())
        # A load that was cut short is repeated with the classes it had: parts are known by partition and token.
        decoders, born = self._decoders, born_unix_nano(token)
        decoder = next((d for since, d in decoders if born is not None and since <= born), None)
        chosen = decoder or decoders[-1 if born is not None else 0][1]
        return chosen.rows(segment.absolute(), decided if decided.exists() else None)

    def load(self, segment: Path, token: str, signal: Signal = "traces") -> None:
        """Insert every span, or log record, of a segment, once for a token. On return it is on disk, in all tables.

        Raises DataError if the bytes do not load, today or ever; OutOfMemory if the segment may be too large for the
        memory there is; StoreUnavailable for all else, after which the same call with the same token is safe.
        """
        try:
            self._load(self._rows(segment, signal, token), token)
            self._record_loads += signal == "logs"
        except ClickHouseError as error:
            raise self._failure(f"cannot load {segment.name}", error) from error

    def add(self, segment: Path, rows: Rows) -> None:
        """Insert what a segment comes to into a table whose rows may repeat. Raises what `load` raises."""
        try:
            self._add(rows)
        except ClickHouseError as error:
            raise self._failure(f"cannot survey {segment.name}", error) from error

    def _failure(self, what: str, error: ClickHouseError) -> StoreError:
        text = f"{what}: {text_of(error)}"
        code = getattr(error, "code", None)
        if code in _SCHEMA_CODES and _SCHEMA_FILE in text:
            self._forget_schema_files()
            return StoreUnavailable(text)
        if code in _DATA_CODES:
            return DataError(text)
        return OutOfMemory(text) if code in MEMORY_CODES else StoreUnavailable(text)

    def read(self, tenant: str, sql: str, parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        """Columns of what a statement selects from one tenant's rows; strings come as bytes.

        Raises QueryTimeout, QueryTooLarge or StoreUnavailable.
        """
        filters = dict.fromkeys(of_tenant(TENANT_TABLES), f"Tenant = {literal(tenant)}")
        return self._read(sql, parameters, {"additional_table_filters": filters})

    def read_all(self, sql: str, parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        """The same of all tenants' rows together, for the operator: what is stored of whom, and nobody's spans."""
        return self._read(sql, parameters, {})

    def _read(self, sql: str, parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Sequence[Any]]:
        try:
            with self._reader() as client:
                result = client.query(
                    sql,
                    parameters=dict(parameters),
                    settings={**self._read_settings, **settings},
                    query_formats={"String": "bytes", "FixedString": "bytes"},
                    column_oriented=True,
                )
                return list(result.result_columns)
        except ClickHouseError as error:
            code = getattr(error, "code", None)
            if code in _TIME_CODES:
                timeout_s = self._read_settings["max_execution_time"]
                raise QueryTimeout(f"cannot answer within {timeout_s} s; ask for a shorter time range") from error
            if code in _SIZE_CODES:
                raise QueryTooLarge(
                    "cannot answer within the memory of a query; ask for a shorter time range"
                ) from error
            raise StoreUnavailable(f"cannot read from the store: {text_of(error)}") from error

    @contextmanager
    def _reader(self) -> Iterator[Client]:
        try:
            client = self._readers.get(timeout=READ_WAIT_S)
        except queue.Empty:
            raise StoreUnavailable("cannot read: all readers are busy; try again") from None
        try:
            yield client
        finally:
            self._readers.put(client)


def yield_to_others() -> None:
    """Make this thread, and the threads it starts, nicer than the rest of the process."""
    if hasattr(os, "setpriority"):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS))


def text_of(error: Exception) -> str:
    """The first line of what ClickHouse says, without its stack and version."""
    return str(error).split("\n", 1)[0].split(" (version ", 1)[0][:500]
