"""A segment that does not load as a whole: find the frames to blame, load all others.

Owns two kinds of files in the WAL directory: `<id>.split` (the ranges of frames that failed) and `<id>.*.part` (a range
on its way into the store). Runs on the loader's thread. The spans of a segment and its log records are loaded by two
statements, each of which fails for its own frames only; so each has a bisection of its own, that of log records as
`<id>.logs`.

Every range loads under a token of its own, made of the segment's id and the range, so a replay after a crash stores
nothing twice, as long as it meets the same ranges. A load that failed before the crash might succeed after it (another
version, another limit), and then store spans that its halves had stored: so failures are written down before the halves
are tried, and are not tried again.
"""

import errno
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import orjson

from collector.frames import Signal, StoredFrame, encode_frame, read_frame, read_frames
from collector.quarantine import normalise
from collector.segments import PART_SUFFIX, SPLIT_SUFFIX, Items, Segment, copy_range
from storage.disk import sync_data, sync_directory


@dataclass(frozen=True, slots=True)
class FrameInfo:
    """Where a frame of a segment lies, and what the ledger needs of it."""

    start: int
    end: int
    tenant: str
    items: int
    signal: Signal


class Bisection:
    """How far the bisection of one signal of a segment has come.

    `token` is what the whole of it loads under; `frames` are those of all signals, so that an index names one. Every
    method may raise OSError, and may then be called again.
    """

    def __init__(self, segment: Segment, signal: Signal) -> None:
        self.segment = segment
        self.signal = signal
        self.token = segment.id if signal == "traces" else f"{segment.id}.{signal}"
        self.failed: dict[tuple[int, int], str] = {}
        self.frames: list[FrameInfo] = []
        self._split = segment.path.with_name(f"{self.token}{SPLIT_SUFFIX}")

    @property
    def begun(self) -> bool:
        """Whether the segment is known not to load as a whole, perhaps since before a restart."""
        return self._split.exists()

    def begin(self, reason: str) -> None:
        """Write down that the segment does not load as a whole."""
        if not self.begun:
            self._note({"reason": reason})
            sync_directory(self._split.parent)

    def read(self) -> None:
        """Find the segment's frames, and the failures that were written down."""
        self.frames = [
            FrameInfo(frame.offset, frame.offset + frame.length, frame.tenant, frame.items, frame.signal)
            for frame in read_frames(self.segment.path)
        ]
        for line in self._split.read_bytes().splitlines():
            try:
                noted = orjson.loads(line)
            except orjson.JSONDecodeError:  # torn by a crash: nothing was done on the strength of it
                continue
            if "lo" in noted:
                self.failed[noted["lo"], noted["hi"]] = noted["reason"]

    def fail(self, lo: int, hi: int, reason: str) -> None:
        """Write down that frames [lo, hi) do not load."""
        self._note({"lo": lo, "hi": hi, "reason": reason})
        self.failed[lo, hi] = reason

    def write_range(self, lo: int, hi: int) -> tuple[Path, str]:
        """A file with frames [lo, hi), and the token to load it with."""
        path, token = self._part(f"{lo}-{hi}")
        copy_range(self.segment.path, self.frames[lo].start, self.frames[hi - 1].end, path)
        return path, token

    def write_normalised(self, index: int) -> tuple[Path, str] | None:
        """The same for one frame with its request encoded anew; None when that changes nothing."""
        frame = self.frame(index)
        request = normalise(frame.request, frame.signal)
        if request is None:
            return None
        path, token = self._part(f"{index}-normalised")
        path.write_bytes(b"".join(encode_frame(frame.with_request(request), frame.received_unix_nano)))
        return path, token

    def frame(self, index: int) -> StoredFrame:
        """One frame, read from the segment."""
        frame = read_frame(self.segment.path, self.frames[index].start)
        if frame is None:
            raise OSError(errno.EIO, f"cannot read frame {index} again", str(self.segment.path))
        return frame

    def items(self, lo: int, hi: int) -> Items:
        """What there is of the signal in frames [lo, hi); empty when they are all of another."""
        items: Counter[tuple[Signal, str]] = Counter()
        for frame in self.frames[lo:hi]:
            if frame.signal == self.signal:
                items[self.signal, frame.tenant] += frame.items
        return items

    def finish(self) -> None:
        """Remove what was written for the bisection. To be called when the segment itself is gone."""
        self._split.unlink(missing_ok=True)

    def _part(self, name: str) -> tuple[Path, str]:
        token = f"{self.token}.{name}"
        return self.segment.path.with_name(f"{token}{PART_SUFFIX}"), token

    def _note(self, entry: dict[str, object]) -> None:
        fd = os.open(self._split, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            line = b"\n" + orjson.dumps(entry) + b"\n"  # a line of its own even after a torn one
            if os.write(fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._split))
            sync_data(fd)
        finally:
            os.close(fd)
