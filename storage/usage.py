"""What the spans of one trace spent: tokens and cost, each counted once.

Instrumentations repeat usage. An agent or chain span says the sum of its model calls again, and one call may be
recorded twice, by an SDK's own spans and by an instrumentation of that SDK. So usage is attributed to the span nearest
to the provider; what repeats it is marked with the reason and not added. The rules are in docs/usage.md.

Pure functions on lists; they run on the thread that settles a trace or on that of the request that asked. Nothing here
recurses and all is linear but for sorting: a chain of a million parents is data that a sender can make.
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from storage import vocabulary

NONE = -1
MODEL_CALLS = frozenset(vocabulary.MODEL_CALLS)
UNKNOWN_KIND = ""
_SPENDING = frozenset(("input_tokens", "output_tokens", "total_tokens", "cost_usd"))
TOKENS_MAX = 10**12
"""More tokens than this are no count of one span: a sum over ten million spans still fits the store's 64 bits."""
COST_USD_MAX = 1e9
CONTAINED_SHARE = 0.9
"""Two records of one call lie in one another: they share this much of the shorter one's time."""
NEIGHBOURS = 32
"""With how many later starts of the same key a call is compared."""


@dataclass(slots=True)
class Call:
    """What one span says it spent. `span` is its index in the tree; None is what it does not say.

    Cached, cache-write and reasoning tokens are parts of input and output. Times are nanoseconds, cost is in USD and
    never 0: who writes 0 did not know the price.
    """

    span: int
    kind: str
    scope: str
    response_id: str
    provider: str
    model: str
    start_unix_nano: int
    end_unix_nano: int
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None

    @property
    def total(self) -> int:
        """Input and output tokens, as the span says their total or else their sum."""
        return self.total_tokens or (self.input_tokens or 0) + (self.output_tokens or 0)

    @property
    def answers(self) -> bool:
        """Whether output tokens are among them, as far as one can know. Embeddings have none."""
        return self.total > (self.input_tokens or 0)

    @property
    def is_model_call(self) -> bool:
        """Whether the span is of a kind that a provider charges for."""
        return self.kind in MODEL_CALLS


@dataclass(slots=True)
class Total:
    """A sum of usage. `cost_usd` is None where nothing is known; `unpriced` counts the calls whose cost it lacks."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    unpriced: int = 0

    def json(self) -> dict[str, int | float | None]:
        """The usage object of the API."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "total_tokens": self.total_tokens,
            "cached_input_tokens": self.cached_input_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cost_usd": None if self.cost_usd is None else round(self.cost_usd, 12),
        }

    def add(self, other: "Total") -> None:
        """Add another sum to this one."""
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.total_tokens += other.total_tokens
        self.cached_input_tokens += other.cached_input_tokens
        self.reasoning_tokens += other.reasoning_tokens
        if other.cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + other.cost_usd
        self.unpriced += other.unpriced


@dataclass(slots=True)
class Counted:
    """A call in the account of its trace.

    `counts`: its tokens are part of the trace's; else `reason` says why not. `duplicate_of` is the span that counts
    instead. `cost_usd` is what the call adds to the trace's cost. `total` is its own usage: of all records of the call
    taken together where it counts, else what the span says; `cost_source` says where the cost in it comes from.
    """

    call: Call
    counts: bool
    reason: Literal["", "rollup", "duplicate"]
    duplicate_of: int | None
    cost_usd: float | None
    cost_source: Literal["", "span", "price"]
    total: Total


def call_of(index: int, canonical: Mapping[str, Any], scope: str, start: int, end: int) -> Call | None:
    """What the span at `index` spent, by its canonical fields, numbers or text. None if it says nothing of the sort.

    A token count of 0 throughout says nothing: failed calls and streams without usage write it.
    """
    if _SPENDING.isdisjoint(canonical):
        return None
    cost = _dollars(canonical.get("cost_usd"))
    call = Call(
        index,
        str(canonical.get("operation_kind") or UNKNOWN_KIND),
        scope,
        str(canonical.get("response_id") or ""),
        str(canonical.get("provider") or ""),
        str(canonical.get("response_model") or canonical.get("request_model") or ""),
        start,
        max(start, end),
        _tokens(canonical.get("input_tokens")),
        _tokens(canonical.get("output_tokens")),
        _tokens(canonical.get("total_tokens")),
        _tokens(canonical.get("cached_input_tokens")),
        _tokens(canonical.get("cache_write_tokens")),
        _tokens(canonical.get("reasoning_tokens")),
        cost,
    )
    if not call.total and cost is None:
        return None
    _include_parts(call)
    return call


