"""What one trace comes to: its size, its usage, its agents, its links. Pure; runs on the settling thread.

Takes a row of settled_spans.sql and gives what `facts` keeps of the trace (schema/0005_links.sql). It is the only
Python that looks at every span of an agent, so it is written for speed: columns instead of objects, and the plain case
before the general one (docs/decisions/0005-settled-facts.md).
"""

import struct
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from operator import add

from storage import usage
from storage.linking import NOBODY, Deployment, Link, Origin, owners, resolve, with_versions
from storage.usage import Call, Total
from storage.vocabulary import MODEL_CALLS

TOOLS_MAX = 100
MODELS_MAX = 100
NO_PARENT = bytes(8)
_RECORD = struct.Struct("<8s8sqqQB")
_NAMES = ("provider", "response_model", "request_model", "response_id")
_NUMBERS = (
    "input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens",
)  # fmt: skip
USED_KEYS = ("operation_kind", "agent_name", "agent_version", "tool_name", *_NAMES, *_NUMBERS, "cost_usd")
"""Keys of a span's canonical map that `facts_of` reads, beside linking.SAID_KEYS."""
_STEPS_MAX = 64
"""Ancestors a call that are looked through before its trace is no plain case any more."""

Price = Callable[[Call], float | None]
_Record = tuple[bytes, bytes, int, int, int, int]


@dataclass(slots=True)
class Share:
    """What some spans of a trace come to: all of them, or those that an agent owns."""

    spans: int = 0
    errors: int = 0
    failed: bool = False
    duration_nano: int = 0
    total: Total = field(default_factory=Total)
    models: dict[str, int] = field(default_factory=dict)
    """Model that answered → counted calls."""
    tools: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Facts:
    """What a trace comes to. `agents` are shares by name and version."""

    start_unix_nano: int
    whole: Share
    root_name: str
    root_service: str
    duplicates: int
    agents: dict[tuple[str, str], Share]
    links: list[Link]


@dataclass(slots=True)
class TraceRow:
    """A row of settled_spans.sql."""

    trace_id: bytes
    rows: int
    """Spans as stored, retransmits counted again."""
    first_received_unix_s: int
    origins: list[int]
    root_name: bytes
    root_service: bytes
    said: list[bytes]
    records: bytes
    keys: list[bytes]
    values: list[bytes]
    weight: float = 1.0

    @property
    def says_something(self) -> bool:
        """Whether a span says anything in canonical words."""
        return bool(self.said or self.values)


@dataclass(frozen=True, slots=True)
class Scoped:
    """Who wrote spans, and under which instrumentation scope."""

    origin: Origin
    scope: str


def facts_of(
    row: TraceRow,
    scoped: Mapping[int, Scoped],
    explicit: Iterable[Link],
    deployments: Sequence[Deployment],
    price: Price,
) -> Facts:
    """The facts of one trace. `scoped` has every origin id of its spans."""
    spans = _read(row)
    names, owner = _owners(spans)
    whole, shares = Share(), [Share() for _ in names]
    _measure(spans, owner, whole, shares)
    calls = [call for span, shape in enumerate(spans.shapes) if shape.spends and (call := _call(spans, span, scoped))]
    duplicates = _spend(spans.parent, calls, owner, price, (whole, shares)) if calls else 0
    _call_tools(spans, owner, whole, shares)
    start = min(spans.starts)
    links = resolve(
        explicit=explicit,
        said=[_said(text) for text in row.said],
        agents=names,
        origins=[scoped[id_].origin for id_ in row.origins],
        deployments=deployments,
        start_unix_nano=start,
    )
    agents = dict(zip(names, shares, strict=True))
    return Facts(start, whole, _text(row.root_name), _text(row.root_service), duplicates, agents, links)


# Reading


@dataclass(frozen=True, slots=True)
class _Shape:
    """Which of USED_KEYS a span has, in order; spans have few shapes. A place is -1 where there is no such key."""

    keys: tuple[str, ...]
    size: int
    kind: int
    agent: int
    agent_version: int
    tool: int
    names: tuple[int, ...]
    numbers: tuple[int, ...]
    spends: bool
    """Whether it has numbers or a cost."""
    plain: bool
    """Whether it has no cost."""


@lru_cache(4096)
def _shape(text: bytes) -> _Shape:
    keys = tuple(text.decode().split(",")) if text else ()
    places = {key: place for place, key in enumerate(keys)}
    kind, agent, version, tool, *rest = (places.get(key, -1) for key in USED_KEYS)
    names, numbers, cost = rest[: len(_NAMES)], rest[len(_NAMES) : -1], rest[-1]
    spends = max(*numbers, cost) != -1
    return _Shape(keys, len(keys), kind, agent, version, tool, tuple(names), tuple(numbers), spends, cost == -1)


