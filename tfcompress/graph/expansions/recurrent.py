"""Recurrent layers unrolled over a known number of steps, with one range a role shared by all steps.

The input's product is taken for all steps at once, with the bias in it, and the state's for each. The first step has no
product of the zero state and no sum with it: the converter folds both away. An integer file rounds exactly there.
"""

from collections.abc import Callable

import keras
import numpy as np

from tfcompress.carriers import base_class
from tfcompress.graph.expansions.base import Expansion
from tfcompress.graph.expansions.builder import Builder, Weight, array

L, ops = keras.layers, keras.ops

# Beyond, the unrolled graph costs more than its ranges bring.
MOST_STEPS = 128


def _cells(layer) -> list:
    return list(layer.cell.cells) if isinstance(layer.cell, L.StackedRNNCells) else [layer.cell]


def _obstacle(layer, call) -> str:
    """Why a recurrent layer cannot be unrolled."""
    shape = call.inputs[0].shape
    if base_class(layer) not in (L.LSTM, L.GRU, L.SimpleRNN, L.RNN):
        return f"its layer {base_class(layer).__name__} is none that is known here"
    if base_class(layer.cell) is L.StackedRNNCells and layer.return_state:
        return "it returns the states of stacked cells"
    if layer.stateful:
        return "it is stateful: its state outlives a call, and a file's does not"
    if layer.activity_regularizer is not None:
        return "it has an activity_regularizer"
    if len(shape) != 3 or shape[1] is None or shape[2] is None:
        return "the number of time steps is not known; give the input a fixed length"
    if shape[1] > MOST_STEPS:
        return f"it has {shape[1]} time steps, more than the {MOST_STEPS} up to which it is unrolled"
    for cell in _cells(layer):
        if base_class(cell) not in STEPS:
            return f"its cell {base_class(cell).__name__} is none that is known here"
        if cell.recurrent_dropout or (cell.dropout and getattr(cell, "implementation", 2) == 1):
            return "its dropout draws a mask for each gate (recurrent_dropout, or implementation=1)"
    if len(_cells(layer)) > 1 and len(call.inputs) > 1:
        return "stacked cells with an initial state"
    return ""


class _Cell:
    """One cell over time: its input's products, and its steps.

    Args:
        b: of the expanded layer. cell: Keras's. prefix: of all roles but `last`, the role of what makes the output.
    """

    def __init__(self, b: Builder, cell, prefix: str, last: str):
        self.b, self.cell, self.prefix, self.last = b, cell, prefix, last

    def part(self, role: str, kind, inputs, weights=(), **config):
        """A layer of the cell; all its calls share one range."""
        return self.b.call(f"{self.prefix}{role}", kind, inputs, weights, shared=f"{self.prefix}{role}", **config)

    def op(self, role: str, function, *args, **kwargs):
        """An operator of one step, whose range is that of the other steps' too."""
        return self.b.op(f"{self.prefix}{role}", function, *args, shared=f"{self.prefix}{role}", **kwargs)

    def output(self, kind, inputs, first: bool = False, **config):
        """The layer that makes the output; another one in the first step, with the same range."""
        role = f"{self.prefix}first_h" if first else self.last
        return self.b.call(role, kind, inputs, shared=self.last, **config)

    def dense(self, role: str, x, weights, recurrent: bool = False):
        """A product with the regularizers of the kernel it takes."""
        cell = self.cell
        which = "recurrent" if recurrent else "kernel"
        config = {
            "kernel_regularizer": getattr(cell, f"{which}_regularizer"),
            "kernel_constraint": getattr(cell, f"{which}_constraint"),
        }
        if len(weights) > 1:
            config |= {"bias_regularizer": cell.bias_regularizer, "bias_constraint": cell.bias_constraint}
        first = weights[0]
        shape = getattr(first.layer, first.name).shape if isinstance(first, Weight) else first.shape
        return self.part(role, L.Dense, x, weights, units=shape[1], use_bias=len(weights) > 1, **config)

    def gate(self, role: str, x, activation):
        """An activation that is shared by the steps; none for a linear one."""
        if activation is keras.activations.linear:
            return x
        return self.part(role, L.Activation, x, activation=activation)

    def run(self, sequence, states: list | None, backwards: bool) -> tuple[list, list]:
        """Outputs of a sequence (batch, steps, features) in the order in which they are made, and the last states."""
        if self.cell.dropout:
            sequence = self.part("dropout", L.SpatialDropout1D, sequence, rate=self.cell.dropout)
        product = self.dense("input", sequence, self.input_weights())
        steps = self.b.op(f"{self.prefix}steps", ops.unstack, product, axis=1)
        outputs = []
        for x in steps[::-1] if backwards else steps:
            states = STEPS[base_class(self.cell)](self, x, states)
            outputs.append(states[0])
        return outputs, states or []

    def input_weights(self) -> list:
        """The input's kernel and all of the bias that can be added there."""
        cell, weights = self.cell, [Weight(self.cell, "kernel")]
        if not cell.use_bias:
            return weights
        if not _resets_after(cell):
            return [*weights, Weight(cell, "bias")]
        own, recurrent = array(cell.bias)
        return [*weights, own + np.where(np.arange(own.size) < 2 * cell.units, recurrent, 0)]


