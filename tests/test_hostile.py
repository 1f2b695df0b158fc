"""Requests that no sane exporter sends, at the real program: it answers, it keeps what can be kept, it stays small, and
others are served meanwhile."""

import gzip
import itertools
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from exactly_once import ledger, wait_until_loaded
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from program import Program
from sender import GrpcDoor, HttpDoor, Lost, Refused, numbered

MIB = 1 << 20
RESIDENT_BYTES_MAX = 2 << 30
START = 1_795_000_000_000_000_000
NORMAL = itertools.count(1)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One program for all of them: what one leaves behind is the next one's trouble."""
    with Program(tmp_path_factory.mktemp("hostile") / "data") as running:
        yield running


@pytest.fixture(autouse=True)
def afterwards(program: Program) -> Iterator[None]:
    """After each of them a normal request works, nothing is stuck or in the quarantine, and the memory is bounded."""
    yield
    normal = numbered(9, next(NORMAL), 5)
    HttpDoor(program.otlp_http).export(normal.body)
    GrpcDoor(program.grpc).export(normal.body)
    program.read_trace(normal.trace_id.hex(), 5, 30)
    assert all(counts["quarantined"] == 0 for counts in ledger(program).values())
    status = Path(f"/proc/{program.pid}/status")
    if status.exists():
        [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        print(peak)
        assert int(peak.split()[1]) * 1024 < RESIDENT_BYTES_MAX, peak


def send(program: Program, request: Message) -> None:
    """To the gRPC receiver when it is small, for a change, else to the HTTP one; acknowledged in full."""
    body = request.SerializeToString()
    door = HttpDoor(program.otlp_http, timeout_s=60) if len(body) > 4 * MIB else GrpcDoor(program.grpc, timeout_s=60)
    assert door.export(body) == b""


def one_span(trace: int) -> tuple[ExportTraceServiceRequest, Message]:
    """A request with a span, and the span."""
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="hostile", span_id=bytes(7) + b"\1")
    span.trace_id = b"hostile" + trace.to_bytes(9)
    span.start_time_unix_nano, span.end_time_unix_nano = START, START + 1000
    return request, span


def as_sent(program: Program, trace_id: bytes, spans: int) -> TracesData:
    """The trace as OTLP."""
    program.read_trace(trace_id.hex(), spans, 30)
    url = f"{program.http}/api/v1/traces/{trace_id.hex()}"
    answer = httpx.get(url, params={"format": "otlp"}, headers={"accept": "application/x-protobuf"}, timeout=60)
    assert answer.status_code == 200, answer.text[:1000]
    return TracesData.FromString(answer.content)


def spans_of(data: TracesData | ExportTraceServiceRequest) -> list:
    return [span for block in data.resource_spans for scope in block.scope_spans for span in scope.spans]


# --- large ---


def test_a_hundred_thousand_spans_in_one_request(program: Program) -> None:
    request, first = one_span(1)
    spans = request.resource_spans[0].scope_spans[0].spans
    for number in range(2, 100_001):
        span = spans.add(trace_id=first.trace_id, span_id=number.to_bytes(8), parent_span_id=first.span_id, name="many")
        span.start_time_unix_nano = span.end_time_unix_nano = START + number
    send(program, request)
    wait_until_loaded(program)
    trace = httpx.get(f"{program.http}/api/v1/traces/{first.trace_id.hex()}?format=flat", timeout=60).json()
    assert len({span["span_id"] for span in trace["spans"]}) == 100_000


def test_ten_thousand_attributes_on_a_span(program: Program) -> None:
    request, span = one_span(2)
    for number in range(10_000):
        span.attributes.add(key=f"key.{number}").value.int_value = number
    send(program, request)
    [read] = spans_of(as_sent(program, span.trace_id, 1))
    assert {pair.key: pair.value.int_value for pair in read.attributes} == {f"key.{n}": n for n in range(10_000)}


def test_an_attribute_of_ten_megabytes(program: Program) -> None:
    text = random.Random(1).randbytes(5 * MIB).hex()
    request, span = one_span(3)
    span.attributes.add(key="large").value.string_value = text
    send(program, request)
    [read] = spans_of(as_sent(program, span.trace_id, 1))
    assert read.attributes[0].value.string_value == text


def test_ten_thousand_resources_in_one_request(program: Program) -> None:
    request = ExportTraceServiceRequest()
    for number in range(1, 10_001):
        block = request.resource_spans.add()
        block.resource.attributes.add(key="service.name").value.string_value = f"service {number}"
        span = block.scope_spans.add().spans.add(trace_id=b"hostile" + (4).to_bytes(9), span_id=number.to_bytes(8))
        span.start_time_unix_nano = span.end_time_unix_nano = START + number
    send(program, request)
    data = as_sent(program, b"hostile" + (4).to_bytes(9), 10_000)
    assert {
        (block.resource.attributes[0].value.string_value, span.span_id)
        for block in data.resource_spans
        for scope in block.scope_spans
        for span in scope.spans
    } == {(f"service {number}", number.to_bytes(8)) for number in range(1, 10_001)}


