"""The real engine for tests of the store and of what reads it: segments are built here, loaded by the engine as `serve`
would load them, and read back. One engine a process and a directory: close one before opening the next."""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import clickhouse_connect
import xxhash
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from collector.frames import Context, Frame, Signal, encode_frame
from query.model import TraceFilter, TraceSummary
from query.traces import Traces
from storage.cluster import CLIENT_SETTINGS, LOCAL
from storage.embedded import Embedded
from storage.engine import Engine
from storage.expiry import Expiry
from storage.hosts import Hosts, hosts_of
from storage.migrate import migrated, pending
from storage.pins import Pins
from storage.policies import RetentionPolicies
from storage.server import Server
from storage.vocabulary import Vocabulary, load


class Footing(NamedTuple):
    """Where the store is: addresses of ClickHouse, None for the one inside, and the name of their cluster."""

    urls: str | None
    cluster: str | None


def footing() -> Footing:
    """Of this run: the cluster at CLICKHOUSE_NODES, or the server at CLICKHOUSE_URL, or chDB."""
    if nodes := os.environ.get("CLICKHOUSE_NODES"):
        return Footing(nodes, "spans")
    return Footing(os.environ.get("CLICKHOUSE_URL"), None)


FOOTING = footing()

Request = ExportTraceServiceRequest | ExportLogsServiceRequest | bytes

RECEIVED = 1_800_000_000_000_000_000
"""2027-01-15T08:00:00Z, the arrival of every frame that says nothing else."""


def server(vocabulary: Vocabulary | None = None) -> Server:
    """The store on the servers of this run, as it is."""
    assert FOOTING.urls is not None
    settings = CLIENT_SETTINGS if FOOTING.cluster else None
    hosts = Hosts(hosts_of(FOOTING.urls), settings=settings)
    return Server(hosts, vocabulary or load(), cluster=FOOTING.cluster)


def clear(engine: Server) -> None:
    """Remove the store from the footing of this run."""
    where = f" ON CLUSTER '{FOOTING.cluster}'" if FOOTING.cluster else ""
    for database in ("spanhouse", LOCAL):
        engine.command(f"DROP DATABASE IF EXISTS {database}{where} SYNC")


def empty(engine: Server) -> None:
    """Remove all rows, or the whole store if it has not this schema: that takes a cluster some seconds to make."""
    if not engine.rows("SELECT count() FROM system.databases WHERE name = 'spanhouse'")[0][0] or pending(engine):
        return clear(engine)
    tables = [
        f"{database}.{name}"
        for database, name in engine.rows(
            "SELECT database, name FROM system.tables WHERE database IN ('spanhouse', 'spanhouse_local')"
            " AND engine LIKE '%MergeTree' AND name != 'migrations'"
        )
    ]
    addresses = hosts_of(FOOTING.urls or "")
    # Of each shard one replica, which waits for the other one.
    for host in addresses[::2] if FOOTING.cluster else addresses:
        client = clickhouse_connect.get_client(host=host.host, port=host.port, settings={"alter_sync": 2})
        for table in tables:
            client.command(f"TRUNCATE TABLE {table}")
        client.close()


def altered(engine: Engine, change: str) -> None:
    """Make a change of stored rows, as `spans DELETE WHERE …`, and wait for it. Behind the back of all that runs."""
    engine.alter(f"ALTER TABLE spanhouse.{change}", {})
    deadline = time.monotonic() + 60
    while not all(done for _, done, _ in engine.mutations(change.split(maxsplit=1)[0])):
        assert time.monotonic() < deadline, f"{change} is not done after 60 s"
        time.sleep(0.02)


class Store:
    """An engine with the schema, and the reader on top."""

    def __init__(self, directory: Path, vocabulary: Vocabulary | None = None) -> None:
        self.directory = directory
        self.vocabulary = vocabulary or load()
        self.engine = migrated(self._open)
        self.traces = Traces(self.engine, self.vocabulary)
        self._segments = 0
        self._run = uuid.uuid4().hex[:8]  # servers remember the tokens of other tests

    def _open(self) -> Engine:
        """The footing: chDB, or the server or cluster that `footing` names, empty for a directory without a store."""
        path = self.directory / "store"
        if FOOTING.urls is None:
            return Embedded(path, self.vocabulary)
        engine = server(self.vocabulary)
        if not path.exists():
            path.mkdir()
            empty(engine)
        return engine

    def load(
        self,
        requests: Sequence[Request],
        tenant: str = "default",
        received: int = RECEIVED,
        context: Context = (),
    ) -> Path:
        """One segment with a frame for each request, loaded."""
        return self.load_of_tenants([(tenant, request) for request in requests], received, context)

    def load_of_tenants(
        self, requests: Sequence[tuple[str, Request]], received: int = RECEIVED, context: Context = ()
    ) -> Path:
        """The same with requests of several tenants."""
        path, token = self._segment(requests, received, context)
        self.engine.load(path, token)
        if any(isinstance(request, ExportLogsServiceRequest) for _, request in requests):
            self.engine.load(path, f"{token}.logs", "logs")
        return path

    def segment(
        self,
        requests: Sequence[Request],
        tenant: str = "default",
        received: int = RECEIVED,
        context: Context = (),
    ) -> tuple[Path, str]:
        """A segment on disk, and its token. Bytes are a request of spans."""
        return self._segment([(tenant, request) for request in requests], received, context)

    def _segment(self, requests: Sequence[tuple[str, Request]], received: int, context: Context) -> tuple[Path, str]:
        self._segments += 1
        path = self.directory / f"{self._segments:04d}.wal"
        with path.open("wb") as file:
            for i, (tenant, request) in enumerate(requests):
                body = request if isinstance(request, bytes) else request.SerializeToString()
                signal: Signal = "logs" if isinstance(request, ExportLogsServiceRequest) else "traces"
                frame = Frame(tenant, xxhash.xxh3_128_digest(body), 0, body, context, signal)
                file.writelines(encode_frame(frame, received + i))
        return path, f"{self._run}-{path.stem}"

    def number(self, sql: str) -> int:
        """A single number that a statement answers, over all tenants."""
        return int(self.engine.rows(sql)[0][0])

    def parts(self, where: str) -> int:
        """How many parts of tables there are, a copy of each."""
        parts, database = self.engine.system_table("parts"), self.engine.database
        all_parts = self.number(f"SELECT count() FROM {parts} WHERE active AND database = '{database}' AND {where}")
        return all_parts // 2 if FOOTING.cluster else all_parts

    def list(self, filters: TraceFilter | None = None, limit: int = 100, tenant: str = "default") -> list[TraceSummary]:
        """The first page."""
        return self.traces.list_traces(tenant, filters or TraceFilter(), limit, None).traces

    def close(self) -> None:
        """Let another store be opened."""
        self.engine.close()


def expiry_of(engine: Engine, policies: RetentionPolicies, pins: Pins, clock: Callable[[], float]) -> Expiry:
    """An expiry that has its store for itself, on every footing."""
    expiry = Expiry(engine, policies, pins, clock)
    expiry._lease = None
    return expiry
