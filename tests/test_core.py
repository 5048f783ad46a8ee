"""The core's promises with the simplest method, magnitude pruning [11]: every kind of model and of training loop."""

import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import pruning, schedules
from tfcompress.core.masks import Mask
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain, chains, parametrize

pytestmark = pytest.mark.jax
ON_TF = keras.backend.backend() == "tensorflow"
tensorflow_only = pytest.mark.skipif(not ON_TF, reason="this way of training exists on TensorFlow only")


def values(tensor) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def xy(model, n=16, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, *model.input_shape[1:])).astype("float32"),
        rng.normal(size=(n, *model.output_shape[1:])).astype("float32"),
    )


def dense_model(optimizer="sgd"):
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(10, name="a"), keras.layers.Dense(4, name="b")])
    model.compile(optimizer, "mse")
    return model


def summary_text(model) -> str:
    lines: list[str] = []
    model.summary(print_fn=lambda text, **_: lines.append(text))
    return "\n".join(lines)


def zeros(array) -> int:
    return int((values(array) == 0).sum())


def test_c01_keras_3_model_as_it_comes():
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.compile("adam", "mse")
    before = summary_text(model)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    x, y = xy(model, n=20)
    small.fit(x, y, batch_size=1, verbose=0, callbacks=[tfcompress.Compression()])
    assert tfcompress.step(small) == 20
    plain = tfcompress.finalize(small, verbose=0)
    for layer in (plain.layers[0], plain.layers[2]):
        assert zeros(layer.kernel) == layer.kernel.numpy().size // 2
    assert [type(layer) for layer in plain.layers] == [keras.layers.Conv2D, keras.layers.Flatten, keras.layers.Dense]
    # The optimizer's row differs once it has slots; the layers' rows do not.
    assert summary_text(plain).split("Total params")[0] == before.split("Total params")[0]
    assert plain.count_params() == model.count_params()


def test_c02_schedule_longer_than_training():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64), keras.layers.Dense(10)])
    model.compile("sgd", "mse")
    method = pruning.Magnitude(sparsity=schedules.Cubic(0.0, 0.9, steps=1000), frequency=100)
    small = tfcompress.apply(model, method, verbose=0)
    x, y = xy(model, n=20)
    with pytest.warns(
        UserWarning, match=r"needs 1000 steps, but training will stop at step 200, where it reaches 0\.439"
    ):
        small.fit(x, y, batch_size=1, epochs=10, verbose=0, callbacks=[tfcompress.Compression()])
    with pytest.warns(UserWarning, match=r"reached 0\.439 of 0\.900 planned"):
        plain = tfcompress.finalize(small, verbose=0)
    assert "0.439 of 0.900 planned" in str(tfcompress.summary(plain))
    assert abs(1 - np.count_nonzero(plain.layers[0].kernel.numpy()) / 64**2 - 0.9 * (1 - 0.8**3)) < 1e-3


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # what Keras says of every generator's first epoch
def test_the_length_of_training_counts_from_its_first_epoch():
    """Epochs before `initial_epoch` are not run; a generator's length is known after its first epoch."""
    x, y = xy(dense_model())

    def small():
        return tfcompress.apply(
            dense_model(), pruning.Magnitude(sparsity=schedules.Linear(0, 0.5, steps=12)), verbose=0
        )

    with pytest.warns(UserWarning, match=r"will stop at step 4, where it reaches 0\.167"):
        small().fit(x, y, batch_size=8, epochs=4, initial_epoch=2, verbose=0, callbacks=[tfcompress.Compression()])
    # Long enough: any warning is an error in these tests.
    small().fit(x, y, batch_size=8, epochs=8, initial_epoch=2, verbose=0, callbacks=[tfcompress.Compression()])
    if ON_TF:
        import tensorflow as tf

        batches = tf.data.Dataset.from_generator(
            lambda: ((x[:8], y[:8]) for _ in range(2)),
            output_signature=(tf.TensorSpec((8, 12)), tf.TensorSpec((8, 4))),
        )
        with pytest.warns(UserWarning, match=r"will stop at step 6, where it reaches 0\.250"):
            small().fit(batches, epochs=3, shuffle=False, verbose=0, callbacks=[tfcompress.Compression()])


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adamw"])
@pytest.mark.paper(11)
def test_c03_zeros_stay_zero_between_updates(optimizer):
    made = {
        "momentum": keras.optimizers.SGD(0.1, momentum=0.9),
        "adam": keras.optimizers.Adam(0.01),
        "adamw": keras.optimizers.AdamW(0.01, weight_decay=0.1),
    }[optimizer]
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, use_bias=False)])
    model.compile(made, "mse")
    x, y = xy(model, n=40)
    model.fit(x, y, batch_size=8, verbose=0)  # momentum is not zero at the cut
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5, frequency=7), verbose=0)
    counts = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            counts.append(zeros(self.model.layers[0].kernel))

    small.fit(x, y, batch_size=1, verbose=0, callbacks=[tfcompress.Compression(), Watch()])
    assert counts == [2048] * 40
    assert not np.allclose(
        values(small.layers[0].kernel), values(model.layers[0].kernel) * (values(small.layers[0].kernel) != 0)
    )
    assert zeros(tfcompress.finalize(small, verbose=0).layers[0].kernel) == 2048


