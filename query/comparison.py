"""What a comparison is made of and what it says: the words between the samples, compare.py, gate.py and the API.

The dataclasses of the second half are the API's answer; OpenAPI is made from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from query.intervals import Interval


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which traces to sample: those linked to this that start within [since, until), nanoseconds since 1970.

    `version` is '' where there is none.
    """

    entity: str
    id: str
    version: str
    since_unix_nano: int | None = None
    until_unix_nano: int | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """The assessments of one name: numbers, one a trace, and how many traces have which label.

    `labelled` counts the traces with any label; `labels` may leave out the rarest. Of sampled traces `weights` are
    those of the numbers, and the counts are of as many traces as would tell as much.
    """

    numbers: Sequence[float] = ()
    labels: Mapping[str, float] = field(default_factory=dict)
    labelled: float = 0
    weights: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """The newest traces of one version or run, newest first: an entry a trace in each sequence.

    `traces` is how many there are in all. `unpriced` counts a trace's model calls whose price nobody knows. `weights`
    are empty if nothing was left out by sampling.
    """

    traces: int
    trace_ids: Sequence[bytes] = ()
    starts_unix_nano: Sequence[int] = ()
    durations_nano: Sequence[int] = ()
    failed: Sequence[int] = ()
    input_tokens: Sequence[int] = ()
    output_tokens: Sequence[int] = ()
    total_tokens: Sequence[int] = ()
    costs_usd: Sequence[float] = ()
    unpriced: Sequence[int] = ()
    tools: Sequence[Sequence[str]] = ()
    weights: Sequence[float] = ()
    scores: Mapping[str, Scored] = field(default_factory=dict)


# The answer


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure on both sides, and what lies between: `difference` or `ratio` is null where the other is meant.

    All is null that too few observations say anything about.
    """

    baseline: Interval | None
    candidate: Interval | None
    difference: Interval | None = None
    ratio: Interval | None = None


@dataclass(frozen=True, slots=True)
class Examples:
    """Ids of traces to look at. `typical` ones last as long as the median one does."""

    slowest: list[str]
    failed: list[str]
    typical: list[str]
    most_expensive: list[str]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two. Figures are of the newest `sampled` of its `traces`, and as sure as those of `effective` ones.

    `effective` is less than `sampled` where sampling at load left traces out, and `traces` is estimated then.
    `unpriced_traces`: sampled traces with model calls whose price nobody knows; their cost is too low by that.
    """

    id: str
    version: str
    traces: int
    sampled: int
    effective: float
    unpriced_traces: int
    first_start_unix_nano: str | None
    last_start_unix_nano: str | None
    examples: Examples


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """Milliseconds. `all` is the factor by which the durations changed together, if they did alike."""

    p50: Figure
    p95: Figure
    p99: Figure
    all: Figure


@dataclass(frozen=True, slots=True)
class TokenFigures:
    """Means a trace, each token counted once."""

    input: Figure
    output: Figure
    total: Figure


@dataclass(frozen=True, slots=True)
class ToolPath:
    """Tools in the order of their calls, with repetitions in a row folded, and the share of traces that went so."""

    tools: list[str]
    change: Literal["new", "vanished", "both"]
    share: Figure


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Calls of one tool a trace."""

    tool: str
    calls: Figure


@dataclass(frozen=True, slots=True)
class LabelShare:
    """Share of the labelled traces with this label."""

    label: str
    share: Figure


@dataclass(frozen=True, slots=True)
class ScoreFigures:
    """The assessments of one name, a value a trace: those that are numbers (true is 1), and those that are labels."""

    name: str
    mean: Figure | None
    labels: list[LabelShare]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole answer. Paths and tools whose change chance explains least stand first."""

    entity: str
    baseline: Side
    candidate: Side
    traces_per_hour: Figure
    error_rate: Figure
    latency_ms: LatencyFigures
    tokens: TokenFigures
    cost_usd: Figure
    tool_paths: list[ToolPath]
    tool_calls: list[ToolCalls]
    scores: list[ScoreFigures]
