"""Cross-layer equalization: channels of neighbouring layers scaled so that one step fits them all."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.graph.calls import operations
from tfcompress.graph.fold import KERNELS, fold_batchnorm, foldable
from tfcompress.graph.rebuild import rebuild
from tfcompress.method import DONE, SKIPPED, Method, Row, require_built
from tfcompress.quantization.pairs import INPUTS, Pair, pairs
from tfcompress.quantization.placement import TRANSPARENT, activation_name

layers = keras.layers
_GLOBAL = (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D)
# A channel is moved by no more than this factor: one that is nearly dead would blow up what it reads or writes.
_LIMIT = 100.0
_ROUNDS, _TOLERANCE = 60, 1e-4


class _Weights:
    """Kernels and biases of layers in float64 while they are changed."""

    def __init__(self, model, paths):
        self.layers = {path: layer for path, layer in operations(model).items() if path in paths}
        self.arrays: dict[tuple[str, str], np.ndarray] = {}
        for path, layer in self.layers.items():
            kind = type(layer).__name__
            for name in {KERNELS[kind][0], INPUTS[kind][0], "bias"}:
                if getattr(layer, name, None) is not None:
                    value = keras.ops.convert_to_numpy(getattr(layer, name))
                    self.arrays[path, name] = np.asarray(value, np.float64)

    def outputs(self, path: str) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
        """A kernel, its shape with 1 on all but the axes of output channels, and the other axes."""
        name, axes = KERNELS[type(self.layers[path]).__name__]
        kernel = self.arrays[path, name]
        axes = tuple(axis % kernel.ndim for axis in axes)
        shape = tuple(n if axis in axes else 1 for axis, n in enumerate(kernel.shape))
        return kernel, shape, tuple(axis for axis in range(kernel.ndim) if axis not in axes)

    def inputs(self, pair: Pair) -> np.ndarray:
        """A view of the second layer's kernel with the input's channels first, what a Flatten joined second."""
        name, axis = INPUTS[type(self.layers[pair.second]).__name__]
        view = np.moveaxis(self.arrays[pair.second, name], axis, 0)
        return view.reshape(pair.rows, -1, *view.shape[1:]).swapaxes(0, 1)

    def store(self) -> None:
        for (path, name), value in self.arrays.items():
            getattr(self.layers[path], name).assign(value.astype("float32"))


Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


def batch_statistics(model) -> Statistics:
    """What batch normalization says of the layers that it will be folded into: {path: (mean, standard deviation)}.

    The folded layer's output has the mean beta and the standard deviation |gamma|, a channel each.
    """
    known = operations(model)
    found = {}
    for row in foldable(model):
        if row.layer:
            normalization = known[row.normalization]
            count = normalization.moving_mean.shape
            found[row.layer] = tuple(
                np.full(count, default) if v is None else np.asarray(keras.ops.convert_to_numpy(v), np.float64)
                for v, default in ((normalization.beta, 0.0), (normalization.gamma, 1.0))
            )
    return {path: (mean, np.abs(deviation)) for path, (mean, deviation) in found.items()}


def replace_relu6(model):
    """Every ReLU6 of a model made a ReLU, in place; (the model, how many)."""
    operators, count = {}, 0
    for path, operation in operations(model).items():
        if getattr(operation, "activation", None) is keras.activations.relu6:
            operation.activation = keras.activations.relu
        elif isinstance(operation, layers.ReLU) and activation_name(operation) == "relu6":
            operation.max_value = None
        elif type(operation).__name__ == "Relu6":
            operators[path] = layers.ReLU(name=operation.name)
        else:
            continue
        count += 1
    return (rebuild(model, replace=operators, reuse=True) if operators else model), count


def equalize_folded(model, statistics: Statistics, absorb: bool = True) -> list[Row]:
    """Equalize a model whose batch normalization is folded, in place; `statistics` follow the factors."""
    found, reasons = pairs(model)
    weights = _Weights(model, {path for pair in found for path in (pair.first, pair.second)})
    moved = {pair.first: np.ones(0) for pair in found}
    for _ in range(_ROUNDS):
        largest = max((_balance(weights, pair, moved) for pair in found), default=0.0)
        if largest < _TOLERANCE:
            break
    for path in moved:
        if path in statistics:
            mean, deviation = statistics[path]
            statistics[path] = mean / moved[path], deviation / moved[path]
    weights.store()
    rows = []
    for pair in found:
        note = f"; {_absorb(model, pair, statistics)} biases absorbed" if absorb and pair.first in statistics else ""
        factor = moved[pair.first]
        rows.append(
            Row(
                pair.first,
                "kernel",
                DONE,
                f"equalized with {pair.second} by {factor.min():.3g} to {factor.max():.3g}{note}",
            )
        )
    return rows + [Row(path, "kernel", SKIPPED, f"not equalized: {reason}") for path, reason in reasons.items()]


def _balance(weights: _Weights, pair: Pair, moved: dict[str, np.ndarray]) -> float:
    """Give both sides of a pair the same range in each channel; the largest change, as a logarithm."""
    kernel, shape, others = weights.outputs(pair.first)
    read = weights.inputs(pair)
    ours = np.abs(kernel).max(axis=others).ravel()
    theirs = np.abs(read).max(axis=tuple(range(1, read.ndim)))
    alive = (ours > 0) & (theirs > 0)
    factor = np.sqrt(np.where(alive, ours, 1.0) / np.where(alive, theirs, 1.0))
    before = moved[pair.first] if moved[pair.first].size else np.ones(len(factor))
    moved[pair.first] = np.clip(before * factor, 1 / _LIMIT, _LIMIT)
    factor = moved[pair.first] / before
    kernel /= factor.reshape(shape)
    name, axis = INPUTS[type(weights.layers[pair.second]).__name__]
    target = weights.arrays[pair.second, name]
    spread = np.tile(factor, pair.rows)  # a Flatten puts the channels of one position side by side
    target *= spread.reshape([-1 if i == axis % target.ndim else 1 for i in range(target.ndim)])
    if (pair.first, "bias") in weights.arrays:
        weights.arrays[pair.first, "bias"] /= factor
    return float(np.abs(np.log(factor)).max(initial=0.0))


def _absorb(model, pair: Pair, statistics: Statistics) -> int:
    """Move what a ReLU passes on of nearly every value, mean - 3 deviations, into the next layer's bias; how many."""
    known = operations(model)
    first, second = known[pair.first], known[pair.second]
    mean, deviation = statistics[pair.first]
    surplus = np.maximum(mean - 3 * deviation, 0.0)
    kinds = [one for one in pair.between if not isinstance(one, (*TRANSPARENT, *_GLOBAL))]
    plain = len(kinds) == 1 and activation_name(kinds[0]) == "relu" and pair.rows == 1
    # Zeros that padding puts around the map do not get the surplus, so a padded kernel of several taps cannot take it in.
    inside = (
        type(second).__name__ == "Dense"
        or set(getattr(second, "kernel_size", (0,))) == {1}
        or second.padding == "valid"
    )
    if not plain or not inside or "Transpose" in type(second).__name__ or "Separable" in type(second).__name__:
        return 0
    if not surplus.any() or first.bias is None:
        return 0
    kernel = np.asarray(keras.ops.convert_to_numpy(second.kernel), np.float64)
    if "Depthwise" in type(second).__name__:
        gain = (kernel * surplus[:, None]).sum(axis=tuple(range(kernel.ndim - 2))).ravel()
    else:
        gain = (kernel * surplus[:, None]).sum(axis=tuple(range(kernel.ndim - 1)))
    if second.bias is None:
        _keras_compat.add_bias(second, len(gain))
    for layer, change in ((first, -surplus), (second, gain)):
        layer.bias.assign(keras.ops.convert_to_numpy(layer.bias) + change.astype("float32"))
    statistics[pair.first] = mean - surplus, deviation
    return int((surplus > 0).sum())


