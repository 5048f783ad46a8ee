"""Finding the TFLite tensor that is a Keras tensor, by value and never by name.

The converter joins, suffixes and merges names. Activations are compared on probe inputs, weights channel by channel as
sets of numbers up to a positive factor, which survives transposition, reshaping and a factor folded into a channel.
"""

import dataclasses
import functools

import numpy as np

from tfcompress.export.flatbuffer import FLOAT32, Graph
from tfcompress.export.points import Values
from tfcompress.record import Grid

# Of the largest magnitude; float kernels of two libraries differ by about 1e-6, a deep network's outputs by 1e-5.
_TOLERANCE = 2e-4
# Of a channel's largest magnitude: far above float32 rounding of a folded factor, far below a step of 8 bits.
_SAME = 1e-5
# Where the output channels are; the 3-D ones have no integer kernel, and are found so that the report can say so.
_WEIGHT_AXIS = {
    "CONV_2D": 0,
    "FULLY_CONNECTED": 0,
    "TRANSPOSE_CONV": 0,
    "DEPTHWISE_CONV_2D": 3,
    "CONV_3D": 4,
    "CONV_3D_TRANSPOSE": 3,
}


@dataclasses.dataclass(frozen=True)
class FileWeight:
    """A constant float operand of the file.

    Args:
        tensor: its index. axis: the axis of its channels, None where the file has one scale for all.
        values: the stored numbers.
    """

    tensor: int
    axis: int | None
    values: np.ndarray


def activations(named: list[Values], tensors: list[dict[str, np.ndarray]]) -> dict[str, list[str]]:
    """The file's tensors that carry the value of each Keras operation.

    Args:
        named: values of the Keras operations, one dict a probe. tensors: values of the file's tensors, one dict a probe.

    Returns:
        {operation: tensor names, best first}; an empty list where no tensor agrees.
    """
    theirs = {name: [_Value(probe[name]) for probe in tensors] for name in tensors[0]}
    found: dict[str, list[str]] = {}
    for name in named[0]:
        found[name] = []
        for part in range(len(named[0][name])):
            own = [_Value(probe[name][part]) for probe in named]
            distances = {t: _distance(own, values) for t, values in theirs.items()}
            good = sorted((d, t) for t, d in distances.items() if d is not None and d <= _TOLERANCE)
            found[name] += [t for _, t in good if t not in found[name]]
    return found


class _Value:
    """A tensor's numbers, with what can be compared of them at no cost."""

    def __init__(self, value: np.ndarray):
        self.flat = np.asarray(value, np.float32).ravel()
        magnitudes = np.abs(self.flat)
        self.top = float(magnitudes.max(initial=0.0))
        self.means = (
            np.array([self.flat.mean(dtype=np.float64), magnitudes.mean(dtype=np.float64)]) if self.flat.size else None
        )

    @functools.cached_property
    def ordered(self) -> np.ndarray:
        """The numbers sorted, for layouts that are transposed."""
        return np.sort(self.flat)


def _distance(a: list[_Value], b: list[_Value]) -> float | None:
    """Largest relative difference over the probes, flat or (for transposed layouts) sorted; None if they cannot agree."""
    worst = 0.0
    for one, other in zip(a, b, strict=True):
        if one.means is None or other.means is None or one.flat.size != other.flat.size:
            return None
        top = max(one.top, other.top)
        if not (np.isfinite(one.top) and np.isfinite(other.top)):
            return None
        if abs(one.top - other.top) > _TOLERANCE * top or (np.abs(one.means - other.means) > _TOLERANCE * top).any():
            return None
        if top == 0.0:
            continue
        difference = np.abs(one.flat - other.flat).max() / top
        if difference > _TOLERANCE:
            difference = np.abs(one.ordered - other.ordered).max() / top
        if difference > _TOLERANCE:
            return None
        worst = max(worst, float(difference))
    return worst


