"""Spanhouse beside other collectors on the same ClickHouse, in one run: `python -m benchmarks.footings`.

The footing is the cluster `spans` at CLICKHOUSE_NODES, or the server at CLICKHOUSE_URL. Each collector in turn gets the
same requests at full speed and an empty database of its own; then the run waits until ClickHouse has what was
acknowledged, and until its merges are done. Both are on this machine, on loopback: what each costs is read from /proc,
of the collector and of ClickHouse apart. Everything is bounded and stops by itself.

The databases `spanhouse`, `spanhouse_local`, `otel_bench` and `otel_bench_local` of that ClickHouse are removed.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, get_args
from urllib.parse import urlsplit

import clickhouse_connect

from benchmarks import payloads, peers, report
from benchmarks.child import ChildFailed, call
from benchmarks.load import Sent, send
from benchmarks.meter import MachineCpu, Meter, quantile, share_of_others
from benchmarks.payloads import Payload, Profile
from benchmarks.peers import DATABASE, Collector, PeerFailed, Rotel
from benchmarks.server import Server, ServerFailed

CLUSTER = "spans"
SEND_S_MAX = 660
NOTHING_NEW_S_MAX = 90
"""So long after the last new span nothing more is waited for: what is missing is lost."""
REST_S, REST_S_MAX = 3, 300
IDLE_S = 5
ASK_EVERY_S = 0.1
NAMES = ("spanhouse", "rotel", "otelcol", "otelcol-disk")
SPANS: dict[Profile, int] = {"agent": 300_000, "service": 1_000_000}
QUICK_SPANS: dict[Profile, int] = {"agent": 5_000, "service": 5_000}


class CannotMeasure(Exception):
    """The footing is not as it should be; the text says how."""


class Contestant(Protocol):
    """A collector that runs: Server or Peer."""

    grpc: str
    meter: Meter

    def stop(self) -> None:
        """Let it end in peace."""


@dataclass(frozen=True)
class Figures:
    """What one collector did with one payload. Processor seconds last until the merges are done, if `rested`; those of
    ClickHouse are without what it uses at rest, which of four nodes is a tenth of a core and more.

    Stored bytes are of one replica, after OPTIMIZE FINAL; `lost` was acknowledged and never seen in ClickHouse, `extra`
    was seen more often than it was sent.
    """

    collector: str
    settings: str
    profile: Profile
    sent_spans: int
    accepted_spans_per_s: float
    ack_p50_ms: float
    ack_p99_ms: float
    retries: int
    queryable_spans_per_s: float
    lost: int
    extra: int
    collector_cpu_s_per_million: float
    clickhouse_cpu_s_per_million: float
    stored_bytes_per_span: float
    collector_peak_mb: float
    others_share: float
    rested: bool


class ClickHouse:
    """The footing: its addresses, its processes on this machine, and statements that make and count."""

    def __init__(self) -> None:
        nodes = os.environ.get("CLICKHOUSE_NODES", "")
        self.urls = [url for url in (nodes or os.environ.get("CLICKHOUSE_URL", "")).split(",") if url]
        self.cluster = CLUSTER if nodes else None
        if not self.urls:
            raise CannotMeasure("cannot measure: set CLICKHOUSE_URL, or CLICKHOUSE_NODES for the cluster `spans`")
        url = urlsplit(self.urls[0])
        self._client: Any = clickhouse_connect.get_client(
            host=url.hostname, port=url.port or 8123, autogenerate_session_id=False, send_receive_timeout=600
        )
        self.meters = [Meter(process_listening(urlsplit(one).port or 8123)) for one in self.urls]

    def number(self, sql: str) -> int:
        """The single number that a statement answers; 0 while its table is not there."""
        try:
            return int(self._client.query(sql).result_rows[0][0])
        except clickhouse_connect.driver.exceptions.DatabaseError as error:
            if "UNKNOWN_TABLE" in str(error) or "UNKNOWN_DATABASE" in str(error):
                return 0
            raise

    def clear(self) -> None:
        """Remove what a run makes."""
        for name in ("spanhouse", "spanhouse_local", DATABASE, f"{DATABASE}_local"):
            self._do(f"DROP DATABASE IF EXISTS {name}{self._everywhere} SYNC")

    def make_tables_of_peers(self) -> None:
        """The tables that Rotel and the Collector write to."""
        for statement in peers.tables(self.cluster):
            self._do(statement)

    def stored_bytes(self, database: str) -> int:
        """Of one replica, when nothing is left to merge."""
        local = f"{database}_local" if self.cluster else database
        tables = f"SELECT name FROM system.tables WHERE database = '{local}' AND engine LIKE '%MergeTree'"
        for [table] in self._client.query(tables).result_rows:
            self._do(f"OPTIMIZE TABLE {local}.{table}{self._everywhere} FINAL")
        parts = f"cluster('{self.cluster}', system.parts)" if self.cluster else "system.parts"
        return self.number(f"SELECT sum(bytes_on_disk) FROM {parts} WHERE active AND database = '{local}'")

    def cpu_s(self) -> float:
        """Processor seconds of all its nodes so far."""
        return sum(meter.cpu_s() for meter in self.meters)

    def wait_for_rest(self) -> bool:
        """Until nothing is merged or fetched, on all nodes, for some seconds; False when that took too long."""

        def system(table: str) -> str:
            return f"clusterAllReplicas('{self.cluster}', system.{table})" if self.cluster else f"system.{table}"

        busy = f"SELECT (SELECT count() FROM {system('merges')}) + (SELECT count() FROM {system('replication_queue')})"
        deadline, still_s = time.monotonic() + REST_S_MAX, time.monotonic()
        while time.monotonic() < deadline:
            if self.number(busy):
                still_s = time.monotonic()
            elif time.monotonic() - still_s > REST_S:
                return True
            time.sleep(ASK_EVERY_S * 5)
        return False

    def idle_share(self) -> float:
        """Of one core, what its nodes use when they have nothing to do."""
        start_s, cpu_s = time.monotonic(), self.cpu_s()
        time.sleep(IDLE_S)
        return (self.cpu_s() - cpu_s) / (time.monotonic() - start_s)

    def native_port(self) -> int:
        """Where it speaks its own protocol."""
        return self.number("SELECT tcpPort()")

    @property
    def _everywhere(self) -> str:
        return f" ON CLUSTER '{self.cluster}'" if self.cluster else ""

    def _do(self, sql: str) -> None:
        self._client.command(sql, settings={"distributed_ddl_output_mode": "none"} if self.cluster else None)


def process_listening(port: int) -> int:
    """The process of this machine that listens on a port. Raises CannotMeasure where there is none to look at."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(link.readlink()) in inodes for link in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    raise CannotMeasure(f"cannot find the process that listens on port {port}: ClickHouse must run on this machine")


