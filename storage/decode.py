"""The statement that reads a WAL segment: Frames in protobuf become rows of `spanhouse.ingest`, inside the engine.

Pure text, no engine here. The structure below is `proto/wal.proto` in ClickHouse's types; arrays of tuples are taken
apart by their subcolumns, because a lambda over a whole attribute would copy the value it does not need. Resource
and scope are computed once for each ResourceSpans and ScopeSpans and ride on the first of their spans.

What was measured is in docs/decisions/0002-schema.md; what each column means, in schema/0001_skeleton.sql.
"""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from storage.canonical import CanonicalSql
from storage.decided import weights
from storage.literals import literal
from storage.redaction_sql import RedactionSql
from storage.shortening import Shortening
from storage.vocabulary import CONVENTIONS

WAL_PROTO = Path(__file__).parent.parent / "proto" / "wal.proto"

START_MAX_UNIX_NANO = 4_294_967_295_000_000_000
"""The last second of DateTime, 2106-02-07T06:28:15Z: later starts are clamped and kept beside."""
INT64_MAX = 9_223_372_036_854_775_807
NEAR_DAYS = 45
"""Spans this many days around their arrival have a partition of their day; all others share one."""

# A Nullable member of a oneof is NULL when it is absent, so that 0, '' and false are told from nothing.
MEMBERS = {
    "string_value": "String",
    "int_value": "Int64",
    "double_value": "Float64",
    "bool_value": "Bool",
    "array_value": "String",
    "kvlist_value": "String",
    "bytes_value": "String",
}
VALUE = "Tuple(" + ", ".join(f"{name} Nullable({kind})" for name, kind in MEMBERS.items()) + ")"
ATTRIBUTES = f"Array(Tuple(key LowCardinality(String), value {VALUE}))"
_EVENTS = f"Array(Tuple(time_unix_nano UInt64, name String, attributes {ATTRIBUTES}, dropped_attributes_count UInt32))"
_SPAN = f"""Tuple(
    trace_id String, span_id String, trace_state String, parent_span_id String, name String, kind Int32,
    start_time_unix_nano UInt64, end_time_unix_nano UInt64,
    attributes {ATTRIBUTES}, dropped_attributes_count UInt32,
    events {_EVENTS}, dropped_events_count UInt32,
    links Array(String), dropped_links_count UInt32,
    status Tuple(message String, code Int32), flags UInt32)"""
_SCOPE = f"Tuple(name String, version String, attributes {ATTRIBUTES}, dropped_attributes_count UInt32)"
_SCOPE_SPANS = f"Array(Tuple(scope {_SCOPE}, spans Array({_SPAN}), schema_url String))"
_RESOURCE = f"Tuple(attributes {ATTRIBUTES}, dropped_attributes_count UInt32)"
_RESOURCE_SPANS = f"Array(Tuple(resource {_RESOURCE}, scope_spans {_SCOPE_SPANS}, schema_url String))"
FRAME = (
    f"received_unix_nano UInt64, tenant String, request Tuple(resource_spans {_RESOURCE_SPANS}), "
    "context Array(Tuple(key String, value String))"
)

