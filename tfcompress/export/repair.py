"""What litert-quantizer 0.11 leaves undone in an integer file, done on the flatbuffer.

Dead outputs get their siblings' type, operators that it does not know are collapsed out of their DEQUANTIZE and QUANTIZE
(the kernels have integer forms), and operator versions say what the file really uses, so that an old runtime refuses
what it cannot run.
"""

import copy

import numpy as np

from tfcompress.export import litert
from tfcompress.export.flatbuffer import FLOAT32, INT8, INT16, Graph, kinds
from tfcompress.export.ties import JOINED, TIED
from tfcompress.export.versions import set_versions
from tfcompress.record import Range

_INTEGER_TYPES = (INT8, INT16)
# Operators with an integer kernel that litert-quantizer keeps float, by activation type.
_COLLAPSIBLE = {
    INT8: frozenset(
        kinds("""LEAKY_RELU PRELU EXP LOG ABS MINIMUM DEPTH_TO_SPACE TILE REDUCE_MAX REVERSE_V2 L2_NORMALIZATION SQUEEZE
        EXPAND_DIMS SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND SPLIT_V RELU6 RELU_N1_TO_1""")
    ),
    INT16: frozenset(kinds("LEAKY_RELU ABS EXP LOG MINIMUM REDUCE_MAX SQUEEZE EXPAND_DIMS")),
}


def repair(graph: Graph, ranges: dict[str, Range], collapse: bool = True) -> list[str]:
    """Apply every repair in place.

    Args:
        graph: the quantized file. ranges: {tensor: range}, for tensors between two operators that stayed float.
        collapse: also make operators between DEQUANTIZE and QUANTIZE integer.

    Returns:
        What was done, in words.
    """
    done = finish_dead_outputs(graph)
    general_scales(graph)
    if collapse:
        done += collapse_floats(graph, ranges)
    set_versions(graph)
    return done


def finish_dead_outputs(graph: Graph) -> list[str]:
    """An output that nobody reads gets the type and range of its operator's other outputs."""
    done = []
    for op in graph.operators:
        outputs = [int(t) for t in op.outputs]
        integer = [t for t in outputs if graph.tensors[t].type in _INTEGER_TYPES]
        if graph.kind(op) not in TIED or not integer:
            continue
        for t in outputs:
            if graph.tensors[t].type == FLOAT32:
                graph.tensors[t].type = graph.tensors[integer[0]].type
                graph.tensors[t].quantization = copy.deepcopy(graph.tensors[integer[0]].quantization)
                done.append(f"unused output {graph.name(t)} of {graph.kind(op)} made integer")
    return done


def general_scales(graph: Graph) -> None:
    """Sums and differences of 16-bit tensors take any scale.

    Unless they say so, the kernel shifts instead of multiplying where all its scales are powers of two up to 0.1 %, and then
    refuses operands that are coarser than the result (pixels scaled to 0..2, less 1).
    """
    for op in graph.operators:
        if graph.kind(op) in ("ADD", "SUB") and graph.tensors[int(op.outputs[0])].type == INT16:
            op.builtinOptions.potScaleInt16 = False


def collapse_floats(graph: Graph, ranges: dict[str, Range]) -> list[str]:
    """Turn DEQUANTIZE, operator, QUANTIZE into the integer operator where it has such a kernel."""
    done: list[str] = []
    cuts = _cut_chains(graph, ranges)
    while True:
        change = _collapse_one(graph)
        if change is None:
            break
        done.append(change)
    _mend_chains(graph, cuts)
    _drop_idle(graph)
    return done


def _cut_chains(graph: Graph, ranges: dict[str, Range]) -> list[tuple[int, int]]:
    """Between two operators that stayed float together, round to the range that the tensor has: QUANTIZE, DEQUANTIZE.

    Returns:
        (float tensor, the same after rounding) of every cut.
    """
    cuts = []
    kind = INT16 if any(t.type == INT16 for t in graph.tensors) else INT8
    for writer in list(graph.operators):
        if graph.kind(writer) not in _COLLAPSIBLE[kind]:
            continue
        for t in (int(t) for t in writer.outputs):
            readers = [graph.operators[i] for i in graph.consumers().get(t, [])]
            followers = [op for op in readers if graph.kind(op) in _COLLAPSIBLE[kind]]
            known = ranges.get(graph.name(t))
            if graph.tensors[t].type != FLOAT32 or known is None or not followers or len(followers) != len(readers):
                continue
            q = litert.schema().QuantizationParametersT()
            q.scale, q.zeroPoint = np.array([known.scale], np.float32), np.array([known.zero_point], np.int64)
            codes = graph.add_tensor(f"{graph.name(t)}/codes", graph.shape(t), kind, None, q)
            rounded = graph.add_tensor(f"{graph.name(t)}/rounded", graph.shape(t), FLOAT32)
            for op in followers:
                op.inputs = np.array([rounded if i == t else i for i in op.inputs], np.int32)
            place = next(i for i, op in enumerate(graph.operators) if op is writer) + 1
            pair = [
                graph.make_operator("QUANTIZE", [t], [codes]),
                graph.make_operator("DEQUANTIZE", [codes], [rounded]),
            ]
            graph.subgraph.operators = graph.operators[:place] + pair + graph.operators[place:]
            cuts.append((t, rounded))
    return cuts


