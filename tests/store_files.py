"""What lies in files, whatever they are packed in: for tests that must not find something on disk.

ClickHouse keeps columns, marks and primary keys in blocks: 16 bytes of checksum, a method, the sizes before and after
packing. `texts_of` gives a file as it is and all that can be unpacked of it: those blocks one after the other, wherever
they begin, and frames of LZ4, zstd and gzip in whatever else it is.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import lz4.block
import lz4.frame
import zstandard

NONE, LZ4, ZSTD, MULTIPLE, DELTA, T64, DOUBLE_DELTA, GORILLA = 0x02, 0x82, 0x90, 0x91, 0x92, 0x93, 0x94, 0x95
NUMBERS = frozenset((T64, DOUBLE_DELTA, GORILLA))
"""Codecs of numbers alone: no text can be in them."""
METHODS = frozenset((NONE, LZ4, ZSTD, MULTIPLE, DELTA)) | NUMBERS
CHECKSUM, HEADER = 16, 9
BLOCK_BYTES_MAX = 1 << 28
MAGIC = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"\x1f\x8b\x08": "gzip"}


class NoBlock(Exception):
    """What is there is no block of ClickHouse's."""


def unpacked(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes of the block whose method is at `at`, and where the block ends. Raises NoBlock."""
    if at + HEADER > len(data) or data[at] not in METHODS:
        raise NoBlock
    method, packed, size = struct.unpack_from("<BII", data, at)
    if not HEADER <= packed <= len(data) - at or not 0 < size <= BLOCK_BYTES_MAX:
        raise NoBlock
    body = data[at + HEADER : at + packed]
    try:
        text = _of_method(method, body, size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, struct.error, IndexError, MemoryError) as error:
        raise NoBlock from error
    if method not in NUMBERS and len(text) != size:
        raise NoBlock
    return text, at + packed


def _of_method(method: int, body: bytes, size: int) -> bytes:
    if method == LZ4:
        return lz4.block.decompress(body, uncompressed_size=size)
    if method == ZSTD:
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    if method == MULTIPLE:
        count = body[0]
        text = body[1 + count :]
        for _ in range(count):
            inner = text[0]
            text, _end = unpacked(text, 0)
            if inner in NUMBERS:
                return text[:size].ljust(size, b"\0")
        return text
    if method == DELTA:
        return _undelta(body, size)
    return body


def _undelta(body: bytes, size: int) -> bytes:
    width, skip = body[0], body[1]
    head, deltas = body[2 : 2 + skip], body[2 + skip :]
    value, out = 0, bytearray(head)
    for at in range(0, len(deltas), width):
        value = (value + int.from_bytes(deltas[at : at + width], "little")) % (1 << (8 * width))
        out += value.to_bytes(width, "little")
    return bytes(out[:size])


def blocks(data: bytes) -> Iterator[bytes]:
    """The bytes of each run of blocks in a file, the whole of a column in one piece. Runs may begin anywhere."""
    at = 0
    while at + CHECKSUM + HEADER <= len(data):
        run = bytearray()
        try:
            while at + CHECKSUM + HEADER <= len(data):
                text, at = unpacked(data, at + CHECKSUM)
                run += text
        except NoBlock:
            if not run:
                at = _next_method(data, at + 1)
        if run:
            yield bytes(run)


def _next_method(data: bytes, at: int) -> int:
    """The next place where a block might begin: its method is CHECKSUM bytes on, and its sizes are possible."""
    while at + CHECKSUM + HEADER <= len(data):
        place = at + CHECKSUM
        if data[place] in METHODS:
            packed, size = struct.unpack_from("<II", data, place + 1)
            if HEADER <= packed <= len(data) - place and 0 < size <= BLOCK_BYTES_MAX:
                return at
        at += 1
    return len(data)


def frames(data: bytes) -> Iterator[bytes]:
    """What frames of other programs' formats hold, wherever they begin."""
    for magic, kind in MAGIC.items():
        at = -1
        while (at := data.find(magic, at + 1)) >= 0:
            try:
                if kind == "zstd":
                    yield zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
                elif kind == "lz4":
                    yield lz4.frame.LZ4FrameDecompressor().decompress(data[at:])
                else:
                    yield zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data[at:])
            except (zstandard.ZstdError, RuntimeError, EOFError, zlib.error, gzip.BadGzipFile):
                continue


def texts_of(path: Path) -> Iterator[bytes]:
    """A file as it is, and all that can be unpacked of it. Nothing of one that is gone meanwhile."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    yield data
    for text in blocks(data):
        yield text
        yield from frames(text)
    yield from frames(data)


def found_in(directory: Path, markers: Iterable[str]) -> dict[str, list[str]]:
    """For each of these texts, the files below a directory that hold it, or have it in their name."""
    wanted = {marker: marker.encode() for marker in markers}
    found: dict[str, list[str]] = {marker: [] for marker in wanted}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        texts = [name.encode(), *(texts_of(path) if path.is_file() and not path.is_symlink() else ())]
        for marker, raw in wanted.items():
            if any(raw in text for text in texts):
                found[marker].append(name)
    return found
