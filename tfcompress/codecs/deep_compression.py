"""The storage format of Deep Compression (paper 12), as published: relative positions, a codebook and two Huffman codes.

The tensor is flattened in row-major order. Each stored entry is the gap to the entry before it, minus one, in `p` bits,
and the index of its value. A gap above 2**p is bridged by fillers: entries of the largest gap whose value is zero. Gaps
and indices are then Huffman-coded; the code lengths and the codebook travel along and are counted.
"""

import dataclasses

import numpy as np

from tfcompress.codecs import huffman
from tfcompress.codecs.bits import Corrupt, Cursor, varint
from tfcompress.codecs.coding import Coding, element_count, register, word_dtype
from tfcompress.codecs.words import Tensor, alphabet
from tfcompress.errors import CompressionError

GAP_BITS = range(1, 17)


@dataclasses.dataclass(frozen=True)
class Stages:
    """Bits of a tensor after each stage of the paper.

    Args:
        dense: 32 (or the dtype's width) a weight. prune: survivors in full and their gaps in p bits. share: index and
            gap of fixed width, and the codebook. huffman: the written bytes, tables, codebook and header included.
    """

    dense: int
    prune: int
    share: int
    huffman: int

    def __add__(self, other: "Stages") -> "Stages":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Stages(*(a + b for a, b in pairs))

    def shares(self) -> dict[str, float]:
        """Each stage's bits as a share of the dense ones."""
        return {
            "prune": self.prune / self.dense,
            "+share": self.share / self.dense,
            "+Huffman": self.huffman / self.dense,
        }


