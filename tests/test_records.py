"""Log records in the real engine: every type of value, each once, joined to their span in whichever order both came."""

from collections.abc import Iterator

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from otlp_building import attribute, logs, record, request, span
from store import RECEIVED, Store
from test_store import ARRAY, MAP, VALUES, text, trace_id

from query.records import DETAILS
from storage.errors import DataError
from storage.spans import Event, Nested, Span

ALL = [
    *(attribute(f"k.{key}", value) for key, (value, _) in VALUES.items()),
    attribute("k.array", AnyValue(array_value=ARRAY)),
    attribute("k.map", AnyValue(kvlist_value=MAP)),
]
MEANT = {
    **{f"k.{key}": meant for key, (_, meant) in VALUES.items()},
    "k.array": Nested("array", ARRAY.SerializeToString()),
    "k.map": Nested("kvlist", MAP.SerializeToString()),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"))
    yield made
    made.close()


def of(number: int, **fields: object) -> Message:
    """A record of span 1 of trace `number`."""
    return record(1, trace_id=trace_id(number), **fields)


def load_span(store: Store, number: int, **fields: object) -> None:
    store.load([request(span(1, trace_id=trace_id(number), **fields))])


def read(store: Store, number: int, content: bool = True, records: bool = True) -> Span:
    (one,) = store.traces.spans_of("default", trace_id(number), content, 10, records)
    return one


def events(one: Span) -> list[tuple[str, dict[str, object]]]:
    return [(event.name, dict(event.attributes)) for event in one.events]


def test_every_type_of_value_survives_in_attributes(store: Store) -> None:
    load_span(store, 1)
    store.load([logs(of(1, event_name="all", attributes=ALL, dropped_attributes_count=3, body=None))])
    (event,) = read(store, 1).events
    assert event.dropped_attributes_count == 3
    assert len(event.attributes) == len(ALL)
    assert dict(event.attributes) == MEANT


@pytest.mark.parametrize("pair", ALL, ids=lambda pair: pair.key)
def test_every_type_of_value_survives_as_body(store: Store, pair: KeyValue) -> None:
    number = 100 + [each.key for each in ALL].index(pair.key)
    load_span(store, number)
    store.load([logs(of(number, event_name="e", body=pair.value))])
    ((_, attributes),) = events(read(store, number))
    assert attributes == ({} if MEANT[pair.key] is None else {"body": MEANT[pair.key]})


def test_records_come_before_or_after_their_span(store: Store) -> None:
    store.load([logs(of(2, event_name="first"))])
    assert store.traces.spans_of("default", trace_id(2), True, 10) == [], "a record makes no trace"
    load_span(store, 2)
    store.load([logs(of(2, event_name="second", time_unix_nano=2**63))])
    assert [name for name, _ in events(read(store, 2))] == ["first", "second"]


def test_events_and_records_are_in_the_order_of_their_times(store: Store) -> None:
    own = [Event(at, f"own {at}", [], 0) for at in (10, 30, 50)]
    sent = span(1, trace_id=trace_id(3))
    for event in own:
        sent.events.add(time_unix_nano=event.time_unix_nano, name=event.name)
    others = [of(3, event_name=f"record {at}", time_unix_nano=at, body=None) for at in (60, 20, 30)]
    store.load([request(sent), logs(*others)])
    assert [event.name for event in read(store, 3).events] == [
        "own 10", "record 20", "own 30", "record 30", "own 50", "record 60",
    ]  # fmt: skip
    assert read(store, 3, records=False).events == own, "as they were sent"


NAMES: list[tuple[dict[str, object], str]] = [
    ({"event_name": "a", "attributes": [attribute("event.name", text("b"))], "severity_text": "WARN"}, "a"),
    ({"attributes": [attribute("event.name", text("b"))], "severity_text": "WARN"}, "b"),
    ({"attributes": [attribute("event.name", AnyValue(int_value=1))], "severity_text": "WARN"}, "WARN"),
    ({"severity_number": 17}, "ERROR"),
    ({"severity_number": 0}, "log"),
    ({"severity_number": -5}, "log"),
]


@pytest.mark.parametrize(("fields", "name"), NAMES)
def test_the_name_of_an_event(store: Store, fields: dict[str, object], name: str) -> None:
    number = 200 + [each for each, _ in NAMES].index(fields)
    load_span(store, number)
    store.load([logs(of(number, **fields))])
    ((found, attributes),) = events(read(store, number))
    assert found == name
    assert ("event.name" in attributes) == ("attributes" in fields), "stays as it was sent"


def test_the_time_is_when_it_happened_or_was_observed_or_came(store: Store) -> None:
    load_span(store, 4)
    times = [(5, 6), (0, 7), (0, 0), (2**64 - 1, 8)]
    sent = [of(4, time_unix_nano=at, observed_time_unix_nano=observed) for at, observed in times]
    store.load([logs(*sent)])
    assert [event.time_unix_nano for event in read(store, 4).events] == [5, 7, RECEIVED, 2**64 - 1]


def test_a_record_that_was_sent_twice_appears_once(store: Store) -> None:
    load_span(store, 5)
    same = logs(of(5, event_name="same", attributes=ALL))
    store.load([same, same])
    store.load([same], received=RECEIVED + 10**12)
    store.load([logs(of(5, event_name="same", attributes=ALL[:-1]))])
    assert store.number(f"SELECT count() FROM spanhouse.records WHERE TraceId = unhex('{trace_id(5).hex()}')") == 4
    assert len(read(store, 5).events) == 2


def test_the_whole_model_call_gives_its_content_to_the_span(store: Store) -> None:
    messages = AnyValue(array_value=ARRAY)
    load_span(store, 6, attributes=[attribute("gen_ai.output.messages", text("the span's own"))])
    said = [
        attribute("gen_ai.input.messages", messages),
        attribute("gen_ai.output.messages", text("the record's")),
        attribute("gen_ai.system_instructions", text("be brief")),
        attribute("gen_ai.tool.definitions", text("[]")),
        attribute("gen_ai.request.model", text("gpt")),
    ]
    store.load([logs(of(6, event_name=DETAILS, attributes=said, body=None))])
    one = read(store, 6)
    assert dict(one.attributes) == {
        "gen_ai.input.messages": Nested("array", ARRAY.SerializeToString()),
        "gen_ai.output.messages": "the span's own",
        "gen_ai.system_instructions": "be brief",
        "gen_ai.tool.definitions": "[]",
    }
    assert len(one.attributes) == 4
    ((_, attributes),) = events(one)
    assert attributes["gen_ai.output.messages"] == "the record's"
    assert dict(read(store, 6, records=False).attributes) == {"gen_ai.output.messages": "the span's own"}


def test_other_events_keep_their_content(store: Store) -> None:
    load_span(store, 7, attributes=[])
    store.load([logs(of(7, event_name="other", attributes=[attribute("gen_ai.input.messages", text("x"))]))])
    assert read(store, 7).attributes == []


def test_without_content_the_payload_stays_away(store: Store) -> None:
    load_span(store, 8, attributes=[])
    said = [
        attribute("gen_ai.input.messages", text("secret")),
        attribute("long", text("x" * 2000)),
        attribute("nested.and.long", AnyValue(bytes_value=bytes(2000))),
        attribute("gen_ai.system", text("openai")),
    ]
    store.load([logs(of(8, event_name=DETAILS, attributes=said, body=text("secret")))])
    one = read(store, 8, content=False)
    assert events(one) == [(DETAILS, {"gen_ai.system": "openai"})]
    assert one.attributes == []
    assert len(dict(read(store, 8).events[0].attributes)) == 5


def test_of_two_spans_with_one_id_the_first_has_the_records(store: Store) -> None:
    spans = [span(1, trace_id=trace_id(9), name=name, start_time_unix_nano=at) for name, at in (("b", 20), ("a", 10))]
    store.load([request(*spans), logs(of(9))])
    found = store.traces.spans_of("default", trace_id(9), True, 10)
    assert [(one.name, len(one.events)) for one in found] == [("a", 1), ("b", 0)]


def test_tenants_have_their_own(store: Store) -> None:
    load_span(store, 10)
    store.load([logs(of(10))], tenant="somebody else")
    assert read(store, 10).events == []


def test_a_tenant_without_records_costs_no_query_until_there_are_some(store: Store, monkeypatch) -> None:
    asked: list[str] = []
    engine = store.engine
    reading = type(engine).read

    def counting(self, tenant, sql, parameters):
        asked.append(sql)
        return reading(self, tenant, sql, parameters)

    monkeypatch.setattr(type(engine), "read", counting)
    monkeypatch.setattr("storage.server.RECORDS_S", 3600)  # where others load, too, it is asked now and then
    store.load([request(span(1, trace_id=trace_id(11)))], tenant="quiet")

    def queries() -> int:
        asked.clear()
        store.traces.spans_of("quiet", trace_id(11), True, 10)
        return sum("records" in sql for sql in asked)

    assert [queries() for _ in range(3)] == [1, 0, 0]
    store.load([logs(of(12))], tenant="another")
    assert [queries() for _ in range(3)] == [1, 0, 0]
    store.load([logs(of(11, event_name="late"))], tenant="quiet")
    assert [queries() for _ in range(3)] == [2, 1, 1]
    (one,) = store.traces.spans_of("quiet", trace_id(11), True, 10)
    assert [event.name for event in one.events] == ["late"]


def test_a_segment_loads_once_and_neither_statement_sees_the_other_signal(store: Store) -> None:
    path, token = store.segment([request(span(1, trace_id=trace_id(13))), logs(of(13), of(13, event_name="b"))])
    tables = ("spans", "traces", "records")

    def counts() -> list[int]:
        found = f"WHERE TraceId = unhex('{trace_id(13).hex()}')"
        return [store.number(f"SELECT count() FROM spanhouse.{table} {found}") for table in tables]

    for _ in range(2):
        store.engine.load(path, token)
        assert counts() == [1, 1, 0]
    for _ in range(2):
        store.engine.load(path, f"{token}.logs", "logs")
        assert counts() == [1, 1, 2]


def test_a_frame_that_one_statement_cannot_load_is_nothing_to_the_other(store: Store) -> None:
    bad_span, bad_record = span(1, trace_id=trace_id(14) + b"!"), of(14)
    bad_record.trace_id += b"!"
    path, token = store.segment([request(bad_span), logs(of(15))])
    with pytest.raises(DataError):
        store.engine.load(path, token)
    store.engine.load(path, f"{token}.logs", "logs")
    path, token = store.segment([request(span(1, trace_id=trace_id(15))), logs(bad_record)])
    with pytest.raises(DataError):
        store.engine.load(path, f"{token}.logs", "logs")
    store.engine.load(path, token)
    assert len(read(store, 15).events) == 1
