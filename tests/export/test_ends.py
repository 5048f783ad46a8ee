"""The ends of a file: names, boundary types, raw pixels, and the Runner that speaks floats."""

import keras
import numpy as np
import pytest

from tests.export import oracle
from tfcompress import export
from tfcompress.errors import CompressionError
from tfcompress.record import Range, Record

layers = keras.layers


@pytest.fixture(scope="module")
def two_ends():
    """Two inputs, one of them integer, and two outputs in a dict."""
    keras.utils.set_random_seed(0)
    words, image = keras.Input((5,), dtype="int32", name="words"), keras.Input((8, 8, 3), name="image")
    a = layers.Flatten()(layers.Embedding(9, 4, name="table")(words))
    b = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu", name="c")(image))
    both = layers.Concatenate(name="both")([a, b])
    outputs = {"score": layers.Dense(4, activation="softmax", name="s")(both), "box": layers.Dense(2, name="d")(both)}
    model = keras.Model({"words": words, "image": image}, outputs)
    generator = np.random.default_rng(0)
    data = {
        "image": generator.random((24, 8, 8, 3), dtype=np.float32),
        "words": generator.integers(0, 9, (24, 5)).astype(np.int32),
    }
    return model, data


@pytest.mark.parametrize("boundary", ["float32", "int8", "uint8"])
def test_names_orders_and_types_of_the_ends(worker, two_ends, tmp_path, boundary):
    model, data = two_ends
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, "int8", calibration=data, boundary=boundary, worker=worker, verbose=0)
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_path=str(path)).get_signature_list()["serving_default"]
    assert set(signature["inputs"]) == {"words", "image"}
    assert set(signature["outputs"]) == {"score", "box"}
    runner = export.Runner(path)
    types = {port.name: port.dtype for port in runner.inputs}
    assert types == {"words": "int32", "image": boundary}
    wanted = model(data)
    got = runner(**data)
    assert set(got) == {"score", "box"}
    for name in got:
        np.testing.assert_allclose(
            got[name], np.asarray(wanted[name]), atol=0.02 * np.ptp(np.asarray(wanted[name])) + 0.004
        )
    by_position = runner(*(data[port.name] for port in runner.inputs))
    np.testing.assert_array_equal(by_position["score"], got["score"])
    steps = dict(zip(runner.outputs, runner.steps(), strict=True))
    assert steps["score"] == pytest.approx(1 / 256)
    assert {o.name for o in report.verification.outputs} == {"score", "box"}


def test_the_boundary_does_not_change_inner_scales(worker, convnet, images, tmp_path):
    scales = {}
    for boundary in ("float32", "int8", "uint8"):
        path = tmp_path / f"{boundary}.tflite"
        export.tflite(
            convnet, path, "int8", calibration=images, boundary=boundary, verify=False, worker=worker, verbose=0
        )
        scales[boundary] = {n: tuple(e["scales"]) for n, e in oracle.stored(path).items() if "conv" in n}
    assert scales["float32"] == scales["int8"] == scales["uint8"]
    assert len(scales["int8"]) >= 6


def test_a_uint8_file_of_a_user_who_feeds_the_wrong_thing(worker, convnet, images, tmp_path):
    """The Runner applies scale and zero point, which a user of raw tensors forgets."""
    path = tmp_path / "u.tflite"
    export.tflite(convnet, path, "int8", calibration=images, boundary="uint8", worker=worker, verbose=0)
    wanted = np.asarray(convnet(images))
    np.testing.assert_allclose(export.Runner(path)(images), wanted, atol=0.01 * np.ptp(wanted))
    with pytest.raises(CompressionError, match=r"expected \(samples, 16, 16, 3\)"):
        export.Runner(path)(images[0])
    with pytest.raises(CompressionError, match="Did you mean 'image'"):
        export.Runner(path)(imge=images)


def _raw_codes(path, pixels):
    """Feed pixels as they are, by an interpreter of the test's own; floats back."""
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_path=str(path))
    made.allocate_tensors()
    into, out = made.get_input_details()[0], made.get_output_details()[0]
    rows = []
    for pixel in pixels:
        made.set_tensor(into["index"], pixel[None].astype(into["dtype"]))
        made.invoke()
        value = made.get_tensor(out["index"])[0].astype(np.float64)
        scale, zero = out["quantization"]
        rows.append((value - zero) * scale if scale else value)
    return np.array(rows)


