"""Binary and ternary weights: values, draws, gradient and clip."""

import keras
import numpy as np
import pytest

from tfcompress import parametrize
from tfcompress.core import signs
from tfcompress.core.signs import SignWeight
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain, deparametrize


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


@pytest.mark.jax
def test_values_at_the_edges():
    w = np.float32([-2.0, -1.0, -0.51, -0.5, -0.0, 0.0, 0.5, 0.51, 1.0])
    assert array(signs.deterministic(w, 2)).tolist() == [-1, -1, -1, -1, 1, 1, 1, 1, 1]
    assert array(signs.deterministic(w, 3)).tolist() == [-1, -1, -1, 0, 0, 0, 0, 1, 1]


@pytest.mark.jax
@pytest.mark.parametrize("levels", [2, 3])
def test_a_draw_has_the_weight_as_its_mean(levels):
    count = 200_000
    for w in (-1.0, -0.3, 0.0, 0.6, 1.0):
        uniform = np.random.default_rng(7).random(count).astype("float32")
        drawn = array(signs.stochastic(np.full(count, w, "float32"), levels, uniform)).astype("float64")
        assert set(np.unique(drawn)) <= ({-1.0, 1.0} if levels == 2 else {-1.0, 0.0, 1.0})
        variance = 1 - w**2 if levels == 2 else abs(w) - w**2
        assert abs(drawn.mean() - w) <= 4 * np.sqrt(variance / count)
        assert drawn.var() == pytest.approx(variance, abs=0.01)


@pytest.mark.jax
@pytest.mark.parametrize("draws", [False, True])
def test_the_gradient_is_the_plain_layers_at_the_binary_weight(draws):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, 6)).astype("float32"), random.normal(size=(16, 4)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, use_bias=False)])
    start = 0.2 * random.normal(size=(6, 4)).astype("float32")
    model.layers[0].kernel.assign(start)
    parametrize(model.layers[0], "kernel", SignWeight(stochastic=draws))
    limit = np.sqrt(1.5 / 10)
    binary = array(model(np.eye(6, dtype="float32"), training=True))
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=keras.backend.backend() == "jax")
    model.train_on_batch(x, y)
    moved = array(chain(model.layers[0]).raw.value)
    gradient = 2 * x.astype("float64").T @ (x @ binary - y) / y.size
    np.testing.assert_allclose(moved, start - 1e-3 * gradient / limit, atol=1e-6)
    # The step used the draw that the call before it had seen, and the next one sees another.
    assert np.array_equal(array(model(np.eye(6, dtype="float32"), training=True)), binary) != draws


@pytest.mark.jax
def test_the_clip_holds_while_attached_and_only_then():
    layer = keras.layers.Dense(4, use_bias=False, kernel_constraint=keras.constraints.NonNeg())
    model = keras.Sequential([keras.Input((6,)), layer])
    parametrize(layer, "kernel", SignWeight())
    limit, raw = np.float32(np.sqrt(1.5 / 10)), chain(layer).raw
    assert np.abs(array(raw.value)).max() <= limit
    model.compile(keras.optimizers.SGD(5.0), "mse", jit_compile=keras.backend.backend() == "jax")
    x, y = np.ones((8, 6), "float32"), np.full((8, 4), 50.0, "float32")
    model.fit(x, y, epochs=3, verbose=0)
    assert array(raw.value).max() == limit
    assert array(raw.value).min() >= 0  # the layer's own constraint acts too
    layer.kernel.assign(-np.ones((6, 4)))
    np.testing.assert_allclose(array(raw.value), -limit)
    deparametrize(layer)
    raw.assign(raw.constraint(np.full((6, 4), 3.0, "float32")))
    assert (array(raw.value) == 3.0).all()


def test_levels_are_two_or_three():
    with pytest.raises(CompressionError, match=r"2 \(binary\) or 3"):
        SignWeight(levels=4)
