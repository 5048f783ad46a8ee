"""What can be packed, and how it is put back: .keras, .weights.h5, .tflite, .npz and weights by name."""

import contextlib
import dataclasses
import io
import pathlib
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from tfcompress.codecs import hdf5, tflite
from tfcompress.codecs.bits import Corrupt, Cursor, text, varint
from tfcompress.codecs.container import Reader
from tfcompress.codecs.words import Tensor, numpy_dtype
from tfcompress.errors import CompressionError

SUFFIXES = {"keras": ".keras", "h5": ".weights.h5", "tflite": ".tflite", "arrays": ".npz"}
_WEIGHTS = "model.weights.h5"
_OPTIMIZER = "optimizer"
_DATE = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes


@dataclasses.dataclass
class Source:
    """A model opened for packing.

    Args:
        kind: of `container.KINDS`. label: how errors name it. tensors: one at a time. blobs: the rest of the file.
        file_bytes: of the file as `unpack` will write it, or of the float arrays where there is no file.
    """

    kind: str
    label: str
    tensors: Iterator[Tensor]
    blobs: dict[str, bytes]
    file_bytes: int


def open_source(source, optimizer: bool, stack: contextlib.ExitStack) -> Source:
    """Recognise what is to be packed.

    Args:
        source: path or {name: array}. optimizer: keep the optimizer's variables of a .keras.
        stack: closes what has to stay open until the tensors have been read.

    Raises:
        CompressionError: nothing that can be packed, or a file that is not what its name says.
    """
    if isinstance(source, dict):
        wrong = [name for name in source if not isinstance(name, str)]
        if wrong:
            raise CompressionError(f"Names of weights must be strings; received {wrong[0]!r}.")
        arrays = {name: np.asarray(array) for name, array in source.items()}
        return Source("arrays", "the weights", _checked(arrays.items(), "the weights"), {}, _plain_bytes(arrays))
    if not isinstance(source, str | pathlib.Path):
        raise CompressionError(
            f"Cannot pack a {type(source).__name__}; give a .keras, .tflite, .weights.h5 or .npz file, a Keras model or "
            "a dict of arrays."
        )
    path = pathlib.Path(source)
    opener = {"keras": _keras, "h5": _h5, "tflite": _tflite, "arrays": _npz}[kind_of(path)]
    return opener(stack.enter_context(opened(path)), str(path), stack, optimizer)


@contextlib.contextmanager
def opened(path):
    """The file, open for reading, or a sentence that says why not."""
    try:
        file = pathlib.Path(path).open("rb")  # noqa: SIM115 (closed below; an error of the caller's is not ours)
    except OSError as error:
        raise CompressionError(f"Cannot read {path}: {error.strerror or error}.") from error
    with file:
        yield file


def kind_of(path: pathlib.Path) -> str:
    """The kind of a model file by its name."""
    for kind, suffix in {**SUFFIXES, "h5": ".h5"}.items():
        if path.name.endswith(suffix):
            return kind
    known = ", ".join(SUFFIXES.values())
    raise CompressionError(f"{path} is none of the files that can be packed or unpacked ({known}); name it so.")


def _plain_bytes(arrays: dict[str, np.ndarray]) -> int:
    """Bytes of the values at 4 bytes a float, as they are otherwise."""
    return sum(4 * a.size if a.dtype.kind == "f" else a.nbytes for a in arrays.values())


def _checked(items, label: str) -> Iterator[Tensor]:
    """Tensors in turn; NaN is refused, since a model with NaN weights is broken and should be heard of here."""
    for name, array in items:
        tensor = Tensor(array, name)
        if tensor.dtype.kind == "f" or tensor.dtype.name == "bfloat16":
            bad = int(np.count_nonzero(np.isnan(tensor.array())))
            if bad:
                raise CompressionError(
                    f"Tensor {name!r} of {label} has {bad} NaN values among {tensor.size}; a model with NaN weights is "
                    "not packed."
                )
        yield tensor


def _arrays_of(file, label: str, skip: str | None = None):
    """The datasets of an open HDF5 file, one read at a time."""
    for path, item in hdf5.datasets(file, label, skip):
        if hasattr(item, "dtype"):
            try:
                array = item[()]
            except OSError as error:
                raise CompressionError(f"{label}: {path!r} cannot be read ({error}).") from error
            # Keras writes bfloat16 as opaque bytes and says so in an attribute.
            bfloat16 = item.attrs.get("dtype") == "bfloat16" and array.dtype.itemsize == 2
            yield path, array.view(numpy_dtype("bfloat16")) if bfloat16 else array


def _size(file) -> int:
    return file.seek(0, io.SEEK_END)