@pytest.mark.parametrize(
    ("precision", "boundary", "mean", "std"),
    [
        ("int8", "uint8", 127.0, 64.0),
        ("float32", "float32", 127.0, 64.0),
        ("int8", "uint8", [120.0, 110.5, 99.0], [60.0, 61.0, 62.0]),
    ],
)
def test_a_phone_feeds_raw_pixels(worker, convnet, tmp_path, precision, boundary, mean, std):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
    normal = ((pixels.astype(np.float32) - np.float32(mean)) / np.float32(std)).astype(np.float32)
    path = tmp_path / "r.tflite"
    report = export.tflite(
        convnet,
        path,
        precision,
        calibration=normal,
        boundary=boundary,
        normalisation=(mean, std),
        worker=worker,
        verbose=0,
    )
    wanted = np.asarray(convnet(normal))
    np.testing.assert_allclose(_raw_codes(path, pixels), wanted, atol=0.015 * np.ptp(wanted))
    assert report.verification.max_error < 0.015
    if np.ndim(mean) == 0 and precision == "int8":
        entry = oracle.stored(path)["image"]
        assert entry["scales"][0] == np.float32(1 / std)
        assert entry["zero_points"][0] == mean
        assert not {"MUL", "ADD", "SUB"} & set(oracle.operators(path))


def test_raw_pixels_meet_a_trained_input_range(worker, convnet, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3)).astype(np.uint8)
    normal = ((pixels.astype(np.float32) - 127) / 64).astype(np.float32)
    path = tmp_path / "r.tflite"
    trained = Range(float(np.float32(4.1 / 255)), 2)
    report = export.tflite(
        convnet, path, "int8", calibration=normal, boundary="uint8", normalisation=(127.0, 64.0),
        record=Record({}, {"image": trained}), worker=worker, verbose=0,
    )  # fmt: skip
    assert report.verification.read_back["ranges"] == 1
    entries = oracle.stored(path)
    assert entries["image"]["scales"][0] == np.float32(1 / 64)
    assert entries["image/int8"]["scales"][0] == np.float32(trained.scale)
    wanted = np.asarray(convnet(normal))
    np.testing.assert_allclose(_raw_codes(path, pixels), wanted, atol=0.02 * np.ptp(wanted))


def test_a_batch_other_than_one(worker, convnet, images, tmp_path):
    path = tmp_path / "b.tflite"
    report = export.tflite(convnet, path, "int8", calibration=images[:30], batch=4, worker=worker, verbose=0)
    runner = export.Runner(path)
    assert runner.inputs[0].shape == (4, 16, 16, 3)
    assert report.verification.max_error < 0.015
    wanted = np.asarray(convnet(images[:7]))
    got = runner(images[:7])
    assert got.shape == (7, 10)
    np.testing.assert_allclose(got, wanted, atol=0.015 * np.ptp(wanted))


def test_mixed_precision_and_subclassed_models(worker, tmp_path):
    x = keras.Input((6,), name="x")
    with oracle.dtype_policy("mixed_float16"):
        mixed = keras.Model(
            x, layers.Dense(3, dtype="float32", name="o")(layers.Dense(8, activation="relu", name="h")(x))
        )
    data = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    report = export.tflite(mixed, tmp_path / "m.tflite", samples=data, worker=worker, verbose=0)
    assert "CAST" not in report.verification.census.operators
    assert report.verification.max_error < 1e-5

    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(8, activation="relu"), layers.Dense(3)

        def call(self, x):
            return self.two(self.one(x))

    net = Net()
    net(data[:1])
    report = export.tflite(net, tmp_path / "s.tflite", "int8", calibration=data, worker=worker, verbose=0)
    assert report.verification.max_error < 0.03
    with pytest.raises(CompressionError, match=r"samples=x\[:16\]"):
        export.tflite(net, tmp_path / "s.tflite", worker=worker, verbose=0)


def test_bad_requests_are_refused_before_anything_runs(worker, convnet, images, tmp_path):
    path = tmp_path / "no.tflite"

    def refused(match, model=convnet, precision="int8", **options):
        with pytest.raises(CompressionError, match=match):
            export.tflite(model, path, precision, **{"calibration": images, "worker": worker, "verbose": 0, **options})
        assert not path.exists()

    refused("Did you mean 'int8'", precision="int9")
    refused("Unknown target 'edgtpu'.*edgetpu", target="edgtpu")
    refused("boundary 'float32' or 'int8' or 'uint8'", boundary="int16")
    refused("takes int8, not 'float32'", precision="float32", target="edgetpu")
    refused("whole number", batch=0)
    refused("needs calibration data", calibration=None)
    refused("NaN", calibration=np.full((4, 16, 16, 3), np.nan, np.float32))
    refused("at least one sample", calibration=images[:0])
    refused("Add the channel axis|expected", calibration=images[..., 0])
    refused("std above 0", normalisation=(0.0, 0.0))
    refused("no float input", normalisation={"imag": (0.0, 1.0)})
    refused("keras.Model", model=lambda x: x)
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    refused("Call it once on a sample", model=unbuilt)
    free = keras.Input((None, 4), name="steps")
    refused(r"expected \(samples, any, 4\)", model=keras.Model(free, layers.Dense(2)(free)))
    fixed = keras.Input(batch_shape=(3, 4), name="f")
    refused(
        "export it with batch=3",
        model=keras.Model(fixed, layers.Dense(2)(fixed)),
        calibration=np.ones((4, 4), np.float32),
    )


