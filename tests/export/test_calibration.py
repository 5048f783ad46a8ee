"""Calibration by extremes, percentile, squared error and KL divergence: case C21, with oracles that keep every value."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export import oracle
from tfcompress import export
from tfcompress.core import range_estimators
from tfcompress.core.range_estimators import Histogram
from tfcompress.errors import CompressionError


def draw(kind: str, count: int = 20_000) -> np.ndarray:
    rng = np.random.default_rng(sum(map(ord, kind)))
    values = {
        "normal": rng.normal(size=count),
        "relu": np.maximum(rng.laplace(size=count), 0),
        "heavy": rng.standard_t(3, size=count),
        "negative": -rng.gamma(2.0, size=count),
        "outlier": np.append(rng.normal(size=count), [50.0]),
        "shifted": rng.normal(3.0, 1.0, size=count),
    }[kind]
    return values.astype(np.float32)


KINDS = pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "negative", "outlier", "shifted"])


def rounding_error(values, low, high, bits, symmetric) -> float:
    """The mean squared error of fake quantization, by the definition and over all values."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        codes = np.arange(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1)) * (max(-low, high) / (2 ** (bits - 1) - 1))
    else:
        step = (high - low) / (2**bits - 1)
        codes = (np.arange(2**bits) - round(-low / step)) * step
    middles = (codes[1:] + codes[:-1]) / 2
    return float(np.mean((codes[np.searchsorted(middles, values)] - values) ** 2))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), min_size=1, max_size=5),
    st.sampled_from([16, 64, 4096]),
)
def test_histogram_depends_on_the_values_alone(parts, bins):
    stream = Histogram(bins)
    for part in parts:
        stream.add(part)
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    assert (stream.low, stream.high) == (values.min(), values.max())
    assert stream.zeros == (values == 0).sum()
    assert len(stream.counts) <= bins
    edges = (stream.first + np.arange(len(stream.counts) + 1)) * stream.width
    expected = [int(((values >= a) & (values < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert stream.counts.tolist() == expected
    assert stream.sums.sum() == pytest.approx(values.sum(), rel=1e-9, abs=1e-6)
    if np.ptp(values) > 1e-6 * np.abs(values).max():
        backwards = Histogram(bins)
        for part in reversed(parts):
            backwards.add(part[::-1])
        assert backwards.width == stream.width
        assert backwards.counts.tolist() == expected
        assert len(stream.counts) >= min(bins, 4) / 2


def test_histogram_refuses_what_has_no_range():
    with pytest.raises(CompressionError, match="NaN"):
        Histogram().add([1.0, np.nan])
    with pytest.raises(CompressionError, match="at least 4"):
        Histogram(bins=1)
    with pytest.raises(CompressionError, match="Did you mean 'mse'"):
        range_estimators.estimate(Histogram(), "msee")
    assert range_estimators.estimate(Histogram(), "kl") == (0.0, 0.0)
    constant = Histogram().add(np.full(9, 2.5))
    assert [range_estimators.estimate(constant, m)[1] for m in range_estimators.METHODS] == pytest.approx([2.5] * 4)


@KINDS
@pytest.mark.parametrize("percent", [90.0, 99.9, 100.0])
def test_percentile_is_numpys(kind, percent):
    values = draw(kind)
    histogram = Histogram().add(values)
    found = range_estimators.percentile(histogram, percent)
    for end, share in zip(found, (100 - percent, percent), strict=True):
        near = np.percentile(values, share, method="inverted_cdf"), np.percentile(values, share, method="higher")
        assert min(near) - histogram.width <= end <= max(near) + histogram.width


@KINDS
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (4, False), (4, True)])
def test_mse_is_as_good_as_a_search_of_all_ends(kind, bits, symmetric):
    values = draw(kind, 4_000)
    low, high = range_estimators.mse(Histogram().add(values), bits, symmetric)
    found = rounding_error(values, low, high, bits, symmetric)
    shares = np.linspace(0.04, 1.0, 25 if not symmetric else 200)
    least, most = min(0.0, float(values.min())), max(0.0, float(values.max()))
    if symmetric:
        bound = max(-least, most)
        best = min(rounding_error(values, -bound * s, bound * s, bits, True) for s in shares)
    else:
        lows = [0.0] if least == 0 else least * shares
        highs = [0.0] if most == 0 else most * shares
        best = min(rounding_error(values, a, b, bits, False) for a in lows for b in highs)
    assert found <= 1.03 * best
    assert found <= 1.001 * rounding_error(values, least, most, bits, symmetric)


def test_mse_clips_an_outlier_at_few_bits():
    assert range_estimators.mse(Histogram().add(draw("outlier")), bits=4)[1] < 6


@KINDS
def test_kl_is_what_a_search_by_the_definition_finds(kind):
    values = draw(kind, 5_000)
    histogram = Histogram(512).add(values)
    found = max(abs(end) for end in range_estimators.kl(histogram, bits=6))
    edges = (histogram.first + np.arange(len(histogram.counts) + 1)) * histogram.width
    counts, _ = np.histogram(values[values != 0].astype(np.float64), bins=edges)
    scores = {}
    for n in range(1, round(np.abs(edges).max() / histogram.width) + 1):
        bound = n * histogram.width
        inside = [i for i in range(len(counts)) if edges[i] >= -bound and edges[i + 1] <= bound]
        if len(inside) < 64:
            continue
        p = [float(counts[i]) for i in inside]
        q = [0.0] * len(inside)
        groups: dict[int, list[int]] = {}
        for place in range(len(inside)):
            groups.setdefault(place * 64 // len(inside), []).append(place)
        for members in groups.values():
            filled = [m for m in members if p[m] > 0]
            held = sum(p[m] for m in members)
            for m in filled:
                q[m] = held / len(filled)
        p[0] += sum(counts[: inside[0]])
        p[-1] += sum(counts[inside[-1] + 1 :])
        q = [0.5 if b == 0 and a > 0 else b for a, b in zip(p, q, strict=True)]
        if sum(p):
            scores[bound] = scipy.stats.entropy(p, q)
    best = min(scores.values())
    near = min(scores, key=lambda bound: abs(bound - found))
    assert scores[near] <= 1.02 * best + 1e-9


def test_kl_clips_an_outlier_and_keeps_a_plain_range():
    assert range_estimators.kl(Histogram().add(draw("outlier")))[1] < 10
    uniform = np.random.default_rng(0).uniform(0, 1, 50_000)
    assert range_estimators.kl(Histogram().add(uniform))[1] > 0.95


def test_units_of_weights_lose_least_in_squared_error():
    weight = np.random.default_rng(1).standard_t(3, size=(3, 3, 8, 5)) * np.array([1.0, 0.1, 3.0, 0.01, 1.0])
    units = range_estimators.mse_units(weight, high=7, axes=(3,))
    assert units.shape == (1, 1, 1, 5)
    for channel in range(5):
        values = weight[..., channel].ravel()
        full = np.abs(values).max() / 7

        def loss(unit, values=values):
            return np.sum((np.clip(np.rint(values / unit), -7, 7) * unit - values) ** 2)

        best = min(loss(full * share) for share in np.linspace(0.1, 1, 1000))
        assert loss(float(units[0, 0, 0, channel])) <= 1.02 * best
        assert loss(float(units[0, 0, 0, channel])) < loss(full)
    assert range_estimators.mse_units(np.zeros((2, 3)), high=7, axes=(1,)).min() > 0


def test_c21_every_method_sets_the_ranges_of_the_file(worker, convnet, images, tmp_path):
    data = images.copy()
    data[5] *= 4
    scales, errors = {}, {}
    for method in range_estimators.METHODS:
        path = tmp_path / f"{method}.tflite"
        export.tflite(
            convnet, path, "int8", calibration=data, samples=images, calibration_method=method, worker=worker, verbose=0
        )
        scales[method] = float(oracle.stored(path)["image/int8"]["scales"][0])
        wanted = np.asarray(convnet(images))
        errors[method] = float(np.mean((export.Runner(path)(images) - wanted) ** 2))
    assert scales["minmax"] == pytest.approx(data.max() / 255, rel=1e-6)
    assert scales["percentile"] == pytest.approx(np.percentile(data, 99.99) / 255, rel=2e-3)
    best = min(rounding_error(data.ravel(), 0.0, data.max() * share, 8, False) for share in np.linspace(0.02, 1, 400))
    assert rounding_error(data.ravel(), 0.0, 255 * scales["mse"], 8, False) <= 1.03 * best
    assert scales["kl"] < scales["minmax"]
    assert errors["kl"] < errors["minmax"]


def test_c21_ranges_of_the_same_data_six_times_are_the_same(convnet, worker, images, tmp_path):
    from tfcompress.export import calibrate
    from tfcompress.export.session import Session

    session = Session(
        convnet, record=None, samples=None, calibration=images, batch=1, normalisation=None, worker=worker,
        timeout=300, custom_ops=False, force=False,
    )  # fmt: skip
    data = session.float_file(False, False).data
    once = calibrate.collect(data, [[images[:1]]], calibrate.Estimator("mse"))
    often = calibrate.collect(data, [[images[:1]]] * 6, calibrate.Estimator("mse"))
    assert once.high == pytest.approx(often.high)
    assert often.samples == 6


def test_methods_that_do_not_fit_are_refused(convnet, images, tmp_path):
    def tried(**options):
        export.tflite(convnet, tmp_path / "m.tflite", "int8", calibration=images, verbose=0, **options)

    with pytest.raises(CompressionError, match="Did you mean 'minmax'"):
        tried(calibration_method="min-max")
    with pytest.raises(CompressionError, match="belongs to calibration_method='percentile'"):
        tried(calibration_method="kl", percentile=99.9)
    with pytest.raises(CompressionError, match="above 50"):
        tried(percentile=5)
    assert not (tmp_path / "m.tflite").exists()


def test_sixteen_bit_ranges_are_not_clipped(worker, convnet, images, tmp_path):
    for method in ("mse", "kl"):
        path = tmp_path / f"{method}.tflite"
        report = export.tflite(
            convnet, path, "int16x8", calibration=images, calibration_method=method, worker=worker, verbose=0
        )
        assert report.verification.max_error <= 0.005
