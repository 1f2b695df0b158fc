"""The gRPC receiver over real sockets: its clients are grpcio's, and the real OpenTelemetry exporter."""

import socket
import threading
import time
from concurrent.futures import Future

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest as BadRequestDetail
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import MetricsServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otlp_building import Intake, body, span

from collector.otlp_grpc import OtlpGrpc
from collector.status import WalFull

MIB = 1 << 20
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@pytest.fixture
def serve():
    """Starts a receiver and gives (intake, channel); `limits` go to the admission, `server` to the receiver."""
    ended = []

    def start(server=None, **limits):
        intake = Intake(**limits)
        receiver = OtlpGrpc(intake.admission, "127.0.0.1:0", **(server or {}))
        receiver.start()
        intake.port = receiver.port
        channel = grpc.insecure_channel(f"127.0.0.1:{receiver.port}", [("grpc.max_send_message_length", -1)])
        ended.append((receiver, channel))
        return intake, channel

    yield start
    for receiver, channel in ended:
        channel.close()
        receiver.stop(1)


def export(channel, data: bytes, **options) -> bytes:
    return channel.unary_unary(EXPORT)(data, timeout=options.pop("timeout", 20), **options)


def refusal(call) -> tuple[grpc.StatusCode, str, list]:
    """The error that `call` gets: code, message and unpacked details."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
    if status.ByteSize():
        assert (status.code, status.message) == (error.code().value[0], error.details())
    details = []
    for packed in status.details:
        for kind in (RetryInfo, BadRequestDetail):
            if packed.Is(kind.DESCRIPTOR):
                details.append(kind())
                packed.Unpack(details[-1])
    return error.code(), error.details(), details


def test_a_success_is_an_empty_response(serve):
    intake, channel = serve()
    data = body(span(1), span(2))
    assert export(channel, data) == b""
    assert intake.sink.frames[0].request == data
    assert intake.counts() == (2, 0, 0, 2)


def test_an_empty_request_succeeds(serve):
    intake, channel = serve()
    assert export(channel, b"") == b""
    assert not intake.sink.frames


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages(serve, compression):
    intake, channel = serve()
    assert export(channel, body(span(1)), compression=compression) == b""
    assert intake.sink.names() == ["span 1"]


def test_the_sdk_exports(serve):
    intake, _ = serve()
    provider = TracerProvider()
    exporter = OTLPSpanExporter(
        f"http://127.0.0.1:{intake.port}", headers={"x-spanhouse-tenant": "sdk"}, compression=grpc.Compression.Gzip
    )
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("outer"), provider.get_tracer("t").start_as_current_span("in"):
        pass
    provider.shutdown()
    assert sorted(intake.sink.names()) == ["in", "outer"]
    assert intake.counts("sdk") == (2, 0, 0, 2)


def test_calls_are_taken_concurrently(serve):
    intake, channel = serve()
    stub = channel.unary_unary(EXPORT)
    calls = [stub.future(body(span(i)), timeout=20) for i in range(1, 301)]
    assert [call.result() for call in calls] == [b""] * 300
    assert sorted(intake.sink.names()) == sorted(f"span {i}" for i in range(1, 301))


def test_partial_success(serve):
    intake, channel = serve()
    response = ExportTraceServiceResponse.FromString(export(channel, body(span(1), span(2, trace_id=b"x"))))
    assert response.partial_success.rejected_spans == 1
    assert "spans[1]: trace_id" in response.partial_success.error_message
    assert intake.sink.names() == ["span 1"]


def test_the_tenant_is_in_the_metadata(serve):
    intake, channel = serve()
    export(channel, body(span(1)), metadata=[("x-spanhouse-tenant", "team-a")])
    assert intake.sink.frames[0].tenant == "team-a"
    code, message, _ = refusal(lambda: export(channel, b"", metadata=[("x-spanhouse-tenant", "no/name")]))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "no/name" in message


@pytest.mark.parametrize("data", [b'{"resourceSpans":[]}', body(span(1))[:-3], b"\xff" * 30])
def test_what_cannot_be_decoded_is_an_invalid_argument(serve, data):
    intake, channel = serve()
    code, message, details = refusal(lambda: export(channel, data))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot decode" in message
    assert [type(detail) for detail in details] == [BadRequestDetail]
    assert details[0].field_violations[0].description == message
    assert intake.refusals() == {"BadRequest": 1}


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_a_message_over_the_limit_is_not_to_be_sent_again(serve, compression):
    intake, channel = serve(request_bytes_max=MIB)
    big = body(span(1, name="x" * 2 * MIB))
    for _ in range(2):
        code, _, details = refusal(lambda: export(channel, big, compression=compression))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details == []
    assert not intake.sink.frames
    assert export(channel, body(span(2))) == b""


def test_a_bomb_is_not_inflated_beyond_the_limit(serve):
    intake, channel = serve(request_bytes_max=MIB)
    bomb = b"\x0a" + bytes(256 * MIB)
    code, _, _ = refusal(lambda: export(channel, bomb, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not intake.sink.frames


def test_a_full_wal_is_unavailable_and_says_when_to_come_again(serve):
    intake, channel = serve()
    intake.sink.failure = WalFull("cannot take more: the WAL is full", retry_after_s=2.5)
    code, message, (retry,) = refusal(lambda: export(channel, body(span(1))))
    assert (code, message) == (grpc.StatusCode.UNAVAILABLE, "cannot take more: the WAL is full")
    assert retry.retry_delay.ToMilliseconds() == 2500
    intake.sink.failure = None
    assert export(channel, body(span(1))) == b""
    assert intake.refusals() == {"WalFull": 1}


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(28, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_exception_of_ours_is_retryable_and_never_unknown(serve, error, when):
    intake, channel = serve()

    def append(_):
        if when == "at once":
            raise error
        failed = Future()
        failed.set_exception(error)
        return failed

    intake.admission._append = append
    code, message, (retry,) = refusal(lambda: export(channel, body(span(1))))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert type(error).__name__ in message
    assert retry.retry_delay.seconds > 0
    assert intake.refusals() == {"Internal": 1}


def test_a_request_that_does_not_become_durable_in_time_is_retryable_and_stored_once(serve):
    intake, channel = serve(server={"ack_timeout_s": 0.2})
    intake.sink.hold = True
    code, message, _ = refusal(lambda: export(channel, body(span(1))))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "durable" in message
    intake.sink.held[0].set_result(None)
    assert export(channel, body(span(1))) == b""
    assert intake.sink.names() == ["span 1"]
    assert intake.counts() == (2, 0, 1, 1)


def test_nothing_is_acknowledged_before_it_is_durable(serve):
    intake, channel = serve()
    intake.sink.hold = True
    call = channel.unary_unary(EXPORT).future(body(span(1)), timeout=20)
    until(lambda: intake.sink.held)
    time.sleep(0.1)
    assert not call.done()
    intake.sink.held[0].set_result(None)
    assert call.result() == b""


def test_too_many_bytes_in_flight_are_backpressure(serve):
    intake, channel = serve(request_bytes_max=MIB, in_flight_bytes_max=2 * MIB)
    intake.sink.hold = True
    stub = channel.unary_unary(EXPORT)
    calls = [stub.future(body(span(i, name="x" * 700_000)), timeout=20) for i in (1, 2)]
    until(lambda: len(intake.sink.held) == 2)
    code, _, (retry,) = refusal(lambda: export(channel, body(span(3, name="x" * 900_000))))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert retry.retry_delay.seconds == 1
    for future in intake.sink.held:
        future.set_result(None)
    assert [call.result() for call in calls] == [b"", b""]
    assert intake.admission.in_flight.held_bytes == 0


def test_too_many_calls_are_backpressure_and_not_resource_exhausted(serve):
    intake, channel = serve(server={"threads": 1, "waiting_calls_max": 1})
    intake.sink.hold = True
    stub = channel.unary_unary(EXPORT)
    calls = [stub.future(body(span(1)), timeout=20)]
    until(lambda: intake.sink.held)
    calls.append(stub.future(body(span(2)), timeout=20))
    time.sleep(0.2)
    code, _, (retry,) = refusal(lambda: export(channel, body(span(3))))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert retry.retry_delay.seconds == 1
    assert intake.refusals() == {"Overloaded": 1}
    intake.sink.hold = False
    intake.sink.held[0].set_result(None)
    assert [call.result() for call in calls] == [b"", b""]


def test_other_signals_are_unimplemented(serve):
    intake, channel = serve()
    metrics = MetricsServiceStub(channel)
    code, message, details = refusal(lambda: metrics.Export(ExportMetricsServiceRequest(), timeout=20))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert message == "cannot take metrics: Spanhouse takes traces and logs only"
    assert details == []
    assert intake.refusals() == {"NotFound": 1}


def test_unknown_methods_are_unimplemented(serve):
    _, channel = serve()
    for method in ("/opentelemetry.proto.collector.trace.v1.TraceService/Import", "/grpc.health.v1.Health/Check"):
        code, _, _ = refusal(lambda method=method: channel.unary_unary(method)(b"", timeout=20))
        assert code is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_of_messages_is_one_message(serve):
    """Export is unary; a client that sends more is answered for the first."""
    intake, channel = serve()
    assert channel.stream_unary(EXPORT)(iter([body(span(1)), body(span(2))]), timeout=20) == b""
    assert intake.sink.names() == ["span 1"]


def test_a_call_without_a_message_is_refused(serve):
    intake, channel = serve()
    code, _, _ = refusal(lambda: channel.stream_unary(EXPORT)(iter([]), timeout=20))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not intake.sink.frames


def test_a_message_that_does_not_arrive_in_time_ends_the_call(serve):
    intake, channel = serve(server={"receive_timeout_s": 0.3, "threads": 1})
    never = threading.Event()

    def nothing():
        never.wait(20)
        yield b""

    code, _, _ = refusal(lambda: channel.stream_unary(EXPORT)(nothing(), timeout=20))
    never.set()
    # CANCELLED is a retryable code to OTLP clients, and the one thread is free again.
    assert code is grpc.StatusCode.CANCELLED
    assert intake.refusals() == {"SlowSender": 1}
    assert export(channel, body(span(1))) == b""


@pytest.mark.parametrize(("sent", "stored"), [(10_000, []), (None, ["x" * 50_000])], ids=["a part", "all of it"])
def test_a_client_that_leaves_in_the_middle_of_a_message_stores_nothing(serve, sent, stored):
    intake, _ = serve()
    data = body(span(2, name="x" * 50_000))
    message = b"\0" + len(data).to_bytes(4, "big") + data
    with socket.create_connection(("127.0.0.1", intake.port)) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, headers(EXPORT)))
        for at in range(0, len(message), 16_384):
            raw.sendall(frame(0, 0, 1, message[at : at + 16_384][: sent and max(0, sent - at)]))
        time.sleep(0.3)
    time.sleep(0.3)
    assert intake.sink.names() == stored
    assert intake.admission.in_flight.held_bytes == 0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(path: str) -> bytes:
    """HPACK, all literal: what a gRPC call begins with."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    return b"".join(b"\0" + text(name) + text(value) for name, value in fields.items())


