"""The inside of layers, simulated: what an int8 file computes there is what the trained network does."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import quantization
from tfcompress.layers import OutputRange
from tfcompress.quantization import placement
from tfcompress.quantization.ranges import ranges

L, ops = keras.layers, keras.ops
ON_TF = keras.backend.backend() == "tensorflow"


@pytest.fixture(scope="module")
def worker():
    from tfcompress.export.worker import Worker

    made = Worker(timeout=300)
    yield made
    made.close()


def sequence(*layers, shape=(6, 4)):
    return keras.Sequential([keras.Input(shape, name="x"), *layers, L.Dense(3, name="head")])


def image(*layers):
    front = [keras.Input((8, 8, 3), name="x"), L.Conv2D(6, 3, name="c")]
    return keras.Sequential([*front, *layers, L.GlobalAveragePooling2D(name="gap"), L.Dense(3, name="head")])


def transformer(first=True, causal=False, attention=None):
    """A block with normalization first, so that gamma and beta fold, or last, so that they do not."""
    tokens = keras.Input((6,), name="tokens", dtype="int32")
    attention = attention or L.MultiHeadAttention(2, 4, name="m")
    x = L.Embedding(20, 8, name="table")(tokens)
    y = L.LayerNormalization(name="n1")(x) if first else x
    x = L.Add(name="r1")([x, attention(y, y, use_causal_mask=causal)])
    x = x if first else L.LayerNormalization(name="n1")(x)
    y = L.LayerNormalization(name="n2")(x) if first else x
    x = L.Add(name="r2")([x, L.Dense(8, name="f2")(L.Dense(16, activation="relu", name="f1")(y))])
    x = x if first else L.LayerNormalization(name="n2")(x)
    return keras.Model(tokens, L.Dense(3, name="head")(L.GlobalAveragePooling1D(name="gap")(x)))


NETWORKS = {
    "lstm": lambda: sequence(L.LSTM(8, name="r")),
    "transformer": transformer,
    "gru": lambda: sequence(L.GRU(8, return_sequences=True, name="r"), L.GRU(5, reset_after=False, name="r2")),
    "rnn": lambda: sequence(L.SimpleRNN(8, return_sequences=True, name="r"), L.SimpleRNN(6, name="r2")),
    "bidirectional": lambda: sequence(
        L.Bidirectional(L.LSTM(4, return_sequences=True), name="b"), L.Bidirectional(L.GRU(4), "sum", name="b2")
    ),
    "causal transformer": lambda: transformer(causal=True),
    "grouped transformer": lambda: transformer(attention=L.GroupQueryAttention(4, 4, 2, name="m")),
    "transformer, normalization last": lambda: transformer(first=False),
    "separable": lambda: image(L.SeparableConv2D(6, 3, name="s"), L.ReLU(name="a")),
    "layer normalization": lambda: image(L.LayerNormalization(name="n"), L.ReLU(name="a")),
    "group normalization": lambda: image(L.GroupNormalization(2, name="n"), L.ReLU(name="a")),
    "rms normalization": lambda: sequence(L.RMSNormalization(name="n"), L.Flatten(name="f")),
    "silu and elu": lambda: image(
        L.Conv2D(6, 3, activation="silu", name="s"), L.Conv2D(6, 3, activation="elu", name="e")
    ),
    "time distributed": lambda: sequence(
        L.TimeDistributed(L.Conv2D(3, 3, activation="relu"), name="t"), L.Flatten(name="f"), shape=(3, 6, 6, 2)
    ),
    "einsum": lambda: sequence(
        L.EinsumDense("abc,cde->abde", (6, 2, 3), bias_axes="de", name="e"), L.Flatten(name="f")
    ),
}
FAST = ("lstm", "transformer")


def data(model, n=64, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n, *model.inputs[0].shape[1:])
    whole = str(model.inputs[0].dtype).startswith("int")
    return rng.integers(0, 20, shape).astype("int32") if whole else rng.normal(size=shape).astype("float32")


def attached(build):
    keras.utils.set_random_seed(3)
    model = build()
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if len(variable.shape) == 1 or "bias" in variable.path:
            variable.assign(ops.convert_to_numpy(variable) + 0.3 * rng.normal(size=variable.shape))
    x = data(model)
    return tfcompress.apply(model, quantization.QAT(), data=x, verbose=0), x


@pytest.mark.skipif(not ON_TF, reason="conversions are tested once")
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS])
def test_c23_the_file_computes_what_was_simulated(name, worker, tmp_path):
    model, x = attached(NETWORKS[name])
    path = tmp_path / "m.tflite"
    report = tfcompress.export.tflite(model, path, precision="int8", calibration=x, worker=worker, verbose=0)
    assert report.ranges["calibrated"] == 0, report.calibrated
    assert report.weights["by extremes"] == 0
    assert not report.verification.census.float_operators
    simulated = ops.convert_to_numpy(model(x, training=False))
    deployed = tfcompress.export.Runner(path)(x)
    deployed = next(iter(deployed.values())) if isinstance(deployed, dict) else deployed
    steps = np.abs(np.asarray(deployed) - simulated) / ranges(model)[-1].range.scale
    assert steps.max() < 2.01, f"{steps.max():.1f} steps"
    assert (steps < 1.01).mean() >= 0.98


# --- where ranges lie


def test_steps_share_one_range_a_role():
    model, _ = attached(NETWORKS["lstm"])
    names = [layer.name for layer in ranges(model)]
    assert len(names) == len(set(names))
    roles = ("input", "state", "sum", "i", "f", "g", "o", "new", "kept", "c", "shown")
    assert {name for name in names if name.startswith("r_")} == {"r_range", *(f"r_{role}_range" for role in roles)}
    rows = {(row.layer, row.weight): row for row in tfcompress.summary(model).rows}
    assert rows["r", ""].action == "done"
    assert rows["r_input", "kernel"].action == rows["r_state", "kernel"].action == "done"
    assert rows["r_input", "bias"].detail.startswith("int32")


def test_the_state_of_a_gru_has_one_range_in_all_steps():
    model, _ = attached(lambda: sequence(L.GRU(8, return_sequences=True, name="r")))
    state = model.get_layer("r_state")
    assert placement.input_range(state) is not None
    rows = {(row.layer, row.weight): row for row in tfcompress.summary(model).rows}
    assert rows["r_state", "bias"].action == "done"


def test_a_record_of_shared_steps_survives_finalize_and_its_file():
    model, x = attached(NETWORKS["lstm"])
    plain = tfcompress.finalize(model, verbose=0)
    outputs = plain._tfcompress_record.outputs
    steps = [key for key in outputs if key.split("#")[0] == "r_state"]
    assert len(steps) == 5
    assert len({outputs[key] for key in steps}) == 1
    assert {"r_input.kernel", "r_state.kernel"} <= set(plain._tfcompress_record.weights)
    assert not any("Range" in type(layer).__name__ for layer in plain.layers)
    rounding = np.abs(ops.convert_to_numpy(model(x)) - ops.convert_to_numpy(plain(x))).max()
    assert 0 < rounding < 0.1


def test_masked_scores_do_not_widen_the_range_of_scores():
    model, x = attached(NETWORKS["causal transformer"])
    scores = next(layer for layer in ranges(model) if layer.room)
    assert scores.room == pytest.approx(np.log(512 * 6))
    assert -60 < scores.range.minimum < -scores.room
    # A later token changes nothing before it.
    inner = keras.Model(model.input, model.get_layer("r1").output)
    other = x.copy()
    other[:, -1] = (other[:, -1] + 1) % 20
    one, two = (ops.convert_to_numpy(inner(value)) for value in (x, other))
    assert np.array_equal(one[:, :-1], two[:, :-1])
    assert not np.array_equal(one[:, -1], two[:, -1])


@pytest.mark.jax
def test_a_range_before_a_division_never_gives_0():
    layer = OutputRange(positive=True)
    x = np.array([[0.0, 1e-6, 0.5, 2.55]], "float32")
    layer(x, training=True)
    step = np.float32(2.55 / 255)
    assert ops.convert_to_numpy(layer(x, training=True)).ravel() == pytest.approx([step, step, 0.5, 2.55], rel=1e-5)
    # The kernel's largest output, as for an infinite one.
    assert ops.convert_to_numpy(layer(x)).ravel()[:2] == pytest.approx([1e-12, 1e-12])


@pytest.mark.jax
def test_training_through_a_normalization_of_equal_numbers_stays_finite():
    model = sequence(L.LayerNormalization(epsilon=1e-6, name="n"), L.Flatten(name="f"))
    x = data(model, 16)
    x[:4] = 0
    small = tfcompress.apply(model, quantization.QAT(), data=x, verbose=0)
    small.compile(keras.optimizers.SGD(0.01), "mse")
    history = small.fit(x, np.zeros((16, 3)), batch_size=8, verbose=0, callbacks=[tfcompress.Compression()])
    assert np.isfinite(history.history["loss"]).all()
    assert all(np.isfinite(ops.convert_to_numpy(v)).all() for v in small.variables if "float" in str(v.dtype))
    assert small.get_layer("n_inverse_range").range.maximum < 2000


# --- how it is asked for


def test_mixed_and_keep_float_speak_of_the_users_layers():
    def build():
        return sequence(L.LSTM(4, return_sequences=True, name="a"), L.GRU(4, name="b"))

    small = tfcompress.apply(build(), quantization.QAT(mixed={L.LSTM: 4}, keep_float="b"), verbose=0)
    rows = {(row.layer, row.weight): row for row in tfcompress.summary(small).rows}
    assert "bits=4" in rows["a_input", "kernel"].detail
    assert "bits=4" not in rows["head", "kernel"].detail
    assert isinstance(small.get_layer("b"), L.GRU)
    assert rows["b", ""].action == "float"


def test_c06_every_layer_with_an_inside_has_a_row():
    i = keras.Input((6, 8), name="x")
    branches = [
        L.SeparableConv1D(4, 3, use_bias=False, padding="same", name="separable")(i),
        L.LayerNormalization(name="normal")(i),
        L.GRU(4, return_sequences=True, name="gru")(i),
        L.LSTM(4, return_sequences=True, recurrent_dropout=0.1, name="lstm")(i),
        L.Bidirectional(L.LSTM(3, return_sequences=True), name="both")(i),
        L.MultiHeadAttention(2, 3, name="attention")(i, i),
        L.EinsumDense("abc,cd->abd", (None, 4), bias_axes="d", name="einsum")(i),
    ]
    model = keras.Model(i, L.Dense(2, name="head")(L.Flatten(name="flat")(L.Concatenate(name="all")(branches))))
    small = tfcompress.apply(model, quantization.QAT(), verbose=0)
    rows = {row.layer: row for row in reversed(tfcompress.summary(small).rows) if not row.weight}
    names = {"separable", "normal", "gru", "lstm", "both", "attention", "einsum"}
    assert names <= set(rows)
    assert {name for name in names if rows[name].action != "done"} == {"lstm"}
    assert "calibrated at export" in rows["lstm"].detail
    assert "% of the multiply-accumulates" in rows["lstm"].detail
