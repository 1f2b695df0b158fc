"""Estimates with their intervals: shares, means, and the differences and ratios of two of them. Pure, on any thread.

Intervals are two-sided and hold the truth 95 times of 100. Observations must not depend on each other. Where nothing
can be said (no data, a ratio to zero) there is None.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95
RELATIVE_ERROR_MAX = 0.5
"""A ratio to a mean that is less sure than this is no ratio: the mean may as well be zero."""
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the 95 % confidence interval around it. Bounds are null where there are too few observations."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of `count` observations; `error` is its standard error, None for a single one."""

    count: int
    value: float
    error: float | None

    def interval(self) -> Interval:
        """With bounds by Student's t."""
        if self.error is None:
            return Interval(self.value, None, None)
        reach = student(self.count - 1) * self.error
        return Interval(self.value, self.value - reach, self.value + reach)


def normal(level: float) -> float:
    """The normal quantile: `level` of all draws are below it."""
    return _NORMAL.inv_cdf(level)


def student(freedom: float, level: float = (1 + LEVEL) / 2) -> float:
    """The quantile of Student's t, by the expansion of Fisher and Cornish: within 1 % from three degrees on."""
    z = normal(level)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def effective(weights: Sequence[float]) -> float:
    """How many observations of one weight tell as much as these do (Kish, Survey Sampling, 1965, 11.7)."""
    return math.fsum(weights) ** 2 / math.fsum([weight * weight for weight in weights])


def share_of(held: Sequence[object], weights: Sequence[float]) -> tuple[float, float]:
    """Part and whole for `share`: of how many do these hold? Weights count by what they make the share uncertain."""
    if not weights:
        return sum(map(bool, held)), len(held)
    total = math.fsum(weights)
    rate = math.fsum([weight for one, weight in zip(held, weights, strict=True) if one]) / total
    squares = [(weight * (bool(one) - rate)) ** 2 for one, weight in zip(held, weights, strict=True)]
    variance = math.fsum(squares) / total**2
    whole = min(rate * (1 - rate) / variance, total) if variance and 0 < rate < 1 else effective(weights)
    return rate * whole, whole


def mean(values: Sequence[float], weights: Sequence[float] = ()) -> Mean | None:
    """Mean and standard error; None of nothing. A value counts as often as it weighs, and is one observation."""
    count = len(values)
    if count == 0:
        return None
    if weights and count > 1:
        total = math.fsum(weights)
        average = math.fsum([value * weight for value, weight in zip(values, weights, strict=True)]) / total
        squares = [(weight * (value - average)) ** 2 for value, weight in zip(values, weights, strict=True)]
        error = math.sqrt(math.fsum(squares) / total**2 * count / (count - 1))
        return Mean(max(int(effective(weights)), 2), average, error)
    average = math.fsum(values) / count
    if count == 1:
        return Mean(1, average, None)
    variance = math.fsum([(value - average) ** 2 for value in values]) / (count - 1)
    return Mean(count, average, math.sqrt(variance / count))


def score_mean(values: Sequence[float], weights: Sequence[float] = ()) -> Mean | None:
    """The same of scores: ten truths of ten (all 1) do not make a certainty, so the error is Agresti and Coull's."""
    of = mean(values, weights)
    if of is None or of.error is None or any(value not in (0.0, 1.0) for value in values):
        return of
    rate = (of.value * of.count + 2) / (of.count + 4)
    return Mean(of.count, of.value, math.sqrt(rate * (1 - rate) / (of.count + 4)))


def mean_difference(baseline: Mean, candidate: Mean) -> Interval:
    """Candidate less baseline, by Welch."""
    difference = candidate.value - baseline.value
    if baseline.error is None or candidate.error is None:
        return Interval(difference, None, None)
    b, c = baseline.error**2, candidate.error**2
    freedom = (b + c) ** 2 / (b**2 / (baseline.count - 1) + c**2 / (candidate.count - 1)) if b + c else math.inf
    reach = student(freedom) * math.sqrt(b + c)
    return Interval(difference, difference - reach, difference + reach)


def log_ratio(baseline: Mean, candidate: Mean) -> tuple[float, float] | None:
    """Logarithm of candidate by baseline and its standard error, by the delta method; None if one may be zero."""
    if baseline.value <= 0 or candidate.value <= 0 or baseline.error is None or candidate.error is None:
        return None
    relative = [part.error / part.value for part in (baseline, candidate) if part.error is not None]
    if max(relative) > RELATIVE_ERROR_MAX:
        return None
    return math.log(candidate.value / baseline.value), math.hypot(*relative)


def factor(log: float, error: float | None) -> Interval:
    """The interval of a factor from its logarithm and the standard error of that."""
    if error is None:
        return Interval(math.exp(log), None, None)
    reach = normal((1 + LEVEL) / 2) * error
    return Interval(math.exp(log), math.exp(log - reach), math.exp(log + reach))


def share(part: float, whole: float, z: float = normal((1 + LEVEL) / 2)) -> Interval | None:
    """`part` of `whole`, with Wilson's interval: it is right near 0 and 1 too. None of nothing."""
    if whole == 0:
        return None
    rate = part / whole
    scale = 1 + z * z / whole
    centre = (rate + z * z / (2 * whole)) / scale
    reach = z * math.sqrt(rate * (1 - rate) / whole + z * z / (4 * whole * whole)) / scale
    low = 0.0 if part == 0 else max(centre - reach, 0.0)
    high = 1.0 if part >= whole else min(centre + reach, 1.0)
    return Interval(rate, low, high)


def share_difference(baseline: Interval, candidate: Interval) -> Interval:
    """Candidate less baseline of two shares with Wilson's intervals, by Newcombe (Statistics in Medicine 17, 1998)."""
    assert baseline.low is not None and baseline.high is not None
    assert candidate.low is not None and candidate.high is not None
    difference = candidate.value - baseline.value
    down = math.hypot(candidate.value - candidate.low, baseline.high - baseline.value)
    up = math.hypot(candidate.high - candidate.value, baseline.value - baseline.low)
    return Interval(difference, difference - down, difference + up)
