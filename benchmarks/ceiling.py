"""The ceiling: what the engine alone takes to load the same bytes, and what a store holds in the end.

Runs in a process of its own, which holds nothing but the engine: no socket, no validation, no fsync of a log. The
requests are written as frames into segments of the size at which the log seals them under full load, before the clock
starts. What the program takes beyond this is the price of receiving, checking and keeping.
"""

import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_128_digest

from benchmarks.meter import MIB, Cpu, Meter
from benchmarks.payloads import Payload
from collector.frames import Frame, encode_frame
from storage.canonical import CanonicalSql
from storage.decode import Decoder
from storage.embedded import Embedded
from storage.engine import Engine
from storage.migrate import migrate
from storage.vocabulary import load

SEGMENT_BYTES = 64 * MIB


@dataclass(frozen=True)
class Held:
    """What a store holds: spans, and bytes on disk and active parts by table."""

    spans: int
    bytes_by_table: dict[str, int]
    parts_by_table: dict[str, int]

    @property
    def bytes(self) -> int:
        """Of all tables."""
        return sum(self.bytes_by_table.values())

    @property
    def parts(self) -> int:
        """Of all tables."""
        return sum(self.parts_by_table.values())


@dataclass(frozen=True)
class Ceiling:
    """The engine alone. `load_s` ends with the last load, `cpu` with the last merge, if `rested`."""

    spans: int
    segments: int
    load_s: float
    cpu: Cpu
    peak_bytes: int
    rested: bool
    held: Held


class _NoWords(CanonicalSql):
    """Understands nothing."""

    def key_codes(self) -> str:
        return "1"

    def steps(self, more: str = "") -> list[dict[str, str]]:
        return [{"canonical": "map()::Map(String, String)"}]


def measure(directory: Path, payload: Payload, rest_s_max: float, vocabulary: bool = True) -> Ceiling:
    """Load the payload into a new store in `directory`, and wait until its merges are done.

    Without `vocabulary` nothing is mapped to canonical columns: what that costs is the difference.
    """
    segments = write_segments(directory, payload)
    engine, meter = Embedded(directory / "store", load()), Meter(os.getpid())
    if not vocabulary:
        engine._decoders = [(0, Decoder(_NoWords(load())))]
    migrate(engine)
    cpu, start_s = meter.cpu(), time.monotonic()
    for segment in segments:
        engine.load(segment, segment.stem)
    load_s = time.monotonic() - start_s
    rested = meter.wait_for_rest(rest_s_max)
    cpu = meter.cpu() - cpu
    return Ceiling(payload.spans, len(segments), load_s, cpu, meter.peak_bytes(), rested, held(engine))


def held_in(store: Path) -> Held:
    """What is in the store of a server that has stopped."""
    return held(Embedded(store, load()))


def held(engine: Engine) -> Held:
    parts = engine.rows(
        "SELECT table, sum(bytes_on_disk), count() FROM system.parts"
        " WHERE active AND database = 'spanhouse' GROUP BY table"
    )
    return Held(
        engine.rows("SELECT count() FROM spanhouse.spans")[0][0],
        {table: int(size) for table, size, _ in parts},
        {table: int(count) for table, _, count in parts},
    )


def write_segments(directory: Path, payload: Payload) -> list[Path]:
    """Segment files of at least one frame and, if their frames allow, at most SEGMENT_BYTES."""
    segments: list[Path] = []
    with ExitStack() as files:
        size = SEGMENT_BYTES
        for spans, body in payload.bodies():
            frame = Frame("default", xxh3_128_digest(body), spans, body)
            prefix, request = encode_frame(frame, time.time_ns())
            length = len(prefix) + len(request)
            if size + length > SEGMENT_BYTES:
                size = 0
                segments.append(directory / f"{len(segments):06d}.wal")
                files.close()
                file = files.enter_context(segments[-1].open("wb"))
            file.write(prefix)
            file.write(request)
            size += length
    return segments
