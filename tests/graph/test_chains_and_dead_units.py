"""A layer replaced by a chain, and units that cannot matter removed."""

import keras
import numpy as np
import pytest

from tests.graph.nets import distance, layers, sample, stir
from tfcompress.errors import CompressionError
from tfcompress.graph.chains import replace_by_chain
from tfcompress.graph.dead_units import remove_dead_units
from tfcompress.graph.rebuild import Weighted


def halves(layer, inner):
    """The layer's kernel as two, exactly, for any inner width >= its rank."""
    kernel = np.asarray(layer.kernel)
    u, s, v = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), full_matrices=False)
    a, b = np.zeros((u.shape[0], inner)), np.zeros((inner, kernel.shape[-1]))
    a[:, : len(s)], b[: len(s)] = u * s, v
    return a.reshape(*kernel.shape[:-1], inner), b


def two_readers():
    i = keras.Input((6,), name="x")
    a = layers.Dense(5, activation="tanh", kernel_regularizer="l2", name="a", dtype="float32")
    y = layers.Add()([layers.Dense(2, name="b")(a(i)), layers.Dense(2, name="c")(a(i))])
    return stir(keras.Model(i, y))


@pytest.mark.parametrize("reuse", [False, True])
def test_both_readers_of_a_layer_see_the_chain(reuse):
    model = two_readers()
    data = sample(model)
    before = np.asarray(model(data))
    first, second = halves(model.get_layer("a"), 5)
    links = [Weighted(layers.Dense(5, use_bias=False), [first]), Weighted(layers.Dense(5), [second])]
    new = replace_by_chain(model, {"a": links}, reuse=reuse)
    assert (new is model) == reuse
    np.testing.assert_allclose(np.asarray(new(data)), before, atol=1e-5)
    one, two = new.get_layer("a_1"), new.get_layer("a")
    assert (one.activation.__name__, two.activation.__name__) == ("linear", "tanh")
    assert not one.use_bias
    assert two.use_bias
    assert len(one._inbound_nodes) == len(two._inbound_nodes) == 2
    assert isinstance(one.kernel_regularizer, keras.regularizers.L2)
    assert isinstance(two.kernel.regularizer, keras.regularizers.L2)


def test_convolution_in_a_nested_sequential():
    inner = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(4, 3, strides=2, name="c", trainable=False)], name="inner"
    )
    i = keras.Input((6, 6, 2), name="x")
    model = stir(keras.Model(i, layers.Flatten()(inner(i))))
    first, second = halves(inner.get_layer("c"), 4)
    links = [Weighted(layers.Conv2D(4, 3, strides=2), [first]), Weighted(layers.Conv2D(4, 1), [second[None, None]])]
    new = replace_by_chain(model, {"inner/c": links})
    assert [layer.name for layer in new.get_layer("inner").layers] == ["c_1", "c"]
    assert not new.get_layer("inner").layers[0].trainable
    assert distance(new, model, sample(model)) <= 1e-5


def test_chain_of_the_wrong_width_or_for_nothing_is_refused():
    model = two_readers()
    with pytest.raises(CompressionError, match=r"'a' makes \(None, 4\)"):
        replace_by_chain(model, {"a": [Weighted(layers.Dense(4), [np.zeros((6, 4)), np.zeros(4)])]})
    with pytest.raises(CompressionError, match="no layer 'q'"):
        replace_by_chain(model, {"q": []})
    with pytest.raises(CompressionError, match="'a' is empty"):
        replace_by_chain(model, {"a": []})


def kill(layer, axis, positions):
    kernel = np.moveaxis(np.array(layer.kernel), axis, 0)
    kernel[list(positions)] = 0
    layer.kernel.assign(np.moveaxis(kernel, 0, axis))


