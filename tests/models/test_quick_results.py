"""Every committed quick result, run again: the experiments still run, and come out the same."""

import pytest

from models import experiments
from models.experiments import harness, worker

COMMITTED = sorted((worker.ROOT / "docs/results/quick").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_quick_run_agrees_with_the_committed_one(path, tmp_path):
    found = experiments.find(path.stem)
    again = harness.reproduce(found, "quick", harness.read(path)["seeds"], root=tmp_path)
    assert harness.differences(harness.read(path), again, found.tolerances) == []
