"""Quantizer grids: levels, scale, rounding and the gradient through it; integer grids first."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.core import range_estimators
from tfcompress.errors import CompressionError, nearest
from tfcompress.parametrization import Parametrization
from tfcompress.record import Grid

ops = keras.ops

# Where a weight's scale comes from; "lsq" is a class of its own.
WEIGHT_RANGES = ("minmax", "mse", "lsq")
# The least that a learned step keeps of its first value.
_LEAST = 1e-3


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
        weight_range: "minmax" for the largest magnitude, or "mse" for the share of it that rounds the weight with the least
            squared error, found when it is attached.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(1, kernel_initializer=lambda shape, dtype: ops.array([[1.0], [0.4961]]))
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", IntegerGrid(bits=2))
        >>> layer.kernel.numpy().ravel().tolist()
        [1.0, 0.0]
    """

    def __init__(self, bits: int = 8, per_channel: bool = True, weight_range: str = "minmax"):
        if not 2 <= int(bits) <= 8:
            raise CompressionError(f"`bits` must be 2 to 8; received {bits}.")
        if weight_range not in WEIGHT_RANGES[:2]:
            known = WEIGHT_RANGES[:2]
            raise CompressionError(
                f"`weight_range` must be one of {', '.join(known)}. {nearest(str(weight_range), known)}"
            )
        self.bits, self.per_channel, self.weight_range = int(bits), bool(per_channel), weight_range

    @property
    def high(self) -> int:
        """The largest code."""
        return 2 ** (self.bits - 1) - 1

    def build(self, layer, name, shape):
        kept = output_axes(layer, name, len(shape)) if self.per_channel else ()
        self._kept = tuple(kept)
        self._reduced = tuple(axis for axis in range(len(shape)) if axis not in kept)
        units = [n if axis in kept else 1 for axis, n in enumerate(shape)]
        self.unit = self.add_variable("unit", units, "ones")
        self.share = self.add_variable("share", units, "ones") if self.weight_range == "mse" else None

    def _unit(self, value):
        largest = ops.max(ops.abs(value), axis=self._reduced, keepdims=True)
        # A channel of zeros has no scale of its own; any positive one holds it.
        full = ops.where(largest > 0, largest, ops.ones_like(largest)) / self.high
        return full if self.share is None else full * _keras_compat.as_tensor(self.share)

    def step(self):
        """The distance of two codes, a tensor of the weight's rank."""
        return _keras_compat.as_tensor(self.unit)

    def initialize(self, value):
        if self.share is not None:
            self.share.assign(np.ones(self.share.shape, "float32"))
            full = ops.convert_to_numpy(self._unit(ops.convert_to_tensor(value)))
            best = range_estimators.mse_units(ops.convert_to_numpy(value), self.high, self._kept)
            self.share.assign(np.clip(best / full, 0.0, 1.0))
        self.unit.assign(self._unit(ops.convert_to_tensor(value)))

    def __call__(self, value):
        unit = self.statistic(self.unit, lambda: self._unit(value))
        return fake_quantize(value, unit, -self.high, self.high)

    def right_inverse(self, value):
        if self.share is None or not self._holds(value):
            self.initialize(value)
        return value

    def _holds(self, value) -> bool:
        """Whether values lie on the present grid."""
        codes = np.asarray(value, np.float64) / ops.convert_to_numpy(self.step())
        return bool((np.abs(codes - np.rint(codes)) < 1e-3).all() and (np.abs(codes) < self.high + 1e-3).all())

    def update(self, step):
        if self.in_loop:
            value = self.chain.dense(self.chain.links.index(self))
            self.unit.assign(self._unit(ops.convert_to_tensor(value)))

    def grid(self):
        return Grid(ops.convert_to_numpy(self.step()), -self.high, self.high)

    def log(self):
        return {"bits": self.bits, "high": float(np.max(ops.convert_to_numpy(self.step()))) * self.high}


