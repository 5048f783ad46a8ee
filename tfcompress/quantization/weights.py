"""The weights' part of quantization-aware training: kernels on integer grids, and biases on the grids that follow."""

import keras

from tfcompress import _keras_compat, carriers, select
from tfcompress.core.grids import IntegerGrid, grid_of
from tfcompress.method import DONE, FLOAT, SKIPPED, Row, WeightMethod
from tfcompress.parametrization import Parametrization, attach, chain
from tfcompress.quantization import placement
from tfcompress.quantization.scheme import Choice, Scheme

ops = keras.ops


class BiasGrid(Parametrization):
    """A bias on the int32 grid of its file: scale of the input times scale of the kernel.

    Both are read from where they live, the range layer before and the kernel's `IntegerGrid`; without them the bias
    stays as it is.
    """

    def unit(self):
        """The step, one a channel, and whether the input's range is known; or None."""
        kernel = chain(self.layer, "kernel")
        before = placement.input_range(self.layer)
        if kernel is None or before is None or not isinstance(kernel.links[-1], IntegerGrid):
            return None
        scale, _ = before.grid()
        return ops.reshape(kernel.links[-1].step() * scale, (-1,)), _keras_compat.as_tensor(before.ready)

    def __call__(self, value):
        found = self.unit()
        if found is None:
            return value
        step, ready = found
        step = ops.broadcast_to(ops.stop_gradient(step), self.shape)
        rounded = ops.stop_gradient(ops.round(value / step) * step)
        return ops.where(ready > 0, rounded, ops.stop_gradient(value)) + (value - ops.stop_gradient(value))

    def right_inverse(self, value):
        return value


class QuantizedWeights(WeightMethod):
    """Puts an integer grid on each selected kernel: the weights' part of `QAT`.

    Args:
        bits: of the weights. per_channel: one scale an output channel. layers, exclude: which weights.
        include_frozen: those of frozen layers too; they are rounded, and do not train.
        weight_range: "minmax", "mse" or "lsq", as in `Scheme`.
    """

    def __init__(self, bits: int = 8, per_channel: bool = True, layers=None, exclude=None, include_frozen: bool = True,
                 weight_range: str = "minmax"):  # fmt: skip
        self.bits, self.per_channel, self.weight_range = bits, per_channel, weight_range
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen
        self.choice = Choice(Scheme(bits, per_channel=per_channel, weight_range=weight_range))

    @classmethod
    def by(cls, choice: Choice, layers=None, exclude=None) -> "QuantizedWeights":
        """Weights whose scheme a choice makes layer by layer."""
        one = choice.scheme
        made = cls(one.bits, one.per_channel, layers, exclude, weight_range=one.weight_range)
        made.choice = choice
        return made

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
        if self.choice.stays_float(path, layer, weight):
            return "kept float by keep_float="
        if weight == "embeddings":
            return "its rows are rounded as the layer's output, whose range they share in the file"
        own = chain(layer, weight)
        if own is not None and any(isinstance(link, IntegerGrid) for link in own.links):
            return "it is on an integer grid already"
        # Values shared by all channels stay shared only on a grid that all channels share.
        shared = own is not None and any(link.shares_values for link in own.links)
        # What a layer of the user's own does with a weight is not known: added or multiplied it is an operand that the
        # runtime gives one scale, and one scale fits a kernel too.
        one = shared or not _keras_compat.is_builtin(layer)
        scheme = self.choice.of(path, layer, weight)
        return grid_of(scheme.bits, scheme.per_channel and not one, scheme.weight_range)


def round_biases(model) -> list[Row]:
    """Put a `BiasGrid` on every bias between an input with one trained range and a kernel on an integer grid."""
    rows = []
    kinds = {kind.__name__ for kind in placement.WITH_BIAS}
    for path, layer in select.layers(model):
        kernel = chain(layer, "kernel")
        if kernel is None or getattr(layer, "bias", None) is None or not isinstance(kernel.links[-1], IntegerGrid):
            continue
        if carriers.base_class(layer).__name__ not in kinds:
            continue
        own = chain(layer, "bias")
        if placement.input_range(layer) is None:
            rows.append(Row(path, "bias", FLOAT, "its input has no single trained range; rounded at export"))
        elif own is None or not any(isinstance(link, BiasGrid) for link in own.links):
            attach(layer, "bias", [BiasGrid()])
            rows.append(Row(path, "bias", DONE, "int32, scale of the input times scale of the kernel"))
    return rows
