"""Normalization over a sample as means, differences and products, which all have integer kernels.

The factor and the shift of each channel are a depthwise convolution of width 1: one operator with a scale a channel and
an int32 bias, so that neither is rounded to a common grid.
"""

import keras

from tfcompress.graph.expansions.base import Expansion
from tfcompress.graph.expansions.builder import array

L, ops = keras.layers, keras.ops


class _Normalization(Expansion):
    """What they share."""

    def affine(self, gamma, beta, x):
        """gamma x + beta a channel of the last axis; the last operation has the layer's name."""
        b, layer, channels = self.b, self.layer, x.shape[-1]
        weights = [
            array(gamma).reshape(1, channels, 1) if len(x.shape) < 4 else array(gamma).reshape(1, 1, channels, 1)
        ]
        if beta is not None:
            weights.append(array(beta))
        config = {
            "kernel_size": 1, "use_bias": beta is not None,
            "depthwise_regularizer": getattr(layer, "gamma_regularizer", None),
            "bias_regularizer": getattr(layer, "beta_regularizer", None),
        }  # fmt: skip
        if len(x.shape) == 4:
            return b.call("", L.DepthwiseConv2D, x, weights, data_format="channels_last", **config)
        if len(x.shape) == 3:
            return b.call("", L.DepthwiseConv1D, x, weights, data_format="channels_last", **config)
        x = b.call("wide", L.Reshape, x, target_shape=(1, channels))
        x = b.call("affine", L.DepthwiseConv1D, x, weights, data_format="channels_last", **config)
        return b.call("", L.Reshape, x, target_shape=(channels,))

    def spread(self, x, axes):
        """(x - mean, mean of its square) over axes."""
        mean = self.b.op("mean", ops.mean, x, axis=axes, keepdims=True)
        centred = self.b.op("centred", ops.subtract, x, mean)
        return centred, self.power(centred, axes)

    def power(self, x, axes):
        """The mean square."""
        square = self.b.op("square", ops.multiply, x, x)
        return self.b.op("variance", ops.mean, square, axis=axes, keepdims=True)

    def divide(self, x, power, epsilon: float, last: bool):
        """x / sqrt(power + epsilon)."""
        power = self.b.op("floor", ops.add, power, float(epsilon))
        inverse = self.b.op("inverse", ops.rsqrt, power)
        return self.b.op("" if last else "normal", ops.multiply, x, inverse)


def _affine_obstacle(layer, call, gamma, beta) -> str:
    if len(call.inputs[0].shape) not in (2, 3, 4):
        return "its input has more than four axes"
    if gamma is None and beta is not None:
        return "a shift without a factor has no operator with a scale a channel"
    for name in ("gamma_constraint", "beta_constraint"):
        if getattr(layer, name, None) is not None:
            return f"it has a {name}"
    return ""


class LayerNorm(_Normalization):
    """Layer normalization (Ba et al. 2016) over any axes; gamma and beta need the last one alone."""

    @classmethod
    def obstacle(cls, layer, call):
        rank = len(call.inputs[0].shape)
        if layer.rms_scaling:
            return "rms_scaling is deprecated; use RMSNormalization"
        if any(call.inputs[0].shape[axis] is None for axis in layer.axis):
            return "an axis that it normalizes has no fixed size"
        has = layer.gamma is not None or layer.beta is not None
        if has and [axis % rank for axis in layer.axis] != [rank - 1]:
            return f"its gamma and beta go over axes {layer.axis}, not over the channels"
        return _affine_obstacle(layer, call, layer.gamma, layer.beta) if has else ""

    def __call__(self, inputs):
        layer = self.layer
        plain = self.folded or layer.gamma is None
        centred, variance = self.spread(self.b.float32(inputs), list(layer.axis))
        x = self.divide(centred, variance, layer.epsilon, last=plain)
        return x if plain else self.affine(layer.gamma, layer.beta, x)


class RMSNorm(_Normalization):
    """Root mean square normalization (Zhang and Sennrich 2019)."""

    @staticmethod
    def axes(layer, rank: int) -> list[int]:
        """The axes, counted from the front."""
        axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
        return [axis % rank for axis in axes]

    @classmethod
    def obstacle(cls, layer, call):
        rank = len(call.inputs[0].shape)
        if cls.axes(layer, rank) != [rank - 1]:
            return f"its scale goes over axes {layer.axis}, not over the channels"
        return _affine_obstacle(layer, call, layer.scale, None)

    def __call__(self, inputs):
        x = self.b.float32(inputs)
        axes = self.axes(self.layer, len(x.shape))
        x = self.divide(x, self.power(x, axes), self.layer.epsilon, last=self.folded)
        return x if self.folded else self.affine(self.layer.scale, None, x)


class GroupNorm(_Normalization):
    """Group normalization (Wu and He 2018): four axes suffice, batch, places, groups and channels of a group."""

    @classmethod
    def obstacle(cls, layer, call):
        shape = call.inputs[0].shape
        if layer.axis % len(shape) != len(shape) - 1:
            return f"its channels are on axis {layer.axis}, not on the last one"
        if None in shape[1:]:
            return "an axis beside the batch has no fixed size"
        return _affine_obstacle(layer, call, layer.gamma, layer.beta)

    def __call__(self, inputs):
        b, layer = self.b, self.layer
        x = b.float32(inputs)
        shape, channels = tuple(x.shape[1:]), x.shape[-1]
        places = 1
        for size in shape[:-1]:
            places *= size
        grouped = (places, layer.groups, channels // layer.groups)
        x = b.call("groups", L.Reshape, x, target_shape=grouped, dtype="float32")
        x = self.divide(*self.spread(x, [1, 3]), layer.epsilon, last=False)
        plain = layer.gamma is None
        x = b.call("" if plain else "channels", L.Reshape, x, target_shape=shape)
        return x if plain else self.affine(layer.gamma, layer.beta, x)


class UnitNorm(_Normalization):
    """Scaling to Euclidean length 1, as x / sqrt(sum of squares)."""

    @classmethod
    def obstacle(cls, layer, call):
        shape = call.inputs[0].shape
        axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
        return "an axis that it sums over has no fixed size" if any(shape[axis] is None for axis in axes) else ""

    def __call__(self, inputs):
        x = self.b.float32(inputs)
        axes = list(self.layer.axis) if isinstance(self.layer.axis, (list, tuple)) else [self.layer.axis]
        square = self.b.op("square", ops.multiply, x, x)
        total = self.b.op("total", ops.sum, square, axis=axes, keepdims=True)
        # The layer bounds 1 / length by 1e12; so does this, for a sum of 0.
        return self.divide(x, total, 1e-24, last=True)
