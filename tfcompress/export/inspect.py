"""What a .tflite file holds: operators, tensors, bytes, sparsity and distinct values."""

import dataclasses
import pathlib

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export import census, runtimes
from tfcompress.export.flatbuffer import FLOAT16, FLOAT32, TYPE_NAMES, Graph
from tfcompress.export.reports import as_text


@dataclasses.dataclass(frozen=True)
class OperatorRow:
    """One operator: builtin kind, name of its first output, that tensor's shape and type, multiply-accumulates."""

    kind: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    macs: int


@dataclasses.dataclass(frozen=True)
class ConstantRow:
    """One stored tensor: name, shape, type, bytes, share of zeros, distinct values, number of scales."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    zeros: float
    distinct: int
    scales: int


@dataclasses.dataclass
class FileInfo:
    """A .tflite file at a glance.

    Args:
        path: the file. size: its bytes. precision: what it looks like. inputs, outputs: {name: (shape, type)}.
        operators, constants: row by row. census: the counts. runs_from: the first TensorFlow Lite release that has every operator.
    """

    path: str
    size: int
    precision: str
    inputs: dict[str, tuple[tuple[int, ...], str]]
    outputs: dict[str, tuple[tuple[int, ...], str]]
    operators: list[OperatorRow]
    constants: list[ConstantRow]
    census: census.Census
    runs_from: str = ""

    @property
    def parameters(self) -> int:
        """Numbers stored in float or integer constants with more than one dimension or scale."""
        return sum(int(np.prod(c.shape)) for c in self.constants)

    def to_dict(self) -> dict:
        """Plain numbers and strings, for JSON."""
        return dataclasses.asdict(self) | {"parameters": self.parameters}

    def __rich__(self):
        from rich.console import Group
        from rich.table import Table

        head = Table(
            title=f"{self.path}: {self.size:,} bytes, {self.precision}, {self.census.macs:,} MACs, from runtime {self.runs_from} on",
            title_justify="left",
        )
        for name in ("operator", "output", "shape", "type", "MACs"):
            head.add_column(name, justify="right" if name == "MACs" else "left")
        for op in self.operators:
            head.add_row(op.kind, op.output, "x".join(map(str, op.shape)), op.dtype, f"{op.macs:,}")
        body = Table(title="constants", title_justify="left")
        for name in ("name", "shape", "type", "bytes", "zeros", "distinct", "scales"):
            body.add_column(name)
        for c in self.constants:
            body.add_row(
                c.name,
                "x".join(map(str, c.shape)),
                c.dtype,
                f"{c.size:,}",
                f"{c.zeros:.1%}",
                str(c.distinct),
                str(c.scales),
            )
        return Group(head, body)

    def __str__(self) -> str:
        return as_text(self)


def inspect(path) -> FileInfo:
    """Read a .tflite file without running it.

    Raises:
        CompressionError: there is no such file, or it is damaged.

    Example:
        >>> print(inspect("model.tflite"))      # doctest: +SKIP
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise CompressionError(f"Cannot read {path}: {error.strerror or error}.") from error
    graph = Graph(data)
    counted = census.take(graph)
    operators, constants = [], []
    for view in graph.views():
        for op in view.operators:
            first = int(op.outputs[0])
            operators.append(
                OperatorRow(
                    view.kind(op),
                    view.name(first),
                    view.shape(first),
                    TYPE_NAMES.get(view.tensors[first].type, "?"),
                    census.macs(view, op),
                )
            )
        constants += [row for t in range(len(view.tensors)) if (row := _constant(view, t)) is not None]
    ends = [
        {graph.name(int(t)): (graph.shape(int(t)), TYPE_NAMES.get(graph.tensors[int(t)].type, "?")) for t in side}
        for side in (graph.subgraph.inputs, graph.subgraph.outputs)
    ]
    return FileInfo(
        str(path),
        len(data),
        counted.precision,
        ends[0],
        ends[1],
        operators,
        constants,
        counted,
        runtimes.oldest(graph)[0],
    )


def _constant(view: Graph, t: int) -> ConstantRow | None:
    tensor = view.tensors[t]
    if not view.is_constant(t):
        return None
    raw = view.model.buffers[tensor.buffer].data
    values, shape = view.constant(t), view.shape(t)
    if values is None and tensor.sparsity is not None:
        # Positions of the stored values are in the table; what is not stored is zero.
        stored = np.frombuffer(bytes(raw), {FLOAT32: "f4", FLOAT16: "f2"}.get(tensor.type, "i1"))
        zeros = 1 - stored.size / max(1, int(np.prod(shape)))
        distinct = len(np.unique(stored)) + (zeros > 0)
    elif values is None:
        return None
    else:
        zeros = float((values == 0).mean()) if values.size else 0.0
        distinct = len(np.unique(values))
    q = tensor.quantization
    scales = 0 if q is None or q.scale is None else len(q.scale)
    return ConstantRow(view.name(t), shape, TYPE_NAMES.get(tensor.type, "?"), len(raw), zeros, int(distinct), scales)