# What is read of each level, under the name it has from there on. Plain arrays instead of tuples: the engine's analysis
# of a statement, a tenth of a second for this one and paid by every load, grows with the width of its types.
_OF_RESOURCE = {
    "resource": "resource.attributes",
    "resource_dropped": "resource.dropped_attributes_count",
    "resource_url": "schema_url",
}
_OF_SCOPE = {
    "scope": "scope.attributes",
    "scope_name": "scope.name",
    "scope_version": "scope.version",
    "scope_dropped": "scope.dropped_attributes_count",
    "scope_url": "schema_url",
}
_OF_SPAN = {
    "trace_id": "trace_id",
    "span_id": "span_id",
    "trace_state": "trace_state",
    "parent_span_id": "parent_span_id",
    "name": "name",
    "kind": "kind",
    "start": "start_time_unix_nano",
    "end": "end_time_unix_nano",
    "keys": "attributes.key",
    "strings": "attributes.value.string_value",
    "ints": "attributes.value.int_value",
    "doubles": "attributes.value.double_value",
    "bools": "attributes.value.bool_value",
    "arrays": "attributes.value.array_value",
    "kvlists": "attributes.value.kvlist_value",
    "bytes": "attributes.value.bytes_value",
    "dropped_attributes": "dropped_attributes_count",
    "event_times": "events.time_unix_nano",
    "event_names": "events.name",
    "event_attributes": "events.attributes",
    "event_dropped": "events.dropped_attributes_count",
    "dropped_events": "dropped_events_count",
    "links": "links",
    "dropped_links": "dropped_links_count",
    "status_message": "status.message",
    "status_code": "status.code",
    "flags": "flags",
}
_OF_FRAME = "tenant, received, context_keys, context_values"
_ON_FIRST = ("first1", "resource_map1", "scope_map1", "rest1")
_DECIDED = "file({decided}, 'RowBinary', 'tenant String, trace_id FixedString(16), weight Float32, spans UInt32')"
"""What storage/decided.py wrote: tenants with traces, and their weights."""
_ORIGIN_REST = ("resource_dropped", "resource_url", "scope_name", "scope_version", "scope_dropped", "scope_url")


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
        by_head = f"substringIndex(k, '.', 2) IN ({_literals(self.heads)}) AND k NOT IN ({_literals(self.skeleton)})"
        long = f"length(assumeNotNull(s)) > {self.longer_than_bytes}"
        return f"k IN ({_literals(self.keys)}) OR ({by_head}) OR {long}"

    def holds(self, key: str, value: str) -> bool:
        """The same for one string attribute."""
        head = ".".join(key.split(".")[:2])
        named = key in self.keys or (head in self.heads and key not in self.skeleton)
        return named or len(value.encode()) > self.longer_than_bytes


@cache
def content_rule() -> ContentRule:
    """The rule of `[content]` in conventions.toml."""
    table = tomllib.loads(CONVENTIONS.read_text())["content"]
    return ContentRule(table["keys"], table["heads"], table["skeleton"], table["longer_than_bytes"])


def _literals(texts: Sequence[str]) -> str:
    return ", ".join(map(literal, texts))


def tagged(attributes: str) -> str:
    """A map of all attributes, each value one letter for its type and its text or wire bytes."""
    members = ", ".join(f"{attributes}.value.{member}" for member in MEMBERS)
    letters = ", ".join(f"concat('{letter}', {letter})" for letter in "sidbamy")  # NULL where the member is
    values = f"arrayMap((s, i, d, b, a, m, y) -> coalesce({letters}, 'e'), {members})"
    return f"mapFromArrays({attributes}.key, {values})"


def _typed(values: str, which: str, *masks: str) -> str:
    """A map of the attributes for which `which` holds: a condition on the value x and on the masks p, q."""
    arguments = ", ".join(["x", *("p", "q")[: len(masks)]])
    also = "".join(f", {mask}" for mask in masks)
    picked = f"arrayFilter(({arguments}) -> {which}, {values}{also})"
    if values != "others":
        picked = f"arrayMap(x -> assumeNotNull(x), {picked})"
    # mapFromArrays builds the map from its parts as they are; CAST of a tuple of arrays takes twice as long.
    return f"mapFromArrays(arrayFilter((k, {arguments}) -> {which}, keys, {values}{also}), {picked})"


def aliases(columns: dict[str, str]) -> str:
    """A list of SELECT: alias → expression."""
    return ",\n    ".join(f"{expression} AS {name}" for name, expression in columns.items())


def unfold(names: Iterable[str], level: int) -> str:
    """ARRAY JOIN of columns that are still `level` arrays deep: `name2` becomes `name1`, and `name1` becomes `name`."""
    return ", ".join(f"{name}{level} AS {name}{level - 1 or ''}" for name in names)


