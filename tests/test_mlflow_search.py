"""MLflow's search of traces: its grammar, and what it finds in a real store."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from otlp_building import attribute, request, span
from store import Store

from query.mlflow import search
from query.mlflow.refusals import MlflowRefused
from query.mlflow.search import Search
from query.mlflow.search_grammar import Clause, Order, parse_filter, parse_order
from storage.assessments import Assessment, Assessments
from storage.mlflow_traces import MlflowTrace, MlflowTraces

NOW_MS = 1_764_000_000_000


# The grammar


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("", []),
        ("  ", []),
        ("status = 'OK'", [Clause("attribute", "status", "=", "OK")]),
        ('attributes.status != "OK"', [Clause("attribute", "status", "!=", "OK")]),
        ("trace.timestamp >= 17", [Clause("attribute", "timestamp_ms", ">=", 17)]),
        ("execution_time < 0.5", [Clause("attribute", "execution_time_ms", "<", 0.5)]),
        ("end_time_ms<>-3", [Clause("attribute", "end_time_ms", "!=", -3)]),
        ("name = 'a'", [Clause("tag", "mlflow.traceName", "=", "a")]),
        ("tag.name = 'a'", [Clause("tag", "name", "=", "a")]),
        ("tags.`a b` LIKE '%x_'", [Clause("tag", "a b", "LIKE", "%x_")]),
        ("metadata.mlflow.trace.session = 's'", [Clause("metadata", "mlflow.trace.session", "=", "s")]),
        ("request_metadata.`mlflow.modelId` = 'm'", [Clause("metadata", "mlflow.modelId", "=", "m")]),
        ("metadata.`mlflow.sourceRun` = 'r'", [Clause("run", "", "=", "r")]),
        ("attribute.run_id in ('r', 's')", [Clause("run", "", "IN", ("r", "s"))]),
        ("request_id NOT IN ('tr-1')", [Clause("attribute", "request_id", "NOT IN", ("tr-1",))]),
        ("prompt = 'greeting/2'", [Clause("prompt", "", "=", "greeting/2")]),
        ("tag.x is not null and tag.y IS NULL", [Clause("tag", "x", "IS NOT NULL"), Clause("tag", "y", "IS NULL")]),
        ("span.attributes.gen_ai.model RLIKE '^g'", [Clause("span_attribute", "gen_ai.model", "RLIKE", "^g")]),
        ("trace.text LIKE '%and not or%'", [Clause("span", "content", "LIKE", "%and not or%")]),
        ("feedback.`how good` > 0.5", [Clause("feedback", "how good", ">", 0.5)]),
        ("expectation.x = 'it''s'", [Clause("expectation", "x", "=", "it's")]),
        ("issue.id = 'iss-1'", [Clause("issue", "id", "=", "iss-1")]),
    ],
)
def test_filters_are_read(text, clauses):
    assert parse_filter(text) == clauses


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = 'a' OR name = 'b'", "joined by AND only"),
        ("(name = 'a')", "where a name should"),
        ("name", "where an operator should"),
        ("name =", "where a value should"),
        ("name = b", "a text in quotes"),
        ("name = 5", "takes a text in quotes"),
        ("timestamp = 'x'", "takes a number"),
        ("timestamp LIKE 'x'", "compares by"),
        ("tag.x > 5", "compares by"),
        ("span.content = 'x'", "LIKE, ILIKE"),
        ("span.start = 'x'", "no such name"),
        ("params.x = 'y'", "no such name"),
        ("nonsense = 'x'", "attributes are"),
        ("prompt = 'greeting'", "name/version"),
        ("name = 'a' name = 'b'", "where AND should"),
        ("name IN ('a' 'b')", "where , should"),
        ("name IN (5)", "texts in quotes"),
        ("name = 'a", "where a value should"),
        ("tag.x = 'y'" + " AND tag.x = 'y'" * 50, "more than 50 conditions"),
        ("name = '" + "x" * 20_000 + "'", "characters"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_with_the_reason(text, why):
    with pytest.raises(MlflowRefused) as refused:
        parse_filter(text)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"
    assert why in refused.value.message


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("timestamp", Order("attribute", "timestamp_ms", True)),
        ("execution_time_ms desc", Order("attribute", "execution_time_ms", False)),
        ("name ASC", Order("tag", "mlflow.traceName", True)),
        ("run_id DESC", Order("metadata", "mlflow.sourceRun", False)),
        ("tags.`a b` DESC", Order("tag", "a b", False)),
    ],
)
def test_orders_are_read(text, order):
    assert parse_order(text) == order


@pytest.mark.parametrize("text", ["", "span.name", "feedback.x", "timestamp DOWN", "name ASC; DROP TABLE x"])
def test_an_order_that_cannot_be_read_is_refused(text):
    with pytest.raises(MlflowRefused):
        parse_order(text)


# The store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(tmp_path_factory.mktemp("mlflow_search"))
    yield opened
    opened.close()


class House:
    """A tenant of its own, in which traces are named by numbers."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.tenant = uuid.uuid4().hex
        self.rows = MlflowTraces(store.engine)
        self.assessments = Assessments(store.engine, lambda *_: None)
        self.search = Search(store.engine)

    def announce(self, number: int, **fields) -> None:
        """A trace of which MLflow's client spoke; the higher its number, the later it began."""
        trace = MlflowTrace(trace_id(number), "1", NOW_MS + number * 1000, 100 * number, "OK")
        self.rows.change(self.tenant, trace.trace_id, lambda _: replace(trace, **fields))

    def assess(self, number: int, name: str, value, kind: str = "feedback", **fields) -> None:
        self.assessments.put(self.tenant, [Assessment(trace_id(number), name, value, "human", kind=kind, **fields)])

    def load(self, *spans, context=()) -> None:
        self.store.load([request(*spans)], self.tenant, context=context)

    def link(self, number: int, entity: str, id_: str, version: str = "", deleted: int = 0) -> None:
        columns = ("Tenant", "Entity", "Id", "Version", "TraceId", "Deleted", "Settled")
        row = (self.tenant, entity, id_, version, trace_id(number), deleted, datetime.now(UTC))
        self.store.engine.insert("links", columns, [row])

    def settle(self, number: int, *links: tuple[str, str], name: str = "", failed: int = 0) -> None:
        """The facts of a trace that came by OTLP alone."""
        columns = ("Tenant", "TraceId", "Start", "DurationNano", "RootName", "Failed", "Links", "Settled")
        start = datetime.fromtimestamp(NOW_MS / 1000 + number, UTC)
        linked = [(entity, id_, "", "header") for entity, id_ in links]
        row = (self.tenant, trace_id(number), start, number * 10**8, name, failed, linked, datetime.now(UTC))
        self.store.engine.insert("facts", columns, [row])
        for entity, id_ in links:
            self.link(number, entity, id_)

    def found(self, filter_: str = "", experiments=("1",), **asked) -> list[int]:
        page = self.search.page(self.tenant, list(experiments), filter_=filter_, **asked)
        return [number_of(found) for found in page.trace_ids]


