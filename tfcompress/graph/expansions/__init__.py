"""The expansions of layers that have tensors inside, by class of the layer."""

import keras

from tfcompress.graph.expansions import (
    activations,
    attention,
    convolutions,
    normalization,
    recurrent,
)
from tfcompress.graph.expansions.base import Expansion
from tfcompress.graph.expansions.builder import ROLE, Builder

L = keras.layers

# By class, subclasses not included: they may do anything.
EXPANSIONS: dict[type, type[Expansion]] = {
    L.SeparableConv1D: convolutions.Separable,
    L.SeparableConv2D: convolutions.Separable,
    L.EinsumDense: convolutions.Einsum,
    L.TimeDistributed: convolutions.Distributed,
    L.LayerNormalization: normalization.LayerNorm,
    L.RMSNormalization: normalization.RMSNorm,
    L.GroupNormalization: normalization.GroupNorm,
    L.UnitNormalization: normalization.UnitNorm,
    L.LSTM: recurrent.Recurrent,
    L.GRU: recurrent.Recurrent,
    L.SimpleRNN: recurrent.Recurrent,
    L.RNN: recurrent.Recurrent,
    L.Bidirectional: recurrent.BothWays,
    L.MultiHeadAttention: attention.Attention,
    L.GroupQueryAttention: attention.GroupedAttention,
    L.Activation: activations.Composite,
    L.ELU: activations.Composite,
}

# Operators of `keras.ops`, by the name of their class.
OPERATORS: dict[str, type[Expansion]] = dict.fromkeys(("Silu", "Elu", "Square", "Negative"), activations.Operator)

__all__ = ["EXPANSIONS", "OPERATORS", "ROLE", "Builder", "Expansion"]
