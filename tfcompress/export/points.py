"""Values of a Keras model's operations on probe inputs, by the names that a record of ranges uses."""

import inspect

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError, nearest
from tfcompress.graph.calls import Call, calls, graph_of, is_nested

Values = dict[str, list[np.ndarray]]


def capture(model, inputs: list[np.ndarray]) -> Values:
    """Run a model eagerly in inference mode and keep the output of every operation.

    Args:
        model: a plain Keras model. inputs: one array an input.

    Returns:
        {operation name: arrays}. An operation has several arrays when it returns several, or when the nested model that
        it is part of is called several times. Nested names are "outer/inner", second calls "name#1".
    """
    found: Values = {}
    if _keras_compat.functional(model) is None:
        _watch(model, inputs, found)
    else:
        _replay(model, [keras.ops.convert_to_tensor(x) for x in inputs], "", found)
    return found


def _replay(model, inputs: list, prefix: str, found: Values) -> list:
    """Evaluate a graph call by call, as the model does, and return its flat outputs."""
    graph = graph_of(model)
    values = {id(tensor): value for tensor, value in zip(graph.inputs, inputs, strict=True)}

    def given(value):
        return values[id(value)] if isinstance(value, keras.KerasTensor) else value

    for call in calls(model, prefix):
        if isinstance(call.operation, keras.layers.InputLayer):
            flat = [values[id(tensor)] for tensor in call.outputs]
        else:
            args, kwargs = keras.tree.map_structure(given, (call.args, call.kwargs))
            if is_nested(call.operation):
                inner = [values[id(tensor)] for tensor in call.inputs]
                flat = _replay(call.operation, inner, call.path + "/", found)
            else:
                flat = keras.tree.flatten(call.operation(*args, **_inference(call, kwargs)))
        values.update({id(tensor): value for tensor, value in zip(call.outputs, flat, strict=True)})
        found.setdefault(call.key, []).extend(_array(value) for value in flat)
    return [values[id(tensor)] for tensor in graph.outputs]


def _inference(call: Call, kwargs: dict) -> dict:
    """Call arguments with training off where the layer takes it."""
    if isinstance(call.operation, keras.Layer) and "training" in inspect.signature(call.operation.call).parameters:
        return {**kwargs, "training": False}
    return kwargs


def _watch(model, inputs: list[np.ndarray], found: Values) -> None:
    """For a subclassed model: listen to every layer while the model runs. Operators in its `call` stay unseen."""
    watched, paths = [], dict(layer_paths(model))
    for path, layer in paths.items():
        if layer is model:
            continue
        original = layer.call
        had = "call" in vars(layer)

        def listen(*args, _original=original, _path=path, **kwargs):
            result = _original(*args, **kwargs)
            count = sum(key.split("#")[0] == _path for key in found)
            found[f"{_path}#{count}" if count else _path] = [_array(v) for v in keras.tree.flatten(result)]
            return result

        listen.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
        object.__setattr__(layer, "call", listen)
        watched.append((layer, had, original))
    try:
        _keras_compat.call_with_list(model, inputs)
    finally:
        for layer, had, original in watched:
            if had:
                object.__setattr__(layer, "call", original)
            else:
                object.__delattr__(layer, "call")


def layer_paths(model, prefix: str = ""):
    """(path, layer) of every layer below a model; names joined with "/"; the model itself has the path ""."""
    seen: set[int] = set()

    def walk(layer, path):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        yield path, layer
        children = layer.layers if isinstance(layer, keras.Model) and layer.built else _keras_compat.sublayers(layer)
        for child in children:
            yield from walk(child, f"{path}/{child.name}" if path else child.name)

    yield from walk(model, prefix)


def weight_of(model, key: str) -> np.ndarray:
    """The value of a weight by its name in a record: "layer/path.kernel", also "lstm.cell.kernel".

    Raises:
        CompressionError: there is no such weight.
    """
    paths = dict(layer_paths(model))
    # A layer's name may hold dots: the longest path that fits is the layer.
    for cut in sorted((i for i, c in enumerate(key) if c == "."), reverse=True):
        owner = paths.get(key[:cut])
        if owner is None:
            continue
        value = owner
        try:
            for part in key[cut + 1 :].split("."):
                value = getattr(value, part)
        except AttributeError:
            continue
        return _array(value)
    known = [f"{path}.{v.name}" for path, layer in paths.items() for v in _keras_compat.own_variables(layer)]
    raise CompressionError(
        f"The record speaks of weight {key!r}, which model {model.name!r} does not have. {nearest(key, known)}"
    )


def _array(value) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))