def test_a_hundred_thousand_events_on_a_span(program: Program) -> None:
    request, span = one_span(5)
    for number in range(100_000):
        span.events.add(time_unix_nano=START + number, name=f"event {number % 10}")
    send(program, request)
    [read] = spans_of(as_sent(program, span.trace_id, 1))
    assert [event.time_unix_nano for event in read.events] == [START + number for number in range(100_000)]


# --- bombs and garbage ---


def test_a_gzip_bomb(program: Program) -> None:
    bomb = gzip.compress(bytes(256 * MIB), 9)
    assert len(bomb) < MIB
    with pytest.raises(Refused, match="more than 67108864 bytes") as refused:
        HttpDoor(program.otlp_http).export(bomb, content_encoding="gzip")
    assert (refused.value.code, refused.value.retry_after_s) == ("413", None)


def field(number: int, content: bytes) -> bytes:
    """A field of a message, encoded: `number` is 15 at most."""
    length, left = b"", len(content)
    while left > 0x7F:
        length, left = length + bytes([left & 0x7F | 0x80]), left >> 7
    return bytes([number << 3 | 2]) + length + bytes([left]) + content


MILLIONS = 2_100_000
MILLIONS_OF = {
    "resources": field(1, b"") * MILLIONS,
    "scopes": field(1, field(2, b"") * MILLIONS),
    "spans": field(1, field(2, field(2, b"") * MILLIONS)),
    "events": field(1, field(2, field(2, field(11, b"") * MILLIONS))),
    "links": field(1, field(2, field(2, field(13, b"") * MILLIONS))),
    "attributes": field(1, field(2, field(2, field(9, b"") * MILLIONS))),
    "attributes of an event": field(1, field(2, field(2, field(11, field(3, b"") * MILLIONS)))),
    "attributes of a resource": field(1, field(1, field(1, b"") * MILLIONS) + field(2, field(2, b""))),
}


@pytest.mark.parametrize("what", MILLIONS_OF)
def test_millions_of_empty_messages(program: Program, what: str) -> None:
    """Two bytes each on the wire, a few kilobytes for all of them compressed, and eighty times as many when parsed."""
    started_s = time.monotonic()
    with pytest.raises(Refused, match=f"cannot take {MILLIONS} {what.split(maxsplit=1)[0]} .* is the limit") as refused:
        HttpDoor(program.otlp_http).export(gzip.compress(MILLIONS_OF[what]), content_encoding="gzip")
    assert (refused.value.code, refused.value.retry_after_s) == ("413", None)
    assert time.monotonic() - started_s < 3


def test_random_bytes(program: Program) -> None:
    """As bodies they are refused for good, or they are empty requests; as connections they are closed."""
    chance = random.Random(2)
    doors = [HttpDoor(program.otlp_http), GrpcDoor(program.grpc)]
    valid = numbered(8, 1, 3).body
    for number in range(200):
        body = chance.randbytes(chance.randint(1, 3000))
        if number % 2:  # nearly right
            at = chance.randrange(len(valid))
            body = valid[:at] + chance.randbytes(chance.randint(1, 4)) + valid[at + 1 :]
        try:
            doors[number // 2 % 2].export(body)
        except Refused as refused:
            assert refused.code in ("400", "INVALID_ARGUMENT"), refused
            assert refused.retry_after_s is None, refused
    for address in (program.grpc, program.otlp_http.removeprefix("http://"), program.http.removeprefix("http://")):
        host, _, port = address.rpartition(":")
        for _ in range(20):
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                try:
                    connection.sendall(chance.randbytes(2000))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(4096):
                        pass
                except ConnectionError:
                    pass


# --- slow ---


def test_connections_that_never_end_their_request_do_not_stop_others(program: Program) -> None:
    host, _, http_port = program.otlp_http.removeprefix("http://").rpartition(":")
    grpc_port = program.grpc.rpartition(":")[2]
    head = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 1000000\r\n"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    beginnings = [
        (http_port, b""),
        (http_port, head[:40]),
        (http_port, head),
        (http_port, head + b"\r\n" + b"x" * 100),
        (grpc_port, b""),
        (grpc_port, preface[:10]),
        (grpc_port, preface),
    ]
    with ExitStack() as slow:
        for port, beginning in beginnings * 60:
            connection = slow.enter_context(socket.create_connection((host, int(port)), timeout=10))
            connection.sendall(beginning)
        started_s = time.monotonic()
        for number in range(20):
            request = numbered(7, number, 3)
            HttpDoor(program.otlp_http).export(request.body)
            GrpcDoor(program.grpc).export(request.body)
        assert time.monotonic() - started_s < 10
        assert httpx.get(f"{program.http}/readyz").is_success


