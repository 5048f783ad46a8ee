"""Which layers and weights a method touches: by type, by name, by function, joined with `&`, `|` and `~`."""

import fnmatch
from collections.abc import Callable

import keras

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError

# What a layer that is not built will call its kernels; a built one is asked itself.
UNBUILT_KERNELS = {
    "SeparableConv1D": ("depthwise_kernel", "pointwise_kernel"),
    "SeparableConv2D": ("depthwise_kernel", "pointwise_kernel"),
    "Embedding": ("embeddings",),
    "LSTMCell": ("kernel", "recurrent_kernel"),
    "GRUCell": ("kernel", "recurrent_kernel"),
    "SimpleRNNCell": ("kernel", "recurrent_kernel"),
    **dict.fromkeys(("Dense", "EinsumDense", "Conv1D", "Conv2D", "Conv3D"), ("kernel",)),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), ("kernel",)),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), ("kernel",)),
}


def layers(model) -> list[tuple[str, keras.Layer]]:
    """Every layer of a model but its inputs, with its path: names joined by "/", each layer once.

    Args:
        model: a model of any kind, or a layer (its sub-layers are listed).

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="a")], name="m")
        >>> [path for path, _ in layers(model)]
        ['a']
    """
    found: list[tuple[str, keras.Layer]] = []
    seen, used = set(), set()

    def visit(parent, prefix):
        listed = parent.layers if isinstance(parent, (keras.Model,)) and parent.layers else []
        for child in [*listed, *_keras_compat.sublayers(parent)]:
            if id(child) in seen or isinstance(child, (keras.metrics.Metric, keras.layers.InputLayer)):
                continue
            seen.add(id(child))
            path = prefix + child.name
            number = 1
            while path in used:
                number += 1
                path = f"{prefix}{child.name}#{number}"
            used.add(path)
            found.append((path, child))
            visit(child, path + "/")

    visit(model, "")
    return found


def weight_names(layer) -> dict[str, keras.Variable]:
    """A built layer's own weights under the attribute by which users reach them, in Keras's order.

    Example:
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 2))
        >>> list(weight_names(layer))
        ['kernel', 'bias']
    """
    by_id = {id(v): key for key, v in layer.__dict__.items() if isinstance(v, keras.Variable)}
    names = {}
    for variable in _keras_compat.own_variables(layer):
        key = by_id.get(id(variable))
        if key is not None:
            public = key.removeprefix("_")
            names[public if hasattr(type(layer), public) else key] = variable
    return names


def kernel_names(layer) -> list[str]:
    """The weights of a layer that methods compress by default: of two or more dimensions, and not a bias.

    Example:
        >>> kernel_names(keras.layers.SeparableConv2D(4, 3))
        ['depthwise_kernel', 'pointwise_kernel']
    """
    if not layer.built:
        bases = [base.__name__ for base in type(layer).__mro__]
        return next((list(UNBUILT_KERNELS[base]) for base in bases if base in UNBUILT_KERNELS), [])
    return [name for name, variable in weight_names(layer).items() if len(variable.shape) >= 2 and "bias" not in name]


# On a layer that an expanded one became (`graph.expand`): the path and the object of that one, by which it is selected too.
PART_OF = "_tfcompress_part_of"


class Selector:
    """A predicate over (path, layer, weight), joined with `&`, `|` and `~`."""

    def __init__(self, test: Callable[[str, keras.Layer, str], bool], text: str):
        self.test, self.text = test, text

    def __call__(self, path: str, layer, weight: str) -> bool:
        if self.test(path, layer, weight):
            return True
        whole_path, whole = getattr(layer, "__dict__", {}).get(PART_OF, ("", None))
        return whole is not None and self(whole_path, whole, weight)

    def __and__(self, other):
        other = get(other)
        return Selector(lambda *a: self(*a) and other(*a), f"({self.text} & {other.text})")

    def __or__(self, other):
        other = get(other)
        return Selector(lambda *a: self(*a) or other(*a), f"({self.text} | {other.text})")

    def __invert__(self):
        return Selector(lambda *a: not self(*a), f"~{self.text}")

    def __repr__(self) -> str:
        return self.text


def types(*kinds) -> Selector:
    """Layers of these classes, given as classes or by name; a subclass counts.

    Example:
        >>> types(keras.layers.Dense, "Conv2D")("a", keras.layers.Dense(3), "kernel")
        True
    """
    classes = tuple(kind for kind in kinds if isinstance(kind, type))
    names = {kind for kind in kinds if isinstance(kind, str)}

    def test(path, layer, weight):
        return isinstance(layer, classes) or any(base.__name__ in names for base in type(layer).__mro__)

    return Selector(test, f"types({', '.join(k if isinstance(k, str) else k.__name__ for k in kinds)})")


def names(*patterns: str) -> Selector:
    """Layers whose path (or last name) matches a shell pattern; "path.weight" narrows it to one weight.

    Example:
        >>> names("block*/conv?")("block1/conv2", None, "kernel"), names("*.recurrent_kernel")("gru", None, "kernel")
        (True, False)
    """

    def test(path, layer, weight):
        candidates = (path, path.rsplit("/", 1)[-1], f"{path}.{weight}")
        return any(fnmatch.fnmatchcase(c, p) for p in patterns for c in candidates)

    return Selector(test, f"names({', '.join(patterns)})")


def where(function) -> Selector:
    """Whatever a function of (path, layer, weight name) says.

    Example:
        >>> where(lambda path, layer, weight: layer.units > 2)("a", keras.layers.Dense(3), "kernel")
        True
    """
    return Selector(function, f"where({getattr(function, '__name__', 'function')})")


everything = Selector(lambda *a: True, "everything")


def get(spec) -> Selector:
    """A selector from a selector, a name pattern, a layer class, a layer, a function, or a list of these (any of them).

    Raises:
        CompressionError: the specification is none of these.

    Example:
        >>> get(["conv*", keras.layers.Dense])
        (names(conv*) | types(Dense))
    """
    if spec is None:
        return everything
    if isinstance(spec, Selector):
        return spec
    if isinstance(spec, str):
        return types(spec.removeprefix("type:")) if spec.startswith("type:") else names(spec)
    if isinstance(spec, type):
        return types(spec)
    if isinstance(spec, keras.Layer):
        return Selector(lambda path, layer, weight: layer is spec, f"layer({spec.name})")
    if callable(spec):
        return where(spec)
    if isinstance(spec, (list, tuple)) and spec:
        selector = get(spec[0])
        for part in spec[1:]:
            selector = selector | get(part)
        return selector
    raise CompressionError(
        "Layers are selected by a tfcompress.select object, a name pattern, a layer class, a layer, a function "
        f"(path, layer, weight) -> bool, or a list of these; received {spec!r}."
    )
