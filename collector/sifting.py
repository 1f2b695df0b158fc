"""What of a request is good: its bytes as they came, or encoded anew without the spans that cannot be kept.

Owns the validity of a request. A good one costs one parse in C and a few iterations in C over its ids; no Python runs
for a span and no attribute is looked at. Only when something is wrong does the slow part run and name the spans.

An item, span or log record, is rejected when an id of it is none, or when a string in it is not UTF-8; a bad string in
a resource or scope condemns its items. A log record without a span is rejected as one whose ids are none. Pure; runs on
the receiver's thread.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from collector.frames import Signal
from collector.schema import LENIENT, STRICT
from collector.status import BadRequest, TooLarge

# Attributes, events or links of a request: the engine takes some 350 bytes for each at a time. One takes two bytes at
# least, so only a request of more than twice as many bytes is looked through for them: it costs 3 µs a span.
PARTS_MAX = 2_000_000

MESSAGE_BYTES_MAX = 2048
_FAULTS_SHOWN = 8

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_NO_TRACE, _NO_SPAN = bytes(_TRACE_ID_BYTES), bytes(_SPAN_ID_BYTES)

_resource_of, _scope_of, _attributes_of = attrgetter("resource"), attrgetter("scope"), attrgetter("attributes")
_events_of, _links_of = attrgetter("events"), attrgetter("links")
_trace_id_of, _span_id_of, _parent_of = attrgetter("trace_id"), attrgetter("span_id"), attrgetter("parent_span_id")


class _Form:
    """How a request of one signal nests: resources, in them scopes, in them items. The fields are OTLP's."""

    def __init__(self, message: str, sent_as: str, items: str, fields: tuple[str, str, str]) -> None:
        self.of_spans = message == "Request"
        self.sent_as = sent_as
        self.items = items
        self.parse, self.parse_leniently = STRICT[message].FromString, LENIENT[message].FromString
        self.resources_field, self.scopes_field, self.items_field = fields
        self.resources_of, self.scopes_of, self.items_of = map(attrgetter, fields)


_FORMS: dict[Signal, _Form] = {
    "traces": _Form("Request", "ExportTraceServiceRequest", "spans", ("resource_spans", "scope_spans", "spans")),
    "logs": _Form(
        "LogsRequest", "ExportLogsServiceRequest", "log records", ("resource_logs", "scope_logs", "log_records")
    ),
}


@dataclass(frozen=True, slots=True)
class Sifted:
    """What is kept: `request` holds `items` items. `rejected` more were in it; `message` (2 KiB at most) says why."""

    request: bytes
    items: int
    rejected: int = 0
    message: str = ""


def sift(body: bytes, items_max: int, signal: Signal = "traces") -> Sifted:
    """Sift an encoded ExportTraceServiceRequest, or ExportLogsServiceRequest.

    Raises BadRequest when it cannot be decoded and TooLarge when it holds more than `items_max` items, scopes or
    resources, or more than PARTS_MAX attributes, events or links.
    """
    form = _FORMS[signal]
    try:
        request: Any = form.parse(body)
    except DecodeError:
        # Not protobuf, or a string that is not UTF-8: only the lenient classes can tell, and find the string.
        request = _lenient(form, body)
        items = _counted(form, request, len(body), items_max)
        return _sift_out(form, request, len(items), strings=True)
    items = _counted(form, request, len(body), items_max)
    if _ids_are_good(items, parents=form.of_spans):
        return Sifted(body, len(items))
    return _sift_out(form, request, len(items), strings=False)


def _lenient(form: _Form, body: bytes) -> Any:
    try:
        return form.parse_leniently(body)
    except DecodeError as error:
        raise BadRequest(
            f"cannot decode {len(body)} bytes as a protobuf {form.sent_as}: they are cut short or no OTLP"
        ) from error


def _counted(form: _Form, request: Any, size: int, items_max: int) -> list[Any]:
    """All items of a request of `size` bytes. Raises TooLarge when there is too much of anything in it.

    Counted from the outside inwards, before there is a Python object for each: an empty message takes two bytes on
    the wire and hundreds as an object, and making them holds up all other threads.
    """
    resources = form.resources_of(request)
    _limit("resources", len(resources), items_max)
    _limit("scopes", sum(map(len, map(form.scopes_of, resources))), items_max)
    scopes = list(chain.from_iterable(map(form.scopes_of, resources)))
    _limit(form.items, sum(map(len, map(form.items_of, scopes))), items_max)
    items = list(chain.from_iterable(map(form.items_of, scopes)))
    if size > 2 * PARTS_MAX:
        parts: Iterable[Any] = ()
        if form.of_spans:
            _limit("events", sum(map(len, map(_events_of, items))), PARTS_MAX)
            _limit("links", sum(map(len, map(_links_of, items))), PARTS_MAX)
            parts = chain.from_iterable(chain(map(_events_of, items), map(_links_of, items)))
        holders = chain(map(_resource_of, resources), map(_scope_of, scopes), items, parts)
        _limit("attributes", sum(map(len, map(_attributes_of, holders))), PARTS_MAX)
    return items


