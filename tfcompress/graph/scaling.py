"""Scalings of inputs folded into the layer that reads them, as the TFLite converter does it behind one's back."""

import dataclasses

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.graph.calls import Call, calls, graph_of, is_nested, operations
from tfcompress.graph.fold import KERNELS
from tfcompress.graph.rebuild import rebuild
from tfcompress.parametrization import chains

L = keras.layers

# Zero stays zero, and what is scaled before may as well be scaled behind.
_KEEPING = (L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D)
_PASSING = (L.Identity, L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D)
# The axis of the kernel that holds the input channels.
_INPUTS = {name: -1 if name.endswith("Transpose") else -2 for name in KERNELS if not name.startswith("Separable")}


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Scalings of one tensor that were folded.

    Args:
        scalings: their paths, in order. layer: path of the layer whose kernel took the factor.
        shift: whether a shift stays (before zero padding it cannot go into the bias).
    """

    scalings: tuple[str, ...]
    layer: str
    shift: bool


def fold_scalings(model, *, reuse: bool = False):
    """Fold Rescaling and Normalization layers into the convolution or dense layer behind them.

    factor * x + offset becomes x + offset / factor, and the factor goes into the kernel; without zero padding the offset goes
    into the bias, and nothing stays. Zero padding and dropout may lie between, and the layer may be in a nested model. The
    converter does the same where it can: a kernel or a range that was trained before would not be in the file.

    Args:
        model: a Functional or built Sequential model. reuse: change the layers of `model` itself instead of a copy.

    Returns:
        (model, rows): the new model and a `Scaling` for every tensor whose scalings were folded.

    Raises:
        CompressionError: the model has no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 3)), L.Rescaling(1 / 255, name="r"), L.Conv2D(2, 3, name="c")])
        >>> new, rows = fold_scalings(model)
        >>> [layer.name for layer in new.layers], rows[0].layer
        (['c'], 'c')
    """
    found = _Search(model).plans()
    if not found:
        return model, []
    drop, replace = [], {}
    for plan in found:
        first, *others = plan.scalings
        drop += others
        if plan.shift is None:
            drop.append(first)
        else:
            old, offset = operations(model)[first], plan.shift
            replace[first] = L.Rescaling(
                1.0, float(offset[0]) if len(offset) == 1 else offset.tolist(), name=old.name, dtype=old.dtype_policy
            )
    new = rebuild(model, replace=replace, drop=drop, reuse=reuse)
    layers = operations(new)
    for plan in found:
        _scale(layers[plan.layer], plan)
    return new, [Scaling(tuple(plan.scalings), plan.layer, plan.shift is not None) for plan in found]


@dataclasses.dataclass
class _Plan:
    """factor * x + offset, each one number or one a channel; `shift` is offset / factor where it stays."""

    scalings: list[str]
    factor: np.ndarray
    offset: np.ndarray
    layer: str = ""
    shift: np.ndarray | None = None


class _Search:
    """Who reads which tensor of a model, nested models opened."""

    def __init__(self, model):
        self.readers: dict[int, list[Call | None]] = {}
        self.inner: dict[int, object] = {}
        self.scalings: list[Call] = []
        self.count: dict[int, int] = {}
        self._read(model, "")

    def _read(self, model, prefix: str) -> None:
        for tensor in graph_of(model).outputs:
            self.readers.setdefault(id(tensor), []).append(None)
        for call in calls(model, prefix):
            again = self.count[id(call.operation)] = self.count.get(id(call.operation), 0) + 1
            for tensor in call.inputs:
                self.readers.setdefault(id(tensor), []).append(call)
            if isinstance(call.operation, L.Rescaling | L.Normalization):
                self.scalings.append(call)
            if is_nested(call.operation):
                entries = graph_of(call.operation).inputs
                self.inner.update({id(a): b for a, b in zip(call.inputs, entries, strict=True)})
                if again == 1:
                    self._read(call.operation, call.path + "/")

    def plans(self) -> list[_Plan]:
        """What can be folded."""
        taken: set[str] = set()
        found = []
        for call in self.scalings:
            plan = self._follow(call) if call.path not in taken else None
            if plan is not None:
                taken |= set(plan.scalings)
                found.append(plan)
        return found

    def _follow(self, call: Call) -> _Plan | None:
        """From a scaling to the layer that takes its factor, or None."""
        first = _affine(call)
        if first is None or self.count[id(call.operation)] > 1:
            return None
        plan, tensor, padded = _Plan([call.path], *first), call.outputs[0], False
        while True:
            readers = self.readers.get(id(tensor), [])
            reader = readers[0] if len(readers) == 1 else None
            if reader is None or self.count[id(reader.operation)] > 1:
                return None
            operation = reader.operation
            if is_nested(operation):
                tensor = self.inner[id(tensor)]
                continue
            more = _affine(reader)
            if more is not None and not padded:
                plan.scalings.append(reader.path)
                plan.factor, plan.offset = plan.factor * more[0], plan.offset * more[0] + more[1]
            elif isinstance(operation, _KEEPING):
                padded = True
            elif not isinstance(operation, _PASSING):
                return _ended(plan, reader, padded)
            tensor = reader.outputs[0]


def _ended(plan: _Plan, reader: Call, padded: bool) -> _Plan | None:
    """The plan with the layer that ends it, if that layer can take the factor."""
    layer = reader.operation
    kind = type(layer).__name__
    if kind not in _INPUTS or not isinstance(layer, keras.Layer) or (np.abs(plan.factor) < 1e-12).any():
        return None
    channels = layer.kernel.shape[_INPUTS[kind]]
    grouped = getattr(layer, "groups", 1) > 1
    if (
        plan.factor.size not in ((1,) if grouped else (1, channels))
        or getattr(layer, "data_format", "") == "channels_first"
    ):
        return None
    if any(not link.scales for _, chain in chains(layer) for link in chain.links):
        return None
    plan.layer = reader.path
    into_bias = kind == "Dense" or (
        kind.startswith("Conv") and kind[-1] == "D" and layer.padding == "valid" and not padded
    )
    if np.any(plan.offset) and (not into_bias or grouped):
        plan.shift = plan.offset / plan.factor
    return plan


def _affine(call: Call) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and offset of a scaling, each one number or one a channel (last axis), in float64; None for anything else."""
    operation = call.operation
    if isinstance(operation, L.Rescaling):
        factor, offset = (np.atleast_1d(np.asarray(v, np.float64)) for v in (operation.scale, operation.offset))
    elif isinstance(operation, L.Normalization) and operation.mean is not None and not operation.invert:
        mean, variance = (
            np.asarray(keras.ops.convert_to_numpy(v), np.float64).ravel() for v in (operation.mean, operation.variance)
        )
        factor = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        offset = -mean * factor
    else:
        return None
    axis = getattr(operation, "axis", ()) or ()
    last = len(call.inputs[0].shape) - 1
    # Whole numbers need the layer that makes floats of them.
    whole = not str(call.inputs[0].dtype).startswith(("float", "bfloat"))
    if whole or factor.ndim > 1 or offset.ndim > 1 or any(a not in (-1, last) for a in axis):
        return None
    return factor, offset


def _scale(layer, plan: _Plan) -> None:
    """Put a plan's factor into the kernel, and its offset into the bias where it does not stay before the layer."""
    axis = _INPUTS[type(layer).__name__]
    kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel), np.float64)
    shape = [1] * kernel.ndim
    shape[axis] = -1
    if plan.shift is None and np.any(plan.offset):
        extra = (kernel * plan.offset.reshape(shape)).sum(tuple(range(kernel.ndim - 1)))
        if layer.bias is None:
            _keras_compat.add_bias(layer, len(extra))
        bias = np.asarray(keras.ops.convert_to_numpy(layer.bias), np.float64)
        layer.bias.assign((bias + extra).astype("float32"))
    layer.kernel.assign((kernel * plan.factor.reshape(shape)).astype("float32"))
