"""What the two programs named benchmark_model print, as data. Pure functions on text: garbage gives less, no crash.

TFLite's program (tflite/tools/benchmark) and LiteRT's (litert/tools) share the name and little else. Lines may carry
"INFO: " or a logcat prefix, old builds leave out the percentiles, and one log may hold the output of several processes.
"""

import dataclasses
import json
import math
import re
from typing import Any

from android_bench.judge import Delegation

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_COUNT = re.compile(r"(?:^|\s)count=(\d+)((?:\s+\w+=" + _NUMBER + r")*)\s*$")
_PAIR = re.compile(r"(\w+)=(" + _NUMBER + r")")
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: ({_NUMBER}), First inference: ({_NUMBER}), "
    rf"Warmup \(avg\): ({_NUMBER}), Inference \(avg\): ({_NUMBER})"
)
_FOOTPRINT = re.compile(
    rf"Memory footprint delta from the start of the tool \(MB\): init=({_NUMBER}) overall=({_NUMBER})"
)
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({_NUMBER})")
_REPLACING = re.compile(
    r"Replacing (\d+) (?:out )?of (\d+) node\(s\) with delegate \((\w+)\) node(?:, yielding (\d+) partitions?)?"
)
_APPLIED = re.compile(
    r"Explicitly applied (\w+) delegate, and the model graph will be (completely|partially) executed by the delegate"
    r"(?: w/ (\d+) delegate kernels)?"
)
_NOT_APPLIED = re.compile(r"Though (\w+) delegate is explicitly applied, the model graph will not be executed")
_USE = re.compile(r"Use (gpu|nnapi|hexagon|xnnpack): \[(\w+)\]", re.IGNORECASE)
_DEBUG = (
    re.compile(r"Library was built as DEBUG"),
    re.compile(r"\b(?:pkgFlags|flags)=\[[^\]]*\bDEBUGGABLE\b"),
    re.compile(r"AddressSanitizer|ThreadSanitizer|MemorySanitizer"),
    re.compile(r"(?:compilation[_ ]mode|build[_ ]type)\W{1,4}(?:dbg|debug)\b", re.IGNORECASE),
)
_LITERT = re.compile(
    r"(Model initialization|Warmup \((?:first|avg)\)|Inference \((?:avg|min|max|std|median|p5|p95)\)|Peak memory):"
    rf"\s+({_NUMBER})(?: ms| MB)?(?: \((\d+) runs\))?"
)
_ACCELERATED = re.compile(r"Fully accelerated:\s+(True|False|1|0)")
_MEBI = 2**20


@dataclasses.dataclass
class Counts:
    """The distribution of one phase, in microseconds; what was not printed is None."""

    count: int
    first: float | None = None
    min: float | None = None
    max: float | None = None
    avg: float | None = None
    std: float | None = None
    p5: float | None = None
    median: float | None = None
    p95: float | None = None


@dataclasses.dataclass
class ProcessRun:
    """One process of a benchmark program.

    Args:
        dialect: "tflite" or "litert".
        warmup: before the run. run: the timed one; None when there was none.
        init_us: initialisation. first_us: first inference.
        peak_bytes: largest memory, and memory_kind: which of the program's figures it is.
        asked: accelerators that the program was told to use.
        delegations: by accelerator ("gpu", "xnnpack", "nnapi", ...).
        debug: the line that gives a debug build away.
    """

    dialect: str
    warmup: Counts | None = None
    run: Counts | None = None
    init_us: float | None = None
    first_us: float | None = None
    peak_bytes: int | None = None
    memory_kind: str | None = None
    asked: list[str] = dataclasses.field(default_factory=list)
    delegations: dict[str, Delegation] = dataclasses.field(default_factory=dict)
    debug: str | None = None


def dialect(text: str) -> str | None:
    """Which of the two programs speaks, from its --help or its output: "tflite", "litert" or None.

    Example:
        >>> dialect("--use_npu ... --require_full_delegation ..."), dialect("--use_nnapi ... --graph=")
        ('litert', 'tflite')
    """
    if re.search(r"BENCHMARK RESULTS|require_full_delegation|dispatch_library_path|benchmark_litert_model", text):
        return "litert"
    if re.search(r"Inference timings in us|enable_op_profiling|use_nnapi|use_xnnpack|count=\d+|Min num runs", text):
        return "tflite"
    return None


