"""Is the candidate within the limits? A verdict with reasons, from what was measured on both sides.

A limit on what may get worse fails when the estimate is beyond it and "no change" is out of the question: were nothing
changed, the limits of one gate together would fail it 5 times of 100 at most. An absolute limit, on the error rate or
a score, fails when chance cannot explain the excess (once in 20). What is beyond a limit, but within chance, passes and
is said. Why so, and what it finds: docs/decisions/0006-gate-statistics.md. Pure, on any thread.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from query.compare import BEYOND_MIN, Measures, difference, enough_beyond, quantile, ratio, shares
from query.comparison import Figure, Side
from query.intervals import Interval, Mean, factor, log_ratio, normal, share, student

ALARMS_MAX = 0.05
"""Of 100 gates of two equal versions so many fail, at most."""
SHIFT_ALARMS, QUANTILE_ALARMS = 0.025, 0.015
"""A quantile has two ways to fail, which share this; what is left to 5 % allows for errors of the standard errors."""
BEHIND_MAX = normal(0.99)
"""All durations together speak for a quantile unless that is so many standard errors behind them."""
SCORED_MIN = 30
UNPRICED_MAX = 0.01
"""Share of traces whose cost is not wholly known that a limit on the cost bears."""

Outcome = Literal["pass", "fail", "cannot_tell"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed. A regression of 0.1 is 10 % more; a score drop of 0.05 is 5 % less; a rate of 0.02 is 2 %."""

    min_traces: int = 200
    max_p50_regression: float | None = None
    max_p95_regression: float | None = None
    max_p99_regression: float | None = None
    max_cost_regression: float | None = None
    max_tokens_regression: float | None = None
    max_error_rate: float | None = None
    min_score: Mapping[str, float] = field(default_factory=dict)
    max_score_drop: Mapping[str, float] = field(default_factory=dict)

    @property
    def relative(self) -> int:
        """How many limits compare the two sides, and share ALARMS_MAX."""
        regressions = (
            self.max_p50_regression, self.max_p95_regression, self.max_p99_regression,
            self.max_cost_regression, self.max_tokens_regression,
        )  # fmt: skip
        return sum(limit is not None for limit in regressions) + len(self.max_score_drop)

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.relative or self.max_error_rate is not None or self.min_score)


