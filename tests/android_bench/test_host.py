"""The real thing on this machine: LiteRT in child processes."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

import android_bench
from android_bench import host, litert, profile, worker
from android_bench.errors import BenchError
from android_bench.host import Host
from android_bench.plan import Case, Settings
from android_bench.profile import Event

from .test_session import codes, valid

QUICK = {
    "runs": 20,
    "blocks": 2,
    "min_seconds": 0.05,
    "warmup_seconds": 0.02,
    "warmup_max_seconds": 1.0,
    "max_seconds": 5.0,
}


def test_more_work_takes_longer(models):
    """large.tflite has the weights of float.tflite and 36 times its pixels."""
    record = valid(android_bench.run([models / "float.tflite", models / "large.tflite"], profile=True, **QUICK))
    assert record.ok
    assert [file["bytes"] for file in record.files] == [
        (models / f"{name}.tflite").stat().st_size for name in ("float", "large")
    ]
    small, large = record.cases
    assert 0 < small["latency"]["median_ms"] < large["latency"]["median_ms"] / 5
    for case in record.cases:
        latency = case["latency"]
        assert latency["min_ms"] <= latency["p5_ms"] <= latency["median_ms"] <= latency["p99_ms"] <= latency["max_ms"]
        assert case["init_ms"] > 0
        assert case["first_ms"] > 0
        assert 1e6 < case["peak_memory_bytes"] < 1e9
        assert case["delegated"] == {"nodes": 5, "of": 5, "partitions": 1}
    (row,) = android_bench.compare(record)
    assert "times slower than float.tflite" in row.sentence
    assert record.device["runtime"] == "ai_edge_litert"
    assert len(record.device["runtime_sha256"]) == 64
    check_profile(large["profile"])


def check_profile(found):
    """All operators are there, each in every run, and no telemetry among them."""
    assert found["reason"] is None
    names = [row["name"] for row in found["operators"]]
    assert [any(word in name for name in names) for word in ("IGEMM", "DWConv", "Fully Connected", "Softmax")] == [
        True
    ] * 4
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1)
    assert all(row["calls"] == found["runs"] for row in found["operators"])
    # 2**32 us is what the telemetry event says; a real run of this net takes far less than a second.
    assert all(row["max_us"] < 1e6 for row in found["operators"])
    assert 0 < found["invoke_us"] < 1e6


def test_integer_file_with_samples_threads_and_seed(models):
    record = valid(
        android_bench.run(models / "int8.tflite", threads=(1, 64), check=models / "samples.npz", profile=True, **QUICK)
    )
    one, many = record.cases
    assert one["check"]["passed"]
    assert "desktop-int8" in codes(one)
    assert record.files[0]["integer"]
    assert one["delegated"]["nodes"] == 4  # SOFTMAX stays out of XNNPACK
    assert {row["kind"] for row in one["profile"]["operators"]} == {"operator", "delegate"}
    assert many["status"] == "refused"
    assert "64 threads on" in many["reason"]
    assert one["energy"]["joules"] is None or not pathlib.Path("/sys/class/powercap").exists()


def test_wrong_samples_fail_the_row(models):
    record = android_bench.run(models / "int8.tflite", check=models / "samples.npz", tolerance=1e-6, **QUICK)
    assert record.cases[0]["status"] == "failed"
    assert "wrong outputs: 'output_0' is off by" in record.cases[0]["reason"]
    assert record.data["blocks"] == []


def test_a_file_without_fixed_shapes_asks_for_them(models):
    case = android_bench.run(models / "dynamic.tflite", **QUICK).cases[0]
    assert case["status"] == "failed"
    assert "--input-shape image=1,N,N,3" in case["reason"]
    record = valid(
        android_bench.run(
            models / "dynamic.tflite",
            shapes={"image": (1, 8, 8, 3)},
            check=models / "samples.npz",
            profile=True,
            **QUICK,
        )
    )
    assert record.ok
    assert record.cases[0]["check"]["outputs"][0]["max_error"] < 1e-5
    assert "without fixed input shapes" in record.cases[0]["profile"]["reason"]
    wrong = android_bench.run(models / "dynamic.tflite", shapes={"picture": (1, 8, 8, 3)}, **QUICK).cases[0]
    assert "'picture'; the inputs are image" in wrong["reason"]


def test_an_operator_that_the_runtime_lacks_is_named(models):
    case = android_bench.run(models / "unknown.tflite", **QUICK).cases[0]
    assert case["status"] == "failed"
    assert "Mystery" in case["reason"]
    assert "ai_edge_litert" in case["reason"]


def test_a_cut_file_is_a_failure_not_a_crash(models, tmp_path):
    data = (models / "float.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: len(data) // 2])
    case = android_bench.run(tmp_path / "cut.tflite", **QUICK).cases[0]
    assert case["status"] == "failed"


def script(tmp_path, monkeypatch, text):
    """Put a shell script in the place of Python, so that the child does what a broken runtime would."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(host.sys, "executable", str(path))


