"""Scalings of inputs folded into the layer behind them: the model predicts the same, and what stays is what has to."""

import keras
import numpy as np
import pytest

from tfcompress import pruning
from tfcompress.graph.scaling import fold_scalings
from tfcompress.method import apply

L = keras.layers


def normalization(name="norm"):
    return L.Normalization(mean=[0.4, 0.5, 0.3], variance=[0.04, 0.09, 0.01], name=name)


def chain(*layers):
    """(inputs, model) of layers one behind the other, with biases that are not 0."""
    image = keras.Input((8, 8, 3), name="image")
    x = image
    for layer in layers:
        x = layer(x)
    model = keras.Model(image, x)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    return model


def nested():
    return keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 2, name="inner")], name="stem")


CASES = {
    "factor alone, same padding": (lambda: [L.Rescaling(1 / 255, name="r"), L.Conv2D(4, 3, padding="same", name="c")], "c", False),
    "offset, same padding": (lambda: [L.Rescaling(1 / 127.5, -1.0, name="r"), L.Conv2D(4, 3, padding="same", name="c")], "c", True),
    "offset, no padding": (lambda: [L.Rescaling(1 / 127.5, -1.0, name="r"), L.Conv2D(4, 3, name="c")], "c", False),
    "no bias before": (lambda: [L.Rescaling(0.5, -1.0, name="r"), L.Conv2D(4, 3, use_bias=False, name="c")], "c", False),
    "a chain with padding": (
        lambda: [L.Rescaling(1 / 255, name="r"), normalization(), L.ZeroPadding2D(1), L.Conv2D(4, 3, name="c")], "c", True,
    ),
    "a channel each": (lambda: [normalization(), L.DepthwiseConv2D(3, depth_multiplier=2, name="c")], "c", True),
    "dense": (lambda: [normalization(), L.Dropout(0.1), L.Dense(5, name="c")], "c", False),
    "transposed": (lambda: [L.Rescaling(0.1, 0.3, name="r"), L.Conv2DTranspose(4, 3, name="c")], "c", True),
    "nested": (lambda: [normalization(), nested()], "stem/inner", False),
}  # fmt: skip


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("case", list(CASES))
def test_the_model_predicts_the_same(case, reuse):
    make, layer, shift = CASES[case]
    model = chain(*make())
    x = np.random.default_rng(1).uniform(0, 255, (4, 8, 8, 3)).astype("float32")
    before = keras.ops.convert_to_numpy(model(x))
    new, (row,) = fold_scalings(model, reuse=reuse)
    assert (row.layer, row.shift) == (layer, shift)
    after = keras.ops.convert_to_numpy(new(x))
    np.testing.assert_allclose(after, before, atol=2e-5 * np.abs(before).max())
    left = [one for one in new.layers if isinstance(one, L.Rescaling | L.Normalization)]
    assert len(left) == shift
    if not reuse:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), before)


def two_readers():
    image = keras.Input((8, 8, 3))
    x = L.Rescaling(0.5)(image)
    return keras.Model(image, [L.Conv2D(2, 3)(x), L.Conv2D(3, 3)(x)])


def an_output():
    image = keras.Input((8, 8, 3))
    x = L.Rescaling(0.5)(image)
    return keras.Model(image, [x, L.Conv2D(2, 3)(x)])


def whole_numbers():
    image = keras.Input((8, 8, 3), dtype="uint8")
    return keras.Model(image, L.Conv2D(2, 3)(L.Rescaling(0.5)(image)))


def called_twice():
    image, rescaling = keras.Input((8, 8, 3)), L.Rescaling(0.5)
    return keras.Model(image, L.Conv2D(2, 3)(rescaling(rescaling(image))))


@pytest.mark.parametrize(
    "build",
    [
        two_readers, an_output, whole_numbers, called_twice,
        lambda: chain(L.Rescaling(0.5), L.ReLU()),
        lambda: chain(normalization(), L.Conv2D(6, 3, groups=3)),
        lambda: apply(chain(L.Rescaling(0.5), L.Conv2D(4, 3)), pruning.SharedWeights(bits=2), verbose=0),
    ],
)  # fmt: skip
def test_what_cannot_be_folded_stays(build):
    model = build()
    new, rows = fold_scalings(model)
    assert rows == []
    assert new is model