def _frames(path: str) -> str:
    """One row a frame: everything of a resource one array deep, of a scope two, of a span three."""
    spans = "request.resource_spans"
    columns = {
        "tenant": "tenant",
        "received": "intDiv(received_unix_nano, 1000000000)",
        "context_keys": "context.key",
        "context_values": "context.value",
    }
    columns |= {f"{name}1": f"{spans}.{field}" for name, field in _OF_RESOURCE.items()}
    columns |= {f"{name}2": f"{spans}.scope_spans.{field}" for name, field in _OF_SCOPE.items()}
    columns |= {f"{name}3": f"{spans}.scope_spans.spans.{field}" for name, field in _OF_SPAN.items()}
    return f"SELECT\n    {aliases(columns)}\nFROM file({path}, 'Protobuf', {literal(FRAME)})"


def _resources(path: str, redaction: RedactionSql | None) -> str:
    """One row a ResourceSpans."""
    resource_map = tagged("resource")
    if redaction is not None:
        resource_map = redaction.map(resource_map, "substring({}['service.name'], 2)")
    rest = ", ".join(
        [*(n for n in _OF_RESOURCE if n != "resource"), *(f"{n}1" for n in _OF_SCOPE), *(f"{n}2" for n in _OF_SPAN)]
    )
    return (
        f"SELECT {_OF_FRAME}, {resource_map} AS resource_map, {rest}\nFROM\n(\n{_frames(path)}\n)\n"
        f"ARRAY JOIN {unfold(_OF_RESOURCE, 1)},\n    {unfold(_OF_SCOPE, 2)},\n    {unfold(_OF_SPAN, 3)}"
    )


def _scopes(path: str, resource_bits: str, redaction: RedactionSql | None, *, sampled: bool) -> str:
    """One row a ScopeSpans. The arrays of `first` and the following hold something for its first span alone.

    If the segment is sampled, that is the first one that is kept.
    """
    columns = {
        "service": "substring(resource_map['service.name'], 2)",
        "scope_map": redaction.map(tagged("scope")) if redaction else tagged("scope"),
        "rest": f"({', '.join(_ORIGIN_REST)})",
        "origin_id": "sipHash64(resource_map, scope_map, rest)",
        "resource_bits": resource_bits,
        "first1": "arrayResize([1], length(trace_id1))",
        "resource_map1": "arrayResize([resource_map], length(trace_id1))",
        "scope_map1": "arrayResize([scope_map], length(trace_id1))",
        "rest1": "arrayResize([rest], length(trace_id1))",
    }
    if sampled:
        columns["weight1"] = "arrayMap(id -> {weight}, trace_id1)"
        columns["before"] = "greatest(toInt32(arrayFirstIndex(w -> w > 0, weight1)) - 1, 0)"
        columns |= {name: f"arrayRotateRight({columns[name]}, before)" for name in _ON_FIRST}
    spans = ", ".join(f"{name}1" for name in _OF_SPAN)
    resources = _resources(path, redaction)
    return (
        f"SELECT\n    {_OF_FRAME}, scope_name, {aliases(columns)},\n    {spans}\nFROM\n(\n{resources}\n)\n"
        f"ARRAY JOIN {unfold(_OF_SCOPE, 1)},\n    {unfold(_OF_SPAN, 2)}"
    )


