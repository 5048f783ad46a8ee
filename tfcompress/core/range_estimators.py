"""Ranges from values: extremes, percentile, least squared error and least KL divergence, over a streaming histogram.

Pure NumPy. A tensor's values stream through a `Histogram` of bounded size, and every estimator reads it alone:
`estimate(histogram, "mse")`. Weights, which are at hand as a whole, get their steps from `mse_units`.
"""

import bisect

import numpy as np

from tfcompress.errors import CompressionError, nearest

METHODS = ("minmax", "percentile", "mse", "kl")
# The share of values that "percentile" keeps on each side, where nobody says.
PERCENTILE = 99.99
# Ends that "mse" tries on each side, and in each finer round; rounds until a side stands still.
_COARSE, _FINE, _ROUNDS = 64, 16, 6
# Bounds that "kl" tries.
_BOUNDS = 400


class Histogram:
    """Counts and sums of a stream of values in bins of equal width, in memory that does not grow.

    The width is a power of two and bins begin at its multiples. It doubles, and neighbours are merged, when a value lies
    outside; so the result depends on the values alone, not on their order or on how they were cut into pieces.

    Args:
        bins: at most so many, and at least half of them span the values seen.

    Attributes:
        low, high: smallest and largest value. count: values seen. zeros: how many of them are exactly 0.
        width: of a bin. first: multiple of the width at which the first bin begins. counts, sums: by bin.

    Example:
        >>> histogram = Histogram(bins=8).add([0.0, 1.0]).add([3.0])
        >>> histogram.width, histogram.counts.tolist(), histogram.low, histogram.high
        (0.5, [1, 0, 1, 0, 0, 0, 1], 0.0, 3.0)
    """

    def __init__(self, bins: int = 4096):
        if bins < 4:
            raise CompressionError(f"A histogram needs at least 4 bins; received {bins}.")
        self.bins = int(bins)
        self.low, self.high = np.inf, -np.inf
        self.count = self.zeros = 0
        self.width, self.first = 0.0, 0
        self.counts: np.ndarray = np.zeros(0, np.int64)
        self.sums: np.ndarray = np.zeros(0)

    def add(self, values) -> "Histogram":
        """Count more values.

        Args:
            values: numbers of any shape.

        Raises:
            CompressionError: one is NaN or infinite.
        """
        values = np.asarray(values, np.float64).ravel()
        if not values.size:
            return self
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise CompressionError("Values whose range is looked for hold NaN or infinite numbers.")
        self.low, self.high = min(low, self.low), max(high, self.high)
        self._span()
        index = np.floor(values / self.width).astype(np.int64) - self.first
        self.counts += np.bincount(index, minlength=len(self.counts))
        self.sums += np.bincount(index, values, minlength=len(self.sums))
        self.count += values.size
        self.zeros += int(values.size - np.count_nonzero(values))
        return self

    def _span(self) -> None:
        """Double the width until the extremes fit, and lengthen the arrays to hold them."""
        width = self.width or _power_of_two(max((self.high - self.low) / self.bins, max(-self.low, self.high) / 2**40))
        while np.floor(self.high / width) - np.floor(self.low / width) >= self.bins:
            width *= 2
        first, last = int(np.floor(self.low / width)), int(np.floor(self.high / width))
        if self.width and (width != self.width or first != self.first or last - first + 1 != len(self.counts)):
            # Exact: widths are powers of two.
            begins = (self.first + np.arange(len(self.counts))) * self.width
            target = np.floor(begins / width).astype(np.int64) - first
            size = last - first + 1
            counts = np.zeros(size, np.int64)
            np.add.at(counts, target, self.counts)
            self.counts, self.sums = counts, np.bincount(target, self.sums, minlength=size)
        elif not self.width:
            self.counts, self.sums = np.zeros(last - first + 1, np.int64), np.zeros(last - first + 1)
        self.width, self.first = width, first

    @property
    def means(self) -> np.ndarray:
        """The mean of the values in each bin; the middle of an empty one."""
        middles = (self.first + np.arange(len(self.counts)) + 0.5) * self.width
        return np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1), middles)


def _power_of_two(value: float) -> float:
    """The smallest power of two that is no smaller."""
    return float(2.0 ** np.ceil(np.log2(max(value, 2.0**-100))))


def estimate(histogram: Histogram, method: str = "minmax", *, percent: float = PERCENTILE, bits: int = 8,
             symmetric: bool = False) -> tuple[float, float]:  # fmt: skip
    """The range of a tensor by one of `METHODS`.

    Args:
        histogram: of its values. method: "minmax", "percentile", "mse" or "kl".
        percent: for "percentile". bits, symmetric: of the codes, for "mse" and "kl".

    Returns:
        (low, high); (0, 0) for no values.

    Raises:
        CompressionError: the method is unknown.

    Example:
        >>> estimate(Histogram().add([-1.0, 2.0]), "minmax")
        (-1.0, 2.0)
    """
    if method not in METHODS:
        raise CompressionError(f"Ranges are estimated by {', '.join(METHODS)}. {nearest(str(method), METHODS)}")
    if method == "percentile":
        return percentile(histogram, percent)
    if method == "mse":
        return mse(histogram, bits, symmetric)
    return kl(histogram, bits, symmetric) if method == "kl" else minmax(histogram)


