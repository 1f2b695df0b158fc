"""Facts of traces in the real engine: what they come to, when they are settled again, and what a restart takes up."""

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from settling_house import NOW, START, House, call, eventually, request, span, trace_id

from storage import arrivals, settling
from storage.arrivals import Memory
from storage.errors import QueryTooLarge, StoreUnavailable
from storage.settling import Settler


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path).long_running().start()
    yield made
    made.close()


def test_an_agents_trace(house: House):
    """Sizes, usage once, models, tools in order, and the share of each agent."""
    invokes = {"gen_ai__operation__name": "invoke_agent"}
    aide = {"gen_ai__agent__name": "aide", "gen_ai__agent__version": "2"}
    spans = [
        span(1, 1, seconds=10, name="invoke_agent boss", gen_ai__agent__name="boss", **invokes),
        call(1, 2, 1, "priced-1", 1000, 100, start_s=1),
        span(1, 3, 1, start_s=3, seconds=4, failed=True, **aide, **invokes),
        call(1, 4, 3, "other", 10, 1, start_s=3),
        span(1, 5, 3, start_s=5, gen_ai__operation__name="execute_tool", gen_ai__tool__name="pay"),
        span(1, 6, 1, start_s=2, gen_ai__operation__name="execute_tool", gen_ai__tool__name="look"),
        span(1, 7, 6, start_s=2.5, name="HTTP GET"),
    ]  # fmt: skip
    random.Random(4).shuffle(spans)
    house.load(request(*spans))
    house.settle()
    facts = house.facts(trace_id(1))
    assert facts is not None
    assert (facts["Spans"], facts["Errors"], facts["Failed"], facts["Truncated"]) == (7, 1, 0, 0)
    assert (facts["RootName"], facts["RootService"], facts["DurationNano"]) == (
        "invoke_agent boss",
        "agent",
        10 * 10**9,
    )
    assert (facts["InputTokens"], facts["OutputTokens"], facts["TotalTokens"]) == (1010, 101, 1111)
    assert (facts["CostUsd"], facts["Unpriced"]) == (pytest.approx(1.1), 1)
    assert dict(zip(facts["Models"], facts["ModelCalls"], strict=True)) == {"priced-1": 1, "other": 1}
    assert facts["Tools"] == ["look", "pay"]
    second, boss = sorted(facts["Agents"], key=lambda agent: agent["Name"])
    assert (second["Name"], second["Version"], second["Spans"], second["Errors"], second["Failed"]) == (
        "aide",
        "2",
        3,
        1,
        1,
    )
    assert (second["TotalTokens"], second["Tools"], second["DurationNano"]) == (11, ["pay"], 4 * 10**9)
    assert (boss["Name"], boss["Spans"], boss["Failed"], boss["TotalTokens"], boss["Tools"]) == (
        "boss",
        4,
        0,
        1100,
        ["look"],
    )


def test_a_repeated_usage_counts_once(house: House):
    """The agent's span says the sum of its calls again."""
    sums = {"gen_ai__usage__input_tokens": 300, "gen_ai__usage__output_tokens": 30}
    house.load(
        request(
            span(1, 1, gen_ai__operation__name="invoke_agent", **sums),
            call(1, 2, 1, sent=100, got=10),
            call(1, 3, 1, sent=200, got=20, start_s=2),
        )
    )
    house.settle()
    facts = house.facts(trace_id(1))
    assert facts is not None
    assert (facts["InputTokens"], facts["OutputTokens"], facts["ModelCalls"]) == (300, 30, [2])


def test_what_no_agent_made_has_no_facts(house: House):
    house.load(request(span(1, 1), span(1, 2, 1), service="shop"), request(call(2, 1)))
    house.settle()
    assert house.facts(trace_id(1)) is None
    assert house.facts(trace_id(2)) is not None


def test_a_retransmitted_span_counts_once(house: House):
    one = [span(1, 1, failed=True), call(1, 2, 1)]
    house.load(request(*one))
    house.load(request(*one, call(1, 3, 1)))
    house.settle()
    facts = house.facts(trace_id(1))
    assert facts is not None
    assert (facts["Spans"], facts["Errors"], facts["Failed"], facts["InputTokens"]) == (3, 1, 1, 200)


