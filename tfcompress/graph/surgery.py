"""Removing channels: a smaller plain model whose output equals that of the masked one.

`remove_channels` cuts weights and configs; `masked` zeroes the same channels behind every operation and keeps the shapes,
as the reference that surgery is tested against.
"""

import dataclasses
import math

import keras
import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.errors import CompressionError, nearest
from tfcompress.graph import index_maps
from tfcompress.graph.calls import Call, graph_of, is_nested
from tfcompress.graph.channels import Group, Member, Trace, groups_of
from tfcompress.graph.operator_rules import slices
from tfcompress.graph.rebuild import Weighted, rebuild
from tfcompress.parametrization import is_parametrized


@dataclasses.dataclass(frozen=True)
class Change:
    """What surgery did to one layer.

    Args:
        layer: path. what: the weight that changed, or the argument. before, after: its shapes.
    """

    layer: str
    what: str
    before: tuple
    after: tuple

    def __str__(self) -> str:
        return f"{self.layer}.{self.what}: {self.before} -> {self.after}"


class Cut:
    """Which channel labels of a traced model go, checked.

    Args:
        trace: the model's labels. removed: representatives of the labels that go.
    """

    def __init__(self, trace: Trace, removed):
        self.trace = trace
        self.removed = np.array(sorted(removed), dtype=np.int64)

    def kept(self, labels: np.ndarray) -> np.ndarray:
        """For each label, whether it stays."""
        return ~np.isin(self.trace.classes.find(labels), self.removed)

    def count(self, labels: np.ndarray, shape, axis: int) -> int | None:
        """How long an axis of a tensor is after the cut; None where its size is unknown."""
        if labels.shape[axis] == 1:
            return shape[axis]
        others = tuple(a for a in range(labels.ndim) if a != axis)
        return int(self.kept(labels).any(axis=others).sum())

    def shape(self, tensor) -> tuple:
        """The shape of a symbolic tensor after the cut."""
        labels = self.trace.of(tensor)
        return tuple(self.count(labels, tensor.shape, axis) for axis in range(labels.ndim))

    def check(self) -> None:
        """Refuse a cut that would leave a layer or tensor with nothing."""
        for member in self.trace.members.values():
            if not self.kept(member.labels).any():
                raise CompressionError(
                    f"Removing these channels would leave {member.path!r} without any ({member.weight}, axis {member.axis}). "
                    "Keep at least one."
                )
        for where, tensor in self.trace.tensors.values():
            if not self.kept(self.trace.of(tensor)).any():
                raise CompressionError(f"Removing these channels would leave nothing of the output of {where}.")


def plan(trace: Trace, removals: dict, round_to: int = 1) -> Cut:
    """Turn {group or layer name: channel indices} into a checked cut.

    Args:
        trace: the model's labels. removals, round_to: as in `remove_channels`.

    Raises:
        CompressionError: a name or index is unknown, or a channel cannot be removed; the message names the layer.
    """
    if round_to < 1:
        raise CompressionError(f"`round_to` must be at least 1; received {round_to}.")
    found = groups_of(trace)
    owner = {member.path: group for group in found for member in group.producers}
    wanted: dict[str, list[int]] = {}
    for name, indices in removals.items():
        path = name.root if isinstance(name, Group) else name
        if path not in owner:
            kind = trace_kind(trace, path)
            raise CompressionError(f"{path!r} makes no channels that can be removed{kind}. {nearest(path, owner)}")
        group = owner[path]
        slots = np.arange(len(group)) if isinstance(name, Group) or group.root == path else group.slots(path)
        indices = np.asarray(indices, dtype=np.int64).ravel()
        size = len(slots)
        if indices.size and (indices.min() < 0 or indices.max() >= size):
            raise CompressionError(f"{path!r} has channels 0 to {size - 1}; asked to remove {indices.tolist()}.")
        wanted.setdefault(group.root, []).extend(slots[indices].tolist())
    removed: set[int] = set()
    for root, listed in wanted.items():
        group = owner[root]
        going = list(dict.fromkeys(listed))
        for slot in going:
            if slot in group.fixed:
                raise CompressionError(f"Channel {slot} of {root!r} cannot be removed: {group.fixed[slot]}.")
        removed |= set(group.classes[going[: rounded(group, len(going), round_to)]].tolist())
    cut = Cut(trace, removed)
    cut.check()
    return cut


def rounded(group: Group, going: int, round_to: int) -> int:
    """How many of `going` slots may go so that a multiple of `round_to` channels of the root is left."""
    slots = group.slots(group.root)
    # In a grouped convolution a slot is a channel of each part.
    each = len(slots) // len(np.unique(slots))
    unit = round_to // math.gcd(round_to, each)
    return max(len(group) - math.ceil((len(group) - going) / unit) * unit, 0)


