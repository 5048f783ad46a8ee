"""Batch normalization folded: outputs equal, everything else left and listed."""

import keras
import numpy as np
import pytest

from tfcompress import parametrization
from tfcompress.graph.fold import fold_batchnorm, foldable
from tfcompress.pruning.magnitude import MagnitudeMask

layers = keras.layers


def stir(model, seed=0):
    """Statistics and affine weights as a trained model has them."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            for variable in layer.weights:
                low = 0.5 if "gamma" in variable.path or "variance" in variable.path else -1.0
                variable.assign(rng.uniform(low, 1.5, variable.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def relative(model, new, shape):
    data = np.random.default_rng(1).normal(size=shape).astype("float32")
    want, got = (np.asarray(keras.tree.flatten(m(data))[0]) for m in (model, new))
    return np.abs(want - got).max() / np.abs(want).max()


KINDS = [
    ((9, 3), layers.Conv1D, {"filters": 4, "kernel_size": 3}),
    ((9, 9, 3), layers.Conv2D, {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same"}),
    ((9, 9, 4), layers.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 2}),
    ((5, 5, 5, 2), layers.Conv3D, {"filters": 3, "kernel_size": 2}),
    ((9, 3), layers.Conv1DTranspose, {"filters": 4, "kernel_size": 3}),
    ((5, 5, 3), layers.Conv2DTranspose, {"filters": 4, "kernel_size": 3, "strides": 2}),
    ((9, 3), layers.DepthwiseConv1D, {"kernel_size": 3, "depth_multiplier": 2}),
    ((9, 9, 3), layers.DepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2}),
    ((9, 9, 3), layers.SeparableConv2D, {"filters": 5, "kernel_size": 3}),
    ((9, 3), layers.SeparableConv1D, {"filters": 5, "kernel_size": 3}),
    ((6,), layers.Dense, {"units": 5}),
    ((4, 6), layers.Dense, {"units": 5}),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "kind", "options"), KINDS, ids=[f"{k.__name__}-{len(s)}d" for s, k, _ in KINDS])
def test_folding_is_exact_to_1e_5(shape, kind, options, bias):
    model = stir(
        keras.Sequential(
            [
                keras.Input(shape),
                kind(use_bias=bias, name="c", **options),
                layers.BatchNormalization(name="n"),
                layers.ReLU(),
            ]
        )
    )
    new, rows = fold_batchnorm(model)
    assert [layer.name for layer in new.layers] == ["c", model.layers[2].name]
    assert type(new) is keras.Sequential
    assert rows[0].layer == "c"
    assert rows[0].bias_added is not bias
    assert relative(model, new, (3, *shape)) <= 1e-5
    clone = type(new.layers[0]).from_config(new.layers[0].get_config())
    clone.build((None, *shape))
    assert [v.shape for v in clone.weights] == [v.shape for v in new.layers[0].weights]


def test_reuse_keeps_the_layer_objects(tmp_path):
    model = stir(
        keras.Sequential(
            [
                keras.Input((6, 6, 2)),
                layers.Conv2D(3, 3, use_bias=False, name="c"),
                layers.BatchNormalization(scale=False, name="n"),
                layers.ReLU(name="r"),
            ]
        )
    )
    want, conv = fold_batchnorm(model)[0], model.get_layer("c")
    new, _ = fold_batchnorm(model, reuse=True)
    assert new is model
    assert new.get_layer("c") is conv
    data = np.random.default_rng(2).normal(size=(2, 6, 6, 2)).astype("float32")
    np.testing.assert_array_equal(np.asarray(new(data)), np.asarray(want(data)))
    new.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(
        np.asarray(keras.saving.load_model(tmp_path / "m.keras")(data)), np.asarray(new(data))
    )


def test_what_is_kept_is_listed_with_its_reason():
    x = keras.Input((8, 8, 3), name="x")
    y = layers.BatchNormalization(name="leading")(x)
    y = layers.Conv2D(4, 3, activation="relu", name="active")(y)
    y = layers.BatchNormalization(name="after_active")(y)
    wide = layers.Conv2D(4, 3, name="wide")(y)
    z = layers.BatchNormalization(name="read_twice")(wide)
    z = layers.Add(name="add")([z, wide])
    z = layers.BatchNormalization(name="after_add")(z)
    shared = layers.Conv2D(4, 1, name="shared")
    z = layers.BatchNormalization(name="after_shared")(shared(shared(z)))
    z = layers.BatchNormalization(axis=1, name="rows")(layers.Conv2D(4, 1, name="c")(z))
    z = layers.BatchNormalization(name="skipped")(layers.Conv2D(4, 1, name="d")(z))
    model = stir(keras.Model(x, layers.BatchNormalization(name="end")(layers.Conv2D(4, 1, name="last")(z))))
    new, rows = fold_batchnorm(model, skip=["d"])
    kept = {row.normalization: row.reason for row in rows if not row.layer}
    words = {
        "leading": "input", "after_active": "activation", "read_twice": "read elsewhere", "after_add": "'add'",
        "after_shared": "more than once", "rows": "axis 1", "skipped": "skip",
    }  # fmt: skip
    assert set(kept) == set(words)
    assert all(words[name] in reason for name, reason in kept.items())
    assert [row.layer for row in rows if row.layer] == ["last"]
    # The output's name survives its folding.
    assert new.output_names == ["end"]
    assert isinstance(new.get_layer("end"), layers.Identity)
    assert relative(model, new, (2, 8, 8, 3)) <= 1e-5


def test_nested_models_and_attached_layers():
    inner = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3, name="c"), layers.BatchNormalization(name="n")], name="inner"
    )
    x = keras.Input((6, 6, 2), name="x")
    y = layers.Flatten(name="f")(inner(x))
    model = stir(keras.Model(x, layers.Dense(2, name="d")(y)))
    new, rows = fold_batchnorm(model)
    assert rows[0].normalization == "inner/n"
    assert rows[0].layer == "inner/c"
    assert [layer.name for layer in new.get_layer("inner").layers] == ["c"]
    assert relative(model, new, (2, 6, 6, 2)) <= 1e-5
    parametrization.parametrize(inner.get_layer("c"), "kernel", parametrization.Parametrization())
    assert "fold before attaching" in foldable(model)[0].reason


@pytest.mark.parametrize("reuse", [False, True])
def test_masked_layers_are_folded_and_keep_their_zeros(reuse):
    plain = [
        keras.Input((6, 6, 2)),
        layers.Conv2D(3, 3, name="c"),
        layers.BatchNormalization(name="n"),
        layers.ReLU(name="r"),
    ]
    model = stir(keras.Sequential(plain))
    parametrization.parametrize(model.get_layer("c"), "kernel", MagnitudeMask(sparsity=0.5))
    data = np.random.default_rng(1).normal(size=(2, 6, 6, 2)).astype("float32")
    want, zeros = np.asarray(model(data)), np.asarray(model.get_layer("c").kernel) == 0
    new, rows = fold_batchnorm(model, reuse=reuse)
    assert rows[0].layer == "c"
    np.testing.assert_allclose(np.asarray(new(data)), want, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(new.get_layer("c").kernel) == 0, zeros)
    assert zeros.sum() == zeros.size // 2


def test_after_folding_mobilenet_no_normalization_is_left():
    model = stir(keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=4))
    new, rows = fold_batchnorm(model)
    assert all(row.layer for row in rows)
    assert len(rows) == 52
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in new.layers)
    assert relative(model, new, (2, 32, 32, 3)) <= 1e-5