def _mend_chains(graph: Graph, cuts: list[tuple[int, int]]) -> None:
    """Take a cut out again where both its neighbours are still float: it would only cost accuracy."""
    for t, rounded in cuts:
        if t in graph.producers():
            for op in graph.operators:
                op.inputs = np.array([t if i == rounded else i for i in op.inputs], np.int32)


def _collapse_one(graph: Graph) -> str | None:
    producers, consumers = graph.producers(), graph.consumers()
    for op in graph.operators:
        plan = _plan(graph, op, producers, consumers)
        if plan is not None:
            sources, targets, kind = plan
            op.inputs = np.array([sources.get(int(t), int(t)) for t in op.inputs], np.int32)
            op.outputs = np.array([targets[int(t)] for t in op.outputs], np.int32)
            for t, target in targets.items():
                # The name goes with the value, so that reading back finds its range.
                name = graph.tensors[t].name
                graph.tensors[t].name, graph.tensors[target].name = name + b"/float", name
            _quantize_operands(graph, op, kind)
            # The QUANTIZE operators behind it have no output of their own any more.
            gone = {id(graph.operators[i]) for t in targets for i in consumers[t]}
            graph.subgraph.operators = [other for other in graph.operators if id(other) not in gone]
            return f"{graph.kind(op)} {graph.name(int(op.outputs[0]))} made integer"
    return None


def _plan(graph: Graph, op, producers, consumers):
    """({float input: integer tensor behind it}, {float output: the integer tensor to write}, type), or None."""
    kind = graph.kind(op)
    floats = [int(t) for t in op.inputs if t >= 0 and graph.tensors[t].type == FLOAT32]
    sources = {}
    for t in floats:
        if graph.is_constant(t):
            continue
        writer = graph.operators[producers[t]] if t in producers else None
        if writer is None or graph.kind(writer) != "DEQUANTIZE":
            return None
        sources[t] = int(writer.inputs[0])
    if not sources:
        return None
    first = graph.tensors[next(iter(sources.values()))]
    if first.type not in _INTEGER_TYPES or kind not in _COLLAPSIBLE[first.type]:
        return None
    ends = {int(t) for t in graph.subgraph.outputs}
    targets = {}
    for t in (int(t) for t in op.outputs):
        readers = [graph.operators[i] for i in consumers.get(t, [])]
        if len(readers) != 1 or graph.kind(readers[0]) != "QUANTIZE" or t in ends:
            return None
        targets[t] = int(readers[0].outputs[0])
    quantized = [graph.tensors[t] for t in (*sources.values(), *targets.values())]
    if any(q.type != first.type or len(q.quantization.scale) != 1 for q in quantized):
        return None
    if (kind in TIED or kind in JOINED) and any(not _same_range(q, first) for q in quantized):
        return None
    return sources, targets, first.type


def _quantize_operands(graph: Graph, op, kind: int) -> None:
    """Constant float operands (slopes of PRELU, the bound of MINIMUM) as codes."""
    output = graph.tensors[int(op.outputs[0])].quantization
    for position, t in enumerate(int(t) for t in op.inputs):
        if t < 0 or graph.tensors[t].type != FLOAT32:
            continue
        values = graph.constant(t)
        assert values is not None
        if graph.kind(op) in JOINED:
            quantization = copy.deepcopy(output)
        else:
            quantization = copy.deepcopy(output)
            quantization.scale = np.array([max(float(np.abs(values).max()), 1e-6) / 127], np.float32)
            quantization.zeroPoint = np.zeros(1, np.int64)
        limits = np.iinfo(np.int8 if kind == INT8 else np.int16)
        codes = np.rint(values / quantization.scale[0]) + quantization.zeroPoint[0]
        codes = np.clip(codes, limits.min, limits.max).astype(limits.dtype)
        made = graph.add_tensor(graph.name(t) + "/codes", values.shape, kind, codes, quantization)
        inputs = np.array(op.inputs, np.int32)
        inputs[position] = made
        op.inputs = inputs


def _drop_idle(graph: Graph) -> None:
    """Remove DEQUANTIZE and QUANTIZE operators whose output nobody reads."""
    while True:
        read = set(graph.consumers()) | {int(t) for t in graph.subgraph.outputs}
        kept = [
            op
            for op in graph.operators
            if graph.kind(op) not in ("DEQUANTIZE", "QUANTIZE") or any(int(t) in read for t in op.outputs)
        ]
        if len(kept) == len(graph.operators):
            return
        graph.subgraph.operators = kept


def _same_range(a, b) -> bool:
    return np.array_equal(a.quantization.scale, b.quantization.scale) and np.array_equal(
        a.quantization.zeroPoint, b.quantization.zeroPoint
    )
