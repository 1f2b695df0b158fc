"""Stored spans made by hand, for tests of what is done with them after they are read."""

from storage.spans import Attributes, Event, Link, Resource, Scope, Span

TRACE_ID = bytes.fromhex("5b8efff798038103d269b633813fc60c")
START = 1_764_000_000_000_000_000
SCOPE = Scope("made", "1.0", [], 0, "")


def resource(service: str, *attributes: tuple[str, str]) -> Resource:
    return Resource([("service.name", service), *attributes], 0, "")


SHOP = resource("shop")


def span_id(number: int) -> bytes:
    return number.to_bytes(8, "big")


def span(
    number: int,
    parent: int | bytes | None = None,
    *,
    start: int = START,
    end: int | None = None,
    resource: Resource = SHOP,
    scope: Scope = SCOPE,
    attributes: Attributes | None = None,
    events: list[Event] | None = None,
    links: list[Link] | None = None,
    status: int = 0,
    kind: int = 1,
    received: int = START,
    name: str | None = None,
) -> Span:
    """One span; `number` and `parent` are span ids as integers. Without `end` it takes a microsecond."""
    return Span(
        trace_id=TRACE_ID,
        span_id=span_id(number),
        parent_span_id=parent if isinstance(parent, bytes) else b"" if parent is None else span_id(parent),
        trace_state="",
        flags=1,
        name=f"span {number}" if name is None else name,
        kind=kind,
        start_time_unix_nano=start,
        end_time_unix_nano=start + 1000 if end is None else end,
        status_code=status,
        status_message="",
        attributes=attributes or [],
        dropped_attributes_count=0,
        events=events or [],
        dropped_events_count=0,
        links=links or [],
        dropped_links_count=0,
        resource=resource,
        scope=scope,
        service=str(dict(resource.attributes).get("service.name", "")),
        received_unix_nano=received,
    )
