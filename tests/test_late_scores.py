"""Scores that come alone: as log records after their trace was settled, or in spans that say nothing else of agents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute, logs
from settling_house import NOW, START, House, call, eventually, request, span, trace_id, value

from storage import late_scores, settling
from storage.arrivals import OVERLAP_S
from storage.harvest import Harvest
from storage.late_scores import LateScores

SECOND = 10**9
RECEIVED = NOW - 86_400 * SECOND
"""The arrival of every record that says nothing else: no clock is ahead."""
TONE = {"name": "tone", "score": 1}
SAID = {"gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": 0.5}


def score(trace: int, name: str = "gen_ai.evaluation.result", **more: Any) -> ExportLogsServiceRequest:
    said = [attribute(key, value(of)) for key, of in SAID.items()]
    at = START + trace * SECOND
    fields = {"trace_id": trace_id(trace), "span_id": (1).to_bytes(8, "big"), "event_name": name, "time_unix_nano": at}
    return logs(LogRecord(attributes=said, **{**fields, **more}))


class Harvesting(House):
    """A house that keeps the scores it finds, and counts how often it looked at which trace."""

    def start(self) -> "Harvesting":
        self.harvested: list[bytes] = []
        harvest = Harvest(self.engine, self.assessments, self.settler.touch)

        def counted(tenant: str, trace_ids: Any, since: int, until: int) -> None:
            self.harvested += trace_ids
            harvest(tenant, trace_ids, since, until)

        self.settler.start(counted)
        return self

    def load_logs(self, *requests: ExportLogsServiceRequest, received: int = RECEIVED) -> None:
        path, token = self.store.segment(requests, received=received)
        self._load(path, f"{token}.logs", "logs")

    def scores(self, trace: int) -> dict[str, Any]:
        return {one.name: one.value for one in self.assessments.of_trace("default", trace_id(trace))}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Harvesting]:
    made = Harvesting(tmp_path).start()
    yield made
    made.close()


def test_a_record_that_comes_after_its_trace_was_settled(house: Harvesting) -> None:
    house.load(request(call(1, 1)), request(call(2, 1)), request(span(3, 1), service="shop"))
    house.settle()
    house.load_logs(score(1), score(2, "gen_ai.choice"), score(3))
    eventually(lambda: house.scores(1) == {"relevance": 0.5})
    eventually(lambda: house.scores(3) == {"relevance": 0.5})
    house.settle()
    assert house.scores(2) == {}
    assert house.facts(trace_id(3)) is not None, "what was assessed is listed"
    house.load_logs(score(2), received=RECEIVED + SECOND)
    eventually(lambda: house.scores(2) == {"relevance": 0.5})


def test_a_record_that_comes_first(house: Harvesting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a service's trace, which nobody would look at but for the score."""
    monkeypatch.setattr(settling, "RETRIES_S", (0.1, 0.5))
    house.load_logs(score(1))
    eventually(lambda: [one.tries for one in house.settler._waiting.values()] == [1])
    house.load(request(span(1, 1), service="shop"))
    eventually(lambda: house.scores(1) == {"relevance": 0.5})


def event(name: str) -> Span.Event:
    said = {**SAID, "guard.name": "guard", "guard.score": 0.5}
    return Span.Event(
        name=name, time_unix_nano=START, attributes=[attribute(key, value(of)) for key, of in said.items()]
    )


@pytest.mark.parametrize(
    ("said", "events", "name"),
    [
        ({}, ["gen_ai.evaluation.result"], "relevance"),
        ({}, ["guard.evaluation"], "guard"),
        ({"evaluations__0__evaluation__name": "tone", "evaluations__0__evaluation__score": 1}, [], "tone"),
        ({f"session__annotations__0__annotation__{key}": said for key, said in TONE.items()}, [], "tone"),
        ({"gen_ai__guardrail__triggered": False, "gen_ai__guardrail__name": "shield"}, [], "shield"),
        ({"braintrust__scores": '{"tone": 1}'}, [], "tone"),
    ],
)  # fmt: skip
def test_a_span_that_carries_scores_alone(house: Harvesting, said: dict, events: list[str], name: str) -> None:
    carrier = span(1, 1, **said)
    carrier.events.extend(map(event, events))
    house.load(request(carrier, service="shop"), request(span(2, 1), service="shop"))
    eventually(lambda: list(house.scores(1)) == [name])
    house.settle()
    assert trace_id(2) not in house.harvested


def test_records_of_before_a_restart(house: Harvesting, tmp_path: Path) -> None:
    house.load(*(request(call(t, 1)) for t in (1, 2)))
    house.load_logs(score(1))
    eventually(lambda: house.scores(1))
    house.settle()
    house.settler.stop()  # killed between a load and what follows from it
    house.load_logs(score(2))
    again = Harvesting(tmp_path, store=house.store).start()
    eventually(lambda: again.scores(2) == {"relevance": 0.5})
    again.settle()
    again.settler.stop()
    noted = house.store.number("SELECT toUnixTimestamp(Records) FROM spanhouse.settling FINAL")
    assert noted == house.store.number("SELECT toUnixTimestamp(max(Loaded)) FROM spanhouse.records") - OVERLAP_S


def test_many_scores_are_looked_at_piece_by_piece(house: Harvesting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late_scores, "ROWS_MAX", 3)
    monkeypatch.setattr(late_scores, "OVERLAP_S", 1)
    traces = range(1, 21)
    house.load(*(request(call(t, 1)) for t in traces))
    house.settle()
    for t in traces:
        path, token = house.store.segment([score(t)], received=RECEIVED + t // 4 * SECOND)
        house.engine.load(path, f"{token}.logs", "logs")
    house.load_logs(score(1, "gen_ai.choice"), received=RECEIVED + 10 * SECOND)
    eventually(lambda: all(house.scores(t) for t in traces))


def test_what_was_not_taken_is_given_again(house: Harvesting) -> None:
    looking = LateScores(house.engine, 0)
    house.load_logs(score(1), score(2), score(3, "gen_ai.choice"))  # the last is no score
    now = house.store.number("SELECT toUnixTimestamp(max(Loaded)) FROM spanhouse.records")
    assert looking.look() == looking.look() == ({("default", trace_id(t)): now for t in (1, 2)}, False)
    looking.go_on()
    assert looking.look() == ({}, False)