def _spans(path: str, key_codes: str, resource_bits: str, redaction: RedactionSql | None, *, sampled: bool) -> str:
    """One row a span, with what several columns of `ingest` need: which attributes are what, and the times."""
    begin = f"least(multiIf(start > 0, start, end > 0, end, received * 1000000000), {START_MAX_UNIX_NANO})"
    columns = {
        "is_content": f"arrayMap((k, s) -> {content_rule().sql()}, keys, strings)",
        "is_other": (
            "arrayMap((s, i, d, b) -> isNull(s) AND isNull(i) AND isNull(d) AND isNull(b),"
            " strings, ints, doubles, bools)"
        ),
        "others": (
            "arrayMap((a, m, y) -> coalesce(concat('a', a), concat('m', m), concat('y', y), 'e'),"
            " arrays, kvlists, bytes)"
        ),
        # A start that is missing is the end, or else the arrival: near its neighbours, not in 1970.
        "begin": f"toInt64({begin})",
        "finish": f"if(end = 0, begin, toInt64(least(end, {INT64_MAX})))",
        "time": "fromUnixTimestamp64Nano(begin, 'UTC')",
        "arrival": "toDateTime(received, 'UTC')",
        "key_codes": key_codes,
        "event_maps": f"arrayMap(x -> {redaction.map(tagged('x')) if redaction else tagged('x')}, event_attributes)",
    }
    once = ("first", "resource_map", "scope_map", "rest", *(("weight",) if sampled else ()))
    names = [*_OF_FRAME.split(", "), "service", "scope_name", "origin_id", "resource_bits", *once, *_OF_SPAN]
    scopes = _scopes(path, resource_bits, redaction, sampled=sampled)
    kept = "\nWHERE weight > 0" if sampled else ""
    source = f"(\n{scopes}\n)\nARRAY JOIN {unfold((*once, *_OF_SPAN), 1)}{kept}"
    if redaction is not None:
        source = _redacted(source, names, redaction)
    of_scope, of_span = ", ".join(names[:8]), ", ".join(names[8:])
    return f"SELECT\n    {of_scope}, {of_span},\n    {aliases(columns)}\nFROM\n{source}"


def _redacted(source: str, names: Sequence[str], redaction: RedactionSql) -> str:
    """Spans as they are to be stored: values with letters, by the rules, and then taken apart again."""
    members = ("strings", "ints", "doubles", "bools", "arrays", "kvlists", "bytes")
    letters = dict(zip(members, "sidbamy", strict=True))
    parts = ", ".join(f"concat('{letter}', {letter})" for letter in letters.values())
    values = f"arrayMap(({', '.join(letters.values())}) -> coalesce({parts}, 'e'), {', '.join(members)})"
    rules = {
        "new_values": redaction.values(values, "keys"),
        "new_texts": redaction.texts("arrayConcat([name, status_message, trace_state], event_names)"),
        "new_links": redaction.values("arrayMap(x -> concat('l', x), links)", "arrayMap(x -> '', links)"),
        "new_context": redaction.values("arrayMap(x -> concat('s', x), context_values)", "context_keys"),
    }
    columns = {name: name for name in names}
    columns |= {
        member: f"arrayMap(v -> if(startsWith(v, '{letters[member]}'), substring(v, 2), NULL), new_values)"
        for member in ("strings", "arrays", "kvlists", "bytes")
    }
    columns |= {
        member: f"arrayMap((v, x) -> if(startsWith(v, '{letters[member]}'), x, NULL), new_values, {member})"
        for member in ("ints", "doubles", "bools")
    }
    columns |= {name: f"new_texts[{i + 1}]" for i, name in enumerate(("name", "status_message", "trace_state"))}
    columns |= {
        "event_names": "arraySlice(new_texts, 4)",
        "links": "arrayMap(x -> substring(x, 2), new_links)",
        "context_values": "arrayMap(x -> substring(x, 2), new_context)",
    }
    return (
        f"(\nSELECT\n    {aliases(columns)}\nFROM\n(\nSELECT\n    {', '.join(names)},\n    {aliases(rules)}\n"
        f"FROM\n{source}\n)\n)"
    )


_LONG = f"length(x) > {content_rule().longer_than_bytes}"

