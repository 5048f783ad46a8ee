"""Replaying a graph: names, structure, flags and values stay; replaced, inserted and dropped operations do what they say."""

import keras
import numpy as np
import pytest

from tfcompress.errors import CompressionError
from tfcompress.graph.calls import all_calls, calls, operations
from tfcompress.graph.rebuild import Weighted, insertion_points, rebuild

layers = keras.layers


def mesh():
    """Two inputs by name, operators, a layer called twice, nested Sequential and Functional with several outputs, split,
    attention with two tensor arguments, frozen layers, dict outputs."""
    image, vector = keras.Input((8, 8, 3), name="image"), keras.Input((4,), name="vector")
    x = layers.Conv2D(4, 3, padding="same", name="first")(image)
    x = keras.ops.relu6(x + 3.0) / 6.0
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = shared(shared(x))
    inner = keras.Sequential(
        [keras.Input((8, 8, 4), name="front"), layers.Conv2D(5, 1, name="c"), layers.ReLU(name="r")], name="inner"
    )
    at = keras.Input((8, 8, 5), name="at")
    two = keras.Model(at, {"a": layers.Conv2D(2, 1, name="c")(at), "b": keras.ops.mean(at, axis=(1, 2))}, name="two")
    y = two(inner(x))
    pooled = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D(name="pool")(y["a"]))
    doubled = layers.Lambda(lambda t: t * 2, name="double")(pooled)
    joined = layers.Concatenate(name="join")([doubled, y["b"], layers.Dense(3, name="side")(vector)])
    left, right = keras.ops.split(joined, [4], axis=-1)
    seen = layers.MultiHeadAttention(2, 3, name="attention")(
        layers.Reshape((4, 1), name="left")(left), value=layers.Reshape((6, 1), name="right")(right)
    )
    outputs = {
        "o1": layers.Dense(2, name="head1")(layers.Flatten(name="flat")(seen)),
        "o2": layers.Dense(3, name="head2", dtype="float32")(joined),
    }
    model = keras.Model({"image": image, "vector": vector}, outputs, name="mesh")
    model.get_layer("first").trainable = False
    two.get_layer("c").trainable = False
    return model


def batch(n=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(n, 8, 8, 3)).astype("float32"),
        "vector": rng.normal(size=(n, 4)).astype("float32"),
    }


def assert_same(left, right, tolerance=0.0):
    for a, b in zip(keras.tree.flatten(left), keras.tree.flatten(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance, rtol=0)


def test_a_copy_is_the_same_model_and_shares_nothing():
    model = mesh()
    before = model(batch())
    new = rebuild(model)
    assert_same(new(batch()), before)
    assert [call.key for call in all_calls(new)] == [call.key for call in all_calls(model)]
    assert new.output_names == model.output_names
    assert set(new(batch())) == {"o1", "o2"}
    assert not {id(v) for v in model.variables} & {id(v) for v in new.variables}
    assert not {id(op) for op in operations(model).values()} & {id(op) for op in operations(new).values()}
    assert [layer.trainable for layer in new._flatten_layers()] == [
        layer.trainable for layer in model._flatten_layers()
    ]
    assert [v.path.split("/")[-1] for v in new.trainable_variables] == [
        v.path.split("/")[-1] for v in model.trainable_variables
    ]
    for variable in new.variables:
        if "seed" not in variable.path:
            variable.assign(np.ones(variable.shape))
    assert_same(model(batch()), before)


def ranges(points, scale=1.0):
    return {point: layers.Rescaling(scale, name=point.split("/")[-1].replace("#", "_") + "_range") for point in points}


@pytest.mark.parametrize("reuse", [False, True])
def test_a_layer_behind_every_operation_and_out_again(reuse, tmp_path):
    model = mesh()
    before = {key: np.asarray(value) for key, value in model(batch()).items()}
    points = insertion_points(model)
    assert {"image", "add", "shared", "shared#1", "inner/front", "inner/c", "two/at", "two/mean", "head1"} <= set(
        points
    )
    new = rebuild(model, insert=ranges(points), reuse=reuse)
    assert (new is model) == reuse
    assert_same(new(batch()), before)
    assert new.output_names == ["head1", "head2"]
    assert type(new.get_layer("inner")) is keras.Sequential
    assert [layer.name for layer in new.get_layer("inner").layers] == ["front_range", "c", "c_range", "r", "r_range"]
    new.save(tmp_path / "new.keras")
    assert_same(keras.saving.load_model(tmp_path / "new.keras", safe_mode=False)(batch()), before)
    back = rebuild(new, drop=[path for path in operations(new) if path.endswith("_range")], reuse=reuse)
    assert_same(back(batch()), before)
    assert sorted(operations(back)) == sorted(operations(mesh())) or len(operations(back)) == len(operations(mesh()))
    back.save(tmp_path / "back.keras")
    assert_same(keras.saving.load_model(tmp_path / "back.keras", safe_mode=False)(batch()), before)


def test_each_call_of_a_shared_layer_has_its_own_point():
    x = keras.Input((3,), name="x")
    dense = layers.Dense(3, name="d", kernel_initializer="identity")
    model = keras.Model(x, dense(dense(x)))
    data = np.ones((1, 3), "float32")
    for key, factor in (("d", 2.0), ("d#1", 3.0), ("x", 5.0)):
        new = rebuild(model, insert={key: layers.Rescaling(factor, name="r")})
        np.testing.assert_allclose(np.asarray(new(data)), factor)
    both = rebuild(model, insert={"d": layers.Rescaling(2.0, name="a"), "d#1": lambda t: t + 1.0})
    np.testing.assert_allclose(np.asarray(both(data)), 3.0)


def test_reuse_keeps_objects_training_state_and_the_optimizer():
    model = mesh()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    target = {"o1": np.zeros((2, 2), "float32"), "o2": np.ones((2, 3), "float32")}
    model.fit(batch(), target, verbose=0)
    owned, slots = [id(v) for v in model.variables], [id(v) for v in model.optimizer.variables]
    new = rebuild(model, insert=ranges(insertion_points(model)), reuse=True)
    assert new is model
    assert sorted(id(v) for v in new.variables) == sorted(owned)
    assert [id(v) for v in new.optimizer.variables] == slots
    new.fit(batch(), target, verbose=0)
    assert int(new.optimizer.iterations.numpy()) == 2
    # A tap on the new graph, as users make it.
    tap = keras.Model(new.inputs, new.get_layer("join_range").output)
    assert tap([batch()["image"], batch()["vector"]]).shape == (2, 10)


def test_replacing_by_layer_chain_and_function():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")], name="s")
    data = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    kernel, bias = (np.asarray(w) for w in model.get_layer("a").get_weights())
    chain = [
        Weighted(layers.Dense(4, use_bias=False, name="a_1"), [np.eye(4)]),
        Weighted(layers.Dense(3, name="a"), [kernel, bias]),
    ]
    new = rebuild(model, replace={"a": chain})
    assert type(new) is keras.Sequential
    assert [layer.name for layer in new.layers] == ["a_1", "a", "b"]
    assert_same(new(data), model(data), 1e-6)
    twice = rebuild(model, replace={"a": lambda x: layers.Dense(3, name="z", kernel_initializer="zeros")(x) + 1.0})
    assert twice.name == "s"
    assert type(twice) is not keras.Sequential
    assert_same(twice(data), np.ones((5, 3)) @ np.asarray(model.get_layer("b").kernel), 1e-6)


def test_frozen_model_and_mixed_precision_stay():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3), layers.Dense(2, dtype="float32", name="f"), layers.Dense(1)], name="m"
    )
    model.trainable = False
    new = rebuild(model)
    assert [layer.dtype_policy.name for layer in new.layers] == ["mixed_float16", "float32", "mixed_float16"]
    assert not new.trainable
    assert not new.trainable_variables


