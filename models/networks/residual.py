"""The residual networks for CIFAR (He, Zhang, Ren, Sun, Deep residual learning for image recognition, 2015)."""

import keras

from models.networks.blocks import conv
from tfcompress.errors import CompressionError

SHORTCUTS = ("identity", "projection")


def resnet(
    depth: int,
    input_shape=(32, 32, 3),
    classes: int = 10,
    activation: str | None = None,
    width: int = 16,
    shortcut: str = "identity",
) -> keras.Model:
    """A CIFAR ResNet of 6 n + 2 layers: three stages of n blocks with `width`, 2 `width` and 4 `width` maps.

    Args:
        depth: 8, 14, 20, 32, 56, 110 or any other 6 n + 2.
        input_shape: of one image.
        classes: number of outputs.
        activation: of the output, None for logits.
        width: maps of the first stage.
        shortcut: where a stage begins, "identity" (every second pixel, missing maps filled with zeros; the paper's
            option A, no parameters) or "projection" (a strided 1x1 convolution with batch normalization; option B).

    Raises:
        CompressionError: `depth` is not 6 n + 2, or `shortcut` is unknown.

    Example:
        >>> from models.networks import resnet
        >>> resnet(8).get_layer("stage3_block1_add").output.shape
        (None, 8, 8, 64)
    """
    if depth < 8 or (depth - 2) % 6:
        raise CompressionError(f"A CIFAR ResNet has 6 n + 2 layers (8, 14, 20, 32, 56, 110, ...), not {depth}.")
    if shortcut not in SHORTCUTS:
        raise CompressionError(f"Unknown shortcut {shortcut!r}. Known: {', '.join(SHORTCUTS)}.")
    image = keras.Input(input_shape, name="image")
    x = conv(image, width, "stem")
    for stage in range(3):
        for number in range((depth - 2) // 6):
            strides = 2 if stage and not number else 1
            x = _block(x, width * 2**stage, strides, shortcut, f"stage{stage + 1}_block{number + 1}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name=f"resnet{depth}")


def _block(x, filters: int, strides: int, shortcut: str, name: str):
    """Two 3x3 convolutions, added to their input."""
    y = conv(x, filters, f"{name}_conv1", strides=strides)
    y = conv(y, filters, f"{name}_conv2", activation=None)
    missing = filters - x.shape[-1]
    if (strides > 1 or missing) and shortcut == "projection":
        x = conv(x, filters, f"{name}_shortcut", size=1, strides=strides, activation=None)
    elif strides > 1:
        x = keras.layers.MaxPooling2D(1, strides, padding="same", name=f"{name}_shortcut")(x)
        x = keras.ops.pad(x, [(0, 0), (0, 0), (0, 0), (0, missing)])
    x = keras.layers.Add(name=f"{name}_add")([x, y])
    return keras.layers.Activation("relu", name=f"{name}_relu")(x)
