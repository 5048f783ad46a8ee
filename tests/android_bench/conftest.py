"""A device whose times are known, and where the fixtures lie."""

import pathlib

import pytest

from android_bench.errors import BenchError

HERE = pathlib.Path(__file__).parent


class FakeDevice:
    """A device of invented times: what the session makes of them can be computed by hand.

    Args:
        milliseconds: function (path, case, number of the block in the session) -> one time or a list of times.
        delegated: what every file's delegate takes.
    """

    name = "fake"
    kind = "host"

    def __init__(self, milliseconds, delegated=None, integer=False):
        self.milliseconds = milliseconds
        self.delegated = delegated
        self.integer = integer
        self.order = []
        self.closed = False

    def describe(self):
        return {"name": self.name, "kind": self.kind, "harness": "invented", "cpu_model": "Abacus 9", "cores_usable": 4}

    def state(self):
        return {"load": 0.1, "khz": None, "celsius": None}

    def refuse(self, case):
        return "too many threads" if case.threads > 4 else None

    def prepare(self, path, shapes):
        if path.endswith("broken.tflite"):
            raise BenchError("cannot be opened")
        return {"integer": self.integer, "delegated": self.delegated}

    def check(self, path, case, samples, tolerance):
        passed = not path.endswith("wrong.tflite")
        row = {
            "name": "y",
            "max_error": 0.5,
            "mean_error": 0.1,
            "top1_agreement": 1.0,
            "tolerance": 0.1,
            "passed": passed,
        }
        return {"samples": 3, "outputs": [row], "compared": True, "passed": passed}

    def measure(self, path, case, settings):
        self.order.append((path, case.threads))
        value = self.milliseconds(pathlib.Path(path).name, case, len(self.order) - 1)
        if isinstance(value, Exception):
            raise value
        times = value if isinstance(value, list) else [value] * settings.runs
        return {
            "times_ns": [round(time * 1e6) for time in times],
            "every": 1,
            "count": len(times),
            "init_ns": 2_000_000,
            "first_ns": 3_000_000,
            "warmup": {"runs": 10, "seconds": 0.1, "stable": True},
            "clock_overhead_ns": 50,
            "peak_memory_bytes": 1_000_000 + len(self.order),
            "model_memory_bytes": 1000,
            "energy": {"joules": None, "reason": "no meter: invented"},
        }

    def profile(self, path, case, runs):
        raise BenchError("an invented device has no profiler")

    def close(self):
        self.closed = True


@pytest.fixture(scope="session")
def models():
    """The folder of small .tflite files."""
    return HERE / "models"


@pytest.fixture(scope="session")
def sample():
    """Reads a recorded output."""
    return lambda name: (HERE / "samples" / name).read_text()


@pytest.fixture
def files(tmp_path):
    """Makes files that look like .tflite to everything but a runtime."""

    def make(*names):
        for name in names:
            (tmp_path / name).write_bytes(b"\0\0\0\0TFL3" + name.encode())
        return [str(tmp_path / name) for name in names]

    return make
