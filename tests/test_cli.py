"""The command tfcompress: its help, its files, its exit codes, and what goes to which stream."""

import json
import os
import pathlib
import subprocess
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import typer.testing

from tfcompress import cli
from tfcompress.recipes import file

COMMANDS = ["compress", "export", "verify", "inspect", "pack", "unpack", "search", "methods", "recipes"]
QUICK = """
steps:
  - method: magnitude
    arguments: {sparsity: {linear: {initial: 0.0, final: 0.5, steps: auto}}}
    epochs: 3
"""


def command(*arguments):
    return typer.testing.CliRunner().invoke(cli.app, list(map(str, arguments)), prog_name="tfcompress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.keras, plain.keras (not compiled), data.npz, quick.yaml and functions.py."""
    folder = tmp_path_factory.mktemp("cli")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 3))).argmax(-1)
    np.savez(folder / "data.npz", x=x, y=y, x_val=x[:32], y_val=y[:32])
    layers = [keras.Input((6,), name="input"), keras.layers.Dense(16, activation="relu", name="a")]
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax", name="b")], name="net")
    model.save(folder / "plain.keras")
    model.compile(
        keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True
    )
    model.fit(x, y, epochs=4, verbose=0)
    model.save(folder / "model.keras")
    (folder / "quick.yaml").write_text(QUICK)
    (folder / "functions.py").write_text(
        "import os, signal\n"
        "import numpy as np\n"
        "from tfcompress import data\n"
        "class Interrupting(data.Arrays):\n"
        "    left = 12\n"
        "    def take(self, indices):\n"
        "        Interrupting.left -= 1\n"
        "        if Interrupting.left == 0: os.kill(os.getpid(), signal.SIGINT)\n"
        "        return super().take(indices)\n"
        f"FILE = np.load({str(folder / 'data.npz')!r})\n"
        "def interrupting():\n"
        "    return data.Data(Interrupting(FILE['x'], FILE['y']), data.Arrays(FILE['x_val'], FILE['y_val']), 'a test')\n"
        "def calm():\n"
        "    return FILE['x'], FILE['y'], FILE['x_val'], FILE['y_val']\n"
    )
    return folder


# Help


