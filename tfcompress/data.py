"""Samples that training, calibration and verification read: arrays or images, checked against the model they are for."""

import dataclasses
import importlib
import math
import pathlib
import sys
import zipfile
from typing import Any

import keras
import numpy as np

from tfcompress.errors import CompressionError, MissingExtra, nearest

KEYS = ("x", "y", "x_val", "y_val")
IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
VALIDATION_SHARE = 0.2


class Arrays:
    """Samples in memory.

    Args:
        x: an array, or a list or dictionary of arrays for several inputs, samples first. y: labels likewise, or None.
        what: their name in messages.

    Raises:
        CompressionError: there are no samples, or arrays of different lengths.

    Example:
        >>> Arrays(np.arange(4), np.arange(4) % 2).take([1, 3])
        (array([1, 3]), array([1, 1]))
    """

    def __init__(self, x, y=None, what: str = "x"):
        self.x, self.y = keras.tree.map_structure(np.asarray, x), keras.tree.map_structure(np.asarray, y)
        if y is None:
            self.y = None
        counts = [len(a) if a.ndim else 0 for a in keras.tree.flatten(self.x)]
        if len(set(counts)) != 1 or not counts[0]:
            raise CompressionError(f"{what} needs at least one sample, and as many for every input; it has {counts}.")
        labels = [] if y is None else [len(a) if a.ndim else 0 for a in keras.tree.flatten(self.y)]
        if any(count != counts[0] for count in labels):
            raise CompressionError(f"{what} holds {counts[0]} samples and its labels {labels[0]}; they go in pairs.")

    def __len__(self) -> int:
        return len(keras.tree.flatten(self.x)[0])

    def take(self, indices):
        """(x, y) of the samples at these indices; y is None without labels."""
        pick = np.asarray(indices, int)
        y = None if self.y is None else keras.tree.map_structure(lambda a: a[pick], self.y)
        return keras.tree.map_structure(lambda a: a[pick], self.x), y


class Images:
    """Samples that are image files, read when they are needed, with the number of their class as label.

    Args:
        files: the images. labels: their classes' numbers. size: (height, width) to resize to. channels: 1, 3 or 4.
        scale: factor for the pixels, which are 0..255 in the files.
    """

    def __init__(
        self, files: list[pathlib.Path], labels: list[int], size: tuple[int, int], channels: int, scale: float
    ):
        self.files, self.y, self.size, self.scale = files, np.asarray(labels, "int32"), size, scale
        self.mode = {1: "grayscale", 3: "rgb", 4: "rgba"}[channels]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, indices):
        """(x, y) of the samples at these indices."""
        return np.stack([self._read(self.files[i]) for i in indices]), self.y[np.asarray(indices, int)]

    def _read(self, file: pathlib.Path) -> np.ndarray:
        try:
            image = keras.utils.load_img(file, color_mode=self.mode, target_size=self.size)
        except ImportError as error:
            raise MissingExtra("Reading images needs the package pillow: pip install pillow.") from error
        except OSError as error:
            raise CompressionError(f"Cannot read the image {file}: {error}.") from error
        return keras.utils.img_to_array(image, data_format="channels_last", dtype="float32") * np.float32(self.scale)


class Batches(keras.utils.PyDataset):
    """Batches of samples in an order that only the seed and the epoch decide, so that training can go on in mid-epoch.

    Args:
        samples: `Arrays` or `Images`. batch_size: samples a batch. seed: of the order, None to keep it as it is.
        skip: batches to leave out at the beginning.

    Example:
        >>> batches = Batches(Arrays(np.arange(5), np.arange(5)), 2, seed=None)
        >>> len(batches), batches[2][0]
        (3, array([4]))
    """

    def __init__(self, samples, batch_size: int, seed: int | None = 0, skip: int = 0):
        super().__init__()
        self.samples, self.batch_size, self.seed, self.skip = samples, batch_size, seed, skip
        self.epoch = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.samples) / self.batch_size) - self.skip

    def __getitem__(self, index: int):
        start = (index + self.skip) * self.batch_size
        x, y = self.samples.take(self._indices()[start : start + self.batch_size])
        return (x,) if y is None else (x, y)

    def _indices(self) -> np.ndarray:
        if self._order is None or self._order[0] != self.epoch:
            count = len(self.samples)
            drawn = np.arange(count) if self.seed is None else _shuffled(count, self.seed, self.epoch)
            self._order = (self.epoch, drawn)
        return self._order[1]


