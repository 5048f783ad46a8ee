"""One network in which every layer's rounding can be switched: what a search measures without tracing anything anew.

The network is the one that `QAT` attaches, without its grids of weights and with ranges calibrated in float. Ranges are
switched by the variable that says whether they are known; weights and biases are assigned in the form that a file would
hold.
"""

import dataclasses
import math

import keras
import numpy as np

from tfcompress import _keras_compat, carriers, select
from tfcompress.core.grids import grid_of
from tfcompress.graph.calls import Call, all_calls, graph_of, is_nested
from tfcompress.graph.expand import expand_layers
from tfcompress.layers import OutputRange
from tfcompress.method import apply
from tfcompress.parametrization import deparametrize, state
from tfcompress.quantization import QAT, placement
from tfcompress.quantization.ranges import calibrate, ranges
from tfcompress.quantization.scheme import Scheme

FLOAT_BITS = 32
_WITH_BIAS = {kind.__name__ for kind in placement.WITH_BIAS}


def attach_expanded(model, method, data):
    """A copy with its layers with tensors inside as subgraphs, and then a method: names are the same whatever it leaves alone."""
    return apply(expand_layers(model)[0], method, data=data, in_place=True, verbose=0)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A weight that can be rounded.

    Args:
        path: of the layer. layer: it. name: of the weight. value: as it was. rounds: whether a grid of its own rounds it
            (an embedding's table is rounded as the layer's output).
    """

    path: str
    layer: keras.Layer
    name: str
    value: np.ndarray
    rounds: bool


@dataclasses.dataclass(frozen=True)
class Unit:
    """A layer whose precision can be chosen, with what goes with it.

    Args:
        path: of the layer. layer: it. keys: call keys of its calls and of the activations that only they feed.
    """

    path: str
    layer: keras.Layer
    keys: tuple[str, ...]


class Weights:
    """A model whose kernels can be replaced by values made from them.

    Args:
        model: a built model, which is changed.
    """

    def __init__(self, model):
        self.model = model
        self.kernels = [
            Kernel(path, layer, name, _value(layer, name), name != "embeddings")
            for path, layer in select.layers(model)
            for name in select.kernel_names(layer)
        ]
        self._now: dict[int, object] = {}
        self._grids: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    def put(self, kernel: Kernel, what, value: np.ndarray) -> None:
        """Give a kernel a value; `what` tells it from others, so that it is not assigned twice."""
        if self._now.get(id(kernel), FLOAT_BITS) != what:
            select.weight_names(kernel.layer)[kernel.name].assign(value)
            self._now[id(kernel)] = what

    def cut(self, shares: dict[str, float]) -> None:
        """Set the smallest weights of layers to zero; others are as they were.

        Args:
            shares: {path: share of each kernel's weights}.
        """
        for kernel in self.kernels:
            share = shares.get(kernel.path, 0.0)
            self.put(kernel, share or FLOAT_BITS, _pruned(kernel.value, share))

    def round(self, bits: dict[str, int], scheme: Scheme) -> dict[int, np.ndarray]:
        """Put kernels on integer grids; those not named are as they were.

        Args:
            bits: {path: bits}. scheme: for the grids.

        Returns:
            {id of the layer: the steps of its weight `kernel`, flat}.
        """
        steps = {}
        for kernel in self.kernels:
            width = bits.get(kernel.path, FLOAT_BITS)
            if width >= FLOAT_BITS or not kernel.rounds:
                self.put(kernel, FLOAT_BITS, kernel.value)
                continue
            key = (id(kernel), width)
            if key not in self._grids:
                self._grids[key] = self._grid(kernel, width, scheme)
            value, step = self._grids[key]
            self.put(kernel, width, value)
            if kernel.name == "kernel":
                steps[id(kernel.layer)] = step.reshape(-1)
        return steps

    def _grid(self, kernel: Kernel, bits: int, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
        """A kernel on its grid, and the grid's steps."""
        link = grid_of(bits, scheme.per_channel and _keras_compat.is_builtin(kernel.layer), scheme.weight_range)
        # The grid's variables belong to a layer that is thrown away.
        holder = keras.layers.Layer(dtype="float32")
        holder.build(())
        link.layer, link.weight, link.shape = holder, kernel.name, kernel.value.shape
        link.build(kernel.layer, kernel.name, kernel.value.shape)
        link.initialize(kernel.value)
        value = keras.ops.convert_to_numpy(link(keras.ops.convert_to_tensor(kernel.value)))
        return value, keras.ops.convert_to_numpy(link.step())


class Simulation(Weights):
    """The network that `QAT` would attach, with every rounding to be switched; all are off at first.

    Args:
        model: a plain model with a graph, which is left alone. scheme: of weights and outputs. data: calibration inputs.

    Raises:
        CompressionError: the model has no graph, or the data cannot calibrate it.
    """

    def __init__(self, model, scheme: Scheme, data):
        graph_of(model)
        few = keras.tree.map_structure(lambda a: a[:1], data) if scheme.needs_data else None
        super().__init__(_bare(attach_expanded(model, QAT(scheme=scheme), few)))
        # Ranges of the float network: a layer that few bits spoil would spoil those behind it for every assignment.
        for layer in ranges(self.model):
            if layer.fixed is None:
                layer.ready.assign(np.float32(0))
        calibrate(self.model, data)
        self.scheme = scheme
        self._read_graph()
        # Whether a fixed range is on is switched too.
        self._known = {id(layer): bool(_number(layer.ready)) for layer, _ in self.points}
        self._biases = {
            path: (layer, _value(layer, "bias"))
            for path, layer in select.layers(self.model)
            if type(layer).__name__ in _WITH_BIAS and getattr(layer, "bias", None) is not None
        }
        self._rounded_biases: set[str] = set()
        self.switch(set())

    def _read_graph(self) -> None:
        calls = list(all_calls(self.model))
        self._readers: dict[int, list[Call | None]] = {}
        self._readers.update({id(tensor): [None] for tensor in graph_of(self.model).outputs})
        for call in calls:
            if is_nested(call.operation):
                # Who reads a nested model's output stands outside of it.
                self._readers.update({id(tensor): [call] for tensor in graph_of(call.operation).outputs})
        for call in calls:
            for tensor in call.inputs:
                self._readers.setdefault(id(tensor), []).append(call)
        maker = {id(tensor): call for call in calls for tensor in call.outputs}
        sources: dict[int, list[str]] = {}
        layers = {}
        for call in calls:
            if isinstance(call.operation, OutputRange):
                layers[id(call.operation)] = call.operation
                sources.setdefault(id(call.operation), []).append(maker[id(call.inputs[0])].key)
        self.points = [(layer, tuple(sources[key])) for key, layer in layers.items()]
        self.calls = {call.key: call for call in calls if not isinstance(call.operation, OutputRange)}

    def readers(self, key: str) -> list[Call | None]:
        """What reads a call's output, ranges and what is no operator of a file looked through; None for the model's end."""
        found: list[Call | None] = []
        for tensor in self.calls[key].outputs:
            self._follow(tensor, found)
        return found

    def _follow(self, tensor, found: list) -> None:
        for call in self._readers.get(id(tensor), []):
            if call is not None and isinstance(call.operation, (OutputRange, *placement.TRANSPARENT)):
                self._follow(call.outputs[0], found)
            else:
                found.append(call)

    def units(self) -> list[Unit]:
        """The layers of the graph that have kernels of their own, in the order of the graph."""
        found: dict[str, list[str]] = {}
        owners = {kernel.path: kernel.layer for kernel in self.kernels}
        for call in self.calls.values():
            if owners.get(call.path) is call.operation:
                keys = found.setdefault(call.path, [])
                keys.append(call.key)
                following = self.readers(call.key)
                if len(following) == 1 and following[0] and placement.activation_name(following[0].operation):
                    keys.append(following[0].key)
        return [Unit(path, owners[path], tuple(keys)) for path, keys in found.items()]

    def unrounded(self, floats: set[str]) -> set[str]:
        """Keys whose output is not rounded where these calls run in float: those between two of them, or at the model's end.

        Args:
            floats: call keys.
        """
        return {
            source
            for _, sources in self.points
            for source in sources
            if all(
                one in floats and all(call is None or call.key in floats for call in self.readers(one))
                for one in sources
            )
        }

    def switch(self, on: set[str]) -> None:
        """Round exactly the outputs with these call keys (and those that share a range with one of them)."""
        for layer, sources in self.points:
            known = self._known[id(layer)] and any(source in on for source in sources)
            if bool(_number(layer.ready)) != known:
                layer.ready.assign(np.float32(known))

    def assign(self, bits: dict[str, int], on: set[str]) -> None:
        """Put the network in one state.

        Args:
            bits: {path: bits of its kernels}; others stay float. on: call keys of the outputs that are rounded.
        """
        self.switch(on)
        steps = self.round(bits, self.scheme)
        for path, (layer, value) in self._biases.items():
            before = placement.input_range(layer) if id(layer) in steps else None
            if before is not None and _number(before.ready):
                step = steps[id(layer)] * np.float32(_number(before.grid()[0]))
                layer.bias.assign((np.round(value / step) * step).astype(np.float32))
                self._rounded_biases.add(path)
            elif path in self._rounded_biases:
                layer.bias.assign(value)
                self._rounded_biases.discard(path)

    def copy_ranges(self, model) -> None:
        """Give the ranges of a model with `QAT` attached the ends that they have here, by what they round."""
        mine = {source: layer for layer, sources in self.points for source in sources}
        calls = list(all_calls(model))
        maker = {id(tensor): call for call in calls for tensor in call.outputs}
        for call in calls:
            if isinstance(call.operation, OutputRange):
                source = mine.get(maker[id(call.inputs[0])].key)
                if source is not None and self._known[id(source)]:
                    for own, theirs in zip(call.operation.weights, source.weights, strict=True):
                        own.assign(1.0 if theirs is source.ready else keras.ops.convert_to_numpy(theirs.value))


def _bare(model):
    """A model with `QAT` attached, without its chains, and with the weights that they were made from."""
    for layer in [model, *(layer for _, layer in select.layers(model))]:
        if state(layer):
            deparametrize(layer, bake=False)
            carriers.unswap(layer)
    _keras_compat.reset_functions(model)
    return model


def _value(layer, name: str) -> np.ndarray:
    return keras.ops.convert_to_numpy(select.weight_names(layer)[name].value).astype(np.float32)


def _number(variable) -> float:
    return float(keras.ops.convert_to_numpy(getattr(variable, "value", variable)))


def _pruned(value: np.ndarray, share: float) -> np.ndarray:
    """A weight without its smallest values.

    Example:
        >>> _pruned(np.array([3.0, -1.0, 2.0, 0.5]), 0.5).tolist()
        [3.0, 0.0, 2.0, 0.0]
    """
    count = math.floor(share * value.size + 0.5)
    if not count:
        return value
    flat = value.reshape(-1).copy()
    flat[np.argsort(np.abs(flat), kind="stable")[:count]] = 0.0
    return flat.reshape(value.shape)