def trace_id(number: int) -> bytes:
    return span(number).trace_id


def number_of(found: bytes) -> int:
    return found[-1] - 1


@pytest.fixture
def house(store: Store) -> House:
    return House(store)


def test_traces_of_the_experiments_asked_for_newest_first(house):
    house.announce(1)
    house.announce(3)
    house.announce(2, experiment_id="2")
    assert house.found() == [3, 1]
    assert house.found(experiments=("1", "2")) == [3, 2, 1]
    assert house.found(experiments=("3",)) == []
    assert House(house.store).found() == [], "they are another tenant's"


def test_deleted_traces_are_not_found(house):
    house.announce(1)
    house.announce(2)
    house.rows.hide(house.tenant, house.rows.of(house.tenant, [trace_id(2)]).values())
    assert house.found() == [1]


def test_texts_numbers_tags_and_metadata(house):
    house.announce(1, tags={"tier": "gold", "path": "a\\b"}, metadata={"mlflow.trace.session": "s-1"})
    house.announce(2, tags={"tier": "Silver"}, state="ERROR", client_request_id="r", duration_ms=None)
    house.announce(3, tags={"mlflow.traceName": "agent"})
    asked = {
        "tag.tier = 'gold'": [1],
        "tag.tier != 'gold'": [2],
        "tag.tier LIKE 'g%d'": [1],
        "tag.tier LIKE 'g_d'": [],
        "tag.tier LIKE 'silver'": [],
        "tag.tier ILIKE 'silver'": [2],
        "tag.tier RLIKE '^[gG]o'": [1],
        "tag.path LIKE 'a\\b'": [1],
        "tag.path = 'a\\b'": [1],
        "tag.tier IN ('gold', 'Silver')": [2, 1],
        "tag.tier IS NULL": [3],
        "tag.tier IS NOT NULL": [2, 1],
        "metadata.`mlflow.trace.session` = 's-1'": [1],
        "metadata.`mlflow.trace.session` IS NULL": [3, 2],
        "name = 'agent'": [3],
        "status = 'ERROR'": [2],
        "status NOT IN ('ERROR')": [3, 1],
        "client_request_id = 'r'": [2],
        f"request_id = 'tr-{trace_id(3).hex()}'": [3],
        f"timestamp_ms > {NOW_MS + 1000}": [3, 2],
        f"timestamp_ms = {NOW_MS + 2000}": [2],
        "execution_time_ms >= 300": [3],
        "execution_time_ms < 1000": [3, 1],
        f"end_time = {NOW_MS + 1100}": [1],
        "status = 'OK' AND tag.tier = 'gold' AND timestamp > 0": [1],
        'tag.tier = "\' OR 1 = 1 --"': [],
    }
    assert {filter_: house.found(filter_) for filter_ in asked} == asked


