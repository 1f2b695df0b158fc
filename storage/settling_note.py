"""How far the settling is, as the store remembers it, and what it may have missed. The settling thread's alone."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.arrivals import Key
from storage.engine import Engine

TOUCHED_MAX = 100_000
TOUCH_MARGIN_US = 60_000_000
LATE_S, SWEPT_S = 120, 600
"""What changed so long ago and is not settled was missed; what changed within the longer time is looked at."""
MISSED_MAX = 10_000
_UNSETTLED = Path(__file__).with_name("unsettled.sql").read_text()


@dataclass(frozen=True, slots=True)
class Position:
    """What was loaded, touched and scored before these times is settled."""

    loaded_unix_s: int
    touched_unix_us: int
    scored_unix_s: int


class SettlingNote:
    """The note of a store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self) -> Position:
        """The last position; of a store without one, a little before its last load. Raises StoreUnavailable."""
        noted = self._engine.rows(
            "SELECT toUnixTimestamp(Loaded), toUnixTimestamp64Micro(Touched), toUnixTimestamp(Records)"
            " FROM spanhouse.settling FINAL"
        )
        if noted:
            return Position(*noted[0])
        # What a store without facts held before, relink settles.
        last = self._engine.rows("SELECT toUnixTimestamp(max(traces.Loaded)) FROM spanhouse.traces")
        return Position(max(int(last[0][0]) - 600, 0), 0, 0)

    def write(self, position: Position) -> None:
        """Write it down. Raises StoreUnavailable."""
        row = (
            1, max(position.loaded_unix_s, 0), position.touched_unix_us, max(position.scored_unix_s, 0),
            time.time_ns() // 1000,
        )  # fmt: skip
        self._engine.insert("settling", ("Id", "Loaded", "Touched", "Records", "Updated"), [row])

    def touched_since(self, position: Position) -> list[Key]:
        """Traces of which links or assessments were changed after it."""
        since_us = max(position.touched_unix_us - TOUCH_MARGIN_US, 0)
        changed = " UNION DISTINCT ".join(
            f"SELECT toString(Tenant), TraceId FROM spanhouse.{table}"
            f" WHERE Updated >= fromUnixTimestamp64Micro({since_us})"
            for table in ("explicit_links", "assessments")
        )
        return _keys(self._engine.rows(f"{changed} LIMIT {TOUCHED_MAX}"))

    def missed(self) -> list[Key]:
        """Traces that changed some minutes ago and are not settled."""
        now_s = int(time.time())
        statement = _UNSETTLED.format(since=now_s - SWEPT_S, until=now_s - LATE_S, limit=MISSED_MAX)
        return _keys(self._engine.rows(statement))


def _keys(rows: Iterable[Sequence[Any]]) -> list[Key]:
    return [(tenant, trace_id) for tenant, trace_id in rows]
