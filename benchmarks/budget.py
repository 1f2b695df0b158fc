"""A tenant that sends ten times its budget beside one that does not: `python -m benchmarks.budget`.

An hour of it in some minutes: the budget is small. The loud tenant goes on sending as fast as it is asked to, whatever
it is told; every tenth of its traces has an error. Measured: bytes on disk of the loud tenant and of the whole store
against the budget, how long the quiet tenant waits for its acknowledgements before and meanwhile, the steps that the
API showed, and how many acknowledged traces with an error are missing at the end. Talks to loopback, stops by itself.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event as Stop
from pathlib import Path
from typing import Any

import grpc
import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from benchmarks.server import Server, ServerFailed
from collector.budget_rules import STEPS

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOUD, QUIET = "loud", "quiet"
TRACE_SPANS = 20
TEXT_HEX_BYTES = 1500
"""Half of that is noise, so that a span takes some 1.6 kB on disk however well it is packed."""
ERROR_EVERY = 10
QUIET_EVERY_S = 0.05
DRAIN_S_MAX = 300
P99_TIMES_MAX = 1.5
FILE = """
[[budgets]]
tenant = "loud"
bytes = {bytes}
"""


@dataclass
class Sender:
    """A tenant that sends a trace every so many seconds, and keeps what it heard."""

    address: str
    tenant: str
    every_s: float
    text_bytes: int
    waits_s: list[float] = field(default_factory=list)
    sent_bytes: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    def run(self, stop: Stop, done: "Queue[Sender]") -> None:
        """Until it is told to stop. In a process of its own: what one sender does is not to hold up the other."""
        channel = grpc.insecure_channel(self.address)
        export: Any = channel.unary_unary(EXPORT)
        number, due_s = 0, time.monotonic()
        while not stop.is_set():
            number += 1
            failed = number % ERROR_EVERY == 0
            body, trace_id = _request(failed=failed, text_bytes=self.text_bytes)
            begun_s = time.perf_counter()
            try:
                export(body, timeout=60, metadata=(("x-spanhouse-tenant", self.tenant),))
            except grpc.RpcError:
                self.refused += 1
            else:
                self.waits_s.append(time.perf_counter() - begun_s)
                if failed:
                    self.errors.append(trace_id)
            self.sent_bytes += len(body)
            due_s = max(due_s + self.every_s, time.monotonic() - 1)
            stop.wait(max(due_s - time.monotonic(), 0))
        channel.close()
        done.put(self)


class Sending:
    """A sender that is at work."""

    def __init__(self, sender: Sender) -> None:
        context = get_context("spawn")
        self._stop, self._done = context.Event(), context.Queue()
        self._process = context.Process(target=sender.run, args=(self._stop, self._done), daemon=True)
        self._process.start()

    def stop(self) -> Sender:
        """Have it end, and give what it heard."""
        self._stop.set()
        sender: Sender = self._done.get(timeout=120)
        self._process.join(120)
        return sender


def _request(*, failed: bool, text_bytes: int = TEXT_HEX_BYTES) -> tuple[bytes, str]:
    """One trace, and its id."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "budget"
    spans = resource.scope_spans.add().spans
    trace_id, now = uuid.uuid4(), time.time_ns()
    for number in range(TRACE_SPANS):
        text = AnyValue(string_value=random.randbytes(text_bytes).hex())
        span = spans.add(
            trace_id=trace_id.bytes,
            span_id=random.randbytes(8),
            name="chat",
            start_time_unix_nano=now + number,
            end_time_unix_nano=now + 1_000_000,
            attributes=[KeyValue(key="gen_ai.input.messages", value=text)],
        )
        if failed and number == 0:
            span.status.code = Status.STATUS_CODE_ERROR
    return request.SerializeToString(), trace_id.hex


@dataclass
class Watched:
    """What was seen every second: the most of each, and every step."""

    budget_bytes: int
    stored_bytes_max: int = 0
    disk_bytes_max: int = 0
    used_share_max: float = 0
    steps: list[dict[str, Any]] = field(default_factory=list)

    def look(self, server: Server, store: Path) -> None:
        """Once."""
        asked = {"by": "tenant", "all_tenants": "true"}
        storage = httpx.get(f"{server.url}/api/v1/storage", params=asked, timeout=60).json()
        for group in storage["groups"]:
            if group["name"] == LOUD:
                stored = group["skeleton"]["stored_bytes"] + group["content"]["stored_bytes"]
                self.stored_bytes_max = max(self.stored_bytes_max, stored)
        self.disk_bytes_max = max(self.disk_bytes_max, _bytes_below(store))
        said = httpx.get(f"{server.url}/api/v1/budgets", timeout=60).json()
        self.used_share_max = max([self.used_share_max, *(one["share"] for one in said["budgets"])])
        self.steps = list(reversed(said["changes"]))


