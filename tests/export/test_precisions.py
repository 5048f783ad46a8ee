"""Every precision of small plain networks: cases C19, C20, C21, C23, C24, C27 and C29."""

import collections
import pathlib

import keras
import numpy as np
import pytest

from tests.export import oracle
from tfcompress import export
from tfcompress.errors import CompressionError
from tfcompress.export.flatbuffer import Graph
from tfcompress.record import Record

layers = keras.layers


def _error(path, model, data) -> float:
    """Largest difference over the output range, by a run of the test's own."""
    wanted = np.asarray(model(data))
    return float(np.abs(export.Runner(path)(data) - wanted).max() / np.ptp(wanted))


@pytest.fixture(scope="module")
def all_precisions(worker, convnet, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precisions")
    files = {folder / f"{p}.tflite": p for p in export.PRECISIONS}
    reports = export.convert(convnet, files, calibration=images, worker=worker, verbose=0)
    return {files[path]: report for path, report in reports.items()}


def test_c19_batch_dimension_leaves_no_shape_operators(worker, tmp_path):
    image = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(image)))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Reshape((256, 32))(layers.ReLU()(layers.Conv2D(32, 1)(x)))
    model = keras.Model(image, layers.Dense(10)(layers.Flatten()(layers.Conv1D(8, 3)(x))))
    report = export.tflite(model, tmp_path / "m.tflite", worker=worker, verbose=0)
    found = collections.Counter(oracle.operators(tmp_path / "m.tflite"))
    assert found.pop("RESHAPE") <= 2
    assert found == {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1}
    assert report.verification.census.shape_operators == {}
    assert report.verification.census.dynamic == []
    assert report.verification.gpu["compatible"]
    assert "rules" in report.verification.gpu["checked_by"]
    assert report.verification.normalization_left == []
    macs = 256 * 27 * 16 + 256 * 9 * 16 + 256 * 16 * 32 + 254 * 3 * 32 * 8 + 254 * 8 * 10
    assert report.verification.census.macs == macs
    assert any("random inputs" in note for note in report.notes)


def test_c20_int8_against_keras(worker, convnet, images, all_precisions, tmp_path):
    report = all_precisions["int8"]
    assert report.size <= 88_000
    assert report.verification.max_error <= 0.01
    assert report.verification.agreement == 1.0
    assert report.verification.runs == {"xnnpack": "ok", "builtin": "ok"}
    assert _error(report.path, convnet, images) == pytest.approx(report.verification.max_error, rel=1e-4)
    full = export.tflite(
        convnet, tmp_path / "i.tflite", "int8", calibration=images, boundary="int8", worker=worker, verbose=0
    )
    ends = oracle.stored(tmp_path / "i.tflite")
    assert ends["image"]["dtype"] == ends["scores"]["dtype"] == np.int8
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(oracle.operators(tmp_path / "i.tflite"))
    assert full.verification.max_error <= 0.01
    assert full.verification.agreement == 1.0
    assert full.verification.census.float_tensors == {}


def test_c20_the_other_precisions(all_precisions):
    largest = {"float32": 1e-5, "float16": 1e-3, "dynamic": 0.01, "int8": 0.01, "int16x8": 0.005, "int4": 0.15}
    sizes = {name: report.size for name, report in all_precisions.items()}
    for name, report in all_precisions.items():
        assert report.verification.max_error <= largest[name], name
        assert report.verification.census.precision == name
        assert report.verification.runs == {"xnnpack": "ok", "builtin": "ok"}
    assert sizes["int4"] < 0.6 * sizes["int8"]
    assert sizes["int8"] < 0.3 * sizes["float32"]
    assert sizes["float16"] < 0.55 * sizes["float32"]
    # One SavedModel and one float conversion for all six.
    assert len({report.seconds["float conversion"] for report in all_precisions.values()}) == 1