def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([abs(int(seed)), epoch]).permutation(count)


@dataclasses.dataclass
class Data:
    """What a user brought.

    Args:
        train: samples to train and calibrate with: `Arrays`, `Images`, or any dataset that `fit` takes.
        validation: samples to measure on, or None. source: where they came from, in words.
    """

    train: Any
    validation: Any
    source: str


def load(spec: str, model=None, scale: float = 1.0, seed: int = 0) -> Data:
    """Read data from an .npz file, a folder of images, or a function.

    Args:
        spec: an .npz with x, y, x_val, y_val; a folder with one sub-folder of images a class (or with `train` and `val`
            that each have them); or "module:function", which returns (x, y), (x, y, x_val, y_val) or a dictionary of these.
        model: the model that they are for; images are resized to its input. scale: factor for pixels of image files.
        seed: of the fifth of the images that is kept for validation, where the folder has no `val`.

    Raises:
        CompressionError: there is no such thing, or it holds something else; the message names it.
    """
    path = pathlib.Path(spec)
    if path.is_dir():
        return _folder(path, model, scale, seed)
    if path.suffix == ".npz" or path.is_file():
        return _npz(path)
    if ":" in spec:
        return _function(spec)
    raise CompressionError(
        f"There is no file or folder {spec!r}. Data is an .npz, a folder with a sub-folder of images a class, or module:function."
    )


def _npz(path: pathlib.Path) -> Data:
    try:
        # NumPy leaves a file open that turns out to be none of its own.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        if not path.exists():
            raise CompressionError(f"There is no file {path}.") from error
        reason = "it holds Python objects, which are not read" if "pickle" in str(error) else "it is no readable .npz"
        raise CompressionError(
            f"Cannot read {path}: {reason}. Write it with numpy.savez(path, x=..., y=...)."
        ) from error
    return _from_keys(arrays, str(path))


def _from_keys(arrays: dict, source: str) -> Data:
    for key in arrays:
        if key not in KEYS:
            raise CompressionError(f"{source} holds {key!r}, which is none of {', '.join(KEYS)}. {nearest(key, KEYS)}")
    if arrays.get("x") is None:
        raise CompressionError(f"{source} holds no x. Its arrays are x, y and, to measure on, x_val, y_val.")
    if arrays.get("x_val") is None and arrays.get("y_val") is not None:
        raise CompressionError(f"{source} holds y_val and no x_val.")
    train = samples(arrays["x"], arrays.get("y"), f"x of {source}")
    has_validation = arrays.get("x_val") is not None
    validation = samples(arrays["x_val"], arrays.get("y_val"), f"x_val of {source}") if has_validation else None
    return Data(train, validation, source)


