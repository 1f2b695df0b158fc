"""Collectors and query services, run apart on a ClickHouse server or cluster: real programs and real servers."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from program import COMMAND, NotReady, Program
from sender import GrpcDoor, HttpDoor
from settling_house import NOW, call, eventually, request, span
from store import FOOTING, clear, server
from xxhash import xxh3_128_digest

from collector.frames import Frame, encode_frame
from storage.cluster import CLIENT_SETTINGS
from storage.errors import StoreUnavailable
from storage.hosts import Hosts, hosts_of
from storage.lease import Lease
from storage.migrate import SchemaMismatch, migrate, migrations, pending
from storage.server import Server
from storage.vocabulary import load

pytestmark = pytest.mark.skipif(FOOTING.urls is None, reason="needs a ClickHouse: CLICKHOUSE_URL or CLICKHOUSE_NODES")

AWAY = "http://127.0.0.1:9"


def options(urls: str | None = None) -> list[str]:
    given = [f"--clickhouse={urls or FOOTING.urls}"]
    return [*given, f"--clickhouse-cluster={FOOTING.cluster}"] if FOOTING.cluster else given


@pytest.fixture
def engine() -> Iterator[Server]:
    """A store without anything in it, not even its schema."""
    engine = server()
    clear(engine)
    yield engine
    engine.close()


def test_many_bring_the_schema_at_once(engine: Server) -> None:
    engines = [server() for _ in range(4)]
    done: list[list[str]] = []
    threads = [threading.Thread(target=lambda one=one: done.append(migrate(one))) for one in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    for one in engines:
        one.close()
    names = [migration.name for migration in migrations()]
    assert len(done) == 4 and sorted(name for some in done for name in some) == names
    assert pending(engine) == []
    assert engine.rows("SELECT count() FROM system.tables WHERE database = 'spanhouse' AND name = 'migrating'") == [
        (0,)
    ]


def test_a_newer_schema_is_used_and_a_changed_one_is_not(engine: Server, caplog: pytest.LogCaptureFixture) -> None:
    migrate(engine)
    engine.command("INSERT INTO spanhouse.migrations (Name, Sha256) VALUES ('9999_future.sql', 'x')")
    eventually(lambda: "9999_future.sql" in caplog.text or pending(engine))
    assert pending(engine) == []
    keep = "DELETE WHERE Name = '0009_implied.sql' SETTINGS mutations_sync = 2"
    engine.command(f"ALTER TABLE spanhouse.migrations{on_cluster()} {keep}")
    engine.command("INSERT INTO spanhouse.migrations (Name, Sha256) VALUES ('0009_implied.sql', 'changed')")
    with pytest.raises(SchemaMismatch, match="was changed after it had been applied"):
        pending(engine)


def on_cluster() -> str:
    return f" ON CLUSTER '{FOOTING.cluster}'" if FOOTING.cluster else ""


def test_migrate_as_a_command(engine: Server, tmp_path: Path) -> None:
    def run(*more: str) -> str:
        command = [COMMAND, "migrate", *options(), *more]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120, cwd=tmp_path).stdout

    dry = run("--dry-run")
    assert "-- 0001_skeleton.sql" in dry and "CREATE TABLE IF NOT EXISTS spanhouse" in dry
    assert ("ReplicatedMergeTree" in dry) is bool(FOOTING.cluster)
    assert engine.rows("SELECT count() FROM system.tables WHERE database = 'spanhouse'") == [(0,)]
    assert "0001_skeleton.sql" in run()
    assert run() == "The schema is up to date.\n"
    assert run("--dry-run") == ""


def test_one_holds_a_lease_until_it_ends_or_is_silent(engine: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate(engine)
    for name, seconds in {"LENGTH_S": 3.0, "RENEW_S": 0.5, "ASK_S": 0.2, "DOUBT_S": 0.5}.items():
        monkeypatch.setattr(f"storage.lease.{name}", seconds)
    other = server()
    first, second = Lease(engine, "work"), Lease(other, "work")

    def holders() -> list[bool]:
        return [first.held(), second.held()]

    held = eventually(lambda: sorted(holders()) == [False, True] and holders())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:  # it is prolonged
        assert holders() == held
        time.sleep(0.1)
    holder, waiting = (first, second) if held[0] else (second, first)
    holder.release()
    eventually(waiting.held, 2)
    # Now silent: the first one takes it after LENGTH_S.
    eventually(holder.held, 6)
    other.close()


def test_a_collector_takes_spans_before_there_is_a_server(engine: Server, tmp_path: Path) -> None:
    """They are in its log, and are stored after a start with the right address."""
    sent = request(span(1, 1), call(1, 2, 1))
    with Program(tmp_path / "data", *options(AWAY), "--shutdown-timeout-s=0.5", role="collect") as collector:
        assert httpx.get(f"{collector.http}/readyz").status_code == 200
        GrpcDoor(collector.grpc).export(sent.SerializeToString())
        eventually(lambda: "cannot load" in collector.log() and "will try again" in collector.log())
        metrics = httpx.get(f"{collector.http}/metrics").text
        assert 'spanhouse_spans_acknowledged_total{tenant="default"} 2.0' in metrics or "acknowledged" in metrics
        assert httpx.get(f"{collector.http}/api/v1/quarantine").json()["frames"] == []
        assert httpx.get(f"{collector.http}/api/v1/traces").status_code == 404
    with Program(tmp_path / "data", *options(), role="collect"):
        eventually(lambda: stored(engine) == 2, 60)


def stored(engine: Server) -> int:
    if not engine.rows("SELECT count() FROM system.tables WHERE database = 'spanhouse' AND name = 'spans'")[0][0]:
        return 0
    return int(engine.rows("SELECT count() FROM spanhouse.spans")[0][0])


def test_two_collectors_and_two_query_services(engine: Server, tmp_path: Path) -> None:
    """What two collectors took is one store: a trace that came through both, settled once, read at either service."""
    parts = [("collect", "a"), ("collect", "b"), ("query", "c"), ("query", "d")]
    programs = [Program(tmp_path / name, *options(), role=role, ready_s_max=120) for role, name in parts]
    try:
        for program in programs:
            program.start()
        a, b, c, d = programs
        GrpcDoor(a.grpc).export(request(span(7, 1), call(7, 2, 1, spanhouse__run__id="r-7")).SerializeToString())
        HttpDoor(b.otlp_http).export(request(call(7, 3, 1, start_s=0.5)).SerializeToString())
        trace_id = f"{7:032x}"
        for service in (c, d):
            service.read_trace(trace_id, 3, seconds_max=30)
        run = eventually(lambda: _run(c, "r-7", 220), 40)
        assert run == _run(d, "r-7", 220)
        # What one service is told the other one tells, too, and whoever settles settles it.
        link = {"links": [{"trace_id": trace_id, "run_id": "r-8"}]}
        assert httpx.post(f"{d.http}/api/v1/links", json=link).json()["links"] == 1
        eventually(lambda: _run(c, "r-8", 220), 40)
        assert httpx.post(f"{c.http}/mlflow/v1/traces", content=b"").status_code == 501
        settling = [service for service in (c, d) if "settles what is loaded" in service.log()]
        assert len(settling) == 1
        # The one that settles dies: the other one does it.
        settling[0].kill()
        left = d if settling[0] is c else c
        HttpDoor(a.otlp_http).export(request(span(9, 1), call(9, 2, 1, spanhouse__run__id="r-9")).SerializeToString())
        eventually(lambda: _run(left, "r-9", 110), 150)
    finally:
        for program in programs:
            if program._process is not None and program._process.poll() is None:
                program.kill()


def _run(service: Program, run_id: str, tokens: int) -> dict | None:
    """The page of a run, once its traces have so many tokens."""
    answer = httpx.get(f"{service.http}/api/v1/runs/{run_id}")
    if answer.status_code != 200 or answer.json()["usage"]["total_tokens"] != tokens:
        return None
    return answer.json()


def test_a_query_service_waits_for_its_server(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="cannot start yet"):
        Program(tmp_path / "data", *options(AWAY), role="query", ready_s_max=5).start()


def test_a_server_without_memory_is_no_fault_of_the_data(engine: Server, tmp_path: Path) -> None:
    """It would end in quarantine."""
    migrate(engine)
    settings = {**(CLIENT_SETTINGS if FOOTING.cluster else {}), "max_memory_usage": 100_000}
    poor = Server(Hosts(hosts_of(FOOTING.urls or ""), settings=settings), load(), cluster=FOOTING.cluster)
    segment = tmp_path / "one.wal"
    body = request(*(call(1, n) for n in range(1, 2000))).SerializeToString()
    segment.write_bytes(b"".join(encode_frame(Frame("default", xxh3_128_digest(body), 0, body, (), "traces"), NOW)))
    with pytest.raises(StoreUnavailable, match="cannot load now"):
        poor.load(segment, "poor")
    poor.close()
    engine.load(segment, "poor")
    assert stored(engine) == 1999


def test_apart_needs_a_server(tmp_path: Path) -> None:
    for role in ("collect", "query"):
        with pytest.raises(NotReady, match=f"cannot {role} without a ClickHouse server"):
            Program(tmp_path / "data", role=role).start()
