"""The harness of the experiments: seeds, storing and resuming, targets, result files, and the command."""

import json
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time

import pytest

from models import experiments
from models.experiments import Target, harness, worker
from tfcompress.errors import CompressionError

PACKAGE = "tests.models.experiments"
REPRODUCE = pathlib.Path(worker.ROOT, "tools/reproduce.py")


def heads(seed, count=1000):
    draw = random.Random(seed)
    return sum(draw.random() < 0.5 for _ in range(count)) / count


def command(root, *arguments, **kwargs):
    return subprocess.run(
        [sys.executable, REPRODUCE, *arguments, "--package", PACKAGE, "--root", root],
        capture_output=True,
        text=True,
        **kwargs,
    )


@pytest.fixture(scope="module")
def coins():
    return experiments.find(999, PACKAGE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, coins):
    """Three seeds, run in two processes at a time."""
    root = tmp_path_factory.mktemp("root")
    lines = []
    result = harness.reproduce(coins, seeds=range(3), jobs=2, root=root, say=lines.append)
    return root, result, lines


def test_result_has_the_form_of_the_design(finished):
    root, result, lines = finished
    stored = json.loads((root / "docs/results/999.json").read_text())
    assert stored == result
    form = """
        paper name claim data stand_in seeds baseline measured target met note command commit versions machine seconds
    """
    assert list(stored) == form.split()
    assert (stored["paper"], stored["name"], stored["seeds"]) == (999, "Coins", [0, 1, 2])
    assert stored["data"] == "pseudo-random coins: 1 000 coins"
    assert stored["command"] == "python tools/reproduce.py 999 --seeds 3"
    values = [heads(seed) for seed in range(3)]
    assert stored["measured"]["tossed"]["heads"]["values"] == values
    assert stored["measured"]["tossed"]["heads"]["mean"] == pytest.approx(statistics.mean(values))
    assert stored["measured"]["tossed"]["heads"]["std"] == pytest.approx(statistics.stdev(values), rel=1e-6)
    assert list(stored["baseline"]) == ["expected"]
    assert {"python", "keras", "tfcompress"} <= set(stored["versions"])
    assert stored["machine"]["cores"] >= 1
    assert stored["seconds"] >= 3 * 0.05 - 0.05
    assert sum("tossing with 1 thread" in line for line in lines) == 3


def test_targets_are_judged_by_code(finished):
    _, result, _ = finished
    assert [target["met"] for target in result["target"]] == [True, False]
    assert result["met"] is False
    assert result["target"][0]["measured"] == result["measured"]["tossed"]["off"]["mean"]


@pytest.mark.parametrize(
    ("relation", "value", "met"),
    [("<=", 2, True), ("<=", 1, False), (">=", 2, True), (">", 2, False), ("<", 2.1, True), ("==", 2, True)],
)
def test_relations(relation, value, met):
    assert Target("a", relation, value).judge(experiments.normalized({"a": 2})) is met


def test_finished_seeds_are_used_again_until_the_code_changes(finished, coins, monkeypatch):
    root, result, _ = finished
    before = (root / "build/experiments/999/standard/seed-1.json").stat().st_mtime_ns
    monkeypatch.setattr(harness, "_seed", lambda *a: pytest.fail("ran again"))
    lines = []
    again = harness.reproduce(coins, seeds=range(3), root=root, say=lines.append)
    assert again == result
    assert sum("stored" in line for line in lines) == 3
    assert (root / "build/experiments/999/standard/seed-1.json").stat().st_mtime_ns == before
    ran = []
    monkeypatch.setattr(harness, "_seed", lambda found, mode, seed, *a: ran.append(seed) or record(seed))
    monkeypatch.setattr(worker, "code", lambda module: "other")
    harness.reproduce(coins, seeds=[0], root=root, say=lines.append)
    assert ran == [0]
    harness.reproduce(coins, seeds=[0, 2], fresh=True, root=root, say=lines.append)
    assert ran == [0, 0, 2]
    (root / "build/experiments/999/standard/seed-0.json").write_text("{")
    harness.reproduce(coins, seeds=[0], root=root, say=lines.append)
    assert ran == [0, 0, 2, 0]


def record(seed, commit="abc", **rows):
    """A seed's record as the worker writes it."""
    rows = rows or {"expected": {"heads": 0.5}, "tossed": {"heads": heads(seed), "off": 0.0}}
    machine = {"cpu": "a CPU", "cores": 2}
    return {
        "rows": rows, "seconds": 1.5, "code": "c", "commit": commit, "versions": {"python": "3"}, "machine": machine,
    }  # fmt: skip


