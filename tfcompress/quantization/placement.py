"""Where a network's tensors are rounded in an int8 file, and so where ranges have to be learned."""

import dataclasses
import math

import keras

from tfcompress import _keras_compat
from tfcompress.graph.calls import Call, all_calls, calls, graph_of, is_nested
from tfcompress.graph.expansions import ROLE
from tfcompress.quantization.batchnorm import ScheduledBatchNormalization

layers = keras.layers

# No operator of the file: their input is their output.
TRANSPARENT = (
    layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.GaussianNoise,
    layers.GaussianDropout, layers.AlphaDropout, layers.Identity, layers.ActivityRegularization, layers.Masking,
)  # fmt: skip
# Operators whose output has their input's range.
TIED = (
    layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector,
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D,
    layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, layers.UpSampling1D, layers.UpSampling2D, layers.Resizing,
)  # fmt: skip
AVERAGING = (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
TIED_OPERATORS = {
    "Reshape", "Transpose", "Squeeze", "ExpandDims", "GetItem", "Slice", "Pad", "Split", "Flip", "Repeat", "MaxPool",
    "AveragePool", "Ravel", "SwapAxes", "Moveaxis", "DepthToSpace", "SpaceToDepth", "Resize", "Tile", "BroadcastTo", "Take",
    "Max", "Min", "Amax", "Amin", "Fliplr", "Flipud", "Unstack",
}  # fmt: skip
# Their kernels clamp the result themselves, so that a ReLU behind them costs nothing and has the only tensor.
FUSING = (
    layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D,
    layers.SeparableConv1D, layers.SeparableConv2D, layers.Add, layers.Subtract, layers.Multiply,
    layers.BatchNormalization,
)  # fmt: skip
FUSING_OPERATORS = {"Add", "Subtract", "Multiply"}
CLAMPING = ("relu", "relu6", "relu_n1_to_1")
# Layers with one product and a bias, which the converter moves a constant sum behind them into.
WITH_BIAS = (
    layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D,
    layers.Conv1DTranspose, layers.Conv2DTranspose,
)  # fmt: skip
FIXED = {"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
# What the 16-bit kernels of all these have.
FIXED_16 = (1 / 32768, 0)
WITH_ACTIVATION = (
    layers.Dense, layers.EinsumDense, layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D,
    layers.DepthwiseConv2D, layers.SeparableConv1D, layers.SeparableConv2D, layers.Conv1DTranspose,
    layers.Conv2DTranspose, layers.Conv3DTranspose,
)  # fmt: skip


@dataclasses.dataclass
class Point:
    """A learned range.

    Args:
        keys: call keys of the operations whose output it rounds; several where a concatenation makes them share it.
        fixed: (scale, zero point) of 8-bit codes where the runtime allows no other.
        positive: the kernel that reads it takes only values above 0, as rsqrt does.
        room: how far the range reaches below its smallest value, for masked scores.
    """

    keys: list[str]
    fixed: tuple[float, int] | None = None
    positive: bool = False
    room: float = 0.0


def fixed_range(point: Point, bits: int) -> tuple[float, int] | None:
    """(scale, zero point) that the runtime demands of a point's codes, or None.

    Example:
        >>> fixed_range(Point(["s"], FIXED["softmax"]), 16)
        (3.0517578125e-05, 0)
    """
    return FIXED_16 if point.fixed is not None and bits == 16 else point.fixed


def activation_name(operation) -> str:
    """The name of what an operation applies: "relu", "relu6", "softmax", ... or "" for no activation.

    Example:
        >>> activation_name(keras.layers.ReLU(max_value=6)), activation_name(keras.layers.Dense(1))
        ('relu6', '')
    """
    if isinstance(operation, layers.ReLU):
        if operation.negative_slope or operation.threshold or operation.max_value not in (None, 6):
            return "clipped"
        return "relu6" if operation.max_value else "relu"
    if isinstance(operation, layers.Softmax):
        return "softmax"
    if isinstance(operation, layers.Activation):
        return getattr(operation.activation, "__name__", "function").replace("linear", "")
    if type(operation).__name__ == "Clip" and (operation.x_min, operation.x_max) == (-1, 1):
        return "relu_n1_to_1"
    name = type(operation).__name__.lower()
    return name if name in ("relu", "relu6", "softmax", "sigmoid", "tanh") else ""


def split_activations(model) -> dict[str, str]:
    """Layers whose own activation no kernel can take in, so that the value before it has a tensor of the file.

    Returns:
        {call key: activation's name}.
    """
    found = {}
    for call in all_calls(model):
        if isinstance(call.operation, WITH_ACTIVATION):
            name = getattr(call.operation.activation, "__name__", "function")
            if name not in ("linear", "relu", "relu6"):
                found[call.key] = name
    return found


def points(model) -> list[Point]:
    """Where ranges belong in a model whose batch normalization is folded and whose activations are split.

    Args:
        model: a Functional or built Sequential model.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="a"), keras.layers.ReLU(name="r")])
        >>> [point.keys for point in points(model)]
        [['x'], ['r']]
    """
    placed: list[Point] = []
    _place(model, "", placed, set(), top=True)
    return _by_role(model, placed)


def _by_role(model, placed: list[Point]) -> list[Point]:
    """Points of operations that say so (the steps of a recurrent layer) become one."""
    roles = {call.key: call.operation.__dict__.get(ROLE) for call in all_calls(model)}
    of_role: dict[str, Point] = {}
    kept: list[Point] = []
    for point in placed:
        found = dict.fromkeys(role for key in point.keys if (role := roles[key]) is not None)
        first = next((of_role[role] for role in found if role in of_role), None)
        if first is None:
            kept.append(first := point)
        else:
            first.keys += point.keys
        for role in found:
            of_role.setdefault(role, first)
    return kept


def _place(model, prefix: str, placed: list[Point], seen: set[int], top: bool) -> None:
    found = calls(model, prefix)
    readers: dict[int, list[Call | None]] = {id(tensor): [None] for tensor in graph_of(model).outputs}
    maker = {id(tensor): call for call in found for tensor in call.outputs}
    for call in found:
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(call)
    concatenations = []
    for call in found:
        if is_nested(call.operation):
            if id(call.operation) not in seen:
                seen.add(id(call.operation))
                _place(call.operation, call.path + "/", placed, seen, top=False)
        elif _has_point(call, readers, top):
            kinds = {type(reader.operation).__name__ for reader in readers.get(id(call.outputs[0]), []) if reader}
            point = Point([call.key], FIXED.get(activation_name(call.operation)), "Rsqrt" in kinds, _room(call))
            placed.append(point)
            if _is_concatenation(call.operation) or point.room:
                concatenations.append(call)
    for call in concatenations:
        _share(call, placed, maker, readers)


def _has_point(call: Call, readers, top: bool) -> bool:
    operation = call.operation
    if len(call.outputs) != 1 or not str(call.outputs[0].dtype).startswith(("float", "bfloat")):
        return False
    if isinstance(operation, layers.InputLayer):
        return top  # a nested model's input is the tensor outside, which has its own
    if passes_on(operation, call.inputs[0].shape, call.outputs[0].shape):
        return False
    if isinstance(operation, layers.Activation) and not activation_name(operation):
        return False
    following = readers.get(id(call.outputs[0]), [])
    if isinstance(operation, ScheduledBatchNormalization):
        # It is part of the layer before it, as which it leaves the graph.
        operation = _keras_compat.operation_of(call.inputs[0])
    elif len(following) == 1 and following[0] and isinstance(following[0].operation, ScheduledBatchNormalization):
        return False
    fuses = isinstance(operation, FUSING) or type(operation).__name__ in FUSING_OPERATORS
    reader = following[0] if len(following) == 1 else None
    if reader is None or not _bare(operation):
        return True
    if isinstance(operation, WITH_BIAS) and _adds_a_constant(reader):
        return False
    return not (fuses and activation_name(reader.operation) in CLAMPING)


def passes_on(operation, before, behind) -> bool:
    """Whether an operation's output lies on its input's grid; `before` and `behind` are their shapes."""
    if isinstance(operation, (*TRANSPARENT, *TIED)) or type(operation).__name__ in TIED_OPERATORS:
        return True
    # Means over one number each are their input, and the converter drops them.
    averaging = isinstance(operation, AVERAGING) or type(operation).__name__ == "Mean"
    return averaging and None not in behind[1:] and math.prod(n or 0 for n in before[1:]) == math.prod(behind[1:])


def _adds_a_constant(call: Call) -> bool:
    return type(call.operation).__name__ in ("Add", "Subtract") and len(call.inputs) == 1


def _bare(operation) -> bool:
    return getattr(operation, "activation", None) in (None, keras.activations.linear)


def _is_concatenation(operation) -> bool:
    return type(operation).__name__ in ("Concatenate", "Concat", "Stack")


def _room(call: Call) -> float:
    """How far below all others the code of a masked score has to lie, so that softmax gives it none of 256 parts."""
    low = call.args[2] if type(call.operation).__name__ == "Where" and len(call.args) == 3 else None
    if not isinstance(low, float) or low > -1e4:
        return 0.0
    return math.log(512 * (call.outputs[0].shape[-1] or 1))


def _share(call: Call, placed: list[Point], maker, readers) -> None:
    """A concatenation and its operands share one range, or the file would round the operands twice."""
    mine = next(point for point in placed if call.key in point.keys)
    for tensor in call.inputs:
        source = maker[id(tensor)]
        if str(tensor.dtype) == "bool":
            continue
        while source.inputs and passes_on(source.operation, source.inputs[0].shape, source.outputs[0].shape):
            source = maker[id(source.inputs[0])]
        theirs = next((point for point in placed if source.key in point.keys), None)
        if theirs is not None and theirs is not mine and theirs.fixed is None:
            mine.keys += theirs.keys
            placed.remove(theirs)


def input_range(layer):
    """The OutputRange layer whose grid a layer's input lies on, looked for upstream in the graph; None if there is none.

    It is read from the graph each time, so that it is right after loading, copying and cloning.
    """
    # A layer has a node for every call, and a Sequential that grew calls its layers anew: all have to agree.
    found = {id(one): one for one in (_upstream(node) for node in _keras_compat.inbound_nodes(layer))}
    return next(iter(found.values())) if len(found) == 1 else None


def _upstream(node):
    """The range layer whose grid a call's first input lies on, or None."""
    from tfcompress.layers.output_range import OutputRange

    tensor = node.input_tensors[0] if node.input_tensors else None
    while tensor is not None:
        operation = _keras_compat.operation_of(tensor)
        if isinstance(operation, OutputRange):
            return operation
        if is_nested(operation):
            tensor = graph_of(operation).outputs[_keras_compat.output_index(tensor)]
            continue
        before = _keras_compat.inbound_nodes(operation)[-1].input_tensors
        tensor = before[0] if before and passes_on(operation, before[0].shape, tensor.shape) else None
    return None
