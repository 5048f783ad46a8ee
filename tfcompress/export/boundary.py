"""The types at the ends of an integer file: float32, int8 or uint8 (int16 in a 16-bit file)."""

import copy

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export.flatbuffer import FLOAT32, INT8, INT16, UINT8, Graph
from tfcompress.export.versions import set_versions
from tfcompress.record import Range

BOUNDARIES = ("float32", "int8", "uint8", "int16")


def set_boundary(graph: Graph, boundary: str, raw: dict[str, Range] | None = None) -> None:
    """Put QUANTIZE and DEQUANTIZE at the ends so that callers meet the wanted type; names stay on the ends.

    Args:
        graph: a file with integer ends, as litert-quantizer writes it. boundary: one of `BOUNDARIES`.
        raw: {input: uint8 range of what callers feed}, for inputs whose quantization holds a normalisation.
    """
    for inputs in (True, False):
        for t in [int(t) for t in (graph.subgraph.inputs if inputs else graph.subgraph.outputs)]:
            tensor = graph.tensors[t]
            own = (raw or {}).get(graph.name(t)) if inputs else None
            if (
                tensor.type in (INT8, INT16)
                and tensor.quantization is not None
                and tensor.quantization.scale is not None
            ):
                _set_end(graph, t, inputs, boundary, own)
    set_versions(graph)


def _set_end(graph: Graph, t: int, inputs: bool, boundary: str, raw: Range | None) -> None:
    tensor = graph.tensors[t]
    inner = {INT8: "int8", INT16: "int16"}[tensor.type]
    q = tensor.quantization
    same = raw is None or (np.float32(raw.scale) == np.float32(q.scale[0]) and raw.zero_point == int(q.zeroPoint[0]))
    if boundary == inner and same:
        return
    if boundary == "float32":
        kind, quantization = FLOAT32, None
    elif boundary in ("uint8", "int8") and inner == "int8":
        kind, quantization = (UINT8 if boundary == "uint8" else INT8), _shifted(tensor.quantization, boundary, raw)
    else:
        raise CompressionError(
            f"boundary={boundary!r} does not fit a file whose activations are {inner}; use 'float32' or {inner!r}."
        )
    name = graph.name(t)
    tensor.name = f"{name}/{inner}".encode()
    end = graph.add_tensor(name, graph.shape(t), kind, None, quantization)
    graph.replace_boundary(t, end, inputs)
    if inputs:
        graph.operators.insert(0, graph.make_operator("QUANTIZE", [end], [t]))
    else:
        graph.operators.append(graph.make_operator("DEQUANTIZE" if boundary == "float32" else "QUANTIZE", [t], [end]))


def _shifted(quantization, boundary: str, raw: Range | None):
    """The int8 range with codes shifted by 128 for uint8; the fed range where there is one."""
    changed = copy.deepcopy(quantization)
    shift = 128 if boundary == "uint8" else 0
    scale = float(quantization.scale[0]) if raw is None else raw.scale
    zero = int(quantization.zeroPoint[0]) if raw is None else raw.zero_point
    changed.scale, changed.zeroPoint = np.array([scale], np.float32), np.array([zero + shift], np.int64)
    changed.min = changed.max = None
    return changed
