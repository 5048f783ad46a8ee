"""[83] Sparsely-connected neural networks: towards efficient VLSI implementation (Ardakani, Condo, Gross, 2016)."""

import dataclasses
import itertools
import zlib

import keras
import numpy as np

from tfcompress.codecs.lfsr import LFSRCoding, from_matrix, to_matrix
from tfcompress.core.lfsr import Register, bits_for, threshold
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, WeightMethod
from tfcompress.parametrization import Parametrization, chains


class LFSRMask(Parametrization):
    """M * w with a mask that a shift register and a comparator regenerate: no mask is stored, only these arguments.

    Each output neuron (filter) has its own phase of the register's sequence; the i-th input is kept where the i-th state
    is at most T. Inputs of a convolution are its kernel positions times channels. Whatever stands before it in a chain
    (a binary or ternary weight) is masked after its own map.

    Args:
        density: share of connections that is kept, 0 < density <= 1; T = round(density * 2^bits).
        bits: width of the register, by default the least whose period 2^bits - 1 covers inputs and outputs.
        taps: its feedback taps, by default of maximal length.
        seed: of the phases. stride: None for a phase of its own for each neuron, which a file stores in `bits` bits
            each; a number for phases that far apart, which a file stores as two numbers.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(8, kernel_initializer="ones")
        >>> layer.build((None, 255))
        >>> parametrize(layer, "kernel", LFSRMask(density=0.25))
        >>> layer.kernel.numpy().sum(0).tolist()
        [64.0, 64.0, 64.0, 64.0, 64.0, 64.0, 64.0, 64.0]
    """

    papers = (83,)
    keeps_grid = True

    def __init__(
        self, density: float = 0.1, bits: int | None = None, taps=None, seed: int = 0, stride: int | None = None
    ):
        if not 0 < density <= 1:
            raise CompressionError(
                f"`density` is the share of connections kept, 0 < density <= 1; received {density!r}."
            )
        if bits is None and taps is not None:
            raise CompressionError("`taps` belong to a register of known width; give `bits` too.")
        if stride is not None and stride < 1:
            raise CompressionError(f"`stride` must be at least 1 step, or None; received {stride!r}.")
        if bits is not None:
            Register(bits, taps)  # a width or taps that do not serve are refused here
        if int(seed) < 0:
            raise CompressionError(f"`seed` must be at least 0; received {seed!r}.")
        self.density, self.bits, self.taps, self.seed, self.stride = float(density), bits, taps, int(seed), stride

    def build(self, layer, name, shape):
        self.layout = layout(layer, name)
        inputs, outputs = to_matrix(np.broadcast_to(False, shape), self.layout).shape
        self.register = Register(bits_for(inputs, outputs) if self.bits is None else self.bits, self.taps)
        self.limit = threshold(self.density, self.register.bits)
        if self.stride is None:
            self.phases = self.register.scattered(self.seed, outputs)
        else:
            first = 1 + self.seed % self.register.period
            self.phases = self.register.strided(first, self.stride, outputs)
        self.matrix = self.register.mask(self.phases, self.limit, inputs)
        self.mask = from_matrix(self.matrix, shape, self.layout)

    def initialize(self, value):
        # With zeros outside the mask neither weight decay nor a regularizer has anything there to change.
        if not self.chain.source:
            raw = self.chain.raw
            raw.assign(np.where(self.mask, keras.ops.convert_to_numpy(raw.value), 0).astype("float32"))

    def __call__(self, value):
        return keras.ops.where(self.mask, value, keras.ops.zeros_like(value))

    def right_inverse(self, value):
        return np.where(self.mask, value, np.float32(0))

    def log(self):
        return {"sparsity": 1.0 - float(self.mask.mean())}

    @property
    def dead_inputs(self) -> np.ndarray:
        """Inputs that no neuron reads, in scan order."""
        return np.flatnonzero(~self.matrix.any(1))

    @property
    def dead_outputs(self) -> np.ndarray:
        """Neurons that read no input."""
        return np.flatnonzero(~self.matrix.any(0))

    def coding(self) -> LFSRCoding:
        """The present weight as its values and seeds, for `codecs.pack(handed=...)`."""
        seeds = self.phases if self.stride is None else (1 + self.seed % self.register.period, self.stride)
        return LFSRCoding.of(self.chain.numpy(), self.register, self.limit, seeds, self.layout)


