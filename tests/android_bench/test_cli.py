"""The command: help, exit codes, output on the right stream; and that it stands alone."""

import doctest
import importlib
import json
import os
import pathlib
import pkgutil
import subprocess
import sys
import time

import pytest

import android_bench

QUICK = [
    "--blocks",
    "2",
    "--runs",
    "10",
    "--min-seconds",
    "0.02",
    "--warmup-seconds",
    "0.02",
    "--warmup-max-seconds",
    "0.5",
]


def bench(*arguments, **more):
    command = [sys.executable, "-m", "android_bench.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **more)


def test_help_is_quick_and_shows_an_example():
    best = 9.0
    for _ in range(5):
        start = time.perf_counter()
        found = bench("--help")
        best = min(best, time.perf_counter() - start)
    assert found.returncode == 0
    assert "android-bench run float.tflite int8.tflite" in found.stdout
    assert "Exit codes: 0 measured, 1 failed or refused, 2 wrong usage" in found.stdout
    assert best < 0.5


@pytest.mark.parametrize("command", ["run", "compare", "report", "read"])
def test_help_of_every_command_shows_an_example(command):
    found = bench(command, "--help")
    assert found.returncode == 0
    assert f"Example: android-bench {command} " in found.stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['android-bench', '--help']\n"
        "import android_bench.cli\n"
        "try: android_bench.cli.main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'scipy', 'ai_edge_litert', 'keras', 'tensorflow', 'jsonschema') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_run_report_and_compare(models, tmp_path):
    out = tmp_path / "out"
    found = bench("run", models / "float.tflite", models / "large.tflite", "--out", out, *QUICK)
    assert found.returncode == 0, found.stderr
    assert "large.tflite is" in found.stdout
    assert "[4/4]" in found.stderr
    assert "[4/4]" not in found.stdout
    report = bench("report", out)
    assert report.returncode == 0
    assert report.stdout == found.stdout
    assert json.loads(bench("report", out, "--json").stdout) == json.loads((out / "record.json").read_text())
    compared = bench("compare", out)
    assert compared.returncode == 0
    assert "times slower than float.tflite" in compared.stdout
    (row,) = json.loads(bench("compare", out / "record.json", "--json").stdout)
    assert row["low"] <= row["ratio"] <= row["high"] < 1
    across = bench("compare", out, out)
    assert across.returncode == 0
    assert "not alternated" in across.stdout


def test_json_is_a_record_and_nothing_else_on_stdout(models):
    found = bench("run", models / "float.tflite", "--json", *QUICK)
    record = android_bench.Record.from_json(found.stdout)
    assert record.ok
    assert record.data["settings"]["runs"] == 10


def test_options_reach_the_measurement(models):
    found = bench(
        "run", models / "dynamic.tflite", "--input-shape", "image=1,8,8,3", "--check", models / "samples.npz", "--tolerance",
        "0.01", "--seed", "5", "--pause", "0.01", "--time-limit", "99", "--max-seconds", "3", "--profile", "--json", *QUICK,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    data = json.loads(found.stdout)
    settings = data["settings"]
    assert (settings["seed"], settings["pause"], settings["time_limit"], settings["max_seconds"]) == (5, 0.01, 99, 3)
    assert settings["tolerance"] == data["cases"][0]["check"]["outputs"][0]["tolerance"] == 0.01
    assert data["files"][0]["inputs"][0]["shape"] == [1, 8, 8, 3]
    assert data["cases"][0]["profile"]["reason"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run"], 2, "Missing argument"),
        (["run", "{models}/float.tflite", "--bogus"], 2, "No such option"),
        (["run", "nowhere.tflite"], 2, "There is no file nowhere.tflite"),
        (["run", "{models}/float.tflite", "--threads", "two"], 2, "--threads takes numbers"),
        (["run", "{models}/float.tflite", "--threads", "0"], 2, "1 or more"),
        (["run", "{models}/float.tflite", "--runs", "0"], 2, "runs must be at least 1"),
        (["run", "{models}/float.tflite", "--input-shape", "image"], 2, "--input-shape takes NAME=1,224,224,3"),
        (["run", "{models}/float.tflite", "--check", "nowhere.npz"], 2, "There is no file nowhere.npz"),
        (["run", "{models}/float.tflite", "--device", "pixel"], 1, "Phones over adb are not part of it yet"),
        (["run", "{models}/make.py"], 1, "is not a .tflite file"),
        (["compare", "nowhere.json"], 2, "There is no file nowhere.json"),
        (["report", "{models}/make.py"], 1, "This is not JSON"),
        (["read", "nowhere.log"], 2, "There is no file nowhere.log"),
        (["read", "{models}/make.py"], 1, "holds no output of a benchmark program"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_what_is_wrong_is_said_on_stderr_with_its_code(models, arguments, code, words):
    found = bench(*[argument.format(models=models) for argument in arguments])
    assert found.returncode == code
    assert words in found.stderr
    assert found.stdout == ""
    assert "Traceback" not in found.stderr


def test_a_refused_row_is_exit_code_1(models):
    found = bench("run", models / "float.tflite", "--threads", "1,64", *QUICK)
    assert found.returncode == 1
    assert "refused" in found.stdout


@pytest.mark.parametrize(
    ("log", "code", "word"),
    [
        ("benchmark_model_gpu_none.txt", 1, "failed"),
        ("benchmark_model_throttled.txt", 0, "throttled"),
        ("benchmark_apk_debug.txt", 1, "refused"),
        ("benchmark_model_cpu.txt", 0, "5.709"),
    ],
)
def test_c32_recorded_logs_on_the_command_line(tmp_path, log, code, word):
    found = bench("read", pathlib.Path(__file__).parent / "samples" / log, "--out", tmp_path)
    assert found.returncode == code
    assert word in found.stdout
    assert android_bench.Record.load(tmp_path).device["kind"] == "log"


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"keras", "tensorflow", "tf_keras", "tfcompress", "jax", "torch"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def test_it_runs_without_keras_tensorflow_and_tfcompress(models, tmp_path):
    """The blocker is in force in the child processes too: each of them starts with it."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), str(pathlib.Path(android_bench.__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path}
    for name in ("keras", "tensorflow", "tfcompress"):
        blocked = subprocess.run(
            [sys.executable, "-c", f"import {name}"], env=environment, capture_output=True, text=True
        )
        assert f"{name} is blocked" in blocked.stderr
    out = tmp_path / "out"
    arguments = [
        models / "float.tflite",
        models / "int8.tflite",
        "--check",
        models / "samples.npz",
        "--profile",
        "--out",
        out,
    ]
    found = bench("run", *arguments, *QUICK, "--blocks", "1", env=environment)
    assert found.returncode == 0, found.stderr
    assert bench("compare", out, env=environment).returncode == 0


MODULES = [module.name for module in pkgutil.iter_modules(android_bench.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(f"android_bench.{name}")
    assert doctest.testmod(module).failed == 0


def test_public_names_are_there():
    for name in android_bench.__all__:
        assert getattr(android_bench, name).__doc__
    with pytest.raises(AttributeError, match="frobnicate"):
        android_bench.frobnicate