def test_large_requests_do_not_stop_small_ones(program: Program) -> None:
    """While large ones are inflated, parsed and written, small ones are acknowledged in a fraction of a second."""
    request, span = one_span(6)
    for number in range(40):
        span.attributes.add(key=f"text.{number}").value.string_value = "all work and no play " * 20_000
    body, stop, waits_s = gzip.compress(request.SerializeToString(), 1), threading.Event(), []

    def send_large() -> None:
        door = HttpDoor(program.otlp_http, timeout_s=60)
        while not stop.is_set():
            try:
                door.export(body, content_encoding="gzip")
            except (Refused, Lost) as error:
                assert getattr(error, "retry_after_s", None), error

    threads = [threading.Thread(target=send_large) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        door = GrpcDoor(program.grpc)
        for number in range(40):
            started_s = time.monotonic()
            door.export(numbered(6, number, 3).body)
            waits_s.append(time.monotonic() - started_s)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert sorted(waits_s)[len(waits_s) // 2] < 1, waits_s


# --- times ---

YEAR_2300 = 10_413_792_000_000_000_000
TIMES = {
    "no times": (0, 0, {"no start", "no end"}),
    "no start": (0, START, {"no start"}),
    "no end": (START, 0, {"no end"}),
    "end before start": (START, START - 5, {"end before start"}),
    "nothing between": (START, START, set()),
    "1970": (1, 2, set()),
    "2300": (YEAR_2300, YEAR_2300 + 1000, {"beyond the representable range"}),
    "ends in 2300": (START, YEAR_2300, {"beyond the representable range"}),
    "ends before 2300": (YEAR_2300, START, {"beyond the representable range", "end before start"}),
    "the last nanosecond": (2**64 - 1, 2**64 - 1, {"beyond the representable range"}),
    "from the first to the last": (1, 2**64 - 1, {"beyond the representable range"}),
}


def test_times_of_every_kind_come_back_as_they_were_sent(program: Program) -> None:
    trace_id = b"hostile" + (7).to_bytes(9)
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number, (start, end, _) in enumerate(TIMES.values(), start=1):
        span = spans.add(trace_id=trace_id, span_id=number.to_bytes(8), name="times")
        span.start_time_unix_nano, span.end_time_unix_nano = start, end
        span.events.add(time_unix_nano=start, name="then")
    send(program, request)
    read = {int.from_bytes(span.span_id): span for span in spans_of(as_sent(program, trace_id, len(TIMES)))}
    assert {
        number: (span.start_time_unix_nano, span.end_time_unix_nano, span.events[0].time_unix_nano)
        for number, span in read.items()
    } == {number: (start, end, start) for number, (start, end, _) in enumerate(TIMES.values(), start=1)}
    problems: dict[int, set[str]] = {}
    for entry in program.read_trace(trace_id.hex(), len(TIMES))["integrity"]["times"]:
        problems.setdefault(int(entry["span_id"], 16), set()).add(entry["problem"])
    for number, (name, (_, _, expected)) in enumerate(TIMES.items(), start=1):
        assert problems.get(number, set()) == expected, name


def test_a_thousand_days_in_one_request(program: Program) -> None:
    day = 86_400 * 10**9
    today = time.time_ns() // day * day
    trace_id = b"hostile" + (8).to_bytes(9)
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    for number in range(1, 1001):
        # Half of them in one trace, half in one each: summaries have partitions too.
        span = spans.add(
            span_id=number.to_bytes(8), trace_id=trace_id if number % 2 else b"daily" + number.to_bytes(11)
        )
        span.start_time_unix_nano = today + (30 - number) * day
        span.end_time_unix_nano = span.start_time_unix_nano + 1000
    send(program, request)
    read = spans_of(as_sent(program, trace_id, 500))
    assert {(span.span_id, span.start_time_unix_nano, span.end_time_unix_nano) for span in read} == {
        (span.span_id, span.start_time_unix_nano, span.end_time_unix_nano) for span in spans[::2]
    }
    for sent in spans[1::50]:
        [alone] = spans_of(as_sent(program, sent.trace_id, 1))
        assert (alone.start_time_unix_nano, alone.end_time_unix_nano) == (
            sent.start_time_unix_nano,
            sent.end_time_unix_nano,
        )
    assert 'spanhouse_load_failures_total{reason="data"}' not in httpx.get(f"{program.http}/metrics").text
