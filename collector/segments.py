"""Segments on disk: the one being written, the sealed ones, and what a crash leaves of either.

Owns the files `<id>.open`, `<id>.wal` and `<id>.damaged` of the WAL directory. The open segment belongs to the
committer's thread; recovery runs before there is one.
"""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collector.frames import Frame, Signal, encode_frame, read_frames
from collector.seen import SEEN_SUFFIX, seen_record
from storage.decided import SUFFIX as DECIDED_SUFFIX
from storage.disk import sync_data, sync_directory, write_all, write_file

OPEN_SUFFIX, SEALED_SUFFIX, DAMAGED_SUFFIX = ".open", ".wal", ".damaged"
SPLIT_SUFFIX, PART_SUFFIX = ".split", ".part"  # a bisection's, see there
LOCK_NAME = "lock"

_SUFFIXES = (OPEN_SUFFIX, SEALED_SUFFIX, DAMAGED_SUFFIX, SPLIT_SUFFIX, PART_SUFFIX, SEEN_SUFFIX, DECIDED_SUFFIX)

_COPY_BYTES = 1 << 20

logger = logging.getLogger(__name__)


Items = Mapping[tuple[Signal, str], int]
"""How many spans or log records there are, by signal and tenant."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A sealed segment: a file the engine can read as it lies. `id` never repeats, and sorts by time."""

    id: str
    path: Path
    bytes: int
    items: Items
    oldest_unix_nano: int
    newest_unix_nano: int
    tenant_bytes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the frames of each tenant."""


class OpenSegment:
    """The segment that frames are written to. `bytes` is its durable length: what is beyond was never acknowledged."""

    def __init__(self, directory: Path, segment_id: str) -> None:
        """Create the file and make its name durable: no frame in it is safer than that. Raises OSError."""
        self.id = segment_id
        self.path = directory / f"{segment_id}{OPEN_SUFFIX}"
        self.bytes = 0
        self.oldest_unix_nano = 0
        self.started_s = 0.0  # monotonic clock, when the first frame became durable
        self.broken = False  # a sync failed: nothing more may be written to this file
        self._newest_unix_nano = 0
        self._items: Counter[tuple[Signal, str]] = Counter()
        self._tenant_bytes: Counter[str] = Counter()
        self._seen: list[bytes] = []
        self._torn = False  # bytes beyond the durable length could not be cut off
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            sync_directory(directory)
        except OSError:
            self.remove()
            raise

    def append(self, group: Sequence[tuple[Frame, int]]) -> None:
        """Write frames with their arrival times; on return they are durable. Raises OSError: then none of them is."""
        self._cut_back()
        buffers = [buffer for frame, received in group for buffer in encode_frame(frame, received)]
        self._torn = True
        try:
            written = write_all(self._fd, buffers, self.bytes)
            self.broken = True
            sync_data(self._fd)
            self.broken = False
        except OSError:
            self._try_cut_back()
            raise
        self._torn = False
        if not self.bytes:
            self.started_s, self.oldest_unix_nano = time.monotonic(), group[0][1]
        self.bytes += written
        self._newest_unix_nano = group[-1][1]
        for frame, received in group:
            self._items[frame.signal, frame.tenant] += frame.items
            self._tenant_bytes[frame.tenant] += frame.bytes_max
            self._seen.append(seen_record(frame.tenant, frame.identity, received))

    def seal(self) -> Segment:
        """Close the file under its final name, ready to be loaded. Raises OSError: then it is still open.

        The new name need not be durable: after a power cut the old one is found, and recovery seals it.
        """
        self._cut_back()
        _note_seen(self.path, self._seen)
        path = self.path.rename(self.path.with_suffix(SEALED_SUFFIX))
        with contextlib.suppress(OSError):  # all of it is durable already
            os.close(self._fd)
        times = self.oldest_unix_nano, self._newest_unix_nano
        return Segment(self.id, path, self.bytes, dict(self._items), *times, dict(self._tenant_bytes))

    def remove(self) -> None:
        """Remove the file: there is no frame in it."""
        os.close(self._fd)
        self.path.unlink(missing_ok=True)

    def _cut_back(self) -> None:
        if self._torn:
            os.ftruncate(self._fd, self.bytes)
            self._torn = False

    def _try_cut_back(self) -> None:
        try:
            self._cut_back()
        except OSError as error:  # tried again before anything else is done with the file
            logger.warning("cannot cut segment %s back to %d bytes: %s", self.id, self.bytes, error)


def recover_segments(directory: Path) -> list[Segment]:
    """Seal what the last process left: good frames are kept, torn tails cut off, derived files removed.

    Returns the segments, oldest first. Raises OSError when a segment cannot be read or cut.
    """
    for path in [*directory.glob(f"*{PART_SUFFIX}"), *directory.glob("*.tmp")]:
        path.unlink()
    for path in [*directory.glob(f"*{SPLIT_SUFFIX}"), *directory.glob(f"*{DECIDED_SUFFIX}")]:
        # A bisection of log records has a file of its own, <id>.logs.split, and so have the parts of a bisection.
        if not (directory / (path.name.partition(".")[0] + SEALED_SUFFIX)).exists():
            path.unlink()
    paths = [path for path in directory.iterdir() if path.suffix in (OPEN_SUFFIX, SEALED_SUFFIX)]
    segments = [segment for path in sorted(paths) if (segment := _recover(path)) is not None]
    sync_directory(directory)
    foreign = [
        path.name for path in sorted(directory.iterdir()) if path.suffix not in _SUFFIXES and path.name != LOCK_NAME
    ]
    if foreign:
        logger.warning("left %d files in %s alone, which are none of ours: %s", len(foreign), directory, foreign[:10])
    return segments


def _recover(path: Path) -> Segment | None:
    length, oldest, newest, items, seen = 0, 0, 0, Counter[tuple[Signal, str]](), []
    tenant_bytes: Counter[str] = Counter()
    for frame in read_frames(path):
        length = frame.offset + frame.length
        oldest, newest = oldest or frame.received_unix_nano, frame.received_unix_nano
        items[frame.signal, frame.tenant] += frame.items
        tenant_bytes[frame.tenant] += frame.length
        seen.append(seen_record(frame.tenant, frame.identity, frame.received_unix_nano))
    excess = path.stat().st_size - length
    if excess and path.suffix == SEALED_SUFFIX:
        # Every byte of a sealed segment was acknowledged, so this is a damaged disk and no crash.
        kept = set_aside(path, length)
        logger.error("segment %s is damaged from byte %d on: kept the last %d bytes as %s", path, length, excess, kept)
    if not length:
        path.unlink()
        return None
    _cut_and_sync(path, length)
    if excess:
        logger.warning("cut %d bytes without a whole frame off the end of segment %s", excess, path)
    _note_seen(path, seen)
    sealed = path.rename(path.with_suffix(SEALED_SUFFIX))
    return Segment(path.stem, sealed, length, dict(items), oldest, newest, dict(tenant_bytes))


def _note_seen(path: Path, seen: Sequence[bytes]) -> None:
    try:
        write_file(path.with_suffix(SEEN_SUFFIX), seen, durable=False)
    except OSError as error:  # a full disk must stop neither the start nor the loader, which is what makes room
        logger.warning("cannot note which requests segment %s holds: %s", path.stem, error)


def _cut_and_sync(path: Path, length: int) -> None:
    """Cut the file, and sync it: whole frames of a group that was never synced are about to count as received."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(fd, length)
        sync_data(fd)
    finally:
        os.close(fd)


def copy_range(path: Path, start: int, end: int, target: Path) -> None:
    """Copy bytes [start, end) of a segment to a new file, not durably. Raises OSError."""
    with path.open("rb") as source, target.open("wb") as sink:
        source.seek(start)
        left = end - start
        while left and (chunk := source.read(min(left, _COPY_BYTES))):
            sink.write(chunk)
            left -= len(chunk)


def set_aside(path: Path, start: int) -> Path:
    """Keep the bytes of a segment from `start` on in a `.damaged` file, durably, for a person to look at."""
    target = path.with_suffix(DAMAGED_SUFFIX)
    copy_range(path, start, path.stat().st_size, target)
    fd = os.open(target, os.O_WRONLY)
    try:
        sync_data(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)
    return target
