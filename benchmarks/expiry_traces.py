"""Traces for benchmarks.expiry: ten spans each, of which it is known what a policy on services leaves.

A trace is encoded once and then sent under many ids and times: what changes has the same length, so that a million
traces take some seconds. Nine of ten go: those of `chatty-*`, and most of those that have spans of both kinds of
services. Of the latter some have failed, and stay by a policy that comes first. One trace of nineteen is an agent's.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.payloads import MS, US, request, span_of

TRACE_SPANS = 10
REQUEST_TRACES = 50
VARIANTS = 2000
"""Different traces; what is stored of the others differs from one of them by ids and times."""
SERVICES = 8
ROUTES = 40
DAY_NS = 86_400 * 1_000_000_000
_MASK = (1 << 64) - 1
_CALLS = ("SELECT orders", "redis GET", "HTTP GET", "render", "publish")


@dataclass
class Kept:
    """What has to be there in the end: of a day its spans, and the sum of the first halves of their trace ids."""

    spans: int = 0
    ids: int = 0
    contents: int = 0

    def add(self, trace_id: bytes, contents: int) -> None:
        """A trace that stays."""
        self.spans += TRACE_SPANS
        self.ids = (self.ids + TRACE_SPANS * int.from_bytes(trace_id[:8], "little")) & _MASK
        self.contents += contents


@dataclass(frozen=True)
class _Variant:
    """A trace in pieces: between them go the trace id, and each time as nanoseconds after the start."""

    pieces: tuple[bytes, ...]
    gaps: tuple[int, ...]
    """For each gap a time, or -1 for the trace id."""
    stays: bool
    contents: int

    def bytes(self, trace_id: bytes, start: int) -> bytes:
        parts = [self.pieces[0]]
        for gap, piece in zip(self.gaps, self.pieces[1:], strict=True):
            parts.append(trace_id if gap < 0 else (start + gap).to_bytes(8, "little"))
            parts.append(piece)
        return b"".join(parts)


@dataclass
class Traces:
    """Draws traces; `kept` says what stays of each day, `ids` has some of those that stay."""

    seed: int
    kept: dict[date, Kept] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        draw = self._random = random.Random(f"expiry {self.seed}")
        self._variants = [_variant(draw, number) for number in range(VARIANTS)]

    def day(self, day: date, spans: int) -> Iterator[tuple[int, bytes]]:
        """Requests with the spans of a past day, in the order of their times."""
        midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000_000
        traces = spans // TRACE_SPANS
        for first in range(0, traces, REQUEST_TRACES):
            count = min(REQUEST_TRACES, traces - first)
            starts = (midnight + (DAY_NS - 60_000 * MS) * (first + n) // traces for n in range(count))
            yield count * TRACE_SPANS, b"".join(self._trace(day, start) for start in starts)

    def now(self, unix_nano: int) -> tuple[int, bytes]:
        """A request with traces that begin now. All of these stay: they are of today."""
        day = datetime.fromtimestamp(unix_nano // 1_000_000_000, UTC).date()
        traces = [self._trace(day, unix_nano + n * US, stays=True) for n in range(REQUEST_TRACES)]
        return REQUEST_TRACES * TRACE_SPANS, b"".join(traces)

    def _trace(self, day: date, start: int, *, stays: bool = False) -> bytes:
        variant = self._variants[self._random.randrange(VARIANTS)]
        trace_id = self._random.randbytes(16)
        self.sent += TRACE_SPANS
        if stays or variant.stays:
            self.kept.setdefault(day, Kept()).add(trace_id, variant.contents)
            if self._random.random() < 0.01 and not stays:
                self.ids.append(trace_id.hex())
        return variant.bytes(trace_id, start)


def _variant(draw: random.Random, number: int) -> _Variant:
    """Of a hundred 88 are of a chatty service alone, 2 of both and go, 1 of both and failed, 9 of a steady one."""
    kind = number % 100
    chatty, steady = f"chatty-{draw.randrange(SERVICES)}", f"steady-{draw.randrange(SERVICES)}"
    first, second = (steady, steady) if kind >= 91 else (chatty, chatty) if kind < 88 else (steady, chatty)
    agent = number % 19 == 7
    marks: dict[bytes, int] = {}

    def mark(length: int, gap: int) -> bytes:
        marks[made := draw.randbytes(length)] = gap
        return made

    trace_id = mark(16, -1)
    root_id, at, spans = draw.randbytes(8), 0, []
    for index in range(TRACE_SPANS):
        begin, at = at, at + draw.randrange(200 * US, 5 * MS)
        spans.append(
            span_of(
                trace_id=trace_id,
                span_id=draw.randbytes(8) if index else root_id,
                parent_span_id=root_id if index else b"",
                name=draw.choice(_CALLS) if index else f"GET /api/resource/{draw.randrange(ROUTES)}",
                kind=Span.SPAN_KIND_CLIENT if index else Span.SPAN_KIND_SERVER,
                start=int.from_bytes(mark(8, begin), "little"),
                end=int.from_bytes(mark(8, at + draw.randrange(100 * US, 50 * MS)), "little"),
                failed=kind == 90 and index == 5,
                attributes=_attributes(draw, agent=agent and index % 3 == 1),
            )
        )
    half = TRACE_SPANS // 2
    by_service = {first: spans} if first == second else {first: spans[:half], second: spans[half:]}
    return _Variant(*_pieces(request(by_service), marks), stays=kind >= 90, contents=3 * agent)


def _attributes(draw: random.Random, *, agent: bool) -> dict[str, object]:
    if agent:
        return {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.conversation.id": f"conv-{draw.randrange(10**6)}",
            "gen_ai.usage.input_tokens": draw.randrange(2_000),
            "gen_ai.usage.output_tokens": draw.randrange(400),
            "gen_ai.input.messages": draw.randbytes(150).hex(),
            "gen_ai.output.messages": draw.randbytes(50).hex(),
        }
    return {
        "http.request.method": "GET",
        "http.route": f"/api/resource/{draw.randrange(ROUTES)}",
        "http.response.status_code": 500 if draw.random() < 0.1 else 200,
        "url.path": f"/api/resource/{draw.randrange(10**6)}",
        "server.address": f"10.0.0.{draw.randrange(255)}",
        "user_agent.original": "python-requests/2.32",
    }


def _pieces(body: bytes, marks: dict[bytes, int]) -> tuple[tuple[bytes, ...], tuple[int, ...]]:
    """The body without its marks, and what goes where each was."""
    found: list[tuple[int, bytes]] = []
    for made in marks:
        at = body.find(made)
        while at >= 0:
            found.append((at, made))
            at = body.find(made, at + 1)
    pieces, gaps, end = [], [], 0
    for at, made in sorted(found):
        pieces.append(body[end:at])
        gaps.append(marks[made])
        end = at + len(made)
    return (*pieces, body[end:]), tuple(gaps)
