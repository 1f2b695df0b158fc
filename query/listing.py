"""The SQL of the trace list, built from a filter: the only place where a query is put together from pieces.

Every value is a bound parameter. The list is read in windows of start time, newest first, so that a page of it never
groups more traces than it must; within a window a trace is taken by its earliest start.
"""

import re
from collections.abc import Container, Iterator
from typing import Any

from query import assessed
from query.model import TraceFilter
from storage.decode import INT64_MAX, content_rule

SECOND = 1_000_000_000
WINDOWS_S = (600, 7_200, 86_400, 864_000)
"""Lengths of the windows, in seconds; the last window is all the rest."""

BOUNDS = """SELECT toUnixTimestamp64Nano(min(Start)), toUnixTimestamp64Nano(max(Start)), count()
FROM spanhouse.traces
WHERE Start >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
    AND Start < fromUnixTimestamp64Nano({until:Int64}, 'UTC')"""

EARLIER = """SELECT TraceId, toUnixTimestamp64Nano(min(Timestamp))
FROM spanhouse.spans
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))
    AND Timestamp >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
    AND Timestamp <= fromUnixTimestamp64Nano(least({until:Int64}, 4294967295000000000), 'UTC')
    AND Received <= toDateTime({as_of:Int64}, 'UTC')
GROUP BY TraceId"""
"""Where traces started as far as was known at some time."""

_LIST = """SELECT
    TraceId,
    toUnixTimestamp64Nano(min(Start)) AS First,
    toUnixTimestamp64Nano(max(End)) AS Last,
    sum(Spans),
    sum(Errors) AS Failed,
    sum(Oks) AS Succeeded,
    groupUniqArrayArray(Services),
    max(Root.Name),
    argMax(Root.Service, (Root.Name, Root.Service)),
    max(traces.Weight),
    toUnixTimestamp(max(traces.Received))
FROM spanhouse.traces
WHERE TraceId IN
(
    SELECT TraceId
    FROM spanhouse.traces
    WHERE Start >= fromUnixTimestamp64Nano({{since:Int64}}, 'UTC')
        AND Start < fromUnixTimestamp64Nano({{until:Int64}}, 'UTC'){matching}
)
GROUP BY TraceId
HAVING {having}
ORDER BY First DESC, TraceId DESC
LIMIT {{limit:UInt64}}"""

_MATCHING = """
        AND TraceId IN
        (
            SELECT TraceId
            FROM spanhouse.spans
            WHERE Timestamp >= fromUnixTimestamp64Nano({{since:Int64}}, 'UTC') AND {conditions}
        )"""

_IN_RESOURCE = """OriginId GLOBAL IN
            (
                SELECT OriginId FROM spanhouse.origins
                WHERE ResourceAttributes[{{{key}:String}}] IN {{{tagged}:Array(String)}}
            )"""

IN_RESOURCES = (
    """SELECT count() FROM spanhouse.origins WHERE ResourceAttributes[{key:String}] IN {tagged:Array(String)}"""
)
"""Whether a resource has an attribute (`tagged_values` of what is asked for)."""

_IN_CONTENT = """cityHash64(SpanId, Timestamp, Duration, SpanName) IN
            (
                SELECT SpanKey FROM spanhouse.content
                WHERE Hour >= toStartOfHour(fromUnixTimestamp64Nano({{since:Int64}}, 'UTC'))
                    AND WholeContent[{{{key}:String}}] || arrayStringConcat(ContentPieces[{{{key}:String}}])
                        = {{{value}:String}}
                SETTINGS max_block_size = 128
            )"""


def windows(since: int, until: int) -> Iterator[tuple[int, int]]:
    """[since, until) in nanoseconds, cut into windows from its end on."""
    for length in WINDOWS_S:
        start = until - length * SECOND
        if start <= since:
            break
        yield start, until
        until = start
    yield since, until


