"""Assessments in the real engine: kept, changed, summed up, filtered by, and found in what instrumentations send."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from nested_values import deep, field
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from otlp_building import attribute, request, span
from recorded import requests
from store import RECEIVED, Store

from query import assessment_answers, errors
from query.assessed import Assessed, AssessmentFilter, BadFilter, SummaryFilter, conditions, parse
from query.assessments_api import router
from query.bodies import BODY_BYTES_MAX
from storage.assessments import WHOLE_TRACE, Assessment, Assessments
from storage.harvest import Harvest

SECOND = 1_000_000_000
TRACE = bytes.fromhex("5b8efff798038103d269b633813fc60c")
SPAN = bytes.fromhex("eee19b7ec3c1b174")
_tenants = (f"tenant-{n}" for n in itertools.count())


class House:
    """The store, its assessments, and who was told of changes."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)
        self.touched: list[tuple[str, set[bytes]]] = []
        self.assessments = Assessments(self.store.engine, self.touch)
        self.assessed = Assessed(self.store.engine)
        self.harvest = Harvest(self.store.engine, self.assessments, self.touch)
        app = FastAPI()
        errors.install(app)
        app.include_router(router(self.assessments, self.assessed))
        self.client = TestClient(app)

    def touch(self, tenant, trace_ids) -> None:
        self.touched.append((tenant, set(trace_ids)))

    def reap(self, tenant: str, *trace_ids: bytes) -> None:
        self.harvest(tenant, list(trace_ids), RECEIVED - 100 * SECOND, RECEIVED + 100 * SECOND)

    def said(self, tenant: str, trace_id: bytes) -> dict[str, Assessment]:
        return {one.name: one for one in self.assessments.of_trace(tenant, trace_id)}

    def matching(self, tenant: str, *filters: tuple[str, str]) -> set[bytes]:
        """Traces of which the filters hold."""
        parameters: dict = {}
        holds = " AND ".join(conditions(parse(filters), parameters))
        sql = f"SELECT DISTINCT TraceId FROM spanhouse.assessments WHERE {holds}"
        columns = self.store.engine.read(tenant, sql, parameters)
        return set(columns[0]) if columns else set()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House(tmp_path_factory.mktemp("house"))
    yield made
    made.store.close()


@pytest.fixture
def tenant() -> str:
    return next(_tenants)


@pytest.fixture
def client(house: House, tenant: str) -> TestClient:
    house.client.headers["x-spanhouse-tenant"] = tenant
    house.touched.clear()
    return house.client


PATH = f"/api/v1/traces/{TRACE.hex()}/assessments"
GOOD = {"name": "quality", "value": 0.9, "source": {"type": "human", "id": "ann"}}


# Keeping


@pytest.mark.parametrize(
    "value",
    [0.5, 7, -(2**63), True, False, "good", "x" * 300, None, ["a", 1], {"answer": {"deep": [1.5, None]}}, ""],
    ids=lambda value: str(value)[:20],
)
def test_a_value_comes_back_as_it_was_sent(client: TestClient, value: object) -> None:
    sent = {
        "name": "it", "kind": "expectation", "value": value, "rationale": "because…", "metadata": {"n": 1},
        "source": {"type": "llm_judge", "id": "judge-2"}, "span_id": SPAN.hex(), "error": {"code": "SLOW"},
    }  # fmt: skip
    answer = client.post(PATH, json=sent)
    assert answer.status_code == 201, answer.text
    assessment_answers.AssessmentAnswer.model_validate(answer.json())
    listed = client.get(PATH).json()
    assert listed == {"assessments": [answer.json()], "truncated": False}
    assert {key: listed["assessments"][0][key] for key in sent} == sent
    assert client.get(f"{PATH}/{answer.json()['assessment_id']}").json() == answer.json()


