"""What settling takes, and the pages that read what was settled: `python -m benchmarks.settling`.

Runs on the engine alone: agent spans are loaded and then settled, once, by the settler that `serve` runs. For the pages
their facts are copied under other trace ids, as one run's, until that has as many traces as asked. Arguments: the spans
(300000) and the traces of the run (100000).
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import payloads
from benchmarks.ceiling import write_segments
from benchmarks.meter import Meter, quantile
from query.entities import Entities, Entity
from storage.annotations import Annotations
from storage.deployments import Deployments
from storage.embedded import Embedded
from storage.engine import Engine
from storage.migrate import migrate
from storage.prices import Prices
from storage.settling import Settler
from storage.vocabulary import load

RUN = "benchmark"
PAGES = 30
_COPIES = f"""INSERT INTO spanhouse.facts
SELECT facts.* REPLACE (
    randomFixedString(16) AS TraceId,
    arrayMap(l -> (l.Entity, if(l.Entity = 'run', '{RUN}', l.Id), l.Version, l.Provenance), Links) AS Links
)
FROM spanhouse.facts
CROSS JOIN numbers({{copies:UInt64}}) AS n
LIMIT {{traces:UInt64}}"""


def main() -> None:
    """Print both, a line each."""
    spans, traces = (int(given) for given in (*sys.argv[1:], *("300000", "100000")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="spanhouse-bench-") as directory:
        _settle(Path(directory), spans, traces)


def _settle(directory: Path, spans: int, traces: int) -> None:
    payload = payloads.write(directory / "agent", "agent", spans, seed=1)
    vocabulary = load()
    engine, meter = Embedded(directory / "store", vocabulary), Meter(os.getpid())
    migrate(engine)
    deployments = Deployments(engine)
    settler = Settler(engine, vocabulary, deployments, Prices(None).cost)
    watched = settler.watched(engine.load)
    for segment in write_segments(directory, payload):
        watched(segment, segment.stem)
    meter.wait_for_rest(120)
    before = meter.cpu()
    settler.start()
    while not settler.idle:
        time.sleep(0.1)
    meter.wait_for_rest(120)
    cpu = (meter.cpu() - before).all_s
    settled, size = _stored(engine)
    print(
        f"{payload.spans} agent spans, {settled} traces: {cpu / payload.spans * 1e6:.1f} CPU s a million spans settled"
    )
    print(f"facts and links: {size / settled:.0f} bytes a trace, {size / payload.spans:.1f} a span")
    settler.stop()

    engine.command(_COPIES, {"copies": traces // settled + 1, "traces": traces})
    meter.wait_for_rest(120)
    entities = Entities(engine, Annotations(engine, lambda *_: None))
    page = Entity("default", "run", RUN)
    for name, ask in (
        ("page", lambda: entities.page(page)),
        ("traces", lambda: entities.traces(page, None, 100, None)),
    ):
        times_ms = [1000 * _seconds(ask) for _ in range(PAGES)]
        p50, p99 = (quantile(times_ms, share) for share in (0.5, 0.99))
        print(f"{name} of a run of {traces} traces: p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    engine.close()


def _stored(engine: Engine) -> tuple[int, int]:
    """Settled traces, and the bytes of all tables that settling writes."""
    [[settled]] = engine.rows("SELECT count() FROM spanhouse.facts FINAL")
    [[size]] = engine.rows(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'spanhouse'"
        " AND table IN ('facts', 'links', 'agent_links', 'seen')"
    )
    return int(settled), int(size)


def _seconds(ask: Callable[[], object]) -> float:
    start_s = time.monotonic()
    ask()
    return time.monotonic() - start_s


if __name__ == "__main__":
    main()
