"""A recorded log of a benchmark program as a record, under the same verdicts as a live measurement."""

import dataclasses
from typing import Any

from android_bench import judge, parsers
from android_bench.errors import BenchError
from android_bench.plan import Case, Settings
from android_bench.record import Record

_HARNESS = {"tflite": "benchmark_model of TensorFlow Lite", "litert": "benchmark_model of LiteRT"}


def read(text: str, accelerator: str | None = None, name: str = "log") -> Record:
    """Judge what a benchmark program printed.

    Args:
        text: of one process or several, in order of time.
        accelerator: what was asked for; None: what the log says ("Use gpu: [1]"), else "cpu".
        name: of the log, for people.

    Returns:
        A complete record with one case: "ok" with its flags, "failed" (the accelerator did nothing, no run was
        printed) or "refused" (a debug build; a run that was profiled, of which only the operators are kept).

    Raises:
        BenchError: no benchmark program speaks in the text.
    """
    runs = parsers.parse(text)
    if not runs:
        raise BenchError(
            f"{name} holds no output of a benchmark program that is known (TFLite's or LiteRT's benchmark_model)."
        )
    asked = accelerator or next((a for run in runs for a in run.asked if a not in ("xnnpack", "cpu")), "cpu")
    record = Record.begin({"name": name, "kind": "log", "harness": _HARNESS[runs[0].dialect]}, Settings())
    record.files.append({"name": name, "bytes": None, "sha256": None})
    case = record.add_case(Case(0, accelerator=asked))
    case["threads"] = None
    _judge(case, runs, asked)
    if operators := parsers.profile_table(text):
        case["profile"] = {"reason": None, "operators": operators}
        if case["status"] == "pending":
            case["status"], case["reason"] = "refused", "the run was profiled, which slows it: its times are no latency"
    for number, run in enumerate(runs):
        record.data["blocks"].append(_block(number, run))
    if case["status"] == "pending":
        if any(run.run and run.run.median is None for run in runs):
            why = "the program printed no median; the mean stands in its place, and a few slow runs move it"
            case["flags"].append(dataclasses.asdict(judge.Flag("mean-only", why)))
        case["memory_kind"] = next((run.memory_kind for run in runs if run.memory_kind), None)
        record.summarize(0)
        case["energy"]["reason"] = "a log of a benchmark program holds no energy"
        case["status"] = "ok"
    record.data["status"] = "complete"
    return record


def _judge(case: dict[str, Any], runs: list[parsers.ProcessRun], asked: str) -> None:
    """Refused, failed, or pending with flags: the worst of the processes counts, since they are one figure."""
    debug = next((run.debug for run in runs if run.debug), None)
    if debug:
        case["status"] = "refused"
        case["reason"] = (
            f"a debug build was measured ({debug[:120]}); it can be 10 to 50 times slower than what users get"
        )
        return
    for number, run in enumerate(runs, start=1):
        if run.run is None or (run.run.median is None and run.run.avg is None):
            case["status"], case["reason"] = "failed", f"process {number} of {len(runs)} printed no timed run"
            return
    for run in runs:
        found = run.delegations.get(asked) or run.delegations.get("any")
        reason, flags = judge.delegated(asked, found)
        if found is not None and found.nodes is not None:
            case["delegated"] = {"nodes": found.nodes, "of": found.of, "partitions": found.partitions}
        if reason:
            case["status"], case["reason"] = "failed", reason
            return
        known = [flag["code"] for flag in case["flags"]]
        case["flags"] += [dataclasses.asdict(flag) for flag in flags if flag.code not in known]


def _block(number: int, run: parsers.ProcessRun) -> dict[str, Any]:
    entry: dict[str, Any] = {"round": number, "case": 0, "status": "ok", "reason": None, "warmup": None}
    entry |= {"init_ns": _nano(run.init_us), "first_ns": _nano(run.first_us), "peak_memory_bytes": run.peak_bytes}
    if run.run is None or (run.run.median is None and run.run.avg is None):
        return entry | {"status": "failed", "reason": "no timed run was printed"}
    printed = dataclasses.asdict(run.run)
    return entry | {"count": printed.pop("count"), "printed": printed}


def _nano(microseconds: float | None) -> int | None:
    return None if microseconds is None else round(microseconds * 1000)
