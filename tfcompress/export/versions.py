"""Operator versions: which form of an operator a file uses, so that a runtime too old for it refuses to load it.

The numbers are facts of the format, read in LiteRT's tflite/tools/versioning/op_version.cc and runtime_version.cc
(November 2026).
"""

import numpy as np

from tfcompress.export.flatbuffer import FLOAT32, INT4, INT8, INT16, Graph, builtin_codes, kinds
from tfcompress.export.runtimes import stamp

# Version of the form with 8-bit and with 16-bit activations; what is not named has version 1 in every form.
_INTEGER = {
    "CONV_2D": (3, 1),
    "DEPTHWISE_CONV_2D": (3, 1),
    "FULLY_CONNECTED": (4, 1),
    "MUL": (2, 4),
    "ADD": (2, 3),
    "SUB": (2, 5),
    "GATHER": (2, 4),
    "TRANSPOSE": (2, 5),
    "SPLIT": (2, 4),
    "SLICE": (2, 4),
    "UNPACK": (2, 4),
    "ABS": (2, 3),
    "REVERSE_V2": (3, 1),
    "RESIZE_BILINEAR": (2, 4),
    "RESIZE_NEAREST_NEIGHBOR": (2, 4),
    "MAXIMUM": (2, 4),
    "MINIMUM": (2, 4),
    "PACK": (2, 3),
    "TILE": (3, 1),
    "SPACE_TO_BATCH_ND": (2, 4),
    "BATCH_TO_SPACE_ND": (2, 4),
    "EQUAL": (2, 4),
    "LEAKY_RELU": (1, 2),
    "BROADCAST_TO": (3, 3),
    "TRANSPOSE_CONV": (2, 1),
    "GATHER_ND": (1, 3),
    "EXP": (2, 2),
    "LOG": (2, 2),
    **dict.fromkeys(
        kinds("""MAX_POOL_2D AVERAGE_POOL_2D TANH LOGISTIC BATCH_MATMUL PAD PADV2 CONCATENATION SOFTMAX MEAN MIRROR_PAD
        REDUCE_MAX REDUCE_MIN RELU6 RSQRT RELU"""),
        (2, 3),
    ),
    **dict.fromkeys(
        kinds("""L2_NORMALIZATION NOT_EQUAL STRIDED_SLICE SELECT SPACE_TO_DEPTH SPLIT_V SUM LOG_SOFTMAX GREATER
        SQUARED_DIFFERENCE DEPTH_TO_SPACE GELU"""),
        (2, 1),
    ),
}
_HYBRID = {"CONV_2D": (5, 2), "DEPTHWISE_CONV_2D": (6, 4), "FULLY_CONNECTED": (12, 3)}  # per channel, per tensor
_NARROW = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}


def set_versions(graph: Graph) -> None:
    """Give every operator the version of the form that it has (versions already higher stay), and note the oldest runtime."""
    for view in graph.views():
        for op in view.operators:
            code = view.model.operatorCodes[op.opcodeIndex]
            kind = view.kind(op)
            if kind not in builtin_codes():
                continue
            wanted = max(code.version, needed(view, op))
            if wanted != code.version:
                op.opcodeIndex = view.opcode(builtin_codes()[kind], wanted)
    stamp(graph)


def needed(graph: Graph, op) -> int:
    """The lowest version of an operator's form."""
    kind = graph.kind(op)
    types = [graph.tensors[t].type if t >= 0 else None for t in op.inputs]
    data, weights = (
        (types[2], types[1])
        if kind == "TRANSPOSE_CONV"
        else (types[0] if types else None, types[1] if len(types) > 1 else None)
    )
    if kind in ("SPLIT",):
        data = types[1]
    if kind in ("QUANTIZE", "DEQUANTIZE"):
        return _quantize_version(graph, op, kind)
    if kind in _NARROW and weights == INT4:
        return 13 if kind == "FULLY_CONNECTED" and data == INT16 else _NARROW[kind]
    if kind in _HYBRID and data == FLOAT32 and weights == INT8:
        return _HYBRID[kind][len(graph.tensors[int(op.inputs[1])].quantization.scale) == 1]
    if data not in (INT8, INT16) or kind not in _INTEGER:
        return 1
    version = _INTEGER[kind][data == INT16]
    options = op.builtinOptions
    if kind == "FULLY_CONNECTED":
        if len([t for t in op.inputs if t >= 0]) == 2:
            version = max(version, 6)
        elif getattr(options, "keepNumDims", False):
            version = max(version, 5)
        if data == INT16 and getattr(options, "quantizedBiasType", 0):
            version = 11
    if kind == "CONV_2D" and data == INT16 and getattr(options, "quantizedBiasType", 0):
        version = 8
    if kind == "TRANSPOSE_CONV":
        if getattr(options, "fusedActivationFunction", 0):
            version = max(version, 4)
        elif len(op.inputs) == 4 and op.inputs[3] >= 0:
            version = max(version, 3)
    if kind in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR") and (
        options.halfPixelCenters or (options.alignCorners and kind != "RESIZE_BILINEAR")
    ):
        version = max(version, 3)
    if kind == "MUL" and data == INT8 and _product_scale(graph, op) >= 1.0:
        version = 3
    return version


def _quantize_version(graph: Graph, op, kind: str) -> int:
    source, target = graph.tensors[int(op.inputs[0])], graph.tensors[int(op.outputs[0])]
    if INT4 in (source.type, target.type):
        return 6 if kind == "DEQUANTIZE" else 4
    per_channel = any(
        t.quantization is not None and t.quantization.scale is not None and len(t.quantization.scale) > 1
        for t in (source, target)
    )
    if kind == "DEQUANTIZE":
        if source.type == INT8:
            return 5 if per_channel else 2
        return 3 if source.type in (INT16, 1) else 1
    return 3 if per_channel else 2 if target.type == INT16 else 1


def _product_scale(graph: Graph, op) -> float:
    a, b = (float(graph.tensors[int(t)].quantization.scale[0]) for t in op.inputs)
    out = float(np.asarray(graph.tensors[int(op.outputs[0])].quantization.scale)[0])
    return a * b / out
