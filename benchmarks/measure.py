"""One profile, phase by phase, against one server: idle, a trickle, full load, half load; then the engine alone.

Runs on the main thread; senders and engines are children. A phase begins when the server has come to rest from the one
before, and sends spans that were never sent before: a retransmit would be acknowledged and not stored.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ceiling, freshness, payloads
from benchmarks.ceiling import Ceiling, Held
from benchmarks.child import Child, call
from benchmarks.load import Sent, send
from benchmarks.meter import Cpu, MachineCpu, share_of_others
from benchmarks.payloads import Payload, Profile
from benchmarks.server import Server

TRICKLE_SPANS_PER_S = 500
TRICKLE_REQUEST_SPANS = 50  # ten requests a second, as some services that send every few seconds
DRAIN_S_MAX = 600
CEILING_S_MAX = 1800


class SpansMissing(Exception):
    """The store does not hold what was acknowledged: no other figure means anything."""


@dataclass(frozen=True)
class Plan:
    """How much and how long: spans at full load, seconds of the other phases, and for how long a rest is waited for."""

    spans: dict[Profile, int]
    idle_s: float = 10
    trickle_s: float = 20
    half_load_s: float = 15
    rest_s_max: float = 120


FULL = Plan({"agent": 300_000, "service": 1_000_000})
QUICK = Plan({"agent": 20_000, "service": 20_000}, idle_s=1, trickle_s=2, half_load_s=2, rest_s_max=20)


@dataclass(frozen=True)
class FullLoad:
    """`cpu` is the server's, from the first request to the last merge if `rested`."""

    sent: Sent
    queryable_s: float
    cpu: Cpu
    peak_bytes: int
    rested: bool
    rested_resident_bytes: int
    others_share: float

    @property
    def queryable_spans_per_s(self) -> float:
        """From the first request until all spans could be read."""
        return self.sent.spans / self.queryable_s


@dataclass(frozen=True)
class Trickle:
    """500 spans a second: the most memory that was seen, and the share of one core that the server used."""

    sent: Sent
    resident_bytes: int
    cpu_share: float


@dataclass(frozen=True)
class HalfLoad:
    """Paced at half of what became queryable a second at full load, beside the probes of freshness."""

    spans_per_s: float
    sent: Sent
    fresh_s: list[float]


@dataclass(frozen=True)
class Measured:
    """All that was measured of one profile."""

    profile: Profile
    payload_bytes_per_span: float
    start_s: float
    idle_resident_bytes: int
    trickle: Trickle
    full: FullLoad
    half: HalfLoad
    acknowledged_spans: int
    held: Held
    ceiling: Ceiling
    wordless: Ceiling
    """The engine alone, without the vocabulary."""


def measure(directory: Path, profile: Profile, plan: Plan, server_options: Sequence[str]) -> Measured:
    """Measure one profile in an empty directory. Raises SpansMissing, and what servers and children raise."""
    _say(f"{profile}: writing {plan.spans[profile]} spans")
    payload = payloads.write(directory / "full", profile, plan.spans[profile], seed=1)
    start_s = time.monotonic()
    with Server(directory, server_options) as server:
        start_s = time.monotonic() - start_s
        _say(f"{profile}: {plan.idle_s:.0f} s idle")
        time.sleep(plan.idle_s)
        idle_bytes = server.meter.resident_bytes()
        trickle = _trickle(directory, server, profile, plan)
        full = _full_load(directory, server, profile, payload, plan)
        half = _half_load(directory, server, profile, plan, full.queryable_spans_per_s / 2)
        acknowledged = trickle.sent.spans + full.sent.spans + half.sent.spans + len(half.fresh_s)
        server.wait_until_queryable(acknowledged, DRAIN_S_MAX)
        server.meter.wait_for_rest(plan.rest_s_max)
        server.stop()
    held = call(directory, 60, ceiling.held_in, server.data_dir / "store")
    if held.spans != acknowledged:
        raise SpansMissing(f"{acknowledged} spans were acknowledged, and the store holds {held.spans}")
    _say(f"{profile}: the engine alone")
    engine_alone = call(directory, CEILING_S_MAX, ceiling.measure, directory, payload, plan.rest_s_max)
    bare = directory / "bare"
    bare.mkdir()
    wordless = call(directory, CEILING_S_MAX, ceiling.measure, bare, payload, plan.rest_s_max, False)
    return Measured(
        profile=profile,
        payload_bytes_per_span=payload.size_bytes / payload.spans,
        start_s=start_s,
        idle_resident_bytes=idle_bytes,
        trickle=trickle,
        full=full,
        half=half,
        acknowledged_spans=acknowledged,
        held=held,
        ceiling=engine_alone,
        wordless=wordless,
    )


def _trickle(directory: Path, server: Server, profile: Profile, plan: Plan) -> Trickle:
    rate = TRICKLE_SPANS_PER_S
    spans = int(rate * plan.trickle_s)
    payload = payloads.write(directory / "part", profile, spans, seed=2, request_spans=TRICKLE_REQUEST_SPANS)
    _say(f"{profile}: {rate} spans/s for {plan.trickle_s:.0f} s")
    cpu_s = server.meter.cpu_s()
    with server.meter.largest_resident_bytes() as most:
        sent = call(directory, DRAIN_S_MAX, send, server.grpc, payload, workers=2, spans_per_s=rate)
    cpu_share = (server.meter.cpu_s() - cpu_s) / sent.seconds
    server.wait_until_queryable(sent.spans, DRAIN_S_MAX)
    server.meter.wait_for_rest(plan.rest_s_max)
    return Trickle(sent, most[0], cpu_share)


def _full_load(directory: Path, server: Server, profile: Profile, payload: Payload, plan: Plan) -> FullLoad:
    _say(f"{profile}: {payload.spans} spans at full speed")
    meter, stored = server.meter, server.stored_spans()
    machine, cpu = MachineCpu.now(), meter.cpu()
    sent = call(directory, DRAIN_S_MAX, send, server.grpc, payload)
    server.wait_until_queryable(stored + payload.spans, DRAIN_S_MAX)
    queryable_s = time.monotonic() - sent.start_s
    others = share_of_others(machine, MachineCpu.now(), (meter.cpu() - cpu).all_s + sent.cpu_s)
    _say(f"{profile}: {sent.spans / queryable_s:.0f} spans/s queryable; waiting for the merges")
    rested = meter.wait_for_rest(plan.rest_s_max)
    return FullLoad(
        sent=sent,
        queryable_s=queryable_s,
        cpu=meter.cpu() - cpu,
        peak_bytes=meter.peak_bytes(),
        rested=rested,
        rested_resident_bytes=meter.resident_bytes(),
        others_share=others,
    )


def _half_load(directory: Path, server: Server, profile: Profile, plan: Plan, spans_per_s: float) -> HalfLoad:
    _say(f"{profile}: writing {spans_per_s * plan.half_load_s:.0f} spans")
    payload = payloads.write(directory / "part", profile, int(spans_per_s * plan.half_load_s), seed=3)
    _say(f"{profile}: {spans_per_s:.0f} spans/s for {plan.half_load_s:.0f} s")
    with (
        Child(directory, send, server.grpc, payload, spans_per_s=spans_per_s) as sender,
        Child(directory, freshness.measure, server.grpc, server.url, plan.half_load_s) as probes,
    ):
        return HalfLoad(spans_per_s, sender.result(DRAIN_S_MAX), probes.result(DRAIN_S_MAX))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
