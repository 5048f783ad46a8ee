"""Codings that a method hands over: what no encoder can find in the baked values.

A mask that grows from a seed (paper 83), a vector spread by a hash (40, 42), frequency coefficients (43), sums of codewords
(33) or dictionaries (89) are far smaller than anything that can be read off the kernel. Such a method gives `pack` an
object that writes its few parameters and rebuilds the tensor from them.
"""

from typing import ClassVar, Protocol, runtime_checkable

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, UnknownCoding, text, varint
from tfcompress.codecs.coding import Coding, by_code, decode, element_count, register, smallest, word_dtype
from tfcompress.codecs.words import DTYPES, Tensor, numpy_dtype
from tfcompress.errors import CompressionError, nearest

PARTS_LIMIT = 1 << 28  # bytes that the parts of one handed tensor may take when decoded


@runtime_checkable
class Handed(Protocol):
    """What `pack(handed={tensor name: object})` takes.

    `value` has to be exact on every machine: gathers, signs, element-wise products and sums one after the other. The order
    within a matrix product differs between machines, the last bit with it, and the reader would refuse the tensor.

    Attributes:
        coding: name under which the class is registered with `register_handed`; it is written into the file.
    """

    coding: ClassVar[str]

    def to_bytes(self) -> bytes:
        """The parameters, and nothing that follows from them; `pack_parts` is the easy way."""

    @classmethod
    def from_bytes(cls, data: bytes, shape: tuple[int, ...], dtype: np.dtype) -> "Handed":
        """The inverse, for a tensor of this shape and dtype; takes no memory that `shape` does not justify."""

    def value(self) -> np.ndarray:
        """The tensor, bit for bit."""


_CLASSES: dict[str, type[Handed]] = {}


def register_handed(cls: type[Handed]) -> type[Handed]:
    """Class decorator: let files name this coding.

    Reading such a file needs the module that defines the class; `import tfcompress` brings those of its own methods.
    """
    other = _CLASSES.setdefault(cls.coding, cls)
    if other is not cls and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.__qualname__} and {other.__qualname__} both register the coding {cls.coding!r}.")
    _CLASSES[cls.coding] = cls
    return cls


@register
class HandedCoding(Coding):
    """In the file: the name of the method's coding, then its bytes."""

    code = 255
    name = "handed"
    depth = 255

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        return None  # never found in values; `candidate` makes it from what a method gave

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        name = cursor.text(256)
        if name not in _CLASSES:
            raise UnknownCoding(
                f"was stored by the coding {name!r}, which is not known here; import the module that defines it "
                f"({nearest(name, _CLASSES) if _CLASSES else 'none is registered.'})".rstrip(".")
            )
        data = bytes(cursor.take(cursor.left))
        try:
            value = np.asarray(_CLASSES[name].from_bytes(data, tuple(shape), dtype).value())
        except (
            Exception
        ) as error:  # code of a method on data of unknown origin: whatever it raises, the data is to blame
            raise Corrupt(f"is not what the coding {name!r} writes ({type(error).__name__}: {error})") from error
        if value.shape != tuple(shape) or value.dtype != dtype:
            raise Corrupt(f"gives {value.dtype}{value.shape} where {dtype}{tuple(shape)} is declared")
        return np.ascontiguousarray(value).reshape(-1).view(word_dtype(dtype))


def candidate(tensor: Tensor, handed: Handed) -> tuple[Coding, bytes]:
    """A handed coding of a tensor, proven to reproduce it.

    Raises:
        CompressionError: it is not registered, or its value is not the tensor.
    """
    if _CLASSES.get(getattr(handed, "coding", "")) is not type(handed):
        raise CompressionError(
            f"The coding handed over for tensor {tensor.name!r} is a {type(handed).__name__}, which is not registered; "
            "decorate the class with codecs.register_handed."
        )
    data = text(handed.coding) + handed.to_bytes()
    coding = by_code(HandedCoding.code)
    try:
        same = np.array_equal(decode(coding.code, data, tensor.shape, tensor.dtype), tensor.words)
    except Corrupt as error:
        raise CompressionError(f"The coding handed over for tensor {tensor.name!r} {error}.") from error
    if not same:
        raise CompressionError(
            f"The coding {handed.coding!r} handed over for tensor {tensor.name!r} rebuilds other values than the tensor "
            "has; hand over the parameters of the weights that are packed."
        )
    return coding, data


def pack_parts(parts: dict[str, np.ndarray], numbers: dict[str, int] | None = None, effort: str = "normal") -> bytes:
    """Named arrays and integers as bytes, each array by the smallest coding: the body of most `to_bytes`.

    Args:
        parts: the arrays a tensor is rebuilt from. numbers: integers >= 0, e.g. seeds and taps.

    Example:
        >>> data = pack_parts({"values": np.random.default_rng(0).choice(np.float32([1, -1]), 800)}, {"seed": 7})
        >>> parts, numbers = unpack_parts(data)
        >>> len(data), parts["values"].shape, numbers
        (130, (800,), {'seed': 7})
    """
    out = [varint(len(parts)), varint(len(numbers or {}))]
    for name, array in parts.items():
        tensor = Tensor(array, name)
        coding, data = smallest(tensor, effort)
        shape = b"".join(map(varint, tensor.shape))
        head = bytes([DTYPES.index(tensor.dtype_name), len(tensor.shape)]) + shape
        out.append(text(name) + head + bytes([coding.code]) + varint(len(data)) + data)
    out.extend(text(name) + varint(value) for name, value in (numbers or {}).items())
    return b"".join(out)


def unpack_parts(data: bytes, limit: int = PARTS_LIMIT) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The inverse of `pack_parts`; parts of more than `limit` bytes together are refused unread."""
    cursor = Cursor(data)
    arrays, count = cursor.varint(1 << 16), cursor.varint(1 << 16)
    parts: dict[str, np.ndarray] = {}
    for _ in range(arrays):
        name = cursor.text()
        index, rank = cursor.byte(), cursor.byte()
        if index >= len(DTYPES) or rank > 32:
            raise Corrupt(f"holds a part {name!r} of unknown type")
        dtype, shape = numpy_dtype(DTYPES[index]), tuple(cursor.varint() for _ in range(rank))
        limit -= element_count(shape) * dtype.itemsize
        if limit < 0:
            raise Corrupt("holds parts that are larger than allowed")
        code = cursor.byte()
        if code == HandedCoding.code:
            raise Corrupt("hands over a part of a handed tensor")
        words = decode(code, cursor.take(cursor.varint()), shape, dtype)
        parts[name] = words.view(dtype).reshape(shape)
    numbers = {cursor.text(): cursor.varint() for _ in range(count)}
    cursor.end()
    return parts, numbers
