"""Pairs of layers between which a positive factor a channel can move, found in the graph."""

import dataclasses

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.graph.calls import Call, all_calls, calls, graph_of, is_nested
from tfcompress.graph.fold import KERNELS
from tfcompress.parametrization import chains
from tfcompress.quantization.placement import TRANSPARENT, activation_name

layers = keras.layers
# The kernel that reads a layer's input, and the axis of it that holds the input's channels.
INPUTS = {
    "Dense": ("kernel", -2), **{f"Conv{n}D": ("kernel", -2) for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": ("kernel", -1) for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": ("kernel", -2) for n in (1, 2)},
    **{f"SeparableConv{n}D": ("depthwise_kernel", -2) for n in (1, 2)},
}  # fmt: skip
# f(a x) = a f(x) for every positive factor a channel.
_POOLING = (
    layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
    layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
    layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D,
    layers.UpSampling1D, layers.UpSampling2D,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers between which a positive factor a channel can move.

    Args:
        first, second: their paths. between: what lies between them, in order. rows: positions that a Flatten joins with
            each channel, 1 without one.
    """

    first: str
    second: str
    between: tuple
    rows: int = 1


def pairs(model) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a model whose batch normalization is folded, and by path why other layers begin none.

    Args:
        model: a Functional or built Sequential model.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu", name="a"), layers.Dense(2, name="b")])
        >>> [(pair.first, pair.second) for pair in pairs(model)[0]]
        [('a', 'b')]
    """
    times: dict[int, int] = {}
    for call in all_calls(model):
        times[id(call.operation)] = times.get(id(call.operation), 0) + 1
    found: list[Pair] = []
    reasons: dict[str, str] = {}
    _search(model, "", times, found, reasons, set())
    return found, reasons


def _search(model, prefix: str, times, found: list[Pair], reasons: dict[str, str], seen: set[int]) -> None:
    readers: dict[int, list[Call | None]] = {id(tensor): [None] for tensor in graph_of(model).outputs}
    own = calls(model, prefix)
    for call in own:
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(call)
    for call in own:
        if is_nested(call.operation) and id(call.operation) not in seen:
            seen.add(id(call.operation))
            _search(call.operation, call.path + "/", times, found, reasons, seen)
        elif _can_begin(call.operation) and call.path not in reasons:
            pair = _follow(call, readers, times)
            if isinstance(pair, Pair):
                found.append(pair)
            else:
                reasons[call.path] = pair


def _can_begin(layer) -> bool:
    return type(layer).__name__ in KERNELS and _keras_compat.is_builtin(layer)


def _follow(call: Call, readers, times) -> Pair | str:
    """The pair that a layer begins, or why it begins none."""
    layer = call.operation
    obstacle = _unfit(layer, times)
    if obstacle:
        return obstacle
    if getattr(layer.activation, "__name__", "?") not in ("linear", "relu", "leaky_relu"):
        return f"its activation {getattr(layer.activation, '__name__', 'function')} does not pass a factor on"
    between: list = [layers.ReLU()] if getattr(layer.activation, "__name__", "") == "relu" else []
    tensor, rows = call.outputs[0], 1
    while True:
        following = readers.get(id(tensor), [])
        if len(following) != 1 or following[0] is None:
            return "its output is read more than once, or is the model's"
        reader = following[0]
        operation = reader.operation
        if _can_begin(operation):
            obstacle = _unfit(operation, times)
            if obstacle or getattr(operation, "groups", 1) != 1:
                return f"{reader.path!r} behind it: {obstacle or 'its channels are in groups'}"
            if rows > 1 and type(operation).__name__ != "Dense":
                return f"a Flatten before {reader.path!r}"
            return Pair(call.path, reader.path, tuple(between), rows)
        if isinstance(operation, layers.Flatten) and len(tensor.shape) > 2 and rows == 1:
            rows = int(np.prod(tensor.shape[1:-1]))
        elif not _passes(operation):
            return f"{reader.path!r} ({type(operation).__name__}) behind it does not pass a factor on"
        between.append(operation)
        tensor = reader.outputs[0]


def _unfit(layer, times) -> str:
    if times[id(layer)] > 1:
        return "it is called more than once"
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return "its channels come first"
    if any(not link.scales for _, chain in chains(layer) for link in chain.links):
        return "its weights are held to values that a factor would leave"
    return ""


def _passes(operation) -> bool:
    """Whether f(a x) = a f(x) for a positive factor a channel, in inference."""
    if getattr(operation, "data_format", "channels_last") != "channels_last":
        return False
    if isinstance(operation, (layers.LeakyReLU, layers.PReLU, *_POOLING, *TRANSPARENT)):
        return not isinstance(operation, layers.Masking)
    if isinstance(operation, layers.Activation):
        return getattr(operation.activation, "__name__", "") in ("relu", "leaky_relu", "linear")
    return activation_name(operation) == "relu" or type(operation).__name__ == "LeakyRelu"