def test_non_finite_outputs_are_refused(worker, tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(3, name="d")(x))
    model.get_layer("d").set_weights([np.full((4, 3), np.nan, np.float32), np.zeros(3, np.float32)])
    data = np.ones((4, 4), np.float32)
    with pytest.raises(CompressionError, match="NaN or infinite"):
        export.tflite(model, tmp_path / "n.tflite", samples=data, worker=worker, verbose=0)
    model.get_layer("d").set_weights([np.full((4, 3), 1e6, np.float32), np.zeros(3, np.float32)])
    big = keras.Model(x, layers.Dense(40, name="e")(x))
    big.get_layer("e").set_weights([np.full((4, 40), 1e6, np.float32), np.zeros(40, np.float32)])
    with pytest.raises(CompressionError, match="65504"):
        export.tflite(big, tmp_path / "n.tflite", "float16", samples=data, worker=worker, verbose=0)
    assert not (tmp_path / "n.tflite").exists()


def test_verify_and_inspect_of_a_file_from_elsewhere(worker, convnet, images, tmp_path):
    path = tmp_path / "f.tflite"
    export.tflite(convnet, path, samples=images, worker=worker, verbose=0)
    report = export.verify(path, convnet, images, worker=worker)
    assert report.max_error < 1e-5
    assert report.max_steps is None
    other = keras.models.clone_model(convnet)
    assert export.verify(path, other, images, worker=worker).max_error > 0.05
    by_array = export.verify(path, np.asarray(convnet(images)), images, worker=worker)
    assert by_array.compared_with == "the given outputs"
    assert by_array.outputs[0].largest == pytest.approx(report.outputs[0].largest)
    with pytest.raises(CompressionError, match=r"no file|Cannot read"):
        export.verify(tmp_path / "none.tflite", convnet, images, worker=worker)
    (tmp_path / "junk.tflite").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CompressionError, match="TFL3"):
        export.inspect(tmp_path / "junk.tflite")
    info = export.inspect(path)
    assert info.inputs == {"image": ((1, 16, 16, 3), "float32")}
    assert info.size == path.stat().st_size
    assert f"from runtime {report.runs_from} on" in " ".join(str(info).split())
    assert info.census.macs == report.census.macs
    assert "CONV_2D" in str(info)
    import json

    json.dumps([info.to_dict(), report.to_dict()])


def test_calibration_unlike_the_samples_is_warned_of(worker, convnet, images, tmp_path):
    path = tmp_path / "c.tflite"
    report = export.tflite(convnet, path, "int8", calibration=images[:8] / 20, samples=images, worker=worker, verbose=0)
    assert any("does not look like the samples" in warning for warning in report.verification.warnings)


def test_a_trained_network_agrees_with_its_simulation(worker, tmp_path):
    """Attach, train, export: the attached model is the simulated network, and the file computes the same integers."""
    import tfcompress
    from tfcompress import quantization

    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(image)))
    y = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    x = layers.GlobalAveragePooling2D()(layers.Concatenate()([layers.Add()([x, y]), layers.Conv2D(4, 1)(y)]))
    model = keras.Model(image, layers.Dense(4, name="scores")(x))
    generator = np.random.default_rng(0)
    data = generator.random((128, 8, 8, 3), dtype=np.float32)
    labels = (data.mean((1, 2)) @ generator.normal(size=(3, 4))).argmax(1)
    small = tfcompress.apply(model, quantization.QAT(), data=data[:64], verbose=0)
    small.compile("adam", "sparse_categorical_crossentropy")
    small.fit(data, labels, epochs=1, verbose=0, callbacks=[tfcompress.Compression()])
    report = export.tflite(
        small, tmp_path / "q.tflite", "int8", samples=data, boundary="int8", worker=worker, verbose=0
    )
    assert report.verification.compared_with == "the simulated network (the attached model)"
    assert report.verification.outputs[0].within_one >= 0.98
    assert report.verification.max_steps <= 2.001
    assert report.ranges["calibrated"] == 0
    assert report.weights == {"trained": 4, "by extremes": 0}
    finalized = tfcompress.finalize(small, verbose=0)
    export.tflite(finalized, tmp_path / "p.tflite", "int8", samples=data, boundary="int8", worker=worker, verbose=0)
    assert (tmp_path / "p.tflite").read_bytes() == (tmp_path / "q.tflite").read_bytes()
