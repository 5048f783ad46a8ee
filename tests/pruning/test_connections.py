"""[11]: magnitude pruning by its catalogue of promises; what the core tests hold is not repeated here."""

import itertools

import keras
import numpy as np
import pytest
from scipy.special import erf

import tfcompress
from tfcompress import pruning, schedules
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain, chains
from tfcompress.pruning.magnitude import MagnitudeMask, magnitude_mask

L = keras.layers


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def gaussian_model(n=300, m=100):
    model = keras.Sequential(
        [
            keras.Input((n,)),
            L.Dense(m, name="d", kernel_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=1)),
        ]
    )
    model.compile("sgd", "mse")
    return model


@pytest.mark.paper(11)
@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 2.0])
def test_quality_parameter_prunes_the_share_that_a_gaussian_says(q):
    small = tfcompress.apply(gaussian_model(), pruning.Magnitude(quality=q), verbose=0)
    share = float((values(small.layers[0].kernel) == 0).mean())
    expected = erf(q / np.sqrt(2))
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 30_000) + 1e-9)


@pytest.mark.paper(11)
@pytest.mark.jax
def test_live_count_never_rises_and_what_is_cut_stays_cut():
    model = gaussian_model(20, 10)
    up_and_down = schedules.Steps([3, 6, 9], [0.2, 0.6, 0.4, 0.8])
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=up_and_down), verbose=0)
    driver, seen = tfcompress.Compression(small), [chain(small.layers[0]).links[0].alive.copy()]
    rng = np.random.default_rng(0)
    for _ in range(12):
        small.layers[0]._tfcompress.chains["kernel"].raw.assign(rng.normal(size=(20, 10)))
        driver.step()
        seen.append(chain(small.layers[0]).links[0].alive.copy())
    counts = [int(mask.sum()) for mask in seen]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 160
    assert counts[-1] == 40
    assert all(not (later & ~earlier).any() for earlier, later in itertools.pairwise(seen))


@pytest.mark.paper(11)
def test_gradients_are_those_of_the_baked_plain_model():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the tape is TensorFlow's")
    import tensorflow as tf

    model = keras.Sequential([keras.Input((6,)), L.Dense(5, activation="relu"), L.Dense(3)])
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    plain = tfcompress.finalize(small, verbose=0)
    x = tf.constant(np.random.default_rng(0).normal(size=(8, 6)).astype("float32"))

    def gradients(m):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(m(x) ** 2)
        return [g.numpy() for g in tape.gradient(loss, m.trainable_variables)]

    for ours, theirs, weight in zip(gradients(small), gradients(plain), plain.trainable_variables, strict=True):
        alive = values(weight) != 0 if len(weight.shape) == 2 else np.ones(weight.shape, bool)
        assert np.array_equal(ours[alive], theirs[alive])
        assert (ours[~alive] == 0).all()


@pytest.mark.paper(11)
def test_dropout_shrinks_with_capacity():
    assert pruning.shrunk_dropout(0.5, 1000, 100) == pytest.approx(0.158, abs=5e-4)
    model = keras.Sequential([keras.Input((30,)), L.Dense(20), L.Dropout(0.5, name="drop"), L.ReLU(), L.Dense(10)])
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.9), verbose=0)
    assert pruning.shrink_dropout(small) == {"drop": (0.5, pytest.approx(0.5 * np.sqrt(0.1)))}
    assert small.get_layer("drop").rate == pytest.approx(0.158, abs=5e-4)


@pytest.mark.paper(11)
def test_the_papers_counts():
    layers = [keras.Input((784,)), L.Dense(300), L.Dense(100), L.Dense(10)]
    model = keras.Sequential(layers)
    assert model.count_params() == 266_610
    names = [layer.name for layer in model.layers]
    kept = dict(zip(names, (0.92, 0.91, 0.74), strict=True))
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=kept), verbose=0)
    alive = sum(int(np.count_nonzero(c.numpy())) for _, c in chains(small))
    assert alive == 18_816 + 2_700 + 260 == 21_776


@pytest.mark.paper(11)
def test_sensitivity_finds_the_layer_that_matters():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype("float32")
    model = keras.Sequential(
        [keras.Input((8,)), L.Dense(30, name="wide", use_bias=False), L.Dense(1, name="out", use_bias=False)]
    )
    kernel = np.zeros((8, 30), "float32")
    kernel[0, 0] = 1.0
    kernel[1:, 1:] = rng.normal(size=(7, 29)) * 1e-3
    out = np.full((30, 1), 0.5, "float32")
    out[0] = 0.4
    model.layers[0].kernel.assign(kernel)
    model.layers[1].kernel.assign(out)
    y = x[:, :1] * 0.4

    def score(m):
        return -float(np.mean((values(m(x)) - y) ** 2))

    before = [np.array(w) for w in model.get_weights()]
    found = pruning.sensitivity(model, score, ratios=(0.5, 0.9))
    assert found.allowed(0.01)["wide.kernel"] == 0.9
    assert found.allowed(0.01)["out.kernel"] == 0.0
    assert "wide.kernel" in str(found)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    with pytest.raises(CompressionError, match="between 0 and 1"):
        pruning.sensitivity(model, score, ratios=(1.5,))


@pytest.mark.jax
def test_global_scope_ranks_all_layers_together():
    model = keras.Sequential([keras.Input((10,)), L.Dense(10, name="small"), L.Dense(10, name="large")])
    model.get_layer("small").kernel.assign(np.random.default_rng(0).normal(size=(10, 10)) * 0.01)
    model.get_layer("large").kernel.assign(np.random.default_rng(1).normal(size=(10, 10)) + 3)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5, scope="global"), verbose=0)
    assert (values(small.get_layer("small").kernel) == 0).all()
    assert (values(small.get_layer("large").kernel) != 0).all()


def test_equal_magnitudes_are_cut_to_the_exact_count():
    mask = magnitude_mask(np.ones((7, 9), "float32"), keep=20)
    assert mask.sum() == 20
    assert magnitude_mask(np.ones(5), keep=0).sum() == 0


def test_cost_report_of_a_row_that_no_pattern_matches():
    model = keras.Sequential([keras.Input((10,)), L.Dense(10, name="a"), L.Dense(10, name="b")])
    small = tfcompress.apply(model, pruning.Magnitude(sparsity={"a": 0.5}), verbose=0)
    rows = {row.layer: row for row in tfcompress.summary(small).rows}
    assert rows["b"].action == "skipped"
    assert isinstance(chain(small.get_layer("a")).links[0], MagnitudeMask)
