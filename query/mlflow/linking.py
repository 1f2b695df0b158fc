"""Links of many traces in few writes. Runs on the threads of the API.

A TraceInfo names half a dozen things that its trace belongs to, and a write takes some 10 ms, whatever the number of
its traces. An MLflow program ends its traces on ten threads, and most of them belong to the same run, model and user:
what they wait to write is written together, once for each thing.
"""

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol

SOURCE = "mlflow"
"""Who made the links that come from here."""
BATCH_MAX = 200
"""Traces whose links are written together."""

Link = tuple[str, str, str]
"""Entity, id and version."""


class LinkStore(Protocol):
    """Where links that somebody made are kept: storage.annotations.Annotations."""

    def link(  # noqa: PLR0917 (a link has so many sides)
        self, tenant: str, trace_ids: Iterable[bytes], entity: str, id: str, version: str, source: str
    ) -> object:
        """Link traces to an entity. On return it is on disk."""
        ...

    def link_all(self, tenant: str, links: Iterable[tuple[bytes, str, str, str]], source: str) -> object:
        """Link traces: id, entity, id of that and version of each. On return it is on disk."""
        ...


class Linking:
    """Links traces. On return from either way it is on disk."""

    def __init__(self, store: LinkStore) -> None:
        self._store = store
        self._waiting: list[tuple[str, bytes, Sequence[Link], Future[None]]] = []
        self._queue = threading.Lock()
        self._writing = threading.Lock()

    def to_one(self, tenant: str, trace_ids: Iterable[bytes], link: Link) -> None:
        """Link traces to one thing."""
        self._store.link(tenant, trace_ids, *link, SOURCE)

    def of_one(self, tenant: str, trace_id: bytes, links: Sequence[Link]) -> None:
        """Link one trace to what it belongs to. Whoever comes to write first writes for all who wait."""
        written: Future[None] = Future()
        with self._queue:
            self._waiting.append((tenant, trace_id, links, written))
        with self._writing:
            while not written.done():
                self._write_waiting()
        written.result()

    def _write_waiting(self) -> None:
        with self._queue:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
        by_tenant: dict[str, list[tuple[bytes, str, str, str]]] = {}
        for tenant, trace_id, links, _ in batch:
            by_tenant.setdefault(tenant, []).extend((trace_id, *link) for link in links)
        try:
            for tenant, linked in by_tenant.items():
                self._store.link_all(tenant, linked, SOURCE)
        except Exception as error:
            for *_, written in batch:
                written.set_exception(error)
        else:
            for *_, written in batch:
                written.set_result(None)
