"""The frame: what one admitted request looks like in a WAL segment, and how it is read back.

Owns the binary form (message Frame of proto/wal.proto, length-delimited) in both directions. No thread of its own: the
committer encodes, recovery, the loader and the quarantine read.

The encoding is canonical: the fields in the order of that text. A reader can so tell a frame from anything else, and
the log ends at the first thing that is not a whole and unharmed frame. That is data, not an error: a torn tail is what
a crash leaves. A frame of spans without context is the same bytes as in the first version of the format.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from xxhash import xxh3_128_digest

Signal = Literal["traces", "logs"]
"""What a request holds: spans or log records."""

Context = tuple[tuple[str, str], ...]
"""What the headers of a request say of its spans: canonical field and value, by field, each field once."""

# Everything of a frame that is neither request nor context: length prefix, header with the longest tenant name, request
# length.
FRAME_OVERHEAD_BYTES_MAX = 128

_TIME = struct.Struct("<BQ")  # tag 0x09, received_unix_nano
_DIGEST_AND_ITEMS = struct.Struct("<H16sBI")  # tag 0x1a and length 16, digest, tag 0x25, items
_CRC = struct.Struct("<BIB")  # tag 0x2d, header_crc, tag of the request
_DIGEST_TAG, _CONTEXT_TAG = 0x101A, 0x3A
_REQUEST_TAGS: dict[Signal, int] = {"traces": 0x32, "logs": 0x42}
_SIGNALS = {tag: signal for signal, tag in _REQUEST_TAGS.items()}
_VARINT_BYTES_MAX = 5  # 32 GiB: no frame is longer


@dataclass(frozen=True, slots=True)
class Frame:
    """One admitted request, as the WAL takes it.

    `digest` is `xxh3_128_digest(request)`, 16 bytes: the checksum that recovery verifies, so a request encoded anew
    (spans were rejected) needs the digest of its new bytes. `items` is the number of spans or log records in `request`,
    an encoded ExportTraceServiceRequest or ExportLogsServiceRequest. The arrival time is the WAL's to give.
    """

    tenant: str
    digest: bytes
    items: int
    request: bytes
    context: Context = ()
    signal: Signal = "traces"

    @property
    def identity(self) -> bytes:
        """16 bytes that are the same for a retransmit, and for nothing else."""
        return identity(self.digest, self.context, self.signal)

    @property
    def bytes_max(self) -> int:
        """No more than this many bytes of a segment."""
        return len(self.request) + FRAME_OVERHEAD_BYTES_MAX + len(_encode_context(self.context))


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """A frame as read from a segment: `offset` and `length` (bytes, prefix included) say where it lies."""

    offset: int
    length: int
    received_unix_nano: int
    tenant: str
    digest: bytes
    items: int
    request: memoryview
    context: Context = ()
    signal: Signal = "traces"

    @property
    def identity(self) -> bytes:
        """As of Frame."""
        return identity(self.digest, self.context, self.signal)

    def with_request(self, request: bytes) -> Frame:
        """The frame to write with these bytes for its request."""
        return Frame(self.tenant, xxh3_128_digest(request), self.items, request, self.context, self.signal)


def identity(digest: bytes, context: Context, signal: Signal) -> bytes:
    """What makes a request the same as another: its bytes, and what is said beside them.

    That of spans without context is the digest, as in what earlier versions remembered.
    """
    if not context and signal == "traces":
        return digest
    return xxh3_128_digest(b"".join((digest, signal.encode(), _encode_context(context))))


def encode_frame(frame: Frame, received_unix_nano: int) -> tuple[bytes, bytes]:
    """The two buffers to write for a frame: length prefix and header, and the request itself (not copied)."""
    tenant = frame.tenant.encode()
    header = b"".join(
        (
            _TIME.pack(0x09, received_unix_nano),
            b"\x12",
            varint(len(tenant)),
            tenant,
            _DIGEST_AND_ITEMS.pack(_DIGEST_TAG, frame.digest, 0x25, frame.items),
            _encode_context(frame.context),
        )
    )
    request_length = varint(len(frame.request))
    length = len(header) + _CRC.size + len(request_length) + len(frame.request)
    crc = _CRC.pack(0x2D, zlib.crc32(header), _REQUEST_TAGS[frame.signal])
    return b"".join((varint(length), header, crc, request_length)), frame.request


def _encode_context(context: Context) -> bytes:
    if not context:  # nearly always
        return b""
    out = bytearray()
    for pair in context:
        key, value = (text.encode() for text in pair)
        entry = b"".join((b"\x0a", varint(len(key)), key, b"\x12", varint(len(value)), value))
        out += bytes((_CONTEXT_TAG,)) + varint(len(entry)) + entry
    return bytes(out)


def read_frames(path: Path) -> Iterator[StoredFrame]:
    """The good frames of a segment in order; ends at the first bad one, or where the file does.

    Bad is: cut short, a length beyond the end of the file, a header whose CRC does not match, a request whose digest
    does not match, zeros. One frame is held in memory at a time. Raises OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        offset = 0
        while (frame := _read_frame(file, offset, size)) is not None:
            yield frame
            offset += frame.length


