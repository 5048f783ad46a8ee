"""From a record and calibration statistics to the one range of every activation and the scales of every weight."""

import dataclasses

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export import match, points, ties
from tfcompress.export.calibrate import Statistics, activations
from tfcompress.export.flatbuffer import Graph
from tfcompress.record import Grid, Range, Record


@dataclasses.dataclass
class Trained:
    """What of a record was found in the file.

    Args:
        ranges: {tensor: (operation, trained range)}. scales: {tensor: (weight's name, its grid, scales of the file's
            channels)}. notes: what the user should know.
    """

    ranges: dict[str, tuple[str, Range]] = dataclasses.field(default_factory=dict)
    scales: dict[str, tuple[str, Grid, np.ndarray]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def locate(graph: Graph, model, record: Record, operations: dict[str, list[str]], strict: bool) -> Trained:
    """Find every point and weight of a record in the float file.

    Args:
        graph: the float file. model: the plain Keras model that it was made from. record: its record.
        operations: {Keras operation: tensors that carry its value}, of `match.activations`.
        strict: whether a point or weight that is not found is an error; else it is a note.

    Raises:
        CompressionError: (strict) a trained range has no tensor, two ranges want one tensor, a weight was not found.
    """
    found = Trained()
    problems: list[str] = []
    written = graph.producers()
    places = {graph.name(t): written.get(t, -1) for t in activations(graph)}
    for operation, trained in record.outputs.items():
        tensors = operations.get(operation)
        if tensors is None:
            problems.append(f"range {operation!r}: the model has no operation of this name")
        elif not tensors:
            problems.append(
                f"range {operation!r}: no tensor of the file carries its value (the converter folded it into its "
                "neighbour); leave this operation out of the simulation"
            )
        else:
            problems += _claim(found, operation, trained, sorted(tensors, key=places.__getitem__))
    weights = match.file_weights(graph)
    for name, grid in record.weights.items():
        value = points.weight_of(model, name)
        _check_on_grid(name, value, grid)
        hits = 0
        for weight in weights:
            scales = match.weight_scales(value, grid, weight)
            key = graph.name(weight.tensor)
            if scales is not None and (key not in found.scales or _better(value, weight, found, key, model)):
                found.scales[key] = (name, grid, scales)
            hits += scales is not None
        if not hits:
            problems.append(
                f"weight {name!r}: the file holds no such values (the converter folded a constant, a batch normalization "
                "or a scale into it); fold it in the model before training the grid"
            )
    if problems and strict:
        raise CompressionError(
            "The file cannot hold what was trained:\n  - "
            + "\n  - ".join(problems)
            + "\nstrict=False quantizes these by calibration."
        )
    found.notes += [f"by calibration instead: {problem}" for problem in problems]
    return found


def _claim(found: Trained, operation: str, trained: Range, tensors: list[str]) -> list[str]:
    """Give a trained range to the tensors that carry its value; the sentence of a conflict, if there is one.

    Args:
        tensors: in the order of the file. Operations come in the order of the model.
    """
    free = [t for t in tensors if t not in found.ranges]
    if not free and not any(found.ranges[t][1] == trained for t in tensors):
        other = found.ranges[tensors[0]][0]
        # Alike on the probes (a clip that never acts): the first operation keeps the first tensor.
        free = [t for t in tensors if found.ranges[t][0] == other][1:]
        if not free:
            return [
                f"range {operation!r}: its value is that of {other!r}, which has another range, and the file has one tensor "
                "for both; leave one of them out of the simulation"
            ]
    for tensor in free:
        found.ranges[tensor] = (operation, trained)
    return []


def _better(value: np.ndarray, weight: match.FileWeight, found: Trained, key: str, model) -> bool:
    """Whether `value` is the very weight in the file, where the one claimed before only agrees up to a factor."""
    stored = np.sort(weight.values, axis=None)
    own = np.array_equal(np.sort(value, axis=None), stored)
    before = np.array_equal(np.sort(points.weight_of(model, found.scales[key][0]), axis=None), stored)
    return own and not before


def _check_on_grid(name: str, value: np.ndarray, grid: Grid) -> None:
    codes = value.astype(np.float64) / np.asarray(grid.unit, np.float64)
    if not np.isfinite(codes).all() or (np.asarray(grid.unit) <= 0).any():
        raise CompressionError(
            f"Weight {name!r} or its grid holds zero, NaN or infinite numbers; export needs finite ones."
        )
    rounded = np.rint(codes)
    # A float32 product of unit and code is off by half a unit in the last place at most.
    if (
        np.abs(codes - rounded).max(initial=0.0) > 1e-3
        or rounded.min(initial=0) < grid.low
        or rounded.max(initial=0) > grid.high
    ):
        raise CompressionError(
            f"Weight {name!r} does not lie on its grid (unit * code, codes {grid.low} to {grid.high}). "
            "Export the finalized model together with the record that finalize made, before any further training."
        )


def spread(
    graph: Graph, trained: Trained, seen: Statistics, bits: int, strict: bool
) -> tuple[dict[str, Range], list[str]]:
    """One range for every activation: fixed by the kernel, trained, or calibrated; tied tensors share theirs.

    Returns:
        {tensor: range}, and the names of the tensors whose range comes from calibration.

    Raises:
        CompressionError: (strict) a trained range contradicts the kernel's, or two of one tied group differ.
    """
    groups = ties.Groups(graph)
    names = activations(graph)
    known: dict[int, tuple[str, Range]] = {}
    problems: list[str] = []

    def know(tensor: int, source: str, value: Range) -> None:
        root = groups.find(tensor)
        if root not in known:
            known[root] = (source, value)
        elif not _same(known[root][1], value):
            problems.append(
                f"{source} wants {_text(value)}, but {known[root][0]} fixes {_text(known[root][1])} on a tied tensor"
            )

    for tensor, value in ties.fixed(graph, bits).items():
        know(tensor, f"the {graph.kind(graph.operators[graph.producers()[tensor]])} kernel", value)
    for t in range(len(graph.tensors)):
        if graph.is_constant(t) and graph.name(t) in trained.scales and len(trained.scales[graph.name(t)][2]) == 1:
            # A table or a constant operand is quantized like an activation, and what is tied to it has its grid.
            name, _, scales = trained.scales[graph.name(t)]
            if _is_operand(graph, t):
                know(t, f"weight {name!r}", Range(float(scales[0]), 0, bits))
    for tensor, name in names.items():
        if name in trained.ranges:
            operation, value = trained.ranges[name]
            if value.bits != bits and groups.find(tensor) in known:
                continue  # an 8-bit range in a 16-bit file gives way to what the kernel fixes there
            know(tensor, f"range {operation!r}", _with_bits(value, bits, operation))
    if problems and strict:
        raise CompressionError(
            "The file cannot hold what was trained:\n  - "
            + "\n  - ".join(dict.fromkeys(problems))
            + "\nstrict=False keeps the first of each."
        )
    trained.notes += dict.fromkeys(problems)
    for members in ties.joined(graph):
        if len(members) < 2:
            continue
        roots = dict.fromkeys(groups.find(t) for t in members)
        values = {known[root][1] for root in roots if root in known}
        if len(values) <= 1:
            entry = next((known[root] for root in roots if root in known), None)
            for t in members:
                groups.join(members[-1], t)
            if entry is not None:
                known[groups.find(members[-1])] = entry
    return _fill(graph, groups, known, names, seen, bits)


def _fill(graph, groups: ties.Groups, known, names: dict[int, str], seen: Statistics, bits: int):
    result: dict[str, Range] = {}
    calibrated: list[str] = []
    tables = _tables(graph)
    for root, members in groups.members().items():
        tied = any(t in names for t in members)
        own = [graph.name(t) for t in members if t in names or (tied and graph.is_constant(t))]
        if not own:
            continue
        if root in known:
            result.update(dict.fromkeys(own, known[root][1]))
            continue
        stored = [tables[t] for t in members if t in tables]
        low = min([*(seen.low[n] for n in own if n in seen.low), *(float(v.min()) for v in stored)], default=0.0)
        high = max([*(seen.high[n] for n in own if n in seen.high), *(float(v.max()) for v in stored)], default=0.0)
        result.update(dict.fromkeys(own, from_extremes(low, high, bits)))
        calibrated += [names[t] for t in members if t in names]
    return result, calibrated


def _tables(graph: Graph) -> dict[int, np.ndarray]:
    """The constants whose every value an operator may pass on (a GATHER's table), by tensor.

    Others, as the bound of a MINIMUM, show in their operator's output as far as they matter.
    """
    found = {}
    for op in graph.operators:
        operand = ties.TIED.get(graph.kind(op))
        tensor = int(op.inputs[operand]) if operand is not None and operand < len(op.inputs) else -1
        values = graph.constant(tensor) if tensor >= 0 and graph.is_constant(tensor) else None
        if values is not None and values.size and values.dtype == np.float32:
            found[tensor] = values
    return found


def _is_operand(graph: Graph, tensor: int) -> bool:
    """Whether a constant is read other than as the channel-wise weight of a product."""
    return any(w.axis is None for w in match.file_weights(graph) if w.tensor == tensor)


def from_extremes(low: float, high: float, bits: int) -> Range:
    """The range that covers low..high and 0: affine for 8 bits, symmetric for 16, as the kernels want it.

    Example:
        >>> from_extremes(0.0, 2.55, 8).zero_point
        -128
    """
    if bits == 16:
        return Range(float(np.float32(max(abs(low), abs(high), 1e-6) / 32767)), 0, 16)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max(high - low, 1e-6) / 255))
    return Range(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)), 8)


def _with_bits(value: Range, bits: int, operation: str) -> Range:
    if value.bits == bits:
        if bits == 16 and value.zero_point:
            raise CompressionError(
                f"Range {operation!r} has 16 bits and zero point {value.zero_point}; the kernels need 0."
            )
        return value
    if value.bits == 16:
        raise CompressionError(f"Range {operation!r} was trained with 16 bits; export with precision='int16x8'.")
    # A trained 8-bit range in a 16-bit file keeps its extremes.
    return from_extremes(value.minimum, value.maximum, 16)


def _same(a: Range, b: Range) -> bool:
    return a.zero_point == b.zero_point and abs(a.scale - b.scale) <= 1e-6 * b.scale


def _text(value: Range) -> str:
    return f"scale {value.scale:.6g}, zero point {value.zero_point}"
