"""Whether a file meets XNNPACK's rules for sparse inference, under which zeros save time on Arm processors.

The rules are those of the XNNPACK delegate's README ("Sparse Inference", read November 2026). Nothing was run on a phone
for them, and on x86 with AVX XNNPACK has no sparse kernels at all, so that no gain on a desktop follows from meeting them.
"""

import dataclasses
import pathlib

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export.flatbuffer import FLOAT32, Graph, kinds

CHECKED_BY = "rules (XNNPACK delegate README, Sparse Inference; November 2026; not run)"
_UNARY = frozenset(kinds("ABS CEIL ELU FLOOR HARD_SWISH LEAKY_RELU LOGISTIC NEG RELU RELU6 RELU_N1_TO_1 ROUND SQUARE"))
# They only prepare constants, or belong to the convolution behind them.
_PREPARING = frozenset(kinds("DENSIFY DEQUANTIZE PAD"))
_SAME = 0


@dataclasses.dataclass(frozen=True)
class SparseRules:
    """The verdict on one file.

    Args:
        meets: whether every rule holds. reasons: the rules that do not, in words. zeros: share of zeros in the 1x1
            convolutions. checked_by: what the verdict rests on.
    """

    meets: bool
    reasons: list[str]
    zeros: float
    checked_by: str = CHECKED_BY

    def __str__(self) -> str:
        if self.meets:
            verdict = (
                f"meets XNNPACK's rules for sparse inference on Arm ({self.zeros:.0%} zeros in its 1x1 convolutions); whether it is "
                "faster there only a measurement on the phone tells, and on a desktop it is not"
            )
        else:
            verdict = "does not meet XNNPACK's rules for sparse inference on Arm: " + "; ".join(self.reasons)
        return f"{verdict} ({self.checked_by})"


def sparse_inference(file) -> SparseRules:
    """Check a .tflite file against XNNPACK's rules for sparse inference on Arm.

    The rules: float weights stored sparse; a 3x3 convolution of stride 2 on 3 channels with padding 1 on each side; after it
    nothing but 1x1 convolutions with at least two thirds zeros together, 3x3 and 5x5 depthwise convolutions with padding 1
    and 2 on each side, additions, multiplications and simple activations; a spatial mean or DEPTH_TO_SPACE at the end.

    Args:
        file: path of a .tflite file, or its bytes.

    Raises:
        CompressionError: there is no such file, or it is damaged.

    Example:
        >>> print(sparse_inference("model.tflite"))      # doctest: +SKIP
    """
    if isinstance(file, bytes | bytearray):
        return arm_rules(bytes(file))
    try:
        return arm_rules(pathlib.Path(file).read_bytes())
    except OSError as error:
        raise CompressionError(f"Cannot read {file}: {error.strerror or error}.") from error


def arm_rules(data: bytes) -> SparseRules:
    """As `sparse_inference`, for a file's bytes."""
    graph = Graph(data)
    convolutions = [op for op in graph.operators if graph.kind(op) == "CONV_2D"]
    if not convolutions:
        return SparseRules(False, ["there is no convolution"], 0.0)
    reasons = _stem(graph, convolutions[0])
    ends = [i for i, op in enumerate(graph.operators) if _is_end(graph, op)]
    if not ends:
        reasons.append("there is no mean over height and width and no DEPTH_TO_SPACE at the end")
    last = ends[-1] if ends else len(graph.operators) - 1
    start = next(i for i, op in enumerate(graph.operators) if op is convolutions[0])
    pointwise = []
    for op in graph.operators[start + 1 : last + 1]:
        kind = graph.kind(op)
        if kind == "CONV_2D":
            reasons += _pointwise(graph, op)
            pointwise.append(op)
        elif kind == "DEPTHWISE_CONV_2D":
            reasons += _depthwise(graph, op)
        elif kind not in _UNARY | _PREPARING and not _is_allowed(graph, op, kind):
            reasons.append(f"{graph.name(int(op.outputs[0]))} is the operator {kind}, which no sparse part may hold")
    zeros, stored = _zeros(graph, pointwise)
    if not pointwise:
        reasons.append("there is no 1x1 convolution")
    elif zeros < 2 / 3:
        reasons.append(f"its 1x1 convolutions have {zeros:.0%} zeros together, below two thirds")
    elif not stored:
        reasons.append("no 1x1 convolution is stored sparse (export with sparse=True)")
    return SparseRules(not reasons, reasons, zeros)


