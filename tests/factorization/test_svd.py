"""[62] SVD restructuring: every line that must hold, against NumPy's own SVD and counting."""

import json

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.graph.nets import sample, stir
from tfcompress import apply, finalize, summary
from tfcompress.errors import CompressionError
from tfcompress.factorization import (
    SVD,
    EnergyShare,
    FixedRank,
    ParameterBudget,
    Spectrum,
    SumShare,
    ranks,
    rerank,
    truncated_svd,
)  # fmt: skip

layers = keras.layers
RNG = np.random.default_rng(0)


def planted(m=40, n=30, q=7, noise=0.0):
    return RNG.normal(size=(m, q)) @ RNG.normal(size=(q, n)) + noise * RNG.normal(size=(m, n))


@pytest.mark.paper(62)
@settings(deadline=None, max_examples=25)
@given(m=st.integers(2, 12), n=st.integers(2, 12), k=st.integers(1, 12), balanced=st.booleans())
def test_eckart_young(m, n, k, balanced):
    w = np.random.default_rng(m * 100 + n).normal(size=(m, n))
    factors = truncated_svd(w, k, balanced)
    s = np.append(np.linalg.svd(w, compute_uv=False), 0)
    k = min(k, m, n)
    difference = w - factors.a @ factors.b
    assert factors.a.shape == (m, k)
    assert factors.b.shape == (k, n)
    np.testing.assert_allclose((difference**2).sum(), (s[k:] ** 2).sum(), atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(difference, 2), s[k], atol=1e-7)
    if balanced:
        np.testing.assert_allclose(np.linalg.norm(factors.a, axis=0), np.linalg.norm(factors.b, axis=1), rtol=1e-6)


@pytest.mark.paper(62)
def test_full_rank_changes_nothing():
    model = stir(keras.Sequential([keras.Input((12,)), layers.Dense(9, "tanh", name="a"), layers.Dense(3, name="b")]))
    for w in (np.asarray(layer.kernel) for layer in model.layers):
        factors = truncated_svd(w)
        data = RNG.normal(size=(50, len(w)))
        np.testing.assert_allclose(data @ factors.a @ factors.b, data @ w, atol=1e-5)


@pytest.mark.paper(62)
@pytest.mark.parametrize("balanced", [False, True])
def test_data_aware_error_is_what_was_discarded(balanced):
    w = planted(q=20, noise=0.3)
    x = RNG.normal(size=(500, 8)) @ RNG.normal(size=(8, 40)) + 0.2 * RNG.normal(size=(500, 40))
    c = x.T @ x / len(x)
    for k in (1, 3, 8, 20):
        aware, plain = truncated_svd(w, k, balanced, covariance=c), truncated_svd(w, k)
        left = np.linalg.cholesky(c + 1e-6 * np.trace(c) / 40 * np.eye(40))
        s = np.linalg.svd(left.T @ w, compute_uv=False)
        error = ((x @ w - x @ aware.a @ aware.b) ** 2).sum()
        np.testing.assert_allclose(error, len(x) * (s[k:] ** 2).sum(), rtol=1e-3)
        assert error <= ((x @ w - x @ plain.a @ plain.b) ** 2).sum() * (1 + 1e-6)


@pytest.mark.paper(62)
def test_identity_covariance_is_plain_svd():
    w = planted(q=20, noise=0.3)
    aware, plain = truncated_svd(w, 5, covariance=np.eye(40)), truncated_svd(w, 5)
    np.testing.assert_allclose(aware.a @ aware.b, plain.a @ plain.b, atol=1e-9)


