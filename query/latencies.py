"""How much slower one set of durations is than another, and how sure that is. Pure, on any thread.

Everything is done with logarithms, so that a change is a factor. Each figure is a weighted mean of the sorted durations
(an L-statistic): quantiles by Harrell and Davis, which look at the quantile's neighbours too, and two trimmed means.
Their standard errors, and how they go together, come from the influence of each duration on each figure: no resampling,
nothing random. Where sampling left traces out, a duration's place is its share of the weights (`_places`).

numpy makes 20,000 durations a matter of milliseconds. It is imported here and nowhere else, and this file only when
something is compared: it costs 25 MB.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.5, 0.95, 0.99)
MIDDLE = (0.05, 0.95)
SLOWER = (0.5, 0.98)
"""Parts of the sorted durations whose means tell the shift of all: nine tenths of them, and the slower half."""
DURATION_MIN_NANO = 1_000
"""Shorter durations count as this one: the logarithm of zero would outweigh everything else."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Logarithms (of nanoseconds) of the QUANTILES, the middle and the slower half, and their covariances."""

    figures: Array
    """Shape (5,)."""
    covariances: Array
    """Shape (5, 5), of the errors of `figures`."""


@dataclass(frozen=True, slots=True)
class Slowdown:
    """How one quantile changed, and all durations together. Changes are logarithms of factors; errors are standard."""

    change: float
    error: float
    shift: float
    shift_error: float
    behind: float
    """By how much the quantile changed less than all did, in standard errors of that; negative if it changed more."""


def latencies(durations_nano: Sequence[int], counting: Sequence[float] = ()) -> Latencies:
    """Figures of two durations at least; of sampled traces `counting` says as how many each counts."""
    logs = np.log(np.maximum(np.asarray(durations_nano, dtype=np.float64), DURATION_MIN_NANO))
    order = np.argsort(logs, kind="stable")
    logs, count = logs[order], len(logs)
    if not counting:
        places, weights = np.full(count, 1 / count), _even_weights(count)
    else:
        counts = np.asarray(counting, dtype=np.float64)[order]
        places = counts / counts.sum()
        weights = _weights(_edges(places), 1 / float(places @ places))
    influences = _influences(logs, weights, places)
    return Latencies(weights @ logs, (influences * places**2) @ influences.T * count / (count - 1))


def slowdown(baseline: Latencies, candidate: Latencies, quantile: float) -> Slowdown:
    """What the candidate adds to the baseline, at one of the QUANTILES."""
    changes = candidate.figures - baseline.figures
    covariances = baseline.covariances + candidate.covariances
    weights = _shift_weights(covariances)
    at = QUANTILES.index(quantile)
    change, error = float(changes[at]), math.sqrt(covariances[at, at])
    shift, shift_error = float(weights @ changes), _root(weights @ covariances @ weights)
    apart_error = _root(error**2 + shift_error**2 - 2 * covariances[at] @ weights)
    apart = shift - change
    behind = apart / apart_error if apart_error else math.copysign(math.inf, apart) if apart else 0.0
    return Slowdown(change, error, shift, shift_error, behind)


def _shift_weights(covariances: Array) -> Array:
    """Weights of the middle and the slower half whose sum has the least variance, both telling the same shift."""
    middle, slower, both = (float(covariances[i, j]) for i, j in ((-2, -2), (-1, -1), (-2, -1)))
    apart = middle + slower - 2 * both
    of_slower = min(max((middle - both) / apart, 0.0), 1.0) if apart > 0 else 0.0
    weights = np.zeros(len(covariances))
    weights[-2:] = 1 - of_slower, of_slower
    return weights


@lru_cache(maxsize=4)
def _even_weights(count: int) -> Array:
    return _weights(np.arange(count + 1) / count, float(count))


def _weights(edges: Array, whole: float) -> Array:
    """What each sorted duration weighs in each figure; a row a figure, which sums to 1.

    Each lies between two of the `edges`; they tell as much as `whole` durations that count alike.
    """
    rows = [_harrell_davis(edges, whole, quantile) for quantile in QUANTILES]
    for low, high in (MIDDLE, SLOWER):
        rows.append(np.diff(np.clip(edges, low, high)) / (high - low))
    return np.stack(rows)


def _edges(places: Array) -> Array:
    """Where each sorted duration begins and ends between 0 and 1; one more than there are durations."""
    edges: Array = np.concatenate([[0.0], np.cumsum(places)])
    edges /= edges[-1]
    return edges


def _harrell_davis(edges: Array, whole: float, quantile: float) -> Array:
    """A beta distribution around the quantile: Harrell and Davis, Biometrika 69 (1982). Integrated by midpoints."""
    cells = 8 * (len(edges) - 1)
    a, b = (whole + 1) * quantile, (whole + 1) * (1 - quantile)
    middles = (np.arange(cells) + 0.5) / cells
    logs = (a - 1) * np.log(middles) + (b - 1) * np.log1p(-middles)
    below = np.concatenate([[0.0], np.cumsum(np.exp(logs - logs.max()))])
    weights: Array = np.diff(np.interp(edges, np.arange(cells + 1) / cells, below / below[-1]))
    return weights


def _influences(logs: Array, weights: Array, places: Array) -> Array:
    """How much each sorted duration moves each figure, less the mean; shape of `weights`.

    Huber and Ronchetti, Robust Statistics (2009), 3.3: a duration bears on every gap between neighbours above it.
    """
    density = weights / places
    between = (density[:, :-1] + density[:, 1:]) / 2 * np.diff(logs)
    influences = np.zeros_like(weights)
    influences[:, 1:] = np.cumsum(between, axis=1)
    influences -= (influences @ places)[:, None]
    return influences


def _root(square: Any) -> float:
    return math.sqrt(max(float(square), 0.0))
