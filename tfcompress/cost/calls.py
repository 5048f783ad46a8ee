"""Which operations a model calls on tensors of which shape, found by tracing it once without computing anything."""

import contextlib
import dataclasses
import inspect
import math
import threading
from collections.abc import Callable, Iterator

import keras

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError


class Shape(tuple):
    """The shape of a tensor, batch axis first."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or an operation.

    Args:
        operation: the `keras.Operation` (a layer is one) that was called.
        arguments: what it was called with, by the names in its `call`, with a `Shape` in place of every tensor.
        outputs: the shapes of the tensors that it returned.
    """

    operation: keras.Operation
    arguments: dict
    outputs: list[Shape]

    @property
    def inputs(self) -> list[Shape]:
        """The shapes of all tensors among the arguments, in order."""
        return [value for value in _flat(self.arguments) if isinstance(value, Shape)]

    @property
    def input(self) -> Shape:
        """The shape of the first tensor."""
        return self.inputs[0]

    @property
    def output(self) -> Shape:
        """The shape of the first tensor that was returned."""
        return self.outputs[0]


def trace(model, inputs=None, is_leaf: Callable[[keras.Operation], bool] = lambda operation: False) -> list[Call]:
    """Every call that a model makes on its way from inputs to outputs, inner calls after the outer one.

    Args:
        model: a built model or layer.
        inputs: shapes with the batch axis (a tuple of integers), arrays or KerasTensors, in the structure that the model
            is called with (a dictionary by argument when its `call` takes several); default: those it was built with,
            with a batch of one.
        is_leaf: operations whose inner calls are not of interest.

    Raises:
        CompressionError: the model is not built, or a size is missing.
    """
    if not getattr(model, "built", True):
        raise CompressionError(f"{model.name!r} has no weights yet: build it, or call it once on data.")
    inputs = _built_inputs(model) if inputs is None else inputs
    inputs = _map_inputs(lambda one: _spec(model, one), inputs)
    calls: list[Call] = []
    with _recording(calls, is_leaf):
        if isinstance(inputs, dict) and set(inputs) <= set(inspect.signature(model.call).parameters):
            _keras_compat.trace_shapes(model, **inputs)
        else:
            _keras_compat.trace_shapes(model, inputs)
    return calls


def _built_inputs(model):
    """The inputs that a model was built with, as KerasTensors or shapes; a dictionary when `call` takes several."""
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        return getattr(model, "_functional", model).input
    config = model.get_build_config() or {}
    shapes = config.get("input_shape")
    if config.get("shapes_dict"):
        shapes = {key.removesuffix("_shape"): shape for key, shape in config["shapes_dict"].items()}
    if not shapes:
        raise CompressionError(
            f"The input shape of {model.name!r} is not known. Give it, with the batch axis: inputs=(1, 224, 224, 3)."
        )
    required = [
        parameter.name
        for parameter in inspect.signature(model.call).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(required) > 1 and not (isinstance(shapes, dict) and set(required) <= set(shapes)):
        raise CompressionError(
            f"The call of {model.name!r} takes several arguments ({', '.join(required)}). Give the shape of each, with "
            f"the batch axis: inputs={{{required[0]!r}: (1, 8), ...}}."
        )
    return shapes


def _spec(model, one) -> keras.KerasTensor:
    shape = tuple(one.shape) if hasattr(one, "shape") else tuple(one)
    dtype = keras.backend.standardize_dtype(one.dtype) if hasattr(one, "dtype") else model.input_dtype
    if shape and shape[0] is None:
        shape = (1, *shape[1:])
    if None in shape:
        raise CompressionError(
            f"An input of {model.name!r} has the shape {shape}; the cost depends on the sizes that are None. "
            "Give them, with the batch axis: inputs=(1, 224, 224, 3)."
        )
    return keras.KerasTensor(shape, dtype)


def _map_inputs(function, inputs):
    """Apply a function to each shape or tensor in lists, tuples and dictionaries of them."""
    if hasattr(inputs, "shape") or (
        isinstance(inputs, (tuple, list)) and all(size is None or isinstance(size, int) for size in inputs)
    ):
        return function(inputs)
    if isinstance(inputs, dict):
        return {key: _map_inputs(function, value) for key, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(_map_inputs(function, value) for value in inputs)
    raise CompressionError(f"Inputs are shapes, arrays or KerasTensors in lists or dictionaries; received {inputs!r}.")


@contextlib.contextmanager
def _recording(calls: list[Call], is_leaf) -> Iterator[None]:
    """Note every call of a `keras.Operation` in this thread."""
    original = keras.Operation.__call__
    thread = threading.get_ident()
    quiet = False

    def recorded(operation, *args, **kwargs):
        nonlocal quiet
        if quiet or threading.get_ident() != thread:
            return original(operation, *args, **kwargs)
        place = len(calls)
        quiet = is_leaf(operation)
        try:
            outputs = original(operation, *args, **kwargs)
        finally:
            quiet = False
        shapes = [value for value in _flat(_shapes(outputs)) if isinstance(value, Shape)]
        calls.insert(place, Call(operation, _shapes(_bound(operation, args, kwargs)), shapes))
        return outputs

    # Layers reach this method through super(), operations in a graph directly; nothing else sees both.
    keras.Operation.__call__ = recorded
    try:
        yield
    finally:
        keras.Operation.__call__ = original


def _bound(operation, args, kwargs) -> dict:
    """The arguments by name."""
    try:
        return dict(inspect.signature(operation.call).bind(*args, **kwargs).arguments)
    except TypeError:
        return {**{f"argument{number}": value for number, value in enumerate(args)}, **kwargs}


def _shapes(structure):
    """The structure with a `Shape` in place of every tensor."""
    if hasattr(structure, "shape") and hasattr(structure, "dtype"):
        return Shape(structure.shape)
    if isinstance(structure, dict):
        return {key: _shapes(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_shapes(value) for value in structure]
    return structure


def _flat(structure) -> Iterator:
    if isinstance(structure, Shape):
        yield structure
    elif isinstance(structure, dict):
        for value in structure.values():
            yield from _flat(value)
    elif isinstance(structure, list):
        for value in structure:
            yield from _flat(value)
    else:
        yield structure
