"""Sessions on a device of invented times: order, failures, flags, interruption."""

import json

import jsonschema
import numpy as np
import pytest

import android_bench
from android_bench import BenchError, Record, Refused, UsageError
from android_bench.record import SCHEMA

from .conftest import FakeDevice

QUICK = {"runs": 5, "blocks": 6, "min_seconds": 0.0}


def codes(case):
    return {flag["code"] for flag in case["flags"]}


def valid(record):
    """Against the committed schema, not through the class under test."""
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(json.loads(record.to_json()))
    return record


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))


def test_blocks_alternate_and_settings_multiply(files):
    a, b = files("a.tflite", "b.tflite")
    device = FakeDevice(lambda name, case, n: 1.0)
    record = valid(android_bench.run([a, b], device, threads=(1, 2), runs=5, blocks=2, min_seconds=0))
    forwards = [(a, 1), (b, 1), (a, 2), (b, 2)]
    assert device.order == forwards + forwards[::-1]
    assert device.closed
    assert record.ok
    assert [block["round"] for block in record.data["blocks"]] == [0] * 4 + [1] * 4


def test_figures_of_a_case_are_those_of_its_blocks(files):
    """Blocks 1.0, 1.1, ... 1.5 ms of five equal runs each: the pooled median is 1.25 ms."""
    device = FakeDevice(lambda name, case, n: 1.0 + n / 10)
    record = android_bench.run(files("a.tflite"), device, **QUICK)
    latency = record.cases[0]["latency"]
    assert latency["median_ms"] == pytest.approx(1.25)
    assert latency["mean_ms"] == pytest.approx(1.25)
    assert (latency["min_ms"], latency["max_ms"]) == pytest.approx((1.0, 1.5))
    assert (latency["runs"], latency["processes"]) == (30, 6)
    assert record.cases[0]["init_ms"] == 2.0
    assert record.cases[0]["first_ms"] == 3.0
    assert record.cases[0]["peak_memory_bytes"] == 1_000_006


def test_a_rise_over_the_session_is_flagged(files):
    device = FakeDevice(lambda name, case, n: [1.0, 1.0, 1.1, 1.2, 1.4, 1.4][n])
    assert "throttled" in codes(android_bench.run(files("a.tflite"), device, **QUICK).cases[0])


def test_steady_times_are_not_flagged(files):
    rng = np.random.default_rng(0)
    device = FakeDevice(lambda name, case, n: list(rng.normal(10, 0.05, 40)))
    record = android_bench.run(files("a.tflite"), device, **QUICK)
    assert codes(record.cases[0]) == set()
    assert record.cases[0]["energy"] == {"joules": None, "kind": None, "reason": "no meter: invented"}


def test_wide_spread_and_few_processes_are_flagged(files):
    rng = np.random.default_rng(0)
    device = FakeDevice(lambda name, case, n: list(rng.lognormal(0, 0.8, 40)))
    case = android_bench.run(files("a.tflite"), device, runs=5, blocks=3, min_seconds=0).cases[0]
    assert {"noisy", "few-processes"} <= codes(case)


def test_integer_files_on_a_desktop_say_nothing_about_a_phone(files):
    device = FakeDevice(lambda name, case, n: 1.0, integer=True)
    (flag,) = android_bench.run(files("a.tflite"), device, **QUICK).cases[0]["flags"]
    assert flag["code"] == "desktop-int8"
    assert "Abacus 9" in flag["why"]


@pytest.mark.parametrize(("nodes", "status"), [(0, "failed"), (28, "ok"), (31, "ok")])
def test_c32_an_accelerator_without_nodes_fails_live_runs_too(files, nodes, status):
    device = FakeDevice(lambda name, case, n: 1.0, delegated={"nodes": nodes, "of": 31, "partitions": 1})
    record = valid(android_bench.run(files("a.tflite"), device, accelerators=("gpu",), **QUICK))
    assert record.cases[0]["status"] == status
    assert ("partly-delegated" in codes(record.cases[0])) == (nodes == 28)
    if nodes == 0:
        assert len(device.order) == 1
        assert record.cases[0]["latency"] is None


def test_a_refused_setting_does_not_stop_the_others(files):
    device = FakeDevice(lambda name, case, n: 1.0)
    record = valid(android_bench.run(files("a.tflite"), device, threads=(1, 8), **QUICK))
    assert [(case["status"], case["reason"]) for case in record.cases] == [
        ("ok", None),
        ("refused", "too many threads"),
    ]
    assert len(device.order) == 6
    assert not record.ok


def test_a_file_that_cannot_be_opened_fails_alone(files):
    record = valid(android_bench.run(files("a.tflite", "broken.tflite"), FakeDevice(lambda *a: 1.0), **QUICK))
    assert [case["status"] for case in record.cases] == ["ok", "failed"]
    assert record.cases[1]["reason"] == "cannot be opened"


