"""Pages of what traces belong to: runs, experiments, model versions, prompts, sessions, agents and users.

Answered from the rows of `links`, one a trace, not from spans. Runs on the threads of the API.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from query import entity_sql
from query.entity_sql import PERCENTILES, Which
from query.model import BadCursor
from query.trace_links import Describe
from storage.annotations import DESCRIBED, Annotations
from storage.decode import INT64_MAX
from storage.engine import Engine
from storage.linking import VERSIONED

VERSIONS_MAX = 200
"""Versions on the page of a model, a prompt or an agent, the newest."""
_PAGES_MAX = 10
"""Pages of ids that are looked through for one page of the list: most of them have traces."""
_Said = Mapping[tuple[str, str], Mapping[str, Any]]
"""What somebody said, by id and version."""


@dataclass(frozen=True, slots=True)
class Entity:
    """What is asked about: a sort of entity, one of them, or one version of it (None: of all its versions).

    Only traces count that start from `since` until `until`, exclusive, in nanoseconds since 1970.
    """

    tenant: str
    entity: str
    id: str = ""
    version: str | None = None
    since_unix_nano: int = 0
    until_unix_nano: int = INT64_MAX

    @property
    def asked(self) -> dict[str, Any]:
        """As parameters of a statement."""
        return {
            "tenant": self.tenant,
            "entity": self.entity,
            "ids": [self.id],
            "version": self.version or "",
            "since": max(self.since_unix_nano, 0),
            "until": min(self.until_unix_nano, INT64_MAX),
        }

    @property
    def versioned(self) -> bool:
        """Whether it has a name and versions, instead of an id."""
        return self.entity in VERSIONED

    @property
    def which(self) -> Which:
        """The rows that figures are made of."""
        if not self.versioned or self.version is not None:
            return Which(by_version=True, one_version=self.version is not None)
        return Which(by_version=False, shares=self.entity == "agent")


class Entities:
    """Reads them for one tenant at a time. `describe` says what a registry knows."""

    def __init__(self, engine: Engine, annotations: Annotations, describe: Describe | None = None) -> None:
        self._engine = engine
        self._annotations = annotations
        self._describe = describe

    def newest(self, sort: Entity, limit: int, cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        """A page of entities of a sort, last seen first, with their figures in that time, and the next page's cursor.

        Raises BadCursor and what the engine raises.
        """
        after = _read(cursor, sort.entity) if cursor else (INT64_MAX, "")
        found: list[dict[str, Any]] = []
        for _ in range(_PAGES_MAX):
            asked = {**sort.asked, "after_seen": after[0], "after_id": after[1], "limit": limit + 1}
            ids, seen = self._columns(sort.tenant, entity_sql.SEEN, asked, 2)
            places = dict(zip(map(_text, ids), seen, strict=True))
            figures = self._figures(sort, list(places))
            for id_, last in places.items():
                if len(found) == limit:
                    return self._known(sort, found), _write(after, sort.entity)
                after = (last, id_)
                found += [{_name(sort.entity): id_, **figures[id_]}] if id_ in figures else []
            if len(places) <= limit:
                return self._known(sort, found), None
        return self._known(sort, found), _write(after, sort.entity)

    def _figures(self, sort: Entity, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        if not ids:
            return {}
        asked = {**sort.asked, "ids": list(ids), "limit": len(ids)}
        rows = zip(*self._columns(sort.tenant, entity_sql.stats(sort.which), asked, 19), strict=True)
        return {_text(row[0]): _stats(row) for row in rows}

    def _known(self, sort: Entity, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with what somebody and the registry know of them."""
        name = _name(sort.entity)
        said = self._said(sort, [row[name] for row in rows])
        return [row | self._about(sort.entity, row[name], "", said) for row in rows]

    def _said(self, of: Entity, ids: Sequence[str]) -> _Said:
        if of.entity not in DESCRIBED or not ids:
            return {}
        return self._annotations.entities(of.tenant, of.entity, ids)

    def _about(self, entity: str, id_: str, version: str, said: _Said) -> dict[str, Any]:
        about: dict[str, Any] = {}
        if (id_, version) in said:
            about["metadata"] = said[id_, version]
        if self._describe is not None and (known := self._describe(entity, id_, version)) is not None:
            about["registry"] = known
        return about

    def page(self, of: Entity) -> dict[str, Any] | None:
        """One entity, or one version of it; None if nothing is known of it. Raises what the engine raises."""
        statement = entity_sql.stats(of.which)
        rows = list(zip(*self._columns(of.tenant, statement, {**of.asked, "limit": 1}, 19), strict=True))
        said = self._said(of, [of.id])
        if not rows and not any(of.version in (None, version) for _, version in said):
            return None
        page: dict[str, Any] = {_name(of.entity): of.id}
        if of.version is not None:
            page["version"] = of.version
        page |= _stats(rows[0]) if rows else _NOTHING
        page |= self._about(of.entity, of.id, of.version or "", said)
        if of.versioned and of.version is None:
            page["versions"] = self._versions(of, said)
        page["links"] = self._beside(of)
        page["scores"] = self._scores(of, sampled=page["sampled"])
        return page

    def _versions(self, of: Entity, said: _Said) -> list[dict[str, Any]]:
        """The versions with their figures, last seen first; then those without traces that somebody described."""
        statement = entity_sql.stats(Which(by_version=True))
        rows = zip(*self._columns(of.tenant, statement, {**of.asked, "limit": VERSIONS_MAX}, 19), strict=True)
        figures = {_text(row[1]): _stats(row) for row in rows}
        for version in sorted(version for _, version in said if version):
            figures.setdefault(version, _NOTHING)
        return [
            {"version": version, **stats, **self._about(of.entity, of.id, version, said)}
            for version, stats in list(figures.items())[:VERSIONS_MAX]
        ]

    def _beside(self, of: Entity) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        columns = self._columns(of.tenant, entity_sql.beside(of.which), of.asked, 4)
        for sort, id_, version, count in zip(*columns, strict=True):
            entity = _text(sort)
            one: dict[str, Any] = {_name(entity): _text(id_)}
            if entity in VERSIONED:
                one["version"] = _text(version) or None
            found.setdefault(f"{entity}s", []).append(one | {"traces": round(count)})
        return found

    def _scores(self, of: Entity, *, sampled: bool) -> dict[str, dict[str, Any]]:
        columns = self._columns(of.tenant, entity_sql.scores(of.which, sampled=sampled), of.asked, 6)
        return {
            _text(name): {
                "count": round(count),
                "mean": total / numbers if numbers else None,
                "p50": middle if numbers else None,
                "labels": {_text(label): round(occurrences) for label, occurrences in labels},
            }
            for name, count, numbers, total, middle, labels in zip(*columns, strict=True)
        }

    def traces(
        self, of: Entity, status: str | None, limit: int, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of its traces, newest first, and the next page's cursor; `status` is 'error', 'ok' or None.

        Raises BadCursor and what the engine raises.
        """
        question = f"{of.entity} {of.id} {of.version} {status}"
        after = _read(cursor, question) if cursor else (INT64_MAX, "g")  # past every id in hex
        statement = entity_sql.traces(Which(by_version=False, one_version=of.version is not None), status)
        asked = {**of.asked, "limit": limit + 1, "after_start": after[0], "after_trace": after[1]}
        rows = list(zip(*self._columns(of.tenant, statement, asked, 18), strict=True))
        page = self._with_roots(of, rows[:limit])
        more = len(rows) > limit
        return page, _write((rows[limit - 1][1], rows[limit - 1][0].hex()), question) if more else None

    def _with_roots(self, of: Entity, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        if not rows:
            return []
        columns = self._columns(of.tenant, entity_sql.ROOTS, {"traces": [row[0].hex() for row in rows]}, 4)
        roots = {
            trace_id: (_text(service), _text(name), bool(truncated))
            for trace_id, service, name, truncated in zip(*columns, strict=True)
        }
        return [_trace(row, roots.get(row[0], ("", "", False)), versioned=of.versioned) for row in rows]

    def _columns(self, tenant: str, statement: str, asked: Mapping[str, Any], count: int) -> Sequence[Sequence[Any]]:
        """Columns of what a statement selects, also if that is nothing."""
        return self._engine.read(tenant, statement, asked) or ((),) * count


def _name(entity: str) -> str:
    return "name" if entity in VERSIONED else "id"


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _usage(tokens: Sequence[int], cost_usd: float) -> dict[str, Any]:
    names = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "reasoning_tokens")
    return {**dict(zip(names, tokens, strict=True)), "cost_usd": round(cost_usd, 12) if cost_usd else None}


def _stats(row: Sequence[Any]) -> dict[str, Any]:
    """Figures of a row of entity_sql.stats."""
    _, _, stored, heaviest, traces, failed, spans, errors, *spent, unpriced, quantiles, first, last, models = row
    names, calls = models
    return {
        "traces": round(traces),
        "stored_traces": stored,
        "sampled": heaviest > 1,
        "errors": round(failed),
        "error_rate": failed / traces,
        "spans": round(spans),
        "error_spans": round(errors),
        "usage": _usage([round(tokens) for tokens in spent[:5]], spent[5]),
        "unpriced_traces": round(unpriced),
        "duration_nano": {f"p{percent}": str(value) for percent, value in zip(PERCENTILES, quantiles, strict=True)},
        "models_used": {
            _text(name): round(count)
            for name, count in sorted(zip(names, calls, strict=True), key=lambda m: (-m[1], m[0]))
        },
        "first_seen_unix_nano": str(first),
        "last_seen_unix_nano": str(last),
    }


_NOTHING: dict[str, Any] = {
    "traces": 0,
    "stored_traces": 0,
    "sampled": False,
    "errors": 0,
    "error_rate": None,
    "spans": 0,
    "error_spans": 0,
    "usage": _usage((0,) * 5, 0),
    "unpriced_traces": 0,
    "duration_nano": None,
    "models_used": {},
    "first_seen_unix_nano": None,
    "last_seen_unix_nano": None,
}


def _trace(row: Sequence[Any], root: tuple[str, str, bool], *, versioned: bool) -> dict[str, Any]:
    trace_id, start, duration, spans, errors, failed, *spent, unpriced, models, tools, provenance, version, weight = row
    service, name, truncated = root
    one = {
        "trace_id": trace_id.hex(),
        "root": {"service": service, "name": name} if service or name else None,
        "start_time_unix_nano": str(start),
        "duration_nano": str(duration),
        "span_count": spans,
        "error_count": errors,
        "failed": bool(failed),
        "truncated": truncated,
        "usage": _usage(spent[:5], spent[5]),
        "unpriced_calls": unpriced,
        "models_used": [_text(model) for model in models],
        "tools": [_text(tool) for tool in tools],
        "provenance": _text(provenance),
        "weight": weight,
    }
    return one | ({"version": _text(version) or None} if versioned else {})


# Cursors


def _digest(question: str) -> str:
    return hashlib.blake2b(question.encode(), digest_size=6).hexdigest()


def _write(place: tuple[int, str], question: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([*place, _digest(question)])).decode()


def _read(cursor: str, question: str) -> tuple[int, str]:
    try:
        place, text, digest = orjson.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if not (isinstance(place, int) and 0 <= place <= INT64_MAX and isinstance(text, str)):
            raise ValueError("not a place in a list")
    except (ValueError, TypeError) as error:
        raise BadCursor("cannot read the cursor; take next_cursor of the page before as it is") from error
    if digest != _digest(question):
        raise BadCursor("cannot use this cursor with another question; repeat the one that it came from")
    return place, text
