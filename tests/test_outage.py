"""Nodes of a real cluster are killed under load, one after the other and then all: what was acknowledged is there once.

The same program measures it at length: `python -m benchmarks.outage`, whose figures are in docs/benchmarks.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from store import FOOTING, clear, server

CONTROL = os.environ.get("CLICKHOUSE_CONTROL")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        FOOTING.cluster is None or CONTROL is None,
        reason="needs a cluster to kill: CLICKHOUSE_NODES, and CLICKHOUSE_CONTROL, a command that stops and restarts",
    ),
]


@pytest.mark.timeout(900)
def test_every_acknowledged_span_is_stored_once(tmp_path: Path) -> None:
    engine = server()
    clear(engine)
    engine.close()
    options = ["--node-s=4", "--away-s=15", "--spans-per-s=800", f"--directory={tmp_path}"]
    command = [sys.executable, "-m", "benchmarks.outage", *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout[done.stdout.index("\n{\n") :])
    assert found["acknowledged"] > 10_000
    counts = {"stored", "different", "in_summaries"}
    assert found["of_each_node"] == [dict.fromkeys(sorted(counts), found["acknowledged"])] * 4
    one_by_one = [phase for phase in found["phases"] if phase["name"].startswith("n")]
    assert len(one_by_one) == 4
    for phase in one_by_one:
        assert phase["acknowledged_spans"] > 0
        assert phase["queries"] > phase["failed_queries"]
        assert phase["longest_pause_of_acks_s"] < 15
