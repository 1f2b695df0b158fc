"""What somebody said afterwards: links of traces to what they belong to, and metadata of runs and model versions.

Called from the threads of the API; writes take turns, so that a change sees what it changes. A link may come before its
trace.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import orjson

from storage.engine import Engine
from storage.linking import ENTITIES, Link
from storage.row_clock import RowClock

MLFLOW = "mlflow"
DESCRIBED = ("run", "model")
"""Sorts of entities of which somebody may keep metadata here."""
WRITE_ROWS_MAX = 10_000
READ_TRACES_MAX = 10_000

TRACES = """(
        SELECT toFixedString(unhex(substring({traces:String}, number * 32 + 1, 32)), 16)
        FROM numbers(intDiv(length({traces:String}), 32))
    )"""
"""A set of traces in SQL: `traces` are ids in hex, one after the other."""

_LINKS = ("Tenant", "TraceId", "Entity", "Slot", "Id", "Version", "Source", "Deleted", "Updated")
_ENTITIES = ("Tenant", "Entity", "Id", "Version", "Metadata", "Deleted", "Updated")
_READ = f"""SELECT TraceId, toString(Entity), Slot, Id, Version
FROM spanhouse.explicit_links FINAL
WHERE TraceId IN {TRACES} AND Deleted = 0"""
_METADATA = """SELECT Id, Version, Metadata
FROM spanhouse.entities FINAL
WHERE Entity = {entity:String} AND Id IN {ids:Array(String)} AND Deleted = 0"""


def traces_hex(trace_ids: Iterable[bytes]) -> str:
    """The parameter of TRACES."""
    return "".join(trace_id.hex() for trace_id in trace_ids)


def explicit_links(engine: Engine, tenant: str, trace_ids: Iterable[bytes]) -> dict[bytes, list[Link]]:
    """Links that somebody made of these traces. Raises what Engine.read raises."""
    found: dict[bytes, list[Link]] = {}
    for trace_id, entity, _, id_, version in _read(engine, tenant, trace_ids):
        found.setdefault(trace_id, []).append(Link(entity, id_, version, "api"))
    return found


def _read(engine: Engine, tenant: str, trace_ids: Iterable[bytes]) -> Iterable[tuple[bytes, str, str, str, str]]:
    columns = engine.read(tenant, _READ, {"traces": traces_hex(trace_ids)})
    for trace_id, *texts in zip(*columns, strict=True):
        entity, slot, id_, version = (text.decode(errors="replace") for text in texts)
        yield trace_id, entity, slot, id_, version


class Annotations:
    """Links and metadata of a store. `touch` is told the tenant and the traces of which a link changed."""

    def __init__(self, engine: Engine, touch: Callable[[str, Iterable[bytes]], None]) -> None:
        self._engine = engine
        self._touch = touch
        self._writing = threading.Lock()
        self._clock = RowClock.of(engine, 1_000_000, "Updated", "explicit_links", "entities")

    def link(  # noqa: PLR0917 (a link has so many sides)
        self, tenant: str, trace_ids: Iterable[bytes], entity: str, id: str, version: str = "", source: str = "api"
    ) -> None:
        """Link traces to an entity. See `link_all`."""
        self.link_all(tenant, [(trace_id, entity, id, version) for trace_id in trace_ids], source)

    def link_all(self, tenant: str, links: Iterable[tuple[bytes, str, str, str]], source: str = "api") -> None:
        """Link traces: trace id, entity, id, version of each. On return it is on disk.

        A link takes the place of the trace's link to another entity of that sort. Prompts stay beside each other, a
        version of each; so do runs that MLflow links, since there a trace has several, until somebody says otherwise
        by API. Of several in `links` the last counts. Raises StoreUnavailable; the same call may then be made again.
        """
        rows = {}
        replaced: dict[bytes, None] = {}
        for trace_id, entity, id_, version in links:
            beside = entity == "prompt" or (entity == "run" and source == MLFLOW)
            slot = id_ if beside else ""
            rows[trace_id, entity, slot] = (trace_id, entity, slot, id_, version, source, 0)
            if entity == "run" and not beside:
                replaced[trace_id] = None
        with self._writing:
            self._remove(tenant, list(replaced), lambda entity, slot, _: entity == "run" and slot != "")
            self._write(tenant, rows.values())
        self._touch(tenant, {trace_id for trace_id, _, _ in rows})

    def unlink(
        self, tenant: str, trace_ids: Iterable[bytes], entities: Collection[str] = ENTITIES, id: str = ""
    ) -> int:
        """Take back links that somebody made, those to one `id` or, without it, all of these sorts. Gives their number.

        What spans, resources and headers say counts again.
        """
        traces = list(dict.fromkeys(trace_ids))
        with self._writing:
            changed = self._remove(tenant, traces, lambda one, _, found: one in entities and id in ("", found))
        self._touch(tenant, set(changed))
        return len(changed)

    def _remove(self, tenant: str, traces: Sequence[bytes], which: Callable[[str, str, str], bool]) -> list[bytes]:
        """Delete links for which `which` of entity, slot and id holds. Gives the trace of each."""
        changed: list[bytes] = []
        for at in range(0, len(traces), READ_TRACES_MAX):
            found = _read(self._engine, tenant, traces[at : at + READ_TRACES_MAX])
            doomed = [(t, e, slot, id_, version, "", 1) for t, e, slot, id_, version in found if which(e, slot, id_)]
            self._write(tenant, doomed)
            changed += [row[0] for row in doomed]
        return changed

    def _write(self, tenant: str, links: Iterable[tuple[bytes, str, str, str, str, str, int]]) -> None:
        updated_us = self._clock.next()
        rows = [(tenant, *link, updated_us) for link in links]
        for at in range(0, len(rows), WRITE_ROWS_MAX):
            self._engine.insert("explicit_links", _LINKS, rows[at : at + WRITE_ROWS_MAX])

    def put_entity(self, tenant: str, entity: str, id: str, version: str, metadata: Mapping[str, Any]) -> None:
        """Keep what somebody says of an entity, in place of what was said before."""
        with self._writing:
            row = (tenant, entity, id, version, orjson.dumps(dict(metadata)).decode(), 0, self._clock.next())
            self._engine.insert("entities", _ENTITIES, [row])

    def delete_entity(self, tenant: str, entity: str, id: str, version: str) -> bool:
        """Forget what was said of an entity. False if nothing was."""
        if self.entity(tenant, entity, id, version) is None:
            return False
        with self._writing:
            row = (tenant, entity, id, version, "{}", 1, self._clock.next())
            self._engine.insert("entities", _ENTITIES, [row])
        return True

    def entity(self, tenant: str, entity: str, id: str, version: str) -> dict[str, Any] | None:
        """What somebody said of an entity; None if nobody said anything."""
        return self.entities(tenant, entity, [id]).get((id, version))

    def entities(self, tenant: str, entity: str, ids: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
        """What somebody said of entities with these ids, by id and version."""
        columns = self._engine.read(tenant, _METADATA, {"entity": entity, "ids": list(ids)})
        return {
            (id_.decode(errors="replace"), version.decode(errors="replace")): orjson.loads(metadata)
            for id_, version, metadata in zip(*columns, strict=True)
        }
