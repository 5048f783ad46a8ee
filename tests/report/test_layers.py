import keras
import numpy as np

import tfcompress
from tfcompress import pruning
from tfcompress.parametrization import Parametrization, parametrize
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


def test_an_attached_model_shows_its_effective_weights():
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10, name="a")])
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.8), verbose=0)
    assert [(row.name, row.nonzeros, row.parameters) for row in layers(small)] == [("a", 20, 100)]
    assert [row.nonzeros for row in layers(tfcompress.finalize(small, verbose=0))] == [20]


def test_a_kernel_made_from_own_variables_is_listed():
    class Signs(Parametrization):
        source = True

        def build(self, layer, name, shape):
            self.sign = self.add_variable("sign", shape, "ones", trainable=True)

        def __call__(self, value):
            return keras.ops.convert_to_tensor(self.sign)

        def grid(self):
            return Grid(np.ones((1, 1), np.float32), -1, 1)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
    parametrize(model.get_layer("a"), "kernel", Signs())
    assert [(row.name, row.parameters, row.distinct, row.bits) for row in layers(model)] == [("a", 12, 1, 2)]
