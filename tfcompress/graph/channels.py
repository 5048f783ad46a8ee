"""Channel groups: for every channel of every tensor of a graph, the slices of weights that have to go together.

Every output channel of a layer gets a label. Rules (`rules`, `operator_rules`) carry labels through the graph, and tie
those that can only go together: by an addition, by a reshape, by a layer that is called twice. The idea of a dependency
graph of groups is Torch-Pruning's (DepGraph); here a group is read off the labels. An operation without a rule, the
model's inputs and its outputs *fix* the channels that they touch, with the reason, so that no cut can go wrong silently.
"""

import dataclasses

import keras
import numpy as np

from tfcompress.graph import index_maps
from tfcompress.graph.calls import Call, calls, graph_of, is_nested

FIXED = -1


class Classes:
    """Disjoint sets of channel labels, with reasons why some may not be removed.

    Example:
        >>> classes = Classes()
        >>> a, b = classes.new(2), classes.new(2)
        >>> classes.tie(a, b)
        >>> classes.find(b).tolist()
        [0, 1]
    """

    def __init__(self):
        self.parent: list[int] = []
        self.reason: dict[int, str] = {}

    def new(self, count: int) -> np.ndarray:
        """Fresh labels."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _root(self, label: int) -> int:
        path = []
        while self.parent[label] != label:
            path.append(label)
            label = self.parent[label]
        for step in path:
            self.parent[step] = label
        return label

    def find(self, labels) -> np.ndarray:
        """The representative of each label; FIXED stays FIXED."""
        labels = np.asarray(labels)
        unique, inverse = np.unique(labels, return_inverse=True)
        roots = np.array([label if label == FIXED else self._root(int(label)) for label in unique], dtype=np.int64)
        return roots[inverse].reshape(labels.shape)

    def tie(self, first, second, reason: str = "") -> None:
        """Labels at the same position go together from now on; tied to FIXED, they may not go."""
        first, second = np.broadcast_arrays(np.asarray(first, np.int64), np.asarray(second, np.int64))
        differ = first != second
        pairs = np.unique((first[differ] << 32) + (second[differ] - FIXED))
        for a, b in zip((pairs >> 32).tolist(), ((pairs & 0xFFFFFFFF) + FIXED).tolist(), strict=True):
            if a == FIXED or b == FIXED:
                self.fix([a, b], reason)
                continue
            a, b = self._root(a), self._root(b)
            low, high = min(a, b), max(a, b)
            if low != high:
                self.parent[high] = low
                if high in self.reason:
                    self.reason.setdefault(low, self.reason.pop(high))

    def fix(self, labels, reason: str) -> None:
        """These labels may not be removed, because of `reason`."""
        for label in np.unique(np.asarray(labels)).tolist():
            if label != FIXED:
                self.reason.setdefault(self._root(label), reason)


@dataclasses.dataclass(eq=False)
class Member:
    """An axis of a weight, or of its bias and statistics, and the labels of its positions.

    Args:
        path: the layer's path. layer: the layer. weight: attribute name of the weight. axis: its axis.
        role: "out" where the layer makes the channels, "in" where it sums over them, "along" where it keeps them.
        labels: one label a position.
    """

    path: str
    layer: keras.Layer
    weight: str
    axis: int
    role: str
    labels: np.ndarray


class Trace:
    """The labels of every tensor and weight axis of a model's graph.

    Args:
        model: a Functional or built Sequential model.

    Attributes:
        classes: which labels go together.
        members: {(id of layer, weight, axis): Member}, in the order of the graph.
        labels: {id of symbolic tensor: labels}. calls: every call that was followed, nested ones included.
        mixers: calls that compute statistics over channels (LayerNormalization), where a cut changes the others.
    """

    def __init__(self, model):
        self.classes = Classes()
        self.members: dict[tuple[int, str, int], Member] = {}
        self.labels: dict[int, np.ndarray] = {}
        self.tensors: dict[int, tuple[str, keras.KerasTensor]] = {}
        self.calls: dict[str, Call] = {}
        self.mixers: list[Call] = []
        graph = graph_of(model)
        for tensor in graph.inputs:
            self.store(tensor, np.full((1,) * len(tensor.shape), FIXED), "an input of the model")
        self.follow(graph, "")
        for tensor in graph.outputs:
            self.classes.fix(self.of(tensor), "an output of the model")
        self._make_rectangular()

    def follow(self, model, prefix: str) -> None:
        """Carry labels through a graph whose inputs have theirs."""
        from tfcompress.graph.rules import rule_of

        for call in calls(model, prefix):
            if not call.inputs:
                continue
            self.calls[call.key] = call
            if is_nested(call.operation):
                outputs = self._nested(call)
            else:
                outputs = rule_of(call.operation)(self, call)
            for tensor, labels in zip(call.outputs, outputs, strict=True):
                self.store(tensor, labels, f"{call.key!r}")

    def _nested(self, call: Call) -> list[np.ndarray]:
        inner = graph_of(call.operation)
        for tensor, outer in zip(inner.inputs, call.inputs, strict=True):
            self.store(tensor, self.of(outer), f"input of {call.key!r}")
        self.follow(inner, call.path + "/")
        return [self.of(tensor) for tensor in inner.outputs]

    def _make_rectangular(self) -> None:
        """What is left of a tensor must be a box: where channels vary along several axes, only the last may be cut."""
        for key, (_, tensor) in self.tensors.items():
            labels = self.classes.find(self.labels[key])
            vary = index_maps.varying(labels)
            for axis in vary[:-1]:
                self.tie_along(labels, axis, f"the shape of {tensor.name!r}")

    # What rules use

    def of(self, tensor) -> np.ndarray:
        """The labels of a symbolic tensor; its rank, uniform axes 1 long."""
        return self.labels[id(tensor)]

    def store(self, tensor, labels: np.ndarray, where: str) -> None:
        """Set a tensor's labels; when a nested model is called again, tie them to those of the first call."""
        if id(tensor) in self.labels:
            self.classes.tie(self.labels[id(tensor)], labels, f"shared by {where}")
        else:
            self.labels[id(tensor)] = np.asarray(labels)
            self.tensors[id(tensor)] = (where, tensor)

    def tie_along(self, labels: np.ndarray, axis: int, reason: str = "") -> None:
        """All positions along an axis go together."""
        self.classes.tie(labels, np.take(labels, [0], axis), reason)

    def along(self, call: Call, tensor, axis: int) -> np.ndarray:
        """A tensor's labels as a vector along one axis; along the others they are tied together."""
        labels, axis = self.of(tensor), axis % len(tensor.shape)
        for other in range(labels.ndim):
            if other != axis and labels.shape[other] > 1:
                self.tie_along(labels, other, f"the shape that {call.key!r} reads")
        vector = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)[:, 0]
        size = tensor.shape[axis]
        if len(vector) == 1 and size is not None and size > 1:
            vector = np.repeat(vector, size)
        return vector

    def weight(self, call: Call, name: str, axis: int, labels: np.ndarray, role: str = "along") -> None:
        """The axis of a weight of the called layer carries these labels; skipped where the layer has no such weight."""
        layer = call.operation
        variable = getattr(layer, name, None)
        if variable is None:
            return
        axis %= len(variable.shape)
        known = self.members.get((id(layer), name, axis))
        if known is not None:
            self.classes.tie(known.labels, labels, f"{call.path!r} is shared")
        else:
            self.members[id(layer), name, axis] = Member(call.path, layer, name, axis, role, np.asarray(labels))

    def produce(self, call: Call, name: str, axis: int) -> np.ndarray:
        """Labels for the channels that the called layer makes: the same ones at every call."""
        layer = call.operation
        shape = getattr(layer, name).shape
        known = self.members.get((id(layer), name, axis % len(shape)))
        if known is None:
            self.weight(call, name, axis, self.classes.new(shape[axis]), "out")
            known = self.members[id(layer), name, axis % len(shape)]
        return known.labels

    def refuse(self, call: Call, why: str = "") -> list[np.ndarray]:
        """Fix all channels that a call reads and makes: it cannot be followed."""
        reason = why or f"{call.key!r} ({type(call.operation).__name__}), which surgery cannot follow"
        for tensor in call.inputs:
            self.classes.fix(self.of(tensor), reason)
        return [np.full((1,) * len(tensor.shape), FIXED) for tensor in call.outputs]


