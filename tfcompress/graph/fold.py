"""Batch normalization folded into the layer before it: kernel * gamma / sqrt(variance + epsilon)."""

import dataclasses

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.graph.calls import Call, calls, graph_of, is_nested, operations
from tfcompress.graph.rebuild import rebuild
from tfcompress.graph.rules import channel_axis
from tfcompress.parametrization import chains

# The weight that makes the output channels, and the axis of it that holds them; a depthwise kernel holds them in two.
KERNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "Dense": ("kernel", (-1,)),
    **{f"Conv{n}D": ("kernel", (-1,)) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": ("kernel", (-2,)) for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": ("kernel", (-2, -1)) for n in (1, 2)},
    **{f"SeparableConv{n}D": ("pointwise_kernel", (-1,)) for n in (1, 2)},
}


@dataclasses.dataclass(frozen=True)
class Fold:
    """What happened to one batch normalization.

    Args:
        normalization: its path. layer: path of the layer it is folded into; "" where it is kept.
        reason: why it is kept; "". bias_added: whether the layer had no bias before.
    """

    normalization: str
    layer: str = ""
    reason: str = ""
    bias_added: bool = False


def foldable(model, skip=()) -> list[Fold]:
    """Every BatchNormalization of a model, with the layer that it can be folded into, or why it is kept.

    Args:
        model: a Functional or built Sequential model. skip: paths of normalizations or layers to leave alone.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, use_bias=False, name="c"),
        ...                           keras.layers.BatchNormalization(name="n")])
        >>> foldable(model)
        [Fold(normalization='n', layer='c', reason='', bias_added=True)]
    """
    rows: list[Fold] = []
    _search(model, "", set(skip), rows, set())
    return rows


def _search(model, prefix: str, skip: set[str], rows: list[Fold], seen: set[int]) -> None:
    graph = graph_of(model)
    found = calls(model, prefix)
    maker = {id(tensor): call for call in found for tensor in call.outputs}
    readers: dict[int, int] = {id(tensor): 1 for tensor in graph.outputs}
    times: dict[int, int] = {}
    for call in found:
        times[id(call.operation)] = times.get(id(call.operation), 0) + 1
        for tensor in call.inputs:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    for call in found:
        if id(call.operation) in seen:
            continue
        seen.add(id(call.operation))
        if is_nested(call.operation):
            _search(call.operation, call.path + "/", skip, rows, seen)
        elif isinstance(call.operation, keras.layers.BatchNormalization):
            source = maker[id(call.inputs[0])]
            reason = _obstacle(call, source, readers[id(call.inputs[0])], times, skip)
            if reason:
                rows.append(Fold(call.path, reason=reason))
            else:
                rows.append(Fold(call.path, source.path, bias_added=source.operation.bias is None))


def _obstacle(call: Call, source: Call, readers: int, times: dict[int, int], skip: set[str]) -> str:
    layer, normalization = source.operation, call.operation
    if call.path in skip or source.path in skip:
        return "left out by skip"
    if not source.inputs:
        return "it follows an input"
    kind = type(layer).__name__
    if kind not in KERNELS or not type(layer).__module__.startswith("keras."):
        return f"it follows {source.key!r} ({kind}), which has no kernel to fold into"
    if getattr(layer, "activation", None) is not keras.activations.linear:
        return f"{source.key!r} has an activation between"
    if readers > 1:
        return f"the output of {source.key!r} is also read elsewhere"
    if times[id(layer)] > 1 or times[id(normalization)] > 1:
        return f"{source.key!r} or the normalization is called more than once"
    axis = normalization.axis[0] if isinstance(normalization.axis, (list, tuple)) else normalization.axis
    rank = len(call.inputs[0].shape)
    own = -1 if kind == "Dense" else channel_axis(layer)
    if axis % rank != own % rank:
        return f"it normalizes axis {axis}, and {source.key!r} makes channels on axis {own}"
    if any(not link.scales for _, chain in chains(layer) for link in chain.links):
        return f"the weights of {source.key!r} are held to values that a factor a channel would leave; fold before attaching"
    return ""


def fold_batchnorm(model, skip=(), *, reuse: bool = False):
    """Fold every BatchNormalization that can be into the layer before it, and take it out of the graph.

    Folded are those after Conv1D/2D/3D, their transposed forms, DepthwiseConv, SeparableConv (into the pointwise kernel)
    and Dense, without an activation between and with no other reader. The model then predicts the same in inference, to
    about 1e-6 relative; in training there are no batch statistics any more.

    Args:
        model: a Functional or built Sequential model.
        skip: paths of normalizations, or of layers, to leave alone.
        reuse: change the layers of `model` itself (a missing bias is added to the layer) instead of a copy.

    Returns:
        (model, rows): the new model and a `Fold` for every BatchNormalization, those that were kept with the reason.

    Raises:
        CompressionError: the model has no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 3, use_bias=False, name="c"),
        ...                           keras.layers.BatchNormalization(name="n")])
        >>> new, rows = fold_batchnorm(model)
        >>> new.layers[0].use_bias, rows[0].layer
        (True, 'c')
    """
    rows = foldable(model, skip)
    old = operations(model)
    outputs = {id(_keras_compat.operation_of(tensor)) for tensor in graph_of(model).outputs}
    pairs = [row for row in rows if row.layer]
    affine = {row.normalization: _affine(old[row.normalization]) for row in pairs}
    # A normalization that is an output of the model leaves its name behind.
    ends = {
        row.normalization: keras.layers.Identity(
            name=old[row.normalization].name, dtype=old[row.normalization].dtype_policy
        )
        for row in pairs
        if id(old[row.normalization]) in outputs
    }
    new = rebuild(
        model, replace=ends, drop=[row.normalization for row in pairs if row.normalization not in ends], reuse=reuse
    )
    layers = operations(new)
    for row in pairs:
        _fold(layers[row.layer], *affine[row.normalization])
    return new, rows


def _affine(layer) -> tuple[np.ndarray, np.ndarray]:
    """The factor and the offset a channel that a batch normalization applies in inference, in float64."""
    mean, variance = (
        np.asarray(keras.ops.convert_to_numpy(v), np.float64) for v in (layer.moving_mean, layer.moving_variance)
    )
    factor = 1 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        factor = factor * np.asarray(keras.ops.convert_to_numpy(layer.gamma), np.float64)
    offset = -mean * factor
    if layer.beta is not None:
        offset = offset + np.asarray(keras.ops.convert_to_numpy(layer.beta), np.float64)
    return factor, offset


def _fold(layer, factor: np.ndarray, offset: np.ndarray) -> None:
    name, axes = KERNELS[type(layer).__name__]
    variable = getattr(layer, name)
    kernel = np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
    shape = [1] * kernel.ndim
    for axis in axes:
        shape[axis] = kernel.shape[axis]
    variable.assign((kernel * factor.reshape(shape)).astype("float32"))
    if layer.bias is None:
        _keras_compat.add_bias(layer, len(factor))
        bias = np.zeros(len(factor))
    else:
        bias = np.asarray(keras.ops.convert_to_numpy(layer.bias), np.float64)
    layer.bias.assign((bias * factor + offset).astype("float32"))
