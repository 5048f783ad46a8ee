"""The state of a recipe's run on disk: a model and a note of how far it is, replaced together."""

import json
import pathlib
import zlib
from typing import Any

import keras
import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.files import replacing

VERSION = 1


class State:
    """A folder with one note, `state.json`, and the models that it names.

    A new model is written beside the old one, then the note is replaced, then the old model is removed; whatever
    interrupts this leaves a note whose models are complete.

    Args:
        folder: where it lies; made when the first state is saved.
    """

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self._number = 0

    @property
    def note(self) -> pathlib.Path:
        """The note's path."""
        return self.folder / "state.json"

    def save(self, model, note: dict[str, Any], kept: str | None = None) -> str:
        """Write a model and how far it is.

        Args:
            model: as it is now. note: plain values. kept: name of an earlier model of this folder that is still needed.

        Returns:
            The name of the model's file.

        Raises:
            CompressionError: it cannot be written (the old state is intact then).
        """
        taken = {path.name for path in self.folder.glob("*.keras")} if self.folder.exists() else set()
        name = next(n for i in range(len(taken) + 1) if (n := f"model-{i}.keras") not in taken)
        save_model(model, self.folder / name)
        more = {"file": name, "kept": kept, "seeds": [_array(v).tolist() for v in _seeds(model)]}
        with replacing(self.note) as part:
            part.write_text(json.dumps({"tfcompress_state": VERSION, **note, **more}, indent=1))
        for path in self.folder.glob("model-*.keras"):
            if path.name not in (name, kept):
                path.unlink()
        return name

    def read(self) -> dict[str, Any] | None:
        """The note, or None where there is none.

        Raises:
            CompressionError: it is damaged, or its model is gone.
        """
        if not self.note.exists():
            return None
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if note["tfcompress_state"] != VERSION or not (self.folder / note["file"]).is_file():
                raise KeyError(note.get("file"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompressionError(
                f"{self.note} is no state that can be resumed ({error!r}). Delete {self.folder} to begin anew."
            ) from error
        return note

    def load(self, name: str, note: dict[str, Any] | None = None):
        """A model of this state, as it was, with its optimizer; with the state of its random numbers from the note."""
        try:
            model = keras.saving.load_model(self.folder / name)
            for variable, value in zip(_seeds(model), note["seeds"] if note else [], strict=note is not None):
                variable.assign(np.asarray(value, variable.dtype))
            return model
        except Exception as error:
            raise CompressionError(
                f"{self.folder / name} cannot be loaded: {str(error).strip().splitlines()[0]} Import the module that registers "
                "its classes first."
            ) from error


def save_model(model, path) -> None:
    """Save a Keras model so that an interrupted write leaves the old file intact.

    Raises:
        CompressionError: the disk is full, the folder cannot be written, or Keras cannot save the model.
    """
    with replacing(path) as part:
        try:
            model.save(part)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise CompressionError(
                f"Keras cannot save model {model.name!r}: {str(error).strip().splitlines()[0]} Give its classes get_config."
            ) from error
        except RuntimeError as error:
            # h5py reports a failed write so.
            raise OSError(None, str(error).strip().splitlines()[0]) from error


def checksum(model) -> int:
    """A number that tells models of other weights apart."""
    value = 0
    for variable in model.weights:
        array = _array(variable)
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), zlib.crc32(str(array.shape).encode(), value))
    return value


def _seeds(model) -> list:
    """The states of a model's random numbers (of dropout, noise), which Keras does not save."""
    return [variable for variable in model.variables if "seed_generator" in variable.path]


def _array(variable) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable.value)