def minmax(histogram: Histogram) -> tuple[float, float]:
    """The extremes."""
    return (float(histogram.low), float(histogram.high)) if histogram.count else (0.0, 0.0)


def percentile(histogram: Histogram, percent: float = PERCENTILE) -> tuple[float, float]:
    """The values below which 100 - percent and percent of the values lie, exact to the width of a bin.

    Raises:
        CompressionError: `percent` is no number above 50 up to 100.

    Example:
        >>> low, high = percentile(Histogram().add(np.arange(1001)), 90)
        >>> round(low), round(high)
        (100, 900)
    """
    check_percent(percent)
    if not histogram.count:
        return 0.0, 0.0
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    cut = 1 - percent / 100
    # Each end is counted from its own side, so that a gap between two values that lies just there is left outside.
    ends = [
        np.interp(cut, np.concatenate([[0], np.cumsum(counts)]) / histogram.count, at)
        for counts, at in ((histogram.counts, edges), (histogram.counts[::-1], edges[::-1]))
    ]
    return tuple(float(end) for end in np.clip(ends, histogram.low, histogram.high))  # type: ignore[return-value]


def check_percent(percent) -> None:
    """Refuse a percentile that would cut off half the values, or none.

    Raises:
        CompressionError: it is no number above 50 up to 100.
    """
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 50 < percent <= 100:
        raise CompressionError(f"percentile must be above 50 and at most 100, e.g. 99.99; got {percent}.")


def grid(low: float, high: float, bits: int = 8, symmetric: bool = False) -> tuple[float, int, int, int]:
    """(step, code of 0, lowest, highest code) of the integers that cover low..high and 0.

    Example:
        >>> grid(0.0, 255.0), grid(-127.0, 1.0, symmetric=True)
        ((1.0, -128, -128, 127), (1.0, 0, -127, 127))
    """
    half = 2 ** (bits - 1)
    if symmetric:
        return max(-low, high, 1e-12) / (half - 1), 0, 1 - half, half - 1
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(high - low, 1e-12) / (2 * half - 1)
    return step, int(np.clip(np.rint(-half - low / step), -half, half - 1)), -half, half - 1


def squared_error(histogram: Histogram, low: float, high: float, bits: int = 8, symmetric: bool = False) -> float:
    """The mean squared error of rounding the values to the codes of a range, from the means of the bins.

    Where the step is finer than a bin, rounding costs step^2 / 12.
    """
    step, zero, least, most = grid(low, high, bits, symmetric)
    value = histogram.means
    wanted = value / step + zero
    rounding = (np.rint(wanted) - wanted) ** 2 if step >= histogram.width else np.full(len(value), 1 / 12)
    clipping = (np.clip(wanted, least, most) - wanted) ** 2
    error = np.where((wanted < least) | (wanted > most), clipping, rounding)
    return float(step**2 * (histogram.counts @ error) / max(histogram.count, 1))


def mse(histogram: Histogram, bits: int = 8, symmetric: bool = False) -> tuple[float, float]:
    """The range whose codes lose least in squared error, each end searched in turn, coarse to fine.

    Args:
        histogram: of the values. bits: of the codes. symmetric: one bound for both signs, codes from 1 - 2^(bits-1).

    Example:
        >>> values = np.append(np.random.default_rng(0).normal(size=10_000), 50.0)
        >>> mse(Histogram().add(values), bits=4)[1] < 10
        True
    """
    low, high = minmax(histogram)
    if symmetric:
        bound = max(-low, high)
        found = _shrunk(lambda end: squared_error(histogram, -end, end, bits, True), bound)
        return -found, found
    low, high = min(low, 0.0), max(high, 0.0)
    ends = [low, high]
    for _ in range(_ROUNDS):
        before = list(ends)
        ends[1] = _shrunk(lambda end: squared_error(histogram, ends[0], end, bits), high)
        ends[0] = _shrunk(lambda end: squared_error(histogram, end, ends[1], bits), low)
        if ends == before:
            break
    return ends[0], ends[1]


def _shrunk(loss, full: float) -> float:
    """The end between 0 and `full` with the least loss, on a coarse grid and two finer ones around its best."""
    if full == 0:
        return full
    candidates = np.arange(1, _COARSE + 1) / _COARSE
    gap = 1 / _COARSE
    for _ in range(3):
        losses = [loss(float(full * share)) for share in candidates]
        # Of equal ones the widest: it clips least of what was not seen.
        best = float(candidates[len(losses) - 1 - int(np.argmin(losses[::-1]))])
        candidates = np.clip(np.linspace(best - gap, best + gap, _FINE + 1), gap / _FINE, 1.0)
        candidates = np.unique(np.append(candidates, best))
        gap = 2 * gap / _FINE
    return float(full * best)