def test_order_of_calls_is_kept_when_depth_says_otherwise():
    x = keras.Input((2,), name="x")
    d = layers.Dense(2, name="d")
    early = d(x)
    late = d(layers.ReLU(name="r2")(layers.ReLU(name="r1")(x)))
    model = keras.Model(x, [early, layers.ReLU(name="end")(layers.ReLU(name="e1")(late))])
    keys = {call.key: [t.name for t in call.inputs] for call in calls(model)}
    again = {call.key: [t._keras_history.operation.name for t in call.inputs] for call in calls(rebuild(model))}
    assert again["d"] == ["x"]
    assert again["d#1"] == ["r2"]
    assert set(keys) == set(again)


class Plain(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


class Silent(layers.Layer):
    def __init__(self, width, secret, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(width)
        self.width = width + len(secret)

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "width": self.width, "secret": []}


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda: Plain(name="mine"), {}, ["'mine'", "Plain", "functional API"]),
        (lambda: keras.Sequential([layers.Dense(2)], name="late"), {}, ["'late'", "not built", "keras.Input"]),
        (mesh, {"replace": {"frist": layers.ReLU()}}, ["'frist'", "Did you mean 'first'"]),
        (mesh, {"insert": {"shared#2": layers.ReLU()}}, ["no call 'shared#2'", "shared"]),
        (mesh, {"insert": {"split": layers.ReLU()}}, ["'split'", "2 outputs"]),
        (mesh, {"drop": ["nothing"]}, ["'nothing'"]),
        (lambda: keras.Sequential([keras.Input((2,)), Silent(2, "x", name="quiet")]), {}, ["'quiet'", "get_config"]),
        (
            lambda: keras.Sequential([keras.Input((2,)), layers.Dense(2, name="d")]),
            {"replace": {"d": Weighted(layers.Dense(2, name="e"), [np.zeros((3, 2))])}},
            ["'e'", "(3, 2)"],
        ),
    ],
)
def test_what_cannot_be_replayed_is_said(make, options, words):
    with pytest.raises(CompressionError) as error:
        rebuild(make(), **options)
    for word in words:
        assert word in str(error.value)


def test_subclass_of_functional_keeps_its_class():
    class Mine(keras.Model):
        def extra(self):
            return 7

    x = keras.Input((2,), name="x")
    model = Mine(x, layers.Dense(2, name="d")(x))
    assert rebuild(model).extra() == 7
    assert rebuild(model, insert={"d": layers.ReLU(name="r")}, reuse=True) is model
    assert model.extra() == 7
    assert [layer.name for layer in model.layers] == ["x", "d", "r"]
