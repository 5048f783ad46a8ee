"""Batch statistics first, then frozen: the live form, the frozen one, and what is left after finalize."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import pruning
from tfcompress.parametrization import chain, chains
from tfcompress.quantization import QAT, calibrate
from tfcompress.quantization.batchnorm import FreezeBatchNorm, ScheduledBatchNormalization, scheduled

L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def network(kind="conv", **normalization):
    """Every kind of layer that a normalization is folded into, with moving statistics that are not the first ones."""
    keras.utils.set_random_seed(4)
    body = {
        "conv": lambda: [keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="k")],
        "depthwise": lambda: [
            keras.Input((6, 6, 3)),
            L.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="k"),
        ],
        "transposed": lambda: [keras.Input((5, 5, 3)), L.Conv2DTranspose(4, 3, use_bias=False, name="k")],
        "separable": lambda: [keras.Input((6, 6, 3)), L.SeparableConv2D(4, 3, name="k")],
        "conv1d": lambda: [keras.Input((8, 3)), L.Conv1D(4, 3, name="k")],
        "dense": lambda: [keras.Input((9,)), L.Dense(7, name="k")],
    }[kind]()
    rest = [
        L.BatchNormalization(momentum=0.8, name="n", **normalization),
        L.ReLU(name="r"),
        L.Flatten(),
        L.Dense(3, name="head"),
    ]
    model = keras.Sequential([*body, *rest])
    rng = np.random.default_rng(5)
    for variable in model.get_layer("n").weights + (
        [] if model.get_layer("k").bias is None else [model.get_layer("k").bias]
    ):
        low = 0.3 if "gamma" in variable.path or "variance" in variable.path else -1.0
        variable.assign(rng.uniform(low, 1.5, variable.shape))
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9), "mse")
    return model


def data(model, n=48):
    rng = np.random.default_rng(6)
    return (rng.normal(size=(n, *model.input_shape[1:])) * 2 + 0.3).astype("float32"), rng.normal(size=(n, 3)).astype(
        "float32"
    )


KINDS = ("conv", "depthwise", "transposed", "separable", "conv1d", "dense")


@pytest.mark.jax
@pytest.mark.parametrize("kind", KINDS)
def test_in_inference_it_is_the_folded_network(kind):
    model = network(kind)
    x, _ = data(model)
    now = tfcompress.apply(model, QAT(), data=x, verbose=0)
    later = tfcompress.apply(model, QAT(freeze_batchnorm=10), data=x, verbose=0)
    a, b = values(now(x)), values(later(x))
    assert np.abs(a - b).max() <= 1.01 * now.layers[-1].range.scale
    assert np.mean(np.abs(a - b) < 1e-6) > 0.9
    # A separable layer's bias lies on no grid of its own, but is folded.
    assert {name for name, _ in chains(later)} - {"k.bias"} == {name for name, _ in chains(now)} - {"k.bias"}
    assert len(scheduled(later)) == 1


@pytest.mark.jax
@pytest.mark.parametrize(
    ("kind", "normalization"),
    [*((kind, {}) for kind in KINDS), ("conv", {"scale": False}), ("dense", {"center": False})],
)
def test_live_it_is_batch_normalization_of_the_rounded_layer(kind, normalization):
    """The oracle divides the rounded kernel by gamma / sigma, which is what plain Keras would train with."""
    model = network(kind, **normalization)
    x, _ = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=10), data=x, verbose=0)
    layer, own = small.get_layer("k"), small.get_layer("n")
    folded = keras.Model(small.inputs[0], layer.output)
    before = values(folded(x, training=False))
    factor, offset = (values(v) for v in own.folded())
    bias = layer.bias.numpy()
    assert np.allclose(bias, offset, atol=1e-2)
    plain = (before.astype(np.float64) - bias) / factor
    axes = tuple(range(plain.ndim - 1))
    mean, variance = plain.mean(axes), plain.var(axes)
    gamma = 1.0 if own.gamma is None else values(own.gamma)
    beta = 0.0 if own.beta is None else values(own.beta)
    wanted = (plain - mean) / np.sqrt(variance + own.epsilon) * gamma + beta
    moved = values(own.moving_mean) * 0.8 + mean * 0.2, values(own.moving_variance) * 0.8 + variance * 0.2
    seen = values(own(before, training=True))
    assert np.allclose(seen, wanted, atol=2e-4)
    assert np.allclose(values(own.moving_mean), moved[0], atol=2e-2)
    assert np.allclose(values(own.moving_variance), moved[1], rtol=1e-3)


@pytest.mark.jax
def test_negative_and_zero_gammas():
    model = network("conv")
    model.get_layer("n").gamma.assign([-0.8, 0.0, 1.0, -1e-7])
    x, y = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=100), data=x, verbose=0)
    own = small.get_layer("n")
    y_folded = values(keras.Model(small.inputs[0], small.get_layer("k").output)(x))
    live = values(own(y_folded, training=True))
    assert np.allclose(live[..., 1], values(own.beta)[1], atol=1e-5)
    assert np.isfinite(live).all()
    assert np.corrcoef(y_folded[..., 0].ravel(), live[..., 0].ravel())[0, 1] > 0.999
    history = small.fit(x, y, epochs=3, verbose=0, callbacks=[tfcompress.Compression()]).history
    assert history["loss"][-1] < history["loss"][0]
    assert all(np.isfinite(w).all() for w in small.get_weights())


@pytest.mark.jax
def test_after_the_freeze_training_runs_the_folded_form():
    model = network("conv")
    x, y = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=4), data=x, verbose=0)
    own = small.get_layer("n")
    start = values(own.moving_mean).copy()
    small.fit(x[:24], y[:24], batch_size=8, shuffle=False, verbose=0, callbacks=[tfcompress.Compression()])
    assert float(values(own.updates)) == 3
    moving = values(own.moving_mean).copy()
    assert not np.allclose(start, moving)
    small.fit(x[:24], y[:24], batch_size=8, shuffle=False, verbose=0, callbacks=[tfcompress.Compression()])
    frozen = values(own.moving_mean).copy()
    assert not np.array_equal(moving, frozen), "the fourth step was still live"
    gamma, kernel = values(own.gamma).copy(), chain(small.get_layer("k"), "kernel").raw.numpy()
    small.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[tfcompress.Compression()])
    assert np.array_equal(frozen, values(own.moving_mean)), "statistics moved after the freeze"
    assert not np.array_equal(gamma, values(own.gamma)), "gamma trains on"
    assert not np.array_equal(kernel, chain(small.get_layer("k"), "kernel").raw.numpy())
    probe = np.random.default_rng(0).normal(size=(5, 4, 4, 4)).astype("float32")
    assert np.array_equal(values(own(probe, training=True)), probe)


@pytest.mark.jax
def test_moving_statistics_follow_those_of_plain_training():
    """With a learning rate of 0 both networks see the same batches; rounding to 8 bits is the tolerance."""
    model = network("conv")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=1000), data=x, verbose=0)
    bias = values(model.get_layer("k").bias)
    for one in (model, small):
        callbacks = [tfcompress.Compression()] if one is small else []
        one.fit(x, y, batch_size=16, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
    plain, own = model.get_layer("n"), small.get_layer("n")
    assert np.allclose(values(plain.moving_mean) - bias, values(own.moving_mean), atol=0.03)
    assert np.allclose(values(plain.moving_variance), values(own.moving_variance), rtol=0.03)


@pytest.mark.jax
def test_c10_saved_and_resumed_in_the_middle(tmp_path):
    def steps(model, a, b):
        x, y = data(model)
        model.fit(x[a:b], y[a:b], batch_size=8, shuffle=False, verbose=0, callbacks=[tfcompress.Compression()])

    def start():
        return tfcompress.apply(network("conv"), QAT(freeze_batchnorm=3), data=data(network("conv"))[0], verbose=0)

    whole, halves = start(), start()
    steps(whole, 0, 16)
    steps(whole, 16, 48)
    steps(halves, 0, 16)
    halves.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert float(values(again.get_layer("n").updates)) == 2
    steps(again, 16, 48)
    for ours, theirs in zip(whole.get_weights(), again.get_weights(), strict=True):
        assert np.allclose(ours, theirs, atol=1e-6)


@pytest.mark.jax
@pytest.mark.parametrize("kind", KINDS)
def test_finalize_gives_folded_plain_layers(kind):
    model = network(kind)
    x, y = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=4), data=x, verbose=0)
    small.fit(x, y, batch_size=8, verbose=0, callbacks=[tfcompress.Compression()])
    calibrate(small, x)  # averages lag behind a few steps that change much
    kernel, bias = chain(small.get_layer("k"), "kernel").numpy(), small.get_layer("k").bias.numpy()
    plain = tfcompress.finalize(small, verbose=0)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    assert not any("Normalization" in type(layer).__name__ for layer in plain.layers)
    assert np.array_equal(values(plain.get_layer("k").kernel), kernel)
    assert np.array_equal(values(plain.get_layer("k").bias), bias)
    assert set(plain._tfcompress_record.outputs) >= {"r", "head"}
    assert np.abs(values(small(x)) - values(plain(x))).max() < 0.2
    text = str(tfcompress.summary(plain))
    assert "frozen at step 4" in text


@pytest.mark.jax
def test_a_fraction_is_turned_into_steps_by_the_callback():
    method = QAT(freeze_batchnorm=0.5)
    [callback] = method.callbacks()
    assert isinstance(callback, FreezeBatchNorm)
    assert QAT(freeze_batchnorm=7).callbacks() == []
    model = network("dense")
    x, y = data(model)
    small = tfcompress.apply(model, method, data=x, verbose=0)
    small.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[tfcompress.Compression(), callback])
    assert float(values(small.get_layer("n").freeze_at)) == 9
    assert float(values(small.get_layer("n").updates)) == 18


@pytest.mark.jax
def test_what_cannot_be_folded_stays_and_is_named():
    """C6's leading normalization, and one behind a layer that is read twice."""
    i = keras.Input((6, 6, 2), name="image")
    x = L.BatchNormalization(name="leading")(i)
    shared = L.Conv2D(3, 1, name="c")(x)
    x = L.Add()([shared, L.BatchNormalization(name="second")(shared)])
    x = L.BatchNormalization(name="good")(L.Conv2D(3, 1, name="d")(x))
    model = keras.Model(i, L.GlobalAveragePooling2D()(x))
    for freeze in (0, 5):
        small = tfcompress.apply(model, QAT(freeze_batchnorm=freeze), data=np.ones((4, 6, 6, 2), "float32"), verbose=0)
        rows = {(row.layer, row.weight): row for row in reversed(tfcompress.summary(small).rows)}
        assert rows["leading", ""].action == "float"
        assert "follows an input" in rows["leading", ""].detail
        assert "read elsewhere" in rows["second", ""].detail
        assert "folded into d" in rows["good", ""].detail
        assert rows["leading", "output"].action == "done"


