"""The command tfcompress search."""

import json

import keras
import numpy as np
import pytest
import typer.testing

from tfcompress import cli

if keras.backend.backend() != "tensorflow":
    pytest.skip("exports need TensorFlow", allow_module_level=True)


def command(*arguments):
    return typer.testing.CliRunner().invoke(cli.app, ["search", *map(str, arguments)], prog_name="tfcompress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    layers = [keras.Input((6,), name="x"), keras.layers.Dense(8, activation="relu", name="a")]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax", name="b")], name="net")
    x = np.random.default_rng(0).normal(size=(48, 6)).astype("float32")
    y = model.predict(x, verbose=0).argmax(-1)
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=x, y=y, x_val=x[:16], y_val=y[:16])
    return folder


def test_layers_alone(folder):
    found = command(
        folder / "model.keras", "--data", folder / "data.npz", "--out", folder / "alone", "--sparsities", "0,1",
        "--bits", "", "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    assert data["samples"] == 16
    assert [row["drop"] for row in data["rows"] if row["value"] == 0 and row["kind"] == "sparsity"] == [0, 0]
    written = json.loads((folder / "alone" / "sensitivity.json").read_text())
    assert written["rows"] == data["rows"]


def test_the_cheapest_within_a_drop_is_exported(folder):
    arguments = (
        folder / "model.keras", "--data", folder / "data.npz", "--out", folder / "out", "--max-drop", 10, "--choices",
        "int8,float", "--metric", "accuracy",
    )  # fmt: skip
    found = command(*arguments, "--json")
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    assert data["best"] == {"a": "int8", "b": "int8"}
    assert data["export"]["verification"]["outputs"][0]["largest_steps"] <= 1
    assert (folder / "out" / "model.tflite").stat().st_size == data["export"]["size"]
    before = (folder / "out" / "front.state.json").stat().st_mtime_ns
    again = command(*arguments)
    assert again.exit_code == 0, again.stderr
    assert "The cheapest within a drop of 10: int8: a int8, b int8" in again.stdout
    assert (folder / "out" / "front.state.json").stat().st_mtime_ns == before  # nothing was measured


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--bits", "8;4"), 2, "--bits takes numbers"),
        (("--max-drop", "-1"), 1, "0 or more"),
        (("--max-drop", "1", "--objective", "byte"), 1, "Did you mean 'bytes'"),
        (("--sparsities", "2"), 1, "0 to 1"),
    ],
)
def test_errors(folder, arguments, code, words):
    found = command(
        folder / "model.keras", "--data", folder / "data.npz", "--out", folder / "wrong", *arguments
    )  # fmt: skip
    assert found.exit_code == code
    assert words in found.stderr
    assert not (folder / "wrong").exists()
