"""Every common layer is quantized or named in the report, and operators are part of the graph."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress.parametrization import chains
from tfcompress.quantization import QAT
from tfcompress.quantization.ranges import ranges

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def common():
    """The layers of C6, several branches put together."""
    image, words = keras.Input((12, 12, 3), name="image"), keras.Input((6,), dtype="int32", name="words")
    x = L.BatchNormalization(name="leading")(L.Rescaling(1 / 255, name="rescaling")(image))
    x = L.SeparableConv2D(4, 3, use_bias=False, name="separable")(x)
    x = L.Conv2DTranspose(4, 3, activation="relu", name="transposed")(x)
    a = L.Conv1D(6, 3, name="conv1d")(L.Reshape((36, 16), name="rows")(x))
    a = L.LayerNormalization(name="layernorm")(a)
    e = L.Embedding(9, 8, name="embedding")(words)
    b = L.GRU(4, return_sequences=True, name="gru")(e)
    c = L.Bidirectional(L.LSTM(3), name="both")(b)
    d = L.LSTM(4, name="lstm")(e)
    m = L.MultiHeadAttention(2, 4, name="attention")(e, e)
    n = L.EinsumDense("abc,cd->abd", (6, 5), bias_axes="d", name="einsum")(m)
    flat = [L.Flatten()(a), c, d, L.Flatten()(n), L.Subtract(name="minus")([d, L.Dense(4, name="other")(c)])]
    y = L.Concatenate(name="together")(flat)
    return keras.Model({"image": image, "words": words}, L.Dense(3, activation="softmax", name="head")(y))


def inputs(n=16):
    rng = np.random.default_rng(0)
    return {
        "image": rng.uniform(0, 255, (n, 12, 12, 3)).astype("float32"),
        "words": rng.integers(0, 9, (n, 6)).astype("int32"),
    }


@pytest.mark.jax
def test_c06_every_common_layer_is_quantized_or_listed():
    keras.utils.set_random_seed(0)
    model = common()
    model.compile("adam", "sparse_categorical_crossentropy")
    plain_layers = [(path, layer) for path, layer in tfcompress.select.layers(model) if "/" not in path]
    x, y = inputs(), np.random.default_rng(1).integers(0, 3, 16)
    small = tfcompress.apply(model, QAT(), data=x, verbose=0)
    report = tfcompress.summary(small)
    named = {row.layer.split("/")[0].split("#")[0].removesuffix("_softmax") for row in report.rows}
    for path, layer in plain_layers:
        if layer.weights:
            assert any(name == path or name.startswith(path) for name in named), f"nothing is said of {path}"
    assert all(row.action in ("done", "skipped", "float") and row.detail for row in report.rows)
    done = {(row.layer, row.weight) for row in report.rows if row.action == "done"}
    for name in ("separable", "conv1d", "transposed", "head"):
        assert any(layer == name and "kernel" in weight for layer, weight in done), name
        assert (name, "output") in done or (f"{name}_softmax", "output") in done, name
    # Both weights of a recurrent layer are on grids, wherever its cell now lives.
    for name in ("lstm", "gru"):
        weights = [key for key, c in chains(small) if key.startswith(name) and c.grid() is not None]
        assert len(weights) >= 2, (name, weights)
    history = small.fit(x, y, batch_size=8, verbose=0, callbacks=[tfcompress.Compression()]).history
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(values(tfcompress.finalize(small, verbose=0)(x))).all()


@pytest.mark.jax
def test_c05_operators_on_tensors_are_part_of_the_graph():
    i = keras.Input((4,), name="x")
    x = L.Dense(4, name="dense")(i)
    model = keras.Model(i, x * keras.ops.relu6(x + 3.0) / 6.0)
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype("float32"), rng.normal(size=(32, 4)).astype("float32")
    small = tfcompress.apply(model, QAT(), data=x, verbose=0)
    assert len(ranges(small)) >= 3
    assert np.isfinite(small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()]).history["loss"]).all()
    plain = tfcompress.finalize(small, verbose=0)
    assert np.abs(values(small(x)) - values(plain(x))).max() < 0.3


@pytest.mark.slow
@pytest.mark.skipif(not ON_TF, reason="conversions are tested once")
def test_c05_mobilenet_v3_trains_a_step_and_its_file_is_verified(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV3Small((64, 64, 3), weights=None, classes=10)
    model.compile(keras.optimizers.SGD(1e-4), "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 255, (16, 64, 64, 3)).astype("float32"), rng.integers(0, 10, 16)
    small = tfcompress.apply(model, QAT(), data=x, verbose=0)
    loss = small.fit(x, y, batch_size=16, verbose=0, callbacks=[tfcompress.Compression()]).history["loss"]
    assert np.isfinite(loss).all()
    report = tfcompress.export.tflite(small, tmp_path / "m.tflite", "int8", calibration=x, verbose=0)
    verified = report.verification
    assert verified.census.integer_share == 1.0
    assert verified.read_back["weights"] > 50
    assert all(one.within for one in verified.exactness) or verified.max_steps < 1.01
