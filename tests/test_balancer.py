"""The balancer's own configuration, run for real: HAProxy on loopback, two Spanhouses behind it, exporters before it.

Every part has an address of its own in 127.0.0.0/8 and the ports of the containers, so that the file is used as it is.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from exactly_once import check_ledger, ledger, wait_until_loaded
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from program import Program
from sender import GrpcDoor, HttpDoor, Lost, Numbered, Refused, numbered

CONFIG = Path(__file__).parent.parent / "deploy" / "balancer" / "haproxy.cfg"
COLLECTORS = ("127.0.43.1", "127.0.43.2")
BALANCER = "127.0.43.9"
GRPC, HTTP, API = f"{BALANCER}:4317", f"http://{BALANCER}:4318", f"http://{BALANCER}:4320"
UNAVAILABLE = {"502", "503", "504"}
"""HTTP's ways to say that a request may be sent again; gRPC's clients take them for UNAVAILABLE."""


def need_haproxy() -> str:
    """The path of haproxy. Skips the test without it."""
    path = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        message = "HAProxy is missing: apt-get install haproxy"
        if os.environ.get("SPANHOUSE_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    return path


class Balancer:
    """HAProxy with the configuration."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = {"LISTEN": BALANCER, "QUERY": COLLECTORS[0]}
        environment |= {f"COLLECTOR_{at}": host for at, host in enumerate(COLLECTORS, 1)}
        with self._log.open("ab") as log:
            command = [need_haproxy(), "-db", "-f", CONFIG]
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        process = self._process
        wait_for(
            lambda: process.poll() is not None or httpx.get(f"http://{BALANCER}:8404/healthz").is_success,
            self._log.read_text,
        )
        assert process.poll() is None, self._log.read_text()

    def stop(self) -> None:
        """As `docker stop` does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        self._process.wait(60)

    def up(self) -> dict[str, set[str]]:
        """The servers that count, by backend."""
        found: dict[str, set[str]] = {}
        for line in httpx.get(f"http://{BALANCER}:8404/metrics").text.splitlines():
            if line.startswith("haproxy_server_status{") and 'state="UP"' in line and line.endswith(" 1"):
                labels = dict(part.split("=", 1) for part in line[line.index("{") + 1 : line.index("}")].split(","))
                found.setdefault(labels["proxy"].strip('"'), set()).add(labels["server"].strip('"'))
        return found

    def sees_all(self) -> bool:
        """Whether everything counts."""
        both = {"collector-1", "collector-2"}
        return self.up() == {"collectors_grpc": both, "collectors_http": both, "query": {"query"}}


def wait_for(holds, otherwise, seconds_max: float = 30) -> None:
    """Wait until `holds()` is true; `otherwise` says what is wrong if it never is."""
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            if holds():
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.1)


@contextmanager
def two_collectors(directory: Path) -> Iterator[list[Program]]:
    """Each on its address."""
    ports = ("--otlp-grpc-port=4317", "--otlp-http-port=4318", "--http-port=4320")
    programs = [Program(directory / f"collector-{host}", f"--host={host}", *ports) for host in COLLECTORS]
    with programs[0], programs[1]:
        yield programs


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Balancer, list[Program]]]:
    """The balancer before two collectors, when it has seen that both are ready. A test has a tenant of its own."""
    directory = tmp_path_factory.mktemp("balanced")
    with two_collectors(directory) as programs:
        balancer = Balancer(directory / "balancer.log")
        balancer.start()
        try:
            wait_for(balancer.sees_all, balancer.up)
            yield balancer, programs
        finally:
            balancer.stop()


def test_haproxy_finds_nothing_wrong_with_it() -> None:
    environment = {"LISTEN": BALANCER, "COLLECTOR_1": COLLECTORS[0], "COLLECTOR_2": COLLECTORS[1], "QUERY": BALANCER}
    command = [need_haproxy(), "-c", "-f", CONFIG]
    result = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr


@pytest.mark.parametrize("compression", ["NoCompression", "Gzip"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_sdk_exports_through_it(balanced, protocol: str, compression: str) -> None:
    _, collectors = balanced
    tenant = f"{protocol}-{compression}"
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("shop")
    for _ in range(40):
        with tracer.start_as_current_span("checkout"):
            tracer.start_span("pay", attributes={"prompt": "x" * 20_000}).end()
    headers = {"x-spanhouse-tenant": tenant}
    exporter = (
        GrpcExporter(f"http://{GRPC}", True, headers=headers, compression=grpc.Compression[compression])
        if protocol == "grpc"
        else HttpExporter(f"{HTTP}/v1/traces", headers=headers, compression=Compression[compression])
    )
    spans = memory.get_finished_spans()
    for at in range(0, len(spans), 2):
        assert exporter.export(spans[at : at + 2]) is SpanExportResult.SUCCESS
    exporter.shutdown()
    for each in collectors:
        wait_until_loaded(each)
        check_ledger(each)
    stored = [ledger(each).get(tenant, {}).get("stored", 0) for each in collectors]
    assert sum(stored) == len(spans)
    assert all(stored), "one of the two got nothing"


def test_a_request_that_is_sent_again_is_stored_once(balanced) -> None:
    """Over new connections, too, where a round robin would have reached the other one every second time."""
    _, collectors = balanced
    requests = [numbered(1, number, 3, "x" * (number * 997 % 40_000)) for number in range(60)]
    for _ in range(3):
        for door in (GrpcDoor(GRPC, "by-grpc"), HttpDoor(HTTP, "by-http")):
            for request in requests:
                assert door.export(request.body) == b""
            door.close()
    for tenant in ("by-grpc", "by-http"):
        counts = [ledger(each)[tenant] for each in collectors]
        assert sum(each["received"] for each in counts) == 3 * 3 * len(requests)
        assert sum(each["deduplicated"] for each in counts) == 2 * 3 * len(requests)
        assert all(each["received"] for each in counts), "one of the two got nothing"


class Sender(threading.Thread):
    """Sends numbered requests as an exporter does, each again until it is acknowledged."""

    def __init__(self, number: int, stop: threading.Event) -> None:
        super().__init__()
        self.number = number
        self.acknowledged: list[Numbered] = []
        self.sent_again: set[bytes] = set()
        self.wrong: list[str] = []
        self._stop_asked = stop

    def run(self) -> None:
        """Until it is asked to stop."""
        door = GrpcDoor(GRPC, "t") if self.number % 2 else HttpDoor(HTTP, "t")
        while not self._stop_asked.is_set():
            request = numbered(self.number, len(self.acknowledged), 4, "x" * 500)
            try:
                door.export(request.body)
                self.acknowledged.append(request)
                time.sleep(0.02)
                continue
            except Lost as lost:
                if self.number % 2 and "UNAVAILABLE" not in str(lost):
                    self.wrong.append(str(lost))
            except Refused as refused:
                if refused.code not in UNAVAILABLE:
                    self.wrong.append(str(refused))
            self.sent_again.add(request.trace_id)
            time.sleep(0.05)
        door.close()


def spans_stored(program: Program) -> dict[bytes, int]:
    """How many spans of each trace of the senders a collector shows."""
    found: dict[bytes, int] = {}
    cursor: str | None = None
    with httpx.Client(base_url=program.http, headers={"x-spanhouse-tenant": "t"}, timeout=60) as client:
        while True:
            page = client.get("/api/v1/traces", params={"limit": 1000} | ({"cursor": cursor} if cursor else {})).json()
            found |= {bytes.fromhex(trace["trace_id"]): trace["span_count"] for trace in page["traces"]}
            cursor = page["next_cursor"]
            if cursor is None:
                return found


@pytest.mark.slow
def test_kill_9_of_a_collector_loses_nothing_that_was_acknowledged(balanced) -> None:
    balancer, collectors = balanced
    stop = threading.Event()
    senders = [Sender(number, stop) for number in range(1, 5)]
    for sender in senders:
        sender.start()

    def until(count: int) -> None:
        wait_for(
            lambda: all(len(sender.acknowledged) >= count for sender in senders),
            lambda: [(len(sender.acknowledged), sender.wrong) for sender in senders],
        )

    try:
        until(40)
        collectors[0].kill()
        until(90)  # the other takes all of it
        collectors[0].start()
        wait_for(balancer.sees_all, balancer.up)
        until(max(len(sender.acknowledged) for sender in senders) + 40)
    finally:
        stop.set()
        for sender in senders:
            sender.join(60)
    assert not [wrong for sender in senders for wrong in sender.wrong]
    for each in collectors:
        wait_until_loaded(each)
        check_ledger(each)
    requests = [request for sender in senders for request in sender.acknowledged]
    first, second = (spans_stored(each) for each in collectors)
    again = {trace_id for sender in senders for trace_id in sender.sent_again}
    for request in requests:
        kept = sorted((first.get(request.trace_id, 0), second.get(request.trace_id, 0)))
        in_one = [0, request.spans]
        # A request whose answer was lost with the collector may be in both: its sender could not know.
        assert kept == in_one or (request.trace_id in again and kept == [request.spans] * 2), kept
    assert first
    assert second


def test_without_collectors_senders_are_told_to_come_again(balanced) -> None:
    balancer, collectors = balanced
    for each in collectors:
        each.kill()
    request = numbered(1, 1, 2)
    by_grpc, by_http = GrpcDoor(GRPC, "away"), HttpDoor(HTTP, "away")
    for _ in range(2):  # before and after the balancer noticed
        with pytest.raises(Lost, match="UNAVAILABLE"):
            by_grpc.export(request.body)
        with pytest.raises(Refused) as refused:
            by_http.export(request.body)
        assert refused.value.code in UNAVAILABLE
        wait_for(lambda: not balancer.up(), balancer.up)
    for each in collectors:
        each.start()
    wait_for(balancer.sees_all, balancer.up)
    assert by_grpc.export(request.body) == by_http.export(request.body) == b""


def test_mlflows_address(balanced) -> None:
    """Its spans reach the collectors, for the tenant of the address; all else the query service."""
    _, collectors = balanced
    requests = [numbered(7, number, 2, "x" * 100) for number in range(20)]
    for tenant, base in (("default", "/mlflow"), ("team-a", "/mlflow/t/team-a")):
        headers = {"content-type": "application/x-protobuf", "x-mlflow-experiment-id": "0"}
        for request in requests:
            response = httpx.post(f"{API}{base}/v1/traces", content=request.body, headers=headers)
            assert response.status_code == 200, response.text
        counts = [ledger(each).get(tenant, {}).get("received", 0) for each in collectors]
        assert sum(counts) == 2 * len(requests)
        assert all(counts), "one of the two got nothing"
    assert httpx.get(f"{API}/mlflow/version").text == httpx.get(f"{collectors[0].http}/mlflow/version").text
    assert httpx.post(f"{API}/mlflow/t/team-a/api/3.0/mlflow/traces/search", json={}).status_code != 404
    assert httpx.get(f"{API}/readyz").json() == {"status": "ready"}
    assert httpx.get(f"{API}/api/v1/traces").is_success
