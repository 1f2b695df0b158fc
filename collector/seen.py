"""Which requests a segment held (`Frame.identity`), kept for as long as their senders may send them again.

Owns the `.seen` files of the WAL directory: one beside each segment from the moment it is sealed, which stays when the
segment goes and is removed when the newest of its frames is older than the retransmit window. No thread of its own.
They are a memory, not a promise: a damaged or missing one costs a duplicate that reads remove, never a span.
"""

import struct
import time
from collections.abc import Container, Iterator
from pathlib import Path

_RECORD = struct.Struct("<Q16sB")  # received_unix_nano, identity, bytes of the tenant name that follows

SEEN_SUFFIX = ".seen"


def seen_record(tenant: str, identity: bytes, received_unix_nano: int) -> bytes:
    """One request in the form of a `.seen` file."""
    name = tenant.encode()
    return _RECORD.pack(received_unix_nano, identity, len(name)) + name


def read_seen(path: Path) -> Iterator[tuple[str, bytes, int]]:
    """(tenant, identity, received_unix_nano) of every request in a `.seen` file; ends at the first odd byte."""
    data, at = path.read_bytes(), 0
    while at + _RECORD.size < len(data):
        received_unix_nano, identity, length = _RECORD.unpack_from(data, at)
        name = data[at + _RECORD.size : at + _RECORD.size + length]
        at += _RECORD.size + length
        if not name or at > len(data) or not name.isascii():
            return
        yield name.decode("ascii"), identity, received_unix_nano


class SeenFiles:
    """The `.seen` files of discarded segments, oldest first, and when each may go."""

    def __init__(self, directory: Path, window_s: float) -> None:
        self._directory = directory
        self._window_nano = int(window_s * 1e9)
        self._newest: dict[Path, int] = {}

    def path(self, segment_id: str) -> Path:
        """Where the `.seen` file of a segment is."""
        return self._directory / f"{segment_id}{SEEN_SUFFIX}"

    def keep(self, segment_id: str, newest_unix_nano: int) -> None:
        """Remember that the segment is gone, so that its `.seen` file goes a window after its newest frame."""
        self._newest[self.path(segment_id)] = newest_unix_nano

    def adopt(self, exclude: Container[str]) -> int:
        """Take over the files of segments that an earlier process discarded: all but those of the ids in `exclude`.

        Returns the newest received_unix_nano among them, or 0. Raises OSError.
        """
        for path in sorted(self._directory.glob(f"*{SEEN_SUFFIX}")):
            if path.stem not in exclude:
                self._newest[path] = max((received for _, _, received in read_seen(path)), default=0)
        newest = max(self._newest.values(), default=0)
        self.expire()
        return newest

    def expire(self) -> None:
        """Remove the files that are older than the window. Raises OSError."""
        oldest = time.time_ns() - self._window_nano
        for path in [path for path, newest in self._newest.items() if newest < oldest]:
            path.unlink(missing_ok=True)
            del self._newest[path]

    def recent(self) -> Iterator[tuple[str, bytes, int]]:
        """(tenant, identity, received_unix_nano) of every request within the window, oldest file first."""
        oldest = time.time_ns() - self._window_nano
        for path in sorted(self._directory.glob(f"*{SEEN_SUFFIX}")):
            if not path.exists():  # the loader has expired it since the listing
                continue
            yield from (entry for entry in read_seen(path) if entry[2] >= oldest)
