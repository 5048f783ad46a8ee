"""The float64 twin of a simulated network, and what a report says of a file by it."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import quantization
from tfcompress.errors import CompressionError
from tfcompress.export.exactness import against_float64
from tfcompress.export.reports import OutputError
from tfcompress.parametrization import chain
from tfcompress.quantization.gap import Twin

L = keras.layers
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="float64")


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def attached(model, n=32):
    x = np.random.default_rng(0).normal(size=(n, *model.input_shape[1:])).astype("float32")
    return tfcompress.apply(model, quantization.QAT(), data=x, verbose=0), x


def by_hand(model, x):
    """Two dense layers with a ReLU between, code by code in float64."""

    def rounded(v, layer):
        r = model.get_layer(layer).range
        s = np.float64(np.float32(r.scale))
        return (np.clip(np.rint(v / s) + r.zero_point, -128, 127) - r.zero_point) * s

    def weights(name, before):
        layer = model.get_layer(name)
        unit = chain(layer, "kernel").grid().unit.astype(np.float64)
        codes = np.rint(layer.kernel.numpy() / unit)
        step = unit.ravel() * np.float64(np.float32(model.get_layer(before).range.scale))
        return codes * unit, np.rint(chain(layer, "bias").raw.numpy() / step) * step

    kernel, bias = weights("a", "x_range")
    h = rounded(np.maximum(rounded(x.astype(np.float64), "x_range") @ kernel + bias, 0), "a_range")
    kernel, bias = weights("b", "a_range")
    return rounded(h @ kernel + bias, "b_range")


def test_the_twin_is_the_network_in_float64():
    model = keras.Sequential(
        [keras.Input((20,), name="x"), L.Dense(30, activation="relu", name="a"), L.Dense(4, name="b")]
    )
    model.get_layer("a").bias.assign(np.linspace(-0.3, 0.3, 30))
    small, x = attached(model)
    exact = Twin(small)([x])[0]
    assert exact.dtype == np.float64
    assert np.allclose(exact, by_hand(small, x), rtol=1e-12, atol=1e-14)
    [gap] = quantization.simulation_gap(small, x)
    step = small.get_layer("b_range").range.scale
    assert gap.step == step
    apart = np.abs(values(small(x)) - exact) / step
    assert gap.largest == pytest.approx(apart.max(), abs=1e-6)
    assert gap.equal == np.mean(apart < 0.5) > 0.9
    assert f"{gap.largest:.2f} steps" in str(gap)


def test_nested_shared_and_many_outputs():
    inner = keras.Sequential([keras.Input((6,)), L.Dense(6, activation="relu", name="d")], name="inner")
    i, j = keras.Input((6,), name="i"), keras.Input((6,), name="j")
    k, m = inner(i), inner(j)
    outputs = {"sum": L.Dense(3, name="sum")(k + m), "flat": L.Reshape((2, 3), name="flat")(k * 0.5)}
    model = keras.Model({"i": i, "j": j}, outputs)
    rng = np.random.default_rng(1)
    x = {name: rng.normal(size=(16, 6)).astype("float32") for name in "ij"}
    small = tfcompress.apply(model, quantization.QAT(), data=x, verbose=0)
    gaps = quantization.simulation_gap(small, x)
    assert {gap.output for gap in gaps} == {"sum", "flat"}
    assert all(gap.step and gap.largest < 1.01 for gap in gaps)


def test_without_ranges_there_is_nothing_to_simulate():
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    with pytest.raises(CompressionError, match="no output ranges"):
        quantization.simulation_gap(model, np.zeros((2, 3)))


def test_a_report_measures_a_file_by_the_gap():
    """A made-up file two codes off: the simulations agree here, so that it is outside; within one it is not looked at."""
    small, x = attached(keras.Sequential([keras.Input((5,), name="x"), L.Dense(3, name="a")]))
    wanted = values(small(x))
    step = small.get_layer("a_range").range.scale

    def error(steps):
        return OutputError("a", 0, 0, 0, step, steps, 0, 0, 0, None)

    assert against_float64(small, [x], [error(1.0)], [wanted + step], [wanted]) == []
    assert (
        against_float64(keras.Sequential([keras.Input((5,)), L.Dense(3)]), [x], [error(2.0)], [wanted], [wanted]) == []
    )
    [bad] = against_float64(small, [x], [error(2.0)], [wanted + 2 * step], [wanted])
    assert not bad.within
    assert bad.file == pytest.approx(2, abs=0.01)
    assert "NOT within the gap plus one step" in str(bad)
    [good] = against_float64(small, [x], [error(2.0)], [wanted], [wanted])
    assert good.within
    assert good.equal > 0.95


def test_a_deep_network_is_within_its_gap(tmp_path):
    """Depth lets float32 noise grow; the file stays within the printed gap and one step."""
    keras.utils.set_random_seed(0)
    i = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 1, activation="relu")(i)
    for _ in range(8):
        y = L.DepthwiseConv2D(3, padding="same", activation="relu")(x)
        x = L.Add()([x, L.Conv2D(8, 1)(y)])
    small, x = attached(keras.Model(i, L.Dense(4, name="head")(L.GlobalAveragePooling2D()(x))), n=64)
    report = tfcompress.export.tflite(small, tmp_path / "m.tflite", "int8", calibration=x, verbose=0)
    verified = report.verification
    if verified.max_steps > 1.001:
        assert [one.within for one in verified.exactness] == [True]
        assert "float64 " in str(verified)
    else:
        assert verified.exactness == []
