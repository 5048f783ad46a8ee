"""What every expansion builds with: plain layers and operators under the expanded layer's name, made once a role."""

import itertools
from typing import Any, NamedTuple

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.parametrization import attach, chain
from tfcompress.select import PART_OF

# Where an operation says that it shares one range with others: time steps of one recurrent layer.
ROLE = "_tfcompress_role"


class Weight(NamedTuple):
    """A weight of the expanded layer that goes over unchanged, with what is attached to it.

    Args:
        layer: its owner. name: its attribute.
    """

    layer: keras.Layer
    name: str


class Builder:
    """Makes the layers of one expansion; layers with weights are made at the first call and shared by the others.

    Args:
        layer: the expanded layer: its name is the prefix, and its dtype policy and trainable flag go over.
        path: its path in the model.
        taken: names in use, which grows.
    """

    def __init__(self, layer, path: str, taken: set[str]):
        self.layer, self.path, self.taken = layer, path, taken
        self.made: dict[str, keras.Layer] = {}
        self._own_name_used = False

    def name(self, role: str) -> str:
        """A free name: the layer's own for the role "", which the operation that makes its output takes."""
        if not role and not self._own_name_used:
            self._own_name_used = True
            self.taken.add(self.layer.name)
            return self.layer.name
        base = f"{self.layer.name}_{role}" if role else self.layer.name
        names = itertools.chain([base], (f"{base}_{n}" for n in itertools.count(1)))
        name = next(name for name in names if name not in self.taken)
        self.taken.add(name)
        return name

    def call(self, role: str, kind, inputs, weights=(), shared: str | None = None, **config):
        """Call a layer of a role on inputs, made if it is the first call.

        Args:
            role: unique in the expansion; "" makes the output. kind: layer class. inputs: symbolic tensors.
            weights: an array or a `Weight` for each variable. shared: all calls with this word
                have one range. config: the layer's arguments.
        """
        if role in self.made:
            return self.made[role](inputs)
        if isinstance(self.layer, keras.Layer):
            policy = self.layer.dtype_policy
            # Identity keeps its arguments as they are, and a file takes no policy object.
            config.setdefault("dtype", policy.name if kind is keras.layers.Identity else policy)
        layer = self.made[role] = kind(name=self.name(role), **config)
        self.mark(layer)
        outputs = layer(inputs)
        for variable, value in zip(list(layer.weights), weights, strict=True) if weights else ():
            self._set(layer, variable, value)
        if not getattr(self.layer, "trainable", True):
            layer.trainable = False
        if shared is not None:
            layer.__dict__[ROLE] = f"{self.layer.name}/{shared}"
        return outputs

    def op(self, role: str, function, *args, shared: str | None = None, **kwargs):
        """Call a `keras.ops` function on symbolic tensors and give its operator a name."""
        outputs = function(*args, **kwargs)
        operation = _keras_compat.operation_of(keras.tree.flatten(outputs)[0])
        operation.name = self.name(role)
        self.mark(operation)
        if shared is not None:
            operation.__dict__[ROLE] = f"{self.layer.name}/{shared}"
        return outputs

    def mark(self, operation) -> None:
        """Let an operation be selected as the layer of which it is a part."""
        operation.__dict__[PART_OF] = (self.path, self.layer)

    def inside(self, layer, role: str) -> None:
        """Take a layer from inside the expanded one over as it is, under a name of a role."""
        layer.name = self.name(role)
        self.mark(layer)

    def finished(self, outputs):
        """The layer's outputs, the first of which has its name."""
        if self._own_name_used:
            return outputs
        first, *rest = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        first = self.call("", keras.layers.Identity, first)
        return [first, *rest] if rest else first

    def float32(self, x):
        """The tensor in float32, where the layer computes in less: normalization needs it."""
        if keras.backend.standardize_dtype(x.dtype) == "float32":
            return x
        return keras.layers.Identity(name=self.name("float32"), dtype="float32")(x)

    @staticmethod
    def _set(layer, variable, value) -> None:
        if not isinstance(value, Weight):
            variable.assign(value)
            return
        own = chain(value.layer, value.name)
        if own is None:
            variable.assign(getattr(value.layer, value.name))
            return
        name = next(key for key, v in layer.__dict__.items() if v is variable).removeprefix("_")
        variable.assign(own.raw)
        copies = []
        for link in own.links:
            copies.append(link.copy())
            copies[-1].start = link.start
        attach(layer, name, copies, initialize=False)
        new: Any = chain(layer, name)
        for old, link in zip(own.links, copies, strict=True):
            for source, target in zip(
                old.__dict__.get("variables", []), link.__dict__.get("variables", []), strict=True
            ):
                target.assign(source)
            for one, other in zip(old.__dict__.get("seeds", []), link.__dict__.get("seeds", []), strict=True):
                other.state.assign(one.state)
        new.waiting = []


def array(weight) -> np.ndarray:
    """A weight's effective value in float64, for arithmetic whose result is rounded once."""
    return np.asarray(keras.ops.convert_to_numpy(weight.value), np.float64)
