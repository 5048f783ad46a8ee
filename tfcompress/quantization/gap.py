"""How far a network's float32 simulation is from exact arithmetic: the same grids, computed in float64.

A deep simulated network sums in float32, in which now and then a value lands on the other side of a rounding; the share
grows from layer to layer. An integer file sums exactly. So a file can be held to one step of its simulation only within
this gap, and to one step without it of the float64 twin.
"""

import copy
import dataclasses
import inspect

import keras
import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.core.grids import IntegerGrid
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import calls, graph_of, is_nested
from tfcompress.layers.output_range import OutputRange
from tfcompress.method import finalize
from tfcompress.parametrization import chain, chains
from tfcompress.quantization.placement import input_range, passes_on
from tfcompress.quantization.weights import BiasGrid
from tfcompress.record import ATTRIBUTE, Range

ops = keras.ops
_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far the float32 simulation of one output is from its float64 twin.

    Args:
        output: its operation. step: distance of two codes, None where it has no range; then differences are absolute.
        largest: largest difference in steps. equal: share of the numbers less than half a step apart.
    """

    output: str
    step: float | None
    largest: float
    equal: float

    def __str__(self) -> str:
        unit = "steps" if self.step else "(absolute)"
        return f"{self.output}: float32 and float64 simulation differ by up to {self.largest:.2f} {unit}, {self.equal:.1%} equal"


def simulation_gap(model, x) -> list[Gap]:
    """Compare an attached network's float32 simulation with the same network in float64.

    Args:
        model: a network with `QAT` attached. x: inputs, an array, or a list or dict of arrays.

    Returns:
        A `Gap` for each output.

    Raises:
        CompressionError: there is nothing to simulate (no ranges), or the backend has no float64.

    Example:
        >>> from tfcompress import apply, quantization
        >>> net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        >>> [gap] = simulation_gap(apply(net, quantization.QAT(), data=x, verbose=0), x)
        >>> gap.largest <= 1.01
        True
    """
    inputs = [np.asarray(array) for array in keras.tree.flatten(x)]
    twin = Twin(model)
    exact, seen = twin(inputs), _in_float32(model, inputs)
    return [twin.gap(number, ours, theirs) for number, (ours, theirs) in enumerate(zip(seen, exact, strict=True))]


def _in_float32(model, inputs: list[np.ndarray]) -> list[np.ndarray]:
    parts = []
    for start in range(0, len(inputs[0]), _CHUNK):
        chunk = [ops.convert_to_tensor(array[start : start + _CHUNK]) for array in inputs]
        parts.append([ops.convert_to_numpy(v) for v in keras.tree.flatten(_keras_compat.call_with_list(model, chunk))])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


class Twin:
    """An attached network's inference in float64: weights and biases as code times step, outputs rounded in float64.

    Args:
        model: a network with output ranges.

    Raises:
        CompressionError: as `simulation_gap`.
    """

    def __init__(self, model):
        if keras.backend.backend() != "tensorflow":
            raise CompressionError(
                f"The float64 simulation needs the TensorFlow backend; {keras.backend.backend()} computes in float32."
            )
        if _keras_compat.functional(model) is None or not any(
            isinstance(layer, OutputRange) for layer in _keras_compat.flat_layers(model)
        ):
            raise CompressionError(
                f"Model {model.name!r} has no output ranges to simulate; attach quantization.QAT() first."
            )
        exact = _exact_weights(model)
        self.plain = finalize(model, force=True, verbose=0)
        self.ranges: dict[str, Range] = self.plain.__dict__[ATTRIBUTE].outputs
        layers = dict(select.layers(self.plain))
        self._values = {}
        for (path, name), value in exact.items():
            self._values[id(select.weight_names(layers[path])[name])] = value
        self._layers: dict[int, keras.Layer] = {}

    def __call__(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Outputs in float64, flat, for flat inputs."""
        parts = []
        for start in range(0, len(inputs[0]), _CHUNK):
            chunk = [array[start : start + _CHUNK] for array in inputs]
            wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in chunk]
            parts.append([ops.convert_to_numpy(value) for value in self._run(self.plain, wide, "", True)])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _run(self, model, inputs: list, prefix: str, top: bool) -> list:
        graph = graph_of(model)
        values = {id(tensor): ops.convert_to_tensor(value) for tensor, value in zip(graph.inputs, inputs, strict=True)}

        def given(value):
            return values[id(value)] if isinstance(value, keras.KerasTensor) else value

        for call in calls(model, prefix):
            args, kwargs = keras.tree.map_structure(given, (call.args, call.kwargs))
            if isinstance(call.operation, keras.layers.InputLayer):
                flat = [values[id(tensor)] for tensor in call.outputs]
            elif is_nested(call.operation):
                flat = self._run(call.operation, [values[id(t)] for t in call.inputs], call.path + "/", False)
            elif isinstance(call.operation, keras.Layer):
                flat = keras.tree.flatten(self._layer(call.operation, args, kwargs))
            else:
                flat = keras.tree.flatten(call.operation(*args, **kwargs))
            if call.key in self.ranges and (top or call.inputs):
                flat = [_rounded(value, self.ranges[call.key]) for value in flat]
            values.update({id(tensor): value for tensor, value in zip(call.outputs, flat, strict=True)})
        return [values[id(tensor)] for tensor in graph.outputs]

    def _layer(self, layer, args, kwargs):
        """The output of a layer's float64 twin, which is made at its first call."""
        if "training" in inspect.signature(layer.call).parameters:
            kwargs = {**kwargs, "training": False}
        if id(layer) not in self._layers:
            with _keras_compat.trusted_config():
                twin = type(layer).from_config(_wide(copy.deepcopy(layer.get_config())))
            twin(*args, **kwargs)
            for variable, old in zip(twin.variables, layer.variables, strict=True):
                variable.assign(self._values.get(id(old), ops.convert_to_numpy(old)))
            self._layers[id(layer)] = twin
        return self._layers[id(layer)](*args, **kwargs)

    def step(self, number: int) -> tuple[str, float | None]:
        """An output's operation, and the step of the codes that it is on."""
        graph = graph_of(self.plain)
        name = _keras_compat.operation_of(graph.outputs[number]).name
        return name, self._step_of(self.plain, graph.outputs[number], "")

    def _step_of(self, model, tensor, prefix: str) -> float | None:
        maker = {id(output): call for call in calls(model, prefix) for output in call.outputs}
        call = maker[id(tensor)]
        while call.key not in self.ranges:
            if is_nested(call.operation):
                number = [id(output) for output in call.outputs].index(id(tensor))
                return self._step_of(call.operation, graph_of(call.operation).outputs[number], call.path + "/")
            if not call.inputs or not passes_on(call.operation, call.inputs[0].shape, call.outputs[0].shape):
                return None
            tensor = call.inputs[0]
            call = maker[id(tensor)]
        return self.ranges[call.key].scale

    def gap(self, number: int, seen: np.ndarray, exact: np.ndarray) -> Gap:
        """How far one output is from the float64 simulation's.

        Args:
            number: of the output. seen: its values. exact: those of the float64 simulation.
        """
        name, step = self.step(number)
        error = np.abs(seen.astype(np.float64).reshape(exact.shape) - exact) / (step or 1.0)
        return Gap(
            name,
            step,
            float(error.max(initial=0.0)),
            float((error < 0.5).mean()) if step else float((error == 0).mean()),
        )


