"""Weights in HDF5, as Keras writes them: the arrays become tensors, the rest (groups, attributes) a skeleton."""

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfcompress.codecs.words import dtype_name
from tfcompress.errors import CompressionError


def open_h5(file, label: str):
    """An open HDF5 file for reading, or a sentence that says it is none."""
    import h5py

    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise CompressionError(f"{label} holds no readable HDF5 weights ({error}).") from error


def datasets(root, label: str, skip: str | None = None) -> Iterator[tuple[str, Any]]:
    """(path, group or dataset) of everything below `root`, depth first, leaving out the top-level group `skip`.

    Raises:
        CompressionError: links to elsewhere, or data that is no array of numbers.
    """
    import h5py

    def walk(group, prefix):
        for name in group:
            path = f"{prefix}/{name}" if prefix else name
            if path == skip:
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise CompressionError(f"{label}: {path!r} is a link to another place, which .tfcz cannot hold.")
            item = group[name]
            if isinstance(item, h5py.Dataset):
                if item.shape is None:
                    raise CompressionError(f"{label}: {path!r} is an empty HDF5 dataset, which .tfcz cannot hold.")
                dtype_name(item.dtype, path)
            yield path, item
            if isinstance(item, h5py.Group):
                yield from walk(item, path)

    yield from walk(root, "")


def _attributes(item, path: str, label: str) -> dict:
    """Attributes as JSON: text, or numbers as base64 with their dtype and shape."""
    out: dict[str, object] = {}
    for name, value in item.attrs.items():
        if isinstance(value, str):
            out[name] = value
            continue
        array = np.asarray(value)
        if array.dtype.kind == "O" and all(isinstance(text, str) for text in array.ravel()):
            out[name] = {"text": array.ravel().tolist(), "shape": array.shape}
        elif array.dtype.kind in "fiubcS":
            data = base64.b64encode(array.tobytes()).decode()
            out[name] = {"dtype": array.dtype.str, "shape": array.shape, "data": data}
        else:
            raise CompressionError(f"{label}: attribute {name!r} of {path!r} is no text and no numbers.")
    return out


def skeleton(root, label: str, skip: str | None = None) -> bytes:
    """Groups, attributes and the places of the datasets, as JSON."""
    import h5py

    rows = [["", 0, _attributes(root, "", label)]]
    for path, item in datasets(root, label, skip):
        rows.append([path, int(isinstance(item, h5py.Dataset)), _attributes(item, path, label)])
    return json.dumps(rows, separators=(",", ":")).encode()


def _restore_attributes(item, attributes: dict) -> None:
    for name, value in attributes.items():
        if isinstance(value, str):
            item.attrs[name] = value
        elif "text" in value:
            item.attrs[name] = np.array(value["text"], dtype=object).reshape(value["shape"])
        else:
            array = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]))
            item.attrs[name] = array.reshape(value["shape"])[()]


def write_h5(file, frame: bytes, tensor: Callable[[str], np.ndarray], label: str) -> None:
    """Build an HDF5 file from its skeleton and its tensors, one at a time.

    Args:
        file: a path or an open binary file. frame: what `skeleton` gave. tensor: the array of a dataset's path.
    """
    import h5py

    try:
        rows = [(path, int(kind), dict(attributes)) for path, kind, attributes in json.loads(frame)]
    except (ValueError, TypeError, RecursionError) as error:
        raise CompressionError(f"{label} is damaged: its HDF5 skeleton cannot be read ({error}).") from error
    with h5py.File(file, "w") as root:
        for path, is_dataset, attributes in rows:
            # The array is fetched outside the try: its own errors say more.
            array = tensor(path) if is_dataset else None
            try:
                if array is not None:
                    item = root.create_dataset(path, data=array)
                else:
                    item = root.require_group(path) if path else root
                _restore_attributes(item, attributes)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CompressionError(f"{label} is damaged: its HDF5 skeleton names {path!r} wrongly.") from error