def test_an_id_of_the_senders_makes_it_safe_to_repeat(house: House, client: TestClient, tenant: str) -> None:
    first = client.post(PATH, json=GOOD | {"assessment_id": "mine:1"}).json()
    second = client.post(PATH, json=GOOD | {"assessment_id": "mine:1", "value": 0.1, "label": "bad"}).json()
    assert [one["value"] for one in client.get(PATH).json()["assessments"]] == [0.1]
    assert second["label"] == "bad"
    assert second["created_time_unix_nano"] == first["created_time_unix_nano"]
    assert int(second["updated_time_unix_nano"]) > int(first["updated_time_unix_nano"])
    assert house.touched == [(tenant, {TRACE})] * 2
    client.post(PATH, json=GOOD)
    assert len(client.get(PATH).json()["assessments"]) == 2  # without one, it is another


def test_a_batch_is_kept_whole_or_not_at_all(house: House, client: TestClient, tenant: str) -> None:
    traces = [n.to_bytes(16, "big").hex() for n in range(1, 1001)]
    batch = [GOOD | {"trace_id": trace, "value": n} for n, trace in enumerate(traces)]
    wrong = client.post("/api/v1/assessments", json={"assessments": [*batch[:3], batch[3] | {"kind": "guess"}]})
    assert wrong.status_code == 400
    assert "assessments.3.kind" in wrong.json()["error"]["message"]
    too_many = client.post("/api/v1/assessments", json={"assessments": [*batch, batch[0]]})
    assert too_many.status_code == 400
    assert house.assessed.summary(tenant, SummaryFilter()) == []

    answer = client.post("/api/v1/assessments", json={"assessments": batch})
    assert answer.status_code == 201
    assert [one["trace_id"] for one in answer.json()["assessments"]] == traces
    [summary] = house.assessed.summary(tenant, SummaryFilter())
    assert (summary.count, summary.traces, summary.mean, summary.least, summary.most) == (1000, 1000, 499.5, 0, 999)
    assert house.touched == [(tenant, {bytes.fromhex(trace) for trace in traces})]


def test_put_replaces_and_patch_changes(house: House, client: TestClient, tenant: str) -> None:
    path = f"{PATH}/mine"
    made = client.put(path, json=GOOD | {"rationale": "fine", "span_id": SPAN.hex()}).json()
    assert (made["assessment_id"], made["span_id"]) == ("mine", SPAN.hex())
    changed = client.patch(path, json={"value": "bad", "source": {"type": "code"}}).json()
    assert (changed["value"], changed["source"], changed["rationale"]) == ("bad", {"type": "code", "id": ""}, "fine")
    replaced = client.put(path, json=GOOD | {"name": "other"}).json()
    assert (replaced["name"], replaced["rationale"], replaced["span_id"]) == ("other", "", None)
    assert client.get(PATH).json()["assessments"] == [replaced]
    assert house.touched == [(tenant, {TRACE})] * 3


def test_what_is_removed_is_gone(house: House, client: TestClient, tenant: str) -> None:
    path = f"{PATH}/{client.post(PATH, json=GOOD).json()['assessment_id']}"
    assert client.delete(path).status_code == 204
    assert client.get(PATH).json()["assessments"] == []
    assert house.matching(tenant, ("assessment.quality", "0.9")) == set()
    for answer in (client.get(path), client.patch(path, json={"value": 1}), client.delete(path)):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].startswith("cannot find assessment")
    assert house.touched == [(tenant, {TRACE})] * 2


def test_a_change_is_seen_although_the_clock_was_set_back(house: House, tenant: str, monkeypatch) -> None:
    [first] = house.assessments.put(tenant, [Assessment(TRACE, "quality", 1, "human", assessment_id="a")])
    monkeypatch.setattr("storage.assessments.time.time_ns", lambda: first.updated_unix_nano - 3600 * SECOND)
    house.assessments.change(tenant, TRACE, "a", {"value": 2})
    assert house.said(tenant, TRACE)["quality"].value == 2
    house.assessments.put(tenant, [replace(first, value=3)])
    assert house.said(tenant, TRACE)["quality"].value == 3
    assert house.assessments.delete(tenant, TRACE, "a")
    assert house.said(tenant, TRACE) == {}


