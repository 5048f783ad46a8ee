"""The .tfcz file: a header, sections one behind the other, an index, a trailer.

    header   8 bytes: "TFCZ", format version, three zero bytes
    sections the tensors by their codings, and blobs (what else the model's file holds) by zstandard
    index    name, shape, dtype, coding, length, CRC-32 of the section and CRC-32 of the decoded bytes
    trailer  24 bytes: offset, length and CRC-32 of the index, CRC-32 of header and trailer, "TFCZ"

The index comes last so that a model is written tensor by tensor, and one tensor is read without the others. Every byte of
the file is under a checksum, and no size is believed before it is checked against the bytes that are there or a limit.
"""

import dataclasses
import io
import struct

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, UnknownCoding, checksum, deflate, inflate, text, varint
from tfcompress.codecs.coding import by_code, decode, element_count, smallest
from tfcompress.codecs.handed import candidate
from tfcompress.codecs.words import DTYPES, Tensor, numpy_dtype
from tfcompress.errors import CompressionError, nearest

MAGIC = b"TFCZ"
VERSION = 1
KINDS = ("arrays", "h5", "keras", "tflite")
DEFAULT_LIMIT = 1 << 31  # decoded bytes; what a .tflite can hold
_HEADER = MAGIC + bytes([VERSION, 0, 0, 0])
_TRAILER = struct.Struct("<QIII4s")
_INDEX_LIMIT = 1 << 26
_BLOB_LEVEL = {"fast": 3, "normal": 19, "best": 22}
_LARGE_BLOB = 1 << 22  # from here on (vocabularies, ...) the high levels take minutes


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """A tensor in the index: `bytes` is what its section takes, `content` the CRC-32 of its decoded words."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    code: int
    offset: int
    bytes: int
    crc: int
    content: int

    @property
    def raw_bytes(self) -> int:
        """Bytes of the plain array."""
        return element_count(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclasses.dataclass(frozen=True)
class BlobEntry:
    """Bytes that are no tensor; `raw_bytes` is their length when inflated."""

    name: str
    raw_bytes: int
    offset: int
    bytes: int
    crc: int


class Writer:
    """Writes a .tfcz into an open binary file, one section at a time.

    Args:
        file: where to write, from its beginning. kind: one of `KINDS`. effort: how hard to look for small codings.
    """

    def __init__(self, file, kind: str, effort: str = "normal") -> None:
        self.file, self.kind, self.effort = file, kind, effort
        self.tensors: list[TensorEntry] = []
        self.blobs: list[BlobEntry] = []
        self.at = file.write(_HEADER)
        self._rows: list[bytes] = []

    def add_tensor(self, tensor: Tensor, handed=None) -> TensorEntry:
        """Store a tensor by the smallest of all codings that apply and of the one handed over, if any."""
        coding, data = smallest(tensor, self.effort)
        if handed is not None:
            own, offered = candidate(tensor, handed)
            coding, data = (own, offered) if len(offered) < len(data) else (coding, data)
        content = checksum(tensor.words)
        entry = TensorEntry(
            tensor.name, tensor.shape, tensor.dtype_name, coding.code, self.at, len(data), checksum(data), content
        )
        shape = bytes([len(entry.shape)]) + b"".join(map(varint, entry.shape))
        head = b"\0" + text(entry.name) + bytes([DTYPES.index(entry.dtype)]) + shape + bytes([coding.code])
        self._rows.append(head + varint(len(data)) + struct.pack("<II", entry.crc, content))
        self.tensors.append(entry)
        self.at += self.file.write(data)
        return entry

    def add_blob(self, name: str, data: bytes) -> BlobEntry:
        """Store bytes through zstandard."""
        quick = len(data) > _LARGE_BLOB and self.effort != "best"
        packed = deflate(data, 3 if quick else _BLOB_LEVEL[self.effort])
        entry = BlobEntry(name, len(data), self.at, len(packed), checksum(packed))
        head = b"\1" + text(name) + varint(len(data)) + varint(len(packed))
        self._rows.append(head + struct.pack("<I", entry.crc))
        self.blobs.append(entry)
        self.at += self.file.write(packed)
        return entry

    def finish(self) -> int:
        """Write index and trailer; the length of the whole file."""
        plain = bytes([KINDS.index(self.kind)]) + varint(len(self._rows)) + b"".join(self._rows)
        if len(plain) > _INDEX_LIMIT:
            raise CompressionError(f"An index of {len(plain)} bytes is more than a .tfcz can hold ({_INDEX_LIMIT}).")
        packed = deflate(plain, 19)
        index = varint(len(plain)) + (packed if len(packed) < len(plain) else plain)
        fields = struct.pack("<QII", self.at, len(index), checksum(index))
        trailer = fields + struct.pack("<I", checksum(_HEADER, fields)) + MAGIC
        return self.at + self.file.write(index) + self.file.write(trailer)


class Reader:
    """Reads a .tfcz from an open, seekable binary file.

    Args:
        file: the open file. label: how errors name it. limit: most bytes that tensors and blobs may decode to.

    Raises:
        CompressionError: the file is foreign, cut off or damaged; the message names it and the section.
    """

    def __init__(self, file, label: str, limit: int | None = None) -> None:
        self.file, self.label = file, label
        self.limit = DEFAULT_LIMIT if limit is None else limit
        self.size = file.seek(0, io.SEEK_END)
        offset, length = self._frame()
        index = self._section("index", offset, length, None)
        self.tensors: dict[str, TensorEntry] = {}
        self.blobs: dict[str, BlobEntry] = {}
        try:
            self.kind = self._read_index(Cursor(index), offset)
        except Corrupt as error:
            raise self._broken("the index", error) from None

    def _broken(self, where: str, what) -> CompressionError:
        if isinstance(what, UnknownCoding):
            return CompressionError(f"{self.label} cannot be read here: {where} {what}.")
        return CompressionError(f"{self.label} is damaged: {where} {what}.")

    def _frame(self) -> tuple[int, int]:
        """Offset and length of the index, from a header and trailer that are proven whole."""
        self.file.seek(0)
        header = self.file.read(len(_HEADER))
        if header[:4] != MAGIC:
            hint = {b"PK\3\4": " (it is a zip archive, such as a .keras file)", b"\x89HDF": " (it is an HDF5 file)"}
            raise CompressionError(f"{self.label} is not a .tfcz file{hint.get(header[:4], '')}.")
        if self.size < len(_HEADER) + _TRAILER.size:
            raise CompressionError(f"{self.label} is cut off: it has {self.size} bytes, less than an empty .tfcz.")
        self.file.seek(self.size - _TRAILER.size)
        trailer = self.file.read(_TRAILER.size)
        offset, length, self._index_crc, own, magic = _TRAILER.unpack(trailer)
        if magic != MAGIC:
            raise CompressionError(f"{self.label} is cut off or has been added to: it does not end in a .tfcz trailer.")
        if own != checksum(header, trailer[:16]):
            raise self._broken("the trailer", "does not fit its checksum")
        if header[4] != VERSION:
            raise CompressionError(
                f"{self.label} has .tfcz format {header[4]}; this version of tfcompress reads format {VERSION}."
            )
        if header != _HEADER or offset < len(_HEADER) or offset + length != self.size - _TRAILER.size:
            raise self._broken("the trailer", "points outside the file")
        return offset, length

    def _section(self, where: str, offset: int, length: int, crc: int | None) -> bytes:
        self.file.seek(offset)
        data = self.file.read(length)
        if len(data) != length or checksum(data) != (self._index_crc if crc is None else crc):
            raise self._broken(f"section {where!r}", "does not fit its checksum")
        return data

    def _read_index(self, cursor: Cursor, end: int) -> str:
        size = cursor.varint(_INDEX_LIMIT)
        plain = cursor.take(cursor.left)
        cursor = Cursor(plain if len(plain) == size else inflate(plain, size))
        kind, at = cursor.byte(), len(_HEADER)
        if kind >= len(KINDS):
            raise Corrupt(f"declares the unknown kind {kind}")
        for _ in range(cursor.varint(size)):
            role, name = cursor.byte(), cursor.text()
            # A tensor of a .tflite may be called like one of our blobs.
            if role > 1 or name in (self.blobs if role else self.tensors):
                raise Corrupt(f"has an unknown or repeated row for {name!r}")
            entry = self._tensor_row(cursor, name, at) if role == 0 else self._blob_row(cursor, name, at)
            at += entry.bytes
        cursor.end()
        if at != end:
            raise Corrupt(f"describes {at - len(_HEADER)} bytes of sections where {end - len(_HEADER)} are")
        return KINDS[kind]

    def _tensor_row(self, cursor: Cursor, name: str, at: int) -> TensorEntry:
        dtype, rank = cursor.byte(), cursor.byte()
        if dtype >= len(DTYPES) or rank > 32:
            raise Corrupt(f"gives tensor {name!r} an unknown type")
        shape = tuple(cursor.varint() for _ in range(rank))
        code, length = cursor.byte(), cursor.varint(self.size)
        crc, content = struct.unpack("<II", cursor.take(8))
        entry = TensorEntry(name, shape, DTYPES[dtype], code, at, length, crc, content)
        self.tensors[name] = entry
        return entry

    def _blob_row(self, cursor: Cursor, name: str, at: int) -> BlobEntry:
        raw, length = cursor.varint(), cursor.varint(self.size)
        entry = BlobEntry(name, raw, at, length, *struct.unpack("<I", cursor.take(4)))
        self.blobs[name] = entry
        return entry

    def _allow(self, what: str, size: int) -> None:
        if size > self.limit:
            raise CompressionError(
                f"{self.label}: {what} declares {size:,} decoded bytes, more than the limit of {self.limit:,}; "
                "pass a larger limit if you trust the file."
            )

    def allow_all(self) -> None:
        """Refuse the file when all its sections together decode to more than the limit."""
        sizes = [entry.raw_bytes for entry in self.tensors.values()] + [blob.raw_bytes for blob in self.blobs.values()]
        self._allow("the file", sum(sizes))

    def tensor(self, name: str) -> np.ndarray:
        """Decode one tensor; the others are not read."""
        if name not in self.tensors:
            raise CompressionError(f"{self.label} has no tensor {name!r}. {nearest(name, self.tensors)}")
        entry = self.tensors[name]
        self._allow(f"tensor {name!r}", entry.raw_bytes)
        data = self._section(name, entry.offset, entry.bytes, entry.crc)
        dtype = numpy_dtype(entry.dtype)
        try:
            words = decode(entry.code, data, entry.shape, dtype)
            array = words.view(dtype).reshape(entry.shape)
        except Corrupt as error:
            raise self._broken(f"section {name!r} ({self.coding(name)})", error) from None
        except ValueError as error:
            raise self._broken(f"section {name!r}", f"has an impossible shape ({error})") from None
        if checksum(np.ascontiguousarray(words)) != entry.content:
            raise self._broken(f"section {name!r}", "decodes to other values than were stored")
        return array if array.flags.writeable else array.copy()

    def coding(self, name: str) -> str:
        """Name of a tensor's coding."""
        try:
            return by_code(self.tensors[name].code).name
        except Corrupt:
            return f"coding {self.tensors[name].code}"

    def blob(self, name: str) -> bytes:
        """Inflate one blob."""
        if name not in self.blobs:
            raise self._broken("the index", f"lacks the section {name!r} that a {self.kind} file has")
        entry = self.blobs[name]
        self._allow(f"section {name!r}", entry.raw_bytes)
        data = self._section(name, entry.offset, entry.bytes, entry.crc)
        try:
            return inflate(data, entry.raw_bytes)
        except Corrupt as error:
            raise self._broken(f"section {name!r}", error) from None
