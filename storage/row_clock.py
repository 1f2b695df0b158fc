"""When rows are written that replace others: of two of a key the later one counts, also when a clock was set back."""

import time
from typing import Literal

from storage.engine import Engine


class RowClock:
    """Ticks of a table's column of versions, each greater than all before it. Callers take turns."""

    def __init__(self, per_second: Literal[1_000, 1_000_000], last: int = 0) -> None:
        self._per_second = per_second
        self._last = last

    @classmethod
    def of(cls, engine: Engine, per_second: Literal[1_000, 1_000_000], column: str, *tables: str) -> "RowClock":
        """Goes on after the latest row of these tables. Raises StoreUnavailable."""
        to_ticks = {1_000: "toUnixTimestamp64Milli", 1_000_000: "toUnixTimestamp64Micro"}[per_second]
        rows = (engine.rows(f"SELECT {to_ticks}(max({column})) FROM spanhouse.{table}") for table in tables)
        return cls(per_second, max(int(row[0][0]) for row in rows))

    def next(self) -> int:
        """Now, or just after the row before."""
        self._last = max(self._last + 1, time.time_ns() * self._per_second // 1_000_000_000)
        return self._last
