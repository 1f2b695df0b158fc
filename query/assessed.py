"""What assessments are asked for: conditions of the trace list, and the summary by name.

The SQL is put together here, and every value is a bound parameter. Runs on the threads of the API.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from storage.engine import Engine

PREFIX = "assessment."
FILTERS_MAX = 16
NAMES_MAX = 1_000
LABELS_MAX = 50
_OPERATOR = re.compile(r"(>=|<=|>|<|!=|=|)(.*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class AssessmentFilter:
    """One of the trace's assessments of this name compares so with this value."""

    name: str
    operator: str
    value: str
    number: float | None
    """The value as a number, if it is one: true is 1 and false is 0, as in the store."""


class BadFilter(ValueError):
    """The condition cannot be understood. The message is a whole answer."""


def parse(items: Iterable[tuple[str, str]]) -> list[AssessmentFilter]:
    """Filters of the query parameters among `items` that begin with PREFIX. Raises BadFilter.

    `assessment.quality=0.5`, `=>0.5`, `=>=0.5`, `=<0.5`, `=<=0.5`, `=!=0.5`; and `assessment.quality>=0.5`, which is a
    parameter `assessment.quality>` of the value 0.5.
    """
    filters = [_filter(key.removeprefix(PREFIX), value) for key, value in items if key.startswith(PREFIX)]
    if len(filters) > FILTERS_MAX:
        raise BadFilter(f"cannot filter by {len(filters)} assessments: {FILTERS_MAX} are the most")
    return filters


def _filter(name: str, text: str) -> AssessmentFilter:
    if name[-1:] in "<>!" and not _OPERATOR.fullmatch(text)[1]:  # type: ignore[index]
        name, text = name[:-1], f"{name[-1:]}={text}"
    match = _OPERATOR.fullmatch(text)
    assert match is not None
    operator, value = match[1] or "=", match[2]
    if not name or name[-1] in "<>!":
        raise BadFilter(
            f"cannot filter by {PREFIX}{name[:200]}={text[:200]}: write {PREFIX}<name>=<value>, and >, >=, <, <= or != "
            "before the value where it is not to be equal"
        )
    number = _number(value)
    if number is None and operator not in ("=", "!="):
        raise BadFilter(f"cannot filter by {PREFIX}{name[:200]} {operator} {value[:200]!r}: that takes a number")
    return AssessmentFilter(name, operator, value, number)


def _number(text: str) -> float | None:
    if text in ("true", "false"):
        return float(text == "true")
    return float(text) if _NUMBER.fullmatch(text) else None


def conditions(filters: Sequence[AssessmentFilter], parameters: dict[str, Any]) -> list[str]:
    """Conditions on a column TraceId, one a filter; what they bind is added to `parameters`."""
    return [_condition(i, one, parameters) for i, one in enumerate(filters)]


def _condition(i: int, one: AssessmentFilter, parameters: dict[str, Any]) -> str:
    name, text, number = f"assessment{i}", f"assessment_text{i}", f"assessment_number{i}"
    parameters[name] = one.name
    equal = one.operator in ("=", "!=")
    either = []
    if equal:
        parameters[text] = one.value
        either.append(f"Text = {{{text}:String}}")
    if one.number is not None:
        parameters[number] = one.number
        either.append(f"Number {'=' if equal else one.operator} {{{number}:Float64}}")
    holds = f"({' OR '.join(either)})"
    return f"""TraceId GLOBAL IN
        (
            SELECT TraceId FROM spanhouse.assessments FINAL
            WHERE Deleted = 0 AND Name = {{{name}:String}} AND {"NOT " if one.operator == "!=" else ""}{holds}
        )"""


# The summary


@dataclass(frozen=True, slots=True)
class NameSummary:
    """Assessments of one name. Mean, least and most are of those that have a number, None without any."""

    name: str
    count: int
    traces: int
    numbers: int
    mean: float | None
    least: float | None
    most: float | None
    sources: dict[str, int]
    labels: list[tuple[str, int]]
    """The most frequent LABELS_MAX texts, with how often each occurs."""
    label_count: int
    """How many different texts there are."""


