"""The ledger: received = stored + sampled + rejected + deduplicated + quarantined + in the WAL.

That holds for each tenant, at every scrape.

Owns the counters of spans and of log records and the registry that `/metrics` shows. Called from the receivers'
threads, the WAL's committer and the loader; one lock makes every call one step, so a scrape never sees half of one.

Counters start at zero with the process. What the last one left in the WAL is received again, from the WAL; what is
replayed from the quarantine is received again as well, since it was already counted as quarantined.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from collector.frames import Signal

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

_ITEMS: dict[Signal, tuple[str, str]] = {
    "traces": ("spanhouse_spans", "Spans"),
    "logs": ("spanhouse_log_records", "Log records"),
}
_HELP = {
    "received": "that arrived, those found in the WAL at start and those replayed from the quarantine included.",
    "stored": "that are on disk in the store.",
    "sampled": "that were left out with their traces by the sampling rules.",
    "rejected": "that were refused by themselves and named to the sender as a partial success.",
    "deduplicated": "of requests that had been received before and were acknowledged again without being stored.",
    "quarantined": "of requests that the store cannot load; never taken back when they are replayed or dropped.",
}
_IN_WAL_HELP = "on disk in the WAL: received, and neither stored, sampled, rejected, deduplicated nor quarantined."


@dataclass(slots=True)
class Counts:
    """Counts of one tenant's spans, or log records, since the process started."""

    received: int = 0
    stored: int = 0
    sampled: int = 0
    rejected: int = 0
    deduplicated: int = 0
    quarantined: int = 0

    @property
    def in_wal(self) -> int:
        """Those that were received and have not come to an end yet."""
        ended = self.stored + self.sampled + self.rejected + self.deduplicated + self.quarantined
        return self.received - ended


class Ledger(Collector):
    """Counts spans and log records per tenant; `registry` holds these counters and the process's other metrics."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Signal, dict[str, Counts]] = {signal: {} for signal in _ITEMS}
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.refusals = Counter(
            "spanhouse_refusals", "Requests that were refused, by reason.", ["reason"], registry=self.registry
        )
        self.sync_seconds = self._histogram(
            "spanhouse_wal_sync_seconds", "Seconds to make one group of frames durable."
        )
        self.load_seconds = self._histogram("spanhouse_load_seconds", "Seconds of one successful load into the store.")
        self.load_failures = Counter(
            "spanhouse_load_failures", "Loads that failed, by reason.", ["reason"], registry=self.registry
        )
        self.decisions = Counter(
            "spanhouse_sampling_traces",
            "Traces that the sampling rules decided, by rule and outcome: `kept` or `left out`.",
            ["rule", "outcome"],
            registry=self.registry,
        )

    def admitted(
        self, tenant: str, *, received: int, rejected: int = 0, deduplicated: int = 0, signal: Signal = "traces"
    ) -> None:
        """Count one acknowledged request: all its items as received, and those of them that go no further.

        The remainder is in the WAL, so this is to be called when the frame is durable (a done callback of the future
        that `append` returns), and not at all when the append failed: that request was not received.
        """
        with self._lock:
            counts = self._of(tenant, signal)
            counts.received += received
            counts.rejected += rejected
            counts.deduplicated += deduplicated

    def recovered(self, tenant: str, items: int, signal: Signal = "traces") -> None:
        """Count items found in the WAL at start: received, by the process before."""
        with self._lock:
            self._of(tenant, signal).received += items

    def replayed(self, tenant: str, items: int, signal: Signal = "traces") -> None:
        """Count items that went from the quarantine back into the WAL: received again."""
        with self._lock:
            self._of(tenant, signal).received += items

    def stored(self, tenant: str, items: int, signal: Signal = "traces", sampled: int = 0) -> None:
        """Count items that are on disk in the store and leave the WAL, those aside that were `sampled`, left out."""
        with self._lock:
            counts = self._of(tenant, signal)
            counts.stored += items - sampled
            counts.sampled += sampled

    def decided(self, rule: str, kept: int, left_out: int) -> None:
        """Count traces that a sampling rule kept and left out."""
        self.decisions.labels(rule, "kept").inc(kept)
        self.decisions.labels(rule, "left out").inc(left_out)

    def quarantined(self, tenant: str, items: int, signal: Signal = "traces") -> None:
        """Count items that are on disk in the quarantine and leave the WAL."""
        with self._lock:
            self._of(tenant, signal).quarantined += items

    def refused(self, reason: str) -> None:
        """Count one refused request. `reason` is one of a small fixed set: the name of a class of refusal."""
        self.refusals.labels(reason).inc()

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read at every scrape; `read` runs on the scraping thread."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def spans(self) -> dict[str, Counts]:
        """A copy of all counts of spans by tenant, taken in one step."""
        return self._copy("traces")

    def log_records(self) -> dict[str, Counts]:
        """The same of log records."""
        return self._copy("logs")

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees of the spans and log records (called by the registry)."""
        for signal, (prefix, items) in _ITEMS.items():
            tenants = self._copy(signal)
            for name, help_text in _HELP.items():
                counter = CounterMetricFamily(f"{prefix}_{name}", f"{items} {help_text}", labels=["tenant"])
                for tenant, counts in tenants.items():
                    counter.add_metric([tenant], getattr(counts, name))
                yield counter
            in_wal = GaugeMetricFamily(f"{prefix}_in_wal", f"{items} {_IN_WAL_HELP}", labels=["tenant"])
            for tenant, counts in tenants.items():
                in_wal.add_metric([tenant], counts.in_wal)
            yield in_wal

    def _copy(self, signal: Signal) -> dict[str, Counts]:
        with self._lock:
            return {tenant: replace(counts) for tenant, counts in self._counts[signal].items()}

    def _of(self, tenant: str, signal: Signal) -> Counts:
        return self._counts[signal].setdefault(tenant, Counts())

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, buckets=_SECONDS, registry=self.registry)
