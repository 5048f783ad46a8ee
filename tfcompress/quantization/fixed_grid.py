"""An integer grid whose scale stays where it was set: what rounding after training leaves on a weight."""

import keras
import numpy as np

from tfcompress.core import range_estimators
from tfcompress.core.grids import IntegerGrid, fake_quantize, output_axes

ops = keras.ops


class FixedGrid(IntegerGrid):
    """Symmetric integers with scales that neither training nor the weight's values change.

    Values that lie on the grid stay what they are to the bit, so that codes which were chosen one by one (learned
    rounding) survive saving, further training of other weights, and export.

    Args:
        bits: width of the codes, 2 to 8. per_channel: one scale an output channel, or one for the whole weight.
        weight_range: how the scale is set when the grid is attached: "minmax", or "mse" for the least squared error.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(1, kernel_initializer=lambda shape, dtype: ops.array([[3.0], [1.2]]))
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", FixedGrid(bits=3, weight_range="minmax"))
        >>> layer.kernel.numpy().ravel().tolist()
        [3.0, 1.0]
    """

    def __init__(self, bits: int = 8, per_channel: bool = True, weight_range: str = "mse"):
        super().__init__(bits, per_channel, weight_range)

    def build(self, layer, name, shape):
        self._kept = tuple(output_axes(layer, name, len(shape)) if self.per_channel else ())
        self.share = None
        self.unit = self.add_variable("unit", [n if axis in self._kept else 1 for axis, n in enumerate(shape)], "ones")

    def initialize(self, value):
        value = ops.convert_to_numpy(value)
        # One share of the largest magnitude is the largest magnitude itself.
        shares = 80 if self.weight_range == "mse" else 1
        self.unit.assign(range_estimators.mse_units(value, self.high, self._kept, shares))

    def __call__(self, value):
        return fake_quantize(value, self.step(), -self.high, self.high)

    def right_inverse(self, value):
        if not self._holds(np.asarray(value)):
            self.initialize(value)
        return value

    def update(self, step):
        """The scale stays."""
