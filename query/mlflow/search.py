"""Search of traces as MLflow's API has it: a filter, an order and a page token to the ids of a page of traces.

Runs on the threads of the API. Conditions on a trace, its tags, metadata, links and assessments are one statement.
Conditions on spans are asked of the spans of the traces that meet the rest, a window of them at a time, so that no
request looks into more than WINDOWS_MAX windows: a page that is not full by then has a token, with which MLflow's
client goes on by itself. The SQL is put together here, and every value is a bound parameter.
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from query.mlflow.refusals import invalid
from query.mlflow.search_grammar import NULL, SET, Clause, Order, Value, parse_filter, parse_order
from query.mlflow.spans_json import SPAN_TYPES
from query.mlflow.trace_info import RUN
from query.traces import sql
from storage.engine import Engine
from storage.errors import StoreUnavailable

RESULTS_MAX = 500
"""Traces on a page; MLflow's own limit."""
EXPERIMENTS_MAX = 1_000
WINDOW_TRACES = 1_000
WINDOWS_MAX = 20
_OFFSET_MAX = 10**9

_COLUMNS = {
    "timestamp_ms": "RequestedMs", "execution_time_ms": "DurationMs",
    "end_time_ms": "RequestedMs + greatest(DurationMs, 0)", "request_id": "concat('tr-', lower(hex(TraceId)))",
    "status": "State", "client_request_id": "ClientRequestId", "experiment_id": "ExperimentId",
}  # fmt: skip

_LINKED = """TraceId GLOBAL IN
    (
        SELECT TraceId FROM spanhouse.links FINAL
        WHERE Entity = '{entity}' AND Deleted = 0 AND {conditions}
    )"""
_ASSESSED = """TraceId GLOBAL {maybe}IN
    (
        SELECT TraceId FROM spanhouse.assessments FINAL
        WHERE Deleted = 0 AND Kind {kinds} AND Name = {name}
            AND JSONExtractString(Metadata, 'mlflow.assessment.overridden') = ''{value}
    )"""

_TIMES = """SELECT toUnixTimestamp64Nano(min(Start)), toUnixTimestamp64Nano(max(End))
FROM spanhouse.traces
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
HAVING count() > 0"""
_SPANS = """SELECT DISTINCT TraceId
FROM spanhouse.spans
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {{traces:Array(String)}})))
    AND Timestamp >= fromUnixTimestamp64Nano({{start:Int64}}, 'UTC')
    AND Timestamp <= fromUnixTimestamp64Nano(least({{end:Int64}}, 4294967295000000000), 'UTC')
    AND {conditions}"""
_IN_CONTENT = """cityHash64(SpanId, Timestamp, Duration, SpanName) IN
    (
        SELECT SpanKey FROM spanhouse.content
        WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {{traces:Array(String)}})))
            AND Hour >= toStartOfHour(fromUnixTimestamp64Nano({{start:Int64}}, 'UTC'))
            AND Hour <= toStartOfHour(fromUnixTimestamp64Nano({{end:Int64}}, 'UTC'))
            AND ({conditions})
        SETTINGS max_block_size = 128
    )"""
_PAYLOAD = (
    "mapValues(WholeContent)",
    "arrayMap(pieces -> arrayStringConcat(pieces), mapValues(ContentPieces))",
    "mapValues(OtherContent)",
)
_SPAN_TYPE = (
    "if(replaceAll(StringAttributes['mlflow.spanType'], '\"', '') NOT IN ('', 'null', 'UNKNOWN'), "
    "replaceAll(StringAttributes['mlflow.spanType'], '\"', ''), "
    f"transform(Canonical['operation_kind'], {list(SPAN_TYPES)}, {list(SPAN_TYPES.values())}, 'UNKNOWN'))"
)
_SPAN_COLUMNS = {
    "name": "toString(SpanName)",
    "type": _SPAN_TYPE,
    "status": "transform(StatusCode, [1, 2], ['OK', 'ERROR'], 'UNSET')",
}


@dataclass(frozen=True, slots=True)
class Page:
    """Ids of traces in order, and the token with which the search goes on."""

    trace_ids: list[bytes]
    next_token: str | None


