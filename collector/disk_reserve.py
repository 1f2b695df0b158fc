"""Leaves room on the disks: below the reserve requests are refused, retryably, before a write of the engine fails.

Merges, deletions and what is already acknowledged need room to be carried out; reads go on. The file systems of the log
and of a store in this process are looked at every second, those of servers are asked for less often. When room runs out
`on_low` is called, so that what may go by the policies goes at once.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from collector.status import DiskLow
from storage.errors import StoreError

LOOK_S = 1.0
ASK_S = 10.0
"""How often servers are asked, and how often `on_low` is called while there is no room."""
SHARE_MAX = 0.05
"""A reserve of more than this part of a disk counts as this part: small disks are to be of use."""

Room = tuple[str, int, int]
"""Name of a disk, bytes free, bytes in all."""

logger = logging.getLogger(__name__)


class DiskReserve:
    """`start` and `stop` it; `allow` is for admission. `disks` gives those elsewhere; it raises StoreError."""

    def __init__(
        self,
        paths: Iterable[Path],
        reserve_bytes: int,
        *,
        disks: Callable[[], Iterable[Room]] = tuple,
        on_low: Callable[[], None] = lambda: None,
    ) -> None:
        self._paths, self._reserve_bytes = tuple(paths), reserve_bytes
        self._disks, self._on_low = disks, on_low
        self._elsewhere: list[Room] = []
        self._asked_s = self._called_s = float("-inf")
        self._refusal = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="disk-reserve", daemon=True)

    def start(self) -> None:
        """Look, and go on to."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(60)

    def refusal(self) -> str:
        """Why nothing is taken; empty if there is room."""
        return self._refusal

    def allow(self, _tenant: str, _size: int) -> None:
        """Whether a request may be taken. Raises DiskLow."""
        if self._refusal:
            raise DiskLow(self._refusal)

    def _loop(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        try:
            short = next(filter(None, map(self._short, [*map(_room, self._paths), *self._asked()])), "")
        except OSError as error:
            logger.warning("cannot tell how much room there is, will try again: %s", error)
            return
        if bool(short) != bool(self._refusal):
            logger.warning("%s", short or "there is room on all disks again")
        self._refusal = short
        if short and time.monotonic() >= self._called_s + ASK_S:
            self._called_s = time.monotonic()
            self._on_low()

    def _asked(self) -> list[Room]:
        if time.monotonic() >= self._asked_s + ASK_S:
            self._asked_s = time.monotonic()
            try:
                self._elsewhere = list(self._disks())
            except StoreError as error:
                logger.warning("cannot ask how much room the store has, will try again: %s", error)
        return self._elsewhere

    def _short(self, room: Room) -> str:
        name, free, total = room
        reserve = min(self._reserve_bytes, int(total * SHARE_MAX))
        if free >= reserve:
            return ""
        return (
            f"cannot take the request: {name} has {free} bytes free, and {reserve} are kept for merges and deletions; "
            "make room, or lower --disk-reserve"
        )


def _room(path: Path) -> Room:
    usage = shutil.disk_usage(path)
    return f"the disk of {path}", usage.free, usage.total
