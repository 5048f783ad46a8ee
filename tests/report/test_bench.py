import copy
import json
import pathlib

import jsonschema
import pytest

import android_bench
from tfcompress.errors import CompressionError
from tfcompress.report import Energy, Latency, Report
from tfcompress.report.bench import read_bench

NO_ENERGY = {"joules": None, "kind": None, "reason": "no meter"}
FIGURES = {"runs": 500, "processes": 6, "level": 0.9, "median_ms": 1.5, "mean_ms": 1.6, "p5_ms": 1.4, "p95_ms": 2.5, "intervals": {"median": [1.45, 1.55]}}  # fmt: skip


def case(file, **changes):
    plain = {"file": file, "threads": 1, "accelerator": "cpu", "status": "ok", "reason": None, "flags": []}
    return {**plain, "latency": FIGURES, "check": None, "profile": None, "energy": NO_ENERGY, **changes}


RECORD = {
    "android_bench": 1,
    "status": "complete",
    "created": "2026-11-25T04:00:00Z",
    "tool_version": "0.1.0",
    "device": {"name": "pixel", "kind": "adb", "harness": "benchmark_model", "cpu_model": "Tensor G4"},
    "settings": {
        "runs": 50, "min_seconds": 0.5, "max_seconds": 30, "warmup_runs": 10, "warmup_seconds": 0.2,
        "warmup_max_seconds": 5, "blocks": 6, "pause": 0, "time_limit": 300, "seed": 0,
    },
    "files": [{"name": "build/float32.tflite", "bytes": 4, "sha256": None}, {"name": "int8.tflite", "bytes": 1, "sha256": None}],
    "cases": [
        case(0),
        case(0, threads=2, latency={**FIGURES, "median_ms": None}),
        case(1, energy={"joules": 0.002, "kind": "power rails", "reason": None}, flags=[{"code": "noisy", "why": "spread of 9 %"}]),
        case(1, accelerator="gpu", status="refused", reason="no GPU", latency=None),
    ],
    "blocks": [],
    "flags": [{"code": "busy", "why": "the load was 3"}],
}  # fmt: skip


def test_the_record_used_here_is_one_of_android_bench():
    schema = pathlib.Path(android_bench.__file__).with_name("record.schema.json")
    jsonschema.validate(RECORD, json.loads(schema.read_text()))


def test_figures_go_to_the_rows_whose_file_was_measured():
    report = Report("x")
    report.add_row("float32", file="float32.tflite")
    report.add_row("int8", file="int8.tflite", notes=["retrained"])
    report.add_row("other", file="other.tflite")
    assert report.add_bench(RECORD) == ["float32", "int8"]
    expected = Latency(1.5, 1.4, 2.5, (1.45, 1.55), 0.9, 500, 1, "pixel", "cpu", "Tensor G4")
    assert report.row("float32").latency == (expected,)
    assert report.row("float32").notes == ("pixel cpu, threads: 2: the program printed a mean only (1.6 ms)",)
    assert report.row("int8").energy == (Energy(2.0, None, "power rails", 1, "pixel", "cpu"),)
    assert report.row("int8").notes == (
        "retrained",
        "pixel cpu, threads: 1: spread of 9 %",
        "pixel gpu, threads: 1: refused: no GPU",
    )
    assert report.row("other").latency == ()
    assert report.notes == ["the load was 3"]
    assert Report.from_json(report.to_json()) == report


def test_a_record_of_other_files_is_refused():
    report = Report("x")
    report.add_row("float32", file="model.tflite")
    with pytest.raises(CompressionError, match=r"float32\.tflite.*model\.tflite"):
        report.add_bench(RECORD)


@pytest.mark.parametrize("key", ["android_bench", "device", "files", "cases", "flags"])
def test_what_is_no_record_is_refused(key):
    broken = copy.deepcopy(RECORD)
    del broken[key]
    with pytest.raises(CompressionError, match="no record of android_bench"):
        read_bench(broken)
    with pytest.raises(CompressionError, match="version 7"):
        read_bench({**RECORD, "android_bench": 7})


def test_equal_names_need_their_folders():
    record = copy.deepcopy(RECORD)
    record["files"][1]["name"] = "other/float32.tflite"
    report = Report("x")
    report.add_row("a", file="float32.tflite")
    with pytest.raises(CompressionError, match="with its folder where names are equal"):
        report.add_bench(record)
    report = Report("x")
    report.add_row("a", file="other/float32.tflite")
    report.add_row("b", file="build/float32.tflite")
    assert report.add_bench(record) == ["b", "a"]
    assert [row.energy != () for row in report.rows] == [True, False]
