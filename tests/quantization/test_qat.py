"""8-bit quantization-aware training: what is simulated is what a file holds."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import pruning, quantization
from tfcompress.core.grids import IntegerGrid, fake_quantize, output_axes
from tfcompress.errors import CompressionError
from tfcompress.layers import OutputRange
from tfcompress.parametrization import chain, chains, parametrize
from tfcompress.quantization import placement
from tfcompress.quantization.qat import ranges

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def residual():
    """Every rule at once: folding into three kinds of layers, ReLU6, a residual sum, a concatenation, pooling, softmax."""
    i = keras.Input((12, 12, 3), name="image")
    x = L.ReLU(6, name="first")(L.BatchNormalization()(L.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(i)))
    y = L.ReLU(name="mid")(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", name="depth")(x)))
    z = L.ReLU(name="sum")(L.Add()([x, L.BatchNormalization()(L.Conv2D(8, 1, name="point")(y))]))
    z = L.Concatenate(name="both")([z, L.Conv2D(4, 1, activation="relu", name="side")(x)])
    z = L.GlobalAveragePooling2D(name="pooled")(L.MaxPooling2D()(L.Dropout(0.1)(z)))
    return keras.Model(i, L.Dense(5, activation="softmax", name="head")(z))


def perceptron():
    return keras.Sequential(
        [keras.Input((10,)), L.Dense(12, activation="tanh"), L.Dense(8, activation="sigmoid"), L.Dense(4)]
    )


def data(model, n=64, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n, *model.input_shape[1:])
    whole = any(isinstance(layer, L.Rescaling) for layer in model.layers)
    x = (rng.integers(0, 256, shape) if whole else rng.normal(size=shape)).astype("float32")
    return x, rng.normal(size=(n, *model.output_shape[1:])).astype("float32")


def trained(build, method=None, epochs=2):
    """A model that was trained plain, then quantization-aware."""
    keras.utils.set_random_seed(3)
    model = build()
    model.compile(keras.optimizers.Adam(0.003), "mse")
    x, y = data(model)
    model.fit(x, y, epochs=1, verbose=0)
    model = tfcompress.apply(model, method or quantization.QAT(), data=x, verbose=0)
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[tfcompress.Compression()])
    return model, x


# --- the grid


@pytest.mark.jax
@pytest.mark.parametrize("zero_point", [0, -128, 17])
def test_fake_quantize_is_what_numpy_says(zero_point):
    rng = np.random.default_rng(0)
    x, unit = rng.normal(size=500).astype("float32") * 3, np.float32(0.017)
    seen = values(fake_quantize(keras.ops.convert_to_tensor(x), unit, -128, 127, zero_point))
    codes = np.clip(np.rint(x / unit) + zero_point, -128, 127)
    assert np.array_equal(seen, ((codes - zero_point) * unit).astype("float32"))


def test_gradient_is_one_inside_and_zero_outside():
    if not ON_TF:
        pytest.skip("the tape is TensorFlow's")
    import tensorflow as tf

    x = tf.constant([-5.0, -0.3, 0.0, 0.2, 5.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fake_quantize(x, 0.1, -10, 10)
    assert tape.gradient(y, x).numpy().tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("layer", "shape", "units"),
    [
        (L.Dense(5), (None, 3), (1, 5)),
        (L.Conv2D(5, 3), (None, 6, 6, 2), (1, 1, 1, 5)),
        (L.DepthwiseConv2D(3, depth_multiplier=2), (None, 6, 6, 4), (1, 1, 4, 2)),
        (L.Conv2DTranspose(5, 3), (None, 6, 6, 2), (1, 1, 5, 1)),
        (L.EinsumDense("abc,cde->abde", (2, 3, 4)), (None, 2, 6), (1, 3, 4)),
        (L.EinsumDense("abcd,cde->abe", (2, 7)), (None, 2, 3, 4), (1, 1, 7)),
    ],
)
def test_one_scale_an_output_channel(layer, shape, units):
    layer.build(shape)
    kernel = values(layer.kernel)
    parametrize(layer, "kernel", IntegerGrid())
    grid = chain(layer).grid()
    assert grid.unit.shape == units
    kept = output_axes(layer, "kernel", kernel.ndim)
    largest = np.abs(kernel).max(axis=tuple(a for a in range(kernel.ndim) if a not in kept), keepdims=True)
    assert np.allclose(grid.unit, largest / 127, rtol=1e-6)
    codes = values(layer.kernel) / grid.unit
    assert np.allclose(codes, np.rint(codes), atol=1e-4)
    assert np.abs(codes).max() <= 127.001


@pytest.mark.jax
def test_c14_two_bits_are_three_values_with_equal_magnitudes():
    model = keras.Sequential([keras.Input((256,)), L.Dense(256, name="d")])
    model.compile("adam", "mse")
    small = tfcompress.apply(model, quantization.QuantizedWeights(bits=2, per_channel=False), verbose=0)
    x = np.random.default_rng(0).normal(size=(20, 256)).astype("float32")
    small.fit(x, x, batch_size=1, verbose=0, callbacks=[tfcompress.Compression()])
    plain = tfcompress.finalize(small, verbose=0)
    low, zero, high = np.unique(values(plain.get_layer("d").kernel))
    assert zero == 0
    assert low == -high


def test_weights_of_cells_get_their_scale_from_the_callback():
    model = keras.Sequential([keras.Input((4, 3)), L.LSTM(5)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    small = tfcompress.apply(model, quantization.QuantizedWeights(), verbose=0)
    before = {name: c.grid().unit.copy() for name, c in chains(small)}
    x = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32")
    small.fit(x, np.ones((8, 5)), batch_size=2, verbose=0, callbacks=[tfcompress.Compression()])
    for name, c in chains(small):
        assert not np.array_equal(before[name], c.grid().unit)
        assert np.allclose(c.grid().unit, np.abs(c.raw.numpy()).max(axis=0, keepdims=True) / 127, rtol=1e-6)


# --- ranges


@pytest.mark.jax
def test_range_follows_its_batches():
    layer = OutputRange(momentum=0.5)
    batch = np.array([[-1.0, 3.0]], "float32")
    assert np.array_equal(values(layer(batch)), batch), "before any data a range passes its input on"
    layer(batch, training=True)
    layer(np.array([[-2.0, 5.0]], "float32"), training=True)
    assert values(layer.minimum) == pytest.approx(-1.5)
    assert values(layer.maximum) == pytest.approx(4.0)
    assert layer.range.scale == pytest.approx(5.5 / 255)
    # The ends move by less than a step, so that 0.0 has a code of its own.
    assert layer.range.minimum == pytest.approx(-1.5, abs=layer.range.scale)
    assert values(layer(np.zeros((1, 2), "float32"))).tolist() == [[0, 0]]


@pytest.mark.parametrize("ends", [(0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)])
def test_ranges_always_hold_zero(ends):
    layer = OutputRange()
    layer.build()
    layer.set_ends(*ends)
    assert layer.range.minimum <= 0 <= layer.range.maximum
    assert -128 <= layer.range.zero_point <= 127


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (-3.0, 3.0), (-2.5, 2.6)])
def test_no_range_puts_its_ends_halfway_between_codes(ends):
    """With 255 steps from -1 to 1, 0.0 lies between two codes, and every pixel scaled to -1..1 too."""
    layer = OutputRange()
    layer.build()
    layer.set_ends(*ends)
    low, high = ends
    for end in ends:
        off = end / layer.range.scale
        assert abs(off - np.rint(off)) < 0.45
    assert layer.range.minimum <= low + layer.range.scale / 2
    assert layer.range.maximum >= high - layer.range.scale / 2
    assert layer.range.scale <= 1.005 * (high - low) / 255


def pixels():
    """Pixels 0..255 scaled to -1..1 in the network, as several keras.applications do."""
    i = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(8, 3, 2, "same", activation="relu", name="first")(L.Rescaling(1 / 127.5, -1.0, name="scaled")(i))
    return keras.Model(i, L.Dense(4, name="head")(L.Flatten()(x)))


def enlarger():
    """Depth to space beside a resized copy of the input."""
    i = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="first")(i)
    x = keras.ops.depth_to_space(L.Conv2D(12, 3, padding="same", name="last")(x), 2)
    return keras.Model(i, L.Add(name="sum")([x, L.Resizing(16, 16, name="resized")(i)]))


@keras.saving.register_keras_serializable("test_qat")
class Shift(L.Layer):
    """Adds a learned vector for each place."""

    def build(self, shape):
        self.offset = self.add_weight(name="offset", shape=tuple(shape[1:]), initializer="normal")

    def call(self, inputs):
        return inputs + self.offset


@keras.saving.register_keras_serializable("test_qat")
class Mix(L.Layer):
    """A product of one's own."""

    def build(self, shape):
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 6), initializer="normal")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.matrix)


