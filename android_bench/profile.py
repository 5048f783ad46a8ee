"""Time per operator, through the profiler of LiteRT's C interface.

The Python interpreter has no profiler, but the library inside the package has one. What it says has traps: operators
inside XNNPACK appear under XNNPACK's own names and numbers; telemetry events come with an elapsed time of 2**32; the
clock ticks in microseconds, so a short operator reads 0 in most runs and only its sum over many runs says something.
Profiling slows the run, so no latency is ever taken from here.
"""

import contextlib
import ctypes
import dataclasses
import statistics
from collections.abc import Iterable
from typing import Any

from android_bench import litert
from android_bench.errors import BenchError

# The C interface is not declared stable: only releases on which the calls below were tried.
_TRIED = ("2.3.",)
_PLAIN, _INSIDE, _DELEGATED = 2, 4, 8
_KINDS = {_PLAIN: "operator", _INSIDE: "delegate", _DELEGATED: "delegate"}
_DEFAULT = 1
_CPU = 1
_WRITE = 1


@dataclasses.dataclass(frozen=True)
class Event:
    """One event of the profiler: its tag, type (a power of two), microseconds, and the number of the operator."""

    tag: str
    type: int
    microseconds: int
    number: int


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("elapsed", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("number", ctypes.c_uint64),
        ("more", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


def summarize(runs: Iterable[Iterable[Event]]) -> dict:
    """Operators with their times, from the events of several runs. Pure.

    Args:
        runs: the events of each run.

    Returns:
        {"runs", "invoke_us": median of the whole invocation, "operators": [{"name", "kind", "number", "calls",
        "mean_us", "median_us", "max_us", "share"}]} in the order of running; a share is of the sum over operators.

    Example:
        >>> run = [Event("Invoke", 1, 9, 0), Event("CONV_2D", 2, 6, 0), Event("SOFTMAX", 2, 2, 1)]
        >>> [(row["name"], row["share"]) for row in summarize([run])["operators"]]
        [('CONV_2D', 0.75), ('SOFTMAX', 0.25)]
    """
    times: dict[tuple, list[int]] = {}
    invoke: list[int] = []
    count = 0
    for events in runs:
        count += 1
        listed = list(events)
        inside = any(event.type in (_INSIDE, _DELEGATED) for event in listed)
        seen: dict[tuple, int] = {}
        for event in listed:
            if event.type == _DEFAULT and event.tag == "Invoke":
                invoke.append(event.microseconds)
            # The node that stands for the delegate holds the operators inside it, which are listed by themselves.
            if event.type not in _KINDS or (inside and event.type == _PLAIN and "delegate" in event.tag.lower()):
                continue
            key = (event.tag, _KINDS[event.type], event.number)
            seen[key] = seen.get(key, 0) + event.microseconds
        for key, spent in seen.items():
            times.setdefault(key, []).append(spent)
    total = sum(sum(series) for series in times.values())
    rows = [
        {
            "name": name,
            "kind": kind,
            "number": number,
            "calls": len(series),
            "mean_us": sum(series) / len(series),
            "median_us": float(statistics.median(series)),
            "max_us": max(series),
            "share": sum(series) / total if total else 0.0,
        }
        for (name, kind, number), series in times.items()
    ]
    return {"runs": count, "invoke_us": float(statistics.median(invoke)) if invoke else None, "operators": rows}


class _Library:
    """Calls into libLiteRt with the status turned into an error."""

    def __init__(self, path):
        try:
            self.handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise BenchError(f"{path} cannot be loaded ({error}).") from error

    def call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self.handle, name)
        except AttributeError:
            raise BenchError(f"this LiteRT has no function {name}") from None
        function.restype = ctypes.c_int
        status = function(*arguments)
        if status != 0:
            raise BenchError(f"{name} failed with status {status}")

    def new(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Call a function that writes a handle through its last argument."""
        result = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(result))
        return result

    def number(self, name: str, *arguments: Any, kind: type = ctypes.c_size_t) -> int:
        """Call a function that writes a number through its last argument."""
        result = kind()
        self.call(name, *arguments, ctypes.byref(result))
        return result.value

    def destroy(self, name: str, handle: ctypes.c_void_p) -> None:
        function = getattr(self.handle, name)
        function.restype = None
        function(handle)


def _options(lib: _Library, texts: dict[str, str]) -> ctypes.c_void_p:
    """Options for the CPU with these option texts, which LiteRT frees itself."""
    libc = ctypes.CDLL(None)
    libc.strdup.restype = ctypes.c_void_p
    libc.strdup.argtypes = [ctypes.c_char_p]
    free = ctypes.cast(libc.free, ctypes.c_void_p)
    options = lib.new("LiteRtCreateOptions")
    lib.call("LiteRtSetOptionsHardwareAccelerators", options, ctypes.c_int(_CPU))
    for identifier, text in texts.items():
        payload = ctypes.c_void_p(libc.strdup(text.encode()))
        lib.call(
            "LiteRtAddOpaqueOptions", options, lib.new("LiteRtCreateOpaqueOptions", identifier.encode(), payload, free)
        )
    return options


def _buffers(lib: _Library, stack: contextlib.ExitStack, handles, side: str) -> ctypes.Array:
    """Buffers for the inputs or outputs of the first signature; inputs are zeroed."""
    environment, signature, compiled = handles
    count = lib.number(f"LiteRtGetNumSignature{side}s", signature)
    result = (ctypes.c_void_p * count)()
    for position in range(count):
        index = ctypes.c_size_t(position)
        tensor = lib.new(f"LiteRtGetSignature{side}TensorByIndex", signature, index)
        # Larger than LiteRtRankedTensorType in any release; it is only handed on.
        kind = (ctypes.c_uint64 * 64)()
        lib.call("LiteRtGetRankedTensorType", tensor, ctypes.byref(kind))
        needs = lib.new(f"LiteRtGetCompiledModel{side}BufferRequirements", compiled, ctypes.c_size_t(0), index)
        buffer = lib.new("LiteRtCreateManagedTensorBufferFromRequirements", environment, ctypes.byref(kind), needs)
        stack.callback(lib.destroy, "LiteRtDestroyTensorBuffer", buffer)
        if side == "Input":
            size = lib.number("LiteRtGetTensorBufferPackedSize", buffer)
            address = ctypes.c_void_p()
            lib.call("LiteRtLockTensorBuffer", buffer, ctypes.byref(address), ctypes.c_int(_WRITE))
            ctypes.memset(address, 0, size)
            lib.call("LiteRtUnlockTensorBuffer", buffer)
        result[position] = buffer.value
    return result


def _events(lib: _Library, profiler: ctypes.c_void_p) -> list[Event]:
    count = lib.number("LiteRtGetNumProfilerEvents", profiler, kind=ctypes.c_int)
    raw = (_Event * count)()
    lib.call("LiteRtGetProfilerEvents", profiler, ctypes.c_int(count), raw)
    # Tags belong to the profiler and go away with the next reset.
    return [Event((e.tag or b"").decode(errors="replace"), e.type, e.elapsed, e.number) for e in raw]


def profile(path, threads: int = 1, runs: int = 50, warmup: int = 10) -> dict:
    """Run a file under LiteRT's profiler, on the CPU with XNNPACK, with zeros as inputs.

    A wrong guess about the C interface ends the process, so call it in a child (android_bench does).

    Args:
        path: the .tflite file, with static input shapes.
        threads: of the runtime.
        runs: profiled runs.
        warmup: runs before them.

    Returns:
        See `summarize`.

    Raises:
        BenchError: the runtime has no profiler that is known, or refuses the file.
    """
    runtime = litert.runtime()
    library = runtime.library()
    if runtime.name != "ai_edge_litert" or library is None or not runtime.version.startswith(_TRIED):
        raise BenchError(
            f"a profile per operator comes from ai_edge_litert {', '.join(v + 'x' for v in _TRIED)}; "
            f"the runtime here is {runtime.name} {runtime.version}"
        )
    lib = _Library(library)
    with contextlib.ExitStack() as stack:

        def keep(kind: str, handle: ctypes.c_void_p) -> ctypes.c_void_p:
            stack.callback(lib.destroy, f"LiteRtDestroy{kind}", handle)
            return handle

        environment = keep("Environment", lib.new("LiteRtCreateEnvironment", ctypes.c_int(0), None))
        model = keep("Model", lib.new("LiteRtCreateModelFromFile", environment, str(path).encode()))
        texts = {"runtime_options_string": "enable_profiling = true\n", "xnnpack": f"num_threads = {threads}\n"}
        options = keep("Options", _options(lib, texts))
        compiled = keep("CompiledModel", lib.new("LiteRtCreateCompiledModel", environment, model, options))
        signature = lib.new("LiteRtGetModelSignature", model, ctypes.c_size_t(0))
        profiler = lib.new("LiteRtCompiledModelGetProfiler", compiled)
        handles = (environment, signature, compiled)
        inputs, outputs = (_buffers(lib, stack, handles, side) for side in ("Input", "Output"))

        def run() -> None:
            first = ctypes.c_size_t(0)
            sizes = ctypes.c_size_t(len(inputs)), ctypes.c_size_t(len(outputs))
            lib.call("LiteRtRunCompiledModel", compiled, first, sizes[0], inputs, sizes[1], outputs)

        for _ in range(warmup):
            run()
        collected = []
        for _ in range(runs):
            lib.call("LiteRtResetProfiler", profiler)
            lib.call("LiteRtStartProfiler", profiler)
            run()
            lib.call("LiteRtStopProfiler", profiler)
            collected.append(_events(lib, profiler))
    return summarize(collected)
