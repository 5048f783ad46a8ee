"""Old and new runtimes: what a file says of the oldest one, and what tflite-runtime 2.14 makes of it."""

import pathlib

import keras
import numpy as np
import pytest

from tests.export import old_runtime
from tfcompress import export
from tfcompress.export import runtimes
from tfcompress.export.flatbuffer import Graph

layers = keras.layers


def _noted(path) -> str:
    """The note as LiteRT's own tool reads it: a buffer of 16 bytes under this name."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    (entry,) = [m for m in model.metadata if m.name == b"min_runtime_version"]
    data = bytes(model.buffers[entry.buffer].data)
    assert len(data) == 16
    return data.rstrip(b"\0").decode()


@pytest.fixture(scope="module")
def convnets(worker, convnet, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtimes")
    files = {folder / f"{p}.tflite": p for p in export.PRECISIONS}
    reports = export.convert(convnet, files, calibration=images, worker=worker, verbose=0)
    return {files[path]: report for path, report in reports.items()}


def test_every_file_says_from_which_runtime_on_it_runs(convnets):
    # Facts of the format's own table: hybrid dense products per channel came with version 12 in 2.17, FULLY_CONNECTED without
    # a bias with version 6 in 2.1, everything else of an integer convnet with 1.14.
    wanted = {"float32": "1.5.0", "int8": "2.1.0", "dynamic": "2.17.0"}
    for precision, release in wanted.items():
        assert convnets[precision].runs_from == release
    assert convnets["int4"].runs_from == "2.19.0"  # measured, see the constant
    for report in convnets.values():
        assert _noted(report.path) == report.runs_from == report.verification.runs_from
        assert f"{report.runs_from} on" in " ".join(str(report).split())
    assert convnets["int4"].verification.demanded_by.startswith("FULLY_CONNECTED")


def test_a_sparse_file_needs_densify(worker, tmp_path):
    x = keras.Input((64,), name="x")
    model = keras.Model(x, layers.Dense(64, name="d")(x))
    kernel = np.zeros((64, 64), np.float32)
    kernel[:, ::8] = 1.0
    model.get_layer("d").set_weights([kernel, np.ones(64, np.float32)])
    data = np.random.default_rng(0).random((8, 64), dtype=np.float32)
    report = export.tflite(model, tmp_path / "s.tflite", samples=data, sparse=True, worker=worker, verbose=0)
    assert report.verification.demanded_by == "DENSIFY version 1"
    assert _noted(tmp_path / "s.tflite") == "2.2.0"
    unverified = export.tflite(model, tmp_path / "u.tflite", samples=data, verify=False, worker=worker, verbose=0)
    assert f"{unverified.runs_from} on" in str(unverified)


def test_a_files_note_follows_what_is_in_it(convnets):
    """A note that speaks of another file is replaced, and an operator that no table knows is left out."""
    graph = Graph(pathlib.Path(convnets["float32"].path).read_bytes())
    assert runtimes.stamped(graph) == "1.5.0"
    graph.operators[0].opcodeIndex = graph.opcode(3, 8)
    runtimes.stamp(graph)
    again = Graph(graph.to_bytes())
    assert runtimes.stamped(again) == "2.15.0"
    assert len(again.model.metadata) == 1
    assert runtimes.of_operator("CONV_2D", 99) is None
    assert runtimes.of_operator("NO_SUCH_OPERATOR", 1) is None


def _nets():
    """Small networks of the usual kinds: (name, model, inputs)."""
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(image)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    residual = keras.Model(image, layers.Dense(5, activation="softmax", name="scores")(x))
    pixels = generator.random((16, 12, 12, 3), dtype=np.float32)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    x = layers.Conv2DTranspose(4, 2, strides=2, activation="relu")(layers.MaxPooling2D()(x))
    unet = keras.Model(image, layers.Conv2D(2, 1, name="map")(layers.Concatenate()([x, image])))
    words = keras.Input((7,), name="words", dtype="int32")
    x = layers.Conv1D(8, 3, activation="relu")(layers.Embedding(20, 6)(words))
    text = keras.Model(words, layers.Dense(3, name="scores")(layers.GlobalMaxPooling1D()(x)))
    series = keras.Input((6, 4), name="series")
    recurrent = keras.Model(series, layers.Dense(2, name="y")(layers.LSTM(6)(series)))
    return [
        ("residual", residual, {"image": pixels}),
        ("unet", unet, {"image": pixels}),
        ("text", text, {"words": generator.integers(0, 20, (16, 7)).astype(np.int32)}),
        ("recurrent", recurrent, {"series": generator.normal(size=(16, 6, 4)).astype(np.float32)}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["residual", "unet", "text", "recurrent"])
def test_files_run_under_the_old_runtime_or_say_that_they_do_not(worker, tmp_path, which):
    name, model, data = _nets()[which]
    precisions = [p for p in export.PRECISIONS if not (p == "int4" and name == "recurrent")]
    files = {tmp_path / f"{p}.tflite": p for p in precisions}
    reports = export.convert(model, files, calibration=data, worker=worker, verbose=0)
    old = old_runtime.run(list(files), data)
    for path, precision in files.items():
        claims = not runtimes.before("2.14.0", reports[path].runs_from)
        new = export.Runner(path)(**data)
        step = reports[path].verification.outputs[0].step or 0.0
        # Recurrent networks feed a step back ten times, and kernels of a decade differ in their last bits.
        tolerance = {"float32": 1e-5, "float16": 1e-5}.get(precision, 0.05) * np.ptp(new) + 2.001 * step
        for delegate in (True, False):
            got = old[path, delegate]
            if isinstance(got, str):
                assert not claims, f"{name} {precision}: the file says {reports[path].runs_from}, and 2.14 says {got}"
                continue
            (value,) = got.values()
            np.testing.assert_allclose(value, new, atol=tolerance, err_msg=f"{name} {precision} {delegate}")
    # The precisions that phones in the field run.
    for precision in ("float32", "float16", "int8", "int16x8"):
        path = tmp_path / f"{precision}.tflite"
        assert not runtimes.before("2.14.0", reports[path].runs_from), precision
        assert not isinstance(old[path, False], str), old[path, False]


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 2, 3], ids=["residual", "text", "recurrent"])
def test_one_scale_a_dense_weight_brings_dynamic_files_to_the_old_runtime(worker, tmp_path, which):
    _, model, data = _nets()[which]
    path = tmp_path / "d.tflite"
    report = export.tflite(model, path, "dynamic", calibration=data, per_tensor_dense=True, worker=worker, verbose=0)
    assert not runtimes.before("2.14.0", report.runs_from)
    wanted = export.Runner(path)(**data)
    for outputs in old_runtime.run([path], data).values():
        assert not isinstance(outputs, str), outputs
        (value,) = outputs.values()
        np.testing.assert_allclose(value, wanted, atol=0.05 * np.ptp(wanted))
