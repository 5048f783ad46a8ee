"""Finished measurements on disk: each is written at once, and none is made twice."""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from tfcompress import __version__
from tfcompress.errors import CompressionError
from tfcompress.files import replacing

VERSION = 1


class Ledger:
    """Measurements by name, kept in a file that is replaced after each of them.

    Args:
        path: the file, or None to keep them in memory. of: {part: fingerprint} of what they are measurements of; a file
            of other parts is refused. verbose: 0 shows no progress.

    Raises:
        CompressionError: the file is damaged, or holds measurements of something else.

    Example:
        >>> ledger = Ledger()
        >>> ledger.get("a", lambda: 1), ledger.get("a", lambda: 2)
        (1, 1)
    """

    def __init__(self, path=None, of: dict[str, str] | None = None, verbose: int = 0):
        self.path = None if path is None else pathlib.Path(path)
        self.of, self.verbose = {"version": __version__, **(of or {})}, verbose
        self.done: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self.done = self._read(self.path)

    def _read(self, path: pathlib.Path) -> dict[str, Any]:
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            if note["tfcompress_search"] != VERSION:
                raise KeyError("tfcompress_search")
            known, done = dict(note["of"]), dict(note["done"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CompressionError(
                f"{path} holds no measurements that can be gone on with ({error!r}). Delete it to begin anew."
            ) from error
        other = sorted(part for part in {*known, *self.of} if known.get(part) != self.of.get(part))
        if other:
            raise CompressionError(
                f"{path} holds measurements of another {' and another '.join(other)}. Give another `out`, or delete it."
            )
        return done

    def __contains__(self, name: str) -> bool:
        return name in self.done

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """A measurement, made by `measure` (which returns plain values) only if it is not there yet."""
        if name not in self.done:
            value = measure()
            self.done[name] = value
            self._write()
        return self.done[name]

    def all(self, title: str, work: Iterable[tuple[str, Callable[[], Any]]]) -> dict[str, Any]:
        """Several measurements in order, with a bar of progress.

        Args:
            title: shown at the bar. work: (name, measure) as for `get`.
        """
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        work = list(work)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = Progress(*columns, console=Console(file=sys.stderr), disable=not self.verbose)
        found = {}
        with shown:
            task = shown.add_task(title, total=len(work))
            for name, measure in work:
                found[name] = self.get(name, measure)
                shown.advance(task)
        return found

    def _write(self) -> None:
        if self.path is not None:
            with replacing(self.path) as part:
                part.write_text(
                    json.dumps({"tfcompress_search": VERSION, "of": self.of, "done": self.done}, indent=1),
                    encoding="utf-8",
                )


def beside(out) -> pathlib.Path | None:
    """The file of the measurements for a result that will lie at `out`.

    Example:
        >>> str(beside("runs/front.json"))
        'runs/front.state.json'
    """
    return None if out is None else pathlib.Path(out).with_suffix(".state.json")


def fingerprint(arrays) -> str:
    """A short text that tells nests of arrays apart by their shapes, types and values.

    Example:
        >>> fingerprint([np.zeros(2)]) == fingerprint([np.zeros(2)]), fingerprint([np.zeros(2)]) == fingerprint([np.zeros(3)])
        (True, False)
    """
    total = hashlib.sha256()
    for array in keras.tree.flatten(arrays):
        if array is not None:
            array = np.asarray(array)
            total.update(f"{array.shape} {array.dtype};".encode())
            total.update(np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array).encode())
    return total.hexdigest()[:24]


def of_model(model) -> str:
    """A short text that tells models apart by their layers' names and their weights."""
    names = [f"{type(layer).__name__} {layer.name}" for layer in model.layers]
    weights = [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]
    return hashlib.sha256(f"{type(model).__name__} {names} {fingerprint(weights)}".encode()).hexdigest()[:24]
