"""Sparse files: weights that are mostly zeros stored as positions and values, expanded by DENSIFY when the graph is prepared.

This saves bytes. It saves no time on x86 (XNNPACK's sparse kernels are off where AVX exists), and on Arm only where
the rules of `sparse_rules` hold. Dynamic-range files cannot be sparse: the runtime refuses them ("failed to delegate CONV_2D").
"""

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export import litert
from tfcompress.export.flatbuffer import FLOAT16, FLOAT32, INT8, Graph
from tfcompress.export.runtimes import stamp

_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
# DENSIFY, its tensor and the sparsity table cost about this much.
_OVERHEAD = 250
OFFERED = ("float32", "float16", "int8", "int16x8")


def check_offered(precision: str) -> None:
    """Refuse a precision that has no sparse form.

    Raises:
        CompressionError: it has none.
    """
    reasons = {
        "dynamic": "LiteRT refuses sparse weights in dynamic-range products (failed to delegate CONV_2D)",
        "int4": "DENSIFY has no 4-bit form",
    }
    if precision not in OFFERED:
        raise CompressionError(
            f"sparse=True is not offered with precision={precision!r}: {reasons[precision]}. Offered: {', '.join(OFFERED)}."
        )


def sparsify(data: bytes) -> tuple[bytes, list[str]]:
    """Store every weight sparse whose sparse form is smaller.

    Returns:
        The file, and the names of the weights that are sparse in it.

    Raises:
        CompressionError: no weight has zeros enough, or the file does not get smaller.
    """
    graph = Graph(data)
    done: dict[int, int] = {}
    expanding = []
    for op in graph.operators:
        if graph.kind(op) not in _PRODUCTS:
            continue
        weight = _stored_weight(graph, int(op.inputs[1]))
        if weight is None:
            continue
        if weight not in done:
            dense = _encode(graph, weight)
            if dense is None:
                continue
            done[weight] = dense
            expanding.append(graph.make_operator("DENSIFY", [weight], [dense]))
        _redirect(graph, op, weight, done[weight])
    if not done:
        raise CompressionError(
            "sparse=True gains nothing here: no weight has zeros enough to be smaller as positions and values. Prune it first."
        )
    graph.subgraph.operators = expanding + graph.operators
    stamp(graph)
    result = graph.to_bytes()
    if len(result) >= len(data):
        raise CompressionError(f"sparse=True gains nothing here: {len(result):,} bytes against {len(data):,} dense.")
    return result, [graph.name(t) for t in done.values()]


def _stored_weight(graph: Graph, t: int) -> int | None:
    """The constant behind a product's weight operand: itself, or what a DEQUANTIZE widens."""
    if graph.is_constant(t):
        return t if graph.tensors[t].type in (FLOAT32, INT8) and graph.tensors[t].sparsity is None else None
    writer = graph.producers().get(t)
    if writer is None or graph.kind(graph.operators[writer]) != "DEQUANTIZE":
        return None
    source = int(graph.operators[writer].inputs[0])
    return source if graph.is_constant(source) and graph.tensors[source].type == FLOAT16 else None


def _redirect(graph: Graph, op, weight: int, dense: int) -> None:
    if int(op.inputs[1]) == weight:
        op.inputs = np.array([op.inputs[0], dense, *op.inputs[2:]], np.int32)
        return
    widening = graph.operators[graph.producers()[int(op.inputs[1])]]
    widening.inputs = np.array([dense], np.int32)


def _encode(graph: Graph, t: int) -> int | None:
    """Make tensor `t` sparse along its last axis (compressed rows); the dense tensor that DENSIFY will write."""
    values = graph.constant(t)
    assert values is not None
    if values.ndim < 2:
        return None
    rows = values.reshape(-1, values.shape[-1])
    filled = rows != 0
    segments = np.concatenate([[0], np.cumsum(filled.sum(1))])
    indices = np.nonzero(filled)[1]
    kept = rows[filled]
    smaller = kept.nbytes + _bytes(indices) + _bytes(segments) + _OVERHEAD
    if smaller >= values.nbytes or not len(kept):
        return None
    tensor, name = graph.tensors[t], graph.name(t)
    dense = graph.add_tensor(name, values.shape, tensor.type, None, tensor.quantization)
    graph.set_constant(t, kept)
    tensor.shape = np.array(values.shape, np.int32)
    tensor.name = f"{name}/sparse".encode()
    tensor.sparsity = _table(values.shape, segments, indices)
    return dense


def _table(shape, segments: np.ndarray, indices: np.ndarray):
    schema = litert.schema()
    table = schema.SparsityParametersT()
    table.traversalOrder = np.arange(len(shape), dtype=np.int32)
    table.dimMetadata = []
    for size in shape[:-1]:
        entry = schema.DimensionMetadataT()
        entry.format, entry.denseSize = schema.DimensionType.DENSE, int(size)
        table.dimMetadata.append(entry)
    entry = schema.DimensionMetadataT()
    entry.format = schema.DimensionType.SPARSE_CSR
    entry.arraySegmentsType, entry.arraySegments = _vector(segments)
    entry.arrayIndicesType, entry.arrayIndices = _vector(indices)
    table.dimMetadata.append(entry)
    return table


def _kind(numbers: np.ndarray) -> tuple[str, type]:
    top = int(numbers.max(initial=0))
    return (
        ("Uint8Vector", np.uint8)
        if top < 2**8
        else ("Uint16Vector", np.uint16)
        if top < 2**16
        else ("Int32Vector", np.int32)
    )


def _bytes(numbers: np.ndarray) -> int:
    return len(numbers) * np.dtype(_kind(numbers)[1]).itemsize


def _vector(numbers: np.ndarray):
    schema = litert.schema()
    name, dtype = _kind(numbers)
    vector = getattr(schema, f"{name}T")()
    vector.values = numbers.astype(dtype)
    return getattr(schema.SparseIndexVector, name), vector