def test_c21_own_statistics_and_not_a_moving_average(worker, convnet, images, all_precisions, tmp_path):
    # A rare large sample: the extremes hold it, a moving average and a percentile do not.
    data = images.copy()
    data[5] *= 4
    wide = export.tflite(convnet, tmp_path / "w.tflite", "int8", calibration=data, worker=worker, verbose=0)
    narrow = export.tflite(
        convnet, tmp_path / "n.tflite", "int8", calibration=data, percentile=95.0, worker=worker, verbose=0
    )
    scale = float(oracle.stored(tmp_path / "w.tflite")["image/int8"]["scales"][0])
    assert scale == pytest.approx(data.max() / 255, rel=1e-6)
    clipped = float(oracle.stored(tmp_path / "n.tflite")["image/int8"]["scales"][0])
    assert clipped == pytest.approx(np.percentile(data, 95) / 255, rel=1e-3)
    assert wide.verification.max_error <= 0.015
    assert narrow.verification.max_error > 3 * wide.verification.max_error
    assert any("clip more than 1%" in warning for warning in narrow.verification.warnings)
    assert all_precisions["int16x8"].verification.max_error <= 0.005
    with pytest.raises(CompressionError, match="percentile"):
        export.tflite(convnet, tmp_path / "n.tflite", "int8", calibration=data, percentile=5, worker=worker, verbose=0)


def test_c21_as_good_as_the_stock_converter(worker, convnet, images, all_precisions, tmp_path):
    from tfcompress.export import savedmodel

    savedmodel.write(convnet, savedmodel.signature(convnet, None, 1), tmp_path / "saved")
    np.savez(tmp_path / "data.npz", image=images)
    out = tmp_path / "stock.tflite"
    worker.request(
        "stock", saved_model=str(tmp_path / "saved"), out=str(out), precision="int8", data=str(tmp_path / "data.npz")
    )
    assert all_precisions["int8"].verification.max_error <= 1.01 * _error(out, convnet, images)
    assert all_precisions["int8"].size <= out.stat().st_size


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_c23_recurrent_int8_through_unrolling(worker, tmp_path, cell):
    keras.utils.set_random_seed(0)
    x = keras.Input((10, 4), name="x")
    model = keras.Model(x, layers.Dense(3, name="y")(getattr(layers, cell)(8)(x)))
    data = np.random.default_rng(0).normal(size=(32, 10, 4)).astype(np.float32)
    files = {tmp_path / "f.tflite": "float32", tmp_path / "i.tflite": "int8"}
    reports = export.convert(model, files, calibration=data, worker=worker, verbose=0)
    assert "WHILE" in reports[tmp_path / "f.tflite"].verification.census.operators
    integer = reports[tmp_path / "i.tflite"]
    assert any("unrolled" in note for note in integer.notes)
    counts = integer.verification.census.operators
    assert counts["FULLY_CONNECTED"] == 20
    assert integer.verification.census.integer_share == 1.0
    assert integer.verification.census.float_operators == []
    assert integer.verification.max_error < 0.05
    assert integer.verification.runs == {"xnnpack": "ok", "builtin": "ok"}


def test_c24_sparse_files_beat_the_dense_ones_or_are_refused(worker, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(32, 3, strides=2, padding="same", activation="relu")(image)
    x = layers.Conv2D(64, 1, activation="relu", name="a")(x)
    x = layers.Conv2D(64, 1, activation="relu", name="b")(x)
    model = keras.Model(image, layers.Dense(10, name="y")(layers.GlobalAveragePooling2D()(x)))
    for name in "ab":
        kernel = np.asarray(model.get_layer(name).get_weights()[0]).copy()
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.9)] = 0
        model.get_layer(name).set_weights([kernel, model.get_layer(name).get_weights()[1]])
    data = np.random.default_rng(0).random((16, 32, 32, 3), dtype=np.float32)
    offered = ("float32", "float16", "int8", "int16x8")
    dense = export.convert(
        model, {tmp_path / f"d{p}.tflite": p for p in offered}, calibration=data, worker=worker, verbose=0
    )
    files = {tmp_path / f"s{p}.tflite": p for p in offered}
    sparse = export.convert(model, files, calibration=data, sparse=True, worker=worker, verbose=0)
    for precision in offered:
        full, thin = dense[tmp_path / f"d{precision}.tflite"], sparse[tmp_path / f"s{precision}.tflite"]
        assert thin.size < full.size, precision
        assert thin.verification.runs == {"xnnpack": "ok", "builtin": "ok"}
        np.testing.assert_allclose(export.Runner(thin.path)(data), export.Runner(full.path)(data), atol=1e-6)
    assert sparse[tmp_path / "sfloat32.tflite"].size <= 12_800
    assert sparse[tmp_path / "sfloat16.tflite"].size <= 9_300
    zeros = {c.name: c.zeros for c in export.inspect(tmp_path / "sfloat32.tflite").constants if "sparse" in c.name}
    assert all(share == pytest.approx(0.9, abs=0.01) for share in zeros.values())
    assert len(zeros) == 2
    for precision in ("dynamic", "int4"):
        with pytest.raises(CompressionError, match="not offered"):
            export.tflite(
                model, tmp_path / "no.tflite", precision, calibration=data, sparse=True, worker=worker, verbose=0
            )
    filled = keras.Model(image, layers.Flatten()(layers.Conv2D(2, 3)(image)))
    with pytest.raises(CompressionError, match="gains nothing"):
        export.tflite(filled, tmp_path / "no.tflite", sparse=True, samples=data, worker=worker, verbose=0)
    assert not (tmp_path / "no.tflite").exists()


