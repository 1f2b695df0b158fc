"""Segments that do not load: every good frame is stored once, and whenever the process dies."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from frame_samples import FakeStore, frame, frame_of, request, span_ids, until
from loader_house import SEGMENT_ID, House, rejects, sealed_segment

from collector.frames import Signal, StoredFrame, read_frames
from collector.loader import Load
from storage.errors import DataError, OutOfMemory, StoreUnavailable


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def build(load: Load, **limits) -> House:
        houses.append(House(tmp_path, load, **limits))
        return houses[-1]

    yield build
    for each in houses:
        each.stop()


# --- bisection ---


@pytest.mark.parametrize(
    ("count", "bad"),
    [
        (1, [0]),
        (2, [1]),
        (3, [0, 2]),
        (64, [0]),
        (64, [63]),
        (64, [31, 32]),
        (100, [3, 4, 50, 99]),
        (7, range(7)),
    ],
)
def test_bisection_finds_exactly_the_bad_frames(house, tmp_path: Path, count: int, bad) -> None:
    frames = [frame(1 + number % 3, tenant=f"tenant-{number % 2}") for number in range(count)]
    sealed_segment(tmp_path, frames)
    store = FakeStore(rejects(*(frames[number] for number in bad)))
    home = house(store.load)
    home.wait_until_loaded()
    assert store.digests == [each.digest for number, each in enumerate(frames) if number not in bad], "once, in order"
    assert home.quarantined == [f"{SEGMENT_ID}.{number}" for number in bad]
    assert len(store.attempts) == len(set(store.attempts)) <= 2 + 2 * len(bad) * (1 + count.bit_length())
    for number in bad:
        entry = home.quarantine.get(f"{SEGMENT_ID}.{number}")
        assert entry.reason == f"cannot parse {frames[number].digest.hex()}"
        assert (entry.tenant, entry.spans, entry.bytes) == (
            frames[number].tenant,
            frames[number].items,
            len(frames[number].request),
        )
        assert entry.received_unix_nano == 1_000 + number
    for tenant, spans in home.ledger.spans().items():
        mine = [(number, each) for number, each in enumerate(frames) if each.tenant == tenant]
        assert spans.quarantined == sum(each.items for number, each in mine if number in bad)
        assert spans.stored == sum(each.items for number, each in mine if number not in bad)
        assert spans.in_wal == 0
    until(lambda: not home.leftovers())


def test_bad_frames_do_not_hold_up_later_segments(house) -> None:
    bad = frame()
    store = FakeStore(rejects(bad))
    home = house(store.load)
    frames = [frame() for _ in range(10)]
    home.append(*frames[:5], bad, *frames[5:])
    home.append(after := frame())
    home.wait_until_loaded()
    assert store.digests == [each.digest for each in (*frames, after)]
    assert len(home.quarantined) == 1


def test_a_store_that_goes_away_during_a_bisection(house, tmp_path: Path) -> None:
    frames = [frame() for _ in range(16)]
    sealed_segment(tmp_path, frames)
    reject = rejects(frames[5])
    calls = []

    def fail(path: Path, token: str) -> None:
        calls.append(token)
        if len(calls) % 3:
            raise StoreUnavailable("connection refused")
        reject(path, token)

    store = FakeStore(fail)
    home = house(store.load)
    home.wait_until_loaded()
    assert store.digests == [each.digest for number, each in enumerate(frames) if number != 5]
    assert home.quarantined == [f"{SEGMENT_ID}.5"]


def test_a_frame_that_a_new_encoding_mends_is_stored(house, tmp_path: Path) -> None:
    """A oneof sent twice is legal on the wire, where the last one wins; the engine refuses it."""
    body = request(2)
    value = b"\x0a\x01a\x10\x01"  # AnyValue: string_value "a", then bool_value true
    attribute = b"\x0a\x01k\x12" + bytes([len(value)]) + value
    resource = b"\x0a" + bytes([len(attribute)]) + attribute
    twice = b"\x0a" + bytes([len(resource) + 2]) + b"\x0a" + bytes([len(resource)]) + resource
    odd = frame_of(body + twice, spans=2, tenant="acme")
    frames = [frame(), odd, frame()]
    sealed_segment(tmp_path, frames)
    mended: list[StoredFrame] = []

    def fail(path: Path, token: str) -> None:
        rejects(odd)(path, token)
        if token.endswith("-normalised"):
            mended.extend(read_frames(path))

    store = FakeStore(fail)
    home = house(store.load)
    home.wait_until_loaded()
    assert not home.quarantined
    assert f"{SEGMENT_ID}.1-normalised" in store.loaded
    (stored,) = mended
    assert (stored.tenant, stored.items, stored.received_unix_nano) == ("acme", 2, 1_001)
    assert value not in bytes(stored.request)
    assert span_ids(stored.request) == span_ids(odd.request)
    assert home.ledger.spans()["acme"].stored == 2


def test_a_segment_too_large_for_the_memory_is_loaded_in_pieces(house, tmp_path: Path) -> None:
    frames = [frame() for _ in range(10)]
    sealed_segment(tmp_path, frames)

    def fail(path: Path, token: str) -> None:
        if len(list(read_frames(path))) > 3:
            raise OutOfMemory("memory limit exceeded")

    store = FakeStore(fail)
    home = house(store.load)
    home.wait_until_loaded()
    assert store.digests == [each.digest for each in frames]
    assert set(store.loaded) == {f"{SEGMENT_ID}.{part}" for part in ("0-2", "2-5", "5-7", "7-10")}
    assert not home.quarantined


def test_a_shortage_of_memory_that_passes_splits_nothing(house) -> None:
    failures = iter([OutOfMemory("memory limit exceeded")] * 5)

    def fail(path: Path, token: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    store = FakeStore(fail)
    home = house(store.load)
    home.append(frame(), frame())
    home.wait_until_loaded()
    assert len(store.attempts) > 5
    assert all("." not in token for token in store.loaded), "whole segments only"


def test_a_frame_too_large_for_the_memory_does_not_hold_up_the_others(house, tmp_path: Path) -> None:
    large = frame(filler_bytes=1_000)
    sealed_segment(tmp_path, [frame(), large])

    def fail(path: Path, token: str) -> None:
        if path.stat().st_size > 1_000:
            raise OutOfMemory("memory limit exceeded")

    store = FakeStore(fail)
    home = house(store.load)
    home.append(after := frame())
    home.wait_until_loaded()
    assert after.digest in store.digests
    assert home.quarantine.get(f"{SEGMENT_ID}.1").reason == "memory limit exceeded"


def test_a_frame_that_does_not_decode_is_quarantined_as_it_is(house, tmp_path: Path) -> None:
    garbage = frame_of(b"\xff\xff\xff garbage", spans=4)
    sealed_segment(tmp_path, [frame(), garbage])
    store = FakeStore(rejects(garbage))
    home = house(store.load)
    home.wait_until_loaded()
    assert home.quarantined == [f"{SEGMENT_ID}.1"]
    assert not [token for token in store.attempts if "normalised" in token]
    summary = home.quarantine.summary(f"{SEGMENT_ID}.1")
    assert summary["decodes"] is False
    assert summary["error"]


def test_a_segment_damaged_after_the_start_loses_only_what_is_damaged(tmp_path: Path, caplog) -> None:
    frames = [frame(number + 1) for number in range(4)]
    sealed_segment(tmp_path, frames)
    damaged = []

    def fail(path: Path, token: str) -> None:
        if token == SEGMENT_ID and not damaged:
            data = bytearray(path.read_bytes())
            third = list(read_frames(path))[2]
            data[third.offset + 80] ^= 1
            path.write_bytes(data)
            damaged.append(bytes(data[third.offset :]))
        if token == SEGMENT_ID:
            raise DataError("cannot parse")

    store = FakeStore(fail)
    home = House(tmp_path, store.load)
    home.wait_until_loaded()
    assert store.digests == [each.digest for each in frames[:2]]
    assert (tmp_path / "wal" / f"{SEGMENT_ID}.damaged").read_bytes() == damaged[0]
    assert "is damaged" in caplog.text
    spans = home.ledger.spans()["default"]
    assert (spans.received, spans.stored, spans.quarantined, spans.in_wal) == (10, 3, 7, 0)
    home.stop()


# --- crashes ---


class Crash(BaseException):
    """Stands in for kill -9: nothing catches it, and the thread ends where it stands."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("crash_at", range(1, 14))
