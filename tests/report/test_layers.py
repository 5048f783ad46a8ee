import keras
import numpy as np

from tfcompress.record import Grid, Record
from tfcompress.report import layers


def test_rows_count_what_the_kernels_hold():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.SeparableConv2D(4, 3, name="sep"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="out"),
        ]
    )
    kernel = np.zeros((144, 3), np.float32)
    kernel[:10] = [0.5, -0.25, 0.0]
    model.get_layer("out").kernel.assign(kernel)
    rows = {row.name: row for row in layers(model, notes={"out": "kept float"})}
    assert list(rows) == ["sep.depthwise_kernel", "sep.pointwise_kernel", "out"]
    out = rows["out"]
    assert (out.kind, out.shape, out.parameters, out.nonzeros, out.distinct) == ("Dense", (144, 3), 432, 20, 3)
    assert (out.bits, out.bytes, out.minimum, out.maximum, out.note) == (32, 1728, -0.25, 0.5, "kept float")
    assert rows["sep.depthwise_kernel"].parameters == 3 * 3 * 2


def test_bits_are_those_of_the_trained_grid():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="a"), keras.layers.Dense(2, name="b")])
    unit = np.ones((1, 6), np.float32)
    record = Record(weights={"a.kernel": Grid(unit, -127, 127), "b.kernel": Grid(unit[:, :2], -1, 1)})
    assert [(row.bits, row.bytes) for row in layers(model, record)] == [(8, 24), (2, 3)]


def test_half_precision_weights_are_counted_as_such():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="a", dtype="bfloat16")])
    assert [(row.bits, row.bytes) for row in layers(model)] == [(16, 48)]
