"""The loader: every segment reaches the store once, however long that is away."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from frame_samples import FakeStore, frame, until
from loader_house import SEGMENT_ID, House, sealed_segment

from collector.ledger import Ledger
from collector.loader import Load, Loader
from collector.quarantine import Quarantine
from collector.wal import Wal
from storage.errors import StoreUnavailable


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def build(load: Load, **limits) -> House:
        houses.append(House(tmp_path, load, **limits))
        return houses[-1]

    yield build
    for each in houses:
        each.stop()


# --- the plain way ---


def test_a_segment_is_loaded_once_under_its_id_and_goes(house) -> None:
    store = FakeStore()
    home = house(store.load)
    frames = [frame(2, tenant="acme"), frame(3)]
    home.append(*frames)
    home.wait_until_loaded()
    assert store.digests == [each.digest for each in frames]
    assert store.attempts == list(store.loaded)
    spans = home.ledger.spans()
    assert (spans["acme"].stored, spans["default"].stored) == (2, 3)
    assert (spans["acme"].in_wal, spans["default"].in_wal) == (0, 0)


def test_what_an_earlier_process_left_is_loaded_first(house, tmp_path: Path) -> None:
    left = [frame(), frame()]
    sealed_segment(tmp_path, left)
    store = FakeStore()
    home = house(store.load)
    later = frame()
    home.append(later)
    home.wait_until_loaded()
    assert store.digests == [each.digest for each in (*left, later)]
    assert store.attempts[0] == SEGMENT_ID
    assert home.ledger.spans()["default"].stored == 3


def test_the_store_hears_in_order_what_it_will_load_next(tmp_path: Path) -> None:
    told: list[tuple[str, str, str]] = []
    store = FakeStore()
    wal = Wal(tmp_path / "wal", Ledger(), flush_interval_s=0.0, segment_bytes_max=1)
    frames = [frame(), replace(frame(), signal="logs"), frame()]
    for each in frames:
        wal.append(each).result(10)
    wal.close()

    def prepare(path: Path, token: str, signal: str) -> None:
        assert path.exists()
        told.append(("prepare", token, signal))

    def load(path: Path, token: str, signal: str) -> None:
        told.append(("load", token, signal))
        store.load(path, token, signal)

    ledger = Ledger()
    for each in frames:
        ledger.admitted(each.tenant, received=each.items, signal=each.signal)
    loader = Loader(wal, load, Quarantine(tmp_path / "quarantine", ledger), ledger, prepare=prepare)
    loader.start()
    assert loader.stop(10)
    wal.release()
    loads = [one[1:] for one in told if one[0] == "load"]
    assert [signal for _, signal in loads] == ["traces", "logs", "traces"]
    assert store.digests == [each.digest for each in frames]
    for here, following in itertools.pairwise(loads):
        assert told.index(("prepare", *following)) < told.index(("load", *here))
    prepared = list(dict.fromkeys(one[1:] for one in told if one[0] == "prepare"))
    assert prepared == loads


def test_a_frame_is_loaded_soon_after_its_ack(house) -> None:
    store = FakeStore()
    home = house(store.load, flush_interval_s=0.1)
    home.append(frame())
    home.wait_until_loaded()
    waits = []
    for count in range(2, 7):
        start_s = time.monotonic()
        home.append(frame())
        until(lambda count=count: len(store.digests) == count)
        waits.append(time.monotonic() - start_s)
    assert max(waits) < 0.6, "the flush interval and some time to work, no polling in between"


# --- a store that is away ---


def test_a_store_that_is_away_for_a_while_gets_everything_once(house) -> None:
    away_until = time.monotonic() + 0.6

    def fail(path: Path, token: str) -> None:
        if time.monotonic() < away_until:
            raise StoreUnavailable("connection refused")

    store = FakeStore(fail)
    home = house(store.load, segment_bytes_max=2_000)
    frames = [frame(filler_bytes=500) for _ in range(30)]
    home.append(*frames)
    home.wait_until_loaded()
    assert store.digests == [each.digest for each in frames]
    assert not home.quarantined
    assert 5 < len(store.attempts) - len(store.loaded) < 60, "it backs off, and never gives up"


def test_an_exception_nobody_thought_of_is_no_reason_to_lose_data(house, caplog) -> None:
    failures = iter([KeyError("column"), MemoryError(), OSError(5, "Input/output error")])

    def fail(path: Path, token: str) -> None:
        if (error := next(failures, None)) is not None:
            raise error

    store = FakeStore(fail)
    home = house(store.load)
    home.append(only := frame())
    home.wait_until_loaded()
    assert store.digests == [only.digest]
    assert len(set(store.attempts)) == 1
    assert "KeyError" in caplog.text


def test_stop_interrupts_the_wait_for_a_store_that_is_away(tmp_path: Path) -> None:
    tried = threading.Event()

    def load(path: Path, token: str, signal: str) -> None:
        tried.set()
        raise StoreUnavailable("connection refused")

    home = House(tmp_path, load)
    home.loader._backoff_s_max = 3600.0
    home.append(left := frame())
    assert tried.wait(10)
    start_s = time.monotonic()
    assert home.stop(drain_timeout_s=0.3)
    assert 0.3 <= time.monotonic() - start_s < 3
    store = FakeStore()
    home.start(store.load)
    home.wait_until_loaded()
    home.stop()
    assert store.digests == [left.digest]


def test_stop_drains_what_is_sealed(tmp_path: Path) -> None:
    store = FakeStore(lambda path, token: time.sleep(0.02))
    home = House(tmp_path, store.load, segment_bytes_max=1_000, flush_interval_s=3600.0)
    frames = [frame(filler_bytes=800) for _ in range(20)]
    home.append(*frames)
    assert home.stop(drain_timeout_s=10)
    assert store.digests == [each.digest for each in frames]
    assert not list((tmp_path / "wal").glob("*.wal"))


def test_stop_says_when_a_load_does_not_end(tmp_path: Path) -> None:
    go_on, started = threading.Event(), threading.Event()

    def load(path: Path, token: str, signal: str) -> None:
        started.set()
        go_on.wait(10)

    home = House(tmp_path, load)
    home.append(frame())
    assert started.wait(10)
    home.wal.close()
    assert not home.loader.stop(0.1)
    go_on.set()
    assert home.stop()
