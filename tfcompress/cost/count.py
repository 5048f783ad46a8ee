"""Counting what a model costs."""

import keras

from tfcompress import _keras_compat, select
from tfcompress.cost import calls, rules, weights
from tfcompress.cost.report import CostReport, LayerCost


def count(model, inputs=None, bits=None, values: bool = True) -> CostReport:
    """Count parameters, non-zeros, distinct values, multiply-accumulates and bytes of every layer.

    Functional and Sequential models are counted exactly, shared layers once for every call; models with a `call` of
    their own by tracing it, in which matrix products that it writes itself in keras.ops are not seen. Attached models
    count with their effective weights, without the layers that only they have (ranges of outputs).

    Args:
        model: a built model or layer.
        inputs: shapes with the batch axis (tuples), arrays or KerasTensors, where the model's own input has unknown
            sizes, e.g. (1, 224, 224, 3); a dictionary by argument for a `call` that takes several.
        bits: width of the kernels for the column of bytes: a number; a dictionary {layer name pattern: number}; a
            function (path, weight name) -> number or None. Default: that of the trained grid, else 32. Weights of one
            dimension (biases, batch normalization) have 32 unless a "layer.weight" entry or the function says otherwise.
        values: look at the values, for non-zeros and distinct values.

    Raises:
        CompressionError: the model has no weights yet, an input size is unknown, or `bits` makes no sense.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(),
        ...                           keras.layers.Dense(10)])
        >>> report = count(model, bits=8)
        >>> report.macs == 26 * 26 * 9 * 8 + 26 * 26 * 8 * 10, report.parameters
        (True, 54170)
        >>> report.float_bytes, report.bytes
        (216680, 54224)
    """
    found = calls.trace(model, inputs, rules.is_whole)
    samples = _samples(found)
    paths = {id(model): model.name, **{id(layer): path for path, layer in select.layers(model)}}
    order: dict[int, list[calls.Call]] = {}
    for call in found:
        order.setdefault(id(call.operation), []).append(call)

    rows: list[LayerCost] = []
    seen: set[int] = set()
    reported: set[int] = set()
    for key, same in order.items():
        operation = same[0].operation
        path = paths.get(key, operation.name)
        owners = [(path, operation)] if key in paths else []
        if key in paths and rules.is_whole(operation):
            owners += [(f"{path}/{inner}", layer) for inner, layer in select.layers(operation)]
        reported |= {id(layer) for _, layer in owners}
        costs = [cost for name, layer in owners for cost in weights.measure(layer, name, bits, values, seen)]
        row = LayerCost(path, type(operation).__name__, len(same), _total(same, samples), same[0].outputs, costs)
        container = isinstance(operation, keras.Layer) and bool(_keras_compat.sublayers(operation))
        if costs or row.macs != 0 or not container:
            rows.append(row)
    for path, layer in [(model.name, model), *select.layers(model)]:
        costs = [] if id(layer) in reported else weights.measure(layer, path, bits, values, seen)
        if costs:
            rows.append(LayerCost(path, type(layer).__name__, 0, 0, [], costs))
    return CostReport(model.name, rows)


def macs(model, inputs=None) -> int:
    """The multiply-accumulates for one sample; see `count`.

    Raises:
        CompressionError: also when a layer has no rule, since the sum would be too small; `count` lists what it knows.

    Example:
        >>> import keras
        >>> macs(keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)]))
        640
    """
    return count(model, inputs, values=False).macs


def _samples(found: list[calls.Call]) -> int:
    """The batch size in which the model was traced."""
    shapes = found[0].inputs if found else []
    sizes = {shape[0] for shape in shapes if shape}
    return sizes.pop() if len(sizes) == 1 else 1


def _total(same: list[calls.Call], samples: int) -> int | None:
    each = [rules.macs_of(call) for call in same]
    if None in each:
        return None
    return sum(one for one in each if one is not None) // samples
