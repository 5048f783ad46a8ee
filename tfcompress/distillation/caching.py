"""Teacher outputs computed once and kept on disk, so that students train at the speed of plain training.

A cache is a folder: `cache.json` says what it was made from, and one memory-mapped .npy an output holds float logits
[copies, cases, members, ..., classes]. With augmentation, images are not stored: block number b of copy c is augmented
with `np.random.default_rng([seed, c, b])` and so comes out the same for teacher and student.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

import keras
import numpy as np
from keras import ops

from tfcompress.distillation.engine import LABELS, TEACHER
from tfcompress.distillation.teachers import Teachers, check_outputs
from tfcompress.errors import CompressionError
from tfcompress.files import replacing

META = "cache.json"


def fingerprint(data) -> str:
    """SHA-256 of the shapes, types and bytes of an array or a structure of arrays.

    Example:
        >>> fingerprint(np.zeros(3)) == fingerprint(np.zeros((3, 1)))
        False
    """
    digest = hashlib.sha256()
    for array in map(np.asarray, keras.tree.flatten(data)):
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        for start in range(0, len(array), 4096):  # in pieces, since the data may be a memory map larger than memory
            digest.update(np.ascontiguousarray(array[start : start + 4096]).tobytes())
    return digest.hexdigest()


def cache(teacher, x, path, *, batch_size: int = 256, augment=None, copies: int = 1, seed: int = 0,
          dtype: str = "float32", from_logits: bool | None = None, verbose: int = 0) -> "Cache":  # fmt: skip
    """Compute a teacher's outputs for all of `x` once and store them; an interrupted run goes on where it stopped.

    Args:
        teacher: a built Keras model, a path, or a list of these. x: inputs, an array or a structure of arrays [cases, ...].
        path: folder of the cache. batch_size: cases a call, and cases in a block of augmentation.
        augment: function (block of inputs, numpy Generator) -> block of inputs of the same shape, or None.
        copies: how many differently augmented copies of the data to store. seed: of the augmentation.
        dtype: "float32" or "float16", of the stored logits. from_logits: as `teacher_from_logits` of `Distillation`.
        verbose: 1 prints how far it is.

    Raises:
        CompressionError: the folder holds a cache of other data, another teacher or another augmentation; the teacher
            gives NaN or numbers that the dtype cannot hold.

    Example:
        >>> import tempfile
        >>> big = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> stored = cache(big, np.ones((10, 4), "float32"), tempfile.mkdtemp())
        >>> stored.targets(np.ones((10, 4), "float32"))["teacher"]["output"].shape
        (10, 1, 3)
    """
    if dtype not in ("float32", "float16"):
        raise CompressionError(f"A cache stores 'float32' or 'float16'; received dtype={dtype!r}.")
    if copies < 1 or batch_size < 1:
        raise CompressionError(f"`copies` and `batch_size` must be at least 1; received {copies} and {batch_size}.")
    if copies > 1 and augment is None:
        raise CompressionError(f"copies={copies} without `augment` would store the same outputs {copies} times.")
    teachers = Teachers(teacher if isinstance(teacher, (list, tuple)) else [teacher], from_logits)
    blocks = Blocks(x, batch_size, augment, copies, seed)
    made_from = {
        "data": fingerprint(x),
        "teacher": fingerprint([keras.ops.convert_to_numpy(v.value) for v in teachers.variables()] or [np.zeros(0)]),
        "augmentation": blocks.identity(),
        "dtype": dtype,
    }
    folder = pathlib.Path(path)
    if (folder / META).exists():
        _refuse_other(folder, json.loads((folder / META).read_text())["made_from"], made_from)
    meta = {"made_from": made_from, "name": teachers.name, "gives_logits": teachers.gives_logits,
            "block": batch_size, "copies": copies, "seed": seed, "done": 0, "outputs": None}  # fmt: skip
    _fill(folder, meta, teachers, blocks, verbose)
    return Cache(folder, augment=augment)


def _fill(folder: pathlib.Path, meta: dict, teachers: Teachers, blocks: "Blocks", verbose: int) -> None:
    """Compute the blocks that are missing; the count of finished ones is written after their numbers."""
    if (folder / META).exists():
        meta.update(json.loads((folder / META).read_text()))
    arrays: dict[str, np.ndarray] = {}
    for number in range(meta["done"], blocks.total):
        copy, block = divmod(number, blocks.count)
        rows = blocks.rows(block)
        members = teachers.members(keras.tree.map_structure(ops.convert_to_tensor, blocks.block(copy, block)))
        stacked = {
            name: np.stack([keras.ops.convert_to_numpy(member[name]) for member in members], axis=1)
            for name in members[0]
        }
        if meta["outputs"] is None:
            meta["outputs"] = {name: list(value.shape[1:]) for name, value in stacked.items()}
        if not arrays:
            arrays = _open(folder, meta, blocks.cases, write=True)
        for name, value in stacked.items():
            with np.errstate(over="ignore"):
                value = value.astype(meta["made_from"]["dtype"])
            check_outputs(value, True, teachers.name, name, rows.start)
            arrays[name][copy, rows] = value
        if (number + 1) % 64 == 0 or number + 1 == blocks.total:
            for array in arrays.values():
                array.flush()  # type: ignore[attr-defined]
            meta["done"] = number + 1
            with replacing(folder / META) as part:
                part.write_text(json.dumps({**meta, "total": blocks.total, "cases": blocks.cases}, indent=1))
            if verbose:
                print(f"cache: {number + 1} of {blocks.total} blocks")


def _open(folder: pathlib.Path, meta: dict, cases: int, write: bool = False) -> dict[str, np.ndarray]:
    """The memory-mapped arrays by output name."""
    found: dict[str, np.ndarray] = {}
    for number, (name, shape) in enumerate(meta["outputs"].items()):
        file = folder / f"output{number}.npy"
        full = (meta["copies"], cases, *shape)
        try:
            if write and not (file.exists() and meta["done"]):
                folder.mkdir(parents=True, exist_ok=True)
                array = np.lib.format.open_memmap(file, "w+", dtype=meta["made_from"]["dtype"], shape=full)
            else:
                array = np.load(file, mmap_mode="r+" if write else "r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise CompressionError(
                f"Cannot open {file} of the teacher's cache: {error}. Delete the folder and make it again."
            ) from error
        if array.shape != full:
            raise CompressionError(
                f"{file} has shape {array.shape}; {META} says {full}. Delete the folder and make it again."
            )
        found[name] = array
    return found


def _refuse_other(folder, stored: dict, wanted: dict) -> None:
    """Raise when a cache was made from something else."""
    different = [key for key in wanted if stored.get(key) != wanted[key]]
    if different:
        what = {"data": "other data", "teacher": "another teacher (or its weights before more training)",
                "augmentation": "another augmentation (function, seed, copies or block size)", "dtype": "another dtype"}  # fmt: skip
        raise CompressionError(
            f"The cache in {folder} was made with {' and '.join(what[key] for key in different)}. Give another folder, or "
            "delete this one."
        )


class Blocks:
    """The inputs in blocks, each copy augmented in its own, repeatable way.

    Args:
        x, batch_size, augment, copies, seed: as in `cache`.
    """

    def __init__(self, x, batch_size: int, augment, copies: int, seed: int):
        arrays = keras.tree.flatten(x)
        if not arrays or any(not hasattr(array, "shape") or len(array) != len(arrays[0]) for array in arrays):
            raise CompressionError(
                f"A cache takes arrays of the same number of cases; received {type(x).__name__}. Turn a data set into arrays "
                "(np.lib.format.open_memmap for large ones), or train with the teacher itself instead of a cache."
            )
        self.x, self.size, self.augment, self.copies, self.seed = x, batch_size, augment, copies, seed
        self.cases = len(arrays[0])
        self.count = -(-self.cases // batch_size)
        self.total = self.count * copies

    def rows(self, block: int) -> slice:
        return slice(block * self.size, min((block + 1) * self.size, self.cases))

    def block(self, copy: int, block: int):
        """The inputs of a block as a student and a teacher see them in a copy."""
        rows = self.rows(block)
        part = keras.tree.map_structure(lambda array: np.asarray(array[rows]), self.x)
        if self.augment is None:
            return part
        return self.augment(part, np.random.default_rng([self.seed, copy, block]))

    def identity(self) -> str:
        """What the augmentation is, by its arguments and by what it does to the first block."""
        if self.augment is None:
            return "none"
        return f"seed {self.seed}, {self.copies} copies, blocks of {self.size}, {fingerprint(self.block(0, 0))}"


@dataclasses.dataclass
class Cache:
    """A finished cache, in place of a teacher.

    Args:
        path: its folder. augment: the function it was made with, where `data` is to be used.

    Raises:
        CompressionError: there is no cache, or it is not finished.
    """

    path: str | os.PathLike
    augment: object = None

    cached = True

    def __post_init__(self):
        self.folder = pathlib.Path(self.path)
        try:
            self.meta = json.loads((self.folder / META).read_text())
            made = self.meta["made_from"], self.meta["done"], self.meta["total"], self.meta["cases"]
        except (OSError, ValueError, KeyError) as error:
            raise CompressionError(
                f"{self.folder} holds no teacher's cache as distillation.cache writes it ({error})."
            ) from error
        if made[1] < made[2]:
            raise CompressionError(
                f"The cache in {self.folder} is not finished: {made[1]} of {made[2]} blocks. Call distillation.cache with the same "
                "arguments again; it goes on where it stopped."
            )
        self.name = self.meta["name"]
        self.gives_logits = self.meta["gives_logits"]
        self.outputs = _open(self.folder, self.meta, self.meta["cases"])

    def targets(self, x, y=None, copy: int = 0) -> dict:
        """What to give to `fit` as y beside the inputs `x`: the labels and the stored outputs.

        Args:
            x: the inputs that the cache was made with, not augmented (for augmentation use `data`). y: labels, if any.
            copy: which of the copies.

        Raises:
            CompressionError: the cache was made with other data, or with augmentation.
        """
        self._check(x)
        if self.meta["made_from"]["augmentation"] != "none":
            raise CompressionError(
                f"The cache in {self.folder} holds outputs for augmented inputs; the student has to see the same ones: "
                "student.fit(cache.data(x, y))."
            )
        return self._pair(y, {name: array[copy] for name, array in self.outputs.items()})

    def data(self, x, y=None, *, batch_size: int = 32, shuffle: bool = True, seed: int = 0) -> "CachedData":
        """Batches of inputs, augmented as for the teacher, with labels and stored outputs; one copy after the other.

        Args:
            x: the inputs that the cache was made with. y: labels, if any.
            batch_size: cases a batch. shuffle: a new order each epoch. seed: of the order.
        """
        self._check(x)
        blocks = Blocks(x, self.meta["block"], self.augment, self.meta["copies"], self.meta["seed"])
        if blocks.identity() != self.meta["made_from"]["augmentation"]:
            raise CompressionError(
                f"The cache in {self.folder} was made with another augmentation; give Cache(path, augment=...) the same function."
            )
        return CachedData(self, blocks, y, batch_size, shuffle, seed)

    def _check(self, x) -> None:
        if fingerprint(x) != self.meta["made_from"]["data"]:
            shapes = [np.shape(array) for array in keras.tree.flatten(x)]
            raise CompressionError(
                f"The cache in {self.folder} was made with other data ({self.meta['cases']} cases) than this (shape "
                f"{', '.join(map(str, shapes))}). The stored outputs belong to those inputs, in that order and scaling."
            )

    @staticmethod
    def _pair(y, teacher: dict) -> dict:
        return {TEACHER: teacher} if y is None else {LABELS: y, TEACHER: teacher}

    def split(self, stored) -> list[dict]:
        """Each member's float32 logits by output name, from a batch of stored outputs."""
        members = next(iter(stored.values())).shape[1]
        return [{name: ops.cast(value[:, k], "float32") for name, value in stored.items()} for k in range(members)]

    def shapes(self) -> dict:
        """The shape of each output by name."""
        return {name: (None, *array.shape[3:]) for name, array in self.outputs.items()}

    def variables(self) -> list:
        """None: a cache needs no network."""
        return []

    def probe(self, x) -> None:
        """The outputs were checked when they were made; the data is compared."""
        self._check(x)


