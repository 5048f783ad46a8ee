"""How many multiply-accumulates a call takes.

Counted are the products that are summed up in matrix products and convolutions, those with padding zeros included, as
papers count them. Additions of biases, normalization, activations, pooling and other element-wise work count nothing.
A layer that could multiply and has no rule is reported as "not counted", never as free.
"""

import math
from collections.abc import Callable

import keras

from tfcompress import _keras_compat
from tfcompress.cost.calls import Call, Shape, trace

# Rules by class, and for operations that Keras keeps private, by the class's name.
_RULES: dict[type | str, Callable] = {}
_WHOLE: set[type] = set()
# Keras's own classes that multiply, or run anything, and have no rule.
_UNKNOWN = """
    Lambda MelSpectrogram STFTSpectrogram TorchModuleWrapper JaxLayer FlaxLayer TFSMLayer
    Dot Tensordot Inner Outer Vdot Kron Cross Correlate Corrcoef CDist SeparableConv ConvTranspose DotProductAttention
    FFT FFT2 IFFT2 RFFT IRFFT STFT ISTFT Cholesky CholeskyInverse Det Eig Eigh Inv LuFactor Qr Solve SolveTriangular
    SVD Lstsq MatrixRank Pinv JVP Map Scan AssociativeScan Switch WhileLoop ForiLoop Cond VectorizedMap
"""


def rule(*classes: type | str, whole: bool = False):
    """Register how the multiply-accumulates of a layer class are counted.

    Args:
        classes: the layer classes (sub-classes are included), or names of Keras's operation classes.
        whole: the rule covers what inner layers do as well, and their weights are reported in the outer layer's row.

    Returns:
        A decorator for a function (layer, call) -> multiply-accumulates of this call, or None where they are not known.

    Example:
        >>> import keras
        >>> class Gram(keras.Layer):
        ...     def call(self, x):
        ...         return keras.ops.matmul(keras.ops.transpose(x), x)
        >>> @rule(Gram)
        ... def gram(layer, call):
        ...     return call.input[0] * call.input[1] ** 2
    """

    def register(function):
        for one in classes:
            _RULES[one] = function
            if whole and isinstance(one, type):
                _WHOLE.add(one)
        return function

    return register


def find(operation) -> tuple[Callable | None, bool]:
    """The rule of an operation, and whether it covers inner layers."""
    for base in type(operation).__mro__:
        if base in _RULES:
            return _RULES[base], base in _WHOLE
    if not isinstance(operation, keras.Layer):
        return _RULES.get(type(operation).__name__), False
    return None, False


def is_whole(operation) -> bool:
    """Whether an operation's rule covers inner layers."""
    return find(operation)[1]


def macs_of(call: Call) -> int | None:
    """The multiply-accumulates of one call beside those of inner layers, for the whole batch; None: no rule."""
    operation = call.operation
    function, _ = find(operation)
    if function is not None:
        return function(operation, call)
    kind = type(operation)
    stock = next((base for base in kind.__mro__ if base.__module__.startswith("keras.")), object)
    # A parametrized layer's class is a sub-class of the same name.
    if stock is kind or (stock.__name__ == kind.__name__ and stock is not keras.Layer):
        return None if stock.__name__ in _UNKNOWN.split() else 0
    if any(len(variable.shape) >= 2 for variable in _keras_compat.own_variables(operation)):
        return None
    # What is left are layers of people's own: those that only call inner layers are known, as are ours.
    known = bool(_keras_compat.sublayers(operation)) or kind.__module__.startswith("tfcompress.")
    return 0 if known else None


def channels_and_pixels(layer, shape: Shape) -> tuple[int, int]:
    """The channels of a feature map, and its positions times the batch."""
    axis = 1 if (layer.data_format or keras.config.image_data_format()) == "channels_first" else -1
    return shape[axis], shape.size // shape[axis]


@rule(keras.layers.Dense)
def _dense(layer, call: Call) -> int:
    return call.input.size * layer.units


@rule(keras.layers.EinsumDense)
def _einsum_dense(layer, call: Call) -> int | None:
    return einsum(layer.equation, [call.input, Shape(layer.kernel.shape)])