def test_help_loads_neither_keras_nor_tensorflow():
    code = (
        "import sys; sys.argv = ['tfcompress', '--help']\n"
        "import tfcompress.cli\n"
        "try: tfcompress.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = ('keras', 'tensorflow', 'jax', 'torch', 'numpy', 'scipy', 'yaml', 'ai_edge_litert', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tfcompress compress model.keras --recipe" in found.stdout
    assert "Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted." in found.stdout
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_shows_an_example(name):
    found = command(name, "--help")
    assert found.exit_code == 0
    assert f"Example: tfcompress {name} " in found.stdout
    assert "--json" in found.stdout


def test_every_command_is_known_here():
    assert sorted(one.name or one.callback.__name__ for one in cli.app.registered_commands) == sorted(COMMANDS)


def test_usage_errors_have_code_2():
    assert command("frobnicate").exit_code == 2
    assert command("compress").exit_code == 2
    assert command("compress", "model.keras", "--recipe", "int8", "--out", "x", "--epochs", "0").exit_code == 2


# The whole path


@pytest.fixture(scope="module")
def compressed(folder):
    """The folder that the recipe qat wrote, and what it printed."""
    out = folder / "out"
    found = command(
        "compress", folder / "model.keras", "--recipe", "qat", "--data", folder / "data.npz", "--epochs", 1, "--out", out,
        "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.stderr
    return out, found


def test_compress_writes_all_files_and_prints_one_json_object(compressed):
    out, found = compressed
    data = json.loads(found.stdout)
    assert "Step 1 of 1 (quantization.QAT), 1 epochs" in found.stderr
    assert [step["name"] for step in data["steps"]] == ["quantization.QAT"]
    names = [
        "model.keras",
        "model.ranges.json",
        "model.tflite",
        "float32.tflite",
        "model.tfcz",
        "report.json",
        "report.html",
    ]
    assert sorted(pathlib.Path(path).name for path in data["files"].values()) == sorted(names)
    assert all((out / name).stat().st_size for name in names)
    saved = json.loads((out / "report.json").read_text())
    assert saved == data["report"]
    base, small = saved["rows"]
    assert (base["name"], small["name"]) == ("float32", "qat")
    assert small["file_bytes"] == (out / "model.tflite").stat().st_size
    assert small["packed_bytes"] == (out / "model.tfcz").stat().st_size
    assert base["file_bytes"] == (out / "float32.tflite").stat().st_size
    assert small["verification"]["passed"]
    assert data["export"]["ranges"]["trained"] > 0


def test_the_accuracy_in_the_report_is_that_of_the_file(compressed, folder):
    from tfcompress import export

    out, _ = compressed
    file = np.load(folder / "data.npz")
    answers = export.Runner(out / "model.tflite")(file["x_val"])
    right = float(np.mean(answers.argmax(-1) == file["y_val"]))
    assert json.loads((out / "report.json").read_text())["rows"][1]["accuracy"] == right


def test_the_saved_model_is_plain_keras(compressed):
    out, _ = compressed
    with zipfile.ZipFile(out / "model.keras") as archive:
        assert "tfcompress" not in archive.read("config.json").decode()


def test_verify(compressed, folder):
    out, _ = compressed
    common = ["--model", out / "model.keras", "--data", folder / "data.npz"]
    found = command("verify", out / "model.tflite", *common, "--json")
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    assert data["passed"]
    assert data["samples"] == 32
    refused = command("verify", out / "float32.tflite", *common, "--target", "edgetpu")
    assert refused.exit_code == 1
    assert "refused: " in refused.stdout


def test_inspect_keras_tflite_and_tfcz(compressed, folder):
    out, _ = compressed
    net = json.loads(command("inspect", out / "model.keras", "--json").stdout)
    assert (net["kind"], net["parameters"], net["macs"]) == ("keras", 6 * 16 + 16 + 16 * 3 + 3, 6 * 16 + 16 * 3)
    assert net["trained_ranges"] > 0
    assert {kernel["name"]: kernel["bits"] for kernel in net["kernels"]} == {"a": 8, "b": 8}
    lite = json.loads(command("inspect", out / "model.tflite", "--json").stdout)
    assert (lite["kind"], lite["precision"], lite["macs"]) == ("tflite", "int8", 144)
    assert lite["file_bytes"] == (out / "model.tflite").stat().st_size
    packed = json.loads(command("inspect", out / "model.tfcz", "--json").stdout)
    assert (packed["kind"], packed["holds"]) == ("tfcz", "tflite")
    assert packed["model"]["macs"] == 144
    shown = command("inspect", out / "model.keras")
    assert "Dense" in shown.stdout
    assert "trained output ranges" in shown.stdout


def test_pack_and_unpack(compressed, folder):
    out, _ = compressed
    again = folder / "again.tflite"
    assert command("unpack", out / "model.tfcz", "--out", again).exit_code == 0
    assert again.read_bytes() == (out / "model.tflite").read_bytes()
    found = command("pack", again, "--out", folder / "again.tfcz", "--against", out / "float32.tflite", "--json")
    data = json.loads(found.stdout)
    assert data["ratio"] == (out / "float32.tflite").stat().st_size / (folder / "again.tfcz").stat().st_size


def test_export(folder):
    path = folder / "half.tflite"
    found = command("export", folder / "plain.keras", "--precision", "float16", "--out", path, "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["size"] == path.stat().st_size


# Training, interrupted and judged


def test_an_interrupted_compress_goes_on_with_resume(folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["compress", "model.keras", "--recipe", "quick.yaml", "--out", "stopped", "--json"]
    found = command(*arguments, "--data", "functions:interrupting")
    assert found.exit_code == 130
    assert found.stdout == ""
    assert "--resume" in found.stderr
    assert "Traceback" not in found.stderr
    refused = command(*arguments, "--data", "functions:calm")
    assert refused.exit_code == 1
    assert "holds an unfinished run" in refused.stderr
    resumed = command(*arguments, "--data", "functions:calm", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    whole = command(*arguments[:-3], "--out", "whole", "--json", "--data", "functions:calm")
    ours, theirs = (keras.saving.load_model(folder / name / "model.keras") for name in ("stopped", "whole"))
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert json.loads(resumed.stdout)["accuracy"] == json.loads(whole.stdout)["accuracy"]
    assert sum(int((w == 0).sum()) for w in ours.get_weights() if w.ndim == 2) == 72


def test_max_drop(folder):
    (folder / "steep.yaml").write_text(
        "steps:\n"
        "  - {method: magnitude, arguments: {sparsity: 0.05}}\n"
        "  - {method: magnitude, arguments: {sparsity: 0.99}}\n"
    )
    common = ["compress", folder / "model.keras", "--data", folder / "data.npz", "--no-train", "--max-drop", 20]
    found = command(*common, "--recipe", folder / "steep.yaml", "--out", folder / "steep", "--json")
    assert found.exit_code == 0, found.stderr
    data = json.loads(found.stdout)
    assert data["kept"] == 1
    assert "the model of step 1 is the result" in data["stopped"]
    (folder / "cliff.yaml").write_text("steps:\n  - {method: magnitude, arguments: {sparsity: 0.99}}\n")
    found = command(*common, "--recipe", folder / "cliff.yaml", "--out", folder / "cliff")
    assert found.exit_code == 1
    assert "nothing was compressed" in found.stderr


def test_a_model_without_compile_settings(folder):
    arguments = [
        "compress",
        folder / "plain.keras",
        "--recipe",
        folder / "quick.yaml",
        "--data",
        folder / "data.npz",
        "--epochs",
        1,
    ]
    found = command(*arguments, "--out", folder / "none")
    assert found.exit_code == 2
    assert "give --loss" in found.stderr
    found = command(*arguments, "--loss", "sparse_categorical_crossentropi", "--out", folder / "none")
    assert found.exit_code == 2
    assert "Did you mean 'sparse_categorical_crossentropy'?" in found.stderr
    found = command(
        *arguments,
        "--loss",
        "sparse_categorical_crossentropy",
        "--metrics",
        "accuracy",
        "--out",
        folder / "some",
        "--json",
    )
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["metric"] == "accuracy"


# What is refused


@pytest.fixture(scope="module")
def bad(folder):
    """Files that are no models, by name."""
    (folder / "tf_keras.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "cut.keras").write_bytes((folder / "model.keras").read_bytes()[:500])
    with zipfile.ZipFile(folder / "model.keras") as source, zipfile.ZipFile(folder / "old.keras", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "metadata.json":
                content = json.dumps({**json.loads(content), "keras_version": "2.19.0"}).encode()
            target.writestr(name, content)
    with zipfile.ZipFile(folder / "model.keras") as source, zipfile.ZipFile(folder / "foreign.keras", "w") as target:
        for name in source.namelist():
            target.writestr(
                name, source.read(name).replace(b'"Dense"', b'"Dance"').replace(b"keras.layers", b"mine.layers")
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You are saving a model that has not yet been built")
        keras.Sequential([keras.layers.Dense(3)]).save(folder / "unbuilt.keras")
    np.savez(folder / "wide.npz", x=np.zeros((4, 7)), y=np.zeros(4, int))
    (folder / "typo.yaml").write_text(QUICK.replace("magnitude", "magnitde"))
    (folder / "nowhere.yaml").write_text(
        "steps: [{method: magnitude, arguments: {sparsity: 0.5, layers: conv*}}]",
    )
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("compress nowhere.keras --recipe quick.yaml --data data.npz --out o", 2, "There is no file nowhere.keras"),
        ("compress tf_keras.h5 --recipe int8 --data data.npz --out o", 1, "is an HDF5 file as tf_keras"),
        ("compress cut.keras --recipe int8 --data data.npz --out o", 1, "cut.keras is damaged, or no .keras file"),
        ("compress old.keras --recipe int8 --data data.npz --out o", 1, "saved by Keras 2.19.0 (tf_keras)"),
        ("compress foreign.keras --recipe int8 --data data.npz --out o", 1, "--import MODULE"),
        ("compress unbuilt.keras --recipe int8 --data data.npz --out o", 1, "is not built"),
        ("compress . --recipe int8 --data data.npz --out o", 1, "is a folder"),
        ("compress model.keras --recipe prune-qta --data data.npz --out o", 1, "Did you mean 'prune-qat'?"),
        ("compress model.keras --recipe typo.yaml --data data.npz --out o", 1, "Did you mean 'magnitude'?"),
        ("compress model.keras --recipe nowhere.yaml --data data.npz --out o", 1, "applies to no layer"),
        ("compress model.keras --recipe quick.yaml --data wide.npz --out o", 1, "samples of shape (7,)"),
        ("compress model.keras --recipe quick.yaml --data nowhere.npz --out o", 1, "There is no file nowhere.npz"),
        ("compress model.keras --recipe quick.yaml --out o", 2, "give --data, or --no-train"),
        ("compress model.keras --recipe int8 --out o", 2, "needs calibration data"),
        ("compress model.keras --recipe int8 --precision int9 --data data.npz --out o", 1, "Did you mean 'int8'?"),
        ("compress model.keras --recipe quick.yaml --data data.npz --out data.npz", 1, "is a file"),
        (
            "compress model.keras --recipe quick.yaml --data data.npz --import nothing_here --out o",
            2,
            "no module 'nothing_here'",
        ),
        ("export model.keras --precision int8 --out o.tflite", 1, "needs calibration data"),
        ("export model.keras --precision in8 --out o.tflite", 1, "Did you mean 'int8'?"),
        ("export model.keras --out o.keras", 2, "has to be called .tflite"),
        ("verify nowhere.tflite --model model.keras --data data.npz", 2, "There is no file nowhere.tflite"),
        ("verify data.npz --model model.keras --data data.npz", 1, "data.npz"),
        ("inspect nowhere.keras", 2, "There is no file nowhere.keras"),
        ("inspect data.npz", 1, "is no .keras file"),
        ("pack nowhere.tflite", 2, "There is no file nowhere.tflite"),
        ("pack model.keras --effort most", 1, "most"),
        ("unpack model.keras", 1, "is no .tfcz file"),
        ("methods magnitde", 1, "Did you mean 'magnitude'?"),
        ("recipes prune-qta", 1, "Did you mean 'prune-qat'?"),
    ],
)
def test_what_is_wrong_is_one_sentence_on_stderr(bad, monkeypatch, arguments, code, words):
    monkeypatch.chdir(bad)
    found = command(*arguments.split())
    assert found.exit_code == code, found.stderr
    assert words in found.stderr
    assert found.stdout == ""
    assert "Traceback" not in found.stderr
    assert isinstance(found.exception, (SystemExit, type(None)))
    assert not os.path.exists("o.tflite")


# Lists


def test_lists_of_methods_and_recipes():
    found = json.loads(command("recipes", "--json").stdout)
    assert [row["name"] for row in found["recipes"]] == list(file.shipped())
    text = command("recipes", "prune-qat").stdout
    assert file.parse(text)["steps"][1]["method"] == "quantization.QAT"
    rows = {row["name"]: row for row in json.loads(command("methods", "--json").stdout)["methods"]}
    assert rows["pruning.Magnitude"]["papers"] == [11]
    assert rows["distillation.Distillation"]["needed"] == ["teacher"]
    shown = command("methods", "bayes-by-backprop").stdout
    assert shown.startswith("pruning.BayesByBackprop(examples=None, ")
    assert "pruning.Magnitude" in command("methods").stdout


def test_json_is_alone_on_stdout_in_a_process_of_its_own(folder):
    """Also of what libraries and child processes write to the file descriptor."""
    code = [
        sys.executable,
        "-m",
        "tfcompress.cli",
        "export",
        str(folder / "plain.keras"),
        "--out",
        str(folder / "p.tflite"),
        "--json",
    ]
    found = subprocess.run(code, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["precision"] == "float32"
