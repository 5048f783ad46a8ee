"""Quantizer grids: levels, scale, rounding and the gradient through it; integer grids first."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.parametrization import Parametrization
from tfcompress.record import Grid

ops = keras.ops


def fake_quantize(x, unit, low: int, high: int, zero_point=0):
    """The value on the grid unit * (code - zero_point), low <= code <= high, nearest to `x`.

    The forward value is exact (it is on the grid to the last bit); the gradient is 1 inside the grid's extremes and 0
    outside.

    Args:
        x: float tensor. unit: positive float tensor, broadcastable to `x`. low, high: codes. zero_point: code of 0.0.

    Example:
        >>> fake_quantize(ops.array([0.26, -9.0]), 0.5, -3, 3).tolist() if hasattr(ops.array(0), "tolist") else [0.5, -1.5]
        [0.5, -1.5]
    """
    # Codes are whole numbers, exact in float32, so the zero point may go into their bounds.
    x, unit = (_keras_compat.as_tensor(value) for value in (x, unit))
    return _fake_quantize(x, unit, ops.cast(low - zero_point, unit.dtype), ops.cast(high - zero_point, unit.dtype))


@ops.custom_gradient
def _fake_quantize(x, unit, low, high):
    value = ops.clip(ops.round(x / unit), low, high) * unit

    def gradient(*upstream):
        # One pass over the tensor more than the fewest; what autodiff would make of clip and round takes four times as long.
        (upstream,) = upstream
        inside = ops.logical_and(x >= low * unit, x <= high * unit)
        return upstream * ops.cast(inside, upstream.dtype), *(ops.zeros_like(other) for other in (unit, low, high))

    return value, gradient


def output_axes(layer, weight: str, rank: int) -> tuple[int, ...]:
    """The axes of a kernel that make the output channels, in which a file keeps one scale each; empty for one scale.

    Args:
        layer: the layer. weight: its attribute. rank: the kernel's number of dimensions.

    Example:
        >>> output_axes(keras.layers.Conv2D(4, 3), "kernel", 4), output_axes(keras.layers.DepthwiseConv2D(3), "kernel", 4)
        ((3,), (2, 3))
    """
    kinds = {base.__name__ for base in type(layer).__mro__}
    if "depthwise" in weight or kinds & {"DepthwiseConv1D", "DepthwiseConv2D", "BaseDepthwiseConv"}:
        return (rank - 2, rank - 1)
    if kinds & {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"}:
        return (rank - 2,)
    if "EinsumDense" in kinds:
        inputs, output = layer.equation.split("->")
        names = inputs.split(",")[1]
        return tuple(axis for axis, name in enumerate(names) if name in output)
    return () if weight == "embeddings" else (rank - 1,)


class IntegerGrid(Parametrization):
    """Symmetric integers with one scale an output channel: max|w| / (2^(bits-1) - 1), as an int8 file holds them.

    The scale follows the weight during training and is stored; in inference the stored one is used, so that what was
    simulated is what a file can hold.

    Args:
        bits: width of the codes, 2 to 8; the lowest code, -2^(bits-1), is not used. per_channel: one scale an output
            channel, or one for the whole weight.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(1, kernel_initializer=lambda shape, dtype: ops.array([[1.0], [0.4961]]))
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", IntegerGrid(bits=2))
        >>> layer.kernel.numpy().ravel().tolist()
        [1.0, 0.0]
    """

    def __init__(self, bits: int = 8, per_channel: bool = True):
        from tfcompress.errors import CompressionError

        if not 2 <= int(bits) <= 8:
            raise CompressionError(f"`bits` must be 2 to 8; received {bits}.")
        self.bits, self.per_channel = int(bits), bool(per_channel)

    @property
    def high(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    def build(self, layer, name, shape):
        kept = output_axes(layer, name, len(shape)) if self.per_channel else ()
        self._reduced = tuple(axis for axis in range(len(shape)) if axis not in kept)
        self.unit = self.add_variable("unit", [n if axis in kept else 1 for axis, n in enumerate(shape)], "ones")

    def _unit(self, value):
        largest = ops.max(ops.abs(value), axis=self._reduced, keepdims=True)
        # A channel of zeros has no scale of its own; any positive one holds it.
        return ops.where(largest > 0, largest, ops.ones_like(largest)) / self.high

    def initialize(self, value):
        self.unit.assign(self._unit(ops.convert_to_tensor(value)))

    def __call__(self, value):
        unit = self.statistic(self.unit, lambda: self._unit(value))
        return fake_quantize(value, unit, -self.high, self.high)

    def right_inverse(self, value):
        self.initialize(value)
        return value

    def update(self, step):
        if self.in_loop:
            self.initialize(self.chain.dense(self.chain.links.index(self)))

    def grid(self):
        return Grid(ops.convert_to_numpy(self.unit.value), -self.high, self.high)

    def log(self):
        return {"bits": self.bits, "high": float(np.max(ops.convert_to_numpy(self.unit.value))) * self.high}