@dataclasses.dataclass(frozen=True)
class Coded:
    """A tensor in the coded form, before Huffman coding.

    Args:
        shape, dtype: of the tensor. p: bits of a gap.
        codebook: [k] words; where there are fillers, word 0 is the codebook's first.
        gaps: [entries] distance to the entry before, minus one. codes: [entries] index into the codebook.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    p: int
    codebook: np.ndarray
    gaps: np.ndarray
    codes: np.ndarray

    def positions(self) -> np.ndarray:
        """Row-major position of each entry."""
        return np.cumsum(self.gaps.astype(np.int64) + 1) - 1

    def words(self) -> np.ndarray:
        """The flat words of the tensor."""
        out = np.zeros(element_count(self.shape), word_dtype(self.dtype))
        out[self.positions()] = self.codebook[self.codes]
        return out

    def matvec(self, x) -> np.ndarray:
        """x @ W on the coded form: only stored entries are multiplied, and W is never built.

        Args:
            x: [n_in] or [batch, n_in] numbers; W is [n_in, n_out], a Dense kernel.

        Raises:
            CompressionError: the tensor is not a matrix or x does not fit it.
        """
        x = np.asarray(x)
        if len(self.shape) != 2 or x.shape[-1:] != self.shape[:1] or x.ndim > 2:
            raise CompressionError(f"matvec: a tensor of shape {self.shape} cannot multiply x of shape {x.shape}.")
        # The CSR form: row by row, so that an input that is zero skips its whole row.
        n_in, n_out = self.shape
        row, column = np.divmod(self.positions(), n_out) if n_out else (self.positions(),) * 2
        values = self.codebook.view(self.dtype).astype(np.float64)
        starts = np.searchsorted(row, np.arange(n_in + 1))
        out = np.zeros((np.atleast_2d(x).shape[0], n_out))
        for sample, result in zip(np.atleast_2d(x).astype(np.float64), out, strict=True):
            for i in np.flatnonzero(sample):
                entries = slice(starts[i], starts[i + 1])
                # The columns of a row are distinct, so plain indexing adds each product once.
                result[column[entries]] += values[self.codes[entries]] * sample[i]
        return out.astype(np.result_type(x.dtype, self.dtype)).reshape(x.shape[:-1] + (n_out,))


def _gap_table(gaps: np.ndarray, p: int) -> tuple[np.ndarray, int]:
    """Counts of the stored gap symbols for this p, and the number of fillers among them."""
    fillers = int(((gaps - 1) >> p).sum())
    counts = np.bincount((gaps - 1) & (1 << p) - 1, minlength=1 << p)
    counts[-1] += fillers
    return counts, fillers


def choose_gap_bits(gaps: np.ndarray, code_counts: np.ndarray) -> int:
    """The p whose Huffman streams and gap table are shortest; code_counts are those of the values without fillers."""

    def bits(p: int) -> int:
        counts, fillers = _gap_table(gaps, p)
        total = 0
        for histogram in (counts, np.concatenate([[fillers], code_counts])):
            lengths = huffman.code_lengths(histogram)
            total += int(histogram @ lengths.astype(np.int64)) + 8 * len(huffman.pack_lengths(lengths))
        return total

    # Beyond 10 bits the table costs more than fillers do, except for a nearly empty tensor.
    return min(range(2, 11), key=bits) if gaps.size else 2


def to_coded(tensor, p: int | None = None) -> Coded:
    """Relative positions and codebook indices of a tensor.

    Args:
        tensor: an array, without NaN. p: bits of a gap, 1 to 16; None chooses the shortest result.

    Raises:
        CompressionError: NaN, or p out of range.
    """
    tensor = tensor if isinstance(tensor, Tensor) else Tensor(tensor)
    if tensor.dtype.kind == "f" and np.isnan(tensor.array()).any():
        raise CompressionError(f"Tensor {tensor.name!r} has NaN values; Deep Compression stores numbers only.")
    if p is not None and p not in GAP_BITS:
        raise CompressionError(f"Gap bits p must be a whole number from 1 to 16; received {p!r}.")
    # Zero is the word 0: -0.0 is a value like any other, or it would come back as 0.0.
    positions = np.flatnonzero(tensor.words)
    kept = tensor.words[positions]
    gaps = np.diff(positions, prepend=-1)
    codebook, codes = alphabet(kept) or np.unique(kept, return_inverse=True)
    codes = codes.astype(np.int64)
    if p is None:
        p = choose_gap_bits(gaps, np.bincount(codes, minlength=codebook.size))
    fillers = (gaps - 1) >> p
    if fillers.any():
        codebook, codes = np.concatenate([np.zeros(1, kept.dtype), codebook]), codes + 1
    ends = np.cumsum(fillers + 1) - 1
    all_gaps = np.full(gaps.size + int(fillers.sum()), (1 << p) - 1)
    all_codes = np.zeros(all_gaps.size, np.int64)
    all_gaps[ends] = (gaps - 1) & (1 << p) - 1
    all_codes[ends] = codes
    return Coded(tensor.shape, tensor.dtype, p, codebook, all_gaps, all_codes)


def sections(coded: Coded) -> dict[str, bytes]:
    """The written parts of a coded tensor; bits are rounded up to bytes in each."""
    gap_lengths = huffman.code_lengths(np.bincount(coded.gaps, minlength=1 << coded.p))
    code_lengths = huffman.code_lengths(np.bincount(coded.codes, minlength=coded.codebook.size))
    entries, k = coded.gaps.size, coded.codebook.size
    header = bytes([coded.p]) + varint(entries) + varint(k)
    tables = b""
    if entries:
        tables = _table(coded.gaps, gap_lengths) + _table(coded.codes, code_lengths)
    codes = huffman.encode(coded.codes, code_lengths)
    return {
        "header": header + varint(len(codes)),
        "codebook": coded.codebook.tobytes(),
        "tables": tables,
        "codes": codes,
        "gaps": huffman.encode(coded.gaps, gap_lengths),
    }


def _table(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """Code lengths; or, where a single symbol is used and takes no bits, a zero byte and that symbol."""
    return huffman.pack_lengths(lengths) if lengths.any() else b"\0" + varint(int(symbols[0]))


def stages(array, p: int | None = None) -> Stages:
    """What each stage of the paper leaves of a tensor, in bits.

    Example:
        >>> kernel = np.zeros((64, 64), np.float32)
        >>> kernel[::4, ::4] = 0.5
        >>> found = stages(kernel, p=5)
        >>> found.dense, found.prune, found.huffman < found.share < found.prune
        (131072, 12802, True)
    """
    coded = to_coded(array, p)
    width, k, entries = 8 * coded.dtype.itemsize, coded.codebook.size, coded.gaps.size
    index = max(0, k - 1).bit_length()
    return Stages(
        dense=element_count(coded.shape) * width,
        prune=entries * (width + coded.p),
        share=entries * (index + coded.p) + k * width,
        huffman=8 * sum(map(len, sections(coded).values())),
    )


def model_stages(weights: dict[str, np.ndarray], p: int | None = None) -> Stages:
    """What each stage leaves of a whole model, in bits; biases and other vectors are counted in full at every stage.

    Args:
        weights: {name: array}. p: bits of a gap; None chooses for each tensor.

    Example:
        >>> kernel = np.zeros((64, 64), np.float32)
        >>> kernel[::4, ::4] = 0.5
        >>> found = model_stages({"kernel": kernel, "bias": np.ones(64, np.float32)}, p=5)
        >>> found.huffman - stages(kernel, p=5).huffman, found.dense
        (2048, 133120)
    """
    total = Stages(0, 0, 0, 0)
    for name, array in weights.items():
        tensor = Tensor(array, name)
        total += stages(tensor, p) if len(tensor.shape) > 1 else Stages(*[8 * tensor.nbytes] * 4)
    return total


def encode(array, p: int | None = None) -> bytes:
    """A tensor in the paper's format.

    Example:
        >>> kernel = np.zeros(1000, np.float32)
        >>> kernel[[0, 500, 999]] = [0.5, -0.5, 0.5]
        >>> data = encode(kernel)
        >>> len(data), bool((decode(data, (1000,), np.float32).array() == kernel).all())
        (37, True)
    """
    return b"".join(sections(to_coded(array, p)).values())


def decode(data, shape, dtype) -> Tensor:
    """The tensor of `encode`'s bytes."""
    coding = DeepCompression()
    cursor = Cursor(data)
    words = coding.decode(cursor, tuple(shape), np.dtype(dtype))
    cursor.end()
    return Tensor(words.view(dtype).reshape(shape))