def test_a_run_is_found_whoever_linked_it(house):
    house.announce(1, metadata={"mlflow.sourceRun": "made"})
    house.announce(2, runs=("evaluated",))
    house.announce(3)
    house.link(3, "run", "api")
    house.announce(4)
    house.link(4, "run", "gone", deleted=1)
    asked = {
        "run_id = 'made'": [1], "run_id = 'evaluated'": [2], "run_id = 'api'": [3], "run_id = 'gone'": [],
        "run_id != 'made'": [4, 3, 2], "run_id IN ('made', 'api')": [3, 1], "run_id NOT IN ('made', 'api')": [4, 2],
        "run_id LIKE 'e%'": [2], "run_id IS NULL": [4], "run_id IS NOT NULL": [3, 2, 1],
    }  # fmt: skip
    assert {filter_: house.found(filter_) for filter_ in asked} == asked


def test_a_prompt_is_found_whoever_linked_it(house):
    house.announce(1, prompts=("greeting/1", "other/2"))
    house.announce(2)
    house.link(2, "prompt", "greeting", "1")
    assert house.found("prompt = 'greeting/1'") == [2, 1]
    assert house.found("prompt = 'other/2'") == [1]
    assert house.found("prompt = 'greeting/2'") == []


def test_assessments(house):
    for number in (1, 2, 3):
        house.announce(number)
    house.assess(1, "good", True)
    house.assess(1, "score", 0.5)
    house.assess(2, "good", False)
    house.assess(2, "score", 5)
    house.assess(2, "word", "warm and kind")
    house.assess(3, "score", 0.9, kind="expectation")
    house.assess(3, "good", True, metadata={"mlflow.assessment.overridden": "a-2"})
    house.assess(3, "iss-1", "slow answers", kind="issue")
    asked = {
        "feedback.good = 'true'": [1], "feedback.good != 'true'": [2], "feedback.score > 0.5": [2],
        "feedback.score >= 0.5": [2, 1], "feedback.score = 5": [2], "feedback.good > 0": [],
        "feedback.word = 'warm and kind'": [2], "feedback.word LIKE '%kind%'": [2], "feedback.word = 'warm'": [],
        "feedback.score IS NULL": [3], "feedback.score IS NOT NULL": [2, 1], "expectation.score < 1": [3],
        "issue.id = 'iss-1'": [3],
    }  # fmt: skip
    assert {filter_: house.found(filter_) for filter_ in asked} == asked


def spans_of(house: House) -> None:
    """Trace 1 by MLflow's client, trace 2 by its OTLP exporter, trace 3 by another SDK."""
    tool = attribute("mlflow.spanType", AnyValue(string_value="TOOL"))
    quoted = attribute("mlflow.spanType", AnyValue(string_value='"TOOL"'))
    inner = AnyValue()
    inner.kvlist_value.values.add(key="city", value=AnyValue(string_value="a town by the sea"))
    broken = Status(code=Status.STATUS_CODE_ERROR, message="it was on fire")
    house.load(
        span(1, name="look up", attributes=[tool, attribute("n", AnyValue(int_value=3))]),
        span(1, span_id=b"child--1", name="answer", attributes=[attribute("mlflow.spanInputs", inner)], status=broken),
        span(2, name="look up", attributes=[quoted, attribute("model", AnyValue(string_value='"gpt"'))]),
        span(3, name="call", attributes=[attribute("openinference.span.kind", AnyValue(string_value="LLM"))]),
    )
    for number in (1, 2, 3):
        house.announce(number)


def test_conditions_on_spans_hold_for_one_span_together(house):
    spans_of(house)
    asked = {
        "span.name = 'look up'": [2, 1], "span.name LIKE 'a%'": [1], "span.name IN ('answer', 'call')": [3, 1],
        "span.type = 'TOOL'": [2, 1], "span.type = 'LLM'": [3], "span.type != 'TOOL'": [3, 1],
        "span.status = 'ERROR'": [1], "span.status = 'UNSET'": [3, 2, 1],
        "span.name = 'answer' AND span.type = 'TOOL'": [], "span.name = 'look up' AND span.status = 'ERROR'": [],
        "span.name = 'answer' AND span.status = 'ERROR'": [1], "span.name = 'look up' AND execution_time < 150": [1],
        "span.attributes.n = '3'": [1], "span.attributes.n LIKE '3%'": [1], "span.attributes.model = 'gpt'": [2],
        "span.attributes.model RLIKE '^g.t$'": [2], "span.attributes.`mlflow.spanInputs` LIKE '%by the sea%'": [1],
        "span.attributes.no = '3'": [], "trace.text LIKE '%by the sea%'": [1], "span.content ILIKE '%BY THE SEA%'": [1],
        "span.content LIKE '%BY THE SEA%'": [], "trace.text LIKE '%on fire%'": [1], "trace.text LIKE '%look%'": [2, 1],
        "span.content LIKE '%by the sea%' AND span.type = 'TOOL'": [],
    }  # fmt: skip
    assert {filter_: house.found(filter_) for filter_ in asked} == asked