def test_c07_depthwise_is_not_skipped():
    model = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.DepthwiseConv2D(3), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    assert zeros(small.layers[0].kernel) == round(27 * 0.5)


def test_c12_the_baseline_is_left_alone():
    model = dense_model()
    x, y = xy(model)
    before = [np.array(w) for w in model.get_weights()]
    expected = model.predict(x, verbose=0)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.9), verbose=0)
    small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert np.array_equal(expected, model.predict(x, verbose=0))


# --- kinds of models


def test_nested_shared_and_two_inputs():
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, name="deep")], name="inner")
    shared = keras.layers.Dense(6, name="shared")
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    out = keras.layers.Dense(2, name="head")(keras.layers.Subtract()([inner(shared(a)), shared(b)]))
    model = keras.Model({"a": a, "b": b}, out)
    model.compile("sgd", "mse")
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    assert sorted(name for name, _ in chains(small)) == ["head.kernel", "inner/deep.kernel", "shared.kernel"]
    x = {"a": np.ones((4, 6), "float32"), "b": np.zeros((4, 6), "float32")}
    small.fit(x, np.ones((4, 2)), verbose=0, callbacks=[tfcompress.Compression()])
    plain = tfcompress.finalize(small, verbose=0)
    assert np.allclose(small.predict(x, verbose=0), plain.predict(x, verbose=0), rtol=1e-6)
    assert zeros(plain.get_layer("inner").get_layer("deep").kernel) == 18


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    def __init__(self, width=6, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.blocks = [keras.layers.Dense(width, name=f"block{i}") for i in range(2)]
        self.recurrent = keras.layers.GRU(width)
        self.head = keras.layers.Dense(2)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.recurrent(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


def test_subclassed_before_and_after_build(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(8, 3, 5)).astype("float32"), np.ones((8, 2), "float32")
    for build_first in (True, False):
        model = Subclassed()
        if build_first:
            model(x)
        small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
        small.compile("sgd", "mse")
        small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])
        names = {name.split("/")[-1].rsplit(".", 1)[1] for name, _ in chains(small)}
        assert len(chains(small)) == 5
        assert names == {"kernel", "recurrent_kernel"}
        assert all(zeros(c.view) == round(c.raw.numpy().size / 2) for _, c in chains(small))
        small.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert np.array_equal(small.predict(x, verbose=0), again.predict(x, verbose=0))
        plain = tfcompress.finalize(small, verbose=0)
        assert type(plain) is Subclassed
        assert np.allclose(plain.predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-6)


