"""Finds the traces that a bulk change is meant for, by what they belong to and when they began.

Runs on the threads of the API.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.decode import INT64_MAX
from storage.engine import Engine

_LINKED = """
    AND TraceId GLOBAL IN
    (
        SELECT TraceId FROM spanhouse.links FINAL
        WHERE Entity = {{entity{i}:String}} AND Id = {{id{i}:String}} AND Deleted = 0{version}
    )"""
_SELECT = """SELECT TraceId
FROM spanhouse.traces
WHERE TraceId IN
    (
        SELECT TraceId FROM spanhouse.traces
        WHERE Start >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
            AND Start < fromUnixTimestamp64Nano({until:Int64}, 'UTC')
    )LINKED
GROUP BY TraceId
HAVING toUnixTimestamp64Nano(min(Start)) >= {since:Int64} AND toUnixTimestamp64Nano(min(Start)) < {until:Int64}
    AND ({service:String} = '' OR has(groupUniqArrayArray(Services), {service:String}))
LIMIT {limit:UInt64}"""


@dataclass(frozen=True, slots=True)
class TraceSelection:
    """Traces that begin from `since` until `until` (nanoseconds since 1970, exclusive), with a span of `service`, and
    that belong to all of `linked`: entity → id and version, '' for any."""

    since_unix_nano: int = 0
    until_unix_nano: int = INT64_MAX
    service: str = ""
    linked: Mapping[str, tuple[str, str]] = field(default_factory=dict)


class Selection:
    """Finds traces of one tenant at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def traces(self, tenant: str, selection: TraceSelection, limit: int) -> list[bytes]:
        """Ids of the traces, at most `limit`. Raises what the engine raises."""
        asked: dict[str, int | str] = {
            "since": selection.since_unix_nano,
            "until": selection.until_unix_nano,
            "service": selection.service,
            "limit": limit,
        }
        linked = ""
        for i, (entity, (id_, version)) in enumerate(selection.linked.items()):
            asked |= {f"entity{i}": entity, f"id{i}": id_, f"version{i}": version}
            linked += _LINKED.format(i=i, version=f" AND Version = {{version{i}:String}}" if version else "")
        columns = self._engine.read(tenant, _SELECT.replace("LINKED", linked), asked)
        return list(columns[0]) if columns else []
