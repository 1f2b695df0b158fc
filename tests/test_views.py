"""The views read as the tables of the Collector's ClickHouse exporter do: cell by cell against what was sent, by the
statements that Grafana's ClickHouse data source and its dashboards make, and by a user that may read nothing else."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import clickhouse_connect
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp_building import attribute, request, span
from recorded import CASES, requests
from store import FOOTING, Store

from storage.decode import content_rule
from storage.hosts import hosts_of
from storage.views import CannotMakeViews, create_views

DATABASE = "otel_test"
KINDS = ["Unspecified", "Internal", "Server", "Client", "Producer", "Consumer"]
STATUSES = ["Unset", "Ok", "Error"]
# What a user of Grafana needs on a cluster, and where ClickHouse is older than 25 (docs/grafana.md).
READER = {"enable_analyzer": 0, "distributed_product_mode": "local", "optimize_functions_to_subcolumns": 0}
AS_READER = " SETTINGS " + ", ".join(f"{name} = {value!r}" for name, value in READER.items())
COLUMNS = [
    "toUnixTimestamp64Nano(Timestamp)", "TraceId", "SpanId", "ParentSpanId", "TraceState", "toString(SpanName)",
    "toString(SpanKind)", "toString(ServiceName)", "ResourceAttributes", "ScopeName", "ScopeVersion", "SpanAttributes",
    "Duration", "toString(StatusCode)", "StatusMessage", "arrayMap(t -> toUnixTimestamp64Nano(t), `Events.Timestamp`)",
    "arrayMap(n -> toString(n), `Events.Name`)", "`Events.Attributes`", "`Links.TraceId`", "`Links.SpanId`",
    "`Links.TraceState`", "`Links.Attributes`",
]  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the recorded requests of all SDKs, one request with everything in it, and another tenant's span."""
    store = Store(tmp_path_factory.mktemp("views"))
    _drop(store)
    store.load([*corpus(), request(full(1), plain(2), plain(3), service="checkout")])
    store.load([request(plain(4), service="other")], tenant="acme")
    create_views(store.engine, "default", DATABASE)
    yield store
    _drop(store)
    store.close()


def _drop(store: Store) -> None:
    where = f" ON CLUSTER '{FOOTING.cluster}'" if FOOTING.cluster else ""
    store.engine.command(f"DROP DATABASE IF EXISTS {DATABASE}{where} SYNC")


def corpus() -> Iterator[ExportTraceServiceRequest]:
    for case in CASES:
        for sent in requests(case):
            if sent.content_type != "application/json":
                yield sent.decoded()


def plain(number: int) -> Span:
    """A span of a second, of the trace of the full one."""
    return span(
        number,
        trace_id=b"t" * 16,
        parent_span_id=(1).to_bytes(8, "big"),
        kind=Span.SPAN_KIND_CLIENT,
        attributes=[attribute("http.route", AnyValue(string_value="/pay"))],
    )