def test_tenants_do_not_see_each_other(house: House, client: TestClient) -> None:
    path = f"{PATH}/{client.post(PATH, json=GOOD).json()['assessment_id']}"
    client.headers["x-spanhouse-tenant"] = other = next(_tenants)
    assert client.get(PATH).json()["assessments"] == []
    assert client.delete(path).status_code == 404
    assert house.matching(other, ("assessment.quality", "0.9")) == set()
    assert client.get("/api/v1/assessments/summary").json() == {"assessments": []}


def test_an_answer_says_when_it_is_cut(house: House, client: TestClient, tenant: str) -> None:
    house.assessments.put(tenant, [Assessment(TRACE, f"n{i}", i, "code") for i in range(1001)])
    answer = client.get(PATH).json()
    assert answer["truncated"]
    assert [one["value"] for one in answer["assessments"]] == list(range(1000))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 251}, "name"),
        ({"kind": "guess"}, "kind"),
        ({"source": {"type": "ghost"}}, "source.type"),
        ({"source": None}, "source"),
        ({"value": "x" * 65_536}, "65538 bytes"),
        ({"value": None}, "says a value"),
        ({"value": json.loads("[" * 300 + "]" * 300)}, "nesting"),
        ({"rationale": "x" * 65_537}, "rationale"),
        ({"metadata": [1]}, "metadata"),
        ({"metadata": {"a": "x" * 65_536}}, "metadata"),
        ({"span_id": "eee1"}, "span_id"),
        ({"assessment_id": "a/b"}, "assessment_id"),
        ({"score": 1}, "score"),
    ],
    ids=str,
)
def test_what_cannot_be_kept_is_refused_with_the_reason(client: TestClient, change: dict, says: str) -> None:
    answer = client.post(PATH, json=GOOD | change)
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
    assert client.get(PATH).json()["assessments"] == []


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "it is not JSON"),
        (b'{"value": NaN}', 400, "it is not JSON"),
        (b"[" * 10_000, 400, "it is not JSON"),
        (b" " * (BODY_BYTES_MAX + 1), 413, "send it in several requests"),
        (json.dumps(GOOD | {"value": 2**70}).encode(), 201, ""),
    ],
    ids=["cut", "not a number", "deep", "large", "more than 64 bits"],
)
def test_bodies_are_bounded_json(client: TestClient, body: bytes, status: int, says: str) -> None:
    answer = client.post(PATH, content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert (answer.status_code, says in answer.text) == (status, True), answer.text


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_must_say_that_it_is_json(client: TestClient, content_type: str) -> None:
    answer = client.post(PATH, content=json.dumps(GOOD).encode(), headers={"content-type": content_type})
    assert answer.status_code == 415
    assert "send application/json" in answer.json()["error"]["message"]


def test_a_change_names_something(client: TestClient) -> None:
    client.put(f"{PATH}/mine", json=GOOD)
    for body in ({}, {"name": None}, {"kind": "score"}):
        assert client.patch(f"{PATH}/mine", json=body).status_code == 400
    assert client.get(f"{PATH}?limit=3").status_code == 400


# Asking


@pytest.fixture
def judged(house: House, tenant: str) -> str:
    """Five traces: quality 0.2, 0.8 with a label, one that says `good`, one true, and one of another name."""
    said = [
        Assessment(bytes(15) + b"\1", "quality", 0.2, "human"),
        Assessment(bytes(15) + b"\2", "quality", 0.8, "llm_judge", label="good"),
        Assessment(bytes(15) + b"\3", "quality", "good", "code"),
        Assessment(bytes(15) + b"\4", "quality", True, "code", span_id=SPAN),
        Assessment(bytes(15) + b"\5", "a.b>c", 0.9, "code"),
        Assessment(bytes(15) + b"\5", "quality.max", 3, "code", kind="expectation"),
    ]
    house.assessments.put(tenant, said)
    return tenant


@pytest.mark.parametrize(
    ("key", "value", "traces"),
    [
        ("assessment.quality", "0.20", {1}),
        ("assessment.quality", "good", {2, 3}),
        ("assessment.quality", "=good", {2, 3}),
        ("assessment.quality", ">0.2", {2, 4}),
        ("assessment.quality", ">=0.2", {1, 2, 4}),
        ("assessment.quality>", "0.2", {1, 2, 4}),
        ("assessment.quality", "<0.8", {1}),
        ("assessment.quality<", "0.8", {1, 2}),
        ("assessment.quality", "!=good", {1, 4}),
        ("assessment.quality!", "good", {1, 4}),
        ("assessment.quality", "true", {4}),
        ("assessment.quality", "false", set()),
        ("assessment.a.b>c", "0.9", {5}),
        ("assessment.quality.max", "3", {5}),
        ("assessment.qual", "0.2", set()),
    ],
)
def test_traces_are_found_by_what_was_said(house: House, judged: str, key: str, value: str, traces: set[int]) -> None:
    assert house.matching(judged, (key, value)) == {bytes(15) + bytes([n]) for n in traces}


def test_all_filters_must_hold(house: House, judged: str) -> None:
    both = (("assessment.quality", ">0.5"), ("assessment.quality", "good"))
    assert house.matching(judged, *both) == {bytes(15) + b"\2"}


@pytest.mark.parametrize(
    "parameter",
    [("assessment.", "1"), ("assessment.quality", ">high"), ("assessment.quality>", ">1"), ("assessment.>", "1")],
)
def test_a_filter_that_cannot_be_meant_is_refused(parameter: tuple[str, str]) -> None:
    with pytest.raises(BadFilter, match="cannot filter by"):
        parse([parameter])


def test_filters_are_bounded() -> None:
    filters = [("assessment.quality", str(n)) for n in range(17)]
    assert parse([*filters[:2], ("attr.quality", "1")]) == [
        AssessmentFilter("quality", "=", "0", 0.0),
        AssessmentFilter("quality", "=", "1", 1.0),
    ]
    with pytest.raises(BadFilter, match="17"):
        parse(filters)


def test_the_summary_counts_by_name(house: House, client: TestClient, judged: str) -> None:
    client.headers["x-spanhouse-tenant"] = judged
    answer = client.get("/api/v1/assessments/summary").json()
    assessment_answers.AssessmentSummaries.model_validate(answer)
    assert [one["name"] for one in answer["assessments"]] == ["a.b>c", "quality", "quality.max"]
    assert answer["assessments"][1] == {
        "name": "quality", "count": 4, "trace_count": 4, "number_count": 3, "mean": pytest.approx(2 / 3), "min": 0.2,
        "max": 1.0, "labels": [{"label": "good", "count": 2}, {"label": "true", "count": 1}], "label_count": 2,
        "sources": {"human": 1, "llm_judge": 1, "code": 2},
    }  # fmt: skip
    only = client.get("/api/v1/assessments/summary", params={"name": "quality"}).json()
    assert only["assessments"] == answer["assessments"][1:2]
    for wrong in ({"entity": "run"}, {"id": "x"}, {"version": "1"}, {"start": "2", "end": "1"}, {"names": "x"}):
        assert client.get("/api/v1/assessments/summary", params=wrong).status_code == 400, wrong


def test_the_summary_takes_the_time_from_the_trace_and_its_links(house: House, client: TestClient, tenant: str) -> None:
    ids = [bytes(15) + bytes([n]) for n in (1, 2, 3)]
    starts = [RECEIVED - 60 * SECOND, RECEIVED - 30 * SECOND]
    spans = [
        span(1, trace_id=trace_id, start_time_unix_nano=start, end_time_unix_nano=start + 1)
        for trace_id, start in zip(ids, starts, strict=False)
    ]
    house.store.load([request(*spans)], tenant=tenant)
    house.assessments.put(tenant, [Assessment(one, "quality", n, "code") for n, one in enumerate(ids)])

    def count(**parameters: str) -> list[int]:
        answer = client.get("/api/v1/assessments/summary", params=parameters)
        return [one["count"] for one in answer.json()["assessments"]]

    assert count() == [3]  # the third trace has not come yet
    assert count(start="0") == [2]
    assert count(start=str(starts[1])) == [1]
    assert count(end=str(starts[1])) == [1]
    row = {"Tenant": tenant, "Entity": "model", "Id": "shop", "Version": "3", "TraceId": ids[0]}
    house.store.engine.insert("links", list(row), [list(row.values())])
    assert count(entity="model", id="shop") == count(entity="model", id="shop", version="3") == [1]
    assert count(entity="model", id="shop", version="4") == count(entity="run", id="shop") == []


# What instrumentations send


def value(said: object) -> AnyValue:
    if isinstance(said, bool):
        return AnyValue(bool_value=said)
    if isinstance(said, int):
        return AnyValue(int_value=said)
    if isinstance(said, float):
        return AnyValue(double_value=said)
    return AnyValue(string_value=str(said))


def sent(number: int, attributes: dict | None = None, events: dict[str, dict] | None = None, **fields) -> SpanMessage:
    start = RECEIVED + number * SECOND
    made = span(
        number,
        trace_id=TRACE,
        start_time_unix_nano=start,
        end_time_unix_nano=start + 5_000,
        attributes=[attribute(key, value(said)) for key, said in (attributes or {}).items()],
        **fields,
    )
    for name, said in (events or {}).items():
        event = made.events.add(name=name, time_unix_nano=start + 1_000)
        event.attributes.extend(attribute(key, value(each)) for key, each in said.items())
    return made


def reaped(house: House, tenant: str, *spans: SpanMessage) -> dict[str, Assessment]:
    house.store.load([request(*spans)], tenant=tenant)
    house.reap(tenant, TRACE)
    return house.said(tenant, TRACE)


def test_opentelemetrys_evaluation_results(house: House, tenant: str) -> None:
    said = {
        "gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": 0.87,
        "gen_ai.evaluation.score.label": "relevant", "gen_ai.evaluation.explanation": "on topic " * 200,
        "gen_ai.response.id": "chatcmpl-1",
    }  # fmt: skip
    thumbs = {
        "gen_ai.evaluation.name": "thumbs", "gen_ai.evaluation.score.label": "up",
        "microsoft.gen_ai.evaluation.actor.type": "human",
    }  # fmt: skip
    failed = {"gen_ai.evaluation.name": "tone", "error.type": "timeout"}
    spans = [sent(n, events={"gen_ai.evaluation.result": each}) for n, each in enumerate((said, thumbs), 1)]
    found = reaped(house, tenant, *spans, sent(3, failed))
    relevance = found["relevance"]
    assert (relevance.value, relevance.label, relevance.kind) == (0.87, "relevant", "score")
    assert (relevance.span_id, relevance.source_type) == ((1).to_bytes(8, "big"), "code")
    assert relevance.rationale == "on topic " * 200
    assert relevance.metadata == {"response_id": "chatcmpl-1"}
    assert relevance.created_unix_nano == RECEIVED + SECOND + 1_000
    assert (found["thumbs"].value, found["thumbs"].kind, found["thumbs"].source_type) == ("up", "feedback", "human")
    assert (found["tone"].value, found["tone"].error) == (None, "timeout")


def test_openinferences_annotations_and_evaluations(house: House, tenant: str) -> None:
    hallucination = {
        "annotations.0.annotation.name": "hallucination", "annotations.0.annotation.score": 1,
        "annotations.0.annotation.label": "hallucinated", "annotations.0.annotation.explanation": "why " * 400,
        "annotations.0.annotation.annotator_kind": "LLM", "annotations.0.annotation.identifier": "judge-v2",
        "annotations.0.annotation.metadata": '{"rubric_version":"2"}',
    }  # fmt: skip
    same = {key.replace("annotation", "evaluation"): each for key, each in hallucination.items()}
    whole = {
        "session.id": "s-1", "trace.evaluations.0.evaluation.name": "retrieval",
        "trace.evaluations.0.evaluation.score": 0.92, "trace.evaluations.0.evaluation.annotator_kind": "CODE",
        "session.annotations.0.annotation.name": "coherence", "session.annotations.0.annotation.label": "coherent",
        "session.annotations.0.annotation.annotator_kind": "HUMAN",
        "evaluations.0.evaluation.score": 3, "evaluations.x.evaluation.name": "no", "evaluations.name": "neither",
    }  # fmt: skip
    found = reaped(house, tenant, sent(1, hallucination | same | {"openinference.span.kind": "LLM"}), sent(2, whole))
    assert set(found) == {"hallucination", "retrieval", "coherence"}
    one = found["hallucination"]
    assert (one.value, one.label, one.source_type, one.source_id) == (1, "hallucinated", "llm_judge", "judge-v2")
    assert (one.span_id, one.metadata) == ((1).to_bytes(8, "big"), {"rubric_version": "2"})
    assert one.rationale == "why " * 400  # long enough to be payload
    assert len(house.assessments.of_trace(tenant, TRACE)) == 3  # both words said the same
    assert (found["retrieval"].span_id, found["retrieval"].value) == (WHOLE_TRACE, 0.92)
    assert found["coherence"].metadata == {"scope": "session", "session_id": "s-1"}
    assert (found["coherence"].value, found["coherence"].kind) == ("coherent", "feedback")


JUDGED = {
    "evaluations.0.evaluation.name": "correctness", "evaluations.0.evaluation.score": 0,
    "evaluations.0.evaluation.annotator_kind": "CODE",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "links", "carries"),
    [("EVALUATOR", 1, True), (None, 1, True), ("LLM", 1, False), ("EVALUATOR", 2, False), ("EVALUATOR", 0, False)],
)
def test_feedback_that_comes_later_is_about_the_linked_span(
    house: House, tenant: str, kind: str | None, links: int, carries: bool
) -> None:
    target = bytes(15) + b"\7"
    linked = [SpanMessage.Link(trace_id=target, span_id=SPAN)] * links
    house.touched.clear()
    reaped(house, tenant, sent(1, JUDGED | ({"openinference.span.kind": kind} if kind else {}), links=linked))
    here, there = house.said(tenant, TRACE), house.said(tenant, target)
    assert bool(there) == carries
    assert bool(here) != carries
    if carries:
        assert there["correctness"].span_id == SPAN
        assert house.touched == [(tenant, {target})]
    else:
        assert house.touched == []  # the batch is being settled anyway