def _h5(file, label: str, stack, optimizer: bool) -> Source:
    size = _size(file)
    root = stack.enter_context(hdf5.open_h5(file, label))
    blobs = {"skeleton": hdf5.skeleton(root, label)}
    return Source("h5", label, _checked(_arrays_of(root, label), label), blobs, size)


def _keras(file, label: str, stack, optimizer: bool) -> Source:
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        members = {name: archive.read(name) for name in names if name != _WEIGHTS}
        if _WEIGHTS not in names or "config.json" not in names:
            raise CompressionError(f"{label} is not a .keras file that can be packed: no {_WEIGHTS} or no config.json.")
        root = stack.enter_context(hdf5.open_h5(stack.enter_context(archive.open(_WEIGHTS)), label))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
        raise CompressionError(f"{label} is not a whole .keras file ({error}).") from error
    skip = None if optimizer else _OPTIMIZER
    blobs = {"skeleton": hdf5.skeleton(root, label, skip), "members": _join(members)}
    size = _size(file)
    if skip and skip in root:
        # Measured, not computed: what the same model takes without the optimizer's variables.
        whole = io.BytesIO()
        _write_keras(whole, members, blobs["skeleton"], lambda path: root[path][()], label)
        size = whole.getbuffer().nbytes
    return Source("keras", label, _checked(_arrays_of(root, label, skip), label), blobs, size)


def _tflite(file, label: str, stack, optimizer: bool) -> Source:
    data = file.read()
    found = tflite.constants(data, label)
    tensors = (
        Tensor(np.frombuffer(data[c.start : c.end], numpy_dtype(c.dtype)).reshape(c.shape), c.name) for c in found
    )
    blobs = {"layout": tflite.layout(data, found), "rest": tflite.between(data, found)}
    return Source("tflite", label, tensors, blobs, len(data))


def _npz(file, label: str, stack, optimizer: bool) -> Source:
    size = _size(file)
    file.seek(0)
    try:
        archive = stack.enter_context(np.load(file, allow_pickle=False))
        names = archive.files
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise CompressionError(f"{label} is not an .npz of arrays ({error}).") from error

    def arrays():
        for name in names:
            try:
                yield name, archive[name]
            except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise CompressionError(f"{label}: array {name!r} cannot be read ({error}).") from error

    return Source("arrays", label, _checked(arrays(), label), {}, size)


def _join(members: dict[str, bytes]) -> bytes:
    """Files of the archive in one blob, so that they are compressed together."""
    return varint(len(members)) + b"".join(text(n) + varint(len(data)) + data for n, data in members.items())


def _split(data: bytes) -> dict[str, bytes]:
    cursor = Cursor(data)
    members = {cursor.text(): bytes(cursor.take(cursor.varint())) for _ in range(cursor.varint(len(data)))}
    cursor.end()
    return members


def _add(archive: zipfile.ZipFile, name: str, data) -> None:
    archive.writestr(zipfile.ZipInfo(name, _DATE), data)


def _write_keras(file, members: dict[str, bytes], skeleton: bytes, tensor, label: str) -> None:
    weights = io.BytesIO()
    hdf5.write_h5(weights, skeleton, tensor, label)
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            _add(archive, name, data)
        _add(archive, _WEIGHTS, weights.getbuffer())


def _write_npz(file, tensors) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in tensors:
            part = io.BytesIO()
            np.lib.format.write_array(part, array, allow_pickle=False)
            _add(archive, f"{name}.npy", part.getbuffer())


def restore(reader: Reader, file) -> None:
    """Write the model's own file from an open .tfcz.

    Args:
        reader: the open .tfcz. file: an open binary file, empty.

    Raises:
        CompressionError: the .tfcz is damaged or larger than its limit.
    """
    reader.allow_all()
    if reader.kind == "arrays":
        _write_npz(file, ((name, reader.tensor(name)) for name in reader.tensors))
    elif reader.kind == "h5":
        hdf5.write_h5(file, reader.blob("skeleton"), reader.tensor, reader.label)
    elif reader.kind == "tflite":
        parts = [reader.tensor(name).tobytes() for name in reader.tensors]
        try:
            file.write(tflite.rebuild(reader.blob("layout"), reader.blob("rest"), parts, reader.limit))
        except Corrupt as error:
            raise CompressionError(f"{reader.label} is damaged: section 'layout' {error}.") from None
    else:
        try:
            members = _split(reader.blob("members"))
        except Corrupt as error:
            raise CompressionError(f"{reader.label} is damaged: section 'members' {error}.") from None
        _write_keras(file, members, reader.blob("skeleton"), reader.tensor, reader.label)
