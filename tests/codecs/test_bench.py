"""The benchmark script runs, and its figures are those of the codecs."""

import json
import pathlib
import subprocess
import sys

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools" / "bench_codecs.py"


def test_table_and_json_say_the_same(tmp_path):
    file = tmp_path / "rows.json"
    command = [sys.executable, str(TOOL), "--elements", "20000", "--repeat", "1", "--json", str(file)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = json.loads(file.read_text())["rows"]
    assert len(out.splitlines()) == 1 + len(rows) == 31
    ours = {row["tensor"]: row for row in rows if row["coder"] == "tfcompress"}
    assert set(ours) == {"dense float", "90% zeros", "90% zeros, 16 values", "ternary", "binary", "int8"}
    for name, row in ours.items():
        assert f"{row['bytes']:,}" in out
        rivals = [other["bytes"] for other in rows if other["tensor"] == name and other["coder"] != "tfcompress"]
        assert row["bytes"] < min(rivals)
    assert ours["binary"]["bytes"] <= 20000 / 8 + 16
    assert ours["90% zeros, 16 values"]["bytes"] <= 1.02 * ours["90% zeros, 16 values"]["entropy_bytes"] + 64
