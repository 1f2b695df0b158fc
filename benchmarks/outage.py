"""Kills one node of a cluster after the other under load, then all of them for a while: `python -m benchmarks.outage`.

Two collectors take spans, a query service answers. What was acknowledged must be in the store once at the end; how long
it took until something was stored, and until something was answered, is measured all the while.

CLICKHOUSE_NODES has the nodes' addresses, n1 first, of the cluster `spans`; CLICKHOUSE_CONTROL a command that takes
`stop nK` and `restart nK`. Everything talks to loopback and stops by itself.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import clickhouse_connect
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.load import Client
from benchmarks.server import Server

REQUEST_SPANS, TRACE_SPANS = 100, 10
ASK_EVERY_S = 0.1
DRAIN_S_MAX = 900
CATCH_UP_S_MAX = 300
CLUSTER = "spans"


@dataclass
class Phase:
    """What happened while something was away. Pauses are the longest without the event, in seconds."""

    name: str
    seconds: float = 0
    acknowledged_spans: int = 0
    longest_pause_of_acks_s: float = 0
    longest_pause_of_stores_s: float = 0
    longest_pause_of_answers_s: float = 0
    failed_queries: int = 0
    queries: int = 0


@dataclass
class Pauses:
    """The longest time between two events, since `begin`."""

    last_s: float = field(default_factory=time.monotonic)
    longest_s: float = 0

    def begin(self) -> None:
        """Forget what was."""
        self.last_s, self.longest_s = time.monotonic(), 0

    def event(self) -> None:
        """It happened."""
        now_s = time.monotonic()
        self.longest_s, self.last_s = max(self.longest_s, now_s - self.last_s), now_s

    def so_far(self) -> float:
        """The longest, that which has not ended yet among them."""
        return max(self.longest_s, time.monotonic() - self.last_s)


class Load:
    """A sender to each collector, paced, which sends a request until it is acknowledged; and one who asks."""

    def __init__(self, collectors: list[Server], query: Server, spans_per_s: float) -> None:
        self.acks, self.stores, self.answers = Pauses(), Pauses(), Pauses()
        self.acknowledged, self.queries, self.failed_queries = 0, 0, 0
        self._collectors, self._query, self._pace_s = collectors, query, REQUEST_SPANS * len(collectors) / spans_per_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._known_trace = ""
        self._threads = [threading.Thread(target=self._send, args=(one,), daemon=True) for one in collectors]
        self._threads += [
            threading.Thread(target=self._ask, daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; what was begun to be sent is sent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def stored(self) -> int:
        """Spans that the collectors brought to the store."""
        return sum(collector.stored_spans() for collector in self._collectors)

    def _send(self, collector: Server) -> None:
        client = Client(collector.grpc)
        due_s = time.monotonic()
        while not self._stop.is_set():
            body, trace = _request()
            while (wait_s := client.export(body)) is not None:
                time.sleep(wait_s)
            with self._lock:
                self.acknowledged += REQUEST_SPANS
                self.acks.event()
            self._known_trace = self._known_trace or trace
            due_s = max(due_s + self._pace_s, time.monotonic() - 1)
            self._stop.wait(max(due_s - time.monotonic(), 0))

    def _ask(self) -> None:
        with httpx.Client(base_url=self._query.url, timeout=60) as http:
            while not self._stop.wait(ASK_EVERY_S):
                if not self._known_trace:
                    continue
                try:
                    sound = all(
                        http.get(path).status_code == 200
                        for path in (f"/api/v1/traces/{self._known_trace}", "/api/v1/traces?limit=10&start=-1h")
                    )
                except httpx.HTTPError:
                    sound = False
                self.queries += 1
                if sound:
                    self.answers.event()
                else:
                    self.failed_queries += 1

    def _watch(self) -> None:
        before = 0
        while not self._stop.wait(ASK_EVERY_S):
            stored = self.stored()
            if stored > before:
                before = stored
                self.stores.event()


def _request() -> tuple[bytes, str]:
    """Spans under new ids, of traces that begin now; and the id of one trace."""
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add()
    spans.resource.attributes.add(key="service.name").value.string_value = "outage"
    scope = spans.scope_spans.add()
    now = time.time_ns()
    for _ in range(REQUEST_SPANS // TRACE_SPANS):
        trace_id = uuid.uuid4().bytes
        for number in range(TRACE_SPANS):
            span = scope.spans.add(trace_id=trace_id, span_id=os.urandom(8), name=f"step {number}", kind=1)
            span.start_time_unix_nano, span.end_time_unix_nano = now + number, now + 1_000_000
            span.attributes.add(key="gen_ai.operation.name").value.string_value = "execute_tool"
    return message.SerializeToString(), trace_id.hex()


@contextmanager
def _phase(name: str, load: Load, phases: list[Phase]) -> Iterator[None]:
    phase, started_s = Phase(name), time.monotonic()
    before = load.acknowledged, load.queries, load.failed_queries
    for pauses in (load.acks, load.stores, load.answers):
        pauses.begin()
    yield
    phase.seconds = round(time.monotonic() - started_s, 1)
    phase.acknowledged_spans = load.acknowledged - before[0]
    phase.queries, phase.failed_queries = load.queries - before[1], load.failed_queries - before[2]
    phase.longest_pause_of_acks_s = round(load.acks.so_far(), 2)
    phase.longest_pause_of_stores_s = round(load.stores.so_far(), 2)
    phase.longest_pause_of_answers_s = round(load.answers.so_far(), 2)
    phases.append(phase)
    print(json.dumps(asdict(phase)), flush=True)


def _until(holds: Callable[[], bool], seconds_max: float, what: str) -> float:
    """Wait for it; seconds it took."""
    started_s = time.monotonic()
    while not holds():
        if time.monotonic() - started_s > seconds_max:
            raise SystemExit(f"outage: {what} did not happen within {seconds_max:.0f} s")
        time.sleep(ASK_EVERY_S)
    return time.monotonic() - started_s


def _counts(url: str) -> dict[str, int]:
    """What a node says is stored: spans, different ones, and those that the summaries of traces count."""
    host, _, port = url.removeprefix("http://").partition(":")
    client = clickhouse_connect.get_client(host=host, port=int(port))
    try:
        rows = client.query("SELECT count(), uniqExact(TraceId, SpanId) FROM spanhouse.spans").result_rows[0]
        total = client.query("SELECT sum(Spans) FROM spanhouse.traces").result_rows[0][0]
        return {"stored": rows[0], "different": rows[1], "in_summaries": total}
    finally:
        client.close()


def _run(arguments: argparse.Namespace) -> dict[str, object]:
    nodes = os.environ["CLICKHOUSE_NODES"].split(",")
    control = os.environ["CLICKHOUSE_CONTROL"]
    phases: list[Phase] = []

    def node(what: str, number: int) -> None:
        subprocess.run([control, what, f"n{number}"], check=True, stdout=subprocess.DEVNULL, timeout=120)

    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory(dir=arguments.directory)))
        options = [f"--clickhouse={','.join(nodes)}", f"--clickhouse-cluster={CLUSTER}"]
        servers = []
        for name, role in (("a", "collect"), ("b", "collect"), ("q", "query")):
            (directory / name).mkdir()
            servers.append(parts.enter_context(Server(directory / name, options, role)))
        first, second, query = servers
        load = Load([first, second], query, arguments.spans_per_s)
        load.start()
        parts.callback(load.stop)
        _until(lambda: load.stored() > 0, 120, "the first spans being stored")
        with _phase("all nodes", load, phases):
            time.sleep(arguments.node_s)
        for number in range(1, len(nodes) + 1):
            with _phase(f"n{number} killed and back", load, phases):
                node("stop", number)
                time.sleep(arguments.node_s)
                node("restart", number)
                time.sleep(arguments.node_s)
        with _phase("whole cluster away", load, phases):
            for number in range(1, len(nodes) + 1):
                node("stop", number)
            time.sleep(arguments.away_s)
            wal_bytes = sum(f.stat().st_size for one in "ab" for f in (directory / one / "data" / "wal").iterdir())
        load.stop()
        behind = load.acknowledged - load.stored()
        for number in range(1, len(nodes) + 1):
            node("restart", number)
        drain_s = _until(lambda: load.stored() >= load.acknowledged, DRAIN_S_MAX, "draining the logs")
        caught_up_s = _until(
            lambda: all(set(_counts(url).values()) == {load.acknowledged} for url in nodes),
            CATCH_UP_S_MAX,
            f"every node showing each of {load.acknowledged} spans once (n1: {_counts(nodes[0])})",
        )
        return {
            "acknowledged": load.acknowledged,
            "of_each_node": [_counts(url) for url in nodes],
            "phases": [asdict(phase) for phase in phases],
            "away_s": arguments.away_s,
            "log_bytes_then": wal_bytes,
            "behind_spans_then": behind,
            "drain_s": round(drain_s, 1),
            "drain_spans_per_s": round(behind / max(drain_s, 0.1)),
            "caught_up_s": round(caught_up_s, 1),
        }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--node-s", type=float, default=15, help="seconds that each node is away, and then back")
    parser.add_argument("--away-s", type=float, default=600, help="seconds that the whole cluster is away")
    parser.add_argument("--spans-per-s", type=float, default=4000)
    parser.add_argument("--directory", type=Path, default=None, help="where the logs of the collectors are")
    print(json.dumps(_run(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
