"""OTLP/JSON to protobuf bytes, at the door: what is behind it sees protobuf only.

Owns the JSON mapping: that of proto3 with OTLP's deviations (OTLP specification, "JSON Protobuf Encoding"). Ids are hex
in either case, 64-bit integers strings or numbers, unknown names ignored, `null` a default, bytes base64 of either
alphabet. Names of enum values are taken although the specification forbids senders to use them: a sender that does so
means one thing only, and the Collector takes them too. snake_case names are unknown names.

What cannot be read raises BadRequest with the path to it. One thing does not: an id that is not hex spoils its span, or
log record, alone. It goes on with a trace id that is none, so that admission rejects it.

json_format of protobuf is no help here: it reads ids as base64, and it stops at a depth that OTLP does not know.
No thread of its own; the receiver calls this where it may take its time.
"""

import base64
import binascii
import math
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from collector.frames import Signal, varint
from collector.schema import STRICT
from collector.status import BadRequest

_BOM = b"\xef\xbb\xbf"
_INTEGER = re.compile(r"-?[0-9]{1,20}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?", re.ASCII)


class _Malformed(Exception):
    """Something of the wrong form. The place is put together on the way up, so that it costs nothing otherwise."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.place: list[str | int] = []

    def path(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in reversed(self.place))
        return "".join(steps).removeprefix(".")


class _NotHex(_Malformed):
    """An id that is not hex. Its text is longer than any id, so what carries it is none."""


def to_protobuf(body: bytes, signal: Signal = "traces") -> bytes:
    """The protobuf encoding of an ExportTraceServiceRequest, or ExportLogsServiceRequest, in OTLP/JSON.

    Raises BadRequest.
    """
    try:
        document = orjson.loads(body.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"cannot decode the body as JSON: {error}") from error
    request = STRICT["Request" if signal == "traces" else "LogsRequest"]()
    try:
        _fill(request, document)
    except _Malformed as error:
        raise BadRequest(f"cannot decode the body as OTLP/JSON: {error}", place=error.path()) from error
    except RecursionError as error:
        raise BadRequest("cannot decode the body as OTLP/JSON: an attribute is nested too deeply") from error
    return bytes(request.SerializeToString())


def _fill(message: Message, value: object) -> None:
    """Set the fields of `message` from a JSON object."""
    if not isinstance(value, dict):
        raise _Malformed(f"{_kind(value)} where an object should be")
    fields = _FIELDS[message.DESCRIPTOR.name]
    for name, item in value.items():
        # Unknown names are ignored (D8 of proto3 too), and null is the default of whatever it stands for.
        if item is not None and (set_field := fields.get(name)) is not None:
            try:
                set_field(message, item)
            except _Malformed as error:
                error.place.append(name)
                raise


# --- one setter a field -------------------------------------------------------------------------------------------

_Set = Callable[[Any, Any], None]


def _setter(owner: str, field: Any) -> _Set:
    """How the field is set from its JSON value (never null)."""
    name = field.name
    if (owner, name) in (("ScopeSpans", "spans"), ("ScopeLogs", "log_records")):
        return _items(name)
    if field.message_type is not None:
        return _repeated(name) if field.is_repeated else _singular(name)
    read = _READ_SPECIAL.get((owner, name)) or _READ[field.type]
    if field.containing_oneof is None:
        return lambda message, value: setattr(message, name, read(value))
    oneof = field.containing_oneof.name

    def set_member(message: Any, value: object) -> None:
        if (other := message.WhichOneof(oneof)) is not None:
            raise _Malformed(f"a second value beside {other}")
        setattr(message, name, read(value))

    return set_member


def _singular(name: str) -> _Set:
    def set_message(message: Any, value: object) -> None:
        child = getattr(message, name)
        child.SetInParent()  # {} is there, with nothing in it
        _fill(child, value)

    return set_message


def _repeated(name: str) -> _Set:
    def set_items(message: Any, value: object) -> None:
        items = getattr(message, name)
        for index, item in enumerate(_list(value)):
            try:
                _fill(items.add(), item)
            except _Malformed as error:
                error.place.append(index)
                raise

    return set_items


def _items(name: str) -> _Set:
    def set_items(message: Any, value: object) -> None:
        items = getattr(message, name)
        for index, item in enumerate(_list(value)):
            added = items.add()
            try:
                _fill(added, item)
            except _NotHex as error:
                added.Clear()
                added.trace_id = f"{error.path()}: {error}".encode()
            except _Malformed as error:
                error.place.append(index)
                raise

    return set_items


# --- readers: JSON value to Python value --------------------------------------------------------------------------


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise _Malformed(f"{_kind(value)} where an array should be")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise _Malformed(f"{_kind(value)} where a string should be")
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Malformed(f"{_kind(value)} where a boolean should be")
    return value


def _bytes(value: object) -> bytes:
    text = _string(value).translate(_STANDARD_BASE64).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise _Malformed("a string that is not base64") from None


_STANDARD_BASE64 = str.maketrans("-_", "+/")


def _id(value: object) -> bytes:
    text = _string(value)
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise _NotHex(f"{text[:40]!r} is not hex") from None


def _integer(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        number = _whole(value)
        if number is None:
            raise _Malformed(f"{_shown(value)} where an integer should be")
        if not low <= number <= high:
            raise _Malformed(f"{_shown(value)} where an integer from {low} to {high} should be")
        return number

    return read


def _whole(value: object) -> int | None:
    """The integer that a JSON number or string means, or None. 1.5e18 means one; so does "1.5e18"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    if not isinstance(value, float) and not (isinstance(value, str) and _NUMBER.fullmatch(value)):
        return None
    number = Decimal(value)
    # Beyond every range; written out, it might have ten thousand digits.
    if number.adjusted() > 20:
        return 1 << 70
    return int(number) if number == number.to_integral_value() else None


