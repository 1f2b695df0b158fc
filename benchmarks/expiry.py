"""A changed policy that lets go of nine tenths of what is stored, while spans come in: `python -m benchmarks.expiry`.

Past days are loaded into the real program with chDB; then questions are asked while spans of now come in at a steady
rate: first for a while as it is, and then, after the policies were changed, until every day has gone through. The
questions are the same ones in the same order. At the end the store is opened, and has to hold what stays, all of it
and nothing else. Ends with 1 if memory, latencies or rows are not as they should be. Talks to loopback, stops itself.

With `--loaded DIRECTORY` what was loaded is kept there, and used the next time on the same day.
"""

import argparse
import itertools
import json
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks.child import ChildFailed, call
from benchmarks.expiry_load import KINDS, Asker, Sender
from benchmarks.expiry_traces import TRACE_SPANS, Kept, Traces
from benchmarks.load import Client, NotTaken
from benchmarks.meter import MIB, MachineCpu, quantile, share_of_others
from benchmarks.server import Server, ServerFailed
from storage.embedded import Embedded
from storage.vocabulary import load as vocabulary

DAYS = 5
YOUNGEST_DAY_AGE = 2
LOAD_CONNECTIONS = 4
LOAD_S_MAX = 3600
REST_S_MAX = 180
EXPIRE_S_MAX = 3600
MEMORY_BYTES_MAX = 2 << 30
SLOWER_MAX = 2.0
POLICIES = {
    "policies": [
        {"name": "errors", "match": {"status": "error"}, "skeleton_days": 60, "content_days": 60},
        {"name": "chatty", "match": {"service": "chatty-*"}, "skeleton_days": 1, "content_days": 1},
    ],
    "default": {"skeleton_days": 30, "content_days": 30},
}
FIGURES = {
    "spans": {
        "spans": "count()",
        "traces": "uniqExact(TraceId)",
        "ids": "sum(reinterpretAsUInt64(substring(TraceId, 1, 8)))",
    },
    "content": {"contents": "count()"},
    "traces": {"listed": "uniqExact(TraceId)"},
}
"""What is read of each table, by day."""


@dataclass
class Phase:
    """What was seen while something went on. Latencies in milliseconds, by kind of question, and `all`."""

    name: str
    seconds: float = 0
    p50_ms: dict[str, float] = field(default_factory=dict)
    p95_ms: dict[str, float] = field(default_factory=dict)
    questions: int = 0
    refused: int = 0
    ingested_spans: int = 0
    ingest_late_s: float = 0
    resident_bytes_max: int = 0
    cpu_s: float = 0
    others_share: float = 0


class Run:
    """One server that was loaded. `measure` gives the phases."""

    def __init__(self, server: Server, traces: Traces, day: date, arguments: argparse.Namespace) -> None:
        self._server, self._traces, self._day = server, traces, day
        self._spans_per_s, self._seconds = arguments.spans_per_s, arguments.seconds
        self._http = httpx.Client(base_url=server.url, timeout=60)
        self.phases: list[Phase] = []
        self.ingested = 0
        self.progress: dict[str, Any] = {}

    def measure(self) -> None:
        """Before, while the change goes through, and after. Raises ServerFailed."""
        self._phase("before", self._for_a_while)
        self._http.put("/api/v1/retention", json=POLICIES).raise_for_status()
        self._phase("meanwhile", self._until_gone_through)
        self._phase("after", self._for_a_while)

    def _phase(self, name: str, lasts: Callable[[], None]) -> None:
        _say(name)
        server, phase = self._server, Phase(name)
        machine, cpu_s, own_s, begun_s = MachineCpu.now(), server.meter.cpu_s(), time.process_time(), time.monotonic()
        server.meter.forget_peak()
        with ExitStack() as threads:
            sender = threads.enter_context(Sender(server.grpc, self._traces, self._spans_per_s))
            asker = threads.enter_context(Asker(server.url, self._day, self._traces.ids, seed=1))
            lasts()
        phase.seconds = time.monotonic() - begun_s
        phase.cpu_s = server.meter.cpu_s() - cpu_s
        phase.others_share = share_of_others(machine, MachineCpu.now(), phase.cpu_s + time.process_time() - own_s)
        phase.resident_bytes_max, phase.ingested_spans = server.meter.peak_bytes(), sender.spans
        phase.ingest_late_s, phase.refused = sender.late_s, asker.refused
        waits_s = {**asker.waits_s, "all": [wait_s for kind in KINDS for wait_s in asker.waits_s[kind]]}
        phase.questions = len(waits_s["all"])
        for share, into in ((0.5, phase.p50_ms), (0.95, phase.p95_ms)):
            into.update({kind: round(1000 * quantile(waits, share), 1) for kind, waits in waits_s.items()})
        self.ingested += sender.spans
        self.phases.append(phase)
        _say(json.dumps(asdict(phase)))

    def _for_a_while(self) -> None:
        time.sleep(self._seconds)

    def _until_gone_through(self) -> None:
        deadline = time.monotonic() + EXPIRE_S_MAX
        while True:
            self.progress = self._http.get("/api/v1/retention/progress").raise_for_status().json()
            if self.progress["days_done"] == self.progress["days"]:
                return
            if time.monotonic() > deadline:
                raise ServerFailed(f"the policies have not gone through after {EXPIRE_S_MAX} s: {self.progress}")
            time.sleep(0.5)

    def stored_bytes(self) -> int:
        """Of all tables, without parts that were replaced."""
        answer = self._http.get("/api/v1/storage", params={"all_tenants": "true"}).raise_for_status().json()
        return int(answer["store"]["stored_bytes"])


