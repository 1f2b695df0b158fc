"""Puts `volumes` right where it is not what is stored, and notes how large the store is.

The views of `volumes` add what is loaded, and nothing else. Rows that expire or are erased, that a copy brought, or
that were there before the views, are seen by the number of rows that a day has in the engine's parts. Days that differ
at two looks alike are counted anew (storage/recount.py).

A thread of its own. Of several processes on one store one does it, under a lease; that two do, for a moment, is a
difference like any other.
"""

import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.engine import Engine, yield_to_others
from storage.errors import QueryTimeout, QueryTooLarge, StoreError
from storage.lease import Lease
from storage.recount import Recount
from storage.row_clock import RowClock
from storage.volumes import TABLES, Counts, Disk, Rows, Volumes

LOOK_S = 60.0
SOON_S = 5.0
"""When something differed, it is looked at again so soon."""
NOTE_S = 3600.0
WAIT_LOOKS_MAX = 64
"""A day that changes while it is counted waits twice as many looks each time, and at most so many."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Wait:
    looks: int = 1
    left: int = 0


class Recounting:
    """The thread. `look` is what it does; tests call it themselves."""

    def __init__(self, engine: Engine, volumes: Volumes) -> None:
        self._engine, self._volumes = engine, volumes
        self._recount = Recount(engine, volumes)
        self._lease = Lease(engine, "volumes") if engine.shared else None
        self._differed: dict[str, tuple[int, ...]] = {}
        self._explained: dict[str, tuple[int, ...]] = {}
        """Differences that stay after a count: rows that are masked, and not removed yet."""
        self._waits: dict[str, _Wait] = {}
        self._clock: RowClock | None = None
        self._seen: tuple[dict[str, Rows], list[Disk]] = {}, []
        self._note_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recounting", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self, timeout_s: float = 30) -> None:
        """End after what it has in hand. Call it before the engine is closed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._lease is not None:
            self._lease.release()

    def seen(self) -> tuple[dict[str, Rows], list[Disk]]:
        """Tables and disks as they were at the last look."""
        return self._seen

    def _run(self) -> None:
        yield_to_others()
        next_s, wait_s = 0.0, 0.0
        while not self._stop.wait(wait_s):
            wait_s = SOON_S  # a lease wants to be renewed
            held = self._lease is None or self._lease.held()
            if time.monotonic() >= next_s:
                next_s = time.monotonic() + (SOON_S if self._looked(held) else LOOK_S)

    def _looked(self, held: bool) -> bool:
        """Whether to look again soon."""
        try:
            self._seen = self._volumes.tables(), self._volumes.disks()
            if not held:
                return False
            self.note()
            return self.look()
        except StoreError as error:
            logger.warning("cannot look at what is stored: %s; will try again", error)
            return False

    def note(self) -> None:
        """Note how large the store is, once an hour. Raises StoreUnavailable."""
        if (now_s := time.monotonic()) < self._note_s:
            return
        size = self._volumes.bytes_of_all_copies()
        self._clock = self._clock or RowClock.of(self._engine, 1_000_000, "Noted", "sizes")
        self._engine.insert("sizes", ("Day", "Bytes", "Noted"), [(datetime.now(UTC).date(), size, self._clock.next())])
        self._note_s = now_s + NOTE_S

    def look(self) -> bool:
        """Hold all days against what there is, and count those anew that differ as they did before.

        Whether some differ and are to be counted soon. Raises StoreError.
        """
        self._recount.fold()
        found = self._differences()
        again = [day for day, numbers in found.items() if self._differed.get(day) == numbers]
        self._differed = found
        for day in self._waits.keys() - found.keys():
            del self._waits[day]
        for day in sorted(again, reverse=True):
            if self._stop.is_set():
                break
            wait = self._waits.setdefault(day, _Wait())
            if wait.left:
                wait.left -= 1
            elif self._count(day):
                del self._waits[day], self._differed[day]
                self._explained[day] = self._differences().get(day, ())
            else:
                wait.looks = wait.left = min(wait.looks * 2, WAIT_LOOKS_MAX)
        return any(day not in self._waits for day in self._differed)

    def _differences(self) -> dict[str, tuple[int, ...]]:
        """Of each day that differs, how many rows it has more than `volumes` says, by table."""
        parts, sums = self._volumes.by_day(), self._volumes.sums()
        found = {}
        for day in parts.keys() | sums.keys():
            there = [table.rows for table in parts[day]] if day in parts else [0] * len(TABLES)
            counted = sums.get(day, Counts()).rows
            difference = tuple(a - b for a, b in zip(there, counted, strict=True))
            if any(difference) and self._explained.get(day) != difference:
                found[day] = difference
        return found

    def _count(self, day: str) -> bool:
        """Put the tenants right that differ. False if one of them changed meanwhile, or could not be counted."""
        done = True
        for tenant in self._recount.differing(day):
            if self._stop.is_set():
                return False
            try:
                done &= self._recount.of(tenant, day)
            except (QueryTooLarge, QueryTimeout) as error:
                logger.warning("cannot count what tenant %s has of %s: %s", tenant, day, error)
                done = False
        return done
