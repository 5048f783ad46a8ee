"""Running a model's graph one call at a time, to see what each operation reads and makes."""

from collections.abc import Callable

import keras
import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.graph.calls import Call, calls, graph_of, is_nested

Visit = Callable[[Call, list, list], None]


def batches(model, data, size: int = 64) -> list:
    """Calibration inputs as batches in the order of the model's inputs.

    Args:
        model: the model that reads them. data: an array, a list of arrays, or a dictionary by input name.
        size: samples a batch.

    Raises:
        CompressionError: the data do not fit the inputs; the message names the input.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> [batch[0].shape for batch in batches(model, np.zeros((5, 4)), size=3)]
        [(3, 4), (2, 4)]
    """
    inputs = graph_of(model).inputs
    if isinstance(data, dict):
        by_name = {tensor.name: tensor for tensor in inputs}
        missing = [name for name in by_name if name not in data]
        if missing:
            raise CompressionError(f"The calibration data lack the input {missing[0]!r} of model {model.name!r}.")
        arrays = [np.asarray(data[name]) for name in by_name]
    else:
        arrays = [np.asarray(part) for part in (data if isinstance(data, (list, tuple)) else [data])]
    if len(arrays) != len(inputs):
        raise CompressionError(
            f"Model {model.name!r} has {len(inputs)} inputs; the calibration data have {len(arrays)}."
        )
    for array, tensor in zip(arrays, inputs, strict=True):
        fits = array.ndim == len(tensor.shape) and all(
            want in (None, got) for want, got in zip(tensor.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or len(array) != len(arrays[0]) or not len(array):
            raise CompressionError(
                f"The input {tensor.name!r} of model {model.name!r} takes {tuple(tensor.shape)}; the calibration data are "
                f"{array.shape}."
            )
    return [[array[i : i + size] for array in arrays] for i in range(0, len(arrays[0]), size)]


def watch(model, batch: list, visit: Visit) -> list:
    """Evaluate a model's graph eagerly, in inference, and show each call's tensors.

    Args:
        model: a Functional or built Sequential model. batch: one array an input.
        visit: called with (call, inputs, outputs) after every call, those inside nested models included.

    Returns:
        The outputs, flat.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a"), keras.layers.ReLU(name="b")])
        >>> seen = []
        >>> _ = watch(model, [np.ones((1, 2), "float32")], lambda call, inputs, outputs: seen.append(call.key))
        >>> seen
        ['a', 'b']
    """
    return _watch(model, [keras.ops.convert_to_tensor(array) for array in batch], visit, "")


def _watch(model, inputs: list, visit: Visit, prefix: str) -> list:
    graph = graph_of(model)
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}
    for call in calls(model, prefix):
        if not call.inputs:
            continue
        read = [values[id(tensor)] for tensor in call.inputs]
        if is_nested(call.operation):
            made = _watch(call.operation, read, visit, call.path + "/")
        else:
            args, kwargs = keras.tree.map_structure(
                lambda value: values[id(value)] if isinstance(value, keras.KerasTensor) else value,
                (call.args, call.kwargs),
            )
            made = keras.tree.flatten(call.operation(*args, **kwargs))
            visit(call, read, made)
        values.update({id(tensor): value for tensor, value in zip(call.outputs, made, strict=True)})
    return [values[id(tensor)] for tensor in graph.outputs]


class InputMoments:
    """Mean and second moment of what layers read, over all positions of their last axis, in float64.

    Args:
        paths: of the layers; each has to read one tensor with the channels last.

    Attributes:
        count: {path: number of vectors}. sums: {path: their sum}. squares: {path: sum of x^T x}.
    """

    def __init__(self, paths):
        self.paths = set(paths)
        self.count: dict[str, int] = {}
        self.sums: dict[str, np.ndarray] = {}
        self.squares: dict[str, np.ndarray] = {}

    def __call__(self, call: Call, inputs: list, outputs: list) -> None:
        if call.path not in self.paths:
            return
        x = np.asarray(keras.ops.convert_to_numpy(inputs[0]), np.float64)
        x = x.reshape(-1, x.shape[-1])
        self.count[call.path] = self.count.get(call.path, 0) + len(x)
        self.sums[call.path] = self.sums.get(call.path, 0) + x.sum(axis=0)
        self.squares[call.path] = self.squares.get(call.path, 0) + x.T @ x

    def mean(self, path: str) -> np.ndarray:
        """E[x]."""
        return self.sums[path] / self.count[path]

    def second(self, path: str) -> np.ndarray:
        """E[x^T x], not centred."""
        return self.squares[path] / self.count[path]


def input_moments(model, data, paths) -> InputMoments:
    """Mean and second moment of what layers read on calibration data.

    Args:
        model: a Functional or built Sequential model. data: as in `batches`. paths: of the layers.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a")])
        >>> input_moments(model, np.array([[1.0, 2.0], [3.0, 4.0]]), ["a"]).mean("a")
        array([2., 3.])
    """
    moments = InputMoments(paths)
    for batch in batches(model, data):
        watch(model, batch, moments)
    return moments
