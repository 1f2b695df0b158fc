"""The statement that reads a WAL segment: Frames in protobuf become rows of `spanhouse.ingest`, inside the engine.

Pure text, no engine here. The structure below is `proto/wal.proto` in ClickHouse's types; arrays of tuples are taken
apart by their subcolumns, because a lambda over a whole attribute would copy the value it does not need. Resource
and scope are computed once for each ResourceSpans and ScopeSpans and ride on the first of their spans.

What was measured is in docs/decisions/0002-schema.md; what each column means, in schema/0001_skeleton.sql.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONVENTIONS = Path(__file__).with_name("conventions.toml")
WAL_PROTO = Path(__file__).parent.parent / "proto" / "wal.proto"

START_MAX_UNIX_NANO = 4_294_967_295_000_000_000
"""The last second of DateTime, 2106-02-07T06:28:15Z: later starts are clamped and kept beside."""
INT64_MAX = 9_223_372_036_854_775_807
NEAR_DAYS = 45
"""Spans this many days around their arrival have a partition of their day; all others share one."""

# A Nullable member of a oneof is NULL when it is absent, so that 0, '' and false are told from nothing.
_MEMBERS = {
    "string_value": "String",
    "int_value": "Int64",
    "double_value": "Float64",
    "bool_value": "Bool",
    "array_value": "String",
    "kvlist_value": "String",
    "bytes_value": "String",
}
_VALUE = "Tuple(" + ", ".join(f"{name} Nullable({kind})" for name, kind in _MEMBERS.items()) + ")"
_ATTRIBUTES = f"Array(Tuple(key LowCardinality(String), value {_VALUE}))"
_EVENTS = f"Array(Tuple(time_unix_nano UInt64, name String, attributes {_ATTRIBUTES}, dropped_attributes_count UInt32))"
_LINKS = (
    f"Array(Tuple(trace_id String, span_id String, trace_state String, attributes {_ATTRIBUTES},"
    " dropped_attributes_count UInt32, flags UInt32))"
)
_SPAN = f"""Tuple(
    trace_id String, span_id String, trace_state String, parent_span_id String, name String, kind Int32,
    start_time_unix_nano UInt64, end_time_unix_nano UInt64,
    attributes {_ATTRIBUTES}, dropped_attributes_count UInt32,
    events {_EVENTS}, dropped_events_count UInt32,
    links {_LINKS}, dropped_links_count UInt32,
    status Tuple(message String, code Int32), flags UInt32)"""
_SCOPE = f"Tuple(name String, version String, attributes {_ATTRIBUTES}, dropped_attributes_count UInt32)"
_SCOPE_SPANS = f"Array(Tuple(scope {_SCOPE}, spans Array({_SPAN}), schema_url String))"
_RESOURCE = f"Tuple(attributes {_ATTRIBUTES}, dropped_attributes_count UInt32)"
_RESOURCE_SPANS = f"Array(Tuple(resource {_RESOURCE}, scope_spans {_SCOPE_SPANS}, schema_url String))"
FRAME = f"received_unix_nano UInt64, tenant String, request Tuple(resource_spans {_RESOURCE_SPANS})"

# mapFromArrays builds the map from its parts as they are; CAST of a tuple of arrays takes twice as long.
_MAP = "mapFromArrays({keys}, {values})"


@dataclass(frozen=True)
class ContentRule:
    """Which attributes are payload: by key, by the first two segments of the key, or by length in bytes."""

    keys: Sequence[str]
    heads: Sequence[str]
    skeleton: Sequence[str]
    longer_than_bytes: int

    def sql(self) -> str:
        """A condition on a key `k` and a string value `s` that may be NULL."""
        # The key is LowCardinality, so the engine evaluates these once a distinct key. Not so match(): a regular
        # expression over all prefixes took three times as long as two sets.
        by_head = f"substringIndex(k, '.', 2) IN ({_strings(self.heads)}) AND k NOT IN ({_strings(self.skeleton)})"
        long = f"length(assumeNotNull(s)) > {self.longer_than_bytes}"
        return f"k IN ({_strings(self.keys)}) OR ({by_head}) OR {long}"

    def holds(self, key: str, value: str) -> bool:
        """The same for one string attribute."""
        head = ".".join(key.split(".")[:2])
        named = key in self.keys or (head in self.heads and key not in self.skeleton)
        return named or len(value.encode()) > self.longer_than_bytes


def content_rule(path: Path = CONVENTIONS) -> ContentRule:
    """The rule of `[content]` in conventions.toml."""
    table = tomllib.loads(path.read_text())["content"]
    return ContentRule(table["keys"], table["heads"], table["skeleton"], table["longer_than_bytes"])


def _strings(values: Sequence[str]) -> str:
    return ", ".join("'" + v.replace("\\", "\\\\").replace("'", "\\'") + "'" for v in values)


def _tagged(attributes: str) -> str:
    """A map of all attributes, each value one letter for its type and its text or wire bytes."""
    names = "s, i, d, b, a, m, y"
    letters = (
        "concat('s', {0})",
        "concat('i', toString({0}))",
        "concat('d', toString({0}))",
        "if({0}, 'b1', 'b0')",
        "concat('a', {0})",
        "concat('m', {0})",
        "concat('y', {0})",
    )
    cases = ", ".join(
        f"isNotNull({n}), " + letter.format(f"assumeNotNull({n})")
        for n, letter in zip(names.split(", "), letters, strict=True)
    )
    members = ", ".join(f"{attributes}.value.{m}" for m in _MEMBERS)
    values = f"arrayMap(({names}) -> multiIf({cases}, 'e'), {members})"
    return _MAP.format(keys=f"{attributes}.key", values=values)


def _typed(mask: str, values: str, nullable: bool = True) -> str:
    """A map of the attributes that `mask` picks, with `values` of one type."""
    picked = f"arrayFilter((x, picked) -> picked, {values}, {mask})"
    if nullable:
        picked = f"arrayMap(x -> assumeNotNull(x), {picked})"
    return _MAP.format(keys=f"arrayFilter((k, picked) -> picked, Keys, {mask})", values=picked)


# One resource, one scope, one span at a time; the array of a level is taken by its subcolumns, so that nothing wider
# than needed is copied to the next.
_RESOURCES = """
    SELECT tenant, received, resource_spans.resource.attributes AS resource_attributes,
        resource_spans.resource.dropped_attributes_count AS resource_dropped, resource_spans.schema_url AS resource_url,
        resource_spans.scope_spans AS scope_spans
    FROM
    (
        SELECT tenant, intDiv(received_unix_nano, 1000000000) AS received, request.resource_spans AS resource_spans
        FROM file({path}, 'Protobuf', {frame})
    )"""

_SCOPES = """
    SELECT tenant, received, {resource_map} AS ResourceMap, substring(ResourceMap['service.name'], 2) AS service,
        dropped AS resource_dropped, url AS resource_url, scopes
    FROM ({resources}
    )
    ARRAY JOIN resource_attributes AS resource, resource_dropped AS dropped, resource_url AS url,
        scope_spans AS scopes"""

_ORIGINS = """
    SELECT tenant, received, service, spans, length(spans) AS n, {scope_map} AS ScopeMap,
        (resource_dropped, resource_url, scope_name, scope_version, scope_dropped, scope_url) AS origin_rest,
        sipHash64(ResourceMap, ScopeMap, origin_rest) AS origin_id,
        arrayResize([1], n) AS firsts,
        arrayResize([ResourceMap], n) AS resource_maps,
        arrayResize([origin_rest], n) AS rests,
        arrayResize([ScopeMap], n) AS scope_maps
    FROM ({scopes}
    )
    ARRAY JOIN scopes.scope.name AS scope_name, scopes.scope.version AS scope_version,
        scopes.scope.attributes AS scope, scopes.scope.dropped_attributes_count AS scope_dropped,
        scopes.schema_url AS scope_url, scopes.spans AS spans"""

_SPANS = """
    SELECT tenant, received, service, span, origin_id, first, resource_map, rest, scope_map
    FROM ({origins}
    )
    ARRAY JOIN spans AS span, firsts AS first, resource_maps AS resource_map, rests AS rest, scope_maps AS scope_map"""


def _with(rule: ContentRule) -> dict[str, str]:
    """Names for what several columns need, in order."""
    value, long = "span.attributes.value", rule.longer_than_bytes
    return {
        "Keys": "span.attributes.key",
        "IsContent": f"arrayMap((k, s) -> {rule.sql()}, Keys, {value}.string_value)",
        "IsInt": f"arrayMap(x -> isNotNull(x), {value}.int_value)",
        "IsFloat": f"arrayMap(x -> isNotNull(x), {value}.double_value)",
        "IsBool": f"arrayMap(x -> isNotNull(x), {value}.bool_value)",
        "IsLight": f"arrayMap((s, heavy) -> isNotNull(s) AND NOT heavy, {value}.string_value, IsContent)",
        "IsHeavy": f"arrayMap((s, heavy) -> isNotNull(s) AND heavy, {value}.string_value, IsContent)",
        "IsOther": (
            f"arrayMap((s, i, d, b) -> isNull(s) AND NOT (i OR d OR b), {value}.string_value, IsInt, IsFloat, IsBool)"
        ),
        "Others": (
            "arrayMap((a, m, y) -> multiIf(isNotNull(a), concat('a', assumeNotNull(a)), isNotNull(m),"
            " concat('m', assumeNotNull(m)), isNotNull(y), concat('y', assumeNotNull(y)), 'e'),"
            f" {value}.array_value, {value}.kvlist_value, {value}.bytes_value)"
        ),
        "IsOtherLight": (
            f"arrayMap((o, heavy, v) -> o AND NOT heavy AND length(v) <= {long}, IsOther, IsContent, Others)"
        ),
        "IsOtherHeavy": (f"arrayMap((o, heavy, v) -> o AND (heavy OR length(v) > {long}), IsOther, IsContent, Others)"),
        "Start": "span.start_time_unix_nano",
        "End": "span.end_time_unix_nano",
        # A start that is missing is the end, or else the arrival: near its neighbours, not in 1970.
        "Begin": f"least(multiIf(Start > 0, Start, End > 0, End, received * 1000000000), {START_MAX_UNIX_NANO})",
        "Finish": f"if(End = 0, Begin, least(End, {INT64_MAX}))",
        "Time": "fromUnixTimestamp64Nano(toInt64(Begin), 'UTC')",
        "Arrival": "toDateTime(received, 'UTC')",
    }


def _columns() -> dict[str, str]:
    """Column of `ingest` → expression, in the order of the table."""
    value = "span.attributes.value"
    rest = {name: f"rest.{i}" for i, name in enumerate(_REST, start=1)}
    return {
        "Tenant": "tenant",
        "Day": f"if(abs(toDate(Time) - toDate(Arrival)) <= {NEAR_DAYS}, toDate(Time), toDate(0))",
        "Timestamp": "Time",
        "TraceId": "toFixedString(span.trace_id, 16)",
        "SpanId": "toFixedString(span.span_id, 8)",
        "ParentSpanId": "toFixedString(span.parent_span_id, 8)",
        "ServiceName": "service",
        "SpanName": "span.name",
        "Kind": "span.kind",
        "Duration": "toInt64(Finish) - toInt64(Begin)",
        "StatusCode": "span.status.code",
        "StatusMessage": "span.status.message",
        "TraceState": "span.trace_state",
        "Flags": "span.flags",
        "StringAttributes": _typed("IsLight", f"{value}.string_value"),
        "IntAttributes": _typed("IsInt", f"{value}.int_value"),
        "FloatAttributes": _typed("IsFloat", f"{value}.double_value"),
        "BoolAttributes": _typed("IsBool", f"{value}.bool_value"),
        "OtherAttributes": _typed("IsOtherLight", "Others", nullable=False),
        "DroppedAttributesCount": "span.dropped_attributes_count",
        "EventTimes": "span.events.time_unix_nano",
        "EventNames": "CAST(span.events.name, 'Array(LowCardinality(String))')",
        "EventAttributes": f"arrayMap(x -> {_tagged('x')}, span.events.attributes)",
        "EventDroppedAttributesCounts": "span.events.dropped_attributes_count",
        "DroppedEventsCount": "span.dropped_events_count",
        "LinkTraceIds": "span.links.trace_id",
        "LinkSpanIds": "span.links.span_id",
        "LinkTraceStates": "span.links.trace_state",
        "LinkAttributes": f"arrayMap(x -> {_tagged('x')}, span.links.attributes)",
        "LinkDroppedAttributesCounts": "span.links.dropped_attributes_count",
        "LinkFlags": "span.links.flags",
        "DroppedLinksCount": "span.dropped_links_count",
        "TimeFlags": "toUInt8((Begin != Start) + 2 * (Finish != End) + 4 * (End > 0 AND End < Start) + 8 * (End = 0))",
        "StartSent": "if(Begin != Start, Start, 0)",
        "EndSent": "if(Finish != End, End, 0)",
        "OriginId": "origin_id",
        "Received": "Arrival",
        "Content": _typed("IsHeavy", f"{value}.string_value"),
        "OtherContent": _typed("IsOtherHeavy", "Others", nullable=False),
        "OriginFirst": "first",
        "ResourceAttributes": "resource_map",
        "ResourceDroppedAttributesCount": rest["resource_dropped"],
        "ResourceSchemaUrl": rest["resource_url"],
        "ScopeName": rest["scope_name"],
        "ScopeVersion": rest["scope_version"],
        "ScopeAttributes": "scope_map",
        "ScopeDroppedAttributesCount": rest["scope_dropped"],
        "ScopeSchemaUrl": rest["scope_url"],
    }


_REST = ("resource_dropped", "resource_url", "scope_name", "scope_version", "scope_dropped", "scope_url")


@cache
def _settings() -> str:
    """How the frames are to be read. One thread and one block, so that a segment loaded again makes the same parts."""
    proto = WAL_PROTO.read_text().replace("\\", "\\\\").replace("'", "\\'")
    return (
        "format_schema_source = 'string', format_schema_message_name = 'Frame', format_schema = '" + proto + "', "
        "max_threads = 1, max_insert_threads = 1, max_block_size = 1048576, "
        "input_format_max_block_size_bytes = 1073741824, "
        "min_insert_block_size_rows = 0, min_insert_block_size_bytes = 0, max_insert_block_size = 4294967296, "
        "max_partitions_per_insert_block = 0, async_insert = 0, "
        "input_format_protobuf_oneof_presence = 0, log_queries = 0"
    )


@cache
def _select_from(path_placeholder: str) -> str:
    rule = content_rule()
    frame = "'" + FRAME.replace("'", "\\'") + "'"
    resources = _RESOURCES.format(path=path_placeholder, frame=frame)
    scopes = _SCOPES.format(resource_map=_tagged("resource"), resources=resources)
    origins = _ORIGINS.format(scope_map=_tagged("scope"), scopes=scopes)
    spans = _SPANS.format(origins=origins)
    names = ",\n    ".join(f"{expression} AS {name}" for name, expression in _with(rule).items())
    columns = ",\n    ".join(f"{expression} AS {name}" for name, expression in _columns().items())
    return f"WITH\n    {names}\nSELECT\n    {columns}\nFROM ({spans}\n)"


def insert(path: Path, token: str) -> str:
    """INSERT of one segment: every span of it becomes a row of `spanhouse.ingest`, at most once for a token.

    `path` is absolute and, like `token`, made of the WAL's own file names: both are quoted all the same.
    """
    select = _select_from("{path}").replace("{path}", _strings([str(path)]))
    columns = ", ".join(_columns())
    settings = f"{_settings()}, insert_deduplication_token = {_strings([token])}"
    return f"INSERT INTO spanhouse.ingest ({columns})\n{select}\nSETTINGS {settings}"