def own_layers():
    """Layers of the user's own, one that adds its weight and one that multiplies by it."""
    return keras.Sequential(
        [keras.Input((6, 4), name="x"), Shift(name="shift"), Mix(name="mix"), L.Flatten(), L.Dense(3)]
    )


def test_placement():
    model, _ = trained(residual, epochs=0)
    rows = {(row.layer, row.weight): row for row in tfcompress.summary(model).rows}
    assert sum(row.action == "done" and "folded" in row.detail for row in rows.values()) == 3
    names = [layer.name for layer in ranges(model)]
    assert names == ["image_range", "first_range", "mid_range", "point_range", "both_range",
                     "pooled_range", "head_range", "head_softmax_range"]  # fmt: skip
    assert "shared with sum, side" in rows["both", "output"].detail
    assert "fixed" in rows["head_softmax", "output"].detail
    assert rows["head", "bias"].action == "done"


def test_no_range_where_the_file_has_no_tensor():
    """A constant sum moves into the bias before it, a clamp into the kernel, but not behind a transposed convolution."""
    i = keras.Input((8, 8, 2), name="x")
    x = L.Conv2D(4, 1, name="shifted")(i)
    x = keras.ops.relu6(x + 3.0)
    x = keras.ops.clip(L.Conv2D(4, 1, name="clipped")(x), -1, 1)
    x = L.ReLU(name="after")(L.Conv2DTranspose(4, 2, name="wide")(x))
    found = [key for point in placement.points(keras.Model(i, x)) for key in point.keys]
    assert "shifted" not in found
    assert "clipped" not in found
    assert not any(key.startswith("add") for key in found)
    assert {"x", "wide", "after"} <= set(found)
    assert len(found) == 5


