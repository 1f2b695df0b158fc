"""The shapes of what the API says of runs, models and all else that traces belong to; answers.py has the rules."""

from typing import Any, Literal

from pydantic import Field

from query.answers import Answer, Nano, SummaryRoot, TraceId, Usage, Weight

Provenance = Literal["api", "span", "trace", "resource", "header", "baggage", "deployment", "registry"]


class Durations(Answer):
    """Percentiles of the traces' durations."""

    p50: Nano
    p90: Nano
    p95: Nano
    p99: Nano


class Figures(Answer):
    """What its traces come to. Of an agent: what the spans come to that it owns.

    Where sampling left traces out (`sampled`), all of it is estimated by the weights of those that are stored.
    """

    traces: int
    stored_traces: int = Field(description="Those of them that are stored.")
    sampled: bool = Field(description="Sampling left others out: the figures are estimates of all.")
    errors: int = Field(
        description="Traces that failed: their root has the status `error` or, without a root, any span."
    )
    error_rate: float | None = Field(description="Share of the traces that failed; null without traces.")
    spans: int
    error_spans: int = Field(description="Spans with the status `error`.")
    usage: Usage = Field(description="Each token and dollar once.")
    unpriced_traces: int = Field(description="Traces with model calls whose price nobody knows: the cost lacks theirs.")
    duration_nano: Durations | None = Field(description="null without traces.")
    models_used: dict[str, int] = Field(
        description="Models that answered, and how many calls.", examples=[{"gpt-4o-mini": 128}]
    )
    first_seen_unix_nano: Nano | None = Field(description="Start of the first trace.")
    last_seen_unix_nano: Nano | None = Field(description="Start of the last one.")


class _About(Figures):
    metadata: dict[str, Any] | None = Field(None, description="What was put here by API; absent if nothing was.")
    registry: dict[str, Any] | None = Field(
        None, description="What the registry knows; absent without one, or if it has no such thing."
    )


class Score(Answer):
    """The assessments of one name."""

    count: int
    mean: float | None = Field(description="Of those that are numbers; true is 1, false is 0.")
    p50: float | None
    labels: dict[str, int] = Field(description="The most frequent words, and how often each was said.")


class Beside(Answer):
    """Something else that its traces belong to: an `id`, or a `name` and a `version`."""

    id: str | None = None
    name: str | None = None
    version: str | None = None
    traces: int


class _Page(_About):
    links: dict[str, list[Beside]] = Field(
        description="What else its traces belong to, by sort: `runs`, `experiments`, `models`, `logged_models`, "
        "`prompts`, `agents`; the twenty with most traces of each.",
        examples=[{"models": [{"name": "support", "version": "4", "traces": 12}]}],
    )
    scores: dict[str, Score] = Field(description="Assessments of its traces by name, expectations aside.")


class EntityRow(_About):
    """One in a list."""

    id: str = Field(examples=["4f2c…"])


class NamedRow(_About):
    """One in a list, all its versions together."""

    name: str = Field(examples=["support"])


class EntityList(Answer):
    """A page of a list, last seen first. Figures are of the time that was asked for."""

    items: list[EntityRow]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null at the end.")


class NamedList(Answer):
    """A page of a list, last seen first. Figures are of the time that was asked for."""

    items: list[NamedRow]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null at the end.")


class EntityPage(_Page):
    """All of its traces together."""

    id: str


class VersionRow(_About):
    """One version of it."""

    version: str = Field(description="Empty: its traces do not say which.")


class NamedPage(_Page):
    """All versions together, and each."""

    name: str
    versions: list[VersionRow] = Field(description="Last seen first, 200 at most.")


class VersionPage(_Page):
    """One version."""

    name: str
    version: str


class LinkedTrace(Answer):
    """A trace that belongs to it. Of an agent: duration, spans, errors and usage are of the spans that it owns."""

    trace_id: TraceId
    root: SummaryRoot | None
    start_time_unix_nano: Nano
    duration_nano: Nano
    span_count: int
    error_count: int
    failed: bool
    truncated: bool = Field(description="It has more spans than were counted.")
    usage: Usage
    unpriced_calls: int
    models_used: list[str]
    tools: list[str] = Field(description="In the order in which they were called, a hundred at most.")
    provenance: Provenance = Field(description="Who says that it belongs to it.")
    weight: Weight
    version: str | None = Field(None, description="Of a model, a prompt or an agent; null where nobody said it.")


class LinkedTraces(Answer):
    """A page of traces, newest first."""

    traces: list[LinkedTrace]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null at the end.")
