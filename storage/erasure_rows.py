"""How an erasure finds, counts and removes rows: statements over `erasing`, where its traces are noted by their ids.

Rows are removed by mutations, which write their parts anew. What a mutation says stays on disk for a while: it names
the erasure, never whom it is about. Sets are bounded by the traces of a round.

On a cluster `erasing` is on every node, and a mutation reads the copy beside it: `replicated` waits until they agree.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from storage.engine import Engine
from storage.erasure_selectors import PAGE_TRACES_MAX, Selector, statements
from storage.literals import literal
from storage.vocabulary import Vocabulary

SAID = ("spans", "content", "records", "traces", "explicit_links", "assessments", "mlflow_traces", "decisions")
"""Tables of what was sent and what loads made of it; the settling makes the rest of them."""
SETTLED = ("facts", "links")
BY_TRACE = (*SAID, *SETTLED)
UNLINKED = ("seen", "links", "facts", "explicit_links", "pins")
ALL = (*BY_TRACE, "origins", "seen", "pins")
_BY_DAY = ("spans", "content", "records", "traces")
_LINKED = ("user", "session")
_KEY = "sipHash128(toString({0}Entity), {0}Id, {0}Version)"
_ORIGIN = "toFixedString(leftPad(hex(OriginId), 16, '0'), 16)"
_STATE = "sipHash128(TraceId, toUnixTimestamp64Milli(Settled))"
_BOUNDED = (
    "SETTINGS max_memory_usage = 536870912, max_threads = 2, max_execution_time = 0, log_queries = 0, async_insert = 0"
)
_IDS_AT_ONCE = 2000


@dataclass(slots=True)
class Counted:
    """Rows of a table that are to go, and the days and parts they lie in."""

    rows: int
    parts: int
    days: Sequence[str]


class ErasureRows:
    """The rows of one erasure of a tenant. Raises StoreUnavailable; everything may be done again."""

    def __init__(self, engine: Engine, id: str, tenant: str) -> None:
        self._engine = engine
        self._id = literal(id)
        self._tenant = literal(tenant)
        self._parameters = {"erasure": id, "tenant": tenant}

    def find(
        self, selectors: Iterable[Selector], vocabulary: Vocabulary, round: int, goes_on: Callable[[], None]
    ) -> None:
        """Note the traces that the selectors mean, a day at a time and some PAGE_TRACES_MAX in a round.

        `goes_on` is called between two statements.
        """
        selectors = list(selectors)
        self.note(round, [bytes.fromhex(one.value) for one in selectors if one.kind == "trace"])
        for one in selectors:
            if one.kind in _LINKED:
                self._name(one)
        days: dict[str, list[int]] = {}
        for statement in statements(selectors, vocabulary):
            parameters = {**self._parameters, **statement.parameters, "round": round}
            if statement.paged and statement.table not in days:
                days[statement.table] = self._days(statement.table)
            for day in days[statement.table] if statement.paged else (0,):
                goes_on()
                if self.noted(round) >= PAGE_TRACES_MAX:
                    return
                self._engine.fill(statement.sql, {**parameters, "day": day} if statement.paged else parameters)

    def note(self, round: int, trace_ids: Iterable[bytes]) -> None:
        """Note traces by their ids."""
        rows = [(self._parameters["erasure"], "trace", round, trace_id) for trace_id in trace_ids]
        if rows:
            self._engine.insert("erasing", ("Erasure", "Kind", "Round", "Key"), rows)

    def note_late(self, round: int) -> None:
        """Note traces of earlier rounds again of which there are rows: they came meanwhile."""
        for before in range(round):
            for table in BY_TRACE:
                self._fill(
                    f"SELECT DISTINCT {self._id}, 'trace', toUInt16({round}), TraceId FROM spanhouse.{table}"
                    f" WHERE {self._doomed(before)}"
                )

    def noted(self, round: int) -> int:
        """How many traces were found in a round."""
        return self._number(
            f"SELECT uniqExact(Key) FROM spanhouse.erasing WHERE {self._kind('trace')} AND Round = {round}"
        )

    def noted_in_all(self, round: int) -> int:
        """How many traces were found in all rounds up to this one."""
        return self._number(
            f"SELECT uniqExact(Key) FROM spanhouse.erasing WHERE {self._kind('trace')} AND Round <= {round}"
        )

    def among(self, trace_ids: Iterable[bytes]) -> set[bytes]:
        """Those of these traces that are to go."""
        wanted = sorted({trace_id for trace_id in trace_ids if len(trace_id) == 16})
        found: set[bytes] = set()
        for at in range(0, len(wanted), _IDS_AT_ONCE):
            listed = ", ".join(f"'{trace_id.hex()}'" for trace_id in wanted[at : at + _IDS_AT_ONCE])
            rows = self._engine.rows(
                "SELECT DISTINCT lower(hex(Key)) FROM spanhouse.erasing"
                f" WHERE {self._kind('trace')} AND lower(hex(Key)) IN ({listed})"
            )
            found |= {bytes.fromhex(text) for [text] in rows}
        return found

    def replicated(self) -> bool:
        """Whether all nodes have the same `erasing`."""
        return not self._number(
            f"SELECT count() FROM {self._engine.system_table('replicas')} WHERE database = 'spanhouse'"
            " AND table = 'erasing' AND (queue_size > 0 OR log_pointer <= log_max_index)"
        )

    def count(self, table: str, round: int) -> Counted:
        """Rows of the traces of a round."""
        days = "arraySort(groupUniqArray(toString(Day)))" if table in _BY_DAY else "emptyArrayString()"
        [[rows, parts, in_days]] = self._engine.rows(
            f"SELECT count(), uniqExact(_part), {days} FROM spanhouse.{table} WHERE {self._doomed(round)}"
        )
        return Counted(int(rows), int(parts), list(in_days))

    def delete(self, table: str, round: int) -> None:
        """Begin to remove the rows of the traces of a round."""
        self._alter(table, self._doomed(round))

    def note_origins_and_names(self, round: int) -> None:
        """Note what the traces of a round use and are linked to, while their rows are there."""
        self._fill(
            f"SELECT DISTINCT {self._id}, 'candidate', 0, {_ORIGIN} FROM spanhouse.spans WHERE {self._doomed(round)}"
        )
        self._fill(
            f"SELECT DISTINCT {self._id}, 'entity', 0, {_KEY.format('')} FROM spanhouse.links"
            f" WHERE {self._doomed(round)}"
        )

    def note_orphans(self) -> int:
        """Note the origins that nobody uses any more; gives how many rows `origins` has of them.

        Nothing may be loaded from here until `delete_orphans` is back.
        """
        self._fill(
            f"SELECT {self._id}, 'orphan', 0, Key FROM spanhouse.erasing WHERE {self._kind('candidate')} AND Key NOT IN"
            f" (SELECT {_ORIGIN} FROM spanhouse.spans WHERE Tenant = {self._tenant}"
            f" AND {_ORIGIN} IN (SELECT Key FROM spanhouse.erasing WHERE {self._kind('candidate')}))"
        )
        return self._number(f"SELECT count() FROM spanhouse.origins WHERE {self._of('orphan', _ORIGIN)}")

    def delete_orphans(self) -> None:
        """Begin to remove those origins."""
        self._alter("origins", self._of("orphan", _ORIGIN))

    def unlinked(self) -> dict[str, int]:
        """Rows, by table, that name entities to which no trace is linked any more, older states of links, and pins."""
        key = _KEY.format("")
        self._fill(
            f"SELECT {self._id}, 'unlinked', 0, Key FROM spanhouse.erasing WHERE {self._kind('entity')}"
            f" AND Key GLOBAL NOT IN (SELECT {key} FROM spanhouse.links FINAL WHERE Tenant = {self._tenant}"
            f" AND Deleted = 0 AND {key} IN (SELECT Key FROM spanhouse.erasing WHERE {self._kind('entity')}))"
        )
        # 24.10 cannot take Links apart in a mutation.
        keys = "arrayMap(l -> sipHash128(toString(tupleElement(l, 1)), tupleElement(l, 2), tupleElement(l, 3)), Links)"
        names = f"SELECT Key FROM spanhouse.erasing WHERE {self._kind('name')}"
        self._fill(
            f"SELECT {self._id}, 'stale', 0, {_STATE} FROM spanhouse.facts ARRAY JOIN {keys} AS linked"
            f" WHERE Tenant = {self._tenant} AND linked IN ({names})"
        )
        return {
            table: self._number(f"SELECT count() FROM spanhouse.{table} WHERE {self._unlinked(table)}")
            for table in UNLINKED
        }

    def delete_unlinked(self, table: str) -> None:
        """Begin to remove those of a table."""
        self._alter(table, self._unlinked(table))

    def forget(self) -> None:
        """Drop what the erasure worked with, the selectors too."""
        self._engine.alter(f"ALTER TABLE spanhouse.erasing DROP PARTITION {self._id}", {})

    def _unlinked(self, table: str) -> str:
        if table == "seen":
            return f"({self._of('unlinked', _KEY.format(''))} OR {self._of('name', _KEY.format(''))})"
        if table == "facts":
            return self._of("stale", _STATE)
        if table == "pins":
            noted = f"SELECT lower(hex(Key)) FROM spanhouse.erasing WHERE {self._kind('trace')}"
            of_trace = f"(Tenant = {self._tenant} AND Entity = 'trace' AND Id IN ({noted}))"
            return f"({of_trace} OR {self._of('name', _KEY.format(''))})"
        return self._of("name", _KEY.format(""))

    def _name(self, selector: Selector) -> None:
        self._engine.fill(
            "INSERT INTO spanhouse.erasing (Erasure, Kind, Key)"
            f" SELECT {{erasure:String}}, 'name', sipHash128({{entity:String}}, {{value:String}}, '') {_BOUNDED}",
            {**self._parameters, "entity": selector.kind, "value": selector.value},
        )

    def _days(self, table: str) -> list[int]:
        rows = self._engine.rows(
            f"SELECT DISTINCT toUInt16(Day) AS d FROM spanhouse.{table} WHERE Tenant = {self._tenant} ORDER BY d"
        )
        return [day for [day] in rows]

    def _kind(self, kind: str) -> str:
        return f"Erasure = {self._id} AND Kind = '{kind}'"

    def _doomed(self, round: int) -> str:
        noted = f"SELECT Key FROM spanhouse.erasing WHERE {self._kind('trace')} AND Round = {round}"
        return f"Tenant = {self._tenant} AND TraceId IN ({noted})"

    def _of(self, kind: str, key: str) -> str:
        return f"Tenant = {self._tenant} AND {key} IN (SELECT Key FROM spanhouse.erasing WHERE {self._kind(kind)})"

    def _fill(self, select: str) -> None:
        self._engine.fill(
            f"INSERT INTO spanhouse.erasing (Erasure, Kind, Round, Key)\n{select}\n{_BOUNDED}", self._parameters
        )

    def _alter(self, table: str, where: str) -> None:
        self._engine.alter(
            f"ALTER TABLE spanhouse.{table} DELETE WHERE {where} SETTINGS allow_nondeterministic_mutations = 1", {}
        )

    def _number(self, sql: str) -> int:
        return int(self._engine.rows(sql)[0][0])
