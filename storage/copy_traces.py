"""Works out the rows of `traces` for spans that are copied, by the statement of the view that does it for those loaded.

On the thread of the copy.
"""

import re
from collections import defaultdict

from storage.copy_source import CannotCopy
from storage.copy_target import Target
from storage.copy_units import LOADED, loaded
from storage.embedded import Embedded
from storage.literals import literal

SETTLED_S = 10
"""What was loaded so long before the point that the settling noted is settled."""
IDS_MAX = 10_000
_INGEST = re.compile(r"FROM\s+spanhouse\.ingest\b")
_FACTS = (
    "SELECT hex(TraceId) FROM spanhouse.facts"
    " WHERE TraceId IN (SELECT toFixedString(unhex(arrayJoin({ids:Array(String)})), 16))"
)


class TraceRows:
    """Rows of `traces`, from spans of the source."""

    def __init__(self, source: Embedded, target: Target) -> None:
        self._source, self._target = source, target
        [[self._select]] = source.rows(
            "SELECT as_select FROM system.tables WHERE database = 'spanhouse' AND name = 'to_traces'"
        )
        self.columns = [
            name
            for [name] in source.rows(
                "SELECT name FROM system.columns WHERE database = 'spanhouse' AND table = 'traces' ORDER BY position"
            )
        ]
        self._settled_unix_s = settled_unix_s(source, LOADED, "Received")

    def block(self, spans: str, day: str) -> bytes:
        """The rows as a block. `spans` are spans of that day, for FROM. Raises CannotCopy, StoreError."""
        rows, replaced = _INGEST.subn(lambda _: f"FROM {spans} AS ingest", self._select)
        if replaced != 1:
            raise CannotCopy("cannot work out the rows of `traces`: this program does not understand its view")
        if LOADED in self.columns:
            rows = self._with_loaded(rows, spans, day)
        return self._source.block(f"SELECT {', '.join(self.columns)} FROM ({rows})")

    def _with_loaded(self, rows: str, spans: str, day: str) -> str:
        """The time of the load as the source has it, so that the target does not settle these traces once more.

        Now, of a trace that was not settled when the snapshot was made, or that came to the target in part before.
        """
        named = ", ".join(name for name in self.columns if name != LOADED)
        again = self._settled_there(spans)
        known = f" OR (Tenant, hex(TraceId)) IN ({', '.join(again)})" if again else ""
        return (
            f"SELECT {named}, {loaded('Last', self._settled_unix_s, known)} AS {LOADED}"
            f" FROM (SELECT {named} FROM ({rows})) AS summed"
            f" LEFT JOIN (SELECT Tenant, TraceId, toUnixTimestamp(max({LOADED})) AS Last FROM spanhouse.traces"
            f" WHERE Day = {literal(day)} GROUP BY Tenant, TraceId) AS source USING (Tenant, TraceId)"
        )

    def _settled_there(self, spans: str) -> list[str]:
        """Those traces of the spans of which the target has facts, as SQL."""
        if not self._target.rows("SELECT 1 FROM spanhouse.facts LIMIT 1"):
            return []
        traces = defaultdict(list)
        for tenant, trace_id in self._source.rows(f"SELECT DISTINCT toString(Tenant), hex(TraceId) FROM {spans}"):
            traces[tenant].append(trace_id)
        found = []
        for tenant, ids in traces.items():
            for first in range(0, len(ids), IDS_MAX):
                columns = self._target.read(tenant, _FACTS, {"ids": ids[first : first + IDS_MAX]})
                found += [f"({literal(tenant)}, {literal(one.decode())})" for column in columns for one in column]
        return found


def settled_unix_s(source: Embedded, *columns: str) -> int:
    """The time of loads before which the source had settled everything: the first of these columns of `settling`."""
    named = {
        name
        for [name] in source.rows("SELECT name FROM system.columns WHERE database = 'spanhouse' AND table = 'settling'")
    }
    column = next(column for column in columns if column in named)
    noted = source.rows(f"SELECT toUnixTimestamp({column}) FROM spanhouse.settling FINAL")
    return max(int(noted[0][0]) - SETTLED_S, 0) if noted else 0
