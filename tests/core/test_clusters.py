"""1-D k-means against scikit-learn, brute force and closed forms."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfcompress.core.clusters import kmeans_1d
from tfcompress.errors import CompressionError


def survivors(n, seed=0, threshold=0.6):
    """What is left of normal weights after magnitude pruning: nothing near zero."""
    weights = np.random.default_rng(seed).standard_normal(n)
    return weights[np.abs(weights) > threshold]


def cost(values, centroids, weights=1.0):
    """Weighted sum of squared distances to the nearest centroid, by the full distance matrix."""
    distance = (np.asarray(values, float)[:, None] - np.asarray(centroids, float)) ** 2
    return float((distance.min(axis=1) * weights).sum())


@pytest.mark.paper(12)
@pytest.mark.parametrize("k", [2, 5, 16, 32])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_scikit_learn_from_the_same_start(k, weighted):
    from sklearn.cluster import KMeans

    values = survivors(4000)
    weights = np.random.default_rng(1).uniform(0.1, 5.0, values.size) if weighted else None
    start = np.linspace(values.min(), values.max(), k)
    ours = kmeans_1d(values, k, init="linear", weights=weights, iterations=3000)
    theirs = KMeans(k, init=start[:, None], n_init=1, tol=0, max_iter=3000).fit(values[:, None], sample_weight=weights)
    np.testing.assert_allclose(ours.centroids, np.sort(theirs.cluster_centers_.ravel()), atol=1e-9)
    assert ours.wcss == pytest.approx(theirs.inertia_, rel=1e-9)
    rank = np.argsort(np.argsort(theirs.cluster_centers_.ravel()))
    np.testing.assert_array_equal(ours.assignments, rank[theirs.labels_])


@pytest.mark.paper(12)
@pytest.mark.parametrize("init", ["linear", "density", "random", "k-means++"])
def test_wcss_never_rises(init):
    values = survivors(20_000, seed=3)
    history = np.array(kmeans_1d(values, 32, init=init, seed=2).history)
    assert len(history) > 5
    assert (np.diff(history) <= 1e-9 * history[0]).all()
    assert history[-1] < history[0]


@pytest.mark.paper(12)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_as_many_centroids_as_values_is_lossless(values, surplus):
    values = np.array(values, np.float32)
    k = len(set(values.tolist())) + surplus
    found = kmeans_1d(values, k)
    np.testing.assert_array_equal(found.centroids[found.assignments], values)
    assert found.wcss == 0
    assert found.centroids.shape == (k,)
    assert found.centroids.dtype == np.float32


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=60),
    st.integers(1, 8),
    st.sampled_from(["linear", "density", "random", "k-means++"]),
    st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_every_index_is_the_nearest_centroid(values, k, init, seed):
    values = np.array(values, np.float32)
    found = kmeans_1d(values, k, init=init, seed=seed)
    assert (np.diff(found.centroids) >= 0).all()
    assert found.assignments.shape == values.shape
    chosen = (values.astype(float) - found.centroids.astype(float)[found.assignments]) ** 2
    assert chosen.sum() == pytest.approx(cost(values, found.centroids), rel=1e-9, abs=1e-9)
    assert found.wcss == pytest.approx(chosen.sum(), rel=1e-9, abs=1e-9)


def test_linear_start_is_equally_spaced():
    # One step from 0, 5, 10; equal shares of the values would have started at 0.5, 6 and 9.75 and kept other neighbours.
    values = [0.0, 0.5, 4.0, 6.0, 9.5, 9.75, 10.0]
    found = kmeans_1d(values, 3, init="linear", iterations=1)
    np.testing.assert_allclose(found.centroids, [0.25, 5.0, 9.75])
    # A quarter and three quarters of the way through seven values: 0.1 and 9, so the bound lies at 4.55.
    density = kmeans_1d([0.0, 0.1, 0.2, 0.3, 0.4, 9.0, 10.0], 2, init="density", iterations=1)
    np.testing.assert_allclose(density.centroids, [0.2, 9.5], rtol=1e-6)


def test_empty_clusters_are_filled():
    # Two tight groups far apart: of 8 linear centroids 6 start with nothing.
    values = np.r_[np.random.default_rng(0).normal(-5, 0.1, 500), np.random.default_rng(1).normal(5, 0.1, 500)]
    found = kmeans_1d(values, 8, init="linear")
    assert np.unique(found.assignments).size == 8
    assert found.wcss < 0.5 * cost(values, [-5, 5])


@pytest.mark.paper(33)
@pytest.mark.parametrize(("k", "constant"), [(4, 0.1175), (8, 0.0345), (16, 0.0095)])
def test_reaches_the_lloyd_max_constants(k, constant):
    from scipy.stats import norm

    values = np.random.default_rng(0).standard_normal(200_000)
    start = norm.ppf((np.arange(k) + 0.5) / k) * 3**0.5
    found = kmeans_1d(values, k, init=start, iterations=100)
    assert found.wcss / np.dot(values, values) == pytest.approx(constant, rel=0.02)


@pytest.mark.paper(48)
def test_weighted_restarts_reach_the_best_contiguous_partition():
    draw = np.random.default_rng(5)
    for _ in range(10):
        values, weights = np.sort(draw.standard_normal(8)), draw.uniform(0.01, 10, 8)
        best = np.inf
        for cuts in itertools.combinations(range(1, 8), 2):
            parts = zip(np.split(values, cuts), np.split(weights, cuts), strict=True)
            best = min(best, sum(float((h * (x - (h @ x) / h.sum()) ** 2).sum()) for x, h in parts))
        found = kmeans_1d(values, 3, init="k-means++", weights=weights, restarts=30)
        assert found.wcss == pytest.approx(best, rel=1e-6)
        scaled = kmeans_1d(values, 3, init="k-means++", weights=weights * 7, restarts=30)
        np.testing.assert_allclose(scaled.centroids, found.centroids)


def test_weights_of_zero_do_not_pull():
    found = kmeans_1d([0.0, 1.0, 100.0], 1, weights=[1, 1, 0])
    assert found.centroids.tolist() == [0.5]


def test_shape_and_type_are_kept():
    values = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    found = kmeans_1d(values, 4)
    assert found.assignments.shape == (3, 4, 5)
    assert found.assignments.dtype == np.int32
    assert found.centroids.dtype == np.float32
    again = kmeans_1d(values, 4, init=found.centroids)
    np.testing.assert_allclose(again.centroids, found.centroids, rtol=1e-6)


def test_far_from_zero_nothing_is_lost():
    values = 1e6 + survivors(2000)
    near = kmeans_1d(survivors(2000), 8)
    far = kmeans_1d(values, 8)
    assert far.wcss == pytest.approx(near.wcss, rel=1e-6)


def test_two_million_weights_take_seconds():
    values = survivors(4_000_000, threshold=0.7).astype(np.float32)
    start = time.process_time()
    kmeans_1d(values, 32)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"values": [], "k": 2}, "no values"),
        ({"values": [1.0, np.nan], "k": 2}, "1 of 2 values are not finite"),
        ({"values": [1.0], "k": 0}, "k must be"),
        ({"values": [1.0], "k": 1.5}, "k must be"),
        ({"values": [1.0, 2.0, 3.0], "k": 2, "init": "linaer"}, "Did you mean 'linear'"),
        ({"values": [1.0, 2.0, 3.0], "k": 2, "init": [1.0]}, "k = 2 finite numbers"),
        ({"values": [1.0, 2.0], "k": 1, "weights": [1.0]}, "values' shape"),
        ({"values": [1.0, 2.0], "k": 1, "weights": [1.0, -1.0]}, ">= 0"),
    ],
)
def test_bad_input_is_named(kwargs, words):
    with pytest.raises(CompressionError, match=words):
        kmeans_1d(**kwargs)
