"""[83] A kernel under a mask from shift registers: its surviving values and a few numbers, and no index at all."""

import math
from typing import ClassVar

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, pack_bits, unpack_bits, varint
from tfcompress.codecs.coding import decode, smallest
from tfcompress.codecs.handed import HandedCoding, register_handed
from tfcompress.codecs.words import Tensor
from tfcompress.core.lfsr import MAX_BITS, Register, from_values, to_values

# How a kernel is a matrix of inputs and outputs (neurons).
LAYOUTS = ("last", "last two", "before last")


def to_matrix(kernel: np.ndarray, layout: str) -> np.ndarray:
    """A kernel as [inputs, outputs], the inputs in scan order.

    Args:
        kernel: any rank from 1 on. layout: which axes are outputs: "last" (Dense, Conv), "last two" (DepthwiseConv, whose
            channels do not mix), "before last" (transposed convolutions).

    Example:
        >>> to_matrix(np.zeros((3, 3, 8, 16)), "last").shape, to_matrix(np.zeros((3, 3, 8, 1)), "last two").shape
        ((72, 16), (9, 8))
    """
    if layout == "before last":
        kernel = np.moveaxis(kernel, -2, -1)
    outputs = math.prod(kernel.shape[-2:] if layout == "last two" else kernel.shape[-1:])
    return kernel.reshape(-1, outputs) if outputs else kernel.reshape(0, 0)


def from_matrix(matrix: np.ndarray, shape, layout: str) -> np.ndarray:
    """The inverse of `to_matrix`."""
    if layout != "before last":
        return matrix.reshape(shape)
    *rest, outputs, inputs = shape
    return np.moveaxis(matrix.reshape(*rest, inputs, outputs), -1, -2)


@register_handed
class LFSRCoding:
    """What `codecs.pack(handed=...)` takes for a kernel under an LFSR mask.

    In the file: bits, number of taps, taps, T, layout (a byte each, T in 1 to 3); then the seeds, either one and a
    stride, or one of `bits` bits for each neuron; then the values in scan order by the smallest coding.

    Args:
        values: surviving values, neuron after neuron. shape: of the kernel. register: the LFSR. limit: T.
        seeds: first states [outputs], or (seed, stride). layout: see `to_matrix`.
    """

    coding: ClassVar[str] = "lfsr"

    def __init__(self, values: np.ndarray, shape, register: Register, limit: int, seeds, layout: str = "last"):
        self.values, self.shape, self.register, self.limit = values, tuple(shape), register, int(limit)
        self.seeds = tuple(map(int, seeds)) if isinstance(seeds, tuple) else np.asarray(seeds, np.uint32)
        self.layout = layout

    @classmethod
    def of(cls, kernel: np.ndarray, register: Register, limit: int, seeds, layout: str = "last") -> "LFSRCoding":
        """The coding of a masked kernel; what stands outside the mask is not looked at."""
        matrix = to_matrix(np.asarray(kernel), layout)
        self = cls(np.empty(0), np.shape(kernel), register, limit, seeds, layout)
        self.values = to_values(matrix, self._mask(matrix.shape))
        return self

    def _mask(self, shape) -> np.ndarray:
        inputs, outputs = shape
        seeds = self.seeds
        if isinstance(seeds, tuple):
            seeds = self.register.strided(seeds[0], seeds[1], outputs)
        return self.register.mask(seeds, self.limit, inputs)

    def to_bytes(self) -> bytes:
        register = self.register
        head = bytes([register.bits, len(register.taps), *register.taps]) + varint(self.limit)
        head += bytes([LAYOUTS.index(self.layout) << 1 | isinstance(self.seeds, tuple)])
        if isinstance(self.seeds, tuple):
            seeds = varint(self.seeds[0]) + varint(self.seeds[1])
        else:
            seeds = pack_bits(self.seeds, register.bits)
        coding, data = smallest(Tensor(self.values, "values"))
        return head + seeds + bytes([coding.code]) + data

    @classmethod
    def from_bytes(cls, data: bytes, shape, dtype) -> "LFSRCoding":
        cursor = Cursor(data)
        bits, taps = cursor.byte(), bytes(cursor.take(cursor.byte()))
        if bits > MAX_BITS:
            raise Corrupt(f"names a shift register of {bits} bits")
        register, limit, kind = Register(bits, taps), cursor.varint(2**bits - 1), cursor.byte()
        if kind >> 1 >= len(LAYOUTS):
            raise Corrupt(f"names the unknown layout {kind >> 1} of a kernel")
        layout = LAYOUTS[kind >> 1]
        inputs, outputs = to_matrix(np.broadcast_to(np.zeros((), dtype), shape), layout).shape
        seeds: tuple | np.ndarray
        if kind & 1:
            seeds = cursor.varint(register.period), cursor.varint(register.period)
        else:
            seeds = unpack_bits(cursor, outputs, bits)
        self = cls(np.empty(0, dtype), shape, register, limit, seeds, layout)
        count = int(self._mask((inputs, outputs)).sum())
        code = cursor.byte()
        if code == HandedCoding.code:
            raise Corrupt("hands over a part of a handed tensor")
        self.values = decode(code, cursor.take(cursor.left), (count,), dtype).view(dtype)
        return self

    def value(self) -> np.ndarray:
        inputs = math.prod(self.shape)
        matrix_shape = to_matrix(np.broadcast_to(np.zeros((), bool), self.shape), self.layout).shape
        if not inputs:
            return np.zeros(self.shape, self.values.dtype)
        return from_matrix(from_values(self.values, self._mask(matrix_shape)), self.shape, self.layout)
