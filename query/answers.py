"""The shapes of the API's answers: what OpenAPI says, and what the tests hold the real answers against.

Traces are written by trace_json.py and not through these models, which would be slow and recurse. Two rules hold
everywhere: ids are lower-case hex, and 64-bit nanoseconds are strings, as in OTLP/JSON, for JavaScript's sake.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import orjson
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

Nano = Annotated[str, Field(pattern=r"^-?[0-9]+$", examples=["1764000000000000000"])]
TraceId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", examples=["5b8efff798038103d269b633813fc60c"])]
SpanId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", examples=["eee19b7ec3c1b174"])]
Attributes = Annotated[
    dict[str, Any],
    Field(
        description="Typed values: 64-bit integers are exact JSON numbers, doubles that are not finite the strings "
        '"NaN", "Infinity" and "-Infinity", bytes {"bytes": base64}, arrays and maps plain JSON, an unset value null.',
        examples=[
            {"gen_ai.request.model": "gpt-4o-mini", "gen_ai.usage.input_tokens": 108, "payload": {"bytes": "AAE="}}
        ],
    ),
]
Duplicates = Annotated[
    list[dict[str, Any]],
    Field(
        default_factory=list,
        description="Only where keys repeat: every value of those keys, as {key, value}; `attributes` has the last.",
    ),
]
RootState = Literal["present", "missing", "late"]
Problem = Literal[
    "no start", "no end", "end before start", "start before parent's start", "beyond the representable range"
]


class Answer(BaseModel):
    """Nothing in an answer goes undocumented."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Answer):
    """What went wrong and the way out."""

    model_config = ConfigDict(extra="allow")

    code: int = Field(description="The HTTP status again.", examples=[404])
    message: str = Field(description="For a person.", examples=["cannot find trace 5b8efff798038103d269b633813fc60c …"])


class ErrorAnswer(Answer):
    """Every answer that is not a success."""

    error: ErrorBody


FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be answered; the message says why."},
    "5XX": {"model": ErrorAnswer, "description": "Spanhouse cannot answer now; a 503 says when to retry."},
}
"""What every path may answer instead."""


