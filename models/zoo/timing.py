"""Latency of .tflite files on this machine: one process, one thread, files taking turns."""

import pathlib
import random
import statistics
import time

import numpy as np

from tfcompress.export import litert

_LEAST_SECONDS = 0.01


def alternate(files: dict[str, pathlib.Path], base: str, rounds: int = 15, threads: int = 1) -> dict[str, dict]:
    """Time files in turns, in a new random order every round, so that whatever else the machine does falls on all alike.

    Args:
        files: {name: .tflite file}. base: the name that ratios refer to. rounds: of turns. threads: of the CPU.

    Returns:
        {name: {"ms": median of one run, "ratio": median over the rounds of its time over the base's, "low", "high":
        quartiles of the ratio}}.
    """
    runs = {name: _prepared(path, threads) for name, path in files.items()}
    counts = {name: max(1, round(_LEAST_SECONDS / max(_seconds(run, 3), 1e-6))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    order = list(files)
    shuffled = random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(order)
        for name in order:
            times[name].append(_seconds(runs[name], counts[name]))
    found = {}
    for name, seconds in times.items():
        ratios = sorted(a / b for a, b in zip(seconds, times[base], strict=True))
        quarter = len(ratios) // 4
        found[name] = {
            "ms": 1000 * statistics.median(seconds), "ratio": statistics.median(ratios),
            "low": ratios[quarter], "high": ratios[-1 - quarter],
        }  # fmt: skip
    return found


def _prepared(path: pathlib.Path, threads: int):
    """An interpreter fed once with fixed random inputs; what it returns is the run to be timed."""
    made = litert.interpreter(path, threads=threads)
    rng = np.random.default_rng(0)
    for detail in made.get_input_details():
        kind = np.dtype(detail["dtype"])
        if kind.kind == "f":
            value = rng.random(detail["shape"])
        else:
            value = rng.integers(0, 2 if kind.itemsize > 2 else 100, detail["shape"])
        made.set_tensor(detail["index"], np.asarray(value, kind))
    made.invoke()
    return made.invoke


def _seconds(run, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count