def spread(vector: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """A vector of labels as labels of a tensor that is uniform along all axes but one.

    Example:
        >>> spread(np.array([4, 5]), 4, -1).shape
        (1, 1, 1, 2)
    """
    shape = [1] * rank
    shape[axis] = len(vector)
    return np.asarray(vector).reshape(shape)


@dataclasses.dataclass(eq=False)
class Group:
    """Channels that are numbered together, and everything that goes with each.

    Args:
        root: path of the first layer, in the order of the graph, that makes the channels; it names the group.
        classes: one representative label a slot; slot i is channel i of the root, further slots are those of the others.
        members: the weight axes that hold these channels. positions: for each member, the slot of every position, or -1.
        fixed: {slot: reason} of those that may not be removed.
    """

    root: str
    classes: np.ndarray
    members: list[Member]
    positions: list[np.ndarray]
    fixed: dict[int, str]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def free(self) -> list[int]:
        """The slots that may be removed."""
        return [slot for slot in range(len(self)) if slot not in self.fixed]

    @property
    def producers(self) -> list[Member]:
        """The weight axes of the layers that make the channels, the root's first."""
        return [member for member in self.members if member.role == "out"]

    def slots(self, path: str) -> np.ndarray:
        """The slot of every output channel of a layer that makes channels of this group."""
        for member, positions in zip(self.members, self.positions, strict=True):
            if member.path == path and member.role == "out":
                return positions
        raise KeyError(path)

    def details(self) -> str:
        """The whole group as text, a line for every axis of a weight that is cut with it."""
        lines = [f"Group {self.root!r}: {len(self)} channels, {len(self.free)} may be removed"]
        for reason in dict.fromkeys(self.fixed.values()):
            slots = [slot for slot, why in self.fixed.items() if why == reason]
            lines.append(f"  {len(slots)} fixed: {reason}")
        for member, positions in zip(self.members, self.positions, strict=True):
            count = int((positions >= 0).sum())
            name = f"{member.path}.{member.weight}"
            part = f"{count} of {len(positions)}" if count < len(positions) else str(count)
            lines.append(f"  {name:<40} axis {member.axis}  {member.role:<6} {part}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Group({self.root!r}, {len(self)} channels, {len(self.members)} weight axes)"


def groups_of(trace: Trace) -> list[Group]:
    """The groups of a traced model, in the order of the graph."""
    members = list(trace.members.values())
    roots = [trace.classes.find(member.labels) for member in members]
    component: dict[int, int] = {}
    parts: list[list[int] | None] = []
    for number, member in enumerate(members):
        if member.role != "out":
            continue
        mine = [number]
        for index in sorted({component[root] for root in roots[number].tolist() if root in component}):
            mine = parts[index] + mine  # type: ignore[operator]
            parts[index] = None
        mine.sort()
        parts.append(mine)
        component.update({root: len(parts) - 1 for index in mine for root in roots[index].tolist()})
    found = [_group(trace, members, roots, part) for part in parts if part is not None]
    return sorted(found, key=lambda group: members.index(group.members[0]))


def _group(trace: Trace, members: list[Member], roots: list[np.ndarray], part: list[int]) -> Group:
    order = list(dict.fromkeys(root for index in part for root in roots[index].tolist()))
    slot = {root: number for number, root in enumerate(order)}
    rows = []
    for index, member in enumerate(members):
        positions = np.array([slot.get(root, -1) for root in roots[index].tolist()])
        if (positions >= 0).any():
            rows.append((index not in part, index, member, positions))
    rows.sort(key=lambda row: row[:2])
    fixed = {slot[root]: trace.classes.reason[root] for root in order if root in trace.classes.reason}
    return Group(members[part[0]].path, np.array(order), [row[2] for row in rows], [row[3] for row in rows], fixed)


def groups(model) -> list[Group]:
    """The channel groups of a model: what may be removed together, and what each removal takes with it.

    Args:
        model: a Functional or built Sequential model.

    Raises:
        CompressionError: the model has no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
        >>> print(groups(model)[0].details())
        Group 'a': 4 channels, 4 may be removed
          a.kernel                                 axis 1  out    4
          a.bias                                   axis 0  along  4
          b.kernel                                 axis 0  in     4
    """
    return groups_of(Trace(model))