def _resets_after(cell) -> bool:
    return base_class(cell) is L.GRUCell and cell.reset_after


def _lstm(one: _Cell, x, states) -> list:
    cell = one.cell
    z = x
    if states is not None:
        h, c = states
        z = one.part("sum", L.Add, [x, one.dense("state", h, [Weight(cell, "recurrent_kernel")], recurrent=True)])
    i, f, g, o = one.op("gates", ops.split, z, 4, axis=-1)
    i, o = (one.gate(role, gate, cell.recurrent_activation) for role, gate in (("i", i), ("o", o)))
    new = one.part("new", L.Multiply, [i, one.gate("g", g, cell.activation)])
    if states is not None:
        kept = one.part("kept", L.Multiply, [one.gate("f", f, cell.recurrent_activation), c])
        new = one.part("c", L.Add, [kept, new])
    h = one.output(L.Multiply, [o, one.gate("shown", new, cell.activation)])
    return [h, new]


def _gru(one: _Cell, x, states) -> list:
    cell, units = one.cell, one.cell.units
    x_z, x_r, x_h = one.op("inputs", ops.split, x, 3, axis=-1)
    h = None if states is None else states[0]
    if h is None:
        inner = _first_inner(one, x_r)
    elif cell.reset_after:
        weights: list = [Weight(cell, "recurrent_kernel")]
        if cell.use_bias:
            weights.append(np.where(np.arange(3 * units) < 2 * units, 0, array(cell.bias)[1]))
        h_z, h_r, h_h = one.op("states", ops.split, one.dense("state", h, weights, recurrent=True), 3, axis=-1)
        r = one.gate("r", one.part("sum_r", L.Add, [x_r, h_r]), cell.recurrent_activation)
        inner = one.part("reset", L.Multiply, [r, h_h])
    else:
        kernel = array(cell.recurrent_kernel)
        h_z, h_r = one.op(
            "states", ops.split, one.dense("state", h, [kernel[:, : 2 * units]], recurrent=True), 2, axis=-1
        )
        r = one.gate("r", one.part("sum_r", L.Add, [x_r, h_r]), cell.recurrent_activation)
        reset = one.part("reset", L.Multiply, [r, h])
        inner = one.dense("reset_state", reset, [kernel[:, 2 * units :]], recurrent=True)
    z = one.gate("z", x_z if h is None else one.part("sum_z", L.Add, [x_z, h_z]), cell.recurrent_activation)
    new = one.gate("new", x_h if inner is None else one.part("sum_h", L.Add, [x_h, inner]), cell.activation)
    rest = one.op("rest", ops.subtract, 1.0, z)
    if h is None:
        return [one.output(L.Multiply, [rest, new], first=True)]
    kept = one.part("kept", L.Multiply, [z, h])
    return [one.output(L.Add, [kept, one.part("mixed", L.Multiply, [rest, new])])]


def _first_inner(one: _Cell, x_r):
    """What the bias of the state's product is in the first step, where the product is none: r times that bias.

    It is a layer with the bias as its factors, so the first step's share of it is trained by itself; none for a bias of 0.
    """
    cell = one.cell
    if not (cell.reset_after and cell.use_bias):
        return None
    bias = array(cell.bias)[1][2 * cell.units :]
    if not bias.any():
        return None
    r = one.gate("r", x_r, cell.recurrent_activation)
    wide = one.part("wide", L.Reshape, r, target_shape=(1, cell.units))
    wide = one.part(
        "first",
        L.DepthwiseConv1D,
        wide,
        [bias.reshape(1, -1, 1)],
        kernel_size=1,
        use_bias=False,
        data_format="channels_last",
    )
    return one.part("flat", L.Reshape, wide, target_shape=(cell.units,))


