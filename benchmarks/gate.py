"""How often the gate is right, by the distribution of the durations and what became of it: `python -m benchmarks.gate`.

Versions whose true difference is known go through the functions that the API calls. Prints the table of
docs/decisions/0006-gate-statistics.md; its arguments are the traces a side (500) and the pairs of versions (2000).
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from query.compare import measure, side
from query.comparison import Sample
from query.gate import Limits, judge

Logs = NDArray[np.float64]
"""Natural logarithms of durations in seconds."""
Draw = Callable[[np.random.Generator, int], Logs]
FIFTH = math.log(1.2)


def lognormal(sigma: float) -> Draw:
    return lambda random, count: sigma * random.standard_normal(count)


def gamma(shape: float) -> Draw:
    return lambda random, count: np.log(random.gamma(shape, 1, count))


def slow_path(part: float) -> Draw:
    """So many traces take some four times as long: a cache that misses, a tool that is called."""

    def draw(random: np.random.Generator, count: int) -> Logs:
        slow = math.log(4) + 0.4 * random.standard_normal(count)
        return np.where(random.random(count) < part, slow, 0.3 * random.standard_normal(count))

    return draw


def heavy_tail(random: np.random.Generator, count: int) -> Logs:
    """One trace in ten from a Pareto distribution: retries and queues."""
    tail = 0.5 + random.exponential(0.6, count)
    return np.where(random.random(count) < 0.1, tail, 0.5 * random.standard_normal(count))


DISTRIBUTIONS: Mapping[str, Draw] = {
    "log-normal, sigma 0.3": lognormal(0.3),
    "log-normal, sigma 0.5": lognormal(0.5),
    "log-normal, sigma 0.7": lognormal(0.7),
    "gamma, shape 2": gamma(2),
    "gamma, shape 4": gamma(4),
    "slow path 5 %": slow_path(0.05),
    "slow path 10 %": slow_path(0.10),
    "slow path 20 %": slow_path(0.20),
    "heavy tail": heavy_tail,
}


@dataclass(frozen=True, slots=True)
class Edges:
    """True p70 and p90 of a distribution, as logarithms."""

    low: float
    high: float


def _upper(logs: Logs, edges: Edges) -> Logs:
    """0 below the p70, 1 above the p90, a ramp between."""
    return np.clip((logs - edges.low) / (edges.high - edges.low), 0, 1)


CHANGES: Mapping[str, Callable[[Logs, Edges], Logs]] = {
    "none": lambda logs, edges: logs,
    "all +5 %": lambda logs, edges: logs + math.log(1.05),
    "all +10 %": lambda logs, edges: logs + math.log(1.1),
    "all +20 %": lambda logs, edges: logs + FIFTH,
    "tail +20 %": lambda logs, edges: logs + FIFTH * _upper(logs, edges),
    "bulk +20 %": lambda logs, edges: logs + FIFTH * (1 - _upper(logs, edges)),
}


def _sample(durations_nano: NDArray[np.float64]) -> Sample:
    count = len(durations_nano)
    return Sample(
        count, [b""] * count, durations_nano=list(durations_nano), failed=bytes(count), costs_usd=[0.0] * count
    )


def failed(name: str, change: str, traces: int, pairs: int) -> float:
    """The share of pairs of versions that fail `--max-p95-regression 10%`."""
    draw, limits = DISTRIBUTIONS[name], Limits(max_p95_regression=0.1, min_traces=2)
    low, high = np.quantile(draw(np.random.default_rng(0), 400_000), (0.7, 0.9))
    edges = Edges(float(low), float(high))
    place = [*DISTRIBUTIONS].index(name), [*CHANGES].index(change)
    count = 0
    for pair in range(pairs):
        random = np.random.default_rng([pair, traces, *place])
        before, after = draw(random, traces), CHANGES[change](draw(random, traces), edges)
        samples = [_sample(np.exp(logs) * 1e9) for logs in (before, after)]
        (b, baseline), (c, candidate) = ((measure(one), side(one, "", str(i))) for i, one in enumerate(samples))
        count += judge(baseline, candidate, b, c, limits).verdict == "fail"
    return count / pairs


def main() -> None:
    traces, pairs = (int(given) for given in (*sys.argv[1:], *("500", "2000")[len(sys.argv) - 1 :]))
    print(f"| {traces} traces a side | {' | '.join(CHANGES)} |\n|{' --- |' * (len(CHANGES) + 1)}")
    for name in DISTRIBUTIONS:
        rates = [f"{100 * failed(name, change, traces, pairs):.1f}" for change in CHANGES]
        print(f"| {name} | {' | '.join(rates)} |", flush=True)


if __name__ == "__main__":
    main()