def json_response(body: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A body as it is, which the framework does not hold against a model again."""
    return Response(orjson.dumps(body), status_code, headers, media_type="application/json")


class Root(Answer):
    """The root span, or the earliest of several."""

    service: str = Field(examples=["support-bot"])
    name: str = Field(examples=["invoke_agent support"])
    span_id: SpanId


class Status(Answer):
    """The status of a span."""

    code: Literal["unset", "ok", "error"] | int = Field(description="An integer if OTLP does not know it (yet).")
    message: str


class Event(Answer):
    """An event of a span."""

    time_unix_nano: Nano
    name: str
    attributes: Attributes
    duplicate_attributes: Duplicates
    dropped_attributes_count: int


class Link(Answer):
    """A link to another span."""

    trace_id: str
    span_id: str
    trace_state: str
    flags: int
    attributes: Attributes
    duplicate_attributes: Duplicates
    dropped_attributes_count: int


class Resource(Answer):
    """What sent the span."""

    attributes: Attributes
    duplicate_attributes: Duplicates
    dropped_attributes_count: int
    schema_url: str


class Scope(Answer):
    """The instrumentation that made the span."""

    name: str
    version: str
    attributes: Attributes
    duplicate_attributes: Duplicates
    dropped_attributes_count: int
    schema_url: str


class Usage(Answer):
    """Tokens and cost."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int = Field(description="Part of the input tokens.")
    reasoning_tokens: int = Field(description="Part of the output tokens.")
    cost_usd: float | None = Field(description="null where nothing of it is known.")


class SpanUsage(Usage):
    """What one span says it spent."""

    counts: bool = Field(description="Whether the trace's usage has it.")
    reason: Literal["rollup", "duplicate"] | None = Field(
        description="Why not: it repeats what its children spent, or another span records the same call."
    )
    duplicate_of: SpanId | None = Field(description="The span that counts instead.")
    cost_source: Literal["span", "price"] | None = Field(description="Who says the cost: the span, or the price table.")


class Span(Answer):
    """One span as it was sent; it stands alone, so resource and scope are in each."""

    trace_id: TraceId
    span_id: SpanId
    parent_span_id: Literal[""] | SpanId = Field(description="Empty in a root, also if the sender wrote zeros.")
    trace_state: str
    flags: int
    name: str
    kind: Literal["unspecified", "internal", "server", "client", "producer", "consumer"] | int = Field(
        description="An integer if OTLP does not know it (yet)."
    )
    service: str
    start_time_unix_nano: Nano
    end_time_unix_nano: Nano
    duration_nano: Nano = Field(description='End less start, so it can be negative; "0" while either is not set.')
    status: Status
    attributes: Attributes
    duplicate_attributes: Duplicates
    dropped_attributes_count: int
    canonical: dict[str, str | int | float | list[str]] = Field(
        description="What the span is about, in the same words whoever wrote it; what is unknown is absent.",
        examples=[{"operation_kind": "llm", "provider": "openai", "request_model": "gpt-4o-mini", "input_tokens": 108}],
    )
    usage: SpanUsage | None = Field(description="null where the span says nothing of tokens and cost.")
    subtree_usage: Usage | None = Field(description="Of the span and all below it; null where nothing was spent.")
    events: list[Event]
    dropped_events_count: int
    links: list[Link]
    dropped_links_count: int
    resource: Resource
    scope: Scope
    children: list["Span"] = Field(
        default_factory=list, description="format=tree only: by start time, then span id. As deep as the trace is."
    )


class IntegrityCounts(Answer):
    """How many there are of each, also beyond the entries that are listed."""

    roots: int
    orphans: int = Field(description="Spans whose parent is missing.")
    missing_parents: int
    duplicate_span_ids: int
    cycles: int
    spans_in_cycles: int
    clock_skew: int
    times: int


class ClockSkew(Answer):
    """A span that starts before its parent, which another resource timed: two clocks disagree by at least that."""

    span_id: SpanId
    parent_span_id: SpanId
    starts_before_parent_nano: Nano
    ends_after_parent_nano: Nano | None = Field(
        description="Child's end less parent's end, negative if it ends before; null while either has no end."
    )


class TimeProblem(Answer):
    """A time that cannot be right, shown as it was sent."""

    span_id: SpanId
    problem: Problem = Field(
        description="`start before parent's start`: of one and the same resource, so it is no clock skew. `beyond the "
        "representable range`: after 2262-04-11 (2^63 nanoseconds), which no list or search can tell apart."
    )


class Integrity(Answer):
    """How far the tree can be trusted. Every list holds at most 1,000 entries (span ids in those of ids)."""

    complete: bool = Field(
        description="Nothing is known to be missing: there is a root, every parent is here, no cycle, not truncated."
    )
    root: RootState = Field(
        description="`late`: no root yet, but spans came within the last 60 seconds; parents are often exported last."
    )
    roots: list[SpanId] = Field(description="Spans without a parent; a whole trace has one.")
    orphans: dict[str, list[SpanId]] = Field(description="Missing parent's span id to the spans that name it.")
    duplicate_span_ids: list[SpanId] = Field(
        description="Ids that different spans bear. All are shown; children hang from the earliest."
    )
    cycles: list[list[SpanId]] = Field(
        description="From parent to child, beginning with the earliest span, where the tree cuts the cycle."
    )
    clock_skew: list[ClockSkew] = Field(description="No time is ever moved. A child may well end after its parent.")
    times: list[TimeProblem]
    truncated: bool = Field(description="The trace has more spans than an answer holds; some may look like orphans.")
    counts: IntegrityCounts


class Trace(Answer):
    """One trace. With format=flat the spans are in order of start, with format=tree nested."""

    trace_id: TraceId
    root: Root | None
    start_time_unix_nano: Nano = Field(description="The earliest start; times that are not set or out of range aside.")
    duration_nano: Nano = Field(description="From the earliest start to the latest end.")
    span_count: int
    error_count: int
    services: list[str] = Field(description="Sorted.")
    integrity: Integrity
    usage: Usage = Field(description="Of the whole trace, each call counted once.")
    links: dict[str, Any] = Field(
        description="What the trace belongs to: run, experiment, model_version, logged_model, prompt, session, agent, "
        "user; each with its provenance and what is known of it.",
        examples=[{"run": {"id": "4f2c…", "provenance": "span"}, "session": {"id": "s-1", "provenance": "span"}}],
    )
    assessments: list[dict[str, Any]] = Field(
        description="Feedback, expectations and scores of the trace and its spans."
    )
    spans: list[Span] = Field(
        description="format=tree, the top level: roots, then orphans by missing parent, then one span of each cycle."
    )


class SummaryRoot(Answer):
    """The root span of a listed trace."""

    service: str = Field(examples=["support-bot"])
    name: str = Field(examples=["invoke_agent support"])


Weight = Annotated[
    float,
    Field(
        description="How many such traces came, itself included: more than 1 if the others were left out by sampling.",
        examples=[1.0],
    ),
]


class TraceSummary(Answer):
    """One trace in a list."""

    trace_id: TraceId
    root: SummaryRoot | None
    start_time_unix_nano: Nano
    duration_nano: Nano
    span_count: int
    error_count: int
    services: list[str]
    weight: Weight


class TraceList(Answer):
    """A page of traces, newest first."""

    traces: list[TraceSummary]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null at the end.")


class Health(Answer):
    """The process is alive."""

    status: Literal["ok"]


class Readiness(Answer):
    """All parts answer."""

    status: Literal["ready"]
