"""A .tflite file as an editable graph.

A thin layer over the schema's object API: names, constants, producers and consumers, adding and dropping operators.
Everything here keeps to the first subgraph unless told otherwise; others exist only below WHILE and IF.
"""

import functools
from collections.abc import Iterable

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export import litert

_IDENTIFIER = b"TFL3"
# The schema's TensorType values; INT4 is unpacked by `constant`.
FLOAT32, FLOAT16, INT32, UINT8, INT64, BOOL, INT16, INT8, INT4 = 0, 1, 2, 3, 4, 6, 7, 9, 17
DTYPES = {
    0: "float32",
    1: "float16",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float64",
}
TYPE_NAMES = {**DTYPES, 5: "string", 17: "int4"}
_TYPES = {name: code for code, name in TYPE_NAMES.items()}


@functools.cache
def builtin_names() -> dict[int, str]:
    """Operator code -> name, e.g. 3 -> 'CONV_2D'."""
    return {code: name for name, code in vars(litert.schema().BuiltinOperator).items() if not name.startswith("_")}


@functools.cache
def builtin_codes() -> dict[str, int]:
    """Operator name -> code."""
    return {name: code for code, name in builtin_names().items()}


def kinds(text: str) -> tuple[str, ...]:
    """Operator names, written as words: the tables of this package are lists of them."""
    return tuple(text.split())


class Graph:
    """One subgraph of a .tflite model, with the model around it.

    Args:
        data: the file's bytes. index: which subgraph.

    Raises:
        CompressionError: the bytes are not a .tflite file.
    """

    def __init__(self, data: bytes, index: int = 0):
        if bytes(data[4:8]) != _IDENTIFIER:
            raise CompressionError("This is not a .tflite file: the identifier TFL3 is missing.")
        schema = litert.schema()
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        except Exception as error:  # flatbuffers raises struct.error, IndexError, ... on a damaged file
            raise CompressionError(f"This .tflite file is damaged: {error}.") from error
        for buffer in self.model.buffers:
            if buffer.offset > 1:
                buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0
        self.index = index

    @property
    def subgraph(self):
        """The schema's SubGraphT."""
        return self.model.subgraphs[self.index]

    @property
    def tensors(self) -> list:
        """The schema's TensorT objects, in file order."""
        return self.subgraph.tensors

    @property
    def operators(self) -> list:
        """The schema's OperatorT objects, in execution order."""
        return self.subgraph.operators

    def views(self) -> Iterable["Graph"]:
        """This model's subgraphs, each as a Graph that shares the model."""
        for index in range(len(self.model.subgraphs)):
            view = object.__new__(Graph)
            view.model, view.index = self.model, index
            yield view

    def name(self, tensor: int) -> str:
        """A tensor's name."""
        return (self.tensors[tensor].name or b"").decode("utf-8", "replace")

    def by_name(self) -> dict[str, int]:
        """Tensor name -> index."""
        return {self.name(i): i for i in range(len(self.tensors))}

    def kind(self, op) -> str:
        """An operator's builtin name, or its custom name."""
        code = self.model.operatorCodes[op.opcodeIndex]
        value = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = builtin_names().get(value, f"OPERATOR_{value}")
        return (code.customCode or b"").decode() if name == "CUSTOM" else name

    def custom(self) -> list[str]:
        """Names of the custom operators in the model, which the runtime alone cannot run."""
        codes = [self.model.operatorCodes[op.opcodeIndex] for view in self.views() for op in view.operators]
        return sorted({code.customCode.decode() for code in codes if code.customCode})

    def shape(self, tensor: int) -> tuple[int, ...]:
        """A tensor's shape."""
        shape = self.tensors[tensor].shape
        return () if shape is None else tuple(int(n) for n in shape)

    def is_constant(self, tensor: int) -> bool:
        """Whether the file holds the tensor's values."""
        data = self.model.buffers[self.tensors[tensor].buffer].data
        return data is not None and len(data) > 0

    def constant(self, tensor: int) -> np.ndarray | None:
        """A copy of a tensor's stored values (4-bit codes as int8), or None for an activation."""
        t = self.tensors[tensor]
        if not self.is_constant(tensor) or t.sparsity is not None or t.type not in (*DTYPES, INT4):
            return None
        raw = np.array(self.model.buffers[t.buffer].data, np.uint8)
        if t.type == INT4:
            return unpack_int4(raw, int(np.prod(self.shape(tensor)))).reshape(self.shape(tensor))
        return raw.view(DTYPES[t.type]).reshape(self.shape(tensor))

    def set_constant(self, tensor: int, values: np.ndarray) -> None:
        """Store new values for a tensor, in a buffer of its own; the dtype gives the type."""
        t = self.tensors[tensor]
        t.buffer, t.type = self.add_buffer(values), _TYPES[str(values.dtype)]
        t.shape = np.asarray(values.shape, np.int32)

    def add_tensor(self, name: str, shape, kind: int, values: np.ndarray | None = None, quantization=None) -> int:
        """Append a tensor and return its index."""
        schema = litert.schema()
        t = schema.TensorT()
        t.name, t.shape, t.type, t.quantization = name.encode(), np.asarray(shape, np.int32), kind, quantization
        t.buffer = 0 if values is None else self.add_buffer(values)
        # Schema 3 tells scalars from unknown shapes by this flag.
        t.hasRank = True
        self.tensors.append(t)
        return len(self.tensors) - 1

    def make_operator(self, kind: str, inputs, outputs, version: int = 1):
        """An operator without options, not yet in the execution order."""
        op = litert.schema().OperatorT()
        op.opcodeIndex = self.opcode(builtin_codes()[kind], version)
        op.inputs, op.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
        return op

    def opcode(self, builtin: int, version: int) -> int:
        """Index of the operator code with this version, added when it is missing."""
        codes = self.model.operatorCodes
        for index, code in enumerate(codes):
            if (
                max(code.builtinCode, code.deprecatedBuiltinCode) == builtin
                and code.version == version
                and not code.customCode
            ):
                return index
        code = litert.schema().OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
        codes.append(code)
        return len(codes) - 1

    def producers(self) -> dict[int, int]:
        """Tensor -> index of the operator that writes it."""
        return {int(t): i for i, op in enumerate(self.operators) for t in op.outputs}

    def consumers(self) -> dict[int, list[int]]:
        """Tensor -> indices of the operators that read it."""
        found: dict[int, list[int]] = {}
        for i, op in enumerate(self.operators):
            for t in op.inputs:
                if t >= 0:
                    found.setdefault(int(t), []).append(i)
        return found

    def signature(self):
        """The schema's SignatureDefT of this subgraph, or None."""
        for entry in self.model.signatureDefs or []:
            if entry.subgraphIndex == self.index:
                return entry
        return None

    def replace_boundary(self, old: int, new: int, inputs: bool) -> None:
        """Make another tensor the graph's input or output, in the signature too."""
        ends = self.subgraph.inputs if inputs else self.subgraph.outputs
        renamed = np.array([new if t == old else t for t in ends], np.int32)
        if inputs:
            self.subgraph.inputs = renamed
        else:
            self.subgraph.outputs = renamed
        entry = self.signature()
        for item in ((entry.inputs if inputs else entry.outputs) or []) if entry else []:
            if item.tensorIndex == old:
                item.tensorIndex = new

    def to_bytes(self, share: bool = True) -> bytes:
        """The file, without tensors, buffers and operator codes that nothing uses.

        Args:
            share: store equal contents once.
        """
        import flatbuffers

        _drop_unused(self, share)
        aligned = _aligned_buffer()
        for buffer in self.model.buffers:
            buffer.__class__ = aligned
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=_IDENTIFIER)
        return bytes(builder.Output())

    def add_buffer(self, values: np.ndarray) -> int:
        """Append a buffer that holds an array, and return its index."""
        buffer = litert.schema().BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1