def read_frame(path: Path, offset: int) -> StoredFrame | None:
    """The frame at a known offset of a segment, or None when there is no good one. Raises OSError."""
    with path.open("rb") as file:
        return _read_frame(file, offset, file.seek(0, 2))


def _read_frame(file: BinaryIO, offset: int, size: int) -> StoredFrame | None:
    """The frame at `offset`, or None when there is none that is whole and unharmed."""
    file.seek(offset)
    length, prefix_length = _read_varint(file.read(_VARINT_BYTES_MAX), 0)
    # Checked against the file before anything is read or allocated: a prefix of garbage may say terabytes.
    if offset + prefix_length + length > size:
        return None
    file.seek(offset + prefix_length)
    body = file.read(length)
    try:
        return _parse(body, offset, prefix_length + length)
    except (IndexError, struct.error, UnicodeDecodeError):
        return None


def _parse(body: bytes, offset: int, length: int) -> StoredFrame | None:
    time_tag, received_unix_nano = _TIME.unpack_from(body)
    tenant_length, at = _read_varint(body, _TIME.size + 1)
    tenant = body[at : at + tenant_length]
    at += tenant_length
    digest_tag, digest, items_tag, items = _DIGEST_AND_ITEMS.unpack_from(body, at)
    context, at = _read_context(body, at + _DIGEST_AND_ITEMS.size)
    header = body[:at]
    crc_tag, crc, request_tag = _CRC.unpack_from(body, at)
    request_length, at = _read_varint(body, at + _CRC.size)
    tags = (time_tag, body[_TIME.size], digest_tag, items_tag, crc_tag)
    if (
        tags != (0x09, 0x12, _DIGEST_TAG, 0x25, 0x2D)
        or request_tag not in _SIGNALS
        or zlib.crc32(header) != crc
        or at + request_length != len(body)
    ):
        return None
    request = memoryview(body)[at:]
    if xxh3_128_digest(request) != digest:
        return None
    return StoredFrame(
        offset, length, received_unix_nano, tenant.decode(), digest, items, request, context, _SIGNALS[request_tag]
    )


def _read_context(body: bytes, at: int) -> tuple[Context, int]:
    """The context at `at` and the position after it. What is read of garbage, the CRC tells."""
    pairs = []
    while body[at] == _CONTEXT_TAG:
        entry_length, start = _read_varint(body, at + 1)
        at = start + entry_length
        key_length, key = _read_varint(body, start + 1)
        value_length, value = _read_varint(body, key + key_length + 1)
        pairs.append((body[key : key + key_length].decode(), body[value : value + value_length].decode()))
    return tuple(pairs), at


def varint(value: int) -> bytes:
    """Protobuf's base-128 encoding of a number that is not negative."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(buffer: bytes, at: int) -> tuple[int, int]:
    """The value at `at` and the position after it; (0, at) when it is cut short or too long: no frame is empty."""
    value = 0
    for index, byte in enumerate(buffer[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, at
