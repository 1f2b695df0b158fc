"""The SQL behind the pages of runs, model versions, agents and whatever else traces belong to.

All of it reads rows of `links`, one a trace, and no span. Put together here from a few pieces; every value is a bound
parameter. Where sampling left traces out, a row counts as often as it weighs.
"""

from dataclasses import dataclass

LABELS_MAX = 50
NAMES_MAX = 200
BESIDE_MAX = 20
"""Entities of one sort that are named on another one's page."""
PERCENTILES = (50, 90, 95, 99)
WEIGHT_STEPS = 1000
"""Weights of quantiles are whole numbers: this is a weight of 1."""
ABOVE = 1e-9
"""Of two durations with as many below as above, the quantile is the longer one."""


@dataclass(frozen=True, slots=True)
class Which:
    """Whose rows are read: those of `ids` (a parameter), of one version if `one_version` (`version`).

    `by_version`: an answer for each version. Else a trace counts once for an id, in however many versions it used it.
    `shares`: rows hold a part of their trace (agents), so that those of two versions add up.
    """

    by_version: bool
    one_version: bool = False
    shares: bool = False

    @property
    def rows(self) -> str:
        """Subselect of the rows."""
        version = " AND Version = {version:String}" if self.one_version else ""
        once = "" if self.by_version or self.shares else "\n    LIMIT 1 BY Id, TraceId"
        return (
            "SELECT * FROM spanhouse.links FINAL\n"
            "    WHERE Entity = {entity:String} AND Id IN {ids:Array(String)}"
            f"{version} AND Deleted = 0\n"
            "        AND Start >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')\n"
            f"        AND Start < fromUnixTimestamp64Nano({{until:Int64}}, 'UTC'){once}"
        )


SEEN = """SELECT Id, toUnixTimestamp64Nano(max(seen.Last)) AS Newest
FROM spanhouse.seen
WHERE Tenant = {tenant:String} AND Entity = {entity:String}
GROUP BY Id
HAVING Newest >= {since:Int64} AND toUnixTimestamp64Nano(min(seen.First)) < {until:Int64}
    AND (Newest, Id) < ({after_seen:Int64}, {after_id:String})
ORDER BY Newest DESC, Id DESC
LIMIT {limit:UInt64}"""
"""Ids in the order in which they were seen last; some may have no trace any more."""


def stats(which: Which) -> str:
    """Figures by id and, if asked for, version: first the two, then those that entities.py names."""
    version = "toString(Version)" if which.by_version else "''"
    once = which.by_version or not which.shares
    stored = "count()" if once else "uniqExact(TraceId)"
    count = "sum(W)" if once else _distinct()
    failed = "sumIf(W, Failed)" if once else _distinct("Failed")
    levels = ", ".join(f"{percent / 100 + ABOVE}" for percent in PERCENTILES)
    return f"""SELECT
    Id, {version} AS Of, {stored}, max(W), {count}, {failed}, sum(links.Spans * W), sum(links.Errors * W),
    sum(links.InputTokens * W), sum(links.OutputTokens * W), sum(links.TotalTokens * W),
    sum(links.CachedInputTokens * W), sum(links.ReasoningTokens * W), sum(links.CostUsd * W),
    sumIf(W, links.Unpriced > 0), quantilesExactWeighted({levels})(DurationNano, toUInt64(round(W * {WEIGHT_STEPS}))),
    toUnixTimestamp64Nano(min(Start)), toUnixTimestamp64Nano(max(Start)),
    sumMap(CAST(links.Models, 'Array(String)'), arrayMap(calls -> calls * W, links.ModelCalls))
FROM
(
    SELECT *, toFloat64(Weight) AS W FROM
    (
    {which.rows}
    )
) AS links
GROUP BY Id, Of
ORDER BY max(Start) DESC, Of DESC
LIMIT {{limit:UInt64}}"""


def _distinct(condition: str = "") -> str:
    """How many traces there are, each once in however many rows: those of each weight are counted apart."""
    counted = (
        f"uniqExactMapIf(map(toString(W), TraceId), {condition})"
        if condition
        else "uniqExactMap(map(toString(W), TraceId))"
    )
    return f"arraySum((weight, traces) -> toFloat64(weight) * traces, mapKeys({counted}), mapValues({counted}))"


def beside(which: Which) -> str:
    """What else the traces belong to: entity, id, version, traces; the most frequent of each sort."""
    return f"""SELECT toString(one.Entity), one.Id, one.Version, {_distinct()} AS Traces
FROM
(
    SELECT *, toFloat64(Weight) AS W FROM
    (
    {which.rows}
    )
)
ARRAY JOIN Beside AS one
GROUP BY one.Entity, one.Id, one.Version
ORDER BY Traces DESC, one.Id, one.Version
LIMIT {BESIDE_MAX} BY one.Entity"""


def scores(which: Which, *, sampled: bool) -> str:
    """Assessments of the traces by name, expectations aside: count, those in numbers, their sum and median, labels.

    `sampled`: they count as often as their traces weigh.
    """
    weight, joined = "1", ""
    if sampled:
        weight = "toFloat64(of.Weight)"
        joined = f"""
    GLOBAL INNER JOIN
    (
        SELECT TraceId, max(Weight) AS Weight FROM
        (
            {which.rows}
        )
        GROUP BY TraceId
    ) AS of USING TraceId"""
    steps = f"toUInt64(round({weight} * {WEIGHT_STEPS}))"
    return f"""SELECT
    Name, sum(Rows), sum(Numbers), sum(Total), quantileExactWeightedMerge({0.5 + ABOVE})(Middle),
    arraySlice(arraySort(x -> (-x.2, x.1), groupArrayIf((Text, Rows), Text != '')), 1, {LABELS_MAX})
FROM
(
    SELECT
        toString(Name) AS Name, Text, sum({weight}) AS Rows, sumIf({weight}, NOT isNaN(Number)) AS Numbers,
        sumIf(Number * {weight}, NOT isNaN(Number)) AS Total,
        quantileExactWeightedStateIf({0.5 + ABOVE})(Number, {steps}, NOT isNaN(Number)) AS Middle
    FROM spanhouse.assessments FINAL{joined}
    WHERE Deleted = 0 AND Kind != 'expectation' AND TraceId GLOBAL IN
    (
        SELECT TraceId FROM
        (
            {which.rows}
        )
    )
    GROUP BY Name, Text
)
GROUP BY Name
ORDER BY Name
LIMIT {NAMES_MAX}"""


def traces(which: Which, status: str | None) -> str:
    """A page of the traces, newest first; `status` is 'error', 'ok' or None for all."""
    failed = {"error": " AND Failed", "ok": " AND NOT Failed", None: ""}[status]
    return f"""SELECT
    TraceId, toUnixTimestamp64Nano(Start), DurationNano, Spans, Errors, Failed, InputTokens, OutputTokens, TotalTokens,
    CachedInputTokens, ReasoningTokens, CostUsd, Unpriced, arrayMap(m -> toString(m), Models),
    arrayMap(t -> toString(t), Tools), toString(Provenance), Version, Weight
FROM
(
    {which.rows}
)
WHERE (toUnixTimestamp64Nano(Start), lower(hex(TraceId))) < ({{after_start:Int64}}, {{after_trace:String}}){failed}
ORDER BY Start DESC, TraceId DESC, Version DESC
LIMIT {{limit:UInt64}}"""


ROOTS = """SELECT TraceId, toString(RootService), toString(RootName), Truncated
FROM spanhouse.facts FINAL
WHERE TraceId IN (SELECT arrayJoin(arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})))"""
"""Roots of traces; '' where none has come."""
