"""A file's ends are called what the user knows: input layers, output layers, keys of dicts; also after training."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import export, quantization

layers = keras.layers


def _signature(path):
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_path=str(path)).get_signature_list()["serving_default"]
    return list(found["inputs"]), list(found["outputs"])


def _trained(model, data):
    small = tfcompress.apply(model, quantization.QAT(), data=data, verbose=0)
    return small


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "activation"), [("functional", "softmax"), ("sequential", "softmax"), ("functional", "silu")]
)
def test_an_output_keeps_its_name_when_training_split_its_activation(worker, vectors, tmp_path, kind, activation):
    x = keras.Input((6,), name="x")
    dense = layers.Dense(3, activation=activation, name="scores")
    model = keras.Model(x, dense(x)) if kind == "functional" else keras.Sequential([x, dense])
    small = _trained(model, vectors)
    assert [layer.name for layer in small.layers][-1] != "scores"
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    finalized = tfcompress.finalize(small, verbose=0)
    for name, one in {"attached": small, "loaded": again, "finalized": finalized}.items():
        path = tmp_path / f"{name}.tflite"
        report = export.tflite(one, path, "int8", samples=vectors, worker=worker, verbose=0)
        assert _signature(path) == (["x"], ["scores"]), name
        assert [o.name for o in report.verification.outputs] == ["scores"]
        assert report.verification.max_steps <= (2.5 if name == "finalized" else 1.001)


def test_a_users_own_activation_layer_keeps_its_name(worker, vectors, tmp_path):
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Activation("softmax", name="probabilities")(layers.Dense(3, name="scores")(x)))
    path = tmp_path / "m.tflite"
    export.tflite(_trained(model, vectors), path, "int8", samples=vectors, worker=worker, verbose=0)
    assert _signature(path) == (["x"], ["probabilities"])
    plain = keras.Model(x, layers.Activation("softmax", name="d_softmax")(layers.Dense(3, name="d")(x)))
    export.tflite(plain, path, "int8", calibration=vectors, worker=worker, verbose=0)
    assert _signature(path) == (["x"], ["d_softmax"])


@pytest.mark.filterwarnings("ignore:When providing `inputs` as a dict")
def test_keys_of_dicts_are_the_names(worker, vectors, tmp_path):
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    both = layers.Concatenate()([layers.Dense(4, activation="relu")(a), b])
    outputs = {"class": layers.Dense(3, activation="softmax", name="d")(both), "box": layers.Dense(2, name="e")(both)}
    model = keras.Model({"left": a, "right": b}, outputs)
    data = {"left": vectors, "right": vectors[::-1].copy()}
    wanted = model(data)
    for name, one in {"plain": model, "trained": _trained(model, data)}.items():
        path = tmp_path / f"{name}.tflite"
        report = export.tflite(one, path, "int8", calibration=data, samples=data, worker=worker, verbose=0)
        assert set(_signature(path)[0]) == {"left", "right"}
        assert set(_signature(path)[1]) == {"class", "box"}
        got = export.Runner(path)(**data)
        for key, value in got.items():
            reference = np.asarray(wanted[key])
            np.testing.assert_allclose(value, reference, atol=0.06 * np.ptp(reference), err_msg=f"{name} {key}")
        assert report.verification.runs == {"xnnpack": "ok", "builtin": "ok"}


def test_outputs_of_equal_layers_are_told_apart(worker, vectors, tmp_path):
    x = keras.Input((6,), name="x")
    shared = layers.Dense(3, name="s")
    model = keras.Model(x, [shared(x), shared(x * 2.0)])
    path = tmp_path / "m.tflite"
    export.tflite(model, path, "int8", calibration=vectors, worker=worker, verbose=0)
    assert _signature(path)[1] == ["s", "s_1"]
    one, two = export.Runner(path)(vectors).values()
    np.testing.assert_allclose(one, np.asarray(shared(vectors)), atol=0.1)
    np.testing.assert_allclose(two, np.asarray(shared(vectors * 2)), atol=0.2)
