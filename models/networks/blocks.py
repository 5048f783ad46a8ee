"""What several of the reference networks are made of."""

import keras

MOMENTUM = 0.9


def normalized(x, name: str, activation: str | None = "relu"):
    """Batch normalization and an activation behind the layer `name` that made `x`."""
    x = keras.layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_bn")(x)
    return x if activation is None else keras.layers.Activation(activation, name=f"{name}_{activation}")(x)


def conv(x, filters: int, name: str, size: int = 3, strides: int = 1, activation: str | None = "relu"):
    """A convolution without bias, then batch normalization and an activation."""
    x = keras.layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    return normalized(x, name, activation)


def depthwise(x, name: str, strides: int = 1, activation: str | None = "relu6"):
    """A 3x3 depthwise convolution without bias, then batch normalization and an activation."""
    x = keras.layers.DepthwiseConv2D(
        3, strides, padding="same", use_bias=False, depthwise_initializer="he_normal", name=name
    )(x)
    return normalized(x, name, activation)