def test_quick_is_not_judged_and_goes_to_its_own_folder(coins, tmp_path):
    result = harness.reproduce(coins, "quick", root=tmp_path, say=lambda line: None)
    assert result["seeds"] == [0]
    assert result["measured"]["tossed"]["heads"]["mean"] == heads(0, 10)
    assert result["measured"]["tossed"]["heads"]["std"] is None
    assert result["met"] is None
    assert "--quick" in result["command"]
    assert harness.read(tmp_path / "docs/results/quick/999.json") == result
    assert not (tmp_path / "docs/results/999.json").exists()
    with pytest.raises(CompressionError, match="no full size"):
        harness.reproduce(coins, "full", root=tmp_path)


def test_seeds_of_different_commits_are_named(coins):
    result = harness.summarize(coins, "standard", {0: record(0), 5: record(5, commit="def")})
    assert result["commit"] == "abc, def"
    assert result["command"] == "python tools/reproduce.py 999 --seed 0 --seed 5"
    assert result["seconds"] == 3.0


def test_errors_name_the_thing(coins):
    with pytest.raises(CompressionError, match="different rows"):
        harness.summarize(coins, "standard", {0: record(0), 1: record(1, expected={"heads": 0.5})})
    with pytest.raises(CompressionError, match=r"baseline 'expected'"):
        harness.summarize(coins, "standard", {0: record(0, tossed={"heads": 0.5, "off": 0})})
    with pytest.raises(CompressionError, match=r"'off' of the row 'tossed'"):
        harness.summarize(coins, "standard", {0: record(0, expected={"heads": 0.5}, tossed={"heads": 0.5})})
    with pytest.raises(CompressionError, match=r"'drop' of the row 'a' is nan"):
        experiments.normalized({"a": {"drop": float("nan")}})
    with pytest.raises(CompressionError, match="not a number"):
        experiments.normalized({"a": "much"})
    with pytest.raises(CompressionError, match="returns rows"):
        experiments.normalized(None)
    with pytest.raises(CompressionError, match=r"There is no experiment '998'\. Did you mean '999'"):
        experiments.find(998, PACKAGE)
    with pytest.raises(CompressionError, match="relation is one of"):
        Target("a", "=<", 1)
    with pytest.raises(CompressionError, match="by mode"):
        experiments.experiment(name="", claim="", data="", sizes={"small": ""}, baseline="a")


def test_result_files_are_checked(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(CompressionError, match=r"a.json is not a result file"):
        harness.read(tmp_path / "a.json")


def test_differences_between_two_results(finished):
    _, result, _ = finished
    assert harness.differences(result, result) == []
    other = json.loads(json.dumps(result))
    other["measured"]["tossed"]["heads"]["mean"] *= 1.5
    assert harness.differences(result, other, {"off": 1}) == [
        d for d in harness.differences(result, other) if "'heads' of 'tossed'" in d
    ]
    assert len(harness.differences(result, other)) == 1
    assert harness.differences(result, other, {"heads": 1}) == []
    del other["measured"]["tossed"]
    assert harness.differences(result, other) == ["the row 'tossed' is in one of them only"]


def test_the_command_shows_the_table_and_its_exit_codes(finished, tmp_path):
    root, _, _ = finished
    shown = command(root, "999", "--seeds", "2", env={**environment(), "COLUMNS": "120"})
    assert shown.returncode == 0, shown.stderr
    assert "expected (baseline)" in shown.stdout
    assert "missed: share of heads >= 0.9" in shown.stdout
    assert "met: tossed: off <= 0.1" in shown.stdout
    listed = command(root, "--list")
    assert "Coins" in listed.stdout
    assert "missed" in listed.stdout
    assert command(root, "1").returncode == 1
    assert command(root).returncode == 2
    failed = command(tmp_path, "999", env={**environment(), "COINS_FAIL": "1"})
    assert failed.returncode == 1
    assert "Seed 1 of the experiment 999 failed: RuntimeError: the coin rolled away" in failed.stderr
    assert not (tmp_path / "docs/results/999.json").exists()
    assert (tmp_path / "build/experiments/999/standard/seed-0.json").exists()


def environment():
    import os

    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def test_ctrl_c_keeps_finished_seeds_and_the_next_run_goes_on(tmp_path):
    arguments = [sys.executable, REPRODUCE, "999", "--package", PACKAGE, "--root", tmp_path]
    waiting = subprocess.Popen(
        arguments, env={**environment(), "COINS_WAIT": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    started = time.monotonic()
    for line in waiting.stdout:
        if line.startswith("seed 1:") and "tossing" in line:
            break
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert time.monotonic() - started < 50, "the child was waited for"
    assert "Finished seeds are stored" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "docs/results/999.json").exists()
    again = command(tmp_path, "999")
    assert again.returncode == 0
    assert "seed 0: stored" in again.stdout
    assert "seed 1: started" in again.stdout


def test_every_experiment_of_the_project_is_complete():
    for key in experiments.modules():
        found = experiments.find(key)
        assert {"quick", "standard"} <= set(found.sizes), key
        assert found.name
        assert found.claim
