"""How the operators of keras.ops carry channel labels (see `rules`)."""

import keras
import numpy as np

from tfcompress.graph import index_maps
from tfcompress.graph.calls import Call
from tfcompress.graph.channels import Trace, spread
from tfcompress.graph.rules import Rule, concatenate, merge, mixed, reshape

RULES: dict[str, Rule] = {}


def rule(*names: str):
    """Register a rule for operators, by the name of Keras's class."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule(
    "Relu", "Relu6", "Sigmoid", "SparseSigmoid", "Softplus", "Softsign", "SoftShrink", "SparsePlus", "Silu", "Squareplus",
    "LogSigmoid", "LeakyRelu", "HardSigmoid", "HardSilu", "Elu", "Selu", "Gelu", "Celu", "TanhShrink", "HardTanh",
    "HardShrink", "Threshold", "Absolute", "Fabs", "Negative", "Square", "Sqrt", "Rsqrt", "Exp", "Expm1", "Log", "Log1p",
    "Tanh", "Sin", "Cos", "Erf", "Sign", "Round", "Floor", "Ceil", "Clip", "Cast", "StopGradient", "Copy", "Reciprocal",
)  # fmt: skip
def unary(trace: Trace, call: Call) -> list[np.ndarray]:
    return [trace.of(call.inputs[0])]


@rule("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum", "Power")
def binary(trace: Trace, call: Call) -> list[np.ndarray]:
    constants = [
        np.shape(v) for v in keras.tree.flatten((call.args, call.kwargs)) if not isinstance(v, keras.KerasTensor)
    ]
    if any(np.prod(shape) > 1 for shape in constants):
        return trace.refuse(call, f"{call.key!r}, which combines it with a constant array")
    return merge(trace, call)


@rule("Mean", "Sum", "Max", "Min", "Amax", "Amin", "Var", "Std", "Prod")
def reduction(trace: Trace, call: Call) -> list[np.ndarray]:
    labels, axes = trace.of(call.inputs[0]), call.operation.axis
    axes = range(labels.ndim) if axes is None else axes if isinstance(axes, (list, tuple)) else [axes]
    reduced = sorted({axis % labels.ndim for axis in axes})
    if 0 in reduced or set(reduced) & set(index_maps.varying(labels)):
        return trace.refuse(call, f"{call.key!r}, which reduces it over channels or the batch")
    if call.operation.keepdims:
        return [labels]
    return [labels.reshape([n for axis, n in enumerate(labels.shape) if axis not in reduced])]


@rule("Softmax", "LogSoftmax", "Cumsum", "Flip")
def along_an_axis(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = call.operation.axis
    return trace.refuse(call) if axis is None else mixed(trace, call, axis)


@rule("Concatenate")
def concatenation(trace: Trace, call: Call) -> list[np.ndarray]:
    return concatenate(trace, call, call.operation.axis)


@rule("Reshape")
def reshaping(trace: Trace, call: Call) -> list[np.ndarray]:
    return reshape(trace, call, trace.of(call.inputs[0]), call.inputs[0].shape)


@rule("Transpose")
def transposition(trace: Trace, call: Call) -> list[np.ndarray]:
    labels, axes = trace.of(call.inputs[0]), call.operation.axes
    axes = tuple(reversed(range(labels.ndim))) if axes is None else tuple(axis % labels.ndim for axis in axes)
    return [index_maps.Permute(labels.shape, axes)(labels)] if axes[0] == 0 else trace.refuse(call)


@rule("ExpandDims")
def expansion(trace: Trace, call: Call) -> list[np.ndarray]:
    axes = call.operation.axis
    labels, rank = trace.of(call.inputs[0]), len(call.outputs[0].shape)
    axes = sorted(axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes]))
    return trace.refuse(call) if 0 in axes else [np.expand_dims(labels, axes)]


@rule("Squeeze")
def squeezing(trace: Trace, call: Call) -> list[np.ndarray]:
    axes, tensor = call.operation.axis, call.inputs[0]
    labels = trace.of(tensor)
    if axes is None:
        axes = [axis for axis, size in enumerate(tensor.shape) if size == 1]
    axes = {axis % labels.ndim for axis in (axes if isinstance(axes, (list, tuple)) else [axes])}
    if 0 in axes:
        return trace.refuse(call)
    return [labels.reshape([n for axis, n in enumerate(labels.shape) if axis not in axes])]


@rule("Pad")
def padding(trace: Trace, call: Call) -> list[np.ndarray]:
    labels = trace.of(call.inputs[0])
    widths = np.broadcast_to(np.asarray(call.operation.pad_width), (labels.ndim, 2))
    padded = {axis for axis in range(labels.ndim) if widths[axis].any()}
    return trace.refuse(call) if padded & {0, *index_maps.varying(labels)} else [labels]


@rule("Split")
def splitting(trace: Trace, call: Call) -> list[np.ndarray]:
    labels = trace.of(call.inputs[0])
    axis = call.operation.axis % labels.ndim
    if axis == 0:
        return trace.refuse(call)
    if labels.shape[axis] == 1:
        return [labels for _ in call.outputs]
    parts, start = [], 0
    for tensor in call.outputs:
        parts.append(index_maps.Slice(labels.shape, axis, start, start + tensor.shape[axis])(labels))
        start += tensor.shape[axis]
    return parts


def slices(key, rank: int) -> list | None:
    """A `x[key]` as one slice or integer an axis; None where it is anything else.

    Example:
        >>> slices((Ellipsis, slice(0, 2)), 3)
        [slice(None, None, None), slice(None, None, None), slice(0, 2, None)]
    """
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    if any(not (part is Ellipsis or isinstance(part, (int, slice))) for part in key):
        return None
    if Ellipsis not in key:
        key.append(Ellipsis)
    at = key.index(Ellipsis)
    return key[:at] + [slice(None)] * (rank - len(key) + 1) + key[at + 1 :]


@rule("GetItem")
def item(trace: Trace, call: Call) -> list[np.ndarray]:
    labels = trace.of(call.inputs[0])
    key = slices(call.args[1] if len(call.args) > 1 else call.kwargs["key"], labels.ndim)
    if key is None or key[0] != slice(None):
        return trace.refuse(call)
    for axis, part in enumerate(key):
        if axis not in index_maps.varying(labels):
            key[axis] = 0 if isinstance(part, int) else slice(None)
        elif isinstance(part, int) or part.step not in (None, 1):
            return trace.refuse(call, f"{call.key!r}, which picks single channels or every n-th")
    return [np.asarray(labels[tuple(key)])]


@rule("DepthToSpace")
def depth_to_space(trace: Trace, call: Call) -> list[np.ndarray]:
    operation = call.operation
    axis = 1 if operation.data_format == "channels_first" else -1
    blocks = trace.along(call, call.inputs[0], axis).reshape(operation.block_size**2, -1)
    trace.tie_along(blocks, 0, f"the blocks of {call.key!r}")
    return [spread(blocks[0], 4, axis)]


@rule("SpaceToDepth")
def space_to_depth(trace: Trace, call: Call) -> list[np.ndarray]:
    operation = call.operation
    axis = 1 if operation.data_format == "channels_first" else -1
    vector = trace.along(call, call.inputs[0], axis)
    return [spread(index_maps.Tile(vector.shape, operation.block_size**2)(vector), 4, axis)]