def test_a_link_that_nobody_can_read_leads_nowhere(house: House, tenant: str) -> None:
    link = SpanMessage.Link(trace_id=bytes(15) + b"\7", span_id=SPAN).SerializeToString()
    link += field(4, b"\x0a\x04deep" + field(2, field(5, deep(100).wire)))
    carrier = sent(1, JUDGED).SerializeToString() + field(13, link)
    house.store.load([field(1, field(2, field(2, carrier)))], tenant=tenant)
    house.reap(tenant, TRACE)
    assert set(house.said(tenant, TRACE)) == {"correctness"}


def test_an_identifier_makes_a_later_result_replace_the_former(house: House, tenant: str) -> None:
    named = JUDGED | {"evaluations.0.evaluation.identifier": "unit-test"}
    link = [SpanMessage.Link(trace_id=TRACE, span_id=SPAN)]
    assert reaped(house, tenant, sent(5, named, links=link))["correctness"].value == 0
    later = named | {"evaluations.0.evaluation.score": 1}
    assert reaped(house, tenant, sent(6, later, links=link))["correctness"].value == 1
    assert reaped(house, tenant, sent(4, named, links=link))["correctness"].value == 1  # said before, came after
    assert len(house.assessments.of_trace(tenant, TRACE)) == 1


def test_braintrusts_scores(house: House, tenant: str) -> None:
    many = {f"score number {n}": n / 100 for n in range(100)}
    found = reaped(
        house,
        tenant,
        sent(1, {"braintrust.scores": '{"Equals": 0, "judge": 0.5, "broken": null}'}),
        sent(2, {"braintrust.scores": json.dumps(many), "braintrust.span_attributes": '{"type":"score"}'}),
        sent(3, {"braintrust.scores": "[1]"}),
        sent(4, {"braintrust.scores": '{"deep": ' + "[" * 500 + "]" * 500 + "}"}),
    )
    assert {name: one.value for name, one in found.items()} == {"Equals": 0, "judge": 0.5} | many
    assert {one.source_id for one in found.values()} == {"braintrust"}


