"""Intervals against populations whose truth is known; percentiles against the definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from android_bench import stats
from android_bench.errors import BenchError


def correlated(rng, center, between, within, blocks=6, runs=80, rho=0.9):
    """Blocks with an effect of their own and runs that follow each other (an autoregressive series)."""
    result = []
    for _ in range(blocks):
        level = center + rng.normal(0, between)
        noise = np.zeros(runs)
        for i in range(runs):
            noise[i] = rho * (noise[i - 1] if i else 0) + rng.normal(0, within * np.sqrt(1 - rho**2))
        result.append(level + noise)
    return result


def test_percentiles_interpolate_between_neighbours():
    assert stats.percentiles([1, 2, 3, 4, 5], (0, 5, 25, 50, 75, 95, 100)) == pytest.approx([1, 1.2, 2, 3, 4, 4.8, 5])
    assert stats.median([4, 1, 3, 2]) == 2.5


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50))
def test_percentiles_are_ordered_and_inside(times):
    values = stats.percentiles(times, (5, 25, 50, 75, 90, 95, 99))
    assert all(a <= b or a == pytest.approx(b) for a, b in itertools.pairwise(values))
    assert min(times) * (1 - 1e-9) <= values[0]
    assert values[-1] <= max(times) * (1 + 1e-9)


@pytest.mark.parametrize("bad", [[], [[]], [[1.0, float("nan")]], [[[1.0]]]])
def test_empty_and_not_finite_series_are_refused(bad):
    with pytest.raises(BenchError):
        stats.summarize(bad)


def test_interval_covers_the_truth_where_runs_and_processes_correlate():
    """95 % intervals over 150 seeded experiments with 6 processes; the truth is the centre, 10 ms."""
    covered = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        blocks = correlated(rng, center=10, between=0.2, within=0.3)
        ((low, high),) = stats.bootstrap(blocks, lambda x: [np.median(x, -1)], resamples=300, seed=seed)
        covered += low <= 10 <= high
    assert covered / 150 >= 0.9


def test_interval_is_wider_than_one_that_takes_runs_for_independent():
    blocks = correlated(np.random.default_rng(3), center=10, between=0.2, within=0.3)
    ((low, high),) = stats.bootstrap(blocks, lambda x: [x.mean(-1)])
    pooled = np.concatenate(blocks)
    naive = 2 * 1.96 * pooled.std(ddof=1) / np.sqrt(pooled.size)
    assert high - low > 3 * naive


def test_few_processes_widen_the_interval():
    """For the mean of blocks without inner variation the t interval is known; the bootstrap must not be narrower."""
    means = np.array([10.0, 10.4, 9.8, 10.1, 10.2, 9.9])
    ((low, high),) = stats.bootstrap([np.full(20, m) for m in means], lambda x: [x.mean(-1)], resamples=4000)
    half = 2.5706 * means.std(ddof=1) / np.sqrt(6)  # t quantile of 5 degrees of freedom, from a table
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)


def test_same_seed_same_interval():
    blocks = correlated(np.random.default_rng(0), 10, 0.1, 0.1, runs=30)
    assert stats.summarize(blocks, resamples=50, seed=4) == stats.summarize(blocks, resamples=50, seed=4)
    assert stats.summarize(blocks, resamples=50, seed=4) != stats.summarize(blocks, resamples=50, seed=5)


def test_summary_holds_the_pooled_figures():
    summary = stats.summarize([[1, 2, 3], [4, 5, 6, 100]], resamples=50)
    pooled = sorted([1, 2, 3, 4, 5, 6, 100])
    assert summary["median"] == pooled[3]
    assert summary["mean"] == pytest.approx(sum(pooled) / 7)
    assert (summary["min"], summary["max"]) == (1, 100)
    assert summary["p90"] == pytest.approx(6 + 0.4 * 94)  # position 0.9 * 6 = 5.4
    assert set(summary["intervals"]) == {"median", "mean", "p90"}


def test_paired_ratio_takes_a_drift_out():
    """The machine slows down by half over the run; the blocks alternate, the true ratio is 1.3."""
    rng = np.random.default_rng(1)
    drift = np.linspace(1, 1.5, 12)
    order = "ABBAABBAABBA"
    a = [13 * drift[i] * rng.lognormal(0, 0.01, 50) for i in range(12) if order[i] == "A"]
    b = [10 * drift[i] * rng.lognormal(0, 0.01, 50) for i in range(12) if order[i] == "B"]
    ratio, low, high = stats.paired_ratio(a, b)
    assert low <= 1.3 <= high
    assert ratio == pytest.approx(1.3, rel=0.01)
    _, loose_low, loose_high = stats.ratio(a, b)
    assert high - low < (loose_high - loose_low) / 2


def test_paired_ratio_covers_the_truth():
    covered = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        a = [2.0 * rng.lognormal(0, 0.05) * rng.lognormal(0, 0.1, 30) for _ in range(6)]
        b = [1.0 * rng.lognormal(0, 0.05) * rng.lognormal(0, 0.1, 30) for _ in range(6)]
        _, low, high = stats.paired_ratio(a, b, resamples=200, seed=seed)
        covered += low <= 2 <= high
    assert covered / 120 >= 0.9


def test_blocks_of_different_sizes_give_nearly_the_interval_of_equal_ones():
    """Two ways of drawing serve the two; leaving one run of 40 out must not change what they say."""
    blocks = correlated(np.random.default_rng(5), 10, 0.2, 0.3, runs=40)
    equal = stats.bootstrap(blocks, lambda x: [x.mean(-1)], resamples=3000)
    uneven = stats.bootstrap([blocks[0][:-1], *blocks[1:]], lambda x: [x.mean(-1)], resamples=3000)
    width = equal[0][1] - equal[0][0]
    assert uneven[0] == pytest.approx(equal[0], abs=0.15 * width)


@settings(deadline=None)
@given(st.floats(0.1, 10), st.integers(0, 5))
def test_ratio_of_a_scaled_series_is_the_scale(scale, seed):
    base = [list(np.random.default_rng(seed).uniform(1, 2, 7)) for _ in range(3)]
    scaled = [[scale * value for value in block] for block in base]
    assert stats.paired_ratio(scaled, base, resamples=10)[0] == pytest.approx(scale)
    assert stats.ratio(base, scaled, resamples=10)[0] == pytest.approx(1 / scale)


def test_ratio_refuses_what_has_none():
    with pytest.raises(BenchError, match="as many blocks"):
        stats.paired_ratio([[1.0]], [[1.0], [2.0]])
    with pytest.raises(BenchError, match="above 0"):
        stats.paired_ratio([[1.0]], [[0.0]])
    with pytest.raises(BenchError, match="above 0"):
        stats.ratio([[0.0, 0.0, 1.0]], [[1.0]])
