"""What of a request is good: its bytes as they came, or encoded anew without the spans that cannot be kept.

Owns the validity of a request. A good one costs one parse in C and a few iterations in C over its ids; no Python runs
for a span and no attribute is looked at. Only when something is wrong does the slow part run and name the spans.

A span is rejected when an id of it is none, or when a string in it is not UTF-8; a bad string in a resource or scope
condemns its spans. Pure; runs on the receiver's thread.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from collector.schema import LENIENT, STRICT
from collector.status import BadRequest, TooLarge

# Attributes, events or links of a request: the engine takes some 350 bytes for each at a time. One takes two bytes at
# least, so only a request of more than twice as many bytes is looked through for them: it costs 3 µs a span.
PARTS_MAX = 2_000_000

MESSAGE_BYTES_MAX = 2048
_FAULTS_SHOWN = 8

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_NO_TRACE, _NO_SPAN = bytes(_TRACE_ID_BYTES), bytes(_SPAN_ID_BYTES)

_parse, _parse_leniently = STRICT["Request"].FromString, LENIENT["Request"].FromString
_scopes_of, _spans_of = attrgetter("scope_spans"), attrgetter("spans")
_resource_of, _scope_of, _attributes_of = attrgetter("resource"), attrgetter("scope"), attrgetter("attributes")
_events_of, _links_of = attrgetter("events"), attrgetter("links")
_trace_id_of, _span_id_of, _parent_of = attrgetter("trace_id"), attrgetter("span_id"), attrgetter("parent_span_id")


@dataclass(frozen=True, slots=True)
class Sifted:
    """What is kept: `request` holds `spans` spans. `rejected` more were in it; `message` (2 KiB at most) says why."""

    request: bytes
    spans: int
    rejected: int = 0
    message: str = ""


def sift(body: bytes, spans_max: int) -> Sifted:
    """Sift an encoded ExportTraceServiceRequest.

    Raises BadRequest when it cannot be decoded and TooLarge when it holds more than `spans_max` spans, scopes or
    resources, or more than PARTS_MAX attributes, events or links.
    """
    try:
        request: Any = _parse(body)
    except DecodeError:
        # Not protobuf, or a string that is not UTF-8: only the lenient classes can tell, and find the string.
        request = _lenient(body)
        spans = _counted(request.resource_spans, len(body), spans_max)
        return _sift_out(request, len(spans), strings=True)
    spans = _counted(request.resource_spans, len(body), spans_max)
    if _ids_are_good(spans):
        return Sifted(body, len(spans))
    return _sift_out(request, len(spans), strings=False)


def _lenient(body: bytes) -> Any:
    try:
        return _parse_leniently(body)
    except DecodeError as error:
        raise BadRequest(
            f"cannot decode {len(body)} bytes as a protobuf ExportTraceServiceRequest: they are cut short or no OTLP"
        ) from error


def _counted(resources: Any, size: int, spans_max: int) -> list[Any]:
    """All spans of a request of `size` bytes. Raises TooLarge when there is too much of anything in it.

    Counted from the outside inwards, before there is a Python object for each: an empty message takes two bytes on
    the wire and hundreds as an object, and making them holds up all other threads.
    """
    _limit("resources", len(resources), spans_max)
    _limit("scopes", sum(map(len, map(_scopes_of, resources))), spans_max)
    scopes = list(chain.from_iterable(map(_scopes_of, resources)))
    _limit("spans", sum(map(len, map(_spans_of, scopes))), spans_max)
    spans = list(chain.from_iterable(map(_spans_of, scopes)))
    if size > 2 * PARTS_MAX:
        _limit("events", sum(map(len, map(_events_of, spans))), PARTS_MAX)
        _limit("links", sum(map(len, map(_links_of, spans))), PARTS_MAX)
        parts = chain.from_iterable(chain(map(_events_of, spans), map(_links_of, spans)))
        holders = chain(map(_resource_of, resources), map(_scope_of, scopes), spans, parts)
        _limit("attributes", sum(map(len, map(_attributes_of, holders))), PARTS_MAX)
    return spans


def _limit(what: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise TooLarge(f"cannot take {count} {what} in one request, {count_max} is the limit: send smaller batches")


def _ids_are_good(spans: list[Any]) -> bool:
    trace_ids, span_ids = set(map(_trace_id_of, spans)), list(map(_span_id_of, spans))
    return not spans or (
        set(map(len, trace_ids)) == {_TRACE_ID_BYTES}
        and set(map(len, span_ids)) == {_SPAN_ID_BYTES}
        and {0, _SPAN_ID_BYTES}.issuperset(map(len, map(_parent_of, spans)))
        and _NO_TRACE not in trace_ids
        and _NO_SPAN not in span_ids
    )


# --- the slow part: something is wrong ----------------------------------------------------------------------------


class _Rejections:
    """Counts what was rejected and words it for the sender."""

    def __init__(self) -> None:
        self.spans = 0
        self._shown: list[str] = []
        self._faults = 0

    def add(self, spans: int, place: str, fault: str) -> None:
        self.spans += spans
        self._faults += 1
        if self._faults <= _FAULTS_SHOWN:
            self._shown.append(f"{place}: {fault}"[:200])

    def message(self, spans: int) -> str:
        if not self.spans:
            return ""
        more = f"; and {self._faults - _FAULTS_SHOWN} more" if self._faults > _FAULTS_SHOWN else ""
        text = f"rejected {self.spans} of {spans} spans, kept the others: {'; '.join(self._shown)}{more}"
        return text.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")


def _sift_out(request: Any, spans: int, *, strings: bool) -> Sifted:
    """Drop what cannot be kept from `request`; `strings` says that it came through the lenient classes."""
    rejections = _Rejections()
    condemned = []
    for i, resource_spans in enumerate(request.resource_spans):
        place = f"resource_spans[{i}]"
        fault = _string_fault_beside(resource_spans, "scope_spans") if strings else ""
        condemned.append(bool(fault))
        if fault:
            rejections.add(sum(map(len, map(_spans_of, resource_spans.scope_spans))), place, fault)
        else:
            _sift_scopes(resource_spans, place, rejections, strings)
    _drop(request.resource_spans, condemned)
    return Sifted(request.SerializeToString(), spans - rejections.spans, rejections.spans, rejections.message(spans))


def _sift_scopes(resource_spans: Any, place: str, rejections: _Rejections, strings: bool) -> None:
    condemned = []
    for i, scope_spans in enumerate(resource_spans.scope_spans):
        scope_place = f"{place}.scope_spans[{i}]"
        fault = _string_fault_beside(scope_spans, "spans") if strings else ""
        condemned.append(bool(fault))
        if fault:
            rejections.add(len(scope_spans.spans), scope_place, fault)
            continue
        faults = [_id_fault(span) or (_string_fault(span) if strings else "") for span in scope_spans.spans]
        for j, span_fault in enumerate(faults):
            if span_fault:
                rejections.add(1, f"{scope_place}.spans[{j}]", span_fault)
        _drop(scope_spans.spans, list(map(bool, faults)))
    _drop(resource_spans.scope_spans, condemned)


def _drop(messages: Any, condemned: list[bool]) -> None:
    """Drop the condemned ones from a repeated field: a stable sort brings them to the end, where one cut takes them.

    Deleting one by one would move all that follow each time, and extending anew would copy all that stay.
    """
    if any(condemned):
        verdicts = iter(condemned)
        messages.sort(key=lambda _: next(verdicts))
        del messages[len(condemned) - sum(condemned) :]


def _id_fault(span: Any) -> str:
    for name, value, size in (
        ("trace_id", span.trace_id, _TRACE_ID_BYTES),
        ("span_id", span.span_id, _SPAN_ID_BYTES),
        ("parent_span_id", span.parent_span_id or _NO_SPAN, _SPAN_ID_BYTES),
    ):
        if len(value) != size:
            return f"{name} must be {size} bytes ({2 * size} hex digits in JSON), not {len(value)}: {value[:80]!r}"
        if name != "parent_span_id" and not any(value):
            return f"{name} must not be all zero"
    return ""


def _string_fault_beside(message: Any, spans_field: str) -> str:
    """As `_string_fault`, of all fields but the one that holds the spans."""
    envelope = type(message)()
    for field, value in message.ListFields():
        if field.name == "schema_url":
            envelope.schema_url = value
        elif field.name != spans_field:
            getattr(envelope, field.name).CopyFrom(value)
    return _string_fault(envelope)


def _string_fault(message: Message) -> str:
    """Why a lenient message holds a string that is not UTF-8, or "" when all of its strings are."""
    strict = STRICT[message.DESCRIPTOR.name]
    try:
        strict.FromString(message.SerializeToString())
    except DecodeError:
        return f"{next(_bad_strings(message, strict.DESCRIPTOR), 'a string')} is not UTF-8"
    return ""


def _bad_strings(message: Any, strict: Any) -> Iterator[str]:
    """Paths of the strings in a lenient message that are not UTF-8. As deep as the schema, which does not recurse."""
    for field, value in message.ListFields():
        as_strict = strict.fields_by_name[field.name]
        if as_strict.type == FieldDescriptor.TYPE_STRING:
            try:
                value.decode()
            except UnicodeDecodeError:
                yield field.name
        elif as_strict.message_type is not None:
            items = enumerate(value) if field.is_repeated else ((None, value),)
            for index, item in items:
                place = field.name if index is None else f"{field.name}[{index}]"
                yield from (f"{place}.{path}" for path in _bad_strings(item, as_strict.message_type))
