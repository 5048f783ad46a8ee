"""pack, unpack and what lies between: the codecs as people use them."""

import contextlib
import dataclasses
import io
import pathlib
import tempfile

import numpy as np

from tfcompress.codecs.bits import checksum
from tfcompress.codecs.coding import by_code, check_effort, element_count
from tfcompress.codecs.container import Reader, TensorEntry, Writer
from tfcompress.codecs.handed import Handed
from tfcompress.codecs.report import Contents, PackReport, Row, rows_of
from tfcompress.codecs.sources import SUFFIXES, Source, kind_of, open_source, opened, restore
from tfcompress.codecs.words import Tensor
from tfcompress.errors import CompressionError, nearest
from tfcompress.files import replacing


def pack(
    source,
    path=None,
    *,
    handed: dict[str, Handed] | None = None,
    effort: str = "normal",
    against=None,
    optimizer: bool = False,
) -> PackReport:
    """Write a model as .tfcz, every tensor by the smallest of its lossless codings.

    Args:
        source: a .keras, .tflite, .weights.h5 or .npz file, a Keras model, or {name: array}.
        path: of the .tfcz; by default the source's name with that suffix.
        handed: {tensor name: object of a class registered by `register_handed`}. A key that is no tensor's name is
            matched to the tensor that has the object's value.
        effort: "fast", "normal" or "best" (more codings, stronger zstandard).
        against: the float32 file that the ratio is taken against (or its bytes); by default the source.
        optimizer: keep the optimizer's variables of a .keras. Without them Keras warns at load that the optimizer
            starts anew; weights and compile settings are kept.

    Returns:
        The report: file bytes, bytes and coding of each tensor, ratio of measured bytes.

    Raises:
        CompressionError: nothing to pack, NaN weights (not in a .tflite), a handed coding of other values, a full disk.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp(), "weights.tfcz")
        >>> kernel = np.tile(np.float32([0, 0, 0, 0.5]), 25_000)
        >>> report = pack({"kernel": kernel}, path)
        >>> report.file_bytes == path.stat().st_size, report.ratio > 35
        (True, True)
        >>> bool((read_tensor(path, "kernel") == kernel).all())
        True
    """
    check_effort(effort)
    if path is None:
        if not isinstance(source, str | pathlib.Path):
            raise CompressionError(
                "pack: give the path of the .tfcz; only for a file can it be derived from the source."
            )
        name = pathlib.Path(source)
        path = name.with_name(name.name.removesuffix(SUFFIXES[kind_of(name)]) + ".tfcz")
    if pathlib.Path(path).suffix != ".tfcz":
        raise CompressionError(
            f"pack: the packed file has to be called .tfcz, or it would be taken for a model: {path}."
        )
    with _opened(source, optimizer) as model, replacing(path) as part, part.open("wb") as file:
        return _write(model, file, str(path), handed, effort, _against_bytes(against))


def dumps(source, *, handed=None, effort: str = "normal", against=None, optimizer: bool = False) -> bytes:
    """The bytes of a .tfcz in memory; arguments as in `pack`.

    Example:
        >>> loads(dumps({"bias": np.zeros(3, np.float32)}))["bias"].tolist()
        [0.0, 0.0, 0.0]
    """
    check_effort(effort)
    out = io.BytesIO()
    with _opened(source, optimizer) as model:
        _write(model, out, "memory", handed, effort, _against_bytes(against))
    return out.getvalue()


@contextlib.contextmanager
def _opened(source, optimizer: bool):
    """The source; a Keras model goes through a file of its own making."""
    with contextlib.ExitStack() as stack:
        if not (hasattr(source, "save") and hasattr(source, "get_weights")):
            yield open_source(source, optimizer, stack)
            return
        file = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "model.keras")
        source.save(file)
        yield dataclasses.replace(open_source(file, optimizer, stack), label=f"model {getattr(source, 'name', '')!r}")


def _against_bytes(against) -> int | None:
    if against is None or (isinstance(against, int) and against > 0):
        return against
    if not isinstance(against, str | pathlib.Path):
        raise CompressionError(f"`against` must be the float32 file or its bytes; received {against!r}.")
    try:
        return pathlib.Path(against).stat().st_size
    except OSError as error:
        raise CompressionError(f"Cannot read {against}: {error.strerror or error}.") from error