def _limit(what: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise TooLarge(f"cannot take {count} {what} in one request, {count_max} is the limit: send smaller batches")


def _ids_are_good(items: list[Any], *, parents: bool) -> bool:
    trace_ids, span_ids = set(map(_trace_id_of, items)), list(map(_span_id_of, items))
    return not items or (
        set(map(len, trace_ids)) == {_TRACE_ID_BYTES}
        and set(map(len, span_ids)) == {_SPAN_ID_BYTES}
        and (not parents or {0, _SPAN_ID_BYTES}.issuperset(map(len, map(_parent_of, items))))
        and _NO_TRACE not in trace_ids
        and _NO_SPAN not in span_ids
    )


# --- the slow part: something is wrong ----------------------------------------------------------------------------


class _Rejections:
    """Counts what was rejected and words it for the sender."""

    def __init__(self) -> None:
        self.items = 0
        self._shown: list[str] = []
        self._faults = 0

    def add(self, items: int, place: str, fault: str) -> None:
        self.items += items
        self._faults += 1
        if self._faults <= _FAULTS_SHOWN:
            self._shown.append(f"{place}: {fault}"[:200])

    def message(self, items: int, name: str) -> str:
        if not self.items:
            return ""
        more = f"; and {self._faults - _FAULTS_SHOWN} more" if self._faults > _FAULTS_SHOWN else ""
        text = f"rejected {self.items} of {items} {name}, kept the others: {'; '.join(self._shown)}{more}"
        return text.encode()[:MESSAGE_BYTES_MAX].decode(errors="ignore")


def _sift_out(form: _Form, request: Any, items: int, *, strings: bool) -> Sifted:
    """Drop what cannot be kept from `request`; `strings` says that it came through the lenient classes."""
    rejections = _Rejections()
    condemned = []
    for i, of_resource in enumerate(form.resources_of(request)):
        place = f"{form.resources_field}[{i}]"
        fault = _string_fault_beside(of_resource, form.scopes_field) if strings else ""
        condemned.append(bool(fault))
        if fault:
            rejections.add(sum(map(len, map(form.items_of, form.scopes_of(of_resource)))), place, fault)
        else:
            _sift_scopes(form, of_resource, place, rejections, strings)
    _drop(form.resources_of(request), condemned)
    message = rejections.message(items, form.items)
    return Sifted(request.SerializeToString(), items - rejections.items, rejections.items, message)


def _sift_scopes(form: _Form, of_resource: Any, place: str, rejections: _Rejections, strings: bool) -> None:
    condemned = []
    fault_of = _id_fault if form.of_spans else _span_fault
    for i, of_scope in enumerate(form.scopes_of(of_resource)):
        scope_place = f"{place}.{form.scopes_field}[{i}]"
        items = form.items_of(of_scope)
        fault = _string_fault_beside(of_scope, form.items_field) if strings else ""
        condemned.append(bool(fault))
        if fault:
            rejections.add(len(items), scope_place, fault)
            continue
        faults = [fault_of(item) or (_string_fault(item) if strings else "") for item in items]
        for j, item_fault in enumerate(faults):
            if item_fault:
                rejections.add(1, f"{scope_place}.{form.items_field}[{j}]", item_fault)
        _drop(items, list(map(bool, faults)))
    _drop(form.scopes_of(of_resource), condemned)


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


def _span_fault(record: Any) -> str:
    """Why a log record is none of a span's."""
    for name, value, size in (
        ("trace_id", record.trace_id, _TRACE_ID_BYTES),
        ("span_id", record.span_id, _SPAN_ID_BYTES),
    ):
        if not any(value):
            return f"has no {name}, and only log records of a span are kept"
        if len(value) != size:
            return f"{name} must be {size} bytes ({2 * size} hex digits in JSON), not {len(value)}: {value[:80]!r}"
    return ""


def _string_fault_beside(message: Any, items_field: str) -> str:
    """As `_string_fault`, of all fields but the one that holds the items."""
    envelope = type(message)()
    for field, value in message.ListFields():
        if field.name == "schema_url":
            envelope.schema_url = value
        elif field.name != items_field:
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
