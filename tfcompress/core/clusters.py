"""One-dimensional k-means: the codebooks of shared weights.

Values are sorted once; a cluster is then a run of neighbours, so that one Lloyd step is k binary searches over prefix
sums and needs no distance matrix (Deep Compression, paper 12, clusters millions of weights per layer).
"""

import dataclasses

import numpy as np

from tfcompress.errors import CompressionError, nearest


@dataclasses.dataclass(frozen=True)
class Clusters:
    """What `kmeans_1d` found; unpacks as `centroids, assignments, wcss`.

    Args:
        centroids: [k] ascending, in the values' own float type.
        assignments: int32, of the values' shape: index of the nearest centroid.
        wcss: weighted sum of squared distances to the centroids, in units of the values squared.
        history: the same sum after each Lloyd step, first step first; never rises.
    """

    centroids: np.ndarray
    assignments: np.ndarray
    wcss: float
    history: tuple[float, ...] = ()

    def __iter__(self):
        return iter((self.centroids, self.assignments, self.wcss))


class SortedValues:
    """Distinct values in ascending order with prefix sums of weight, first and second moment (float64).

    Args:
        values: [n] finite numbers. weights: [n] numbers >= 0, or None for 1 each.
    """

    def __init__(self, values, weights=None):
        order = np.argsort(values, kind="stable") if weights is not None else None
        ordered = np.sort(values) if order is None else values[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.values = ordered[starts]
        x = self.values.astype(np.float64)
        if weights is None:
            self.weights = np.diff(np.r_[starts, ordered.size]).astype(np.float64)
        else:
            self.weights = np.add.reduceat(weights[order].astype(np.float64), starts)
        # Moments about the mean: about zero, a cluster far from zero would lose its variance to rounding.
        total = self.weights.sum()
        self.offset = float(np.dot(self.weights, x) / total) if total > 0 else 0.0
        self.x = x - self.offset
        self._sums = [np.r_[0.0, np.cumsum(self.weights * self.x**power)] for power in (0, 1, 2)]

    def edges(self, centroids) -> np.ndarray:
        """[k + 1] bounds of the runs nearest to the ascending centroids; a tie goes to the smaller centroid."""
        inner = np.searchsorted(self.x, (centroids[1:] + centroids[:-1]) / 2, side="right")
        return np.r_[0, inner, self.x.size]

    def moments(self, edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weight, weighted sum and weighted sum of squares of each run."""
        weight, first, second = (np.diff(sums[edges]) for sums in self._sums)
        return weight, first, second


def _spread(data: SortedValues, k: int, init, rng) -> np.ndarray:
    """The starting centroids, ascending, relative to the data's offset."""
    if not isinstance(init, str):
        start = np.sort(np.asarray(init, np.float64).ravel()) - data.offset
        if start.size != k or not np.isfinite(start).all():
            raise CompressionError(
                f"kmeans_1d: `init` must hold k = {k} finite numbers, received {start.size} values: {init!r}."
            )
        return start
    if init == "linear":
        return np.linspace(data.x[0], data.x[-1], k)
    mass = np.cumsum(data.weights) / data.weights.sum()
    if init == "density":
        return data.x[np.searchsorted(mass, (np.arange(k) + 0.5) / k).clip(max=data.x.size - 1)]
    if init == "random":
        drawn = rng.choice(data.x.size, size=min(k, data.x.size), replace=False, p=data.weights / data.weights.sum())
        return np.sort(data.x[drawn])
    if init == "k-means++":
        chosen = [data.x[np.searchsorted(mass, rng.random()).clip(max=data.x.size - 1)]]
        gap = np.full(data.x.size, np.inf)
        while len(chosen) < k:
            gap = np.minimum(gap, data.weights * (data.x - chosen[-1]) ** 2)
            reach = np.cumsum(gap)
            chosen.append(data.x[np.searchsorted(reach, rng.random() * reach[-1]).clip(max=data.x.size - 1)])
        return np.sort(chosen)
    known = ["linear", "density", "random", "k-means++"]
    raise CompressionError(f"kmeans_1d: no initialisation {init!r}. {nearest(str(init), known)}")


def _refill(data: SortedValues, centroids, edges, weight, first, second):
    """Give each empty cluster the value that is farthest from its centroid; that value leaves its old cluster."""
    empty = np.flatnonzero(weight <= 0)
    owner = np.repeat(np.arange(centroids.size), np.diff(edges))
    distance = np.where(data.weights > 0, (data.x - centroids[owner]) ** 2, -1.0)
    count = min(empty.size, data.x.size)
    farthest = np.argpartition(distance, -count)[-count:]
    farthest = farthest[np.argsort(-distance[farthest], kind="stable")]
    for cluster, value in zip(empty, farthest, strict=False):
        old, w, x = owner[value], data.weights[value], data.x[value]
        if distance[value] <= 0 or weight[old] <= w:
            continue
        for moments, term in ((weight, w), (first, w * x), (second, w * x * x)):
            moments[old] -= term
            moments[cluster] = term
    return weight, first, second


def _lloyd(data: SortedValues, centroids, iterations: int):
    """Alternate nearest centroids and weighted means until no bound moves."""
    history, last = [], None
    for _ in range(iterations):
        edges = data.edges(centroids)
        if last is not None and np.array_equal(edges, last):
            break
        weight, first, second = data.moments(edges)
        refilled = bool((weight <= 0).any())
        if refilled:
            weight, first, second = _refill(data, centroids, edges, weight, first, second)
        filled = weight > 0
        means = np.where(filled, first / np.where(filled, weight, 1.0), centroids)
        history.append(float(np.sum((second - weight * means**2)[filled]).clip(min=0.0)))
        centroids, last = np.sort(means), None if refilled and not np.array_equal(means, centroids) else edges
    return centroids, history


def kmeans_1d(values, k: int, init="linear", weights=None, *, iterations: int = 300, restarts: int = 1, seed: int = 0):
    """Cluster numbers on a line by Lloyd's algorithm, the trained codebook of Deep Compression.

    Minimises sum_i h_i (w_i - c_a(i))^2. A cluster that runs empty takes the value farthest from its centroid, so that
    all k are used where there are k distinct values. With k at or above the number of distinct values the result is
    lossless, and the surplus centroids repeat the largest one.

    Args:
        values: finite numbers of any shape.
        k: number of centroids, >= 1.
        init: "linear" (equally spaced from the smallest to the largest value: few large weights matter), "density"
            (equal shares of the values), "random" (drawn values), "k-means++", or k starting centroids.
        weights: importance h >= 0 of each value, of the values' shape; None counts all alike. A diagonal Hessian gives
            Hessian-weighted clustering (paper 48).
        iterations: most Lloyd steps of one start.
        restarts: starts of which the best is kept; more than 1 makes sense with a random `init`.
        seed: of the random starts.

    Returns:
        `Clusters`: centroids [k] ascending, assignments int32 of the values' shape, wcss.

    Raises:
        CompressionError: no values, a value that is not finite, bad weights, k or init.

    References: paper 12, Deep Compression (Han, Mao, Dally, 2015), section 3.

    Example:
        >>> centroids, assignments, wcss = kmeans_1d([0.0, 0.5, 4.0, 5.0], k=2)
        >>> centroids.tolist(), assignments.tolist(), wcss
        ([0.25, 4.5], [0, 0, 1, 1], 0.625)
    """
    array, h = _checked(values, k, weights)
    flat = array.ravel()
    data = SortedValues(flat, h)
    distinct = data.values.size
    if k >= distinct:
        centroids = np.r_[data.values, np.repeat(data.values[-1:], k - distinct)].astype(array.dtype)
        found = np.searchsorted(data.values, flat).astype(np.int32).reshape(array.shape)
        return Clusters(centroids, found, 0.0, (0.0,))
    best = None
    for attempt in range(max(1, restarts)):
        start = _spread(data, k, init, np.random.default_rng([seed, attempt]))
        centroids, history = _lloyd(data, start, iterations)
        if best is None or history[-1] < best[1][-1]:
            best = centroids, history
    assert best is not None
    centroids, history = best
    # Boundaries are taken on the rounded centroids, so that every index is the nearest of what is returned.
    rounded = (centroids + data.offset).astype(array.dtype)
    wide = rounded.astype(np.float64)
    assignments = np.searchsorted((wide[1:] + wide[:-1]) / 2, flat, side="left").astype(np.int32)
    error = (flat.astype(np.float64) - wide[assignments]) ** 2
    wcss = float(error.sum() if h is None else np.dot(error, h))
    return Clusters(rounded, assignments.reshape(array.shape), wcss, tuple(history))


def _checked(values, k, weights):
    array = np.asarray(values)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.size == 0:
        raise CompressionError("kmeans_1d: there are no values to cluster.")
    if isinstance(k, bool) or k != int(k) or k < 1:
        raise CompressionError(f"kmeans_1d: k must be a whole number of at least 1, received {k!r}.")
    if not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise CompressionError(f"kmeans_1d: {bad} of {array.size} values are not finite; cluster finite weights.")
    if weights is None:
        return array, None
    h = np.asarray(weights, np.float64)
    if h.shape != array.shape or not np.isfinite(h).all() or (h < 0).any() or h.sum() <= 0:
        raise CompressionError(
            f"kmeans_1d: `weights` must be finite, >= 0, not all zero and of the values' shape {array.shape}; "
            f"received shape {h.shape}."
        )
    return array, h.ravel()
