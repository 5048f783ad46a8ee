"""A tensor as the codecs see it: the bit patterns of its elements.

Codings work on unsigned words, so that -0.0, denormals, infinities and integers all survive; what a coding needs to
know about a tensor (its commonest word, the distinct others) is computed once and shared by all that ask.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from tfcompress.errors import CompressionError

# The position in this list is what the file stores; append only.
DTYPES = (
    *("float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("int64", "uint64", "bool", "complex64", "V1", "V2", "V4", "V8"),
)
ALPHABET_LIMIT = 1 << 16  # more distinct words than this are no codebook
_SAMPLE = 1 << 16


def dtype_name(dtype: np.dtype, tensor: str = "") -> str:
    """The stored name of a dtype, or a refusal that names the tensor."""
    name = f"V{dtype.itemsize}" if dtype.kind == "V" and dtype.name != "bfloat16" else dtype.name
    if name not in DTYPES or dtype.names is not None:
        raise CompressionError(f"Tensor {tensor!r} has dtype {dtype}, which .tfcz cannot hold. Convert it to numbers.")
    return name


def numpy_dtype(name: str) -> np.dtype:
    """The little-endian NumPy dtype of a stored name; bfloat16 comes from ml_dtypes, which Keras brings."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name).newbyteorder("<")


class Sample(NamedTuple):
    """Distinct words of evenly spaced elements, ascending, and how often each was seen."""

    values: np.ndarray
    counts: np.ndarray


class Tensor:
    """An array as flat little-endian words, with its structure computed on demand.

    Args:
        array: any numeric array of 1, 2, 4 or 8 bytes an element.
        name: for error messages.

    Example:
        >>> tensor = Tensor(np.array([0.0, -0.0, 1.0], np.float32))
        >>> [hex(word) for word in tensor.words]
        ['0x0', '0x80000000', '0x3f800000']
    """

    def __init__(self, array, name: str = "") -> None:
        array = np.asarray(array)
        self.name = name
        self.dtype_name = dtype_name(array.dtype, name)
        self.dtype = numpy_dtype(self.dtype_name)
        self.shape = array.shape
        if array.dtype.kind not in "V" and array.dtype != self.dtype:
            array = array.astype(self.dtype)
        self.words = np.ascontiguousarray(array).reshape(-1).view(f"<u{self.dtype.itemsize}")

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.words.size

    @property
    def nbytes(self) -> int:
        """Bytes of the plain array."""
        return self.words.nbytes

    def array(self) -> np.ndarray:
        """The array itself."""
        return self.words.view(self.dtype).reshape(self.shape)

    @cached_property
    def sample(self) -> Sample:
        """What the words look like, from at most twice `_SAMPLE` of them; of a small tensor all."""
        return Sample(*np.unique(self.words[:: max(1, self.size // _SAMPLE)], return_counts=True))

    @cached_property
    def background(self) -> int:
        """The commonest word (estimated on the sample of a large tensor); 0 of an empty one."""
        return int(self.sample.values[np.argmax(self.sample.counts)]) if self.size else 0

    @cached_property
    def mask(self) -> np.ndarray:
        """Where the word is not the background."""
        return self.words != self.words.dtype.type(self.background)

    @cached_property
    def survivors(self) -> np.ndarray:
        """The words that are not the background, in scan order."""
        return self.words[self.mask]

    @cached_property
    def alphabet(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(ascending distinct words, index of each element's word), or None beyond `ALPHABET_LIMIT`."""
        return alphabet(self.words, self.sample.values)

    @cached_property
    def survivor_alphabet(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The alphabet of the survivors alone."""
        known = self.sample.values
        return alphabet(self.survivors, known[known != self.background])


def alphabet(words: np.ndarray, guess: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Distinct words in ascending order and the int32 index of each; None if there are too many to be a codebook.

    Args:
        words: [n] unsigned words. guess: words that are expected, ascending, without repeats.
    """
    if words.dtype.itemsize <= 2:
        present = np.bincount(words, minlength=1) > 0
        rank = np.cumsum(present, dtype=np.int32) - 1
        return np.flatnonzero(present).astype(words.dtype), rank[words]
    guess = np.unique(words[:: max(1, words.size // _SAMPLE)]) if guess is None else guess
    if not words.size or guess.size > 0.8 * _SAMPLE:
        return (np.empty(0, words.dtype), np.empty(0, np.int32)) if not words.size else None
    table = guess
    while True:
        index = np.searchsorted(table, words).astype(np.int32)
        hit = table[np.minimum(index, table.size - 1)] == words if table.size else np.zeros(words.size, bool)
        if hit.all():
            break
        # A large miss is looked at in part first: a tensor of random floats is recognised without sorting all of it.
        missed = words[~hit]
        more = np.unique(missed[: 4 * ALPHABET_LIMIT])
        if table.size + more.size > ALPHABET_LIMIT:
            return None
        table = np.union1d(table, more)
    used = np.zeros(table.size, bool)
    used[index] = True
    if used.all():
        return table, index
    return table[used], (np.cumsum(used, dtype=np.int32) - 1)[index]