def test_a_runtime_that_crashes_is_a_sentence(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "echo its last words >&2; kill -SEGV $$")
    with pytest.raises(BenchError, match=r"crashed \(SIGSEGV\); its last words: its last words"):
        Host().prepare("a.tflite", {})


def test_a_child_that_prints_garbage_and_ends_is_a_sentence(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, 'echo garbage > "$4"; exit 3')
    with pytest.raises(BenchError, match="ended with exit code 3"):
        Host().prepare("a.tflite", {})


def test_a_child_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, f"sleep 61 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(BenchError, match=r"ended after 0\.5 s"):
        Host(time_limit=0.5).prepare("a.tflite", {})
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid, seconds=5.0):
    """Whether a process ends (or is a zombie) in this time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death reaches the child on Linux only")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_command_ends_the_record_is_valid_and_nothing_keeps_running(models, tmp_path, end):
    command = [sys.executable, "-m", "android_bench.cli", "run", str(models / "large.tflite"), "--blocks", "50"]
    command += ["--min-seconds", "0.2", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("[2/50]"):
            break
    worker_pid = child_of(process.pid)
    process.send_signal(end)
    process.communicate(timeout=30)
    assert process.returncode == (130 if end != signal.SIGKILL else -signal.SIGKILL)
    assert gone(worker_pid)
    record = valid(android_bench.Record.load(tmp_path / "out"))
    assert record.status == "partial"
    assert 2 <= len(record.data["blocks"]) < 50
    if end != signal.SIGKILL:
        assert "interrupted" in [flag["code"] for flag in record.data["flags"]]
    assert record.cases[0]["latency"]["processes"] == len(record.data["blocks"])
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != "record.json"]


def child_of(pid, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
        if children.exists() and (found := children.read_text().split()):
            return int(found[0])
        time.sleep(0.005)
    raise AssertionError("no child was seen")


def test_energy_is_the_counter_over_the_timed_runs(models, tmp_path):
    """A counter that rises by one joule a second: one inference then takes as many joules as seconds."""
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text(str(10**15))
    stop = threading.Event()

    def rise():
        while not stop.wait(0.0005):
            (tmp_path / "new").write_text(str(time.monotonic_ns() // 1000))
            os.replace(tmp_path / "new", zone / "energy_uj")

    thread = threading.Thread(target=rise)
    thread.start()
    try:
        time.sleep(0.05)
        settings = QUICK | {"min_seconds": 0.4}
        record = android_bench.run(models / "large.tflite", Host(powercap=str(tmp_path)), **settings)
    finally:
        stop.set()
        thread.join()
    case = record.cases[0]
    # Both blocks ran for 0.4 s and the end of one run; a busy machine makes that longer, never shorter.
    joules = [block["energy"]["joules"] for block in record.data["blocks"]]
    assert all(0.39 <= value <= 0.8 for value in joules)
    runs = sum(block["count"] for block in record.data["blocks"])
    assert case["energy"]["joules"] == pytest.approx(sum(joules) / runs)
    assert case["energy"]["kind"].startswith("gross")


def test_machine_facts():
    facts = Host().describe()
    assert facts["cores_usable"] >= 1
    assert facts["cpu_model"]
    assert set(Host().state()) == {"load", "khz", "celsius"}


def test_cpu_model_of_an_arm_board_and_of_none(tmp_path):
    (tmp_path / "arm").write_text("processor\t: 0\nBogoMIPS\t: 38.40\nCPU part\t: 0xd0b\n\nHardware\t: Board X\n")
    assert host.cpu_model(tmp_path / "arm") == ("Board X", None)
    (tmp_path / "guest").write_text("model name\t: CPU Y\nflags\t\t: fpu hypervisor sse\n")
    assert host.cpu_model(tmp_path / "guest") == ("CPU Y", True)
    (tmp_path / "metal").write_text("model name\t: CPU Y\nflags\t\t: fpu sse\n")
    assert host.cpu_model(tmp_path / "metal") == ("CPU Y", False)
    assert host.cpu_model(tmp_path / "absent")[1] is None


def test_only_the_cpu_is_measured_on_the_host():
    assert "'gpu' is not measured on the host" in Host().refuse(Case(0, accelerator="gpu"))
    assert Host().refuse(Case(0, threads=1)) is None


def test_timed_runs_end_at_the_limit(models):
    settings = Settings(runs=10**9, min_seconds=0.0, max_seconds=0.1, warmup_max_seconds=0.5)
    device = Host()
    device.prepare(str(models / "large.tflite"), {})
    block = device.measure(str(models / "large.tflite"), Case(0), settings)
    assert block["count"] < 10**6
    assert len(block["times_ns"]) <= 1000
    assert 0.02 < sum(block["times_ns"]) * block["every"] / 1e9 < 0.5


def test_delegated_nodes_are_counted_through_the_graph():
    """a -> 1 -> b -> 2 -> c -> 3 -> d; one delegate from b to d took nodes 2 and 3 and their weights' users only."""
    chain = [
        {"op_name": "A", "inputs": [0, 9], "outputs": [1]},
        {"op_name": "B", "inputs": [1, 8], "outputs": [2]},
        {"op_name": "C", "inputs": [2], "outputs": [3]},
    ]
    taken = {"op_name": "DELEGATE", "inputs": [1, 8], "outputs": [3]}
    assert worker.delegation([*chain, taken]) == {"nodes": 2, "of": 3, "partitions": 1}
    assert worker.delegation(chain) == {"nodes": 0, "of": 3, "partitions": 0}
    assert worker.delegation([]) is None
    split = [
        {"op_name": "DELEGATE", "inputs": [0, 9], "outputs": [1]},
        {"op_name": "DELEGATE", "inputs": [2], "outputs": [3]},
    ]
    assert worker.delegation(chain + split) == {"nodes": 2, "of": 3, "partitions": 2}


