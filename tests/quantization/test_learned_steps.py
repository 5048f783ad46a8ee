"""Learned step sizes: values, gradients and first values against the paper's formulas, written out in NumPy."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress.core.grids import LearnedGrid
from tfcompress.errors import CompressionError
from tfcompress.layers import OutputRange
from tfcompress.parametrization import chain, parametrize
from tfcompress.quantization import QAT, Scheme
from tfcompress.quantization.ranges import ranges

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def lsq(v, s, low, high):
    """Equations 1 to 3 of Esser et al.: the rounded value, d/dv and d/ds."""
    code = np.clip(v / s, low, high)
    inside = (v / s > low) & (v / s < high)
    ds = np.where(inside, np.rint(code) - v / s, np.where(v / s <= low, low, high))
    return np.rint(code) * s, inside.astype(float), ds


def layer_of(kernel):
    layer = L.Dense(kernel.shape[1], use_bias=False)
    layer.build((None, kernel.shape[0]))
    layer.kernel.assign(kernel)
    return layer


@pytest.mark.jax
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_first_step_and_values(bits, per_channel):
    kernel = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    layer = layer_of(kernel)
    parametrize(layer, "kernel", LearnedGrid(bits, per_channel))
    high = 2 ** (bits - 1) - 1
    mean = np.abs(kernel).mean(axis=0 if per_channel else None, keepdims=True)
    step = 2 * mean / np.sqrt(high)
    assert np.allclose(chain(layer).grid().unit, step, rtol=1e-5)
    assert np.allclose(layer.kernel.numpy(), lsq(kernel, chain(layer).grid().unit, -high, high)[0], atol=1e-6)


@pytest.mark.skipif(not ON_TF, reason="the tape is TensorFlow's")
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_step_of_sgd_is_the_papers(per_channel):
    import tensorflow as tf

    rng = np.random.default_rng(1)
    kernel, upstream = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(40, 3)).astype("float32")
    layer = layer_of(kernel)
    parametrize(layer, "kernel", LearnedGrid(3, per_channel))
    own = chain(layer)
    link, before = own.links[0], own.grid().unit.copy()
    with tf.GradientTape() as tape:
        loss = keras.ops.sum(own.compute() * upstream)
    change, to_kernel = tape.gradient(loss, [link.change.value, own.raw.value])
    link.change.assign(link.change - 0.01 * change)
    _, dv, ds = lsq(kernel, before, -3, 3)
    sharing = 40 if per_channel else 120
    wanted = (ds * upstream).sum(axis=0 if per_channel else None, keepdims=True) / np.sqrt(sharing * 3)
    assert np.allclose(own.grid().unit, before - 0.01 * wanted, rtol=1e-4)
    assert np.allclose(to_kernel, dv * upstream, atol=1e-6)


@pytest.mark.skipif(not ON_TF, reason="the tape is TensorFlow's")
@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_learned_ranges(symmetric):
    """Symmetric as LSQ; affine as LSQ+, where the value outside is the low end plus the codes between times the step."""
    import tensorflow as tf

    rng = np.random.default_rng(2)
    x, upstream = rng.normal(size=(6, 10)).astype("float32"), rng.normal(size=(6, 10)).astype("float32")
    layer = OutputRange(symmetric=symmetric, estimator="lsq")
    layer.build(x.shape)
    layer.set_ends(-0.7, 0.9)
    s, z = layer.range.scale, layer.range.zero_point
    with tf.GradientTape() as tape:
        value = tf.constant(x)
        tape.watch(value)
        loss = keras.ops.sum(layer(value, training=True) * upstream)
    own = [layer.scale_change.value] + ([] if symmetric else [layer.end_change.value])
    to_x, to_scale, *to_end = tape.gradient(loss, [value, *own])
    seen = values(layer(x, training=False))
    low, high = -128 - z, 127 - z
    rounded, dv, ds = lsq(x, s, low, high)
    assert np.allclose(seen, rounded, atol=1e-6)
    assert np.allclose(values(layer(x, training=True)), rounded, atol=1e-6)
    if not symmetric:
        ds = np.where(dv == 1, ds, np.where(x / s <= low, 0, 255))
        # In shares of the whole range, so that a step of SGD moves the end by g * sum(d/dend).
        wanted = ((1 - dv) * upstream).sum() / np.sqrt(10 * 127) / (255 * s)
        assert np.allclose(to_end[0], wanted, rtol=1e-4)
    assert np.allclose(to_scale, (ds * upstream).sum() / np.sqrt(10 * 127) / s, rtol=1e-4)
    assert np.allclose(to_x, dv * upstream)


@pytest.mark.jax
def test_symmetric_ranges_begin_as_the_paper_says_and_affine_ones_hold_the_data():
    x = np.random.default_rng(3).normal(size=(500, 4)).astype("float32") + 0.5
    for symmetric in (True, False):
        layer = OutputRange(symmetric=symmetric, estimator="lsq")
        layer.build(x.shape)
        layer.observe(True)
        layer(x)
        layer.observe(False)
        if symmetric:
            assert layer.range.scale == pytest.approx(2 * np.abs(x).mean() / np.sqrt(127), rel=1e-4)
        else:
            assert layer.range.minimum == pytest.approx(x.min(), abs=0.5)
            assert layer.range.maximum == pytest.approx(x.max(), abs=0.5)
            assert layer.range.zero_point != 0


@pytest.mark.jax
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_steps_and_ends_are_learned_and_saved(optimizer, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(16, activation="relu", name="a"), L.Dense(2, name="b")])
    model.compile({"sgd": keras.optimizers.SGD(0.05)}.get(optimizer, optimizer), "mse")
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    y = x[:, :2] * 2
    small = tfcompress.apply(
        model, QAT(scheme=Scheme(bits=3, weight_range="lsq", output_range="lsq")), data=x, verbose=0
    )
    first = [layer.range for layer in ranges(small)]
    before = small.evaluate(x, y, verbose=0)
    history = small.fit(x, y, batch_size=8, epochs=8, verbose=0, callbacks=[tfcompress.Compression()]).history
    assert small.evaluate(x, y, verbose=0) < before
    assert np.isfinite(history["loss"]).all()
    assert all(one.range != was for one, was in zip(ranges(small), first, strict=True))
    small.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(values(small(x)), values(again(x)))
    plain = tfcompress.finalize(small, verbose=0)
    grid = chain(small.get_layer("a")).grid()
    codes = values(plain.get_layer("a").kernel) / grid.unit
    assert np.allclose(codes, np.rint(codes), atol=1e-4)
    assert np.abs(codes).max() < 3.001


@pytest.mark.jax
def test_a_step_never_turns_over():
    layer = layer_of(np.ones((4, 2), "float32"))
    parametrize(layer, "kernel", LearnedGrid())
    chain(layer).links[0].change.assign(np.full((1, 2), -5.0))
    assert (chain(layer).grid().unit > 0).all()
    assert np.isfinite(layer.kernel.numpy()).all()


def test_an_unknown_estimator_is_refused():
    with pytest.raises(CompressionError, match="Did you mean 'lsq'"):
        OutputRange(estimator="lsqr")
