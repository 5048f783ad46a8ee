"""Where the constants of a .tflite file lie: just enough of the flatbuffer to find them, and to put them back.

The file is cut into the constant buffers, which are stored as tensors of their type, and everything between them. Putting
both together again gives the file byte for byte, whatever this reader did not understand.
"""

import dataclasses
import struct

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, checksum, varint
from tfcompress.errors import CompressionError

# schema.fbs, enum TensorType; other types (strings, packed 4-bit integers, ...) are stored as bytes.
_TYPES = {
    **{0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 8: "complex64"},
    **{9: "int8", 10: "float64", 12: "uint64", 15: "uint32", 16: "uint16", 18: "bfloat16"},
}
SMALLEST = 64  # bytes; a shorter constant (the shape of a RESHAPE) stays between the tensors


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant buffer: bytes `start` to `end` of the file, and what the tensor that uses it says it is."""

    name: str
    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


class _Table:
    """A flatbuffer table at a position; fields by number in the schema."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at = data, at
        vtable = at - self._unpack("<i", at)
        fields = (self._unpack("<H", vtable) - 4) // 2
        self.fields = [self._unpack("<H", vtable + 4 + 2 * index) for index in range(fields)]

    def _unpack(self, form: str, at: int) -> int:
        # struct would count a negative position from the end.
        if at < 0:
            raise IndexError("an offset points before the file")
        return struct.unpack_from(form, self.data, at)[0]

    def scalar(self, field: int, form: str, default: int = 0) -> int:
        """A number, or its default where the field is absent."""
        offset = self.fields[field] if field < len(self.fields) else 0
        return self._unpack(form, self.at + offset) if offset else default

    def vector(self, field: int) -> tuple[int, int]:
        """Position and length of a vector; (0, 0) where the field is absent."""
        offset = self.fields[field] if field < len(self.fields) else 0
        if not offset:
            return 0, 0
        at = self.at + offset
        at += self._unpack("<I", at)
        return at + 4, self._unpack("<I", at)

    def tables(self, field: int) -> list["_Table"]:
        """A vector of tables."""
        at, count = self.vector(field)
        if count > len(self.data) // 4:
            raise IndexError("a vector is longer than the file")
        places = range(at, at + 4 * count, 4)
        return [_Table(self.data, place + self._unpack("<I", place)) for place in places]


def constants(data: bytes, label: str) -> list[Constant]:
    """The constant buffers of at least `SMALLEST` bytes, in the order of the file, none overlapping another.

    Raises:
        CompressionError: this is no .tflite file, or it ends too early.
    """
    if data[4:8] != b"TFL3":
        raise CompressionError(f"{label} is not a .tflite file: it lacks the mark TFL3.")
    view = memoryview(data)
    try:
        model = _Table(view, struct.unpack_from("<I", view)[0])
        owners: dict[int, _Table] = {}
        for graph in model.tables(2):
            for tensor in graph.tables(0):
                owners.setdefault(tensor.scalar(2, "<I"), tensor)
        found = [_constant(view, number, table, owners.get(number)) for number, table in enumerate(model.tables(4))]
        out: list[Constant] = []
        names: set[str] = set()
        for constant in sorted((c for c in found if c), key=lambda c: (c.start, c.end)):
            if out and constant.start < out[-1].end:
                continue
            name = constant.name
            while name in names:
                name += "'"
            names.add(name)
            out.append(dataclasses.replace(constant, name=name))
        return out
    except (struct.error, IndexError) as error:
        raise CompressionError(f"{label} is not a whole .tflite file ({error}).") from error


def _constant(view: memoryview, number: int, buffer: _Table, owner: _Table | None) -> Constant | None:
    start, size = buffer.vector(0)
    if not size:
        # Files above 2 GB keep their constants behind the flatbuffer.
        start, size = buffer.scalar(1, "<Q"), buffer.scalar(2, "<Q")
    if size < SMALLEST:
        return None
    if start + size > len(view):
        raise IndexError(f"buffer {number} reaches behind the end")
    plain = Constant(f"buffer {number}", start, start + size, "uint8", (size,))
    if owner is None:
        return plain
    at, length = owner.vector(3)
    name = bytes(view[at : at + length]).decode("utf-8", "replace") or plain.name
    at, rank = owner.vector(0)
    shape = struct.unpack_from(f"<{rank}i", view, at) if 0 < rank <= 32 else ()
    dtype = _TYPES.get(owner.scalar(1, "<b"), "uint8")
    count = int(np.prod(shape, dtype=object)) if min(shape, default=0) > 0 else 0
    width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    if count * width != size:
        return dataclasses.replace(plain, name=name)
    return Constant(name, start, start + size, dtype, shape)


def layout(data: bytes, found: list[Constant]) -> bytes:
    """Length and CRC-32 of the file, and where the constants start."""
    starts = b"".join(varint(constant.start) for constant in found)
    return varint(len(data)) + struct.pack("<I", checksum(data)) + varint(len(found)) + starts


def between(data: bytes, found: list[Constant]) -> bytes:
    """The file without its constants."""
    edges = [0, *(edge for constant in found for edge in (constant.start, constant.end)), len(data)]
    return b"".join(data[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))


def rebuild(frame: bytes, rest: bytes, tensors: list[bytes], limit: int) -> bytes:
    """The file from `layout`, `between` and the constants' bytes, checked to be the one that was packed."""
    cursor = Cursor(frame)
    size, crc = cursor.varint(limit), struct.unpack("<I", cursor.take(4))[0]
    starts = [cursor.varint(size) for _ in range(cursor.varint(len(tensors)))]
    cursor.end()
    if len(starts) != len(tensors) or size != len(rest) + sum(map(len, tensors)):
        raise Corrupt("does not fit the tensors that are there")
    out, taken = bytearray(), 0
    for start, tensor in zip(starts, tensors, strict=True):
        gap = start - len(out)
        if not 0 <= gap <= len(rest) - taken:
            raise Corrupt("places a tensor outside the file")
        out += rest[taken : taken + gap]
        taken += gap
        out += tensor
    out += rest[taken:]
    if len(out) != size or checksum(out) != crc:
        raise Corrupt("does not rebuild the file that was packed")
    return bytes(out)