def held(store: Path) -> dict[date, dict[str, int]]:
    """What a store that was stopped has of each day, as `Kept` says it, and the traces that are listed."""
    engine = Embedded(store, vocabulary())
    found: dict[date, dict[str, int]] = {}
    for table, figures in FIGURES.items():
        listed = ", ".join(figures.values())
        for day, *numbers in engine.rows(f"SELECT Day, {listed} FROM spanhouse.{table} GROUP BY Day"):
            found.setdefault(day, {}).update(zip(figures, map(int, numbers), strict=True))
    return found


def wrong(kept: dict[date, Kept], found: dict[date, dict[str, int]]) -> list[str]:
    """What is not as it should be, a sentence each."""
    said = []
    for day in sorted(kept.keys() | found.keys()):
        one, there = kept.get(day, Kept()), found.get(day, {})
        expected = {"spans": one.spans, "ids": one.ids, "contents": one.contents}
        expected |= dict.fromkeys(("traces", "listed"), one.spans // TRACE_SPANS)
        for name, value in expected.items():
            if (is_there := there.get(name, 0)) != value:
                said.append(f"{day}: {name} should be {value}, and are {is_there}")
    return said


def loaded(directory: Path, spans: int, kept_in: Path | None) -> Traces:
    """Fill `directory` with past days, or take what was. Raises ServerFailed, NotTaken."""
    today = datetime.now(UTC).date()
    stored = kept_in / f"{today}-{spans}" if kept_in else None
    if stored is not None and (stored / "traces").exists():
        shutil.copytree(stored / "data", directory / "data", symlinks=True)
        traces: Traces = pickle.loads((stored / "traces").read_bytes())
        return traces
    traces = Traces(1)
    with Server(directory, ["--wal-bytes-max=2GiB"]) as server, ThreadPoolExecutor(LOAD_CONNECTIONS) as pool:
        clients = [Client(server.grpc) for _ in range(LOAD_CONNECTIONS)]
        for day in days_of(today):
            _say(f"loading {day}")
            requests = (body for _, body in traces.day(day, spans // DAYS))
            # A few at a time, so that memory is bounded here, too.
            while some := list(itertools.islice(requests, LOAD_CONNECTIONS)):
                list(pool.map(_send, clients, some))
        _say("waiting until all can be asked for")
        server.wait_until_queryable(traces.sent, LOAD_S_MAX)
        server.meter.wait_for_rest(REST_S_MAX)
        _say(f"loaded; the most memory so far was {server.meter.peak_bytes() / MIB:,.0f} MiB")
        server.stop()
    if stored is not None:
        shutil.copytree(directory / "data", stored / "data", symlinks=True)
        (stored / "traces").write_bytes(pickle.dumps(traces))
    return traces


def _send(client: Client, body: bytes) -> None:
    while (wait_s := client.export(body)) is not None:
        time.sleep(wait_s)


def days_of(today: date) -> list[date]:
    """Those that are loaded, the oldest first."""
    return [today - timedelta(days=YOUNGEST_DAY_AGE + n) for n in reversed(range(DAYS))]


def measure(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All of it. Raises ServerFailed, NotTaken, ChildFailed."""
    traces = loaded(directory, arguments.spans, arguments.loaded)
    loaded_spans, store = traces.sent, directory / "data" / "store"
    with Server(directory) as server:
        run = Run(server, traces, days_of(datetime.now(UTC).date())[-1], arguments)
        before_bytes = run.stored_bytes()
        run.measure()
        server.wait_until_queryable(run.ingested, LOAD_S_MAX)
        server.meter.wait_for_rest(REST_S_MAX)
        after_bytes = run.stored_bytes()
        server.stop()
    found = call(directory, 600, held, store)
    phases = {phase.name: phase for phase in run.phases}
    slower = {
        kind: round(phases["meanwhile"].p95_ms[kind] / phases["before"].p95_ms[kind], 2) for kind in (*KINDS, "all")
    }
    return {
        "spans": loaded_spans,
        "ingested": run.ingested,
        "stay": sum(one.spans for one in traces.kept.values()) - run.ingested,
        "stored_bytes": {"before": before_bytes, "after": after_bytes},
        "progress": run.progress,
        "phases": [asdict(phase) for phase in run.phases],
        "p95_times_of_before": slower,
        "wrong": wrong(traces.kept, found),
    }


def broken(found: dict[str, Any]) -> list[str]:
    """Bounds that were not kept, a sentence each."""
    said = list(found["wrong"])
    for phase in found["phases"]:
        if phase["resident_bytes_max"] >= MEMORY_BYTES_MAX:
            said.append(f"{phase['name']}: {phase['resident_bytes_max'] / MIB:,.0f} MiB of memory")
    if found["p95_times_of_before"]["all"] > SLOWER_MAX:
        said.append(f"the p95 of questions is {found['p95_times_of_before']['all']} times of before")
    return said


ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("seconds", lambda p: f"{p['seconds']:.0f}"),
    ("questions", lambda p: f"{p['questions']:,}"),
    ("- refused", lambda p: f"{p['refused']:,}"),
    ("ingested spans/s", lambda p: f"{p['ingested_spans'] / p['seconds']:,.0f}"),
    ("latest request, s", lambda p: f"{p['ingest_late_s']:.1f}"),
    ("most memory, MiB", lambda p: f"{p['resident_bytes_max'] / MIB:,.0f}"),
    ("processors used", lambda p: f"{p['cpu_s'] / p['seconds']:.2f}"),
    ("others' share of the machine, %", lambda p: f"{100 * p['others_share']:.0f}"),
)


def table(found: dict[str, Any]) -> str:
    """For people."""
    phases = found["phases"]
    lines = [["", *(phase["name"] for phase in phases)], ["---", *("---:" for _ in phases)]]
    lines += [[name, *(of(phase) for phase in phases)] for name, of in ROWS]
    for kind in (*KINDS, "all"):
        for share in ("p50", "p95"):
            lines.append([f"{kind} {share}, ms", *(f"{phase[f'{share}_ms'][kind]:.1f}" for phase in phases)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Measure, print what was found, and end with 1 if a bound was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.expiry", description="A policy that lets much go.")
    parser.add_argument("--spans", type=int, default=10_000_000)
    parser.add_argument("--spans-per-s", type=float, default=3000, help="that come in meanwhile")
    parser.add_argument("--seconds", type=float, default=150, help="of the phases before and after")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--loaded", type=Path, help="where what was loaded is kept for the next time")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spanhouse-bench-", dir=arguments.directory) as directory:
        try:
            found = measure(Path(directory), arguments)
        except (ServerFailed, ChildFailed, NotTaken) as error:
            print(error, file=sys.stderr)
            return 1
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))
    print(table(found))
    print(json.dumps({key: value for key, value in found.items() if key != "phases"}, indent=2))
    said = broken(found)
    print("\n".join(said) if said else "all bounds kept")
    return 1 if said else 0


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
