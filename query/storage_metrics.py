"""The gauges of the store's size and of the room on its disks, as they were at the last look: a scrape asks nobody."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.volumes import Disk, Rows

HOLDS = {"spans": "skeleton", "content": "content", "records": "content"}
"""All other tables hold what follows from these, or what was said of them."""

Seen = tuple[dict[str, Rows], Sequence[Disk]]


class StoreMetrics(Collector):
    """`seen` gives tables and disks of the last look."""

    def __init__(self, seen: Callable[[], Seen]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """What a scrape sees (called by the registry)."""
        tables, disks = self._seen()
        stored = GaugeMetricFamily(
            "spanhouse_store_bytes", "Bytes on disk of a table of the store, one copy.", labels=["table", "holds"]
        )
        for name, table in tables.items():
            stored.add_metric([name, HOLDS.get(name, "other")], table.stored_bytes)
        yield stored
        free = GaugeMetricFamily(
            "spanhouse_disk_free_bytes", "Bytes free on a disk of the store.", labels=["host", "disk"]
        )
        for disk in disks:
            free.add_metric([disk.host, disk.name], disk.free_bytes)
        yield free
