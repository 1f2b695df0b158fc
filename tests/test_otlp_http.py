"""The HTTP receiver over real sockets, served by uvicorn as in production."""

import gzip
import http.client
import json
import socket
import threading
import time
import zlib
from concurrent.futures import Future

import pytest
import uvicorn
import zstandard
from google.rpc.error_details_pb2 import BadRequest as BadRequestDetail
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otlp_building import Intake, body, span

from collector import otlp_http
from collector.otlp_http import UVICORN_OPTIONS, OtlpHttp
from collector.status import WalFull

MIB = 1 << 20
PROTOBUF, JSON = "application/x-protobuf", "application/json"
TRACES = "/v1/traces"


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def refusal(self) -> Status:
        """The google.rpc.Status of an error; its content type must be the one given."""
        assert self.status >= 400
        if self.headers["content-type"] == PROTOBUF:
            return Status.FromString(self.body)
        assert self.headers["content-type"] == JSON
        document = json.loads(self.body)
        assert set(document) <= {"code", "message", "details"}
        return Status(code=document["code"], message=document["message"])


class Server:
    """The receiver behind uvicorn, on a thread and a free port."""

    def __init__(self, intake: Intake, **options) -> None:
        self.intake = intake
        self.app = OtlpHttp(intake.admission, **options)
        self.uvicorn = uvicorn.Server(uvicorn.Config(self.app, host="127.0.0.1", port=0, **UVICORN_OPTIONS))
        self.thread = threading.Thread(target=self.uvicorn.run)
        self.thread.start()
        until(lambda: self.uvicorn.started)
        self.port = self.uvicorn.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.app.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def send(self, data: bytes, path: str = TRACES, method: str = "POST", **headers: str) -> Answer:
        """One request on a connection of its own. Underscores in header names stand for hyphens."""
        connection = self.connect()
        named = {name.replace("_", "-"): value for name, value in {"content_type": PROTOBUF, **headers}.items()}
        connection.request(method, path, data, {name: value for name, value in named.items() if value is not None})
        answer = Answer(connection.getresponse())
        connection.close()
        return answer

    def raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture
def serve():
    """Starts a server: `server` are options of the receiver, `limits` those of the admission."""
    servers = []

    def start(server=None, **limits) -> Server:
        servers.append(Server(Intake(**limits), **(server or {})))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


def until(condition, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def json_body(**fields) -> bytes:
    one = {"traceId": "0af7651916cd43dd8448eb211c80319c", "spanId": "00f067aa0ba902b7", "name": "from json", **fields}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}).encode()


# --- success ------------------------------------------------------------------------------------------------------


def test_protobuf_is_answered_with_an_empty_protobuf(serve):
    server = serve()
    data = body(span(1), span(2))
    answer = server.send(data)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, PROTOBUF, b"")
    assert server.intake.sink.frames[0].request == data
    assert server.intake.counts() == (2, 0, 0, 2)


def test_json_is_answered_with_json(serve):
    server = serve()
    answer = server.send(json_body(), content_type=JSON)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, JSON, b"{}")
    assert server.intake.sink.names() == ["from json"]


@pytest.mark.parametrize(("data", "content_type"), [(b"", PROTOBUF), (b"{}", JSON), (b'{"resourceSpans":[]}', JSON)])
def test_an_empty_request_succeeds(serve, data, content_type):
    server = serve()
    assert server.send(data, content_type=content_type).status == 200
    assert not server.intake.sink.frames


