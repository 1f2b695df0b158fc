"""Links through the registry: a trace of a run or a logged model belongs to its registered model version, too.

The settling thread asks what links imply, and is answered from memory; a thread of the registry's brings what the
registry says, keeps it in the store, and has the traces settled again that it is news for.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from query.registry import Registry
from query.registry_lookup import Link as Key
from storage.engine import Engine
from storage.linking import Link

KEPT_MAX = 20_000
TRACES_MAX = 50_000
"""Traces of a thing, the newest, that are settled again when the registry says something new of it."""
ASKED_MAX = 20_000
"""Traces that were asked about last: their links may not be in the store yet."""
PROVENANCE = "registry"
_THROUGH = ("logged_model", "run")
"""In this order: a logged model says more precisely than its run which version it is."""

_LOAD = f"""SELECT toString(Entity), Id, Links.Entity, Links.Id, Links.Version, Tenants
FROM spanhouse.implied FINAL
ORDER BY Updated DESC
LIMIT {KEPT_MAX}"""
_TRACES = """SELECT TraceId
FROM spanhouse.links FINAL
WHERE Entity = {entity:String} AND Id = {id:String} AND Deleted = 0
ORDER BY Start DESC
LIMIT {limit:UInt64}"""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    """What a thing implies as far as known, and whose traces are linked to it."""

    implied: tuple[Key, ...] = ()
    tenants: set[str] = field(default_factory=set)


class ImpliedLinks:
    """What the links of a trace imply. `touch` is told of traces that something is news for."""

    def __init__(self, engine: Engine, registry: Registry, touch: Callable[[str, Iterable[bytes]], None]) -> None:
        self._engine = engine
        self._registry = registry
        self._touch = touch
        self._lock = threading.Lock()
        self._telling = threading.Lock()
        """Held while something new is kept and told, once though two threads brought it."""
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._asked: deque[tuple[tuple[str, str], str, bytes]] = deque(maxlen=ASKED_MAX)
        for entity, id_, *links, tenants in reversed(engine.rows(_LOAD)):
            self._kept[entity, id_] = _Kept(tuple(zip(*links, strict=True)), set(tenants))
        registry.on_found = self._found

    def __call__(self, tenant: str, trace_id: bytes, links: Sequence[Link]) -> list[Link]:
        """Links to add to those of a trace: only of entities of which it has none. Never waits.

        What the registry has not said yet is missing; when it says it, the trace is touched.
        """
        added: list[Link] = []
        has = {link.entity for link in links}
        if self._registry.tells_where:
            for link in links:
                if link.entity == "model":
                    self._registry.watch("model", link.id, link.version)
        for entity in _THROUGH:
            implied = [one for link in links if link.entity == entity for one in self._of(tenant, trace_id, link)]
            added += [Link(*one, PROVENANCE) for one in dict.fromkeys(implied) if one[0] not in has]
            has |= {one[0] for one in implied}
        return added

    def _of(self, tenant: str, trace_id: bytes, link: Link) -> tuple[Key, ...]:
        key = link.entity, link.id
        with self._lock:
            self._asked.append((key, tenant, trace_id))
            kept = self._kept.setdefault(key, _Kept())
            kept.tenants.add(tenant)
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
            implied = kept.implied
        self._registry.watch(*key)
        return implied

    def _found(self, key: Key, implied: tuple[Key, ...]) -> None:
        """The registry said what a thing implies. Raises what the engine raises; the registry will say it again."""
        with self._telling:
            self._tell(*key[:2], implied)

    def _tell(self, entity: str, id_: str, implied: tuple[Key, ...]) -> None:
        with self._lock:
            kept = self._kept.get((entity, id_))
            if kept is None or kept.implied == implied:
                return
            tenants = sorted(kept.tenants)
        stored = {tenant: self._traces(tenant, entity, id_) for tenant in tenants}
        row = (entity, id_, list(implied), tenants, time.time_ns() // 1000)
        self._engine.insert("implied", ("Entity", "Id", "Links", "Tenants", "Updated"), [row])
        with self._lock:
            kept.implied = implied
            for one, tenant, trace_id in self._asked:
                if one == (entity, id_):
                    stored.setdefault(tenant, set()).add(trace_id)
        for tenant, traces in stored.items():
            _log.info("%s %s: %d traces of %s have new links", entity, id_, len(traces), tenant)
            self._touch(tenant, traces)

    def _traces(self, tenant: str, entity: str, id_: str) -> set[bytes]:
        columns = self._engine.read(tenant, _TRACES, {"entity": entity, "id": id_, "limit": TRACES_MAX})
        return set(columns[0]) if columns else set()