def parse(text: str) -> list[ProcessRun]:
    """Every process in a log, in order of time; an empty list when no benchmark program speaks in it.

    Args:
        text: what a program printed, or the file that LiteRT's Python benchmark wrote with --result_json.
    """
    if text.lstrip().startswith("{") and (found := parse_litert_json(text)):
        return [found]
    kind = dialect(text)
    if kind is None:
        return []
    runs = _parse_litert(text) if kind == "litert" else _parse_tflite(text)
    # A note about the build stands once, before the first process, and holds for all.
    evidence = debug_build(text)
    for run in runs:
        run.debug = evidence
    return runs


def debug_build(text: str) -> str | None:
    """The line that shows that a debug build was measured, or None.

    Example:
        >>> debug_build("    flags=[ DEBUGGABLE HAS_CODE ]")
        'flags=[ DEBUGGABLE HAS_CODE ]'
    """
    for line in text.splitlines():
        if any(pattern.search(line) for pattern in _DEBUG):
            return line.strip()
    return None


def counts(line: str) -> Counts | None:
    """A line `count=... avg=...`; None for any other line, and for the tables' own `Timings` and `Memory` lines.

    Example:
        >>> counts("INFO: count=2 first=5 curr=7 min=5 max=7 avg=6 std=1").avg
        6.0
        >>> counts("INFO: count=9 curr=4").median
        4.0
    """
    if "(microseconds)" in line or "(bytes)" in line:
        return None
    found = _COUNT.search(line)
    if found is None:
        return None
    values = {key: _finite(value) for key, value in _PAIR.findall(found[2])}
    count = int(found[1])
    if "avg" not in values and "curr" in values and count > 0:
        # All values were equal; the program then prints one of them alone.
        same = values["curr"]
        return Counts(count, same, same, same, same, 0.0, same, same, same)
    names = [field.name for field in dataclasses.fields(Counts) if field.name != "count"]
    return Counts(count, **{name: values.get(name) for name in names})


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _parse_tflite(text: str) -> list[ProcessRun]:
    runs = [ProcessRun("tflite")]
    phases: list[Counts] = []
    for line in text.splitlines():
        current = runs[-1]
        phase = counts(line)
        if ("STARTING!" in line and phases) or (phase and current.init_us is not None):
            _close(current, phases)
            phases = []
            runs.append(current := ProcessRun("tflite"))
        if phase:
            phases.append(phase)
        _read_line(current, line)
    _close(runs[-1], phases)
    return [run for run in runs if run.run or run.warmup or run.delegations or run.init_us is not None]


def _close(run: ProcessRun, phases: list[Counts]) -> None:
    """The last distribution is the run's, the one before it the warm-up's; an empty run counts as none."""
    if len(phases) > 1:
        run.warmup = phases[-2]
    if phases and phases[-1].count > 0:
        run.run = phases[-1]


def _read_line(run: ProcessRun, line: str) -> None:
    if found := _TIMINGS.search(line):
        run.init_us, run.first_us = _finite(found[1]), _finite(found[2])
    elif found := _PEAK.search(line):
        _memory(run, found[1], "peak memory footprint of the tool, sampled by itself")
    elif found := _FOOTPRINT.search(line):
        if run.peak_bytes is None:
            _memory(run, found[2], "memory footprint delta from the start of the tool")
    elif (found := _USE.search(line)) and found[2].lower() in ("1", "true"):
        run.asked.append(found[1].lower())
    else:
        _read_delegation(run, line)


def _memory(run: ProcessRun, megabytes: str, kind: str) -> None:
    value = _finite(megabytes)
    if value is not None:
        run.peak_bytes, run.memory_kind = round(value * _MEBI), kind


def _accelerator(delegate: str) -> str:
    """ "TfLiteGpuDelegateV2" and "GPU" are one.

    Example:
        >>> _accelerator("TfLiteGpuDelegateV2"), _accelerator("XNNPACK")
        ('gpu', 'xnnpack')
    """
    lowered = delegate.lower()
    return next((name for name in ("gpu", "xnnpack", "nnapi", "hexagon", "coreml") if name in lowered), lowered)


def _read_delegation(run: ProcessRun, line: str) -> None:
    if found := _REPLACING.search(line):
        nodes, of = int(found[1]), int(found[2])
        outcome = "none" if nodes == 0 else "complete" if nodes >= of else "partial"
        partitions = int(found[4]) if found[4] else None
        run.delegations[_accelerator(found[3])] = Delegation(outcome, nodes, of, partitions)
    elif found := _APPLIED.search(line):
        outcome = "complete" if found[2] == "completely" else "partial"
        _note(run, found[1], outcome, int(found[3]) if found[3] else None)
    elif found := _NOT_APPLIED.search(line):
        _note(run, found[1], "none", None)


