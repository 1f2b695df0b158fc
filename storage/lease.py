"""What only one of several processes does: the holder of a row of `leases` does it, until it is silent for LENGTH_S.

ClickHouse has no compare-and-set: whoever takes a lease looks after a while whether another one took it, too, and the
later row counts. For some seconds two may believe that they hold it, so that what is done under a lease must bear being
done twice.
"""

import logging
import time
import uuid

from storage.engine import Engine
from storage.errors import StoreError
from storage.literals import literal

LENGTH_S = 30.0
RENEW_S = 10.0
ASK_S = 5.0
"""How often one that has no lease looks whether it is free."""
DOUBT_S = 2.0
"""Whoever took it looks after so long whether it was alone."""

_READ = """SELECT
    argMax(Holder, (Updated, Holder)), argMax(Until, (Updated, Holder)) > now64(3, 'UTC'),
    toUnixTimestamp64Micro(now64(6, 'UTC'))
FROM spanhouse.leases
WHERE Name = {name}"""

logger = logging.getLogger(__name__)


class Lease:
    """A lease as one process sees it. For one thread."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._holder = uuid.uuid4().hex
        self._until_s = 0.0
        """Monotonic; it is ours until then."""
        self._look_s = 0.0
        """Monotonic; nothing is asked before."""
        self._taken = False

    def held(self) -> bool:
        """Whether it is ours, by what is known here; now and then this asks the store, takes and prolongs it."""
        now_s = time.monotonic()
        if now_s >= self._look_s:
            try:
                self._look(now_s)
            except StoreError as error:
                logger.warning("cannot ask for the lease of %s: %s", self._name, error)
                self._look_s = now_s + ASK_S
        return now_s < self._until_s

    def release(self) -> None:
        """Give it back, so that another one need not wait."""
        if time.monotonic() < self._until_s:
            self._until_s = 0
            try:
                [[_, _, now_us]] = self._engine.rows(_READ.format(name=literal(self._name)))
                self._write(now_us, 0)
            except StoreError as error:
                logger.warning("cannot give the lease of %s back: %s", self._name, error)

    def _look(self, now_s: float) -> None:
        [[holder, runs, now_us]] = self._engine.rows(_READ.format(name=literal(self._name)))
        if holder == self._holder and self._taken:
            self._write(now_us, LENGTH_S)
            self._until_s, self._look_s = now_s + LENGTH_S, now_s + RENEW_S
        elif runs:
            self._until_s, self._look_s, self._taken = 0, now_s + ASK_S, False
        else:
            self._write(now_us, LENGTH_S)
            self._taken, self._look_s = True, now_s + DOUBT_S

    def _write(self, now_us: int, length_s: float) -> None:
        """Say that it is ours for so long. The clock is the store's."""
        row = (self._name, self._holder, now_us // 1000 + round(length_s * 1000), now_us)
        self._engine.insert("leases", ("Name", "Holder", "Until", "Updated"), [row])
