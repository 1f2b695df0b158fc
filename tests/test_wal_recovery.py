"""The write-ahead log after a crash: what is kept or cut off, who may have it, which requests it remembers."""

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from frame_samples import digests, frame
from wal_log import Log, append

from collector.frames import Frame, encode_frame, read_frames
from collector.segments import Segment
from collector.wal import Wal, WalInUse


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with ExitStack() as stack:
        yield Log(tmp_path / "wal", stack)


# --- recovery ---


def recovered(log: Log, **limits) -> tuple[Wal, list[Segment]]:
    wal = log.open(**limits)
    segments = []
    while (segment := wal.next_sealed(0)) is not None:
        segments.append(segment)
    return wal, segments


def write_segment(directory: Path, name: str, frames: list[Frame], tail: bytes = b"") -> Path:
    directory.mkdir(exist_ok=True)
    encoded = [b"".join(encode_frame(each, 1_000 + number)) for number, each in enumerate(frames)]
    path = directory / name
    path.write_bytes(b"".join(encoded) + tail)
    return path


FIRST_ID, SECOND_ID = "1700000000000000000-abcdef", "1700000000000000001-abcdef"


@pytest.mark.parametrize("tail", [b"", b"\x90", bytes(4096), b"\xff" * 50, b"".join(encode_frame(frame(), 7))[:-1]])
def test_an_open_segment_is_cut_to_its_good_frames_and_sealed(log: Log, tail: bytes) -> None:
    frames = [frame(2, tenant="acme"), frame(3)]
    write_segment(log.directory, f"{FIRST_ID}.open", frames, tail)
    _, (segment,) = recovered(log)
    assert segment.id == FIRST_ID
    assert segment.path.name == f"{FIRST_ID}.wal"
    assert segment.path.stat().st_size == segment.bytes == sum(stored.length for stored in read_frames(segment.path))
    assert digests([segment.path]) == [each.digest for each in frames]
    assert segment.items == {("traces", "acme"): 2, ("traces", "default"): 3}
    spans = log.ledger.spans()
    assert (spans["acme"].received, spans["default"].received, spans["default"].in_wal) == (2, 3, 3)
    assert not log.files("*.damaged"), "a torn tail is what a crash leaves, and was never acknowledged"


@pytest.mark.parametrize("suffix", [".open", ".wal"])
@pytest.mark.parametrize("content", [b"", bytes(100), b"\x90"])
def test_a_segment_without_a_good_frame_is_removed(log: Log, suffix: str, content: bytes) -> None:
    write_segment(log.directory, f"{FIRST_ID}{suffix}", [], content)
    _, segments = recovered(log)
    assert not segments
    assert not log.segments()


def test_a_damaged_sealed_segment_keeps_what_was_cut_off(log: Log, caplog) -> None:
    frames = [frame(), frame(), frame()]
    path = write_segment(log.directory, f"{FIRST_ID}.wal", frames)
    _, second, _ = read_frames(path)
    data = bytearray(path.read_bytes())
    data[second.offset + 60] ^= 1
    path.write_bytes(data)
    _, (segment,) = recovered(log)
    assert digests([segment.path]) == [frames[0].digest]
    assert (log.directory / f"{FIRST_ID}.damaged").read_bytes() == data[second.offset :]
    assert "damaged from byte" in caplog.text


def test_what_a_bisection_left_is_cleared_away(log: Log) -> None:
    write_segment(log.directory, f"{FIRST_ID}.wal", [frame()])
    for name in (f"{FIRST_ID}.0-1.part", f"{FIRST_ID}.split", f"{SECOND_ID}.split", f"{SECOND_ID}.seen.tmp"):
        (log.directory / name).write_bytes(b"{}")
    recovered(log)
    assert [path.name for path in log.files("*.split")] == [f"{FIRST_ID}.split"], "its segment is still there"
    assert not log.files("*.part")
    assert not log.files("*.tmp")