def trace_kind(trace: Trace, path: str) -> str:
    """What the layer of that path is, for an error message."""
    call = trace.calls.get(path)
    return f" (it is a {type(call.operation).__name__})" if call else ""


def remove_channels(model, removals: dict, *, round_to: int = 1):
    """A new plain model without some channels, and without everything that belongs to them.

    Args:
        model: a Functional or built Sequential model; it is left as it is.
        removals: {name: indices}. A name is a `Group`, or the path of a layer that makes channels; the indices are the
            group's slots (for its root, and in general for the first producer, they are the layer's output channels), or
            the output channels of that layer. All members of the group are cut with them.
        round_to: leave a multiple of this many channels in every group that is cut: the last indices given are spared.

    Returns:
        The smaller model, not compiled. Its output equals that of `masked(model, removals)` to float tolerance.

    Raises:
        CompressionError: a channel is fixed by an operation that cannot be followed, by an input or an output of the
            model, or is the last one of a layer.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
        >>> tuple(remove_channels(model, {"a": [0, 3]}).get_layer("b").kernel.shape)
        (2, 2)
    """
    trace = Trace(model)
    return apply_cut(model, plan(trace, removals, round_to))


def apply_cut(model, cut: Cut):
    """Build the smaller model of a checked cut."""
    trace = cut.trace
    of_layer: dict[int, list[Member]] = {}
    for member in trace.members.values():
        if not cut.kept(member.labels).all():
            of_layer.setdefault(id(member.layer), []).append(member)
    replace: dict = {found[0].path: _resized(found, cut) for found in of_layer.values()}
    shapes: dict[str, tuple] = {}
    for call in trace.calls.values():
        if is_nested(call.operation):
            for tensor in graph_of(call.operation).inputs:
                if cut.shape(tensor) != tuple(tensor.shape):
                    shapes[f"{call.path}/{_keras_compat.operation_of(tensor).name}"] = cut.shape(tensor)
        elif type(call.operation).__name__ in RESHAPERS and any(cut.shape(t) != tuple(t.shape) for t in call.inputs):
            replace.setdefault(call.path, RESHAPERS[type(call.operation).__name__](call, cut))
    return rebuild(model, replace=replace, input_shapes=shapes)


def _resized(members: list[Member], cut: Cut) -> Weighted:
    """A layer made anew for the channels that are left, with its weights cut."""
    layer, path = members[0].layer, members[0].path
    if is_parametrized(layer):
        raise CompressionError(
            f"The layer {path!r} has something of tfcompress attached. Remove channels first, or finalize the model before."
        )
    names = {id(variable): name for name, variable in select.weight_names(layer).items()}
    known = {member.weight for member in cut.trace.members.values() if member.layer is layer}
    weights = []
    for variable in layer.variables:
        value = keras.ops.convert_to_numpy(variable)
        name = names.get(id(variable), "")
        for member in members:
            if member.weight == name:
                value = np.compress(cut.kept(member.labels), value, axis=member.axis)
        if name not in known:
            raise CompressionError(f"The weight {variable.path!r} of layer {path!r} is not known to surgery.")
        weights.append(value)
    config = layer.get_config()
    for member in members:
        left = int(cut.kept(member.labels).sum())
        key = (type(layer).__name__, member.weight, member.role)
        for argument in _SIZES.get(key, ()):
            config[argument] = left
        if member.role == "along" and member.weight == "kernel" and type(layer).__name__.startswith("Conv"):
            config["groups"] = left * layer.groups // len(member.labels)
        if type(layer).__name__ == "GroupNormalization" and layer.groups == len(member.labels):
            config["groups"] = left
    return Weighted(type(layer).from_config(config), weights)


# The argument of a layer's constructor that counts the channels of a weight's axis.
_SIZES: dict[tuple[str, str, str], tuple[str, ...]] = {
    ("Dense", "kernel", "out"): ("units",),
    ("Embedding", "embeddings", "out"): ("output_dim",),
    **{(f"Conv{n}D", "kernel", role): ("filters",) for n in (1, 2, 3) for role in ("out", "along")},
    **{(f"Conv{n}DTranspose", "kernel", "out"): ("filters",) for n in (1, 2, 3)},
    **{(f"SeparableConv{n}D", "pointwise_kernel", "out"): ("filters",) for n in (1, 2)},
}


# Operations that carry sizes in their arguments.


def _target(call: Call, cut: Cut, given) -> tuple:
    """A reshape's target after the cut; -1 and unknown sizes stay as they were written."""
    after = cut.shape(call.outputs[0])[-len(given) :]
    return tuple(size if size in (-1, None) else new for size, new in zip(given, after, strict=True))