def test_guardrails_are_passed_or_not(house: House, tenant: str) -> None:
    found = reaped(
        house,
        tenant,
        sent(1, {"gen_ai.guardrail.name": "pii", "gen_ai.guardrail.status": "PASSED"}),
        sent(
            2,
            {
                "gen_ai.guardrail.name": "toxicity", "gen_ai.guardrail.status": "FAILED",
                "gen_ai.guardrail.guard_count": 3, "gen_ai.guardrail.failed_guard_count": 1,
            },
        ),
        sent(
            3,
            {
                "gen_ai.guardrail.name": "remote", "gen_ai.guardrail.status": "FAILED",
                "gen_ai.guardrail.error.type": "HttpError", "gen_ai.guardrail.error.message": "503 " * 500,
            },
        ),
        sent(4, {"gen_ai.guardrail.name": "no verdict"}),
    )  # fmt: skip
    assert {name: one.value for name, one in found.items()} == {"pii": True, "toxicity": False, "remote": False}
    assert found["toxicity"].metadata == {"guard_count": 3, "failed_guard_count": 1}
    assert (found["remote"].error, found["remote"].rationale) == ("HttpError", "503 " * 500)


def test_openlits_guards_and_langwatchs_evaluations(house: House, tenant: str) -> None:
    guard = {
        "guard.name": "prompt_injection", "guard.phase": "preflight", "guard.action": "deny", "guard.score": 0.97,
        "guard.classification": "impersonation", "guard.explanation": "it pretends",
    }  # fmt: skip
    payload = {
        "evaluation_id": "eval_1", "name": "faithfulness", "type": "custom", "passed": True, "score": 0.92,
        "label": "grounded", "details": "in the ticket", "evaluator_id": "ragas", "span_id": SPAN.hex(),
    }  # fmt: skip
    broken = {"name": "unreachable", "status": "error", "error": {"message": "no answer"}}
    events = [
        {"guard.evaluation": guard},
        {"langwatch.evaluation.custom": {"json_encoded_event": json.dumps(payload)}},
        {"langwatch.evaluation.custom": {"json_encoded_event": json.dumps(broken)}},
        {"langwatch.evaluation.custom": {"json_encoded_event": "{"}},
    ]
    found = reaped(house, tenant, *(sent(n, events=each) for n, each in enumerate(events, 1)))
    assert set(found) == {"prompt_injection", "faithfulness", "unreachable"}
    one = found["prompt_injection"]
    assert (one.value, one.label, one.rationale) == (0.97, "deny", "it pretends")
    assert one.metadata == {"phase": "preflight", "classification": "impersonation"}
    two = found["faithfulness"]
    assert (two.value, two.label, two.source_id, two.span_id) == (0.92, "grounded", "ragas", SPAN)
    assert (found["unreachable"].value, found["unreachable"].error) == (None, "no answer")


