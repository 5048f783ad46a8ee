"""A float network and its rounded twin, run call by call over the same samples: what each layer reads in both."""

import contextlib
from collections.abc import Callable

import keras
import numpy as np

from tfcompress.graph.calls import Call, all_calls, calls, graph_of, is_nested
from tfcompress.graph.fold import KERNELS
from tfcompress.graph.rules import channel_axis
from tfcompress.layers.output_range import OutputRange

# One array a batch.
Parts = list[np.ndarray]
# (call in the float network, call in the rounded one, what the layer reads in the first, and in the second).
Visit = Callable[[Call, Call, Parts, Parts], None]


def lockstep(plain, model, batches: list, visit: Visit) -> None:
    """Run two models of the same graph over all samples, layer after layer, and show each layer before it runs.

    What a visitor changes in a layer acts on everything behind it, so one pass goes through the network with the layers
    before already rounded and corrected. Held are the tensors between two layers, of all samples.

    Args:
        plain: the float model. model: its twin. batches: one array an input each. visit: called before every layer with
            one input; ranges of outputs act in `model` alone.
    """
    inputs = [[np.asarray(batch[i]) for batch in batches] for i in range(len(graph_of(model).inputs))]
    _walk(plain, model, inputs, inputs, visit, "")


def _walk(plain, model, floats: list[Parts], rounded: list[Parts], visit: Visit, prefix: str):
    twins = [(graph_of(one), calls(one, prefix)) for one in (plain, model)]
    values = [
        {id(tensor): parts for tensor, parts in zip(graph.inputs, given, strict=True)}
        for (graph, _), given in zip(twins, (floats, rounded), strict=True)
    ]
    last: dict[int, int] = {}
    for number, call in enumerate(twins[1][1]):
        last.update({id(tensor): number for tensor in call.inputs})
    last.update({id(tensor): len(twins[1][1]) for tensor in twins[1][0].outputs})
    pairs = list(zip(twins[0][1], twins[1][1], strict=True))
    for number, both in enumerate(pairs):
        if not both[1].inputs:
            continue
        read = [[known[id(t)] for t in call.inputs] for call, known in zip(both, values, strict=True)]
        if is_nested(both[1].operation):
            made = _walk(both[0].operation, both[1].operation, read[0], read[1], visit, both[1].path + "/")
        else:
            if len(both[1].inputs) == 1 and isinstance(both[1].operation, keras.Layer):
                visit(*both, read[0][0], read[1][0])
            made = [_outputs(call, known) for call, known in zip(both, values, strict=True)]
            if isinstance(both[1].operation, OutputRange):
                made[0] = [read[0][0]]
        for call, known, parts in zip(both, values, made, strict=True):
            known.update({id(tensor): part for tensor, part in zip(call.outputs, parts, strict=True)})
        # The graphs are alike: what the twin reads no more, the float network does not either.
        for ours, theirs in zip(both[1].inputs, both[0].inputs, strict=True):
            if last[id(ours)] == number:
                values[1].pop(id(ours), None)
                values[0].pop(id(theirs), None)
    return [[known[id(t)] for t in graph.outputs] for (graph, _), known in zip(twins, values, strict=True)]


def _outputs(call: Call, values: dict[int, Parts]) -> list[Parts]:
    """What an operation makes of every batch: one list of arrays an output."""
    made = []
    for batch in range(len(values[id(call.inputs[0])])):
        args, kwargs = keras.tree.map_structure(
            lambda value, batch=batch: values[id(value)][batch] if isinstance(value, keras.KerasTensor) else value,
            (call.args, call.kwargs),
        )
        found = keras.tree.flatten(call.operation(*args, **kwargs))
        made.append([keras.ops.convert_to_numpy(value) for value in found])
    return [list(parts) for parts in zip(*made, strict=True)]


def correctable(model) -> dict[str, str]:
    """{path of each layer with one product and a bias axis: "" or why it cannot be treated alone}."""
    times: dict[int, int] = {}
    found = {}
    for call in all_calls(model):
        times[id(call.operation)] = times.get(id(call.operation), 0) + 1
    repeated = {id(c.operation) for c in all_calls(model) if is_nested(c.operation) and times[id(c.operation)] > 1}
    inside = {
        inner.path
        for c in all_calls(model)
        if id(c.operation) in repeated
        for inner in all_calls(c.operation, c.path + "/")
    }
    for call in all_calls(model):
        if type(call.operation).__name__ in KERNELS:
            shared = times[id(call.operation)] > 1 or call.path in inside
            found[call.path] = "it is called more than once" if shared else ""
    return found


@contextlib.contextmanager
def without_activation(layer):
    """A layer whose call gives what its activation would read."""
    kept, layer.activation = layer.activation, keras.activations.linear
    try:
        yield layer
    finally:
        layer.activation = kept


def channel_means(layer, parts: Parts) -> np.ndarray:
    """The mean of a layer's product and bias over samples and positions, one a channel, in float64."""
    axis = -1 if type(layer).__name__ == "Dense" else channel_axis(layer)
    total, count = 0.0, 0
    with without_activation(layer):
        for part in parts:
            value = np.moveaxis(keras.ops.convert_to_numpy(layer(part)), axis, -1)
            rows = value.reshape(-1, value.shape[-1])
            total, count = total + rows.sum(axis=0, dtype=np.float64), count + len(rows)
    return np.asarray(total) / count
