"""Sends a payload over OTLP/gRPC, at full speed or paced, as exporters would: what is refused for now is sent again.

Runs in a process of its own, on as many threads as there are senders. The requests are encoded already, so that the
sender takes little of the processors that it shares with the server.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from benchmarks.payloads import Payload

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
RETRYABLE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
RETRY_S = 0.5
CALL_S_MAX = 60
CONNECT_S_MAX = 20


class NotTaken(Exception):
    """The server refused spans for good, or too often. No figure would mean anything."""


@dataclass
class Sent:
    """What became of a payload. `ack_s` has one entry an acknowledged request: its last attempt, from call to answer.

    `start_s` is on the monotonic clock, which all processes share; `cpu_s` is what the sender's process used in all.
    `late_s`: how long after it was due each paced request was called. When that is more than some milliseconds the
    sender did not keep up, and the load was not the one that was asked for.
    """

    start_s: float = 0
    seconds: float = 0
    spans: int = 0
    retries: int = 0
    cpu_s: float = 0
    ack_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)


def send(
    address: str, payload: Payload, *, workers: int = 8, spans_per_s: float | None = None, seconds_max: float = 600
) -> Sent:
    """Send all of the payload over as many connections as there are workers. Raises NotTaken."""
    requests = _Due(payload, spans_per_s)
    sent = Sent()
    clients = [Client(address) for _ in range(workers)]
    sent.start_s = requests.start(seconds_max)
    with ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(_work, client, requests, sent) for client in clients]:
            done.result()
    sent.seconds = time.monotonic() - sent.start_s
    for client in clients:
        client.close()
    sent.cpu_s = time.process_time()
    return sent


class Client:
    """One connection, connected."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        grpc.channel_ready_future(self._channel).result(CONNECT_S_MAX)
        self._export: Any = self._channel.unary_unary(EXPORT)

    def export(self, body: bytes) -> float | None:
        """Seconds after which to try again, or None when all spans were taken. Raises NotTaken."""
        try:
            answer = self._export(body, timeout=CALL_S_MAX)
        except grpc.RpcError as error:
            code = error.code()
            if code not in RETRYABLE:
                raise NotTaken(f"{code.name}: {error.details()}") from error
            return _retry_s(error)
        if answer and (partial := ExportTraceServiceResponse.FromString(answer).partial_success).rejected_spans:
            raise NotTaken(f"{partial.rejected_spans} spans rejected: {partial.error_message}")
        return None

    def close(self) -> None:
        """Disconnect."""
        self._channel.close()


def _retry_s(error: Any) -> float:
    """What the refusal asks to wait (RetryInfo in its trailers), or a default."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToTimedelta().total_seconds())
    return RETRY_S


class _Due:
    """Hands out the requests of a payload, each to one worker, with the time at which it is due."""

    def __init__(self, payload: Payload, spans_per_s: float | None) -> None:
        self._lock = threading.Lock()
        self._bodies = payload.bodies()
        self._spans_per_s = spans_per_s
        self._spans = 0
        self._start_s = self._give_up_s = 0.0

    def start(self, seconds_max: float) -> float:
        self._start_s = time.monotonic()
        self._give_up_s = self._start_s + seconds_max
        return self._start_s

    def __iter__(self) -> Iterator[tuple[int, bytes, float | None]]:
        while True:
            with self._lock:
                spans, body = next(self._bodies, (0, b""))
                due_s = self._start_s + self._spans / self._spans_per_s if self._spans_per_s else None
                self._spans += spans
            if not spans:
                return
            self.check_time()
            yield spans, body, due_s

    def check_time(self) -> None:
        if time.monotonic() > self._give_up_s:
            raise NotTaken("the server did not take the payload in time")


def _work(client: Client, requests: _Due, sent: Sent) -> None:
    """One sender: lists are appended to by all of them, sums are kept here and added at the end, under the GIL."""
    spans_taken = retries = 0
    for spans, body, due_s in requests:
        if due_s is not None:
            time.sleep(max(0.0, due_s - time.monotonic()))
            sent.late_s.append(time.monotonic() - due_s)
        while True:
            call_s = time.monotonic()
            retry_s = client.export(body)
            if retry_s is None:
                break
            requests.check_time()
            retries += 1
            time.sleep(retry_s)
        sent.ack_s.append(time.monotonic() - call_s)
        spans_taken += spans
    sent.spans += spans_taken
    sent.retries += retries
