"""Data that users bring: arrays, .npz files, folders of images, functions."""

import keras
import numpy as np
import pytest

from tfcompress import data
from tfcompress.errors import CompressionError


def model(shape=(6,), units=3, loss="sparse_categorical_crossentropy"):
    net = keras.Sequential(
        [keras.Input(shape, name="input"), keras.layers.Flatten(), keras.layers.Dense(units)], name="net"
    )
    net.compile("sgd", loss)
    return net


# Batches


def test_batches_hold_every_sample_once_in_an_order_of_seed_and_epoch():
    batches = data.Batches(data.Arrays(np.arange(10), np.arange(10) * 2), 4, seed=7)
    orders = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        drawn = [batches[i] for i in range(len(batches))]
        assert [len(x) for x, _ in drawn] == [4, 4, 2]
        assert all(np.array_equal(y, 2 * x) for x, y in drawn)
        orders.append(np.concatenate([x for x, _ in drawn]).tolist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == list(range(10))
    rest = data.Batches(batches.samples, 4, seed=7, skip=1)
    assert len(rest) == 2
    assert np.array_equal(rest[0][0], batches[1][0])
    kept = data.Batches(batches.samples, 4, seed=None)
    assert kept[0][0].tolist() == [0, 1, 2, 3]


def test_several_inputs_and_samples_without_labels():
    arrays = data.Arrays({"a": np.arange(3), "b": np.ones((3, 2))})
    x, y = arrays.take([2, 0])
    assert y is None
    assert x["a"].tolist() == [2, 0]
    assert len(data.Batches(arrays, 2)[0]) == 1
    with pytest.raises(CompressionError, match=r"as many for every input; it has \[3, 2\]"):
        data.Arrays([np.zeros(3), np.zeros(2)])
    with pytest.raises(CompressionError, match="at least one sample"):
        data.Arrays(np.zeros((0, 3)))


def test_calibration_samples_are_spread_over_the_data():
    assert data.first(data.Arrays(np.arange(100)), 5).tolist() == [0, 24, 49, 74, 99]
    assert len(data.first(data.Arrays(np.arange(3)), 5)) == 3


# .npz


def test_npz(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((5, 6)), y=np.arange(5), x_val=np.ones((2, 6)), y_val=np.arange(2))
    found = data.load(str(tmp_path / "d.npz"))
    assert (len(found.train), len(found.validation)) == (5, 2)
    assert found.validation.y.tolist() == [0, 1]
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 6)))
    found = data.load(str(tmp_path / "x.npz"))
    assert found.validation is None
    assert found.train.y is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": [1.0], "y_vall": [1]}, "holds 'y_vall', which is none of x, y, x_val, y_val. Did you mean 'y_val'?"),
        ({"y": [1]}, "holds no x"),
        ({"x": [1.0], "y_val": [1]}, "holds y_val and no x_val"),
        ({"x": [1.0, 2.0], "y": [1]}, "holds 2 samples and its labels 1"),
        ({"x": np.array([{}, {}])}, "it holds Python objects"),
    ],
)
def test_npz_that_does_not_serve(tmp_path, arrays, words):
    np.savez(tmp_path / "d.npz", **{key: np.asarray(value) for key, value in arrays.items()})
    with pytest.raises(CompressionError) as error:
        data.load(str(tmp_path / "d.npz"))
    assert words in str(error.value)
    assert "d.npz" in str(error.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\3\4nothing")
    for name, words in (("d.npz", "no readable .npz"), ("e.npz", "There is no file"), ("nowhere", "no file or folder")):
        with pytest.raises(CompressionError, match=words):
            data.load(str(tmp_path / name))


# module:function


def test_function(tmp_path, monkeypatch):
    (tmp_path / "mine_for_tests.py").write_text(
        "import numpy as np\n"
        "def pair(): return np.zeros((4, 6)), np.arange(4)\n"
        "def named(): return {'x': np.zeros((4, 6)), 'x_val': np.ones((2, 6))}\n"
        "def three(): return 1, 2, 3\n"
        "def broken(): return open('nowhere.csv')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert len(data.load("mine_for_tests:pair").train) == 4
    assert len(data.load("mine_for_tests:named").validation) == 2
    for name, words in (
        ("mine_for_tests:pear", r"has no 'pear'\. Did you mean 'pair'"),
        ("mine_for_tests:three", "returned tuple; expected"),
        ("mine_for_tests:broken", "FileNotFoundError.*nowhere.csv"),
        ("not_there:pair", "no module 'not_there'"),
    ):
        with pytest.raises(CompressionError, match=words):
            data.load(name)


# Folders of images


@pytest.fixture
def pictures(tmp_path):
    pytest.importorskip("PIL")
    for number, name in enumerate(("cat", "dog")):
        for i in range(5):
            path = tmp_path / "images" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(path, np.full((4, 5, 3), 100 * number + i), scale=False)
    return tmp_path / "images"


def test_folder_of_images(pictures):
    found = data.load(str(pictures), model((4, 5, 3)), scale=0.5)
    assert (len(found.train), len(found.validation)) == (8, 2)
    x, y = found.train.take(range(8))
    held, marks = found.validation.take(range(2))
    assert x.shape == (8, 4, 5, 3)
    assert x.dtype == "float32"
    seen = [(float(image[0, 0, 0]), int(label)) for image, label in zip([*x, *held], [*y, *marks], strict=True)]
    assert sorted(seen) == [(0.5 * (100 * number + i), number) for number in (0, 1) for i in range(5)]
    gray, _ = data.load(str(pictures), model((8, 8, 1))).train.take([0])
    assert gray.shape == (1, 8, 8, 1)


def test_folder_with_validation_images(pictures):
    pictures.rename(pictures.parent / "train")
    root = pictures.parent / "both"
    root.mkdir()
    (pictures.parent / "train").rename(root / "train")
    (root / "val").mkdir()
    (root / "train" / "dog").rename(root / "val" / "dog")
    with pytest.raises(CompressionError, match=r"train has the classes \['cat'\], val has \['dog'\]"):
        data.load(str(root), model((4, 5, 3)))


def test_folders_that_do_not_serve(tmp_path, pictures):
    (tmp_path / "flat").mkdir()
    with pytest.raises(CompressionError, match="no images in sub-folders"):
        data.load(str(tmp_path / "flat"), model((4, 5, 3)))
    with pytest.raises(CompressionError, match=r"fixed size .*'net' takes \(None, 6\)"):
        data.load(str(pictures), model())
    (pictures / "bird").mkdir()
    with pytest.raises(CompressionError, match="bird holds no image"):
        data.load(str(pictures), model((4, 5, 3)))
    (pictures / "bird" / "1.png").write_text("no picture")
    found = data.load(str(pictures), model((4, 5, 3)))
    with pytest.raises(CompressionError, match=r"Cannot read the image .*1\.png"):
        found.train.take(range(len(found.train))), found.validation.take(range(len(found.validation)))


def test_without_pillow_it_says_what_is_missing(pictures, monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Could not import PIL.Image.")

    monkeypatch.setattr(keras.utils, "load_img", missing)
    with pytest.raises(CompressionError, match="pip install pillow"):
        data.load(str(pictures), model((4, 5, 3))).train.take([0])


# Against the model


@pytest.mark.parametrize(
    ("x", "y", "net", "words"),
    [
        (np.zeros((4, 8, 8)), None, {"shape": (8, 8, 1)}, "takes (8, 8, 1). Add the channel axis: x[..., None]."),
        (np.array([["a"] * 6] * 4), None, {}, "takes numbers"),
        ([np.zeros((4, 6))] * 2, None, {}, "holds 2 arrays; model 'net' has the inputs ['input']"),
        ({"imput": np.zeros((4, 6))}, None, {}, "has an input 'imput'. Did you mean 'input'?"),
        (np.zeros((4, 6)), np.array([0, 1, 2, -1]), {}, "y holds the label -1; model 'net' has 3 classes, 0 to 2"),
        (np.zeros((4, 6)), np.array([0, 1, 2, 0.5]), {}, "y holds fractions"),
        (np.zeros((4, 6)), np.zeros(4), {"loss": "categorical_crossentropy"}, "is sparse_categorical_crossentropy"),
        (np.zeros((4, 6)), np.zeros((4, 2)), {"loss": "mse"}, "y has labels of shape (2,)"),
    ],
)
def test_what_does_not_fit_the_model_is_named(x, y, net, words):
    with pytest.raises(CompressionError) as error:
        data.check(model(**net), data.Arrays(x, y))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("y", "net"),
    [
        (np.array([0, 1, 2, 2]), {}),
        (np.array([[0], [1], [2], [2]]), {}),
        (np.zeros((4, 3)), {"loss": "mse"}),
        (np.zeros(4), {"loss": "mse", "units": 1}),
        (np.zeros((4, 7)), {"loss": lambda a, b: keras.ops.sum(b)}),
    ],
)
def test_what_fits_the_model_passes(y, net):
    data.check(model(**net), data.Arrays(np.zeros((4, 6)), y))
