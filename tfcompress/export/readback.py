"""Reading scales, zero points and codes back from a file and comparing them with what was trained."""

import dataclasses

import numpy as np

from tfcompress.export.flatbuffer import FLOAT16, FLOAT32, Graph
from tfcompress.record import Grid, Range


@dataclasses.dataclass
class Expected:
    """What a file has to hold.

    Args:
        ranges: {tensor: (operation, its trained range)}. weights: {tensor: (the record's name, its grid, one scale a channel of
            the file or one, the float values)}.
    """

    ranges: dict[str, tuple[str, Range]]
    weights: dict[str, tuple[str, Grid, np.ndarray, np.ndarray]]


def read_back(graph: Graph, expected: Expected) -> tuple[list[str], dict[str, int], list[str]]:
    """Compare a file with what it has to hold, bit for bit.

    Returns:
        What differs, in words; {"ranges", "weights": how many of the record were compared and are equal}; what stayed float
        because its operator has no integer form, in words.
    """
    found: list[str] = []
    floats: list[str] = []
    operations: set[str] = set()
    weights: set[str] = set()
    places, rounded = graph.by_name(), _quantized_copies(graph)
    for name, (operation, wanted) in expected.ranges.items():
        tensor = places.get(f"{name}/int{wanted.bits}", places.get(name))
        if tensor is None:
            found.append(f"range {operation!r}: tensor {name} is not in the file")
            continue
        tensor = rounded.get(tensor, tensor)
        q = graph.tensors[tensor].quantization
        if q is None or q.scale is None or not len(q.scale):
            floats.append(f"range {operation!r} is not used: its tensor {name} stayed float between float operators")
        elif np.float32(q.scale[0]) != np.float32(wanted.scale) or int(q.zeroPoint[0]) != wanted.zero_point:
            found.append(
                f"range {operation!r}: tensor {name} has scale {q.scale[0]:.9g}, zero point {q.zeroPoint[0]}; "
                f"trained: {wanted.scale:.9g}, {wanted.zero_point}"
            )
        else:
            operations.add(operation)
    for name, (source, grid, scales, values) in expected.weights.items():
        tensor = places.get(name)
        if tensor is not None and graph.tensors[tensor].type in (FLOAT32, FLOAT16):
            floats.append(f"weight {source!r} is stored as float: its operator has no integer form here")
            continue
        problem = _weight(graph, tensor, grid, scales, values)
        if problem:
            found.append(f"weight {source} ({name}): {problem}")
        else:
            weights.add(source)
    return found, {"ranges": len(operations), "weights": len(weights)}, floats


def _quantized_copies(graph: Graph) -> dict[int, int]:
    """{float tensor: the integer tensor that a QUANTIZE makes of it}."""
    return {
        int(op.inputs[0]): int(op.outputs[0])
        for op in graph.operators
        if graph.kind(op) == "QUANTIZE" and graph.tensors[int(op.inputs[0])].type == FLOAT32
    }


def _weight(graph: Graph, tensor: int | None, grid: Grid, scales: np.ndarray, values: np.ndarray) -> str | None:
    if tensor is None:
        return "is not in the file"
    q = graph.tensors[tensor].quantization
    codes = graph.constant(tensor)
    if codes is None or codes.dtype.kind != "i" or q is None or q.scale is None:
        return "stayed float"
    stored = np.asarray(q.scale, np.float32)
    if len(stored) == 1 and len(scales) > 1:
        scales = scales[:1]
    if stored.shape != scales.shape or (stored != scales.astype(np.float32)).any():
        return f"its scales differ from the trained ones by up to {np.abs(stored - scales[: len(stored)]).max():.3g}"
    axis = int(q.quantizedDimension)
    shape = [-1 if i == axis and len(scales) > 1 else 1 for i in range(codes.ndim)]
    wanted = np.rint(values.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    wrong = int((codes != wanted).sum())
    if wrong or np.abs(codes.astype(int)).max(initial=0) > max(-grid.low, grid.high):
        return f"{wrong} of {codes.size} codes differ from the trained ones"
    return None