class Search:
    """The search of a store, a tenant at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(
        self,
        tenant: str,
        experiments: Sequence[str],
        *,
        filter_: str = "",
        order_by: Sequence[str] = (),
        results_max: int = 100,
        token: str = "",
    ) -> Page:
        """A page of the traces of these experiments. Raises MlflowRefused and what Engine.read raises."""
        if len(experiments) > EXPERIMENTS_MAX:
            raise invalid(f"cannot search {len(experiments)} experiments: {EXPERIMENTS_MAX} are the most")
        if not 0 < results_max <= RESULTS_MAX:
            raise invalid(f"cannot give max_results={results_max} traces: from 1 to {RESULTS_MAX}")
        clauses = parse_filter(filter_)
        statement = _Statement(experiments, clauses, [parse_order(one) for one in order_by])
        offset = _offset(token)
        if not statement.of_spans:
            found = self._candidates(tenant, statement, results_max + 1, offset)
            more = _token(offset + results_max) if len(found) > results_max else None
            return Page(found[:results_max], more)
        return self._by_spans(tenant, statement, results_max, offset)

    def _by_spans(self, tenant: str, statement: "_Statement", results_max: int, offset: int) -> Page:
        found: list[bytes] = []
        for _ in range(WINDOWS_MAX):
            window = self._candidates(tenant, statement, WINDOW_TRACES, offset)
            matching = self._with_span(tenant, statement, window)
            for place, trace_id in enumerate(window):
                if trace_id in matching:
                    if len(found) == results_max:
                        return Page(found, _token(offset + place))
                    found.append(trace_id)
            offset += len(window)
            if len(window) < WINDOW_TRACES:
                return Page(found, None)
        return Page(found, _token(offset))

    def _candidates(self, tenant: str, statement: "_Statement", limit: int, offset: int) -> list[bytes]:
        asked = {**statement.parameters, "limit": limit, "offset": offset}
        columns = self._read(tenant, statement.candidates, asked)
        return list(columns[0]) if columns else []

    def _with_span(self, tenant: str, statement: "_Statement", trace_ids: list[bytes]) -> set[bytes]:
        """Those of them that have a span for which all conditions on spans hold."""
        asked: dict[str, Any] = {"traces": [trace_id.hex() for trace_id in trace_ids]}
        times = self._engine.read(tenant, _TIMES, asked) if trace_ids else []
        if not times or not times[0]:
            return set()
        asked |= {**statement.span_parameters, "start": times[0][0], "end": times[1][0]}
        columns = self._read(tenant, statement.spans, asked)
        return set(columns[0]) if columns else set()

    def _read(self, tenant: str, statement: str, asked: dict[str, Any]) -> list[Sequence[Any]]:
        try:
            return self._engine.read(tenant, statement, asked)
        except StoreUnavailable as error:
            if "CANNOT_COMPILE_REGEXP" in str(error) or "Code: 427" in str(error):
                raise invalid(f"cannot search by this RLIKE: {error}") from error
            raise


# The statements


@dataclass(slots=True)
class _Bound:
    """Values of a statement by the names of their parameters."""

    prefix: str
    values: dict[str, Any] = field(default_factory=dict)

    def bind(self, value: Any, kind: str | None = None) -> str:
        name = f"{self.prefix}{len(self.values)}"
        self.values[name] = list(value) if isinstance(value, tuple) else value
        return f"{{{name}:{kind or _kind(value)}}}"


def _kind(value: Any) -> str:
    match value:
        case tuple():
            return "Array(String)"
        case float():
            return "Float64"
        case int():
            return "Int64"
    return "String"


class _Statement:
    """The statements of a search: for the candidates and, where there are conditions on spans, for their spans."""

    def __init__(self, experiments: Sequence[str], clauses: Sequence[Clause], orders: Sequence[Order]) -> None:
        bound = _Bound("value")
        conditions = [_condition(clause, bound) for clause in clauses if clause.kind not in ("span", "span_attribute")]
        order = _order(orders, bound)
        self.candidates = sql("mlflow_candidates").replace("{conditions}", "\n    AND ".join(conditions) or "1")
        self.candidates = self.candidates.replace("{order}", order)
        self.parameters = {**bound.values, "experiments": list(experiments)}
        spans = _Bound("span")
        of_spans = [_span_condition(clause, spans) for clause in clauses if clause.kind in ("span", "span_attribute")]
        self.of_spans = bool(of_spans)
        self.spans = _SPANS.format(conditions="\n    AND ".join(of_spans))
        self.span_parameters = spans.values


def _order(orders: Sequence[Order], bound: _Bound) -> str:
    """Named keys first, then the newest; what has no value comes last."""
    keys = []
    for order in orders:
        direction = "ASC" if order.ascending else "DESC"
        if order.kind == "attribute":
            if order.key == "execution_time_ms":
                keys.append("DurationMs < 0")
            keys.append(f"{_COLUMNS[order.key]} {direction}")
        else:
            column, key = "Tags" if order.kind == "tag" else "Metadata", bound.bind(order.key)
            keys += [f"NOT mapContains({column}, {key})", f"{column}[{key}] {direction}"]
    return ", ".join([*keys, "RequestedMs DESC", "TraceId ASC"])


def _condition(clause: Clause, bound: _Bound) -> str:
    match clause.kind:
        case "attribute":
            condition = _compared(_COLUMNS[clause.key], clause.operator, clause.value, bound)
            return f"(DurationMs >= 0 AND {condition})" if clause.key == "execution_time_ms" else condition
        case "tag" | "metadata":
            return _in_map("Tags" if clause.kind == "tag" else "Metadata", clause.key, clause, bound)
        case "run":
            return _of_run(clause, bound)
        case "prompt":
            assert isinstance(clause.value, str)
            name, _, version = clause.value.rpartition("/")
            conditions = f"Id = {bound.bind(name)} AND Version = {bound.bind(version)}"
            linked = _LINKED.format(entity="prompt", conditions=conditions)
            return f"(has(Prompts, {bound.bind(clause.value)}) OR {linked})"
        case "issue":
            return _ASSESSED.format(maybe="", kinds="= 'issue'", name=bound.bind(clause.value), value="")
    return _of_assessment(clause, bound)


def _in_map(column: str, key: str, clause: Clause, bound: _Bound) -> str:
    name = bound.bind(key)
    if clause.operator in NULL:
        return f"{'NOT ' if clause.operator == 'IS NULL' else ''}mapContains({column}, {name})"
    condition = _compared(f"{column}[{name}]", clause.operator, clause.value, bound)
    return f"(mapContains({column}, {name}) AND {condition})"


def _of_run(clause: Clause, bound: _Bound) -> str:
    """By the run that made the trace, one that it was linked to, or one that Spanhouse links it to."""
    if clause.operator in NULL:
        linked = _LINKED.format(entity="run", conditions="1")
        some = f"(mapContains(Metadata, '{RUN}') OR notEmpty(Runs) OR {linked})"
        return f"NOT {some}" if clause.operator == "IS NULL" else some
    negative = clause.operator in ("!=", "NOT IN")
    operator = {"!=": "=", "NOT IN": "IN"}.get(clause.operator, clause.operator)
    made = _compared(f"Metadata['{RUN}']", operator, clause.value, bound)
    later = _compared("run", operator, clause.value, bound)
    linked = _LINKED.format(entity="run", conditions=_compared("Id", operator, clause.value, bound))
    some = f"((mapContains(Metadata, '{RUN}') AND {made}) OR arrayExists(run -> {later}, Runs) OR {linked})"
    return f"NOT {some}" if negative else some


def _of_assessment(clause: Clause, bound: _Bound) -> str:
    # Scores of other SDKs are feedback to MLflow.
    kinds = "= 'expectation'" if clause.kind == "expectation" else "IN ('feedback', 'score')"
    value = ""
    if clause.operator not in NULL:
        value = f"\n            AND {_of_value(clause, bound)}"
    maybe = "NOT " if clause.operator == "IS NULL" else ""
    return _ASSESSED.format(maybe=maybe, kinds=kinds, name=bound.bind(clause.key), value=value)


def _of_value(clause: Clause, bound: _Bound) -> str:
    operator, value = clause.operator, clause.value
    if isinstance(value, (int, float)):
        # Of numbers only: true is no 1 here.
        number = _compared("Number", operator, float(value), bound)
        return f"(Value NOT IN ('true', 'false') AND isFinite(Number) AND {number})"
    if operator in ("=", "!="):
        equal = (
            f"(Text = {bound.bind(value)} OR Value = {bound.bind(value)} OR Value = toJSONString({bound.bind(value)}))"
        )
        return equal if operator == "=" else f"NOT {equal}"
    return _compared("Value", operator, value, bound)


def _span_condition(clause: Clause, bound: _Bound) -> str:
    if clause.kind == "span_attribute":
        return _of_attribute(clause, bound)
    if clause.key != "content":
        return _compared(_SPAN_COLUMNS[clause.key], clause.operator, clause.value, bound)
    # MLflow looks for this in the JSON of a span, so a pattern is in effect open at both ends.
    assert isinstance(clause.value, str)
    open_ended = f"%{clause.value.strip('%')}%"

    def matches(text: str) -> str:
        return _compared(text, clause.operator, open_ended, bound)

    maps = ("StringAttributes", "OtherAttributes")
    anywhere = [matches("toString(SpanName)"), matches("StatusMessage")]
    anywhere += [f"arrayExists(text -> {matches('text')}, mapValues({column}))" for column in maps]
    anywhere.append(f"arrayExists(texts -> arrayExists(text -> {matches('text')}, mapValues(texts)), EventAttributes)")
    payload = [f"arrayExists(text -> {matches('text')}, {texts})" for texts in _PAYLOAD]
    return "(" + " OR ".join([*anywhere, _IN_CONTENT.format(conditions=" OR ".join(payload))]) + ")"


def _of_attribute(clause: Clause, bound: _Bound) -> str:
    """An attribute's value as text, wherever the store has it; a text also as the JSON that MLflow's exporter sends."""
    key = bound.bind(clause.key)

    def matches(column: str, shown: Callable[[str], str] = lambda value: value) -> str:
        value = f"{column}[{key}]"
        condition = _compared(shown(value), clause.operator, clause.value, bound)
        return f"(mapContains({column}, {key}) AND {condition})"

    def unquoted(value: str) -> str:
        return f"if(startsWith({value}, '\"') AND isValidJSON({value}), JSONExtractString({value}), {value})"

    def texted(value: str) -> str:
        return f"toString({value})"

    stored = [matches("StringAttributes", unquoted), matches("OtherAttributes")]
    stored += [matches(column, texted) for column in ("IntAttributes", "FloatAttributes", "BoolAttributes")]
    long = f"arrayStringConcat(ContentPieces[{key}])"
    in_pieces = _compared(unquoted(long), clause.operator, clause.value, bound)
    payload = " OR ".join(
        (
            matches("WholeContent", unquoted),
            f"(mapContains(ContentPieces, {key}) AND {in_pieces})",
            matches("OtherContent"),
        )
    )
    return "(" + " OR ".join([*stored, _IN_CONTENT.format(conditions=payload)]) + ")"


def _compared(column: str, operator: str, value: Value, bound: _Bound) -> str:
    match operator:
        case "LIKE" | "ILIKE":
            # SQL of ClickHouse escapes by backslash, that of MLflow's stores does not.
            assert isinstance(value, str)
            escaped = value.replace("\\", "\\\\")
            return f"{column} {operator} {bound.bind(escaped)}"
        case "RLIKE":
            return f"match({column}, {bound.bind(value)})"
        case _ if operator in SET:
            return f"{column} {operator} {bound.bind(value)}"
    return f"{column} {operator} {bound.bind(value)}"


# Page tokens


def _token(offset: int) -> str:
    return base64.b64encode(orjson.dumps({"offset": offset})).decode()


def _offset(token: str) -> int:
    """The place in the order at which the page begins. Raises MlflowRefused."""
    if not token:
        return 0
    try:
        offset = orjson.loads(base64.b64decode(token, validate=True))["offset"]
    except (ValueError, TypeError, KeyError):
        offset = None
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset <= _OFFSET_MAX:
        raise invalid(f"cannot read page_token={re.sub(r'[^ -~]', '?', token)[:200]!r}: take next_page_token as it is")
    return offset
