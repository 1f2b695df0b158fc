"""Sealed segments go into the store here: oldest first, each exactly once, for as long as it takes.

Runs a thread of its own. The spans of a segment are loaded under its id as token, its log records, if it has any, under
another, and then it is discarded. While the store is away the
loader tries again for ever, and the WAL fills up behind it until senders hear that it is full. A segment whose data do
not load is bisected: the frames to blame go to the quarantine, all others into the store.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from collector.bisection import Bisection
from collector.frames import Signal
from collector.holding import Holding, Sampling
from collector.ledger import Ledger
from collector.quarantine import Quarantine
from collector.segments import Items, Segment, set_aside
from collector.wal import Wal
from storage.engine import yield_to_others
from storage.errors import DataError, OutOfMemory, StoreUnavailable

# (file of frames, token, signal). All or nothing: after a DataError nothing of that signal in the file is stored. The
# same token twice stores once. On return it is on disk. Any exception but DataError means: try again; OutOfMemory also:
# perhaps with less at a time.
Load = Callable[[Path, str, Signal], None]
# (file of frames, token, signal): it will be loaded soon, after those prepared before it. Returns at once.
Prepare = Callable[[Path, str, Signal], None]

_SIGNALS: tuple[Signal, ...] = ("traces", "logs")

_T = TypeVar("_T")

_BACKOFF_S_MIN = 0.1
# A segment that never fits into the store's memory would hold up all others for ever: after some seconds without memory
# its halves are tried, and one frame is put aside after some minutes.
_MEMORY_TRIES_MAX = 6
_MEMORY_TRIES_OF_ONE_FRAME_MAX = 20
_WAIT_S = 1.0  # how soon `stop` is noticed while nothing is sealed; `close` of the WAL is noticed at once

logger = logging.getLogger(__name__)


def _bisections(segment: Segment) -> list[Bisection]:
    held = {signal for signal, _ in segment.items}
    return [Bisection(segment, signal) for signal in _SIGNALS if signal in held]


class _Stopped(Exception):
    """The loader is to end between two steps; what is left is found by the next start."""


class Loader:
    """Feeds the store from the WAL. `start` it when the store is open, `stop` it after the WAL is closed."""

    def __init__(
        self,
        wal: Wal,
        load: Load,
        quarantine: Quarantine,
        ledger: Ledger,
        *,
        prepare: Prepare = lambda *_: None,
        sampling: Sampling | None = None,
        backoff_s_max: float = 30.0,
    ) -> None:
        self._wal = wal
        self._sampling = sampling
        self._held = Holding(wal, sampling)
        self._load = load
        self._prepare = prepare
        self._quarantine = quarantine
        self._ledger = ledger
        self._backoff_s_max = backoff_s_max
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._thread.start()

    def stop(self, drain_timeout_s: float) -> bool:
        """Load what is sealed for at most `drain_timeout_s`, then end after the load in hand, waiting as long again.

        Returns whether the thread has ended. The WAL must be closed before, or there is no end to what comes. What was
        not loaded stays on disk for the next start.
        """
        self._thread.join(drain_timeout_s)
        self._stop.set()
        self._thread.join(drain_timeout_s)
        if self._thread.is_alive():
            logger.warning("cannot stop the loader within %.1f s: a load is still running", 2 * drain_timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        yield_to_others()  # the engine plans a load on this thread
        while not self._stop.is_set() and not self._held.drained:
            try:
                segment = self._patiently("take a segment", lambda: self._held.next(_WAIT_S))
                if segment is not None:
                    self._deliver(segment)
            except _Stopped:
                return

    def _deliver(self, segment: Segment) -> None:
        bisections = _bisections(segment)
        following = self._held.following()
        for upcoming in (*bisections, *(_bisections(following)[:1] if following else ())):
            if not upcoming.begun:
                self._prepare(upcoming.segment.path, upcoming.token, upcoming.signal)
        for bisection in bisections:
            self._deliver_signal(bisection)
        self._patiently("discard a segment", lambda: self._wal.discard(segment))
        if self._sampling is not None:
            sampling = self._sampling
            self._patiently("remove what was decided for a segment", lambda: sampling.forget(segment.path))
        for bisection in bisections:
            self._patiently("remove what a bisection left", bisection.finish)

    def _deliver_signal(self, bisection: Bisection) -> None:
        segment, signal = bisection.segment, bisection.signal
        if not bisection.begun:
            try:
                self._load_patiently(segment.path, bisection.token, signal)
            except DataError as error:
                reason = str(error)
                logger.warning("segment %s does not load, looking for the frames to blame: %s", bisection.token, reason)
                self._patiently("note a failed segment", lambda: bisection.begin(reason))
            else:
                items = {key: items for key, items in segment.items.items() if key[0] == signal}
                self._count_stored(items, segment.path)
        if bisection.begun:
            self._bisect(bisection)

    def _bisect(self, bisection: Bisection) -> None:
        """Load the largest ranges of frames that load, left to right, and condemn the frames that remain."""
        self._patiently("read a segment", bisection.read)
        count = len(bisection.frames)
        middle = count // 2
        ranges = [(middle, count), (0, middle)] if count > 1 else [(0, count)]
        while ranges:
            lo, hi = ranges.pop()
            if not bisection.items(lo, hi) or self._range_loads(bisection, lo, hi):
                continue
            if hi - lo == 1:
                self._condemn(bisection, lo)
            else:
                middle = (lo + hi) // 2
                ranges += [(middle, hi), (lo, middle)]
        self._set_rest_aside(bisection)

    def _range_loads(self, bisection: Bisection, lo: int, hi: int) -> bool:
        if (lo, hi) in bisection.failed:
            return False
        part, token = self._patiently("write a part of a segment", lambda: bisection.write_range(lo, hi))
        try:
            tries_max = _MEMORY_TRIES_MAX if hi - lo > 1 else _MEMORY_TRIES_OF_ONE_FRAME_MAX
            self._load_patiently(part, token, bisection.signal, tries_max)
        except DataError as error:
            reason = str(error)
            self._patiently("note a failed range", lambda: bisection.fail(lo, hi, reason))
            return False
        finally:
            part.unlink(missing_ok=True)
        self._count_stored(bisection.items(lo, hi), part)
        return True

    def _condemn(self, bisection: Bisection, index: int) -> None:
        """Try a frame once more with its request encoded anew; if that does not load either, quarantine it."""
        segment_id, reason = bisection.segment.id, bisection.failed[index, index + 1]
        info = bisection.frames[index]
        normalised = self._patiently("normalise a frame", lambda: bisection.write_normalised(index))
        if normalised is not None:
            part, token = normalised
            try:
                self._load_patiently(part, token, info.signal)
            except DataError as error:
                reason = str(error)
            else:
                logger.info("frame %s.%d loads when its request is encoded anew", segment_id, index)
                self._count_stored({(info.signal, info.tenant): info.items}, part)
                return
            finally:
                part.unlink(missing_ok=True)
        frame = self._patiently("read a frame", lambda: bisection.frame(index))
        self._patiently("quarantine a frame", lambda: self._quarantine.put(segment_id, index, frame, reason))
        self._ledger.quarantined(info.tenant, info.items, info.signal)

    def _set_rest_aside(self, bisection: Bisection) -> None:
        """Keep what can no longer be read as frames: the segment was whole when it was sealed."""
        segment = bisection.segment
        end = bisection.frames[-1].end if bisection.frames else 0
        if end == segment.bytes:
            return
        kept = self._patiently("set a damaged segment aside", lambda: set_aside(segment.path, end))
        logger.error("segment %s is damaged from byte %d on: kept the rest as %s", segment.id, end, kept)
        readable = bisection.items(0, len(bisection.frames))
        for (signal, tenant), items in segment.items.items():
            if signal == bisection.signal:
                self._ledger.quarantined(tenant, items - readable.get((signal, tenant), 0), signal)

    def _count_stored(self, items: Items, path: Path) -> None:
        """Count what was loaded of a segment or part, and what was left out of it."""
        left_out = self._left_out(path)
        for (signal, tenant), count in items.items():
            sampled = left_out.get(tenant, 0) if signal == "traces" else 0
            self._ledger.stored(tenant, count, signal, sampled)

    def _left_out(self, path: Path) -> Mapping[str, int]:
        sampling = self._sampling
        return self._patiently("read what was decided", lambda: sampling.left_out(path)) if sampling else {}

    def _load_patiently(
        self, path: Path, token: str, signal: Signal, out_of_memory_tries_max: int = _MEMORY_TRIES_MAX
    ) -> None:
        tries = 0

        def load() -> None:
            nonlocal tries
            start_s = time.monotonic()
            try:
                self._load(path, token, signal)
            except OutOfMemory as error:
                tries += 1
                if tries == out_of_memory_tries_max:
                    raise DataError(str(error)) from error
                raise
            self._ledger.load_seconds.observe(time.monotonic() - start_s)

        self._patiently(f"load {token}", load)

    def _patiently(self, what: str, action: Callable[[], _T]) -> _T:
        """Do it until it succeeds. Raises DataError, which waiting does not mend, and _Stopped."""
        failures = 0
        while not self._stop.is_set():
            try:
                return action()
            except DataError:
                self._ledger.load_failures.labels("data").inc()
                raise
            except StoreUnavailable as error:
                self._ledger.load_failures.labels("unavailable").inc()
                logger.warning("cannot %s, will try again: %s", what, error)
            except OSError as error:
                self._ledger.load_failures.labels("disk").inc()
                logger.warning("cannot %s, will try again: %s", what, error)
            except Exception:
                self._ledger.load_failures.labels("unexpected").inc()
                logger.exception("cannot %s, will try again", what)
            longest_s = min(self._backoff_s_max, _BACKOFF_S_MIN * 2 ** min(failures, 20))
            self._stop.wait(longest_s * random.uniform(0.5, 1))
            failures += 1
        raise _Stopped
