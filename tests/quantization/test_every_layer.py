"""Operators on tensors are part of the graph that is quantized."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress.quantization import QAT
from tfcompress.quantization.ranges import ranges

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


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
