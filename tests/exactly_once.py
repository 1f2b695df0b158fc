"""Load on the real program, and the question after every failure: is what was acknowledged stored, and once?"""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from program import Program
from prometheus_client.parser import text_string_to_metric_families
from sender import Exporter, Receivers

LOADED_S_MAX = 60

# Runs in a process of its own, since chDB allows one process a directory: what lies in the tables, unseen by any query
# that removes duplicates. Rows of the summary are added up, as the list of traces does.
_READ_STORE = """
import json, sys
from pathlib import Path
from storage.embedded import Embedded
from storage.vocabulary import load

engine = Embedded(Path(sys.argv[1]), load())
spans = "SELECT Tenant, lower(hex(TraceId)), toUInt32(reinterpretAsUInt64(reverse(SpanId))) FROM spanhouse.spans"
sums = "SELECT Tenant, lower(hex(TraceId)), sum(Spans) FROM spanhouse.traces GROUP BY Tenant, TraceId"
content = "SELECT Tenant, lower(hex(TraceId)), count() FROM spanhouse.content GROUP BY Tenant, TraceId"
json.dump([engine.rows(sql) for sql in (spans, sums, content)], sys.stdout)
"""


def exporters(seed: int = 0) -> list[Exporter]:
    """Two for each protocol."""
    return [Exporter(1, "grpc", seed), Exporter(2, "grpc", seed), Exporter(3, "http", seed), Exporter(4, "http", seed)]


@contextmanager
def under_load(receivers: Receivers, senders: Sequence[Exporter]) -> Iterator[threading.Event]:
    """Senders at work within the block, which gets an event that is set at every acknowledgement.

    Leaving it waits until every request is acknowledged, or the connection is lost.
    """
    acknowledged, stop = threading.Event(), threading.Event()
    with ThreadPoolExecutor(len(senders)) as pool:
        running = [pool.submit(sender.run, receivers, acknowledged, stop) for sender in senders]
        try:
            yield acknowledged
        finally:
            stop.set()
        for each in running:
            each.result(60)


def ledger(program: Program) -> dict[str, Counter]:
    """The span counters by tenant: received, stored, sampled, rejected, deduplicated, quarantined, in_wal."""
    counts: dict[str, Counter] = {}
    for family in text_string_to_metric_families(httpx.get(f"{program.http}/metrics").text):
        for sample in family.samples:
            if sample.name.startswith("spanhouse_spans_") and not sample.name.endswith("_created"):
                name = sample.name.removeprefix("spanhouse_spans_").removesuffix("_total")
                counts.setdefault(sample.labels["tenant"], Counter())[name] = int(sample.value)
    return counts


def check_ledger(program: Program) -> None:
    """It adds up, and nothing was refused or put aside."""
    for tenant, counts in ledger(program).items():
        ends = ("stored", "sampled", "rejected", "deduplicated", "quarantined", "in_wal")
        assert counts["received"] == sum(counts[end] for end in ends), (tenant, counts)
        assert counts["rejected"] == counts["quarantined"] == 0, (tenant, counts)


def wait_until_loaded(program: Program) -> None:
    """Wait until the log is empty."""
    deadline = time.monotonic() + LOADED_S_MAX
    while any(counts["in_wal"] for counts in ledger(program).values()):
        assert time.monotonic() < deadline, ledger(program)
        time.sleep(0.1)


def check_stored_once(data_dir: Path, senders: Sequence[Exporter]) -> str:
    """Every acknowledged span is in the store once, and so is its content, and its trace's summary counts it once.

    The program must have ended. Returns what was counted, for people.
    """
    result = subprocess.run(
        [sys.executable, "-c", _READ_STORE, data_dir / "store"],
        check=False, capture_output=True, text=True, timeout=120, cwd=data_dir,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    spans, sums, content = json.loads(result.stdout)
    requests = [(sender.tenant, request) for sender in senders for request in sender.acknowledged]
    expected = Counter(
        (tenant, request.trace_id.hex(), number)
        for tenant, request in requests
        for number in range(1, request.spans + 1)
    )
    found = Counter(map(tuple, spans))
    lost, more = expected - found, found - expected
    assert not lost, f"{lost.total()} of {len(expected)} acknowledged spans are not stored: {list(lost)[:5]}"
    assert not more, f"{more.total()} spans are stored more than once: {list(more.items())[:5]}"
    assert {(tenant, trace): count for tenant, trace, count in sums} == {
        (tenant, request.trace_id.hex()): request.spans for tenant, request in requests
    }, "the summary counts spans twice, or not at all"
    assert {(tenant, trace): count for tenant, trace, count in content} == {
        (tenant, request.trace_id.hex()): request.spans // 2 for tenant, request in requests
    }, "content is stored twice, or not at all"
    sent_again = sum(sender.sent_again for sender in senders)
    return f"{len(requests)} requests, {len(expected)} spans, {sent_again} requests sent again"