class Equalize(Method):
    """Cross-layer equalization: the function stays, the channels of each weight come to share one range.

    Batch normalization is folded. Between two layers with nothing but ReLU-like and pooling operations between them, channel
    i of the first is divided, and that of the second multiplied, by sqrt(r1_i / r2_i), r being the largest magnitudes, over
    all pairs until nothing moves (Nagel et al., Data-free quantization through weight equalization and bias correction,
    2019). High biases are then absorbed by the next layer: what ReLU passes on of all values within three standard
    deviations, where batch normalization tells these; that alone changes the function, for one value in 700 of a channel.

    Args:
        replace_relu6: make every ReLU6 a ReLU, which lets factors pass; the function changes where values exceed 6.
        absorb: move high biases on.

    Raises:
        CompressionError: the model is not built, or has no graph.

    Example:
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "relu", name="a"), layers.Dense(2, name="b")])
        >>> equal = apply(model, Equalize(), verbose=0)
        >>> a, b = (np.abs(equal.get_layer(name).kernel.numpy()) for name in "ab")
        >>> np.allclose(a.max(axis=0), b.max(axis=1), rtol=1e-3)
        True
    """

    trains = False

    def __init__(self, replace_relu6: bool = False, absorb: bool = True):
        self.replace_relu6, self.absorb = bool(replace_relu6), bool(absorb)

    def attach(self, model, data=None):
        require_built(model, "equalization")
        statistics = batch_statistics(model)
        model, rows = folded(model, self.replace_relu6)
        return model, rows + equalize_folded(model, statistics, self.absorb)


def folded(model, without_relu6: bool = False):
    """The model with batch normalization folded and, if asked, no ReLU6, in place; and the rows of the report."""
    model, folds = fold_batchnorm(model, reuse=True)
    rows = [
        Row(f.normalization, "", DONE, f"folded into {f.layer}") if f.layer
        else Row(f.normalization, "", SKIPPED, f"not folded: {f.reason}")
        for f in folds
    ]  # fmt: skip
    if without_relu6:
        model, count = replace_relu6(model)
        rows.append(Row(model.name, "", DONE, f"{count} ReLU6 made ReLU"))
    return model, rows
