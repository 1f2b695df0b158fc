"""When rows are really gone: mutations that are done, parts that are removed from disk, and what else may hold them.

ClickHouse keeps a part that was replaced for eight minutes, in case the new one did not reach the disk. While an
erasure runs, new parts are synced and old ones go after a second. That is set on the tables and taken back at the end,
also after a crash, since the erasure goes on then.
"""

from collections.abc import Iterable

from storage.engine import Engine

SOON = {
    "min_rows_to_fsync_after_merge": 1,  # before the old part goes, the new one is on disk
    "old_parts_lifetime": 1,
    "cleanup_delay_period": 1,
    "cleanup_delay_period_random_add": 0,
    "max_cleanup_delay_period": 1,
}
_ID = "concat(hostName(), ':', toString(tcpPort()), ' ', name)"
SYSTEM_LOGS = {"query_log": "query", "query_views_log": "view_query", "text_log": "message"}
"""Where servers write what they were asked, if they are set up so."""
Parts = set[tuple[str, str]]
"""Tables and names of parts, with their node."""


class ErasureParts:
    """The parts of some tables of a store. Raises StoreUnavailable."""

    def __init__(self, engine: Engine, tables: Iterable[str]) -> None:
        self._engine = engine
        self._tables = list(tables)
        self._known = {name for [name] in engine.rows("SELECT name FROM system.merge_tree_settings")}

    def hasten(self) -> None:
        """Have replaced parts removed soon."""
        pairs = ", ".join(f"{name} = {value}" for name, value in SOON.items() if name in self._known)
        for table in self._tables:
            self._engine.alter(f"ALTER TABLE spanhouse.{table} MODIFY SETTING {pairs}", {})

    def take_back(self) -> None:
        """Have the tables as the schema says."""
        names = ", ".join(name for name in SOON if name in self._known)
        for table in self._tables:
            self._engine.alter(f"ALTER TABLE spanhouse.{table} RESET SETTING {names}", {})

    def running(self, table: str) -> tuple[int, str]:
        """How many changes of a table's rows are not done, and why one of them fails, or ''."""
        waiting = [reason for _, done, reason in self._engine.mutations(table) if not done]
        return len(waiting), next(filter(None, waiting), "")

    def replaced(self) -> Parts:
        """Parts that are not in use any more and still on disk."""
        old = f"{self._ours()} AND _state NOT IN ('Active', 'PreActive')"
        here = f"SELECT table, {_ID} AS part FROM system.parts WHERE {old}"
        rows = self._engine.rows(f"SELECT table, part FROM {self._engine.on_each_node(here)}")
        return {(table, name) for table, name in rows}

    def clean_up(self) -> None:
        """Wake those that remove parts."""
        for table in {table for table, _ in self.replaced()}:
            self._engine.alter(f"SYSTEM START CLEANUP spanhouse.{table}", {})

    def detached(self) -> list[str]:
        """Parts that somebody, or a broken disk, took out of a table: nobody knows what is in them."""
        rows = self._engine.rows(
            f"SELECT DISTINCT concat(table, '/', name) FROM {self._engine.system_table('detached_parts')}"
            f" WHERE {self._ours()} ORDER BY 1 LIMIT 10"
        )
        return [name for [name] in rows]

    def in_system_logs(self, texts: Iterable[str]) -> dict[str, int]:
        """Rows of ClickHouse's own logs that hold one of these texts. They expire by the server's configuration."""
        there = {name for [name] in self._engine.rows("SELECT name FROM system.tables WHERE database = 'system'")}
        found = {}
        for table, column in SYSTEM_LOGS.items():
            if table in there:
                sql = (
                    f"SELECT countIf(multiSearchAny({column}, {{texts:Array(String)}})) FROM"
                    f" {self._engine.system_table(table)}"
                )
                [[rows]] = self._engine.read("default", sql, {"texts": list(texts)})
                if rows:
                    found[f"system.{table}"] = int(rows)
        return found

    def nodes(self) -> int:
        """On how many nodes that is."""
        return int(
            self._engine.rows(f"SELECT uniqExact(hostName(), tcpPort()) FROM {self._engine.system_table('one')}")[0][0]
        )

    def _ours(self) -> str:
        listed = ", ".join(f"'{table}'" for table in (*self._tables, "erasing"))
        return f"database IN ('spanhouse', '{self._engine.database}') AND table IN ({listed})"
