"""Finds the traces of which spans arrived, and remembers what was settled of which.

Both are the settling thread's alone. `traces` says of each trace when its last span was loaded, by the second; what
was loaded since the last look is asked for, and a little more, since spans do not become readable in the order of their
loading. Traces that say nothing of agents and belong to nothing are passed over without a look at them: Said, Origins
and Services tell which they are.
"""

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from storage.engine import Engine
from storage.literals import literal

OVERLAP_S = 10
WINDOW_TRACES_MAX = 50_000
"""Rows of `traces` that one look goes through; what is left is for the next."""
ORIGINS_KEPT_MAX = 100_000
KEPT_TRACES_MAX = 65_536
_SETTINGS = "SETTINGS max_threads = 2, max_memory_usage = 536870912, log_queries = 0"

Key = tuple[str, bytes]
"""Tenant and trace id."""


class Kept(NamedTuple):
    """What is known of a settled trace."""

    sign: int
    """What the last look saw of it."""
    rows: int
    """Of how many stored spans its facts are."""
    written: bool
    """Whether it has a row in `facts`."""
    start_unix_nano: int
    end_unix_nano: int


class Memory:
    """Traces settled lately, in two generations: when the younger is full, the elder is forgotten."""

    def __init__(self, generation_traces_max: int = KEPT_TRACES_MAX) -> None:
        self._max = generation_traces_max
        self._young: dict[Key, Kept] = {}
        self._old: dict[Key, Kept] = {}
        self._young_since_unix_s = self.complete_since_unix_s = time.time()
        """All that was settled since then is remembered."""

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: Key) -> Kept | None:
        """What is remembered of a trace."""
        return self._young.get(key) or self._old.get(key)

    def put(self, key: Key, kept: Kept) -> None:
        """Remember a trace."""
        if len(self._young) >= self._max:
            self._old, self._young = self._young, {}
            # Never earlier than before, also when a clock was set back.
            self.complete_since_unix_s = max(self.complete_since_unix_s, self._young_since_unix_s)
            self._young_since_unix_s = time.time()
        self._young[key] = kept


@dataclass(frozen=True, slots=True)
class Arrival:
    """A trace of which spans arrived. `spans`, `start` and `end` are of those that arrived lately, and maybe of others.

    `sign` differs from that of an earlier look if something arrived in between; rows that were merged change it, too.
    `rooted`: its root is among them.
    """

    key: Key
    sign: int
    spans: int
    loaded_unix_s: int
    start_unix_nano: int
    end_unix_nano: int
    rooted: bool


