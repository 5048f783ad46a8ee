"""Statistics of latency: percentiles, and confidence intervals that know that runs within a process are alike.

A block is the series of run times of one process, in order of time. Runs within a block are correlated (caches, clock
speed, memory layout), so resampling single runs gives intervals that are far too narrow. Here whole processes are
resampled, and within each one short stretches of neighbouring runs (Davison and Hinkley, Bootstrap Methods and their
Application, sections 3.8 and 8.2). With few processes the percentile interval is too narrow as well; its tails are
widened to those of Student's t (the expanded percentile interval of Hesterberg 2015, What Teachers Should Know about
the Bootstrap).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from android_bench.errors import BenchError

PERCENTILES = (5, 25, 75, 90, 95, 99)
RESAMPLES = 2000
_INNER = 500
_BATCH = 500_000


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


def _stretches(block: np.ndarray, rng: np.random.Generator, times: int = 1) -> np.ndarray:
    """Circular moving-block resamples of a series, (times, size); a stretch grows with the cube root of the size."""
    size = block.size
    length = max(1, round(size ** (1 / 3)))
    starts = rng.integers(0, size, (times, math.ceil(size / length), 1))
    index = (starts + np.arange(length)).reshape(times, -1)[:, :size] % size
    return block[index]


def _resamples(series: list[np.ndarray], rng: np.random.Generator, times: int) -> Iterator[np.ndarray]:
    """Resamples of processes and stretches, pooled, as arrays (some of the resamples, runs)."""
    count, size = len(series), series[0].size
    if any(block.size != size for block in series):
        for _ in range(times):
            yield np.concatenate([_stretches(series[i], rng)[0] for i in rng.integers(0, count, count)])[None]
        return
    # Blocks of one size can be drawn many at a time.
    stacked = np.stack(series)
    length = max(1, round(size ** (1 / 3)))
    batch = max(1, _BATCH // (count * size))
    for done in range(0, times, batch):
        rows = min(batch, times - done)
        chosen = rng.integers(0, count, (rows, count, 1))
        starts = rng.integers(0, size, (rows, count, math.ceil(size / length), 1))
        index = (starts + np.arange(length)).reshape(rows, count, -1)[:, :, :size] % size
        yield stacked[chosen, index].reshape(rows, -1)


def _tail(groups: int, level: float) -> float:
    """The share to cut on either side, widened for a small number of independent groups."""
    from scipy.special import ndtr, stdtrit

    if groups < 2:
        return (1 - level) / 2
    t = stdtrit(groups - 1, (1 + level) / 2)
    return float(ndtr(-math.sqrt(groups / (groups - 1)) * t))


def bootstrap(
    blocks,
    statistic: Callable[[np.ndarray], Sequence[np.ndarray]],
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """Confidence intervals of statistics of the pooled runs, from a bootstrap over processes and stretches of runs.

    Args:
        blocks: one series of times a process, each in order of time; any unit.
        statistic: function of pooled times (resamples, runs) that returns one or more arrays (resamples,).
        level: coverage, 0 to 1.
        resamples: how many resamples to draw.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (low, high) for each array that `statistic` returns. With one process the interval leaves out the variation
        from process to process.

    Example:
        >>> blocks = [[10.0, 10.1, 9.9], [11.0, 11.1, 10.9], [10.4, 10.5, 10.6]]
        >>> (low, high), = bootstrap(blocks, lambda x: [x.mean(-1)])
        >>> low < 10.5 < high
        True
    """
    series = _checked(blocks)
    rng = np.random.default_rng(seed)
    draws = [np.stack(statistic(pooled), axis=-1) for pooled in _resamples(series, rng, resamples)]
    return _bounds(np.concatenate(draws), len(series), level)


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

    def headline(x: np.ndarray) -> list[np.ndarray]:
        middle, ninety = np.percentile(x, (50, 90), axis=-1)
        return [middle, x.mean(-1), ninety]

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
        BenchError: the numbers of blocks differ, or a time is not above 0.

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
    inner = [_log_medians(x, rng) - _log_medians(y, rng) for x, y in zip(a, b, strict=True)]
    ((low, high),) = _bounds(_mean_draws(inner, rng, resamples), len(a), level)
    return math.exp(_center(a) - _center(b)), math.exp(low), math.exp(high)


def ratio(first, second, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """How many times longer `first` takes than `second` when they did not run in alternation.

    Each side is resampled by itself; what changed on the machine between the two is part of the ratio, not of the
    interval. Arguments and result as in `paired_ratio`; the numbers of blocks may differ.
    """
    a, b = _checked(first), _checked(second)
    _positive(a + b)
    rng = np.random.default_rng(seed)
    sides = [_mean_draws([_log_medians(block, rng) for block in blocks], rng, resamples) for blocks in (a, b)]
    ((low, high),) = _bounds(sides[0] - sides[1], min(len(a), len(b)), level)
    return math.exp(_center(a) - _center(b)), math.exp(low), math.exp(high)


def _center(blocks: list[np.ndarray]) -> float:
    return float(np.mean([math.log(np.median(block)) for block in blocks]))


def _log_medians(block: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Logarithms of the medians of resamples of one block, from which the draws of the whole are taken."""
    return np.log(np.median(_stretches(block, rng, _INNER), axis=-1))


def _mean_draws(inner: list[np.ndarray], rng: np.random.Generator, times: int) -> np.ndarray:
    """Means over resampled blocks, each with a random resample of its own runs."""
    table = np.stack(inner)
    rows = rng.integers(0, len(inner), (times, len(inner)))
    return table[rows, rng.integers(0, table.shape[1], rows.shape)].mean(-1)


def _positive(blocks: list[np.ndarray]) -> None:
    if any(block.min() <= 0 for block in blocks):
        raise BenchError("A ratio of latencies needs times above 0; a run was too short for the clock.")
