"""Pins on every footing of the store: there is a most, and expiry leaves pinned traces alone."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from settling_house import House, eventually
from store import expiry_of

from storage import pins as storage_pins
from storage.pins import Pin, Pins, TooManyPins
from storage.policies import RetentionPolicies
from storage.retention import from_toml
from storage.vocabulary import load

DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
NANO = 1_000_000_000


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path).start()
    yield made
    made.close()


def test_there_is_a_most(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_pins, "PINS_MAX", 3)
    pins = Pins(house.engine)
    for number in range(3):
        pins.put("red", Pin("run", f"r{number}"))
    with pytest.raises(TooManyPins, match="cannot keep more than 3 pins of tenant 'red'"):
        pins.put("red", Pin("run", "r3"))
    pins.put("red", Pin("run", "r1", comment="changed"))
    pins.put("blue", Pin("run", "r3"))
    assert pins.remove("red", "run", "r0", "")
    pins.put("red", Pin("run", "r3"))
    assert {pin.id for pin in pins.of("red")} == {"r1", "r2", "r3"}


def test_what_is_pinned_stays_until_it_is_unpinned(house: House) -> None:
    """A trace by its id, and those of a session by what links them."""
    clock = DAY.timestamp()
    policies, pins = RetentionPolicies(house.engine, load()), Pins(house.engine)
    policies.put(from_toml("[default]\nskeleton_days = 2\ncontent_days = 1"), "ann", "")
    expiry = expiry_of(house.engine, policies, pins, lambda: clock)
    start = int(DAY.timestamp()) * NANO
    for tenant in ("red", "blue"):
        spans = [
            span(
                number, trace_id=number.to_bytes(16, "big"), start_time_unix_nano=start,
                end_time_unix_nano=start + NANO, attributes=[
                    attribute("session.id", AnyValue(string_value=f"s{number % 3}")),
                    attribute("gen_ai.input.messages", AnyValue(string_value="why? " * 9)),
                ],
            )
            for number in range(1, 10)
        ]  # fmt: skip
        house.load(request(*spans), tenant=tenant, received=start)
    eventually(lambda: house.store.number("SELECT count() FROM spanhouse.links FINAL WHERE Entity = 'session'") == 18)

    def left(table: str) -> set[tuple[str, int]]:
        rows = house.engine.rows(f"SELECT toString(Tenant), hex(TraceId) FROM spanhouse.{table}")
        return {(tenant, int(trace, 16)) for tenant, trace in rows}

    pins.put("red", Pin("trace", f"{4:032x}"))
    pins.put("blue", Pin("session", "s2"))
    clock += timedelta(days=2).total_seconds()
    expiry.run()
    assert left("content") == {("red", 4), ("blue", 2), ("blue", 5), ("blue", 8)}
    clock += timedelta(days=30).total_seconds()
    expiry.run()
    assert left("spans") == left("content") == {("red", 4), ("blue", 2), ("blue", 5), ("blue", 8)}
    assert pins.remove("blue", "session", "s2", "")
    expiry.run()
    assert left("spans") == left("content") == {("red", 4)}
    assert pins.remove("red", "trace", f"{4:032x}", "")
    expiry.run()
    assert left("spans") == left("content") == set()
