"""What a coding is, and how the encoder chooses one for a tensor.

A coding turns a tensor into bytes and back without loss. Codings register themselves under a number (in the file) and a
name (in reports); `smallest` tries all that apply and keeps the shortest, which is decoded again before it is trusted.
"""

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, UnknownCoding, varint
from tfcompress.codecs.words import Tensor
from tfcompress.errors import CompressionError

EFFORTS = ("fast", "normal", "best")
_BY_CODE: dict[int, "Coding"] = {}


class Coding:
    """One way to store a tensor.

    Attributes:
        code: its number in the file, 0..254, never reused.
        name: its name in reports.
        effort: the least effort at which the encoder tries it.
        depth: 0 where it holds no nested parts; its parts have a lesser depth, so that no file nests without end.
    """

    code: int
    name: str
    effort = "fast"
    depth = 0

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        """The tensor's bytes, or None where this coding does not apply (it need not be small)."""
        raise NotImplementedError

    def decode(self, cursor: Cursor, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """The flat words of a tensor of this shape and dtype; raises `Corrupt` on anything that cannot be."""
        raise NotImplementedError


def register(cls: type[Coding]) -> type[Coding]:
    """Class decorator: make a coding known to encoder and decoder."""
    if cls.code in _BY_CODE:
        raise ValueError(f"{cls.__name__} and {_BY_CODE[cls.code].name!r} both want the number {cls.code}.")
    _BY_CODE[cls.code] = cls()
    return cls


def codings() -> dict[str, Coding]:
    """All registered codings by name, in the order of their numbers.

    Example:
        >>> list(codings())[:3]
        ['raw', 'constant', 'packed']
    """
    return {_BY_CODE[code].name: _BY_CODE[code] for code in sorted(_BY_CODE)}


def by_code(code: int) -> Coding:
    """The coding with this number."""
    try:
        return _BY_CODE[code]
    except KeyError:
        raise UnknownCoding(f"names the coding {code}, which this version of tfcompress does not know") from None


def check_effort(effort: str) -> str:
    """The effort, or an error that lists what there is."""
    if effort not in EFFORTS:
        raise CompressionError(f"`effort` must be one of {', '.join(EFFORTS)}; received {effort!r}.")
    return effort


def smallest(tensor: Tensor, effort: str = "normal", among=None) -> tuple[Coding, bytes]:
    """The shortest of all codings that apply, with its bytes, proven to decode to the same words.

    Args:
        tensor: what to store. effort: which codings to try and how hard.
        among: names to restrict the choice to; "raw" always applies.

    Raises:
        CompressionError: a coding of ours did not reproduce the tensor (a defect, reported instead of written).
    """
    rank = EFFORTS.index(check_effort(effort))
    best: tuple[Coding, bytes] | None = None
    for coding in codings().values():
        if EFFORTS.index(coding.effort) > rank or (among is not None and coding.name not in among):
            continue
        data = coding.encode(tensor, effort)
        if data is not None and (best is None or len(data) < len(best[1])):
            best = coding, data
    if best is None:
        raise CompressionError(f"No coding among {sorted(among)} applies to tensor {tensor.name!r}.")
    coding, data = best
    if not np.array_equal(decode(coding.code, data, tensor.shape, tensor.dtype), tensor.words):
        raise CompressionError(
            f"The coding {coding.name!r} does not reproduce tensor {tensor.name!r}; please report it."
        )
    return best


def decode(code: int, data, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The flat words of a stored tensor; whatever is wrong with the data comes out as `Corrupt`."""
    coding = by_code(code)
    cursor = Cursor(data)
    count = element_count(shape)
    try:
        words = coding.decode(cursor, shape, dtype)
        cursor.end()
    except (ValueError, IndexError, OverflowError, TypeError, KeyError) as error:
        if isinstance(error, CompressionError):
            raise
        raise Corrupt(f"does not decode ({type(error).__name__}: {error})") from None
    if words.size != count or words.dtype.itemsize != dtype.itemsize:
        raise Corrupt(f"decodes to {words.size} elements where {count} are declared")
    return words


def element_count(shape) -> int:
    """Number of elements of a shape, in Python integers that cannot overflow."""
    count = 1
    for size in shape:
        count *= int(size)
    return count


def word_dtype(dtype: np.dtype) -> np.dtype:
    """The unsigned little-endian type of a dtype's width."""
    return np.dtype(f"<u{dtype.itemsize}")


def encode_nested(array: np.ndarray, effort: str, depth: int) -> bytes:
    """A part of a coding's data, stored by the smallest coding of lesser depth: its number, length and bytes.

    The reader has to know the part's shape and dtype.
    """
    among = [coding.name for coding in codings().values() if coding.depth < depth]
    coding, data = smallest(Tensor(array), effort, among)
    return bytes([coding.code]) + varint(len(data)) + data


def decode_nested(cursor: Cursor, shape: tuple[int, ...], dtype: np.dtype, depth: int) -> np.ndarray:
    """The inverse of `encode_nested`: the flat words."""
    code = cursor.byte()
    data = cursor.take(cursor.varint())
    if by_code(code).depth >= depth:
        raise Corrupt(f"nests {by_code(code).name!r} where only simpler codings may stand")
    return decode(code, data, shape, dtype)