@pytest.mark.paper(62)
def test_mean_goes_into_the_bias():
    w, x = planted(q=20, noise=0.3), RNG.normal(size=(400, 40)) * RNG.uniform(0.1, 2, 40) + 1.5
    c, mean = x.T @ x / len(x), x.mean(axis=0)
    shifted, without = truncated_svd(w, 4, covariance=c, mean=mean), truncated_svd(w, 4, covariance=c)
    error = x @ w - x @ shifted.a @ shifted.b - shifted.shift
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose((error**2).sum(), len(x) * (shifted.values[4:] ** 2).sum(), rtol=1e-3)
    assert (error**2).sum() <= ((x @ w - x @ without.a @ without.b) ** 2).sum()


@pytest.mark.paper(62)
def test_every_rule_finds_a_planted_rank():
    matrices = [planted(q=7), planted(30, 60, 5)]
    spectra = [Spectrum(np.linalg.svd(w, compute_uv=False), *w.shape) for w in matrices]
    assert EnergyShare(1.0)(spectra) == [7, 5]
    assert all(abs(k - q) <= 1 for k, q in zip(SumShare(0.999)(spectra), (7, 5), strict=True))
    assert ParameterBudget(7 * 70 + 5 * 90)(spectra) == [7, 5]
    assert FixedRank(7)(spectra) == [7, 7]
    for w, q in zip(matrices, (7, 5), strict=True):
        factors = truncated_svd(w, q)
        np.testing.assert_allclose(factors.a @ factors.b, w, atol=1e-9)


@pytest.mark.paper(62)
@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=20), power=st.sampled_from([1, 2]))
def test_rank_never_grows_when_the_share_falls(values, power):
    values = sorted(values, reverse=True)
    found = [ranks.share_rank(values, share, power) for share in np.linspace(1, 0.01, 34)]
    assert found == sorted(found, reverse=True)
    for share in (0.3, 0.8):
        k, terms = ranks.share_rank(values, share, power), np.array(values) ** power
        assert terms[:k].sum() >= share * terms.sum() * (1 - 1e-9)
        assert k == 1 or terms[: k - 1].sum() < share * terms.sum()


def test_budget_is_met_and_takes_the_cheapest_components():
    w = [planted(50, 40, 30, 0.5), planted(20, 90, 15, 0.5) * 3]
    spectra = [Spectrum(np.linalg.svd(m, compute_uv=False), *m.shape) for m in w]
    for share in (0.6, 0.3, 0.1):
        found = ParameterBudget(share)(spectra)
        cost = sum(min(k * sum(m.shape), m.size) for k, m in zip(found, w, strict=True))
        assert cost <= share * 3800
        # What stays is worth more per weight than anything that went.
        worth = [s.values**2 / sum(m.shape) for s, m in zip(spectra, w, strict=True)]
        kept = min((v[k - 1] for v, k in zip(worth, found, strict=True) if k > 1), default=np.inf)
        gone = max(v[k] for v, k in zip(worth, found, strict=True) if k < len(v))
        assert kept >= gone
    with pytest.raises(CompressionError, match="cannot be met"):
        ParameterBudget(100)(spectra)


def test_rerank_does_not_need_the_product():
    a, b = RNG.normal(size=(50, 9)), RNG.normal(size=(9, 40))
    for balanced in (False, True):
        new, want = rerank(a, b, 4, balanced), truncated_svd(a @ b, 4)
        np.testing.assert_allclose(new.a @ new.b, want.a @ want.b, atol=1e-9)
        np.testing.assert_allclose(new.values[:9], want.values[:9], atol=1e-9)


def net():
    """Dense layers of every fate: factored, too small, followed by batch normalization, read twice, shared."""
    i = keras.Input((32,), name="x")
    shared = layers.Dense(24, "relu", name="shared")
    x = layers.BatchNormalization(name="norm")(shared(i))
    x = layers.Dense(32, "gelu", name="wide", use_bias=False)(x)
    y = layers.Add()(
        [layers.Dense(16, name="left")(x), layers.Dense(16, name="right")(x), layers.Dense(16, name="third")(shared(x))]
    )
    return stir(keras.Model(i, layers.Dense(2, name="end")(y)))  # fmt: skip


