"""Log records at the door: those of a span are let in as they came, all others are kept out, counted and named."""

import json

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc import LogsServiceStub
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue, KeyValueList
from otlp_building import Intake, body, logs, logs_body, record, span
from xxhash import xxh3_128_digest

from collector.admission import Receipt
from collector.otlp_grpc import OtlpGrpc
from collector.otlp_json import to_protobuf
from collector.status import BadRequest, TooLarge


def admit(intake: Intake, data: bytes, tenant: str = "default") -> Receipt:
    return intake.admission.admit(data, tenant, signal="logs").result(5)


def kept(intake: Intake) -> list[str]:
    """The bodies of all records that were appended."""
    return [
        one.body.string_value
        for frame in intake.sink.frames
        for of_resource in ExportLogsServiceRequest.FromString(frame.request).resource_logs
        for of_scope in of_resource.scope_logs
        for one in of_scope.log_records
    ]


def test_records_of_spans_are_appended_as_they_came():
    intake = Intake()
    data = logs_body(record(1), record(2)) + b"\xba\x3e\x05later"
    assert admit(intake, data, "acme") == Receipt(signal="logs")
    (frame,) = intake.sink.frames
    assert (frame.tenant, frame.signal, frame.items, frame.request) == ("acme", "logs", 2, data)
    assert frame.digest == xxh3_128_digest(data)
    assert intake.log_counts("acme") == (2, 0, 0, 2)
    assert not intake.ledger.spans()


WITHOUT = {
    "no ids": ({"trace_id": b"", "span_id": b""}, "has no trace_id, and only log records of a span are kept"),
    "a zero trace id": ({"trace_id": bytes(16)}, "has no trace_id"),
    "no span id": ({"span_id": b""}, "has no span_id, and only log records of a span are kept"),
    "a zero span id": ({"span_id": bytes(8)}, "has no span_id"),
    "a short trace id": ({"trace_id": b"t" * 15}, "trace_id must be 16 bytes"),
    "a long span id": ({"span_id": b"s" * 9}, "span_id must be 8 bytes"),
    "a bad string": ({"event_name": "event"}, "event_name is not UTF-8"),
}


@pytest.mark.parametrize(("fields", "fault"), WITHOUT.values(), ids=WITHOUT)
def test_a_record_without_a_span_is_rejected_alone(fields, fault):
    intake = Intake()
    data = logs_body(record(1), record(2, **fields), record(3)).replace(b"event", b"even\xff")
    receipt = admit(intake, data)
    assert (receipt.rejected, receipt.signal) == (1, "logs")
    assert receipt.message.startswith("rejected 1 of 3 log records, kept the others: resource_logs[0].scope_logs[0].")
    assert f"log_records[1]: {fault}" in receipt.message
    assert kept(intake) == ["record 1", "record 3"]
    assert intake.log_counts() == (3, 1, 0, 2)


def test_a_request_of_records_without_spans_is_counted_and_stores_nothing():
    intake = Intake()
    receipt = admit(intake, logs_body(*(record(i, trace_id=b"", span_id=b"") for i in range(1, 1001))))
    assert receipt.rejected == 1000
    assert len(receipt.message.encode()) <= 2048
    assert not intake.sink.frames
    assert intake.log_counts() == (1000, 1000, 0, 0)


def test_a_retransmit_is_acknowledged_and_not_stored_again():
    intake = Intake()
    data = logs_body(record(1), record(2, span_id=b""))
    assert admit(intake, data).rejected == admit(intake, data).rejected == 1
    assert len(intake.sink.frames) == 1
    assert intake.log_counts() == (4, 2, 1, 1)


@pytest.mark.parametrize("data", [body(span(1))[:-1], b"\xff" * 30, b'{"resourceLogs":[]}'])
def test_what_cannot_be_decoded_is_a_bad_request(data):
    with pytest.raises(BadRequest, match="as a protobuf ExportLogsServiceRequest"):
        admit(Intake(), data)


def test_a_request_over_the_limit_is_too_large():
    with pytest.raises(TooLarge, match="cannot take 3 log records in one request, 2 is the limit"):
        admit(Intake(request_spans_max=2), logs_body(record(1), record(2), record(3)))


def test_json_is_the_same_request():
    nested = AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="content", value=AnyValue(string_value="hi"))]))
    message = logs(record(1, body=nested, event_name="gen_ai.user.message", severity_text="INFO", flags=1))
    said = MessageToDict(message)
    (one,) = said["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    sent = message.resource_logs[0].scope_logs[0].log_records[0]
    one |= {"traceId": sent.trace_id.hex(), "spanId": sent.span_id.hex()}
    assert one["severityNumber"] == "SEVERITY_NUMBER_INFO"
    assert to_protobuf(json.dumps(said).encode(), "logs") == message.SerializeToString(deterministic=True)
    one["severityNumber"] = 9
    assert to_protobuf(json.dumps(said).encode(), "logs") == message.SerializeToString(deterministic=True)
    one["traceId"] = "no hex"
    receipt = admit(Intake(), to_protobuf(json.dumps(said).encode(), "logs"))
    assert "traceId: 'no hex' is not hex" in receipt.message


def test_a_call_is_answered_with_partial_success():
    intake = Intake()
    receiver = OtlpGrpc(intake.admission, "127.0.0.1:0")
    receiver.start()
    with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
        stub = LogsServiceStub(channel)
        assert stub.Export(logs(record(1)), timeout=20) == ExportLogsServiceResponse()
        partial = stub.Export(logs(record(2), record(3, span_id=b"")), timeout=20).partial_success
    receiver.stop(1)
    assert partial.rejected_log_records == 1
    assert "log_records[1]: has no span_id" in partial.error_message
    assert kept(intake) == ["record 1", "record 2"]


def test_partial_success_in_both_encodings():
    receipt = Receipt(3, "why", "logs")
    assert ExportLogsServiceResponse.FromString(receipt.encode()).partial_success.rejected_log_records == 3
    said = json.loads(receipt.encode(json=True))
    assert said == {"partialSuccess": {"rejectedLogRecords": "3", "errorMessage": "why"}}
    assert (Receipt(signal="logs").encode(), Receipt(signal="logs").encode(json=True)) == (b"", b"{}")


def test_spans_and_records_are_counted_apart():
    intake = Intake()
    intake.admission.admit(body(span(1)), "default").result(5)
    admit(intake, logs_body(record(1), record(2)))
    text = {
        sample.name: sample.value
        for metric in intake.ledger.collect()
        for sample in metric.samples
        if sample.name.endswith(("received_total", "in_wal"))
    }
    assert text == {
        "spanhouse_spans_received_total": 1,
        "spanhouse_spans_in_wal": 1,
        "spanhouse_log_records_received_total": 2,
        "spanhouse_log_records_in_wal": 2,
    }