def _note(run: ProcessRun, delegate: str, outcome: str, partitions: int | None) -> None:
    name = _accelerator(delegate)
    known = run.delegations.get(name) or Delegation(outcome)
    run.delegations[name] = dataclasses.replace(
        known, outcome=outcome, partitions=known.partitions if known.partitions is not None else partitions
    )


def _parse_litert(text: str) -> list[ProcessRun]:
    result = []
    for part in text.split("BENCHMARK RESULTS")[1:]:
        values: dict[str, float] = {}
        runs: dict[str, int] = {}
        for name, number, count in _LITERT.findall(part):
            value = _finite(number)
            if value is None or name in values:
                continue
            values[name] = value
            if count:
                runs[name] = int(count)
        run = ProcessRun("litert")
        micro = {name: value * 1000 for name, value in values.items()}
        if runs.get("Inference (avg)"):
            keys = {key: micro.get(f"Inference ({key})") for key in ("min", "max", "avg", "std", "p5", "median", "p95")}
            run.run = Counts(runs["Inference (avg)"], **keys)
        if runs.get("Warmup (avg)"):
            run.warmup = Counts(runs["Warmup (avg)"], avg=micro.get("Warmup (avg)"))
        run.init_us, run.first_us = micro.get("Model initialization"), micro.get("Warmup (first)")
        if "Peak memory" in values:
            run.peak_bytes, run.memory_kind = round(values["Peak memory"] * _MEBI), "peak memory of the tool"
        if found := _ACCELERATED.search(part):
            run.delegations["any"] = Delegation("complete" if found[1] in ("True", "1") else "incomplete")
        result.append(run)
    return result


def parse_litert_json(text: str) -> ProcessRun | None:
    """The file that LiteRT's Python benchmark writes with --result_json; None when it is not one."""
    try:
        data = json.loads(text)
        latency: dict[str, Any] = data["latency"]
        keys = {key: _micro(latency.get(f"{key}_ms")) for key in ("min", "max", "avg", "std", "p5", "median", "p95")}
        run = ProcessRun("litert", run=Counts(int(latency["num_runs"]), **keys))
        run.warmup = Counts(int(latency["num_warmup_runs"]), avg=_micro(latency.get("warmup_avg_ms")))
        run.init_us, run.first_us = _micro(latency.get("init_ms")), _micro(latency.get("warmup_first_ms"))
        run.asked = [str(name).lower() for name in data.get("accelerators", [])]
        if isinstance(data.get("fully_accelerated"), bool):
            run.delegations["any"] = Delegation("complete" if data["fully_accelerated"] else "incomplete")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return run


def _micro(milliseconds: Any) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or not math.isfinite(milliseconds):
        return None
    return milliseconds * 1000.0


def profile_table(text: str) -> list[dict]:
    """The rows of the `Run Order` table of an operator profile, columns found by their headers.

    Returns:
        [{"name", "kind", "number", "calls", "mean_us", "share"}]; resolution as printed (0.001 ms).
    """
    rows: list[dict] = []
    header: list[str] | None = None
    inside = False
    for line in text.splitlines():
        if "= Run Order =" in line:
            inside = True
        elif inside and header is None and "[node type]" in line.lower():
            header = [name.strip("[]").lower() for name in re.findall(r"\[[^\]]*\]", line)]
        elif inside and header is not None:
            if not line.strip() or line.removeprefix("INFO: ").lstrip().startswith("==="):
                break
            if row := _profile_row(line, header):
                rows.append(row)
    return rows


def _profile_row(line: str, header: list[str]) -> dict | None:
    """One row. Names hold blanks, so the row is cut from the right: the last columns hold none."""
    columns = len(header) - 2
    found = re.match(rf"\s*(?:INFO: )?\s*(.+?)\s+((?:\S+\s+){{{columns}}}\S+)\s*$", line)
    if found is None:
        return None
    values = dict(zip(header[1:], found[2].split(), strict=True))
    place = re.match(r"\[(\w+)\]:(\d+)$", values.get("name", ""))
    average = values.get("avg ms")
    try:
        return {
            "name": found[1].removeprefix("Delegate/"),
            "kind": "delegate" if place and place[1] == "Delegate" else "operator",
            "number": int(place[2]) if place else None,
            "calls": int(values["times called"]),
            "mean_us": float(average) * 1000 if average else None,
            "share": float(values["%"].rstrip("%")) / 100,
        }
    except (KeyError, ValueError):
        return None
