"""Erasures as the store remembers them: who asked, how far each is, and its certificate.

A row an erasure, whose newest version counts. What it is about stands in `erasing` while it runs, and nowhere after.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from storage.engine import Engine
from storage.erasure_selectors import Selector
from storage.literals import literal
from storage.row_clock import RowClock

State = Literal["running", "done", "counted", "failed"]
ENDING = "ending"
"""The stage in which whom it is about is forgotten."""
LISTED_MAX = 1000
_LEFT_S = 3600
"""What is in `erasing` for so long without an erasure that runs was left by a process that was killed."""
_COLUMNS = ("Id", "Tenant", "State", "Begun", "Body", "Updated")


@dataclass(frozen=True, slots=True)
class Note:
    """One erasure. Times are nanoseconds since 1970; `ended_unix_nano` is 0 while it runs.

    `removed`: rows by table, of each round. `waiting_for` says what it waits for, `error` why it failed.
    """

    id: str
    tenant: str
    by: str
    selectors: Sequence[dict[str, str]]
    begun_unix_nano: int
    dry_run: bool = False
    state: State = "running"
    stage: str = "waiting"
    round: int = 0
    removed: Sequence[dict[str, int]] = ()
    days: Sequence[str] = ()
    parts: int = 0
    traces: int = 0
    frames_scanned: int | None = None
    waiting_for: str = ""
    error: str = ""
    ended_unix_nano: int = 0
    outcome: State = "running"
    """What it comes to when the stage is ENDING."""
    checked: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)

    def totals(self) -> dict[str, int]:
        """Rows removed, or found, by table, over all rounds."""
        found: dict[str, int] = {}
        for counts in self.removed:
            for table, rows in counts.items():
                found[table] = found.get(table, 0) + rows
        return found

    def counted(self, counts: dict[str, int]) -> "Note":
        """With what this round found. A round that is begun again has at most what it had."""
        before = list(self.removed)
        if len(before) > self.round:
            counts = {t: max(before[self.round].get(t, 0), counts.get(t, 0)) for t in {*before[self.round], *counts}}
        return replace(self, removed=(*before[: self.round], counts))


class Notes:
    """The rows of a store. Raises StoreUnavailable."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._clock = RowClock.of(engine, 1_000_000, "Updated", "erasures")
        self._writing = threading.Lock()

    def begin(self, note: Note, selectors: Sequence[Selector]) -> None:
        """Write down a new one. What it is about comes first: without it there is no erasure."""
        rows = [
            (note.id, "selector", number.to_bytes(16, "big"), selector.to_json())
            for number, selector in enumerate(selectors)
        ]
        self._engine.insert("erasing", ("Erasure", "Kind", "Key", "Value"), rows)
        self.write(note)

    def write(self, note: Note) -> None:
        """Write down how far it is."""
        with self._writing:
            body = json.dumps(asdict(note))
            row = (note.id, note.tenant, note.state, note.begun_unix_nano // 1000, body, self._clock.next())
            self._engine.insert("erasures", _COLUMNS, [row])

    def running(self) -> Note | None:
        """The one that runs, of any tenant: the oldest, should there be several."""
        found = self._read("State = 'running' ORDER BY Begun LIMIT 1")
        return found[0] if found else None

    def of_tenant(self, tenant: str) -> list[Note]:
        """The newest ones of a tenant."""
        return self._read(f"Tenant = {literal(tenant)} ORDER BY Begun DESC LIMIT {LISTED_MAX}")

    def find(self, tenant: str, id: str) -> Note | None:
        """One of them."""
        found = self._read(f"Tenant = {literal(tenant)} AND Id = {literal(id)}")
        return found[0] if found else None

    def selectors(self, id: str) -> list[Selector]:
        """What it is about; empty if that is gone."""
        rows = self._engine.rows(
            "SELECT Value FROM spanhouse.erasing FINAL"
            f" WHERE Erasure = {literal(id)} AND Kind = 'selector' ORDER BY Key"
        )
        return [Selector.from_json(value) for [value] in rows]

    def left_behind(self) -> list[str]:
        """Erasures that do not run and have something in `erasing`."""
        rows = self._engine.rows(
            "SELECT Erasure FROM spanhouse.erasing GROUP BY Erasure"
            f" HAVING max(Written) < now('UTC') - {_LEFT_S}"
            " AND Erasure NOT IN (SELECT Id FROM spanhouse.erasures GROUP BY Id"
            " HAVING argMax(State, Updated) = 'running')"
        )
        return [id_ for [id_] in rows]

    def _read(self, where: str) -> list[Note]:
        rows = self._engine.rows(f"SELECT Body FROM spanhouse.erasures FINAL WHERE {where}")
        return [Note(**json.loads(body)) for [body] in rows]
