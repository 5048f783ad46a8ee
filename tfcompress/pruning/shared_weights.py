"""[12] Deep Compression (Han, Mao, Dally, 2015): the second stage, shared weights with trained values.

The first stage is `Magnitude` [11], the third the coding of `tfcompress.codecs.deep_compression`; the shipped recipe
"deep-compression" is the three of them.
"""

import math

from tfcompress.core.codebooks import Codebook
from tfcompress.errors import CompressionError
from tfcompress.method import WeightMethod


class SharedWeights(WeightMethod):
    """[12] Replaces the surviving weights of each layer by 2^bits shared values, which training then moves.

    Attach it to a pruned model and fit with a small learning rate: the assignment stays, zeros stay, the values learn.

    Args:
        bits: log2 of the number of shared values: a number for all layers, or {layer pattern: bits} (others are left
            alone). The default is the paper's 8 for convolutions and 5 for other layers.
        init: how k-means starts: "linear" (the paper's choice), "density" or "random".
        layers, exclude, include_frozen: which weights; see `tfcompress.select`.

    Raises:
        CompressionError: bits outside 1..16.

    Example:
        >>> import keras
        >>> import numpy as np
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(20)])
        >>> small = apply(model, SharedWeights(bits=2), verbose=0)
        >>> len(np.unique(small.layers[0].kernel.numpy()))
        4
    """

    papers = (12,)

    def __init__(self, bits=None, init: str = "linear", layers=None, exclude=None, include_frozen: bool = False):
        for one in bits.values() if isinstance(bits, dict) else [bits or 1]:
            if not 1 <= one <= 16:
                raise CompressionError(f"`bits` must be 1 to 16; received {one}.")
        self.bits, self.init = bits, init
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen

    def parametrization(self, path, layer, weight):
        from tfcompress import select

        bits = self.bits
        if bits is None:
            bits = 8 if any("Conv" in base.__name__ for base in type(layer).__mro__) else 5
        elif isinstance(bits, dict):
            bits = next((b for pattern, b in bits.items() if select.get(pattern)(path, layer, weight)), None)
            if bits is None:
                return "no pattern of the given dictionary matches"
        return Codebook(2 ** int(bits), self.init)


def sharing_rate(weights: int, clusters: int, bits: int = 32) -> float:
    """The rate of weight sharing without coding, r = n b / (n log2 k + k b) (section 3 of the paper).

    Args:
        weights: n, how many connections. clusters: k. bits: b, of one unshared weight.

    Example:
        >>> round(sharing_rate(235_200, 32), 3)
        6.394
    """
    return weights * bits / (weights * math.log2(clusters) + clusters * bits)
