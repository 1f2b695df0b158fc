"""The file beside a segment that says which of its traces are left out, and what those weigh that are kept.

It is written before the segment is loaded, once and for all: a load that was cut short is repeated with the same spans.
A row each: tenant, trace id, weight (0: left out) and how many spans of the segment the trace has, in ClickHouse's
RowBinary. Traces that weigh 1 are not in it.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from storage.disk import sync_directory, write_file

SUFFIX = ".decided"
_TAIL = struct.Struct("<fI")


class Decided(NamedTuple):
    """A trace that is left out (weight 0), or that stands for several."""

    tenant: str
    trace_id: bytes
    weight: float
    spans: int


def decided_path(segment: Path) -> Path:
    """Where the decisions for a segment, or for a part of it, are."""
    return segment.with_suffix(SUFFIX)


def write(path: Path, decided: Iterable[Decided]) -> None:
    """Write the file, durably. Raises OSError."""
    rows = []
    for one in decided:
        tenant = one.tenant.encode()
        rows.append(_length(len(tenant)) + tenant + one.trace_id + _TAIL.pack(one.weight, one.spans))
    write_file(path, [b"".join(rows)], durable=True)
    sync_directory(path.parent)


def read(path: Path) -> Iterator[Decided]:
    """The rows of a file. Raises OSError."""
    data = memoryview(path.read_bytes())
    at = 0
    while at < len(data):
        size, shift = 0, 0
        while data[at] & 0x80:
            size, shift, at = size | (data[at] & 0x7F) << shift, shift + 7, at + 1
        size |= data[at] << shift
        tenant, at = bytes(data[at + 1 : at + 1 + size]).decode(), at + 1 + size
        weight, spans = _TAIL.unpack_from(data, at + 16)
        yield Decided(tenant, bytes(data[at : at + 16]), weight, spans)
        at += 16 + _TAIL.size


def weights(path: Path) -> list[float]:
    """The weights in a file, each once: as many as there are shares in the rules, at most. Raises OSError."""
    return sorted({one.weight for one in read(path)})


def left_out(segment: Path) -> Counter[str]:
    """How many spans of a segment are left out, by tenant. Raises OSError."""
    counts: Counter[str] = Counter()
    path = decided_path(segment)
    if path.exists():
        for one in read(path):
            if not one.weight:
                counts[one.tenant] += one.spans
    return counts


def _length(size: int) -> bytes:
    """As ClickHouse writes the length of a text."""
    written = bytearray()
    while size >= 0x80:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*written, size])