@dataclass(frozen=True, slots=True)
class Check:
    """One limit. `reason` is a sentence for a person.

    `found_from`: the least regression (of durations: of all of them alike) that would be found 19 times of 20 with so
    many traces; null for an absolute limit.
    """

    name: str
    limit: float
    verdict: Outcome
    reason: str
    figure: Figure
    found_from: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`fail` if a limit fails, else `cannot_tell` if there is too little to judge one of them, else `pass`."""

    verdict: Outcome
    reason: str
    checks: list[Check]


def judge(baseline: Side, candidate: Side, b: Measures, c: Measures, limits: Limits) -> Verdict:
    """Hold the candidate against the limits."""
    few = [
        f"{role} {_named(side)} {_evidence(side)}"
        for role, side in (("baseline", baseline), ("candidate", candidate))
        if side.effective < limits.min_traces
    ]
    if few:
        reason = f"{' and '.join(few)}, and {limits.min_traces} are needed on each side (min_traces)"
        return Verdict("cannot_tell", f"cannot tell: {reason}", [])
    checks = list(_checks(b, c, limits))
    failed = [check for check in checks if check.verdict == "fail"]
    unknown = [check for check in checks if check.verdict == "cannot_tell"]
    if failed:
        return Verdict("fail", f"{len(failed)} of {_counted(len(checks), 'limit')} failed", checks)
    if unknown:
        return Verdict("cannot_tell", f"cannot tell of {len(unknown)} of {_counted(len(checks), 'limit')}", checks)
    return Verdict("pass", f"within {'the limit' if len(checks) == 1 else f'all {len(checks)} limits'}", checks)


def _checks(b: Measures, c: Measures, limits: Limits) -> Iterator[Check]:
    alarms = 1 / max(limits.relative, 1)
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        limit = getattr(limits, f"max_{name}_regression")
        if limit is not None:
            yield _latency(b, c, q, limit, alarms)
    if limits.max_cost_regression is not None:
        yield _cost(b, c, limits.max_cost_regression, alarms)
    if limits.max_tokens_regression is not None:
        yield _tokens(b, c, limits.max_tokens_regression, alarms)
    if limits.max_error_rate is not None:
        yield _error_rate(b, c, limits.max_error_rate)
    for name, least in limits.min_score.items():
        yield _least_score(b, c, name, least)
    for name, drop in limits.max_score_drop.items():
        yield _score_drop(b, c, name, drop, alarms)


# Durations


def _latency(b: Measures, c: Measures, q: float, limit: float, alarms: float) -> Check:
    """Two ways to fail: by the quantile itself, or because all durations moved and the quantile did not stay behind."""
    from query.latencies import slowdown  # noqa: PLC0415 (numpy)

    figure, label = quantile(b, c, q), f"p{q * 100:.0f}"
    name = f"max_{label}_regression"
    traces = min(b.effective, c.effective)
    if b.latencies is None or c.latencies is None or not enough_beyond(q, traces):
        needed = math.ceil(BEYOND_MIN / (1 - q) - 1e-6)
        reason = (
            f"cannot tell the {label} latency from {_counted(int(traces), 'trace')}: it takes {needed} on each side"
        )
        return Check(name, limit, "cannot_tell", reason, figure)
    change = slowdown(b.latencies, c.latencies, q)
    allowed = math.log1p(limit)
    by_itself = _Test(change.change, change.error, allowed, normal(1 - QUANTILE_ALARMS * alarms))
    by_all = _Test(change.shift, change.shift_error, allowed, normal(1 - SHIFT_ALARMS * alarms))
    followed = change.behind <= BEHIND_MAX
    verdict: Outcome = "fail" if by_itself.fails or (by_all.fails and followed) else "pass"
    beyond = by_itself.beyond or (by_all.beyond and followed)

    assert figure.ratio is not None
    together = f"all durations together {_rose(factor(change.shift, change.shift_error))}"
    if by_all.beyond and not followed:
        together += f", but the {label} stayed behind"
    elif verdict == "fail" and not by_itself.fails:
        together += f", and nothing says that the {label} did not go along"
    said = f"{label} latency {_rose(figure.ratio)}, {_between(figure, _duration)}; {together}"
    reason = f"{said}: {_judged(limit, verdict, beyond)}"
    found = math.expm1(by_all.found_from)
    return Check(name, limit, verdict, reason, figure, found)


# Means


def _cost(b: Measures, c: Measures, limit: float, alarms: float) -> Check:
    figure = ratio(b.cost_usd, c.cost_usd)
    for role, m in (("baseline", b), ("candidate", c)):
        if m.unpriced > UNPRICED_MAX * m.effective:
            unpriced = _counted(round(m.unpriced), "trace")
            reason = f"cannot tell the cost: {unpriced} of the {role} used models of unknown price"
            return Check("max_cost_regression", limit, "cannot_tell", reason, figure)
    return _mean(("max_cost_regression", "cost a trace", _dollars), b.cost_usd, c.cost_usd, limit, alarms)


def _tokens(b: Measures, c: Measures, limit: float, alarms: float) -> Check:
    said = ("max_tokens_regression", "tokens a trace", _number)
    return _mean(said, b.tokens["total"], c.tokens["total"], limit, alarms)


def _mean(
    said: tuple[str, str, Callable[[float], str]], b: Mean | None, c: Mean | None, limit: float, alarms: float
) -> Check:
    name, subject, unit = said
    figure = ratio(b, c)
    log = log_ratio(b, c) if b and c else None
    if log is None or figure.ratio is None:
        reason = f"cannot tell the {subject}: a side has too few traces with any"
        return Check(name, limit, "cannot_tell", reason, figure)
    test = _Test(*log, math.log1p(limit), normal(1 - ALARMS_MAX * alarms))
    verdict: Outcome = "fail" if test.fails else "pass"
    reason = f"{subject} {_rose(figure.ratio)}, {_between(figure, unit)}: {_judged(limit, verdict, test.beyond)}"
    return Check(name, limit, verdict, reason, figure, math.expm1(test.found_from))


# Shares and scores


def _error_rate(b: Measures, c: Measures, limit: float) -> Check:
    figure = shares(*b.failed, *c.failed)
    sure = share(*c.failed, normal(1 - ALARMS_MAX))
    if figure.candidate is None or sure is None or sure.low is None:
        return Check("max_error_rate", limit, "cannot_tell", "cannot tell the error rate: there are no traces", figure)
    verdict: Outcome = "fail" if sure.low > limit else "pass"
    judged = _judged(limit, verdict, figure.candidate.value > limit)
    reason = f"error rate {_percent(figure.candidate.value)}{_bounds(figure.candidate, _percent)}: {judged}"
    return Check("max_error_rate", limit, verdict, reason, figure)


def _least_score(b: Measures, c: Measures, score: str, least: float) -> Check:
    name = f"min_score {score}"
    figure = difference(b.scores.get(score), c.scores.get(score))
    of = c.scores.get(score)
    if of is None or of.error is None or of.count < SCORED_MIN:
        return Check(name, least, "cannot_tell", _unscored(score, ("candidate", of)), figure)
    beyond = of.value < least
    verdict: Outcome = "fail" if of.value + student(of.count - 1, 1 - ALARMS_MAX) * of.error < least else "pass"
    chance = "below" if verdict == "fail" else "below, but within chance of" if beyond else "not below"
    reason = (
        f"score {score} {_number(of.value)}{_bounds(of.interval(), _number)}: {chance} the {_number(least)} required"
    )
    return Check(name, least, verdict, reason, figure)


def _score_drop(b: Measures, c: Measures, score: str, limit: float, alarms: float) -> Check:
    name = f"max_score_drop {score}"
    before, after = b.scores.get(score), c.scores.get(score)
    figure = difference(before, after)
    for role, of in (("baseline", before), ("candidate", after)):
        if of is None or of.count < SCORED_MIN:
            return Check(name, limit, "cannot_tell", _unscored(score, (role, of)), figure)
    assert before is not None and after is not None and before.error is not None and after.error is not None
    if before.value <= 0:
        reason = f"cannot tell a drop of the score {score}: the baseline's mean is {_number(before.value)}, not above 0"
        return Check(name, limit, "cannot_tell", reason, figure)
    drop = before.value - after.value
    error = math.hypot(before.error, after.error)
    freedom = min(before.count, after.count) - 1
    test = _Test(drop, error, before.value * limit, student(freedom, 1 - ALARMS_MAX * alarms))
    verdict: Outcome = "fail" if test.fails else "pass"
    moved = f"{'fell' if drop >= 0 else 'rose'} by {_percent(abs(drop) / before.value)}, {_between(figure, _number)}"
    reason = f"score {score} {moved}: {_judged(limit, verdict, test.beyond)}"
    return Check(name, limit, verdict, reason, figure, test.found_from / before.value)


def _unscored(score: str, side: tuple[str, Mean | None]) -> str:
    role, of = side
    count = of.count if of else 0
    return f"cannot tell the score {score}: {_counted(count, 'trace')} of the {role} have it, and it takes {SCORED_MIN}"


@dataclass(frozen=True, slots=True)
class _Test:
    """Is a change beyond what is allowed, and further from nothing than chance goes (`reach` standard errors)?"""

    change: float
    error: float
    allowed: float
    reach: float

    @property
    def beyond(self) -> bool:
        return self.change > self.allowed

    @property
    def fails(self) -> bool:
        return self.beyond and self.change > self.reach * self.error

    @property
    def found_from(self) -> float:
        """The least true change that fails 19 times of 20."""
        return max(self.allowed, self.reach * self.error) + normal(0.95) * self.error


# Words


def _judged(limit: float, verdict: Outcome, beyond: bool) -> str:
    allowed = f"the {_percent(limit)} allowed"
    if verdict == "fail":
        return f"more than {allowed}, beyond chance"
    return f"more than {allowed}, but within chance" if beyond else f"within {allowed}"


def _rose(change: Interval) -> str:
    by = change.value - 1
    word = "rose" if by >= 0 else "fell"
    return f"{word} by {_percent(abs(by))}{_bounds(change, lambda bound: f'{(bound - 1) * 100:+.1f} %')}"


def _bounds(interval: Interval, unit: Callable[[float], str]) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" (95 % interval {unit(interval.low)} to {unit(interval.high)})"


def _between(figure: Figure, unit: Callable[[float], str]) -> str:
    assert figure.baseline is not None and figure.candidate is not None
    return f"from {unit(figure.baseline.value)} to {unit(figure.candidate.value)}"


def _percent(rate: float) -> str:
    return f"{rate * 100:.1f} %".replace(".0 %", " %")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _dollars(value: float) -> str:
    return f"${value:.3g}"


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.2f} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _evidence(side: Side) -> str:
    if side.effective == side.sampled:
        return f"has {_counted(side.sampled, 'trace')}"
    return f"has {_counted(side.sampled, 'trace')} of a sample, which tell as much as {int(side.effective):,}"


def _named(side: Side) -> str:
    return side.version or side.id
