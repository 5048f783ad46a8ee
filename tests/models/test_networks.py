"""The reference networks: exact counts from the papers, and equality with Keras's own MobileNets."""

import keras
import numpy as np
import pytest

import models
from models import networks
from tfcompress.errors import CompressionError


def kernels(model):
    """Weights in the kernels of convolutions and dense layers, as the papers count them."""
    return sum(int(np.prod(w.shape)) for w in model.weights if w.name in ("kernel", "depthwise_kernel"))


def kernel_macs(model):
    """Multiply-accumulates of plain convolutions and dense layers, from the shapes that Keras reports."""
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            pixels = int(np.prod(layer.output.shape[1:-1])) if len(layer.output.shape) == 4 else 1
            total += pixels * int(np.prod(layer.kernel.shape))
    return total


@pytest.mark.paper(18)
@pytest.mark.parametrize(
    ("name", "macs", "weights"),
    [
        ("vgg16", 313_463_808, 14_977_728),
        ("resnet56", 125_485_696, 848_944),
        ("resnet110", 252_887_680, 1_719_856),
    ],
)
def test_counts_of_the_filter_pruning_paper(name, macs, weights):
    model = models.build(name)
    assert kernels(model) == weights
    assert kernel_macs(model) == macs


@pytest.mark.paper(11)
def test_counts_of_the_lenets():
    assert models.build("lenet_300_100").count_params() == 266_610
    assert kernels(models.build("lenet_300_100")) == 266_200
    assert models.build("lenet5").count_params() == 431_080
    assert kernels(models.build("lenet5")) == 430_500


def test_every_name_builds_and_keeps_its_batch_norm_momentum():
    small = {"mobilenet_v1": {"input_shape": (32, 32, 3), "width": 0.25}}
    small["mobilenet_v2"] = {"input_shape": (32, 32, 3), "width": 0.35}
    small["vgg16"] = {"width": 0.125}
    for name in models.names():
        if name in ("resnet56", "resnet110"):
            continue
        model = models.build(name, classes=7, **small.get(name, {}))
        assert model.output_shape == (None, 7)
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        assert bool(norms) == (not name.startswith("lenet"))
        assert {layer.momentum for layer in norms} <= {0.9}


@pytest.mark.parametrize(
    ("name", "width", "reference", "size"),
    # 48 leads to maps of odd size; there Keras's V1 pads only at the lower right, and has smaller maps.
    [("mobilenet_v1", 0.25, "MobileNet", 32), ("mobilenet_v2", 0.35, "MobileNetV2", 48)],
)
def test_mobilenets_equal_those_of_keras(name, width, reference, size):
    ours = models.build(name, input_shape=(size, size, 3), width=width, classes=5, activation="softmax")
    theirs = getattr(keras.applications, reference)((size, size, 3), alpha=width, weights=None, classes=5)
    # Their V1 ends in a 1x1 convolution where ours has the same matrix in a dense layer.
    shapes = [tuple(w.shape) for w in ours.weights]
    assert shapes[:-2] == [tuple(w.shape) for w in theirs.weights[:-2]]
    rng = np.random.default_rng(0)
    values = [np.abs(rng.normal(0.2, 0.2, w.shape)).astype("float32") for w in theirs.weights]
    theirs.set_weights(values)
    ours.set_weights([value.reshape(shape) for value, shape in zip(values, shapes, strict=True)])
    # V2's Keras builder keeps momentum 0.999 and epsilon 1e-3, as ours: only inference is compared.
    x = rng.normal(size=(2, size, size, 3)).astype("float32")
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-6)


def test_resnet_identity_shortcut_takes_every_second_pixel_and_adds_empty_maps():
    model = models.build("resnet8", input_shape=(8, 8, 3), width=4)
    taps = keras.Model(
        model.input,
        [
            model.get_layer(name).output
            for name in ("stage1_block1_relu", "stage2_block1_conv2_bn", "stage2_block1_add")
        ],
    )
    x = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype("float32")
    before, branch, after = (np.asarray(value) for value in taps(x))
    expected = branch.copy()
    expected[..., :4] += before[:, ::2, ::2, :]
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)


def test_resnet_projection_shortcut_has_its_kernels():
    identity, projection = models.build("resnet8"), models.build("resnet8", shortcut="projection")
    assert kernels(projection) - kernels(identity) == 16 * 32 + 32 * 64


def test_save_and_load(tmp_path):
    model = models.build("resnet8", input_shape=(8, 8, 3))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


def test_strides_and_names_in_errors():
    small = models.build("mobilenet_v2", input_shape=(32, 32, 3), width=0.35, strides="small")
    assert small.get_layer("pool").input.shape[1:3] == (4, 4)
    custom = models.build("mobilenet_v1", input_shape=(32, 32, 3), width=0.25, strides=[1] * 13 + [2])
    assert custom.get_layer("pool").input.shape[1:3] == (16, 16)
    with pytest.raises(CompressionError, match="Did you mean 'lenet5'"):
        models.build("lenet-5")
    with pytest.raises(CompressionError, match="Did you mean 'classes'"):
        models.build("resnet20", clases=3)
    with pytest.raises(CompressionError, match="14 numbers"):
        models.build("mobilenet_v1", strides=[1, 2])
    with pytest.raises(CompressionError, match="6 n \\+ 2"):
        networks.resnet(21)


def test_digits_cnn_reaches_97_percent_in_seconds():
    from models import datasets

    keras.utils.set_random_seed(0)
    digits = datasets.load("digits")
    model = models.build("digits_cnn", activation="softmax")
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(digits.x_train, digits.y_train, batch_size=64, epochs=8, verbose=0)
    assert model.evaluate(digits.x_test, digits.y_test, verbose=0)[1] >= 0.97