@pytest.mark.parametrize(
    ("content_type", "answered"),
    [
        ("Application/X-Protobuf", PROTOBUF),
        ("application/x-protobuf; messageType=x", PROTOBUF),
        ("application/json; charset=utf-8", JSON),
        ("Application/JSON ;charset=UTF-8", JSON),
    ],
)
def test_content_types_have_parameters_and_any_case(serve, content_type, answered):
    answer = serve().send(json_body() if answered == JSON else body(span(1)), content_type=content_type)
    assert (answer.status, answer.headers["content-type"]) == (200, answered)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("identity", bytes),
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("zstd", zstandard.compress),
    ],
)
@pytest.mark.parametrize("names", [10, 100_000], ids=["small", "large"])
@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_every_coding_of_small_and_large_bodies_of_both_types(serve, encoding, compress, names, content_type):
    server = serve()
    name = bytes(range(97, 123)).decode() * (names // 26 + 1)
    data = json_body(name=name) if content_type == JSON else body(span(1, name=name))
    assert server.send(compress(data), content_encoding=encoding, content_type=content_type).status == 200
    assert server.intake.sink.names() == [name]


@pytest.mark.parametrize("compression", list(Compression))
def test_the_sdk_exports(serve, compression):
    server = serve()
    exporter = OTLPSpanExporter(
        f"http://127.0.0.1:{server.port}{TRACES}", headers={"x-spanhouse-tenant": "sdk"}, compression=compression
    )
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    with provider.get_tracer("t").start_as_current_span("outer"), provider.get_tracer("t").start_as_current_span("in"):
        pass
    provider.shutdown()
    assert sorted(server.intake.sink.names()) == ["in", "outer"]
    assert server.intake.counts("sdk") == (2, 0, 0, 2)


def test_a_connection_is_kept_and_bodies_may_be_chunked(serve):
    server = serve()
    connection = server.connect()
    data = body(span(1, name="x" * 200_000))
    for _ in range(3):
        pieces = (data[at : at + 7000] for at in range(0, len(data), 7000))
        connection.request("POST", TRACES, pieces, {"content-type": PROTOBUF}, encode_chunked=False)
        assert Answer(connection.getresponse()).status == 200
    assert len(server.intake.sink.frames) == 1
    assert server.intake.counts() == (3, 0, 2, 1)


def test_requests_are_taken_concurrently(serve):
    server = serve()
    statuses = []
    threads = [
        threading.Thread(target=lambda i=i: statuses.append(server.send(body(span(i, name=f"s{i}" * 9000))).status))
        for i in range(1, 41)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 40
    assert len(server.intake.sink.names()) == 40


def test_partial_success_is_200_in_both_types(serve):
    server = serve()
    answer = server.send(body(span(1), span(2, trace_id=b"x")))
    assert (answer.status, answer.headers["content-type"]) == (200, PROTOBUF)
    partial = ExportTraceServiceResponse.FromString(answer.body).partial_success
    assert partial.rejected_spans == 1
    assert "spans[1]: trace_id" in partial.error_message

    answer = server.send(json_body(spanId="not hex"), content_type=JSON)
    assert (answer.status, answer.headers["content-type"]) == (200, JSON)
    partial = json.loads(answer.body)["partialSuccess"]
    assert partial["rejectedSpans"] == "1"
    assert "'not hex' is not hex" in partial["errorMessage"]
    assert server.intake.sink.names() == ["span 1"]


def test_the_tenant_is_a_header(serve):
    server = serve()
    assert server.send(body(span(1)), X_Spanhouse_Tenant="team-a").status == 200
    assert server.intake.sink.frames[0].tenant == "team-a"
    for bad in ("no/name", "", "é"):
        answer = server.send(body(span(1)), X_Spanhouse_Tenant=bad)
        assert answer.status == 400
        assert "x-spanhouse-tenant" in answer.refusal.message


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code", "wanted"),
    [
        ("/v1/metrics", 404, "cannot take metrics: Spanhouse takes traces, at /v1/traces, and logs, at /v1/logs"),
        ("/api/public/otel/v1/metrics", 404, "cannot take metrics"),
        ("/v1development/profiles", 404, "cannot take profiles"),
        ("/", 404, "traces go to /v1/traces"),
        ("/v1/traces/", 404, "traces go to /v1/traces"),
    ],
)
@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_other_paths_are_not_found(serve, path, code, wanted, content_type):
    server = serve()
    answer = server.send(b"{}" if content_type == JSON else b"", path, content_type=content_type)
    assert (answer.status, answer.headers["content-type"]) == (code, content_type)
    assert wanted in answer.refusal.message
    assert answer.headers["retry-after"] is None
    assert server.intake.refusals() == {"NotFound": 1}


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(serve, method):
    answer = serve().send(b"", method=method, content_type=None)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert f"cannot {method}" in answer.refusal.message


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/protobuf", "application/grpc", "é"])
def test_other_media_types_are_unsupported(serve, content_type):
    answer = serve().send(body(span(1)), content_type=content_type)
    assert answer.status == 415
    assert PROTOBUF in answer.refusal.message
    assert JSON in answer.refusal.message


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        (body(span(1))[:-3], {}),
        (b"{}", {}),
        (b"\xff" * 20_000, {}),
        (b"", {"content_type": JSON}),
        (b"\x0a\x00", {"content_type": JSON}),
        (b"[" * 200_000, {"content_type": JSON}),
        (b'{"resourceSpans":[5]}', {"content_type": JSON}),
        (b"no gzip", {"content_encoding": "gzip"}),
        (b"", {"content_encoding": "gzip"}),
        (gzip.compress(body(span(1)))[:-4], {"content_encoding": "gzip"}),
        (gzip.compress(body(span(1))) + b"x", {"content_encoding": "gzip"}),
        (b"no zstd" * 9000, {"content_encoding": "zstd"}),
        (body(span(1)), {"content_encoding": "br"}),
        (body(span(1)), {"content_encoding": "gzip, deflate"}),
    ],
)
def test_what_cannot_be_decoded_is_400_with_a_bad_request_detail(serve, data, headers):
    server = serve()
    answer = server.send(data, **headers)
    assert (answer.status, answer.headers["content-type"]) == (400, headers.get("content_type", PROTOBUF))
    assert "cannot decode" in answer.refusal.message
    assert answer.headers["retry-after"] is None
    if answer.headers["content-type"] == PROTOBUF:
        detail = BadRequestDetail()
        assert answer.refusal.details[0].Unpack(detail)
        assert detail.field_violations[0].description == answer.refusal.message
    else:
        (detail,) = json.loads(answer.body)["details"]
        assert detail["@type"] == "type.googleapis.com/google.rpc.BadRequest"
    assert not server.intake.sink.frames
    assert server.intake.refusals() == {"BadRequest": 1}


