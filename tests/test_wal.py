"""The write-ahead log while all goes well: acknowledging, sealing, limits, closing."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from frame_samples import digests, frame, frame_of, until
from wal_log import Log, append

from collector.frames import Frame, read_frames
from collector.ledger import Ledger
from collector.status import Overloaded, ShuttingDown, WalFull
from collector.wal import Wal
from storage.disk import write_all


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with ExitStack() as stack:
        yield Log(tmp_path / "wal", stack)


# --- acknowledging ---


def test_an_acknowledged_frame_is_on_disk(log: Log) -> None:
    wal = log.open()
    first, second = frame(2), frame(3)
    append(wal, first, second)
    assert digests(log.segments()) == [first.digest, second.digest]


def test_nothing_is_acknowledged_before_it_is_synced(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    real, reached, go_on = os.fdatasync, threading.Event(), threading.Event()

    def slow(fd: int) -> None:
        reached.set()
        assert go_on.wait(10)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    future = wal.append(frame())
    assert reached.wait(10)
    assert digests(log.segments()), "it is written"
    assert not future.done()
    go_on.set()
    assert future.result(10) is None


def test_frames_that_arrive_during_a_sync_share_the_next_one(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    append(wal, frame())  # the segment exists
    real, reached, go_on, syncs = os.fdatasync, threading.Event(), threading.Event(), []

    def slow(fd: int) -> None:
        syncs.append(fd)
        reached.set()
        assert go_on.wait(10)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    futures = [wal.append(frame())]
    assert reached.wait(10)
    futures += [wal.append(frame()) for _ in range(50)]
    go_on.set()
    for future in futures:
        future.result(10)
    assert len(syncs) == 2


def test_many_threads_lose_and_repeat_nothing(log: Log) -> None:
    wal = log.open(segment_bytes_max=20_000)
    sent = [[frame(filler_bytes=100) for _ in range(100)] for _ in range(16)]
    threads = [threading.Thread(target=append, args=(wal, *frames)) for frames in sent]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = [stored for path in sorted(log.segments(), key=lambda path: path.stem) for stored in read_frames(path)]
    assert sorted(s.digest for s in stored) == sorted(each.digest for frames in sent for each in frames)
    times = [s.received_unix_nano for s in stored]
    assert times == sorted(set(times)), "arrival times increase strictly, over all segments"
    order = {s.digest: number for number, s in enumerate(stored)}
    for frames in sent:
        numbers = [order[each.digest] for each in frames]
        assert numbers == sorted(numbers), "one sender's frames keep their order"


def test_short_writes_and_many_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = [bytes([number % 251]) * (number % 7) for number in range(5000)]
    real = os.pwritev

    def short(fd: int, chunk, offset: int) -> int:
        assert len(chunk) <= 1024
        data = b"".join(chunk)[:500]  # ends within a buffer
        return real(fd, [data], offset)

    monkeypatch.setattr(os, "pwritev", short)
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    assert write_all(fd, buffers, 6) == sum(map(len, buffers))
    os.close(fd)
    assert path.read_bytes() == b"before" + b"".join(buffers)


def test_a_frame_with_another_digest_is_a_mistake_of_the_caller(log: Log) -> None:
    """On disk it would look like a damaged frame, and take what follows it along."""
    wal = log.open()
    good = frame()
    with pytest.raises(ValueError, match="digest"):
        wal.append(Frame(good.tenant, bytes(16), good.items, good.request))


def test_the_clock_may_go_back(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    append(wal, frame())
    monkeypatch.setattr(time, "time_ns", lambda: 1_000)
    append(wal, frame(), frame())
    again = log.open(log.crashed(tmp_path / "crashed"))
    append(again, last := frame())
    again.close()
    sealed = sorted((tmp_path / "crashed").glob("*.wal"))
    assert digests(sealed)[-1] == last.digest, "the newest segment has the last name"
    times = [stored.received_unix_nano for path in sealed for stored in read_frames(path)]
    assert len(times) == 4
    assert times == sorted(set(times))


# --- sealing ---


def test_a_full_segment_is_sealed_though_nobody_waits(log: Log) -> None:
    wal = log.open(segment_bytes_max=10_000)
    frames = [frame(filler_bytes=1_500) for _ in range(20)]
    append(wal, *frames)
    wal.close()
    sealed = log.files("*.wal")
    assert len(sealed) >= 3
    assert digests(sealed) == [each.digest for each in frames]
    assert all(path.stat().st_size <= 10_000 for path in sealed)


def test_a_frame_larger_than_a_segment_has_one_to_itself(log: Log) -> None:
    wal = log.open(segment_bytes_max=1_000, wal_bytes_max=1 << 20)
    large = frame(filler_bytes=5_000)
    append(wal, frame(), large, frame())
    wal.close()
    assert [path.stat().st_size > 5_000 for path in log.files("*.wal")] == [False, True, False]


def test_an_old_segment_is_sealed_at_once_for_an_idle_loader(log: Log) -> None:
    wal = log.open(flush_interval_s=0.2)
    start_s = time.monotonic()
    wal.append(frame(4, tenant="acme"))
    segment = wal.next_sealed(10)
    assert segment is not None
    assert 0.2 <= time.monotonic() - start_s < 1.0
    assert segment.items == {("traces", "acme"): 4}
    assert segment.bytes == segment.path.stat().st_size


def test_a_segment_grows_while_the_loader_is_busy(log: Log) -> None:
    wal = log.open(flush_interval_s=0.05)
    append(wal, frame())
    time.sleep(0.3)  # nobody waits in next_sealed
    append(wal, frame())
    assert not log.files("*.wal")
    start_s = time.monotonic()
    segment = wal.next_sealed(10)
    assert segment is not None
    assert time.monotonic() - start_s < 0.2, "it is old enough: the loader must not wait another interval"
    assert len(digests([segment.path])) == 2


def test_sealed_segments_come_oldest_first_and_once(log: Log) -> None:
    wal = log.open(segment_bytes_max=1_000)
    frames = [frame(filler_bytes=900) for _ in range(5)]
    append(wal, *frames)
    wal.close()
    taken = []
    while (segment := wal.next_sealed(10)) is not None:
        taken.append(segment)
    assert wal.drained
    assert digests(segment.path for segment in taken) == [each.digest for each in frames]
    assert [segment.id for segment in taken] == sorted({segment.id for segment in taken})


def test_waiting_for_a_segment_ends(log: Log) -> None:
    wal = log.open()
    start_s = time.monotonic()
    assert wal.next_sealed(0.05) is None
    assert time.monotonic() - start_s < 5
    threading.Timer(0.1, wal.close).start()
    assert wal.next_sealed(60) is None
    assert time.monotonic() - start_s < 5
    assert wal.drained


def test_ids_are_unique_over_restarts_and_a_clock_that_stands_still(log: Log, monkeypatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    ids = []
    for _ in range(3):
        wal = log.open(segment_bytes_max=500)
        append(wal, *(frame(filler_bytes=400) for _ in range(20)))
        wal.close()
        while (segment := wal.next_sealed(1)) is not None:
            ids.append(segment.id)
            wal.discard(segment)
        wal.release()
        for path in log.files("*.seen"):  # nothing is left that could tell the next start what time it had been
            path.unlink()
    assert len(ids) == 60
    assert len(set(ids)) == 60


# --- limits ---


def test_a_full_log_refuses_until_the_loader_has_made_room(log: Log) -> None:
    wal = log.open(segment_bytes_max=10_000, wal_bytes_max=30_000)
    with pytest.raises(WalFull) as full:
        for _ in range(100):
            append(wal, frame(filler_bytes=1_000))
    assert full.value.retry_after_s is not None
    assert "30000 bytes" in full.value.message
    on_disk = sum(path.stat().st_size for path in log.segments())
    assert 27_000 < on_disk <= 30_000
    segment = wal.next_sealed(1)
    assert segment is not None
    wal.discard(segment)
    wal.discard(segment)  # harmless: the room is not counted twice
    append(wal, *(frame(filler_bytes=1_000) for _ in range(6)))
    with pytest.raises(WalFull):
        append(wal, *(frame(filler_bytes=1_000) for _ in range(6)))


def test_the_quarantine_counts_against_the_limit(log: Log) -> None:
    quarantined = 0
    wal = log.open(segment_bytes_max=1_000, wal_bytes_max=10_000, quarantine_bytes=lambda: quarantined)
    append(wal, frame())
    quarantined = 9_900
    with pytest.raises(WalFull):
        wal.append(frame())


def test_a_queue_that_is_full_refuses(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open(queue_bytes_max=10_000)
    append(wal, frame())
    real, go_on = os.fdatasync, threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: (go_on.wait(10), real(fd)))
    futures = []
    with pytest.raises(Overloaded):
        for _ in range(100):
            futures.append(wal.append(frame(filler_bytes=1_000)))
    assert 8 <= len(futures) <= 10
    go_on.set()
    for future in futures:
        future.result(10)
    append(wal, frame(filler_bytes=1_000))


def test_a_log_recovered_over_its_limit_refuses_and_drains(log: Log) -> None:
    wal = log.open()
    frames = [frame(filler_bytes=1_000) for _ in range(20)]
    append(wal, *frames)
    wal.release()
    wal = log.open(segment_bytes_max=1_000, wal_bytes_max=5_000)
    with pytest.raises(WalFull):
        wal.append(frame())
    segment = wal.next_sealed(1)
    assert segment is not None
    assert digests([segment.path]) == [each.digest for each in frames]
    wal.discard(segment)
    append(wal, frame())


def test_limits_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wal_bytes_max"):
        Wal(tmp_path, Ledger(), segment_bytes_max=100, wal_bytes_max=99)


# --- closing ---


def test_close_writes_what_is_queued_and_refuses_what_comes_later(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    real, go_on = os.fdatasync, threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda fd: (go_on.wait(10), real(fd)))
    frames = [frame() for _ in range(20)]
    futures = [wal.append(each) for each in frames]
    closing = threading.Thread(target=wal.close)
    closing.start()
    until(lambda: _refuses(wal))
    go_on.set()
    closing.join(10)
    assert all(future.result(0) is None for future in futures)
    assert digests(log.files("*.wal")) == [each.digest for each in frames]
    assert not log.files("*.open")
    segment = wal.next_sealed(0)
    assert segment is not None
    wal.discard(segment)  # the loader goes on after the close
    assert wal.drained


def _refuses(wal: Wal) -> bool:
    try:
        wal.append(frame_of(b""))
    except ShuttingDown:
        return True
    return False
