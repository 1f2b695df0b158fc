"""Retention by the real program: a changed policy goes through what is stored, over kill -9 at any moment."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from program import Program
from sender import HttpDoor
from settling_house import eventually

SERVICES = ("chatty-0", "chatty-1", "steady-0", "steady-1")
TRACES, SPANS, DAYS = 240, 5, 3
"""Of each service on each day, spans of each, and days that are long past."""
BEFORE = {
    "policies": [
        {"name": "noisy", "match": {"service": ["chatty-0", "steady-0"]}, "skeleton_days": 60, "content_days": 60}
    ],
}
AFTER = {"policies": [{"name": "noisy", "match": {"service": "chatty-*"}, "skeleton_days": 1, "content_days": 1}]}
KILLED_AFTER_S = (0.0, 0.3, 0.8, 1.5)
"""After it was seen to have begun."""


def put(program: Program, policies: dict[str, Any]) -> None:
    response = httpx.put(f"{program.http}/api/v1/retention", json=policies, timeout=60)
    assert response.status_code == 200, response.text


def progress(program: Program) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{program.http}/api/v1/retention/progress", timeout=60).json()
    return answer


def done(program: Program) -> bool:
    said = progress(program)
    return bool(said["days_done"] == said["days"])


def send(program: Program) -> None:
    """Traces of each service, on each of the days, and their prompts."""
    door = HttpDoor(program.otlp_http)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for which, service in enumerate(SERVICES):
        for age in range(3, 3 + DAYS):
            start = int((midnight - timedelta(days=age, hours=-6)).timestamp()) * 1_000_000_000
            spans = [
                span(
                    number, trace_id=trace_id(which, age, trace),
                    start_time_unix_nano=start, end_time_unix_nano=start + 9,
                    attributes=[attribute("gen_ai.input.messages", AnyValue(string_value=f"why {trace}? " * 5))],
                )
                for trace in range(TRACES)
                for number in range(1, SPANS + 1)
            ]  # fmt: skip
            door.export(request(*spans, service=service).SerializeToString())
    door.close()


def trace_id(which: int, age: int, trace: int) -> bytes:
    return (1 + trace + TRACES * (age + 100 * which)).to_bytes(16, "big")


def listed(program: Program, service: str) -> dict[str, int]:
    """Traces and how many spans each has."""
    parameters = {"service": service, "limit": "1000"}
    answer = httpx.get(f"{program.http}/api/v1/traces", params=parameters, timeout=60)
    assert answer.status_code == 200, answer.text
    return {one["trace_id"]: one["span_count"] for one in answer.json()["traces"]}


def test_a_change_goes_through_over_kills(tmp_path: Path) -> None:
    """Spans lie under the classes of the policies before: some partitions go but for what stays, of others rows go."""
    program = Program(tmp_path / "data").start()
    put(program, BEFORE)
    send(program)
    expected = {trace_id(2 + n, age, t).hex() for n in (0, 1) for age in range(3, 3 + DAYS) for t in range(TRACES)}
    for service in SERVICES:
        eventually(lambda service=service: len(listed(program, service)) == TRACES * DAYS, 60)
    put(program, AFTER)
    in_the_middle = 0
    for wait_s in KILLED_AFTER_S:
        eventually(lambda: progress(program)["working_on"] or done(program), 30)
        time.sleep(wait_s)
        in_the_middle += not done(program)
        program.kill()
        program.start()
    assert in_the_middle
    eventually(lambda: done(program), 60)
    found = {service: listed(program, service) for service in SERVICES}
    assert found["chatty-0"] == found["chatty-1"] == {}
    assert found["steady-0"] | found["steady-1"] == dict.fromkeys(expected, SPANS)
    for one in (*sorted(expected)[::100], *sorted(expected)[-2:]):
        trace = program.read_trace(one, SPANS)
        assert trace["span_count"] == SPANS
        assert all(each["attributes"]["gen_ai.input.messages"].startswith("why") for each in trace["spans"])
    assert program.stop() == 0
