"""Every test that docs/limits.md names exists."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]


def test_every_test_named_in_the_limits_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "limits.md").read_text())
    assert len(named) > 40
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert not missing
