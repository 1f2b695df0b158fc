"""Reads traces from the store: one whole, or a page of the list. Runs on the threads of the API."""

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import orjson

from query import rows
from query.listing import BOUNDS, EARLIER, IN_RESOURCES, list_sql, tagged_values, windows
from query.model import BadCursor, TraceFilter, TracePage, TraceSummary
from query.records import Records
from storage.decode import INT64_MAX
from storage.engine import Engine
from storage.spans import Resource, Scope, Span
from storage.vocabulary import Vocabulary

ORIGINS_CACHED_MAX = 2_000
"""Resources with their scopes that are kept in memory, a few kilobytes each; past it they are asked for again."""


@cache
def sql(name: str) -> str:
    """The text of query/sql/<name>.sql."""
    return files("query.sql").joinpath(f"{name}.sql").read_text()


class Traces:
    """The traces of a store, a tenant at a time."""

    def __init__(self, engine: Engine, vocabulary: Vocabulary) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._origins: dict[str, dict[int, tuple[Resource, Scope]]] = {}
        self._records = Records(engine)

    def spans_of(self, tenant: str, trace_id: bytes, content: bool, limit: int, records: bool = True) -> list[Span]:
        """Spans of one trace by start, at most `limit`, each once; without content attributes if not `content`.

        With `records`, what was sent as log records is in them too; else they are as they were sent.
        Raises QueryTimeout, QueryTooLarge, StoreUnavailable.
        """
        asked: dict[str, Any] = {"trace_id": trace_id.hex()}
        bounds = self._engine.read(tenant, sql("trace_bounds"), asked)
        if not bounds or not bounds[0]:
            return []
        asked |= {"start": bounds[0][0], "end": bounds[1][0], "limit": limit}
        columns = self._engine.read(tenant, sql("trace_spans"), asked)
        if not columns:
            return []
        payload = rows.content(self._engine.read(tenant, sql("trace_content"), asked)) if content else {}
        spans = rows.spans(trace_id, columns, self._origins_of(tenant, set(columns[rows.ORIGIN])), payload)
        if records:
            self._records.join(tenant, trace_id, spans, content, limit)
        return spans

    def _origins_of(self, tenant: str, wanted: set[int]) -> dict[int, tuple[Resource, Scope]]:
        """Resource and scope by origin id. An id is the hash of its content, so what is known stays true."""
        known = self._origins.get(tenant, {})
        if unknown := wanted - known.keys():
            found = rows.origins(
                self._engine.read(tenant, sql("origins"), {"origins": sorted(unknown)}), self._vocabulary
            )
            known = {**known, **found}
            if sum(map(len, list(self._origins.values()))) > ORIGINS_CACHED_MAX:
                self._origins = {}
            self._origins[tenant] = known if len(known) <= ORIGINS_CACHED_MAX else found
        return known

    def list_traces(self, tenant: str, filters: TraceFilter, limit: int, cursor: str | None) -> TracePage:
        """A page of the list, newest first.

        The cursor holds the place and the time of the first page: a trace that was shown stays shown once, even when a
        late span moves its start, and what arrives in between waits for a new list.
        Raises BadCursor, QueryTimeout, QueryTooLarge, StoreUnavailable.
        """
        place = _Place.read(cursor, filters) if cursor else _Place(int(time.time()))
        since = max(filters.start_unix_nano or 0, 0)
        until = INT64_MAX if filters.end_unix_nano is None else min(filters.end_unix_nano, INT64_MAX)
        until = min(until, place.start + 1)
        bounds = self._engine.read(tenant, BOUNDS, {"since": since, "until": until})
        if not bounds or not bounds[2][0]:
            return TracePage([], None)
        statement, parameters = list_sql(filters, self._in_resources(tenant, filters))
        found: list[TraceSummary] = []
        at = place
        for start, end in windows(bounds[0][0], bounds[1][0] + 1):
            rest = True
            while rest and len(found) <= limit:
                wanted = limit + 1 - len(found)
                asked = {
                    "since": start,
                    "until": end,
                    "limit": wanted,
                    "after_start": at.start,
                    "after_trace": at.trace_id,
                }
                columns = self._engine.read(tenant, statement, {**parameters, **asked})
                summaries = [_summary(row) for row in zip(*columns, strict=True)]
                found += self._unseen(tenant, place, summaries, columns[-1] if columns else [])
                rest = len(summaries) == wanted
                at = place.at(summaries[-1]) if summaries else at
        page = found[:limit]
        return TracePage(page, place.at(page[-1]).text(filters) if len(found) > limit else None)

    def _in_resources(self, tenant: str, filters: TraceFilter) -> set[int]:
        """Places of the filter's attributes that a resource has."""
        found = set()
        for i, (key, value) in enumerate(filters.attributes):
            ((count,),) = self._engine.read(tenant, IN_RESOURCES, {"key": key, "tagged": tagged_values(value)})
            if count:
                found.add(i)
        return found

    def _unseen(
        self, tenant: str, place: "_Place", summaries: list[TraceSummary], received: Sequence[int]
    ) -> list[TraceSummary]:
        """Those of a later page that no earlier page has shown, or would have shown.

        Only what spans arrived for since the list was begun can have moved; where it stood then is asked of its spans.
        """
        if place.first_page:
            return summaries
        changed = [s for s, last in zip(summaries, received, strict=True) if last > place.as_of]
        if not changed:
            return summaries
        asked = {
            "traces": [s.trace_id for s in changed],
            "since": min(s.start_time_unix_nano for s in changed),
            "until": max(s.start_time_unix_nano + s.duration_nano for s in changed),
            "as_of": place.as_of,
        }
        earlier = self._engine.read(tenant, EARLIER, asked)
        stood = {trace.hex(): start for trace, start in zip(*earlier, strict=True)}
        passed = {
            s.trace_id
            for s in changed
            if s.trace_id not in stood or (stood[s.trace_id], s.trace_id) >= (place.start, place.trace_id)
        }
        return [s for s in summaries if s.trace_id not in passed]