def test_orders(house):
    house.announce(1, tags={"mlflow.traceName": "b"}, duration_ms=None)
    house.announce(2, tags={"mlflow.traceName": "a"}, metadata={"cost": "2"})
    house.announce(3, state="ERROR", metadata={"cost": "1"})
    asked = {
        "timestamp_ms ASC": [1, 2, 3], "timestamp_ms DESC": [3, 2, 1], "execution_time ASC": [2, 3, 1],
        "execution_time DESC": [3, 2, 1], "name": [2, 1, 3], "name DESC": [1, 2, 3], "status ASC": [3, 2, 1],
        "metadata.cost": [3, 2, 1], "metadata.cost DESC": [2, 3, 1], "request_id DESC": [3, 2, 1],
    }  # fmt: skip
    assert {order: house.found(order_by=[order]) for order in asked} == asked
    assert house.found(order_by=["status DESC", "timestamp_ms ASC"]) == [1, 2, 3]


def test_pages(house):
    for number in range(5):
        house.announce(number)
    first = house.search.page(house.tenant, ["1"], results_max=2)
    second = house.search.page(house.tenant, ["1"], results_max=2, token=first.next_token)
    third = house.search.page(house.tenant, ["1"], results_max=2, token=second.next_token)
    numbers = [[number_of(found) for found in page.trace_ids] for page in (first, second, third)]
    assert numbers == [[4, 3], [2, 1], [0]]
    assert third.next_token is None


@pytest.mark.parametrize("token", ["x", "e30=", "eyJvZmZzZXQiOiAtMX0=", "eyJvZmZzZXQiOiB0cnVlfQ=="])
def test_a_token_of_no_search_is_refused(house, token):
    with pytest.raises(MlflowRefused, match="page_token"):
        house.search.page(house.tenant, ["1"], token=token)


@pytest.mark.parametrize("most", [0, -1, 501])
def test_a_page_of_no_size_is_refused(house, most):
    with pytest.raises(MlflowRefused, match="max_results"):
        house.search.page(house.tenant, ["1"], results_max=most)


def test_a_pattern_that_is_none_is_refused_and_not_taken_for_trouble(house):
    house.announce(1, tags={"x": "y"})
    with pytest.raises(MlflowRefused) as refused:
        house.found("tag.x RLIKE '('")
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_a_search_by_spans_goes_on_where_it_had_to_stop(house, monkeypatch):
    monkeypatch.setattr(search, "WINDOW_TRACES", 2)
    monkeypatch.setattr(search, "WINDOWS_MAX", 2)
    for number in range(10):
        house.load(span(number, name="rare" if number in (0, 4) else "often"))
        house.announce(number)
    pages, token = [], ""
    while token is not None:
        page = house.search.page(house.tenant, ["1"], filter_="span.name = 'rare'", results_max=1, token=token)
        pages.append([number_of(found) for found in page.trace_ids])
        token = page.next_token
    # Nine to six hold none and are the most that a request looks into; then a page is full.
    assert pages == [[], [4], [0]]


def test_a_trace_that_came_by_otlp_alone_is_found_by_its_links(house):
    house.announce(1)
    house.settle(2, ("experiment", "1"), ("run", "r"), ("session", "s"), ("logged_model", "m"), name="root")
    house.settle(3, ("experiment", "1"), name="root", failed=1)
    house.settle(4, ("experiment", "1"))
    house.settle(5, ("experiment", "2"), name="root")
    asked = {
        "": [4, 3, 2, 1], "run_id = 'r'": [2], "metadata.`mlflow.trace.session` = 's'": [2],
        "metadata.`mlflow.modelId` = 'm'": [2], "name = 'root'": [3, 2], "status = 'ERROR'": [3],
        "status = 'IN_PROGRESS'": [4], "execution_time_ms = 200": [2],
    }  # fmt: skip
    assert {filter_: house.found(filter_) for filter_ in asked} == asked
    # What is said of it by MLflow's API takes the place of what was made of its facts.
    house.announce(2, state="ERROR")
    assert house.found("status = 'ERROR'") == [3, 2]
