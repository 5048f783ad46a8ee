"""Codebook and sparse codings: shared values by index, zeros by a mask, both entropy-coded."""

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, varint
from tfcompress.codecs.coding import (
    Coding,
    decode_nested,
    element_count,
    encode_nested,
    register,
    word_dtype,
)
from tfcompress.codecs.contexts import decode_mask, encode_mask
from tfcompress.codecs.tables import decode_symbols, encode_symbols
from tfcompress.codecs.words import ALPHABET_LIMIT, Tensor


@register
class Codebook(Coding):
    """The distinct words in ascending order, and the entropy-coded index of each element."""

    code = 5
    name = "codebook"
    depth = 1

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        if tensor.size < 2 or tensor.alphabet is None:
            return None
        table, index = tensor.alphabet
        if table.size < 2 or table.size > tensor.size // 2:
            return None
        words = encode_nested(table, effort, self.depth)
        return varint(table.size) + words + encode_symbols(index, table.size)

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        count = element_count(shape)
        k = cursor.varint(min(ALPHABET_LIMIT, count))
        table = decode_nested(cursor, (k,), word_dtype(dtype), self.depth)
        return table[decode_symbols(cursor, count, k)]


@register
class Sparse(Coding):
    """A mask of the elements that are not the commonest word, and the others in scan order by the smallest coding.

    The mask is coded at its zero-order entropy or below: where rows or columns differ in density it has a probability
    for each class of them (`contexts`).
    """

    code = 6
    name = "sparse"
    depth = 2

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        kept = tensor.survivors.size
        if not 0 < kept < 0.95 * tensor.size:
            return None
        background = np.array([tensor.background], tensor.words.dtype).tobytes()
        mask = encode_mask(tensor.mask, tensor.shape, effort)
        survivors = tensor.survivors.view(tensor.dtype)
        return background + varint(kept) + mask + encode_nested(survivors, effort, self.depth)

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        count = element_count(shape)
        background = cursor.array(word_dtype(dtype), 1)[0]
        kept = cursor.varint(count)
        mask = decode_mask(cursor, shape)
        if np.count_nonzero(mask) != kept:
            raise Corrupt("holds a mask that does not fit its values")
        words = np.full(count, background)
        words[mask] = decode_nested(cursor, (kept,), dtype, self.depth)
        return words


@register
class SparseTwice(Sparse):
    """Sparse survivors of a sparse tensor: a mask times negative weights leaves zeros of both signs."""

    code = 8
    name = "sparse, two backgrounds"
    depth = 3

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        survivors = Tensor(tensor.survivors)
        # Few survivors' words are a codebook, to which a second background is one more word.
        if not survivors.size or survivors.sample.values.size <= 64 < survivors.size:
            return None
        if survivors.sample.counts.max() < 0.2 * survivors.sample.counts.sum():
            return None
        return super().encode(tensor, effort)
