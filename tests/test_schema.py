"""proto/wal.proto is OTLP: numbers and types are held against the descriptors of opentelemetry-proto."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from collector.schema import LENIENT, STRICT, file_descriptor

OTLP = {
    "Request": ExportTraceServiceRequest,
    "ResourceSpans": ResourceSpans,
    "Resource": Resource,
    "ScopeSpans": ScopeSpans,
    "Scope": InstrumentationScope,
    "Span": Span,
    "Event": Span.Event,
    "Link": Span.Link,
    "Status": Status,
    "LogsRequest": ExportLogsServiceRequest,
    "ResourceLogs": ResourceLogs,
    "ScopeLogs": ScopeLogs,
    "LogRecord": LogRecord,
    "KeyValue": KeyValue,
    "AnyValue": AnyValue,
}
# Of profiles only, or not stored: receivers of traces are to ignore them.
LEFT_OUT = {("Resource", "entity_refs"), ("KeyValue", "key_strindex"), ("AnyValue", "string_value_strindex")}
NESTED = {("AnyValue", "array_value"), ("AnyValue", "kvlist_value")}


def fields(message_class) -> dict[str, tuple]:
    return {
        field.name: (
            field.number,
            FieldDescriptor.TYPE_INT32 if field.type == FieldDescriptor.TYPE_ENUM else field.type,
            field.is_repeated,
            field.containing_oneof.name if field.containing_oneof else None,
        )
        for field in message_class.DESCRIPTOR.fields
    }


@pytest.mark.parametrize("name", OTLP)
def test_every_message_is_otlps(name):
    ours, theirs = fields(STRICT[name]), fields(OTLP[name])
    for field in [field for field in theirs if (name, field) in NESTED]:
        number, _, repeated, oneof = theirs[field]
        theirs[field] = (number, FieldDescriptor.TYPE_BYTES, repeated, oneof)
    assert ours == {field: value for field, value in theirs.items() if (name, field) not in LEFT_OUT}


def test_no_other_messages_are_declared():
    assert set(STRICT) == set(LENIENT) == {*OTLP, "Frame", "Context"}


def test_the_strict_classes_check_strings_and_the_lenient_do_not():
    data = b"\x2a\x01\xff"
    with pytest.raises(DecodeError):
        STRICT["Span"].FromString(data)
    assert LENIENT["Span"].FromString(data).name == b"\xff"
    assert LENIENT["Span"].FromString(data).SerializeToString() == data


@pytest.mark.parametrize(
    "text",
    [
        'syntax = "proto2";',
        'import "other.proto";',
        "message A { string a 1; }",
        "message A { string a = one; }",
        "message A = {",
    ],
)
def test_what_is_not_of_the_language_is_an_error(text):
    with pytest.raises(ValueError, match=r"cannot read the schema|invalid literal"):
        file_descriptor(text)