def test_a_bad_request_names_the_place_in_the_json(serve):
    answer = serve().send(json_body(kind="NOPE"), content_type=JSON)
    (detail,) = json.loads(answer.body)["details"]
    assert detail["fieldViolations"][0]["field"] == "resourceSpans[0].scopeSpans[0].spans[0].kind"


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
@pytest.mark.parametrize(
    "encode",
    [
        lambda data: (data, {}),
        lambda data: (gzip.compress(data), {"content_encoding": "gzip"}),
        lambda data: (zlib.compress(data), {"content_encoding": "deflate"}),
        lambda data: (zstandard.compress(data), {"content_encoding": "zstd"}),
    ],
    ids=["identity", "gzip", "deflate", "zstd"],
)
def test_a_body_over_the_limit_is_413_as_it_came_or_inflated(serve, encode, content_type):
    server = serve(request_bytes_max=MIB)
    data, headers = encode(bytes(100 * MIB if encode(b"")[1] else 3 * MIB))
    answer = server.send(data, content_type=content_type, **headers)
    assert (answer.status, answer.headers["content-type"]) == (413, content_type)
    assert str(MIB) in answer.refusal.message
    assert answer.headers["retry-after"] is None
    assert server.intake.refusals() == {"TooLarge": 1}
    assert server.intake.admission.in_flight.held_bytes == 0


def test_a_chunked_body_over_the_limit_is_413_and_the_connection_stays(serve):
    server = serve(request_bytes_max=MIB)
    connection = server.connect()
    connection.request("POST", TRACES, (bytes(100_000) for _ in range(50)), {"content-type": PROTOBUF})
    assert Answer(connection.getresponse()).status == 413
    connection.request("POST", TRACES, body(span(1)), {"content-type": PROTOBUF})
    assert Answer(connection.getresponse()).status == 200


@pytest.mark.parametrize("content_type", [PROTOBUF, JSON])
def test_a_full_wal_is_503_and_says_when_to_come_again(serve, content_type):
    server = serve()
    server.intake.sink.failure = WalFull("cannot take more: the WAL is full", retry_after_s=2.5)
    data = json_body() if content_type == JSON else body(span(1))
    answer = server.send(data, content_type=content_type)
    assert (answer.status, answer.headers["retry-after"], answer.headers["content-type"]) == (503, "3", content_type)
    assert answer.refusal.message == "cannot take more: the WAL is full"
    if content_type == PROTOBUF:
        retry = RetryInfo()
        assert answer.refusal.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 2500
    else:
        assert json.loads(answer.body)["details"][0]["retryDelay"] == "2.500s"
    server.intake.sink.failure = None
    assert server.send(data, content_type=content_type).status == 200


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(28, "No space left on device"), MemoryError()])
@pytest.mark.parametrize("when", ["at once", "later"])
def test_an_exception_of_ours_is_503_and_never_500(serve, error, when):
    server = serve()

    def append(_):
        if when == "at once":
            raise error
        failed = Future()
        failed.set_exception(error)
        return failed

    server.intake.admission._append = append
    for data in (body(span(1)), body(span(1, name="x" * 50_000))):
        answer = server.send(data)
        assert (answer.status, answer.headers["content-type"]) == (503, PROTOBUF)
        assert int(answer.headers["retry-after"]) > 0
        assert type(error).__name__ in answer.refusal.message
    assert server.intake.refusals() == {"Internal": 2}


def test_too_many_bytes_in_flight_are_429(serve):
    server = serve(request_bytes_max=MIB, in_flight_bytes_max=2 * MIB)
    server.intake.sink.hold = True
    answers = []
    threads = [
        threading.Thread(target=lambda i=i: answers.append(server.send(body(span(i, name="x" * 800_000)))))
        for i in (1, 2)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(server.intake.sink.held) == 2)
    answer = server.send(body(span(3, name="x" * 800_000)))
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert "send later" in answer.refusal.message
    for future in server.intake.sink.held:
        future.set_result(None)
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [200, 200]
    assert server.intake.admission.in_flight.held_bytes == 0


