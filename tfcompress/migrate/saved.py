"""Reading a model that tf_keras saved as .h5, without tf_keras: its config, and its weights by layer."""

import dataclasses
import json
import pathlib
import tempfile

import numpy as np

from tfcompress.errors import CompressionError

_IDENTIFIER = b"\x89HDF\r\n\x1a\n"


@dataclasses.dataclass
class Saved:
    """What a file holds.

    Args:
        config: the model's config, {"class_name", "config"}. weights: {layer of the outermost model: [(name without its
            ":0", array)]} in the order of the file.
    """

    config: dict
    weights: dict[str, list[tuple[str, np.ndarray]]]


def read(source) -> Saved:
    """A saved model from a path, or from a tf_keras model in memory, which is asked to save itself.

    Raises:
        CompressionError: the file is none, of another format, or without a config.
    """
    if isinstance(source, str | pathlib.Path):
        return _read_file(pathlib.Path(source))
    if not (hasattr(source, "save") and hasattr(source, "layers")):
        raise CompressionError(
            f"from_tfmot takes a tf_keras model or the path of an .h5 file that it was saved to, not {type(source).__name__}."
        )
    if type(source).__module__.split(".")[0] == "keras" and not _is_legacy(source):
        raise CompressionError(
            f"Model {source.name!r} is a Keras 3 model already, and TFMOT wraps tf_keras models only. Compress it with tfcompress.apply."
        )
    with tempfile.TemporaryDirectory(prefix="tfcompress-") as folder:
        path = pathlib.Path(folder, "model.h5")
        try:
            source.save(path, include_optimizer=False)
        except (ValueError, NotImplementedError, TypeError) as error:
            raise CompressionError(f"tf_keras cannot save model {source.name!r} as .h5: {error}") from error
        return _read_file(path)


def _is_legacy(model) -> bool:
    import keras

    return not isinstance(model, keras.Model)


def _read_file(path: pathlib.Path) -> Saved:
    import h5py

    if not path.is_file():
        hint = " It is a folder: load the SavedModel with tf_keras and pass the model itself." if path.is_dir() else ""
        raise CompressionError(f"There is no file {path}.{hint}")
    with open(path, "rb") as file:
        if file.read(len(_IDENTIFIER)) != _IDENTIFIER:
            raise CompressionError(
                f"{path} is no HDF5 file. Save the wrapped model as .h5 (model.save('model.h5', include_optimizer=False)), or pass "
                "the model itself."
            )
    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        if text is None or "model_weights" not in file:
            raise CompressionError(
                f"{path} holds weights without a model. Save the whole model (model.save('model.h5')), or pass the model itself."
            )
        config = json.loads(text.decode() if isinstance(text, bytes) else text)
        group = file["model_weights"]
        return Saved(config, {name: _weights(group[name]) for name in _names(group, "layer_names")})


def _weights(group) -> list[tuple[str, np.ndarray]]:
    return [(name.rsplit(":", 1)[0], np.asarray(group[name])) for name in _names(group, "weight_names")]


def _names(group, attribute: str) -> list[str]:
    """A list of names in the attributes, where long ones are cut into pieces "names0", "names1", ..."""
    found = list(group.attrs.get(attribute, []))
    number = 0
    while f"{attribute}{number}" in group.attrs:
        found += list(group.attrs[f"{attribute}{number}"])
        number += 1
    return [name.decode() if isinstance(name, bytes) else str(name) for name in found]
