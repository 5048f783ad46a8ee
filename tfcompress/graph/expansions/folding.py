"""Gamma and beta of a normalization folded into the products that read it, as the converter would do behind one's back."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.carriers import base_class
from tfcompress.graph.calls import Call
from tfcompress.graph.expansions.builder import array
from tfcompress.parametrization import chains

L = keras.layers


def targets(normalization, readers: list[Call | None], calls_of: dict[int, int]) -> list | None:
    """The Dense-like layers into which a normalization's gamma and beta can go exactly; None where one cannot.

    Args:
        normalization: over the last axis. readers: of its output; None stands for the model's output.
        calls_of: {id of a layer: how often it is called}.
    """
    found: list = []
    for reader in readers:
        if reader is None or calls_of[id(reader.operation)] > 1:
            return None
        layer = reader.operation
        if type(layer).__name__ in ("Dense", "EinsumDense"):
            products = [layer] if _over_last(layer) else None
        elif base_class(layer) in (L.MultiHeadAttention, L.GroupQueryAttention):
            products = _projections(reader, normalization)
        else:
            products = None
        if products is None:
            return None
        found += [one for one in products if all(one is not other for other in found)]
    needs_bias = getattr(normalization, "beta", None) is not None
    for layer in found:
        if layer.trainable != normalization.trainable or layer.kernel_constraint is not None:
            return None
        if any(not link.scales for _, chain in chains(layer) for link in chain.links):
            return None
        if needs_bias and layer.bias is None and type(layer).__name__ != "Dense":
            return None
    return found or None


def fold(layer, gamma: np.ndarray | None, beta: np.ndarray | None) -> None:
    """layer(gamma x + beta) becomes layer(x).

    Args:
        layer: Dense, or EinsumDense whose kernel's first axis is the input's last. gamma, beta: float64, one a channel.
    """
    kernel = array(layer.kernel)
    if beta is not None:
        if layer.bias is None:
            _keras_compat.add_bias(layer, kernel.shape[-1])
        layer.bias.assign(
            (array(layer.bias) + np.tensordot(beta, kernel, 1).reshape(layer.bias.shape)).astype("float32")
        )
    if gamma is not None:
        layer.kernel.assign((kernel * gamma.reshape(-1, *[1] * (kernel.ndim - 1))).astype("float32"))


def _over_last(layer) -> bool:
    """Whether a layer is a product over its input's last axis whose bias has all axes that the kernel makes."""
    if type(layer).__name__ == "Dense":
        return True
    inputs, rest = layer.equation.replace(" ", "").split(",")
    kernel, output = rest.split("->")
    made = kernel[1:]
    whole = layer.bias is None or layer.bias.shape == layer.kernel.shape[1:]
    return (
        whole
        and kernel[0] == inputs[-1]
        and kernel[0] not in output
        and output.endswith(made)
        and not set(made) & set(inputs)
    )


def _projections(call: Call, normalization) -> list | None:
    """The projections of an attention layer that read the normalization; None where it is used otherwise."""
    names = ("query", "value", "key", "query_mask", "value_mask", "key_mask", "attention_mask")
    given = dict(zip(names, call.args, strict=False)) | call.kwargs
    key = given.get("key")
    layer = call.operation
    if any(name in chains_of(layer) for name in ("kernel", "bias")):
        return None
    used = []
    for value, dense in (
        (given["query"], layer._query_dense),
        (given["value"], layer._value_dense),
        (given["value"] if key is None else key, layer._key_dense),
    ):
        if isinstance(value, keras.KerasTensor) and _keras_compat.operation_of(value) is normalization:
            used.append(dense)
    gate = getattr(layer, "_gate_dense", None)
    if gate is not None and layer._query_dense in used:
        used.append(gate)
    mask = given.get("attention_mask")
    reads_mask = isinstance(mask, keras.KerasTensor) and _keras_compat.operation_of(mask) is normalization
    return None if reads_mask else used


def chains_of(layer) -> set[str]:
    """The names of the weights that have something attached."""
    return {name.rsplit(".", 1)[1] for name, _ in chains(layer)}
