"""Trained grids and ranges arrive in the file bit for bit (cases C33 and C34), and what cannot arrive is an error."""

import keras
import numpy as np
import pytest

from tests.export import oracle
from tfcompress import export
from tfcompress.errors import CompressionError
from tfcompress.record import Grid, Range, Record

layers = keras.layers


def _weights_equal(path, wanted: dict):
    """Every wanted (codes, unit) is stored in some tensor with exactly these scales and codes, in the file's layout."""
    constants = [e for e in oracle.stored(path).values() if e["values"] is not None and e["dtype"] == np.int8]
    for codes, unit in wanted.values():
        fits = [e for e in constants if np.array_equal(e["values"].ravel(), codes.ravel())]
        assert len(fits) == 1, "codes differ"
        assert np.array_equal(fits[0]["scales"], np.asarray(unit, np.float32).ravel()), "scales differ"
        assert not fits[0]["zero_points"].any()


def test_c33_dense_per_channel_reaches_the_file(worker, tmp_path):
    keras.utils.set_random_seed(3)
    x = keras.Input((16,), name="x")
    dense = layers.Dense(8, name="d")
    model = keras.Model(x, dense(x))
    dense.bias.assign(np.random.default_rng(0).normal(0, 0.2, 8))
    grid, codes = oracle.bake(dense, -1, seed=1)
    source, target = Range(float(np.float32(2 / 255)), 3), Range(float(np.float32(0.0213)), -11)
    record = Record({"d.kernel": grid}, {"x": source, "d": target})
    data = np.random.default_rng(2).uniform(-1, 1, (200, 16)).astype(np.float32)
    report = export.tflite(
        model, tmp_path / "d.tflite", "int8", record=record, samples=data, boundary="int8", worker=worker, verbose=0
    )
    _weights_equal(tmp_path / "d.tflite", {"d": (codes.T, grid.unit)})
    ends = oracle.stored(tmp_path / "d.tflite")
    for name, trained in (("x", source), ("d", target)):
        assert ends[name]["scales"][0] == np.float32(trained.scale)
        assert ends[name]["zero_points"][0] == trained.zero_point
    fed = oracle.to_codes(data, source)
    wanted = oracle.dense(fed, source, codes, grid.unit, np.asarray(dense.get_weights()[1]), target)
    got = oracle.run_codes(tmp_path / "d.tflite", fed)
    assert np.abs(got - wanted).max() == 0
    assert report.ranges["calibrated"] == 0
    assert report.verification.read_back == {"ranges": 2, "weights": 1}


@pytest.fixture(scope="module")
def trained_net():
    """Convolution, depthwise, pooling, dense, all on awkward grids, with a record of every range that the file has."""
    keras.utils.set_random_seed(5)
    image = keras.Input((8, 8, 3), name="image")
    conv, depth, last = layers.Conv2D(8, 3, name="c"), layers.DepthwiseConv2D(3, name="w"), layers.Dense(10, name="d")
    y = layers.ReLU(name="r1")(conv(image))
    y = layers.ReLU(name="r2")(depth(y))
    y = layers.Flatten(name="f")(y)
    model = keras.Model(image, last(y))
    for i, layer in enumerate((conv, depth, last)):
        layer.bias.assign(np.random.default_rng(i).normal(0, 0.1, layer.bias.shape))
    grids = {
        "c": oracle.bake(conv, -1, 1, (1.25, 1.45)),  # the largest codes are about 100
        "w": oracle.bake(depth, -2, 2),
        "d": oracle.bake(last, -1, 3, (1.3, 1.5)),  # about 90
    }
    ranges = {
        "image": Range(float(np.float32(1 / 251)), -128),
        "r1": Range(float(np.float32(0.0077)), -128),
        "r2": Range(float(np.float32(0.0051)), -128),
        "d": Range(float(np.float32(0.0123)), 7),
    }
    record = Record(
        {"c.kernel": grids["c"][0], "w.kernel": grids["w"][0], "d.kernel": grids["d"][0]},
        ranges,
    )
    return model, record, grids


def _simulate(model, record, grids, data):
    r, biases = record.outputs, [np.asarray(model.get_layer(n).get_weights()[1]) for n in "cwd"]
    x = oracle.to_codes(data, r["image"])
    y = oracle.conv_valid(x, r["image"], grids["c"][1], grids["c"][0].unit, biases[0], r["r1"], relu=True)
    y = oracle.depthwise_valid(y, r["r1"], grids["w"][1], grids["w"][0].unit, biases[1], r["r2"], relu=True)
    y = oracle.dense(y.reshape(len(y), -1), r["r2"], grids["d"][1], grids["d"][0].unit, biases[2], r["d"])
    return x, y