@lru_cache(65_536)
def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _said(text: bytes) -> dict[str, str]:
    """One of the row's texts. A value with the separator in it is cut there."""
    keys, _, values = text.partition(b"\x1e")
    return dict(zip(_text(keys).split(","), values.decode(errors="replace").split("\x1f"), strict=False))


@dataclass(slots=True)
class _Spans:
    """The spans of a trace, each once, as columns."""

    parent: list[int]
    """Index of the parent, -1 without one; no cycles."""
    roots: list[int]
    """Those of which the sender says that they have no parent."""
    starts: Sequence[int]
    durations: Sequence[int]
    failed: Sequence[int]
    origins: Sequence[int]
    shapes: list[_Shape]
    places: list[int]
    """Where in `values` those of a span begin."""
    values: list[bytes]


def _read(row: TraceRow) -> _Spans:
    records = list(_RECORD.iter_unpack(row.records))
    shapes = [_shape(keys) for keys in row.keys]
    places = list(accumulate([shape.size for shape in shapes], initial=0))
    ids, above, starts, durations, origins, failed = zip(*records, strict=True)
    if len(set(ids)) < len(ids):
        kept = _once(records)
        records, shapes, places = [records[i] for i in kept], [shapes[i] for i in kept], [places[i] for i in kept]
        ids, above, starts, durations, origins, failed = zip(*records, strict=True)
    last = len(ids) - 1
    index = {span_id: last - i for i, span_id in enumerate(reversed(ids))}  # of several, the first
    parent = [index.get(parent_id, -1) for parent_id in above]
    if any(up != -1 and starts[up] >= start for up, start in zip(parent, starts, strict=True)):
        _cut_cycles(parent, starts)  # in a cycle some span does not begin before its child
    roots = [span for span, parent_id in enumerate(above) if parent_id == NO_PARENT]
    return _Spans(parent, roots, starts, durations, failed, origins, shapes, places, row.values)


def _once(records: Sequence[_Record]) -> list[int]:
    """Indexes of the spans, each once: what differs from one of the same id in nothing is a retransmit of it."""
    return sorted({record: i for i, record in reversed(list(enumerate(records)))}.values())


def _cut_cycles(parent: list[int], starts: Sequence[int]) -> None:
    """Take the parent from the earliest span of each cycle. Linear: every span is stepped on once."""
    seen = array("q", [-1]) * len(parent)
    for begin in range(len(parent)):
        span = begin
        while span != -1 and seen[span] == -1:
            seen[span] = begin
            span = parent[span]
        if span == -1 or seen[span] != begin:
            continue
        cycle = [span]
        while (up := parent[cycle[-1]]) != span:
            cycle.append(up)
        parent[min(cycle, key=starts.__getitem__)] = -1


# Agents


def _owners(spans: _Spans) -> tuple[list[tuple[str, str]], Sequence[int]]:
    """The agents that spans name, and for each span the number of the one that owns it.

    A name without a version is that of the version which another span gives it.
    """
    numbers: dict[tuple[bytes, bytes], int] = {}
    values = spans.values
    named = [
        NOBODY
        if shape.agent == -1
        else numbers.setdefault(
            (values[place + shape.agent], values[place + shape.agent_version] if shape.agent_version != -1 else b""),
            len(numbers),
        )
        for shape, place in zip(spans.shapes, spans.places, strict=False)
    ]
    agents = [(_text(name), _text(version)) for name, version in numbers]
    if len(agents) > 1:
        meant = with_versions(agents)
        agents = list(dict.fromkeys(meant))
        if len(agents) < len(meant):
            renumbered = [agents.index(one) for one in meant]
            named = [number if number == NOBODY else renumbered[number] for number in named]
    return agents, owners(spans.parent, named) if agents and NOBODY in named else named


# Measuring


def _measure(spans: _Spans, owner: Sequence[int], whole: Share, shares: Sequence[Share]) -> None:
    """Sizes, times and failures of the trace and of its agents' shares."""
    starts, durations, failed, parent = spans.starts, spans.durations, spans.failed, spans.parent
    whole.spans, whole.errors = len(parent), sum(failed)
    last_start, last_end = max(starts), max(map(add, starts, durations))
    whole.duration_nano = max(last_start, last_end) - min(starts)
    root = min(spans.roots, key=starts.__getitem__, default=-1)
    whole.failed = whole.errors > 0 if root == -1 else bool(failed[root])
    if not shares:
        return
    for span, agent in enumerate(owner):
        if agent == NOBODY:
            continue
        share, up = shares[agent], parent[span]
        share.spans += 1
        share.errors += failed[span]
        if up == -1 or owner[up] != agent:
            share.failed |= bool(failed[span])
            share.duration_nano += max(durations[span], 0)