def layout(layer, weight: str) -> str:
    """Which axes of a layer's weight are output neurons; see `tfcompress.codecs.lfsr.to_matrix`."""
    kinds = {base.__name__ for base in type(layer).__mro__}
    if weight == "depthwise_kernel" or kinds & {"DepthwiseConv1D", "DepthwiseConv2D"}:
        return "last two"
    if kinds & {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"}:
        return "before last"
    return "last"


class LFSR(WeightMethod):
    """[83] Removes connections before training, by masks that a shift register regenerates from a seed.

    The gain is in the stored file, `codecs.pack(finalize(model), handed=sparsity.handed(model))`, and in kernels that
    walk the register; a .tflite holds the masked matrix and is smaller only when it is compressed for download.

    Args:
        density, bits, taps, stride: as in `LFSRMask`. seed: of the phases; each weight gets a seed of its own from it.
        layers, exclude, include_frozen: which weights; the paper masks fully connected layers. See `tfcompress.select`.

    Example:
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((255,)), keras.layers.Dense(16)])
        >>> sparse = apply(model, LFSR(density=0.1), verbose=0)
        >>> int(np.count_nonzero(sparse.layers[0].kernel.numpy())) == 16 * 26
        True
    """

    papers = (83,)

    def __init__(self, density: float = 0.1, bits: int | None = None, taps=None, seed: int = 0, stride: int | None = None,
                 layers=None, exclude=None, include_frozen: bool = False):  # fmt: skip
        self.density, self.bits, self.taps, self.seed, self.stride = density, bits, taps, seed, stride
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen
        self._numbers = itertools.count()
        LFSRMask(density, bits, taps, seed, stride)  # bad arguments are refused here, before any model is touched

    def parametrization(self, path, layer, weight):
        own = zlib.crc32(f"{self.seed}/{next(self._numbers)}".encode())
        return LFSRMask(self.density, self.bits, self.taps, own, self.stride)

    def attach(self, model, data=None):
        self._numbers = itertools.count()
        model, rows = super().attach(model, data)
        links = {name: c.links[-1] for name, c in chains(model) if isinstance(c.links[-1], LFSRMask)}

        def with_dead(row):
            link = links.get(f"{row.layer}.{row.weight}") if row.action == DONE else None
            if link is None:
                return row
            dead = f"{link.dead_inputs.size} of {link.matrix.shape[0]} inputs dead"
            if link.dead_outputs.size:
                dead += f", {link.dead_outputs.size} of {link.matrix.shape[1]} neurons without input"
            return dataclasses.replace(row, detail=f"{row.detail}: {link.mask.mean():.1%} kept, {dead}")

        return model, [with_dead(row) for row in rows]


def handed(model) -> dict[str, LFSRCoding]:
    """What `codecs.pack(..., handed=...)` takes to store the masked kernels of an attached model as values and seeds.

    Args:
        model: an attached model; pack it, or the plain model that `finalize` makes of it.

    Example:
        >>> from tfcompress import apply, codecs
        >>> model = keras.Sequential([keras.Input((255,)), keras.layers.Dense(16, name="a")])
        >>> sparse = apply(model, LFSR(density=0.1), verbose=0)
        >>> data = codecs.dumps({"a": sparse.layers[0].kernel.numpy()}, handed={"a": handed(sparse)["a.kernel"]})
        >>> codecs.loads(data)["a"].shape
        (255, 16)
    """
    return {name: c.links[-1].coding() for name, c in chains(model) if c.links and isinstance(c.links[-1], LFSRMask)}
