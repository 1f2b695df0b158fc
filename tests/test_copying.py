"""`spanhouse copy`: a store in chDB comes to a ClickHouse server whole, once, and whatever happens meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import httpx
import orjson
import pytest
import settling_house as house
from copier import copied, inserted
from otlp_building import logs, record
from otlp_building import request as plain_request
from otlp_building import span as plain_span
from program import COMMAND, Program
from recorded import CASES, requests
from settling_house import House, call, trace_id
from store import FOOTING, Store, altered, clear, server

from collector.otlp_json import to_protobuf
from query import trace_json
from query.assessment_answers import assessment_json
from query.tree import build
from storage import copy_target, retention, sampling
from storage.assessments import Assessment
from storage.cluster import LOCAL
from storage.copy_source import CannotCopy, Workplace
from storage.copy_units import TABLES
from storage.copying import Copy
from storage.embedded import Embedded
from storage.engine import Engine
from storage.hosts import hosts_of
from storage.linking import Deployment
from storage.pins import Pin, Pins
from storage.policies import RetentionPolicies
from storage.sampling_rules import SamplingRules
from storage.server import Server

URL = FOOTING.urls or ""
pytestmark = pytest.mark.skipif(not URL, reason="needs a ClickHouse to copy to: CLICKHOUSE_URL or CLICKHOUSE_NODES")
CLUSTER = [f"--clickhouse-cluster={FOOTING.cluster}"] if FOOTING.cluster else []
SPANS_MAX = 10_000
TRACES_READ = 4
"""Of each tenant, when both sides are read as a reader would; as rows, they are compared whole."""
DAY_S = 86_400


class Source(Store):
    """The store inside, whatever CLICKHOUSE_URL says."""

    def _open(self) -> Engine:
        return Embedded(self.directory / "store", self.vocabulary)


class Target(Store):
    """The store at CLICKHOUSE_URL, as it is."""

    def _open(self) -> Engine:
        return server(self.vocabulary)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with something in every table: what was recorded, and agents over three days."""
    directory = tmp_path_factory.mktemp("filled") / "data"
    directory.mkdir()
    rooms = House(directory, Source(directory)).start()
    for case in CASES:
        sent = [r.decoded() if "json" not in r.content_type else to_protobuf(r.body) for r in requests(case)]
        rooms.load(*sent, tenant=case, received=house.NOW)
    for day in range(3):
        rooms.load(*(agent(n, day) for n in range(day * 100 + 1, day * 100 + 61)))
    # Two requests that differ in nothing: neither is a copy of the other.
    twin = plain_request(plain_span(1, start_time_unix_nano=house.NOW, end_time_unix_nano=house.NOW + 5))
    rooms.load(twin)
    rooms.load(twin)
    path = rooms.store.load([logs(*(record(n) for n in range(1, 250)))], "talk")
    assert path.exists()
    said = [Assessment(trace_id(n), "quality", n / 100, "human", "anna") for n in range(1, 40)]
    rooms.assessments.put("default", said)
    rooms.annotations.link("default", [trace_id(n) for n in range(1, 30)], "run", "night")
    rooms.annotations.put_entity("default", "run", "night", "", {"name": "Night run"})
    rooms.deployments.put("default", Deployment("d", "agent", "", "bot", "7", house.START, None))
    rooms.settle(300)
    # Links that are no more: their rows say so.
    rooms.annotations.link("default", [trace_id(n) for n in range(1, 10)], "run", "day")
    rooms.settle(300)
    Pins(rooms.engine).put("default", Pin("run", "night"))
    policies = RetentionPolicies(rooms.engine, rooms.store.vocabulary)
    policies.put(retention.from_toml("[default]\nskeleton_days = 90\ncontent_days = 60"), "anna", "")
    SamplingRules(rooms.engine, rooms.store.vocabulary).put(sampling.from_toml("wait_s = 5"), "anna", "")
    rooms.close()
    return directory


def agent(number: int, day: int = 0):
    """A request of two model calls, `day` days ago."""
    more = {"gen_ai__input__messages": f"Question {number} " * 30, "session__id": f"s{number % 7}"}
    return house.request(
        call(number, 1, start_s=-day * DAY_S + number, **more),
        call(number, 2, parent=1, start_s=-day * DAY_S + number + 0.5, failed=number % 5 == 0),
    )