def _reshape(call: Call, cut: Cut):
    operation = call.operation
    if isinstance(operation, keras.Layer):
        target = _target(call, cut, operation.target_shape)
        return type(operation).from_config({**operation.get_config(), "target_shape": target})
    new = _keras_compat.fresh_copy(operation)
    shape = operation.newshape
    new.newshape = _target(call, cut, tuple(shape) if isinstance(shape, (tuple, list)) else (shape,))
    return new


def _split(call: Call, cut: Cut):
    new = _keras_compat.fresh_copy(call.operation)
    axis = call.operation.axis % len(call.inputs[0].shape)
    sizes = [cut.shape(tensor)[axis] for tensor in call.outputs]
    new.indices_or_sections = tuple(np.cumsum(sizes)[:-1].tolist())
    return new


def _item(call: Call, cut: Cut):
    operation, labels = call.operation, cut.trace.of(call.inputs[0])
    key = slices(call.args[1] if len(call.args) > 1 else call.kwargs["key"], labels.ndim) or []
    for axis in index_maps.varying(labels):
        start, stop, _ = key[axis].indices(labels.shape[axis])
        others = tuple(a for a in range(labels.ndim) if a != axis)
        before = np.concatenate([[0], np.cumsum(cut.kept(labels).any(axis=others))])
        key[axis] = slice(int(before[start]), int(before[stop]))
    new = _keras_compat.fresh_copy(operation)
    return lambda tensor, *args, **kwargs: new(tensor, tuple(key))


RESHAPERS = {"Reshape": _reshape, "Split": _split, "GetItem": _item}


def masked(model, removals: dict, *, round_to: int = 1):
    """The model with the same shapes in which removed channels are 0 behind every operation.

    Masks act after batch normalization and activation: a zeroed filter alone still emits relu(beta - gamma mean / std).
    Normalizations over channels take their statistics from the channels that stay. The reference for `remove_channels`.

    Args:
        model, removals, round_to: as in `remove_channels`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
        >>> masked(model, {"a": [0, 3]}).count_params() == model.count_params()
        True
    """
    trace = Trace(model)
    cut = plan(trace, removals, round_to)
    insert: dict = {}
    for call in trace.calls.values():
        masks = [cut.kept(trace.of(tensor)) for tensor in call.outputs]
        if len(masks) == 1 and not masks[0].all() and not is_nested(call.operation):
            insert[call.key] = _masking(masks[0])
    replace = {call.path: _masked_normalization(call, cut.kept(trace.of(call.inputs[0]))) for call in trace.mixers}
    return rebuild(model, insert=insert, replace=replace)


def _masking(mask: np.ndarray):
    # `where` and not a product: a masked channel may hold 0 / 0.
    return lambda tensor: keras.ops.where(mask, tensor, keras.ops.zeros_like(tensor))


def _masked_normalization(call: Call, mask: np.ndarray):
    """Layer or group normalization whose mean and variance count kept channels only."""
    layer, shape = call.operation, call.inputs[0].shape
    grouped = type(layer).__name__ == "GroupNormalization"
    listed = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis % len(shape) for axis in listed]
    over = [axis for axis in range(1, len(shape)) if (axis not in axes) == grouped]
    group = np.arange(shape[axes[0]]) * layer.groups // shape[axes[0]] if grouped else None

    def total(value):
        value = keras.ops.sum(value, axis=over, keepdims=True)
        if group is not None:
            same = np.asarray(group[:, None] == group[None, :], "float32")
            value = keras.ops.moveaxis(keras.ops.matmul(keras.ops.moveaxis(value, axes[0], -1), same), -1, axes[0])
        return value

    def normalize(tensor):
        kept = keras.ops.ones_like(tensor) * np.asarray(mask, "float32")
        mean = total(tensor * kept) / total(kept)
        result = (tensor - mean) / keras.ops.sqrt(
            total(kept * keras.ops.square(tensor - mean)) / total(kept) + layer.epsilon
        )
        own = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        for value, combine in ((layer.gamma, keras.ops.multiply), (layer.beta, keras.ops.add)):
            if value is not None:
                result = combine(result, keras.ops.convert_to_numpy(value).reshape(own))
        return result

    return normalize


def changes(before, after) -> list[Change]:
    """What differs in shape between a model and the one that surgery made of it, a row a weight.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
        >>> print(*changes(model, remove_channels(model, {"a": [0, 3]})), sep="; ")
        a.kernel: (8, 4) -> (8, 2); a.bias: (4,) -> (2,); b.kernel: (4, 2) -> (2, 2)
    """
    new = dict(select.layers(after))
    rows = []
    for path, layer in select.layers(before):
        if path not in new:
            continue
        other = select.weight_names(new[path])
        for name, variable in select.weight_names(layer).items():
            if name in other and tuple(variable.shape) != tuple(other[name].shape):
                rows.append(Change(path, name, tuple(variable.shape), tuple(other[name].shape)))
    return rows
