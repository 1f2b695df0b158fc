"""Knows whether a load runs, and whether the last one may have left something half stored.

A load fills several tables, one after the other: a trace may be readable in one and its spans not yet in another.
The loader's thread says when a load begins and ends, the settling thread waits.
"""

import threading
import time

WAIT_S = 60.0


class Loads:
    """What is known of the loads, of which there is one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = False
        self._sound = True
        self._succeeded = 0

    def begin(self) -> None:
        """A load begins."""
        with self._changed:
            self._running = True

    def end(self, *, sound: bool) -> None:
        """It ended; `sound` if all of it is stored, or nothing."""
        with self._changed:
            self._running, self._sound = False, sound
            self._succeeded += sound
            self._changed.notify_all()

    def wait(self, stop: threading.Event) -> bool:
        """Wait until all that is readable now is stored as a whole. False if that takes too long."""
        with self._changed:
            if not self._running and self._sound:
                return True
            wanted = self._succeeded + 1
            until_s = time.monotonic() + WAIT_S
            while self._succeeded < wanted and not stop.is_set() and time.monotonic() < until_s:
                self._changed.wait(0.5)
            return self._succeeded >= wanted
