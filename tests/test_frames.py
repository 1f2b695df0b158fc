"""The frame: its bytes, and every way in which a segment can be bad."""

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from frame_samples import frame, frame_of, request
from hypothesis import given
from hypothesis import strategies as st
from otlp_building import logs_body, record
from xxhash import xxh3_128_digest

from collector.frames import Frame, encode_frame, read_frame, read_frames
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
    assert [(s.tenant, s.items, bytes(s.request)) for s in stored] == [(f.tenant, f.items, f.request) for f in FRAMES]
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
    assert (message.received_unix_nano, message.tenant, message.items) == (1_763_000_000_123_456_789, "acme", 3)
    assert message.SerializeToString() == encoded[2:]
    assert message.request.SerializeToString() == body


CONTEXT = (("experiment_id", "7"), ("run_id", "r" * 250))


def test_context_and_log_records_are_in_the_message_of_the_schema(tmp_path: Path) -> None:
    body = logs_body(record(1), record(2))
    each = Frame("acme", xxh3_128_digest(body), 2, body, CONTEXT, "logs")
    prefix, tail = encode_frame(each, 5)
    assert len(prefix) + len(tail) <= each.bytes_max
    message = STRICT["Frame"].FromString((prefix + tail)[2:])
    assert [(pair.key, pair.value) for pair in message.context] == list(CONTEXT)
    assert message.logs.SerializeToString() == body
    assert not message.HasField("request")
    (tmp_path / "segment").write_bytes(ENCODED[0] + prefix + tail + ENCODED[1])
    spans, stored, more = read_frames(tmp_path / "segment")
    assert (stored.signal, stored.context, stored.items, bytes(stored.request)) == ("logs", CONTEXT, 2, body)
    assert [(other.signal, other.context) for other in (spans, more)] == [("traces", ())] * 2
    again = stored.with_request(bytes(stored.request))
    assert again == each


def test_what_is_the_same_request() -> None:
    """The context is part of it, and so is the signal; what earlier versions remembered still is."""
    body = request()
    plain = frame_of(body)
    assert plain.identity == xxh3_128_digest(body)
    said = [Frame("default", plain.digest, 1, body, (("run_id", run),)) for run in ("a", "b", "a")]
    assert said[0].identity == said[2].identity
    others = {plain.identity, said[0].identity, said[1].identity, replace(plain, signal="logs").identity}
    assert len(others) == 4


def test_no_harm_to_a_context_lets_a_frame_through(tmp_path: Path) -> None:
    each = Frame("t", FRAMES[0].digest, 1, FRAMES[0].request, (("run_id", "run-1"), ("x", "y")))
    data = b"".join(encode_frame(each, 1))
    path = tmp_path / "segment"
    for at in range(data.index(b"run_id") - 4, data.index(b"run_id") + 24):
        for bit in range(8):
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
            assert list(read_frames(path)) == [], (at, bit)


def test_a_frame_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Bytes of the encoder before there were contexts and log records: 28 bytes of header, one empty ResourceSpans."""
    path = tmp_path / "segment"
    path.write_bytes(
        bytes.fromhex("2c0901000000000000001201741a10e2e8035364c222e5bbe01a6a523daf1525070000002dc35840e032020a00")
    )
    (stored,) = read_frames(path)
    assert (stored.tenant, stored.items, bytes(stored.request)) == ("t", 7, b"\x0a\x00")
    assert (stored.signal, stored.context, stored.identity) == ("traces", (), stored.digest)


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
    prefix, _ = encode_frame(Frame("t", xxh3_128_digest(body), 7, body, (("run_id", "r"),), "logs"), 1)
    context = "3a0b" + "0a06" + b"run_id".hex() + "1201" + b"r".hex()
    assert prefix.hex() == "39" + "".join([*fields[:4], context, "2d427be153", "4202"])


@given(
    tenant=st.text(st.sampled_from("abcXYZ019._-"), min_size=1, max_size=64),
    body=st.binary(max_size=300),
    spans=st.integers(0, 2**32 - 1),
    context=st.dictionaries(st.text(max_size=40), st.text(max_size=250), max_size=3),
    signal=st.sampled_from(["traces", "logs"]),
    received=st.integers(0, 2**64 - 1),
)
def test_any_frame_survives(tmp_path_factory, tenant, body, spans, context, signal, received) -> None:
    path = tmp_path_factory.mktemp("frame") / "segment"
    said = tuple(context.items())
    each = Frame(tenant, xxh3_128_digest(body), spans, body, said, signal)
    buffers = encode_frame(each, received)
    assert sum(map(len, buffers)) <= each.bytes_max
    path.write_bytes(b"".join(buffers) * 2)
    stored = list(read_frames(path))
    assert [(s.tenant, s.items, bytes(s.request), s.context, s.signal, s.received_unix_nano) for s in stored] == [
        (tenant, spans, body, said, signal, received)
    ] * 2


@given(at=st.integers(0, len(SEGMENT) - 1), bit=st.integers(0, 7), cut=st.integers(1, len(SEGMENT)))
def test_no_damage_lets_a_wrong_frame_through(tmp_path_factory: pytest.TempPathFactory, at, bit, cut) -> None:
    path = tmp_path_factory.mktemp("frame") / "segment"
    damaged = bytearray(SEGMENT)
    damaged[at] ^= 1 << bit
    path.write_bytes(damaged[:cut])
    whole = sum(end <= min(at, cut) for end in (SECOND, THIRD, len(SEGMENT)))
    assert [s.digest for s in read_frames(path)] == [each.digest for each in FRAMES[:whole]]