@pytest.mark.paper(11)
def test_dead_units_of_a_multilayer_net_cascade():
    model = stir(
        keras.Sequential(
            [keras.Input((7,)), layers.Dense(8, "relu", name="a"), layers.Dense(6, "tanh", name="b"), layers.Dense(5, "relu", name="c"), layers.Dense(3, name="d")]
        )
    )  # fmt: skip
    a, b, c, d = model.layers
    kill(a, 1, [0, 1, 5])  # constant, with positive and negative biases
    a.bias.assign([0.7, -0.4, 0.1, 0.2, 0.3, 0.9, 0.2, 0.1])
    kill(b, 1, [3])
    kill(c, 0, [2])  # b's unit 2 is read by nobody
    kill(d, 0, [4])
    kill(b, 0, [6])  # a's unit 6: unread
    # c's unit 1 reads only b's dead unit 3: constant once that is folded.
    kernel = np.array(c.kernel)
    kernel[[0, 1, 2, 4, 5], 1] = 0
    c.kernel.assign(kernel)
    new, rows = remove_dead_units(model)
    assert [layer.units for layer in new.layers] == [8 - 4, 6 - 2, 5 - 2, 3]
    assert {row.layer: (row.unread, row.constant, row.kept) for row in rows} == {
        "a": (1, 3, 0),
        "b": (1, 1, 0),
        "c": (1, 1, 0),
    }
    data = sample(model, n=16)
    assert np.abs(np.asarray(new(data)) - np.asarray(model(data))).max() <= 1e-6
    again, rows = remove_dead_units(new)
    assert again is new
    assert not rows


@pytest.mark.paper(11)
def test_constants_pass_normalization_pooling_and_valid_convolutions_but_not_padding():
    def net(padding):
        i = keras.Input((9, 9, 2), name="x")
        x = layers.ReLU()(layers.BatchNormalization(name="n")(layers.Conv2D(6, 3, padding="same", name="a")(i)))
        x = layers.AveragePooling2D(2)(x)
        x = layers.Conv2D(4, 3, padding=padding, use_bias=False, name="b")(x)
        model = stir(keras.Model(i, layers.Dense(2, name="d")(layers.Flatten()(x))))
        kill(model.get_layer("a"), 3, [1, 4])
        model.get_layer("n").beta.assign([0.1, 0.9, 0.2, 0.1, -3.0, 0.3])
        model.get_layer("n").moving_mean.assign(np.zeros(6))
        return model

    model = net("valid")
    new, rows = remove_dead_units(model)
    assert (rows[0].constant, rows[0].kept) == (2, 0)
    assert new.get_layer("b").use_bias
    assert distance(new, model, sample(model)) <= 1e-6
    model = net("same")
    new, rows = remove_dead_units(model)
    # Channel 4 is relu(-3) = 0 and can go through padding; channel 1 cannot.
    assert (rows[0].constant, rows[0].kept) == (1, 1)
    assert "padding='same'" in rows[0].reason
    assert new.get_layer("a").filters == 5
    assert distance(new, model, sample(model)) <= 1e-6


def test_residual_layer_norm_and_last_channel():
    i = keras.Input((5,), name="x")
    a, b = layers.Dense(4, name="a"), layers.Dense(4, name="b")
    model = stir(keras.Model(i, layers.Dense(2, name="d")(layers.Add()([a(i), b(i)]))))
    kill(a, 1, [0, 1, 2])
    kill(b, 1, [1, 2])
    new, rows = remove_dead_units(model)  # dead are those that both make as constants
    assert (rows[0].constant, new.get_layer("a").units) == (2, 2)
    assert distance(new, model, sample(model)) <= 1e-6
    model = stir(
        keras.Sequential([keras.Input((5,)), layers.Dense(4, name="a"), layers.LayerNormalization(), layers.Dense(2)])
    )
    kill(model.layers[0], 1, [0])
    new, rows = remove_dead_units(model)
    assert new is model
    assert (rows[0].kept, rows[0].reason) == (1, "a normalization takes statistics over them")
    model = stir(keras.Sequential([keras.Input((5,)), layers.Dense(3, "relu", name="a"), layers.Dense(2, name="b")]))
    kill(model.layers[0], 1, [0, 1, 2])
    new, rows = remove_dead_units(model)
    assert new.get_layer("a").units == 1
    assert (rows[0].constant, rows[0].kept) == (2, 1)
    assert distance(new, model, sample(model)) <= 1e-6
