import gzip
import random
import tracemalloc
import zlib

import pytest
import zstandard

from collector.compression import coding, inflate
from collector.status import BadRequest, TooLarge

MIB = 1 << 20
TEXT = random.Random(1).randbytes(40_000) + b"said again and again " * 40_000


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def zstd_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


COMPRESSED = {
    "gzip": ("gzip", gzip.compress(TEXT)),
    "deflate as zlib": ("deflate", zlib.compress(TEXT)),
    "deflate raw": ("deflate", raw_deflate(TEXT)),
    "zstd": ("zstd", zstandard.compress(TEXT)),
    "zstd of unknown size": ("zstd", zstd_without_size(TEXT)),
}


@pytest.mark.parametrize(("name", "body"), COMPRESSED.values(), ids=COMPRESSED)
def test_every_coding_is_inflated(name, body):
    assert inflate(body, name, len(TEXT)) == TEXT


@pytest.mark.parametrize(("name", "body"), COMPRESSED.values(), ids=COMPRESSED)
def test_a_body_that_is_cut_short_is_a_bad_request(name, body):
    for cut in (0, 1, 10, len(body) // 2, len(body) - 1):
        with pytest.raises(BadRequest, match=f"as {name}"):
            inflate(body[:cut], name, MIB)


@pytest.mark.parametrize(("name", "body"), COMPRESSED.values(), ids=COMPRESSED)
def test_what_follows_the_end_is_a_bad_request(name, body):
    with pytest.raises(BadRequest):
        inflate(body + b"more", name, MIB)


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
@pytest.mark.parametrize("body", [b"\x0a\x00", b'{"resourceSpans":[]}', bytes(100), b"\xff" * 100])
def test_what_is_not_of_the_coding_is_a_bad_request(name, body):
    with pytest.raises(BadRequest):
        inflate(body, name, MIB)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_wrong_checksum_is_a_bad_request(name):
    body = {
        "gzip": gzip.compress(TEXT),
        "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(TEXT),
    }[name]
    with pytest.raises(BadRequest):
        inflate(body[:-5] + bytes([body[-5] ^ 1]) + body[-4:], name, MIB)


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_streams_one_after_the_other_are_one_body(name, compress):
    parts = [TEXT[:1], b"", TEXT[1:300_000], TEXT[300_000:]]
    assert inflate(b"".join(map(compress, parts)), name, len(TEXT)) == TEXT


def test_gzip_may_be_padded_with_zeros():
    assert inflate(gzip.compress(TEXT) + bytes(600), "gzip", MIB) == TEXT


@pytest.mark.parametrize(("name", "compress"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_the_number_of_streams_is_bounded(name, compress):
    with pytest.raises(BadRequest, match="more than 1024"):
        inflate(compress(b"") * 5000, name, MIB)


@pytest.mark.parametrize(
    ("name", "bomb"),
    [
        ("gzip", gzip.compress(bytes(200 * MIB), 9)),
        ("gzip", gzip.compress(bytes(MIB // 2), 9) * 400),
        ("deflate", zlib.compress(bytes(200 * MIB), 9)),
        ("zstd", zstandard.compress(bytes(200 * MIB))),
        ("zstd", zstd_without_size(bytes(200 * MIB))),
    ],
    ids=["gzip", "gzip in members", "deflate", "zstd", "zstd of unknown size"],
)
def test_a_bomb_is_refused_before_it_is_in_memory(name, bomb):
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=str(8 * MIB)):
            inflate(bomb, name, 8 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()


def test_the_limit_itself_is_within_the_limit():
    for name, body in COMPRESSED.values():
        assert inflate(body, name, len(TEXT)) == TEXT
        with pytest.raises(TooLarge):
            inflate(body, name, len(TEXT) - 1)


def test_a_zstd_window_beyond_that_of_http_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BadRequest):
        inflate(stream.compress(TEXT) + stream.flush(), "zstd", MIB)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("", ""),
        ("identity", ""),
        ("none", ""),
        ("gzip", "gzip"),
        (" GZIP ", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
        ("zstd", "zstd"),
    ],
)
def test_codings_that_are_taken(header, name):
    assert coding(header) == name


@pytest.mark.parametrize("header", ["br", "snappy", "gzip, gzip", "x" * 10_000])
def test_codings_that_are_not_taken_are_a_bad_request_that_names_the_others(header):
    with pytest.raises(BadRequest, match="gzip, deflate, zstd") as refused:
        coding(header)
    assert len(refused.value.message) < 300
