"""The child process: one task (inspect, check, time, profile) on one file, then it ends.

A process for each block gives every block its own memory layout and caches, so that the spread over blocks is the
spread that a user sees; and a runtime that crashes is a failed block, not the end of the measurement.

    python -m android_bench.worker JOB.json RESULT.json
"""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import resource
import signal
import sys
import time

import numpy as np

from android_bench import energy, litert, samples, timing
from android_bench.errors import BenchError
from android_bench.profile import profile


def main(arguments: list[str]) -> int:
    """Read the job, do it, write the result: always a JSON object, with "error" when it did not work."""
    job_file, result_file = map(pathlib.Path, arguments)
    _end_with_parent()
    job = json.loads(job_file.read_text())
    try:
        result = _TASKS[job["task"]](job)
    except BenchError as error:
        result = {"error": str(error)}
    except Exception as error:  # whatever the runtime raises is the answer for this block
        result = {"error": f"{type(error).__name__}: {error}"}
    result_file.write_text(json.dumps(result, allow_nan=False))
    return 0


def _end_with_parent() -> None:
    """On Linux, ask to be killed when the parent dies, so that nothing keeps running after it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _open(job: dict):
    """An allocated interpreter, with the shapes that were asked for."""
    runtime = litert.runtime()
    try:
        interpreter = runtime.interpreter()(model_path=job["path"], num_threads=job["threads"])
        _resize(interpreter, job.get("shapes") or {})
        interpreter.allocate_tensors()
    except BenchError:
        raise
    except (RuntimeError, ValueError) as error:
        raise BenchError(f"{runtime.name} {runtime.version} does not take this file: {_line(error)}") from error
    return interpreter


def _resize(interpreter, shapes: dict[str, list[int]]) -> None:
    """Give inputs the shapes that were asked for, and refuse one that has none."""
    inputs = samples.Tensors("input", interpreter.get_input_details(), samples.signature_of(interpreter)[0])
    given = set()
    for name, shape in shapes.items():
        position = inputs.find(name)
        if position is None:
            raise BenchError(f"A shape was given for {name!r}; the inputs are {', '.join(sorted(inputs.names))}.")
        interpreter.resize_tensor_input(inputs.details[position]["index"], shape, strict=True)
        given.add(position)
    for position, detail in enumerate(inputs.details):
        signature = detail.get("shape_signature", detail["shape"])
        if any(size < 0 for size in signature) and position not in given:
            name = inputs.label(position)
            example = f"--input-shape {name}={','.join('N' if size < 0 else str(size) for size in signature)}"
            raise BenchError(f"The input {name!r} has no fixed shape: give it, {example} with numbers for N.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _tensor(detail: dict) -> dict:
    scale, zero = detail["quantization"]
    return {
        "name": detail["name"],
        "shape": [int(size) for size in detail["shape"]],
        "dtype": np.dtype(detail["dtype"]).name,
        "scale": float(scale) or None,
        "zero_point": int(zero) if scale else None,
    }


def delegation(operators: list[dict]) -> dict | None:
    """How many nodes a delegate took, from the interpreter's list of operators after allocation.

    The list holds the original nodes and one DELEGATE node for each partition. A node was taken when it lies between
    the inputs and the outputs of a partition.

    Args:
        operators: each {"op_name", "inputs", "outputs"}, tensors by index.

    Returns:
        {"nodes", "of", "partitions"}; None when the list is empty.
    """
    originals = [op for op in operators if op["op_name"] != "DELEGATE"]
    partitions = [op for op in operators if op["op_name"] == "DELEGATE"]
    if not originals:
        return None
    producer = {int(tensor): number for number, op in enumerate(originals) for tensor in op["outputs"]}
    taken: set[int] = set()
    for partition in partitions:
        stop = {int(tensor) for tensor in partition["inputs"]}
        todo = [int(tensor) for tensor in partition["outputs"]]
        while todo:
            tensor = todo.pop()
            number = producer.get(tensor)
            if tensor in stop or number is None or number in taken:
                continue
            taken.add(number)
            todo += [int(t) for t in originals[number]["inputs"]]
    return {"nodes": len(taken), "of": len(originals), "partitions": len(partitions)}


def _inspect(job: dict) -> dict:
    """The facts of a file that only a runtime knows."""
    interpreter = _open(job)
    tensors = interpreter.get_tensor_details()
    whole = [
        np.dtype(t["dtype"]).name
        for t in tensors
        if t["quantization"][0] or len(t["quantization_parameters"]["scales"])
    ]
    operators = interpreter._get_ops_details() if hasattr(interpreter, "_get_ops_details") else []
    return {
        "inputs": [_tensor(detail) for detail in interpreter.get_input_details()],
        "outputs": [_tensor(detail) for detail in interpreter.get_output_details()],
        "integer": any("int" in name for name in whole),
        "operators": _counts(op["op_name"] for op in operators if op["op_name"] != "DELEGATE"),
        "delegated": delegation(operators),
    }


def _counts(names) -> dict[str, int]:
    result: dict[str, int] = {}
    for name in names:
        result[name] = result.get(name, 0) + 1
    return result


def _check(job: dict) -> dict:
    return samples.check(_open(job), samples.load(job["samples"]), job["tolerance"])


def _profile(job: dict) -> dict:
    return profile(job["path"], job["threads"], job["runs"])


def _peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    try:
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _time(job: dict) -> dict:
    """Initialisation, first run, warm-up and the timed runs of one block."""
    limits = job["settings"]
    litert.runtime().interpreter()  # the import is Python's cost, not the model's
    overhead = timing.clock_overhead()
    _forget_peak()
    before_memory = _peak()
    start = time.perf_counter_ns()
    interpreter = _open(job)
    init = time.perf_counter_ns() - start
    rng = np.random.default_rng(limits["seed"])
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], samples.random_input(detail, rng))
    start = time.perf_counter_ns()
    interpreter.invoke()
    first = time.perf_counter_ns() - start
    gc.collect()
    gc.disable()
    warm = timing.warm_up(
        interpreter.invoke, limits["warmup_runs"], limits["warmup_seconds"], limits["warmup_max_seconds"]
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    meter, reason = energy.read_powercap(job["powercap"])
    times = timing.timed(interpreter.invoke, limits["runs"], limits["min_seconds"], limits["max_seconds"])
    joules = energy.joules_between(meter, energy.read_powercap(job["powercap"])[0]) if meter else None
    after = resource.getrusage(resource.RUSAGE_SELF)
    peak = _peak()
    kept, every = timing.thin(times)
    return {
        "times_ns": kept,
        "every": every,
        "count": len(times),
        "init_ns": init,
        "first_ns": first,
        "warmup": warm,
        "clock_overhead_ns": overhead,
        "peak_memory_bytes": peak,
        "model_memory_bytes": max(0, peak - before_memory),
        "preemptions": after.ru_nivcsw - usage.ru_nivcsw,
        "cpu_seconds": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "energy": {"joules": joules, "reason": reason},
    }


_TASKS = {"inspect": _inspect, "check": _check, "time": _time, "profile": _profile}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
