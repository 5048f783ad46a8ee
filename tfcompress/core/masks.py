"""Masks: a weight that is kept in some places and exactly zero in the others."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.parametrization import Parametrization


class Mask(Parametrization):
    """m * w with a stored 0/1 mask: pruned weights are +0.0 whatever the optimizer does to the raw weight.

    The gradient of a pruned weight is 0 and that of a kept one is the plain model's.

    Example:
        >>> mask = Mask()
        >>> layer = keras.layers.Dense(2, kernel_initializer="ones")
        >>> layer.build((None, 2))
        >>> from tfcompress.parametrization import parametrize
        >>> parametrize(layer, "kernel", mask)
        >>> mask.set(np.eye(2, dtype=bool))
        >>> layer.kernel.numpy().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    keeps_grid = True
    scales = True

    def build(self, layer, name, shape):
        self.mask = self.add_variable("mask", shape, "ones", dtype="bool")

    def __call__(self, value):
        kept = self.mask.value
        if _keras_compat.training_now():
            # The cheaper of two equal forms (TensorFlow selects slowly), but it makes -0.0 of some pruned weights.
            return value * keras.ops.cast(kept, value.dtype)
        return keras.ops.where(kept, value, keras.ops.zeros_like(value))

    def right_inverse(self, value):
        return value

    def set(self, mask: np.ndarray) -> None:
        """Replace the mask by an array of 0/1 or bool of the weight's shape."""
        self.mask.assign(np.asarray(mask, bool))

    def log(self):
        return {"sparsity": 1.0 - float(np.mean(keras.ops.convert_to_numpy(self.mask)))}
