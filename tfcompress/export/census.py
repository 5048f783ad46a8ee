"""What is in a file: operators, multiply-accumulates, what stayed float, what has no fixed shape."""

import collections
import dataclasses

import numpy as np

from tfcompress.export.flatbuffer import FLOAT16, FLOAT32, INT4, INT8, INT16, TYPE_NAMES, UINT8, Graph

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE", "DENSIFY")
_SHAPE_OPERATORS = ("SHAPE", "STRIDED_SLICE", "PACK")
_INTEGER = (INT8, INT16, INT4, UINT8)


@dataclasses.dataclass(frozen=True)
class FloatOperator:
    """An operator that computes in float in a file whose products are integer.

    Args:
        kind: builtin name. tensor: its first output. layer: the Keras operation, when known. macs: its
            multiply-accumulates. elements: numbers it writes. dequantize, quantize: conversions right before and behind.
    """

    kind: str
    tensor: str
    layer: str | None
    macs: int
    elements: int
    dequantize: int
    quantize: int


@dataclasses.dataclass
class Census:
    """The counts of one file.

    Args:
        operators: {kind: count}, of all subgraphs. macs: multiply-accumulates of one run. integer_macs: of these, on
            integer tensors. float_operators: see there; empty for files that are float anyway. float_tensors: {constant:
            bytes} stored as float in an integer file. dynamic: tensors with an unknown dimension. shape_operators: {kind:
            count} of SHAPE, STRIDED_SLICE, PACK chains that a free batch brings. precision: what the file looks like.
    """

    operators: dict[str, int]
    macs: int
    integer_macs: int
    float_operators: list[FloatOperator]
    float_tensors: dict[str, int]
    dynamic: list[str]
    shape_operators: dict[str, int]
    precision: str

    @property
    def integer_share(self) -> float:
        """Share of the multiply-accumulates that run on integers; 1.0 where there are none."""
        return self.integer_macs / self.macs if self.macs else 1.0


def take(graph: Graph, layers: dict[str, str] | None = None) -> Census:
    """Count a file.

    Args:
        graph: the file. layers: {tensor: Keras operation}, for the names in the report.
    """
    kinds: collections.Counter = collections.Counter()
    total = integer = 0
    for view in graph.views():
        for op in view.operators:
            kinds[view.kind(op)] += 1
            count = macs(view, op)
            total += count
            integer += count * _is_integer(view, op)
    precision = _precision(graph)
    in_integers = precision in ("int8", "int16x8", "int4")
    dynamic = [view.name(i) for view in graph.views() for i, t in enumerate(view.tensors) if _is_dynamic(t)]
    return Census(
        operators=dict(kinds.most_common()),
        macs=total,
        integer_macs=integer,
        float_operators=_float_operators(graph, layers or {}) if in_integers else [],
        float_tensors=_float_tensors(graph) if in_integers else {},
        dynamic=dynamic,
        shape_operators=_shape_chain(kinds),
        precision=precision,
    )


def macs(graph: Graph, op) -> int:
    """Multiply-accumulates of one operator, by its shapes; 0 for what is no product."""
    kind = graph.kind(op)
    if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D"):
        return 0
    out = int(np.prod(graph.shape(int(op.outputs[0]))))
    weights = graph.shape(int(op.inputs[1]))
    if kind == "CONV_2D":
        return out * int(np.prod(weights[1:]))
    if kind == "DEPTHWISE_CONV_2D":
        return out * int(np.prod(weights[1:3]))
    if kind == "FULLY_CONNECTED":
        return out * weights[-1]
    if kind == "CONV_3D":
        return out * int(np.prod(weights[:4]))
    if kind == "TRANSPOSE_CONV":
        return int(np.prod(graph.shape(int(op.inputs[2])))) * int(np.prod(weights[:3]))
    first = graph.shape(int(op.inputs[0]))
    return out * first[-2 if getattr(op.builtinOptions, "adjX", False) else -1]


def _is_integer(graph: Graph, op) -> bool:
    position = 2 if graph.kind(op) == "TRANSPOSE_CONV" else 0
    return bool(len(op.inputs) > position and graph.tensors[int(op.inputs[position])].type in _INTEGER)


def _is_float(graph: Graph, op) -> bool:
    tensors = [graph.tensors[int(t)] for t in (*op.inputs, *op.outputs) if t >= 0 and not graph.is_constant(int(t))]
    return any(t.type in (FLOAT32, FLOAT16) for t in tensors)


def _float_operators(graph: Graph, layers: dict[str, str]) -> list[FloatOperator]:
    producers, consumers = graph.producers(), graph.consumers()
    found = []
    for op in graph.operators:
        kind = graph.kind(op)
        if kind in _CONVERSIONS or not _is_float(graph, op):
            continue
        before = sum(
            t in producers and graph.kind(graph.operators[producers[t]]) == "DEQUANTIZE" for t in map(int, op.inputs)
        )
        behind = sum(
            graph.kind(graph.operators[i]) == "QUANTIZE" for t in map(int, op.outputs) for i in consumers.get(t, [])
        )
        name = graph.name(int(op.outputs[0]))
        elements = sum(int(np.prod(graph.shape(int(t)))) for t in op.outputs)
        found.append(FloatOperator(kind, name, layers.get(name), macs(graph, op), elements, before, behind))
    return found


def _float_tensors(graph: Graph) -> dict[str, int]:
    return {
        view.name(i): len(view.model.buffers[t.buffer].data)
        for view in graph.views()
        for i, t in enumerate(view.tensors)
        if t.type in (FLOAT32, FLOAT16) and view.is_constant(i)
    }


def _is_dynamic(tensor) -> bool:
    signature = tensor.shapeSignature
    return signature is not None and any(int(n) < 0 for n in signature)


def _shape_chain(kinds: collections.Counter) -> dict[str, int]:
    """Slices and packs alone are a model's own (a recurrent net's); with SHAPE they compute shapes at run time."""
    return {kind: kinds[kind] for kind in _SHAPE_OPERATORS if kinds[kind]} if kinds["SHAPE"] else {}


def _precision(graph: Graph) -> str:
    """By the types of the products' weights and data, else of all activations."""
    seen: collections.Counter = collections.Counter()
    for view in graph.views():
        for op in view.operators:
            if macs(view, op) and len(op.inputs) > 1:
                data = view.tensors[int(op.inputs[2 if view.kind(op) == "TRANSPOSE_CONV" else 0])].type
                seen[(TYPE_NAMES.get(data, "?"), TYPE_NAMES.get(view.tensors[int(op.inputs[1])].type, "?"))] += 1
    data_types = {data for data, _ in seen}
    if ("int8", "int4") in seen or ("int16", "int4") in seen:
        return "int4"
    if "int16" in data_types:
        return "int16x8"
    if "int8" in data_types:
        return "int8"
    if ("float32", "int8") in seen or ("float32", "int4") in seen:
        return "dynamic"
    types = {t.type for view in graph.views() for t in view.tensors}
    if not seen and types & {INT8, INT16}:
        return "int8" if INT8 in types else "int16x8"
    return "float16" if FLOAT16 in types else "float32"
