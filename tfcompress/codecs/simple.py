"""The plain codings: raw bytes, one value, packed digits, byte planes and zstandard."""

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, deflate, inflate, varint
from tfcompress.codecs.coding import Coding, element_count, register, word_dtype
from tfcompress.codecs.entropy import entropy_bytes
from tfcompress.codecs.tables import decode_symbols, encode_symbols
from tfcompress.codecs.words import Tensor

_ZSTD_LEVELS = {"fast": (1,), "normal": (1, 3), "best": (1, 3, 19)}


def _zstd(raw: bytes, effort: str) -> bytes:
    """The shortest zstandard frame: on short data a higher level may be the longer one."""
    return min((deflate(raw, level) for level in _ZSTD_LEVELS[effort]), key=len)


@register
class Raw(Coding):
    """The words as they are; applies to everything."""

    code = 0
    name = "raw"

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes:
        return tensor.words.tobytes()

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        return cursor.array(word_dtype(dtype), element_count(shape))


@register
class Constant(Coding):
    """One word for all elements."""

    code = 1
    name = "constant"

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        if not tensor.size or not (tensor.words == tensor.words[0]).all():
            return None
        return tensor.words[:1].tobytes()

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        return np.full(element_count(shape), cursor.array(word_dtype(dtype), 1)[0])


@register
class Packed(Coding):
    """Few distinct words as digits, as many to a byte as fit: +-a in 1 bit, ternary 5 to a byte (1.6 bits).

    Fixed positions make it the form for kernels, and for tensors too small to pay for a probability table.
    """

    code = 2
    name = "packed"
    _LIMIT = 16

    @staticmethod
    def _digits(k: int) -> int:
        """How many digits of base k fit into a byte."""
        digits = 1
        while k ** (digits + 1) <= 256:
            digits += 1
        return digits

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        if tensor.sample.values.size > self._LIMIT or tensor.alphabet is None:
            return None
        table, index = tensor.alphabet
        k = table.size
        if not 2 <= k <= self._LIMIT:
            return None
        digits = self._digits(k)
        padded = np.zeros(-(-index.size // digits) * digits, np.int32)
        padded[: index.size] = index
        packed = padded.reshape(-1, digits) @ (k ** np.arange(digits)).astype(np.int32)
        return bytes([k]) + table.tobytes() + packed.astype(np.uint8).tobytes()

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        count, k = element_count(shape), cursor.byte()
        if not 2 <= k <= self._LIMIT:
            raise Corrupt(f"packs digits of base {k}")
        table, digits = cursor.array(word_dtype(dtype), k), self._digits(k)
        packed = cursor.array(np.uint8, -(-count // digits))
        if packed.size and int(packed.max()) >= k**digits:
            raise Corrupt("packs a digit that is too large")
        # One row of the table of all bytes gives the words of a byte at once.
        spelled = table[np.arange(k**digits)[:, None] // k ** np.arange(digits) % k]
        words = spelled[packed].reshape(-1)
        if (words[count:] != table[0]).any():
            raise Corrupt("has stray digits behind its last value")
        return words[:count]


def _rotate(words: np.ndarray, dtype: np.dtype, back: bool = False) -> np.ndarray:
    """Move the sign of a float behind its mantissa, so that the exponent fills the top byte by itself."""
    if dtype.kind != "f" and dtype.name != "bfloat16":
        return words
    bits = words.dtype.type(8 * words.dtype.itemsize - 1)
    one = words.dtype.type(1)
    return (words >> one) | (words << bits) if back else (words << one) | (words >> bits)


@register
class Planes(Coding):
    """First bytes of all words, then second bytes, ...: each plane raw, entropy-coded or by zstandard.

    Trained dense floats have random mantissas but an exponent of two or three bits.
    """

    code = 3
    name = "byte planes"
    _RAW, _ENTROPY, _ZSTD = range(3)

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        if not tensor.size or (effort != "best" and self._hopeless(tensor)):
            return None
        planes = _rotate(tensor.words, tensor.dtype).view(np.uint8).reshape(tensor.size, -1)
        return b"".join(self._plane(np.ascontiguousarray(plane), effort) for plane in planes.T)

    @staticmethod
    def _hopeless(tensor: Tensor) -> bool:
        """Few distinct words, for which a codebook is never longer, or mostly one word, which a mask takes out."""
        few = tensor.sample.values.size <= 256 < tensor.size
        return tensor.dtype.itemsize > 1 and (few or 2 * tensor.sample.counts.max() > tensor.sample.counts.sum())

    def _plane(self, plane: np.ndarray, effort: str) -> bytes:
        raw = plane.tobytes()
        choices = [(self._RAW, raw)]
        # 8 bits a byte at zero order is random mantissa: nothing finds structure there.
        entropy = entropy_bytes(np.bincount(plane))
        if entropy < 0.995 * plane.size or effort == "best":
            choices += [(self._ENTROPY, encode_symbols(plane, 256)), (self._ZSTD, _zstd(raw, effort))]
        kind, data = min(choices, key=lambda choice: len(choice[1]))
        return bytes([kind]) + varint(len(data)) + data

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        count = element_count(shape)
        out = np.empty((count, dtype.itemsize), np.uint8)
        for plane in range(dtype.itemsize):
            kind, part = cursor.byte(), Cursor(cursor.take(cursor.varint()))
            if kind == self._RAW:
                out[:, plane] = part.array(np.uint8, count)
            elif kind == self._ENTROPY:
                out[:, plane] = decode_symbols(part, count, 256)
            elif kind == self._ZSTD:
                out[:, plane] = np.frombuffer(inflate(part.take(part.left), count), np.uint8)
            else:
                raise Corrupt(f"holds a byte plane of unknown kind {kind}")
            part.end()
        return _rotate(out.reshape(-1).view(word_dtype(dtype)), dtype, back=True)


@register
class Zstandard(Coding):
    """The raw bytes through zstandard: finds repeats that no histogram shows."""

    code = 4
    name = "zstd"
    effort = "normal"

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        random = tensor.sample.values.size > 0.9 * tensor.sample.counts.sum()
        # Of bytes there is one plane, which has been through zstandard.
        if not tensor.size or tensor.dtype.itemsize == 1 or (random and effort != "best"):
            return None
        return _zstd(tensor.words.tobytes(), effort)

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        size = element_count(shape) * dtype.itemsize
        return np.frombuffer(inflate(cursor.take(cursor.left), size), word_dtype(dtype))
