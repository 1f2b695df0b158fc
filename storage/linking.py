"""What a trace belongs to: runs, experiments, model versions, sessions, agents, prompts and users, by who said so.

Pure functions. The settling thread uses them on what the engine gathered of many traces, the API on the spans of the
one trace that it shows, so that both come to the same links.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

ENTITIES = ("run", "experiment", "model", "logged_model", "prompt", "session", "agent", "user")
VERSIONED = frozenset(("model", "prompt", "agent"))
PROVENANCES = ("api", "span", "trace", "resource", "header", "baggage", "deployment")
"""Where a link comes from, in order of precedence: of an entity, what the first of them says is true."""

LINKS_OF_ENTITY_MAX = 100
"""A trace has so many links to entities of one sort; who sends more runs in a trace is not heard."""

FIELDS = {
    "run": ("run_id", ""),
    "experiment": ("experiment_id", ""),
    "model": ("model_name", "model_version"),
    "logged_model": ("model_id", ""),
    "prompt": ("prompt_name", "prompt_version"),
    "session": ("session_id", ""),
    "agent": ("agent_name", "agent_version"),
    "user": ("user_id", ""),
}
"""Canonical field of an entity's id, and that of its version."""
_PREFIXES = {"span": "", "trace": "trace.", "header": "header.", "baggage": "baggage."}
_ENVIRONMENT = "environment"
_SERVICE = "service"

SAID_KEYS = (
    _ENVIRONMENT,
    *(
        prefix + field
        for prefix in _PREFIXES.values()
        for entity, fields in FIELDS.items()
        for field in fields
        if field and (prefix or entity != "agent")
    ),
)
"""Keys of a span's canonical map that `resolve` reads. Agents are known by the spans they own: see `owners`."""

NOBODY = -1


class Link(NamedTuple):
    """A trace belongs to an entity. `version` is that of a model, a prompt or an agent, '' where nobody said it."""

    entity: str
    id: str
    version: str
    provenance: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """Service S ran model M version V from `since` until `until`, exclusive: nanoseconds since 1970.

    Environment '' is any. `until` is None while it runs. `source` is "api" or "file".
    """

    id: str
    service: str
    environment: str
    model_name: str
    model_version: str
    since_unix_nano: int
    until_unix_nano: int | None
    source: str = "api"

    def covers(self, service: str, environment: str, unix_nano: int) -> bool:
        """Whether this is what the service ran then."""
        return (
            self.service == service
            and self.environment in ("", environment)
            and self.since_unix_nano <= unix_nano
            and (self.until_unix_nano is None or unix_nano < self.until_unix_nano)
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """What wrote spans: its service, and what its resource says in canonical words."""

    service: str
    said: Mapping[str, str]

    @property
    def links(self) -> bool:
        """Whether the resource says what its traces belong to."""
        return any(name in self.said for name, _ in FIELDS.values())


def resolve(
    *,
    explicit: Iterable[Link],
    said: Sequence[Mapping[str, str]],
    agents: Iterable[tuple[str, str]],
    origins: Sequence[Origin],
    deployments: Sequence[Deployment],
    start_unix_nano: int,
) -> list[Link]:
    """The links of a trace, ordered by entity, id and version.

    `said`: what its spans say under SAID_KEYS, each map once. `agents`: names and versions that own spans. `origins`:
    what wrote its spans. `deployments`: those of the tenant.
    """
    found: dict[str, tuple[int, set[tuple[str, str]]]] = {}
    for link in explicit:
        _take(found, link.entity, 0, (link.id, link.version))
    for agent in agents:
        _take(found, "agent", _SPAN, agent)
    for one in said:
        for entity, rank, id_, version in _plan(tuple(one)):
            if one[id_]:
                _take(found, entity, rank, (one[id_], one.get(version, "")))
    for origin in origins:
        for entity, _, id_, version in _plan(tuple(origin.said)):
            _take(found, entity, _RESOURCE, (origin.said[id_], origin.said.get(version, "")))
    if deployments and "model" not in found:
        for version_run in _deployed(said, origins, deployments, start_unix_nano):
            _take(found, "model", len(PROVENANCES) - 1, version_run)
    return [
        Link(entity, *pair, PROVENANCES[rank])
        for entity, (rank, pairs) in sorted(found.items())
        for pair in (pairs if len(pairs) == 1 else _versions_known(pairs))
    ]


_SPAN, _RESOURCE = PROVENANCES.index("span"), PROVENANCES.index("resource")


def _take(found: dict[str, tuple[int, set[tuple[str, str]]]], entity: str, rank: int, pair: tuple[str, str]) -> None:
    """Note what somebody says, unless somebody said something whose word counts more."""
    best = found.get(entity)
    if best is None or rank < best[0]:
        found[entity] = (rank, {pair})
    elif rank == best[0]:
        best[1].add(pair)


@lru_cache(4096)
def _plan(keys: tuple[str, ...]) -> tuple[tuple[str, int, str, str], ...]:
    """What a map with these keys says: entity, rank of its place, key of the id, key of the version."""
    return tuple(
        (entity, PROVENANCES.index(place), prefix + id_, prefix + version)
        for entity, (id_, version) in FIELDS.items()
        for place, prefix in _PREFIXES.items()
        if prefix + id_ in keys
    )


def _versions_known(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ids and versions in order, without those that leave out the version which another one has."""
    named = {id_ for id_, version in pairs if version}
    return sorted(pair for pair in pairs if pair[1] or pair[0] not in named)[:LINKS_OF_ENTITY_MAX]


def _deployed(
    said: Iterable[Mapping[str, str]], origins: Sequence[Origin], deployments: Iterable[Deployment], start: int
) -> list[tuple[str, str]]:
    """Model versions that the trace's services ran when it began."""
    environments = {one[_ENVIRONMENT] for one in said if one.get(_ENVIRONMENT)}
    places = {
        (origin.service, environment)
        for origin in origins
        for environment in environments | {origin.said.get(_ENVIRONMENT, "")}
    }
    return [
        (deployment.model_name, deployment.model_version)
        for deployment in deployments
        if any(deployment.covers(service, environment, start) for service, environment in places)
    ]


def with_versions(agents: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names and versions, where one without a version is of the version that its name has elsewhere."""
    versions = {name: version for name, version in sorted(agents, reverse=True) if version}
    return [(name, version or versions.get(name, "")) for name, version in agents]


def owners(parent: Sequence[int], named: Sequence[int]) -> "array[int]":
    """For each span the agent that owns it: the one that it names itself, or else that its nearest ancestor names.

    `parent` has the index of each span's parent, or -1, and may hold cycles; `named` an agent's number, or NOBODY.
    """
    unknown = -2
    owner = array("q", [unknown]) * len(parent)
    for start in range(len(parent)):
        path = []
        span = start
        while span != -1 and owner[span] == unknown:
            owner[span] = NOBODY  # a cycle ends here
            path.append(span)
            if named[span] != NOBODY:
                owner[span] = named[span]
                break
            span = parent[span]
        found = NOBODY if span == -1 else owner[span]
        for passed in path:
            owner[passed] = found
    return owner