def file_weights(graph: Graph) -> list[FileWeight]:
    """Every constant float operand with the axis along which the runtime takes scales."""
    found: dict[int, FileWeight] = {}
    for op in graph.operators:
        kind = graph.kind(op)
        for position, t in enumerate(int(t) for t in op.inputs):
            if t < 0 or t in found or graph.tensors[t].type != FLOAT32 or not graph.is_constant(t):
                continue
            slots = bias_slots(kind)
            if slots is not None and position == slots[2]:
                continue
            values = graph.constant(t)
            assert values is not None
            axis = _WEIGHT_AXIS.get(kind) if position == 1 else None
            if kind == "BATCH_MATMUL" and position == 1:
                axis = values.ndim - (2 if op.builtinOptions and op.builtinOptions.adjY else 1)
            found[t] = FileWeight(t, axis, values)
    return list(found.values())


def weight_scales(value: np.ndarray, grid: Grid, weight: FileWeight) -> np.ndarray | None:
    """The scales that a file's weight has to have when it is the Keras weight `value` on `grid`; None if it is not.

    Returns:
        One scale a channel of the file (or one for all).
    """
    if value.size != weight.values.size:
        return None
    unit = np.broadcast_to(np.asarray(grid.unit, np.float32), value.shape)
    channels = _channels(weight.values, weight.axis)
    for axes in _channel_axes(value.shape, np.shape(grid.unit), len(channels)):
        slices, units = _slices(value, axes), _slices(unit, axes)
        if (units != units[:, :1]).any():
            continue  # the grid is finer than the file's channels
        scales = _assign(channels, slices, units[:, 0])
        if scales is not None:
            return scales
    return None


def _channels(values: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return values.reshape(1, -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _channel_axes(shape, unit_shape, count: int) -> list[tuple[int, ...]]:
    """Which axes of the Keras weight may enumerate `count` channels; those of the grid first."""
    rank = len(shape)
    own = tuple(i for i in range(rank) if len(unit_shape) == rank and unit_shape[i] != 1)
    tries = [own, (rank - 1,), *((i,) for i in range(rank)), (rank - 2, rank - 1), ()]
    fits = [axes for axes in tries if int(np.prod([shape[i] for i in axes])) == count and all(i >= 0 for i in axes)]
    return list(dict.fromkeys(fits))


def _slices(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod([value.shape[i] for i in axes]))
    return np.moveaxis(value, axes, range(len(axes))).reshape(count, -1)


def _assign(channels: np.ndarray, slices: np.ndarray, units: np.ndarray) -> np.ndarray | None:
    """A slice for every channel: the one at its own place where the values agree, else any that agrees."""
    rows, row_tops = _normalised(channels)
    options, option_tops = _normalised(slices)
    means = np.abs(options).mean(1)
    scales = np.empty(len(channels), np.float32)
    for place, row in enumerate(rows):
        if np.abs(options[place] - row).max() < _SAME:
            choice = place
        else:
            near = np.flatnonzero(np.abs(means - np.abs(row).mean()) < _SAME)
            agree = near[np.abs(options[near] - row).max(1) < _SAME] if len(near) else near
            if not len(agree):
                return None
            # Channels alike up to a factor (binary weights): the one that needs no factor.
            choice = int(agree[np.abs(option_tops[agree] - row_tops[place]).argmin()])
        factor = row_tops[place] / option_tops[choice] if option_tops[choice] else 1.0
        # A factor of 1 up to rounding is 1: the grid arrives with its own last bit.
        scales[place] = units[choice] if abs(factor - 1) < 1e-6 else np.float32(np.float64(units[choice]) * factor)
    return scales


def _normalised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every row sorted and divided by its largest magnitude, and these magnitudes."""
    ordered = np.sort(rows.astype(np.float64), axis=1)
    tops = np.abs(ordered).max(1, initial=0.0)
    return ordered / np.where(tops, tops, 1.0)[:, None], tops


def bias_slots(kind: str) -> tuple[int, int, int] | None:
    """Operand positions of (data, weights, bias) of an operator that takes a bias."""
    if kind in ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"):
        return 2, 1, 3
    return (0, 1, 2) if kind in _WEIGHT_AXIS else None