def _write(source: Source, file, path: str, handed, effort: str, against: int | None) -> PackReport:
    writer = Writer(file, source.kind, effort)
    waiting = dict(handed or {})
    keys = {name: _key(Tensor(coding.value(), name)) for name, coding in waiting.items()}
    rows = [_row(tensor, writer.add_tensor(tensor, _claim(waiting, keys, tensor))) for tensor in source.tensors]
    if waiting:
        name = next(iter(waiting))
        raise CompressionError(
            f"A coding was handed over for {name!r}, but {source.label} has no tensor of that name or value. "
            f"{nearest(name, [row.name for row in rows])}"
        )
    other = {name: writer.add_blob(name, data).bytes for name, data in source.blobs.items()}
    size = writer.finish()
    return PackReport(path, source.kind, size, tuple(rows), other, source.label, source.file_bytes, against)


def _claim(waiting: dict[str, Handed], keys: dict[str, tuple], tensor: Tensor) -> Handed | None:
    """The object handed over for a tensor: under its name, else with its value."""
    if tensor.name in waiting:
        return waiting.pop(tensor.name)
    if waiting:
        key = _key(tensor)
        for name in waiting:
            if keys[name] == key:
                return waiting.pop(name)
    return None


def _key(tensor: Tensor) -> tuple:
    """What tells tensors apart without keeping them; a false match is found when the coding is tried."""
    return tensor.shape, tensor.dtype_name, checksum(tensor.words)


def _row(tensor: Tensor, entry: TensorEntry) -> Row:
    coding = by_code(entry.code).name
    array = tensor.array()
    zeros = tensor.size - int(np.count_nonzero(array))
    is_float = tensor.dtype.kind == "f"
    negative = zeros - int(np.count_nonzero(tensor.words == 0)) if is_float else 0
    distinct = None if tensor.alphabet is None else tensor.alphabet[0].size
    count = element_count(entry.shape)
    return Row(
        *(entry.name, entry.shape, entry.dtype, coding, entry.raw_bytes, entry.bytes),
        *(count, tensor.size - zeros, distinct, negative),
    )


@contextlib.contextmanager
def _reading(path, limit: int | None):
    with opened(path) as file:
        yield Reader(file, str(path), limit)


def unpack(path, out=None, *, limit: int | None = None) -> pathlib.Path:
    """Write the packed model's own file again: a .tflite byte for byte, a .keras weight for weight.

    Args:
        path: the .tfcz. out: the file to write; by default beside it, with the suffix of its kind.
        limit: most bytes to decode, 2 GiB by default.

    Returns:
        The path written.

    Raises:
        CompressionError: a foreign, cut off or damaged file (nothing is written then), or a suffix that does not fit.
    """
    with _reading(path, limit) as reader:
        suffix = SUFFIXES[reader.kind]
        out = pathlib.Path(path).with_suffix(suffix) if out is None else out
        if kind_of(pathlib.Path(out)) != reader.kind:
            raise CompressionError(f"{path} holds a {suffix} file; {out} has another suffix.")
        with replacing(out) as part, part.open("w+b") as file:
            restore(reader, file)
    return pathlib.Path(out)


def read(path, *, limit: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a .tfcz by name (of a .tflite: its constants of 64 bytes or more)."""
    with _reading(path, limit) as reader:
        return _all(reader)


def loads(data: bytes, *, limit: int | None = None) -> dict[str, np.ndarray]:
    """All tensors of a .tfcz that is in memory; see `dumps`."""
    return _all(Reader(io.BytesIO(data), "the .tfcz in memory", limit))


def _all(reader: Reader) -> dict[str, np.ndarray]:
    reader.allow_all()
    return {name: reader.tensor(name) for name in reader.tensors}


def read_tensor(path, name: str, *, limit: int | None = None) -> np.ndarray:
    """One tensor of a .tfcz; nothing else of the file is decoded."""
    with _reading(path, limit) as reader:
        return reader.tensor(name)


def inspect(path) -> Contents:
    """What a .tfcz holds, from its index alone."""
    with _reading(path, None) as reader:
        other = {blob.name: blob.bytes for blob in reader.blobs.values()}
        return Contents(str(path), reader.kind, reader.size, rows_of(reader), other)