def test_profile_of_events_with_a_delegate_node_and_repeats():
    run = [
        Event("Invoke", 1, 30, 0),
        Event("TfLiteXNNPackDelegate", 2, 20, 7),
        Event("Convert (NC)", 8, 1, 0),
        Event("Convert (NC)", 8, 1, 0),
        Event("IGEMM", 4, 18, 1),
        Event("SOFTMAX", 2, 5, 4),
        Event("Invoke", 32, 2**32, 2**64 - 1),
    ]
    found = profile.summarize([run, run[:1] + run[2:]])
    assert [(row["name"], row["kind"], row["mean_us"]) for row in found["operators"]] == [
        ("Convert (NC)", "delegate", 2.0),
        ("IGEMM", "delegate", 18.0),
        ("SOFTMAX", "operator", 5.0),
    ]
    assert (found["runs"], found["invoke_us"]) == (2, 30.0)
    assert profile.summarize([])["operators"] == []


@pytest.mark.parametrize(("name", "version"), [("tflite_runtime", "2.14.0"), ("ai_edge_litert", "3.0.0")])
def test_other_runtimes_have_no_profile_and_say_so(models, monkeypatch, name, version):
    other = litert.Runtime(name, version, litert.runtime().folder, "x")
    monkeypatch.setattr(litert, "runtime", lambda: other)
    with pytest.raises(BenchError, match=f"the runtime here is {name} {version}"):
        profile.profile(models / "float.tflite")


def test_runtimes_are_looked_for_in_order(monkeypatch, tmp_path):
    for package in ("tflite_runtime", "tensorflow"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('must not be imported to be found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert litert.runtime().name == "ai_edge_litert"
    plain = litert.importlib.util.find_spec
    hidden = {"ai_edge_litert"}
    monkeypatch.setattr(litert.importlib.util, "find_spec", lambda name: None if name in hidden else plain(name))
    assert litert.runtime().name == "tflite_runtime"
    hidden.add("tflite_runtime")
    assert litert.runtime().name == "tensorflow"
    hidden.add("tensorflow")
    with pytest.raises(BenchError, match=r"tfcompress\[bench\]"):
        litert.runtime()


@pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")
def test_threads_are_counted_on_the_cores_of_the_mask(models):
    command = [
        "taskset",
        "1",
        sys.executable,
        "-m",
        "android_bench.cli",
        "run",
        str(models / "float.tflite"),
        "--threads",
        "2",
    ]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert "2 threads on 1 usable cores" in found.stdout