def kl(histogram: Histogram, bits: int = 8, symmetric: bool = False) -> tuple[float, float]:
    """The range whose codes keep most of the distribution: least Kullback-Leibler divergence from it.

    Tried is every bound T of -T..T, cut to the values' own range: what lies outside is counted in the outermost bins (P),
    the rest is spread evenly over the bins of its code that were not empty (Q), as Migacz describes it (8-bit inference
    with TensorRT, 2017). Exact zeros are left out, since 0 has a code of its own in every range.

    Args:
        histogram: of the values. bits: of the codes. symmetric: return -T..T, for codes that are symmetric.

    Example:
        >>> values = np.append(np.random.default_rng(0).normal(size=100_000), 50.0)
        >>> kl(Histogram().add(values))[1] < 10
        True
    """
    low, high = minmax(histogram)
    counts = _without_zeros(histogram)
    if counts.sum() == 0:
        return low, high
    ends = _bounds(histogram, 2**bits)
    divergence = [
        _divergence(counts, *_slice(histogram, round(end / histogram.width)), 2**bits - symmetric) for end in ends
    ]
    best = len(ends) - 1 - int(np.argmin(divergence[::-1]))
    bound = min(float(ends[best]), max(-low, high))
    return (-bound, bound) if symmetric else (max(low, -bound), min(high, bound))


def _without_zeros(histogram: Histogram) -> np.ndarray:
    counts = histogram.counts.astype(np.float64)
    if histogram.zeros and 0 <= -histogram.first < len(counts):
        counts[-histogram.first] -= histogram.zeros
    return counts


def _bounds(histogram: Histogram, levels: int) -> np.ndarray:
    """The bounds T that "kl" tries: multiples of the bin's width, from as many bins as there are codes to all of them."""
    largest = int(max(-histogram.first, histogram.first + len(histogram.counts)))
    # A range's bins grow with its bound; a constant far from 0 has too many bounds to go through.
    spans = bisect.bisect_left(range(1, largest + 1), levels, key=lambda n: np.subtract(*_slice(histogram, n)[::-1]))
    least = min(spans + 1, largest)
    return np.unique(np.linspace(least, largest, _BOUNDS).round()) * histogram.width


def _slice(histogram: Histogram, n: int) -> tuple[int, int]:
    """The bins between n widths below and above 0."""
    return max(0, -n - histogram.first), max(0, min(len(histogram.counts), n - histogram.first))


def _divergence(counts: np.ndarray, start: int, stop: int, levels: int) -> float:
    """KL(P, Q) of one range, in nats, P with the clipped counts in its outermost bins."""
    kept = counts[start:stop]
    if stop <= start or kept.sum() == 0:
        return np.inf
    p = kept.copy()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    code = np.arange(len(kept)) * min(levels, len(kept)) // len(kept)
    filled = kept > 0
    total = np.bincount(code, kept)
    share = np.bincount(code, filled)
    q = np.where(filled, (total / np.maximum(share, 1))[code], 0.0)
    # Where only clipped counts lie, Q holds half a count, so that it is compared at all.
    q = np.where((p > 0) & (q == 0), 0.5, q)
    inside = p > 0
    p, q = p[inside] / p.sum(), q[inside] / q.sum()
    return float(np.sum(p * np.log(p / q)))


def mse_units(values, high: int, axes: tuple[int, ...] = (), shares: int = 80, floor: float = 0.2) -> np.ndarray:
    """The step of symmetric integers with the least squared error: one for all values, or one an output channel.

    Args:
        values: a weight. high: the largest code, e.g. 7 for 4 bits. axes: that keep a step each, e.g. (3,) for Conv2D.
        shares: how many bounds are tried, from `floor` times the largest magnitude up to all of it.

    Returns:
        Positive float32 steps, with 1 on the axes that share one.

    Example:
        >>> mse_units([[-3.5, 7.0]], high=7, axes=(1,)).tolist()
        [[0.5, 1.0]]
    """
    values = np.asarray(values, np.float64)
    shared = tuple(axis for axis in range(values.ndim) if axis not in axes)
    largest = np.abs(values).max(axis=shared, keepdims=True)
    full = np.where(largest > 0, largest, 1.0) / high
    best, least = full, np.full(full.shape, np.inf)
    for share in np.linspace(1.0, floor, shares):
        unit = full * share
        error = ((np.clip(np.rint(values / unit), -high, high) * unit - values) ** 2).sum(axis=shared, keepdims=True)
        best, least = np.where(error < least, unit, best), np.minimum(error, least)
    return best.astype(np.float32)
