"""Removing channels, structure by structure: the cut model equals the masked one."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.graph.nets import assert_cut_equals_masked, choose, distance, layers, sample, stir
from tfcompress.errors import CompressionError
from tfcompress.graph.channels import groups
from tfcompress.graph.surgery import changes, masked, remove_channels


def conv(x, filters, size=3, name=None, **options):
    return layers.Conv2D(filters, size, padding="same", name=name, **options)(x)


def normalized(x, name=None):
    return layers.ReLU()(layers.BatchNormalization(name=name)(x))


def test_c15_residual_and_concat():
    i = keras.Input((32, 32, 3), name="image")
    a = normalized(conv(i, 16, name="a"), "a_bn")
    b = layers.ReLU()(layers.Add(name="add")([layers.BatchNormalization(name="b_bn")(conv(a, 16, name="b")), a]))
    c = layers.BatchNormalization(name="c_bn")(conv(layers.Concatenate(name="cat")([a, b]), 24, 1, name="c"))
    model = stir(keras.Model(i, layers.Dense(10, name="d")(layers.GlobalAveragePooling2D()(c))))
    found = {group.root: group for group in groups(model)}
    assert {root: len(group) for root, group in found.items()} == {"a": 16, "c": 24, "d": 10}
    assert [member.path for member in found["a"].producers] == ["a", "b"]
    removals = {}
    for root in ("a", "c"):
        norms = np.abs(np.asarray(model.get_layer(root).kernel)).sum(axis=(0, 1, 2))
        removals[root] = np.argsort(norms)[: len(norms) // 2].tolist()
    cut = assert_cut_equals_masked(model, removals)
    # By hand: 8 = 16 / 2 and 12 = 24 / 2 channels are left.
    kernels = 9 * 3 * 8 + 9 * 8 * 8 + 16 * 12 + 12 * 10
    assert cut.count_params() == kernels + (8 + 8 + 12 + 10) + 4 * (8 + 8 + 12)
    kept = np.setdiff1d(np.arange(16), removals["a"])
    left = np.setdiff1d(np.arange(24), removals["c"])
    for name in ("a", "b"):
        np.testing.assert_array_equal(
            np.asarray(cut.get_layer(name).bias), np.asarray(model.get_layer(name).bias)[kept]
        )
    both = np.concatenate([kept, 16 + kept])
    np.testing.assert_array_equal(
        np.asarray(cut.get_layer("c").kernel), np.asarray(model.get_layer("c").kernel)[:, :, both][..., left]
    )
    # An oracle of its own: the same masks written by hand, as products in another functional model.
    mask, other = np.isin(np.arange(16), kept).astype("float32"), np.isin(np.arange(24), left).astype("float32")
    data = sample(model)
    get = model.get_layer
    xa = keras.ops.relu(get("a_bn")(get("a")(data), training=False)) * mask
    xb = keras.ops.relu(get("b_bn")(get("b")(xa), training=False) * mask + xa) * mask
    xc = get("c_bn")(get("c")(keras.ops.concatenate([xa, xb], -1)), training=False) * other
    want = np.asarray(get("d")(keras.ops.mean(xc, axis=(1, 2))))
    assert np.abs(np.asarray(cut(data)) - want).max() <= 1e-5


def shared_two_heads(data_format="channels_last"):
    shape = (12, 12, 3) if data_format == "channels_last" else (3, 12, 12)
    options = {"padding": "same", "data_format": data_format}
    axis = -1 if data_format == "channels_last" else 1
    i = keras.Input(shape, name="image")
    x = layers.Conv2D(8, 3, name="first", **options)(i)
    x = layers.ReLU()(layers.BatchNormalization(axis=axis, name="bn")(x))
    twice = layers.Conv2D(8, 3, name="twice", activation="relu", **options)
    x = twice(twice(x))
    x = layers.MaxPooling2D(data_format=data_format)(x)
    x = layers.PReLU(shared_axes=[1, 2] if axis == -1 else [2, 3], name="prelu")(x)
    one = layers.Dense(3, name="one")(layers.GlobalAveragePooling2D(data_format=data_format)(x))
    two = layers.Conv2D(6, 1, name="narrow", **options)(x)
    two = layers.Dense(4, name="two")(layers.Flatten(data_format=data_format, name="flat")(two))
    return stir(keras.Model(i, {"one": one, "two": two}))


def check_c17(data_format):
    model = shared_two_heads(data_format)
    found = {group.root: group for group in groups(model)}
    # The shared layer reads what it makes, so its input, its output and the first convolution go together.
    assert [member.path for member in found["first"].producers] == ["first", "twice"]
    assert "an output of the model" in found["one"].details()
    assert not found["one"].free
    assert not found["two"].free
    cut = assert_cut_equals_masked(model, {"first": [0, 3, 4, 7], "narrow": [1, 2, 5]})
    assert cut.get_layer("twice").kernel.shape == (3, 3, 4, 4)
    assert cut.get_layer("two").kernel.shape == (6 * 6 * 3, 4)
    assert set(cut.output) == {"one", "two"}


def test_c17_shared_layer_and_two_outputs():
    check_c17("channels_last")


def test_c17_channels_first():
    if keras.backend.backend() != "tensorflow":
        check_c17("channels_first")
        return
    # TensorFlow has no channels-first convolutions on a CPU.
    code = "from tests.graph.test_surgery import check_c17; check_c17('channels_first')"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def image(shape=(8, 8, 3)):
    return keras.Input(shape, name="image")


def head(x):
    return layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))


def grouped(i):
    x = conv(i, 8, name="c")
    x = conv(x, 12, groups=2, name="grouped")
    return head(conv(x, 24, groups=12, name="own", activation="relu"))


def mobile(i):
    x = normalized(conv(i, 8, name="c"))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="dw")(x)
    x = layers.ZeroPadding2D()(layers.SeparableConv2D(6, 3, depth_multiplier=2, name="sep", activation="relu6")(x))
    return head(normalized(x))


def decoder(i):
    x = conv(i, 8, strides=2, name="down")
    x = layers.UpSampling2D()(layers.Conv2DTranspose(6, 2, strides=2, name="up")(x))
    x = layers.Cropping2D(4)(x)
    return conv(layers.Concatenate()([x, conv(i, 5, name="skip")]), 2, 1, name="out")


def blocks(i):
    x = layers.Dense(4 * 4 * 6, activation="relu", name="fc")(layers.GlobalMaxPooling2D()(conv(i, 5, name="c")))
    x = layers.Reshape((4, 4, 6), name="r")(x)
    return head(layers.Conv2DTranspose(4, 3, name="t")(x))


def squeeze(i):
    x = normalized(conv(i, 8, name="c"))
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = conv(layers.ReLU()(conv(s, 4, 1, name="s1")), 8, 1, name="s2", activation="hard_sigmoid")
    return head(conv(layers.Multiply()([x, s]), 4, name="end"))


def attention_map(i):
    # A one-channel map that is stretched over all channels.
    x = conv(i, 8, name="c")
    return head(conv(x * conv(x, 1, 1, name="map", activation="sigmoid"), 4, name="end"))


def operators(i):
    x = keras.ops.relu6(conv(i, 8, name="c") + 3.0) / 6.0
    left, right = keras.ops.split(x, 2, axis=-1)
    y = keras.ops.concatenate([left * keras.ops.sigmoid(right), x[..., 2:7]], axis=-1)
    y = keras.ops.reshape(y, (-1, 64, 9))
    y = keras.ops.transpose(y, (0, 2, 1))
    return layers.Dense(3, name="head")(keras.ops.mean(y, axis=2))


def halves(i):
    x = conv(i, 9, name="c")
    a, b, c = keras.ops.split(x, [2, 5], axis=-1)
    return head(layers.Concatenate()([conv(a, 4, name="ca"), conv(b, 4, name="cb"), layers.Maximum()([c, c])]))


def shuffle(i):
    x = conv(i, 8, name="c")
    x = layers.Reshape((8, 8, 2, 4), name="r1")(x)
    x = layers.Reshape((8, 8, 8), name="r2")(layers.Permute((1, 2, 4, 3))(x))
    return head(conv(x, 4, 1, name="end"))


def norms(i):
    x = layers.LayerNormalization(name="ln")(conv(i, 8, name="c"))
    x = layers.GroupNormalization(2, name="gn")(conv(x, 8, name="d"))
    x = layers.GroupNormalization(-1, name="instance")(conv(x, 6, name="e"))
    x = layers.GroupNormalization(5, name="instance5")(conv(x, 5, name="f"))
    return head(x)


def nested(i):
    inner_input = keras.Input((8, 8, 6), name="inner_in")
    inner = keras.Model(inner_input, normalized(conv(inner_input, 6, name="ic")), name="inner")
    tail = keras.Sequential([keras.Input((8, 8, 6)), layers.Conv2D(4, 1, name="tc")], name="tail")
    return head(tail(inner(inner(conv(i, 6, name="c")))))


def pixel_shuffle(i):
    x = keras.ops.depth_to_space(conv(i, 12, name="c"), 2)
    return head(conv(keras.ops.space_to_depth(x, 4), 4, 1, name="end"))


def rows(i):
    # Concatenation along an axis that is not the channels': both parts lose the same ones.
    x = layers.Concatenate(axis=1)([conv(i, 6, name="c"), conv(i, 6, name="d")])
    return layers.Dense(3, name="head")(layers.Flatten()(x))


def channel_prelu(i):
    return layers.Dense(3, name="head")(layers.Flatten()(layers.PReLU(name="p")(conv(i, 4, name="c"))))


NETS = [grouped, mobile, decoder, blocks, squeeze, attention_map, operators, halves, shuffle, norms, nested, pixel_shuffle,
        rows, channel_prelu]  # fmt: skip


@pytest.mark.parametrize("net", NETS, ids=[net.__name__ for net in NETS])
def test_structure(net):
    i = image()
    model = stir(keras.Model(i, net(i), name=net.__name__))
    for share, seed in ((0.3, 0), (0.6, 1)):
        removals = choose(model, share, seed)
        assert removals
        assert_cut_equals_masked(model, removals)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: [keras.Input((9, 3)), layers.Conv1D(6, 3, name="c"), layers.MaxPooling1D(2), layers.ReLU(), layers.Flatten()], 6),
        (lambda: [keras.Input((5, 5, 5, 1)), layers.Conv3D(4, 2, name="c"), layers.AveragePooling3D(2), layers.Flatten()], 4),
        (lambda: [keras.Input((7,), dtype="int32"), layers.Embedding(9, 6, name="c"), layers.Conv1D(3, 2), layers.Flatten()], 6),
        (lambda: [keras.Input((7,)), layers.Dense(8, "relu", name="c"), layers.Dropout(0.5), layers.RepeatVector(3),
                  layers.Dense(4), layers.Flatten()], 8),
        (lambda: [keras.Input((None, None, 3)), layers.Conv2D(6, 3, name="c"), layers.Reshape((-1, 6)),
                  layers.GlobalAveragePooling1D()], 6),
    ],
    ids=["conv1d", "conv3d", "embedding", "dense", "unknown-size"],
)  # fmt: skip
def test_sequential_stays_sequential(build, size):
    model = stir(keras.Sequential([*build(), layers.Dense(2, name="last")]))
    cut = assert_cut_equals_masked(model, {"c": list(range(0, size, 2))})
    assert type(cut) is keras.Sequential
    assert [layer.name for layer in cut.layers] == [layer.name for layer in model.layers]


def test_mixed_precision_and_frozen_layers_stay():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="a"), layers.Dense(2, name="b", dtype="float32")])
    model.get_layer("a").trainable = False
    cut = remove_channels(model, {"a": [1, 2]})
    assert cut.get_layer("a").dtype_policy.name == "mixed_bfloat16"
    assert not cut.get_layer("a").trainable
    assert cut.get_layer("b").trainable
    assert distance(cut, masked(model, {"a": [1, 2]}), sample(model)) <= 1e-2


def test_group_prints_every_member_and_reason():
    i = image()
    x = conv(i, 6, name="c")
    model = keras.Model(i, layers.LSTM(2, name="lstm")(layers.Reshape((64, 6))(layers.ReLU()(x))))
    text = groups(model)[0].details()
    assert "Group 'c': 6 channels, 0 may be removed" in text
    assert "'lstm' (LSTM), which surgery cannot follow" in text
    assert "c.kernel" in text
    assert "axis 3  out" in text


def unknown(i):
    class Mine(layers.Dense):
        pass

    return head(Mine(3, name="mine")(conv(i, 4, name="c")))


@pytest.mark.parametrize(
    ("net", "removals", "words"),
    [
        (lambda i: head(conv(i, 4, name="c")), {"head": [0]}, ["'head'", "an output of the model"]),
        (lambda i: head(conv(i, 4, name="c")), {"c": [0, 1, 2, 3]}, ["'c'", "Keep at least one"]),
        (lambda i: head(conv(i, 4, name="c")), {"c": [4]}, ["'c'", "0 to 3"]),
        (lambda i: head(conv(i, 4, name="conv")), {"cnov": [0]}, ["'cnov'", "Did you mean 'conv'"]),
        (lambda i: head(layers.ReLU(name="act")(conv(i, 4, name="c"))), {"act": [0]}, ["'act'", "ReLU"]),
        (lambda i: head(layers.Add(name="add")([i, conv(i, 3, name="c")])), {"c": [0]}, ["'c'", "'add'"]),
        (lambda i: head(layers.Lambda(lambda t: t[..., ::2], name="odd")(conv(i, 4, name="c"))), {"c": [0]}, ["'odd'", "Lambda"]),
        (lambda i: head(layers.Softmax(name="soft")(conv(i, 4, name="c"))), {"c": [0]}, ["'soft'"]),
        (lambda i: head(conv(i, 4, name="c", activation="softmax")), {"c": [0]}, ["'c'", "mixes channels"]),
        (lambda i: head(conv(i, 4, name="c") * np.arange(4, dtype="float32")), {"c": [0]}, ["constant array"]),
        (lambda i: head(keras.ops.max(conv(i, 4, name="c"), axis=-1, keepdims=True)), {"c": [0]}, ["over channels"]),
        (unknown, {"c": [0]}, ["'mine'", "Mine"]),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_by_name(net, removals, words):
    i = image()
    model = keras.Model(i, net(i))
    for function in (remove_channels, masked):
        with pytest.raises(CompressionError) as error:
            function(model, removals)
        assert all(word in str(error.value) for word in words), str(error.value)


def test_a_layer_with_something_attached_is_refused():
    from tfcompress import parametrization

    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="a"), layers.Dense(2, name="b")])
    parametrization.parametrize(model.get_layer("b"), "kernel", parametrization.Parametrization())
    with pytest.raises(CompressionError, match="'b' has something of tfcompress attached"):
        remove_channels(model, {"a": [0]})


def test_floor_and_rounding():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(32, name="a"), layers.Dense(2, name="b")])
    order = list(range(31))
    assert remove_channels(model, {"a": order}).get_layer("a").units == 1
    cut = remove_channels(model, {"a": order[:13]}, round_to=8)
    assert cut.get_layer("a").units == 24
    # The last ones of the list are spared: 32 - 13 = 19 is rounded up to 24, so 0..7 go.
    np.testing.assert_array_equal(np.asarray(cut.get_layer("a").kernel), np.asarray(model.get_layer("a").kernel)[:, 8:])
    with pytest.raises(CompressionError, match="round_to"):
        remove_channels(model, {"a": [0]}, round_to=0)


def test_group_objects_slots_and_layer_names_mean_the_same():
    i = image()
    x = layers.Concatenate()([conv(i, 3, name="a"), conv(i, 2, name="b")])
    model = stir(keras.Model(i, head(layers.Add()([x, conv(i, 5, name="c")]))))
    (group, last) = groups(model)
    assert group.root == "a"
    assert len(group) == 5
    assert group.slots("b").tolist() == [3, 4]
    assert group.slots("c").tolist() == [0, 1, 2, 3, 4]
    data = sample(model)
    want = np.asarray(masked(model, {"c": [4]})(data))
    for removals in ({group: [4]}, {"b": [1]}, {"c": [4]}, {"a": [4]}):
        np.testing.assert_allclose(np.asarray(remove_channels(model, removals)(data)), want, atol=1e-5)
    assert [str(change) for change in changes(model, remove_channels(model, {"b": [1]}))] == [
        "b.kernel: (3, 3, 3, 2) -> (3, 3, 3, 1)", "b.bias: (2,) -> (1,)",
        "c.kernel: (3, 3, 3, 5) -> (3, 3, 3, 4)", "c.bias: (5,) -> (4,)", "head.kernel: (5, 3) -> (4, 3)",
    ]  # fmt: skip
    with pytest.raises(CompressionError, match="'b' without any"):
        remove_channels(model, {"b": [0, 1]})
    assert last.root == "head"


def test_the_callers_model_is_untouched_and_the_result_is_plain(tmp_path):
    i = image()
    model = stir(keras.Model(i, mobile(i)))
    before = [np.asarray(v) for v in model.variables]
    cut = remove_channels(model, choose(model))
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(before, model.variables, strict=True))
    assert all(type(layer).__module__.startswith("keras.") for layer in cut.layers)
    cut.save(tmp_path / "cut.keras")
    data = sample(model)
    np.testing.assert_array_equal(
        np.asarray(keras.saving.load_model(tmp_path / "cut.keras")(data)), np.asarray(cut(data))
    )
    cut.compile("sgd", "mse")
    cut.fit(data, np.zeros((2, 3), "float32"), verbose=0)
