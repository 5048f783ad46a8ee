"""The method that CONTRIBUTING.md shows is real: it is run from there."""

import pathlib
import re

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress.errors import CompressionError
from tfcompress.record import ATTRIBUTE

pytestmark = pytest.mark.jax

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def example():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    names = {"__name__": "contributing_example"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"CONTRIBUTING.md, block {number}", "exec"), names)
    return names


def test_the_example_does_what_it_says(example, capsys):
    plain, small = example["plain"], example["small"]
    kernel = np.asarray(plain.layers[0].kernel)
    step = np.asarray(small.layers[0].kernel._chain.links[0].step)
    codes = kernel / step
    assert np.array_equal(codes, np.round(codes))
    assert set(codes.ravel()) <= set(range(-3, 4))
    assert len(set(codes.ravel())) > 3
    assert tfcompress.step(small) == 2


def test_finalized_equals_attached_and_the_grid_is_handed_over(example):
    plain, small, x = example["plain"], example["small"], example["x"]
    expected = keras.ops.convert_to_numpy(small(x, training=False))
    assert np.array_equal(keras.ops.convert_to_numpy(plain(x, training=False)), expected)
    assert {type(layer) for layer in plain.layers} == {keras.layers.Dense}
    grids = getattr(plain, ATTRIBUTE).weights
    assert list(grids) == [f"{plain.layers[0].name}.kernel"]
    (grid,) = grids.values()
    assert (grid.low, grid.high, grid.unit.shape) == (-3, 3, (1, 1))


def test_it_is_saved_and_loaded(example, tmp_path):
    small, x = example["small"], example["x"]
    small.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert np.array_equal(keras.ops.convert_to_numpy(loaded(x)), keras.ops.convert_to_numpy(small(x)))


def test_it_refuses_bad_arguments(example):
    with pytest.raises(CompressionError, match="2 to 16; received 1"):
        example["Rounding"](bits=1)


def test_what_the_guide_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|models|tools|docs)/[\w./]+\.\w+|[A-Z]+\.md)`", text):
        assert (ROOT / path).exists(), path