def test_c27_dense_scales_by_target(worker, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((64,), name="x")
    model = keras.Model(x, layers.Dense(32, name="d")(x))
    data = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    scales = {}
    for target in ("xnnpack", "nnapi", "tflm-legacy"):
        path = tmp_path / f"{target}.tflite"
        report = export.tflite(model, path, "int8", calibration=data, target=target, worker=worker, verbose=0)
        weights = [
            e
            for e in oracle.stored(path).values()
            if e["dtype"] == np.int8 and e["values"] is not None and e["values"].shape == (32, 64)
        ]
        scales[target] = len(weights[0]["scales"])
        assert report.verification.max_error < 0.02
        assert report.verification.agreement > 0.9
        assert report.verification.target["refusals"] == []
    assert scales == {"xnnpack": 32, "nnapi": 1, "tflm-legacy": 1}
    grid, _ = oracle.bake(model.get_layer("d"), -1, 0)
    with pytest.raises(CompressionError, match=r"d\.kernel.*32 scales.*per tensor"):
        export.tflite(
            model,
            path,
            "int8",
            calibration=data,
            target="nnapi",
            record=Record({"d.kernel": grid}),
            worker=worker,
            verbose=0,
        )


def test_c29_silent_float_remains_are_listed(worker, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="c1")(image)
    x = layers.Lambda(keras.ops.sin, name="wave")(x)
    model = keras.Model(image, layers.Dense(3, name="d")(layers.Flatten()(layers.Conv2D(4, 3, name="c2")(x))))
    data = np.random.default_rng(0).random((16, 8, 8, 3), dtype=np.float32)
    report = export.tflite(
        model, tmp_path / "s.tflite", "int8", calibration=data, boundary="int8", worker=worker, verbose=0
    )
    (remains,) = report.verification.census.float_operators
    assert (remains.kind, remains.layer, remains.dequantize, remains.quantize) == ("SIN", "wave", 1, 1)
    assert remains.elements == 36 * 4
    assert report.verification.census.integer_share == 1.0
    assert "SIN" in str(report)
    assert "0.0% of the MACs" in str(report)


def test_c29_a_float_product_counts(worker, tmp_path):
    """A convolution that stays float shows with its multiply-accumulates."""
    image = keras.Input((6, 6, 6, 2), name="v")
    x = layers.Conv3D(3, 3, name="c3")(image)
    model = keras.Model(image, layers.Dense(5, name="d")(layers.Flatten()(x)))
    data = np.random.default_rng(0).random((8, 6, 6, 6, 2), dtype=np.float32)
    report = export.tflite(model, tmp_path / "v.tflite", "int8", calibration=data, worker=worker, verbose=0)
    conv, dense = 64 * 3 * 27 * 2, 192 * 5
    assert report.verification.census.integer_share == pytest.approx(dense / (conv + dense))
    assert [f.kind for f in report.verification.census.float_operators] == ["CONV_3D"]
    assert sum(report.verification.census.float_tensors.values()) >= 27 * 2 * 3 * 4


def test_operators_that_the_quantizer_leaves_float_become_integer(worker, tmp_path):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 4), name="image")
    x = layers.LeakyReLU(0.1)(layers.Conv2D(8, 3, padding="same")(image))
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(8, 3, padding="same")(x))
    x = keras.ops.flip(layers.UpSampling2D(2)(x), axis=1)
    x = layers.GlobalMaxPooling2D()(keras.ops.abs(layers.Conv2D(6, 3)(x)))
    model = keras.Model(image, layers.Dense(3)(x))
    data = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
    report = export.tflite(
        model, tmp_path / "c.tflite", "int8", calibration=data, boundary="int8", worker=worker, verbose=0
    )
    counts = report.verification.census.operators
    assert report.verification.census.float_operators == []
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(counts)
    assert {"LEAKY_RELU", "PRELU", "ABS", "REDUCE_MAX"} <= set(counts)
    assert report.verification.max_error < 0.06
    assert report.verification.runs == {"xnnpack": "ok", "builtin": "ok"}


