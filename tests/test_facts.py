"""What one trace comes to: the plain case, which is most of them, against the rules of usage.py; and odd rows."""

import random
import struct
import time
from dataclasses import replace

import pytest

from storage import facts
from storage.facts import USED_KEYS, Scoped, TraceRow, facts_of
from storage.linking import Origin

SCOPED = {7: Scoped(Origin("agent", {}), "scope"), 8: Scoped(Origin("agent", {}), "other scope")}


def row(spans: list[tuple[int, int, int, int, int, dict[str, str]]]) -> TraceRow:
    """A row of (id, parent, start, duration, origin, what it says)."""
    ordered = [{key: said[key] for key in said if key in USED_KEYS} for *_, said in spans]
    return TraceRow(
        trace_id=b"t" * 16,
        rows=len(spans),
        first_received_unix_s=0,
        origins=sorted({span[4] for span in spans}),
        root_name=b"root",
        root_service=b"agent",
        said=[],
        records=b"".join(
            struct.pack("<8s8sqqQB", one.to_bytes(8, "big"), up.to_bytes(8, "big"), start, duration, origin, 0)
            for one, up, start, duration, origin, _ in spans
        ),
        keys=[",".join(said).encode() for said in ordered],
        values=[value.encode() for said in ordered for value in said.values()],
    )


def price(call):
    return {"a": 0.5, "b": 0.25}.get(call.model)


def found(trace: TraceRow):
    return facts_of(trace, SCOPED, [], [], price)


def random_trace(rng: random.Random) -> TraceRow:
    """Mostly plain, sometimes with calls below calls, two scopes, costs, and numbers that are none."""
    odd = rng.random() < 0.5
    spans = []
    for one in range(1, rng.randrange(3, 14)):
        said = {"operation_kind": rng.choice(["llm", "llm", "agent", "tool", "embedding", "chain"])}
        if said["operation_kind"] in ("llm", "embedding") or (odd and rng.random() < 0.3):
            said["response_model"] = rng.choice("abc")
            said["input_tokens"] = rng.choice(["10", "20", "30.0", "many", "-1"] if odd else ["10", "20", "30"])
            said["output_tokens"] = rng.choice(["1", "2", "0"])
            if rng.random() < 0.4:
                said["total_tokens"] = (
                    str(rng.randrange(10, 40)) if odd else str(sum(map(int, list(said.values())[-2:])))
                )
            if odd and rng.random() < 0.2:
                said["cost_usd"] = "0.75"
        if rng.random() < 0.4:
            said["agent_name"] = rng.choice("xyz")
        if said["operation_kind"] == "tool":
            said["tool_name"] = rng.choice("pq")
        origin = rng.choice([7, 8]) if odd else 7
        spans.append((one, rng.randrange(one), rng.randrange(1000), rng.randrange(100), origin, said))
    rng.shuffle(spans)
    return row(spans)


@pytest.mark.parametrize("seed", range(300))
def test_the_plain_case_is_what_the_rules_say(seed: int, monkeypatch: pytest.MonkeyPatch):
    trace = random_trace(random.Random(seed))
    quick = found(trace)
    monkeypatch.setattr(facts, "_is_plain", lambda *_: False)
    shape_of = facts._shape
    monkeypatch.setattr(facts, "_shape", lambda keys: replace(shape_of(keys), plain=False))
    assert found(trace) == quick


def test_random_traces_are_of_both_kinds(monkeypatch: pytest.MonkeyPatch):
    """Or the test above would compare nothing."""
    seen = []
    plain = facts._is_plain
    monkeypatch.setattr(facts, "_is_plain", lambda *asked: seen.append(plain(*asked)) or seen[-1])
    for seed in range(300):
        found(random_trace(random.Random(seed)))
    assert min(seen.count(True), seen.count(False)) > 50


def test_a_long_chain_of_spans():
    """Of which only the last is a call: nothing walks up again and again, nothing recurses."""
    calls = {1: {"operation_kind": "agent", "agent_name": "a"}}
    calls |= {n: {"operation_kind": "llm", "input_tokens": "1", "output_tokens": "1"} for n in (49_999, 50_000)}
    trace = row([(n, n - 1, n, 1, 7, calls.get(n, {})) for n in range(1, 50_001)])
    begun_s = time.monotonic()
    facts_found = found(trace)
    assert time.monotonic() - begun_s < 5
    assert (facts_found.whole.spans, facts_found.agents["a", ""].spans) == (50_000, 50_000)
    assert facts_found.whole.total.input_tokens == 1  # the outer one repeats the inner


def test_many_agents_and_tools_are_bounded_where_they_are_shown():
    said = [{"operation_kind": "tool", "tool_name": f"t{n}", "agent_name": f"a{n:03}"} for n in range(1, 301)]
    facts_found = found(row([(n, 0, n, 1, 7, one) for n, one in enumerate(said, 1)]))
    assert len(facts_found.whole.tools) == facts.TOOLS_MAX
    assert len(facts_found.links) == 100


def test_a_tool_recorded_twice_was_called_once():
    tool = {"operation_kind": "tool", "tool_name": "pay"}
    trace = row([(1, 0, 1, 9, 7, tool), (2, 1, 2, 7, 8, tool), (3, 0, 5, 1, 7, tool)])
    assert found(trace).whole.tools == ["pay", "pay"]


def test_text_that_is_no_utf8():
    said = {
        "operation_kind": "llm",
        "input_tokens": "1",
        "output_tokens": "1",
        "response_model": "?",
        "agent_name": "?",
    }
    trace = row([(1, 0, 1, 9, 7, said)])
    trace.values = [b"\xff\xfe" if value == b"?" else value for value in trace.values]
    facts_found = found(trace)
    assert facts_found.whole.models == {"\ufffd\ufffd": 1}
    assert [link.id for link in facts_found.links] == ["\ufffd\ufffd"]
