"""Other collectors that bring spans to ClickHouse, each as its makers recommend to run it: Rotel, and the OpenTelemetry
Collector with its ClickHouse exporter. Used from the main thread; none outlives its `with` block.

They write into tables like those that the exporter makes, in a database of the benchmark's own; on a cluster they are
replicated within a shard and `Distributed` by trace, as Spanhouse's are.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import grpc

from benchmarks.meter import Meter

DATABASE = "otel_bench"
READY_S_MAX = 30
STOP_S_MAX = 120
BATCH_SPANS = 5000  # rows an insert at least: what the exporter's README asks for, after ClickHouse's own advice

_MAP = "Map(LowCardinality(String), String)"
_TYPES = {
    "LowCardinality(String)": ("SpanName", "SpanKind", "ServiceName", "StatusCode"),
    "String": ("TraceId", "SpanId", "ParentSpanId", "TraceState", "ScopeName", "ScopeVersion", "StatusMessage"),
    "UInt64": ("Duration",),
    _MAP: ("ResourceAttributes", "SpanAttributes"),
    f"Nested(Timestamp DateTime64(9), Name LowCardinality(String), Attributes {_MAP})": ("Events",),
    f"Nested(TraceId String, SpanId String, TraceState String, Attributes {_MAP})": ("Links",),
}
_INDEXES = {
    "TraceId": "bloom_filter(0.001)",
    **{f"{part}({name})": "bloom_filter(0.01)" for name in _TYPES[_MAP] for part in ("mapKeys", "mapValues")},
    "Duration": "minmax",
}


def _columns() -> str:
    columns = ["Timestamp DateTime64(9) CODEC(Delta, ZSTD(1))"]
    columns += [f"{name} {kind} CODEC(ZSTD(1))" for kind, names in _TYPES.items() for name in names]
    columns += [f"INDEX i{i} {of} TYPE {kind} GRANULARITY 1" for i, (of, kind) in enumerate(_INDEXES.items())]
    return ", ".join(columns)


_LOOKUP_COLUMNS = (
    "TraceId String CODEC(ZSTD(1)), Start DateTime CODEC(Delta, ZSTD(1)), End DateTime CODEC(Delta, ZSTD(1)),"
    " INDEX i0 TraceId TYPE bloom_filter(0.01) GRANULARITY 1"
)


class PeerFailed(Exception):
    """A peer did not start or stop as it should. The text has the end of its log."""


def tables(cluster: str | None) -> list[str]:
    """What makes the exporter's tables, all with its own keys, codecs and indexes."""
    everywhere = f" ON CLUSTER '{cluster}'" if cluster else ""
    local = f"{DATABASE}_local" if cluster else DATABASE

    def engine(table: str) -> str:
        place = f"'/clickhouse/tables/{{shard}}/{DATABASE}/{table}', '{{replica}}'"
        return f"ReplicatedMergeTree({place})" if cluster else "MergeTree"

    statements = [f"CREATE DATABASE {name}{everywhere}" for name in sorted({local, DATABASE})]
    statements += [
        f"CREATE TABLE {local}.otel_traces{everywhere} ({_columns()}) ENGINE = {engine('otel_traces')}"
        " PARTITION BY toDate(Timestamp) ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))"
        " SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1",
        f"CREATE TABLE {local}.otel_traces_trace_id_ts{everywhere} ({_LOOKUP_COLUMNS})"
        f" ENGINE = {engine('otel_traces_trace_id_ts')} PARTITION BY toDate(Start) ORDER BY (TraceId, Start)"
        " SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1",
        f"CREATE MATERIALIZED VIEW {local}.otel_traces_trace_id_ts_mv{everywhere} TO {local}.otel_traces_trace_id_ts"
        " AS SELECT TraceId, min(Timestamp) AS Start, max(Timestamp) AS End"
        f" FROM {local}.otel_traces WHERE TraceId != '' GROUP BY TraceId",
    ]
    if cluster:
        statements.append(
            f"CREATE TABLE {DATABASE}.otel_traces{everywhere} AS {local}.otel_traces"
            f" ENGINE = Distributed('{cluster}', '{local}', 'otel_traces', cityHash64(TraceId))"
        )
    return statements


