"""Finds the scores that came with spans and log records and keeps them as assessments, a batch of traces at a time.

Runs on the settling thread. Most batches have none, and cost two questions to the store: of spans, and of records.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from storage import scores
from storage.assessments import Assessment, Assessments
from storage.engine import Engine
from storage.scores import Carrier
from storage.spans import Attributes, Event, Link, Value

SPANS_OF_TRACE_MAX = 1_000
"""Spans of one trace whose scores are kept."""
SPANS_OF_BATCH_MAX = 20_000
RECORDS_OF_BATCH_MAX = 20_000

_SPANS = Path(__file__).with_name("scored_spans.sql").read_text()
_CONTENT = Path(__file__).with_name("scored_content.sql").read_text()
_RECORDS = Path(__file__).with_name("scored_records.sql").read_text()
_PATTERN = r"^(trace\.|session\.)?(annotation|evaluation)s\.[0-9]+\.|^gen_ai\.(evaluation|guardrail\.error)\."
_DECODERS: dict[bytes, Callable[[str], Value]] = {
    b"s": str,
    b"i": int,
    b"d": float,
    b"b": lambda text: text == "true",
}


class Harvest:
    """Scores of spans → assessments. `touch` is told of traces outside the batch that got some."""

    def __init__(self, engine: Engine, assessments: Assessments, touch: Callable[[str, Iterable[bytes]], None]) -> None:
        self._engine = engine
        self._assessments = assessments
        self._touch = touch

    def __call__(self, tenant: str, trace_ids: Sequence[bytes], since: int, until: int) -> None:
        """Keep what the spans of these traces say; they lie between `since` and `until`, nanoseconds since 1970.

        Raises QueryTimeout, QueryTooLarge, StoreUnavailable; may be called again for the same traces at any time.
        """
        found = [said for span in self._carriers(tenant, trace_ids, since, until) for said in scores.from_span(span)]
        found += self._of_records(tenant, trace_ids)
        if not found:
            return
        new = self._assessments.put_found(tenant, found)
        if others := {a.trace_id for a in new}.difference(trace_ids):
            self._touch(tenant, others)

    def _carriers(self, tenant: str, trace_ids: Sequence[bytes], since: int, until: int) -> list[Carrier]:
        asked: dict[str, Any] = {"traces": b"".join(trace_ids).hex(), "start": since, "end": until}
        limits = {"of_trace": SPANS_OF_TRACE_MAX, "limit": SPANS_OF_BATCH_MAX}
        signs = {"events": list(scores.EVENTS), "keys": list(scores.KEYS), "triggered": scores.TRIGGERED}
        columns = self._engine.read(tenant, _SPANS, asked | limits | signs)
        if not columns or not columns[0]:
            return []
        content = self._engine.read(tenant, _CONTENT, asked | {"spans": list(columns[-1]), "pattern": _PATTERN})
        payload = {key: _strings(keys, values) for key, keys, values in zip(*content, strict=True)}
        return [_carrier(row, payload.get(row[-1], [])) for row in zip(*columns, strict=True)]

    def _of_records(self, tenant: str, trace_ids: Sequence[bytes]) -> list[Assessment]:
        traces = b"".join(trace_ids).hex()
        asked = {"traces": traces, "events": list(scores.EVENTS), "limit": RECORDS_OF_BATCH_MAX}
        found = []
        for row in zip(*self._engine.read(tenant, _RECORDS, asked), strict=True):
            trace_id, span_id, time, name, keys, values, content_keys, content_values = row
            said = Event(time, name.decode(), _tagged(keys, values) + _tagged(content_keys, content_values), 0)
            if one := scores.from_event(trace_id, span_id, said):
                found.append(one)
        return found


def _carrier(row: tuple[Any, ...], payload: Attributes) -> Carrier:
    """A row of scored_spans.sql, with what of it is payload."""
    trace_id, span_id, start, duration, sk, sv, *numbers = row[:12]
    times, names, keys, values, links = row[12:17]
    attributes = _strings(sk, sv) + payload
    for each in range(0, 6, 2):
        attributes += [(k.decode(errors="replace"), v) for k, v in zip(numbers[each], numbers[each + 1], strict=True)]
    events = [
        Event(time, name.decode(errors="replace"), _tagged(k, v), 0)
        for time, name, k, v in zip(times, names, keys, values, strict=True)
        if name.decode(errors="replace") in scores.EVENTS
    ]
    end = start + max(duration, 0)
    return Carrier(trace_id, span_id, end, attributes, events, [link for wire in links for link in _link(wire)])


def _strings(keys: Sequence[bytes], values: Sequence[bytes]) -> Attributes:
    return [(k.decode(errors="replace"), v.decode(errors="replace")) for k, v in zip(keys, values, strict=True)]


def _tagged(keys: Sequence[bytes], values: Sequence[bytes]) -> Attributes:
    """Attributes of a map of tagged values (schema/0001_skeleton.sql): texts, numbers and bools among them."""
    return [
        (key.decode(errors="replace"), _DECODERS[value[:1]](value[1:].decode(errors="replace")))
        for key, value in zip(keys, values, strict=True)
        if value[:1] in _DECODERS
    ]


def _link(wire: bytes) -> list[Link]:
    try:
        link = Span.Link.FromString(wire)
    except DecodeError:  # its attributes are deeper than protobuf goes
        return []
    return [Link(link.trace_id, link.span_id, "", [], 0, 0)]