def _simple(one: _Cell, x, states) -> list:
    cell = one.cell
    if states is not None:
        state = one.dense("state", states[0], [Weight(cell, "recurrent_kernel")], recurrent=True)
        x = one.part("sum", L.Add, [x, state])
    if cell.activation is keras.activations.linear:
        return [x]
    return [one.output(L.Activation, x, activation=cell.activation)]


STEPS: dict[type, Callable] = {L.LSTMCell: _lstm, L.GRUCell: _gru, L.SimpleRNNCell: _simple}


class _Unrolled(Expansion):
    movable = frozenset({"kernel", "recurrent_kernel", "bias"})

    @classmethod
    def held(cls, layer) -> str:
        """A weight of a GRU that is taken apart, and so cannot take what is attached along."""
        from tfcompress.parametrization import chain

        for cell in _cells(layer):
            apart = ["bias"] if _resets_after(cell) else []
            apart += ["recurrent_kernel"] if base_class(cell) is L.GRUCell and not cell.reset_after else []
            for name in apart:
                if chain(cell, name) is not None:
                    return f"{name} has something attached, and is taken apart; quantize first, or finalize before"
        return ""

    def unroll(self, layer, prefix: str, sequence, initial, last: str) -> tuple[list, list]:
        """Outputs of all steps in the order in which they are made, and the last states."""
        cells = _cells(layer)
        outputs: list = []
        states: list = []
        for number, cell in enumerate(cells):
            own = f"{prefix}cell{number}_" if len(cells) > 1 else prefix
            if number:
                sequence = self.b.op(f"{own}sequence", ops.stack, outputs, axis=1)
            one = _Cell(self.b, cell, own, last if number == len(cells) - 1 else f"{own}h")
            outputs, states = one.run(sequence, initial, layer.go_backwards and not number)
        return outputs, states


class Recurrent(_Unrolled):
    """LSTM (Hochreiter and Schmidhuber 1997), GRU (Cho et al. 2014), SimpleRNN, and RNN over their cells."""

    @classmethod
    def obstacle(cls, layer, call):
        return _obstacle(layer, call) or cls.held(layer)

    def __call__(self, sequences, initial_state=None):
        layer = self.layer
        initial = None if initial_state is None else list(keras.tree.flatten(initial_state))
        outputs, states = self.unroll(layer, "", sequences, initial, "h" if layer.return_sequences else "")
        output = self.b.op("", ops.stack, outputs, axis=1) if layer.return_sequences else outputs[-1]
        return [output, *states] if layer.return_state else output


class BothWays(_Unrolled):
    """A bidirectional layer: two unrolled ones and their combination."""

    @classmethod
    def obstacle(cls, layer, call):
        for one in (layer.forward_layer, layer.backward_layer):
            if reason := _obstacle(one, call) or cls.held(one):
                return reason
        return ""

    def __call__(self, sequences, initial_state=None):
        layer = self.layer
        given = [] if initial_state is None else list(keras.tree.flatten(initial_state))
        half = len(given) // 2
        results, states = [], []
        for one, prefix, initial in (
            (layer.forward_layer, "forward_", given[:half]),
            (layer.backward_layer, "backward_", given[half:]),
        ):
            outputs, last = self.unroll(one, prefix, sequences, initial or None, f"{prefix}h")
            states += last
            # A backward layer's outputs are turned into the order of the input.
            ordered = outputs[::-1] if prefix == "backward_" else outputs
            sequence = (
                self.b.op(f"{prefix}sequence", ops.stack, ordered, axis=1) if layer.return_sequences else outputs[-1]
            )
            results.append(sequence)
        output = self._merged(results)
        if not layer.return_state:
            return output
        return [*(output if isinstance(output, list) else [output]), *states]

    def _merged(self, results: list):
        mode = self.layer.merge_mode
        if mode is None:
            return results
        if mode == "concat":
            return self.b.call("", L.Concatenate, results, axis=-1)
        if mode == "ave":
            return self.b.op("", ops.multiply, self.b.call("both", L.Add, results), 0.5)
        return self.b.call("", L.Add if mode == "sum" else L.Multiply, results)