def test_c34_learned_scales_that_do_not_use_code_127(worker, tmp_path, trained_net):
    model, record, grids = trained_net
    assert np.abs(grids["c"][1]).max() < 110
    assert np.abs(grids["d"][1]).max() < 105
    data = np.random.default_rng(4).random((60, 8, 8, 3), dtype=np.float32)
    fed, wanted = _simulate(model, record, grids, data)
    simulated = (wanted - record.outputs["d"].zero_point) * np.float32(record.outputs["d"].scale)
    path = tmp_path / "net.tflite"
    report = export.tflite(
        model, path, "int8", record=record, samples=data, boundary="int8", simulated=simulated, worker=worker, verbose=0
    )
    _weights_equal(
        path,
        {
            "c": (grids["c"][1].transpose(3, 0, 1, 2), grids["c"][0].unit),
            "w": (grids["w"][1].transpose(3, 0, 1, 2), grids["w"][0].unit),
            "d": (grids["d"][1].T, grids["d"][0].unit),
        },
    )
    scales = [entry["scales"] for entry in oracle.stored(path).values() if len(entry["scales"]) == 1]
    for trained in record.outputs.values():
        assert any(s[0] == np.float32(trained.scale) for s in scales)
    got = oracle.run_codes(path, fed)
    assert np.abs(got - wanted).max() <= 1
    assert (got == wanted).mean() >= 0.98
    assert np.abs(oracle.run_codes(path, fed, delegate=False) - wanted).max() <= 2
    checked = report.verification
    assert checked.compared_with == "the simulated network"
    assert checked.max_steps <= 1.001
    assert checked.outputs[0].within_one == 1.0
    assert checked.read_back == {"ranges": 4, "weights": 3}


def test_c34_other_precisions_keep_the_trained_codes(worker, tmp_path, trained_net):
    model, record, grids = trained_net
    data = np.random.default_rng(4).random((16, 8, 8, 3), dtype=np.float32)
    paths = {tmp_path / f"{p}.tflite": p for p in ("dynamic", "int16x8", "float32")}
    reports = export.convert(model, paths, record=record, samples=data, worker=worker, verbose=0)
    for path, precision in paths.items():
        if precision != "float32":
            _weights_equal(path, {"c": (grids["c"][1].transpose(3, 0, 1, 2), grids["c"][0].unit)})
            assert reports[path].verification.read_back["weights"] == 3
    assert reports[tmp_path / "int16x8.tflite"].verification.max_error < 0.02  # trained extremes clip a little
    assert reports[tmp_path / "float32.tflite"].verification.max_error < 1e-5


def test_sixteen_bit_ranges_arrive_in_sixteen_bits(worker, tmp_path):
    keras.utils.set_random_seed(3)
    x = keras.Input((16,), name="x")
    dense = layers.Dense(8, name="d")
    model = keras.Model(x, dense(x))
    dense.bias.assign(np.random.default_rng(0).normal(0, 0.2, 8))
    grid, codes = oracle.bake(dense, -1, seed=1)
    source, target = Range(float(np.float32(1.02 / 32767)), 0, 16), Range(float(np.float32(3.1 / 32767)), 0, 16)
    record = Record({"d.kernel": grid}, {"x": source, "d": target})
    data = np.random.default_rng(2).uniform(-1, 1, (60, 16)).astype(np.float32)
    path = tmp_path / "d.tflite"
    report = export.tflite(
        model, path, "int16x8", record=record, samples=data, boundary="int16", worker=worker, verbose=0
    )
    assert report.verification.read_back == {"ranges": 2, "weights": 1}
    ends = oracle.stored(path)
    assert ends["x"]["scales"][0] == np.float32(source.scale)
    assert ends["d"]["scales"][0] == np.float32(target.scale)
    fed = oracle.to_codes(data, source)
    wanted = oracle.dense(fed, source, codes, grid.unit, np.asarray(dense.get_weights()[1]), target)
    assert np.abs(oracle.run_codes(path, fed) - wanted).max() <= 1
    with pytest.raises(CompressionError, match="precision='int16x8'"):
        export.tflite(model, path, "int8", record=record, samples=data, worker=worker, verbose=0)