def test_stopping_lets_the_calls_in_progress_end(serve):
    intake = Intake()
    receiver = OtlpGrpc(intake.admission, "127.0.0.1:0")
    receiver.start()
    intake.sink.hold = True
    with grpc.insecure_channel(f"127.0.0.1:{receiver.port}") as channel:
        call = channel.unary_unary(EXPORT).future(body(span(1)), timeout=20)
        until(lambda: intake.sink.held)
        stopping = threading.Thread(target=receiver.stop, args=(10,))
        stopping.start()
        time.sleep(0.2)
        assert stopping.is_alive()
        code, _, _ = refusal(lambda: export(channel, body(span(2))))
        assert code is grpc.StatusCode.UNAVAILABLE
        intake.sink.held[0].set_result(None)
        assert call.result() == b""
        stopping.join(10)
        assert not stopping.is_alive()
    receiver.stop()
    assert intake.sink.names() == ["span 1"]


def test_stop_without_start():
    OtlpGrpc(Intake().admission, "127.0.0.1:0").stop()


def test_a_port_in_use_is_an_error_that_names_it():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        receiver = OtlpGrpc(Intake().admission, address)
        with pytest.raises(OSError, match=address):
            receiver.start()
        receiver.stop()


def test_two_receivers_do_not_share_a_port():
    first = OtlpGrpc(Intake().admission, "127.0.0.1:0")
    first.start()
    second = OtlpGrpc(Intake().admission, f"127.0.0.1:{first.port}")
    with pytest.raises(OSError, match=str(first.port)):
        second.start()
    first.stop()
    second.stop()


def until(condition, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)
