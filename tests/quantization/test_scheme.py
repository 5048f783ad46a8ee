"""Schemes: which grids weights and outputs get, how their ranges are found, and what is refused."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import select
from tfcompress.core.grids import IntegerGrid, LearnedGrid
from tfcompress.errors import CompressionError
from tfcompress.layers import OutputRange
from tfcompress.parametrization import chain, chains
from tfcompress.quantization import QAT, Scheme
from tfcompress.quantization.ranges import ranges

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def network(end="softmax"):
    return keras.Sequential(
        [
            keras.Input((8, 8, 2), name="image"),
            L.Conv2D(6, 3, activation="relu", name="first"),
            L.DepthwiseConv2D(3, activation="relu", name="deep"),
            L.Flatten(name="flat"),
            L.Dense(12, activation="relu", name="wide"),
            L.Dense(4, activation=end, name="head"),
        ]
    )


def data(n=32):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8, 2)).astype("float32"), np.eye(4, dtype="float32")[rng.integers(0, 4, n)]


def attached(**arguments):
    keras.utils.set_random_seed(2)
    model = network()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "categorical_crossentropy")
    return tfcompress.apply(model, QAT(**arguments), data=data()[0], verbose=0)


def fit(model, epochs=1):
    x, y = data()
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[tfcompress.Compression()])


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 9}, "2 to 8"),
        ({"bits": True}, "2 to 8"),
        ({"output_bits": 12}, "8 or 16"),
        ({"output_bits": 16, "symmetric": False}, "zero point 0 only"),
        ({"weight_range": "lsqq"}, "Did you mean 'lsq'"),
        ({"output_range": "percentil"}, "Did you mean 'percentile'"),
        ({"momentum": 1}, "0..1"),
        ({"percentile": 40}, "above 50"),
    ],
)
def test_a_bad_scheme_is_refused_naming_what_is_meant(arguments, message):
    with pytest.raises(CompressionError, match=message):
        Scheme(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixed": {"frist": 4}}, "Did you mean 'first'"),
        ({"mixed": {L.LSTM: 4}}, "selects nothing"),
        ({"keep_float": "haed"}, "Did you mean 'head'"),
        ({"mixed": {"first": {"bit": 4}}}, "Did you mean 'bits'"),
        ({"mixed": {"first": Scheme(output_bits=16)}}, "one width of outputs"),
        ({"mixed": 4}, "pattern"),
        ({"scheme": Scheme(), "bits": 4}, "not both"),
        ({"scheme": "int8"}, "takes a Scheme"),
        ({"freeze_batchnorm": -1}, "a number of steps"),
    ],
)
def test_bad_arguments_of_qat_are_refused_naming_what_is_meant(arguments, message):
    with pytest.raises(CompressionError, match=message):
        tfcompress.apply(network(), QAT(**arguments), verbose=0)


@pytest.mark.parametrize("method", ["percentile", "mse", "lsq"])
def test_ranges_that_begin_with_data_demand_it(method):
    with pytest.raises(CompressionError, match="calibration data"):
        tfcompress.apply(network(), QAT(scheme=Scheme(output_range=method)), verbose=0)


# --- which layer gets what


@pytest.mark.jax
def test_mixed_gives_bits_by_layer_and_the_first_entry_counts():
    model = attached(
        mixed={"head": Scheme(per_channel=False), L.Dense: 4, select.types("DepthwiseConv2D"): {"weight_range": "lsq"}}
    )
    grids = {name.split(".")[0]: c.links[-1] for name, c in chains(model) if name.endswith("kernel")}
    assert {name: link.bits for name, link in grids.items()} == {"first": 8, "deep": 8, "wide": 4, "head": 8}
    assert type(grids["deep"]) is LearnedGrid
    assert type(grids["first"]) is IntegerGrid
    assert grids["head"].grid().unit.size == 1
    assert grids["wide"].grid().unit.shape == (1, 12)
    plain = tfcompress.finalize(model, verbose=0)
    codes = values(plain.get_layer("wide").kernel) / grids["wide"].grid().unit
    assert np.abs(codes).max() == pytest.approx(7)
    assert len(np.unique(np.rint(codes))) <= 15


@pytest.mark.jax
@pytest.mark.parametrize("spec", ["head*", [L.Dense], lambda path, layer, weight: path.startswith(("wide", "head"))])
def test_keep_float_leaves_weights_and_outputs_alone(spec):
    model = attached(keep_float=spec)
    layer = model.get_layer("head")
    assert chain(layer, "kernel") is None
    rows = {(row.layer, row.weight): row.detail for row in tfcompress.summary(model).rows}
    assert "keep_float" in rows["head", "kernel"]
    assert "keep_float" in rows["head", "output"]
    assert "head_range" not in {one.name for one in ranges(model)}
    assert "first_range" in {one.name for one in ranges(model)}


@pytest.mark.jax
def test_arguments_survive_their_config():
    method = QAT(
        scheme=Scheme(bits=5, output_range="lsq"),
        mixed={"a*": Scheme(3), "b": 4},
        keep_float=["c"],
        freeze_batchnorm=0.5,
    )
    again = method.copy()
    assert repr(again) == repr(method)
    assert again.mixed["a*"].bits == 3
    assert QAT(scheme={"bits": 4})._choice.scheme.bits == 4


@pytest.mark.jax
def test_16_bit_outputs_are_symmetric_and_their_fixed_ranges_those_of_the_kernels():
    found = {one.name: one for one in ranges(attached(output_bits=16))}
    assert all(one.range.zero_point == 0 for one in found.values())
    assert found["head_softmax_range"].range.scale == 1 / 32768
    assert found["first_range"].range.bits == 16


# --- estimators of outputs


@pytest.mark.jax
def test_minmax_holds_every_batch_and_moving_forgets():
    batches = [
        np.array([[-1.0, 3.0]], "float32"),
        np.array([[-0.5, 5.0]], "float32"),
        np.array([[-4.0, 1.0]], "float32"),
    ]
    layers = {name: OutputRange(estimator=name, momentum=0.5) for name in ("minmax", "moving")}
    for batch in batches:
        for layer in layers.values():
            layer(batch, training=True)
    assert (float(values(layers["minmax"].minimum)), float(values(layers["minmax"].maximum))) == (-4.0, 5.0)
    assert (float(values(layers["moving"].minimum)), float(values(layers["moving"].maximum))) == (-2.375, 2.5)


@pytest.mark.jax
def test_symmetric_outputs_have_zero_point_0():
    layer = OutputRange(symmetric=True)
    layer(np.array([[-1.0, 3.0]], "float32"), training=True)
    assert layer.range.zero_point == 0
    assert layer.range.scale == pytest.approx(3 / 127)


def rounding_error(x, low, high):
    """Mean squared error of 8-bit affine codes for low..high, one value at a time."""
    step = (high - low) / 255
    zero = np.rint(-128 - low / step)
    return float(((np.clip(np.rint(x / step) + zero, -128, 127) - zero) * step - x).astype(np.float64).var())


@pytest.mark.jax
@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_estimates_of_calibration_data_clip_outliers_and_stay(method):
    x = np.random.default_rng(0).normal(size=(4000, 50)).astype("float32")
    x[0, 0] = 20
    model = keras.Sequential([keras.Input((50,), name="x"), L.Dense(2, name="d")])
    model.compile("sgd", "mse")
    small = tfcompress.apply(model, QAT(scheme=Scheme(output_range=method, percentile=99.5)), data=x, verbose=0)
    found = ranges(small)[0]
    low, high = found.range.minimum, found.range.maximum
    assert high < x.max() * 0.9
    if method == "percentile":
        # The oracle sorts; a bin of the histogram is its tolerance.
        assert high == pytest.approx(np.percentile(x, 99.5), rel=0.02)
    else:
        tried = [
            rounding_error(x, x.min() * a, x.max() * b)
            for a in np.linspace(0.3, 1, 15)
            for b in np.linspace(0.3, 1, 15)
        ]
        assert rounding_error(x, low, high) <= min(tried) * 1.02
    small.fit(x[:64] * 3, x[:64, :2], verbose=0, callbacks=[tfcompress.Compression()])
    assert (found.range.minimum, found.range.maximum) == (low, high)


# --- the file


@pytest.mark.skipif(not ON_TF, reason="conversions are tested once")
def test_c34_learned_scales_and_mixed_bits_arrive_in_the_file(tmp_path):
    from tfcompress.export.flatbuffer import Graph

    model = attached(scheme=Scheme(weight_range="lsq", output_range="lsq"), mixed={"wide": 4})
    x, _ = data()
    before = {name: c.grid().unit.copy() for name, c in chains(model) if name.endswith("kernel")}
    fit(model, epochs=2)
    grids = {name: c.grid() for name, c in chains(model) if name.endswith("kernel")}
    assert all(not np.array_equal(before[name], grids[name].unit) for name in grids), "no scale was learned"
    report = tfcompress.export.tflite(model, tmp_path / "m.tflite", "int8", calibration=x, verbose=0)
    graph = Graph((tmp_path / "m.tflite").read_bytes())
    stored = [
        np.sort(np.asarray(t.quantization.scale, np.float32))
        for i, t in enumerate(graph.tensors)
        if graph.is_constant(i) and t.quantization is not None and t.quantization.scale is not None
    ]
    for name, grid in grids.items():
        wanted = np.sort(grid.unit.ravel())
        assert any(len(s) == len(wanted) and np.array_equal(s, wanted) for s in stored), name
    scales = {one.range.scale for one in ranges(model)}
    seen = {
        float(t.quantization.scale[0])
        for t in graph.tensors
        if t.quantization is not None and t.quantization.scale is not None
    }
    assert {np.float32(s) for s in scales} <= {np.float32(s) for s in seen}
    assert report.verification.max_steps < 2.01
