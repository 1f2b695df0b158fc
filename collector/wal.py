"""The write-ahead log: a request is acknowledged when its frame is on disk, and loaded from there.

Owns the WAL directory: who may use it, the queue of frames, the committer's thread, the open segment and the list of
sealed ones. Receivers append from their threads; the loader takes sealed segments from its own.

Group commit: while one group of frames is written and synced, the next one gathers. A segment is sealed when it is
full; when it is older than the flush interval too, but only for a loader that has nothing else to do, since large
segments are far cheaper to load than many small ones.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_128_digest

from collector.frames import Frame
from collector.ledger import Ledger
from collector.seen import SeenFiles
from collector.segments import LOCK_NAME, OpenSegment, Segment, recover_segments
from collector.status import Overloaded, ShuttingDown, WalFull, WalUnavailable
from storage.disk import sync_data, sync_directory

__all__ = ["Frame", "Segment", "Wal", "WalInUse"]

UNWRITABLE_S = 10.0
"""For so long after a failed write nothing more is wanted; then somebody may try."""
_LOG_INTERVAL_S = 10.0  # a full disk fails hundreds of groups a second
_SEAL_RETRY_S = 1.0

logger = logging.getLogger(__name__)


class WalInUse(Exception):
    """The directory belongs to another process; the text says to which."""


@dataclass(frozen=True, slots=True)
class _Queued:
    frame: Frame
    received_unix_nano: int
    bytes: int
    durable: Future[None]


class Wal:
    """A directory of segments. Recovers it when constructed, and runs one committer thread until `close`.

    Limits: `segment_bytes_max` bounds a segment (a frame that exceeds it has one to itself), `queue_bytes_max` what
    waits in memory for the disk, and `wal_bytes_max` all that is queued, written and not yet loaded, together with what
    `quarantine_bytes` returns. Raises WalInUse, and OSError when the directory cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        *,
        segment_bytes_max: int = 64 << 20,
        flush_interval_s: float = 0.5,
        wal_bytes_max: int = 16 << 30,
        queue_bytes_max: int = 256 << 20,
        retransmit_window_s: float = 600.0,
        quarantine_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        if wal_bytes_max < segment_bytes_max:
            raise ValueError(
                f"wal_bytes_max ({wal_bytes_max}) must be segment_bytes_max ({segment_bytes_max}) at least"
            )
        self._directory = directory
        self._ledger = ledger
        self._segment_bytes_max = segment_bytes_max
        self._flush_interval_s = flush_interval_s
        self._wal_bytes_max = wal_bytes_max
        self._queue_bytes_max = queue_bytes_max
        self._quarantine_bytes = quarantine_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _hold(directory)

        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # the committer waits for frames, or for a segment's age
        self._sealed_or_drained = threading.Condition(self._lock)  # the loader waits
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0  # in the queue or in the group being written
        self._open: OpenSegment | None = None
        self._sealed: deque[Segment] = deque()  # not yet given to the loader
        self._kept: dict[str, Segment] = {}  # sealed and not yet discarded
        self._sealed_bytes = 0
        self._appended: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self._loader_idle = False
        self._seal_after_s = flush_interval_s
        self._closing = False
        self._committed_all = False  # the committer has ended
        self._last_unix_nano = 0
        self._seal_not_before_s = 0.0
        self._unwritable = "", 0.0
        """Why the last group could not be written, and when, by the monotonic clock."""
        self._failures = _Failures()
        self._seen = SeenFiles(directory, retransmit_window_s)

        try:
            self._recover()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._declare_gauges()
        self._committer = threading.Thread(target=self._commit_groups, name="wal-committer", daemon=True)
        self._committer.start()

    # --- receivers ---

    def append(self, frame: Frame) -> Future[None]:
        """Queue a frame; the future resolves when it is on disk, or fails with a Retryable refusal.

        Raises WalFull, Overloaded or ShuttingDown at once, and ValueError for a frame whose digest is not its request's
        (recovery would take it for a damaged one). Callbacks of the future run on the committer's thread, with no lock
        held: they must be quick.
        """
        if xxh3_128_digest(frame.request) != frame.digest:
            raise ValueError("the frame's digest is not xxh3_128 of its request")
        size = frame.bytes_max
        durable: Future[None] = Future()
        durable.set_running_or_notify_cancel()  # it is on its way: nobody can take it back
        with self._lock:
            self._check_room(size)
            self._queue.append(_Queued(frame, self._next_time(), size, durable))
            self._queued_bytes += size
            self._appended[frame.tenant] += size
            self._held[frame.tenant] += size
            self._work.notify()
        return durable

    def appended(self, tenant: str) -> int:
        """Bytes that a tenant sent since the start, those of frames that are still queued included."""
        return self._appended[tenant]

    def traffic(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """The same of all tenants, and how many bytes of each are not loaded yet: those of the start, too."""
        with self._lock:
            return dict(self._appended), dict(self._held)

    def bytes_held(self) -> int:
        """Bytes of frames queued, written and not yet loaded."""
        with self._lock:
            return self._bytes()

    def refusal(self) -> str:
        """Why a small request would be refused now; empty if it would be taken."""
        with self._lock:
            try:
                self._check_room(1)
            except (ShuttingDown, Overloaded, WalFull) as error:
                return str(error)
            reason, failed_s = self._unwritable
        return reason if time.monotonic() - failed_s < UNWRITABLE_S else ""

    def recent_digests(self) -> Iterator[tuple[str, bytes, int]]:
        """(tenant, identity, received_unix_nano) of every request received within the retransmit window, from disk.

        Meant for the start, before the first append: it does not see the open segment.
        """
        return self._seen.recent()

    # --- loader ---

    def next_sealed(self, timeout_s: float | None = None, seal_after_s: float = 0.0) -> Segment | None:
        """The oldest sealed segment not yet given out; None after `timeout_s` without one, or when drained.

        While a caller waits here, the open segment is sealed as soon as it is older than the flush interval, and than
        `seal_after_s`.
        """
        with self._lock:
            if not self._sealed:
                self._loader_idle = True
                self._seal_after_s = max(self._flush_interval_s, seal_after_s)
                self._work.notify()
                self._sealed_or_drained.wait_for(lambda: self._sealed or self._committed_all, timeout_s)
                self._loader_idle = False
            return self._sealed.popleft() if self._sealed else None

    def peek_sealed(self) -> Segment | None:
        """The segment that `next_sealed` would give now."""
        with self._lock:
            return self._sealed[0] if self._sealed else None

    @property
    def hurries(self) -> bool:
        """Whether segments should be loaded as soon as can be: the log is being closed, or is half full."""
        with self._lock:
            return self._closing or 2 * (self._bytes() + self._quarantine_bytes()) > self._wal_bytes_max

    def discard(self, segment: Segment) -> None:
        """Forget a segment whose spans are on disk elsewhere. Raises OSError; calling it again is harmless.

        Its digests stay for the retransmit window.
        """
        seen = self._seen.path(segment.id)
        if seen.exists():
            fd = os.open(seen, os.O_RDWR)
            try:
                sync_data(fd)
            finally:
                os.close(fd)
        segment.path.unlink(missing_ok=True)
        self._seen.keep(segment.id, segment.newest_unix_nano)
        self._seen.expire()
        sync_directory(self._directory)
        with self._lock:
            if self._kept.pop(segment.id, None) is not None:
                self._sealed_bytes -= segment.bytes
                self._held.subtract(segment.tenant_bytes)

    def unloaded(self) -> frozenset[str]:
        """Ids of the segments that hold acknowledged requests and are not discarded."""
        with self._lock:
            return frozenset(self._kept) | ({self._open.id} if self._open and self._open.bytes else set())

    @property
    def drained(self) -> bool:
        """Whether the log is closed and every sealed segment has been given to the loader."""
        with self._lock:
            return self._committed_all and not self._sealed

    # --- stopping ---

    def close(self) -> None:
        """Refuse new frames, write those that are queued, seal. The loader may still take and discard segments."""
        with self._lock:
            self._closing = True
            self._work.notify()
        self._committer.join()

    def release(self) -> None:
        """Close, and let others use the directory. To be called when the loader has stopped."""
        self.close()
        with contextlib.suppress(OSError):
            os.close(self._lock_fd)

    # --- under the lock ---

    def _check_room(self, size: int) -> None:
        if self._closing:
            raise ShuttingDown("cannot take the request: Spanhouse is shutting down")
        if self._queued_bytes + size > self._queue_bytes_max and self._queue:
            raise Overloaded("cannot take the request: the disk is behind the senders")
        if self._bytes() + self._quarantine_bytes() + size > self._wal_bytes_max:
            raise WalFull(
                f"cannot take the request: the write-ahead log holds its {self._wal_bytes_max} bytes; "
                "the store is behind or away"
            )

    def _bytes(self) -> int:
        return self._queued_bytes + self._sealed_bytes + (self._open.bytes if self._open else 0)

    def _next_time(self) -> int:
        self._last_unix_nano = max(time.time_ns(), self._last_unix_nano + 1)
        return self._last_unix_nano

    def _seal_due_in_s(self) -> float | None:
        """Seconds until the open segment is to be sealed; None: nothing but more frames can make it so."""
        segment = self._open
        if segment is None or not (segment.bytes or segment.broken):
            return None
        now_s = time.monotonic()
        if segment.broken or segment.bytes + (self._queue[0].bytes if self._queue else 1) > self._segment_bytes_max:
            due_s = now_s
        elif self._loader_idle and not self._sealed:
            due_s = segment.started_s + self._seal_after_s
        else:
            return None
        return max(0.0, due_s - now_s, self._seal_not_before_s - now_s)

    # --- the committer's thread ---

    def _commit_groups(self) -> None:
        while (group := self._next_group()) is not None:
            if group:
                self._commit(group)
            else:
                self._try_seal()
        if self._open is not None:
            self._try_seal()  # if it fails, the next start finds it open and seals it
        with self._lock:
            self._committed_all = True
            self._sealed_or_drained.notify_all()

    def _next_group(self) -> list[_Queued] | None:
        """Wait for frames and take those the open segment has room for; [] when it is to be sealed; None at the end."""
        with self._lock:
            while (due_in_s := self._seal_due_in_s()) != 0 and not self._queue:
                if self._closing:
                    return None
                self._work.wait(due_in_s)
            if due_in_s == 0:
                return []
            room = self._segment_bytes_max - (self._open.bytes if self._open else 0)
            group = [self._queue.popleft()]
            room -= group[0].bytes
            while self._queue and (room := room - self._queue[0].bytes) >= 0:
                group.append(self._queue.popleft())
            return group

    def _commit(self, group: list[_Queued]) -> None:
        refusal: str | None = None
        try:
            self._write(group)
        except OSError as error:
            refusal = f"cannot write to the write-ahead log: {error.strerror or error}"
            self._failures.log(refusal, len(group))
        except Exception:
            refusal = "cannot write to the write-ahead log: internal error"
            logger.exception("cannot write a group of %d frames", len(group))
        with self._lock:
            self._unwritable = refusal or "", time.monotonic()
            self._queued_bytes -= sum(queued.bytes for queued in group)
            if refusal is not None:
                for queued in group:
                    self._appended[queued.frame.tenant] -= queued.bytes
                    self._held[queued.frame.tenant] -= queued.bytes
        for queued in group:
            if refusal is None:
                queued.durable.set_result(None)
            else:
                queued.durable.set_exception(WalUnavailable(refusal))

    def _write(self, group: list[_Queued]) -> None:
        if self._open is not None and self._open.broken:
            self._seal()  # it could not be sealed before; nothing may follow a failed sync in the same file
        if self._open is None:
            with self._lock:
                segment_id = f"{self._next_time():019d}-{secrets.token_hex(3)}"
            self._open = OpenSegment(self._directory, segment_id)
        with self._ledger.sync_seconds.time():
            self._open.append([(queued.frame, queued.received_unix_nano) for queued in group])

    def _try_seal(self) -> None:
        try:
            self._seal()
        except Exception as error:  # whatever it is, the committer goes on
            self._seal_not_before_s = time.monotonic() + _SEAL_RETRY_S
            self._failures.log(f"cannot seal the open segment: {error!r}", 0)

    def _seal(self) -> None:
        segment = self._open
        assert segment is not None
        sealed: Segment | None = None
        if segment.bytes:
            sealed = segment.seal()
        else:
            segment.remove()
        with self._lock:
            self._open = None
            if sealed is not None:
                self._keep(sealed)
                self._sealed_or_drained.notify()

    def _keep(self, sealed: Segment) -> None:
        self._sealed.append(sealed)
        self._kept[sealed.id] = sealed
        self._sealed_bytes += sealed.bytes

    # --- starting ---

    def _recover(self) -> None:
        started_s = time.monotonic()
        for segment in recover_segments(self._directory):
            self._keep(segment)
            self._held.update(segment.tenant_bytes)
            self._last_unix_nano = max(self._last_unix_nano, segment.newest_unix_nano)
            for (signal, tenant), items in segment.items.items():
                self._ledger.recovered(tenant, items, signal)
        self._last_unix_nano = max(self._last_unix_nano, self._seen.adopt(exclude=self._kept))
        if self._kept:
            logger.info(
                "recovered %d segments, %d bytes, in %.1f s",
                len(self._kept),
                self._sealed_bytes,
                time.monotonic() - started_s,
            )

    def _declare_gauges(self) -> None:
        gauge = self._ledger.gauge
        gauge("spanhouse_wal_bytes", "Bytes of frames queued, written and not yet loaded.", self._read(self._bytes))
        gauge("spanhouse_wal_segments", "Sealed segments not yet loaded.", lambda: len(self._kept))
        gauge(
            "spanhouse_wal_oldest_seconds", "Age of the oldest frame on disk not yet loaded.", self._read(self._age_s)
        )

    def _read(self, value: Callable[[], float]) -> Callable[[], float]:
        def read() -> float:
            with self._lock:
                return value()

        return read

    def _age_s(self) -> float:
        times = [segment.oldest_unix_nano for segment in self._kept.values()]
        if self._open is not None and self._open.bytes:
            times.append(self._open.oldest_unix_nano)
        return max(0.0, (time.time_ns() - min(times)) / 1e9) if times else 0.0


class _Failures:
    """Logs a failing disk at most once in a while, with what was left unsaid in between."""

    def __init__(self) -> None:
        self._frames = 0
        self._next_s = 0.0

    def log(self, text: str, frames: int) -> None:
        self._frames += frames
        if time.monotonic() >= self._next_s:
            logger.error("%s (%d frames refused since the last message)", text, self._frames)
            self._next_s, self._frames = time.monotonic() + _LOG_INTERVAL_S, 0


def _hold(directory: Path) -> int:
    """Take the directory for this process, for as long as the returned descriptor is open. Raises WalInUse."""
    path = directory / LOCK_NAME
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise WalInUse(f"cannot use {directory}: process {holder} holds it; stop it or use another directory") from None
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same, it only does not say whose it is
        os.pwrite(fd, f"{os.getpid():<20}\n".encode(), 0)
    return fd
