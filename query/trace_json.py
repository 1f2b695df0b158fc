"""One trace as JSON, in the shape that answers.Trace describes, written in pieces: nested or flat.

Runs on the thread of the request that asked. A tree is written as it is walked, since orjson and json both recurse and
end at a few hundred levels; each span's own members are written by orjson. Beyond the spans, memory holds one piece.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from query.integrity import TIME_MAX_UNIX_NANO, examine
from query.plain import plain_attributes
from query.spending import Price, Spending
from query.tree import Tree
from storage.spans import Event, Link, Resource, Scope, Span

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
STATUSES = ("unset", "ok", "error")
ERROR = 2


def pieces(
    tree: Tree, *, nested: bool, truncated: bool, now_unix_nano: int, price: Price, about: Mapping[str, Any]
) -> Iterator[bytes]:
    """The whole answer. What is said of the trace comes first, so a reader can stop before the spans.

    `tree` has at least one span. `about` is what is known of the trace beside its spans: links and assessments.
    """
    spending = Spending(tree, price)
    head = _summary(tree.spans)
    head["root"] = _root(tree)
    head["integrity"] = examine(tree, truncated=truncated, now_unix_nano=now_unix_nano).model_dump()
    head["usage"] = spending.of_trace()
    head |= about
    return _pieces(orjson.dumps(head), tree, nested, spending)


def _pieces(head: bytes, tree: Tree, nested: bool, spending: Spending) -> Iterator[bytes]:
    yield head[:-1] + b',"spans":['
    yield from _nested(tree, spending) if nested else _flat(tree, spending)
    yield b"]}"


def _nested(tree: Tree, spending: Spending) -> Iterator[bytes]:
    writer = _SpanWriter(spending)
    last = -1
    for index, depth in tree.walk():
        if depth <= last:
            yield b"]}" * (last - depth + 1) + b","
        yield writer.write(index, tree.spans[index])[:-1] + b',"children":['
        last = depth
    yield b"]}" * (last + 1)


def _flat(tree: Tree, spending: Spending) -> Iterator[bytes]:
    writer = _SpanWriter(spending)
    for index, span in enumerate(tree.spans):
        yield b"," * bool(index) + writer.write(index, span)


def _summary(spans: list[Span]) -> dict[str, Any]:
    """What is said of the whole trace; `spans` by start."""
    starts = [span.start_time_unix_nano for span in spans if 0 < span.start_time_unix_nano <= TIME_MAX_UNIX_NANO]
    ends = [span.end_time_unix_nano for span in spans if 0 < span.end_time_unix_nano <= TIME_MAX_UNIX_NANO]
    start = starts[0] if starts else 0
    # The last start counts as an end too: that span may not have ended, or "ended" before it began.
    latest = max(starts[-1:] + ends, default=0)
    return {
        "trace_id": spans[0].trace_id.hex(),
        "start_time_unix_nano": str(start),
        "duration_nano": str(latest - start if starts else 0),
        "span_count": len(spans),
        "error_count": sum(span.status_code == ERROR for span in spans),
        "services": sorted({span.service for span in spans}),
    }


def _root(tree: Tree) -> dict[str, str] | None:
    if not tree.roots:
        return None
    root = tree.spans[tree.roots[0]]
    return {"service": root.service, "name": root.name, "span_id": root.span_id.hex()}


class _SpanWriter:
    """Writes spans of one trace; a resource or scope that many spans share is turned into text once."""

    def __init__(self, spending: Spending) -> None:
        self._spending = spending
        self._shared: dict[int, orjson.Fragment] = {}  # by identity: the tree keeps the objects alive

    def write(self, index: int, span: Span) -> bytes:
        start, end = span.start_time_unix_nano, span.end_time_unix_nano
        return orjson.dumps(
            {
                "trace_id": span.trace_id.hex(),
                "span_id": span.span_id.hex(),
                "parent_span_id": span.parent_span_id.hex() if any(span.parent_span_id) else "",
                "trace_state": span.trace_state,
                "flags": span.flags,
                "name": span.name,
                "kind": _word(KINDS, span.kind),
                "service": span.service,
                "start_time_unix_nano": str(start),
                "end_time_unix_nano": str(end),
                "duration_nano": str(end - start) if start and end else "0",
                "status": {"code": _word(STATUSES, span.status_code), "message": span.status_message},
                **plain_attributes(span.attributes),
                "dropped_attributes_count": span.dropped_attributes_count,
                "canonical": span.canonical,
                "usage": self._spending.of_span(index),
                "subtree_usage": self._spending.of_subtree(index),
                "events": [_event(event) for event in span.events],
                "dropped_events_count": span.dropped_events_count,
                "links": [_link(link) for link in span.links],
                "dropped_links_count": span.dropped_links_count,
                "resource": self._shared.get(id(span.resource)) or self._resource(span.resource),
                "scope": self._shared.get(id(span.scope)) or self._scope(span.scope),
            }
        )

    def _resource(self, resource: Resource) -> orjson.Fragment:
        json = {
            **plain_attributes(resource.attributes),
            "dropped_attributes_count": resource.dropped_attributes_count,
            "schema_url": resource.schema_url,
        }
        return self._shared.setdefault(id(resource), orjson.Fragment(orjson.dumps(json)))

    def _scope(self, scope: Scope) -> orjson.Fragment:
        json = {
            "name": scope.name,
            "version": scope.version,
            **plain_attributes(scope.attributes),
            "dropped_attributes_count": scope.dropped_attributes_count,
            "schema_url": scope.schema_url,
        }
        return self._shared.setdefault(id(scope), orjson.Fragment(orjson.dumps(json)))


def _word(words: tuple[str, ...], number: int) -> str | int:
    """A word for what OTLP knows; a number that it does not know is kept."""
    return words[number] if 0 <= number < len(words) else number


def _event(event: Event) -> dict[str, Any]:
    return {
        "time_unix_nano": str(event.time_unix_nano),
        "name": event.name,
        **plain_attributes(event.attributes),
        "dropped_attributes_count": event.dropped_attributes_count,
    }


def _link(link: Link) -> dict[str, Any]:
    return {
        "trace_id": link.trace_id.hex(),
        "span_id": link.span_id.hex(),
        "trace_state": link.trace_state,
        "flags": link.flags,
        **plain_attributes(link.attributes),
        "dropped_attributes_count": link.dropped_attributes_count,
    }
