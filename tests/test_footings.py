"""The comparison of collectors on one ClickHouse runs from end to end and counts right. CLICKHOUSE_URL or
CLICKHOUSE_NODES is the footing; ROTEL and OTELCOL may name the programs of other collectors."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from store import FOOTING

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # benchmarks are not installed: they are run from a clone

from benchmarks.footings import CannotMeasure, Figures, process_listening, table_of  # noqa: E402
from benchmarks.peers import PeerFailed, found, native_address, tables  # noqa: E402

COMMAND = [sys.executable, "-m", "benchmarks.footings", "--quick"]
PEERS = {"rotel": os.environ.get("ROTEL"), "otelcol": os.environ.get("OTELCOL")}
NAMES = ["spanhouse", *(name for name, path in PEERS.items() if path), *(["otelcol-disk"] if PEERS["otelcol"] else [])]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(FOOTING.urls is None, reason="needs a footing: CLICKHOUSE_URL or CLICKHOUSE_NODES is not set")
def test_a_quick_run(tmp_path: Path) -> None:
    report, data = tmp_path / "report.json", tmp_path / "data"
    data.mkdir()
    options = [f"--json={report}", f"--directory={data}", "--profile=agent", "--spans=2000"]
    options += [f"--collector={name}" for name in NAMES]
    options += [f"--{name}={path}" for name, path in PEERS.items() if path]
    done = subprocess.run([*COMMAND, *options], check=False, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(data.iterdir()) == []
    assert "| agent spans, " in done.stdout
    figures = json.loads(report.read_text())["figures"]
    assert [one["collector"] for one in figures] == NAMES
    for one in figures:
        assert one["sent_spans"] == pytest.approx(2000, abs=20)
        assert (one["lost"], one["extra"]) == (0, 0)
        assert one["accepted_spans_per_s"] >= one["queryable_spans_per_s"] > 0
        assert 0 < one["ack_p50_ms"] <= one["ack_p99_ms"]
        assert one["clickhouse_cpu_s_per_million"] > 0
        assert 24 < one["stored_bytes_per_span"] < 1000  # more than the ids, less than what came
        assert one["collector_peak_mb"] > 5
        assert one["settings"]


def test_it_says_what_it_needs() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CLICKHOUSE_")}
    done = subprocess.run(COMMAND, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "cannot measure: set CLICKHOUSE_URL" in done.stderr
    with pytest.raises(PeerFailed, match="give its path with --rotel"):
        found("rotel", "/nowhere/rotel-agent")
    with pytest.raises(PeerFailed, match="give its path with --otelcol"):
        found("otelcol-disk", "/nowhere/otelcol")


def test_the_process_behind_a_port_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        assert process_listening(port) == os.getpid()
    with pytest.raises(CannotMeasure, match=f"port {port}"):
        process_listening(port)


def test_the_native_address_is_at_the_same_host() -> None:
    assert native_address("http://10.0.0.7:8123", 9000) == "tcp://10.0.0.7:9000"


def test_tables_of_a_cluster_are_replicated_and_sharded_by_trace() -> None:
    assert all("Replicated" not in statement for statement in tables(None))
    assert not any("Distributed" in statement for statement in tables(None))
    statements = tables("spans")
    assert all("ON CLUSTER 'spans'" in statement for statement in statements)
    assert "Distributed('spans', 'otel_bench_local', 'otel_traces', cityHash64(TraceId))" in statements[-1]


def test_a_column_a_collector() -> None:
    values = dict.fromkeys(Figures.__dataclass_fields__, 0) | {"profile": "agent", "rested": True, "retries": 3}
    rows = table_of([Figures(**values | {"collector": name}) for name in ("a", "b")], "agent", "server").splitlines()
    assert rows[0] == "| agent spans, server | a | b |"
    assert "| requests sent again | 3 | 3 |" in rows
    late = table_of([Figures(**values | {"collector": "a", "rested": False})], "agent", "server")
    assert late.endswith("Merges were not done in time: a")
