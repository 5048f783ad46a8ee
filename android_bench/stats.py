"""Statistics of latency: percentiles, and confidence intervals that know that runs within a process are alike.

A block is the series of run times of one process, in order of time. Runs within a block are correlated (caches, clock
speed, memory layout), so resampling single runs gives intervals that are far too narrow. Here whole processes are
resampled, and within each one short stretches of neighbouring runs (Davison and Hinkley, Bootstrap Methods and their
Application, sections 3.8 and 8.2). With few processes the percentile interval is too narrow as well; its tails are
widened to those of Student's t (the expanded percentile interval of Hesterberg 2015, What Teachers Should Know about
the Bootstrap).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from android_bench.errors import BenchError

PERCENTILES = (5, 25, 75, 90, 95, 99)
RESAMPLES = 2000


def median(times) -> float:
    """The middle value.

    Example:
        >>> median([3, 1, 2, 10])
        2.5
    """
    return float(np.median(_series(times)))


def percentiles(times, which: Sequence[float] = PERCENTILES) -> list[float]:
    """Percentiles with linear interpolation between neighbours.

    Example:
        >>> percentiles([0, 10, 20, 30, 40], (25, 90))
        [10.0, 36.0]
    """
    return [float(value) for value in np.percentile(_series(times), which)]


def _series(times) -> np.ndarray:
    array = np.asarray(times, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise BenchError("A series of times must be one list with at least one number.")
    if not np.all(np.isfinite(array)):
        raise BenchError("A series of times holds a number that is not finite.")
    return array


def _checked(blocks) -> list[np.ndarray]:
    series = [_series(block) for block in blocks]
    if not series:
        raise BenchError("No block of times was given.")
    return series


def _stretches(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One circular moving-block resample of a series; the stretch grows with the cube root of the length."""
    size = block.size
    length = max(1, round(size ** (1 / 3)))
    starts = rng.integers(0, size, math.ceil(size / length))
    index = (starts[:, None] + np.arange(length)).ravel()[:size] % size
    return block[index]


def _tail(groups: int, level: float) -> float:
    """The share to cut on either side, widened for a small number of independent groups."""
    from scipy.special import ndtr, stdtrit

    if groups < 2:
        return (1 - level) / 2
    t = stdtrit(groups - 1, (1 + level) / 2)
    return float(ndtr(-math.sqrt(groups / (groups - 1)) * t))


def bootstrap(
    blocks,
    statistic: Callable[[np.ndarray], Sequence[float]],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Confidence intervals of statistics of the pooled runs, from a bootstrap over processes and stretches of runs.

    Args:
        blocks: one series of times a process, each in order of time; any unit.
        statistic: function of the pooled times that returns one or more numbers.
        level: coverage, 0 to 1.
        resamples: how many resamples to draw.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (low, high) for each number that `statistic` returns. With one process the interval leaves out the variation
        from process to process.

    Example:
        >>> blocks = [[10.0, 10.1, 9.9], [11.0, 11.1, 10.9], [10.4, 10.5, 10.6]]
        >>> (low, high), = bootstrap(blocks, lambda x: [float(x.mean())])
        >>> low < 10.5 < high
        True
    """
    series = _checked(blocks)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(resamples):
        chosen = rng.integers(0, len(series), len(series))
        draws.append(statistic(np.concatenate([_stretches(series[i], rng) for i in chosen])))
    return _bounds(np.asarray(draws, np.float64), len(series), level)


def _bounds(draws: np.ndarray, groups: int, level: float) -> list[tuple[float, float]]:
    tail = _tail(groups, level)
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(np.atleast_1d(low), np.atleast_1d(high), strict=True)]


def summarize(blocks, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Everything that is said about the latency of one case, in the unit of the times.

    Args:
        blocks: one series of times a process.
        level: coverage of the intervals.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        {"median", "mean", "min", "max", "p5", ..., "p99", "intervals": {"median", "mean", "p90"}, "level"}.
    """
    series = _checked(blocks)
    pooled = np.concatenate(series)

    def headline(x: np.ndarray) -> list[float]:
        middle, ninety = np.percentile(x, (50, 90))
        return [middle, float(x.mean()), ninety]

    names = ("median", "mean", "p90")
    intervals = dict(zip(names, map(list, bootstrap(series, headline, level, resamples, seed)), strict=True))
    result = {
        "median": median(pooled),
        "mean": float(pooled.mean()),
        "min": float(pooled.min()),
        "max": float(pooled.max()),
    }
    result |= {f"p{q}": value for q, value in zip(PERCENTILES, percentiles(pooled), strict=True)}
    return result | {"intervals": intervals, "level": level}


def paired_ratio(
    first, second, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """How many times longer `first` takes than `second`, from blocks that ran in alternation.

    The ratio is taken within each pair of neighbouring blocks, so that a drift of the machine cancels: the estimate is
    the geometric mean over the pairs of median(first) / median(second), and the interval resamples pairs.

    Args:
        first: one series of times a block.
        second: as many; `second[i]` ran next to `first[i]`.
        level: coverage.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        (ratio, low, high); above 1 means that `second` is faster.

    Raises:
        BenchError: the numbers of blocks differ, or a median is not above 0.

    Example:
        >>> ratio, low, high = paired_ratio([[20, 21], [30, 31], [24, 25]], [[10, 10], [15, 15.5], [12, 12.5]])
        >>> low < ratio < high, round(ratio, 1)
        (True, 2.0)
    """
    a, b = _checked(first), _checked(second)
    if len(a) != len(b):
        raise BenchError(f"Pairs need as many blocks of the one as of the other; there are {len(a)} and {len(b)}.")
    _positive(a + b)
    rng = np.random.default_rng(seed)

    def estimate(pairs) -> float:
        return float(np.mean([math.log(np.median(x) / np.median(y)) for x, y in pairs]))

    draws = []
    for _ in range(resamples):
        chosen = rng.integers(0, len(a), len(a))
        draws.append(estimate([(_stretches(a[i], rng), _stretches(b[i], rng)) for i in chosen]))
    ((low, high),) = _bounds(np.asarray(draws), len(a), level)
    return math.exp(estimate(zip(a, b, strict=True))), math.exp(low), math.exp(high)


def ratio(first, second, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """How many times longer `first` takes than `second` when they did not run in alternation.

    Each side is resampled by itself; what changed on the machine between the two is part of the ratio, not of the
    interval. Arguments and result as in `paired_ratio`; the numbers of blocks may differ.
    """
    a, b = _checked(first), _checked(second)
    _positive(a + b)
    rng = np.random.default_rng(seed)

    def middle(blocks: list[np.ndarray]) -> float:
        return float(np.mean([math.log(np.median(x)) for x in blocks]))

    def resampled(blocks: list[np.ndarray]) -> float:
        return middle([_stretches(blocks[i], rng) for i in rng.integers(0, len(blocks), len(blocks))])

    draws = np.asarray([resampled(a) - resampled(b) for _ in range(resamples)])
    ((low, high),) = _bounds(draws, min(len(a), len(b)), level)
    return math.exp(middle(a) - middle(b)), math.exp(low), math.exp(high)


def _positive(blocks: list[np.ndarray]) -> None:
    if any(np.median(block) <= 0 for block in blocks):
        raise BenchError("A ratio of latencies needs medians above 0; one is too short for the clock.")