def test_four_bit_grids_arrive_in_four_bits(worker, tmp_path):
    keras.utils.set_random_seed(3)
    x = keras.Input((16,), name="x")
    first, second = layers.Dense(24, name="a", activation="relu"), layers.Dense(4, name="b")
    model = keras.Model(x, second(first(x)))
    weight = np.asarray(first.get_weights()[0])
    unit = (np.abs(weight).max(0, keepdims=True) / 7 * 1.1).astype(np.float32)
    codes = np.rint(weight / unit)
    first.set_weights([codes * unit, first.get_weights()[1]])
    wide, _ = oracle.bake(second, -1, 2)
    record = Record({"a.kernel": Grid(unit, -7, 7), "b.kernel": wide})
    data = np.random.default_rng(2).uniform(-1, 1, (40, 16)).astype(np.float32)
    path = tmp_path / "a.tflite"
    report = export.tflite(model, path, "int4", record=record, calibration=data, worker=worker, verbose=0)
    assert report.verification.read_back["weights"] == 2
    assert report.verification.max_error < 0.03
    info = export.inspect(path)
    types = {c.name: c.dtype for c in info.constants if len(c.shape) == 2}
    assert sorted(types.values()) == ["int4", "int8"]
    with pytest.raises(CompressionError, match="4 bits"):
        export.tflite(
            model,
            path,
            "int4",
            record=Record({"a.kernel": Grid(unit), "b.kernel": wide}),
            calibration=data,
            worker=worker,
            verbose=0,
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_litert_quantizer_takes_a_statistic_for_a_weight():
    """The undocumented behaviour that the export stands on, without anything of ours."""
    import tensorflow as tf
    from ai_edge_litert.tools import flatbuffer_utils
    from litert_quantizer import recipe
    from litert_quantizer.quantizer import Quantizer

    keras.utils.set_random_seed(0)
    weight = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    scale = (np.abs(weight).max(1, keepdims=True) / 127 * np.array([[0.9], [1.0], [1.1], [1.2], [1.4]])[:1]).astype(
        np.float32
    )

    class Net(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((1, 5), tf.float32, name="x")])
        def __call__(self, x):
            return {"y": tf.matmul(x, weight, transpose_b=True)}

    net = Net()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([net.__call__.get_concrete_function()], net)
    data = converter.convert()
    file = flatbuffer_utils.read_model_from_bytearray(bytearray(data))
    names = [t.name.decode() for t in file.subgraphs[0].tensors]
    constant = next(t.name.decode() for t in file.subgraphs[0].tensors if list(t.shape) == [6, 5])
    statistics = {name: {"min": np.float32(-1), "max": np.float32(1)} for name in names}
    statistics[constant] = {"min": -127 * scale, "max": 127 * scale}
    made = Quantizer(bytearray(data), recipe.static_wi8_ai8()).quantize(
        statistics, enable_progress_bar=False, enable_progress_report=False
    )
    out = flatbuffer_utils.read_model_from_bytearray(bytearray(made.quantized_model))
    tensor = next(t for t in out.subgraphs[0].tensors if t.name.decode() == constant)
    np.testing.assert_allclose(tensor.quantization.scale, scale.ravel(), rtol=2e-7)
    codes = np.frombuffer(bytes(out.buffers[tensor.buffer].data), np.int8).reshape(6, 5)
    np.testing.assert_array_equal(codes, np.clip(np.rint(weight / scale), -127, 127))


def _errors(model, record, worker, tmp_path, **options):
    data = np.random.default_rng(0).random((16, *model.inputs[0].shape[1:]), dtype=np.float32)
    with pytest.raises(CompressionError) as caught:
        export.tflite(
            model, tmp_path / "no.tflite", "int8", record=record, calibration=data, worker=worker, verbose=0, **options
        )
    assert not (tmp_path / "no.tflite").exists()
    return str(caught.value)


def test_a_range_without_a_tensor_is_an_error_that_names_it(worker, tmp_path, trained_net):
    model, record, _ = trained_net
    more = Record(record.weights, {**record.outputs, "c": Range(0.01, 0)})
    text = _errors(model, more, worker, tmp_path)
    assert "'c'" in text
    assert "folded" in text
    data = np.random.default_rng(0).random((16, 8, 8, 3), dtype=np.float32)
    report = export.tflite(
        model, tmp_path / "yes.tflite", "int8", record=more, calibration=data, strict=False, worker=worker, verbose=0
    )
    assert any("'c'" in note for note in report.notes)


