"""Content-Encoding: a compressed body to the bytes it stands for, never more of them than the limit.

Owns the four codings that are taken. No thread of its own; zlib and zstandard let go of the GIL while they work.
"""

import zlib
from collections.abc import Iterator

import zstandard

from collector.status import BadRequest, TooLarge

CODINGS = ("gzip", "deflate", "zstd")  # beside identity

# A stream may be many: gzip members and zstd frames follow each other. Each costs a state of its own, so the number
# is bounded; writers that flush by member make some hundreds.
_STREAMS_MAX = 1024

# zlib is given pieces, because it copies what it did not use at the end of every stream.
_ZLIB_PIECE_BYTES = 1 << 18

# zstandard bounds a call's input, not its output. A piece holds at most 128 blocks of 128 KiB: 16 MiB over the limit.
_ZSTD_PIECE_BYTES = 512

# RFC 9659: the window that a receiver of zstd over HTTP must support, and may refuse to exceed.
_ZSTD_WINDOW_BYTES_MAX = 8 << 20


def coding(header: str) -> str:
    """The coding that a Content-Encoding names: "" or one of CODINGS. Raises BadRequest for any other, and for two."""
    name = header.strip().lower()
    if name in ("", "identity", "none"):  # "none" is what OTLP calls it
        return ""
    if name == "x-gzip":  # RFC 9110, 8.4.1.3
        return "gzip"
    if name not in CODINGS:
        raise BadRequest(f"cannot decode Content-Encoding {header[:80]!r}: send identity, {', '.join(CODINGS)}")
    return name


def inflate(body: bytes, name: str, bytes_max: int) -> bytes:
    """`body` decoded from `name` (see `coding`), which may take `bytes_max` bytes.

    Raises TooLarge beyond that, before it is in memory, and BadRequest when the body is cut short, followed by
    something else, or not of this coding at all.
    """
    if not name:
        return body
    out: list[bytes] = []
    size = 0
    try:
        for piece in _zstd(body) if name == "zstd" else _zlib(body, _window_bits(body, name), bytes_max):
            size += len(piece)
            if size > bytes_max:
                raise TooLarge(f"cannot take a request of more than {bytes_max} bytes (inflated): send smaller batches")
            out.append(piece)
    except (zlib.error, zstandard.ZstdError) as error:
        raise BadRequest(f"cannot decode the body as {name}: {error}") from error
    except EOFError as error:
        raise BadRequest(f"cannot decode the body as {name}: it is cut short") from error
    return b"".join(out)


def _window_bits(body: bytes, name: str) -> int:
    """What zlib is to expect. `deflate` means the zlib format, but some senders leave its header out: then raw."""
    if name == "gzip":
        return 31
    zlib_header = len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0
    return 15 if zlib_header else -15


def _zlib(body: bytes, window_bits: int, bytes_max: int) -> Iterator[bytes]:
    view, at = memoryview(body), 0
    for _ in range(_STREAMS_MAX):
        stream = zlib.decompressobj(window_bits)
        while not stream.eof:
            piece: memoryview | bytes = view[at : at + _ZLIB_PIECE_BYTES]
            if not piece:
                raise EOFError
            at += len(piece)
            while piece and not stream.eof:
                yield stream.decompress(piece, bytes_max + 1)
                piece = stream.unconsumed_tail
        at -= len(stream.unused_data)
        # gzip may be padded with zeros, as gzip(1) accepts.
        if at == len(body) or (window_bits == 31 and not any(view[at : at + 1]) and not body[at:].strip(b"\0")):
            return
        if window_bits != 31:
            raise BadRequest(f"cannot decode the body as deflate: {len(body) - at} bytes follow its end")
    raise BadRequest(f"cannot decode a body of more than {_STREAMS_MAX} gzip members")


def _zstd(body: bytes) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    at = 0
    for _ in range(_STREAMS_MAX):
        stream = decompressor.decompressobj()
        while not stream.eof:
            piece = body[at : at + _ZSTD_PIECE_BYTES]
            if not piece:
                raise EOFError
            yield stream.decompress(piece)
            at += len(piece)
        at -= len(stream.unused_data)
        if at == len(body):
            return
    raise BadRequest(f"cannot decode a body of more than {_STREAMS_MAX} zstd frames")
