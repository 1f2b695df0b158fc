"""Spans and log records in one segment: each is loaded once, fails for its own frames only, and is counted apart."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from frame_samples import FakeStore, frame, until
from loader_house import SEGMENT_ID, House, sealed_segment
from otlp_building import logs_body, record
from xxhash import xxh3_128_digest

from collector.frames import Frame, read_frames
from collector.loader import Load
from storage.errors import DataError


def log_frame(number: int, tenant: str = "default") -> Frame:
    data = logs_body(record(number))
    return Frame(tenant, xxh3_128_digest(data), 1, data, (("run_id", f"r{number}"),), "logs")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def build(load: Load) -> House:
        houses.append(House(tmp_path, load))
        return houses[-1]

    yield build
    for each in houses:
        each.stop()


def test_each_signal_of_a_segment_is_loaded_once_under_its_own_token(house, tmp_path: Path) -> None:
    frames = [frame(2), log_frame(1), frame(3, tenant="acme"), log_frame(2, "acme")]
    sealed_segment(tmp_path, frames)
    store = FakeStore()
    home = house(store.load)
    home.wait_until_loaded()
    assert store.loaded == {
        SEGMENT_ID: [frames[0].digest, frames[2].digest],
        f"{SEGMENT_ID}.logs": [frames[1].digest, frames[3].digest],
    }
    assert {tenant: (c.received, c.stored) for tenant, c in home.ledger.spans().items()} == {
        "default": (2, 2),
        "acme": (3, 3),
    }
    assert {tenant: (c.received, c.stored) for tenant, c in home.ledger.log_records().items()} == {
        "default": (1, 1),
        "acme": (1, 1),
    }


@pytest.mark.parametrize(("one", "token"), [(frame(), SEGMENT_ID), (log_frame(1), f"{SEGMENT_ID}.logs")])
def test_a_segment_of_one_signal_pays_for_one_load(house, tmp_path: Path, one: Frame, token: str) -> None:
    sealed_segment(tmp_path, [one])
    store = FakeStore()
    house(store.load).wait_until_loaded()
    assert store.attempts == [token]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_crash_between_the_two_loads_repeats_them_under_the_same_tokens(house, tmp_path: Path) -> None:
    class Crash(BaseException):
        pass

    frames = [frame(), log_frame(1)]
    sealed_segment(tmp_path, frames)
    store = FakeStore()

    def crashing(path: Path, token: str, signal: str) -> None:
        if signal == "logs":
            raise Crash
        store.load(path, token, signal)

    home = house(crashing)
    until(lambda: not home.loader._thread.is_alive())
    home.restart(store.load)
    home.wait_until_loaded()
    assert store.attempts == [SEGMENT_ID, SEGMENT_ID, f"{SEGMENT_ID}.logs"]
    assert store.digests == [each.digest for each in frames]


@pytest.mark.parametrize("bad", range(4))
def test_a_frame_that_does_not_load_spoils_nothing_of_either_signal(house, tmp_path: Path, bad: int) -> None:
    frames = [frame(), log_frame(1), frame(), log_frame(2)]
    sealed_segment(tmp_path, frames)

    def fail(path: Path, token: str) -> None:
        signal = "logs" if ".logs" in token else "traces"
        for stored in read_frames(path):
            if stored.signal == signal and stored.digest == frames[bad].digest:
                raise DataError("cannot parse it")

    store = FakeStore(fail)
    home = house(store.load)
    home.wait_until_loaded()
    assert sorted(store.digests) == sorted(each.digest for each in frames if each is not frames[bad])
    assert home.quarantined == [f"{SEGMENT_ID}.{bad}"]
    until(lambda: home.leftovers() == [])
    (counts,) = (home.ledger.spans() if bad % 2 == 0 else home.ledger.log_records()).values()
    assert (counts.received, counts.stored, counts.quarantined, counts.in_wal) == (2, 1, 1, 0)
    (others,) = (home.ledger.log_records() if bad % 2 == 0 else home.ledger.spans()).values()
    assert (others.stored, others.quarantined) == (2, 0)


def test_records_in_the_quarantine_are_shown_and_replayed_as_they_were(house, tmp_path: Path) -> None:
    one = log_frame(1, "acme")
    sealed_segment(tmp_path, [one])

    def fail(path: Path, token: str) -> None:
        if token.startswith(SEGMENT_ID):
            raise DataError("cannot parse it")

    store = FakeStore(fail)
    home = house(store.load)
    home.wait_until_loaded()
    (entry,) = home.quarantine.page(limit=10)
    assert (entry.tenant, entry.spans, entry.log_records, entry.signal) == ("acme", 0, 1, "logs")
    sent = record(1)
    assert home.quarantine.summary(entry.id)["spans"] == [
        {"trace_id": sent.trace_id.hex(), "span_id": sent.span_id.hex(), "name": ""}
    ]
    home.quarantine.replay(entry.id, home.wal.append)
    home.wait_until_loaded()
    assert store.digests == [one.digest]
    counts = home.ledger.log_records()["acme"]
    assert (counts.received, counts.quarantined, counts.stored, counts.in_wal) == (2, 1, 1, 0)
    assert home.quarantined == []


def test_an_entry_of_an_earlier_version_is_one_of_spans(house) -> None:
    home = house(FakeStore().load)
    entry = b"""{"id": "1700000000000000000-abcdef.3", "tenant": "t", "spans": 2, "bytes": 9, "received_unix_nano": 1,
        "quarantined_unix_nano": 2, "reason": "why"}"""
    (home.directory / "quarantine" / f"{SEGMENT_ID}.3.json").write_bytes(entry)
    assert home.quarantine.get(f"{SEGMENT_ID}.3").signal == "traces"