def test_every_common_layer(tmp_path):
    """Wrappers, cells and layers with insides train, save, and lose nothing."""
    layers = keras.layers
    for stack in (
        [keras.Input((6, 4)), layers.Bidirectional(layers.LSTM(3)), layers.Dense(2)],
        [
            keras.Input((6, 4)),
            layers.RNN(layers.StackedRNNCells([layers.GRUCell(3), layers.SimpleRNNCell(3)])),
            layers.Dense(2),
        ],
        [keras.Input((6, 4)), layers.TimeDistributed(layers.Dense(3)), layers.Flatten(), layers.Dense(2)],
        [keras.Input((6, 4)), layers.Conv1D(3, 2), layers.Conv1DTranspose(3, 2), layers.Flatten(), layers.Dense(2)],
        [keras.Input((4, 4, 4, 1)), layers.Conv3D(2, 2), layers.Flatten(), layers.Dense(2)],
        [keras.Input((6, 4)), layers.EinsumDense("abc,cd->abd", (6, 3)), layers.Flatten(), layers.Dense(2)],
        [keras.Input((3, 5, 5, 2)), layers.ConvLSTM2D(2, 2), layers.Flatten(), layers.Dense(2)],
    ):
        model = keras.Sequential(stack)
        model.compile("sgd", "mse")
        small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
        x, y = xy(small, n=4)
        small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])
        small.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert np.array_equal(values(small(x)), values(again(x)))
        assert [name for name, _ in chains(small)] == [name for name, _ in chains(again)]
        plain = tfcompress.finalize(small, verbose=0)
        assert np.array_equal(values(small(x)), values(plain(x)))


def test_frozen_layers_regularizers_and_constraints_stay():
    model = dense_model()
    model.layers[0].trainable = False
    model.layers[1].kernel.regularizer = keras.regularizers.L2(0.1)
    model.layers[1].kernel.constraint = keras.constraints.MaxNorm(0.5)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), in_place=True, verbose=0)
    assert small is model
    rows = {row.layer: row for row in tfcompress.summary(small).rows}
    assert rows["a"].action == "skipped"
    assert "frozen" in rows["a"].detail
    assert rows["b"].action == "done"
    assert not small.layers[0].trainable
    assert isinstance(small.layers[1].kernel._chain.raw.regularizer, keras.regularizers.L2)
    assert isinstance(small.layers[1].kernel._chain.raw.constraint, keras.constraints.MaxNorm)
    both = tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=0.5, include_frozen=True), verbose=0)
    assert len(chains(both)) == 2


def test_plain_checkpoint_goes_into_an_attached_model(tmp_path):
    model = dense_model()
    model.save_weights(tmp_path / "plain.weights.h5")
    small = tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=0.5), verbose=0)
    small.load_weights(tmp_path / "plain.weights.h5")
    kernel = values(model.layers[0].kernel)
    assert np.array_equal(values(small.layers[0].kernel), kernel * (values(small.layers[0].kernel) != 0))
    assert zeros(small.layers[0].kernel) == 60


# --- ways of training


def test_custom_train_step_and_run_eagerly():
    class Custom(keras.Model):
        def train_step(self, *args):
            return super().train_step(*args)

    x_in = keras.Input((12,))
    model = Custom(x_in, keras.layers.Dense(4)(x_in))
    model.compile("sgd", "mse", run_eagerly=ON_TF)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), in_place=True, verbose=0)
    x, y = xy(small)
    small.fit(x, y, batch_size=4, verbose=0, callbacks=[tfcompress.Compression()])
    assert tfcompress.step(small) == 4
    assert zeros(small.layers[1].kernel) == 24


@tensorflow_only
def test_gradient_tape_loop():
    import tensorflow as tf

    small = tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=schedules.Linear(0, 0.8, steps=4)), verbose=0)
    driver = tfcompress.Compression(small)
    optimizer = keras.optimizers.Adam(0.01)
    x, y = xy(small)
    for _ in range(4):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((small(x, training=True) - y) ** 2)
        optimizer.apply(tape.gradient(loss, small.trainable_variables), small.trainable_variables)
        driver.step()
    assert tfcompress.step(small) == 4
    assert zeros(small.layers[0].kernel) == 96


