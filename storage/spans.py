"""What a stored span looks like when it is read back.

OTLP's names, OTLP's types (opentelemetry-proto, trace/v1 and common/v1), so that what an exporter sent can be rebuilt
exactly.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Nested:
    """An ArrayValue or KeyValueList in the wire bytes it came in. Nothing has looked inside: it may be of any depth."""

    kind: Literal["array", "kvlist"]
    wire: bytes


Value = None | str | bool | int | float | bytes | Nested
"""One AnyValue. None is an AnyValue with no member set."""

Canonical = dict[str, str | int | float | list[str]]
"""Canonical fields (storage/conventions.toml) and their values; what is unknown is absent."""

Attributes = list[tuple[str, Value]]
"""Key and value, duplicates kept. The order among values of different types is not the sender's."""


@dataclass(slots=True)
class Resource:
    """The resource of a span, and the schema URL of its ResourceSpans."""

    attributes: Attributes
    dropped_attributes_count: int
    schema_url: str
    said: dict[str, str] = field(default_factory=dict)
    """What it says for its spans in canonical words."""


@dataclass(slots=True)
class Scope:
    """The instrumentation scope of a span, and the schema URL of its ScopeSpans."""

    name: str
    version: str
    attributes: Attributes
    dropped_attributes_count: int
    schema_url: str


@dataclass(slots=True)
class Event:
    """A timed event of a span."""

    time_unix_nano: int
    name: str
    attributes: Attributes
    dropped_attributes_count: int


@dataclass(slots=True)
class Link:
    """A link from a span to another span, mostly of another trace."""

    trace_id: bytes
    span_id: bytes
    trace_state: str
    attributes: Attributes
    dropped_attributes_count: int
    flags: int


@dataclass(slots=True)
class Span:
    """One span as it was sent; times are the uint64 nanoseconds of the sender, even where the store had to clamp."""

    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    trace_state: str
    flags: int
    name: str
    kind: int
    start_time_unix_nano: int
    end_time_unix_nano: int
    status_code: int
    status_message: str
    attributes: Attributes
    dropped_attributes_count: int
    events: list[Event]
    dropped_events_count: int
    links: list[Link]
    dropped_links_count: int
    resource: Resource
    scope: Scope
    service: str
    received_unix_nano: int
    said: dict[str, str] = field(default_factory=dict)
    """What the span itself says in canonical words; `trace.`, `baggage.` and `header.` before what was said there."""
    canonical: Canonical = field(default_factory=dict)
    """What is known of it in canonical words, from any place; unknown is absent."""
