"""The frame: its bytes, and every way in which a segment can be bad."""

import struct
from pathlib import Path

import pytest
from frame_samples import frame, frame_of, request
from hypothesis import given
from hypothesis import strategies as st

from collector.frames import FRAME_OVERHEAD_BYTES_MAX, encode_frame, read_frame, read_frames
from collector.schema import STRICT

FRAMES = [frame(spans, tenant=f"tenant-{spans}", filler_bytes=300) for spans in (1, 2, 3)]
ENCODED = [b"".join(encode_frame(each, 1_000 + number)) for number, each in enumerate(FRAMES)]
SEGMENT = b"".join(ENCODED)
SECOND, THIRD = len(ENCODED[0]), len(ENCODED[0]) + len(ENCODED[1])
HEADER_BYTE, REQUEST_BYTE = 8, 200  # from the start of a frame: within the time, and within the request


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def with_crc(data: bytes, frame_start: int, crc: int) -> bytes:
    at = data.index(b"\x2d", frame_start + 40)  # the tag of header_crc
    return data[: at + 1] + struct.pack("<I", crc) + data[at + 5 :]


# name -> (the bytes of a segment, how many frames before the bad one are good)
BAD: dict[str, tuple[bytes, int]] = {
    "empty file": (b"", 0),
    "torn in the last byte": (SEGMENT[:-1], 2),
    "torn in a request": (SEGMENT[: THIRD + REQUEST_BYTE], 2),
    "torn in a header": (SEGMENT[: SECOND + HEADER_BYTE], 1),
    "torn after the first byte of a length": (SEGMENT[: THIRD + 1], 2),
    "flipped byte in a header": (flipped(SEGMENT, SECOND + HEADER_BYTE), 1),
    "flipped byte in a tenant": (flipped(SEGMENT, SECOND + 14), 1),
    "flipped byte in a request": (flipped(SEGMENT, SECOND + REQUEST_BYTE), 1),
    "flipped byte in a length": (flipped(SEGMENT, SECOND), 1),
    "wrong header crc": (with_crc(SEGMENT, SECOND, 0xDEADBEEF), 1),
    "zero-filled tail": (SEGMENT + bytes(4096), 3),
    "zeros in place of the last frame": (SEGMENT[:THIRD] + bytes(len(ENCODED[2])), 2),
    "only zeros": (bytes(4096), 0),
    "length of 32 GiB": (SEGMENT + b"\xff\xff\xff\xff\x7f" + bytes(100), 3),
    "length that never ends": (SEGMENT + b"\xff" * 100, 3),
    "garbage": (SEGMENT + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10, 3),
    "a frame without its first field": (SEGMENT + b"\x0a" + ENCODED[0][11:21], 3),
}


@pytest.mark.parametrize(("data", "good"), BAD.values(), ids=BAD)
def test_a_log_ends_at_the_first_bad_frame(tmp_path: Path, data: bytes, good: int) -> None:
    path = tmp_path / "segment"
    path.write_bytes(data)
    assert [stored.digest for stored in read_frames(path)] == [each.digest for each in FRAMES[:good]]


def test_what_went_in_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    path.write_bytes(SEGMENT)
    stored = list(read_frames(path))
    assert [(s.tenant, s.spans, bytes(s.request)) for s in stored] == [(f.tenant, f.spans, f.request) for f in FRAMES]
    assert [s.received_unix_nano for s in stored] == [1_000, 1_001, 1_002]
    assert [(s.offset, s.length) for s in stored] == [
        (0, len(ENCODED[0])),
        (SECOND, len(ENCODED[1])),
        (THIRD, len(ENCODED[2])),
    ]
    again = read_frame(path, SECOND)
    assert again is not None and again.digest == FRAMES[1].digest
    assert read_frame(path, SECOND + 1) is None


def test_a_frame_is_the_message_of_the_schema() -> None:
    """The engine reads segments by proto/wal.proto, so protobuf must agree with the encoder about every field."""
    body = request(3)
    prefix, tail = encode_frame(frame_of(body, spans=3, tenant="acme"), 1_763_000_000_123_456_789)
    encoded = prefix + tail
    message = STRICT["Frame"].FromString(encoded[2:])  # a length of two bytes
    assert (message.received_unix_nano, message.tenant, message.spans) == (1_763_000_000_123_456_789, "acme", 3)
    assert message.SerializeToString() == encoded[2:]
    assert message.request.SerializeToString() == body


def test_the_form_on_disk_stays() -> None:
    """Segments outlive an upgrade: a change of this text is a change of format."""
    prefix, body = encode_frame(frame_of(b"\x0a\x00", tenant="t", spans=7), 1)
    fields = [
        "090100000000000000",
        "120174",
        "1a10e2e8035364c222e5bbe01a6a523daf15",
        "2507000000",
        "2dc35840e0",
        "3202",
    ]
    assert prefix.hex() == "2c" + "".join(fields)
    assert body == b"\x0a\x00"


@given(
    tenant=st.text(st.sampled_from("abcXYZ019._-"), min_size=1, max_size=64),
    body=st.binary(max_size=300),
    spans=st.integers(0, 2**32 - 1),
    received=st.integers(0, 2**64 - 1),
)
def test_any_frame_survives(tmp_path_factory: pytest.TempPathFactory, tenant, body, spans, received) -> None:
    path = tmp_path_factory.mktemp("frame") / "segment"
    buffers = encode_frame(frame_of(body, spans=spans, tenant=tenant), received)
    assert len(buffers[0]) <= FRAME_OVERHEAD_BYTES_MAX
    path.write_bytes(b"".join(buffers) * 2)
    stored = list(read_frames(path))
    assert [(s.tenant, s.spans, bytes(s.request), s.received_unix_nano) for s in stored] == [
        (tenant, spans, body, received)
    ] * 2


@given(at=st.integers(0, len(SEGMENT) - 1), bit=st.integers(0, 7), cut=st.integers(1, len(SEGMENT)))
def test_no_damage_lets_a_wrong_frame_through(tmp_path_factory: pytest.TempPathFactory, at, bit, cut) -> None:
    path = tmp_path_factory.mktemp("frame") / "segment"
    damaged = bytearray(SEGMENT)
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged[:cut])
    whole = sum(end <= min(at, cut) for end in (SECOND, THIRD, len(SEGMENT)))
    assert [s.digest for s in read_frames(path)] == [each.digest for each in FRAMES[:whole]]
