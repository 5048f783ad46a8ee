"""Which tensors of a .tflite file have to share one range, and whose range the runtime fixes.

From the TFLite 8-bit specification (ai.google.dev/edge/litert/models/quantization_spec, read November 2026), and from
what litert-quantizer 0.11 writes.
"""

from collections.abc import Iterator

from tfcompress.export.flatbuffer import FLOAT32, Graph, kinds
from tfcompress.record import Range

# The output has the range of this operand.
TIED = {
    **dict.fromkeys(
        kinds("""RESHAPE MAX_POOL_2D AVERAGE_POOL_2D PAD MIRROR_PAD SLICE STRIDED_SLICE TRANSPOSE SQUEEZE EXPAND_DIMS GATHER
        GATHER_ND UNPACK BROADCAST_TO RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SPACE_TO_DEPTH DEPTH_TO_SPACE TILE
        REVERSE_V2 REDUCE_MAX REDUCE_MIN SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND SPLIT_V"""),
        0,
    ),
    "SPLIT": 1,
}
# All these operands and the output share one range, as long as nobody trained different ones.
JOINED = {
    "CONCATENATION": None,
    "PACK": None,
    "MAXIMUM": None,
    "MINIMUM": None,
    "PADV2": (0, 2),
    "SELECT": (1, 2),
    "SELECT_V2": (1, 2),
}
# The kernels accept nothing else for their output: (8-bit range, 16-bit range).
FIXED = {
    "SOFTMAX": (Range(1 / 256, -128, 8), Range(1 / 32768, 0, 16)),
    "LOGISTIC": (Range(1 / 256, -128, 8), Range(1 / 32768, 0, 16)),
    "TANH": (Range(1 / 128, 0, 8), Range(1 / 32768, 0, 16)),
    "L2_NORMALIZATION": (Range(1 / 128, 0, 8), Range(1 / 32768, 0, 16)),
}


class Groups:
    """Sets of tensors that share one range (union-find over tensor indices)."""

    def __init__(self, graph: Graph):
        self._parent = list(range(len(graph.tensors)))
        self._graph = graph
        for op in graph.operators:
            operand = TIED.get(graph.kind(op))
            if operand is not None and operand < len(op.inputs):
                for t in op.outputs:
                    self.join(int(op.inputs[operand]), int(t))

    def find(self, tensor: int) -> int:
        """The tensor that stands for the group of `tensor`."""
        while self._parent[tensor] != tensor:
            self._parent[tensor] = self._parent[self._parent[tensor]]
            tensor = self._parent[tensor]
        return tensor

    def join(self, a: int, b: int) -> None:
        """Put two groups together, unless either tensor is no float."""
        if all(self._graph.tensors[t].type == FLOAT32 for t in (a, b)):
            self._parent[self.find(b)] = self.find(a)

    def members(self) -> dict[int, list[int]]:
        """{representative: tensors}."""
        found: dict[int, list[int]] = {}
        for t in range(len(self._parent)):
            found.setdefault(self.find(t), []).append(t)
        return found


def joined(graph: Graph) -> Iterator[list[int]]:
    """For every concatenation-like operator the tensors that want one range."""
    for op in graph.operators:
        kind = graph.kind(op)
        if kind in JOINED:
            operands = JOINED[kind]
            inputs = [int(t) for i, t in enumerate(op.inputs) if operands is None or i in operands]
            yield [t for t in (*inputs, *(int(t) for t in op.outputs)) if t >= 0 and graph.tensors[t].type == FLOAT32]


def fixed(graph: Graph, bits: int) -> dict[int, Range]:
    """{tensor: the range that its kernel fixes}."""
    return {int(op.outputs[0]): FIXED[graph.kind(op)][bits == 16] for op in graph.operators if graph.kind(op) in FIXED}
