"""Frames of real, small OTLP requests, and what the tests of the WAL do with them over and over."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from xxhash import xxh3_128_digest

from collector.frames import Frame, Signal, read_frames


def request(spans: int = 1, *, name: str = "chat", filler_bytes: int = 0) -> bytes:
    """An encoded export request, different at every call."""
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "support"
    scope_spans = resource_spans.scope_spans.add()
    for _ in range(spans):
        span = scope_spans.spans.add(trace_id=bytes(15) + b"\1", span_id=os.urandom(8), name=name)
        if filler_bytes:
            span.attributes.add(key="filler").value.string_value = "x" * filler_bytes
    return message.SerializeToString()


def frame(spans: int = 1, *, tenant: str = "default", name: str = "chat", filler_bytes: int = 0) -> Frame:
    """A frame as admission makes it."""
    return frame_of(request(spans, name=name, filler_bytes=filler_bytes), spans=spans, tenant=tenant)


def frame_of(body: bytes, *, spans: int = 1, tenant: str = "default") -> Frame:
    """A frame with these very bytes as its request."""
    return Frame(tenant, xxh3_128_digest(body), spans, body)


def span_ids(body: bytes | memoryview) -> list[bytes]:
    """The ids of all spans of an encoded request."""
    message = ExportTraceServiceRequest.FromString(bytes(body))
    return [span.span_id for r in message.resource_spans for s in r.scope_spans for span in s.spans]


def digests(paths: Iterable[Path]) -> list[bytes]:
    """The digests of all good frames in these segments, in order."""
    return [stored.digest for path in paths for stored in read_frames(path)]


def until(condition: Callable[[], object], seconds_max: float = 10.0) -> None:
    """Wait for something another thread does; fails the test when it does not."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class FakeStore:
    """A store that remembers what it loaded, by token; `fail` is asked first and may raise."""

    def __init__(self, fail: Callable[[Path, str], None] = lambda path, token: None) -> None:
        self.fail = fail
        self.attempts: list[str] = []
        self.loaded: dict[str, list[bytes]] = {}
        self.tenants: Counter[str] = Counter()

    def load(self, path: Path, token: str, signal: Signal = "traces") -> None:
        """What the loader calls."""
        self.attempts.append(token)
        self.fail(path, token)
        frames = list(read_frames(path))
        assert sum(stored.length for stored in frames) == path.stat().st_size, "the engine would choke on this file"
        frames = [stored for stored in frames if stored.signal == signal]
        if token not in self.loaded:  # the same token twice stores once
            self.loaded[token] = [stored.digest for stored in frames]
            for stored in frames:
                self.tenants[stored.tenant] += stored.items

    @property
    def digests(self) -> list[bytes]:
        """Digests of all frames stored, with repeats."""
        return [digest for group in self.loaded.values() for digest in group]