class CachedData(keras.utils.PyDataset):
    """See `Cache.data`; holds one augmented copy of the inputs in memory at a time."""

    def __init__(self, cache: Cache, blocks: Blocks, y, batch_size: int, shuffle: bool, seed: int):
        super().__init__()
        self.cache, self.blocks, self.y = cache, blocks, None if y is None else np.asarray(y)
        self.size, self.shuffle, self.seed, self.epoch = batch_size, shuffle, seed, -1
        self._next_copy()

    def __len__(self):
        return -(-self.blocks.cases // self.size)

    def _next_copy(self):
        """Take the next copy and a new order."""
        self.epoch += 1
        self.copy = self.epoch % self.blocks.copies
        parts = [self.blocks.block(self.copy, number) for number in range(self.blocks.count)]
        self.x = keras.tree.map_structure(lambda *arrays: np.concatenate(arrays), *parts)
        order = np.arange(self.blocks.cases)
        self.order = np.random.default_rng([self.seed, self.epoch]).permutation(order) if self.shuffle else order

    def on_epoch_end(self):
        self._next_copy()

    def __getitem__(self, index):
        rows = np.sort(self.order[index * self.size : (index + 1) * self.size])
        x = keras.tree.map_structure(lambda array: array[rows], self.x)
        teacher = {name: np.asarray(array[self.copy][rows]) for name, array in self.cache.outputs.items()}
        return x, self.cache._pair(None if self.y is None else self.y[rows], teacher)
