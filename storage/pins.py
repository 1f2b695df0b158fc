"""Pins: traces, or all traces of a run, of a model version and so on, that are kept whatever the policies say.

A pin holds from the moment it is made: what has expired before does not come back. It ends when it is taken back, and
then the policies count again. Called from the threads of the API and of the expiry.
"""

import threading
from dataclasses import dataclass
from typing import Any

from storage.engine import Engine
from storage.linking import ENTITIES
from storage.row_clock import RowClock

PINS_MAX = 10_000
"""Of a tenant."""
PINNABLE = ("trace", *ENTITIES)
PINNED_TRACES = """(Tenant, TraceId) GLOBAL IN (
    SELECT Tenant, toFixedString(unhex(Id), 16) FROM spanhouse.pins FINAL WHERE Entity = 'trace' AND Deleted = 0
    UNION ALL
    SELECT Tenant, TraceId FROM spanhouse.links FINAL
    WHERE Deleted = 0 AND (
        (Tenant, Entity, Id, Version) GLOBAL IN (
            SELECT Tenant, Entity, Id, Version FROM spanhouse.pins FINAL WHERE Deleted = 0
        ) OR (Tenant, Entity, Id) GLOBAL IN (
            SELECT Tenant, Entity, Id FROM spanhouse.pins FINAL WHERE Version = '' AND Deleted = 0
        )
    )
)"""
"""A condition on a row with Tenant and TraceId. A pin without a version is of all versions."""
_LIST = """SELECT Entity, Id, Version, PinnedBy, Comment, toUnixTimestamp64Micro(Updated)
FROM spanhouse.pins FINAL
WHERE Deleted = 0
ORDER BY Updated DESC
LIMIT {limit:UInt32}"""
_COLUMNS = ("Tenant", "Entity", "Id", "Version", "PinnedBy", "Comment", "Deleted", "Updated")


class TooManyPins(Exception):
    """A tenant has as many as it may have. The text says the way out."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What is kept: a trace by its id in hex, or what traces belong to. `since_unix_nano` is set when it is read."""

    entity: str
    id: str
    version: str = ""
    pinned_by: str = ""
    comment: str = ""
    since_unix_nano: int = 0


class Pins:
    """The pins of a store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changing = threading.Lock()
        self._clock: RowClock | None = None

    def of(self, tenant: str) -> list[Pin]:
        """All of a tenant, the newest first. Raises what Engine.read raises."""
        columns = self._engine.read(tenant, _LIST, {"limit": PINS_MAX})
        pins = []
        for *texts, since_us in zip(*columns, strict=True):
            entity, id_, version, by, comment = (text.decode(errors="replace") for text in texts)
            pins.append(Pin(entity, id_, version, by, comment, since_us * 1000))
        return pins

    def put(self, tenant: str, pin: Pin) -> None:
        """Make it, or change what is said of it. Raises TooManyPins, and what the engine raises."""
        with self._changing:
            known = {(one.entity, one.id, one.version) for one in self.of(tenant)}
            if len(known) >= PINS_MAX and (pin.entity, pin.id, pin.version) not in known:
                raise TooManyPins(
                    f"cannot keep more than {PINS_MAX} pins of tenant {tenant!r}: remove one, or pin a run"
                )
            self._write(tenant, pin, deleted=False)

    def remove(self, tenant: str, entity: str, id: str, version: str) -> bool:
        """Take it back. False if there is none."""
        with self._changing:
            for pin in self.of(tenant):
                if (pin.entity, pin.id, pin.version) == (entity, id, version):
                    self._write(tenant, pin, deleted=True)
                    return True
        return False

    def any(self) -> bool:
        """Whether there are any, of any tenant."""
        return bool(self._engine.rows("SELECT 1 FROM spanhouse.pins FINAL WHERE Deleted = 0 LIMIT 1"))

    def taken_back(self) -> int:
        """A number that rises whenever one is taken back."""
        last = "SELECT toUnixTimestamp64Micro(max(Updated)) FROM spanhouse.pins WHERE Deleted = 1"
        return int(self._engine.rows(last)[0][0])

    def _write(self, tenant: str, pin: Pin, *, deleted: bool) -> None:
        self._clock = self._clock or RowClock.of(self._engine, 1_000_000, "Updated", "pins")
        said: tuple[Any, ...] = (pin.entity, pin.id, pin.version, pin.pinned_by, pin.comment)
        self._engine.insert("pins", _COLUMNS, [(tenant, *said, int(deleted), self._clock.next())])
