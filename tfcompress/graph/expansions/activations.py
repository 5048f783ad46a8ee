"""Activations that no integer kernel computes at once, written with operators that each have one."""

import keras

from tfcompress.graph.expansions.base import Expansion, of_keras

ops = keras.ops


# Names of activations and of operators that are written with others here.
COMPOSITE = ("silu", "swish", "elu")


class Composite(Expansion):
    """silu as a product with the sigmoid, elu by exp; as a layer, an activation or an operator."""

    @classmethod
    def needed(cls, layer):
        return isinstance(layer, keras.layers.ELU) or of_keras(getattr(layer, "activation", None)) in COMPOSITE

    def __call__(self, x):
        layer = self.layer
        name = of_keras(getattr(layer, "activation", None)) or type(layer).__name__.lower()
        if name == "elu":
            return self._elu(x, float(getattr(layer, "alpha", 1.0)))
        gate = self.b.call("sigmoid", keras.layers.Activation, x, activation="sigmoid")
        return self.b.op("", ops.multiply, x, gate)

    def _elu(self, x, alpha: float):
        """relu(x) + alpha (exp(min(x, 0)) - 1), with min(x, 0) as x - relu(x)."""
        positive = self.b.op("positive", ops.relu, x)
        rest = self.b.op("exp", ops.exp, self.b.op("negative", ops.subtract, x, positive))
        rest = self.b.op("below", ops.subtract, rest, 1.0)
        if alpha != 1.0:
            rest = self.b.op("scaled", ops.multiply, rest, alpha)
        return self.b.op("", ops.add, positive, rest)


class Operator(Composite):
    """The operators of the same names, and squares and negatives."""

    @classmethod
    def needed(cls, layer):
        return True

    def __call__(self, x):
        kind = type(self.layer).__name__
        if kind == "Square":
            return self.b.op("", ops.multiply, x, x)
        if kind == "Negative":
            return self.b.op("", ops.multiply, x, -1.0)
        return super().__call__(x)
