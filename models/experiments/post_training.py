"""Post-training quantization of a MobileNet on CIFAR-10: the stock converter's, and each of ours, all through files."""

import pathlib
import tempfile

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from models.networks import mobilenet_v1
from tfcompress import apply, export, quantization

_CALIBRATION = 128
# The stem and the first block at full size, few positions after it: 4 M multiplications an image.
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1)


def stock(model, calibration, path: pathlib.Path, per_tensor: bool) -> None:
    """The TFLiteConverter's own int8, with float ends."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter._experimental_disable_per_channel = per_tensor
        path.write_bytes(converter.convert())


def measured(path: pathlib.Path, x, y) -> float:
    """Percent right of a file."""
    outputs = export.Runner(path)(x)
    outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
    return 100.0 * float(np.mean(np.asarray(outputs).argmax(-1) == y))


class _Table:
    """Rows of files made one after the other."""

    def __init__(self, model, calibration, test, base: float, folder: pathlib.Path, steps: int, log):
        self.model, self.calibration, self.test, self.base = model, calibration, test, base
        self.folder, self.steps, self.log = folder, steps, log
        self.rows: dict[str, dict[str, float]] = {}

    def add(self, row: str, path: pathlib.Path) -> float:
        """Measure a file; the accuracy."""
        found = measured(path, *self.test)
        self.rows[row] = {"accuracy": found, "drop": self.base - found, "file bytes": path.stat().st_size}
        self.log(f"{row}: {found:.2f} %")
        return found

    def stock(self, row: str, per_tensor: bool) -> None:
        """A row of the stock converter."""
        path = self.folder / "stock.tflite"
        stock(self.model, self.calibration, path, per_tensor)
        self.add(row, path)

    def ours(self, row: str, method: str, precision: str = "int8", **options) -> float:
        """A row of ours: weights by `PostTraining`, ranges of outputs by a method of calibration."""
        options = {"equalize": False, "bias_correction": None, "verbose": 0, "steps": self.steps} | options
        small = apply(self.model, quantization.PostTraining(**options), data=self.calibration, verbose=0)
        path = self.folder / "ours.tflite"
        export.tflite(
            small, path, precision, calibration=self.calibration, calibration_method=method, verify=False, verbose=0
        )
        return self.add(row, path)


@experiment(
    name="Post-training quantization",
    claim="per channel a depthwise network loses at most 1 point in int8 without training; per tensor it loses more, which "
    "equalization and bias correction bring back; at 4 bits learned rounding does",
    data="CIFAR-10",
    sizes={
        "quick": "4 000 images, 2 epochs, 20 steps of rounding a layer",
        "standard": "20 000 images, 8 epochs, 300 steps of rounding a layer",
    },
    baseline="float32",
    targets=[
        Target("int8, per channel, kl", "<=", 1.0, figure="drop", text="points below float32, per channel"),
        Target(
            "int8, per channel, + learned rounding", "<=", 1.0, figure="drop", text="points below float32, per channel"
        ),
        Target(
            "int8, per tensor, + bias correction",
            ">",
            0.0,
            figure="gain",
            text="points over plain rounding, per tensor",
        ),
        Target(
            "4-bit weights, + learned rounding", ">", 0.0, figure="gain", text="points over nearest rounding, 4 bits"
        ),
    ],
    note="MobileNet V1 of width 0.35 with ReLU. Ranges and methods see 128 training images; accuracy on 2 000 test images, all "
    "through the .tflite file but float32. 'gain' is over the first row of the same kind; '+' adds to the row before it. Stock "
    "rows are the TFLiteConverter's.",
    tolerances={"accuracy": 10.0, "drop": 10.0, "gain": 10.0},
)
def run(seed, quick, full, log):
    """Float, stock int8, and ours with one thing more in each row."""
    images, epochs, steps = (4_000, 2, 20) if quick else (20_000, 8, 300)
    data = datasets.load("cifar10")
    x, y = data.x_train[:images], data.y_train[:images]
    test = data.x_test[:2000], data.y_test[:2000]
    keras.utils.set_random_seed(seed)
    model = mobilenet_v1(x.shape[1:], 10, width=0.35, strides=_STRIDES, nonlinearity="relu")
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-images // 64), 0.02)
    fit(model, x, y, epochs, keras.optimizers.Adam(schedule), batch=64, jit=False)
    base = accuracy(model, *test)
    log(f"float32: {base:.2f} %")
    with tempfile.TemporaryDirectory() as folder:
        table = _Table(model, x[:_CALIBRATION], test, base, pathlib.Path(folder), steps, log)
        table.stock("stock int8, per channel", per_tensor=False)
        table.stock("stock int8, per tensor", per_tensor=True)
        _eight_bits(table)
        _four_bits(table)
    return {"float32": {"accuracy": base}, **table.rows}


def _eight_bits(table: _Table) -> None:
    methods = ("minmax", "percentile", "mse", "kl")
    for method in methods:
        table.ours(f"int8, per channel, {method}", method)
    more: dict[str, dict] = {"+ equalization": {"equalize": True}}
    more["+ bias correction"] = more["+ equalization"] | {"bias_correction": "empirical"}
    more["+ learned rounding"] = more["+ bias correction"] | {"rounding": "learned"}
    for name, options in more.items():
        table.ours(f"int8, per channel, {name}", "mse", **options)
    plain = table.ours("int8, per tensor", "minmax", per_channel=False, weight_range="minmax")
    table.rows["int8, per tensor"]["gain"] = 0.0
    for name in ("+ equalization", "+ bias correction"):
        row = f"int8, per tensor, {name}"
        found = table.ours(row, "minmax", per_channel=False, weight_range="minmax", **more[name])
        table.rows[row]["gain"] = found - plain


def _four_bits(table: _Table) -> None:
    plain = table.ours("4-bit weights", "mse", "int4", bits=4)
    table.rows["4-bit weights"]["gain"] = 0.0
    more: dict[str, dict] = {"+ bias correction": {"bias_correction": "empirical"}}
    more["+ learned rounding"] = more["+ bias correction"] | {"rounding": "learned"}
    more["+ equalization"] = more["+ learned rounding"] | {"equalize": True}
    for name, options in more.items():
        row = f"4-bit weights, {name}"
        found = table.ours(row, "mse", "int4", bits=4, **options)
        table.rows[row]["gain"] = found - plain