class Peer:
    """A collector as a process; `grpc` is where it takes OTLP, once it is entered."""

    settings = ""
    """What it runs with, for the report."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log_path = directory / "peer.log"
        self.grpc = f"127.0.0.1:{_free_port()}"
        self._http = f"127.0.0.1:{_free_port()}"

    def command(self) -> Sequence[str]:
        """Arguments of the process."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.meter = Meter(self._process.pid)
        try:
            self._wait_until_it_listens()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def stop(self) -> None:
        """SIGTERM, and wait until it has drained. Raises PeerFailed."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            raise self._failure(f"it did not stop within {STOP_S_MAX} s") from None

    def _wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + READY_S_MAX
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise self._failure(f"it ended with {self._process.returncode}")
            with grpc.insecure_channel(self.grpc) as channel:
                try:
                    grpc.channel_ready_future(channel).result(1)
                    return
                except grpc.FutureTimeoutError:
                    continue
        raise self._failure(f"it did not listen on {self.grpc} within {READY_S_MAX} s")

    def _failure(self, what: str) -> PeerFailed:
        log = self._log_path.read_text(errors="replace")[-3000:]
        return PeerFailed(f"cannot run {self.command()[0]}: {what}\n{log}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Rotel(Peer):
    """Rotel's agent, as PyPI's package `rotel` has it."""

    settings = "batches of 8192 spans or 200 ms, async inserts, LZ4: its defaults"

    def __init__(self, directory: Path, binary: str, clickhouse: str) -> None:
        super().__init__(directory)
        self._binary, self._clickhouse = binary, clickhouse

    def command(self) -> Sequence[str]:
        """Arguments of the process."""
        return (
            self._binary, "start", f"--otlp-grpc-endpoint={self.grpc}", f"--otlp-http-endpoint={self._http}",
            "--exporter=clickhouse", f"--clickhouse-exporter-endpoint={self._clickhouse}",
            f"--clickhouse-exporter-database={DATABASE}", "--clickhouse-exporter-async-insert=true",
            "--otlp-grpc-max-recv-msg-size-mib=64",
        )  # fmt: skip


class Collector(Peer):
    """The OpenTelemetry Collector with the OTLP receiver and the ClickHouse exporter.

    `durable`: its queue on disk (the file_storage extension, with fsync), so that what it acknowledged outlives it.
    """

    def __init__(self, directory: Path, binary: str, clickhouse: str, durable: bool) -> None:
        super().__init__(directory)
        self._binary, self._clickhouse, self._durable = binary, clickhouse, durable
        queue = "in a file, with fsync" if durable else "in memory"
        self.settings = f"sending_queue {queue}, batch of {BATCH_SPANS} spans or 5 s, 10 consumers, async inserts, LZ4"

    def command(self) -> Sequence[str]:
        """Arguments of the process; writes its file of settings."""
        (self._directory / "queue").mkdir(exist_ok=True)
        path = self._directory / "collector.yaml"
        path.write_text(self._configuration())
        return (self._binary, f"--config={path}")

    def _configuration(self) -> str:
        storage = "\n      storage: file_storage" if self._durable else ""
        extension = f"""extensions:
  file_storage:
    directory: {self._directory}/queue
    fsync: true
"""
        return f"""receivers:
  otlp:
    protocols:
      grpc:
        endpoint: {self.grpc}
        max_recv_msg_size_mib: 64
exporters:
  clickhouse:
    endpoint: {self._clickhouse}
    database: {DATABASE}
    create_schema: false
    sending_queue:
      num_consumers: 10{storage}
      batch:
        min_size: {BATCH_SPANS}
        flush_timeout: 5s
        sizer: items
{extension if self._durable else ""}service:
  telemetry:
    metrics:
      level: none
  {"extensions: [file_storage]" if self._durable else ""}
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [clickhouse]
"""


def found(name: str, binary: str | None) -> str:
    """The program of a peer: what is given, or what the path has. Raises PeerFailed."""
    command = {"rotel": "rotel-agent", "otelcol": "otelcol", "otelcol-disk": "otelcol"}[name]
    path = binary or shutil.which(command)
    if path is None or not Path(path).is_file():
        raise PeerFailed(f"cannot find {binary or command}: give its path with --{name.partition('-')[0]}")
    return path


def native_address(url: str, port: int) -> str:
    """ClickHouse's native protocol at the host of an HTTP address: what the exporter recommends."""
    return f"tcp://{urlsplit(url).hostname}:{port}"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
