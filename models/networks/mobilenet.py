"""MobileNet V1 and V2 with their width multiplier, for large and small images."""

from collections.abc import Mapping, Sequence

import keras

from models.networks.blocks import conv, depthwise
from tfcompress.errors import CompressionError

V1_FILTERS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
# First the stem, then one stride a block (V1) or a stage (V2).
V1_STRIDES = {
    "imagenet": (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1),
    "small": (1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1),
}
# Expansion, maps, blocks of each stage.
V2_STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
V2_STRIDES = {"imagenet": (2, 1, 2, 2, 2, 1, 2, 1), "small": (1, 1, 1, 2, 2, 1, 2, 1)}


def mobilenet_v1(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    activation: str | None = None,
    width: float = 1.0,
    strides: str | Sequence[int] = "imagenet",
    nonlinearity: str = "relu6",
) -> keras.Model:
    """MobileNet V1: a stem and 13 depthwise-separable blocks (Howard et al., MobileNets, 2017).

    Padding is "same" everywhere; keras.applications.MobileNet pads strided layers at the lower right only, which differs
    where a map of odd size is halved.

    Args:
        input_shape: of one image.
        classes: number of outputs.
        activation: of the output, None for logits.
        width: the paper's alpha, a factor on the maps of every layer.
        strides: "imagenet", "small" (for 32x32: the stem and the last stage keep the resolution), or 14 numbers: the
            stem's and one a block.
        nonlinearity: "relu6" or "relu".

    Raises:
        CompressionError: `strides` does not fit.

    Example:
        >>> from models.networks import mobilenet_v1
        >>> mobilenet_v1((32, 32, 3), classes=10, width=0.25, strides="small").get_layer("pool").input.shape
        (None, 4, 4, 256)
    """
    stem, *blocks = _strides(strides, V1_STRIDES, 1 + len(V1_FILTERS))
    image = keras.Input(input_shape, name="image")
    x = conv(image, _scaled(32, width), "stem", strides=stem, activation=nonlinearity)
    for number, (filters, stride) in enumerate(zip(V1_FILTERS, blocks, strict=True), 1):
        x = depthwise(x, f"block{number}_depthwise", stride, nonlinearity)
        x = conv(x, _scaled(filters, width), f"block{number}_pointwise", size=1, activation=nonlinearity)
    return _head(image, x, classes, activation, "mobilenet_v1")


def mobilenet_v2(
    input_shape=(224, 224, 3),
    classes: int = 1000,
    activation: str | None = None,
    width: float = 1.0,
    strides: str | Sequence[int] = "imagenet",
) -> keras.Model:
    """MobileNet V2: inverted residuals with linear bottlenecks (Sandler et al., MobileNetV2, 2018).

    Args:
        input_shape: of one image.
        classes: number of outputs.
        activation: of the output, None for logits.
        width: factor on the maps of every layer, rounded to multiples of 8; the last layer never has fewer than 1280.
        strides: "imagenet", "small" (for 32x32: the stem and the second stage keep the resolution), or 8 numbers: the
            stem's and one a stage.

    Raises:
        CompressionError: `strides` does not fit.

    Example:
        >>> from models.networks import mobilenet_v2
        >>> mobilenet_v2((32, 32, 3), classes=10, width=0.35).get_layer("head").filters
        1280
    """
    stem, *stages = _strides(strides, V2_STRIDES, 1 + len(V2_STAGES))
    image = keras.Input(input_shape, name="image")
    x = conv(image, _eighths(32 * width), "stem", strides=stem, activation="relu6")
    for stage, ((expansion, filters, count), stride) in enumerate(zip(V2_STAGES, stages, strict=True), 1):
        for number in range(1, count + 1):
            name = f"stage{stage}_block{number}"
            x = _inverted_residual(x, expansion, _eighths(filters * width), stride if number == 1 else 1, name)
    x = conv(x, _eighths(1280 * max(width, 1.0)), "head", size=1, activation="relu6")
    return _head(image, x, classes, activation, "mobilenet_v2")


def _inverted_residual(x, expansion: int, filters: int, strides: int, name: str):
    """Expand (1x1), filter each map, project (1x1, no activation), and add to the input where shapes agree."""
    y = x
    if expansion > 1:
        y = conv(y, expansion * x.shape[-1], f"{name}_expand", size=1, activation="relu6")
    y = depthwise(y, f"{name}_depthwise", strides)
    y = conv(y, filters, f"{name}_project", size=1, activation=None)
    if strides == 1 and x.shape[-1] == filters:
        return keras.layers.Add(name=f"{name}_add")([x, y])
    return y


def _head(image, x, classes: int, activation: str | None, name: str) -> keras.Model:
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name=name)


def _strides(strides, known: Mapping[str, tuple[int, ...]], count: int) -> Sequence[int]:
    if isinstance(strides, str):
        if strides not in known:
            raise CompressionError(f"Unknown strides {strides!r}. Known: {', '.join(known)}, or {count} numbers.")
        return known[strides]
    if len(strides) != count or any(stride not in (1, 2) for stride in strides):
        raise CompressionError(f"`strides` has to be {count} numbers, each 1 or 2, not {list(strides)}.")
    return strides


def _scaled(filters: int, width: float) -> int:
    return max(1, int(filters * width))


def _eighths(filters: float) -> int:
    """The nearest multiple of 8, at least 8, and never more than a tenth below."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded
