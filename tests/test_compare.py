"""Two versions whose true difference is known: what the figures say, how often the gate is right, and its words.

The promise of the issue is tested as it stands, through the function that the API calls: 100 seeds, 500 traces a side.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from query.compare import compare, measure, side
from query.comparison import Comparison, Sample, Scored
from query.gate import Limits, Verdict, judge
from query.intervals import Mean, mean, mean_difference, score_mean, share, share_difference, student

sys.path.append(str(Path(__file__).parent.parent))  # benchmarks are not installed: they are run from a clone

from benchmarks.gate import DISTRIBUTIONS, Draw, Logs, lognormal

SEEDS = 100
TRACES = 500


def sample(durations_s: Logs, failed: int = 0, cost: float = 0.01, tokens: int = 1000) -> Sample:
    """Traces a minute apart, the newest first; the last ones `failed`."""
    count = len(durations_s)
    return Sample(
        traces=count,
        trace_ids=[i.to_bytes(16) for i in range(count)],
        starts_unix_nano=[(count - i) * 60 * 10**9 for i in range(count)],
        durations_nano=[int(seconds * 1e9) for seconds in durations_s],
        failed=[int(i >= count - failed) for i in range(count)],
        input_tokens=[tokens * 9 // 10] * count,
        output_tokens=[tokens // 10] * count,
        total_tokens=[tokens] * count,
        costs_usd=[cost] * count,
        unpriced=[0] * count,
        tools=[("search", "answer")] * count,
    )


def judged(baseline: Sample, candidate: Sample, limits: Limits) -> Verdict:
    return judge(side(baseline, "bot", "3"), side(candidate, "bot", "4"), measure(baseline), measure(candidate), limits)


def compared(baseline: Sample, candidate: Sample) -> Comparison:
    return compare(
        "model", side(baseline, "bot", "3"), side(candidate, "bot", "4"), measure(baseline), measure(candidate)
    )


def failures(draw: Draw, factor: float, limits: Limits, seeds: int = SEEDS) -> int:
    """Of so many pairs of versions, how many fail when each duration of the candidate is so many times as long."""
    count = 0
    for seed in range(seeds):
        random = np.random.default_rng([seed, round(100 * factor)])
        baseline, candidate = (sample(np.exp(draw(random, TRACES))) for _ in range(2))
        slower = replace(candidate, durations_nano=[int(nano * factor) for nano in candidate.durations_nano])
        count += judged(baseline, slower, limits).verdict == "fail"
    return count


# The promise


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_two_equal_versions_are_not_told_apart(distribution: str) -> None:
    assert failures(DISTRIBUTIONS[distribution], 1, Limits(max_p95_regression=0.1, max_error_rate=0.02)) <= 5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_true_regression_of_a_fifth_is_found(distribution: str) -> None:
    """96.4 of 100 are found at sigma 0.7, as 3,000 seeds showed: too near to 95 for 100 seeds to tell."""
    seeds = 4 * SEEDS if distribution == "log-normal, sigma 0.7" else SEEDS
    limits = Limits(max_p95_regression=0.1, max_error_rate=0.02)
    assert failures(DISTRIBUTIONS[distribution], 1.2, limits, seeds) >= 0.95 * seeds


def test_many_limits_together_do_not_cry_wolf() -> None:
    limits = Limits(
        max_p50_regression=0.02, max_p95_regression=0.02, max_p99_regression=0.02,
        max_cost_regression=0.02, max_tokens_regression=0.02,
    )  # fmt: skip
    alarms = 0
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        sides = []
        for _ in range(2):
            one = sample(np.exp(0.5 * random.standard_normal(TRACES)))
            tokens = [int(count) for count in 1000 * np.exp(0.8 * random.standard_normal(TRACES))]
            sides.append(replace(one, total_tokens=tokens, costs_usd=[count * 1e-6 for count in tokens]))
        alarms += judged(*sides, limits).verdict == "fail"
    assert alarms <= 5


def test_a_faster_candidate_passes() -> None:
    assert failures(lognormal(0.5), 0.8, Limits(max_p95_regression=0.0)) == 0


def test_a_regression_of_the_tail_alone_is_found_too() -> None:
    """Above the p85 everything takes half as long again; below, nothing changed."""
    found = 0
    for seed in range(SEEDS):
        random = np.random.default_rng(seed)
        before, after = (0.5 * random.standard_normal(TRACES) for _ in range(2))
        after = np.where(after > 0.5 * 1.036, after + math.log(1.5), after)
        found += judged(
            sample(np.exp(before)), sample(np.exp(after)), Limits(max_p95_regression=0.1)
        ).verdict == "fail"  # fmt: skip
    assert found >= 95


def test_what_the_bulk_does_is_not_said_of_a_p95_that_stayed() -> None:
    """The faster nine tenths take a third longer, the slowest tenth does not: seen, with traces enough."""
    alarms = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        before, after = (0.5 * random.standard_normal(4000) for _ in range(2))
        edge = 0.5 * 1.282
        after = np.where(after < edge, np.minimum(after + math.log(4 / 3), edge), after)
        verdict = judged(sample(np.exp(before)), sample(np.exp(after)), Limits(max_p95_regression=0.1))
        alarms += verdict.verdict == "fail"
        assert "but the p95 stayed behind" in verdict.checks[0].reason
    assert alarms == 0


def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say() -> None:
    held = {"p50": 0, "p95": 0, "p99": 0, "all": 0}
    for seed in range(300):
        random = np.random.default_rng(seed)
        before, after = (sample(np.exp(0.5 * random.standard_normal(TRACES))) for _ in range(2))
        figures = compared(before, after).latency_ms
        for name in held:
            interval = getattr(figures, name).ratio
            held[name] += interval.low <= 1 <= interval.high
    for name, count in held.items():
        assert 0.92 * 300 <= count <= 0.98 * 300, name


# The gate's words and edges


def alike(count: int = TRACES, seed: int = 1) -> Sample:
    return sample(np.exp(0.3 * np.random.default_rng(seed).standard_normal(count)))


def test_too_few_traces_to_tell() -> None:
    verdict = judged(alike(500), alike(120), Limits(max_p95_regression=0.1, min_traces=200))
    assert verdict.verdict == "cannot_tell"
    assert "candidate 4 has 120 traces, and 200 are needed on each side" in verdict.reason
    assert "baseline" not in verdict.reason


def test_a_quantile_with_nothing_beyond_it() -> None:
    verdict = judged(alike(300), alike(300, 2), Limits(max_p99_regression=0.1))
    assert verdict.verdict == "cannot_tell"
    assert verdict.checks[0].reason == "cannot tell the p99 latency from 300 traces: it takes 500 on each side"


def test_a_limit_that_fails_outweighs_one_that_cannot_be_told() -> None:
    slower = sample(np.exp(0.3 * np.random.default_rng(2).standard_normal(300)) * 1.5)
    verdict = judged(alike(300), slower, Limits(max_p50_regression=0.1, max_p99_regression=0.1))
    assert [check.verdict for check in verdict.checks] == ["fail", "cannot_tell"]
    assert (verdict.verdict, verdict.reason) == ("fail", "1 of 2 limits failed")


def test_a_failing_limit_is_explained_with_numbers() -> None:
    durations = np.exp(0.3 * np.random.default_rng(1).standard_normal(TRACES))
    check = judged(sample(durations), sample(durations * 1.25), Limits(max_p95_regression=0.1)).checks[0]
    assert check.verdict == "fail"
    assert check.reason.startswith("p95 latency rose by 25 % (95 % interval +")
    assert "all durations together rose by 25 % (95 % interval +" in check.reason
    assert check.reason.endswith("more than the 10 % allowed, beyond chance")
    assert check.found_from is not None
    assert 0.1 < check.found_from < 0.2


@pytest.mark.parametrize(
    ("failed", "verdict", "words"),
    [
        (5, "pass", "error rate 1 % (95 % interval 0.4 % to 2.3 %): within the 2 % allowed"),
        (14, "pass", "error rate 2.8 % (95 % interval 1.7 % to 4.6 %): more than the 2 % allowed, but within chance"),
        (20, "fail", "error rate 4 % (95 % interval 2.6 % to 6.1 %): more than the 2 % allowed, beyond chance"),
    ],
)
def test_error_rate(failed: int, verdict: str, words: str) -> None:
    durations = np.ones(TRACES)
    check = judged(sample(durations), sample(durations, failed=failed), Limits(max_error_rate=0.02)).checks[0]
    assert (check.verdict, check.reason) == (verdict, words)


def test_cost_and_tokens() -> None:
    limits = Limits(max_cost_regression=0.05, max_tokens_regression=0.05)
    ones = np.ones(TRACES)
    dearer = judged(sample(ones), sample(ones, cost=0.012, tokens=1040), limits)
    assert [check.verdict for check in dearer.checks] == ["fail", "pass"]
    assert dearer.checks[0].reason == (
        "cost a trace rose by 20 % (95 % interval +20.0 % to +20.0 %), from $0.01 to $0.012: "
        "more than the 5 % allowed, beyond chance"
    )


def test_a_cost_that_is_not_known_is_not_judged() -> None:
    ones = np.ones(TRACES)
    blind = replace(sample(ones), unpriced=[1] * 50 + [0] * (TRACES - 50))
    check = judged(sample(ones), blind, Limits(max_cost_regression=0.05)).checks[0]
    assert check.verdict == "cannot_tell"
    assert check.reason == "cannot tell the cost: 50 traces of the candidate used models of unknown price"
    free = replace(sample(ones), costs_usd=[0.0] * TRACES)
    assert judged(free, sample(ones), Limits(max_cost_regression=0.05)).verdict == "cannot_tell"


def scored(*numbers: float) -> Sample:
    return replace(sample(np.ones(TRACES)), scores={"helpful": Scored(numbers)})


@pytest.mark.parametrize(
    ("good", "of", "verdict", "word"),
    [(70, 100, "fail", "below the 0.8"), (77, 100, "pass", "below, but within chance of"),
     (85, 100, "pass", "not below"), (20, 20, "cannot_tell", "20 traces of the candidate have it, and it takes 30")],
)  # fmt: skip
def test_a_least_score(good: int, of: int, verdict: str, word: str) -> None:
    candidate = scored(*([1.0] * good + [0.0] * (of - good)))
    check = judged(scored(), candidate, Limits(min_score={"helpful": 0.8})).checks[0]
    assert check.verdict == verdict
    assert word in check.reason


def test_a_drop_of_a_score() -> None:
    before, after = scored(*([4.0, 5.0] * 100)), scored(*([3.0, 4.0] * 100))
    limits = Limits(max_score_drop={"helpful": 0.05})
    check = judged(before, after, limits).checks[0]
    assert check.verdict == "fail"
    assert check.reason == "score helpful fell by 22.2 %, from 4.5 to 3.5: more than the 5 % allowed, beyond chance"
    assert judged(after, before, limits).verdict == "pass"
    assert judged(scored(*([-1.0, 1.0] * 100)), after, limits).verdict == "cannot_tell"


# The figures


def test_figures_of_both_sides() -> None:
    durations = np.exp(0.3 * np.random.default_rng(1).standard_normal(TRACES))
    answer = compared(sample(durations), sample(durations * 2, failed=50, cost=0.02, tokens=2000))
    p95 = answer.latency_ms.p95
    assert p95.baseline is not None and p95.candidate is not None and p95.ratio is not None
    assert p95.baseline.value == pytest.approx(np.quantile(durations, 0.95) * 1000, rel=0.05)
    assert p95.ratio.value == pytest.approx(2)
    assert answer.latency_ms.all.ratio is not None
    assert answer.latency_ms.all.ratio.value == pytest.approx(2)
    assert answer.error_rate.difference is not None
    assert answer.error_rate.difference.value == pytest.approx(0.1)
    assert answer.error_rate.difference.low is not None and answer.error_rate.difference.low > 0.07
    assert answer.tokens.total.ratio is not None and answer.cost_usd.ratio is not None
    assert answer.tokens.total.ratio.value == pytest.approx(2)
    assert answer.cost_usd.ratio.value == pytest.approx(2)
    assert answer.traces_per_hour.baseline is not None
    assert answer.traces_per_hour.baseline.value == pytest.approx(60)


def test_tool_paths_by_how_little_chance_explains_them() -> None:
    ones = np.ones(1000)
    before = [("search", "answer")] * 500 + [("search", "search", "answer")] * 400 + [("ask",)] * 100
    after = [("search", "answer")] * 880 + [("search", "delete")] * 120
    paths = compared(
        replace(sample(ones), tools=before), replace(sample(ones), tools=after)
    ).tool_paths  # fmt: skip
    assert [(path.tools, path.change) for path in paths] == [
        (["search", "delete"], "new"),
        (["ask"], "vanished"),
        (["search", "answer"], "both"),
    ], "a repetition is the same path"
    share_of_new = paths[0].share
    assert share_of_new.baseline is not None and share_of_new.candidate is not None and share_of_new.difference
    assert (share_of_new.baseline.value, share_of_new.candidate.value) == (0, 0.12)
    assert share_of_new.difference.low is not None and share_of_new.difference.low > 0.1


def test_calls_of_a_tool_a_trace() -> None:
    ones = np.ones(100)
    before, after = [("search", "answer")] * 100, [("search",) * 3 + ("answer",)] * 100
    calls = compared(replace(sample(ones), tools=before), replace(sample(ones), tools=after)).tool_calls
    assert calls[0].tool == "search"
    figure = calls[0].calls
    assert figure.baseline is not None and figure.candidate is not None
    assert (figure.baseline.value, figure.candidate.value) == (1, 3)


def test_scores_and_labels() -> None:
    before = replace(scored(*([1.0] * 60 + [0.0] * 40)), scores={
        "helpful": Scored([1.0] * 60 + [0.0] * 40), "tone": Scored([], {"kind": 90, "rude": 10}, 100)
    })  # fmt: skip
    after = replace(before, scores={"helpful": Scored([1.0] * 100), "tone": Scored([], {"kind": 50, "rude": 50}, 100)})
    helpful, tone = compared(before, after).scores
    assert helpful.mean is not None and helpful.mean.difference is not None and helpful.mean.difference.low is not None
    assert helpful.mean.difference.value == pytest.approx(0.4)
    assert 0.2 < helpful.mean.difference.low < 0.4
    assert tone.mean is None
    assert [
        (label.label, label.share.difference and round(label.share.difference.value, 9)) for label in tone.labels
    ] == [
        ("kind", -0.4),
        ("rude", 0.4),
    ]


def test_examples_to_look_at() -> None:
    durations = np.array([1.0, 9.0, 5.0, 4.9, 2.0, 7.0, 8.0])
    costs = [0.0, 1.0, 0.0, 3.0, 2.0, 0.0, 0.0]
    examples = side(replace(sample(durations, failed=2), costs_usd=costs), "bot", "3").examples
    numbers = {
        name: [int(trace_id, 16) for trace_id in getattr(examples, name)]
        for name in ("slowest", "failed", "typical", "most_expensive")
    }
    assert numbers == {"slowest": [1, 6, 5], "failed": [5, 6], "typical": [2, 3, 4], "most_expensive": [3, 4, 1]}


def test_sides_without_traces_or_with_one() -> None:
    nothing, one = Sample(0), alike(1)
    answer = compared(nothing, one)
    assert answer.latency_ms.p95.ratio is None and answer.error_rate.difference is None
    assert answer.tool_paths == []
    assert answer.error_rate.candidate is not None
    assert compared(one, one).latency_ms.p50.baseline is None
    assert compared(alike(2), alike(2)).latency_ms.p50.ratio is not None


def test_durations_of_nothing_and_all_the_same() -> None:
    still = compared(sample(np.zeros(300)), sample(np.zeros(300)))
    assert still.latency_ms.p95.ratio is not None
    assert (still.latency_ms.p95.ratio.value, still.latency_ms.p95.ratio.low) == (1, 1)
    limits = Limits(max_p95_regression=0.1)
    assert judged(sample(np.ones(300)), sample(np.ones(300)), limits).verdict == "pass"
    assert judged(sample(np.ones(300)), sample(np.full(300, 1.2)), limits).verdict == "fail"


# Intervals, against published values


def test_wilsons_interval() -> None:
    interval = share(10, 100)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    none = share(0, 500)
    assert none is not None and none.low == 0 and none.high == pytest.approx(0.0076, abs=1e-4)


def test_newcombes_interval() -> None:
    """His example (a): 56 of 70 less 48 of 80, method 10."""
    more, less = share(56, 70), share(48, 80)
    assert more is not None and less is not None
    interval = share_difference(less, more)
    assert (interval.value, interval.low, interval.high) == (
        pytest.approx(0.2), pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4),
    )  # fmt: skip


def test_students_quantiles() -> None:
    for freedom, quantile in ((3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042)):
        assert student(freedom) == pytest.approx(quantile, rel=0.01)


def test_means() -> None:
    assert mean([]) is None
    assert mean([3.0]) == Mean(1, 3.0, None)
    of = mean([1.0, 2.0, 3.0])
    assert of == Mean(3, 2.0, pytest.approx(1 / math.sqrt(3)))
    sure = score_mean([1.0] * 10)
    assert sure is not None and sure.error is not None and sure.error > 0.05
    assert mean_difference(Mean(1, 3.0, None), Mean(9, 4.0, 1.0)).low is None
