"""Replacing a layer by a chain of layers, as every factorization that pays only as several layers needs it."""

from tfcompress.errors import CompressionError
from tfcompress.graph.calls import all_calls, check_names, operations
from tfcompress.graph.rebuild import Weighted, rebuild
from tfcompress.parametrization import is_parametrized


def replace_by_chain(model, chains: dict[str, list[Weighted]], *, reuse: bool = False):
    """Put a chain of layers in the place of each named layer, for all of its calls.

    The last link takes the layer's name, activation and bias (the bias is appended to its weights unless they already
    hold one), the links before it are named `<name>_1`, `<name>_2`, ... and stay linear. Dtype policy, trainable flag and
    the kernel's regularizer go to every link. Strides are the caller's to split over the links.

    Args:
        model: a Functional or built Sequential model.
        chains: {path: links}, links as `Weighted(layer, weights)` of layers that are not built.
        reuse: as in `rebuild`.

    Raises:
        CompressionError: a layer is unknown or has something attached, or a chain's output has another shape than the
            layer's.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu", name="a")])
        >>> halves = [Weighted(keras.layers.Dense(2, use_bias=False), [np.ones((4, 2))]),
        ...           Weighted(keras.layers.Dense(3), [np.ones((2, 3))])]
        >>> new = replace_by_chain(model, {"a": halves})
        >>> [layer.name for layer in new.layers], new.layers[-1].activation.__name__
        (['a_1', 'a'], 'relu')
    """
    known = operations(model)
    check_names(model, chains, known, what="layer")
    replace = {path: _links(known[path], path, links, set(known)) for path, links in chains.items()}
    for call in all_calls(model):
        if call.path in replace:
            shape = tuple(call.inputs[0].shape)
            for link in replace[call.path]:
                shape = tuple(link.layer.compute_output_shape(shape))
            if shape != tuple(call.outputs[0].shape):
                raise CompressionError(
                    f"The chain for {call.path!r} makes {shape} where the layer makes {tuple(call.outputs[0].shape)}."
                )
    return rebuild(model, replace=dict(replace), reuse=reuse)


def _links(layer, path: str, links: list[Weighted], taken: set[str]) -> list[Weighted]:
    if not links:
        raise CompressionError(f"The chain for {path!r} is empty.")
    if is_parametrized(layer):
        raise CompressionError(
            f"The layer {path!r} has something of tfcompress attached. Replace it first, or finalize the model before."
        )
    folder = path.rpartition("/")[0]
    new = []
    for number, (link, weights) in enumerate(links, 1):
        last = number == len(links)
        name = layer.name if last else f"{layer.name}_{number}"
        while not last and (f"{folder}/{name}" if folder else name) in taken:
            name += "_"
        config = {**link.get_config(), "name": name, "trainable": layer.trainable}
        weights = list(weights)
        if last and getattr(layer, "bias", None) is not None and len(weights) == 1:
            weights.append(layer.bias)
        if "use_bias" in config:
            config["use_bias"] = last and len(weights) > 1
        made = type(link).from_config({**config, "dtype": layer.dtype_policy})
        if last:
            # The object and not its config: a function of the user's stays the same function.
            made.activation = layer.activation
            made.activity_regularizer = layer.activity_regularizer
            made.bias_regularizer, made.bias_constraint = layer.bias_regularizer, layer.bias_constraint
        if getattr(made, "kernel_regularizer", None) is None:
            made.kernel_regularizer = getattr(layer, "kernel_regularizer", None)
        new.append(Weighted(made, weights))
    return new