@rule(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
def _conv(layer, call: Call) -> int:
    channels, _ = channels_and_pixels(layer, call.input)
    _, pixels = channels_and_pixels(layer, call.output)
    return pixels * math.prod(layer.kernel_size) * (channels // layer.groups) * layer.filters


@rule(keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
def _conv_transpose(layer, call: Call) -> int:
    channels, pixels = channels_and_pixels(layer, call.input)
    return pixels * math.prod(layer.kernel_size) * channels * layer.filters


@rule(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def _depthwise(layer, call: Call) -> int:
    channels, _ = channels_and_pixels(layer, call.input)
    _, pixels = channels_and_pixels(layer, call.output)
    return pixels * math.prod(layer.kernel_size) * channels * layer.depth_multiplier


@rule(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def _separable(layer, call: Call) -> int:
    channels, _ = channels_and_pixels(layer, call.input)
    _, pixels = channels_and_pixels(layer, call.output)
    middle = channels * layer.depth_multiplier
    return pixels * middle * (math.prod(layer.kernel_size) + layer.filters)


@rule(keras.layers.Embedding)
def _embedding(layer, call: Call) -> int:
    return 0


@rule(keras.layers.ReversibleEmbedding)
def _reversible_embedding(layer, call: Call) -> int:
    return call.input.size * layer.input_dim if call.arguments.get("reverse") else 0


@rule(keras.layers.Dot)
def _dot(layer, call: Call) -> int:
    left, _ = call.inputs[:2]
    axis = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return call.output.size * left[axis]


@rule(keras.layers.MultiHeadAttention)
def _multi_head_attention(layer, call: Call) -> int:
    """Scores and weighted values; the projections are layers of their own."""
    query, value = call.arguments["query"], call.arguments["value"]
    source = call.arguments.get("key") or value
    axes = layer.attention_axes or range(1, len(query) - 1)
    kept = math.prod(size for axis, size in enumerate(query[:-1]) if axis not in axes)
    positions = math.prod(query[axis] for axis in axes) * math.prod(source[axis] for axis in axes)
    return kept * positions * layer.num_heads * (layer.key_dim + layer.value_dim)


@rule(keras.layers.GroupQueryAttention)
def _grouped_query_attention(layer, call: Call) -> int:
    query, value = call.arguments["query"], call.arguments["value"]
    return query[0] * query[1] * value[1] * layer.num_query_heads * 2 * layer.head_dim


@rule(keras.layers.Attention)
def _attention(layer, call: Call) -> int:
    query, value = call.inputs[:2]
    return math.prod(query[:-1]) * value[-2] * (query[-1] + value[-1])


@rule(keras.layers.AdditiveAttention)
def _additive_attention(layer, call: Call) -> int:
    query, value = call.inputs[:2]
    scored = query[-1] if layer.use_scale else 0
    return math.prod(query[:-1]) * value[-2] * (scored + value[-1])


@rule(keras.layers.RNN, whole=True)
def _recurrent(layer, call: Call) -> int | None:
    batch, steps, *features = call.input
    once = cell_macs(layer.cell, Shape((batch, *features)))
    return None if once is None else steps * once


@rule(keras.layers.TimeDistributed, whole=True)
def _time_distributed(layer, call: Call) -> int | None:
    batch, steps, *features = call.input
    once = [macs_of(inner) for inner in trace(layer.layer, keras.KerasTensor((batch, *features)), is_whole)]
    return None if None in once else steps * sum(one for one in once if one is not None)


def cell_macs(cell, shape: Shape) -> int | None:
    """The multiply-accumulates of one step of a recurrent cell on an input of this shape."""
    gates = {"LSTMCell": 4, "GRUCell": 3, "SimpleRNNCell": 1}
    for base in type(cell).__mro__:
        if base.__name__ in gates and base.__module__.startswith("keras."):
            return gates[base.__name__] * (shape.size + shape[0] * cell.units) * cell.units
        if base.__name__ == "ConvLSTMCell":
            return _conv_lstm_cell(cell, shape)
        if base is keras.layers.StackedRNNCells:
            total = 0
            for inner in cell.cells:
                once = cell_macs(inner, shape)
                if once is None:
                    return None
                total += once
                size = inner.output_size if getattr(inner, "output_size", None) is not None else inner.state_size
                shape = Shape((shape[0], size if isinstance(size, int) else size[0]))
            return total
    function, _ = find(cell)
    return None if function is None else function(cell, Call(cell, {"inputs": shape}, [shape]))


def _conv_lstm_cell(cell, shape: Shape) -> int:
    """Four gates, each with a convolution of the input and one, with stride 1 and "same", of the state."""
    first = cell.data_format == "channels_first"
    channels = shape[1] if first else shape[-1]
    sizes = shape[2:] if first else shape[1:-1]
    pixels = shape[0]
    for size, kernel, stride, dilation in zip(sizes, cell.kernel_size, cell.strides, cell.dilation_rate, strict=True):
        reach = (kernel - 1) * dilation if cell.padding == "valid" else 0
        pixels *= -(-(size - reach) // stride)
    return 4 * pixels * math.prod(cell.kernel_size) * (channels + cell.filters) * cell.filters


@rule("Matmul")
def _matmul(operation, call: Call) -> int:
    left, right = call.inputs[:2]
    columns = right[-1] if len(right) > 1 else 1
    rows = left[-2] if len(left) > 1 else 1
    batch = math.prod(max(sizes) for sizes in _aligned(left[:-2], right[:-2]))
    return batch * rows * left[-1] * columns


@rule("Einsum")
def _einsum(operation, call: Call) -> int | None:
    return einsum(operation.subscripts, call.inputs)


@rule("Conv", "DepthwiseConv")
def _conv_operation(operation, call: Call) -> int:
    _, kernel = call.inputs[:2]
    return channels_and_pixels(operation, call.output)[1] * kernel.size


def einsum(equation: str, shapes: list[Shape]) -> int | None:
    """The products of an einsum of two tensors: one for every value of all its labels.

    Example:
        >>> einsum("...ij,jk->...ik", [Shape((2, 5, 3, 4)), Shape((4, 7))]) == 2 * 5 * 3 * 4 * 7
        True
    """
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2:
        return None  # depends on the order in which they are contracted
    sizes: dict[str, int] = {}
    rest: list[tuple[int, ...]] = []
    for term, shape in zip(terms, shapes, strict=True):
        before, dots, after = term.partition("...")
        middle = len(shape) - len(before) - len(after)
        if dots:
            rest.append(tuple(shape[len(before) : len(before) + middle]))
        labelled = [*zip(before, shape, strict=False), *zip(reversed(after), reversed(shape), strict=False)]
        for label, size in labelled:
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values()) * math.prod(max(axis) for axis in _aligned(*rest))


def _aligned(*shapes) -> list[tuple[int, ...]]:
    """The sizes of each axis after broadcasting from the right."""
    rank = max((len(shape) for shape in shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return list(zip(*padded, strict=True))
