"""What one trace belongs to, for its answer: from the spans that were read for it, settled or not yet.

Runs on the threads of the API.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from storage.annotations import DESCRIBED, Annotations, explicit_links
from storage.deployments import Deployments
from storage.engine import Engine
from storage.linking import ENTITIES, SAID_KEYS, VERSIONED, Link, Origin, resolve, with_versions
from storage.settlement import Imply
from storage.spans import Span

Describe = Callable[[str, str, str], Mapping[str, Any] | None]
"""What is known of an entity by its sort, id and version; None if nothing is."""

_NAMES = {"model": "model_version"}
_SAID = frozenset(SAID_KEYS)


class TraceLinks:
    """Resolves the links of a trace as the settling does, and describes what they lead to.

    `imply` adds what follows from them, `describe` says what a registry knows.
    """

    def __init__(
        self,
        engine: Engine,
        deployments: Deployments,
        annotations: Annotations,
        *,
        imply: Imply | None = None,
        describe: Describe | None = None,
    ) -> None:
        self._engine = engine
        self._deployments = deployments
        self._annotations = annotations
        self._imply = imply
        self._describe = describe

    def json(self, tenant: str, trace_id: bytes, spans: Sequence[Span]) -> dict[str, Any]:
        """The object `links` of the trace's answer. Raises what the engine raises."""

        def metadata(entity: str, id_: str, version: str) -> dict[str, Any] | None:
            return self._annotations.entity(tenant, entity, id_, version) if entity in DESCRIBED else None

        return links_json(self.links_of(tenant, trace_id, spans), self._describe, metadata)

    def links_of(self, tenant: str, trace_id: bytes, spans: Sequence[Span]) -> list[Link]:
        """The links, by entity; agents by the start of their first span, all else by id.

        Raises what the engine raises.
        """
        ordered = sorted(spans, key=_start)
        agents = list(dict.fromkeys(with_versions(list(_agents(ordered)))))
        origins = {id(span.resource): Origin(span.service, span.resource.said) for span in spans}
        links = resolve(
            explicit=explicit_links(self._engine, tenant, [trace_id]).get(trace_id, ()),
            said=_said(spans),
            agents=agents,
            origins=list(origins.values()),
            deployments=self._deployments.of(tenant),
            start_unix_nano=_start(ordered[0]) if ordered else 0,
        )
        if self._imply is not None:
            links += self._imply(tenant, trace_id, links)
        place = {("agent", *agent): number for number, agent in enumerate(agents)}
        return sorted(links, key=lambda link: (ENTITIES.index(link.entity), place.get(link[:3], 0)))


def links_json(
    links: Iterable[Link], describe: Describe | None = None, metadata: Describe | None = None
) -> dict[str, Any]:
    """The object `links` of a trace: one entry for each sort of entity, what there is besides in its `others`.

    `describe` says what a registry knows, `metadata` what somebody said by API.
    """
    found: dict[str, Any] = {}
    for link in links:
        entry = _entry(link, describe, metadata)
        first = found.setdefault(_NAMES.get(link.entity, link.entity), entry)
        if first is not entry:
            first.setdefault("others", []).append(entry)
    return found


def _entry(link: Link, describe: Describe | None, metadata: Describe | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name" if link.entity in VERSIONED else "id": link.id}
    if link.entity in VERSIONED:
        entry["version"] = link.version or None
    entry["provenance"] = link.provenance
    for key, knows in (("metadata", metadata), ("registry", describe)):
        known = knows(link.entity, link.id, link.version) if knows else None
        if known is not None:
            entry[key] = known
    return entry


def _start(span: Span) -> int:
    """Where the store has the span: its start, or what comes nearest to it."""
    return span.start_time_unix_nano or span.end_time_unix_nano or span.received_unix_nano


def _agents(spans: Iterable[Span]) -> Iterable[tuple[str, str]]:
    for span in spans:
        if name := span.said.get("agent_name"):
            yield name, span.said.get("agent_version", "")


def _said(spans: Iterable[Span]) -> list[dict[str, str]]:
    """What spans say of links, each map once."""
    maps = {tuple((key, value) for key, value in span.said.items() if key in _SAID) for span in spans}
    return [dict(pairs) for pairs in sorted(maps) if pairs]
