"""What the trace list is asked for and what it gives: the words between api.py and the SQL of traces.py."""

from dataclasses import dataclass, field

from query.assessed import AssessmentFilter


class BadCursor(ValueError):
    """The cursor was not made by this list, or belongs to other filters. The message is a whole answer."""


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Which traces to list; None and an empty list ask for nothing.

    A trace is listed when one single span satisfies service, name and every attribute together; with status "error",
    that same span has the status ERROR. "ok": no span of the trace has ERROR, and at least one has OK. "unset": no
    span of the trace has ERROR or OK. Besides, the trace starts within [start_unix_nano, end_unix_nano), and lasts
    between the two durations (inclusive, of the whole trace, in nanoseconds).

    An attribute is satisfied when the span or its resource has a string, a number or a boolean of the value that the
    text names.
    """

    start_unix_nano: int | None = None
    end_unix_nano: int | None = None
    service: str | None = None
    name: str | None = None
    status: str | None = None
    """'error', 'ok' or 'unset'."""
    min_duration_nano: int | None = None
    max_duration_nano: int | None = None
    attributes: list[tuple[str, str]] = field(default_factory=list)
    assessments: list[AssessmentFilter] = field(default_factory=list)
    """Each is met by an assessment of the trace or of one of its spans."""


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """One trace in a list. Without a root span (not come yet, or never) `root_service` and `root_name` are None."""

    trace_id: str
    """Lower-case hex."""
    root_service: str | None
    root_name: str | None
    start_time_unix_nano: int
    duration_nano: int
    span_count: int
    error_count: int
    services: list[str]
    weight: float = 1.0
    """How many such traces came, itself included; more than 1 if the others were left out by sampling."""


@dataclass(frozen=True, slots=True)
class TracePage:
    """Newest first. `next_cursor` continues after the last one, None when there are no more."""

    traces: list[TraceSummary]
    next_cursor: str | None