def list_sql(filters: TraceFilter, in_resources: Container[int]) -> tuple[str, dict[str, Any]]:
    """The statement for one window and what of its parameters the filter sets.

    `in_resources` are the places of the filter's attributes that resources have, too: where none has it, the index of
    the spans' own attributes says which parts of the store to read.
    The caller adds `since`, `until` and `limit` of the window, and `after_start` and `after_trace`: the place of the
    last trace that was shown.
    """
    parameters: dict[str, Any] = {}
    conditions = _span_conditions(filters, in_resources, parameters)
    having = [
        "First >= {since:Int64}",
        "First < {until:Int64}",
        "(First, lower(hex(TraceId))) < ({after_start:Int64}, {after_trace:String})",
    ]
    if filters.min_duration_nano is not None:
        parameters["min_duration"] = filters.min_duration_nano
        having.append("Last - First >= {min_duration:Int64}")
    if filters.max_duration_nano is not None:
        parameters["max_duration"] = filters.max_duration_nano
        having.append("Last - First <= {max_duration:Int64}")
    if filters.status is not None:
        having.append(_STATUS[filters.status])
    matching = _MATCHING.format(conditions=" AND ".join(conditions)) if conditions else ""
    for condition in assessed.conditions(filters.assessments, parameters):
        matching += f"\n        AND {condition}"
    return _LIST.format(matching=matching, having="\n    AND ".join(having)), parameters


_STATUS = {"error": "Failed > 0", "ok": "Failed = 0 AND Succeeded > 0", "unset": "Failed = 0 AND Succeeded = 0"}


def _span_conditions(filters: TraceFilter, in_resources: Container[int], parameters: dict[str, Any]) -> list[str]:
    """What has to hold for one span; empty if any span will do."""
    conditions = []
    if filters.service is not None:
        parameters["service"] = filters.service
        conditions.append("ServiceName = {service:String}")
    if filters.name is not None:
        parameters["name"] = filters.name
        conditions.append("SpanName = {name:String}")
    conditions += [
        _attribute(i, key, value, i in in_resources, parameters) for i, (key, value) in enumerate(filters.attributes)
    ]
    if conditions and filters.status == "error":
        conditions.append("StatusCode = 2")
    return conditions


def tagged_values(value: str) -> list[str]:
    """A text as resources have it in whatever type it was sent: a letter for the type before it."""
    tags = [f"s{value}"]
    if (whole := _whole(value)) is not None:
        tags.append(f"i{whole}")
    if _real(value) is not None:
        tags.append(f"d{value}")
    if value in ("true", "false"):
        tags.append(f"b{value}")
    return tags


def _attribute(i: int, key: str, value: str, in_resources: bool, parameters: dict[str, Any]) -> str:
    """An attribute of the span or of its resource equals a text, in whatever type it was sent."""
    k, v = f"key{i}", f"value{i}"
    parameters |= {k: key, v: value}
    has = "mapContains({column}, {{{k}:String}}) AND {column}[{{{k}:String}}] = "
    either = [has.format(column="StringAttributes", k=k) + f"{{{v}:String}}"]
    if (whole := _whole(value)) is not None:
        parameters[f"int{i}"] = whole
        either.append(has.format(column="IntAttributes", k=k) + f"{{int{i}:Int64}}")
    if (real := _real(value)) is not None:
        parameters[f"float{i}"] = real
        either.append(has.format(column="FloatAttributes", k=k) + f"{{float{i}:Float64}}")
    if value in ("true", "false"):
        either.append(has.format(column="BoolAttributes", k=k) + value)
    if in_resources:
        parameters[f"tagged{i}"] = tagged_values(value)
        either.append(_IN_RESOURCE.format(key=k, tagged=f"tagged{i}"))
    if content_rule().holds(key, value):
        either.append(_IN_CONTENT.format(key=k, value=v))
    return "(" + " OR ".join(either) + ")"


def _whole(text: str) -> int | None:
    number = int(text) if re.fullmatch(r"-?[0-9]{1,19}", text) else None
    return number if number is not None and -INT64_MAX - 1 <= number <= INT64_MAX else None


def _real(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", text) else None