def _tokens(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= TOKENS_MAX else None


def _dollars(value: Any) -> float | None:
    number = _number(value)
    return float(number) if number is not None and 0 < number <= COST_USD_MAX else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _include_parts(call: Call) -> None:
    """Add cached or reasoning tokens to input or output where the span's own total shows that they are not in there.

    Langfuse's LangChain handler writes {"input": 117, "input_cache_read": 38, "output": 18, "total": 173}.
    """
    gap = (call.total_tokens or 0) - (call.input_tokens or 0) - (call.output_tokens or 0)
    if gap <= 0 or call.input_tokens is None or call.output_tokens is None:
        return
    cached, written, reasoning = call.cached_input_tokens or 0, call.cache_write_tokens or 0, call.reasoning_tokens or 0
    for read_in, thought in ((cached, 0), (cached + written, 0), (0, reasoning), (cached + written, reasoning)):
        if gap == read_in + thought:
            call.input_tokens += read_in
            call.output_tokens += thought
            return


def account(parent: Sequence[int], calls: Sequence[Call], price: Callable[[Call], float | None]) -> list[Counted]:
    """What counts of the calls of one trace, in their order.

    `parent` has the index of every span's parent, or NONE, without cycles; each span has one call at most. `price` says
    the cost of a call in USD, or None; it is asked for calls that count and do not say their cost.
    """
    forest = _Forest(parent, calls)
    repeats = _rollups(forest)
    twins = _twins(forest, repeats)
    counted = _counted(calls, repeats, twins)
    claims = [None if entry.reason == "duplicate" else entry.call.cost_usd for entry in counted]
    _put_below_model_calls(forest, counted)
    _add_costs(forest, counted, claims, price)
    return counted


class _Forest:
    """The calls alone, each under the nearest call above it. Indexes here are of calls, not of spans."""

    def __init__(self, parent: Sequence[int], calls: Sequence[Call]) -> None:
        self.calls = calls
        self.above = _nearest_above(parent, calls)
        self.children_first = _children_first(self.above)

    @property
    def parents_first(self) -> Iterable[int]:
        """Every call after those above it."""
        return reversed(self.children_first)


def _nearest_above(parent: Sequence[int], calls: Sequence[Call]) -> list[int]:
    """For each call the nearest call above. Every span is stepped on once."""
    unknown = -2
    call_at = {call.span: index for index, call in enumerate(calls)}
    nearest = array("q", [unknown]) * len(parent)
    above = []
    for call in calls:
        path = []
        span = call.span
        while nearest[span] == unknown:
            path.append(span)
            up = parent[span]
            if up == NONE or up in call_at:
                nearest[span] = call_at.get(up, NONE)
                break
            span = up
        found = nearest[span]
        for passed in path:
            nearest[passed] = found
        above.append(found)
    return above


def _children_first(above: Sequence[int]) -> list[int]:
    waiting = [0] * len(above)
    for up in above:
        if up != NONE:
            waiting[up] += 1
    order = [index for index, count in enumerate(waiting) if not count]
    for index in order:  # grows while it is read
        up = above[index]
        if up != NONE:
            waiting[up] -= 1
            if not waiting[up]:
                order.append(up)
    return order


def _rollups(forest: _Forest) -> list[bool]:
    """Which calls repeat tokens of calls below them.

    A model call repeats model calls alone; a span of any other kind repeats whatever is below. Embeddings below a span
    that also says output tokens are not what it repeats: they have none.
    """
    count = len(forest.calls)
    embedded, answered = [0] * count, [0] * count  # bit 1: below, by a model call; bit 2: by another span
    repeats = [False] * count
    for index in forest.children_first:
        call = forest.calls[index]
        seen = 1 if call.is_model_call else 3
        repeats[index] = bool(answered[index] & seen) or (bool(embedded[index] & seen) and not call.answers)
        up = forest.above[index]
        if up != NONE:
            own = (1 if call.is_model_call else 2) if call.total else 0
            answered[up] |= answered[index] | (own if call.answers else 0)
            embedded[up] |= embedded[index] | (0 if call.answers else own)
    return repeats


class _Twins:
    """Groups of calls that are records of one call, each by another scope. What is alone has no group."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self._groups: dict[int, dict[str, int]] = {}  # of every member: scope to call, one object for a group

    def join(self, one: int, other: int) -> None:
        """Make one group of two, unless it would hold two calls of one scope: those are two calls."""
        large, small = (self._groups.get(index) or {self._calls[index].scope: index} for index in (one, other))
        if len(large) < len(small):
            large, small = small, large
        if any(scope in large for scope in small):
            return
        large.update(small)
        for index in (one, other, *small.values()):
            self._groups[index] = large

    def groups(self) -> list[list[int]]:
        """The groups, each with its calls."""
        return [list(group.values()) for group in {id(group): group for group in self._groups.values()}.values()]


def _twins(forest: _Forest, repeats: Sequence[bool]) -> list[list[int]]:
    """Calls that several instrumentations recorded: one in another, or side by side nearest to the provider."""
    calls = forest.calls
    twins = _Twins(calls)
    candidate = [call.is_model_call or call.kind == UNKNOWN_KIND for call in calls]
    for up, index in _one_in_another(forest, repeats, candidate):
        twins.join(up, index)
    leaves = [index for index, is_candidate in enumerate(candidate) if is_candidate and not repeats[index]]
    by_id = [(calls[index].response_id, index) for index in leaves if calls[index].response_id]
    by_tokens = [(_fingerprint(calls[index]), index) for index in leaves if calls[index].total]
    for one, other in (*_side_by_side(calls, by_id), *_side_by_side(calls, by_tokens)):
        twins.join(one, other)
    return twins.groups()


def _one_in_another(forest: _Forest, repeats: Sequence[bool], candidate: Sequence[bool]) -> Iterable[tuple[int, int]]:
    """Pairs of an outer and an inner record of one call. A span over several calls is no record of one of them."""
    calls = forest.calls
    charged = [0] * len(calls)
    for index in forest.children_first:
        up = forest.above[index]
        if up != NONE:
            charged[up] += charged[index] + (calls[index].is_model_call and not repeats[index])
    above = [NONE] * len(calls)
    for index in forest.parents_first:
        up = forest.above[index]
        above[index] = up = up if up == NONE or candidate[up] else above[up]
        if up == NONE or not candidate[index] or calls[up].scope == calls[index].scope:
            continue
        one_only = charged[up] <= 1 or _fingerprint(calls[up]) == _fingerprint(calls[index])
        if one_only and _one_call(calls[up], calls[index]):
            yield up, index


def _one_call(one: Call, other: Call) -> bool:
    """Whether two calls of different scopes, of which times allow it, are records of the same call."""
    if one.response_id and other.response_id:
        return one.response_id == other.response_id
    if not one.total or _fingerprint(one) != _fingerprint(other):
        return False
    known = one.kind == other.kind or UNKNOWN_KIND in (one.kind, other.kind)
    shorter = min(one.end_unix_nano - one.start_unix_nano, other.end_unix_nano - other.start_unix_nano)
    return known and bool(one.model) and _shared_nano(one, other) >= CONTAINED_SHARE * shorter


def _fingerprint(call: Call) -> tuple[str, int, int]:
    return plain_model(call.model), call.input_tokens or 0, call.output_tokens or 0


@lru_cache(4096)
def plain_model(model: str) -> str:
    """A model's name without what routes to it and without its date: openai/gpt-4o-mini-2024-07-18 is gpt-4o-mini."""
    name = model.lower().rpartition("/")[2].partition("@")[0]
    head, _, day = name.rpartition("-")
    if len(day) == 8 and day.isdecimal():
        return head
    dated = name.rsplit("-", 3)
    if len(dated) == 4 and [len(part) for part in dated[1:]] == [4, 2, 2] and "".join(dated[1:]).isdecimal():
        return dated[0]
    return name


def _shared_nano(one: Call, other: Call) -> int:
    return min(one.end_unix_nano, other.end_unix_nano) - max(one.start_unix_nano, other.start_unix_nano)


def _side_by_side(calls: Sequence[Call], keyed: Sequence[tuple[Any, int]]) -> list[tuple[int, int]]:
    """Pairs of calls of one key and different scopes that overlap and are one call; those nearest in time first."""
    groups: dict[Any, list[int]] = {}
    for key, index in keyed:
        groups.setdefault(key, []).append(index)
    pairs = []
    for group in groups.values():
        if len({calls[index].scope for index in group}) == 1:
            continue
        group.sort(key=lambda index: calls[index].start_unix_nano)
        for place, index in enumerate(group):
            call = calls[index]
            for later in group[place + 1 : place + 1 + NEIGHBOURS]:
                other = calls[later]
                if other.start_unix_nano > call.end_unix_nano:
                    break
                if other.scope != call.scope and _one_call(call, other):
                    apart = other.start_unix_nano - call.start_unix_nano + abs(other.end_unix_nano - call.end_unix_nano)
                    pairs.append((apart, index, later))
    pairs.sort()
    return [(one, other) for _, one, other in pairs]


def _counted(calls: Sequence[Call], repeats: Sequence[bool], groups: Iterable[Sequence[int]]) -> list[Counted]:
    """The account, still without cost: of a group of records of one call, one counts."""
    counted = [
        Counted(call, not rollup, "rollup" if rollup else "", None, None, "", _said(call))
        for call, rollup in zip(calls, repeats, strict=True)
    ]
    for group in groups:
        first, *others = sorted(group, key=lambda index: _rank(calls[index], repeats[index]))
        if repeats[first]:
            continue  # all of them repeat calls below
        merged = _merged([calls[first], *(calls[index] for index in others)])
        counted[first] = Counted(merged, True, "", None, None, "", _said(merged))
        for index in others:
            counted[index].counts = False
            counted[index].reason, counted[index].duplicate_of = "duplicate", merged.span
    return counted


def _rank(call: Call, repeats: bool) -> tuple[bool, bool, int, int, int]:
    """Least first: the record that counts. The one nearest to the provider, then the one that says more."""
    said = (
        call.input_tokens, call.output_tokens, call.cached_input_tokens, call.cache_write_tokens,
        call.reasoning_tokens, call.cost_usd, call.response_id or None, call.model or None,
    )  # fmt: skip
    silent = sum(value is None for value in said)
    return repeats, not call.is_model_call, silent, call.end_unix_nano - call.start_unix_nano, call.span


def _merged(records: Sequence[Call]) -> Call:
    """The first record with what the others know better. Input and output come from one record, the one with most."""
    most = max(records, key=lambda call: call.total)
    first = records[0]

    def largest(name: str) -> int | None:
        return max((value for call in records if (value := getattr(call, name)) is not None), default=None)

    return replace(
        first,
        provider=next((call.provider for call in records if call.provider), ""),
        model=next((call.model for call in records if call.model), ""),
        input_tokens=most.input_tokens,
        output_tokens=most.output_tokens,
        total_tokens=most.total_tokens,
        cached_input_tokens=largest("cached_input_tokens"),
        cache_write_tokens=largest("cache_write_tokens"),
        reasoning_tokens=largest("reasoning_tokens"),
        cost_usd=next((call.cost_usd for call in records if call.cost_usd is not None), None),
    )


def _said(call: Call) -> Total:
    return Total(
        call.input_tokens or 0,
        call.output_tokens or 0,
        call.total,
        call.cached_input_tokens or 0,
        call.reasoning_tokens or 0,
        call.cost_usd,
    )


def _put_below_model_calls(forest: _Forest, counted: list[Counted]) -> None:
    """A span of another kind below a model call that counts repeats its tokens: what is charged is the model call."""
    counting: list[int] = [NONE] * len(counted)
    for index in forest.parents_first:
        up = forest.above[index]
        if up == NONE:
            continue
        one = counted[up]
        if one.call.is_model_call and one.call.total and one.reason != "rollup":
            counting[index] = one.call.span if one.duplicate_of is None else one.duplicate_of
        else:
            counting[index] = counting[up]
        entry = counted[index]
        if entry.counts and entry.call.total and not entry.call.is_model_call and counting[index] != NONE:
            entry.counts, entry.reason, entry.duplicate_of = False, "duplicate", counting[index]


def _add_costs(
    forest: _Forest,
    counted: Sequence[Counted],
    claims: Sequence[float | None],
    price: Callable[[Call], float | None],
) -> None:
    """Cost once: of the calls that count, or of the lowest span above them that says one.

    A call with tokens has the cost it claims, else its price; not if a span below has a cost without tokens that count,
    for that is the same money. What a tool says that it cost itself is its own.
    """
    spends = [entry.counts and bool(entry.call.total) for entry in counted]
    costs = [
        price(entry.call) if claim is None and spending else claim
        for entry, claim, spending in zip(counted, claims, spends, strict=True)
    ]
    known = {entry.call.span for entry, cost in zip(counted, costs, strict=True) if cost is not None}
    below, bare_below = [False] * len(counted), [False] * len(counted)
    for index in forest.children_first:
        entry, cost = counted[index], costs[index]
        if cost is not None and not (bare_below[index] if spends[index] else below[index]):
            entry.cost_usd = cost
        elif entry.counts and not spends[index]:
            entry.counts, entry.reason = False, "rollup"
        up = forest.above[index]
        if up != NONE:
            below[up] |= below[index] or cost is not None or entry.duplicate_of in known
            bare = entry.cost_usd is not None and not spends[index] and entry.call.kind != "tool"
            bare_below[up] |= bare_below[index] or bare
    _mark_unpriced(forest, counted, bare_below)


def _mark_unpriced(forest: _Forest, counted: Sequence[Counted], bare_below: Sequence[bool]) -> None:
    """Count the calls whose cost is in no sum: nobody knows their price, and no span above says what all came to."""
    covered = [False] * len(counted)
    for index in forest.parents_first:
        up = forest.above[index]
        entry = counted[index]
        if up != NONE:
            covered[index] = covered[up] or (not counted[up].counts and counted[up].cost_usd is not None)
        if entry.counts:
            entry.total.cost_usd = entry.cost_usd
            missing = entry.cost_usd is None and not covered[index] and not bare_below[index]
            entry.total.unpriced = int(missing and bool(entry.call.total))
        if entry.total.cost_usd is not None:
            entry.cost_source = "price" if entry.call.cost_usd is None else "span"


def total(counted: Iterable[Counted]) -> Total:
    """The usage of all calls, each counted once."""
    whole = Total()
    for entry in counted:
        whole.add(_share(entry))
    return whole


def subtree_totals(order: Sequence[int], parent: Sequence[int], counted: Iterable[Counted]) -> list[Total]:
    """For every span what its subtree spent, itself included, each call once: a list by span.

    `order` has every span, parents first. Spans of equal sums may share a Total, so none may be changed.
    """
    sums = {entry.call.span: _share(entry) for entry in counted}
    for span in reversed(order):
        above = parent[span]
        if above != NONE and (own := sums.get(span)) is not None:
            others = sums.get(above)
            sums[above] = own if others is None else _sum(others, own)
    nothing = Total()
    return [sums.get(span, nothing) for span in range(len(parent))]


def _sum(one: Total, other: Total) -> Total:
    both = replace(one)
    both.add(other)
    return both


def _share(entry: Counted) -> Total:
    """What a call adds to sums: its usage, or no more than its cost."""
    return entry.total if entry.counts else Total(cost_usd=entry.cost_usd)