def unpack_int4(raw: np.ndarray, count: int) -> np.ndarray:
    """4-bit codes, two a byte and low half first, as int8."""
    low, high = raw & 15, raw >> 4
    codes = np.stack([low, high], 1).ravel()[:count].astype(np.int8)
    return np.where(codes > 7, codes - 16, codes).astype(np.int8)


@functools.cache
def _aligned_buffer() -> type:
    """BufferT that is written 16-byte aligned, as the schema asks; the generated writer leaves it at four."""
    schema = litert.schema()

    class Aligned(schema.BufferT):  # type: ignore[name-defined]
        def Pack(self, builder):
            if self.data is None or not len(self.data):
                return super().Pack(builder)
            payload = np.ascontiguousarray(self.data, np.uint8).tobytes()
            builder.StartVector(1, len(payload), 16)
            builder.head -= len(payload)
            builder.Bytes[builder.head : builder.head + len(payload)] = payload
            data = builder.EndVector()
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    return Aligned


def _drop_unused(graph: Graph, share: bool) -> None:
    for view in graph.views():
        used = {int(t) for op in view.operators for t in (*op.inputs, *op.outputs, *(op.intermediates or [])) if t >= 0}
        used |= {int(t) for t in (*view.subgraph.inputs, *view.subgraph.outputs)}
        kept = sorted(used)
        place = {old: new for new, old in enumerate(kept)}
        place[-1] = -1
        view.subgraph.tensors = [view.tensors[i] for i in kept]
        for op in view.operators:
            op.inputs = np.array([place[int(t)] for t in op.inputs], np.int32)
            op.outputs = np.array([place[int(t)] for t in op.outputs], np.int32)
            if op.intermediates is not None:
                op.intermediates = np.array([place[int(t)] for t in op.intermediates], np.int32)
        view.subgraph.inputs = np.array([place[int(t)] for t in view.subgraph.inputs], np.int32)
        view.subgraph.outputs = np.array([place[int(t)] for t in view.subgraph.outputs], np.int32)
        entry = view.signature()
        for item in [*(entry.inputs or []), *(entry.outputs or [])] if entry else []:
            item.tensorIndex = place[int(item.tensorIndex)]
    _drop_unused_codes(graph)
    _drop_unused_buffers(graph, share)


def _drop_unused_codes(graph: Graph) -> None:
    kept = sorted({op.opcodeIndex for view in graph.views() for op in view.operators})
    place = {old: new for new, old in enumerate(kept)}
    graph.model.operatorCodes = [graph.model.operatorCodes[i] for i in kept]
    for view in graph.views():
        for op in view.operators:
            op.opcodeIndex = place[op.opcodeIndex]


def _drop_unused_buffers(graph: Graph, share: bool) -> None:
    """Keep what is used; buffer 0 is the empty one by convention."""
    model = graph.model
    place: dict[int, int] = {}
    content: dict = {}
    buffers = [litert.schema().BufferT()]
    owners = [t for view in graph.views() for t in view.tensors] + list(model.metadata or [])
    for owner in owners:
        if owner.buffer not in place:
            data = model.buffers[owner.buffer].data
            if data is None or not len(data):
                place[owner.buffer] = 0
            else:
                key = np.asarray(data, np.uint8).tobytes() if share else owner.buffer
                if key not in content:
                    content[key] = len(buffers)
                    buffers.append(model.buffers[owner.buffer])
                place[owner.buffer] = content[key]
        owner.buffer = place[owner.buffer]
    model.buffers = buffers
    # Indices into the old buffer list; the runtime reads `metadata`, and nothing else uses this list.
    model.metadataBuffer = None