class LearnedGrid(IntegerGrid):
    """Symmetric integers whose scales are learned with the network: learned step size quantization (LSQ).

    The scale begins at 2 mean|w| / sqrt(Q), Q = 2^(bits-1) - 1. Its gradient is that of the rounded weight with rounding
    passed through, divided by sqrt(N Q) for the N weights that share it (Esser et al., Learned step size quantization, ICLR
    2020, equations 3 to 5). Kept is the scale's change relative to its first value, with the gradient that makes a step of
    SGD the paper's; for optimizers that normalize gradients, such as Adam, steps of the scale are then relative too, where
    a step of 0.001 would be more than the whole scale.

    Args:
        bits: width of the codes, 2 to 8. per_channel: one scale an output channel, or one for the whole weight.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(1, kernel_initializer=lambda shape, dtype: ops.array([[1.0], [0.5]]))
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", LearnedGrid(bits=2))
        >>> layer.kernel.numpy().ravel().tolist()
        [1.5, 0.0]
    """

    def __init__(self, bits: int = 8, per_channel: bool = True):
        super().__init__(bits, per_channel)

    def build(self, layer, name, shape):
        super().build(layer, name, shape)
        self.change = self.add_variable("change", self.unit.shape, "zeros", trainable=True)
        sharing = int(np.prod(shape)) // int(np.prod(self.unit.shape))
        self._damping = float(1 / np.sqrt(sharing * self.high))

    def _unit(self, value):
        mean = ops.mean(ops.abs(value), axis=self._reduced, keepdims=True)
        return ops.where(mean > 0, mean, ops.ones_like(mean)) * (2 / self.high**0.5)

    def step(self):
        return learned_step(self.unit, self.change)

    def initialize(self, value):
        self.unit.assign(self._unit(ops.convert_to_tensor(value)))
        self.change.assign(np.zeros(self.change.shape, "float32"))

    def __call__(self, value):
        first = _keras_compat.as_tensor(self.unit)
        return learn_quantize(value, self.step(), self._damping / (first * first), -self.high, self.high)

    def right_inverse(self, value):
        if not self._holds(value):
            self.initialize(value)
        return value

    def update(self, step):
        """The scale is the optimizer's to change."""


def learned_step(first, change):
    """A step from its first value and its relative change, which is kept from turning it over.

    Args:
        first, change: variables or tensors of one shape.

    Example:
        >>> float(learned_step(ops.array(0.5), ops.array(1.0)))
        1.0
    """
    # A sum, then a product: nothing that a compiler could contract, so that it is the same to the bit everywhere.
    return _keras_compat.as_tensor(first) * ops.maximum(1.0 + _keras_compat.as_tensor(change), _LEAST)


def learn_quantize(x, unit, damping, low: int, high: int):
    """`fake_quantize` with zero point 0 and LSQ's gradient for the unit.

    d/dunit is code - x / unit inside the grid and the outermost code outside, summed over the values that share it, times
    `damping`; d/dx is 1 inside and 0 outside.

    Args:
        x: float tensor. unit: positive tensor of the rank of `x`, or a scalar. damping: factor of the unit's gradient, of
            its shape. low, high: outermost codes.
    """
    x, unit, damping = (_keras_compat.as_tensor(value) for value in (x, unit, damping))
    low, high = ops.cast(low, unit.dtype), ops.cast(high, unit.dtype)
    return _learn_quantize(x, unit, damping, low, high)


@ops.custom_gradient
def _learn_quantize(x, unit, damping, low, high):
    wanted = x / unit
    codes = ops.clip(ops.round(wanted), low, high)

    def gradient(*upstream):
        (upstream,) = upstream
        inside = ops.logical_and(wanted >= low, wanted <= high)
        step = ops.where(inside, codes - wanted, codes) * upstream
        passed = upstream * ops.cast(inside, upstream.dtype)
        return passed, damping * summed_like(step, unit), *(ops.zeros_like(other) for other in (damping, low, high))

    return codes * unit, gradient


def summed_like(x, like):
    """A tensor summed over the axes on which another of its rank (or a scalar) has one entry."""
    if not len(like.shape):
        return ops.sum(x)
    axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1)
    return ops.sum(x, axis=axes, keepdims=True) if axes else x


def grid_of(bits: int, per_channel: bool, weight_range: str) -> IntegerGrid:
    """The parametrization for a scheme's words.

    Example:
        >>> grid_of(4, True, "lsq"), grid_of(8, False, "mse")
        (LearnedGrid(bits=4), IntegerGrid(per_channel=False, weight_range='mse'))
    """
    if weight_range == "lsq":
        return LearnedGrid(bits, per_channel)
    return IntegerGrid(bits, per_channel, weight_range)
