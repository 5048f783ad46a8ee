"""The machine that this runs on as a device: one child process a block, LiteRT with its default XNNPACK delegate."""

import contextlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
from typing import Any

from android_bench import energy, litert
from android_bench.errors import BenchError
from android_bench.plan import Case, Settings

_PACKAGE_PARENT = str(pathlib.Path(__file__).resolve().parent.parent)
_SYSTEM = "/sys/devices/system/cpu"


class Host:
    """This machine, measured through LiteRT's interpreter in child processes.

    Args:
        powercap: root of the powercap tree with the energy counters.
        time_limit: seconds for the children that do not measure (checks, profiles).
    """

    name = "host"
    kind = "host"

    def __init__(self, powercap: str = energy.TREE, time_limit: float = 300.0):
        self.runtime = litert.runtime()
        self.powercap = powercap
        self.time_limit = time_limit
        self._shapes: dict[str, dict[str, list[int]]] = {}

    def describe(self) -> dict[str, Any]:
        """Machine and runtime; what cannot be read is None."""
        model, virtual = cpu_model()
        return {
            "name": self.name,
            "kind": self.kind,
            "cpu_model": model,
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "cores_usable": usable_cores(),
            "governor": _text(f"{_SYSTEM}/cpu0/cpufreq/scaling_governor"),
            "max_khz": _number(f"{_SYSTEM}/cpu0/cpufreq/cpuinfo_max_freq"),
            "memory_bytes": _memory_bytes(),
            "virtual": virtual,
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "harness": "TFLite Interpreter in Python, XNNPACK by default, only invoke() timed",
            **self.runtime.facts(),
        }

    def state(self) -> dict[str, Any]:
        """Load average of the last minute, clock of the first core, hottest thermal zone; None where not readable."""
        zones = pathlib.Path("/sys/class/thermal").glob("thermal_zone*/temp")
        heat = [value / 1000 for path in zones if (value := _number(path)) is not None]
        return {
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "khz": _number(f"{_SYSTEM}/cpu0/cpufreq/scaling_cur_freq"),
            "celsius": max(heat, default=None),
        }

    def refuse(self, case: Case) -> str | None:
        """More threads than cores, or an accelerator that is not measured on the host."""
        if case.accelerator != "cpu":
            return f"the accelerator {case.accelerator!r} is not measured on the host; only the CPU is"
        cores = usable_cores()
        if case.threads > cores:
            return f"{case.threads} threads on {cores} usable cores would measure the scheduler, not the file"
        return None

    def prepare(self, path: str, shapes: dict[str, list[int]]) -> dict[str, Any]:
        """Open the file once in a child, so that one that the runtime refuses or crashes on is known at once."""
        self._shapes[path] = shapes
        return self._child("inspect", path, Case(0))

    def check(self, path: str, case: Case, samples: str, tolerance: float | None) -> dict[str, Any]:
        """Run the samples in a child."""
        return self._child("check", path, case, samples=os.path.abspath(samples), tolerance=tolerance)

    def measure(self, path: str, case: Case, settings: Settings) -> dict[str, Any]:
        """One block in a child."""
        limits = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
        return self._child("time", path, case, limit=settings.time_limit, settings=limits, powercap=self.powercap)

    def profile(self, path: str, case: Case, runs: int) -> dict[str, Any]:
        """Operators of a file with fixed shapes, in a child."""
        if self._shapes.get(path):
            raise BenchError("a file without fixed input shapes is not profiled per operator")
        return self._child("profile", path, case, runs=runs)

    def close(self) -> None:
        """Nothing stays behind on the host."""

    def _child(self, task: str, path: str, case: Case, limit: float | None = None, **job: Any) -> dict[str, Any]:
        """Run one task in a process of its own, and end it whatever happens."""
        limit = self.time_limit if limit is None else limit
        job |= {"task": task, "path": os.path.abspath(path), "threads": case.threads, "shapes": self._shapes.get(path)}
        with tempfile.TemporaryDirectory(prefix="android-bench-") as folder:
            question, answer, log = (pathlib.Path(folder, name) for name in ("job.json", "result.json", "log.txt"))
            question.write_text(json.dumps(job))
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(_search_path())}
            command = [sys.executable, "-m", "android_bench.worker", str(question), str(answer)]
            with log.open("wb") as stream:
                # A session of its own, so that Ctrl-C reaches only the parent, which then ends the child.
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=environment,
                    start_new_session=True,
                )
                try:
                    child.wait(timeout=limit)
                except subprocess.TimeoutExpired:
                    raise BenchError(f"{task} was ended after {limit:g} s (the time limit)") from None
                finally:
                    _end(child)
            return _answer(answer, log, child.returncode)


def _search_path() -> list[str]:
    return [_PACKAGE_PARENT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _end(child: subprocess.Popen) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(answer: pathlib.Path, log: pathlib.Path, code: int) -> dict[str, Any]:
    try:
        result = json.loads(answer.read_text())
    except (OSError, ValueError):
        tail = " ".join(log.read_text(errors="replace").split()[-40:])
        how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        raise BenchError(f"the process {how}; its last words: {tail or 'none'}") from None
    if "error" in result:
        raise BenchError(result["error"])
    return result


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model(cpuinfo: str | pathlib.Path = "/proc/cpuinfo") -> tuple[str | None, bool | None]:
    """The processor's name, and whether it says that it is virtual (None where that cannot be told).

    Args:
        cpuinfo: the kernel's list of processors.
    """
    text = _text(cpuinfo)
    if text is None:
        return platform.processor() or None, None
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or fields.get("Hardware") or fields.get("CPU part")
    flags = fields.get("flags")
    return name or None, "hypervisor" in flags.split() if flags else None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _text(path: str | pathlib.Path) -> str | None:
    try:
        return pathlib.Path(path).read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(path: str | pathlib.Path) -> int | None:
    text = _text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None