@pytest.fixture
def data_dir(filled: Path, tmp_path: Path) -> Iterator[Path]:
    """The filled store for this test alone, and an empty target."""
    target = server()
    clear(target)
    target.close()
    shutil.copytree(filled, tmp_path / "data", symlinks=True)
    yield tmp_path / "data"


def answers(store: Store) -> dict[str, Any]:
    """What a reader is told: lists, and traces with their spans, content, events, links and assessments."""
    rooms = House(store.directory, store)
    tenants = [
        t for (t,) in store.engine.rows("SELECT DISTINCT toString(Tenant) AS t FROM spanhouse.traces ORDER BY t")
    ]
    found: dict[str, Any] = {}
    for tenant in tenants:
        listed = store.list(limit=500, tenant=tenant)
        found[f"{tenant} list"] = listed
        for one in listed[:TRACES_READ]:
            id_ = bytes.fromhex(one.trace_id)
            spans = store.traces.spans_of(tenant, id_, True, SPANS_MAX)
            about = {
                "links": rooms.trace_links.json(tenant, id_, spans),
                "assessments": [assessment_json(a) for a in rooms.assessments.of_trace(tenant, id_)],
            }
            pieces = trace_json.pieces(
                build(spans), nested=True, truncated=False, now_unix_nano=0, price=lambda _: None, about=about
            )
            found[f"{tenant} {one.trace_id}"] = orjson.loads(b"".join(pieces))
    return found


def rows(engine: Engine) -> dict[str, Any]:
    """Of each table how many rows it has, and what they are."""
    found: dict[str, Any] = {}
    for table in [table.name for table in TABLES if table.name != "links"] + ["links"]:
        final = "" if table in ("spans", "content", "records") else "FINAL"
        each = "DISTINCT" if table == "origins" else ""  # of which every shard has its own
        hashes = f"SELECT {each} cityHash64(* EXCEPT (Loaded)) AS hash FROM spanhouse.{table} {final}"
        found[table] = engine.rows(f"SELECT count(), sum(hash) FROM ({hashes})")
    # When an entity was seen at first is forgotten with its first trace: only that it was is the same.
    found["seen"] = engine.rows(
        "SELECT DISTINCT toString(Tenant) AS t, toString(Entity) AS e, Id, Version FROM spanhouse.seen ORDER BY ALL"
    )
    found["traces"] = engine.rows(
        "SELECT toString(Tenant) AS t, toString(Day) AS d, hex(TraceId) AS i, toString(min(Start)),"
        " toString(max(End)), sum(Spans), sum(Errors), sum(Oks), arraySort(groupUniqArrayArray(Services)), max(Root),"
        " toString(max(traces.Received)), max(Said), arraySort(groupUniqArrayArray(Origins)) FROM spanhouse.traces"
        " GROUP BY t, d, i ORDER BY t, d, i"
    )
    return {table: [tuple(row) for row in rows] for table, rows in found.items()}


def both(data_dir: Path) -> tuple[Any, Any]:
    """Answers and rows of the source, and of the target."""
    found = []
    for kind in (Source, Target):
        store = kind(data_dir)
        found.append((answers(store), rows(store.engine)))
        store.close()
    return found[0], found[1]