def test_the_recorded_guardrails_of_openai_agents(house: House, tenant: str) -> None:
    recorded = [each.decoded() for each in requests("agents_otel_v2")]
    spans = [s for r in recorded for rs in r.resource_spans for ss in rs.scope_spans for s in ss.spans]
    house.store.load(recorded, tenant=tenant, received=max(s.end_time_unix_nano for s in spans))
    traces = sorted({s.trace_id for s in spans})
    first, last = min(s.start_time_unix_nano for s in spans), max(s.start_time_unix_nano for s in spans)
    house.harvest(tenant, traces, first, last)
    found = [one for trace_id in traces for one in house.assessments.of_trace(tenant, trace_id)]
    tripped = {
        (s.trace_id, s.span_id)
        for s in spans
        for a in s.attributes
        if a.key.endswith(".triggered") and a.value.bool_value
    }
    assert len(found) == 4
    assert len(tripped) == 1
    assert {(one.trace_id, one.span_id) for one in found if one.value is False} == tripped
    assert {one.name for one in found} == {"no_secrets"}


def test_a_log_record_is_an_evaluation_too(house: House, tenant: str) -> None:
    said = {
        "gen_ai.evaluation.name": "srelevance", "gen_ai.evaluation.score.value": "d0.5",
        "gen_ai.evaluation.score.label": "sfair",
    }  # fmt: skip
    row = {
        "Tenant": tenant, "Day": date(2027, 1, 15), "TraceId": TRACE, "SpanId": SPAN, "Time": RECEIVED,
        "EventName": "gen_ai.evaluation.result", "Attributes": said,
        "Content": {"gen_ai.evaluation.explanation": "s" + "why " * 400}, "RecordKey": 1,
    }  # fmt: skip
    rows = [row, row, row | {"SpanId": bytes(8), "RecordKey": 2}, row | {"EventName": "gen_ai.choice", "RecordKey": 3}]
    house.store.engine.insert("records", list(row), [list(each.values()) for each in rows])
    house.reap(tenant, TRACE)
    house.reap(tenant, TRACE)
    found = house.assessments.of_trace(tenant, TRACE)
    assert {one.span_id for one in found} == {SPAN, WHOLE_TRACE}
    assert {(one.name, one.value, one.label, one.created_unix_nano) for one in found} == {
        ("relevance", 0.5, "fair", RECEIVED)
    }
    assert {one.rationale for one in found} == {"why " * 400}


