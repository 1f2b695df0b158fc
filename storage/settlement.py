"""Settles a batch of traces of one tenant: reads what their spans say, works out their facts, writes them down.

Runs on the settling thread. What a batch holds in memory is bounded by the spans that its caller puts into it. Whatever
fails leaves the batch to be settled again: rows of a trace that were written before are replaced.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.annotations import TRACES, explicit_links, traces_hex
from storage.deployments import Deployments
from storage.engine import Engine
from storage.facts import USED_KEYS, Facts, Price, Scoped, Share, TraceRow, facts_of
from storage.linking import SAID_KEYS, Link, Origin
from storage.row_clock import RowClock
from storage.spans import Attributes
from storage.vocabulary import Vocabulary

ORIGINS_CACHED_MAX = 10_000
SKEW_NANO = 120 * 1_000_000_000
"""The clocks of one trace's services agree so far."""

_SPANS = Path(__file__).with_name("settled_spans.sql").read_text()
_FIRST_SPANS = _SPANS.replace("\n)\nGROUP BY", "\n    ORDER BY Timestamp\n    LIMIT {limit:UInt64}\n)\nGROUP BY")
_ORIGINS = """SELECT OriginId, mapKeys(ResourceAttributes), mapValues(ResourceAttributes), ScopeName
FROM spanhouse.origins
WHERE OriginId IN {origins:Array(UInt64)}
LIMIT 1 BY OriginId"""
_BEFORE = f"""SELECT
    TraceId, arrayMap(l -> toString(l.Entity), Links), arrayMap(l -> l.Id, Links), arrayMap(l -> l.Version, Links)
FROM spanhouse.facts FINAL
WHERE TraceId IN {TRACES}"""
FACTS = (
    "Tenant", "TraceId", "Start", "DurationNano", "RootName", "RootService", "Spans", "Errors", "Failed", "Truncated",
    "InputTokens", "OutputTokens", "TotalTokens", "CachedInputTokens", "ReasoningTokens", "CostUsd", "Unpriced",
    "Duplicates", "Models", "ModelCalls", "Tools", "Links", "Agents", "Weight",
    "Settled",
)  # fmt: skip
"""Columns of `facts`."""
_TOMBSTONE = ("Tenant", "Entity", "Id", "Version", "TraceId", "Deleted", "Settled")

_Key = tuple[str, str, str]
_UNKNOWN = Scoped(Origin("", {}), "")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where in `spans` a trace lies, give or take SKEW_NANO, and what is known of it beforehand.

    `spans`: how many are stored, roughly. `rows`: of how many stored ones its facts are, None if nobody knows; if these
    are all, it is as it was. `written`: whether it has a row in `facts`, None if nobody knows. `touched`: whatever is
    known, it is settled, and has a row then.
    """

    trace_id: bytes
    start_unix_nano: int
    end_unix_nano: int
    spans: int
    rows: int | None = None
    written: bool | None = None
    touched: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trace that was settled, of `rows` stored spans; whether it has a row in `facts` now, and where it lies."""

    rows: int
    written: bool
    start_unix_nano: int
    end_unix_nano: int
    first_received_unix_s: int = 0


Imply = Callable[[str, bytes, Sequence[Link]], list[Link]]
"""Links that follow from those of a trace: tenant, trace id, its links. Must not wait."""


