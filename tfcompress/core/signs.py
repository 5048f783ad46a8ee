"""Weights of two or three values over a clipped real one: what binary and ternary networks share."""

import math

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.core.variational import track_draw
from tfcompress.errors import CompressionError
from tfcompress.parametrization import Parametrization
from tfcompress.record import Grid


def deterministic(value, levels: int):
    """-1 or 1 by the sign (1 at 0), or the nearest of -1, 0, 1.

    Args:
        value: real weights, 1 being the clip. levels: 2 or 3.

    Example:
        >>> keras.ops.convert_to_numpy(deterministic(np.float32([-0.6, -0.0, 0.4]), 3)).tolist()
        [-1.0, 0.0, 0.0]
    """
    one = keras.ops.ones_like(value)
    if levels == 2:
        return keras.ops.where(value >= 0, one, -one)
    inner = keras.ops.where(value > 0.5, one, keras.ops.zeros_like(value))
    return keras.ops.where(value < -0.5, -one, inner)


def stochastic(value, levels: int, uniform):
    """A draw whose mean is the clipped value: 1 with probability (w + 1) / 2, or sign(w) with probability |w|, else 0.

    Args:
        value: real weights, 1 being the clip. levels: 2 or 3. uniform: numbers in [0, 1) of the same shape.
    """
    one = keras.ops.ones_like(value)
    if levels == 2:
        return keras.ops.where(uniform < (value + 1.0) / 2.0, one, -one)
    return keras.ops.where(uniform < keras.ops.abs(value), deterministic(value, 2), keras.ops.zeros_like(value))


class Clip(keras.constraints.Constraint):
    """Keeps a trained weight in [-limit, limit], after any older constraint."""

    def __init__(self, limit: float, before=None):
        self.limit, self.before = limit, before

    def __call__(self, value):
        return keras.ops.clip(value if self.before is None else self.before(value), -self.limit, self.limit)


class SignWeight(Parametrization):
    """The sign of a real weight (-1, 1), or the nearest of -1, 0, 1; straight-through gradient, real weight clipped.

    The real weight is held in units where the clip is sqrt(1.5 / (inputs + outputs)), which is where initializers put
    it; the gradient is scaled to match, so that weights change sign at a useful rate. Batch normalization is to follow.

    Args:
        levels: 2 for binary, 3 for ternary. stochastic: draw in training, one draw a step. seed: of the draws.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", SignWeight())
        >>> set(layer.kernel.numpy().ravel().tolist()) <= {-1.0, 1.0}
        True
    """

    def __init__(self, levels: int = 2, stochastic: bool = False, seed: int = 0):
        if levels not in (2, 3):
            raise CompressionError(f"`levels` must be 2 (binary) or 3 (ternary); received {levels!r}.")
        self.levels, self.stochastic, self.seed = levels, bool(stochastic), seed

    def build(self, layer, name, shape):
        receptive = math.prod(shape[:-2])
        inputs, outputs = (receptive * shape[-2], receptive * shape[-1]) if len(shape) > 1 else (1, shape[0])
        self.limit = math.sqrt(1.5 / (inputs + outputs))
        if self.stochastic:
            self.draw = track_draw(self, self.seed)
        raw = self.chain.raw
        raw.constraint = Clip(self.limit, raw.constraint)

    def initialize(self, value):
        if not self.chain.source:
            raw = self.chain.raw
            raw.assign(np.clip(keras.ops.convert_to_numpy(raw.value), -self.limit, self.limit))

    def __call__(self, value):
        real = value / self.limit
        if self.stochastic and _keras_compat.training_now() and self.layer.trainable:
            uniform = keras.random.uniform(self.shape, dtype="float32", seed=self.draw.use())
            quantized = stochastic(real, self.levels, uniform)
        else:
            quantized = deterministic(real, self.levels)
        # The difference is exactly 0; it carries the gradient, scaled as an update of the real weight asks for.
        return keras.ops.stop_gradient(quantized) + (value - keras.ops.stop_gradient(value)) / self.limit

    def penalty(self):
        if self.stochastic:
            self.draw.finish()

    def right_inverse(self, value):
        return np.clip(value, -1.0, 1.0) * np.float32(self.limit)

    def grid(self):
        return Grid(np.ones((1,) * len(self.shape), "float32"), -1, 1)

    def log(self):
        return {"sparsity": float(np.mean(self.chain.numpy(self.chain.links.index(self) + 1) == 0))}