def _stem(graph: Graph, op) -> list[str]:
    name, shape, options = graph.name(int(op.outputs[0])), graph.shape(int(op.inputs[1])), op.builtinOptions
    if graph.tensors[int(op.inputs[0])].type != FLOAT32:
        return [f"{name} computes on integers, and the rules are for float"]
    if shape[1:] != (3, 3, 3) or (options.strideH, options.strideW) != (2, 2):
        return [f"the first convolution, {name}, is not 3x3 with stride 2 on 3 channels"]
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1) or _padding(graph, op) != {1}:
        return [
            f"the first convolution, {name}, has not padding 1 on each side (ZeroPadding2D(1) before padding='valid' gives it)"
        ]
    return []


def _pointwise(graph: Graph, op) -> list[str]:
    name, shape = graph.name(int(op.outputs[0])), graph.shape(int(op.inputs[1]))
    if shape[1:3] != (1, 1):
        return [f"{name} is a {shape[1]}x{shape[2]} convolution"]
    options = op.builtinOptions
    return (
        []
        if (options.strideH, options.strideW) == (1, 1)
        else [f"{name} is a 1x1 convolution with stride {options.strideH}"]
    )


def _depthwise(graph: Graph, op) -> list[str]:
    name, shape, options = graph.name(int(op.outputs[0])), graph.shape(int(op.inputs[1])), op.builtinOptions
    if shape[1:3] not in ((3, 3), (5, 5)):
        return [f"{name} is a {shape[1]}x{shape[2]} depthwise convolution"]
    if options.depthMultiplier not in (0, 1) or (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return [f"{name} is a depthwise convolution with a multiplier or dilation"]
    side = shape[1] // 2
    return [] if _padding(graph, op) == {side} else [f"{name} has not padding {side} on each side"]


def _padding(graph: Graph, op) -> set[int]:
    """The paddings of a convolution's four sides, those of a PAD operator before it included."""
    data, weights = int(op.inputs[0]), int(op.inputs[1])
    sides = [0, 0, 0, 0]
    writer = graph.producers().get(data)
    if writer is not None and graph.kind(graph.operators[writer]) == "PAD":
        amounts = graph.constant(int(graph.operators[writer].inputs[1]))
        if amounts is None or amounts.shape != (4, 2) or amounts[[0, 3]].any():
            return set()
        sides = [int(n) for n in amounts[1:3].ravel()]
    if op.builtinOptions.padding == _SAME:
        for axis, stride in enumerate((op.builtinOptions.strideH, op.builtinOptions.strideW)):
            size, kernel = graph.shape(data)[1 + axis], graph.shape(weights)[1 + axis]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides[2 * axis] += total // 2
            sides[2 * axis + 1] += total - total // 2
    return set(sides)


def _is_end(graph: Graph, op) -> bool:
    return graph.kind(op) == "DEPTH_TO_SPACE" or (graph.kind(op) == "MEAN" and _is_spatial(graph, op))


def _is_spatial(graph: Graph, op) -> bool:
    axes = graph.constant(int(op.inputs[1]))
    rank = len(graph.shape(int(op.inputs[0])))
    return axes is not None and rank == 4 and {int(a) % rank for a in axes.ravel()} == {1, 2}


def _is_allowed(graph: Graph, op, kind: str) -> bool:
    if kind in ("ADD", "MUL"):
        shapes = [graph.shape(int(t)) for t in op.inputs if not graph.is_constant(int(t))]
        constants = [graph.shape(int(t)) for t in op.inputs if graph.is_constant(int(t))]
        return all(len(s) == 4 for s in shapes) and all(int(np.prod(s)) == max((1, *s)) for s in constants)
    if kind == "RESIZE_BILINEAR":
        return min(graph.shape(int(op.outputs[0]))[1:3]) > 1
    return _is_end(graph, op)


def _zeros(graph: Graph, convolutions: list) -> tuple[float, bool]:
    """Share of zeros in the weights of convolutions, and whether any is stored sparse."""
    total = zeros = 0
    stored = False
    for op in convolutions:
        size = int(np.prod(graph.shape(int(op.inputs[1]))))
        dense, kept = _behind(graph, int(op.inputs[1]))
        total += size
        zeros += size - kept if kept is not None else int((dense == 0).sum()) if dense is not None else 0
        stored |= kept is not None
    return (zeros / total if total else 0.0), stored


def _behind(graph: Graph, t: int) -> tuple[np.ndarray | None, int | None]:
    """The constant that a weight operand comes from through DEQUANTIZE and DENSIFY: its values, or how many a sparse one keeps."""
    while not graph.is_constant(t):
        writer = graph.producers().get(t)
        if writer is None or graph.kind(graph.operators[writer]) not in ("DENSIFY", "DEQUANTIZE"):
            return None, None
        t = int(graph.operators[writer].inputs[0])
    sparsity = graph.tensors[t].sparsity
    if sparsity is not None:
        return None, int(sparsity.dimMetadata[-1].arraySegments.values[-1])
    return graph.constant(t), None