def test_two_spans_of_one_id_both_count(house: House):
    house.load(request(span(1, 1), call(1, 2, 1, sent=100), call(1, 2, 1, sent=50, start_s=3)))
    house.settle()
    facts = house.facts(trace_id(1))
    assert facts is not None
    assert (facts["Spans"], facts["InputTokens"]) == (3, 150)


def test_a_trace_that_is_its_own_ancestor(house: House):
    agent = {"gen_ai__operation__name": "invoke_agent", "gen_ai__agent__name": "loop"}
    house.load(request(span(1, 1, 3, **agent), call(1, 2, 1), span(1, 3, 2, start_s=1)))
    house.settle()
    facts = house.facts(trace_id(1))
    assert facts is not None
    assert (facts["Spans"], facts["InputTokens"], facts["Failed"]) == (3, 100, 0)
    assert facts["RootName"] == ""
    assert [(agent["Name"], agent["Spans"]) for agent in facts["Agents"]] == [("loop", 3)]


def test_late_spans_settle_a_trace_again(house: House):
    """Those that say something, and those that do not: a service's span belongs to the agent's trace too."""
    house.load(request(span(1, 1, seconds=2), call(1, 2, 1)))
    house.settle()
    house.load(request(call(1, 3, 1)))
    eventually(lambda: (facts := house.facts(trace_id(1))) and facts["InputTokens"] == 200)
    house.load(request(span(1, 4, 1, start_s=100, failed=True), service="shop"))
    eventually(lambda: (facts := house.facts(trace_id(1))) and facts["Spans"] == 4)
    facts = house.facts(trace_id(1))
    assert facts is not None
    assert (facts["Errors"], facts["DurationNano"]) == (1, 101 * 10**9)
    assert house.engine.rows("SELECT uniqExact(TraceId) FROM spanhouse.facts FINAL")[0][0] == 1


def test_tenants_are_apart(house: House):
    house.load(request(call(1, 1, sent=1)), tenant="one")
    house.load(request(call(1, 1, sent=2)), tenant="two")
    house.settle()
    assert [house.facts(trace_id(1), tenant)["InputTokens"] for tenant in ("one", "two")] == [1, 2]


def test_many_traces_over_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(settling, "BATCH_TRACES_MAX", 7)
    monkeypatch.setattr(settling, "BATCH_SPANS_MAX", 10)
    house = House(tmp_path).start()
    try:
        traces = range(1, 101)
        house.load(*(request(span(t, 1, start_s=t * 300), call(t, 2, 1, sent=t, start_s=t * 300)) for t in traces))
        house.settle()
        found = house.engine.rows(
            "SELECT TraceId, InputTokens, toUnixTimestamp64Nano(Start) FROM spanhouse.facts FINAL"
        )
        assert sorted(found) == [(trace_id(t), t, START + t * 300 * 10**9) for t in traces]
    finally:
        house.close()


