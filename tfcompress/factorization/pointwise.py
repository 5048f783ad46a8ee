"""Layers whose kernel is one matrix, and the pairs of layers that two factors of it make."""

import dataclasses

import keras
import numpy as np

from tfcompress.graph.calls import Call, all_calls, is_nested
from tfcompress.graph.rebuild import Weighted
from tfcompress.method import SKIPPED, Row
from tfcompress.parametrization import is_parametrized

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@dataclasses.dataclass
class Matrix:
    """A layer that multiplies its input's last axis by a matrix.

    Args:
        path: the layer's path. layer: the layer.
        first: (path, layer) of the one before it, when the two are the factors of a matrix already.
    """

    path: str
    layer: keras.Layer
    first: tuple[str, keras.Layer] | None = None

    @property
    def reads(self) -> str:
        """The path of the layer that reads the product's input."""
        return self.first[0] if self.first else self.path

    @property
    def has_bias(self) -> bool:
        """Whether a constant can be added to the output."""
        return self.layer.bias is not None

    @property
    def value(self) -> np.ndarray:
        """The matrix, [m, n]."""
        return _matrix(self.layer)

    @property
    def product(self) -> tuple[np.ndarray, np.ndarray]:
        """The two factors of a pair."""
        assert self.first is not None
        return _matrix(self.first[1]), _matrix(self.layer)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the whole matrix."""
        rows = _matrix(self.first[1]).shape[0] if self.first else self.value.shape[0]
        return rows, self.value.shape[1]

    @property
    def size(self) -> int:
        """How many weights the kernel, or the pair's two, hold now."""
        return sum(part.size for part in self.product) if self.first else self.value.size

    def links(self, factors) -> list[Weighted]:
        """Two layers for the factors, for `replace_by_chain`."""
        layer, k = self.layer, factors.a.shape[1]
        bias = [] if factors.shift is None else [_numpy(layer.bias) + factors.shift]
        config = {**layer.get_config(), "activation": "linear", "activity_regularizer": None}
        first: dict
        last: dict
        if isinstance(layer, keras.layers.Dense):
            first, last = {"units": k}, {}
        elif isinstance(layer, CONVOLUTIONS):
            first, last = {"filters": k}, {"strides": 1}
        else:
            one, two = _halves(layer.equation)
            shape = config["output_shape"]
            shape = list(shape) if isinstance(shape, (list, tuple)) else [shape]
            first, last = {"equation": one, "output_shape": [*shape[:-1], k], "bias_axes": None}, {"equation": two}
        kind = type(layer)
        ones = (1,) * (len(layer.kernel.shape) - 2)
        return [
            Weighted(kind.from_config({**config, **first}), [factors.a.reshape(*ones, *factors.a.shape)]),
            Weighted(kind.from_config({**config, **last}), [factors.b.reshape(*ones, *factors.b.shape), *bias]),
        ]

    def relink(self, factors) -> dict[str, Weighted]:
        """The pair's two layers for new factors, by path, for `rebuild`."""
        assert self.first is not None
        path, layer = self.first
        k = factors.a.shape[1]
        argument = "units" if isinstance(layer, keras.layers.Dense) else "filters"
        a = factors.a.reshape(*layer.kernel.shape[:-1], k)
        b = factors.b.reshape(*self.layer.kernel.shape[:-2], k, factors.b.shape[1])
        bias = [_numpy(self.layer.bias)] if self.layer.bias is not None else []
        return {
            path: Weighted(type(layer).from_config({**layer.get_config(), argument: k}), [a]),
            self.path: Weighted(type(self.layer).from_config(self.layer.get_config()), [b, *bias]),
        }


def _numpy(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _matrix(layer) -> np.ndarray:
    kernel = _numpy(layer.kernel)
    return kernel.reshape(kernel.shape[-2:])


def _halves(equation: str) -> tuple[str, str]:
    """The equations of the two factors: "abc,cd->abd" -> "abc,cZ->abZ", "abZ,Zd->abd"."""
    left, output = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    middle = output[:-1] + "Z"
    return f"{inputs},{kernel[0]}Z->{middle}", f"{middle},Z{kernel[1]}->{output}"


def _is_matrix(layer) -> str:
    """Why a layer's kernel cannot be taken as a matrix; "" where it can."""
    if isinstance(layer, keras.layers.Dense):
        return ""
    if isinstance(layer, CONVOLUTIONS):
        if any(size != 1 for size in layer.kernel_size):
            return f"its kernel is {'x'.join(str(size) for size in layer.kernel_size)}; SVD takes 1x1 convolutions"
        if layer.groups != 1 or layer.data_format != "channels_last":
            return "grouped and channels-first convolutions are not taken"
        return ""
    if isinstance(layer, keras.layers.EinsumDense):
        left, output = layer.equation.replace(" ", "").split("->")
        inputs, kernel = left.split(",")
        plain = len(kernel) == 2 and inputs[-1] == kernel[0] and output == inputs[:-1] + kernel[1]
        return (
            ""
            if plain and "." not in layer.equation
            else f"its equation {layer.equation!r} is no product with one matrix"
        )
    return "not a layer with a matrix as kernel"


def matrices(model, rows: list[Row]) -> list[Matrix]:
    """The layers of a model whose kernel is a matrix, pairs that are factored already as one; rows say what is left out.

    Args:
        model: a Functional or built Sequential model. rows: reasons are appended.
    """
    found: dict[int, Matrix] = {}
    reads: dict[int, list[Call]] = {}
    followed = [call for call in all_calls(model) if call.inputs and not is_nested(call.operation)]
    for call in followed:
        for tensor in call.inputs:
            reads.setdefault(id(tensor), []).append(call)
    for call in followed:
        layer = call.operation
        if not isinstance(layer, keras.Layer) or id(layer) in found or not hasattr(layer, "kernel"):
            continue
        reason = _is_matrix(layer)
        if not reason and is_parametrized(layer):
            reason = "something of tfcompress is attached; factor before, or finalize first"
        if reason:
            rows.append(Row(call.path, "kernel", SKIPPED, reason))
        else:
            found[id(layer)] = Matrix(call.path, layer)
    return _paired(found, followed, reads)


def _paired(found: dict[int, Matrix], followed: list[Call], reads: dict[int, list[Call]]) -> list[Matrix]:
    times: dict[int, int] = {}
    for call in followed:
        times[id(call.operation)] = times.get(id(call.operation), 0) + 1
    for call in followed:
        mine = found.get(id(call.operation))
        readers = reads.get(id(call.outputs[0]), [])
        if mine is None or len(readers) != 1 or times[id(mine.layer)] > 1:
            continue
        other = found.get(id(readers[0].operation))
        linear = mine.layer.activation is keras.activations.linear and mine.layer.bias is None
        pairable = (keras.layers.Dense, *CONVOLUTIONS)
        if (
            other is None
            or not linear
            or type(other.layer) is not type(mine.layer)
            or not isinstance(mine.layer, pairable)
        ):
            continue
        narrow = mine.value.shape[1] < min(mine.value.shape[0], other.value.shape[1])
        if narrow and times[id(other.layer)] == 1 and other.first is None and mine.first is None:
            other.first = (mine.path, mine.layer)
            del found[id(mine.layer)]
    return list(found.values())
