"""Networks that people deploy, at small inputs (slow)."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import export, quantization

pytestmark = pytest.mark.slow
applications = keras.applications


def _lively(model, data):
    """Batch-norm statistics that fit the data, as after training: at their initial values activations die out with depth."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(6):
        model(data, training=True)
    return model


@pytest.mark.parametrize(
    ("name", "largest"),
    [("MobileNetV2", 0.05), ("MobileNetV3Small", 0.08), ("EfficientNetB0", 0.15), ("DenseNet121", 0.1)],
)
def test_every_precision_of_a_real_network(worker, tmp_path, name, largest):
    data = np.random.default_rng(0).random((20, 64, 64, 3), dtype=np.float32)
    build = getattr(applications, name)
    model = _lively(build(input_shape=(64, 64, 3), weights=None, classes=10, classifier_activation=None), data)
    files = {tmp_path / f"{p}.tflite": p for p in export.PRECISIONS}
    reports = export.convert(model, files, calibration=data, worker=worker, verbose=0)
    by_precision = {precision: reports[path].verification for path, precision in files.items()}
    assert by_precision["float32"].max_error < 1e-3
    assert by_precision["float16"].max_error < 0.02
    assert by_precision["int8"].max_error < largest
    assert by_precision["int16x8"].max_error < largest
    for precision, report in by_precision.items():
        assert report.runs == {"xnnpack": "ok", "builtin": "ok"}, precision
    assert by_precision["int8"].census.integer_share == 1.0


def test_c20_a_trained_mobilenet_agrees_with_its_simulation(worker, tmp_path):
    data = np.random.default_rng(0).random((20, 96, 96, 3), dtype=np.float32)
    model = _lively(applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None, classes=10), data)
    attached = tfcompress.apply(model, quantization.QAT(), data=data, verbose=0)
    report = export.tflite(
        attached, tmp_path / "q.tflite", "int8", samples=data, boundary="int8", worker=worker, verbose=0
    )
    assert report.ranges["calibrated"] == 0
    assert report.weights["by extremes"] == 0
    # Fifty layers: float32 noise of the simulation itself flips codes, which is a few steps at the end.
    assert report.verification.outputs[0].within_two >= 0.98
    assert report.verification.agreement == 1.0