def _exact_weights(model) -> dict[tuple[str, str], np.ndarray]:
    """{(layer path, weight): code times step} of what lies on integer grids."""
    found = {}
    for name, one in chains(model):
        path, weight = name.rsplit(".", 1)
        link = one.links[-1]
        if isinstance(link, IntegerGrid):
            step = ops.convert_to_numpy(link.step()).astype(np.float64)
        elif isinstance(link, BiasGrid) and link.unit() is not None:
            step = _bias_step(link)
        else:
            continue
        found[path, weight] = np.rint(one.numpy().astype(np.float64) / step) * step
    return found


def _bias_step(link: BiasGrid) -> np.ndarray:
    """The product of both scales in float64, as an integer file's accumulator has it."""
    own = chain(link.layer, "kernel")
    assert own is not None  # else the bias has no unit
    assert isinstance(own.links[-1], IntegerGrid)
    kernel = ops.convert_to_numpy(own.links[-1].step()).astype(np.float64)
    return kernel.reshape(-1) * float(ops.convert_to_numpy(input_range(link.layer).grid()[0]))


def _rounded(value, known: Range):
    scale, zero = np.float64(np.float32(known.scale)), known.zero_point
    half = 2 ** (known.bits - 1)
    low = -half if known.bits == 8 else 1 - half
    codes = np.clip(np.rint(ops.convert_to_numpy(value) / scale) + zero, low, half - 1)
    return ops.convert_to_tensor((codes - zero) * scale)


def _wide(config):
    """A layer's config with float64 in place of every floating dtype policy, sub-layers' included."""
    if isinstance(config, dict):
        return {
            key: "float64" if key == "dtype" and _floating(value) else _wide(value) for key, value in config.items()
        }
    return [_wide(item) for item in config] if isinstance(config, list) else config


def _floating(policy) -> bool:
    name = policy.get("config", {}).get("name", "") if isinstance(policy, dict) else str(policy)
    return "float" in name or policy is None
