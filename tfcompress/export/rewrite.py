"""Operators without an integer kernel, written as operators that have one: -x as x * -1, x^2 as x * x.

Stock LayerNormalization and GroupNormalization bring them; no converter quantizes them.
"""

import numpy as np

from tfcompress.export import litert
from tfcompress.export.flatbuffer import FLOAT32, Graph, builtin_codes


def for_integers(data: bytes) -> bytes:
    """A float file with the same values in which NEG and SQUARE are multiplications."""
    graph = Graph(data)
    changed = False
    for op in graph.operators:
        kind = graph.kind(op)
        if kind not in ("NEG", "SQUARE") or graph.tensors[int(op.inputs[0])].type != FLOAT32:
            continue
        x = int(op.inputs[0])
        other = x
        if kind == "NEG":
            other = graph.add_tensor(
                f"{graph.name(int(op.outputs[0]))}/minus_one", (), FLOAT32, np.array(-1, np.float32)
            )
        options = litert.schema().MulOptionsT()
        options.fusedActivationFunction = 0
        op.opcodeIndex = graph.opcode(builtin_codes()["MUL"], 1)
        op.inputs = np.array([x, other], np.int32)
        op.builtinOptionsType, op.builtinOptions = litert.schema().BuiltinOptions.MulOptions, options
        changed = True
    return graph.to_bytes(share=False) if changed else data
