"""The vocabulary: a file of the user's in front of it, its reading for resources,
and spans stored before it changed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_building import attribute, request, span
from recorded import CASES, requests
from store import Store, altered

from collector.otlp_json import to_protobuf
from storage import vocabulary
from storage.relink import recanonicalize
from storage.vocabulary import BadVocabulary, canonical, load

OWN = """
[canonical]
run_id = ["app.run_id", "experiment.run.id"]
session_id = [{ key = "acme.thread", when = "kind=llm" }]
[resource]
run_id = ["app.run_id"]
[kinds]
"acme.step" = { Ask = "llm", Look_Up = "retriever" }
[providers]
acme-proxy = "openai"
"""
ALWAYS = (0, 4_294_967_295_000_000_000)


def text(key: str, value: str) -> object:
    return attribute(key, AnyValue(string_value=value))


def said(store: Store, tenant: str = "default") -> list[dict[str, str]]:
    columns = store.engine.read(
        tenant, "SELECT Canonical FROM spanhouse.spans ORDER BY Timestamp, SpanId, SpanName", {}
    )
    return [{k.decode(): v.decode() for k, v in row.items()} for row in columns[0]] if columns else []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def own(tmp_path: Path) -> vocabulary.Vocabulary:
    path = tmp_path / "conventions.toml"
    path.write_text(OWN)
    return load(path)


def test_keys_of_ones_own_come_first(tmp_path: Path, own: vocabulary.Vocabulary) -> None:
    store = Store(tmp_path, own)
    asked = span(
        1,
        attributes=[
            text("app.run_id", "r-7"),
            text("run.id", "r-8"),
            text("acme.step", "ASK"),
            text("acme.thread", "t-1"),
            text("session.id", "s-1"),
            text("gen_ai.provider.name", "acme-proxy"),
        ],
    )
    found = span(2, attributes=[text("acme.step", "look_up"), text("acme.thread", "t-1"), text("session.id", "s-1")])
    store.load([request(asked, found)])
    first, second = said(store)
    assert first == {"operation_kind": "llm", "provider": "openai", "session_id": "t-1", "run_id": "r-7"}
    assert second == {"operation_kind": "retriever", "session_id": "s-1"}
    store.close()


def test_what_changes_applies_to_stored_spans_when_asked(store: Store, own: vocabulary.Vocabulary) -> None:
    store.load([request(span(1, attributes=[text("app.run_id", "r-7"), text("user.id", "u-1")]))])
    store.load([request(span(2, attributes=[text("app.run_id", "r-7")]))], "other")
    assert said(store) == [{"user_id": "u-1"}]
    recanonicalize(store.engine, own, "default", ALWAYS)
    assert said(store) == [{"user_id": "u-1", "run_id": "r-7"}]
    assert said(store, "other") == [{}]
    recanonicalize(store.engine, load(), "default", ALWAYS)
    assert said(store) == [{"user_id": "u-1"}]


def test_only_spans_of_the_time_asked_for_change(store: Store, own: vocabulary.Vocabulary) -> None:
    early, late = span(1, attributes=[text("app.run_id", "r-7")]), span(2, attributes=[text("app.run_id", "r-7")])
    late.start_time_unix_nano = early.start_time_unix_nano + 10**9
    store.load([request(early, late)])
    recanonicalize(store.engine, own, "default", (late.start_time_unix_nano, ALWAYS[1]))
    assert said(store) == [{}, {"run_id": "r-7"}]


def test_what_headers_said_outlives_it(store: Store, own: vocabulary.Vocabulary) -> None:
    store.load([request(span(1))], context=(("run_id", "r-9"),))
    assert said(store) == [{"header.run_id": "r-9"}]
    recanonicalize(store.engine, own, "default", ALWAYS)
    assert said(store) == [{"header.run_id": "r-9"}]


@pytest.mark.slow
def test_applying_the_same_vocabulary_again_changes_nothing(store: Store) -> None:
    """The expression over stored columns is the decoder's: over everything that was recorded."""
    bodies = [r.decoded() if "json" not in r.content_type else to_protobuf(r.body) for c in CASES for r in requests(c)]
    store.load(bodies)
    before = said(store)
    assert sum(map(bool, before)) > 2000
    altered(store.engine, "spans UPDATE Canonical = mapUpdate(Canonical, map('agent_id', 'wrong')) WHERE 1")
    recanonicalize(store.engine, store.vocabulary, "default", ALWAYS)
    assert said(store) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[canonical", "cannot read the conventions"),
        ("[canonicals]\nx = 1", r"cannot use \[canonicals\]"),
        ('[canonical]\nruns = ["a"]', "cannot use 'runs' in .*the canonical fields are operation_kind, "),
        ('[canonical]\nrun_id = "a"', "write a list of keys"),
        ('[canonical]\nrun_id = [{ key = "a", when = "kind=tools" }]', "write a list of keys"),
        ('[resource]\nrun_id = [{ key = "a" }]', "write a list of keys"),
        ('[kinds]\n"a.b" = "llm"', "cannot use kinds.a.b"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(BadVocabulary, match=message):
        load(path)


def test_a_file_that_is_missing_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadVocabulary, match=r"cannot read the conventions in .*none.toml"):
        load(tmp_path / "none.toml")


def test_places_in_order_of_precedence() -> None:
    own = {"run_id": "span", "trace.run_id": "trace", "header.run_id": "header", "baggage.run_id": "baggage"}
    resource = {"run_id": "resource"}
    order = []
    for place in ("", "trace.", None, "header.", "baggage."):
        order.append(canonical(own, resource)["run_id"])
        if place is None:
            resource = {}
        else:
            del own[f"{place}run_id"]
    assert order == ["span", "trace", "resource", "header", "baggage"]


def test_types_of_canonical_values() -> None:
    said = {
        "input_tokens": "12",
        "output_tokens": "x",
        "cost_usd": "0.25",
        "ttft_ms": "nan",
        "finish_reasons": "stop,length",
    }
    assert canonical(said, {}) == {"input_tokens": 12, "cost_usd": 0.25, "finish_reasons": ["stop", "length"]}


def test_a_resource_speaks_for_its_spans() -> None:
    attributes = [
        ("deployment.environment", "prod"),
        ("service.version", "1.2"),
        ("run.id", '"r-1"'),
        ("session.id", 7),
    ]
    assert load().of_resource(attributes) == {
        "environment": "prod", "release": "1.2", "agent_version": "1.2", "run_id": "r-1", "session_id": "7",
    }  # fmt: skip
    assert "agent_version" not in canonical({}, load().of_resource(attributes))
    assert canonical({"agent_name": "a"}, load().of_resource(attributes))["agent_version"] == "1.2"
