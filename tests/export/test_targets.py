"""Presets of rules: what each takes by itself, what it refuses by name, and on what its word rests."""

import keras
import numpy as np
import pytest

from tests.export import oracle
from tfcompress import export
from tfcompress.errors import CompressionError

layers = keras.layers


@pytest.fixture(scope="module")
def dense():
    keras.utils.set_random_seed(0)
    x = keras.Input((64,), name="x")
    model = keras.Model(x, layers.Dense(32, name="d")(x))
    return model, np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def _scales(path, shape) -> int:
    (weight,) = [e for e in oracle.stored(path).values() if e["values"] is not None and e["values"].shape == shape]
    return len(weight["scales"])


@pytest.mark.parametrize(
    ("target", "scales"),
    [("xnnpack", 32), ("gpu", 32), ("nnapi", 1), ("edgetpu", 1), ("tflm", 32), ("tflm-legacy", 1)],
)
def test_c27_each_target_gets_what_it_accepts(worker, dense, tmp_path, target, scales):
    model, data = dense
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, "int8", calibration=data, target=target, worker=worker, verbose=0)
    assert _scales(path, (32, 64)) == scales
    assert report.target == target
    assert report.boundary == ("int8" if target == "edgetpu" else "float32")
    checked = report.verification
    assert checked.target["refusals"] == []
    assert checked.max_error < 0.02
    text = " ".join(str(report).split())
    assert "accepts it (checked by" in text
    assert checked.target["checked_by"] == export.TARGETS[target].checked_by
    # Whatever was not run says so: a table of rules is no device.
    assert checked.target["checked_by"] == "run" or checked.target["checked_by"].startswith("rules (")
    assert (target == "xnnpack") == (checked.target["checked_by"] == "run")
    override = export.tflite(
        model, path, "int8", calibration=data, target=target, per_tensor_dense=scales != 1, worker=worker, verbose=0
    )
    assert _scales(path, (32, 64)) == (1 if scales != 1 else 32)
    assert override.verification.max_error < 0.02


REFUSED = {
    "gpu": ["dynamic", "int16x8", "int4"],
    "nnapi": ["dynamic", "int16x8", "int4"],
    "edgetpu": ["float32", "float16", "dynamic", "int16x8", "int4"],
    "tflm": ["float16", "dynamic", "int4"],
    "tflm-legacy": ["float16", "dynamic", "int16x8", "int4"],
}


@pytest.mark.parametrize("target", list(REFUSED))
def test_precisions_that_a_target_does_not_take_are_refused_with_the_source(worker, dense, tmp_path, target):
    model, data = dense
    for precision in export.PRECISIONS:
        if precision in REFUSED[target]:
            with pytest.raises(CompressionError, match=f"Target '{target}' takes .*, not '{precision}' \\(rules"):
                export.tflite(
                    model, tmp_path / "m.tflite", precision, calibration=data, target=target, worker=worker, verbose=0
                )
    assert not (tmp_path / "m.tflite").exists()
    assert set(REFUSED[target]) == set(export.PRECISIONS) - set(export.TARGETS[target].precisions)


@pytest.mark.parametrize("target", ["nnapi", "edgetpu", "tflm", "tflm-legacy"])
def test_operators_that_a_target_does_not_know_are_named(worker, tmp_path, target):
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    y = keras.ops.flip(layers.Dense(6, activation="gelu", name="d")(x), axis=1)
    model = keras.Model(x, layers.Dense(3, name="o")(y))
    data = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, "int8", calibration=data, target=target, worker=worker, verbose=0)
    refusals = " ".join(report.verification.target["refusals"])
    assert "REVERSE_V2" in refusals
    text = " ".join(str(report).split())
    assert "refuses" in text
    assert "not run" in text


def test_an_operator_without_an_integer_kernel_is_named_with_what_it_costs(worker, tmp_path):
    """On a target that takes no float at all it is a refusal, elsewhere a line of the report."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    y = layers.Lambda(keras.ops.sin, name="wave")(layers.Dense(6, name="d")(x))
    model = keras.Model(x, layers.Dense(3, name="o")(y))
    data = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    lines = {}
    for target in ("xnnpack", "edgetpu"):
        report = export.tflite(
            model, tmp_path / "m.tflite", "int8", calibration=data, target=target, worker=worker, verbose=0
        )
        lines[target] = report.verification.target["refusals"]
        text = " ".join(str(report).split())
        assert "SIN" in text
        assert "(layer wave)" in text
        assert "1 DEQUANTIZE before and 1 QUANTIZE behind" in " ".join(text.replace("│", " ").split())
    assert lines["xnnpack"] == []
    assert any("float operators" in line for line in lines["edgetpu"])


def test_the_gpu_delegate_refuses_loops(worker, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 4), name="x")
    model = keras.Model(x, layers.Dense(2)(layers.LSTM(4)(x)))
    data = np.random.default_rng(0).normal(size=(8, 6, 4)).astype(np.float32)
    report = export.tflite(model, tmp_path / "m.tflite", samples=data, target="gpu", worker=worker, verbose=0)
    assert any("WHILE" in line for line in report.verification.target["refusals"])
    assert "model analyzer" in report.verification.target["checked_by"]


def test_boundaries_follow_the_target_unless_said_otherwise(worker, dense, tmp_path):
    model, data = dense
    path = tmp_path / "m.tflite"
    report = export.tflite(
        model, path, "int8", calibration=data, target="edgetpu", boundary="uint8", worker=worker, verbose=0
    )
    assert report.boundary == "uint8"
    with pytest.raises(CompressionError, match="takes the boundaries int8, uint8, not 'float32'"):
        export.tflite(
            model, path, "int8", calibration=data, target="edgetpu", boundary="float32", worker=worker, verbose=0
        )
    ends = oracle.stored(path)
    assert ends["x"]["dtype"] == ends["d"]["dtype"] == np.uint8