def test_versions_say_what_the_file_uses(all_precisions):
    def versions(precision):
        graph = Graph(pathlib.Path(all_precisions[precision].path).read_bytes())
        return {(graph.kind(op), graph.model.operatorCodes[op.opcodeIndex].version) for op in graph.operators}

    # A bias of zeros is dropped, and FULLY_CONNECTED without a bias came with version 6.
    assert {("CONV_2D", 3), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 6), ("RESHAPE", 1)} <= versions("int8")
    assert {("CONV_2D", 7), ("FULLY_CONNECTED", 10)} <= versions("int4")
    assert {("CONV_2D", 5), ("FULLY_CONNECTED", 12)} <= versions("dynamic")


def test_the_same_model_gives_the_same_bytes(worker, convnet, images, all_precisions, tmp_path):
    path = tmp_path / "again.tflite"
    export.tflite(convnet, path, "int8", calibration=images, verify=False, worker=worker, verbose=0)
    assert path.read_bytes() == pathlib.Path(all_precisions["int8"].path).read_bytes()


def test_negation_and_squares_of_stock_normalizations_become_integer(worker, tmp_path):
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 12), name="x")
    y = layers.LayerNormalization(name="ln")(x)
    model = keras.Model(x, layers.Dense(3, name="d")(layers.Flatten()(keras.ops.square(y) - y)))
    data = np.random.default_rng(0).normal(size=(32, 6, 12)).astype(np.float32)
    path = tmp_path / "n.tflite"
    report = export.tflite(model, path, "int8", calibration=data, boundary="int8", worker=worker, verbose=0)
    assert not {"NEG", "SQUARE", "DEQUANTIZE"} & set(oracle.operators(path))
    assert report.verification.census.float_operators == []
    assert report.verification.max_error < 0.06


def test_what_the_quantizer_refuses_goes_to_the_stock_converter_by_name(worker, tmp_path):
    def three_times(t):
        return keras.ops.while_loop(lambda k, v: k < 3, lambda k, v: (k + 1, v * 1.5 + 0.1), (0, t))[1]

    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    model = keras.Model(
        x, layers.Dense(2, name="o")(layers.Lambda(three_times, name="loop")(layers.Dense(4, name="i")(x)))
    )
    data = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    report = export.tflite(model, tmp_path / "l.tflite", "int8", calibration=data, worker=worker, verbose=0)
    assert "stock converter" in report.fallbacks[0]
    assert "litert-quantizer" in report.fallbacks[0]
    assert report.verification.max_error < 0.05
    assert export.Runner(tmp_path / "l.tflite").outputs == ("o",)
    with pytest.raises(CompressionError, match="stock converter cannot"):
        export.tflite(model, tmp_path / "l.tflite", "int8", calibration=data, boundary="int8", worker=worker, verbose=0)


def test_a_bound_beyond_the_data_does_not_widen_a_range(worker, tmp_path):
    """Unit normalization ends in minimum(rsqrt(sum of squares), 1e12), whose bound never acts."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.UnitNormalization(name="u")(layers.Dense(8, activation="relu", name="d")(x)))
    data = np.random.default_rng(0).random((32, 6)).astype(np.float32) + 0.5
    report = export.tflite(model, tmp_path / "u.tflite", "int8", calibration=data, worker=worker, verbose=0)
    assert report.verification.max_error < 0.06
    assert not report.verification.warnings


def test_16_bit_sums_whose_scales_are_near_powers_of_two(worker, tmp_path):
    """Pixels to -1..1: scales of 2, 1 and 1 over 32767, for which the kernel has a form that takes no coarser operand."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 3)).astype(np.float32)
    pixels[0, 0, 0] = (0, 128, 255)
    image = keras.Input((4, 4, 3), name="image")
    model = keras.Model(image, keras.layers.Rescaling(1 / 127.5, -1.0, name="scaled")(image))
    report = export.tflite(
        model, tmp_path / "w.tflite", "int16x8", calibration=pixels, boundary="int16", worker=worker, verbose=0
    )
    assert "ADD" in oracle.operators(tmp_path / "w.tflite")
    assert report.verification.runs == {"xnnpack": "ok", "builtin": "ok"}
    assert report.verification.max_error <= 1e-4