_COLUMNS = {
    "Tenant": "tenant",
    "Day": f"if(abs(toDate(time) - toDate(arrival)) <= {NEAR_DAYS}, toDate(time), toDate(0))",
    "Timestamp": "time",
    "TraceId": "toFixedString(trace_id, 16)",
    "SpanId": "toFixedString(span_id, 8)",
    "ParentSpanId": "toFixedString(parent_span_id, 8)",
    "ServiceName": "service",
    "SpanName": "name",
    "Kind": "kind",
    "Duration": "finish - begin",
    "StatusCode": "status_code",
    "StatusMessage": "status_message",
    "TraceState": "trace_state",
    "Flags": "flags",
    "StringAttributes": _typed("strings", "isNotNull(x) AND NOT p", "is_content"),
    "IntAttributes": _typed("ints", "isNotNull(x)"),
    "FloatAttributes": _typed("doubles", "isNotNull(x)"),
    "BoolAttributes": _typed("bools", "isNotNull(x)"),
    "OtherAttributes": _typed("others", f"p AND NOT (q OR {_LONG})", "is_other", "is_content"),
    "DroppedAttributesCount": "dropped_attributes",
    "EventTimes": "event_times",
    "EventNames": "event_names",
    "EventAttributes": "event_maps",
    "EventDroppedAttributesCounts": "event_dropped",
    "DroppedEventsCount": "dropped_events",
    "Links": "links",
    "DroppedLinksCount": "dropped_links",
    "TimeFlags": "toUInt8((begin != start) + 2 * (finish != end) + 4 * (end > 0 AND end < start) + 8 * (end = 0))",
    "StartSent": "if(begin != start, start, 0)",
    "EndSent": "if(finish != end, end, 0)",
    "OriginId": "origin_id",
    "Received": "arrival",
    "Content": _typed("strings", "isNotNull(x) AND p", "is_content"),
    "OtherContent": _typed("others", f"p AND (q OR {_LONG})", "is_other", "is_content"),
    "OriginFirst": "first",
    "ResourceAttributes": "resource_map",
    "ScopeAttributes": "scope_map",
    **{
        column: f"rest.{_ORIGIN_REST.index(name) + 1}"
        for column, name in {
            "ResourceDroppedAttributesCount": "resource_dropped",
            "ResourceSchemaUrl": "resource_url",
            "ScopeName": "scope_name",
            "ScopeVersion": "scope_version",
            "ScopeDroppedAttributesCount": "scope_dropped",
            "ScopeSchemaUrl": "scope_url",
        }.items()
    },
}
"""Column of `ingest` → expression; all but the last one."""


def _shortened(shortening: Shortening) -> dict[str, str]:
    """Those that hold texts of any length."""
    return {
        "EventAttributes": f"arrayMap(y -> {shortening.values('y')}, event_maps)",
        "Content": shortening.texts(_COLUMNS["Content"]),
        "OtherContent": shortening.values(_COLUMNS["OtherContent"]),
    }


_CANONICAL = "mapUpdate(canonical, mapFromArrays(arrayMap(k -> concat('header.', k), context_keys), context_values))"
_FOR_STEPS = (
    "name", "scope_name", "begin", "event_names", "event_times", "event_maps", "context_keys", "context_values",
    "resource_bits",
)  # fmt: skip
"""What the steps to the canonical map, its column and that of the class read besides `hits`."""


def engine_proto() -> str:
    """The schema as the engine reads it: wal.proto, except that a link stays in its wire bytes.

    As a message it would be six columns, through all levels of the statement.
    """
    return WAL_PROTO.read_text().replace("repeated Link links", "repeated bytes links")


@cache
def settings() -> str:
    """How the frames are to be read. One thread and one block, so that a segment loaded again makes the same parts."""
    return (
        "format_schema_source = 'string', format_schema_message_name = 'Frame', "
        f"format_schema = {literal(engine_proto())}, "
        "query_plan_enable_optimizations = 0, max_threads = 1, max_insert_threads = 1, max_block_size = 1048576, "
        "input_format_max_block_size_bytes = 1073741824, "
        "min_insert_block_size_rows = 0, min_insert_block_size_bytes = 0, max_insert_block_size = 4294967296, "
        "max_partitions_per_insert_block = 0, async_insert = 0, "
        "input_format_protobuf_oneof_presence = 0, log_queries = 0"
    )


