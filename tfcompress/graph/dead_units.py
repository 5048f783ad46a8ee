"""Removing units that cannot matter: what nothing reads, and what is a constant (step 6 of [11]).

[11] Learning both Weights and Connections for Efficient Neural Networks (Han, Pool, Tran, Dally, 2015).
"""

import dataclasses

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import Call, operations
from tfcompress.graph.channels import Group, Member, Trace, groups_of
from tfcompress.graph.probe import watch
from tfcompress.graph.surgery import Cut, apply_cut


@dataclasses.dataclass(frozen=True)
class DeadUnits:
    """What happened to the dead channels of one group.

    Args:
        layer: the group's root. unread: how many were removed since nothing reads them. constant: how many were removed
            and their constant folded into the next bias. kept: how many are dead and stay. reason: why; "".
    """

    layer: str
    unread: int = 0
    constant: int = 0
    kept: int = 0
    reason: str = ""


def remove_dead_units(model) -> tuple[keras.Model, list[DeadUnits]]:
    """Remove channels whose outgoing weights are all 0, and those whose incoming weights are all 0.

    A channel of the second kind is the constant f(b): what it adds to the next layer goes into that layer's bias (which is
    made, if there is none). That is exact where the next layer is dense or a convolution that reads no padding; a constant
    other than 0 that is read together with padding stays. Repeated until nothing changes, since one removal can make
    another channel dead.

    Args:
        model: a Functional or built Sequential model; it is left as it is.

    Returns:
        (model, rows): a plain model with equal outputs (the same object if nothing was dead), and what was done by group.

    Raises:
        CompressionError: the model has no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu", name="a"), keras.layers.Dense(2, name="b")])
        >>> model.get_layer("a").set_weights([np.eye(3, 4), np.full(4, 0.5)])
        >>> small, rows = remove_dead_units(model)
        >>> small.get_layer("a").units, rows
        (3, [DeadUnits(layer='a', unread=0, constant=1, kept=0, reason='')])
    """
    unread: dict[str, int] = {}
    constant: dict[str, int] = {}
    while True:
        work = _Round(model)
        for group in work.groups:
            unread[group.root] = unread.get(group.root, 0) + len(work.unread.get(group.root, ()))
            constant[group.root] = constant.get(group.root, 0) + len(work.constant.get(group.root, ()))
        if not work.removed:
            break
        model = work.model()
    names = [root for root in unread if unread[root] or constant[root] or root in work.kept]
    rows = [
        DeadUnits(root, unread[root], constant[root], len(work.kept.get(root, ())), work.reason.get(root, ""))
        for root in names
    ]
    return model, rows