class Arrivals:
    """Looks for arrivals, from `since_unix_s` on.

    `services`: traces of these matter whatever they say. `links`: whether origins of a tenant say what their traces
    belong to, by id; those that are not stored yet are left out.
    """

    def __init__(
        self,
        engine: Engine,
        since_unix_s: int,
        services: Callable[[], Iterable[str]],
        links: Callable[[str, Iterable[int]], Mapping[int, bool]],
    ) -> None:
        self.position_unix_s = since_unix_s
        """What was loaded before has been seen."""
        self._engine = engine
        self._services = services
        self._links = links
        self._origins: dict[tuple[str, int], bool] = {}

    def look(self, memory: Memory) -> tuple[list[Arrival], bool]:
        """Arrivals since the last look that are not in memory as they are now, and whether there is more to look at."""
        since = self.position_unix_s
        seconds, origins = self._seconds(since)
        if not seconds:
            return [], False
        until = _until(seconds)
        window = f"Loaded >= toDateTime({since}, 'UTC')"
        if until is not None:
            window += f" AND Loaded < toDateTime({until}, 'UTC')"
        found = self._mattering(window, self._linking(origins), memory)
        if len(memory):
            found += self._remembered(window, {arrival.key for arrival in found}, memory)
        # A clock that was set back makes what arrives now older than what arrived before.
        now = int(time.time())
        # Of the last seconds more may become readable, however many there are already.
        self.position_unix_s = min(until, now - OVERLAP_S) if until else min(max(seconds), now) - OVERLAP_S
        return found, until is not None

    def _seconds(self, since: int) -> tuple[dict[int, int], dict[str, set[int]]]:
        """How many rows were loaded in which second; origins of those that say nothing themselves, by tenant."""
        rows = self._engine.rows(
            "SELECT toString(Tenant), toUnixTimestamp(Loaded) AS Second, count(),"
            " groupUniqArrayArrayIf(Origins, Said = 0)"
            f" FROM spanhouse.traces WHERE Loaded >= toDateTime({since}, 'UTC')"
            f" GROUP BY Tenant, Second ORDER BY Second LIMIT 100000 {_SETTINGS}"
        )
        seconds: dict[int, int] = {}
        origins: dict[str, set[int]] = {}
        for tenant, second, count, ids in rows:
            seconds[second] = seconds.get(second, 0) + count
            origins.setdefault(tenant, set()).update(ids)
        return seconds, origins

    def _linking(self, origins: Mapping[str, Iterable[int]]) -> list[int]:
        """Those of the origins whose resource says what its traces belong to."""
        if len(self._origins) > ORIGINS_KEPT_MAX:
            self._origins.clear()
        linking = set()
        for tenant, ids in origins.items():
            if unknown := [id_ for id_ in ids if (tenant, id_) not in self._origins]:
                links = self._links(tenant, unknown)
                self._origins.update({(tenant, id_): links[id_] for id_ in links})
            linking |= {id_ for id_ in ids if self._origins.get((tenant, id_), True)}
        return sorted(linking)

    def _mattering(self, window: str, linking: Sequence[int], memory: Memory) -> list[Arrival]:
        """Arrivals of traces that say something, by themselves or by who wrote them."""
        rows = self._engine.rows(
            "SELECT toString(Tenant), TraceId, sum(Spans), toUnixTimestamp(max(traces.Loaded)),"
            " toUnixTimestamp64Nano(min(Start)), toUnixTimestamp64Nano(max(End)), max(Root) != ('', '')"
            f" FROM spanhouse.traces WHERE {window}"
            f" GROUP BY Tenant, TraceId HAVING {self._matters(linking)} {_SETTINGS}"
        )
        found = []
        for tenant, trace_id, spans, loaded, start, end, rooted in rows:
            key, sign = (tenant, trace_id), loaded << 32 | spans
            kept = memory.get(key)
            if kept is None or kept.sign != sign:
                found.append(Arrival(key, sign, spans, loaded, start, end, bool(rooted)))
        return found

    def _matters(self, linking: Sequence[int]) -> str:
        conditions = ["max(Said)"]
        if linking:
            conditions.append(f"hasAny(groupUniqArrayArray(Origins), [{', '.join(map(str, linking))}])")
        if services := sorted(self._services()):
            conditions.append(f"hasAny(groupUniqArrayArray(Services), [{', '.join(map(literal, services))}])")
        return " OR ".join(conditions)

    def _remembered(self, window: str, found: Container[Key], memory: Memory) -> list[Arrival]:
        """Arrivals of traces that matter for what came of them before: spans that say nothing may have come since."""
        rows = self._engine.rows(
            "SELECT Tenant, hex(arrayStringConcat(groupArray(TraceId))), groupArray(First), groupArray(Latest),"
            " max(Last) FROM"
            " (SELECT toString(Tenant) AS Tenant, TraceId, toUnixTimestamp(max(traces.Loaded)) AS Last,"
            " toUnixTimestamp64Nano(min(Start)) AS First, toUnixTimestamp64Nano(max(End)) AS Latest"
            f" FROM spanhouse.traces WHERE {window} GROUP BY Tenant, TraceId HAVING NOT max(Said))"
            f" GROUP BY Tenant {_SETTINGS}"
        )
        arrivals = []
        for tenant, ids, starts, ends, loaded in rows:
            together = bytes.fromhex(ids)
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                key = (tenant, together[16 * i : 16 * i + 16])
                kept = memory.get(key)
                if kept is not None and key not in found:
                    arrivals.append(Arrival(key, kept.sign, 0, loaded, start, end, rooted=False))
        return arrivals


def _until(seconds: Mapping[int, int]) -> int | None:
    """The second at which a look is to end; None if it can take all there is."""
    rows = 0
    for second, count in sorted(seconds.items()):
        rows += count
        if rows > WINDOW_TRACES_MAX and second < max(seconds):
            return second + 1
    return None
