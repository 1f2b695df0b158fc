"""Two versions of a model, prompt or agent, or two runs, side by side, from samples of their traces.

A figure has an interval on each side and one for what lies between: the ratio of durations, tokens and costs, the
difference of shares and scores. docs/compare.md says what they mean to people. Pure, on any thread.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from query.comparison import (
    Comparison,
    Examples,
    Figure,
    LabelShare,
    LatencyFigures,
    Sample,
    Scored,
    ScoreFigures,
    Side,
    TokenFigures,
    ToolCalls,
    ToolPath,
)
from query.intervals import (
    Interval,
    Mean,
    effective,
    factor,
    log_ratio,
    mean,
    mean_difference,
    score_mean,
    share,
    share_difference,
    share_of,
)

if TYPE_CHECKING:
    from query.latencies import Latencies

BEYOND_MIN = 5
"""Traces that must lie beyond a quantile for an interval around it: with fewer, it holds the truth far too seldom."""
EXAMPLES_MAX = 3
PATHS_MAX = 20
TOOLS_MAX = 50
LABELS_MAX = 10
HOUR_NANO = 3600 * 10**9


# What is measured on one side


@dataclass(frozen=True, slots=True)
class Measures:
    """What a sample comes to. `latencies` is None below two traces, a mean None of nothing."""

    traces: int
    effective: float
    """As many traces of one weight would tell as much; counts below are of these."""
    failed: tuple[float, float]
    """Of how many, for intervals.share."""
    unpriced: float
    per_hour: float | None
    latencies: "Latencies | None"
    tokens: Mapping[str, Mean | None]
    cost_usd: Mean | None
    paths: Mapping[tuple[str, ...], float]
    tool_calls: Mapping[str, Mean]
    scores: Mapping[str, Mean]
    labels: Mapping[str, Scored]


def measure(sample: Sample) -> Measures:
    """Measure one side: 0.1 s for 20,000 traces, twice that if hardly two of them call the same tools."""
    from query.latencies import latencies  # noqa: PLC0415 (numpy)

    count, weights = len(sample.durations_nano), sample.weights
    whole = effective(weights) if weights else float(count)
    scale = whole / math.fsum(weights) if weights else 1.0
    called = _called(sample)
    tokens = {"input": sample.input_tokens, "output": sample.output_tokens, "total": sample.total_tokens}
    return Measures(
        traces=sample.traces,
        effective=whole,
        failed=share_of(sample.failed, weights),
        unpriced=math.fsum(weights[i] if weights else 1 for i, calls in enumerate(sample.unpriced) if calls) * scale,
        per_hour=_per_hour(sample.starts_unix_nano, weights),
        latencies=latencies(sample.durations_nano, weights) if count > 1 else None,
        tokens={name: mean(counts, weights) for name, counts in tokens.items()},
        cost_usd=mean(sample.costs_usd, weights),
        paths=_paths(called, scale),
        tool_calls=_tool_calls(called, len(sample.tools), whole),
        scores={
            name: of for name, scored in sample.scores.items() if (of := score_mean(scored.numbers, scored.weights))
        },
        labels={name: scored for name, scored in sample.scores.items() if scored.labelled},
    )


@dataclass(slots=True)
class _Called:
    """Traces that called the same tools: their weights and squares of weights, summed."""

    weight: float = 0.0
    square: float = 0.0


def _called(sample: Sample) -> dict[tuple[str, ...], _Called]:
    called: dict[tuple[str, ...], _Called] = {}
    for i, tools in enumerate(sample.tools):
        weight = sample.weights[i] if sample.weights else 1.0
        one = called.setdefault(tuple(tools), _Called())
        one.weight += weight
        one.square += weight * weight
    return called


def _per_hour(starts_unix_nano: Sequence[int], weights: Sequence[float]) -> float | None:
    """Traces an hour between the first and the last of them."""
    if len(starts_unix_nano) < 2:
        return None
    elapsed = max(starts_unix_nano) - min(starts_unix_nano)
    each = math.fsum(weights) / len(weights) if weights else 1.0
    return (len(starts_unix_nano) - 1) * each / elapsed * HOUR_NANO if elapsed else None


def _paths(called: Mapping[tuple[str, ...], _Called], scale: float) -> dict[tuple[str, ...], float]:
    """How many traces called which tools in which order; repetitions in a row are folded."""
    paths: dict[tuple[str, ...], float] = {}
    for tools, traces in called.items():
        path = tuple(tool for tool, _ in groupby(tools))
        paths[path] = paths.get(path, 0.0) + traces.weight * scale
    return paths


def _tool_calls(called: Mapping[tuple[str, ...], _Called], count: int, whole: float) -> dict[str, Mean]:
    """Calls a trace of each tool, of `count` traces that tell as much as `whole` of one weight."""
    weight = math.fsum(traces.weight for traces in called.values())
    square = math.fsum(traces.square for traces in called.values())
    by_tool: dict[str, list[tuple[int, _Called]]] = {}
    for tools, traces in called.items():
        for tool in set(tools):
            by_tool.setdefault(tool, []).append((tools.count(tool), traces))
    means = {}
    for tool, calling in by_tool.items():
        average = math.fsum(calls * traces.weight for calls, traces in calling) / weight
        # Those that never call it are `average` away from it.
        others = square - math.fsum(traces.square for _, traces in calling)
        squares = math.fsum((calls - average) ** 2 * traces.square for calls, traces in calling)
        variance = max(squares + average**2 * others, 0.0) / weight**2
        error = math.sqrt(variance * count / (count - 1)) if count > 1 else None
        means[tool] = Mean(_freedom(count, whole), average, error)
    return means


def _freedom(count: int, whole: float) -> int:
    """As intervals.mean counts."""
    return count if count < 2 else max(int(whole), 2)


def enough_beyond(quantile: float, traces: float) -> bool:
    """Whether so many traces say anything about a quantile."""
    return traces * (1 - quantile) > BEYOND_MIN - 1e-6


# What is said of both


def compare(entity: str, baseline: Side, candidate: Side, b: Measures, c: Measures) -> Comparison:
    """Say of two sides what there is to say."""
    return Comparison(
        entity=entity,
        baseline=baseline,
        candidate=candidate,
        traces_per_hour=_traffic(b, c),
        error_rate=shares(*b.failed, *c.failed),
        latency_ms=LatencyFigures(quantile(b, c, 0.5), quantile(b, c, 0.95), quantile(b, c, 0.99), _shift(b, c)),
        tokens=TokenFigures(*(ratio(b.tokens[name], c.tokens[name]) for name in ("input", "output", "total"))),
        cost_usd=ratio(b.cost_usd, c.cost_usd),
        tool_paths=_tool_paths(b, c),
        tool_calls=_calls_by_tool(b, c),
        scores=_scores(b, c),
    )


def side(sample: Sample, id_: str, version: str) -> Side:
    """What is said of one side alone."""
    starts = sample.starts_unix_nano
    return Side(
        id=id_,
        version=version,
        traces=sample.traces,
        sampled=len(sample.durations_nano),
        effective=round(effective(sample.weights), 1) if sample.weights else float(len(sample.durations_nano)),
        unpriced_traces=sum(map(bool, sample.unpriced)),
        first_start_unix_nano=str(min(starts)) if starts else None,
        last_start_unix_nano=str(max(starts)) if starts else None,
        examples=_examples(sample),
    )


def _examples(sample: Sample) -> Examples:
    durations, costs = sample.durations_nano, sample.costs_usd
    indexes = range(len(durations))
    middle = sorted(durations)[len(durations) // 2] if durations else 0

    def ids(order: Sequence[int]) -> list[str]:
        return [sample.trace_ids[i].hex() for i in order[:EXAMPLES_MAX]]

    return Examples(
        slowest=ids(sorted(indexes, key=lambda i: -durations[i])),
        failed=ids([i for i in indexes if sample.failed[i]]),
        typical=ids(sorted((i for i in indexes if not sample.failed[i]), key=lambda i: abs(durations[i] - middle))),
        most_expensive=ids(sorted((i for i in indexes if costs[i] > 0), key=lambda i: -costs[i])),
    )


def quantile(b: Measures, c: Measures, q: float) -> Figure:
    """A quantile of the durations, and its ratio, from its own neighbourhood alone."""
    from query.latencies import QUANTILES, slowdown  # noqa: PLC0415 (numpy)

    at = QUANTILES.index(q)

    def milliseconds(m: Measures) -> Interval | None:
        if m.latencies is None:
            return None
        log = float(m.latencies.figures[at]) - math.log(1e6)
        sure = enough_beyond(q, m.effective)
        return factor(log, math.sqrt(m.latencies.covariances[at, at]) if sure else None)

    if b.latencies is None or c.latencies is None:
        return Figure(milliseconds(b), milliseconds(c))
    change = slowdown(b.latencies, c.latencies, q)
    sure = enough_beyond(q, min(b.effective, c.effective))
    return Figure(milliseconds(b), milliseconds(c), ratio=factor(change.change, change.error if sure else None))


def _shift(b: Measures, c: Measures) -> Figure:
    from query.latencies import slowdown  # noqa: PLC0415 (numpy)

    if b.latencies is None or c.latencies is None:
        return Figure(None, None)
    change = slowdown(b.latencies, c.latencies, 0.5)
    return Figure(None, None, ratio=factor(change.shift, change.shift_error))


def ratio(b: Mean | None, c: Mean | None) -> Figure:
    """Two means and the ratio between."""
    log = log_ratio(b, c) if b and c else None
    return Figure(_interval(b), _interval(c), ratio=factor(*log) if log else None)


def difference(b: Mean | None, c: Mean | None) -> Figure:
    """Two means and the difference between."""
    return Figure(_interval(b), _interval(c), difference=mean_difference(b, c) if b and c else None)


def _interval(of: Mean | None) -> Interval | None:
    return of.interval() if of else None


def shares(b: float, b_whole: float, c: float, c_whole: float) -> Figure:
    """Two shares and the difference between."""
    before, after = share(b, b_whole), share(c, c_whole)
    return Figure(before, after, difference=share_difference(before, after) if before and after else None)


def _traffic(b: Measures, c: Measures) -> Figure:
    """Arrivals that do not wait for each other: the logarithm of a rate from n gaps has the error 1/√n."""
    errors = [1 / math.sqrt(m.effective - 1) if m.effective > 1 else None for m in (b, c)]
    one, other = (
        factor(math.log(m.per_hour), error) if m.per_hour and error else None
        for m, error in zip((b, c), errors, strict=True)
    )
    if one is None or other is None or errors[0] is None or errors[1] is None:
        return Figure(one, other)
    return Figure(one, other, ratio=factor(math.log(other.value / one.value), math.hypot(errors[0], errors[1])))


def _tool_paths(b: Measures, c: Measures) -> list[ToolPath]:
    def surprise(path: tuple[str, ...]) -> float:
        """The difference of the shares in units of what chance makes of it."""
        before, after = b.paths.get(path, 0), c.paths.get(path, 0)
        both = (before + after) / (b.effective + c.effective)
        chance = math.sqrt(max(both * (1 - both), 0.0) * (1 / b.effective + 1 / c.effective))
        return abs(after / c.effective - before / b.effective) / chance if chance else 0.0

    if not b.effective or not c.effective:
        return []
    paths = sorted({**b.paths, **c.paths}, key=lambda path: (-surprise(path), path))
    return [
        ToolPath(
            list(path),
            "new" if path not in b.paths else "vanished" if path not in c.paths else "both",
            shares(b.paths.get(path, 0), b.effective, c.paths.get(path, 0), c.effective),
        )
        for path in paths[:PATHS_MAX]
    ]


def _calls_by_tool(b: Measures, c: Measures) -> list[ToolCalls]:
    def calls(m: Measures, tool: str) -> Mean | None:
        never = Mean(max(int(m.effective), 1), 0.0, 0.0 if m.effective >= 2 else None)
        return m.tool_calls.get(tool, never) if m.effective else None

    tools = {**b.tool_calls, **c.tool_calls}
    found = [ToolCalls(tool, difference(calls(b, tool), calls(c, tool))) for tool in tools]
    found.sort(key=lambda each: (-_evidence(each.calls.difference), each.tool))
    return found[:TOOLS_MAX]


def _evidence(change: Interval | None) -> float:
    """A difference in units of its own uncertainty."""
    if change is None or change.low is None or change.value == 0:
        return 0.0
    reach = change.value - change.low
    return abs(change.value) / reach if reach else math.inf


def _scores(b: Measures, c: Measures) -> list[ScoreFigures]:
    names = sorted({*b.scores, *c.scores, *b.labels, *c.labels})
    found = []
    for name in names:
        before, after = b.scores.get(name), c.scores.get(name)
        found.append(ScoreFigures(name, difference(before, after) if before or after else None, _labels(b, c, name)))
    return found


def _labels(b: Measures, c: Measures, name: str) -> list[LabelShare]:
    before, after = b.labels.get(name, Scored()), c.labels.get(name, Scored())
    common: Counter[str] = Counter()
    for labels in (before.labels, after.labels):
        common.update(labels)
    return [
        LabelShare(
            label,
            shares(before.labels.get(label, 0), before.labelled, after.labels.get(label, 0), after.labelled),
        )
        for label, _ in common.most_common(LABELS_MAX)
    ]