def test_no_range_of_its_own_where_the_runtime_passes_the_input_on():
    """Resizing, depth to space and the largest over an axis copy or mix their input's numbers on its grid."""
    i = keras.Input((8, 8, 4), name="x")
    x = keras.ops.depth_to_space(i, 2)
    x = L.Resizing(8, 8, name="smaller")(x)
    x = keras.ops.max(x, axis=-1)
    found = [key for point in placement.points(keras.Model(i, x)) for key in point.keys]
    assert found == ["x"]


def test_a_mean_over_one_number_has_its_inputs_range():
    """As at the end of MobileNet at 32x32, whose last maps are 1x1; the bias behind is rounded by that range."""
    i = keras.Input((4, 4, 3), name="x")
    x = L.Conv2D(6, 4, activation="relu", name="last")(i)
    head = L.Dense(2, name="head")
    model = keras.Model(i, head(L.GlobalAveragePooling2D(name="pool")(x)))
    assert [key for point in placement.points(model) for key in point.keys] == ["x", "last", "head"]
    attached = tfcompress.apply(model, quantization.QAT(), data=np.ones((4, 4, 4, 3), "float32"), verbose=0)
    assert placement.input_range(attached.get_layer("head")).name == "last_range"
    wide = keras.Model(i, L.GlobalAveragePooling2D(name="pool")(L.Conv2D(6, 3, name="last")(i)))
    assert [key for point in placement.points(wide) for key in point.keys] == ["x", "last", "pool"]


# --- the whole road


def assert_simulated_equals_deployed(model, x, tmp_path, **kwargs):
    path = tmp_path / "model.tflite"
    report = tfcompress.export.tflite(model, path, precision="int8", calibration=x, **kwargs)
    simulated = model.predict(x, verbose=0)
    runner = tfcompress.export.Runner(path)
    deployed = runner(x)
    deployed = next(iter(deployed.values())) if isinstance(deployed, dict) else deployed
    last = ranges(model)[-1].range.scale
    steps = np.abs(np.asarray(deployed) - simulated) / last
    assert (steps < 1.01).mean() >= 0.98, f"{(steps < 1.01).mean():.3f} within one step"
    assert steps.max() < 2.01
    return report


@pytest.mark.skipif(not ON_TF, reason="conversions are tested once")
@pytest.mark.parametrize("build", [residual, perceptron, enlarger, own_layers, pixels])
def test_simulated_network_equals_the_file(build, tmp_path):
    model, x = trained(build)
    report = assert_simulated_equals_deployed(model, x, tmp_path)
    text = str(report)
    assert "as trained" in text


