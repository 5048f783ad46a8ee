"""A layer that finds the range of a tensor and rounds it to the integers that a file will hold."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.core import range_estimators
from tfcompress.core.grids import fake_quantize, learned_step
from tfcompress.errors import CompressionError, nearest
from tfcompress.record import Range

ops = keras.ops

# Where an output's range comes from; the last three begin with calibration data.
OUTPUT_RANGES = ("moving", "minmax", "percentile", "mse", "lsq")
FROM_DATA = ("percentile", "mse", "lsq")
# Values of a batch that are counted in calibration; of more, an even sample.
_COUNTED = 1_000_000
# Scores below are masked ones.
_MASKED = -1e4


@keras.saving.register_keras_serializable("tfcompress")
class OutputRange(keras.layers.Layer):
    """Rounds its input to an integer grid whose ends follow the data, stay as calibrated, or are learned.

    The range always holds 0. Until it is known the layer passes its input on. The gradient is 1 inside the range and 0
    outside. Its numbers are float32 whatever the dtype policy.

    Args:
        bits: width of the codes, 8 or 16 (then symmetric). momentum: of the moving averages of "moving".
        fixed: (scale, zero_point) where the runtime allows no other, as behind softmax.
        symmetric: zero point 0.
        estimator: "moving" (averages of each batch's extremes, from the first batch's or calibration data's), "minmax" (extremes
            of all batches), "percentile" or "mse" (of calibration data, then kept), or "lsq" (learned; see `Scheme`).
        percentile: of "percentile".
        positive: the kernel behind divides by the values: 0 becomes the smallest code above it in training, 1e-12 else.
        room: how far the range reaches below the smallest value. Values below -10,000 (masked scores) do not count.

    Example:
        >>> layer = OutputRange(fixed=(0.25, -128))
        >>> ops.convert_to_numpy(layer(np.array([[0.3, -1.0, 99.0]], "float32"))).tolist()
        [[0.25, 0.0, 63.75]]
    """

    attached_only = True  # `finalize` takes the layer out: its state is no part of the model's cost

    def __init__(self, bits: int = 8, momentum: float = 0.99, fixed=None, symmetric: bool = False,
                 estimator: str = "moving", percentile: float = 99.99, positive: bool = False, room: float = 0.0,
                 **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        if estimator not in OUTPUT_RANGES:
            known = OUTPUT_RANGES
            raise CompressionError(f"`estimator` must be one of {', '.join(known)}. {nearest(str(estimator), known)}")
        self.bits, self.momentum, self.percentile = int(bits), float(momentum), float(percentile)
        self.fixed = None if fixed is None else (float(fixed[0]), int(fixed[1]))
        self.symmetric, self.estimator = bool(symmetric) or self.bits == 16, estimator
        self._learned = estimator == "lsq" and fixed is None
        self.positive, self.room = bool(positive), float(room)
        self._histogram: range_estimators.Histogram | None = None
        self.observing = False
        self.supports_masking = True

    @property
    def codes(self) -> tuple[int, int]:
        """The outermost codes."""
        half = 2 ** (self.bits - 1)
        return (-half if self.bits == 8 else 1 - half), half - 1

    def build(self, input_shape=None):
        def state(name, value, trainable=False):
            return self.add_weight(
                name=name, shape=(), initializer=keras.initializers.Constant(value), trainable=trainable, autocast=False,
                dtype="float32", aggregation="none" if trainable else "mean",
            )  # fmt: skip

        scale, zero_point = self.fixed or (1.0, 0)
        self.minimum, self.maximum = state("minimum", 0.0), state("maximum", 0.0)
        self.scale, self.zero_point = state("scale", scale), state("zero_point", zero_point)
        self.ready = state("ready", float(self.fixed is not None))
        if self._learned:
            self.scale_change = state("scale_change", 0.0, trainable=True)
            self.end_change = None if self.symmetric else state("end_change", 0.0, trainable=True)

    def call(self, x, training=None):
        value = ops.cast(x, "float32")
        if self.observing:
            self._observe(self._counted(value))
            return x
        with _keras_compat.no_autocast():
            if training and self.fixed is None and self.estimator in ("moving", "minmax"):
                rounded = self._round(value, *self._follow(self._counted(value)))
            elif training and self._learned:
                rounded = ops.where(self.ready.value > 0, self._learn(value), value)
            else:
                rounded = ops.where(self.ready.value > 0, self._round(value, *self.grid()), value)
            if self.positive:
                least = ops.stop_gradient(self.grid()[0]) * ops.cast(self.ready.value > 0, "float32")
                # A kernel gives its largest output for 0, as for 1e-12; training needs a value that moves no average.
                floor = least if training else 1e-12 * ops.cast(self.ready.value > 0, "float32")
                rounded = ops.where(rounded < least, ops.stop_gradient(floor), rounded)
        return ops.cast(rounded, x.dtype)

    def _counted(self, value):
        """The values that the range follows."""
        return ops.where(value < _MASKED, ops.zeros_like(value), value) if self.room else value

    def grid(self):
        """The scale and the zero point, as tensors."""
        scale, zero_point = _keras_compat.as_tensor(self.scale), _keras_compat.as_tensor(self.zero_point)
        if not self._learned:
            return scale, zero_point
        step = learned_step(scale, self.scale_change)
        return (step, zero_point) if self.symmetric else (step, self._zero_point(step))

    def _low(self):
        """The learned low end: its first value and its change, in shares of the first range."""
        low, high = self.codes
        first = (low - _keras_compat.as_tensor(self.zero_point)) / (high - low)
        return (first + _keras_compat.as_tensor(self.end_change)) * (_keras_compat.as_tensor(self.scale) * (high - low))

    def _zero_point(self, step):
        low, high = self.codes
        return ops.clip(ops.round(low - self._low() / step), low, high)

    def _round(self, value, scale, zero_point):
        return fake_quantize(value, scale, *self.codes, zero_point)

    def _learn(self, value):
        """The rounded value, with LSQ's gradient for the scale and LSQ+'s for the low end."""
        low, high = (float(code) for code in self.codes)
        step, zero_point = self.grid()
        first = _keras_compat.as_tensor(self.scale)
        features = ops.cast(ops.size(value) // ops.shape(value)[0], "float32")
        damping = 1 / (ops.sqrt(features * high) * first * first)
        zero_point = ops.stop_gradient(zero_point)
        if self.symmetric:
            return _learn_range(value, step, 0.0 * step, damping, low - zero_point, high - zero_point, low)
        # Outside, the value is the low end, or the low end and the codes between times the step.
        return _learn_range(value, step, self._low(), damping, low - zero_point, high - zero_point, 0.0)

    def _follow(self, value):
        """Move the ends towards the batch's extremes, and return the scale and zero point that follow."""
        low, high = ops.stop_gradient(ops.min(value)), ops.stop_gradient(ops.max(value))
        known = ops.cast(self.ready.value > 0, "float32")
        if self.estimator == "moving":
            keep = self.momentum * known
            low = keep * self.minimum.value + (1 - keep) * low
            high = keep * self.maximum.value + (1 - keep) * high
        else:
            low = ops.where(known > 0, ops.minimum(low, self.minimum.value), low)
            high = ops.where(known > 0, ops.maximum(high, self.maximum.value), high)
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
        low, high = np.minimum(low, 0.0) - self.room, np.maximum(high, 0.0)
        least, most = (float(code) for code in self.codes)
        if self.symmetric:
            scale = np.maximum(np.maximum(-low, high), 1e-9) / most
            return scale, np.zeros_like(scale)
        scale = np.maximum(high - low, 1e-9) / (most - least)
        exact = least - low / scale
        zero_point = np.clip(np.round(exact), least, most)
        # A zero point halfway between two codes (pixels scaled to -1..1) puts such values halfway between two codes each, where
        # a file may round the other way: the step grows until the nearest code of 0.0 leaves both ends in.
        above, below = np.maximum(most - zero_point, 1.0), np.maximum(zero_point - least, 1.0)
        wider = np.maximum(scale, np.maximum(high / above, -low / below))
        return np.where(np.abs(exact - np.round(exact)) > 0.49, wider, scale), zero_point

    # Calibration: eager calls only

    def observe(self, begin: bool) -> None:
        """Begin to look at calibration data, or end it and set the range."""
        self.observing = begin
        if begin:
            self._histogram = range_estimators.Histogram() if self.estimator in FROM_DATA else None
        elif self._histogram is not None and self._histogram.count:
            self.set_ends(*self._estimated(self._histogram))
            self._histogram = None

    def _observe(self, value) -> None:
        """Widen the ends to calibration data's extremes, or count its values."""
        if self.fixed is not None:
            return
        array = ops.convert_to_numpy(value)
        if self._histogram is not None:
            flat = array.ravel()
            self._histogram.add(flat[:: -(-len(flat) // _COUNTED) or 1])
            return
        low, high = float(array.min()), float(array.max())
        if _number(self.ready):
            low = min(low, _number(self.minimum))
            high = max(high, _number(self.maximum))
        self.set_ends(low, high)

    def _estimated(self, histogram) -> tuple[float, float]:
        if self._learned and self.symmetric:
            # LSQ: 2 mean|x| / sqrt(Q). No bin holds values of both signs.
            most = self.codes[1]
            step = 2 * float(np.abs(histogram.sums).sum() / histogram.count) / most**0.5
            return -step * most, step * most
        method = "percentile" if self.estimator == "percentile" else "mse"
        return range_estimators.estimate(
            histogram, method, percent=self.percentile, bits=self.bits, symmetric=self.symmetric
        )

    def set_ends(self, low: float, high: float) -> None:
        """Set the range to hold low, high and 0."""
        scale, zero_point = self._affine(np.float32(low), np.float32(high), np)
        for variable, new in zip(
            (self.minimum, self.maximum, self.scale, self.zero_point, self.ready), (low, high, scale, zero_point, 1), strict=True
        ):  # fmt: skip
            variable.assign(np.float32(new))
        for change in (self.scale_change, self.end_change) if self._learned else ():
            if change is not None:
                change.assign(np.float32(0))

    @property
    def range(self) -> Range | None:
        """The range as export writes it, or None if it was never updated."""
        if not _number(self.ready):
            return None
        scale, zero_point = (float(ops.convert_to_numpy(value)) for value in self.grid())
        return Range(scale, int(zero_point), self.bits)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = ("bits", "momentum", "fixed", "symmetric", "estimator", "percentile", "positive", "room")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}


def _number(variable) -> float:
    return float(ops.convert_to_numpy(_keras_compat.as_tensor(variable)))


def _learn_range(x, unit, end, damping, low, high, below: float):
    """`fake_quantize` to codes low..high with gradients for the unit and for the range's low end.

    d/dunit is code - x / unit inside; outside it is `below` at the low side and `below` + high - low at the other. d/dend is 1
    outside. Both are summed and multiplied by the damping, for the end in shares of the whole range.
    """
    span = high - low
    ends = damping / (span * span)
    return _learn_rounding(x, unit, end, damping, ends, low, high, ops.cast(below, unit.dtype))


@ops.custom_gradient
def _learn_rounding(x, unit, end, damping, ends, low, high, below):
    wanted = x / unit
    codes = ops.clip(ops.round(wanted), low, high)

    def gradient(*upstream):
        (upstream,) = upstream
        inside = ops.logical_and(wanted >= low, wanted <= high)
        outside = ops.where(wanted < low, below, below + (high - low))
        step = ops.sum(ops.where(inside, codes - wanted, outside) * upstream)
        passed = upstream * ops.cast(inside, upstream.dtype)
        return (
            passed,
            damping * step,
            ends * ops.sum(upstream - passed),
            *(ops.zeros_like(other) for other in (damping, ends, low, high, below)),
        )

    return codes * unit, gradient
