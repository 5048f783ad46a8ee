"""float16 files: constants stored in half precision, widened by DEQUANTIZE when the runtime prepares the graph."""

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export.flatbuffer import FLOAT16, FLOAT32, Graph
from tfcompress.export.versions import set_versions

# Below this a DEQUANTIZE operator takes more bytes than the shorter numbers save.
_SMALLEST = 64


def halve(data: bytes) -> bytes:
    """A float32 file with its float constants in float16.

    Raises:
        CompressionError: a constant is beyond float16's 65504.
    """
    graph = Graph(data)
    for view in graph.views():
        halved: dict[int, int] = {}
        widening = []
        for op in view.operators:
            inputs = np.array(op.inputs, np.int32)
            for i, t in enumerate(int(t) for t in op.inputs):
                if t not in halved:
                    if t < 0 or view.tensors[t].type != FLOAT32 or not view.is_constant(t):
                        continue
                    wide = _halve_one(view, t)
                    if wide is None:
                        continue
                    halved[t] = wide
                    widening.append(view.make_operator("DEQUANTIZE", [t], [wide]))
                inputs[i] = halved[t]
            op.inputs = inputs
        view.subgraph.operators = widening + view.operators
    set_versions(graph)
    return graph.to_bytes()


def _halve_one(view: Graph, t: int) -> int | None:
    values = view.constant(t)
    if values is None or values.size < _SMALLEST:
        return None
    with np.errstate(over="ignore"):
        short = values.astype(np.float16)
    if np.isinf(short).any() and np.isfinite(values).all():
        raise CompressionError(
            f"{view.name(t)} holds {np.abs(values).max():g}, and float16 ends at 65504; export float32 instead."
        )
    name = view.name(t)
    view.set_constant(t, short)
    view.tensors[t].name = f"{name}/half".encode()
    assert view.tensors[t].type == FLOAT16
    return view.add_tensor(name, values.shape, FLOAT32)
