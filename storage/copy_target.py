"""The target of a copy: ClickHouse servers that may be away for a while. From any thread."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from storage.errors import StoreError, StoreUnavailable
from storage.literals import literal
from storage.server import Server

PATIENCE_S = 600
"""How long the target may be away before a copy gives up; it can be resumed."""
WAIT_S_MAX = 30
# What a repetition does not mend: unknown tables, columns and settings, types, rights, passwords.
_PERMANENT = frozenset({16, 36, 47, 53, 60, 62, 81, 115, 117, 192, 193, 194, 497, 516})

_Of = TypeVar("_Of")


class Target:
    """Does everything again, with a `note` and after a growing wait, while the servers do not answer."""

    def __init__(self, server: Server, note: Callable[[str], None], patience_s: float = PATIENCE_S) -> None:
        self._server, self._note, self._patience_s = server, note, patience_s

    def rows(self, sql: str) -> Sequence[Sequence[Any]]:
        """Rows of a statement. Raises StoreUnavailable."""
        return self._patiently(lambda: self._server.rows(sql))

    def read(self, tenant: str, sql: str, parameters: Mapping[str, Any]) -> list[Sequence[Any]]:
        """Columns of what a statement selects of one tenant. Raises StoreError."""
        return self._patiently(lambda: self._server.read(tenant, sql, parameters))

    def insert(self, table: str, columns: Sequence[str], block: bytes, token: str, shards: int = 1) -> None:
        """Insert a block, once for a token; into each of several `shards`. Raises StoreUnavailable."""
        for shard in range(1, shards + 1) if shards > 1 else [0]:
            self._patiently(partial(self._server.insert_block, table, columns, block, token, shard))

    def level(self) -> None:
        """Wait until all replicas have what any has: a reader may ask either. Raises StoreUnavailable."""
        until_s = time.monotonic() + self._patience_s
        while behind := self._patiently(self._server.behind):
            if time.monotonic() > until_s:
                raise StoreUnavailable(f"cannot copy: a replica is behind for {self._patience_s:g} s: {behind[0]}")
            time.sleep(0.2)

    def shards(self, table: str) -> int:
        """How many shards a table has. Raises StoreUnavailable."""
        found = self.rows(
            "SELECT engine_full FROM system.tables WHERE database = 'spanhouse' AND engine = 'Distributed'"
            f" AND name = {literal(table)}"
        )
        if not found:
            return 1
        cluster = found[0][0].split("'")[1]  # Distributed('cluster', 'database', 'table', …)
        where = f"cluster = {literal(cluster)}"
        return int(self.rows(f"SELECT uniqExact(shard_num) FROM system.clusters WHERE {where}")[0][0])

    def _patiently(self, call: Callable[[], _Of]) -> _Of:
        until_s, wait_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                if time.monotonic() + wait_s > until_s or code_of(error) in _PERMANENT:
                    raise
                self._note(f"waiting {wait_s:g} s for the target: {error}")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, WAIT_S_MAX)


def code_of(error: StoreError) -> int | None:
    """ClickHouse's code of what went wrong."""
    code: int | None = getattr(error.__cause__, "code", None)
    return code