@pytest.mark.skipif(not ON_TF, reason="conversions are tested once")
def test_the_finalized_model_with_its_record_exports_the_same_file(tmp_path):
    model, x = trained(perceptron)
    tfcompress.export.tflite(model, tmp_path / "a.tflite", precision="int8", calibration=x)
    tfcompress.export.tflite(
        tfcompress.finalize(model, verbose=0), tmp_path / "b.tflite", precision="int8", calibration=x
    )
    assert (tmp_path / "a.tflite").read_bytes() == (tmp_path / "b.tflite").read_bytes()


@pytest.mark.jax
def test_pruned_zeros_survive_quantization():
    keras.utils.set_random_seed(0)
    model = residual()
    model.compile("adam", "mse")
    x, y = data(model)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])
    pruned = {name: values(c.view) == 0 for name, c in chains(small)}
    both = tfcompress.apply(small, quantization.QAT(), data=x, verbose=0)
    both.fit(x, y, epochs=2, verbose=0, callbacks=[tfcompress.Compression()])
    plain = tfcompress.finalize(both, verbose=0)
    for name, zeros in pruned.items():
        kernel = values(plain.get_layer(name.split(".")[0]).kernel)
        assert (kernel[zeros] == 0).all()


@pytest.mark.jax
def test_finalize_gives_plain_layers_and_the_ranges():
    model, x = trained(residual)
    plain = tfcompress.finalize(model, verbose=0)
    assert not any("Range" in type(layer).__name__ for layer in plain.layers)
    record = plain._tfcompress_record
    assert set(record.outputs) == {"image", "first", "mid", "point", "sum", "side", "both",
                                   "pooled", "head", "head_softmax"}  # fmt: skip
    assert record.outputs["both"] == record.outputs["sum"]
    assert len(record.weights) == 5
    assert type(record).from_json(record.to_json()).outputs == record.outputs
    # Rounding the outputs is all that the attached model does besides.
    assert np.abs(values(model(x)) - values(plain(x))).max() < 0.1


@pytest.mark.jax
def test_c10_save_and_load_while_attached(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization(), L.ReLU(), L.Flatten(), L.Dense(10)]
    )
    model.compile("adam", "mse")
    x, y = data(model, n=16)
    small = tfcompress.apply(model, quantization.QAT(), data=x, verbose=0)
    small.fit(x, y, batch_size=4, verbose=0, callbacks=[tfcompress.Compression()])
    small.save(tmp_path / "m.keras")
    np.savez(tmp_path / "m.npz", x=x, y=values(small(x, training=False)))
    code = f"""
import tfcompress, keras, numpy as np
a = np.load({str(tmp_path / "m.npz")!r})
m = keras.models.load_model({str(tmp_path / "m.keras")!r})
print(np.array_equal(keras.ops.convert_to_numpy(m(a["x"], training=False)), a["y"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.split()[-1:] == ["True"], done.stderr[-2000:]


@pytest.mark.jax
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_c09_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3), L.Flatten(), L.Dense(10, dtype="float32")])
    model.compile("adam", "mse")
    x, y = data(model, n=20)
    small = tfcompress.apply(model, quantization.QAT(), data=x, verbose=0)
    history = small.fit(x, y, batch_size=2, verbose=0, callbacks=[tfcompress.Compression()])
    assert np.isfinite(history.history["loss"]).all()
    plain = tfcompress.finalize(small, verbose=0)
    assert {w.dtype for w in plain.weights} == {"float32"}


def test_subclassed_models_train_weights_and_say_so():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.d = L.Dense(3, name="d")

        def call(self, x):
            return self.d(x) * 2.0

    model = Net()
    model(np.ones((1, 4), "float32"))
    small = tfcompress.apply(model, quantization.QAT(), in_place=True, verbose=0)
    text = str(tfcompress.summary(small))
    assert "IntegerGrid" in text
    assert "by calibration at export" in text


# --- bad input


def test_an_unbuilt_model_is_refused():
    with pytest.raises(CompressionError, match="not built"):
        tfcompress.apply(keras.Sequential([L.Dense(2)]), quantization.QAT(), verbose=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [(np.zeros((0, 10), "float32"), "no samples"), (np.full((4, 10), np.nan, "float32"), "NaN")],
)
def test_bad_calibration_data_is_refused(given, message):
    with pytest.raises(CompressionError, match=message):
        tfcompress.apply(perceptron(), quantization.QAT(), data=given, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"bits": 9}, "2 to 8"), ({"output_bits": 4}, "8 or 16"), ({"momentum": 1.0}, "0..1")],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(CompressionError, match=message):
        quantization.QAT(**arguments)