def run(data_dir: Path, *point: str) -> subprocess.CompletedProcess[str]:
    """A copy in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("copier.py")), str(data_dir), URL, *point]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_everything_is_read_alike_on_both_sides(data_dir: Path) -> None:
    report = copied(data_dir, URL)
    assert report.complete
    assert {table.name for table in TABLES} - set(inserted(report)) == {"implied", "mlflow_traces"}
    source, target = both(data_dir)
    assert len(source[0]) > 80
    assert target[0] == source[0]
    assert target[1] == source[1]
    again = copied(data_dir, URL)
    assert again.complete
    assert inserted(again) == {}
    assert not (data_dir / "copying" / "store").exists()
    assert list((data_dir / "store" / "shadow").glob("2*")) == []


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.slow), "after"])
def test_a_copy_that_was_killed_goes_on(data_dir: Path, moment: str) -> None:
    """Inserts 1, 3, 5 … are of `traces`, with those of `spans` to follow."""
    for number in (1, 2, 3, 6, 9):
        died = run(data_dir, moment, str(number))
        assert died.returncode == -signal.SIGKILL, died.stderr
    done = run(data_dir)
    assert done.returncode == 0, done.stderr
    source, target = both(data_dir)
    assert target[1] == source[1]
    assert target[0] == source[0]
    assert json.loads(run(data_dir).stdout) == {}


@pytest.mark.slow
def test_a_copy_that_is_killed_at_any_time_goes_on(data_dir: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("copier.py")), str(data_dir), URL]
    for tenths in (2, 5, 9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (data_dir / "copying" / "state.json").exists():
            time.sleep(0.01)
        time.sleep(tenths / 10)
        process.kill()
        process.wait()
    done = run(data_dir)
    assert done.returncode == 0, done.stderr
    source, target = both(data_dir)
    assert target[1] == source[1]


@pytest.mark.slow
def test_what_came_since_is_copied_and_nothing_twice(data_dir: Path) -> None:
    copied(data_dir, URL)
    rooms = House(data_dir, Source(data_dir)).start()
    rooms.store._segments = 1000
    rooms.load(*(agent(n) for n in range(500, 530)))
    rooms.load(house.request(call(5, 3, parent=1, start_s=9)))
    rooms.annotations.unlink("default", [trace_id(n) for n in range(20, 25)])
    rooms.assessments.put("default", [Assessment(trace_id(7), "tone", "fine", "human", "bert")])
    rooms.settle(300)
    rooms.close()
    report = copied(data_dir, URL)
    assert report.complete
    assert inserted(report)["spans"] == 61
    assert inserted(report)["explicit_links"] == 5
    source, target = both(data_dir)
    assert target[1] == source[1]
    assert target[0] == source[0]


def test_the_target_settles_only_what_the_source_had_not(data_dir: Path) -> None:
    """By the time of loads: that of the source, but for what it had not settled yet, and what was there in part."""
    latest = (
        "SELECT toString(Tenant) AS t, hex(TraceId) AS i, toUnixTimestamp(max(traces.Loaded)) FROM spanhouse.traces"
        " GROUP BY t, i ORDER BY t, i"
    )
    store = Source(data_dir)
    # As if it had been settled long ago.
    store.engine.command(
        "ALTER TABLE spanhouse.traces UPDATE Loaded = Loaded - 3600 WHERE 1 SETTINGS mutations_sync = 2"
    )
    store._segments = 1000
    store.load([agent(n) for n in range(900, 910)], received=house.NOW)
    loaded = [tuple(row) for row in store.engine.rows(latest)]
    store.close()
    began = int(time.time())
    copied(data_dir, URL)
    target = Target(data_dir)
    there = [tuple(row) for row in target.engine.rows(latest)]
    target.close()
    fresh = {trace_id(n).hex().upper() for n in range(900, 910)}
    assert [row for row in there if row[1] not in fresh] == [row for row in loaded if row[1] not in fresh]
    assert all(unix_s >= began for _, id_, unix_s in there if id_ in fresh)
    # A span more of a trace that is settled on both sides.
    store = Source(data_dir)
    store._segments = 2000
    store.load([house.request(call(5, 3, parent=1, start_s=9))], received=house.NOW)
    store.close()
    copied(data_dir, URL)
    target = Target(data_dir)
    again = {(t, id_): unix_s for t, id_, unix_s in target.engine.rows(latest)}
    target.close()
    assert {key for key, unix_s in again.items() if unix_s > began + 1 and key[1] not in fresh} == {
        ("default", trace_id(5).hex().upper())
    }


@pytest.mark.slow
def test_the_target_keeps_what_it_has_and_what_is_newer_there(data_dir: Path) -> None:
    copied(data_dir, URL)
    rooms = House(data_dir, Target(data_dir)).start()
    rooms.store._segments = 1000
    rooms.load(*(agent(n) for n in range(700, 720)))
    rooms.annotations.link("default", [trace_id(1)], "run", "newest")
    rooms.settle(300)
    before = rows(rooms.engine)
    rooms.close()
    report = copied(data_dir, URL)
    assert report.complete
    assert inserted(report) == {}
    assert sum(each.there - each.rows for each in report.checked if each.table == "spans") == 40
    after = Target(data_dir)
    assert rows(after.engine) == before
    after.close()


@pytest.mark.slow
def test_what_was_changed_on_the_target_is_found(data_dir: Path) -> None:
    copied(data_dir, URL)
    target = Target(data_dir)
    [(day,)] = target.engine.rows("SELECT toString(max(Day)) FROM spanhouse.content")
    low = "toFixedString(unhex(leftPad('{}', 32, '0')), 16)"
    for change in (
        f"content UPDATE WholeContent = map('gen_ai.input.messages', 'x') WHERE Day = '{day}' AND SpanKey % 2",
        f"facts DELETE WHERE TraceId = {low.format(1)}",
        f"spans DELETE WHERE Day = '{day}' AND TraceId < {low.format(3)}",
    ):
        altered(target.engine, change)
    target.close()
    report = copied(data_dir, URL, verify_only=True)
    assert not report.complete
    assert inserted(report) == {}
    wrong = {(each.table, each.day): each.missing for each in report.checked if each.missing}
    assert set(wrong) == {("content", day), ("facts", ""), ("spans", day), ("traces", day)}
    assert wrong["facts", ""] == 1
    # A copy brings the rows back. That rows of `traces` count spans that were gone, it can only say.
    mended = copied(data_dir, URL)
    assert inserted(mended)["facts"] == 1
    assert inserted(mended)["spans"] == wrong["spans", day]
    assert {each.table for each in mended.checked if each.missing} == {"traces"}


def test_what_changes_on_the_target_while_it_is_copied_is_found(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Copy._verify

    def changed(copy: Copy) -> None:
        altered(copy._target._server, "records DELETE WHERE Time % 2")
        verify(copy)

    monkeypatch.setattr(Copy, "_verify", changed)
    report = copied(data_dir, URL)
    assert {each.table for each in report.checked if each.missing} == {"records"}


def test_a_second_copy_is_refused(data_dir: Path) -> None:
    first = Workplace(data_dir, URL)
    with pytest.raises(CannotCopy, match="another copy of it is running"):
        copied(data_dir, URL)
    first.close()
    with pytest.raises(CannotCopy, match="there is no store in it"):
        copied(data_dir / "store", URL)


def test_an_interrupted_copy_keeps_to_its_target(data_dir: Path) -> None:
    assert run(data_dir, "before", "3").returncode == -signal.SIGKILL
    with pytest.raises(CannotCopy, match="was interrupted; complete that one first"):
        copied(data_dir, URL + "/")
    with pytest.raises(CannotCopy, match="without --verify-only"):
        copied(data_dir, URL, verify_only=True)
    assert copied(data_dir, URL).complete


def command(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SPANHOUSE_")}
    return subprocess.run(
        [str(COMMAND), "copy", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**kept, **(env or {})},
    )


@pytest.mark.slow
def test_a_store_that_takes_spans_is_copied(data_dir: Path) -> None:
    """`spanhouse copy` beside `spanhouse serve`, twice, and once more after that one has stopped."""
    stop, sent = threading.Event(), []

    def send(program: Program) -> None:
        number = 10_000
        while not stop.is_set():
            body = agent(number).SerializeToString()
            answer = httpx.post(
                f"{program.otlp_http}/v1/traces", content=body, headers={"content-type": "application/x-protobuf"}
            )
            assert answer.status_code == 200
            sent.append(number)
            number += 1
            time.sleep(0.005)

    with Program(data_dir) as program:
        sender = threading.Thread(target=send, args=(program,))
        sender.start()
        try:
            for _ in range(2):
                done = command("--from", str(data_dir), "--to", URL, "--url", program.http, *CLUSTER)
                assert done.returncode == 0, done.stdout + done.stderr
                assert "every row is on the target" in done.stdout
            elsewhere = data_dir.parent / "elsewhere"
            shutil.copytree(data_dir / "store" / "metadata", elsewhere / "store" / "metadata")
        finally:
            stop.set()
            sender.join()
        last = f"{sent[-1]:032x}"
        program.read_trace(last, 2)
        assert httpx.get(f"{program.http}/api/v1/snapshots").json() == {"snapshots": []}
    done = command("--from", str(data_dir), "--to", URL)
    assert done.returncode == 0, done.stdout + done.stderr
    source, target = both(data_dir)
    assert target[1]["spans"] == source[1]["spans"]
    assert target[1]["content"] == source[1]["content"]
    assert target[1]["traces"] == source[1]["traces"]
    assert target[1]["facts"] == source[1]["facts"]
    assert target[0] == source[0]
    with Program(data_dir.parent / "new", f"--clickhouse={URL}") as program:
        assert program.read_trace(last, 2)["span_count"] == 2


def test_the_new_one_takes_over_the_log_and_what_is_missing_then_is_copied(data_dir: Path) -> None:
    """The three steps of docs/copy.md, with the old one killed while it loads."""
    sent: list[int] = []

    def send(program: Program, count: int) -> None:
        for number in range(20_000 + len(sent), 20_000 + len(sent) + count):
            answer = httpx.post(
                f"{program.otlp_http}/v1/traces",
                content=agent(number).SerializeToString(),
                headers={"content-type": "application/x-protobuf"},
            )
            assert answer.status_code == 200
            sent.append(number)

    with Program(data_dir) as program:
        send(program, 40)
        program.read_trace(f"{sent[-1]:032x}", 2)
        done = command("--from", str(data_dir), "--to", URL, "--url", program.http, *CLUSTER)
        assert done.returncode == 0, done.stdout + done.stderr
        send(program, 40)
        program.read_trace(f"{sent[-1]:032x}", 2)
        send(program, 40)
        program.kill()
    with Program(data_dir, f"--clickhouse={URL}", *CLUSTER) as program:
        send(program, 20)
        program.read_trace(f"{sent[-1]:032x}", 2)
        done = command("--from", str(data_dir), "--to", URL, *CLUSTER)
        assert done.returncode == 0, done.stdout + done.stderr
    store = Target(data_dir)
    try:
        for table, count in (("spans", "count()"), ("traces", "sum(Spans)")):
            rows = store.engine.rows(f"SELECT hex(TraceId), {count} FROM spanhouse.{table} GROUP BY TraceId")
            found = {int(id_, 16): int(n) for id_, n in rows}
            assert {id_: found.get(id_) for id_ in sent} == dict.fromkeys(sent, 2), table
    finally:
        store.close()


@pytest.mark.skipif(not FOOTING.cluster, reason="needs replicas: CLICKHOUSE_NODES")
def test_replicas_are_waited_for(data_dir: Path) -> None:
    """Else what one of them has not fetched yet would be sent again."""
    target = Target(data_dir)
    behind = [
        clickhouse_connect.get_client(host=host.host, port=host.port) for host in hosts_of(URL)[1::2]
    ]  # of each shard the second replica
    table = f"{LOCAL}.origins"
    for client in behind:
        client.command(f"SYSTEM STOP FETCHES {table}")
    target.load([plain_request(plain_span(1))])
    ahead = target.number("SELECT uniqExact(OriginId) FROM spanhouse.origins")
    assert ahead == 1
    begun_s = time.monotonic()
    later = threading.Timer(2, lambda: [client.command(f"SYSTEM START FETCHES {table}") for client in behind])
    later.start()
    try:
        assert isinstance(target.engine, Server)
        assert target.engine.behind()
        copy_target.Target(target.engine, print).level()
        assert time.monotonic() - begun_s >= 2
        assert sum(int(client.command(f"SELECT count() FROM {table}")) for client in behind) >= 1
    finally:
        later.join()
        target.close()
        for client in behind:
            client.close()


def test_snapshots_are_made_listed_and_removed(data_dir: Path) -> None:
    with Program(data_dir) as program:
        api = f"{program.http}/api/v1/snapshots"
        made = httpx.post(api)
        assert made.status_code == 201
        assert httpx.get(api).json() == {"snapshots": [made.json()]}
        assert httpx.delete(f"{api}/{made.json()['name']}").status_code == 204
        assert httpx.delete(f"{api}/{made.json()['name']}").status_code == 404
        assert httpx.delete(f"{api}/..%2Fdata").status_code == 404
        assert httpx.get(api).json() == {"snapshots": []}
    with Program(data_dir.parent / "other", f"--clickhouse={URL}") as program:
        assert httpx.post(f"{program.http}/api/v1/snapshots").status_code == 409


def test_the_command_says_what_is_wrong(data_dir: Path, tmp_path: Path) -> None:
    away = command("--from", str(tmp_path), "--to", URL)
    assert away.returncode == 1
    assert "there is no store in it" in away.stderr
    wrong = command("--from", str(data_dir), "--to", "clickhouse:9000")
    assert wrong.returncode == 1
    assert "cannot use the ClickHouse address" in wrong.stderr
