"""The memory of what was received lately: a request that is sent again is acknowledged, and not stored again.

Owns the identities (`Frame.identity`) of the requests of the last minutes. Called from the receivers' threads, and from
the WAL's committer when a frame has become durable; one lock, under which nobody else's code runs.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

# What stands for every delivery that is durable, so that a remembered request holds no future of its own.
_DURABLE: Future[None] = Future()
_DURABLE.set_result(None)


class Retransmits:
    """Remembers (tenant, identity) for `window_s` seconds, at most `entries_max` of them; the oldest goes first."""

    def __init__(self, window_s: float, entries_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._window_s = window_s
        self._entries_max = entries_max
        self._clock = clock
        self._lock = threading.Lock()
        # In order of expiry, near enough: a dict keeps the order of insertion. The value's future is the delivery's.
        self._entries: dict[bytes, tuple[float, Future[Any]]] = {}

    def claim(self, tenant: str, identity: bytes, delivery: Future[Any]) -> Future[Any] | None:
        """None when this is the first delivery, which `delivery` now stands for; else the future of the first one.

        Who claims must call `settle` when it is known whether the frame is durable.
        """
        now = self._clock()
        key = _key(tenant, identity)
        with self._lock:
            known = self._entries.get(key)
            if known is not None and known[0] > now:
                return known[1]
            self._insert(key, now + self._window_s, delivery, now)
        return None

    def settle(self, tenant: str, identity: bytes, *, durable: bool) -> None:
        """Remember the claimed delivery as durable, or forget it, so that the next one is a first one again."""
        key = _key(tenant, identity)
        with self._lock:
            entry = self._entries.pop(key, None)
            if durable:
                now = self._clock()
                self._insert(key, now + self._window_s if entry is None else entry[0], _DURABLE, now)

    def remember(self, tenant: str, identity: bytes, received_unix_nano: int) -> None:
        """Remember a delivery of the process before, for what is left of its window. To be called oldest first."""
        age_s = max(0.0, (time.time_ns() - received_unix_nano) / 1e9)
        if age_s < self._window_s:
            now = self._clock()
            with self._lock:
                self._insert(_key(tenant, identity), now + self._window_s - age_s, _DURABLE, now)

    def __len__(self) -> int:
        return len(self._entries)

    def _insert(self, key: bytes, expires: float, delivery: Future[Any], now: float) -> None:
        self._entries.pop(key, None)
        self._entries[key] = (expires, delivery)
        while (oldest := next(iter(self._entries), None)) is not None and (
            len(self._entries) > self._entries_max or self._entries[oldest][0] <= now
        ):
            del self._entries[oldest]


def _key(tenant: str, identity: bytes) -> bytes:
    return identity + tenant.encode()
