"""What goes in wrong comes out as one clear message, and no file is left behind."""

import keras
import numpy as np
import pytest

from tests.export import oracle
from tfcompress import export
from tfcompress.errors import CompressionError
from tfcompress.export import session as sessions

layers = keras.layers


@pytest.fixture
def refused(worker, tmp_path):
    """A function that exports what must be refused, and returns the message."""

    def export_it(model, precision="int8", match=None, **options):
        path = tmp_path / "no.tflite"
        with pytest.raises(CompressionError, match=match) as caught:
            export.tflite(model, path, precision, **{"worker": worker, "verbose": 0, **options})
        assert list(tmp_path.iterdir()) == []
        return str(caught.value)

    return export_it


def _dense(dtype="float32", name="x", size=4):
    x = keras.Input((size,), dtype=dtype, name=name)
    return keras.Model(x, layers.Dense(3, name="d")(x))


def test_a_free_batch_becomes_one_and_the_report_says_so(worker, tmp_path):
    data = np.random.default_rng(0).random((8, 4), dtype=np.float32)
    report = export.tflite(_dense(), tmp_path / "m.tflite", "int8", calibration=data, worker=worker, verbose=0)
    assert report.batch == 1
    assert "any in the model: batch= or --batch" in " ".join(str(report).split())
    assert export.Runner(tmp_path / "m.tflite").inputs[0].shape == (1, 4)
    x = keras.Input(batch_shape=(2, 4), name="x")
    fixed = keras.Model(x, layers.Dense(3)(x))
    report = export.tflite(fixed, tmp_path / "f.tflite", "int8", calibration=data, batch=2, worker=worker, verbose=0)
    assert "any in the model" not in str(report)
    assert export.Runner(tmp_path / "f.tflite").inputs[0].shape == (2, 4)


@pytest.mark.parametrize("cell", [None, "LSTM"])
def test_free_sizes_are_those_of_the_samples(worker, tmp_path, cell):
    """A fully convolutional network, and a recurrent one of any length."""
    if cell:
        x = keras.Input((None, 3), name="x")
        model = keras.Model(x, layers.Dense(2, name="y")(getattr(layers, cell)(4)(x)))
        data = np.random.default_rng(0).normal(size=(16, 5, 3)).astype(np.float32)
    else:
        x = keras.Input((None, None, 3), name="x")
        model = keras.Model(x, layers.Conv2D(2, 3, name="y")(layers.Conv2D(4, 3, activation="relu")(x)))
        data = np.random.default_rng(0).random((8, 9, 7, 3), dtype=np.float32)
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, "int8", calibration=data, worker=worker, verbose=0)
    assert any("free sizes" in note and str((1, *data.shape[1:])) in note for note in report.notes)
    assert export.Runner(path).inputs[0].shape == (1, *data.shape[1:])
    assert report.verification.census.dynamic == []
    assert report.verification.max_error < 0.05
    with pytest.raises(CompressionError, match=r"dimension \[.*1.*\] is unknown.*Pass samples of the size"):
        export.tflite(model, tmp_path / "no.tflite", worker=worker, verbose=0)
    with pytest.raises(CompressionError, match="expected"):
        export.tflite(
            model, tmp_path / "no.tflite", "int8", calibration=data[:, :-1], samples=data, worker=worker, verbose=0
        )
    assert not (tmp_path / "no.tflite").exists()


def test_text_is_refused_with_what_to_export_instead(refused):
    x = keras.Input((1,), dtype="string", name="sentence")
    vector = layers.TextVectorization(max_tokens=10, output_sequence_length=4, vocabulary=["a", "b"])
    model = keras.Model(x, layers.Flatten()(layers.Embedding(10, 2)(vector(x))))
    text = refused(model, "float32")
    assert "'sentence'" in text
    assert "TextVectorization" in text
    assert "integer input" in text


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_long_integers_become_32_bits_wide(worker, tmp_path, precision):
    x = keras.Input((5,), dtype="int64", name="ids")
    model = keras.Model(x, layers.Dense(2, name="y")(layers.Flatten()(layers.Embedding(9, 3)(x))))
    data = np.random.default_rng(0).integers(0, 9, (16, 5))
    assert data.dtype == np.int64
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, precision, calibration=data, worker=worker, verbose=0)
    assert export.Runner(path).inputs[0].dtype == "int32"
    assert any("int64 in Keras and int32 in the file" in note for note in report.notes)
    wanted = np.asarray(model(data))
    np.testing.assert_allclose(export.Runner(path)(data.astype(np.int32)), wanted, atol=0.02 * np.ptp(wanted) + 1e-6)
    with pytest.raises(CompressionError, match="end at 2147483647"):
        export.tflite(model, tmp_path / "no.tflite", calibration=data + 2**40, worker=worker, verbose=0)
    assert not (tmp_path / "no.tflite").exists()


def test_complex_inputs_are_refused(refused):
    x = keras.Input((4,), dtype="complex64", name="wave")
    assert "'wave'" in refused(keras.Model(x, layers.Dense(2)(keras.ops.real(x))), "float32", match="complex64")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_calibration_with_a_hole_is_refused(refused, bad):
    data = np.random.default_rng(0).random((8, 4), dtype=np.float32)
    data[3, 2] = bad
    text = refused(_dense(), calibration=data, match="NaN or infinite")
    assert "calibration" in text
    assert "'x'" in text


