"""A stored trace as OTLP again: the JSON and the protobuf encoding of TracesData, exact in meaning to what was sent.

Spans are grouped by resource and scope as these were sent, in the order of their first span. Both encodings come as a
stream of pieces, made on the thread of the request that asked.

JSON is the OTLP kind (OTLP specification, "JSON Protobuf Encoding"): ids in lower-case hex, enumerations as integers,
64-bit integers as strings, fields at their default left out.

Nested values go into protobuf in the wire bytes they came in. One whose bytes are not valid (nested.py) would make the
whole message one that no reader takes; it is given as bytes, `bytesValue` in JSON and `bytes_value` in protobuf.
"""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from query import messages
from query.nested import Form, is_valid, nested_json
from query.plain import json_double
from storage.spans import Attributes, Event, Link, Nested, Resource, Scope, Span, Value

BATCH_SPANS = 1_000
"""Spans in one piece of protobuf. A larger group comes as several ScopeSpans of equal resource and scope."""


@dataclass(slots=True)
class Group:
    """The spans of one trace that share a resource, and within it a scope."""

    resource: Resource
    scopes: list[tuple[Scope, list[Span]]]


def group(spans: list[Span]) -> list[Group]:
    """Spans by resource and scope. Equal ones are one, even when they came in different requests."""
    groups: dict[bytes, Group] = {}
    spans_of: dict[tuple[bytes, bytes], list[Span]] = {}
    keys: dict[int, bytes] = {}  # by identity: the store shares these objects between spans
    for span in spans:
        resource, scope = span.resource, span.scope
        resource_key = keys.get(id(resource))
        if resource_key is None:
            resource_key = keys[id(resource)] = orjson.dumps([_resource_json(resource), resource.schema_url])
        scope_key = keys.get(id(scope))
        if scope_key is None:
            scope_key = keys[id(scope)] = orjson.dumps([_scope_json(scope), scope.schema_url])
        members = spans_of.get((resource_key, scope_key))
        if members is None:
            members = spans_of[resource_key, scope_key] = []
            groups.setdefault(resource_key, Group(resource, [])).scopes.append((scope, members))
        members.append(span)
    return list(groups.values())


def json_pieces(spans: list[Span]) -> Iterator[bytes]:
    """`{"resourceSpans": […]}`, a piece for each span."""
    yield b'{"resourceSpans":['
    for index, one in enumerate(group(spans)):
        yield b"," * bool(index) + b'{"resource":' + orjson.dumps(_resource_json(one.resource)) + b',"scopeSpans":['
        for scope_index, (scope, members) in enumerate(one.scopes):
            yield b"," * bool(scope_index) + b'{"scope":' + orjson.dumps(_scope_json(scope)) + b',"spans":['
            for span_index, span in enumerate(members):
                yield b"," * bool(span_index) + orjson.dumps(_span_json(span))
            yield b"]" + _schema_url_json(scope.schema_url) + b"}"
        yield b"]" + _schema_url_json(one.resource.schema_url) + b"}"
    yield b"]}"


def protobuf_pieces(spans: list[Span]) -> Iterator[bytes]:
    """One TracesData message, in pieces that are messages themselves: protobuf joins repeated fields when it reads."""
    for one in group(spans):
        for scope, members in one.scopes:
            for first in range(0, len(members), BATCH_SPANS):
                data = messages.TracesData()
                resource_spans = data.resource_spans.add(schema_url=one.resource.schema_url)
                _fill_resource(resource_spans.resource, one.resource)
                scope_spans = resource_spans.scope_spans.add(schema_url=scope.schema_url)
                _fill_scope(scope_spans.scope, scope)
                for span in members[first : first + BATCH_SPANS]:
                    _fill_span(scope_spans.spans.add(), span)
                yield data.SerializeToString()


# JSON


def _schema_url_json(schema_url: str) -> bytes:
    return b',"schemaUrl":' + orjson.dumps(schema_url) if schema_url else b""


def _without_defaults(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _attributes_json(attributes: Attributes) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value_json(value)} for key, value in attributes]


def _value_json(value: Value) -> Any:  # noqa: PLR0911 one return for each type of OTLP
    match value:
        case None:
            return {}
        case str():
            return {"stringValue": value}
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": json_double(value)}
        case bytes():
            return {"bytesValue": b64encode(value).decode()}
        case Nested():
            return nested_json(value, OTLP_JSON) or _value_json(value.wire)