@pytest.mark.paper(62)
def test_what_is_kept_of_a_restructured_net(tmp_path):
    model = net()
    model.compile("adam", keras.losses.MeanSquaredError(), metrics=["mae"])
    new = apply(model, SVD(rank=5), verbose=0)
    rows = {row.layer: row for row in summary(new).rows}
    assert {name for name, row in rows.items() if row.action == "done"} == {"shared", "wide", "left", "right", "third"}
    # 5 (16 + 2) >= 16 * 2
    assert rows["end"].action == "skipped"
    assert "not fewer" in rows["end"].detail
    for name, k in (("shared", 5), ("wide", 5), ("left", 5)):
        old, first, second = model.get_layer(name), new.get_layer(f"{name}_1"), new.get_layer(name)
        m, n = old.kernel.shape
        bias = 0 if old.bias is None else n
        assert first.count_params() + second.count_params() == k * (m + n) + bias
        assert type(first) is type(second) is layers.Dense
        assert (second.activation, first.bias) == (old.activation, None)
        assert first.activation.__name__ == "linear"
        if bias:
            np.testing.assert_array_equal(np.asarray(second.bias), np.asarray(old.bias))
        want = truncated_svd(np.asarray(old.kernel), k)
        np.testing.assert_allclose(np.asarray(first.kernel) @ np.asarray(second.kernel), want.a @ want.b, atol=1e-5)
    for a, b in zip(model.get_layer("norm").weights, new.get_layer("norm").weights, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    # The shared layer is read through the new pair at both of its calls.
    data, get = sample(model, 8), new.get_layer
    both = lambda x: get("shared")(get("shared_1")(x))  # noqa: E731
    x = get("wide")(get("wide_1")(get("norm")(both(data), training=False)))
    y = sum(get(name)(get(f"{name}_1")(z)) for name, z in (("left", x), ("right", x), ("third", both(x))))
    np.testing.assert_allclose(np.asarray(new(data)), np.asarray(get("end")(y)), atol=1e-5)
    # Compiled as before, plain Keras, and saved without a trace of tfcompress.
    assert new.compiled
    assert isinstance(new.optimizer, keras.optimizers.Adam)
    new.fit(data, np.zeros((8, 2)), verbose=0)
    assert "tfcompress" not in json.dumps(new.get_config())
    new.save(tmp_path / "m.keras")
    assert finalize(new, verbose=0).count_params() == new.count_params()


@pytest.mark.paper(62)
def test_data_aware_beats_plain_on_the_layers_inputs():
    model = net()
    data = np.maximum(RNG.normal(size=(300, 32)) @ RNG.normal(size=(32, 32)), 0).astype("float32") + 1
    errors = {}
    for aware in (False, True):
        new = apply(model, SVD(rank=4, data_aware=aware, layers="shared"), data=data, verbose=0)
        errors[aware] = ((np.asarray(new(data)) - np.asarray(model(data))) ** 2).mean()
        # Two calls: the moments are those of both inputs, and the bias has taken the mean shift.
        moved = np.abs(np.asarray(new.get_layer("shared").bias) - np.asarray(model.get_layer("shared").bias)).max()
        assert (moved > 1e-4) == aware
    assert errors[True] < errors[False]


def test_pointwise_convolutions_and_einsum():
    i = keras.Input((6, 6, 12), name="x")
    x = layers.Conv2D(20, 1, strides=2, activation="relu", name="point")(i)
    x = layers.Conv2D(8, 3, name="spatial", padding="same")(x)
    x = layers.Reshape((9, 8))(x)
    x = layers.EinsumDense("abc,cd->abd", (9, 16), bias_axes="d", activation="tanh", name="einsum")(x)
    x = layers.Conv1D(12, 1, name="line")(x)
    model = stir(keras.Model(i, layers.GlobalAveragePooling1D()(x)))
    new = apply(model, SVD(rank={"point": 6, "*": {"energy": 0.9}}), verbose=0)
    rows = {row.layer: row for row in summary(new).rows}
    assert "3x3" in rows["spatial"].detail
    assert new.get_layer("point_1").strides == (2, 2)
    assert new.get_layer("point").strides == (1, 1)
    data, get = sample(model), new.get_layer
    want = truncated_svd(np.asarray(model.get_layer("point").kernel)[0, 0], 6)
    by_hand = np.maximum(data[:, ::2, ::2] @ want.a @ want.b + np.asarray(model.get_layer("point").bias), 0)
    np.testing.assert_allclose(np.asarray(get("point")(get("point_1")(data))), by_hand, atol=1e-4)
    full = stir(
        keras.Sequential([keras.Input((9, 8)), layers.EinsumDense("abc,cd->abd", (9, 16), bias_axes="d", name="e")])
    )
    kernel = planted(8, 16, 3)
    full.layers[0].kernel.assign(kernel)
    new = apply(full, SVD(rank=3), verbose=0)
    assert [layer.equation for layer in new.layers] == ["abc,cZ->abZ", "abZ,Zd->abd"]
    x = RNG.normal(size=(2, 9, 8))
    np.testing.assert_allclose(np.asarray(new(x)), np.asarray(full(x)), atol=1e-4)


def test_factored_pair_is_factored_again_as_one():
    model = stir(keras.Sequential([keras.Input((40,)), layers.Dense(30, "relu", name="a"), layers.Dense(30, name="b")]))
    once = apply(model, SVD(rank=10, layers="a"), verbose=0)
    twice = apply(once, SVD(rank=4, layers="a", balanced=True), verbose=0)
    assert [layer.name for layer in twice.layers] == ["a_1", "a", "b"]
    assert twice.layers[0].units == 4
    want = truncated_svd(np.asarray(model.layers[0].kernel), 4)
    np.testing.assert_allclose(
        np.asarray(twice.layers[0].kernel) @ np.asarray(twice.layers[1].kernel), want.a @ want.b, atol=1e-5
    )
    np.testing.assert_array_equal(np.asarray(twice.layers[1].bias), np.asarray(model.layers[0].bias))


def test_frozen_attached_and_unmatched_layers_are_rows():
    model = net()
    model.get_layer("wide").trainable = False
    new = apply(model, SVD(rank={"left": 3, "sh*": 2}, exclude="left"), verbose=0)
    details = {row.layer: row.detail for row in summary(new).rows}
    assert "frozen" in details["wide"]
    assert "exclude" in details["left"]
    assert "no pattern" in details["right"]
    assert "rank 2" in details["shared"]
    assert not new.get_layer("wide").trainable
    assert "rank 3" in str(summary(apply(model, SVD(rank=3, include_frozen=True), verbose=0)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SVD(rank=0), "at least 1"),
        (lambda: SVD(rank=1.5), "at most 1"),
        (lambda: SVD(rank="many"), "whole number"),
        (lambda: SVD(rank={"parameters": -1}), "above 0"),
        (lambda: apply(net(), SVD(rank=2, data_aware=True), verbose=0), "data=x"),
        (lambda: apply(net(), SVD(rank=2, data_aware=True), data=np.zeros((3, 31)), verbose=0), "'x'"),
        (lambda: apply(net(), SVD(rank=2, layers="nothing"), verbose=0), "applies to no layer"),
        (lambda: apply(keras.Sequential([layers.Dense(2)]), SVD(), verbose=0), "not built"),
        (lambda: truncated_svd(np.full((3, 3), np.nan)), "finite"),
        (lambda: truncated_svd(np.eye(3), covariance=np.eye(2)), "3 x 3"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(CompressionError, match=words):
        make()


def test_a_configured_method_comes_back_from_its_config():
    method = SVD(rank={"energy": 0.9}, balanced=True, layers="a*")
    again = SVD.from_config(method.get_config())
    assert repr(again) == repr(method)
