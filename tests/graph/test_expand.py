"""Layers with tensors inside, written as plain layers: the same values, the same weights, the same training."""

import keras
import numpy as np
import pytest

import tfcompress
from tests.graph.nets import stir
from tfcompress import method, pruning, select
from tfcompress.graph.expand import expand_layers
from tfcompress.parametrization import chain

L, ops = keras.layers, keras.ops


def randomized(model, seed=0):
    """No weight at the value that it begins with, gammas and scales included."""
    rng = np.random.default_rng(seed)
    for variable in stir(model).weights:
        name = variable.path.rsplit("/", 1)[-1]
        if str(variable.dtype).startswith("float"):
            near_one = name in ("gamma", "scale", "moving_variance")
            variable.assign(
                rng.uniform(0.5, 1.5, variable.shape) if near_one else rng.normal(size=variable.shape) * 0.4
            )
    return model


def network(layer, *shapes):
    inputs = [keras.Input(shape, name=f"x{n}") for n, shape in enumerate(shapes)]
    given = inputs[0] if len(inputs) == 1 else inputs
    return randomized(keras.Model(given, layer(given)))


def batch(model, n=3):
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(n, *t.shape[1:])).astype("float32") for t in model.inputs]
    return arrays[0] if len(arrays) == 1 else arrays


def assert_equal(model, new, tolerance=1e-5):
    x = batch(model)
    pairs = list(zip(keras.tree.flatten(model(x)), keras.tree.flatten(new(x)), strict=True))
    assert pairs
    for old, made in pairs:
        old, made = ops.convert_to_numpy(old), ops.convert_to_numpy(made)
        assert old.shape == made.shape
        assert np.abs(old - made).max() <= tolerance * np.abs(old).max()


def chained(*layers):
    def call(x):
        for layer in layers:
            x = layer(x)
        return x

    return call


def attention(heads=2, key=3, causal=False, **kwargs):
    return lambda x: L.MultiHeadAttention(heads, key, name="m", **kwargs)(*x, use_causal_mask=causal)


def masked_attention(x):
    return L.MultiHeadAttention(2, 3, name="m")(x[0], x[1], attention_mask=x[2] > 0, return_attention_scores=True)