class _Round:
    """One pass over a model: which channels are dead, which of them can go, and what they add to biases."""

    def __init__(self, model):
        self.before = model
        self.trace = Trace(model)
        self.groups = groups_of(self.trace)
        self.zero = {
            key: _zero_positions(member) for key, member in self.trace.members.items() if member.role != "along"
        }
        self.unread: dict[str, list[int]] = {}
        self.constant: dict[str, list[int]] = {}
        self.kept: dict[str, list[int]] = {}
        self.reason: dict[str, str] = {}
        self.removed: set[int] = set()
        self.values: dict[int, np.ndarray] = {}
        mixed = [self.trace.of(call.inputs[0]) for call in self.trace.mixers]
        self.mixed = (
            set(self.trace.classes.find(np.concatenate([m.ravel() for m in mixed])).tolist()) if mixed else set()
        )
        for group in self.groups:
            self._judge(group)

    def _dead(self, group: Group, role: str) -> list[int]:
        """The free slots of a group whose slices are 0 in every weight of a role."""
        dead = np.ones(len(group), bool)
        for member, positions in zip(group.members, group.positions, strict=True):
            if member.role == role:
                alive = positions[~self.zero[id(member.layer), member.weight, member.axis]]
                dead[alive[alive >= 0]] = False
        return [slot for slot in group.free if dead[slot]]

    def _judge(self, group: Group) -> None:
        dead = {role: self._dead(group, role) for role in ("in", "out")}
        mixed = [slot for slot in {*dead["in"], *dead["out"]} if group.classes[slot] in self.mixed]
        unread = [slot for slot in dead["in"] if slot not in mixed]
        still = [slot for slot in dead["out"] if slot not in mixed and slot not in unread]
        if not (unread or still or mixed):
            return
        if mixed:
            self.reason[group.root] = "a normalization takes statistics over them"
        self.unread[group.root] = self._spare(group, unread)
        foldable = self._fold(group, still) if still else []
        self.constant[group.root] = self._spare(group, foldable)
        going = [*self.unread[group.root], *self.constant[group.root]]
        self.removed |= set(group.classes[going].tolist())
        kept = [slot for slot in [*unread, *still, *mixed] if slot not in going]
        if kept:
            self.kept[group.root] = kept
            self.reason.setdefault(group.root, "the last channel of a layer stays")

    def _spare(self, group: Group, slots: list[int]) -> list[int]:
        """Leave a channel in every layer and tensor."""
        slots = list(slots)
        while slots:
            cut = Cut(self.trace, self.removed | set(group.classes[slots].tolist()))
            try:
                cut.check()
            except CompressionError:
                slots.pop()
            else:
                return slots
        return []

    def _fold(self, group: Group, slots: list[int]) -> list[int]:
        """The constant slots whose value can go into every reader's bias."""
        if not self.values:
            self._measure()
        good = []
        for slot in slots:
            why = next(
                (why for why in (self._obstacle(member, group.classes[slot]) for member in group.members) if why), ""
            )
            if why:
                self.reason[group.root] = why
            else:
                good.append(slot)
        return good

    def _readers(self, member: Member) -> list[Call]:
        return [call for call in self.trace.calls.values() if call.operation is member.layer]

    def _obstacle(self, member: Member, label: int) -> str:
        """Why a constant channel cannot leave this weight, or "": it is 0, or the weight's bias can take it."""
        if member.role != "in":
            return ""
        layer = member.layer
        at = np.flatnonzero(self.trace.classes.find(member.labels) == label)
        readings = [self.values[id(call.inputs[0])][at] for call in self._readers(member)] if len(at) else []
        if all((reading == 0).all() for reading in readings):
            return ""
        kind = type(layer).__name__
        if any(np.isnan(reading).any() for reading in readings):
            return f"{member.path!r} reads it where padding has changed it at the border"
        if len(readings) > 1 and any(not np.array_equal(readings[0], other) for other in readings):
            return f"{member.path!r} is called on different constants"
        plain = kind == "Dense" or (kind in ("Conv1D", "Conv2D", "Conv3D") and layer.groups == 1)
        padded = kind != "Dense" and layer.padding != "valid" and any(size > 1 for size in layer.kernel_size)
        if not plain:
            return f"{member.path!r} ({kind}) has no place for a constant"
        if padded:
            return f"{member.path!r} reads it together with padding (padding={layer.padding!r})"
        return ""

    def _measure(self) -> None:
        """The value of every channel of every tensor that a layer sums over; NaN where it is not one constant."""
        readers = {id(member.layer): member for member in self.trace.members.values() if member.role == "in"}
        rng = np.random.default_rng(0)
        batch = []
        for tensor in self.before.inputs:
            shape = (2, *(size or 32 for size in tensor.shape[1:]))
            batch.append(rng.normal(size=shape) if "int" not in tensor.dtype else np.zeros(shape, tensor.dtype))

        def visit(call: Call, inputs: list, outputs: list) -> None:
            member = readers.get(id(call.operation))
            if member is None:
                return
            axis = -1 if type(call.operation).__name__ == "Dense" else _axis(call.operation)
            x = np.asarray(keras.ops.convert_to_numpy(inputs[0]), np.float64)
            x = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
            same = np.isclose(x, x[0], rtol=1e-5, atol=1e-7).all(axis=0)
            before = self.values.get(id(call.inputs[0]), x[0])
            self.values[id(call.inputs[0])] = np.where(same & (before == x[0]), x[0], np.nan)

        watch(
            self.before, [np.asarray(array, t.dtype) for array, t in zip(batch, self.before.inputs, strict=True)], visit
        )

    def model(self):
        """The model without what was found, the constants in the biases."""
        cut = Cut(self.trace, self.removed)
        new = apply_cut(self.before, cut)
        layers = operations(new)
        gone = set()
        for group in self.groups:
            gone |= set(group.classes[self.constant.get(group.root, [])].tolist())
        for member in self.trace.members.values():
            at = np.flatnonzero(np.isin(self.trace.classes.find(member.labels), sorted(gone)))
            if member.role != "in" or not len(at):
                continue
            constants = self.values[id(self._readers(member)[0].inputs[0])][at]
            if constants.any():
                kernel = np.asarray(keras.ops.convert_to_numpy(member.layer.kernel), np.float64)
                added = constants @ kernel.reshape(-1, *kernel.shape[-2:]).sum(axis=0)[at]
                made = self.trace.members[id(member.layer), "kernel", kernel.ndim - 1]
                _add_to_bias(layers[member.path], added[cut.kept(made.labels)])
        return new


def _add_to_bias(layer, added: np.ndarray) -> None:
    if layer.bias is None:
        _keras_compat.add_bias(layer, len(added))
    layer.bias.assign(np.asarray(keras.ops.convert_to_numpy(layer.bias), np.float64) + added)


def _axis(layer) -> int:
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def _zero_positions(member: Member) -> np.ndarray:
    """Which positions of a weight's axis hold nothing but zeros."""
    value = keras.ops.convert_to_numpy(getattr(member.layer, member.weight))
    return ~np.moveaxis(value, member.axis, 0).reshape(value.shape[member.axis], -1).any(axis=1)