@contextmanager
def running(name: str, directory: Path, footing: ClickHouse, given: argparse.Namespace) -> Iterator[tuple[Any, str]]:
    """A collector over an empty database, and what it runs with. Raises PeerFailed, ServerFailed."""
    footing.clear()
    if name == "spanhouse":
        options = [f"--clickhouse={','.join(footing.urls)}"]
        options += [f"--clickhouse-cluster={footing.cluster}"] if footing.cluster else []
        with Server(directory, options, given.role) as server:
            yield server, f"spanhouse {given.role}, its defaults"
        return
    footing.make_tables_of_peers()
    if name == "rotel":
        peer: peers.Peer = Rotel(directory, peers.found(name, given.rotel), footing.urls[0])
    else:
        address = peers.native_address(footing.urls[0], footing.native_port())
        peer = Collector(directory, peers.found(name, given.otelcol), address, durable=name == "otelcol-disk")
    with peer:
        yield peer, peer.settings


def measure(name: str, payload: Payload, profile: Profile, footing: ClickHouse, given: argparse.Namespace) -> Figures:
    """Send a payload through one collector. Raises ChildFailed, PeerFailed, ServerFailed."""
    table = "spanhouse.spans" if name == "spanhouse" else f"{DATABASE}.otel_traces"
    with tempfile.TemporaryDirectory(prefix="footings-", dir=given.directory) as temporary:
        directory = Path(temporary)
        with running(name, directory, footing, given) as (collector, settings):
            footing.wait_for_rest()
            idle_share, start_s = footing.idle_share(), time.monotonic()
            machine, cpu_s, clickhouse_s = MachineCpu.now(), collector.meter.cpu_s(), footing.cpu_s()
            sent = call(directory, SEND_S_MAX, send, collector.grpc, payload)
            stored, last_s = _wait_for_spans(footing, table, sent)
            rested = footing.wait_for_rest() and collector.meter.wait_for_rest(60)
            cpu_s, clickhouse_s = collector.meter.cpu_s() - cpu_s, footing.cpu_s() - clickhouse_s
            others = share_of_others(machine, MachineCpu.now(), cpu_s + clickhouse_s + sent.cpu_s)
            clickhouse_s -= idle_share * (time.monotonic() - start_s)
            peak_bytes = collector.meter.peak_bytes()
            collector.stop()
        stored = footing.number(f"SELECT count() FROM {table}")  # what came when it ended counts
        stored_bytes = footing.stored_bytes("spanhouse" if name == "spanhouse" else DATABASE)
    million = sent.spans / 1e6
    return Figures(
        collector=name,
        settings=settings,
        profile=profile,
        sent_spans=sent.spans,
        accepted_spans_per_s=sent.spans / sent.seconds,
        ack_p50_ms=quantile(sent.ack_s, 0.5) * 1000,
        ack_p99_ms=quantile(sent.ack_s, 0.99) * 1000,
        retries=sent.retries,
        queryable_spans_per_s=min(stored, sent.spans) / (last_s - sent.start_s),
        lost=max(sent.spans - stored, 0),
        extra=max(stored - sent.spans, 0),
        collector_cpu_s_per_million=cpu_s / million,
        clickhouse_cpu_s_per_million=max(clickhouse_s, 0) / million,
        stored_bytes_per_span=stored_bytes / max(stored, 1),
        collector_peak_mb=peak_bytes / 1e6,
        others_share=others,
        rested=rested,
    )