def test_a_crash_during_a_bisection_repeats_the_same_tokens(tmp_path: Path, crash_at: int) -> None:
    """The process dies after load number `crash_at`, before it could note that. The store keeps what it has."""
    frames = [frame() for _ in range(8)]
    sealed_segment(tmp_path, frames)
    reject = rejects(frames[2], frames[6])
    store = FakeStore(reject)

    def crashing(path: Path, token: str, signal: Signal) -> None:
        try:
            store.load(path, token, signal)
        finally:
            if len(store.attempts) == crash_at:
                raise Crash

    home = House(tmp_path, crashing)
    until(lambda: not home.loader._thread.is_alive() or not list((tmp_path / "wal").glob("*.wal")))
    before = list(store.attempts)
    home.restart(store.load)
    home.wait_until_loaded()
    assert sorted(store.digests) == sorted(each.digest for number, each in enumerate(frames) if number not in (2, 6))
    assert home.quarantined == [f"{SEGMENT_ID}.2", f"{SEGMENT_ID}.6"]
    after = store.attempts[len(before) :]
    assert len(after) == len(set(after))
    spans = home.ledger.spans().get("default")
    assert spans is None or spans.in_wal == 0
    assert home.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_range_that_failed_before_a_crash_is_not_loaded_as_a_whole_after_it(tmp_path: Path) -> None:
    """Its first half is stored under a token of its own: loading the whole now would store that half twice."""
    frames = [frame() for _ in range(8)]
    sealed_segment(tmp_path, frames)
    store = FakeStore(rejects(frames[3]))

    def crashing(path: Path, token: str, signal: Signal) -> None:
        store.load(path, token, signal)
        if token == f"{SEGMENT_ID}.0-2":
            raise Crash

    home = House(tmp_path, crashing)
    until(lambda: not home.loader._thread.is_alive())
    store.fail = lambda path, token: None  # a new version of the store can load everything
    home.restart(store.load)
    home.wait_until_loaded()
    assert sorted(store.digests) == sorted(each.digest for each in frames)
    assert not home.quarantined
    assert home.stop()