def test_a_trace_of_too_many_spans_is_settled_by_its_first(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    house = House(tmp_path, trace_spans_max=10).start()
    try:
        calls = [call(1, n, 1, sent=1, start_s=n) for n in range(2, 32)]
        house.load(request(span(1, 1, seconds=100), *calls), request(call(2, 1, sent=7)))
        house.settle()
        facts = house.facts(trace_id(1))
        assert facts is not None
        assert (facts["Truncated"], facts["Spans"], facts["InputTokens"]) == (1, 31, 9)
        assert facts["DurationNano"] == 100 * 10**9
        assert "has 31 spans: its facts are of the first 10" in caplog.text
        assert house.facts(trace_id(2))["InputTokens"] == 7
    finally:
        house.close()


def test_a_growing_trace_waits_the_longer_the_larger_it_is(tmp_path: Path):
    house = House(tmp_path)  # not started: rounds are driven here
    try:
        house.load(request(span(1, 1, seconds=1), *(call(1, n, 1) for n in range(2, 300))))
        house.load(request(call(2, 2, 1)))  # its root is still to come
        house.settler._look()
        due = {key[1]: waiting.due_s - waiting.first_s for key, waiting in house.settler._waiting.items()}
        assert due[trace_id(1)] == pytest.approx(299 / settling.SPANS_PER_WAIT_S + 1 / settling.LENGTH_PER_WAIT_S)
        assert due[trace_id(2)] == settling.ROOTLESS_WAIT_S
    finally:
        house.store.close()


def test_what_was_loaded_before_a_kill_is_settled_after_it(tmp_path: Path):
    house = House(tmp_path)
    house.load(request(call(1, 1)))
    house.settler._write_note()  # and then nothing more: it never came to settle the trace
    house.load(request(call(2, 1)))
    house.annotations.link("default", [trace_id(1)], "run", "r1")
    again = House(tmp_path, store=house.store).start()
    try:
        again.settle()
        assert again.facts(trace_id(1)) and again.facts(trace_id(2))
        assert again.linked(trace_id(1)) == [("run", "r1", "", "api")]
    finally:
        again.close()


def test_a_restart_settles_only_the_last_seconds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (arrivals, settling):
        monkeypatch.setattr(module, "OVERLAP_S", 0)
    house = House(tmp_path).start()
    house.load(*(request(call(t, 1)) for t in range(1, 20)))
    time.sleep(1.1)
    house.load(request(call(20, 1)))
    house.settle()
    house.settler.stop()
    again = House(tmp_path, store=house.store).start()
    try:
        again.settle()
        assert again.settler.settled_traces == 1
    finally:
        again.close()


def test_history_is_imported(house: House):
    """Traces that began long before the settler: where they lie has to be looked up."""
    year = 365 * 86_400
    house.load(*(request(span(t, 1, start_s=-t * year), call(t, 2, 1, start_s=-t * year)) for t in range(1, 5)))
    house.settle()
    house.load(request(call(3, 3, 1, start_s=-3 * year + 600)))
    eventually(lambda: house.facts(trace_id(3))["InputTokens"] == 200)
    assert [house.facts(trace_id(t))["Spans"] for t in range(1, 5)] == [2, 2, 3, 2]


def test_what_memory_forgot_is_looked_up(house: House, monkeypatch: pytest.MonkeyPatch):
    """Late spans of a forgotten trace: its facts are of all its spans, and links that it lost are taken back."""
    monkeypatch.setattr(house.settler, "_memory", Memory(3))
    monkeypatch.setattr(arrivals, "OVERLAP_S", 0)
    house.load(request(span(1, 1), call(1, 2, 1)))
    house.annotations.link("default", [trace_id(1)], "run", "early")
    house.settle()
    assert house.linked(trace_id(1)) == [("run", "early", "", "api")]
    time.sleep(1.1)
    house.load(*(request(call(t, 1)) for t in range(2, 12)))
    house.settle()
    assert len(house.settler._memory) <= 6 and house.settler._memory.get(("default", trace_id(1))) is None
    house.annotations.unlink("default", [trace_id(1)])
    house.load(request(call(1, 3, 1, start_s=60, spanhouse__run__id="said")))
    house.settle()
    assert house.linked(trace_id(1)) == [("run", "said", "", "span")]
    assert house.facts(trace_id(1))["Spans"] == 3


def test_a_backlog_is_looked_at_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After an outage of the settling, with a clock that was set back in between."""
    monkeypatch.setattr(arrivals, "WINDOW_TRACES_MAX", 5)
    house = House(tmp_path)
    for t in range(1, 31):
        back = 3600 if t > 20 else 0
        house.load(request(call(t, 1)), received=NOW - (1000 - t + back) * 10**9)
    house.backdate()
    again = House(tmp_path, store=house.store)
    again.settler._arrivals.position_unix_s = 0
    looked: list[int] = []
    look = again.settler._arrivals.look

    def counted(memory):
        found, more = look(memory)
        looked.append(len(found))
        return found, more

    monkeypatch.setattr(again.settler._arrivals, "look", counted)
    again.start()
    try:
        again.settle()
        assert len(looked) >= 5 and max(looked) <= 10
        assert again.engine.rows("SELECT count() FROM spanhouse.facts FINAL") == [(30,)]
    finally:
        again.close()


def test_arrivals_after_the_clock_was_set_back(house: House, monkeypatch: pytest.MonkeyPatch):
    house.load(request(call(1, 1)), received=NOW)
    house.settle()
    monkeypatch.setattr("storage.arrivals.time.time", lambda: NOW / 10**9 - 7200)
    house.load(request(call(2, 1)), received=NOW + 10**9)  # the first look that sees the clock
    house.settle()
    house.load(request(call(3, 1)), received=NOW - 7200 * 10**9)
    house.settle()
    assert [bool(house.facts(trace_id(t))) for t in (1, 2, 3)] == [True] * 3


def test_newer_rows_count_after_the_clock_was_set_back(house: House, monkeypatch: pytest.MonkeyPatch):
    house.load(request(call(1, 1)))
    house.settle()
    monkeypatch.setattr("storage.row_clock.time.time_ns", lambda: 1_000_000_000)
    house.load(request(call(1, 2)))
    eventually(lambda: house.facts(trace_id(1))["InputTokens"] == 200)


def test_a_batch_too_large_for_the_store_is_halved(house: House, monkeypatch: pytest.MonkeyPatch, caplog):
    settle = house.settler.settlement.settle

    def small(tenant, batch):
        if len(batch) > 2 or any(extent.trace_id == trace_id(5) for extent in batch):
            raise QueryTooLarge("cannot answer within the memory of a query")
        return settle(tenant, batch)

    monkeypatch.setattr(house.settler.settlement, "settle", small)
    house.load(*(request(call(t, 1)) for t in range(1, 10)))
    house.settle()
    assert [t for t in range(1, 10) if house.facts(trace_id(t)) is None] == [5]
    assert f"cannot settle trace {trace_id(5).hex()}" in caplog.text


def test_a_store_that_is_away_for_a_while(house: House, monkeypatch: pytest.MonkeyPatch):
    insert = house.engine.insert
    failures = iter(range(3))

    def shaky(table, columns, rows):
        if table == "facts" and next(failures, None) is not None:
            raise StoreUnavailable("cannot write to facts")
        insert(table, columns, rows)

    monkeypatch.setattr(house.engine, "insert", shaky)
    house.load(request(call(1, 1)))
    house.settle()
    assert house.facts(trace_id(1)) is not None
    assert house.settler.failures == 3


def test_a_trace_that_cannot_be_understood_holds_up_no_other(house: House, monkeypatch: pytest.MonkeyPatch, caplog):
    facts_of = __import__("storage.settlement", fromlist=["facts_of"]).facts_of

    def broken(row, *rest):
        if row.trace_id == trace_id(2):
            raise ZeroDivisionError
        return facts_of(row, *rest)

    monkeypatch.setattr("storage.settlement.facts_of", broken)
    house.load(*(request(call(t, 1)) for t in (1, 2, 3)))
    house.settle()
    assert [bool(house.facts(trace_id(t))) for t in (1, 2, 3)] == [True, False, True]
    assert "cannot settle trace 00000000000000000000000000000002" in caplog.text


def test_spans_that_are_not_stored_yet_are_waited_for(house: House):
    """A load that failed may have left rows in `traces` whose spans only the next try brings."""
    house.settler._loads.begin()
    house.settler._loads.end(sound=False)
    house.store.load([request(call(1, 1))])
    house.settler._more = True
    house.settler.touch("other", [])  # wakes it
    with pytest.raises(AssertionError, match="still not so"):
        house.settle(0.5)
    house.load(request(call(2, 1)))
    house.settle()
    assert house.facts(trace_id(1)) and house.facts(trace_id(2))


def test_batches_are_bounded():
    rng = random.Random(1)
    extents = [
        settling.Extent(
            bytes([n]),
            start := rng.randrange(10**14),
            start + rng.randrange(10**12),
            rng.randrange(1, 40_000),
            None,
            False,
        )
        for n in range(200)
    ]
    batches = settling._batches(extents, settling.BATCH_SPANS_MAX)
    assert sorted(e.trace_id for batch in batches for e in batch) == sorted(e.trace_id for e in extents)
    for batch in batches:
        assert len(batch) == 1 or sum(e.spans for e in batch) <= settling.BATCH_SPANS_MAX
        assert (
            len(batch) == 1 or max(e.end_unix_nano for e in batch) - batch[0].start_unix_nano <= settling.BATCH_NANO_MAX
        )


def test_stop_before_start_of_anything(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    house = House(tmp_path).start()
    house.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert isinstance(house.settler, Settler)
