"""Columns of the store → spans of OTLP: the reverse of storage/decode.py. Pure; strings come as bytes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from query import messages
from storage.spans import Attributes, Event, Link, Nested, Resource, Scope, Span, Value
from storage.vocabulary import Vocabulary, canonical

ROOT = bytes(8)
ORIGIN = 33
"""The column of sql/trace_spans.sql that names a span's origin."""

START_REPLACED, END_REPLACED = 1, 2
"""Bits of TimeFlags (storage/schema/0001_skeleton.sql)."""


def tagged_value(encoded: bytes) -> Value:
    """A value kept as one letter for its type and its text or wire bytes."""
    return _DECODERS[encoded[:1]](encoded[1:])


_DECODERS: dict[bytes, Callable[[bytes], Value]] = {
    b"s": lambda text: text.decode(errors="replace"),
    b"i": int,
    b"d": float,
    b"b": lambda text: text == b"true",
    b"a": lambda wire: Nested("array", wire),
    b"m": lambda wire: Nested("kvlist", wire),
    b"y": bytes,
    b"e": lambda _: None,
}


class Keys(dict[bytes, str]):
    """Keys repeat in every span: each is decoded once, and is one object."""

    def __missing__(self, key: bytes) -> str:
        self[key] = text = key.decode(errors="replace")
        return text


def tagged(names: Keys, keys: Sequence[bytes], values: Sequence[bytes]) -> Attributes:
    """Attributes of a map of tagged values."""
    return [(names[k], tagged_value(v)) for k, v in zip(keys, values, strict=True)]


def strings(names: Keys, keys: Sequence[bytes], values: Sequence[bytes]) -> Attributes:
    """Attributes of a map of strings."""
    return [(names[k], v.decode(errors="replace")) for k, v in zip(keys, values, strict=True)]


def origins(columns: Iterable[Sequence[Any]], vocabulary: Vocabulary) -> dict[int, tuple[Resource, Scope]]:
    """Columns of sql/origins.sql → the resource and the scope of each id."""
    names = Keys()
    found = {}
    for row in zip(*columns, strict=True):
        origin, keys, values, dropped, url, name, version, scope_keys, scope_values, scope_dropped, scope_url = row
        attributes = tagged(names, keys, values)
        resource = Resource(attributes, dropped, url.decode(errors="replace"), vocabulary.of_resource(attributes))
        scope = Scope(
            name.decode(errors="replace"),
            version.decode(errors="replace"),
            tagged(names, scope_keys, scope_values),
            scope_dropped,
            scope_url.decode(errors="replace"),
        )
        found[origin] = (resource, scope)
    return found


def content(columns: Iterable[Sequence[Any]]) -> dict[int, Attributes]:
    """Columns of sql/trace_content.sql → the payload attributes of each span, by its key."""
    names = Keys()
    return {
        key: strings(names, keys, values) + tagged(names, other_keys, other_values)
        for key, keys, values, other_keys, other_values in zip(*columns, strict=True)
    }


def spans(
    trace_id: bytes,
    columns: Iterable[Sequence[Any]],
    known_origins: dict[int, tuple[Resource, Scope]],
    payload: dict[int, Attributes],
) -> list[Span]:
    """Columns of sql/trace_spans.sql → spans, in the order of the rows."""
    names = Keys()
    return [_span(trace_id, names, row, known_origins, payload) for row in zip(*columns, strict=True)]


def _link(names: Keys, wire: bytes) -> Link:
    link = messages.Link.FromString(wire)
    return Link(
        link.trace_id,
        link.span_id,
        link.trace_state,
        [(names[pair.key.encode()], _value(pair.value)) for pair in link.attributes],
        link.dropped_attributes_count,
        link.flags,
    )


def _value(value: Any) -> Value:
    """A value of messages.py."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return Nested("array", value.array_value)
    if kind == "kvlist_value":
        return Nested("kvlist", value.kvlist_value)
    held: Value = getattr(value, kind)
    return held


def _span(
    trace_id: bytes,
    names: Keys,
    row: tuple[Any, ...],
    known_origins: dict[int, tuple[Resource, Scope]],
    payload: dict[int, Attributes],
) -> Span:
    span_id, parent, timestamp, duration, flags, start_sent, end_sent, service, name, kind, code, message = row[:12]
    trace_state, span_flags, sk, sv, ik, iv, fk, fv, bk, bv, ok, ov, dropped = row[12:25]
    event_times, event_names, event_keys, event_values, event_dropped, dropped_events = row[25:31]
    links, dropped_links, origin, received, key, canonical_keys, canonical_values = row[31:]
    attributes = strings(names, sk, sv)
    for keys, values in ((ik, iv), (fk, fv), (bk, bv)):
        attributes += [(names[k], v) for k, v in zip(keys, values, strict=True)]
    attributes += tagged(names, ok, ov)
    attributes += payload.get(key, ())
    resource, scope = known_origins[origin]
    said = {names[k]: v.decode(errors="replace") for k, v in zip(canonical_keys, canonical_values, strict=True)}
    return Span(
        trace_id=trace_id,
        span_id=span_id,
        parent_span_id=b"" if parent == ROOT else parent,
        trace_state=trace_state.decode(errors="replace"),
        flags=span_flags,
        name=name.decode(errors="replace"),
        kind=kind,
        start_time_unix_nano=start_sent if flags & START_REPLACED else timestamp,
        end_time_unix_nano=end_sent if flags & END_REPLACED else timestamp + duration,
        status_code=code,
        status_message=message.decode(errors="replace"),
        attributes=attributes,
        dropped_attributes_count=dropped,
        events=[
            Event(at, names[label], tagged(names, keys, values), lost)
            for at, label, keys, values, lost in zip(
                event_times, event_names, event_keys, event_values, event_dropped, strict=True
            )
        ],
        dropped_events_count=dropped_events,
        links=[_link(names, wire) for wire in links],
        dropped_links_count=dropped_links,
        resource=resource,
        scope=scope,
        service=service.decode(errors="replace"),
        received_unix_nano=received * 1_000_000_000,
        said=said,
        canonical=canonical(said, resource.said),
    )
