"""Quantization-aware training to integers: weights, biases and outputs on the grids that an int8 file will hold."""

import keras
import numpy as np

from tfcompress import _keras_compat, carriers, select
from tfcompress.core.grids import IntegerGrid
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import all_calls
from tfcompress.graph.fold import fold_batchnorm
from tfcompress.graph.rebuild import rebuild
from tfcompress.layers.output_range import OutputRange
from tfcompress.method import DONE, FINALIZERS, FLOAT, SKIPPED, Method, Row, WeightMethod
from tfcompress.parametrization import Parametrization, attach, chain
from tfcompress.quantization import placement

ops = keras.ops


class BiasGrid(Parametrization):
    """A bias on the int32 grid of its file: scale of the input times scale of the kernel.

    Both are read from where they live, the range layer before and the kernel's `IntegerGrid`; without them the bias
    stays as it is.
    """

    def unit(self):
        """The step, one a channel, or None."""
        kernel = chain(self.layer, "kernel")
        before = placement.input_range(self.layer)
        if kernel is None or before is None or not isinstance(kernel.links[-1], IntegerGrid):
            return None
        return ops.reshape(kernel.links[-1].unit.value * before.scale.value, (-1,)), before.ready.value

    def __call__(self, value):
        found = self.unit()
        if found is None:
            return value
        step, ready = found
        step = ops.broadcast_to(step, self.shape)
        rounded = ops.round(value / step) * step
        return ops.where(ready > 0, rounded, ops.stop_gradient(value)) + (value - ops.stop_gradient(value))

    def right_inverse(self, value):
        return value


class QuantizedWeights(WeightMethod):
    """Puts `IntegerGrid` on each selected kernel: the weights' part of `QAT`.

    Args:
        bits: of the weights. per_channel: one scale an output channel. layers, exclude: which weights.
    """

    def __init__(self, bits: int = 8, per_channel: bool = True, layers=None, exclude=None, include_frozen: bool = True):
        self.bits, self.per_channel = bits, per_channel
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen
        IntegerGrid(bits, per_channel)

    def attach(self, model, data=None):
        rows = self._on_grids(model)
        return (model, rows) if rows else super().attach(model, data)

    def _on_grids(self, model) -> list[Row]:
        """A row for every kernel if all are on integer grids already (a model that came from elsewhere), else none."""
        kernels = [
            (path, layer, name)
            for path, layer in select.layers(model)
            for name in select.kernel_names(layer)
            if name != "embeddings"
        ]
        for _, layer, name in kernels:
            own = chain(layer, name)
            if own is None or not any(isinstance(link, IntegerGrid) for link in own.links):
                return []
        return [Row(path, name, SKIPPED, "it is on an integer grid already") for path, _, name in kernels]

    def parametrization(self, path, layer, weight):
        if weight == "embeddings":
            return "its rows are rounded as the layer's output, whose range they share in the file"
        own = chain(layer, weight)
        if own is not None and any(isinstance(link, IntegerGrid) for link in own.links):
            return "it is on an integer grid already"
        # Values shared by all channels stay shared only on a grid that all channels share.
        shared = own is not None and any(link.shares_values for link in own.links)
        return IntegerGrid(self.bits, self.per_channel and not shared)