CASES = {
    "separable": (L.SeparableConv2D(4, 3, strides=2, activation="relu", name="m"), (8, 8, 3)),
    "separable 1d": (L.SeparableConv1D(4, 3, depth_multiplier=2, padding="same", use_bias=False, name="m"), (8, 3)),
    "einsum": (L.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de", activation="tanh", name="m"), (5, 4)),
    "einsum of two axes": (L.EinsumDense("abcd,cde->abe", (5, 3), bias_axes="e", name="m"), (5, 4, 2)),
    "time distributed dense": (L.TimeDistributed(L.Dense(3), name="m"), (4, 6)),
    "time distributed convolution": (L.TimeDistributed(L.Conv2D(3, 3), name="m"), (4, 6, 6, 2)),
    "time distributed separable": (L.TimeDistributed(L.SeparableConv1D(3, 3), name="m"), (4, 6, 2)),
    "layer normalization": (L.LayerNormalization(name="m"), (4, 6)),
    "layer normalization of features": (L.LayerNormalization(name="m"), (6,)),
    "layer normalization of maps": (L.LayerNormalization(center=False, name="m"), (3, 3, 6)),
    "layer normalization of all axes": (L.LayerNormalization(axis=[1, 2], center=False, scale=False, name="m"), (3, 6)),
    "rms normalization": (L.RMSNormalization(name="m"), (4, 6)),
    "group normalization": (L.GroupNormalization(2, name="m"), (3, 3, 6)),
    "instance normalization": (L.GroupNormalization(-1, name="m"), (5, 6)),
    "group normalization of features": (L.GroupNormalization(3, name="m"), (6,)),
    "unit normalization": (L.UnitNormalization(name="m"), (4, 6)),
    "lstm": (L.LSTM(5, name="m"), (4, 3)),
    "lstm backwards": (L.LSTM(5, return_sequences=True, return_state=True, go_backwards=True, name="m"), (4, 3)),
    "lstm without bias": (L.LSTM(5, use_bias=False, activation="relu", name="m"), (4, 3)),
    "lstm with states": (lambda x: L.LSTM(5, name="m")(x[0], initial_state=x[1:]), (4, 3), (5,), (5,)),
    "gru": (L.GRU(5, return_sequences=True, name="m"), (4, 3)),
    "gru, reset before": (L.GRU(5, reset_after=False, return_state=True, name="m"), (4, 3)),
    "gru, one step": (L.GRU(5, name="m"), (1, 3)),
    "gru with states": (lambda x: L.GRU(5, name="m")(x[0], initial_state=x[1]), (4, 3), (5,)),
    "simple rnn": (L.SimpleRNN(5, return_sequences=True, name="m"), (4, 3)),
    "linear rnn": (L.SimpleRNN(5, activation=None, name="m"), (3, 3)),
    "stacked cells": (L.RNN([L.LSTMCell(5), L.GRUCell(4)], return_sequences=True, name="m"), (4, 3)),
    "bidirectional": (L.Bidirectional(L.LSTM(5, return_sequences=True), name="m"), (4, 3)),
    "bidirectional mean": (L.Bidirectional(L.GRU(5, return_state=True), merge_mode="ave", name="m"), (4, 3)),
    "bidirectional sum": (L.Bidirectional(L.SimpleRNN(5), merge_mode="sum", name="m"), (4, 3)),
    "bidirectional product": (L.Bidirectional(L.LSTM(5), merge_mode="mul", name="m"), (4, 3)),
    "attention": (attention(dropout=0.1), (4, 6), (5, 7)),
    "causal attention": (attention(value_dim=5, output_shape=7, causal=True), (4, 6), (4, 5)),
    "masked attention": (masked_attention, (4, 6), (4, 5), (4, 4)),
    "gated attention in a window": (attention(use_gate=True, sliding_window=2, use_bias=False), (4, 6), (4, 6)),
    "grouped attention": (lambda x: L.GroupQueryAttention(3, 4, 2, name="m")(*x, use_causal_mask=True), (4, 6), (4, 6)),
    "silu": (chained(L.Conv1D(3, 1, activation="silu", name="c"), L.Activation("silu", name="m")), (4, 6)),
    "elu": (chained(L.Dense(3, activation="elu", name="c"), L.ELU(0.3, name="m")), (4, 6)),
    "operators": (lambda x: ops.elu(ops.silu(-ops.square(x) + x)), (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_expanded_model_predicts_the_same(case):
    build, *shapes = CASES[case]
    model = network(build, *shapes)
    new, rows = expand_layers(model)
    assert_equal(model, new)
    assert all(row.action == "done" for row in rows), rows
    assert new.output_names == model.output_names
    assert not {type(layer).__name__ for layer in new.layers} & {
        "SeparableConv2D", "LayerNormalization", "GroupNormalization", "LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional",
        "MultiHeadAttention", "GroupedQueryAttention", "TimeDistributed", "EinsumDense",
    }  # fmt: skip
    assert expand_layers(new)[1] == []


@pytest.mark.jax
@pytest.mark.parametrize("case", ["lstm", "gru", "group normalization", "gated attention in a window", "separable"])
def test_gradients_reach_all_weights(case):
    build, *shapes = CASES[case]
    model = network(build, *shapes)
    new, _ = expand_layers(model)
    assert_equal(model, new)
    before = [ops.convert_to_numpy(v) for v in new.trainable_variables]
    new.compile(keras.optimizers.SGD(0.05), "mse")
    x = batch(new, 8)
    new.fit(x, ops.convert_to_numpy(new(x)) + 1, verbose=0)
    for variable, old in zip(new.trainable_variables, before, strict=True):
        # A constant sum on all scores leaves the softmax as it is.
        if "key/bias" not in variable.path and "m_key/" not in variable.path.replace("kernel", ""):
            assert not np.array_equal(ops.convert_to_numpy(variable), old), variable.path


@pytest.mark.parametrize("case", ["bidirectional", "gru", "causal attention", "group normalization"])
def test_save_and_load(case, tmp_path):
    build, *shapes = CASES[case]
    new, _ = expand_layers(network(build, *shapes))
    new.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(ops.convert_to_numpy(new(batch(new))), ops.convert_to_numpy(loaded(batch(new))))


# --- what is shared and named


def test_steps_of_a_recurrent_layer_share_their_layers_and_the_output_has_its_name():
    new, _ = expand_layers(network(L.LSTM(5, name="m"), (9, 3)))
    names = [layer.name for layer in new.layers]
    assert len(names) == len(set(names))
    assert sum(type(layer) is L.Dense for layer in new.layers) == 2
    assert {"m", "m_input", "m_state", "m_c"} <= set(names)


def test_a_layer_that_is_called_twice_stays_one_layer():
    a, b = keras.Input((4, 3), name="a"), keras.Input((4, 3), name="b")
    rnn = L.GRU(5, name="m")
    model = randomized(keras.Model([a, b], L.Subtract()([rnn(a), rnn(b)])))
    new, _ = expand_layers(model)
    assert_equal(model, new)
    assert sum(type(layer) is L.Dense for layer in new.layers) == 2


def test_nested_models_are_expanded_inside():
    inner = keras.Sequential(
        [keras.Input((6, 4)), L.SeparableConv1D(4, 3, name="s"), L.LayerNormalization(name="n")], name="inner"
    )
    model = network(chained(inner, L.Flatten(), L.Dense(2, name="d")), (6, 4))
    new, rows = expand_layers(model)
    assert_equal(model, new)
    assert [row.layer for row in rows] == ["inner/s", "inner/n"]


# --- gamma and beta


@pytest.mark.parametrize("bias", [True, False])
def test_gamma_and_beta_go_into_the_products_behind(bias):
    def build(x):
        y = L.LayerNormalization(name="n")(x)
        return (
            L.Dense(3, use_bias=bias, name="d")(y),
            L.Dense(2, name="e")(y),
            L.MultiHeadAttention(2, 3, name="m")(y, y),
        )

    model = network(build, (4, 6))
    new, rows = expand_layers(model)
    assert_equal(model, new)
    folded = rows[0].detail.split("folded into ")[1]
    assert set(folded.split(", ")) == {"d", "e", "m"}
    assert not any("DepthwiseConv" in type(layer).__name__ for layer in new.layers)
    assert new.get_layer("d").use_bias


def test_gamma_and_beta_stay_where_something_else_reads_them():
    def build(x):
        y = L.LayerNormalization(name="n")(x)
        return L.Add()([y, L.Dense(6, name="d")(y)])

    model = network(build, (4, 6))
    kernel = ops.convert_to_numpy(model.get_layer("d").kernel)
    new, rows = expand_layers(model)
    assert_equal(model, new)
    assert "folded" not in rows[0].detail
    assert np.array_equal(ops.convert_to_numpy(new.get_layer("d").kernel), kernel)
    assert type(new.get_layer("n")) is L.DepthwiseConv1D


# --- what is attached


def test_masks_of_pruning_go_over():
    model = network(chained(L.LSTM(6, name="m"), L.Dense(2, name="d")), (4, 5))
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    method.clock(small).assign(7)
    new, rows = expand_layers(small)
    assert rows[0].action == "done"
    assert method.step(new) == 7
    assert_equal(small, new)
    for part in ("m_input", "m_state"):
        link = chain(new.get_layer(part)).links[0]
        assert type(link).__name__ == "MagnitudeMask"
        assert (ops.convert_to_numpy(new.get_layer(part).kernel) == 0).mean() == pytest.approx(0.5, abs=0.02)


def test_parts_are_selected_as_the_layer_that_they_are_of():
    new, _ = expand_layers(network(L.LSTM(5, name="m"), (4, 3)), reuse=True)
    part = new.get_layer("m_state")
    assert select.get(L.LSTM)("m_state", part, "kernel")
    assert select.get("m")("m_state", part, "kernel")
    assert not (~select.get("m"))("m_state", part, "kernel")
    assert not select.get("other")("m_state", part, "kernel")


# --- layers of the user's own


@keras.saving.register_keras_serializable("tests")
class Block(L.Layer):
    """Layers and operators; `training` is only handed on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense, self.drop, self.attend = L.Dense(6), L.Dropout(0.2), L.MultiHeadAttention(2, 3)

    def build(self, shape):
        self.dense.build(shape)
        self.attend.build(shape, shape)

    def call(self, x, training=None):
        return self.drop(ops.relu(self.dense(x)) + self.attend(x, x), training=training)


@keras.saving.register_keras_serializable("tests")
class Branching(Block):
    def call(self, x, training=None):
        y = self.dense(x) + self.attend(x, x)
        return y if training else ops.relu(y)


@keras.saving.register_keras_serializable("tests")
class Owning(L.Layer):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), name="w")

    def call(self, x):
        return x * self.w


@keras.saving.register_keras_serializable("tests")
class Reading(Block):
    def call(self, x):
        return ops.matmul(x, self.dense.kernel) + self.attend(x, x)


@pytest.mark.jax
def test_a_layer_of_the_users_own_is_traced():
    model = network(Block(name="m"), (4, 6))
    new, rows = expand_layers(model)
    assert_equal(model, new)
    assert [row.action for row in rows] == ["done", "done"]
    assert len(new.trainable_variables) == len(model.trainable_variables)
    assert any(isinstance(layer, L.Dropout) for layer in new.layers)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Branching(name="m"), "other things in training"),
        (Owning(name="m"), "owns weights itself"),
        (Reading(name="m"), "without the layers that own them"),
    ],
)
def test_a_layer_that_cannot_be_traced_is_named(layer, reason):
    model = network(layer, (4, 6))
    new, rows = expand_layers(model)
    assert_equal(model, new, 0)
    assert [row.action for row in rows] == ["float"]
    assert reason in rows[0].detail


# --- what stays


@pytest.mark.parametrize(
    ("build", "shape", "reason"),
    [
        (chained(L.Masking(), L.LSTM(3, name="m")), (4, 3), "carries a mask"),
        (L.LSTM(3, name="m"), (None, 3), "number of time steps is not known"),
        (L.LSTM(3, recurrent_dropout=0.5, name="m"), (4, 3), "a mask for each gate"),
        (L.LSTM(3, name="m"), (200, 3), "200 time steps"),
        (L.LayerNormalization(axis=1, name="m"), (4, 3), "not over the channels"),
        (L.TimeDistributed(L.BatchNormalization(), name="m"), (4, 3), "may not treat all samples alike"),
        (L.EinsumDense("abc,cd->adb", (3, 4), name="m"), (4, 3), "no product over the last axes"),
        (lambda x: L.Attention(name="m")([x, x]), (4, 3), "no expansion of Attention"),
        (L.ConvLSTM1D(2, 3, name="m"), (4, 5, 3), "no expansion of ConvLSTM1D"),
    ],
)
def test_c06_what_stays_is_named_with_its_reason_and_its_cost(build, shape, reason):
    model = network(build, shape)
    new, rows = expand_layers(model)
    (row,) = rows
    assert (row.layer, row.action) == ("m", "float")
    assert reason in row.detail
    assert "calibrated at export" in row.detail
    assert [layer.name for layer in new.layers] == [layer.name for layer in model.layers]


def test_the_cost_of_what_stays_is_its_share_of_the_products():
    model = network(chained(L.Masking(), L.SimpleRNN(3, name="m"), L.Dense(2, name="d")), (4, 3))
    _, rows = expand_layers(model)
    assert f"{4 * (3 * 3 + 3 * 3) / (4 * 18 + 6):.0%} of the multiply-accumulates" in rows[0].detail


def test_stateful_layers_stay():
    i = keras.Input(batch_shape=(2, 4, 3))
    _, rows = expand_layers(keras.Model(i, L.LSTM(3, stateful=True, name="m")(i)))
    assert "stateful" in rows[0].detail


def test_layers_that_are_to_be_kept_are():
    model = network(chained(L.SeparableConv1D(3, 2, name="a"), L.SeparableConv1D(3, 2, name="b")), (6, 3))
    new, rows = expand_layers(model, keep=lambda path, layer: path == "a")
    assert [layer.name for layer in new.layers][1:] == ["a", "b_depthwise", "b"]
    assert [row.action for row in rows] == ["float", "done"]