def test_kill_nine_loses_nothing_that_was_acknowledged(log: Log) -> None:
    program = textwrap.dedent("""
        import itertools, sys
        from pathlib import Path
        from frame_samples import frame
        from collector.ledger import Ledger
        from collector.wal import Wal
        wal = Wal(Path(sys.argv[1]), Ledger(), segment_bytes_max=50_000, flush_interval_s=0.01)
        for _ in itertools.count():
            group = [frame(filler_bytes=500) for _ in range(8)]
            futures = [wal.append(each) for each in group]
            for each, future in zip(group, futures):
                future.result()
                print(each.digest.hex(), flush=True)
    """)
    acknowledged: list[bytes] = []
    for round_number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, log.directory],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        wanted = 200 + 37 * round_number
        acknowledged += [bytes.fromhex(process.stdout.readline().decode()) for _ in range(wanted)]
        process.kill()
        tail = process.stdout.read().splitlines(keepends=True)
        acknowledged += [bytes.fromhex(line.decode()) for line in tail if line.endswith(b"\n")]
        process.wait()
    _, segments = recovered(log)
    stored = digests(segment.path for segment in segments)
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert sum(spans for segment in segments for spans in segment.items.values()) == len(stored)


# --- who holds it ---


def test_a_second_process_hears_who_holds_the_directory(log: Log) -> None:
    program = (
        "import sys; from pathlib import Path; from collector.wal import Wal; from collector.ledger import Ledger;"
    )
    program += "Wal(Path(sys.argv[1]), Ledger()); print('ready', flush=True); sys.stdin.read()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", program, log.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        with pytest.raises(WalInUse, match=f"cannot use {log.directory}: process {holder.pid} holds it"):
            log.open()
    finally:
        holder.kill()
        holder.communicate()
    log.open()  # a holder that is dead holds nothing


# --- retransmits ---


def test_digests_survive_the_segment_and_the_restart(log: Log) -> None:
    wal = log.open()
    loaded, waiting = frame(tenant="acme"), frame()
    append(wal, loaded)
    wal.close()
    segment = wal.next_sealed(1)
    assert segment is not None
    wal.discard(segment)
    wal.release()
    assert not log.files("*.wal")
    wal = log.open()
    append(wal, waiting)
    wal.release()

    wal = log.open()
    recent = list(wal.recent_digests())
    assert [(tenant, digest) for tenant, digest, _ in recent] == [("acme", loaded.digest), ("default", waiting.digest)]
    assert all(abs(time.time_ns() - received) < 60e9 for _, _, received in recent)


def test_digests_expire(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open(retransmit_window_s=600, flush_interval_s=0.0)
    append(wal, frame())
    first = wal.next_sealed(10)
    assert first is not None
    wal.discard(first)
    append(wal, frame())
    second = wal.next_sealed(10)
    assert second is not None
    assert len(list(wal.recent_digests())) == 2
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 601_000_000_000)
    assert not list(wal.recent_digests())
    wal.discard(second)
    assert not log.files("*.seen")


def test_expired_digests_are_removed_at_start(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open(flush_interval_s=0.0)
    append(wal, frame())
    segment = wal.next_sealed(10)
    assert segment is not None
    wal.discard(segment)
    wal.release()
    assert len(log.files("*.seen")) == 1
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 601_000_000_000)
    log.open(retransmit_window_s=600)
    assert not log.files("*.seen")


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-3], lambda d: bytes(len(d)), lambda d: d + b"\xff" * 40, lambda d: b""]
)
def test_a_damaged_memory_of_digests_stops_nothing(log: Log, damage) -> None:
    wal = log.open(flush_interval_s=0.0)
    append(wal, frame(), frame())
    segment = wal.next_sealed(10)
    assert segment is not None
    wal.discard(segment)
    wal.release()
    (seen,) = log.files("*.seen")
    seen.write_bytes(damage(seen.read_bytes()))
    wal = log.open()
    assert len(list(wal.recent_digests())) <= 2
    append(wal, frame())
