"""Bytes in and out: a cursor that cannot read past the end, variable-length integers, and bit packing."""

import zlib

import numpy as np
import zstandard

from tfcompress.errors import CompressionError


class Corrupt(CompressionError):
    """Stored data that cannot be what a writer wrote; the container adds the file and the section."""


class UnknownCoding(Corrupt):
    """The data may be whole, but the code that reads it is not here."""


def varint(value: int) -> bytes:
    """An integer >= 0 in groups of 7 bits, least significant first.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def text(value: str) -> bytes:
    """A string as its length and UTF-8 bytes."""
    data = value.encode()
    return varint(len(data)) + data


class Cursor:
    """Reads forward through bytes; every read is checked against what is left.

    Example:
        >>> cursor = Cursor(varint(300) + b"abc")
        >>> cursor.varint(), bytes(cursor.take(3)), cursor.left
        (300, b'abc', 0)
    """

    def __init__(self, data) -> None:
        self.data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self.data) - self.at

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        if not 0 <= count <= self.left:
            raise Corrupt(f"needs {count} bytes where {self.left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        """The next byte."""
        return self.take(1)[0]

    def varint(self, limit: int = 1 << 62) -> int:
        """The next integer, at most `limit`."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise Corrupt("holds a length of more than 63 bits")
        if value > limit:
            raise Corrupt(f"holds a length of {value} where at most {limit} can be")
        return value

    def text(self, limit: int = 1 << 16) -> str:
        """The next string, at most `limit` bytes long."""
        try:
            return str(self.take(self.varint(limit)), "utf-8")
        except UnicodeDecodeError:
            raise Corrupt("holds a name that is not UTF-8") from None

    def array(self, dtype, count: int) -> np.ndarray:
        """The next `count` numbers, as a read-only array over the data."""
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def end(self) -> None:
        """Refuse what is left over."""
        if self.left:
            raise Corrupt(f"has {self.left} bytes too many")


def pack_bits(values: np.ndarray, width: int) -> bytes:
    """Integers of `width` bits each, most significant bit first, the last byte filled with zeros.

    Example:
        >>> pack_bits(np.array([1, 2, 3]), 4).hex()
        '1230'
    """
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint32)
    bits = (np.asarray(values, np.uint32)[:, None] >> shifts & 1).astype(np.uint8)
    return np.packbits(bits).tobytes()


def unpack_bits(cursor: Cursor, count: int, width: int) -> np.ndarray:
    """The inverse of `pack_bits`, as uint32; the filling has to be zero."""
    total = count * width
    bits = np.unpackbits(cursor.array(np.uint8, (total + 7) // 8))
    if bits[total:].any():
        raise Corrupt("has stray bits behind its last value")
    weights = np.left_shift(1, np.arange(width - 1, -1, -1, dtype=np.uint32), dtype=np.uint32)
    return bits[:total].reshape(count, width) @ weights


def deflate(data, level: int) -> bytes:
    """A zstandard frame that states its content size, without a checksum of its own."""
    return zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True).compress(data)


def inflate(data, size: int) -> bytes:
    """Undo `deflate`; a frame that does not state exactly `size` bytes is refused before memory is taken."""
    data = bytes(data)
    try:
        parameters = zstandard.get_frame_parameters(data)
        if parameters.content_size != size:
            raise Corrupt(f"holds a zstandard frame of {parameters.content_size} bytes where {size} are declared")
        out = zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Corrupt(f"holds a broken zstandard frame ({error})") from None
    if len(out) != size:
        raise Corrupt(f"holds a zstandard frame that ends after {len(out)} of {size} bytes")
    return out


def checksum(*parts) -> int:
    """CRC-32 over the parts in turn."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value
