"""Sampling by the real program: what is decided holds for late spans, over kill -9, and the ledger adds up."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from program import Program
from sender import HttpDoor
from settling_house import eventually, request, span

TRACES = 300
WAIT_S = 12.0
RULES = {
    "wait_s": WAIT_S,
    "rules": [{"name": "errors", "match": {"status": "error"}, "keep": 1}],
    "default": {"keep": 0.2},
}


def metrics(program: Program) -> dict[str, float]:
    lines = httpx.get(f"{program.http}/metrics").text.splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def loaded(program: Program) -> bool:
    return metrics(program).get('spanhouse_spans_in_wal{tenant="default"}', 0) == 0


def stored(program: Program) -> dict[int, dict[str, Any]]:
    """The listed traces by number."""
    found: dict[int, dict[str, Any]] = {}
    cursor = None
    while True:
        answer = httpx.get(
            f"{program.http}/api/v1/traces", params={"limit": 1000} | ({"cursor": cursor} if cursor else {})
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found |= {int(one["trace_id"], 16): one for one in page["traces"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def send(program: Program, number: int, failed: Callable[[int], bool] = lambda _: False) -> None:
    """Span `number` of every trace, each a child of the one after; the third is the root."""
    door = HttpDoor(program.otlp_http)
    for first in range(1, TRACES, 50):
        spans = [
            span(trace, number, number + 1 if number < 3 else 0, failed=failed(trace))
            for trace in range(first, first + 50)
        ]
        door.export(request(*spans).SerializeToString())
    door.close()


def fails(trace: int) -> bool:
    return trace % 10 == 0


@pytest.mark.timeout(240)
def test_a_decision_holds_for_the_whole_trace_whatever_happens(tmp_path: Path) -> None:
    chance = random.Random(7)
    program = Program(tmp_path / "data", "--flush-interval-s=0.1").start()
    assert httpx.put(f"{program.http}/api/v1/sampling", json=RULES).status_code == 200
    send(program, 1)
    program.kill()  # nothing is decided yet
    program.start()
    send(program, 2, fails)  # within the wait: the error counts
    for _ in range(3):
        time.sleep(chance.uniform(0, 3))
        program.kill()
        program.start()
    eventually(lambda: loaded(program), 60)
    kept = stored(program)
    assert {trace for trace in range(1, TRACES + 1) if fails(trace)} <= kept.keys()
    assert {one["span_count"] for one in kept.values()} == {2}
    ordinary = [trace for trace in kept if not fails(trace)]
    assert 30 <= len(ordinary) <= 80
    assert {kept[trace]["weight"] for trace in ordinary} == {5.0}
    assert {kept[trace]["weight"] for trace in kept if fails(trace)} == {1.0}

    began = metrics(program)
    assert httpx.put(f"{program.http}/api/v1/sampling", json={**RULES, "wait_s": 1}).status_code == 200
    send(program, 3, fails)  # late: they follow
    eventually(lambda: loaded(program), 60)
    after = stored(program)
    assert after.keys() == kept.keys() and {one["span_count"] for one in after.values()} == {3}
    now = metrics(program)
    added = {
        name: now[f'spanhouse_spans_{name}_total{{tenant="default"}}']
        - began.get(f'spanhouse_spans_{name}_total{{tenant="default"}}', 0)
        for name in ("received", "stored", "sampled")
    }
    assert added == {"received": TRACES, "stored": len(kept), "sampled": TRACES - len(kept)}
    assert not list((tmp_path / "data" / "wal").glob("*.decided"))

    said = httpx.get(f"{program.http}/api/v1/sampling").json()
    by_rule = {one["rule"]: (one["kept_traces"], one["left_out_traces"]) for one in said["last_day"]}
    assert by_rule == {"errors": (30, 0), "default": (len(ordinary), 270 - len(ordinary))}
    assert program.stop() == 0