def full(number: int) -> Span:
    """A root with a value of each type, events, links and payload."""
    texts = [AnyValue(string_value=text) for text in ("a", 'with "quotes" / and \n', "long " * 60, "ü" * 70)]
    numbers = [AnyValue(int_value=n) for n in (0, 1, 127, 128, 2**63 - 1, -1, -(2**63))]
    odd = [AnyValue(bool_value=True), AnyValue(bool_value=False), AnyValue(double_value=0.25), AnyValue()]
    entries = [attribute(f"k{i}", value) for i, value in enumerate([*texts, *numbers, *odd])]
    values = {
        "text": AnyValue(string_value="plain"),
        "integer": AnyValue(int_value=-(2**63)),
        "real": AnyValue(double_value=1.5),
        "whole": AnyValue(double_value=3.0),
        "true": AnyValue(bool_value=True),
        "bytes": AnyValue(bytes_value=b"\x00\xff"),
        "nothing": AnyValue(),
        "list": AnyValue(array_value=ArrayValue(values=[*texts, *numbers, *odd])),
        "empty_list": AnyValue(array_value=ArrayValue()),
        "map": AnyValue(kvlist_value=KeyValueList(values=entries)),
        "empty_map": AnyValue(kvlist_value=KeyValueList()),
        "unnamed": AnyValue(
            kvlist_value=KeyValueList(values=[attribute("", AnyValue(int_value=1)), KeyValue(key="k")])
        ),
        "list_of_lists": AnyValue(array_value=ArrayValue(values=[AnyValue(array_value=ArrayValue(values=texts))])),
        "gen_ai.input.messages": AnyValue(string_value='[{"role": "user"}]'),
        "gen_ai.output.messages": AnyValue(array_value=ArrayValue(values=texts)),
    }
    made = span(
        number,
        trace_id=b"t" * 16,
        kind=Span.SPAN_KIND_SERVER,
        trace_state="vendor=1",
        attributes=[attribute(key, value) for key, value in values.items()],
        status=Status(code=Status.STATUS_CODE_ERROR, message="broke"),
    )
    made.events.add(time_unix_nano=made.start_time_unix_nano + 5, name="exception", attributes=[*made.attributes[:7]])
    made.events.add(name="no time")
    made.links.add(
        trace_id=b"l" * 16,
        span_id=b"s" * 8,
        trace_state="x" * 200,
        attributes=[*made.attributes[:5], KeyValue(key="none")],
    )
    made.links.add(trace_id=b"m" * 16, span_id=b"n" * 8, flags=257, dropped_attributes_count=3)
    return made


# What the exporter would have written


