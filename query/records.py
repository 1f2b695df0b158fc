"""Joins the log records of a trace to its spans, where instrumentations send prompts and answers as logs.

A record becomes an event of its span; those of GenAI that describe a whole model call give the span their content
attributes as well. Runs on the threads of the API. Nearly no tenant sends logs, so that a trace without them costs no
query: the engine is asked again only after it has loaded records.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from heapq import merge
from importlib.resources import files
from typing import Any

from query.rows import Keys, tagged, tagged_value
from storage.decode import content_rule
from storage.engine import Engine
from storage.spans import Event, Span

DETAILS = "gen_ai.client.inference.operation.details"
"""The event of a whole model call (OpenTelemetry semantic conventions for GenAI)."""
BODY = "body"
"""The attribute of an event that holds the body of its record."""

_SEVERITIES = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")  # four numbers each, from 1 (OTLP SeverityNumber)
_TENANTS_REMEMBERED_MAX = 2_000
_ANY = "SELECT 1 FROM spanhouse.records LIMIT 1"


@cache
def _sql() -> str:
    return files("query.sql").joinpath("trace_records.sql").read_text()


class Records:
    """The log records of a store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._without: dict[str, int] = {}  # tenants without records as of a number of loads; -1: has some

    def join(self, tenant: str, trace_id: bytes, spans: Sequence[Span], content: bool, limit: int) -> None:
        """Add to the spans of a trace what its records say, at most `limit` of them; no payload if not `content`.

        Raises QueryTimeout, QueryTooLarge, StoreUnavailable.
        """
        if self._has_any(tenant):
            asked = {"trace_id": trace_id.hex(), "content": int(content), "limit": limit}
            attach(spans, self._engine.read(tenant, _sql(), asked))

    def _has_any(self, tenant: str) -> bool:
        loads = self._engine.record_loads  # before the query: what is loaded meanwhile is asked for again
        known = self._without.get(tenant)
        if known is None or known not in (-1, loads):
            if len(self._without) >= _TENANTS_REMEMBERED_MAX:
                self._without = {}
            found = self._engine.read(tenant, _ANY, {})
            known = self._without[tenant] = -1 if found and found[0] else loads
        return known == -1


def attach(spans: Sequence[Span], columns: Iterable[Sequence[Any]]) -> None:
    """Add columns of sql/trace_records.sql to the spans they belong to: of several with one id, to the first."""
    by_id: dict[bytes, Span] = {}
    for span in spans:
        by_id.setdefault(span.span_id, span)
    names = Keys()
    events: dict[bytes, list[Event]] = {}
    for span_id, *row in zip(*columns, strict=True):
        if (owner := by_id.get(span_id)) is not None:
            event = _event(names, row)
            events.setdefault(span_id, []).append(event)
            if event.name == DETAILS:
                _add_content(owner, event)
    for span_id, added in events.items():
        span = by_id[span_id]
        # Both are in order; where times are equal, the span's own come first.
        span.events = list(merge(span.events, added, key=lambda event: event.time_unix_nano))


def _event(names: Keys, row: Sequence[Any]) -> Event:
    at, name, severity_number, severity_text, keys, values, content_keys, content_values, body, dropped = row
    attributes = tagged(names, keys, values) + tagged(names, content_keys, content_values)
    if body not in (b"", b"e"):
        attributes.append((BODY, tagged_value(body)))
    return Event(at, names[name] or names[severity_text] or _severity(severity_number), attributes, dropped)


def _severity(number: int) -> str:
    return _SEVERITIES[(number - 1) // 4] if 1 <= number <= 4 * len(_SEVERITIES) else "log"


def _add_content(span: Span, event: Event) -> None:
    rule = content_rule()
    known = {key for key, _ in span.attributes}
    span.attributes += [(key, value) for key, value in event.attributes if rule.holds(key, "") and key not in known]
