"""Quantization-aware training to integers: weights, biases and outputs on the grids that an int8 file will hold."""

from tfcompress import _keras_compat, select
from tfcompress.errors import CompressionError
from tfcompress.graph.expand import expand_layers
from tfcompress.graph.fold import fold_batchnorm
from tfcompress.graph.scaling import fold_scalings
from tfcompress.method import DONE, FLOAT, Method, Row
from tfcompress.quantization import batchnorm
from tfcompress.quantization.ranges import calibrate, insert_ranges, ranges, split_activations
from tfcompress.quantization.scheme import Choice, Scheme, selectable
from tfcompress.quantization.weights import BiasGrid, QuantizedWeights, round_biases

__all__ = ["QAT", "BiasGrid", "QuantizedWeights", "calibrate", "ranges"]


class QAT(Method):
    """8-bit quantization-aware training of weights (per channel), biases and outputs, with batch norm folded.

    Attach it to a trained model (pruned or clustered too: zeros stay zeros), fit for a few epochs, and export to int8: the
    file holds the trained grids. Ranges begin with those of `data`, if given to `apply`, else with the first batch.

    In a model without a graph (subclassed) weights are trained on their grids, and outputs get their ranges from
    calibration at export; the report says so.

    Args:
        bits: of the weights, 2 to 8. output_bits: of the outputs, 8 or 16. per_channel: scales of weights.
        momentum: of the ranges' moving averages. layers, exclude: which weights and outputs are rounded.
        scheme: a `Scheme` (or its arguments as a dictionary) in place of the four before: also estimators of ranges.
        mixed: {what: bits of the weights, `Scheme`, or arguments that change the general one}, where `what` is a selector, a
            name pattern, a layer class or a function; the first that fits counts.
        keep_float: what is not rounded, by name pattern, layer class or function, or a list of these.
        freeze_batchnorm: 0 folds batch norm with its moving statistics at once. A number of steps (or a fraction of the
            training, with the callback that `callbacks` returns) trains with batch statistics first, then frozen.

    Raises:
        CompressionError: the model is not built, nothing is selected, `mixed` or `keep_float` names nothing of the model,
            or a range has to begin with data and there is none.

    Example:
        >>> import keras, numpy as np
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="d", activation="softmax")])
        >>> small = apply(model, QAT(), data=np.ones((8, 4), "float32"), verbose=0)
        >>> [layer.name for layer in small.layers]
        ['x_range', 'd', 'd_range', 'd_softmax', 'd_softmax_range']
    """

    def __init__(self, bits: int = 8, output_bits: int = 8, per_channel: bool = True, momentum: float = 0.99,
                 layers=None, exclude=None, scheme=None, mixed=None, keep_float=None, freeze_batchnorm: float = 0):  # fmt: skip
        plain = Scheme(bits, output_bits, per_channel=per_channel, momentum=momentum)
        if isinstance(scheme, Scheme) and repr(plain) != repr(Scheme()):
            raise CompressionError(
                f"Give bits, output_bits, per_channel and momentum in the scheme or beside it, not both: {plain!r}, {scheme!r}."
            )
        if isinstance(freeze_batchnorm, bool) or not isinstance(freeze_batchnorm, (int, float)) or freeze_batchnorm < 0:
            raise CompressionError(
                "`freeze_batchnorm` takes 0 (fold at once), a number of steps, or a fraction of the training; received "
                f"{freeze_batchnorm!r}."
            )
        self.bits, self.output_bits, self.per_channel, self.momentum = bits, output_bits, per_channel, float(momentum)
        self.layers, self.exclude = layers, exclude
        self.scheme, self.mixed, self.keep_float, self.freeze_batchnorm = scheme, mixed, keep_float, freeze_batchnorm
        self._choice = Choice(Scheme.of(scheme, plain), mixed, keep_float)

    def attach(self, model, data=None):
        if not model.built:
            raise CompressionError(
                f"Model {model.name!r} is not built, and QAT folds and rounds its weights. Give it an Input or call it on a batch."
            )
        self._choice.check(model, selectable(model))
        weights = QuantizedWeights.by(self._choice, self.layers, self.exclude)
        if _keras_compat.functional(model) is None:
            model, rows = weights.attach(model)
            rows += [Row(path, "", FLOAT, "output range by calibration at export, not trained: the model has no graph")
                     for path, _ in select.layers(model)]  # fmt: skip
            return model, rows
        if data is None and self._choice.needs_data:
            raise CompressionError(
                "Output ranges by percentile, mse or lsq begin with calibration data: apply(model, QAT(...), data=x[:200])."
            )
        model, expanded = expand_layers(
            model, lambda path, layer: self._choice.stays_float(path, layer, "output"), reuse=True
        )
        if self.freeze_batchnorm:
            # A normalization on the schedule takes the bias before it into its own mean, so that the bias has to be whole.
            model, scalings = fold_scalings(model, reuse=True)
            model, rows = batchnorm.schedule(model, self.freeze_batchnorm)
        else:
            model, rows = self._fold(model)
            model, scalings = fold_scalings(model, reuse=True)
        rows = expanded + rows + [
            Row(path, "", DONE, f"folded into {one.layer}{', but for a shift' if one.shift and path == one.scalings[0] else ''}")
            for one in scalings for path in one.scalings
        ]  # fmt: skip
        model, more = weights.attach(model)
        rows += more
        model = split_activations(model)
        model, more = insert_ranges(model, self._choice, self.layers, self.exclude)
        rows += more + round_biases(model)
        if data is not None:
            calibrate(model, data)
        return model, rows

    def _fold(self, model):
        model, folds = fold_batchnorm(model, reuse=True)
        return model, [
            Row(f.normalization, "", DONE, f"folded into {f.layer}") if f.layer
            else Row(f.normalization, "", FLOAT, f"not folded: {f.reason}; a scale and a shift whose output is rounded")
            for f in folds
        ]  # fmt: skip

    def callbacks(self) -> list:
        """The callback that turns a fraction of the training into steps, where `freeze_batchnorm` is one."""
        return [batchnorm.FreezeBatchNorm(self.freeze_batchnorm)] if 0 < self.freeze_batchnorm < 1 else []
