"""Opening model files, and saying in a sentence why one is none."""

import json
import pathlib
import zipfile

from tfcompress.commands import UsageError
from tfcompress.errors import CompressionError

_OTHERS = {
    ".h5": "an HDF5 file as tf_keras and Keras 2 write them. Load it in Python, rebuild the model with Keras 3, and save it as .keras",
    ".hdf5": "an HDF5 file. Load it in Python with what wrote it, and save the model with Keras 3 as .keras",
    ".tflite": "a TFLite file, whose weights are final. Give the Keras model that it was made from",
    ".tfcz": "a packed file. Unpack it first: tfcompress unpack",
    ".pb": "a SavedModel, which holds a graph and no Keras layers. Give the .keras file that it was made from",
    ".pt": "a PyTorch file. Models are Keras 3 here",
    ".onnx": "an ONNX file. Models are Keras 3 here",
}


def suffix_check(path: pathlib.Path) -> None:
    """Refuse what is no .keras file by its name and first bytes.

    Raises:
        UsageError: there is no such file. CompressionError: it is something else; the message says what to do.
    """
    if path.is_dir():
        raise CompressionError(f"{path} is a folder. Give a model that Keras 3 saved as one .keras file.")
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    if path.suffix in _OTHERS:
        raise CompressionError(f"{path} is {_OTHERS[path.suffix]}.")
    if path.name.endswith(".weights.h5") or path.suffix != ".keras":
        raise CompressionError(f"{path} is no .keras file, as keras.Model.save('model.keras') writes it.")
    try:
        with zipfile.ZipFile(path) as file:
            metadata = json.loads(file.read("metadata.json"))
            names = file.namelist()
        version = str(metadata["keras_version"])
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, TypeError) as error:
        raise CompressionError(f"{path} is damaged, or no .keras file: {error}.") from error
    if not {"config.json", "model.weights.h5"} <= set(names):
        raise CompressionError(f"{path} is damaged: it lacks the model's configuration or weights.")
    if version.split(".")[0] in ("0", "1", "2"):
        raise CompressionError(
            f"{path} was saved by Keras {version} (tf_keras). Rebuild the model with Keras 3, set its weights, and save it anew."
        )


def load(path: pathlib.Path, compiled: bool = True):
    """A built model from a .keras file, with the ranges that lie beside it.

    Args:
        path: the file. compiled: with its compile settings.

    Raises:
        CompressionError: it is no model of Keras 3, is damaged, needs classes that are not there, or has no weights yet.
    """
    suffix_check(path)
    import keras

    from tfcompress.method import require_built
    from tfcompress.record import ATTRIBUTE, load_record

    try:
        model = keras.saving.load_model(path, compile=compiled)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        unknown = "could not locate" in str(error).lower() or "unknown" in str(error).lower()
        hint = " Name the module that registers its classes with --import MODULE." if unknown else ""
        raise CompressionError(f"{path} cannot be loaded: {lines[0]}{hint}") from error
    if not isinstance(model, keras.Model):
        raise CompressionError(f"{path} holds a {type(model).__name__}, and no model.")
    require_built(model, f"{path}")
    record = load_record(path)
    if record:
        model.__dict__[ATTRIBUTE] = record
    return model


def import_modules(names: list[str]) -> None:
    """Import the user's modules, from the folder that the command is called in too.

    Raises:
        UsageError: there is no such module.
    """
    import importlib
    import sys

    if names and str(pathlib.Path.cwd()) not in sys.path:
        sys.path.insert(0, str(pathlib.Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UsageError(f"--import {name}: there is no module {error.name!r}.") from error
