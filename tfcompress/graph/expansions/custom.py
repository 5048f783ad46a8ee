"""A layer of the user's whose `call` consists of layers and `keras.ops`: its call is replayed on symbolic tensors."""

import inspect

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.graph.expansions.base import Expansion


class Traced(Expansion):
    """The layers and operators that a call ran, in the model's own graph; weights stay in the layers that own them."""

    movable = frozenset(
        {"kernel", "bias", "depthwise_kernel", "pointwise_kernel", "recurrent_kernel", "gamma", "beta", "embeddings"}
    )

    @classmethod
    def obstacle(cls, layer, call):
        if _keras_compat.own_variables(layer):
            return "it owns weights itself, which an operator of a graph cannot hold; put them into layers inside it"
        if not _keras_compat.sublayers(layer):
            return "it is a class of its own with no layers inside"
        try:
            runs = [_trace(layer, call, training) for training in cls.modes(layer)]
        except Exception as error:  # whatever the user's code raises on tensors without values
            return f"its call cannot be traced ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
        if reason := next((reason for _, reason in runs if reason), ""):
            return reason
        return "its call does other things in training than in inference" if runs[0][0] != runs[-1][0] else ""

    @staticmethod
    def modes(layer) -> list:
        """The values of `training` under which the call has to run the same operations."""
        takes = "training" in inspect.signature(layer.call).parameters
        return [True, False] if takes else [None]

    def __call__(self, *args, **kwargs):
        layer = self.layer
        if "inner" not in self.b.made:
            for inner in _keras_compat.sublayers(layer):
                self.b.inside(inner, inner.name)
            self.b.made["inner"] = layer
        return layer.call(*args, **kwargs)


def _inputs(call) -> list:
    return [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in call.inputs]


def _run(layer, call, inputs: list, training):
    """The layer's outputs on other tensors than those of its call."""
    new = {id(old): tensor for old, tensor in zip(call.inputs, inputs, strict=True)}
    args, kwargs = keras.tree.map_structure(
        lambda value: new[id(value)] if isinstance(value, keras.KerasTensor) else value, (call.args, call.kwargs)
    )
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}
    return keras.tree.flatten(layer.call(*args, **kwargs, **({} if training is None else {"training": training})))


def _trace(layer, call, training) -> tuple[list[str], str]:
    """The classes of the operations that a call runs, in order, and what is wrong with them."""
    inner = _keras_compat.flat_layers(layer)
    before = {id(one): len(_keras_compat.inbound_nodes(one)) for one in inner}
    inputs = _inputs(call)
    outputs = _run(layer, call, inputs, training)
    try:
        if [(tuple(t.shape), str(t.dtype)) for t in outputs] != [(tuple(t.shape), str(t.dtype)) for t in call.outputs]:
            return [], "its call gives other outputs on symbolic tensors"
        trial = keras.Function(inputs, outputs)
        operations = [node.operation for node in _keras_compat.graph_nodes(trial)]
        held = {id(v) for one in operations if isinstance(one, keras.Layer) for v in one.variables}
        if any(id(v) not in held for v in layer.weights):
            return [], "its call uses weights without the layers that own them"
        if training is not True and not _same(layer, call, trial):
            return [], "its call computes something else on values than on symbolic tensors"
        return [type(one).__name__ for one in operations], ""
    finally:
        # The trial leaves no calls behind.
        for one in inner:
            del _keras_compat.inbound_nodes(one)[before[id(one)] :]


def _same(layer, call, trial) -> bool:
    """Whether the traced graph gives the layer's values on random inputs, to 1e-5 of the largest."""
    rng = np.random.default_rng(0)
    arrays = []
    for tensor in call.inputs:
        shape = (2, *(size or 4 for size in tensor.shape[1:]))
        whole = not str(tensor.dtype).startswith(("float", "bfloat"))
        arrays.append(
            keras.ops.convert_to_tensor((np.zeros(shape) if whole else rng.normal(size=shape)).astype(tensor.dtype))
        )
    training = False if "training" in inspect.signature(layer.call).parameters else None
    wanted, got = _run(layer, call, arrays, training), keras.tree.flatten(trial(arrays))
    for a, b in zip(wanted, got, strict=True):
        a, b = (
            np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")), np.float64) for value in (a, b)
        )
        if a.shape != b.shape or np.abs(a - b).max(initial=0.0) > 1e-5 * max(np.abs(a).max(initial=0.0), 1e-12):
            return False
    return True
