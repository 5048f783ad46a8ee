"""What an expansion is: whether a layer can be written as plain layers and operators, and how."""

import keras

from tfcompress import _keras_compat
from tfcompress.graph.calls import Call
from tfcompress.graph.expansions.builder import Builder
from tfcompress.parametrization import chains


class Expansion:
    """One layer written as a subgraph; a subclass a kind of layer.

    Args:
        layer: the layer. builder: makes the parts.
    """

    # Weights (from the layer, as in chains) whose parametrizations go over to the parts.
    movable: frozenset[str] = frozenset()
    # Whether a normalization's gamma and beta went into the layers behind it.
    folded = False

    def __init__(self, layer, builder: Builder):
        self.layer, self.b = layer, builder

    @classmethod
    def needed(cls, layer) -> bool:
        """Whether the layer has tensors of its own in an integer file."""
        return True

    @classmethod
    def obstacle(cls, layer, call: Call) -> str:
        """Why this call of the layer cannot be written so; "" if it can."""
        return ""

    def __call__(self, *args, **kwargs):
        """The layer's outputs, from its call's arguments."""
        raise NotImplementedError


def common_obstacle(kind: type[Expansion], layer, call: Call) -> str:
    """What no expansion can do."""
    masked = any(call.kwargs.get(name) is not None for name in ("mask", "query_mask", "value_mask", "key_mask"))
    if masked or any(_keras_compat.mask_of(tensor) is not None for tensor in call.inputs):
        return "its input carries a mask, so the number of valid steps changes from sample to sample"
    if call.kwargs.get("training") is True:
        return "it is called with training=True"
    if getattr(layer, "activity_regularizer", None) is not None:
        return "it has an activity_regularizer"
    held = [name for name, _ in chains(layer) if name.rsplit(".", 1)[1] not in kind.movable]
    if held:
        return f"{held[0]} has something attached, which cannot follow it; quantize first, or finalize before"
    return ""


def of_keras(function) -> str:
    """The name of an activation that is Keras's own, "" for another function.

    Example:
        >>> of_keras(keras.activations.silu), of_keras(lambda x: x)
        ('silu', '')
    """
    name = getattr(function, "__name__", "")
    return name if getattr(keras.activations, name, None) is function else ""
