"""How each kind of layer carries channel labels, and which of its weights' axes they cut.

A rule takes the trace and a call, and returns the labels of the outputs. Only Keras's own classes have rules: a subclass
may do anything in its `call`, so it is refused like any operation without one.
"""

from collections.abc import Callable

import keras
import numpy as np

from tfcompress.graph import index_maps
from tfcompress.graph.calls import Call
from tfcompress.graph.channels import FIXED, Trace, spread

Rule = Callable[[Trace, Call], list[np.ndarray]]
RULES: dict[str, Rule] = {}

ELEMENTWISE = {
    "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "swish", "mish", "softplus", "softsign",
    "sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "hard_silu", "hard_swish", "exponential", "log_sigmoid", "squareplus",
    "soft_shrink", "hard_shrink", "tanh_shrink", "threshold", "sparse_plus", "sparse_sigmoid",
}  # fmt: skip


def rule(*names: str):
    """Register a rule for Keras classes, by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_of(operation) -> Rule:
    """The rule for an operation; the one that refuses where there is none.

    Example:
        >>> rule_of(keras.layers.Dense(1)).__name__, rule_of(keras.layers.LSTM(1)).__name__
        ('dense', 'refuse')
    """
    from tfcompress.graph import operator_rules

    kind = type(operation)
    if not kind.__module__.startswith("keras."):
        return refuse
    if isinstance(operation, keras.Layer):
        return RULES.get(kind.__name__, refuse)
    return operator_rules.RULES.get(kind.__name__, refuse)


def refuse(trace: Trace, call: Call) -> list[np.ndarray]:
    """The rule of operations that have none."""
    return trace.refuse(call)


def channel_axis(layer) -> int:
    """The axis of a layer's input that holds channels."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def elementwise(activation) -> bool:
    """Whether an activation function maps each value by itself.

    Example:
        >>> elementwise(keras.activations.relu), elementwise(keras.activations.softmax), elementwise(lambda x: x)
        (True, False, False)
    """
    if activation is None or isinstance(activation, (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)):
        return True
    module = getattr(activation, "__module__", "") or ""
    return module.startswith("keras.") and getattr(activation, "__name__", "") in ELEMENTWISE


def _activated(trace: Trace, call: Call, vector: np.ndarray, axis: int) -> list[np.ndarray]:
    """The output of a layer that makes channels: they are fixed where its activation mixes them."""
    if not elementwise(getattr(call.operation, "activation", None)):
        trace.classes.fix(vector, f"the activation of {call.key!r}, which mixes channels or is not one of Keras's")
    return [spread(vector, len(call.outputs[0].shape), axis)]


def tie_groups(trace: Trace, call: Call, labels: np.ndarray, groups: int) -> np.ndarray:
    """Channels at the same place in each of `groups` equal parts go together, so that the parts stay equal."""
    trace.tie_along(labels.reshape(groups, -1), 0, f"the groups of {call.key!r}")
    return labels


# Layers that make channels


@rule("Dense")
def dense(trace: Trace, call: Call) -> list[np.ndarray]:
    trace.weight(call, "kernel", 0, trace.along(call, call.inputs[0], -1), "in")
    out = trace.produce(call, "kernel", 1)
    trace.weight(call, "bias", 0, out)
    return _activated(trace, call, out, -1)


