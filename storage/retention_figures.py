"""The figures of a retention plan: what comes a day, what that comes to in steady state, and what goes. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple

from storage.retention import PINNED, Keep, Policies
from storage.volumes import Rows


@dataclass(slots=True)
class Amount:
    """Of one copy, a day or in all. `skeleton` and `content` are bytes on disk; log records are content."""

    traces: float = 0
    spans: float = 0
    skeleton: float = 0
    content: float = 0

    def add(self, other: "Amount", skeleton: float = 1, content: float = 1) -> None:
        """And so many times another one."""
        self.traces += other.traces * skeleton
        self.spans += other.spans * skeleton
        self.skeleton += other.skeleton * skeleton
        self.content += other.content * content


class Piece(NamedTuple):
    """What a day holds of two classes, by the policies in force and by the others, and of a service and an agent."""

    was: int
    will: int
    service: str
    agent: str
    amount: Amount


class Look(NamedTuple):
    """A day that was looked at: its pieces, and which share of its traces and of their payload that rests on."""

    pieces: Sequence[Piece]
    traces_share: float
    content_share: float


@dataclass(slots=True)
class Kept:
    """What comes a day under a name, and what that comes to when it is kept as long as policies say: `steady`.

    `keep` is None for what is pinned, which is kept without end and in no sum of steady states. `goes` is what of what
    is stored now would go at once.
    """

    name: str
    keep: Keep | None = None
    daily: Amount = field(default_factory=Amount)
    steady: Amount = field(default_factory=Amount)
    goes: Amount = field(default_factory=Amount)


@dataclass(slots=True)
class Outcome:
    """What some policies come to: by policy in their order, the default and what is pinned at the end, and by name."""

    policies: list[Kept]
    services: dict[str, Kept] = field(default_factory=dict)
    agents: dict[str, Kept] = field(default_factory=dict)

    @property
    def steady(self) -> Amount:
        """Of all policies."""
        return total(each.steady for each in self.policies)

    @property
    def goes(self) -> Amount:
        """Of all policies."""
        return total(each.goes for each in self.policies)


@dataclass(frozen=True, slots=True)
class Plan:
    """`now` is by the policies in force, `then` by those that were asked about. Shares are the least of any day.

    `days` are those that it rests on. `partial`: it is today, as far as it is, taken for a whole day.
    """

    days: Sequence[date]
    partial: bool
    traces_share: float
    content_share: float
    stored: Amount
    now: Outcome
    then: Outcome


class Weights:
    """How much a day counts for what comes a day: days of which a class has lost something already do not."""

    def __init__(self, window: Sequence[date], day: date, today: date, least: Callable[[int], Keep]) -> None:
        self._ages, self._age, self._least = [age_days(each, today) for each in window], age_days(day, today), least

    def of(self, class_: int) -> tuple[float, float]:
        """Of skeletons and of content."""
        if class_ == PINNED:
            return 1 / len(self._ages), 1 / len(self._ages)
        keep = self._least(class_)
        return self._share(keep.skeleton_days), self._share(keep.content_days)

    def _share(self, days: int) -> float:
        whole = [age for age in self._ages if age < days]
        return 1 / len(whole) if self._age in whole else 0.0


def add_daily(
    outcomes: tuple[Outcome, Outcome], sides: tuple[Policies, Policies], look: Look, weights: Weights
) -> None:
    """Add a day of the last ones, for the policies in force and for the others."""
    for piece in look.pieces:
        daily = Amount()
        daily.add(piece.amount, *weights.of(piece.was))
        for outcome, policies, class_ in zip(outcomes, sides, (piece.was, piece.will), strict=True):
            one = outcome.policies[_place(policies, class_)]
            services = outcome.services.setdefault(piece.service, Kept(piece.service))
            agents = outcome.agents.setdefault(piece.agent, Kept(piece.agent))
            for kept in (one, services, agents):
                kept.daily.add(daily)
                if one.keep is not None:
                    days = one.keep.skeleton_days, one.keep.content_days
                    kept.steady.add(daily, *map(one.keep.full_days, days))


def add_going(outcomes: tuple[Outcome, Outcome], sides: tuple[Policies, Policies], look: Look, age: int) -> None:
    """Add what of a stored day, so many whole days ago, would go."""
    for piece in look.pieces:
        was = sides[0].keep(piece.was)
        for outcome, policies, class_ in zip(outcomes, sides, (piece.was, piece.will), strict=True):
            kept = outcome.policies[_place(policies, class_)]
            if kept.keep is not None:
                thinned = 1 - kept.keep.thin_keep if _thins(kept.keep, age) and not _thins(was, age) else 0.0
                due = (1.0 if age >= days else thinned for days in (kept.keep.skeleton_days, kept.keep.content_days))
                kept.goes.add(piece.amount, *due)


def _thins(keep: Keep, age: int) -> bool:
    return 0 < keep.thin_after_days <= age


def nothing(policies: Policies) -> list[Kept]:
    """The places of an outcome."""
    named = [Kept(policy.name, policy.keep) for policy in policies.policies]
    return [*named, Kept("default", policies.default), Kept("pinned")]


def _place(policies: Policies, class_: int) -> int:
    """Where a class is in `_none`."""
    return len(policies.plain) if class_ == PINNED else policies.plain.index(class_)


def as_large(look: Look, of: tuple[Rows, Rows, Rows], as_: tuple[Rows, Rows, Rows]) -> Look:
    """The same parts of another day's bytes."""
    if of == as_:
        return look
    mine, other = on_disk(of), on_disk(as_)
    spans, skeleton, content = (
        theirs / ours if ours else 0.0
        for theirs, ours in ((other.spans, mine.spans), (other.skeleton, mine.skeleton), (other.content, mine.content))
    )
    pieces = [
        piece._replace(amount=Amount(a.traces * spans, a.spans * spans, a.skeleton * skeleton, a.content * content))
        for piece in look.pieces
        for a in (piece.amount,)
    ]
    return look._replace(pieces=pieces)


def on_disk(tables: tuple[Rows, Rows, Rows]) -> Amount:
    """Of a day in all."""
    spans, content, records = tables
    return Amount(0, spans.rows, spans.stored_bytes, content.stored_bytes + records.stored_bytes)


def age_days(day: date, today: date) -> int:
    """Whole days after it, as Policies.due counts them."""
    return (today - day).days - 1


def total(amounts: Iterable[Amount]) -> Amount:
    """All together."""
    whole = Amount()
    for each in amounts:
        whole.add(each)
    return whole
