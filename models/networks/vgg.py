"""Plain stacks of 3x3 convolutions: VGG-16 and a small VGG for CIFAR, and the demo's net for 8x8 digits."""

import keras

from models.networks.blocks import conv, normalized

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _stack(x, stages):
    """Stages of convolutions, with a 2x2 maximum behind each."""
    number = 0
    for stage, filters in enumerate(stages, 1):
        for count in filters:
            number += 1
            x = conv(x, count, f"conv{number}")
        x = keras.layers.MaxPooling2D(2, name=f"pool{stage}")(x)
    return x


def vgg16(input_shape=(32, 32, 3), classes: int = 10, activation: str | None = None, width: float = 1.0) -> keras.Model:
    """VGG-16 for CIFAR: 13 convolutions and dense layers of 512 and `classes` units, with batch normalization.

    14 977 728 kernel weights and 313 463 808 multiply-accumulates at 32x32x3. The shape that Li et al. prune (Pruning
    filters for efficient ConvNets, 2016); the network is Simonyan and Zisserman's (2014).

    Args:
        input_shape: of one image, at least 32x32.
        classes: number of outputs.
        activation: of the output, None for logits.
        width: factor on the numbers of maps and units.

    Example:
        >>> from models.networks import vgg16
        >>> vgg16(width=0.125).get_layer("conv13").filters
        64
    """
    image = keras.Input(input_shape, name="image")
    x = _stack(image, [[max(1, round(count * width)) for count in stage] for stage in VGG16])
    x = keras.layers.Flatten(name="flatten")(x)
    units = max(1, round(512 * width))
    x = keras.layers.Dense(units, use_bias=False, kernel_initializer="he_normal", name="dense1")(x)
    x = normalized(x, "dense1")
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name="vgg16")


def vgg_small(input_shape=(32, 32, 3), classes: int = 10, activation: str | None = None) -> keras.Model:
    """A small VGG: convolutions of 32-32, 64-64 and 128-128 maps with batch normalization, then one dense layer.

    Args:
        input_shape: of one image, at least 8x8.
        classes: number of outputs.
        activation: of the output, None for logits.

    Example:
        >>> from models.networks import vgg_small
        >>> vgg_small().get_layer("logits").kernel.shape == (2048, 10)
        True
    """
    image = keras.Input(input_shape, name="image")
    x = _stack(image, ((32, 32), (64, 64), (128, 128)))
    x = keras.layers.Flatten(name="flatten")(x)
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name="vgg_small")


def digits_cnn(input_shape=(8, 8, 1), classes: int = 10, activation: str | None = None) -> keras.Model:
    """A small net for the 8x8 digits of scikit-learn: three convolutions and one hidden dense layer.

    Args:
        input_shape: of one image, at least 4x4.
        classes: number of outputs.
        activation: of the output, None for logits.

    Example:
        >>> from models.networks import digits_cnn
        >>> digits_cnn().output_shape
        (None, 10)
    """
    image = keras.Input(input_shape, name="image")
    x = conv(image, 16, "conv1")
    x = conv(x, 32, "conv2")
    x = keras.layers.MaxPooling2D(2, name="pool1")(x)
    x = conv(x, 32, "conv3")
    x = keras.layers.MaxPooling2D(2, name="pool2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(64, activation="relu", name="dense1")(x)
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name="digits_cnn")