def test_kill_nine_during_bisections_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The store of this test is a directory of files named by token, so it survives the kill like the real one."""
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from collector.frames import read_frames
        from collector.ledger import Ledger
        from collector.loader import Loader
        from collector.quarantine import Quarantine
        from collector.wal import Wal
        from storage.errors import DataError

        home = Path(sys.argv[1])

        def load(path, token, signal):
            frames = list(read_frames(path))
            if any(bytes(frame.request).endswith(b"bad") for frame in frames):
                raise DataError("bad")
            temporary = home / "store.tmp"
            temporary.write_text("".join(frame.digest.hex() + "\\n" for frame in frames))
            temporary.rename(home / "store" / token)
            time.sleep(0.005)

        (home / "store").mkdir(exist_ok=True)
        ledger = Ledger()
        quarantine = Quarantine(home / "quarantine", ledger)
        wal = Wal(home / "wal", ledger)
        Loader(wal, load, quarantine, ledger).start()
        print("ready", flush=True)
        while list((home / "wal").glob("*.wal")):
            time.sleep(0.01)
        print("done", flush=True)
    """)
    frames = [frame_of(request() + (b"bad" if number % 9 == 4 else b"")) for number in range(60)]
    sealed_segment(tmp_path, frames)
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            process.wait(0.02 + 0.03 * kills)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.wait()
        if process.stdout.read() == b"done\n":
            break
        assert kills < 50
    assert kills >= 2
    stored = [line for path in (tmp_path / "store").iterdir() for line in path.read_text().split()]
    good = [each.digest.hex() for each in frames if not each.request.endswith(b"bad")]
    assert sorted(stored) == sorted(good)
    quarantined = [path.stem for path in (tmp_path / "quarantine").glob("*.json")]
    assert sorted(quarantined) == sorted(f"{SEGMENT_ID}.{number}" for number in range(60) if number % 9 == 4)