def _bytes_below(directory: Path) -> int:
    """What `du` would say; files come and go meanwhile."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(parent) / name).lstat().st_blocks * 512
    return total


def p99_ms(waits_s: list[float]) -> float:
    """The 99th percentile."""
    ordered = sorted(waits_s)
    return round(1000 * ordered[int(0.99 * (len(ordered) - 1))], 1) if ordered else 0.0


def measure(directory: Path, budget_bytes: int, seconds: float) -> dict[str, Any]:
    """All of it. Raises ServerFailed."""
    file = directory / "budgets.toml"
    file.write_text(FILE.format(bytes=budget_bytes))
    # Ten times the budget on disk, half of whose bytes on the wire are noise written in hex.
    wire = len(_request(failed=False)[0])
    every_s = seconds / (10 * budget_bytes / (wire / 2))
    with Server(directory, [f"--budgets={file}", "--budget-interval-s=2"]) as server:
        watched = Watched(budget_bytes)
        sending = Sending(Sender(server.grpc, QUIET, QUIET_EVERY_S, 40))
        _watch(watched, server, seconds / 4)
        before = sending.stop()
        sending = Sending(Sender(server.grpc, QUIET, QUIET_EVERY_S, 40))
        loudly = Sending(Sender(server.grpc, LOUD, every_s, TEXT_HEX_BYTES))
        _watch(watched, server, seconds)
        loud, quiet = loudly.stop(), sending.stop()
        _drain(server)
        watched.look(server, server.data_dir / "store")
        missing = [trace for trace in loud.errors if not _has_error(server, trace)]
        server.stop()
    return {
        "seconds": seconds,
        "budget_bytes": budget_bytes,
        "loud": {"sent_bytes": loud.sent_bytes, "acknowledged": len(loud.waits_s), "refused": loud.refused},
        "loud_stored_bytes_max": watched.stored_bytes_max,
        "loud_used_share_max": round(watched.used_share_max, 3),
        "store_disk_bytes_max": watched.disk_bytes_max,
        "quiet": {
            "refused": quiet.refused,
            "p99_ms_before": p99_ms(before.waits_s),
            "p99_ms_meanwhile": p99_ms(quiet.waits_s),
        },
        "steps": [f"{s['before']} → {s['after']} at {s['share']:.2f}" for s in watched.steps],
        "acknowledged_error_traces": len(loud.errors),
        "missing_error_traces": len(missing),
    }


def _watch(watched: Watched, server: Server, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        watched.look(server, server.data_dir / "store")
        time.sleep(1)


def _drain(server: Server) -> None:
    deadline = time.monotonic() + DRAIN_S_MAX
    while any(
        float(line.rpartition(" ")[2]) > 0
        for line in httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        if line.startswith("spanhouse_spans_in_wal{")
    ):
        if time.monotonic() > deadline:
            raise ServerFailed(f"cannot measure the server: the log is not loaded within {DRAIN_S_MAX} s")
        time.sleep(0.5)


def _has_error(server: Server, trace_id: str) -> bool:
    url = f"{server.url}/api/v1/traces/{trace_id}"
    answer = httpx.get(url, params={"format": "flat"}, headers={"x-spanhouse-tenant": LOUD}, timeout=60)
    return answer.status_code == 200 and any(s["status"]["code"] == "error" for s in answer.json()["spans"])


def main() -> int:
    """Measure, print what was found, and end with 1 if the budget or a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description="A tenant far beyond its budget.")
    parser.add_argument("--budget-mib", type=float, default=64)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spanhouse-bench-", dir=given.directory) as directory:
        try:
            found = measure(Path(directory), int(given.budget_mib * (1 << 20)), given.seconds)
        except ServerFailed as error:
            print(error, file=sys.stderr)
            return 1
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 1 if list(_broken(found)) else 0


def _broken(found: dict[str, Any]) -> Iterator[str]:
    """What is not as promised; said on the way."""
    quiet = found["quiet"]
    checks = {
        "the budget was exceeded": found["loud_stored_bytes_max"] > found["budget_bytes"],
        "acknowledged errors are missing": found["missing_error_traces"] > 0,
        "the quiet tenant was refused": quiet["refused"] > 0,
        "the quiet tenant waited": quiet["p99_ms_meanwhile"] > P99_TIMES_MAX * quiet["p99_ms_before"],
        "a step is missing": {step.split(" → ")[1].split(" ")[0] for step in found["steps"]} < set(STEPS[1:]),
    }
    for what in (what for what, so in checks.items() if so):
        print(what, file=sys.stderr)
        yield what


if __name__ == "__main__":
    sys.exit(main())