def _function(spec: str) -> Data:
    module, _, name = spec.partition(":")
    # A console script has its own folder in sys.path, and not the one that it is called in.
    if "" not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
        sys.path.insert(0, str(pathlib.Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise CompressionError(f"--data {spec}: there is no module {error.name!r}.") from error
    except AttributeError as error:
        known = [key for key in vars(sys.modules[module]) if not key.startswith("_")] if module in sys.modules else []
        raise CompressionError(f"--data {spec}: {module} has no {name!r}. {nearest(name, known)}") from error
    try:
        given = function()
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CompressionError(f"{spec} failed: {type(error).__name__}: {reason}") from error
    if isinstance(given, Data):
        return given
    if isinstance(given, dict):
        return _from_keys(given, spec)
    if isinstance(given, (tuple, list)) and len(given) in (2, 4):
        return _from_keys(dict(zip(KEYS, given, strict=False)), spec)
    raise CompressionError(
        f"{spec} returned {type(given).__name__}; expected (x, y), (x, y, x_val, y_val), or a dictionary of these."
    )


def _folder(path: pathlib.Path, model, scale: float, seed: int) -> Data:
    if model is None:
        raise CompressionError(f"{path} is a folder of images: the model is needed, which says their size.")
    shape = tuple(model.inputs[0].shape) if getattr(model, "inputs", None) and len(model.inputs) == 1 else ()
    if len(shape) != 4 or None in shape[1:] or shape[3] not in (1, 3, 4):
        raise CompressionError(
            f"{path} is a folder of images, which need a model with one input of a fixed size (height, width, 1, 3 or 4 "
            f"channels); {model.name!r} takes {shape or 'several inputs'}. Give a .npz or module:function."
        )
    size, channels = (shape[1], shape[2]), shape[3]
    parts = {child.name for child in path.iterdir() if child.is_dir()}
    if {"train", "val"} <= parts:
        names, files, labels = _classes(path / "train")
        others, held, marks = _classes(path / "val")
        if others != names:
            raise CompressionError(f"{path}: train has the classes {names}, val has {others}.")
    else:
        names, files, labels = _classes(path)
        order = np.random.default_rng(seed).permutation(len(files))
        cut = round(len(files) * VALIDATION_SHARE)
        held, marks = [files[i] for i in order[:cut]], [labels[i] for i in order[:cut]]
        files, labels = [files[i] for i in order[cut:]], [labels[i] for i in order[cut:]]
    validation = Images(held, marks, size, channels, scale) if held else None
    return Data(Images(files, labels, size, channels, scale), validation, f"{path} ({len(names)} classes)")


def _classes(path: pathlib.Path) -> tuple[list[str], list[pathlib.Path], list[int]]:
    """The classes of a folder in alphabetical order, its images, and the number of each one's class."""
    names = sorted(child.name for child in path.iterdir() if child.is_dir())
    found = [
        (file, number)
        for number, name in enumerate(names)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in IMAGES
    ]
    if not found:
        raise CompressionError(
            f"{path} has no images in sub-folders ({', '.join(IMAGES)}). It needs one sub-folder a class: {path}/cat/1.jpg."
        )
    empty = [name for number, name in enumerate(names) if all(label != number for _, label in found)]
    if empty:
        raise CompressionError(f"{path}/{empty[0]} holds no image ({', '.join(IMAGES)}).")
    return names, [file for file, _ in found], [label for _, label in found]


def is_samples(x) -> bool:
    """Whether samples can be picked by their numbers."""
    return isinstance(x, (Arrays, Images))


def samples(x, y=None, what: str = "x"):
    """`Arrays` from arrays; `Arrays`, `Images` and datasets (batches of x and y) as they are.

    Example:
        >>> len(samples([[1.0, 2.0], [3.0, 4.0]]))
        2
    """
    if x is None or is_samples(x):
        return x
    parts = keras.tree.flatten(x)
    if isinstance(x, keras.utils.PyDataset) or not all(isinstance(p, (int, float)) or _is_array(p) for p in parts):
        return x
    # A list of numbers or rows is one array; a list of arrays is one array an input.
    if isinstance(x, (list, tuple)) and not all(_is_array(p) for p in x):
        x = np.asarray(x)
    return Arrays(x, y, what)


def _is_array(value) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def first(data, count: int):
    """The inputs of the first samples (spread over all of them, where they can be picked), for calibration.

    Returns:
        Arrays as the model takes them, or the dataset itself, which its readers take batch by batch.
    """
    if not is_samples(data):
        return data
    # Evenly spread: files and many arrays are sorted by class.
    picked = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return data.take(picked)[0]


def check(model, data, what: str = "x") -> None:
    """Compare samples with a model's inputs and outputs before anything expensive runs.

    Args:
        model: a built model. data: `Arrays` or `Images`; other datasets are left to Keras. what: the name in messages.

    Raises:
        CompressionError: a shape, a number of inputs or a label does not fit, or values are NaN; the message names it.
    """
    if not is_samples(data) or not getattr(model, "inputs", None):
        return
    x, y = (data.x, data.y) if isinstance(data, Arrays) else data.take([0])
    names = [tensor.name.split(":")[0] for tensor in model.inputs]
    if isinstance(x, dict):
        structure = getattr(model, "input", None)
        expected = structure if isinstance(structure, dict) else dict(zip(names, model.inputs, strict=True))
        unknown = [key for key in x if key not in expected]
        if unknown:
            raise CompressionError(f"{what} has an input {unknown[0]!r}. {nearest(unknown[0], expected)}")
        if missing := [key for key in expected if key not in x]:
            raise CompressionError(f"{what} lacks the model's input {missing[0]!r}.")
        pairs = [(key, x[key], expected[key]) for key in expected]
    else:
        arrays = keras.tree.flatten(x)
        if len(arrays) != len(names):
            raise CompressionError(f"{what} holds {len(arrays)} arrays; model {model.name!r} has the inputs {names}.")
        pairs = list(zip(names, arrays, model.inputs, strict=True))
    for name, array, tensor in pairs:
        _check_input(model, name, array, tuple(tensor.shape), what)
    if y is not None and len(model.outputs) == 1 and not isinstance(y, (dict, list, tuple)):
        labels = data.y if isinstance(data, Images) else y
        _check_labels(model, labels, tuple(model.outputs[0].shape), what)


def _check_input(model, name: str, array: np.ndarray, shape: tuple, what: str) -> None:
    if array.dtype.kind not in "fiub":
        raise CompressionError(f"{what} has dtype {array.dtype}; input {name!r} takes numbers.")
    if len(array.shape) != len(shape) or any(
        w not in (None, g) for w, g in zip(shape[1:], array.shape[1:], strict=True)
    ):
        hint = " Add the channel axis: x[..., None]." if (*array.shape[1:], 1) == shape[1:] else ""
        raise CompressionError(
            f"{what} has samples of shape {array.shape[1:]}; input {name!r} of model {model.name!r} takes {shape[1:]}.{hint}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CompressionError(f"{what} for input {name!r} holds NaN or infinite values.")


def _check_labels(model, y: np.ndarray, shape: tuple, what: str) -> None:
    """Refuse labels that a loss of Keras could only fail on; a loss of the user's own may take anything."""
    loss = getattr(model, "loss", None)
    if loss is None or not (isinstance(loss, str) or type(loss).__module__.startswith("keras.")):
        return
    what = what.replace("x", "y", 1) if what.startswith("x") else f"the labels of {what}"
    size = shape[-1]
    sparse = "sparse" in (loss if isinstance(loss, str) else type(loss).__name__).lower()
    if sparse:
        if y.dtype.kind == "f" and not np.array_equal(y, np.round(y)):
            raise CompressionError(
                f"{what} holds fractions; a loss {loss_name(loss)} takes whole numbers, one a class."
            )
        low, high = int(y.min()), int(y.max())
        if size is not None and (low < 0 or high >= size):
            raise CompressionError(
                f"{what} holds the label {low if low < 0 else high}; model {model.name!r} has {size} classes, 0 to {size - 1}."
            )
        fitting = [shape[1:-1], (*shape[1:-1], 1)]
    else:
        fitting = [shape[1:], *([shape[1:-1]] if size == 1 else [])]
    if not any(
        len(y.shape[1:]) == len(f) and all(w in (None, g) for w, g in zip(f, y.shape[1:], strict=True)) for f in fitting
    ):
        other = " A loss with class numbers is sparse_categorical_crossentropy." if not sparse and y.ndim == 1 else ""
        raise CompressionError(
            f"{what} has labels of shape {y.shape[1:]}; model {model.name!r} with the loss {loss_name(loss)} takes "
            f"{fitting[0]}.{other}"
        )


def loss_name(loss) -> str:
    """A loss in words."""
    return loss if isinstance(loss, str) else getattr(loss, "name", None) or type(loss).__name__