def read_coded(cursor: Cursor, shape, dtype) -> Coded:
    """The coded form of stored bytes; every length is checked before anything is built."""
    count = element_count(shape)
    p = cursor.byte()
    if p not in GAP_BITS:
        raise Corrupt(f"declares gaps of {p} bits")
    entries, k = cursor.varint(count), cursor.varint(count + 1)
    size = cursor.varint()
    codebook = cursor.array(word_dtype(dtype), k)
    if not entries:
        if k or size:
            raise Corrupt("has a codebook but no entries")
        return Coded(tuple(shape), dtype, p, codebook, np.zeros(0, np.int64), np.zeros(0, np.int64))
    gap_table, code_table = _read_table(cursor, 1 << p), _read_table(cursor, k)
    codes = _symbols(cursor.take(size), entries, code_table)
    gaps = _symbols(cursor.take(cursor.left), entries, gap_table)
    coded = Coded(tuple(shape), dtype, p, codebook, gaps, codes)
    if int(coded.positions()[-1]) >= count:
        raise Corrupt("places an entry behind the tensor's end")
    return coded


def _read_table(cursor: Cursor, k: int):
    """Code lengths, or the one symbol that is used."""
    if cursor.data[cursor.at : cursor.at + 1] == b"\0":
        cursor.byte()
        return cursor.varint(k - 1)
    lengths = huffman.unpack_lengths(cursor, k)
    if not lengths.any():
        raise Corrupt("holds an empty table of code lengths")
    return lengths


def _symbols(data, entries: int, table) -> np.ndarray:
    if isinstance(table, int):
        if len(data):
            raise Corrupt("spends bits on a symbol that needs none")
        return np.full(entries, table, np.int64)
    return huffman.decode(data, entries, table)


@register
class DeepCompression(Coding):
    """The paper's format in the choice of the smallest."""

    code = 7
    name = "deep-compression"
    effort = "normal"
    _LIMIT = {"fast": 0, "normal": 1 << 18, "best": 1 << 24}  # survivors: Huffman decoding takes a loop over them

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        if tensor.size < 2 or tensor.background or not 0 < tensor.survivors.size <= self._LIMIT[effort]:
            return None
        if tensor.survivor_alphabet is None or tensor.survivor_alphabet[0].size > max(1, tensor.survivors.size // 2):
            return None
        if tensor.dtype.kind == "f" and np.isnan(tensor.survivor_alphabet[0].view(tensor.dtype)).any():
            return None
        return encode(tensor)

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        return read_coded(cursor, shape, dtype).words()
