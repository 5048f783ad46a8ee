"""The checker of XNNPACK's rules for sparse inference on Arm: yes or no, why, and no promise."""

import keras
import numpy as np
import pytest

from tfcompress import export
from tfcompress.errors import CompressionError

layers = keras.layers


def _net(padding=True, stem_stride=2, kernel=1, share=0.9, pool=True, odd=False, extra=None):
    """A network in the form that the rules want, or with one thing wrong."""
    keras.utils.set_random_seed(0)
    image = keras.Input((24, 24, 3), name="image")
    x = layers.ZeroPadding2D(1)(image) if padding else image
    x = layers.Conv2D(
        16, 3, strides=stem_stride, padding="valid" if padding else "same", activation="relu", name="stem"
    )(x)
    x = layers.Conv2D(64, kernel, activation="relu", name="a", padding="same")(x)
    x = layers.DepthwiseConv2D(7 if odd else 5, padding="same", activation="relu", name="w")(x)
    if extra is not None:
        x = extra(x)
    x = layers.Conv2D(64, 1, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling2D()(x) if pool else layers.Flatten()(layers.MaxPooling2D(12)(x))
    model = keras.Model(image, layers.Dense(4, name="y")(x))
    for name in "ab":
        weight = model.get_layer(name).get_weights()[0]
        cut = np.abs(weight) < np.quantile(np.abs(weight), share)
        model.get_layer(name).set_weights([np.where(cut, 0, weight), model.get_layer(name).get_weights()[1]])
    return model


def _verdict(model, worker, tmp_path, precision="float32", sparse=True):
    data = np.random.default_rng(0).random((8, 24, 24, 3), dtype=np.float32)
    path = tmp_path / "m.tflite"
    report = export.tflite(model, path, precision, calibration=data, sparse=sparse, worker=worker, verbose=0)
    return export.sparse_inference(path), report


def test_a_network_that_meets_the_rules(worker, tmp_path):
    verdict, report = _verdict(_net(), worker, tmp_path)
    assert verdict.meets, verdict.reasons
    assert verdict.reasons == []
    assert verdict.zeros == pytest.approx(0.9, abs=0.01)
    assert "not run" in verdict.checked_by
    text = str(verdict)
    assert "meets XNNPACK's rules" in text
    assert "only a measurement on the phone tells" in text
    assert "on a desktop it is not" in text
    assert any(note == text for note in report.notes)
    assert export.sparse_inference((tmp_path / "m.tflite").read_bytes()) == verdict
    half, _ = _verdict(_net(), worker, tmp_path, "float16")
    assert half.meets, half.reasons


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"padding": False}, "stem|conv_2d.*padding 1 on each side"),
        ({"stem_stride": 1}, "not 3x3 with stride 2 on 3 channels"),
        ({"kernel": 3}, "is a 3x3 convolution"),
        ({"share": 0.5}, "50% zeros together, below two thirds|% zeros together"),
        ({"pool": False}, "no mean over height and width"),
        ({"odd": True}, "is a 7x7 depthwise convolution"),
        ({"extra": lambda x: layers.Activation("gelu")(x)}, "is the operator GELU"),
        ({"extra": lambda x: layers.AveragePooling2D(3, 1, padding="same")(x)}, "is the operator AVERAGE_POOL_2D"),
    ],
)
def test_each_rule_that_is_broken_is_named(worker, tmp_path, changes, reason):
    import re

    model = _net(**changes)
    sparse = changes.get("share", 0.9) > 0.6 and "kernel" not in changes
    verdict, _ = _verdict(model, worker, tmp_path, sparse=sparse)
    assert not verdict.meets
    assert any(re.search(reason, text) for text in verdict.reasons), verdict.reasons
    assert len(verdict.reasons) <= (3 if reason.startswith("no mean") else 2)
    assert "does not meet" in str(verdict)
    assert "not run" in str(verdict)


def test_dense_storage_and_integers_do_not_meet_them(worker, tmp_path):
    dense, _ = _verdict(_net(), worker, tmp_path, sparse=False)
    assert dense.reasons == ["no 1x1 convolution is stored sparse (export with sparse=True)"]
    integer, report = _verdict(_net(), worker, tmp_path, "int8")
    assert not integer.meets
    assert any("rules are for float" in text for text in integer.reasons)
    assert any("does not meet" in note for note in report.notes)


def test_additions_of_equal_images_are_allowed(worker, tmp_path):
    verdict, _ = _verdict(_net(extra=lambda x: layers.Add()([x, layers.ReLU()(x * 0.5)])), worker, tmp_path)
    assert verdict.meets, verdict.reasons


def test_files_that_are_none(worker, tmp_path):
    with pytest.raises(CompressionError, match="Cannot read"):
        export.sparse_inference(tmp_path / "none.tflite")
    with pytest.raises(CompressionError, match="TFL3"):
        export.sparse_inference(b"PK\x03\x04" + bytes(64))
    x = keras.Input((4,), name="x")
    export.tflite(keras.Model(x, layers.Dense(2)(x)), tmp_path / "d.tflite", worker=worker, verbose=0)
    assert export.sparse_inference(tmp_path / "d.tflite").reasons == ["there is no convolution"]
