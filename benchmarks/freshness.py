"""How soon a span that was acknowledged can be read: marked traces of one span, sent and asked for again and again.

Runs in a process of its own: one thread sends, the main thread asks. The oldest trace that was not found yet is the
only one asked for, since they become readable in the order in which they were acknowledged: asking for each of them
every few milliseconds would be a load of its own.
"""

import queue
import random
import threading
import time

import httpx
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from benchmarks.load import Client

SEND_EVERY_S = 0.1
ASK_EVERY_S = 0.05
"""Each question takes the server some milliseconds: at 20 ms, a third of a core would go into asking."""
FOUND_S_MAX = 30


class NotFound(Exception):
    """A trace was acknowledged and could not be read in time."""


def measure(grpc_address: str, url: str, seconds: float) -> list[float]:
    """Seconds from the acknowledgement to the answer that has the trace, for each probe. Raises NotFound."""
    acknowledged: queue.Queue[tuple[str, float] | None] = queue.Queue()
    sender = threading.Thread(target=_send, args=(grpc_address, seconds, acknowledged), daemon=True)
    sender.start()
    fresh_s = []
    with httpx.Client(base_url=url, timeout=FOUND_S_MAX) as http:
        while (probe := acknowledged.get(timeout=seconds + FOUND_S_MAX)) is not None:
            trace_id, acknowledged_s = probe
            fresh_s.append(_wait_until_readable(http, trace_id) - acknowledged_s)
    return fresh_s


def _send(address: str, seconds: float, acknowledged: queue.Queue[tuple[str, float] | None]) -> None:
    try:
        client = Client(address)
        start_s = time.monotonic()
        for number in range(int(seconds / SEND_EVERY_S)):
            time.sleep(max(0.0, start_s + number * SEND_EVERY_S - time.monotonic()))
            trace_id = random.randbytes(16)
            body = _request(trace_id)
            while (retry_s := client.export(body)) is not None:
                time.sleep(retry_s)
            acknowledged.put((trace_id.hex(), time.monotonic()))
    finally:
        acknowledged.put(None)


def _wait_until_readable(http: httpx.Client, trace_id: str) -> float:
    deadline = time.monotonic() + FOUND_S_MAX
    while time.monotonic() < deadline:
        asked_s = time.monotonic()
        response = http.get(f"/api/v1/traces/{trace_id}")
        if response.status_code == httpx.codes.OK:
            return time.monotonic()
        time.sleep(max(0.0, asked_s + ASK_EVERY_S - time.monotonic()))
    raise NotFound(f"cannot read trace {trace_id} within {FOUND_S_MAX} s: {response.text[:500]}")


def _request(trace_id: bytes) -> bytes:
    request = ExportTraceServiceRequest()
    resource_spans = request.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "freshness"
    now = time.time_ns()
    resource_spans.scope_spans.add().spans.add(
        trace_id=trace_id, span_id=trace_id[:8], name="probe", start_time_unix_nano=now, end_time_unix_nano=now + 1
    )
    return bytes(request.SerializeToString())
