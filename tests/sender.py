"""Exporters for tests: what OTLP clients do on the wire, and numbered requests of which each span can be told apart.

An exporter keeps a request until it is acknowledged and sends the same bytes again, so `export` raises what tells it
whether to: Refused when Spanhouse answered, Lost when nobody did.
"""

import random
import threading
from dataclasses import dataclass
from typing import Literal, Protocol

import grpc
import httpx
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TIMEOUT_S = 20.0
CONTENT_KEY = "gen_ai.input.messages"


class Lost(Exception):
    """There was no answer: the connection could not be made, or broke, or the answer took too long."""


class Refused(Exception):
    """Spanhouse answered, and took nothing. `code` is gRPC's name or HTTP's number; the wait is what it asked for."""

    def __init__(self, code: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(f"{code}: {message} (retry after {retry_after_s} s)")
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Receivers(Protocol):
    """Where to send: `host:port` of OTLP/gRPC, and the URL of OTLP/HTTP."""

    @property
    def grpc(self) -> str: ...

    @property
    def otlp_http(self) -> str: ...


class GrpcDoor:
    """A connection to OTLP/gRPC. `export` sends a request and returns the encoded response; raises Lost and Refused."""

    def __init__(self, address: str, tenant: str = "default", timeout_s: float = TIMEOUT_S) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", 64 << 20)])
        self._call = self._channel.unary_unary(EXPORT)
        self._metadata = (("x-spanhouse-tenant", tenant),)
        self._timeout_s = timeout_s

    def export(self, body: bytes) -> bytes:
        try:
            response: bytes = self._call(body, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
            if details is None:  # not an answer of ours, but of the client's library
                raise Lost(f"{error.code()}: {error.details()}") from error
            raise _refused(error.code().name, details) from error
        return response

    def close(self) -> None:
        self._channel.close()


class HttpDoor:
    """The same to OTLP/HTTP with protobuf."""

    def __init__(self, url: str, tenant: str = "default", timeout_s: float = TIMEOUT_S) -> None:
        headers = {"content-type": "application/x-protobuf", "x-spanhouse-tenant": tenant}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def export(self, body: bytes, **headers: str) -> bytes:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            response = self._client.post("/v1/traces", content=body, headers=named)
        except httpx.TransportError as error:
            raise Lost(repr(error)) from error
        if response.status_code != 200:
            refused = _refused(str(response.status_code), response.content)
            if "retry-after" in response.headers:
                refused.retry_after_s = float(response.headers["retry-after"])
            raise refused
        return response.content

    def close(self) -> None:
        self._client.close()


def _refused(code: str, encoded: bytes) -> Refused:
    try:
        status = Status.FromString(encoded)
    except DecodeError:
        return Refused(code, repr(encoded[:200]), None)
    info = RetryInfo()
    waits = [info.retry_delay.ToTimedelta().total_seconds() for detail in status.details if detail.Unpack(info)]
    return Refused(code, status.message, waits[0] if waits else None)


@dataclass(frozen=True)
class Numbered:
    """A request with a number: one trace, whose spans are numbered too. Every second span has content."""

    trace_id: bytes
    body: bytes
    spans: int

    @property
    def span_ids(self) -> list[bytes]:
        return [number.to_bytes(8) for number in range(1, self.spans + 1)]


def numbered(sender: int, number: int, spans: int, filler: str = "") -> Numbered:
    """Request `number` of a sender, the same bytes whenever it is made. `filler` makes its content longer."""
    trace_id = sender.to_bytes(8) + number.to_bytes(8)
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = f"sender {sender}"
    made = resource_spans.scope_spans.add().spans
    start = 1_795_000_000_000_000_000 + number * 1_000_000
    for at in range(1, spans + 1):
        span = made.add(trace_id=trace_id, span_id=at.to_bytes(8), name=f"step {at % 7}")
        span.parent_span_id = b"" if at == 1 else (1).to_bytes(8)
        span.start_time_unix_nano, span.end_time_unix_nano = start + at, start + at + 1000
        span.attributes.add(key="number").value.int_value = number
        if at % 2 == 0:
            span.attributes.add(key=CONTENT_KEY).value.string_value = f"{number} {at} {filler}"
    return Numbered(trace_id, message.SerializeToString(), spans)


class Exporter:
    """Sends numbered requests one after another, and each again until it is acknowledged, over all starts of a server.

    At the beginning of each run it repeats the last one that was acknowledged: as far as the server can tell, the
    acknowledgement was lost. It sends as the tenant that its protocol names.
    """

    def __init__(self, sender: int, protocol: Literal["grpc", "http"], seed: int) -> None:
        self.sender = sender
        self.tenant = protocol
        self.acknowledged: list[Numbered] = []
        self.refusals: list[Refused] = []
        self.sent_again = 0
        self._random = random.Random(f"{seed}/{sender}")
        self._pending: Numbered | None = None
        self._number = 0

    def run(self, receivers: Receivers, first: threading.Event, stop: threading.Event) -> None:
        """Send until `stop` is set and nothing is left to be acknowledged, or until the connection is lost.

        Sets `first` at every acknowledgement.
        """
        door: GrpcDoor | HttpDoor
        door = GrpcDoor(receivers.grpc, "grpc") if self.tenant == "grpc" else HttpDoor(receivers.otlp_http, "http")
        try:
            if self.acknowledged:
                self.sent_again += 1
                door.export(self.acknowledged[-1].body)
            while self._pending is not None or not stop.is_set():
                self._pending = self._pending or self._next()
                try:
                    answer = door.export(self._pending.body)
                except Refused as refused:
                    assert refused.retry_after_s, f"a refusal that loses data: {refused}"
                    self.refusals.append(refused)
                    stop.wait(0.1)
                    continue
                assert answer == b"", "every span is good"
                self.acknowledged.append(self._pending)
                self._pending = None
                first.set()
        except Lost:
            self.sent_again += self._pending is not None
        finally:
            door.close()

    def _next(self) -> Numbered:
        self._number += 1
        if self._random.random() < 0.01:
            return numbered(self.sender, self._number, self._random.randint(1500, 3000), "x" * 300)
        return numbered(
            self.sender, self._number, self._random.randint(2, 9), "x" * self._random.choice((10, 200, 3000))
        )