def test_values_that_overflow_inside_are_refused_by_tensor(refused):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(3, name="d")(keras.ops.exp(x)))
    text = refused(model, calibration=np.full((4, 4), 100, np.float32), match="NaN or infinite")
    assert "Tensor" in text


def test_wrong_inputs_are_refused_by_what_was_expected(refused):
    """Wrong numbers of inputs, names and shapes name what was expected."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], layers.Dense(3)(layers.Add()([a, b])))
    one = np.ones((4, 4), np.float32)
    refused(model, calibration=[one], match="2 inputs: a, b")
    refused(model, calibration={"a": one, "c": one}, match=r"unknown \['c'\]")
    refused(model, calibration={"a": one, "b": one[:2]}, match="same number for every input")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "float64"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_other_dtype_policies_compute_in_float32_and_say_so(worker, tmp_path, policy, precision):
    with oracle.dtype_policy(policy):
        x = keras.Input((8, 8, 3), name="x")
        y = layers.Conv2D(4, 3, name="c")(x)
        y = layers.ReLU(name="r")(layers.BatchNormalization(name="n")(y))
        model = keras.Model(x, layers.Dense(3, name="d")(layers.Flatten(name="f")(y)))
    data = np.random.default_rng(0).random((16, 8, 8, 3), dtype=np.float32)
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, precision, calibration=data, worker=worker, verbose=0)
    assert not {"CAST", "DIV"} & set(report.verification.census.operators)
    assert any(policy in note and "computes in float32" in note for note in report.notes)
    assert export.Runner(path).inputs[0].dtype == "float32"
    wanted = np.asarray(model(data)).astype(np.float32)
    np.testing.assert_allclose(export.Runner(path)(data), wanted, atol=0.03 * np.ptp(wanted))


def test_a_subclassed_model_under_mixed_precision_says_what_it_needs(refused):
    class Net(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.one = layers.Dense(size)

        def call(self, x):
            return self.one(x)

    with oracle.dtype_policy("mixed_float16"):
        net = Net(3)
    data = np.ones((4, 5), np.float32)
    net(data)
    assert "config" in refused(net, "float32", samples=data, match="compute in float32")


def test_a_model_that_keras_quantized_is_refused(refused):
    model = _dense()
    with pytest.warns(UserWarning, match="does not have a `quantize` method"):
        model.quantize("int8")
    text = refused(model, "int8", calibration=np.ones((4, 4), np.float32), match="Keras's own quantize")
    assert "d" in text


def test_a_model_beyond_two_gigabytes_is_refused_before_anything_is_copied(refused, monkeypatch):
    """The limit is lowered, so that no such model has to exist here."""
    copied = []
    monkeypatch.setattr(sessions.savedmodel, "float32_twin", lambda model: copied.append(model) or model)
    assert sessions._LARGEST == 2**31 - 2**20
    monkeypatch.setattr(sessions, "_LARGEST", 4 * (4 * 3 + 3) - 1)
    text = refused(_dense(), "int8", calibration=np.ones((4, 4), np.float32), match="2 GiB")
    assert "parts" in text
    assert not copied
    monkeypatch.setattr(sessions, "_LARGEST", 4 * (4 * 3 + 3))
    refused(_dense(), "int8", match="needs calibration data")


def test_calibrating_on_bytes_and_feeding_fractions_is_noticed(worker, convnet, images, tmp_path):
    """The usual mistake: the ranges are 255 times too wide (or too narrow, the other way round)."""
    path = tmp_path / "m.tflite"
    wide = export.tflite(convnet, path, "int8", calibration=images * 255, samples=images, worker=worker, verbose=0)
    (text,) = [w for w in wide.verification.warnings if "'image'" in w]
    assert "0 to 255" in text
    assert "0.4% of it" in text
    # The same by another door: a finished file verified with data of another scale.
    again = export.verify(path, convnet, images, worker=worker)
    assert any("0 to 255" in w for w in again.warnings)
    narrow = export.tflite(convnet, path, "int8", calibration=images, samples=images * 255, worker=worker, verbose=0)
    (text,) = [w for w in narrow.verification.warnings if "'image'" in w]
    assert "clipped" in text
    (inner,) = [w for w in narrow.verification.warnings if "clip more than 1%" in w]
    assert "its range is" in inner
    assert "the samples reach" in inner
    good = export.tflite(convnet, path, "int8", calibration=images, samples=images[:16], worker=worker, verbose=0)
    assert not good.verification.warnings


def test_batch_normalization_remembers_what_it_was_trained_on(worker, images, tmp_path):
    """Without any sample of the right scale: the statistics of training tell."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.BatchNormalization(momentum=0.5, name="norm")(layers.Conv2D(8, 3, name="c")(image))
    model = keras.Model(image, layers.Dense(3, name="d")(layers.GlobalAveragePooling2D()(layers.ReLU()(x))))
    path = tmp_path / "m.tflite"
    fresh = export.tflite(model, path, "int8", calibration=images * 255, worker=worker, verbose=0)
    assert not any("training data" in note for note in fresh.notes)  # nothing was learned yet
    for _ in range(20):
        model(images, training=True)
    right = export.tflite(model, path, "int8", calibration=images, worker=worker, verbose=0)
    assert not any("training data" in note for note in right.notes)
    for scale in (255.0, 1 / 255):
        wrong = export.tflite(model, path, "int8", calibration=images * np.float32(scale), worker=worker, verbose=0)
        (text,) = [note for note in wrong.notes if "training data" in note]
        assert "'norm'" in text
        assert "0..255 or 0..1" in text
