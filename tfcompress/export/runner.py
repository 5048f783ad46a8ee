"""Running a .tflite file on floats, with the file's own scales at its ends."""

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export import litert
from tfcompress.export.data import as_inputs, batches
from tfcompress.export.flatbuffer import TYPE_NAMES, Graph
from tfcompress.export.savedmodel import Port


class Runner:
    """A .tflite file that takes floats and returns floats.

    Inputs are quantized and outputs dequantized by the scales that the file holds, whatever its boundary types are.

    Args:
        path: a .tflite file, or its bytes. delegate: with the default delegate (XNNPACK) or without. threads: of the CPU.

    Raises:
        CompressionError: there is no such file, it is damaged, or the runtime refuses it.

    Example:
        >>> runner = Runner("model.tflite")              # doctest: +SKIP
        >>> scores = runner(images)                      # doctest: +SKIP
        >>> scores = runner(image=images, mask=masks)    # doctest: +SKIP
    """

    def __init__(self, path, *, delegate: bool = True, threads: int = 1):
        self._interpreter = litert.interpreter(path, delegate=delegate, threads=threads)
        graph = Graph(_content(path))
        entry = graph.signature()
        named = (
            {int(i.tensorIndex): i.name.decode() for i in [*(entry.inputs or []), *(entry.outputs or [])]}
            if entry
            else {}
        )
        inputs = [int(t) for t in graph.subgraph.inputs]
        outputs = [int(t) for t in graph.subgraph.outputs]
        self.inputs = tuple(
            Port(named.get(t, graph.name(t)), graph.shape(t), TYPE_NAMES.get(graph.tensors[t].type, "?"))
            for t in inputs
        )
        self.outputs = tuple(named.get(t, graph.name(t)) for t in outputs)
        self._input_scales = [_affine(graph, t) for t in inputs]
        self._output_scales = [_affine(graph, t) for t in outputs]
        self._steps = [_step(graph, t) for t in outputs]

    def __call__(self, *values, **named):
        """Run samples, given in the order of the inputs or by their names.

        Args:
            values, named: float (or, for integer inputs, integer) arrays with samples along the first axis.

        Returns:
            A float array of the same number of samples; a dict by output name where the file has several outputs.
        """
        results = self.run(as_inputs(named if named else list(values), self.ports(), "The runner's input"))
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """As a call, but from a list of one array an input to a list of one array an output."""
        count, batch = len(arrays[0]), max(1, self.inputs[0].shape[0])
        collected: list[list[np.ndarray]] = [[] for _ in self.outputs]
        for run in batches(arrays, batch):
            raw = [self.enter(value, i) for i, value in enumerate(run)]
            for i, value in enumerate(litert.invoke(self._interpreter, raw)):
                collected[i].append(self._leave(value, i))
        # An output without a batch axis cannot be joined sample by sample, except one run at a time.
        return [np.concatenate(parts)[:count] if parts[0].ndim else np.array(parts)[:count] for parts in collected]

    def steps(self) -> list[float | None]:
        """The distance of two neighbouring output codes for each output; None where the output is float all the way."""
        return list(self._steps)

    def ports(self) -> tuple[Port, ...]:
        """The inputs as callers see them: quantized ones take floats."""
        return tuple(
            Port(p.name, p.shape, "float32" if scale is not None else p.dtype)
            for p, scale in zip(self.inputs, self._input_scales, strict=True)
        )

    def enter(self, value: np.ndarray, i: int) -> np.ndarray:
        """The raw tensor of the file's input `i` for float (or integer) values."""
        affine = self._input_scales[i]
        if affine is None:
            return value
        scale, zero = affine
        limits = np.iinfo(self.inputs[i].dtype)
        codes = np.rint(np.asarray(value, np.float32) / np.float32(scale)) + zero
        return np.clip(codes, limits.min, limits.max).astype(self.inputs[i].dtype)

    def _leave(self, value: np.ndarray, i: int) -> np.ndarray:
        affine = self._output_scales[i]
        if affine is None:
            return value
        scale, zero = affine
        return ((value.astype(np.float32) - zero) * np.float32(scale)).astype(np.float32)


def _content(path) -> bytes:
    if isinstance(path, bytes | bytearray | memoryview):
        return bytes(path)
    with open(path, "rb") as file:
        return file.read()


def _affine(graph: Graph, t: int) -> tuple[float, int] | None:
    """(scale, zero point) of a quantized end."""
    q = graph.tensors[t].quantization
    if (
        q is None
        or q.scale is None
        or not len(q.scale)
        or TYPE_NAMES.get(graph.tensors[t].type) not in ("int8", "uint8", "int16")
    ):
        return None
    if len(q.scale) != 1:
        raise CompressionError(f"The file's end {graph.name(t)!r} has {len(q.scale)} scales; one is possible.")
    return float(q.scale[0]), int(q.zeroPoint[0]) if q.zeroPoint is not None and len(q.zeroPoint) else 0


def _step(graph: Graph, t: int) -> float | None:
    """The output's scale, or that of the integer tensor behind a closing DEQUANTIZE."""
    own = _affine(graph, t)
    writer = graph.producers().get(t)
    if own is None and writer is not None and graph.kind(graph.operators[writer]) == "DEQUANTIZE":
        own = _affine(graph, int(graph.operators[writer].inputs[0]))
    return None if own is None else own[0]
