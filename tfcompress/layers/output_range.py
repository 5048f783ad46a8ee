"""A layer that learns the range of a tensor and rounds it to the integers that a file will hold."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.core.grids import fake_quantize
from tfcompress.record import Range

ops = keras.ops


@keras.saving.register_keras_serializable("tfcompress")
class OutputRange(keras.layers.Layer):
    """Rounds its input to an affine integer grid whose ends follow the data while it trains.

    Ends are moving averages of each batch's extremes, begin with the extremes of calibration data or of the first batch,
    and always hold 0. Before either it passes its input on. The gradient is 1 inside the range and 0 outside.

    Args:
        bits: width of the codes, 8 or 16 (then symmetric). momentum: of the moving averages.
        fixed: (scale, zero_point) where the runtime allows no other, as behind softmax.

    Example:
        >>> layer = OutputRange(fixed=(0.25, -128))
        >>> ops.convert_to_numpy(layer(np.array([[0.3, -1.0, 99.0]], "float32"))).tolist()
        [[0.25, 0.0, 63.75]]
    """

    attached_only = True  # `finalize` takes the layer out: its state is no part of the model's cost

    def __init__(self, bits: int = 8, momentum: float = 0.99, fixed=None, **kwargs):
        super().__init__(**kwargs)
        self.bits, self.momentum = int(bits), float(momentum)
        self.fixed = None if fixed is None else (float(fixed[0]), int(fixed[1]))
        self.observing = False
        self.supports_masking = True

    def build(self, input_shape=None):
        def state(name, value):
            return self.add_weight(
                name=name, shape=(), initializer=keras.initializers.Constant(value), trainable=False, autocast=False,
                dtype="float32", aggregation="mean",
            )  # fmt: skip

        scale, zero_point = self.fixed or (1.0, 0)
        self.minimum, self.maximum = state("minimum", 0.0), state("maximum", 0.0)
        self.scale, self.zero_point = state("scale", scale), state("zero_point", zero_point)
        self.ready = state("ready", float(self.fixed is not None))

    def call(self, x, training=None):
        value = ops.cast(x, "float32")
        if self.observing:
            self._observe(value)
            return x
        with _keras_compat.no_autocast():
            if training and self.fixed is None:
                scale, zero_point = self._follow(value)
                rounded = self._round(value, scale, zero_point)
            else:
                rounded = ops.where(
                    self.ready.value > 0, self._round(value, self.scale.value, self.zero_point.value), value
                )
        return ops.cast(rounded, x.dtype)

    def _round(self, value, scale, zero_point):
        half = 2 ** (self.bits - 1)
        return fake_quantize(value, scale, -half if self.bits == 8 else 1 - half, half - 1, zero_point)

    def _follow(self, value):
        """Move the ends towards the batch's extremes, and return the scale and zero point that follow."""
        low, high = ops.stop_gradient(ops.min(value)), ops.stop_gradient(ops.max(value))
        keep = self.momentum * ops.cast(self.ready.value > 0, "float32")
        low = keep * self.minimum.value + (1 - keep) * low
        high = keep * self.maximum.value + (1 - keep) * high
        scale, zero_point = self._affine(low, high, ops)
        for variable, new in zip(
            (self.minimum, self.maximum, self.scale, self.zero_point, self.ready),
            (low, high, scale, zero_point, ops.ones(())),
            strict=True,
        ):
            variable.assign(new)
        return scale, zero_point

    def _affine(self, low, high, np):
        """Scale and zero point of the grid that holds low, high and 0, where 0.0 has a code of its own."""
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
        if self.bits == 16:  # 16-bit kernels take symmetric ranges only
            scale = np.maximum(np.maximum(-low, high), 1e-9) / 32767.0
            return scale, np.zeros_like(scale)
        scale = np.maximum(high - low, 1e-9) / 255.0
        return scale, np.clip(np.round(-128.0 - low / scale), -128.0, 127.0)

    def _observe(self, value) -> None:
        """Widen the ends to calibration data's extremes; eager calls only."""
        first = float(ops.convert_to_numpy(self.ready.value)) == 0
        array = ops.convert_to_numpy(value)
        low, high = float(array.min()), float(array.max())
        if not first:
            low = min(low, float(ops.convert_to_numpy(self.minimum.value)))
            high = max(high, float(ops.convert_to_numpy(self.maximum.value)))
        if self.fixed is None:
            self.set_ends(low, high)

    def set_ends(self, low: float, high: float) -> None:
        """Set the range to hold low, high and 0."""
        scale, zero_point = self._affine(np.float32(low), np.float32(high), np)
        for variable, new in zip(
            (self.minimum, self.maximum, self.scale, self.zero_point, self.ready), (low, high, scale, zero_point, 1), strict=True
        ):  # fmt: skip
            variable.assign(np.float32(new))

    @property
    def range(self) -> Range | None:
        """The range as export writes it, or None if it was never updated."""
        if not float(ops.convert_to_numpy(self.ready.value)):
            return None
        scale, zero_point = (float(ops.convert_to_numpy(v.value)) for v in (self.scale, self.zero_point))
        return Range(scale, int(zero_point), self.bits)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "bits": self.bits, "momentum": self.momentum, "fixed": self.fixed}
