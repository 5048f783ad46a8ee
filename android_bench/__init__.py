"""Latency, memory and per-operator profiles of .tflite files, with statistics one can defend.

    import android_bench

    record = android_bench.run(["float.tflite", "int8.tflite"], threads=(1, 2))
    print(record.table())
    print(android_bench.compare(record)[0].sentence)

The package runs without Keras, TensorFlow and tfcompress.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from android_bench.comparison import Comparison, compare
    from android_bench.errors import BenchError, Refused, UsageError
    from android_bench.record import Record
    from android_bench.session import run

_HOME = {
    "BenchError": "errors",
    "Comparison": "comparison",
    "Record": "record",
    "Refused": "errors",
    "UsageError": "errors",
    "compare": "comparison",
    "run": "session",
}

__all__ = ["BenchError", "Comparison", "Record", "Refused", "UsageError", "compare", "run"]


def __getattr__(name: str):
    # Looked up on first use, so that `android-bench --help` does not wait for NumPy.
    if name in _HOME:
        return getattr(importlib.import_module(f"android_bench.{_HOME[name]}"), name)
    raise AttributeError(f"module 'android_bench' has no attribute {name!r}")