def _call(spans: _Spans, span: int, scoped: Mapping[int, Scoped]) -> Call | None:
    """What a span spent: usage.call_of, found without its work where the span gives plain counts and no cost."""
    shape, place, start = spans.shapes[span], spans.places[span], spans.starts[span]
    values = spans.values[place : place + shape.size]
    scope, end = scoped[spans.origins[span]].scope, start + spans.durations[span]
    if shape.plain:
        counts = [values[at] for at in shape.numbers if at != -1]
        if all(map(bytes.isdigit, counts)) and max(map(len, counts)) < 12:
            sent, answered, total, *parts = [int(values[at]) if at != -1 else None for at in shape.numbers]
            said = (sent or 0) + (answered or 0)
            if said and total in (None, said):
                provider, answering, asked, response = [values[at] if at != -1 else b"" for at in shape.names]
                kind = _text(values[shape.kind]) if shape.kind != -1 else usage.UNKNOWN_KIND
                model = _text(answering or asked)
                return Call(
                    span, kind, scope, response.decode(errors="replace"), _text(provider), model, start,
                    max(start, end), sent, answered, total, *parts,
                )  # fmt: skip
    canonical = {key: value.decode(errors="replace") for key, value in zip(shape.keys, values, strict=True)}
    return usage.call_of(span, canonical, scope, start, end)


def _spend(
    parent: Sequence[int],
    calls: Sequence[Call],
    owner: Sequence[int],
    price: Price,
    to: tuple[Share, Sequence[Share]],
) -> int:
    """Usage, each token once, of the trace and of the agents that own the calls. Gives the number of second records."""
    whole, shares = to
    owning: dict[int, list[int]] = {}
    for index, call in enumerate(calls):
        owning.setdefault(owner[call.span], []).append(index)
    owning.pop(NOBODY, None)
    if _is_plain(parent, calls):
        costs = [price(call) if call.cost_usd is None else call.cost_usd for call in calls]
        counting, duplicates = calls, 0
        parts = {
            agent: _sum([calls[i] for i in mine], [costs[i] for i in mine])
            for agent, mine in owning.items()
            if len(mine) < len(calls)
        }
        whole.total = _sum(calls, costs)
    else:
        counted = usage.account(parent, calls, price)
        counting = [entry.call for entry in counted if entry.counts]
        duplicates = sum(entry.reason == "duplicate" for entry in counted)
        parts = {
            agent: usage.total(counted[i] for i in mine) for agent, mine in owning.items() if len(mine) < len(calls)
        }
        whole.total = usage.total(counted)
    for agent in owning:
        shares[agent].total = parts.get(agent, whole.total)
    for call in counting:
        if call.model and call.total:
            _count(whole.models, call.model)
            if owner[call.span] != NOBODY:
                _count(shares[owner[call.span]].models, call.model)
    return duplicates


def _is_plain(parent: Sequence[int], calls: Sequence[Call]) -> bool:
    """Whether every call counts: model calls with tokens of one scope, none below another (usage.py has the rules)."""
    scope = calls[0].scope
    if not all(call.kind in MODEL_CALLS and call.scope == scope and call.total for call in calls):
        return False
    if len(calls) == 1:
        return True
    spending = {call.span for call in calls}
    steps = _STEPS_MAX * len(calls)
    for span in spending:
        up = parent[span]
        while up != -1:
            steps -= 1
            if up in spending or steps < 0:
                return False
            up = parent[up]
    return True


def _sum(calls: Iterable[Call], costs: Iterable[float | None]) -> Total:
    whole = Total()
    for call, cost in zip(calls, costs, strict=True):
        whole.input_tokens += call.input_tokens or 0
        whole.output_tokens += call.output_tokens or 0
        whole.total_tokens += call.total
        whole.cached_input_tokens += call.cached_input_tokens or 0
        whole.reasoning_tokens += call.reasoning_tokens or 0
        if cost is None:
            whole.unpriced += 1
        else:
            whole.cost_usd = (whole.cost_usd or 0.0) + cost
    return whole


def _count(models: dict[str, int], model: str) -> None:
    if model in models or len(models) < MODELS_MAX:
        models[model] = models.get(model, 0) + 1


def _call_tools(spans: _Spans, owner: Sequence[int], whole: Share, shares: Sequence[Share]) -> None:
    """The tools, by the start of their calls. A call within one of the same name is its second record."""
    values, places = spans.values, spans.places
    called = {
        span: _text(values[places[span] + shape.tool])
        for span, shape in enumerate(spans.shapes)
        if shape.tool != -1 and shape.kind != -1 and values[places[span] + shape.kind] == b"tool"
    }
    for span in sorted(called, key=lambda span: (spans.starts[span], span)):
        name = called[span]
        if called.get(spans.parent[span]) == name:
            continue
        for share in (whole, shares[owner[span]]) if owner[span] != NOBODY else (whole,):
            if len(share.tools) < TOOLS_MAX:
                share.tools.append(name)
