"""Keras's own ways of training, with quantization attached: callbacks, weights of samples, policies, strategies, nesting."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import quantization
from tfcompress.parametrization import chains
from tfcompress.quantization import QAT, Scheme
from tfcompress.quantization.ranges import ranges

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            L.Conv2D(4, 3, use_bias=False, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(name="relu"),
            L.Flatten(),
            L.Dense(3, activation="softmax", name="head"),
        ]
    )


def data(n=48):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8, 2)).astype("float32"), rng.integers(0, 3, n)


def attached(method=None, optimizer="adam", build=network, **compiling):
    keras.utils.set_random_seed(1)
    model = build()
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], **compiling)
    return tfcompress.apply(model, method or QAT(), data=data()[0], verbose=0)


def fit(model, callbacks=(), **arguments):
    x, y = data()
    return model.fit(x, y, batch_size=8, verbose=0, callbacks=[tfcompress.Compression(), *callbacks], **arguments)


def ends(model):
    return [one.range for one in ranges(model)]


# --- callbacks


@pytest.mark.jax
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(weight_range="lsq", output_range="lsq")], ids=["moving", "lsq"])
def test_early_stopping_brings_back_weights_with_their_scales_and_ranges(scheme):
    model = attached(QAT(scheme=scheme, freeze_batchnorm=4), optimizer=keras.optimizers.SGD(0.01))
    x, y = data()
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=1, restore_best_weights=True)
    ruin = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(model.optimizer, "learning_rate", 0.01 if epoch == 0 else 50.0)
    )
    history = fit(model, [stop, ruin], epochs=6, validation_data=(x, y)).history
    best = int(np.argmin(history["val_loss"]))
    assert best < len(history["val_loss"]) - 1, "the last epochs were no better"
    assert model.evaluate(x, y, verbose=0)[0] == pytest.approx(history["val_loss"][best], rel=1e-4)


@pytest.mark.jax
def test_checkpoints_and_reduced_rates(tmp_path):
    model = attached(QAT(freeze_batchnorm=3))
    x, _ = data()
    path = tmp_path / "{epoch}.keras"
    callbacks = [
        keras.callbacks.ModelCheckpoint(path),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=0, min_delta=10.0),
    ]
    fit(model, callbacks, epochs=3)
    assert float(values(model.optimizer.learning_rate)) < 0.001
    last = keras.models.load_model(tmp_path / "3.keras")
    assert np.array_equal(values(model(x)), values(last(x)))
    first = keras.models.load_model(tmp_path / "1.keras")
    assert ends(first) != ends(last)
    fit(first)


@pytest.mark.jax
def test_validation_runs_with_quantization_on():
    model = attached(QAT(bits=2))
    x, y = data()
    history = fit(model, epochs=1, validation_data=(x, y)).history
    assert history["val_loss"][0] == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-5)
    outputs = model.predict(x, verbose=0) * 256
    assert np.allclose(outputs, np.rint(outputs), atol=1e-3), "outputs lie on softmax's grid"
    before = ends(model)
    model.evaluate(x * 100, y, verbose=0)
    assert ends(model) == before, "evaluation moves no range"


# --- weights, steps


@pytest.mark.jax
def test_sample_and_class_weights():
    x, _ = data()
    for arguments in ({"sample_weight": np.linspace(0, 1, len(x))}, {"class_weight": {0: 1.0, 1: 0.0, 2: 2.0}}):
        model = attached()
        history = fit(model, epochs=2, **arguments).history
        assert np.isfinite(history["loss"]).all()
        assert history["loss"][1] < history["loss"][0]


@pytest.mark.jax
def test_several_steps_an_execution_are_the_same_training():
    one, many = attached(QAT(freeze_batchnorm=2)), attached(QAT(freeze_batchnorm=2), steps_per_execution=3)
    assert many.steps_per_execution == 3
    for model in (one, many):
        fit(model, shuffle=False)
    assert tfcompress.step(many) == 6
    for a, b in zip(one.get_weights(), many.get_weights(), strict=True):
        assert np.allclose(a, b, atol=1e-4)


# --- policies


@pytest.mark.jax
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_ranges_and_scales_are_float32_whatever_the_policy(policy):
    keras.config.set_dtype_policy(policy)
    method = QAT(scheme=Scheme(weight_range="lsq", output_range="lsq"), freeze_batchnorm=3)
    model = attached(method)
    history = fit(model, epochs=2).history
    assert np.isfinite(history["loss"]).all()
    assert {v.dtype for v in model.weights} <= {"float32", "int32"}
    grids = [c.grid() for _, c in chains(model) if c.grid() is not None]
    assert {grid.unit.dtype for grid in grids} == {np.dtype("float32")}
    plain = tfcompress.finalize(model, verbose=0)
    assert not any("Normalization" in type(layer).__name__ for layer in plain.layers)


@pytest.mark.skipif(not ON_TF, reason="tf.distribute is TensorFlow's")
def test_two_replicas_share_ranges_and_scales():
    """In a child process, since devices are split before TensorFlow begins."""
    code = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, tfcompress
from tfcompress.quantization import QAT, Scheme
from tfcompress.quantization.ranges import ranges
from tests.quantization.test_keras_ways import data, network, values
x, y = data()
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for method in (QAT(), QAT(scheme=Scheme(weight_range="lsq", output_range="lsq"), freeze_batchnorm=2)):
    with strategy.scope():
        model = network()
        model.compile("sgd", "sparse_categorical_crossentropy")
        model = tfcompress.apply(model, method, data=x, verbose=0)
    before = [one.range for one in ranges(model)]
    loss = model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[tfcompress.Compression()]).history["loss"]
    assert np.isfinite(loss).all()
    assert tfcompress.step(model) == 6
    assert [one.range for one in ranges(model)] != before
    for variable in model.variables:
        replicas = [v.numpy() for v in getattr(variable.value, "values", [])]
        assert len(replicas) == 2 and np.array_equal(*replicas), variable.path
    plain = tfcompress.finalize(model, verbose=0)
    assert np.isfinite(values(plain(x))).all()
print("both")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.stdout.split()[-1:] == ["both"], done.stderr[-3000:]


# --- frozen, nested and shared layers


@pytest.mark.jax
def test_frozen_layers_stay_frozen_and_get_ranges():
    def build():
        base = keras.Sequential(network().layers[:3], name="base")
        base.trainable = False
        return keras.Sequential(
            [keras.Input((8, 8, 2)), base, L.Flatten(), L.Dense(3, activation="softmax", name="head")]
        )

    method = QAT(scheme=Scheme(weight_range="lsq"))
    model = attached(method, build=build)
    inside = {name: c for name, c in chains(model) if name.startswith("base/")}
    assert inside
    before = {name: c.numpy() for name, c in inside.items()}
    rows = tfcompress.summary(model).rows
    assert any(row.layer.startswith("base/relu") and row.weight == "output" and row.action == "done" for row in rows)
    assert all(one.range is not None for one in ranges(model))
    fit(model)
    assert all(np.array_equal(before[name], c.numpy()) for name, c in inside.items())
    # Keras's own copy of a Sequential keeps the flag on its layers, not on itself.
    assert not any(layer.trainable for layer in model.get_layer("base").layers if "range" not in layer.name)


@pytest.mark.jax
def test_a_backbone_inside_a_model_is_quantized():
    """Transfer learning: a nested functional model with a skip connection, called with training=False."""

    def build():
        i = keras.Input((8, 8, 2), name="inside")
        x = L.BatchNormalization()(L.Conv2D(2, 3, padding="same", name="c")(i))
        backbone = keras.Model(i, L.ReLU(name="out")(L.Add(name="skip")([x, i])), name="backbone")
        o = keras.Input((8, 8, 2), name="outside")
        return keras.Model(o, L.Dense(3, activation="softmax", name="head")(L.Flatten()(backbone(o, training=False))))

    model = attached(build=build)
    names = {name for name, _ in chains(model)}
    assert {"backbone/c.kernel", "head.kernel", "head.bias"} <= names
    fit(model)
    assert None not in ends(model)
    record = tfcompress.finalize(model, verbose=0)._tfcompress_record
    assert {"outside", "backbone/out", "backbone/c", "head_softmax"} <= set(record.outputs)


@pytest.mark.jax
def test_a_shared_layer_has_one_grid_and_a_range_for_each_call():
    def build():
        i = keras.Input((8, 8, 2), name="image")
        shared = L.Dense(2, activation="relu", name="shared")
        x = shared(shared(i))
        return keras.Model(i, L.Dense(3, activation="softmax", name="head")(L.Flatten()(x)))

    model = attached(build=build)
    assert [name for name, _ in chains(model)].count("shared.kernel") == 1
    assert {"shared_range", "shared_1_range"} <= {one.name for one in ranges(model)}
    rows = {(row.layer, row.weight): row for row in tfcompress.summary(model).rows}
    assert "no single trained range" in rows["shared", "bias"].detail
    fit(model)
    record = tfcompress.finalize(model, verbose=0)._tfcompress_record
    assert record.outputs["shared"] != record.outputs["shared#1"]


# --- reports


@pytest.mark.jax
def test_a_range_that_was_never_updated_is_told():
    model = tfcompress.apply(network(), QAT(), verbose=0)
    with pytest.warns(UserWarning, match=r"3 of 4 output ranges were never updated \(.*: give `data` to apply"):
        tfcompress.finalize(model, verbose=0)


@pytest.mark.jax
def test_calibrating_again_widens_and_says_what_is_wrong():
    model = attached()
    before = ranges(model)[0].range
    quantization.calibrate(model, data()[0] * 2)
    assert ranges(model)[0].range.maximum > before.maximum * 1.9