def as_string(value: AnyValue) -> str:
    """What pdata's AsString makes of a value; of lists in lists, their bytes."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return "[" + ",".join(map(as_json, value.array_value.values)) + "]"
    if kind == "kvlist_value":
        pairs = (f"{quoted(pair.key)}:{as_json(pair.value)}" for pair in value.kvlist_value.values)
        return "{" + ",".join(pairs) + "}"
    if kind == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "double_value":
        return repr(value.double_value).removesuffix(".0")
    return "" if kind is None else str(getattr(value, kind))


def as_json(value: AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind in ("array_value", "kvlist_value"):
        return quoted(base64.b64encode(getattr(value, kind).SerializeToString()).decode())
    if kind in ("string_value", "bytes_value"):
        return quoted(as_string(value))
    return as_string(value) or "null"


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def texts(pairs: Any) -> list[tuple[str, str]]:
    """Attributes as sorted pairs: the order of a map means nothing, and a key may come twice."""
    return sorted((pair.key, number_or_text(as_string(pair.value))) for pair in pairs)


def number_or_text(text: str) -> str:
    """Go, Python and ClickHouse write the same double differently: 1.0, 1; 1e-07, 1e-7."""
    return repr(float(text)) if re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", text) and abs(float(text)) < 2**53 else text


def is_content(pair: KeyValue) -> bool:
    """Numbers and bools are short, whatever their keys."""
    if pair.value.WhichOneof("value") in ("int_value", "double_value", "bool_value"):
        return False
    return content_rule().holds(pair.key, pair.value.string_value)


def expected(sent: Iterator[ExportTraceServiceRequest], content: bool) -> Counter[str]:
    rows: Counter[str] = Counter()
    for block in (block for one in sent for block in one.resource_spans):
        service = "".join(p.value.string_value for p in block.resource.attributes if p.key == "service.name")
        for scope_spans in block.scope_spans:
            scope = scope_spans.scope
            for one in scope_spans.spans:
                start, end = one.start_time_unix_nano, one.end_time_unix_nano
                row = (
                    start, one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex(), one.trace_state, one.name,
                    KINDS[one.kind], service, texts(block.resource.attributes), scope.name, scope.version,
                    texts(pair for pair in one.attributes if content or not is_content(pair)),
                    max(end - start, 0), STATUSES[one.status.code], one.status.message,
                    [e.time_unix_nano for e in one.events], [e.name for e in one.events],
                    [texts(e.attributes) for e in one.events],
                    [x.trace_id.hex() for x in one.links], [x.span_id.hex() for x in one.links],
                    [x.trace_state for x in one.links], [texts(x.attributes) for x in one.links],
                )  # fmt: skip
                rows[repr(row)] += 1
    return rows


def found(store: Store, table: str) -> Counter[str]:
    maps = {COLUMNS.index(name) for name in ("ResourceAttributes", "SpanAttributes")}
    lists = {COLUMNS.index(name) for name in ("`Events.Attributes`", "`Links.Attributes`")}
    selected = [
        f"arrayZip(mapKeys({c}), mapValues({c}))" if i in maps
        else f"arrayMap(m -> arrayZip(mapKeys(m), mapValues(m)), {c})" if i in lists
        else c
        for i, c in enumerate(COLUMNS)
    ]  # fmt: skip
    rows: Counter[str] = Counter()
    settings = AS_READER if FOOTING.cluster else ""
    for row in store.engine.rows(f"SELECT {', '.join(selected)} FROM {DATABASE}.{table}{settings}"):
        cells: list[Any] = list(row)
        for i in maps:
            cells[i] = pairs(cells[i])
        for i in lists:
            cells[i] = [pairs(each) for each in cells[i]]
        rows[repr(tuple(cells))] += 1
    return rows


def pairs(of: Any) -> list[tuple[str, str]]:
    return sorted((key, number_or_text(text)) for key, text in of)


@pytest.mark.parametrize(("table", "content"), [("otel_traces", False), ("otel_traces_content", True)])
def test_every_cell_is_what_the_exporter_would_have_written(house: Store, table: str, content: bool) -> None:
    sent = [*corpus(), request(full(1), plain(2), plain(3), service="checkout")]
    wanted, got = expected(iter(sent), content), found(house, table)
    assert sum(wanted.values()) > 100
    missing, extra = wanted - got, got - wanted
    assert not missing, "\n".join([*list(missing)[:2], "found:", *list(extra)[:2]])
    assert not extra


def test_columns_have_the_names_and_types_of_the_exporters_tables(house: Store) -> None:
    sql = f"SELECT name, type FROM system.columns WHERE database = '{DATABASE}' AND table = "
    columns = dict(map(tuple, house.engine.rows(sql + "'otel_traces'")))
    assert columns["Timestamp"] == "DateTime64(9, 'UTC')"
    assert columns["TraceId"] == columns["SpanId"] == columns["ParentSpanId"] == "String"
    assert columns["SpanKind"] == columns["StatusCode"] == columns["ServiceName"] == "LowCardinality(String)"
    assert columns["Duration"] == "UInt64"
    assert columns["SpanAttributes"] == columns["ResourceAttributes"] == "Map(String, String)"
    assert columns["Events.Attributes"] == columns["Links.Attributes"] == "Array(Map(String, String))"
    assert len(columns) == len(COLUMNS)
    lookup = dict(map(tuple, house.engine.rows(sql + "'otel_traces_trace_id_ts'")))
    assert lookup == {"TraceId": "String", "Start": "DateTime('UTC')", "End": "DateTime('UTC')"}


# The statements of Grafana's ClickHouse data source and of its dashboards, with its macros filled in

START_S = 1_700_000_000
TRACE = (b"t" * 16).hex()
RANGE = f"Timestamp >= toDateTime({START_S - 60}) AND Timestamp <= toDateTime({START_S + 60})"
LOOKUP = """WITH '{trace}' as trace_id,
(SELECT min(Start) FROM "{database}"."{table}_trace_id_ts" WHERE TraceId = trace_id) as trace_start,
(SELECT max(End) + 1 FROM "{database}"."{table}_trace_id_ts" WHERE TraceId = trace_id) as trace_end
SELECT "TraceId" as traceID, "SpanId" as spanID, "ParentSpanId" as parentSpanID, "ServiceName" as serviceName,
"SpanName" as operationName, multiply(toUnixTimestamp64Nano("Timestamp"), 0.000001) as startTime,
multiply("Duration", 0.000001) as duration,
arrayMap(key -> map('key', key, 'value',"SpanAttributes"[key]), mapKeys("SpanAttributes")) as tags,
arrayMap(key -> map('key', key, 'value',"ResourceAttributes"[key]), mapKeys("ResourceAttributes")) as serviceTags,
if("StatusCode" IN ('Error', 'STATUS_CODE_ERROR'), 2, 0) as statusCode,
arrayMap((name, timestamp, attributes) -> tuple(name, toString(toUnixTimestamp64Milli(timestamp)),
arrayMap( key -> map('key', key, 'value', attributes[key]), mapKeys(attributes)))::Tuple(name String, timestamp String,
fields Array(Map(String, String))), "Events".Name, "Events".Timestamp, "Events".Attributes) AS logs,
arrayMap((traceID, spanID, attributes) -> tuple(traceID, spanID, arrayMap(key -> map('key', key, 'value',
attributes[key]), mapKeys(attributes)))::Tuple(traceID String, spanID String, tags Array(Map(String, String))),
"Links".TraceId, "Links".SpanId, "Links".Attributes) AS references, "SpanKind" as kind,
"StatusMessage" as statusMessage, "ScopeName" as instrumentationLibraryName,
"ScopeVersion" as instrumentationLibraryVersion, "TraceState" as traceState
FROM "{database}"."{table}" WHERE traceID = trace_id AND "Timestamp" >= trace_start AND "Timestamp" <= trace_end
LIMIT 1000"""
SEARCH = f"""SELECT "TraceId" as traceID, "ServiceName" as serviceName, "SpanName" as operationName,
"Timestamp" as startTime, multiply("Duration", 0.000001) as duration FROM "{DATABASE}"."otel_traces"
WHERE ( {RANGE} ) AND ( ParentSpanId = '' ) AND ( Duration > 0 ) ORDER BY Timestamp DESC, Duration DESC LIMIT 1000"""
SERVICE_MAP = f"""SELECT concat(parent.ServiceName, '-', child.ServiceName) AS id, parent.ServiceName AS source,
child.ServiceName AS target, concat(toString(count()), ' calls') AS mainstat FROM {DATABASE}.otel_traces AS child
INNER JOIN {DATABASE}.otel_traces AS parent ON child.ParentSpanId = parent.SpanId AND child.TraceId = parent.TraceId
WHERE child.{RANGE.replace("AND ", "AND child.")} AND parent.{RANGE.replace("AND ", "AND parent.")}
AND parent.SpanKind != child.SpanKind GROUP BY source, target ORDER BY count() DESC LIMIT 50"""
TABLE = f"""SELECT TraceId, any(ServiceName) AS Service, min(Timestamp) AS Time, max(Duration) AS Duration,
count() AS Spans, anyIf(StatusCode, StatusCode IN ('Error', 'STATUS_CODE_ERROR')) AS Status FROM {DATABASE}.otel_traces
WHERE {RANGE} AND ServiceName IN ('checkout') AND positionCaseInsensitive(SpanName, 'span') > 0 GROUP BY TraceId
HAVING 1=1 ORDER BY Time DESC LIMIT 200"""
RATES = f"""SELECT toStartOfInterval(Timestamp, INTERVAL 15 second) AS time, count() / 15 AS rps,
countIf(StatusCode IN ('Error', 'STATUS_CODE_ERROR')) / count() AS error_rate, quantile(0.99)(Duration) AS p99
FROM {DATABASE}.otel_traces WHERE {RANGE} AND ServiceName = 'checkout' AND SpanKind = 'Client' AND SpanName IN
('span 2', 'span 3') AND SpanAttributes['http.route'] = '/pay' GROUP BY time ORDER BY time"""


@pytest.fixture(params=["as it is", "reader"])
def ask(request: pytest.FixtureRequest, house: Store) -> Any:
    """Runs a statement, with the settings of a user of Grafana, or without."""
    if request.param == "as it is":
        if FOOTING.cluster:
            pytest.skip("a cluster's tables are joined under distributed_product_mode = 'local'")
        return house.engine.rows
    if FOOTING.urls is None:
        pytest.skip("chDB reads as it is: settings are for a server (CLICKHOUSE_URL)")
    return lambda sql: house.engine.rows(sql + AS_READER)


def first(named: Any) -> Any:
    """Of a named tuple, which comes as a dictionary."""
    return next(iter(named.values()))


@pytest.mark.parametrize("table", ["otel_traces", "otel_traces_content"])
def test_grafana_opens_a_trace_by_its_id(ask: Any, table: str) -> None:
    rows = ask(LOOKUP.format(trace=TRACE, database=DATABASE, table=table))
    assert sorted(row[1] for row in rows) == [number.to_bytes(8, "big").hex() for number in (1, 2, 3)]
    root = next(row for row in rows if row[2] == "")
    assert root[3:7] == ("checkout", "span 1", pytest.approx(START_S * 1000), pytest.approx(1000))
    tags = {tag["key"]: tag["value"] for tag in root[7]}
    assert tags["integer"] == str(-(2**63))
    assert ("gen_ai.input.messages" in tags) == (table == "otel_traces_content")
    assert root[8] == [{"key": "service.name", "value": "checkout"}]
    assert root[9] == 2
    assert [first(log) for log in root[10]] == ["exception", "no time"]
    assert [first(link) for link in root[11]] == [(b"l" * 16).hex(), (b"m" * 16).hex()]
    assert root[12:] == ("Server", "broke", "test.scope", "", "vendor=1")


def test_grafana_searches_traces(ask: Any) -> None:
    [row] = ask(SEARCH)
    assert row[:3] == (TRACE, "checkout", "span 1")


def test_dashboards_count_spans(ask: Any) -> None:
    assert [row[1:] for row in ask(SERVICE_MAP)] == [("checkout", "checkout", "2 calls")]
    [row] = ask(TABLE)
    assert (row[0], row[1], *row[3:]) == (TRACE, "checkout", 10**9, 3, "Error")
    assert [row[1:] for row in ask(RATES)] == [(pytest.approx(2 / 15), 0, 10**9)]


def test_a_time_range_prunes(house: Store) -> None:
    """Else every panel reads all spans there are."""
    settings = "" if FOOTING.urls is None else AS_READER
    view = f"{DATABASE}.otel_traces{'_local' if FOOTING.cluster else ''}"
    sql = f"EXPLAIN indexes = 1 SELECT count() FROM {view} WHERE {RANGE}"
    plan = "\n".join(str(row[0]) for row in house.engine.rows(sql + settings))
    assert "toStartOfMinute(Timestamp) in" in plan, plan


def test_a_dashboard_reads_no_payload(house: Store) -> None:
    sql = f"EXPLAIN SELECT ServiceName, count() FROM {DATABASE}.otel_traces GROUP BY ServiceName"
    plan = "\n".join(str(row[0]) for row in house.engine.rows(sql))
    assert "content" not in plan


def test_the_lookup_says_when_a_trace_was(house: Store) -> None:
    sql = f"SELECT min(Start), max(End) FROM {DATABASE}.otel_traces_trace_id_ts WHERE TraceId = '{TRACE}'"
    [(start, end)] = house.engine.rows(sql)
    assert [t.replace(tzinfo=UTC) for t in (start, end)] == [
        datetime.fromtimestamp(START_S, UTC), datetime.fromtimestamp(START_S + 1, UTC)
    ]  # fmt: skip


def test_a_tenant_sees_its_own_spans_alone(house: Store) -> None:
    assert house.engine.rows(f"SELECT count() FROM {DATABASE}.otel_traces WHERE ServiceName = 'other'")[0][0] == 0


@pytest.mark.skipif(FOOTING.urls is None, reason="users are a server's: CLICKHOUSE_URL is not set")
def test_a_user_that_may_read_the_database_needs_no_more(house: Store) -> None:
    where = f" ON CLUSTER '{FOOTING.cluster}'" if FOOTING.cluster else ""
    house.engine.command(f"DROP USER IF EXISTS grafana_test{where}")
    house.engine.command(f"CREATE USER grafana_test{where} IDENTIFIED WITH no_password{AS_READER}")
    house.engine.command(f"GRANT{where} SELECT ON {DATABASE}.* TO grafana_test")
    first = hosts_of(str(FOOTING.urls))[0]
    reader = clickhouse_connect.get_client(host=first.host, port=first.port, username="grafana_test")
    try:
        rows = reader.query(LOOKUP.format(trace=TRACE, database=DATABASE, table="otel_traces_content")).result_rows
        assert len(rows) == 3
        assert len(reader.query(SERVICE_MAP).result_rows) == 1
        for table in ("spanhouse.spans", "spanhouse.content", "spanhouse_local.spans"):
            with pytest.raises(Exception, match=r"ACCESS_DENIED|UNKNOWN_DATABASE|UNKNOWN_TABLE|Not enough privileges"):
                reader.query(f"SELECT count() FROM {table}")
    finally:
        reader.close()
        house.engine.command(f"DROP USER grafana_test{where}")


# What is not replaced


def test_views_are_made_again_for_the_same_tenant(house: Store) -> None:
    create_views(house.engine, "default", DATABASE)
    assert house.engine.rows(f"SELECT count() FROM {DATABASE}.otel_traces WHERE ServiceName = 'checkout'")[0][0] == 3


def test_views_of_another_tenant_are_not_replaced(house: Store) -> None:
    with pytest.raises(CannotMakeViews, match="it has those of 'default'; choose another database"):
        create_views(house.engine, "acme", DATABASE)


def test_a_table_of_the_exporter_is_not_replaced(house: Store) -> None:
    house.engine.command("CREATE DATABASE IF NOT EXISTS otel_exporter_test")
    house.engine.command(
        "CREATE TABLE otel_exporter_test.otel_traces (Timestamp DateTime64(9)) ENGINE = MergeTree ORDER BY tuple()"
    )
    try:
        with pytest.raises(CannotMakeViews, match="there is a table of that name"):
            create_views(house.engine, "default", "otel_exporter_test")
        assert house.engine.rows("SELECT engine FROM system.tables WHERE database = 'otel_exporter_test'") == [
            ("MergeTree",)
        ]
    finally:
        house.engine.command("DROP DATABASE otel_exporter_test SYNC")


@pytest.mark.parametrize("name", ["", "1st", "a-b", "x; DROP TABLE y", "a`b", "spanhouse", "system", "a" * 65])
def test_a_database_has_a_plain_name_of_its_own(house: Store, name: str) -> None:
    with pytest.raises(CannotMakeViews, match="cannot make views in the database"):
        create_views(house.engine, "default", name)


def test_a_tenant_is_a_text_whatever_is_in_it(house: Store) -> None:
    database = "otel_odd_test"
    where = f" ON CLUSTER '{FOOTING.cluster}'" if FOOTING.cluster else ""
    try:
        create_views(house.engine, "it's\\ {tenant}", database)
        assert house.engine.rows(f"SELECT count() FROM {database}.otel_traces")[0][0] == 0
    finally:
        house.engine.command(f"DROP DATABASE IF EXISTS {database}{where} SYNC")
