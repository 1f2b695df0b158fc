"""A server that was killed and has noted tokens of parts that it does not have: nothing of them may be missing.

The kill is real; the note without a part is made by deleting the rows, of which the log of tokens knows nothing.
"""

import os
import subprocess
import time
from pathlib import Path

import pytest
from otlp_building import logs, record, request, span
from settling_house import trace_id
from store import FOOTING, Store, altered

pytestmark = pytest.mark.skipif(
    FOOTING.urls is None or FOOTING.cluster is not None or "CLICKHOUSE_CONTROL" not in os.environ,
    reason="needs a server to kill: CLICKHOUSE_URL, and CLICKHOUSE_CONTROL, a command that stops and restarts n1",
)


def restart() -> None:
    control = os.environ["CLICKHOUSE_CONTROL"]
    for what in ("stop", "restart"):
        subprocess.run([control, what, "n1"], check=True, timeout=120, stdout=subprocess.DEVNULL)


def test_a_token_without_its_part_is_looked_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    born = f"{time.time_ns():019d}"
    spans = [span(n, trace_id=trace_id(n)) for n in range(1, 21)]
    path, name = store.segment([request(*spans)])
    talk, talked = store.segment([logs(*(record(n) for n in range(1, 6)))])
    loads = [(path, f"{born}-{name}", "traces"), (talk, f"{born}-{talked}.logs", "logs")]

    def load() -> list[int]:
        for arguments in loads:
            store.engine.load(*arguments)
        return [store.number(f"SELECT count() FROM spanhouse.{table}") for table in ("spans", "traces", "records")]

    assert load() == load() == [20, 20, 5]
    restart()
    store.number("SELECT 1")  # the handles find out
    assert load() == [20, 20, 5], "it is stored, and is not stored again"
    altered(store.engine, "spans DELETE WHERE TraceId = unhex('" + trace_id(7).hex() + "')")
    altered(store.engine, "records DELETE WHERE 1")
    restart()
    counts = load()
    assert counts[0] >= 20 and counts[2] == 5
    assert load() == counts
    assert len(store.traces.spans_of("default", trace_id(7), True, 10)) == 1
    assert len(store.traces.spans_of("default", trace_id(8), True, 10)) == 1
    store.close()