def test_a_weight_that_the_converter_changed_is_an_error_that_names_it(worker, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    dense = layers.Dense(5, name="d")
    # A factor for each input channel goes into the kernel of the next product, and voids its grid.
    model = keras.Model(
        x, dense(layers.ReLU(name="r")(x) * keras.ops.convert_to_tensor(np.linspace(0.5, 2, 6, dtype=np.float32)))
    )
    grid, _ = oracle.bake(dense, -1, 0)
    text = _errors(model, Record({"d.kernel": grid}), worker, tmp_path)
    assert "'d.kernel'" in text


def test_a_weight_off_its_grid_and_an_unknown_name_are_errors(worker, tmp_path, trained_net):
    model, record, _ = trained_net
    off = Record({"c.kernel": Grid(record.weights["c.kernel"].unit * np.float32(1.07))})
    assert "'c.kernel' does not lie on its grid" in _errors(model, off, worker, tmp_path)
    assert "Did you mean" in _errors(model, Record({"c.kernle": record.weights["c.kernel"]}), worker, tmp_path)
    assert "no operation of this name" in _errors(model, Record({}, {"nothing": Range(0.1)}), worker, tmp_path)


def test_tied_and_fixed_ranges_that_contradict_are_errors(worker, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    y = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, activation="relu", name="c")(image))
    model = keras.Model(image, layers.Dense(3, activation="softmax", name="s")(layers.Flatten(name="f")(y)))
    text = _errors(model, Record({}, {"c": Range(0.02, -128), "pool": Range(0.03, -128)}), worker, tmp_path)
    assert "'c'" in text
    assert "'pool'" in text
    assert "SOFTMAX" in _errors(model, Record({}, {"s": Range(0.01, -128)}), worker, tmp_path)
    same = Record({}, {"c": Range(0.02, -128), "pool": Range(0.02, -128), "s": Range(1 / 256, -128)})
    data = np.random.default_rng(0).random((16, 8, 8, 3), dtype=np.float32)
    report = export.tflite(
        model, tmp_path / "yes.tflite", "int8", record=same, calibration=data, worker=worker, verbose=0
    )
    assert report.verification.read_back["ranges"] >= 3
    assert "image" in report.calibrated


def test_nested_shared_and_transposed_weights_are_found(worker, tmp_path):
    keras.utils.set_random_seed(0)
    inner_in = keras.Input((8, 8, 4), name="in")
    conv = layers.Conv2D(4, 3, padding="same", name="c")
    inner = keras.Model(inner_in, layers.ReLU(name="r")(conv(inner_in)), name="block")
    a = keras.Input((8, 8, 4), name="a")
    up = layers.Conv2DTranspose(3, 2, strides=2, name="up")
    model = keras.Model(a, up(inner(inner(a))))
    grids = {"block/c.kernel": oracle.bake(conv, -1, 0)[0], "up.kernel": oracle.bake(up, -2, 1)[0]}
    record = Record(grids, {"block/r": Range(0.031, -128), "up": Range(0.02, 5)})
    data = np.random.default_rng(0).random((16, 8, 8, 4), dtype=np.float32)
    report = export.tflite(
        model, tmp_path / "n.tflite", "int8", record=record, calibration=data, worker=worker, verbose=0
    )
    # Both calls of the block carry its range; the converter keeps one kernel for both.
    assert report.verification.read_back == {"ranges": 2, "weights": 2}
    assert report.verification.max_error < 0.2


def test_a_concatenation_shares_one_range(worker, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3), name="x")
    left, right = (
        layers.Conv2D(4, 3, activation="relu", name="l")(x),
        layers.Conv2D(4, 3, activation="relu", name="r")(x),
    )
    model = keras.Model(x, layers.Conv2D(2, 1, name="o")(layers.Concatenate(name="cat")([left, right])))
    data = np.random.default_rng(0).random((16, 8, 8, 3), dtype=np.float32)
    path = tmp_path / "c.tflite"
    export.tflite(model, path, "int8", calibration=data, boundary="int8", worker=worker, verbose=0)
    assert "QUANTIZE" not in oracle.operators(path)
    shared = Range(0.02, -128)
    record = Record({}, {"l": shared, "r": shared, "cat": shared})
    export.tflite(model, path, "int8", record=record, calibration=data, boundary="int8", worker=worker, verbose=0)
    assert "QUANTIZE" not in oracle.operators(path)
    apart = Record({}, {"l": Range(0.01, -128), "r": Range(0.02, -128), "cat": Range(0.02, -128)})
    report = export.tflite(
        model, path, "int8", record=apart, calibration=data, boundary="int8", worker=worker, verbose=0
    )
    assert oracle.operators(path).count("QUANTIZE") == 1
    assert report.verification.read_back["ranges"] == 3


