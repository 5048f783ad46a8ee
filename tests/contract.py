"""What every parametrization has to hold, as one table and the small models on which it is checked.

A parametrization joins by a row in `CASES`; `tests/test_contract.py` runs the checks, and fails for a class without a row.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from tfcompress import schedules
from tfcompress.core.codebooks import Codebook
from tfcompress.core.grids import IntegerGrid, LearnedGrid
from tfcompress.core.masks import Mask
from tfcompress.core.signs import SignWeight
from tfcompress.core.variational import Gaussian
from tfcompress.parametrization import Parametrization, chains
from tfcompress.pruning.bayes import GaussianWeight
from tfcompress.pruning.magnitude import MagnitudeMask
from tfcompress.quantization import BiasGrid, FixedGrid
from tfcompress.quantization.batchnorm import FoldedBias, FoldedKernel
from tfcompress.sparsity.lfsr import LFSRMask

BATCH = 8


def dense():
    return [keras.Input((6,)), keras.layers.Dense(5, name="target"), keras.layers.Dense(3)]


def conv2d():
    return [
        keras.Input((6, 6, 2)),
        keras.layers.Conv2D(4, 3, name="target"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def depthwise():
    return [
        keras.Input((6, 6, 3)),
        keras.layers.DepthwiseConv2D(3, name="target"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def separable():
    return [
        keras.Input((6, 6, 2)),
        keras.layers.SeparableConv2D(4, 3, name="target"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def embedding():
    return [
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(7, 5, name="target"),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ]


def lstm():
    return [keras.Input((4, 3)), keras.layers.LSTM(4, name="target"), keras.layers.Dense(3)]


def attention():
    x = keras.Input((4, 6))
    y = keras.layers.MultiHeadAttention(2, 3, name="target")(x, x)
    return keras.Model(x, keras.layers.Dense(3)(keras.layers.Flatten()(y)))


KINDS: dict[str, Callable] = {
    function.__name__: function for function in (dense, conv2d, depthwise, separable, embedding, lstm, attention)
}


def build(kind: str) -> keras.Model:
    """A small compiled model whose layer "target" is of a kind."""
    keras.utils.set_random_seed(1)
    made = KINDS[kind]()
    model = made if isinstance(made, keras.Model) else keras.Sequential(made)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets for `build(kind)`."""
    rng = np.random.default_rng(2)
    shape = build(kind).input_shape[1:]
    x = (
        rng.integers(0, 7, (BATCH, *shape))
        if kind == "embedding"
        else rng.normal(size=(BATCH, *shape)).astype("float32")
    )
    return x, rng.normal(size=(BATCH, 3)).astype("float32")


def target_chains(model) -> list:
    """The chains on the weights of the layer "target" and below."""
    return [chain for name, chain in chains(model) if name.startswith("target")]


@dataclasses.dataclass(frozen=True)
class Case:
    """How a parametrization is checked.

    Args:
        make: a fresh object. kinds: models of the default run. every_kind: the one of its mechanism that runs on all.
        assign: "exact" (the assigned value is what is then seen), "projection" (assigning what is seen changes nothing),
            or "raises".
        keeps_zeros: zeros of a mask before it stay zeros.
    """

    make: Callable[[], Parametrization]
    kinds: tuple[str, ...] = ("dense", "conv2d")
    every_kind: bool = False
    assign: str = "projection"
    keeps_zeros: bool = True


CASES: dict[type, Case] = {
    Mask: Case(Mask, kinds=("dense",)),
    MagnitudeMask: Case(lambda: MagnitudeMask(sparsity=schedules.Cubic(0.2, 0.6, steps=4)), every_kind=True),
    IntegerGrid: Case(IntegerGrid, every_kind=True),
    FixedGrid: Case(lambda: FixedGrid(bits=4)),
    # On anything but the bias of a layer between a range and an integer kernel it is the identity.
    BiasGrid: Case(BiasGrid, kinds=("dense",), assign="exact"),
    LearnedGrid: Case(lambda: LearnedGrid(bits=4)),
    # Without a normalization behind the layer they are the identity.
    FoldedKernel: Case(FoldedKernel, kinds=("dense",), assign="exact"),
    FoldedBias: Case(FoldedBias, kinds=("dense",), assign="exact"),
    Codebook: Case(lambda: Codebook(clusters=5), every_kind=True),
    GaussianWeight: Case(lambda: GaussianWeight(examples=BATCH, prior=Gaussian(1.0)), every_kind=True, assign="exact"),
    LFSRMask: Case(lambda: LFSRMask(density=0.4, seed=1), kinds=("dense", "conv2d", "depthwise")),
    SignWeight: Case(lambda: SignWeight(levels=3, stochastic=True), keeps_zeros=True),
}
