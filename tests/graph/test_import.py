"""A module of ours may be the first thing that is imported in a process."""

import subprocess
import sys

CODE = """
import sys
import tfcompress.graph.calls
assert "tfcompress.factorization" in sys.modules
from tfcompress import apply
assert not any("tfcompress" in type(finder).__module__ for finder in sys.meta_path)
"""


def test_any_module_can_be_imported_first():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