def test_an_embedding_shares_its_tables_grid(worker, tmp_path):
    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32", name="words")
    table = layers.Embedding(11, 8, name="e")
    model = keras.Model(words, layers.Dense(3, name="d")(layers.Flatten(name="f")(table(words))))
    unit = np.float32(np.abs(np.asarray(table.get_weights()[0])).max() / 120).reshape(1, 1)
    codes = np.rint(np.asarray(table.get_weights()[0]) / unit)
    table.set_weights([codes * unit])
    data = np.random.default_rng(0).integers(0, 11, (32, 6)).astype(np.int32)
    path = tmp_path / "e.tflite"
    report = export.tflite(
        model, path, "int8", record=Record({"e.embeddings": Grid(unit)}), calibration=data, worker=worker, verbose=0
    )
    kept = [e for e in oracle.stored(path).values() if e["values"] is not None and e["values"].shape == (11, 8)]
    assert np.array_equal(kept[0]["values"], codes)
    assert kept[0]["scales"] == unit.ravel()
    assert report.verification.max_error < 0.02
    assert report.verification.agreement == 1.0


def test_grids_of_an_operator_without_integer_form_are_reported(worker, tmp_path):
    keras.utils.set_random_seed(0)
    volume = keras.Input((6, 6, 6, 2), name="v")
    conv, dense = layers.Conv3D(3, 3, name="c"), layers.Dense(5, name="d")
    model = keras.Model(volume, dense(layers.Flatten(name="f")(layers.ReLU(name="r")(conv(volume)))))
    grids = {"c.kernel": oracle.bake(conv, -1, 0)[0], "d.kernel": oracle.bake(dense, -1, 1)[0]}
    record = Record(grids, {"r": Range(0.02, -128), "d": Range(0.02, 3)})
    data = np.random.default_rng(0).random((8, 6, 6, 6, 2), dtype=np.float32)
    report = export.tflite(
        model, tmp_path / "v.tflite", "int8", record=record, calibration=data, worker=worker, verbose=0
    )
    assert report.verification.read_back == {"ranges": 2, "weights": 1}
    assert any("'c.kernel' is stored as float" in warning for warning in report.verification.warnings)
    assert [f.kind for f in report.verification.census.float_operators] == ["CONV_3D"]


def test_values_alike_on_the_probes_keep_their_own_ranges(worker, tmp_path):
    """A maximum that never acts on the data: two operations, two tensors, one value."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    y = layers.Activation("sigmoid", name="s")(layers.Dense(8, name="d")(x))
    y = layers.Multiply(name="m")([y, y])
    # Nothing of it is below zero, so that both have the same values.
    y = layers.LeakyReLU(0.3, name="l")(y)
    model = keras.Model(x, layers.Dense(3, name="o")(y))
    record = Record({}, {"m": Range(0.004, -128), "l": Range(0.005, -120)})
    data = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    path = tmp_path / "a.tflite"
    report = export.tflite(model, path, "int8", record=record, calibration=data, worker=worker, verbose=0)
    assert report.verification.read_back["ranges"] == 2
    entries = oracle.stored(path)
    found = {
        n.split("_")[0]: (float(e["scales"][0]), int(e["zero_points"][0]))
        for n, e in entries.items()
        if n.startswith(("mul_", "leaky_"))
    }
    assert found["mul"] == (np.float32(0.004), -128)
    assert found["leaky"] == (np.float32(0.005), -120)


def test_an_eight_bit_record_in_a_sixteen_bit_file(worker, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Softmax(name="s")(layers.Dense(4, name="d")(x)))
    record = Record({}, {"x": Range(0.03, 0), "d": Range(0.05, 5), "s": Range(1 / 256, -128)})
    data = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    path = tmp_path / "a.tflite"
    report = export.tflite(model, path, "int16x8", record=record, samples=data, worker=worker, verbose=0)
    assert report.ranges["calibrated"] == 0
    scales = {n: float(e["scales"][0]) for n, e in oracle.stored(path).items() if n == "s/int16"}
    assert scales == {"s/int16": 1 / 32768}
    assert report.verification.max_error < 0.02