class QAT(Method):
    """8-bit quantization-aware training of weights (per channel), biases and outputs, with batch norm folded.

    Attach it to a trained model (pruned or clustered too: zeros stay zeros), fit for a few epochs, and export to int8: the
    file holds the trained grids. Batch normalization is folded with its moving statistics when it is attached. Ranges
    begin with the extremes of `data`, if given to `apply`, else of the first batch.

    In a model without a graph (subclassed) weights are trained on their grids, and outputs get their ranges from
    calibration at export; the report says so.

    Args:
        bits: of the weights, 2 to 8. output_bits: of the outputs, 8 or 16. per_channel: scales of weights.
        momentum: of the ranges' moving averages. layers, exclude: which weights and outputs are rounded.

    Raises:
        CompressionError: the model is not built, or nothing is selected.

    Example:
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="d", activation="softmax")])
        >>> small = apply(model, QAT(), data=np.ones((8, 4), "float32"), verbose=0)
        >>> [layer.name for layer in small.layers]
        ['x_range', 'd', 'd_range', 'd_softmax', 'd_softmax_range']
    """

    def __init__(self, bits: int = 8, output_bits: int = 8, per_channel: bool = True, momentum: float = 0.99,
                 layers=None, exclude=None):  # fmt: skip
        if output_bits not in (8, 16):
            raise CompressionError(f"`output_bits` must be 8 or 16; received {output_bits}.")
        if not 0 <= momentum < 1:
            raise CompressionError(f"`momentum` must lie in 0..1, without 1; received {momentum}.")
        self.bits, self.output_bits, self.per_channel = bits, output_bits, per_channel
        self.momentum, self.layers, self.exclude = float(momentum), layers, exclude
        self._weights = QuantizedWeights(bits, per_channel, layers, exclude)

    def attach(self, model, data=None):
        if not model.built:
            raise CompressionError(
                f"Model {model.name!r} is not built, and QAT folds and rounds its weights. Give it an Input or call it on a batch."
            )
        if _keras_compat.functional(model) is None:
            model, rows = self._weights.attach(model)
            rows += [Row(path, "", FLOAT, "output range by calibration at export, not trained: the model has no graph")
                     for path, _ in select.layers(model)]  # fmt: skip
            return model, rows
        model, folds = fold_batchnorm(model, reuse=True)
        rows = [
            Row(f.normalization, "", DONE, f"folded into {f.layer}") if f.layer
            else Row(f.normalization, "", FLOAT, f"not folded: {f.reason}; its output is rounded")
            for f in folds
        ]  # fmt: skip
        model, more = self._weights.attach(model)
        rows += more
        model = self._split(model)
        model, more = self._insert_ranges(model)
        rows += more + self._round_biases(model)
        if data is not None:
            calibrate(model, data)
        return model, rows

    def _split(self, model):
        """Layers' own activations become layers where the value before them has a tensor of its own."""
        inserts = {}
        operations = {call.key: call.operation for call in all_calls(model)}
        for key, name in placement.split_activations(model).items():
            layer = operations[key]
            suffix = key.rsplit("#", 1)[1:] if "#" in key else []
            inserts[key] = keras.layers.Activation(
                layer.activation, name="_".join([layer.name, name, *suffix]), dtype=layer.dtype_policy
            )
        for key in inserts:
            operations[key].activation = keras.activations.linear
        return rebuild(model, insert=inserts, reuse=True) if inserts else model

    def _insert_ranges(self, model):
        chosen = select.get(self.layers)
        left_out = select.get(self.exclude) if self.exclude is not None else ~select.everything
        operations = {call.key: call.operation for call in all_calls(model)}
        inserts, rows = {}, []
        for point in placement.points(model):
            key = point.keys[0]
            operation = operations[key]
            if isinstance(operation, OutputRange) or any(
                isinstance(reader, OutputRange) for reader in _keras_compat.readers(operation)
            ):
                rows.append(Row(key, "output", SKIPPED, "it has a range already"))
                continue
            if not chosen(key, operation, "output") or left_out(key, operation, "output"):
                rows.append(
                    Row(key, "output", FLOAT, "left out by layers= or exclude=; its range comes from calibration")
                )
                continue
            layer = OutputRange(
                self.output_bits, self.momentum, point.fixed if self.output_bits == 8 else None,
                name=f"{operation.name}{'_' + key.rsplit('#', 1)[1] if '#' in key else ''}_range", dtype="float32",
            )  # fmt: skip
            inserts.update(dict.fromkeys(point.keys, layer))
            shared = f", shared with {', '.join(point.keys[1:])}" if len(point.keys) > 1 else ""
            rows.append(
                Row(key, "output", DONE, f"int{self.output_bits} range{' (fixed)' if point.fixed else ''}{shared}")
            )
        return rebuild(model, insert=inserts, reuse=True), rows

    def _round_biases(self, model) -> list[Row]:
        rows = []
        for path, layer in select.layers(model):
            kernel = chain(layer, "kernel")
            if kernel is None or getattr(layer, "bias", None) is None or not isinstance(kernel.links[-1], IntegerGrid):
                continue
            if carriers.base_class(layer).__name__ not in {kind.__name__ for kind in placement.WITH_BIAS}:
                continue
            if placement.input_range(layer) is None:
                rows.append(Row(path, "bias", FLOAT, "its input has no single trained range; rounded at export"))
            elif chain(layer, "bias") is None:
                attach(layer, "bias", [BiasGrid()])
                rows.append(Row(path, "bias", DONE, "int32, scale of the input times scale of the kernel"))
        return rows


def ranges(model) -> list[OutputRange]:
    """The range layers of a model."""
    return [layer for _, layer in select.layers(model) if isinstance(layer, OutputRange)]


def calibrate(model, data, batch_size: int = 32) -> None:
    """Set all ranges to the extremes that calibration data takes, one batch at a time.

    Args:
        model: a model with ranges. data: an array, or a list or dict of arrays for several inputs.
        batch_size: samples a batch.

    Raises:
        CompressionError: there are no samples, or they hold NaN.
    """
    arrays = keras.tree.flatten(data)
    if not arrays or not len(arrays[0]):
        raise CompressionError(
            "Calibration data holds no samples; give some hundred that look like what the phone will see."
        )
    if any(np.issubdtype(np.asarray(a).dtype, np.floating) and not np.isfinite(a).all() for a in arrays):
        raise CompressionError("Calibration data holds NaN or infinite values; ranges cannot be set by them.")
    observed = ranges(model)
    for layer in observed:
        layer.observing = True
    try:
        for start in range(0, len(arrays[0]), batch_size):
            model(
                keras.tree.map_structure(lambda a, at=start: np.asarray(a[at : at + batch_size]), data), training=False
            )
    finally:
        for layer in observed:
            layer.observing = False


def _take_ranges_out(model):
    """The finalizer: ranges leave the graph and become a record."""
    if _keras_compat.functional(model) is None or not ranges(model):
        return model, [], {}
    maker = {}
    found, rows, drop = {}, [], []
    for call in all_calls(model):
        maker.update({id(tensor): call for tensor in call.outputs})
    for call in all_calls(model):
        if isinstance(call.operation, OutputRange):
            source = maker[id(call.inputs[0])]
            drop.append(call.path)
            learned = call.operation.range
            if learned is None:
                rows.append(Row(source.key, "output", FLOAT, "its range was never updated; calibration will set it"))
            else:
                found[source.key] = learned
                rows.append(
                    Row(source.key, "output", DONE, f"range {learned.minimum:.4g} to {learned.maximum:.4g} recorded")
                )
    return rebuild(model, drop=drop, reuse=True), rows, found


FINALIZERS.append(_take_ranges_out)