class Settlement:
    """Settles batches. `price` gives the cost of a model call in USD; it and `imply` may be replaced at any time.

    A trace of more than `trace_spans_max` spans is settled by its first ones.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        deployments: Deployments,
        price: Price,
        *,
        trace_spans_max: int = 200_000,
    ) -> None:
        self.price = price
        self.imply: Imply = lambda _tenant, _trace_id, _links: []
        self._engine = engine
        self._vocabulary = vocabulary
        self._deployments = deployments
        self._trace_spans_max = trace_spans_max
        self._scoped: dict[tuple[str, int], Scoped] = {}
        self._clock = RowClock.of(engine, 1_000, "Settled", "facts", "links")

    def settle(self, tenant: str, batch: Sequence[Extent]) -> dict[bytes, Outcome]:
        """Settle the traces of a batch. What has no spans in the store is not in the answer.

        Raises QueryTimeout, QueryTooLarge, StoreUnavailable.
        """
        extents = {extent.trace_id: extent for extent in batch}
        outcomes: dict[bytes, Outcome] = {}
        changed = []
        for row in self._read(tenant, batch):
            extent = extents[row.trace_id]
            if row.rows == extent.rows and not extent.touched:
                outcomes[row.trace_id] = _as_it_was(row, extent)
            else:
                changed.append(row)
        if changed:
            self._write(tenant, changed, extents, outcomes)
        return outcomes

    def _write(
        self,
        tenant: str,
        rows: Sequence[TraceRow],
        extents: Mapping[bytes, Extent],
        outcomes: dict[bytes, Outcome],
    ) -> None:
        """Work out and write down what the traces come to; what became of each is added to `outcomes`."""
        explicit = explicit_links(self._engine, tenant, (row.trace_id for row in rows))
        scoped = self.scoped(tenant, {origin for row in rows for origin in row.origins})
        before = self._before(tenant, [row for row in rows if extents[row.trace_id].written is not False])
        deployments = self._deployments.of(tenant)
        settled_ms = self._clock.next()
        written, gone = [], []
        for row in rows:
            extent = extents[row.trace_id]
            try:
                facts = facts_of(row, scoped, explicit.get(row.trace_id, ()), deployments, self.price)
                facts.links += self.imply(tenant, row.trace_id, facts.links)
            except Exception:  # one trace must not keep the others from being settled
                logger.exception("cannot settle trace %s of tenant %s: leaving it as it is", row.trace_id.hex(), tenant)
                outcomes[row.trace_id] = _as_it_was(row, extent)
                continue
            had = before.get(row.trace_id)
            keep = row.says_something or bool(facts.links) or extent.touched or had is not None
            if keep:
                written.append(self._row(tenant, extent, row, facts, settled_ms))
            has = {link[:3] for link in facts.links}
            gone += [(tenant, *key, row.trace_id, 1, settled_ms) for key in had or () if key not in has]
            start, end = facts.start_unix_nano, facts.start_unix_nano + facts.whole.duration_nano
            outcomes[row.trace_id] = Outcome(row.rows, keep, start, end, row.first_received_unix_s)
        # What is gone goes first: as long as `facts` names it, a trace that is settled again finds it.
        if gone:
            self._engine.insert("links", _TOMBSTONE, gone)
        if written:
            self._engine.insert("facts", FACTS, written)

    def _row(self, tenant: str, extent: Extent, row: TraceRow, facts: Facts, settled_ms: int) -> tuple[Any, ...]:
        whole = facts.whole
        truncated = row.rows >= self._trace_spans_max and extent.spans > self._trace_spans_max
        start, duration, spans = facts.start_unix_nano, whole.duration_nano, whole.spans
        if truncated:
            logger.warning(
                "trace %s of tenant %s has %d spans: its facts are of the first %d",
                row.trace_id.hex(), tenant, extent.spans, row.rows,
            )  # fmt: skip
            start, spans = extent.start_unix_nano, extent.spans
            duration = extent.end_unix_nano - extent.start_unix_nano
        provenance = {link[1:3]: link.provenance for link in facts.links if link.entity == "agent"}
        agents = [
            (*agent, said_in, share.duration_nano, share.spans, share.errors, int(share.failed), *_spent(share))
            for agent, said_in in provenance.items()
            for share in (facts.agents.get(agent, whole),)
        ]
        usage, models = _spent(whole)[:7], _spent(whole)[7:]
        return (
            tenant, row.trace_id, start, duration, facts.root_name, facts.root_service, spans, whole.errors,
            int(whole.failed), int(truncated), *usage, facts.duplicates, *models, facts.links, agents, row.weight,
            settled_ms,
        )  # fmt: skip

    # Reading

    def _read(self, tenant: str, batch: Sequence[Extent]) -> list[TraceRow]:
        """The spans of the batch. A trace with more than the limit is alone in its batch."""
        asked: dict[str, Any] = {
            "traces": traces_hex(extent.trace_id for extent in batch),
            "start": max(min(extent.start_unix_nano for extent in batch) - SKEW_NANO, 0),
            "end": max(extent.end_unix_nano for extent in batch) + SKEW_NANO,
            "said": list(SAID_KEYS),
            "used": list(USED_KEYS),
        }
        statement = _SPANS
        if any(extent.spans > self._trace_spans_max for extent in batch):
            statement, asked["limit"] = _FIRST_SPANS, self._trace_spans_max
        return [TraceRow(*row) for row in zip(*self._engine.read(tenant, statement, asked), strict=True)]

    def links_by_origin(self, tenant: str, origins: Iterable[int]) -> dict[int, bool]:
        """Whether the resources of these origins say what their traces belong to. What is not stored is left out."""
        wanted = list(origins)
        known = self.scoped(tenant, wanted)
        return {id_: known[id_].origin.links for id_ in wanted if known[id_] is not _UNKNOWN}

    def scoped(self, tenant: str, origins: Iterable[int]) -> Mapping[int, Scoped]:
        """Who wrote what: resources in canonical words, and scopes, by origin id. An unknown one says nothing."""
        wanted = set(origins)
        if unknown := [origin for origin in wanted if (tenant, origin) not in self._scoped]:
            if len(self._scoped) + len(unknown) > ORIGINS_CACHED_MAX:
                self._scoped.clear()
                unknown = list(wanted)
            columns = self._engine.read(tenant, _ORIGINS, {"origins": unknown})
            for origin, keys, values, scope in zip(*columns, strict=True):
                said = _tagged(keys, values)
                service = next((str(value) for key, value in said if key == "service.name"), "")
                found = Scoped(Origin(service, self._vocabulary.of_resource(said)), scope.decode(errors="replace"))
                self._scoped[tenant, origin] = found
        return {origin: self._scoped.get((tenant, origin), _UNKNOWN) for origin in wanted}

    def _before(self, tenant: str, rows: Sequence[TraceRow]) -> dict[bytes, list[_Key]]:
        """Links of the rows of `facts` that there are."""
        if not rows:
            return {}
        columns = self._engine.read(tenant, _BEFORE, {"traces": traces_hex(row.trace_id for row in rows)})
        return {
            trace_id: [
                (entity.decode(), id_.decode(errors="replace"), version.decode(errors="replace"))
                for entity, id_, version in zip(*links, strict=True)
            ]
            for trace_id, *links in zip(*columns, strict=True)
        }


def _as_it_was(row: TraceRow, extent: Extent) -> Outcome:
    written = extent.written is not False
    return Outcome(row.rows, written, extent.start_unix_nano, extent.end_unix_nano, row.first_received_unix_s)


def _spent(share: Share) -> tuple[Any, ...]:
    total = share.total
    return (
        total.input_tokens, total.output_tokens, total.total_tokens, total.cached_input_tokens, total.reasoning_tokens,
        total.cost_usd or 0.0, total.unpriced, list(share.models), list(share.models.values()), share.tools,
    )  # fmt: skip


_DECODERS: dict[bytes, Callable[[str], Any]] = {b"s": str, b"i": int, b"d": float, b"b": lambda text: text == "true"}


def _tagged(keys: Sequence[bytes], values: Sequence[bytes]) -> Attributes:
    """Attributes of a map of tagged values (schema/0001_skeleton.sql): texts, numbers and bools among them."""
    return [
        (key.decode(errors="replace"), _DECODERS[value[:1]](value[1:].decode(errors="replace")))
        for key, value in zip(keys, values, strict=True)
        if value[:1] in _DECODERS
    ]