class Rows(NamedTuple):
    """What a segment has for a table: its columns, the SELECT that reads them, and the settings with which it does."""

    table: str
    columns: tuple[str, ...]
    query: str
    settings: str

    @property
    def select(self) -> str:
        """The whole statement."""
        return f"{self.query}\nSETTINGS {self.settings}"

    def insert(self, token: str) -> str:
        """INSERT of them, at most once for a token."""
        into = f"INSERT INTO spanhouse.{self.table} ({', '.join(self.columns)})"
        return f"{into}\n{self.select}, insert_deduplication_token = {literal(token)}"


def _weight(decided: Path) -> str:
    """The weight of the trace `id`. There are few weights, and many traces: these are sets and no part of the text."""
    file = _DECIDED.replace("{decided}", literal(str(decided)))
    cases = [
        f"concat(tenant, id) IN (SELECT concat(tenant, trace_id) FROM {file} WHERE weight = toFloat32({weight!r})), "
        f"toFloat32({weight!r})"
        for weight in weights(decided)
    ]
    return f"multiIf({', '.join(cases)}, toFloat32(1))" if cases else "toFloat32(1)"


class Decoder:
    """The statement, for one vocabulary and the classes of some retention policies.

    `class_` is an expression from columns of `ingest` and from `resource_bits`, and that one from `resource_map`.
    """

    def __init__(
        self,
        canonical: CanonicalSql,
        class_: str = "toUInt16(1)",
        resource_bits: str = "toUInt64(0)",
        *,
        redaction: RedactionSql | None = None,
        shortening: Shortening | None = None,
    ) -> None:
        self._canonical, self._class, self._resource_bits = canonical, class_, resource_bits
        self._redaction, self._shortening = redaction, shortening
        self._select = self._statement(sampled=False)

    @cached_property
    def _sampled(self) -> str:
        return self._statement(sampled=True)

    def _statement(self, *, sampled: bool) -> str:
        # The columns come before the steps: each level costs the more analysis the more columns of wide types it has.
        first, *steps = self._canonical.steps()
        spans = _spans("{path}", self._canonical.key_codes(), self._resource_bits, self._redaction, sampled=sampled)
        columns = _COLUMNS | (_shortened(self._shortening) if self._shortening else {})
        for_steps = (*_FOR_STEPS, *(("weight",) if sampled else ()))
        source = f"SELECT\n    {', '.join(for_steps)},\n    {aliases(first | columns)}\nFROM\n(\n{spans}\n)"
        for step in steps:
            source = f"SELECT\n    *,\n    {aliases(step)}\nFROM\n(\n{source}\n)"
        names = ", ".join(_COLUMNS)
        if self._shortening is not None:
            counted = ("toString(Content)", "arrayStringConcat(mapValues(OtherContent))", "toString(EventAttributes)")
            marked = self._shortening.marked("IntAttributes", counted)
            names = names.replace("IntAttributes", f"{marked} AS IntAttributes")
        weight = ", weight AS Weight" if sampled else ""
        return f"SELECT\n    {names}, {_CANONICAL} AS Canonical, {self._class} AS Class{weight}\nFROM\n(\n{source}\n)"

    def rows(self, path: Path, decided: Path | None = None) -> Rows:
        """Of one segment: every span of it is a row of `spanhouse.ingest`; those that `decided` leaves out are none.

        `path` is absolute and made of the WAL's own file names: it is quoted all the same.
        """
        columns = (*_COLUMNS, "Canonical", "Class")
        if decided is None:
            return Rows("ingest", columns, self._select.replace("{path}", literal(str(path))), settings())
        select = self._sampled.replace("{weight}", _weight(decided)).replace("{path}", literal(str(path)))
        return Rows("ingest", (*columns, "Weight"), select, settings())