@dataclass(frozen=True)
class _Place:
    """A place in the list: when it was begun (Unix seconds), and start and id of the last trace shown."""

    as_of: int
    start: int = INT64_MAX - 1
    trace_id: str = "g"  # past every id in hex

    @property
    def first_page(self) -> bool:
        return self == _Place(self.as_of)

    def at(self, last: TraceSummary) -> "_Place":
        return _Place(self.as_of, last.start_time_unix_nano, last.trace_id)

    def text(self, filters: TraceFilter) -> str:
        return base64.urlsafe_b64encode(
            orjson.dumps([self.start, self.trace_id, self.as_of, _digest(filters)])
        ).decode()

    @classmethod
    def read(cls, text: str, filters: TraceFilter) -> "_Place":
        try:
            start, trace_id, as_of, digest = orjson.loads(base64.b64decode(text, altchars=b"-_", validate=True))
            if not (isinstance(start, int) and isinstance(as_of, int) and len(bytes.fromhex(trace_id)) == 16):
                raise ValueError("not a place in a list")
        except (ValueError, TypeError) as error:
            raise BadCursor("cannot read the cursor; take next_cursor of the page before as it is") from error
        if digest != _digest(filters):
            raise BadCursor("cannot use this cursor with other filters; repeat those of the page it came from")
        return cls(as_of, start, trace_id)


def _digest(filters: TraceFilter) -> str:
    return hashlib.blake2b(repr(filters).encode(), digest_size=6).hexdigest()


def _summary(row: tuple[Any, ...]) -> TraceSummary:
    trace_id, start, end, spans, errors, _, services, name, service, weight, _ = row
    rooted = bool(name or service)
    return TraceSummary(
        trace_id=trace_id.hex(),
        root_service=service.decode(errors="replace") if rooted else None,
        root_name=name.decode(errors="replace") if rooted else None,
        start_time_unix_nano=start,
        duration_nano=end - start,
        span_count=spans,
        error_count=errors,
        services=sorted(s.decode(errors="replace") for s in services),
        weight=weight,
    )
