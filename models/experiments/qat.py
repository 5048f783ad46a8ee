"""8-bit networks on Fashion-MNIST: after training, and trained quantization-aware; float, simulated and as a file."""

import pathlib
import tempfile

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from models.networks import mobilenet_v2
from tfcompress import Compression, apply, export, quantization


def train(model, x, y, epochs: int, rate: float, callbacks=()) -> None:
    """Adam, with the rate falling along a cosine."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // 64), 0.02)
    fit(model, x, y, epochs, keras.optimizers.Adam(schedule), batch=64, callbacks=callbacks)


def deployed(path, x, y) -> tuple[float, np.ndarray]:
    """(percent right, outputs) of a file."""
    outputs = export.Runner(path)(x)
    outputs = np.asarray(next(iter(outputs.values())) if isinstance(outputs, dict) else outputs)
    return 100.0 * float(np.mean(outputs.argmax(-1) == y)), outputs


@experiment(
    name="Quantization-aware training to int8",
    claim="a depthwise network loses at most 0.2 points in int8 after quantization-aware training, and the file is the "
    "simulated network",
    data="Fashion-MNIST",
    sizes={
        "quick": "1 000 images, 1 epoch, 1 quantization-aware",
        "standard": "12 000 images, 6 epochs, 2 quantization-aware",
    },
    baseline="float32",
    targets=[
        Target("int8, calibrated", "<=", 1.0, figure="drop", text="points below float32"),
        Target("int8, trained", "<=", 0.2, figure="drop", text="points below float32"),
        Target("int8, trained", ">=", 99.5, figure="agreement %", text="top-1 of file and simulated network"),
    ],
    seeds=2,
    note="MobileNetV2 of width 0.35 on 28x28. Accuracy on the 10 000 test images, all through the .tflite file but float32.",
    tolerances={"accuracy": 8.0, "drop": 8.0, "agreement %": 3.0},
)
def run(seed, quick, full, log):
    """Float, calibrated int8, trained int8."""
    images, epochs, again = (1_000, 1, 1) if quick else (12_000, 6, 2)
    data = datasets.load("fashion_mnist")
    x, y = data.x_train[:images], data.y_train[:images]
    test = data.x_test, data.y_test
    if quick:
        test = data.x_test[:2000], data.y_test[:2000]
    keras.utils.set_random_seed(seed)
    model = mobilenet_v2(input_shape=x.shape[1:], width=0.35, strides="small", classes=10)
    train(model, x, y, epochs, 2e-3)
    base = accuracy(model, *test)
    rows: dict[str, dict[str, float]] = {"float32": {"accuracy": base}}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "calibrated.tflite")
        export.tflite(model, path, precision="int8", calibration=x[:200])
        found, _ = deployed(path, *test)
        rows["int8, calibrated"] = {"accuracy": found, "drop": base - found, "file bytes": path.stat().st_size}
        log(f"calibrated: {rows['int8, calibrated']}")
        aware = apply(model, quantization.QAT(), data=x[:200], verbose=0)
        train(aware, x, y, again, 5e-5, [Compression(per_layer=False)])
        simulated = aware.predict(test[0], verbose=0)
        path = pathlib.Path(folder, "trained.tflite")
        export.tflite(aware, path, precision="int8", calibration=x[:200])
        found, outputs = deployed(path, *test)
        rows["int8, trained"] = {
            "accuracy": found,
            "drop": base - found,
            "agreement %": 100.0 * float(np.mean(outputs.argmax(-1) == simulated.argmax(-1))),
            "file bytes": path.stat().st_size,
        }
    return rows