def test_gradient_accumulation_counts_updates():
    model = dense_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    x, y = xy(small)
    small.fit(x, y, batch_size=1, verbose=0, callbacks=[tfcompress.Compression()])
    assert tfcompress.step(small) == 8


@pytest.mark.parametrize("jit", [False, True])
def test_steps_per_execution_and_jit(jit):
    model = dense_model()
    model.compile("sgd", "mse", jit_compile=jit, steps_per_execution=3)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=schedules.Linear(0, 0.5, steps=15)), verbose=0)
    x, y = xy(small)
    small.fit(x, y, batch_size=1, verbose=0, callbacks=[tfcompress.Compression()])
    assert tfcompress.step(small) == 16
    assert zeros(small.layers[0].kernel) == 60
    attached = small.predict(x, verbose=0)
    plain = tfcompress.finalize(small, verbose=0)
    assert np.allclose(attached, plain.predict(x, verbose=0), rtol=1e-6, atol=1e-7)


@tensorflow_only
def test_mirrored_strategy():
    """Two logical CPU devices, which have to be made before TensorFlow starts: in a child process."""
    code = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np, tfcompress
from tfcompress import pruning, schedules
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(10), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=schedules.Linear(0, 0.5, steps=4)), in_place=True, verbose=0)
x, y = np.random.rand(16, 12), np.random.rand(16, 4)
small.fit(x, y, batch_size=4, verbose=0, callbacks=[tfcompress.Compression()])
masks = [link.mask.value for _, c in tfcompress.parametrization.chains(small) for link in c.links]
assert all(np.array_equal(*[v.numpy() for v in mask.values]) for mask in masks)
kernel = small.layers[0].kernel.numpy()
print("zeros", int((kernel == 0).sum()), tfcompress.step(small))
plain = tfcompress.finalize(small, verbose=0)
print("same", np.array_equal(plain.layers[0].kernel.numpy(), kernel))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-2:] == ["zeros 60 4", "same True"]


def test_resume_in_mid_schedule_is_bit_for_bit(tmp_path):
    def start():
        keras.utils.set_random_seed(7)
        method = pruning.Magnitude(sparsity=schedules.Cubic(0, 0.8, steps=12), frequency=2)
        return tfcompress.apply(dense_model(keras.optimizers.Adam(0.01)), method, verbose=0)

    whole = start()
    x, y = xy(whole)
    train = {"batch_size": 4, "shuffle": False, "verbose": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # each half is shorter than the schedule, as is meant
        whole.fit(x, y, epochs=3, callbacks=[tfcompress.Compression()], **train)
        half = start()
        half.fit(x, y, epochs=1, callbacks=[tfcompress.Compression()], **train)
    half.save(tmp_path / "half.keras")
    resumed = keras.models.load_model(tmp_path / "half.keras")
    assert tfcompress.step(resumed) == 4
    resumed.fit(x, y, epochs=3, initial_epoch=1, callbacks=[tfcompress.Compression()], **train)
    assert tfcompress.step(resumed) == 12
    for ours, theirs in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_early_stopping_and_checkpoint_bring_masks_back(tmp_path):
    small = tfcompress.apply(
        dense_model("adam"), pruning.Magnitude(sparsity=schedules.Linear(0, 0.8, steps=12)), verbose=0
    )
    x, y = xy(small)
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = float(epoch)  # the first epoch is the best
            seen.append([np.array(w) for w in self.model.get_weights()])

    stop = keras.callbacks.EarlyStopping("score", mode="min", patience=5, restore_best_weights=True)
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="score", mode="min", save_best_only=True)
    small.fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=[tfcompress.Compression(), Record(), stop, keep])
    for model in (small, keras.models.load_model(tmp_path / "best.keras")):
        assert all(np.array_equal(a, b) for a, b in zip(seen[0], model.get_weights(), strict=True))
        assert tfcompress.step(model) == 4
        assert zeros(model.layers[0].kernel) == round(120 * 0.8 * 4 / 12)


