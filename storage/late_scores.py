"""Finds the traces of which scores arrived as log records, which may be long after their spans were settled.

The settling thread's alone. `records` says when each was loaded, by the second. What was loaded since the last look is
asked for, and a little more, since records do not become readable in the order of their loading.
"""

import time

from storage.arrivals import OVERLAP_S, Key
from storage.engine import Engine
from storage.literals import literal
from storage.scores import EVENTS

ROWS_MAX = 20_000
"""Traces that one look finds, those of one second aside; what is left is for the next."""
_SETTINGS = "SETTINGS max_threads = 2, max_memory_usage = 536870912, log_queries = 0"
_NAMES = ", ".join(map(literal, EVENTS))

_Row = tuple[str, bytes, int, int]
"""Tenant, trace id, and how many scores of it arrived in which second."""


class LateScores:
    """Looks for arrivals, from `since_unix_s` on. What `look` gives is given again until `go_on` is called."""

    def __init__(self, engine: Engine, since_unix_s: int) -> None:
        self.position_unix_s = since_unix_s
        """What arrived before has been seen."""
        self._engine = engine
        self._seen: set[_Row] = set()
        self._next = since_unix_s, self._seen

    def look(self) -> tuple[dict[Key, int], bool]:
        """Traces with scores that have not been seen, and when the first of those arrived; whether there is more."""
        since = self.position_unix_s
        found: list[_Row] = [
            (tenant, trace_id, second, count)
            for tenant, trace_id, second, count in self._engine.rows(
                "SELECT toString(Tenant), TraceId, toUnixTimestamp(records.Loaded) AS Second, count()"
                f" FROM spanhouse.records WHERE Loaded >= toDateTime({since}, 'UTC') AND EventName IN ({_NAMES})"
                f" GROUP BY Tenant, TraceId, Second ORDER BY Second LIMIT {ROWS_MAX} WITH TIES {_SETTINGS}"
            )
        ]
        if not found:
            return {}, False
        last, more = found[-1][2], len(found) >= ROWS_MAX
        # A clock that was set back makes what arrives now older than what arrived before.
        now = int(time.time())
        # Of the last seconds more may become readable, however many there are already.
        self._next = min(last + 1, now - OVERLAP_S) if more else min(last, now) - OVERLAP_S, set(found)
        new: dict[Key, int] = {}
        for tenant, trace_id, second, _ in sorted(set(found) - self._seen, key=lambda row: row[2]):
            new.setdefault((tenant, trace_id), second)
        return new, more

    def go_on(self) -> None:
        """What the last look gave has been taken."""
        self.position_unix_s, self._seen = self._next
