"""Sealed segments on their way from the log to the loader, which hold still while traces are sampled.

A segment waits until the traces in it are decided, and so many follow it meanwhile; each is surveyed as it comes. The
wait ends early when the log is closed, or half full: rather a trace is decided by fewer of its spans than a sender is
refused. Runs on the loader's thread.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from collector.segments import Segment
from collector.wal import Wal
from storage.errors import StoreError

SEGMENTS_PER_WAIT = 6
"""So often a segment is sealed while another one waits: each costs a survey and a load of its own."""
HELD_MAX = 1_000

logger = logging.getLogger(__name__)


class Sampling(Protocol):
    """What decides which traces are kept."""

    @property
    def wait_s(self) -> float:
        """How long a segment waits before its traces are decided; 0 while all are kept."""

    def survey(self, segment: Path, token: str) -> None:
        """Note what the spans of a segment say of their traces. Raises StoreError."""

    def left_out(self, segment: Path) -> Mapping[str, int]:
        """How many spans of a segment, or of a part of it, are left out, by tenant. Raises OSError."""

    def forget(self, segment: Path) -> None:
        """Remove what was decided for a segment that is loaded. Raises OSError."""


class Holding:
    """Segments in the order in which they are to be loaded."""

    def __init__(self, wal: Wal, sampling: Sampling | None) -> None:
        self._wal, self._sampling = wal, sampling
        self._held: deque[Segment] = deque()

    @property
    def drained(self) -> bool:
        """Whether the log is closed, and every segment of it has been given out."""
        return self._wal.drained and not self._held

    def next(self, timeout_s: float) -> Segment | None:
        """The segment to load now; None after `timeout_s` without one, perhaps sooner."""
        wait_s = self._sampling.wait_s if self._sampling else 0.0
        if not self._held:
            segment = self._wal.next_sealed(timeout_s, wait_s / SEGMENTS_PER_WAIT)
            if segment is None or not wait_s:
                return segment
            self._hold(segment)
        due_s = self._due_s(wait_s)
        if due_s > 0:
            segment = self._wal.next_sealed(min(timeout_s, due_s), wait_s / SEGMENTS_PER_WAIT)
            if segment is not None:
                self._hold(segment)
            return None
        self._take_followers(wait_s)
        return self._held.popleft()

    def following(self) -> Segment | None:
        """The segment that comes next, if it is there."""
        return self._held[0] if self._held else self._wal.peek_sealed()

    def _due_s(self, wait_s: float) -> float:
        """In how many seconds the first segment is to be loaded."""
        if self._wal.hurries or len(self._held) >= HELD_MAX:
            return 0.0
        return self._held[0].newest_unix_nano / 1e9 + wait_s - time.time()

    def _take_followers(self, wait_s: float) -> None:
        """Survey what arrived within the wait of the first segment, which may be long ago."""
        until_unix_nano = self._held[0].newest_unix_nano + wait_s * 1e9
        while wait_s and len(self._held) < HELD_MAX:
            following = self._wal.peek_sealed()
            if following is None or following.oldest_unix_nano > until_unix_nano:
                return
            segment = self._wal.next_sealed(0)
            if segment is not None:
                self._hold(segment)

    def _hold(self, segment: Segment) -> None:
        self._held.append(segment)
        assert self._sampling is not None
        try:
            self._sampling.survey(segment.path, segment.id)
        except StoreError as error:  # it is surveyed before it is loaded
            logger.warning("cannot survey segment %s now: %s", segment.id, error)
