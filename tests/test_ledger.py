"""The ledger: received = stored + sampled + rejected + deduplicated + quarantined + in the WAL, whenever one looks."""

import random
import threading
from collections import Counter
from pathlib import Path

from frame_samples import FakeStore, frame, until
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from collector.frames import Frame, read_frames
from collector.ledger import Ledger
from collector.loader import Loader
from collector.quarantine import Quarantine
from collector.wal import Wal
from storage.errors import DataError

ENDS = ("stored", "sampled", "rejected", "deduplicated", "quarantined")


def scrape(ledger: Ledger) -> dict[str, dict[str, float]]:
    """tenant -> name without `spanhouse_spans_` -> value, as a Prometheus server reads it."""
    tenants: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(generate_latest(ledger.registry).decode()):
        for sample in family.samples:
            if sample.name.startswith("spanhouse_spans_"):
                name = sample.name.removeprefix("spanhouse_spans_").removesuffix("_total")
                tenants.setdefault(sample.labels["tenant"], {})[name] = sample.value
    return tenants


def test_names_and_values_of_the_counters() -> None:
    ledger = Ledger()
    ledger.admitted("acme", received=10, rejected=2)
    ledger.admitted("acme", received=5, deduplicated=5)
    ledger.recovered("acme", 7)
    ledger.replayed("acme", 1)
    ledger.stored("acme", 11, sampled=2)
    ledger.quarantined("acme", 3)
    ledger.stored("other", 0)
    assert scrape(ledger)["acme"] == {
        "received": 23, "stored": 9, "sampled": 2, "rejected": 2, "deduplicated": 5, "quarantined": 3, "in_wal": 2,
    }  # fmt: skip
    assert set(scrape(ledger)["other"].values()) == {0}


def test_every_metric_has_a_name_of_ours_and_a_help(tmp_path: Path) -> None:
    ledger = Ledger()
    quarantine = Quarantine(tmp_path / "quarantine", ledger)
    wal = Wal(tmp_path / "wal", ledger)
    ledger.refused("WalFull")
    families = list(text_string_to_metric_families(generate_latest(ledger.registry).decode()))
    wal.release()
    assert {"spanhouse_spans_received", "spanhouse_refusals", "spanhouse_wal_bytes", "spanhouse_quarantine_bytes"} <= {
        family.name for family in families
    }
    for family in families:
        assert family.name.startswith("spanhouse_")
        assert family.documentation.endswith(".")
    assert quarantine.bytes_on_disk() == 0


def test_the_equation_holds_at_every_scrape_under_load(tmp_path: Path) -> None:
    """Real WAL, loader and quarantine; four senders; one frame in thirty is bad. Scraped all the while."""
    bad: set[bytes] = set()

    def fail(path: Path, token: str) -> None:
        if any(stored.digest in bad for stored in read_frames(path)):
            raise DataError("cannot parse")

    ledger = Ledger()
    quarantine = Quarantine(tmp_path / "quarantine", ledger)
    wal = Wal(tmp_path / "wal", ledger, segment_bytes_max=20_000, flush_interval_s=0.02)
    store = FakeStore(fail)
    loader = Loader(wal, store.load, quarantine, ledger)
    loader.start()
    sent: Counter[str] = Counter()
    lock = threading.Lock()

    def send(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            each = frame(chance.randint(1, 5), tenant=chance.choice(["acme", "default"]), filler_bytes=50)
            if chance.random() < 1 / 30:
                bad.add(each.digest)
            rejected, deduplicated = chance.randint(0, 2), chance.choice([0, 0, 0, 4])
            deliver(each, rejected)
            if deduplicated:
                ledger.admitted(each.tenant, received=deduplicated, deduplicated=deduplicated)
            with lock:
                sent[each.tenant] += each.items + rejected + deduplicated

    def deliver(each: Frame, rejected: int) -> None:
        future = wal.append(each)
        future.add_done_callback(
            lambda done: ledger.admitted(each.tenant, received=each.items + rejected, rejected=rejected)
        )
        future.result(10)

    senders = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
    for thread in senders:
        thread.start()
    last: dict[str, dict[str, float]] = {}
    scrapes = 0
    while any(thread.is_alive() for thread in senders):
        now = scrape(ledger)
        for tenant, counts in now.items():
            assert counts["received"] == sum(counts[name] for name in ENDS) + counts["in_wal"]
            assert counts["in_wal"] >= 0
            for name in ("received", *ENDS):
                assert counts[name] >= last.get(tenant, {}).get(name, 0), f"{name} is a counter"
        last = now
        scrapes += 1
    assert scrapes > 10
    until(lambda: all(counts["in_wal"] == 0 for counts in scrape(ledger).values()))
    wal.close()
    assert loader.stop(10)
    wal.release()
    end = scrape(ledger)
    assert {tenant: counts["received"] for tenant, counts in end.items()} == dict(sent)
    assert {tenant: counts["stored"] for tenant, counts in end.items()} == dict(store.tenants)
    in_quarantine: Counter[str] = Counter()
    for entry in quarantine.page(limit=1000):
        in_quarantine[entry.tenant] += entry.spans
    assert {tenant: counts["quarantined"] for tenant, counts in end.items()} == dict(in_quarantine)
    assert sum(in_quarantine.values()) > 0


def test_in_the_wal_is_what_lies_there(tmp_path: Path) -> None:
    """Counted a second way: from the files, at a moment when nothing moves, before and after a restart."""
    for _ in range(2):
        ledger = Ledger()
        wal = Wal(tmp_path / "wal", ledger, flush_interval_s=3600)
        for tenant, spans in (("acme", 3), ("default", 2), ("acme", 4)):
            wal.append(frame(spans, tenant=tenant)).result(10)
            ledger.admitted(tenant, received=spans)
        lying: Counter[str] = Counter()
        for path in (tmp_path / "wal").glob("*.*"):
            if path.suffix in (".open", ".wal"):
                for stored in read_frames(path):
                    lying[stored.tenant] += stored.items
        assert {tenant: spans.in_wal for tenant, spans in ledger.spans().items()} == dict(lying)
        wal.release()
    assert lying == {"acme": 14, "default": 4}