@pytest.mark.jax
def test_a_frozen_normalization_stays_frozen():
    model = network("conv")
    model.get_layer("n").trainable = False
    x, y = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=100), data=x, verbose=0)
    own = small.get_layer("n")
    before = [values(v).copy() for v in (own.gamma, own.beta, own.moving_mean, own.moving_variance)]
    small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])
    after = [values(v) for v in (own.gamma, own.beta, own.moving_mean, own.moving_variance)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.jax
def test_pruned_zeros_stay_zeros():
    model = network("conv")
    x, y = data(model)
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
    both = tfcompress.apply(small, QAT(freeze_batchnorm=4), data=x, verbose=0)
    both.fit(x, y, batch_size=8, verbose=0, callbacks=[tfcompress.Compression()])
    kernel = values(tfcompress.finalize(both, verbose=0).get_layer("k").kernel)
    assert (kernel == 0).mean() >= 0.5


@pytest.mark.jax
def test_the_layer_alone_trains_and_ends():
    layer = ScheduledBatchNormalization(freeze=1, momentum=0.0)
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32") * 3 + 1
    assert np.allclose(values(layer(x, training=True)), (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3), atol=1e-4)
    assert np.array_equal(values(layer(x, training=True)), x)


@pytest.mark.skipif(not ON_TF, reason="conversions are tested once")
def test_c27_the_file_is_the_simulated_network(tmp_path):
    model = network("conv")
    x, y = data(model)
    small = tfcompress.apply(model, QAT(freeze_batchnorm=6), data=x, verbose=0)
    small.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[tfcompress.Compression()])
    report = tfcompress.export.tflite(small, tmp_path / "m.tflite", "int8", calibration=x, verbose=0)
    assert report.verification.max_steps < 1.01
    assert not report.verification.normalization_left
