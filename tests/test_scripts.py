"""The scripts of a checkout: what they refuse with a sentence, and that a made environment is used at once."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tfcompress.report import Report

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLS = ("bash", "dirname", "cat", "awk", "id", "tr", "cut", "wc", "mkdir", "ls", "rm", "tee", "grep", "tail")
pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="the scripts are for bash"
)


@pytest.fixture
def checkout(tmp_path):
    """A folder with the scripts and the files that they read."""
    for name in ("tools/environment.sh", "tools/test", "tools/demo", "setup.cfg", "pyproject.toml"):
        target = tmp_path / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    return tmp_path / "checkout"


@pytest.fixture
def path(tmp_path):
    """A PATH with a few tools and no Python, to which a test adds its own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    program(folder, "df", "echo head; echo /dev/x 1 1 99000000 1% /")
    return folder


def program(folder, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def run(checkout, path, *command, **environment):
    values = {"PATH": str(path), "HOME": str(checkout), **environment}
    return subprocess.run(command, cwd=checkout, env=values, capture_output=True, text=True, timeout=300)


def refusal(result) -> str:
    """The one sentence on standard error of a run that failed."""
    assert result.returncode == 1, result
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("script", ["./tools/test", "./tools/demo"])
def test_no_python(checkout, path, script):
    assert "needs Python 3.11 or newer, and there is none here (found: nothing)" in refusal(run(checkout, path, script))


def test_a_python_that_is_too_old_or_does_not_run_is_no_python(checkout, path):
    program(path, "python3", "echo 3 10")
    program(path, "python3.12", "echo no such version >&2; exit 127")
    sentence = refusal(run(checkout, path, "./tools/test"))
    assert "found: python3 (3.10))" in sentence
    assert "apt-get install -y python3 python3-venv" in sentence


def test_a_missing_venv_module_is_named_with_the_line_that_installs_it(checkout, path):
    program(path, "python3", 'case "$2" in *ensurepip*) exit 1 ;; *venv*) echo python3.12-venv ;; *) echo 3 12 ;; esac')
    program(path, "apt-get", "exit 1")
    (path / "id").unlink()
    program(path, "id", "echo 1000")
    assert refusal(run(checkout, path, "./tools/demo")).endswith("sudo apt-get install -y python3.12-venv\n")


def test_root_installs_the_missing_venv_module(checkout, path, tmp_path):
    flag = tmp_path / "installed"
    program(
        path,
        "python3",
        f'case "$2" in *ensurepip*) [ -e {flag} ] ;; *venv*) echo python3.12-venv ;; *) echo 3 12 ;; esac',
    )
    program(path, "apt-get", f'case "$1" in install) echo "$@" >{flag} ;; esac')
    (path / "id").unlink()
    program(path, "id", "echo 0")
    program(path, "df", "echo head; echo /dev/x 1 1 1000 1% /")
    result = run(checkout, path, "./tools/demo")
    assert "Not enough disk" in refusal(result)
    assert "Installing python3.12-venv" in result.stdout
    assert flag.read_text().split() == ["install", "-y", "-qq", "python3.12-venv"]


def test_no_disk(checkout, path):
    (path / "python3").symlink_to(sys.executable)
    program(path, "df", "echo head; echo /dev/x 1 1 1200000 1% /")
    sentence = refusal(run(checkout, path, "./tools/test"))
    assert "Not enough disk" in sentence
    assert "1171 MB are free" in sentence
    assert not (checkout / ".venv").exists()


def test_a_folder_that_is_no_environment_is_left_alone(checkout, path, tmp_path):
    (path / "python3").symlink_to(sys.executable)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    result = run(checkout, path, "./tools/test", TFCOMPRESS_VENV=str(tmp_path / "mine"))
    assert "is no Python environment" in refusal(result)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.slow
def test_no_package_index(checkout, path):
    # A port of the loopback interface that nothing listens on.
    (path / "python3").symlink_to(os.path.realpath(sys.executable))
    result = run(checkout, path, "./tools/test", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE=os.devnull)
    assert "The package index cannot be reached" in refusal(result)
    assert "Making the environment" in result.stdout


def test_a_finished_environment_is_used_at_once(checkout, path):
    """Neither pip nor another Python is looked for when the mark fits, also where the tests' environment serves the demo."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    (checkout / ".venv" / "pyvenv.cfg").touch()
    program(folder, "python", 'case "$1" in -) echo abc ;; *) echo "runs $*" ;; esac')
    (checkout / ".venv" / "tfcompress-installed").write_text("dev abc\n")
    result = run(checkout, path, "./tools/demo", "--data", "mnist")
    assert result.stdout == f"runs {checkout}/tools/demo.py --data mnist\n"
    assert (result.stderr, result.returncode) == ("", 0)


def suite(checkout, path, *arguments):
    """The calls of pytest that ./tools/test makes."""
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    (checkout / ".venv" / "pyvenv.cfg").touch()
    program(folder, "python", 'case "$1" in -) echo abc ;; *) echo "$KERAS_BACKEND: $*" ;; esac')
    (checkout / ".venv" / "tfcompress-installed").write_text("dev abc\n")
    result = run(checkout, path, "./tools/test", *arguments)
    assert result.returncode == 0, result
    return [line for line in result.stdout.splitlines() if "-m pytest" in line]


PYTEST = "-m pytest -n 2 --dist loadfile"


@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        ([], [f"tensorflow: {PYTEST} -m not slow", f"jax: {PYTEST} -m jax and not slow"]),
        (["--slow", "-x"], [f"tensorflow: {PYTEST} -x", f"jax: {PYTEST} -m jax -x"]),
        (["setup.cfg::test_a"], [f"tensorflow: {PYTEST} -m not slow setup.cfg::test_a"]),
        (["--backend", "jax", "-k", "a b"], [f"jax: {PYTEST} -m jax and not slow -k a b"]),
        (["--backend=torch", "--slow"], [f"torch: {PYTEST} -m jax"]),
    ],
)
def test_which_tests_run_on_which_backend(checkout, path, arguments, calls):
    assert suite(checkout, path, *arguments) == calls


def test_bad_arguments_of_the_test_script(checkout, path):
    assert "no backend 'theano'" in refusal(run(checkout, path, "./tools/test", "--backend", "theano"))
    assert "--backend needs a name" in refusal(run(checkout, path, "./tools/test", "--backend"))


@pytest.mark.parametrize("script", ["./tools/test", "./tools/demo"])
def test_help_needs_no_environment(checkout, path, script):
    helped = run(checkout, path, script, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"Usage: {script}")
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
def test_the_demo_shows_the_whole_path(tmp_path):
    command = [sys.executable, ROOT / "tools" / "demo.py", "--out", tmp_path]
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    report = Report.load(tmp_path / "report.json")
    plain, small = report.rows
    assert plain.accuracy > 0.97
    assert small.accuracy > plain.accuracy - 0.02
    # Kernels are pruned to a fifth; biases are not, and count as parameters.
    assert 0.75 < 1 - small.nonzeros / small.parameters < 0.8
    for row in report.rows:
        assert row.file_bytes == (tmp_path / row.file).stat().st_size
        assert row.packed_bytes == (tmp_path / row.file).with_suffix(".tfcz").stat().st_size
        assert row.latency[0].median_ms > 0
        assert row.verification.passed
    assert report.ratio(small.name) > 3
    assert report.ratio(small.name, packed=True) > 9
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "smaller" in done.stdout