@rule("Conv1D", "Conv2D", "Conv3D")
def convolution(trace: Trace, call: Call) -> list[np.ndarray]:
    layer = call.operation
    inside = trace.along(call, call.inputs[0], channel_axis(layer))
    width = len(inside) // layer.groups
    if layer.groups > 1 and width == 1:
        # One input channel a group: channels go with their group, as in a depthwise convolution.
        out = index_maps.Repeat(inside.shape, layer.filters // layer.groups)(inside)
        trace.weight(call, "kernel", -1, out)
    else:
        if layer.groups > 1:
            inside = tie_groups(trace, call, inside, layer.groups)[:width]
        trace.weight(call, "kernel", -2, inside, "in")
        out = trace.produce(call, "kernel", -1)
        if layer.groups > 1:
            tie_groups(trace, call, out, layer.groups)
    trace.weight(call, "bias", 0, out)
    return _activated(trace, call, out, channel_axis(layer))


@rule("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
def transposed_convolution(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = channel_axis(call.operation)
    trace.weight(call, "kernel", -1, trace.along(call, call.inputs[0], axis), "in")
    out = trace.produce(call, "kernel", -2)
    trace.weight(call, "bias", 0, out)
    return _activated(trace, call, out, axis)


@rule("DepthwiseConv1D", "DepthwiseConv2D")
def depthwise_convolution(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = channel_axis(call.operation)
    inside = trace.along(call, call.inputs[0], axis)
    trace.weight(call, "kernel", -2, inside)
    out = index_maps.Repeat(inside.shape, call.operation.depth_multiplier)(inside)
    trace.weight(call, "bias", 0, out)
    return _activated(trace, call, out, axis)


@rule("SeparableConv1D", "SeparableConv2D")
def separable_convolution(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = channel_axis(call.operation)
    inside = trace.along(call, call.inputs[0], axis)
    trace.weight(call, "depthwise_kernel", -2, inside)
    between = index_maps.Repeat(inside.shape, call.operation.depth_multiplier)(inside)
    trace.weight(call, "pointwise_kernel", -2, between, "in")
    out = trace.produce(call, "pointwise_kernel", -1)
    trace.weight(call, "bias", 0, out)
    return _activated(trace, call, out, axis)


@rule("Embedding")
def embedding(trace: Trace, call: Call) -> list[np.ndarray]:
    out = trace.produce(call, "embeddings", 1)
    return [spread(out, len(call.outputs[0].shape), -1)]


# Layers with a weight a channel


@rule("BatchNormalization")
def batch_normalization(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = call.operation.axis
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    vector = trace.along(call, call.inputs[0], axis)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        trace.weight(call, name, 0, vector)
    return [spread(vector, len(call.inputs[0].shape), axis)]


@rule("LayerNormalization")
def layer_normalization(trace: Trace, call: Call) -> list[np.ndarray]:
    layer, tensor = call.operation, call.inputs[0]
    labels = trace.of(tensor)
    axes = [axis % labels.ndim for axis in (layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis])]
    vary = index_maps.varying(labels)
    for axis in vary[:-1]:
        trace.tie_along(labels, axis, f"the shape that {call.key!r} reads")
    if vary and vary[-1] in axes:
        vector = trace.along(call, tensor, vary[-1])
        for name in ("gamma", "beta"):
            trace.weight(call, name, axes.index(vary[-1]), vector)
        trace.mixers.append(call)
    return [labels]


@rule("GroupNormalization")
def group_normalization(trace: Trace, call: Call) -> list[np.ndarray]:
    layer = call.operation
    vector = trace.along(call, call.inputs[0], layer.axis)
    # Instance normalization (a channel a group) has no statistics over channels.
    if layer.groups not in (-1, len(vector)):
        tie_groups(trace, call, vector, layer.groups)
        trace.mixers.append(call)
    for name in ("gamma", "beta"):
        trace.weight(call, name, 0, vector)
    return [spread(vector, len(call.inputs[0].shape), layer.axis)]


@rule("PReLU")
def prelu(trace: Trace, call: Call) -> list[np.ndarray]:
    labels = trace.of(call.inputs[0])
    vary = index_maps.varying(labels)
    for axis in vary[:-1]:
        trace.tie_along(labels, axis, f"the shape that {call.key!r} reads")
    if vary and call.operation.alpha.shape[vary[-1] - 1] > 1:
        trace.weight(call, "alpha", vary[-1] - 1, trace.along(call, call.inputs[0], vary[-1]))
    return [labels]


# Layers that keep channels


@rule(
    "ReLU", "LeakyReLU", "ELU", "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout",
    "GaussianDropout", "GaussianNoise", "ActivityRegularization", "Identity", "InputLayer",
)  # fmt: skip
def passed(trace: Trace, call: Call) -> list[np.ndarray]:
    return [trace.of(call.inputs[0])]


@rule("Activation")
def activation(trace: Trace, call: Call) -> list[np.ndarray]:
    if not elementwise(call.operation.activation):
        return trace.refuse(call)
    return passed(trace, call)


@rule("Softmax")
def softmax(trace: Trace, call: Call) -> list[np.ndarray]:
    return mixed(trace, call, call.operation.axis)


def mixed(trace: Trace, call: Call, axes) -> list[np.ndarray]:
    """An operation that mixes values along some axes and keeps the shape: channels along those are fixed."""
    labels = trace.of(call.inputs[0])
    axes = {axis % labels.ndim for axis in (axes if isinstance(axes, (list, tuple)) else [axes])}
    if axes & set(index_maps.varying(labels)):
        return trace.refuse(call, f"{call.key!r}, where every channel enters into every other")
    return [labels]


@rule("Rescaling")
def rescaling(trace: Trace, call: Call) -> list[np.ndarray]:
    scalar = np.ndim(call.operation.scale) == 0 and np.ndim(call.operation.offset) == 0
    return passed(trace, call) if scalar else trace.refuse(call)


@rule(
    *(f"{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(f"{kind}{n}D" for kind in ("UpSampling", "ZeroPadding", "Cropping") for n in (1, 2, 3)),
)  # fmt: skip
def spatial(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = channel_axis(call.operation)
    return [spread(trace.along(call, call.inputs[0], axis), len(call.inputs[0].shape), axis)]


@rule(*(f"Global{kind}Pooling{n}D" for kind in ("Max", "Average") for n in (1, 2, 3)))
def global_pooling(trace: Trace, call: Call) -> list[np.ndarray]:
    axis = channel_axis(call.operation)
    vector = trace.along(call, call.inputs[0], axis)
    return [spread(vector, len(call.outputs[0].shape), axis if call.operation.keepdims else -1)]


@rule("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
def joined(trace: Trace, call: Call) -> list[np.ndarray]:
    return merge(trace, call)


def merge(trace: Trace, call: Call) -> list[np.ndarray]:
    """Tensors combined value by value: channels that meet go together."""
    rank = len(call.outputs[0].shape)
    if any(len(tensor.shape) != rank for tensor in call.inputs):
        return trace.refuse(call, f"{call.key!r}, which joins tensors of different rank")
    result = np.full((1,) * rank, FIXED)
    parts = []
    for tensor in call.inputs:
        labels = trace.of(tensor)
        stretched = [a for a in range(1, rank) if tensor.shape[a] == 1 and call.outputs[0].shape[a] != 1]
        others = [trace.of(t) for t in call.inputs if t is not tensor]
        if any(max(o.shape[a] for o in others) > 1 for a in stretched):
            # A single channel that is stretched over many belongs to all of them.
            trace.classes.fix(labels, f"{call.key!r}, which stretches it over many channels")
        else:
            parts.append(labels)
    for labels in parts:
        if result is not None and (result != FIXED).any():
            trace.classes.tie(result, labels, f"joined by {call.key!r} to channels that cannot be removed")
            shape = np.broadcast_shapes(result.shape, labels.shape)
            result = np.broadcast_to(np.where((result == FIXED), labels, result), shape)
        else:
            if parts[0] is not labels:
                trace.classes.fix(labels, f"joined by {call.key!r} to channels that cannot be removed")
            result = np.array(labels)
    return [result]


@rule("Concatenate")
def concatenation(trace: Trace, call: Call) -> list[np.ndarray]:
    return concatenate(trace, call, call.operation.axis)


def concatenate(trace: Trace, call: Call, axis: int) -> list[np.ndarray]:
    """Tensors one behind another along an axis; channels along other axes go together."""
    whole = call.outputs[0].shape
    axis %= len(whole)
    sizes = [tensor.shape[axis] for tensor in call.inputs]
    parts = [trace.of(tensor) for tensor in call.inputs]
    if any(size is None for size in sizes) or any(a != axis for part in parts for a in index_maps.varying(part)):
        # Not a concatenation of channels: what varies along another axis varies there in every part.
        for part in parts:
            trace.tie_along(part, axis, f"the shape that {call.key!r} reads")
            trace.classes.tie(part, parts[0], f"joined by {call.key!r} to channels that cannot be removed")
        return [np.array(max((np.take(part, [0], axis) for part in parts), key=np.size))]
    total, offset = sum(sizes), 0
    labels = np.full([total if a == axis else 1 for a in range(len(whole))], FIXED)
    for part, size in zip(parts, sizes, strict=True):
        part = index_maps.expand(part, [size if a == axis else 1 for a in range(part.ndim)], [axis])
        placed = index_maps.Place(part.shape, axis, offset, total)(part)
        labels = np.where(placed == FIXED, labels, placed)
        offset += size
    return [labels]


@rule("Flatten")
def flatten(trace: Trace, call: Call) -> list[np.ndarray]:
    labels, shape = trace.of(call.inputs[0]), call.inputs[0].shape
    if channel_axis(call.operation) == 1 and len(shape) > 2:
        order = (0, *range(2, len(shape)), 1)
        labels, shape = index_maps.Permute(labels.shape, order)(labels), [shape[axis] for axis in order]
    return reshape(trace, call, labels, shape)


@rule("Reshape")
def reshape_layer(trace: Trace, call: Call) -> list[np.ndarray]:
    return reshape(trace, call, trace.of(call.inputs[0]), call.inputs[0].shape)


def reshape(trace: Trace, call: Call, labels: np.ndarray, shape) -> list[np.ndarray]:
    """The same values under the output's shape; the batch axis stays."""
    target = call.outputs[0].shape
    rank = len(target)
    if not index_maps.varying(labels):
        return [labels.ravel()[:1].reshape((1,) * rank)]
    if None not in shape[1:] and None not in target[1:] and np.prod(shape[1:]) == np.prod(target[1:]):
        full = index_maps.expand(labels, shape)
        return [index_maps.compress(index_maps.Reshape(full.shape, (1, *target[1:]))(full))]
    if index_maps.varying(labels) == [len(shape) - 1] and shape[-1] == target[-1] and target[0] is None:
        # Unknown sizes, but the channels stay the last axis.
        return [spread(labels.ravel(), rank, -1)]
    return trace.refuse(call, f"{call.key!r}, whose shape {tuple(shape)} -> {tuple(target)} cannot be followed")


@rule("Permute")
def permute(trace: Trace, call: Call) -> list[np.ndarray]:
    labels = trace.of(call.inputs[0])
    return [index_maps.Permute(labels.shape, (0, *call.operation.dims))(labels)]


@rule("RepeatVector")
def repeat_vector(trace: Trace, call: Call) -> list[np.ndarray]:
    return [trace.of(call.inputs[0])[:, None, :]]
