"""The write-ahead log on a disk that fails: nothing acknowledged is lost, nothing refused is kept."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from frame_samples import digests, frame, until
from wal_log import NEVER_S, Log, append, refusal_of

from collector.frames import read_frames
from collector.ledger import Ledger
from collector.status import WalUnavailable
from collector.wal import Wal


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with ExitStack() as stack:
        yield Log(tmp_path / "wal", stack)


class Failing:
    """Stands in for a function of os: raises while it is told to, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, code: int = errno.ENOSPC) -> None:
        self._real = getattr(os, name)
        self._code = code
        self.on = False
        self.calls = 0
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args):
        self.calls += 1
        if self.on:
            raise OSError(self._code, os.strerror(self._code))
        return self._real(*args)


def test_a_full_disk_refuses_and_heals_by_itself(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    before, after = frame(), frame()
    append(wal, before)
    pwritev = Failing(monkeypatch, "pwritev")
    pwritev.on = True
    error = refusal_of(wal.append(frame()))
    assert isinstance(error, WalUnavailable)
    assert "No space left" in error.message
    assert error.retry_after_s is not None
    assert "No space left" in wal.refusal()  # what a balancer is told
    pwritev.on = False
    monkeypatch.setattr("collector.wal.UNWRITABLE_S", 0)
    assert wal.refusal() == ""  # somebody has to try
    append(wal, after)
    assert digests(log.segments()) == [before.digest, after.digest]
    assert len(log.segments()) == 1


def test_what_a_failed_write_left_is_cut_off(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    before, lost, after = frame(), frame(filler_bytes=2_000), frame()
    append(wal, before)
    real = os.pwritev
    written = []

    def half(fd: int, chunk, offset: int) -> int:
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(real(fd, [b"".join(chunk)[:1_000]], offset))
        return written[0]

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", half)
        refusal_of(wal.append(lost))
    assert written == [1_000]
    (path,) = log.segments()
    assert path.stat().st_size == sum(stored.length for stored in read_frames(path))
    append(wal, after)
    assert digests([path]) == [before.digest, after.digest]


def test_nothing_is_written_behind_bytes_that_cannot_be_cut_off(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    before, refused, after = frame(), frame(), frame()
    append(wal, before)
    sync, cut = Failing(monkeypatch, "pwritev", errno.EIO), Failing(monkeypatch, "ftruncate", errno.EIO)
    sync.on = cut.on = True
    refusal_of(wal.append(frame()))
    sync.on = False
    refusal_of(wal.append(refused))
    cut.on = False
    append(wal, after)
    assert digests(log.segments()) == [before.digest, after.digest]


def test_a_failed_sync_is_never_tried_again_on_the_same_file(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    before, lost, after = frame(), frame(), frame()
    append(wal, before)
    (first,) = log.segments()
    failed: list[str] = []
    synced: list[str] = []
    real = os.fdatasync

    def failing(fd: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().stem
        synced.append(name)
        if not failed:
            failed.append(name)
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", failing)
    assert isinstance(refusal_of(wal.append(lost)), WalUnavailable)
    append(wal, after)
    wal.close()
    assert failed == [first.stem]
    assert synced.count(first.stem) == 1
    assert digests(log.files("*.wal")) == [before.digest, after.digest]
    assert len(log.files("*.wal")) == 2


def test_a_failed_sync_of_the_first_group_leaves_no_empty_segment(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    sync = Failing(monkeypatch, "fdatasync", errno.EIO)
    sync.on = True
    refusal_of(wal.append(frame()))
    sync.on = False
    until(lambda: not log.segments())
    wal.close()
    assert wal.next_sealed(1) is None


def test_a_segment_that_cannot_be_sealed_is_sealed_later(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open(segment_bytes_max=500)
    rename = Failing(monkeypatch, "rename", errno.EIO)
    rename.on = True
    first, second = frame(filler_bytes=600), frame(filler_bytes=600)
    append(wal, first)
    append(wal, second)
    assert not log.files("*.wal")
    rename.on = False
    segment = wal.next_sealed(10)
    assert segment is not None
    assert digests([segment.path]) == [first.digest, second.digest]


def test_a_segment_whose_name_is_not_durable_takes_no_frame(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    wal = log.open()
    sync = Failing(monkeypatch, "fsync", errno.EIO)
    sync.on = True
    refusal_of(wal.append(frame()))
    assert not log.segments()
    sync.on = False
    append(wal, frame())


def test_an_error_nobody_thought_of_fails_the_group_and_not_the_log(log: Log, monkeypatch, caplog) -> None:
    wal = log.open()
    with monkeypatch.context() as patch:
        patch.setattr("collector.segments.encode_frame", lambda *args: 1 / 0)
        assert isinstance(refusal_of(wal.append(frame())), WalUnavailable)
    assert "ZeroDivisionError" in caplog.text
    append(wal, frame())


def test_a_failing_disk_does_not_flood_the_log(log: Log, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    wal = log.open()
    pwritev = Failing(monkeypatch, "pwritev")
    pwritev.on = True
    for _ in range(50):
        refusal_of(wal.append(frame()))
    assert 1 <= len([record for record in caplog.records if "cannot write" in record.message]) <= 2


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_disk_that_really_is_full(tiny_disk: Path) -> None:
    wal = Wal(tiny_disk / "wal", Ledger(), segment_bytes_max=64 << 10, flush_interval_s=NEVER_S)
    kept, refused = [], 0
    for _ in range(60):
        each = frame(filler_bytes=10_000)
        try:
            wal.append(each).result(10)
            kept.append(each.digest)
        except WalUnavailable as error:
            assert "No space left" in error.message
            refused += 1
    assert 15 <= len(kept) <= 25
    assert refused == 60 - len(kept)
    segment = wal.next_sealed(1)
    assert segment is not None
    loaded = digests([segment.path])
    wal.discard(segment)  # works on a full disk, and makes room
    after = frame(filler_bytes=10_000)
    append(wal, after)
    wal.release()
    wal = Wal(tiny_disk / "wal", Ledger(), segment_bytes_max=64 << 10)
    rest = sorted((tiny_disk / "wal").glob("*.wal"))
    assert loaded + digests(rest) == [*kept, after.digest]
    wal.release()


def test_a_start_on_a_full_disk(tiny_disk: Path) -> None:
    wal = Wal(tiny_disk / "wal", Ledger(), flush_interval_s=NEVER_S)
    kept = frame(filler_bytes=10_000)
    append(wal, kept)
    wal.release()
    with (tiny_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(1024))
    wal = Wal(tiny_disk / "wal", Ledger(), flush_interval_s=NEVER_S)
    segment = wal.next_sealed(1)
    assert segment is not None
    assert digests([segment.path]) == [kept.digest]
    wal.discard(segment)
    append(wal, frame(filler_bytes=5_000))
    wal.release()