@dataclass(frozen=True, slots=True)
class SummaryFilter:
    """Which assessments to summarise; None asks for nothing. Times are of the trace's start, nanoseconds since 1970."""

    name: str | None = None
    start_unix_nano: int | None = None
    end_unix_nano: int | None = None
    entity: str | None = None
    id: str = ""
    version: str | None = None


_SUMMARY = """SELECT
    Name, sum(Rows), uniqExactMerge(Traces), sum(Numbers), sum(Total), min(Least), max(Most),
    sumMap(Sources),
    arraySlice(arraySort(x -> (-x.2, x.1), groupArrayIf((Text, Rows), Text != '')), 1, {{labels:UInt64}}),
    countIf(Text != '')
FROM
(
    SELECT
        toString(Name) AS Name, Text, count() AS Rows, uniqExactState(TraceId) AS Traces,
        countIf(NOT isNaN(Number)) AS Numbers, sumIf(Number, NOT isNaN(Number)) AS Total,
        minOrNullIf(Number, NOT isNaN(Number)) AS Least, maxOrNullIf(Number, NOT isNaN(Number)) AS Most,
        map('human', countIf(SourceType = 'human'), 'code', countIf(SourceType = 'code'),
            'llm_judge', countIf(SourceType = 'llm_judge')) AS Sources
    FROM spanhouse.assessments FINAL
    WHERE {conditions}
    GROUP BY Name, Text
)
GROUP BY Name
ORDER BY Name
LIMIT {{names:UInt64}}"""

_STARTED = """TraceId IN
        (
            SELECT TraceId FROM spanhouse.traces
            WHERE TraceId IN (SELECT TraceId FROM spanhouse.assessments)
            GROUP BY TraceId
            HAVING toUnixTimestamp64Nano(min(Start)) >= {since:Int64}
                AND toUnixTimestamp64Nano(min(Start)) < {until:Int64}
        )"""

_LINKED = """TraceId GLOBAL IN
        (
            SELECT TraceId FROM spanhouse.links FINAL
            WHERE Entity = {entity:String} AND Id = {id:String} AND Deleted = 0
        )"""


def summary_sql(asked: SummaryFilter) -> tuple[str, dict[str, Any]]:
    """The statement of a summary and its parameters."""
    parameters: dict[str, Any] = {"labels": LABELS_MAX, "names": NAMES_MAX}
    holds = ["Deleted = 0"]
    if asked.name is not None:
        parameters["name"] = asked.name
        holds.append("Name = {name:String}")
    if asked.start_unix_nano is not None or asked.end_unix_nano is not None:
        parameters["since"] = asked.start_unix_nano or 0
        parameters["until"] = 2**63 - 1 if asked.end_unix_nano is None else asked.end_unix_nano
        holds.append(_STARTED)
    if asked.entity is not None:
        parameters |= {"entity": asked.entity, "id": asked.id}
        linked = _LINKED
        if asked.version is not None:
            parameters["version"] = asked.version
            linked = linked.replace("Deleted = 0", "Version = {version:String} AND Deleted = 0")
        holds.append(linked)
    return _SUMMARY.format(conditions="\n        AND ".join(holds)), parameters


class Assessed:
    """Answers about the assessments of many traces."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def summary(self, tenant: str, asked: SummaryFilter) -> list[NameSummary]:
        """Assessments by name, NAMES_MAX at most. Raises what Engine.read raises."""
        statement, parameters = summary_sql(asked)
        columns = self._engine.read(tenant, statement, parameters)
        return [_name_summary(row) for row in zip(*columns, strict=True)]


def _name_summary(row: tuple[Any, ...]) -> NameSummary:
    name, count, traces, numbers, total, least, most, sources, labels, label_count = row
    return NameSummary(
        name=name.decode(),
        count=count,
        traces=traces,
        numbers=numbers,
        mean=total / numbers if numbers else None,
        least=least,
        most=most,
        sources={key if isinstance(key, str) else key.decode(): value for key, value in sources.items() if value},
        labels=[(text.decode(), rows) for text, rows in labels],
        label_count=label_count,
    )