def test_a_request_that_does_not_become_durable_in_time_is_503_and_stored_once(serve):
    server = serve(server={"ack_timeout_s": 0.2})
    server.intake.sink.hold = True
    answer = server.send(body(span(1)))
    assert answer.status == 503
    assert "durable" in answer.refusal.message
    server.intake.sink.held[0].set_result(None)
    assert server.send(body(span(1))).status == 200
    assert server.intake.sink.names() == ["span 1"]
    assert server.intake.counts() == (2, 0, 1, 1)


# --- clients that leave, or are slow, or speak no HTTP ------------------------------------------------------------

HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 1000\r\n\r\n" + body(span(1)),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body(span(1))) + body(span(1)) + b"\r\n",
        HEAD,
    ],
    ids=["less than announced", "no last chunk", "in the headers"],
)
def test_a_client_that_leaves_before_the_end_stores_nothing(serve, sent):
    server = serve()
    with server.raw() as connection:
        connection.sendall(sent)
        time.sleep(0.2)
    time.sleep(0.2)
    assert not server.intake.sink.frames
    assert server.intake.admission.in_flight.held_bytes == 0
    assert server.send(body(span(2))).status == 200


def test_a_client_that_leaves_before_the_answer_is_stored_and_its_retransmit_is_not(serve):
    server = serve()
    server.intake.sink.hold = True
    data = body(span(1))
    with server.raw() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        until(lambda: server.intake.sink.held)
    server.intake.sink.held[0].set_result(None)
    assert server.send(data).status == 200
    assert server.intake.sink.names() == ["span 1"]
    assert server.intake.counts() == (2, 0, 1, 1)


def test_a_body_that_takes_too_long_is_503_and_the_connection_ends(serve):
    server = serve(server={"body_timeout_s": 0.3})
    with server.raw() as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nx")
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in answer
    assert Status.FromString(answer.partition(b"\r\n\r\n")[2]).message.startswith("cannot wait for the body")
    assert server.intake.refusals() == {"SlowSender": 1}


@pytest.mark.parametrize("sent", [b"", b"POST /v1/tr", HEAD], ids=["silent", "in the line", "in the headers"])
def test_headers_that_take_too_long_end_the_connection(serve, sent, monkeypatch):
    monkeypatch.setattr(otlp_http, "_HEADERS_TIMEOUT_S", 0.3)
    server = serve()
    with server.raw() as connection:
        connection.sendall(sent)
        started = time.monotonic()
        assert read_to_end(connection) == b""
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("headers", [b"X: " + b"x" * 66_000, b"X: x\r\n" * 11_000], ids=["one long", "many"])
def test_long_headers_are_refused(serve, headers):
    server = serve()
    with server.raw() as connection:
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\n" + headers)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "headers" in json.loads(answer.partition(b"\r\n\r\n")[2])["message"]


def test_headers_without_end_are_cut_off(serve):
    server = serve()
    with server.raw() as connection, pytest.raises(ConnectionError):
        connection.sendall(b"POST /v1/traces HTTP/1.1\r\nX: ")
        for _ in range(1000):
            connection.sendall(bytes(b"x" * 65_536))


def test_what_is_not_http_is_400_with_a_status(serve):
    server = serve()
    with server.raw() as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["message"]


def read_to_end(connection: socket.socket) -> bytes:
    chunks = []
    while chunk := connection.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def test_a_large_body_does_not_hold_up_the_others(serve):
    server = serve()
    large = gzip.compress(json_body(attributes=[{"key": f"k{i}", "value": {"intValue": i}} for i in range(150_000)]))
    answers = []
    sending = threading.Thread(
        target=lambda: answers.append(server.send(large, content_type=JSON, content_encoding="gzip"))
    )
    slowest_s = 0.0
    sending.start()
    number = 0
    while sending.is_alive():
        number += 1
        started = time.monotonic()
        assert server.send(body(span(number))).status == 200
        slowest_s = max(slowest_s, time.monotonic() - started)
    assert answers[0].status == 200
    assert number > 5
    assert slowest_s < 1


def test_stopping_lets_the_requests_in_progress_end(serve):
    server = serve()
    server.intake.sink.hold = True
    answers = []
    sending = threading.Thread(target=lambda: answers.append(server.send(body(span(1)))))
    sending.start()
    until(lambda: server.intake.sink.held)
    server.uvicorn.should_exit = True
    time.sleep(0.3)
    assert server.thread.is_alive()
    server.intake.sink.held[0].set_result(None)
    sending.join()
    assert answers[0].status == 200
