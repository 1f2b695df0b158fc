"""Disks that fill up, stores that are away, logs that are torn, frames that do not load, ends under load: what was
acknowledged is stored once, and senders are told to come again for the rest."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from exactly_once import (
    check_ledger,
    check_stored_once,
    exporters,
    ledger,
    under_load,
    wait_until_loaded,
)
from frame_samples import FakeStore, until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from program import COMMAND, NotReady, Program
from sender import Exporter, HttpDoor, numbered
from xxhash import xxh3_128_digest

from collector import otlp_http
from collector.admission import Admission
from collector.frames import Frame, StoredFrame, encode_frame, read_frames
from collector.ledger import Ledger
from collector.listening import http_server, listen
from collector.loader import Loader
from collector.otlp_grpc import OtlpGrpc
from collector.quarantine import Quarantine
from collector.wal import Wal
from storage.errors import StoreUnavailable

MIB = 1 << 20


def check_refusals(senders: list[Exporter], *messages: str) -> None:
    """Every sender was refused, and in a way that makes an exporter keep its data and come again later."""
    for sender in senders:
        assert sender.refusals, f"sender {sender.sender} was never refused"
        for refused in sender.refusals:
            assert refused.code == {"grpc": "UNAVAILABLE", "http": "503"}[sender.tenant], refused
            assert refused.retry_after_s is not None, refused
            assert refused.retry_after_s >= 1, refused
            assert any(message in refused.message for message in messages), refused


# --- the disk is full ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], check=False, capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"mounting a small file system is not permitted here: {mount.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(path: Path) -> None:
    """Take all the space there is."""
    with path.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_heals_by_itself(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    senders = exporters()
    program = Program(small_disk, "--flush-interval-s=0.1", "--segment-bytes-max=1MiB")
    program.log_path = small_disk.parent / "log"
    with program:
        with under_load(program, senders) as acknowledged:
            for _ in range(4):
                acknowledged.clear()
                assert acknowledged.wait(60), "nothing is acknowledged although there is space"
                time.sleep(0.7)
                refused = [len(sender.refusals) for sender in senders]
                fill(ballast)
                until(lambda r=refused: all(len(s.refusals) > n for s, n in zip(senders, r, strict=True)), 30)
                fill(ballast)  # what the engine let go of meanwhile
                time.sleep(0.7)
                ballast.unlink()
        wait_until_loaded(program)
        check_ledger(program)
        assert httpx.get(f"{program.http}/readyz").is_success
    check_refusals(
        senders,
        "cannot write to the write-ahead log: No space left on device",
        "are kept for merges and deletions",
    )
    print(check_stored_once(small_disk, senders))


# --- the store is away ---


@dataclass
class Addresses:
    """Where the receivers of a house without a store listen."""

    grpc: str
    otlp_http: str


def test_a_store_that_is_away_fills_the_log_and_then_gets_everything(tmp_path: Path) -> None:
    wal_bytes_max = 8 * MIB
    away = True

    def fail(path: Path, token: str) -> None:
        if away:
            raise StoreUnavailable("the store is away")
        time.sleep(0.05)  # and slow when it is back

    store = FakeStore(fail)
    senders = exporters()
    with ExitStack() as parts:
        books = Ledger()
        quarantine = Quarantine(tmp_path / "quarantine", books)
        wal = Wal(tmp_path / "wal", books, segment_bytes_max=MIB, flush_interval_s=0.05, wal_bytes_max=wal_bytes_max)
        parts.callback(wal.release)
        loader = Loader(wal, store.load, quarantine, books, backoff_s_max=0.2)
        loader.start()
        parts.callback(loader.stop, 30)
        parts.callback(wal.close)
        admission = Admission(wal.append, books)
        otlp_grpc = OtlpGrpc(admission, "127.0.0.1:0")
        otlp_grpc.start()
        parts.callback(otlp_grpc.stop)
        app = otlp_http.OtlpHttp(admission)
        parts.callback(app.close)
        listener = listen("127.0.0.1", 0)
        parts.enter_context(http_server(app, listener, lambda: None, **otlp_http.UVICORN_OPTIONS))
        addresses = Addresses(f"127.0.0.1:{otlp_grpc.port}", f"http://127.0.0.1:{listener.getsockname()[1]}")

        with under_load(addresses, senders):
            until(lambda: all(sender.refusals for sender in senders), 60)
            resident_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            refused = sum(len(sender.refusals) for sender in senders)
            until(lambda: sum(len(sender.refusals) for sender in senders) > refused + 40, 30)
            on_disk = sum(p.stat().st_size for p in (tmp_path / "wal").iterdir() if p.suffix in (".wal", ".open"))
            assert wal_bytes_max / 2 < on_disk <= wal_bytes_max
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < resident_bytes + 64 * MIB
            assert not store.loaded
            away = False
            acknowledged = sum(len(sender.acknowledged) for sender in senders)
            until(lambda: sum(len(sender.acknowledged) for sender in senders) > acknowledged + 40, 30)
        until(lambda: not any(spans.in_wal for spans in books.spans().values()), 60)
    check_refusals(senders, "the write-ahead log holds its 8388608 bytes")
    sent = sorted(xxh3_128_digest(request.body) for sender in senders for request in sender.acknowledged)
    assert sorted(store.digests) == sent
    assert not quarantine.page(limit=1)
    for tenant, spans in books.spans().items():
        assert spans.received == spans.stored + spans.deduplicated, tenant


# --- the log is torn ---


def test_a_torn_log_and_foreign_files_do_not_hinder_a_start(tmp_path: Path) -> None:
    wal = tmp_path / "data" / "wal"
    program = Program(tmp_path / "data", "--flush-interval-s=60").start()
    door = HttpDoor(program.otlp_http)
    requests = [numbered(1, number, 3) for number in range(1, 21)]
    for request in requests:
        door.export(request.body)
    program.kill()
    [segment] = wal.glob("*.open")
    whole = segment.read_bytes()
    first = next(iter(read_frames(segment)))
    segment.write_bytes(whole + whole[first.offset : first.offset + first.length // 2] + bytes(4096))
    (wal / "README.txt").write_text("who put this here?")
    (wal / "backup.wal.gz").write_bytes(os.urandom(1000))
    (wal / "1700000000000000000-00beef.wal").write_bytes(os.urandom(5000))
    with program:
        program.start()
        for request in requests:
            program.read_trace(request.trace_id.hex(), 3)
        check_ledger(program)
        assert ledger(program)["default"]["received"] == 60
    log = program.log()
    assert f"cut {first.length // 2 + 4096} bytes without a whole frame off the end of segment" in log
    assert (wal / "README.txt").read_text() == "who put this here?"
    assert (wal / "backup.wal.gz").stat().st_size == 1000
    assert "README.txt" in log
    assert "backup.wal.gz" in log
    assert f"segment {wal}/1700000000000000000-00beef.wal is damaged" in log
    assert (wal / "1700000000000000000-00beef.damaged").stat().st_size == 5000


# --- a frame does not load ---


def run(program: Program, *arguments: str) -> str:
    """What a command of `spanhouse quarantine` prints, in one line."""
    result = subprocess.run(
        [COMMAND, "quarantine", *arguments],
        check=False, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "SPANHOUSE_URL": program.http, "COLUMNS": "200"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


# What is legal in protobuf, and so admitted, but not taken by the engine as it lies: appended to a request.
_SPAN_OF_TRACE_EE = b"\x0a\x10" + b"\xee" * 16 + b"\x12\x08" + b"\xee" * 8 + b"\x2a\x03odd"
ODD_FIELDS = {
    "a group": b"\x9b\x06\x08\x05\x9c\x06",
    "a field as another wire type": b"\x28\x05",
    "a number wider than its field": b"\x30\x83\x80\x80\x80\x80\x20",
    "a bool of 2": b"\x4a\x07\x0a\x01a\x12\x02\x10\x02",
}


@pytest.mark.parametrize("field", ODD_FIELDS)
def test_what_protobuf_allows_and_the_engine_does_not_is_stored(spanhouse: Program, field: str) -> None:
    tenant = f"odd-{list(ODD_FIELDS).index(field)}"
    door = HttpDoor(spanhouse.otlp_http, tenant)
    span = _SPAN_OF_TRACE_EE + ODD_FIELDS[field]
    scope_spans = b"\x12" + bytes([len(span)]) + span
    resource_spans = b"\x12" + bytes([len(scope_spans)]) + scope_spans
    neighbours = [numbered(1, number, 3) for number in range(1, 4)]
    door.export(neighbours[0].body)
    door.export(neighbours[1].body + b"\x0a" + bytes([len(resource_spans)]) + resource_spans)
    door.export(neighbours[2].body)
    for request in neighbours:
        spanhouse.read_trace(request.trace_id.hex(), 3, tenant=tenant)
    [odd] = spanhouse.read_trace("ee" * 16, 1, tenant=tenant)["spans"]
    assert odd["name"] == "odd"
    assert ledger(spanhouse)[tenant]["quarantined"] == 0


@pytest.mark.slow
def test_a_frame_that_does_not_load_is_quarantined_and_its_neighbours_are_stored(tmp_path: Path) -> None:
    """Admission lets nothing in that the engine refuses for good, as far as we know: a segment is left to be found."""
    requests = [numbered(1, number, 4) for number in range(1, 21)]
    bad = ExportTraceServiceRequest.FromString(numbered(2, 1, 3).body)
    bad.resource_spans[0].scope_spans[0].spans[1].trace_id += b"!"
    bodies = [request.body for request in requests]
    bodies.insert(10, bad.SerializeToString())
    frames = [Frame("default", xxh3_128_digest(body), 3 if i == 10 else 4, body) for i, body in enumerate(bodies)]
    wal = tmp_path / "data" / "wal"
    wal.mkdir(parents=True)
    received = time.time_ns()
    segment = wal / f"{received}-00beef.wal"
    segment.write_bytes(b"".join(b"".join(encode_frame(frame, received + i)) for i, frame in enumerate(frames)))
    with Program(tmp_path / "data") as program:
        for request in requests:
            program.read_trace(request.trace_id.hex(), 4)
        until(lambda: ledger(program)["default"]["quarantined"] == 3)
        counts = ledger(program)["default"]
        assert (counts["received"], counts["stored"], counts["in_wal"]) == (83, 80, 0)

        [frame] = httpx.get(f"{program.http}/api/v1/quarantine").json()["frames"]
        assert (frame["tenant"], frame["spans"]) == ("default", 3)
        assert frame["id"] in run(program, "list")
        shown = json.loads(run(program, "show", frame["id"]))
        assert "FixedString(16)" in shown["reason"]
        assert [span["name"] for span in shown["request"]["spans"]] == ["step 1", "step 2", "step 3"]
        run(program, "replay", frame["id"])  # nothing is mended: it comes back
        until(lambda: ledger(program)["default"]["quarantined"] == 6)
        [again] = httpx.get(f"{program.http}/api/v1/quarantine").json()["frames"]
        assert again["id"] != frame["id"]
        run(program, "drop", again["id"])
        assert run(program, "list") == "the quarantine is empty\n"


def test_a_frame_that_loads_now_is_replayed_into_the_store(tmp_path: Path) -> None:
    request = numbered(1, 1, 4)
    # An earlier version of the program could not load it.
    quarantine = Quarantine(tmp_path / "data" / "quarantine", Ledger())
    stored = StoredFrame(0, 0, time.time_ns(), "default", xxh3_128_digest(request.body), 4, memoryview(request.body))
    quarantine.put("1700000000000000000-00beef", 7, stored, "a reason of that time")
    with Program(tmp_path / "data") as program:
        assert "a reason of that time" in run(program, "list")
        run(program, "replay", "1700000000000000000-00beef.7")
        trace = program.read_trace(request.trace_id.hex(), 4)
        assert trace["span_count"] == 4
        assert run(program, "list") == "the quarantine is empty\n"
        check_ledger(program)


# --- the program ends, or must not start ---


@pytest.mark.slow
def test_sigterm_under_load_exits_0_and_loses_nothing(tmp_path: Path) -> None:
    senders = exporters()
    for _ in range(2):
        program = Program(tmp_path / "data").start()
        with under_load(program, senders) as acknowledged:
            assert acknowledged.wait(30)
            time.sleep(1.5)
            started_s = time.monotonic()
            assert program.stop() == 0, program.log()[-4000:]
            assert time.monotonic() - started_s < 30
        assert not list((tmp_path / "data" / "wal").glob("*.wal")), "it had time to load what was in the log"
    for sender in senders:
        for refused in sender.refusals:
            assert refused.code in ("UNAVAILABLE", "503"), refused
    with Program(tmp_path / "data") as program:
        with under_load(program, senders) as acknowledged:
            assert acknowledged.wait(30)
        wait_until_loaded(program)
    print(check_stored_once(tmp_path / "data", senders))


def test_a_store_of_a_newer_program_is_refused(tmp_path: Path) -> None:
    with Program(tmp_path / "data") as program:
        HttpDoor(program.otlp_http).export(numbered(1, 1, 2).body)
    newer = """
import sys
from pathlib import Path
from storage.embedded import Embedded
from storage.vocabulary import load

engine = Embedded(Path(sys.argv[1]), load())
engine.command("INSERT INTO spanhouse.migrations (Name, Sha256) VALUES ('9999_future.sql', 'x')")
engine.close()
"""
    subprocess.run([sys.executable, "-c", newer, tmp_path / "data" / "store"], check=True, cwd=tmp_path, timeout=120)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "wal").iterdir() if path.name != "lock"}
    with pytest.raises(
        NotReady, match=r"exit code 1\)[^$]*it has 9999_future.sql, which this program does not know"
    ) as e:
        program.start()
    assert "start the program that made it, or a newer one" in str(e.value)
    assert "Traceback" not in str(e.value)
    assert before == {path: path.stat().st_mtime_ns for path in before}