def _wait_for_spans(footing: ClickHouse, table: str, sent: Sent) -> tuple[int, float]:
    """How many spans ClickHouse shows in the end, and when it showed the last of them."""
    stored, last_s = -1, time.monotonic()
    while stored < sent.spans and time.monotonic() < last_s + NOTHING_NEW_S_MAX:
        now = footing.number(f"SELECT count() FROM {table}")
        if now > stored:
            stored, last_s = now, time.monotonic()
        time.sleep(ASK_EVERY_S)
    return stored, last_s


ROWS = {
    "accepted_spans_per_s": "accepted spans/s",
    "ack_p50_ms": "ack p50, ms",
    "ack_p99_ms": "ack p99, ms",
    "queryable_spans_per_s": "queryable spans/s",
    "collector_cpu_s_per_million": "CPU s a million spans, collector",
    "clickhouse_cpu_s_per_million": "CPU s a million spans, ClickHouse",
    "stored_bytes_per_span": "stored bytes a span, merged",
    "collector_peak_mb": "most memory of the collector, MB",
    "retries": "requests sent again",
    "lost": "acknowledged and lost",
    "extra": "stored twice",
    "others_share": "others' share of the machine, %",
}


def table_of(measured: list[Figures], profile: Profile, footing: str) -> str:
    """The figures of a profile as a table of Markdown: a column a collector."""
    columns = [figures for figures in measured if figures.profile == profile]
    lines = [f"| {profile} spans, {footing} | " + " | ".join(figures.collector for figures in columns) + " |"]
    lines.append("| --- |" + " ---: |" * len(columns))
    for name, text in ROWS.items():
        scale = 100 if name == "others_share" else 1
        cells = [getattr(figures, name) * scale for figures in columns]
        lines.append(
            f"| {text} | " + " | ".join(f"{c:,.1f}" if c < 1000 and c % 1 else f"{c:,.0f}" for c in cells) + " |"
        )
    unrested = [figures.collector for figures in columns if not figures.rested]
    return "\n".join(lines + ([f"\nMerges were not done in time: {', '.join(unrested)}"] if unrested else []))


def main() -> int:
    """Measure what the arguments ask for."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped and files are removed
    measured: list[Figures] = []
    failed = False
    try:
        footing = ClickHouse()
        place = f"cluster of {len(footing.urls)}" if footing.cluster else "server"
        machine = {**report.machine(given.directory), "clickhouse": place}
        print("; ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n", flush=True)
        for profile in get_args(Profile) if given.profile == "both" else (given.profile,):
            spans = given.spans or (QUICK_SPANS if given.quick else SPANS)[profile]
            with tempfile.TemporaryDirectory(prefix="footings-", dir=given.directory) as directory:
                payload = payloads.write(Path(directory) / "payload", profile, spans, seed=1)
                for name in given.collector or NAMES:
                    print(f"{profile}: {payload.spans} spans through {name}", file=sys.stderr, flush=True)
                    try:
                        measured.append(measure(name, payload, profile, footing, given))
                    except (ChildFailed, PeerFailed, ServerFailed) as error:
                        failed = True
                        print(f"cannot measure {name}: {error}", file=sys.stderr, flush=True)
            print(table_of(measured, profile, place), end="\n\n", flush=True)
        footing.clear()
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 1
    for figures in {figures.collector: figures for figures in measured}.values():
        print(f"{figures.collector}: {figures.settings}")
    if given.json:
        document = {"machine": machine, "arguments": sys.argv[1:], "figures": [asdict(one) for one in measured]}
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return int(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.footings", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--collector", action="append", choices=NAMES, help="only this one; may be given again")
    parser.add_argument("--profile", choices=(*get_args(Profile), "both"), default="both")
    parser.add_argument("--spans", type=int, help="spans of each profile")
    parser.add_argument("--quick", action="store_true", help="a few spans, to see that it runs; its figures say little")
    parser.add_argument("--role", choices=("collect", "serve"), default="collect", help="what of Spanhouse runs")
    parser.add_argument("--rotel", metavar="FILE", help="rotel-agent, of PyPI's package rotel")
    parser.add_argument("--otelcol", metavar="FILE", help="a Collector with otlp, clickhouse and file_storage")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured to this file")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where logs and queues are")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