def test_logs_and_tensorboard(tmp_path):
    small = tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=0.5), verbose=0)
    x, y = xy(small)
    history = small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression(log_dir=tmp_path)]).history
    assert history["sparsity"] == [0.5]
    assert history["a.kernel:sparsity"] == [0.5]
    assert any(path.stat().st_size > 100 for path in tmp_path.iterdir())


def test_the_optimizer_keeps_its_settings():
    model = dense_model(keras.optimizers.SGD(0.123, momentum=0.7))
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    assert small.optimizer.get_config() == model.optimizer.get_config()


# --- bad input


def test_nothing_attached_is_said():
    model = dense_model()
    x, y = xy(model)
    with pytest.raises(CompressionError, match="Nothing is attached"):
        model.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])


def test_schedule_that_never_advanced_is_refused():
    small = tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=schedules.Cubic(0, 0.5, steps=5)), verbose=0)
    with pytest.raises(CompressionError, match="never advanced"):
        tfcompress.finalize(small, verbose=0)
    with pytest.warns(UserWarning, match="reached"):
        tfcompress.finalize(small, force=True, verbose=0)


def test_wrong_weight_layer_and_model():
    layer = keras.layers.Dense(3, name="d")
    layer.build((None, 2))
    with pytest.raises(CompressionError, match="Did you mean 'kernel'"):
        parametrize(layer, "kernal", Mask())
    assert type(layer) is keras.layers.Dense
    with pytest.raises(CompressionError, match="no sub-layer at 'cel'"):
        parametrize(keras.layers.LSTM(3), "cel.kernel", Mask())
    with pytest.raises(CompressionError, match="Expected a Keras 3 model"):
        tfcompress.apply(object(), pruning.Magnitude(sparsity=0.5))
    with pytest.raises(CompressionError, match="applies to no weight"):
        tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=0.5, layers="zzz"))
    mask = Mask()
    parametrize(layer, "kernel", mask)
    with pytest.raises(CompressionError, match=r"attached to d\.kernel already"):
        parametrize(layer, "kernel", mask)
    assert chain(layer).links == [mask]


def test_unknown_layers_in_an_unbuilt_model():
    class Odd(keras.layers.Layer):
        def call(self, x):
            return x

    with pytest.raises(CompressionError, match="not built"):
        tfcompress.apply(keras.Sequential([Odd()]), pruning.Magnitude(sparsity=0.5))


def test_lora_and_keras_quantization_are_refused():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))
    layer.enable_lora(2)
    with pytest.raises(CompressionError, match="LoRA"):
        parametrize(layer, "kernel", Mask())


def test_two_layers_with_one_variable_are_refused():
    model = dense_model()
    model.layers[1]._tracker.unlock()
    model.layers[1].extra = model.layers[0].kernel
    with pytest.raises(CompressionError, match="hold the same variable"):
        tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), in_place=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "between 0 and 1"),
        ({"sparsity": -0.1}, "between 0 and 1"),
        ({"sparsity": schedules.Cubic(0, 1.2, steps=3)}, "between 0 and 1"),
        ({}, "Give either"),
        ({"sparsity": 0.5, "quality": 1.0}, "Give either"),
        ({"sparsity": 0.5, "frequency": 0}, "at least 1"),
        ({"sparsity": 0.5, "scope": "model"}, "'layer' or 'global'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(CompressionError, match=message):
        pruning.Magnitude(**arguments)


# --- import


IMPORT = "import sys, tfcompress; assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules)"


def test_importing_is_light_and_registers_either_way(tmp_path):
    small = tfcompress.apply(dense_model(), pruning.Magnitude(sparsity=0.5), verbose=0)
    small.save(tmp_path / "m.keras")
    load = f"m = keras.models.load_model({str(tmp_path / 'm.keras')!r}); print(tfcompress.method.is_attached(m))"
    for order in ("import keras, tfcompress", "import tfcompress, keras"):
        done = subprocess.run([sys.executable, "-c", f"{order}; {load}"], capture_output=True, text=True, timeout=120)
        assert done.stdout.strip().endswith("True"), done.stderr[-2000:]
    assert subprocess.run([sys.executable, "-c", IMPORT], timeout=60).returncode == 0