OTLP_JSON = Form(
    opening={"array": b'{"arrayValue":{"values":[', "kvlist": b'{"kvlistValue":{"values":['},
    closing={"array": b"]}}", "kvlist": b"]}}"},
    pair=(b'{"key":', b',"value":', b"}"),
    scalar=_value_json,
    unique_keys=False,
)


def _resource_json(resource: Resource) -> dict[str, Any]:
    return _without_defaults(
        attributes=_attributes_json(resource.attributes), droppedAttributesCount=resource.dropped_attributes_count
    )


def _scope_json(scope: Scope) -> dict[str, Any]:
    return _without_defaults(
        name=scope.name,
        version=scope.version,
        attributes=_attributes_json(scope.attributes),
        droppedAttributesCount=scope.dropped_attributes_count,
    )


def _span_json(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace_id.hex(),
        "spanId": span.span_id.hex(),
        "name": span.name,
        "startTimeUnixNano": str(span.start_time_unix_nano),
        "endTimeUnixNano": str(span.end_time_unix_nano),
        **_without_defaults(
            parentSpanId=span.parent_span_id.hex(),
            traceState=span.trace_state,
            flags=span.flags,
            kind=span.kind,
            attributes=_attributes_json(span.attributes),
            droppedAttributesCount=span.dropped_attributes_count,
            events=[_event_json(event) for event in span.events],
            droppedEventsCount=span.dropped_events_count,
            links=[_link_json(link) for link in span.links],
            droppedLinksCount=span.dropped_links_count,
        ),
        "status": _without_defaults(code=span.status_code, message=span.status_message),
    }


def _event_json(event: Event) -> dict[str, Any]:
    return _without_defaults(
        timeUnixNano=str(event.time_unix_nano),
        name=event.name,
        attributes=_attributes_json(event.attributes),
        droppedAttributesCount=event.dropped_attributes_count,
    )


def _link_json(link: Link) -> dict[str, Any]:
    return _without_defaults(
        traceId=link.trace_id.hex(),
        spanId=link.span_id.hex(),
        traceState=link.trace_state,
        attributes=_attributes_json(link.attributes),
        droppedAttributesCount=link.dropped_attributes_count,
        flags=link.flags,
    )


# Protobuf


def _fill_attributes(pairs: Any, attributes: Attributes) -> None:
    for key, value in attributes:
        _fill_value(pairs.add(key=key).value, value)


def _fill_value(target: Any, value: Value) -> None:
    match value:
        case None:
            target.SetInParent()  # present, and no member set
        case str():
            target.string_value = value
        case bool():
            target.bool_value = value
        case int():
            target.int_value = value
        case float():
            target.double_value = value
        case bytes():
            target.bytes_value = value
        case Nested() if not is_valid(value, OTLP_JSON):
            target.bytes_value = value.wire
        case Nested(kind="array"):
            target.array_value = value.wire
        case Nested():
            target.kvlist_value = value.wire


def _fill_resource(target: Any, resource: Resource) -> None:
    target.SetInParent()
    target.dropped_attributes_count = resource.dropped_attributes_count
    _fill_attributes(target.attributes, resource.attributes)


def _fill_scope(target: Any, scope: Scope) -> None:
    target.SetInParent()
    target.name, target.version = scope.name, scope.version
    target.dropped_attributes_count = scope.dropped_attributes_count
    _fill_attributes(target.attributes, scope.attributes)


def _fill_span(target: Any, span: Span) -> None:
    target.trace_id, target.span_id, target.parent_span_id = span.trace_id, span.span_id, span.parent_span_id
    target.trace_state, target.flags, target.name = span.trace_state, span.flags, span.name
    target.kind = span.kind  # open enumeration: a number that we do not know is kept
    target.start_time_unix_nano, target.end_time_unix_nano = span.start_time_unix_nano, span.end_time_unix_nano
    target.dropped_attributes_count = span.dropped_attributes_count
    target.dropped_events_count, target.dropped_links_count = span.dropped_events_count, span.dropped_links_count
    target.status.SetInParent()
    target.status.code, target.status.message = span.status_code, span.status_message
    _fill_attributes(target.attributes, span.attributes)
    for event in span.events:
        added = target.events.add(
            time_unix_nano=event.time_unix_nano,
            name=event.name,
            dropped_attributes_count=event.dropped_attributes_count,
        )
        _fill_attributes(added.attributes, event.attributes)
    for link in span.links:
        linked = target.links.add(
            trace_id=link.trace_id,
            span_id=link.span_id,
            trace_state=link.trace_state,
            dropped_attributes_count=link.dropped_attributes_count,
            flags=link.flags,
        )
        _fill_attributes(linked.attributes, link.attributes)
