"""What the codec tests share: arrays for every coding, a small handed coding, and ways to break a file."""

import struct
import zlib

import numpy as np

from tfcompress import codecs
from tfcompress.codecs.bits import inflate, varint
from tfcompress.errors import CompressionError


def rng(seed=0):
    return np.random.default_rng(seed)


def sparse(shape, density, values=None, seed=0):
    """Random survivors (or draws from `values`) at the given density, exact +0.0 elsewhere."""
    draw = rng(seed)
    kept = draw.random(shape) < density
    dense = draw.standard_normal(shape) if values is None else draw.choice(np.asarray(values), shape)
    return np.where(kept, dense, 0).astype(np.float32)


def per_channel(shape, seed=0):
    """Codes -127..127 times a unit for each slice of the last axis, -0.0 included, as QAT leaves a kernel."""
    weights = (rng(seed).standard_normal(shape) * 0.1).astype(np.float32)
    unit = np.abs(weights).max(tuple(range(len(shape) - 1)), keepdims=True) / np.float32(127)
    return (np.round(weights / unit) * unit).astype(np.float32)


def specials():
    """Zeros of both signs, denormals, infinities, extremes."""
    tiny = np.float32(1e-45)
    edges = [0.0, -0.0, tiny, -tiny, np.inf, -np.inf, np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1.0]
    return rng().choice(np.array(edges, np.float32), (7, 11))


def one_of_each():
    """{name: array} small, such that together all codings are chosen."""
    shared = rng(1).standard_normal(15).astype(np.float32)
    return {
        "constant": np.full((5, 5), -0.0, np.float32),
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.zeros((0, 4), np.float32),
        "binary": rng(2).choice(np.float32([-0.3, 0.3]), (8, 20)),
        "ternary": rng(3).choice(np.float32([-0.3, 0, 0.3]), (8, 20)),
        "dense": (rng(4).standard_normal((16, 32)) * 0.05).astype(np.float32),
        "sparse": sparse((32, 32), 0.1),
        "shared": sparse((24, 32), 0.3, shared),
        "levels": rng(10).choice(np.linspace(-1, 1, 12, dtype=np.float32), (30, 20), p=np.arange(1, 13) / 78),
        "gaps": np.where(np.arange(1200) % 60 == 59, np.float32(0.5), np.float32(0)).reshape(60, 20),
        "grid": per_channel((3, 3, 8, 6)),
        "repeats": np.tile(rng(5).standard_normal(8).astype(np.float32), 32),
        "signed zeros": rng(6).standard_normal((40, 40)).astype(np.float32) * (rng(7).random((40, 40)) < 0.1),
        "half": rng(8).standard_normal((6, 6)).astype(np.float16),
        "codes": rng(9).integers(-4, 5, (12, 12)).astype(np.int8),
        "steps": np.arange(5, dtype=np.int64),
        "flags": np.array([True, False, True]),
    }


def attempt(call):
    """(result, None), or (None, message) where a CompressionError was raised; anything else is a crash."""
    try:
        return call(), None
    except CompressionError as error:
        return None, str(error)


def same(a, b):
    """Equal in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def zero_order_bits(array):
    """Zero-order entropy of the elements' bit patterns, in bits for the whole array."""
    words = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").ravel()
    counts = np.unique(words, return_counts=True)[1].astype(float)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def index_of(data):
    """Offset and plain bytes of the index, read by the format's description."""
    offset, length = struct.unpack("<QI", data[-24:-12])
    stored = data[offset : offset + length]
    size, at = stored[0], 1
    if size > 0x7F:
        size, at = size - 0x80 + (stored[1] << 7), 2
    plain = stored[at:]
    return offset, (plain if len(plain) == size else inflate(plain, size))


def sealed(sections, index):
    """A file of these sections and this index with right checksums, built by the format's description."""
    head = b"TFCZ\x01\0\0\0"
    stored = varint(len(index)) + index
    fields = struct.pack("<QII", 8 + len(sections), len(stored), zlib.crc32(stored))
    return head + sections + stored + fields + struct.pack("<I", zlib.crc32(fields, zlib.crc32(head))) + b"TFCZ"


def mutate(data, draw):
    """One of the ways in which files break."""
    data = bytearray(data)
    at = int(draw.integers(0, len(data)))
    how = int(draw.integers(0, 7))
    if how == 0:
        data[at] ^= 1 << int(draw.integers(0, 8))
    elif how == 1:
        data[at : at + 1 + int(draw.integers(0, 8))] = draw.bytes(int(draw.integers(1, 9)))
    elif how == 2:
        del data[at:]
    elif how == 3:
        del data[at : at + int(draw.integers(1, 50))]
    elif how == 4:
        data[at:at] = draw.bytes(int(draw.integers(1, 50)))
    elif how == 5:
        other = int(draw.integers(0, len(data)))
        length = int(draw.integers(1, 40))
        data[at : at + length] = data[other : other + length]
    else:
        length = int(draw.integers(1, 64))
        data[at : at + length] = bytes(min(length, len(data) - at))
    return bytes(data)


@codecs.register_handed
class SeededMask:
    """Values in scan order and (bits, taps, threshold, seeds): the coding that paper 83 hands over."""

    coding = "test: mask from a shift register"

    def __init__(self, values, bits, taps, threshold, seeds, shape):
        self.values, self.bits, self.taps = values, bits, taps
        self.threshold, self.seeds, self.shape = threshold, seeds, tuple(shape)

    def mask(self):
        state = self.seeds.astype(np.int64)
        rows = []
        for _ in range(self.shape[0]):
            rows.append(state <= self.threshold)
            feedback = sum(state >> self.bits - tap for tap in self.taps) & 1
            state = state >> 1 | feedback << self.bits - 1
        return np.array(rows).reshape(self.shape)

    def to_bytes(self):
        numbers = {"bits": self.bits, "threshold": self.threshold}
        taps = np.array(self.taps, np.uint8)
        return codecs.pack_parts({"values": self.values, "seeds": self.seeds, "taps": taps}, numbers)

    @classmethod
    def from_bytes(cls, data, shape, dtype):
        parts, numbers = codecs.unpack_parts(data)
        taps = tuple(parts["taps"].tolist())
        return cls(parts["values"].astype(dtype), numbers["bits"], taps, numbers["threshold"], parts["seeds"], shape)

    def value(self):
        out = np.zeros(self.shape, self.values.dtype)
        # Neuron after neuron, as the paper stores them.
        out.T[self.mask().T] = self.values
        return out


def seeded(n_in=500, n_out=64, density=0.1, seed=0):
    """A binary kernel under a shift register's mask, and what the method would hand over."""
    bits, taps = 10, (10, 7)
    seeds = (rng(seed).permutation(2**bits - 1)[:n_out] + 1).astype(np.uint16)
    handed = SeededMask(np.zeros(0, np.float32), bits, taps, round(density * 2**bits), seeds, (n_in, n_out))
    handed.values = rng(seed + 1).choice(np.float32([-1, 1]), int(handed.mask().sum()))
    return handed.value(), handed
