"""When the disk is full the oldest goes before its time, where a policy lets it: content first, and never today's."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from store import Store, expiry_of

from storage.pins import Pin, Pins
from storage.policies import RetentionPolicies
from storage.retention import from_toml
from storage.vocabulary import load

FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)
POLICIES = """
[[policies]]
name = "errors"
match = { status = "error" }
skeleton_days = 30
content_days = 30

[default]
skeleton_days = 30
content_days = 30
expire_early = true
"""
PLAIN, PINNED, FAILED = 1, 2, 3


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    yield made
    made.close()


def fill(store: Store) -> None:
    """Three days of three traces each; one is to be pinned, of one a span failed. Of that another span did not."""
    for number in range(3):
        start = int((FIRST + timedelta(days=number)).timestamp()) * 1_000_000_000
        spans = []
        for kind in (PLAIN, PINNED, FAILED):
            for one in (1, 2):
                spans.append(
                    span(
                        one, trace_id=bytes(14) + bytes([number + 1, kind]), start_time_unix_nano=start,
                        end_time_unix_nano=start + 1000, status={"code": 2} if (kind, one) == (FAILED, 1) else {},
                        attributes=[attribute("gen_ai.input.messages", AnyValue(string_value="why?"))],
                    )
                )  # fmt: skip
        store.load([request(*spans)], received=start)


def stored(store: Store, table: str) -> set[tuple[int, int]]:
    """Day and kind of the traces that have all their rows in a table."""
    rows = store.engine.rows(f"SELECT TraceId, count() FROM spanhouse.{table} GROUP BY TraceId")
    assert {count for _, count in rows} <= {2}
    return {(trace[14], trace[15]) for trace, _ in rows}


def test_the_oldest_goes_first_and_what_others_keep_stays(store: Store) -> None:
    policies, pins = RetentionPolicies(store.engine, load()), Pins(store.engine)
    policies.put(from_toml(POLICIES), "ann", "")
    expiry = expiry_of(store.engine, policies, pins, (FIRST + timedelta(days=2)).timestamp)
    fill(store)
    for number in (1, 2, 3):
        pins.put("default", Pin("trace", (bytes(14) + bytes([number, PINNED])).hex()))
    everything = {(number, kind) for number in (1, 2, 3) for kind in (PLAIN, PINNED, FAILED)}
    assert expiry.run() == []
    assert (stored(store, "spans"), stored(store, "content")) == (everything, everything)
    for gone, day in ((1, date(2026, 3, 1)), (2, date(2026, 3, 2))):
        assert expiry.run_early() == day
        assert stored(store, "spans") == everything
        assert stored(store, "content") == everything - {(number, PLAIN) for number in range(1, gone + 1)}
    for gone, day in ((1, date(2026, 3, 1)), (2, date(2026, 3, 2))):
        assert expiry.run_early() == day
        assert stored(store, "spans") == everything - {(number, PLAIN) for number in range(1, gone + 1)}
    assert expiry.run_early() is None
    assert stored(store, "content") == stored(store, "spans") == everything - {(1, PLAIN), (2, PLAIN)}


def test_nothing_goes_early_unless_a_policy_says_so(store: Store) -> None:
    policies = RetentionPolicies(store.engine, load())
    policies.put(from_toml("[default]\nskeleton_days = 30\ncontent_days = 30"), "ann", "")
    expiry = expiry_of(store.engine, policies, Pins(store.engine), (FIRST + timedelta(days=2)).timestamp)
    fill(store)
    assert expiry.run_early() is None
    assert len(stored(store, "spans")) == len(stored(store, "content")) == 9