def test_a_block_that_fails_ends_its_case_and_keeps_its_reason(files):
    def times(name, case, n):
        return BenchError("the process crashed") if name == "b.tflite" and n > 2 else 1.0

    device = FakeDevice(times)
    record = valid(android_bench.run(files("a.tflite", "b.tflite"), device, **QUICK))
    assert [case["status"] for case in record.cases] == ["ok", "failed"]
    assert record.cases[1]["reason"] == "block 3: the process crashed"
    assert record.cases[1]["latency"] is None
    assert [block["status"] for block in record.data["blocks"] if block["case"] == 1] == ["ok", "ok", "failed"]
    assert len([block for block in record.data["blocks"] if block["case"] == 0]) == 6


def test_wrong_answers_fail_a_case_before_it_is_timed(files, tmp_path):
    np.savez(tmp_path / "s.npz", x=np.zeros(3))
    device = FakeDevice(lambda *a: 1.0)
    record = valid(android_bench.run(files("a.tflite", "wrong.tflite"), device, check=tmp_path / "s.npz", **QUICK))
    assert [case["status"] for case in record.cases] == ["ok", "failed"]
    assert record.cases[1]["reason"] == "wrong outputs: 'y' is off by up to 0.5, 0.1 is allowed"
    assert {path for path, _ in device.order} == {str(tmp_path / "a.tflite")}
    assert record.data["settings"]["samples"] == "s.npz"


def test_a_missing_profile_says_why(files):
    record = valid(android_bench.run(files("a.tflite"), FakeDevice(lambda *a: 1.0), profile=True, **QUICK))
    assert record.cases[0]["status"] == "ok"
    assert record.cases[0]["profile"] == {"reason": "an invented device has no profiler", "operators": []}
    assert "no profile, an invented device has no profiler" in record.table()


def test_progress_tells_the_block_and_the_time_left(files):
    said = []
    android_bench.run(files("a.tflite"), FakeDevice(lambda *a: 1.25), progress=said.append, **QUICK)
    assert said[0] == "opening a.tflite"
    assert said[-1].startswith("[6/6] a.tflite, cpu, 1 thread: 1.25 ms (about 0 s left)")


def test_interruption_leaves_a_valid_partial_record(files, tmp_path):
    def times(name, case, n):
        if n == 3:
            raise KeyboardInterrupt
        return 2.0

    device = FakeDevice(times)
    with pytest.raises(KeyboardInterrupt):
        android_bench.run(files("a.tflite", "b.tflite"), device, out=tmp_path / "out", **QUICK)
    record = valid(Record.load(tmp_path / "out"))
    assert record.status == "partial"
    assert not record.ok
    assert "interrupted" in [flag["code"] for flag in record.data["flags"]]
    assert len(record.data["blocks"]) == 3
    assert record.cases[0]["latency"]["median_ms"] == pytest.approx(2.0)
    assert device.closed
    assert "interrupted" in record.table()


def test_the_record_is_on_disk_after_every_block(files, tmp_path):
    seen = []

    def times(name, case, n):
        seen.append(len(json.loads((tmp_path / "out" / "record.json").read_text())["blocks"]))
        return 1.0

    android_bench.run(files("a.tflite"), FakeDevice(times), out=tmp_path / "out", **QUICK)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_files_of_one_name_are_told_apart_by_their_path(files, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.tflite").write_bytes(b"\0\0\0\0TFL3x")
    paths = [*files("a.tflite"), str(tmp_path / "x" / "a.tflite")]
    record = android_bench.run(paths, FakeDevice(lambda *a: 1.0), **QUICK)
    assert [file["name"] for file in record.files] == paths


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"files": []}, UsageError, "No file"),
        ({"files": ["nowhere.tflite"]}, UsageError, "no file nowhere.tflite"),
        ({"threads": ()}, UsageError, "Thread counts"),
        ({"check": "nowhere.npz"}, UsageError, "no file nowhere.npz"),
        ({"runs": 0}, UsageError, "runs must be"),
        ({"rums": 1}, UsageError, "Did you mean 'runs'"),
        ({"device": "pixel"}, Refused, "'pixel' cannot be measured"),
        ({"device": "all"}, Refused, "only 'host'"),
    ],
)
def test_requests_that_cannot_be(files, given, error, words):
    arguments = {"files": files("a.tflite"), "device": "host", "blocks": 1} | given
    with pytest.raises(error, match=words):
        android_bench.run(**arguments)


def test_a_file_twice_and_a_file_that_is_no_tflite(files, tmp_path):
    (a,) = files("a.tflite")
    with pytest.raises(UsageError, match="twice"):
        android_bench.run([a, a], FakeDevice(lambda *x: 1.0))
    (tmp_path / "m.keras").write_bytes(b"PK\3\4 something long enough")
    with pytest.raises(BenchError, match=r"not a \.tflite file.*export it first"):
        android_bench.run(tmp_path / "m.keras", FakeDevice(lambda *x: 1.0))
    (tmp_path / "empty.tflite").write_bytes(b"")
    with pytest.raises(BenchError, match=r"not a \.tflite file"):
        android_bench.run(tmp_path / "empty.tflite", FakeDevice(lambda *x: 1.0))
