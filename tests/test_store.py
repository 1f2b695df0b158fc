"""The decoding statement and the schema in the real engine: every type, hostile times, a thousand days, tokens."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_building import attribute, request, span
from store import RECEIVED, Store

from storage.decode import INT64_MAX, START_MAX_UNIX_NANO
from storage.errors import DataError, StoreUnavailable
from storage.migrate import SchemaMismatch, migrate, migrations
from storage.spans import Nested

DAY = 86_400_000_000_000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = Store(tmp_path_factory.mktemp("store"))
    yield made
    made.close()


def trace_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def text(value: str) -> AnyValue:
    return AnyValue(string_value=value)


VALUES = {
    "text": (text("straße \U0001f980"), "straße \U0001f980"),
    "text.empty": (text(""), ""),
    "int": (AnyValue(int_value=-(2**63)), -(2**63)),
    "int.zero": (AnyValue(int_value=0), 0),
    "double": (AnyValue(double_value=0.1), 0.1),
    "double.whole": (AnyValue(double_value=2.0), 2.0),
    "double.inf": (AnyValue(double_value=-math.inf), -math.inf),
    "yes": (AnyValue(bool_value=True), True),
    "no": (AnyValue(bool_value=False), False),
    "bytes": (AnyValue(bytes_value=b"\x00\xff"), b"\x00\xff"),
    "bytes.empty": (AnyValue(bytes_value=b""), b""),
    "nothing": (AnyValue(), None),
}
ARRAY = ArrayValue(values=[AnyValue(int_value=1), text("b"), AnyValue()])
MAP = KeyValueList(values=[KeyValue(key="a", value=text("b")), KeyValue(key="a", value=AnyValue(bool_value=True))])


@pytest.mark.parametrize("place", ["span", "resource", "scope", "event", "link", "content"])
def test_every_type_of_value_survives_everywhere(store: Store, place: str) -> None:
    prefix = "llm.tools." if place == "content" else "k."
    pairs = [attribute(prefix + key, value) for key, (value, _) in VALUES.items()]
    pairs += [
        attribute(prefix + "array", AnyValue(array_value=ARRAY)),
        attribute(prefix + "array.empty", AnyValue(array_value=ArrayValue())),
        attribute(prefix + "map", AnyValue(kvlist_value=MAP)),
    ]
    sent = span(1, trace_id=trace_id(100 + len(place)), attributes=[])
    message = request(sent)
    block = message.resource_spans[0]
    stored = block.scope_spans[0].spans[0]
    holder = {
        "span": stored.attributes,
        "content": stored.attributes,
        "resource": block.resource.attributes,
        "scope": block.scope_spans[0].scope.attributes,
        "event": stored.events.add(name="e").attributes,
        "link": stored.links.add(trace_id=trace_id(9), span_id=b"12345678").attributes,
    }[place]
    holder.extend(pairs)
    store.load([message], tenant=place)

    (back,) = store.traces.spans_of(place, sent.trace_id, True, 10)
    read = {
        "span": back.attributes,
        "content": back.attributes,
        "resource": back.resource.attributes,
        "scope": back.scope.attributes,
        "event": back.events[0].attributes,
        "link": back.links[0].attributes,
    }[place]
    expected = {prefix + key: value for key, (_, value) in VALUES.items()}
    expected[prefix + "array"] = Nested("array", ARRAY.SerializeToString())
    expected[prefix + "array.empty"] = Nested("array", b"")
    expected[prefix + "map"] = Nested("kvlist", MAP.SerializeToString())
    got = {key: value for key, value in read if key.startswith(prefix)}
    assert got == expected
    assert {k: type(v) for k, v in got.items()} == {k: type(v) for k, v in expected.items()}


def test_duplicate_keys_are_all_kept(store: Store) -> None:
    pairs = [attribute("k", text("first")), attribute("k", text("second")), attribute("k", AnyValue(int_value=3))]
    store.load([request(span(1, trace_id=trace_id(120), attributes=pairs))])
    (back,) = store.traces.spans_of("default", trace_id(120), True, 10)
    assert back.attributes == [("k", "first"), ("k", "second"), ("k", 3)]


def test_payload_is_read_only_when_asked_for(store: Store) -> None:
    pairs = [
        attribute("gen_ai.input.messages", text("the prompt")),
        attribute("gen_ai.tool.call.result", AnyValue(array_value=ARRAY)),
        attribute("llm.input_messages.0.message.content", text("hello")),
        attribute("anything", text("x" * 1025)),
        attribute("gen_ai.prompt.name", text("greeting")),
        attribute("short", text("y" * 1024)),
    ]
    store.load([request(span(1, trace_id=trace_id(121), attributes=pairs))])
    (light,) = store.traces.spans_of("default", trace_id(121), False, 10)
    assert [key for key, _ in light.attributes] == ["gen_ai.prompt.name", "short"]
    (whole,) = store.traces.spans_of("default", trace_id(121), True, 10)
    assert sorted(key for key, _ in whole.attributes) == sorted(pair.key for pair in pairs)


NOW = RECEIVED
TIMES = {
    "ordinary": (NOW, NOW + 5, False),
    "no end": (NOW, 0, True),
    "no start": (0, NOW, True),
    "no time at all": (0, 0, True),
    "end before start": (NOW, NOW - 7, True),
    "2106 is past": (START_MAX_UNIX_NANO + 1, START_MAX_UNIX_NANO + 2, True),
    "2262 is past": (INT64_MAX + 1, INT64_MAX + 2, True),
    "the greatest": (2**64 - 1, 2**64 - 1, True),
    "from now to the end of time": (NOW, 2**64 - 1, True),
    "1970": (1, 2, False),
    "last year": (NOW - 365 * DAY, NOW - 365 * DAY + 1, False),
}


@pytest.mark.parametrize("case", TIMES)
def test_any_time_is_kept_as_it_was_sent(store: Store, case: str) -> None:
    start, end, flagged = TIMES[case]
    sent = span(1, trace_id=trace_id(200 + list(TIMES).index(case)), start_time_unix_nano=start, end_time_unix_nano=end)
    store.load([request(sent)])
    (back,) = store.traces.spans_of("default", sent.trace_id, True, 10)
    assert (back.start_time_unix_nano, back.end_time_unix_nano) == (start, end)
    flags = store.number(f"SELECT TimeFlags FROM spanhouse.spans WHERE TraceId = unhex('{sent.trace_id.hex()}')")
    assert bool(flags) is flagged


def test_a_thousand_days_in_one_segment_load_at_once(store: Store) -> None:
    spans = [
        span(1, trace_id=trace_id(1000 + day), start_time_unix_nano=NOW - day * DAY, end_time_unix_nano=NOW - day * DAY)
        for day in range(1000)
    ]
    before = store.number("SELECT count() FROM spanhouse.spans")
    store.load([request(*spans)])
    assert store.number("SELECT count() FROM spanhouse.spans") == before + 1000
    assert store.parts("table = 'spans' AND partition_id LIKE '19700101-%'") >= 1
    assert store.number("SELECT uniqExact(Day) FROM spanhouse.spans") <= 92


def test_a_segment_is_stored_once_for_its_token(store: Store) -> None:
    path, token = store.segment([request(span(1, trace_id=trace_id(300)))], tenant="once")
    for _ in range(3):
        store.engine.load(path, token)
    assert store.number("SELECT count() FROM spanhouse.spans WHERE Tenant = 'once'") == 1
    assert store.number("SELECT sum(Spans) FROM spanhouse.traces WHERE Tenant = 'once'") == 1


def test_what_was_prepared_is_loaded_as_if_it_was_not(store: Store) -> None:
    sent = [request(span(10 + i, trace_id=trace_id(50 + i))) for i in range(4)]
    (a, a_token), (b, b_token), (c, c_token) = (store.segment([one], tenant="prepared") for one in sent[:3])
    bad, bad_token = store.segment([b"\x0a\xff"], tenant="prepared")
    for path, token in ((a, a_token), (bad, bad_token), (c, c_token)):
        store.engine.prepare(path, token, "traces")
    store.engine.load(a, a_token)
    with pytest.raises(DataError):
        store.engine.load(bad, bad_token)
    with pytest.raises(DataError):
        store.engine.load(bad, bad_token)  # which gives up what was prepared
    store.engine.load(b, b_token)
    store.engine.prepare(c, c_token, "traces")
    store.engine.load(c, c_token)
    store.engine.prepare(c, c_token, "traces")
    store.engine.load(c, c_token)
    store.load([sent[3]], tenant="prepared")
    listed = {found.trace_id for found in store.list(tenant="prepared")}
    assert listed == {trace_id(50 + i).hex() for i in range(4)}


def test_the_same_span_by_two_paths_is_read_once_and_another_under_its_id_is_not_hidden(store: Store) -> None:
    first = span(1, trace_id=trace_id(301), attributes=[attribute("gen_ai.completion", text("one"))])
    second = span(1, trace_id=trace_id(301), name="other", attributes=[attribute("gen_ai.completion", text("two"))])
    store.load([request(first), request(first)])
    store.load([request(second)])
    back = store.traces.spans_of("default", trace_id(301), True, 10)
    assert sorted((s.name, dict(s.attributes)["gen_ai.completion"]) for s in back) == [
        ("other", "two"),
        ("span 1", "one"),
    ]


@pytest.mark.parametrize(
    "body",
    [b"\x0a\xff\xff\xff\x7f", request(span(1)).SerializeToString()[:-3], b"\xff" * 40],
    ids=["length beyond the end", "torn", "noise"],
)
def test_bytes_that_do_not_decode_are_a_data_error_and_store_nothing(store: Store, body: bytes) -> None:
    path, token = store.segment([request(span(1, trace_id=trace_id(310))), body], tenant="bad")
    with pytest.raises(DataError, match="cannot load"):
        store.engine.load(path, token)
    assert store.number("SELECT count() FROM spanhouse.spans WHERE Tenant = 'bad'") == 0


def test_what_later_versions_of_otlp_add_is_skipped(store: Store) -> None:
    body = request(span(1, trace_id=trace_id(311))).SerializeToString()
    unknown = b"\xf2\x3f\x05later"  # field 1022, five bytes
    store.load([body + unknown])
    assert len(store.traces.spans_of("default", trace_id(311), True, 10)) == 1


def test_an_empty_envelope_makes_no_rows(store: Store) -> None:
    message = ExportTraceServiceRequest()
    message.resource_spans.add().scope_spans.add()
    before = store.number("SELECT count() FROM spanhouse.spans")
    store.load([message, message])
    assert store.number("SELECT count() FROM spanhouse.spans") == before


def test_a_tenant_reads_nothing_of_another(store: Store) -> None:
    store.load([request(span(1, trace_id=trace_id(320)))], tenant="alice")
    assert len(store.traces.spans_of("alice", trace_id(320), True, 10)) == 1
    assert store.traces.spans_of("bob", trace_id(320), True, 10) == []
    assert store.traces.spans_of("ali\\' OR 1 --", trace_id(320), True, 10) == []
    for table in ("spans", "content", "traces", "origins"):
        assert store.engine.read("nobody", f"SELECT count() FROM spanhouse.{table}", {}) == [[0]]


@pytest.mark.slow
def test_a_hundred_small_loads_do_not_make_a_hundred_parts(store: Store) -> None:
    for i in range(100):
        store.load([request(span(1, trace_id=trace_id(5000 + i)))], tenant="small")
    assert store.parts("table = 'spans' AND partition != '1970-01-01'") < 80


@pytest.mark.parametrize("size", [0, 300, 1500])
def test_a_schema_file_that_a_full_disk_cut_is_no_fault_of_the_data(store: Store, size: int) -> None:
    path, token = store.segment([request(span(4000 + size))])
    store.load([request(span(4001 + size))])
    for file in Path("__cache__").iterdir():  # where the engine keeps it
        file.write_bytes(file.read_bytes()[:size])
    decoder = getattr(store.engine, "_chdb", store.engine._writer)
    decoder.command("SYSTEM DROP FORMAT SCHEMA CACHE FOR Protobuf")  # as after a start
    with pytest.raises(StoreUnavailable, match="__cache__"):
        store.engine.load(path, token)
    store.engine.load(path, token)
    assert store.traces.spans_of("default", span(4000 + size).trace_id, True, 10)


def test_a_store_that_another_program_made_is_refused(store: Store, tmp_path: Path) -> None:
    assert migrate(store.engine) == []
    (tmp_path / "0001_skeleton.sql").write_text("SELECT 1;\n")
    known = r"0001_skeleton\.sql was changed" if store.engine.shared else r"0002_content\.sql, 0003_traces\.sql"
    with pytest.raises(SchemaMismatch, match=known):
        migrate(store.engine, tmp_path)
    for migration in migrations()[1:]:
        (tmp_path / migration.name).write_text(migration.text)
    with pytest.raises(SchemaMismatch, match=r"0001_skeleton\.sql was changed"):
        migrate(store.engine, tmp_path)


def test_kinds_that_nobody_knows_yet_survive(store: Store) -> None:
    sent = Span.FromString(span(1, trace_id=trace_id(330)).SerializeToString() + b"\x30\x63")  # kind 99
    sent.status.code = 2
    sent.status.message = "boom"
    store.load([request(sent)])
    (back,) = store.traces.spans_of("default", trace_id(330), True, 10)
    assert (back.kind, back.status_code, back.status_message) == (99, 2, "boom")