def _double(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (value in ("NaN", "Infinity", "-Infinity") or _NUMBER.fullmatch(value)):
        number = float(value)
        if math.isfinite(number) or not value[-1].isdigit():
            return number
    raise _Malformed(f"{_shown(value)} where a number should be")


def _enum(values: Iterable[tuple[str, int]]) -> Callable[[object], int]:
    numbers: dict[object, int] = dict(values)
    read_number = _integer(-(2**31), 2**31 - 1)

    def read(value: object) -> int:
        return numbers[value] if isinstance(value, str) and value in numbers else read_number(value)

    return read


def _shown(value: object) -> str:
    return f"{_kind(value)} ({str(value)[:40]!r})" if isinstance(value, str | int | float) else _kind(value)


# --- what nests: kept as wire bytes by the schema, so written as such ---------------------------------------------


def _nested(item_class: str) -> Callable[[object], bytes]:
    """Reads ArrayValue and KeyValueList: both are one repeated field, `values`, with the number 1."""

    def read(value: object) -> bytes:
        if not isinstance(value, dict):
            raise _Malformed(f"{_kind(value)} where an object should be")
        items = value.get("values")
        out = bytearray()
        for index, item in enumerate(() if items is None else _list(items)):
            message = STRICT[item_class]()
            try:
                _fill(message, item)
            except _Malformed as error:
                error.place += (index, "values")
                raise
            encoded = message.SerializeToString()
            out += b"\x0a" + varint(len(encoded)) + encoded
        return bytes(out)

    return read


_READ: dict[int, Callable[[object], Any]] = {
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BYTES: _bytes,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_INT32: _integer(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: _integer(0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: _integer(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: _integer(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_FIXED64: _integer(0, 2**64 - 1),
}

_READ_SPECIAL: dict[tuple[str, str], Callable[[object], Any]] = {
    ("Span", "trace_id"): _id,
    ("Span", "span_id"): _id,
    ("Span", "parent_span_id"): _id,
    ("Link", "trace_id"): _id,
    ("Link", "span_id"): _id,
    ("LogRecord", "trace_id"): _id,
    ("LogRecord", "span_id"): _id,
    ("LogRecord", "severity_number"): _enum(SeverityNumber.items()),
    ("Span", "kind"): _enum(Span.SpanKind.items()),
    ("Status", "code"): _enum(Status.StatusCode.items()),
    ("AnyValue", "array_value"): _nested("AnyValue"),
    ("AnyValue", "kvlist_value"): _nested("KeyValue"),
}

_FIELDS = {
    name: {field.json_name: _setter(name, field) for field in message_class.DESCRIPTOR.fields}
    for name, message_class in STRICT.items()
    if name not in ("Frame", "Context")
}