def test_a_span_says_it_once_and_people_have_the_last_word(house: House, tenant: str) -> None:
    sending = sent(1, JUDGED)
    one = reaped(house, tenant, sending)["correctness"]
    assert reaped(house, tenant, sending) == {"correctness": one}  # a retransmit
    house.assessments.change(tenant, TRACE, one.assessment_id, {"value": 1})
    assert reaped(house, tenant, sent(2))["correctness"].value == 1
    house.assessments.delete(tenant, TRACE, one.assessment_id)
    assert reaped(house, tenant, sent(3)) == {}


def test_one_span_says_at_most_a_thousand_things(house: House, tenant: str) -> None:
    scores = {f"n{i}": i for i in range(1_100)}
    found = reaped(
        house, tenant, sent(1, {"braintrust.scores": json.dumps(scores), "braintrust.span_attributes": '"score"'})
    )
    assert len(found) == 1_000


def test_what_has_no_scores_costs_two_questions(house: House, tenant: str, monkeypatch) -> None:
    house.store.load([request(sent(1, {"gen_ai.operation.name": "chat"}, {"gen_ai.choice": {"n": 1}}))], tenant=tenant)
    asked: list[str] = []
    read = house.store.engine.read
    monkeypatch.setattr(house.store.engine, "read", lambda t, sql, p: asked.append(sql) or read(t, sql, p))
    house.reap(tenant, TRACE)
    assert len(asked) == 2
