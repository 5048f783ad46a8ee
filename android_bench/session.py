"""A session: files and settings become alternating blocks on a device, and the blocks a record."""

import dataclasses
import hashlib
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from android_bench import devices, judge, plan, stats
from android_bench.errors import BenchError, UsageError
from android_bench.files import describe_model
from android_bench.plan import Settings
from android_bench.record import Record, milliseconds, now

_PROFILED_RUNS = 100


def run(
    files: str | pathlib.Path | Sequence[str | pathlib.Path],
    device: str | devices.Device = "host",
    *,
    threads: int | Sequence[int] = (1,),
    accelerators: Sequence[str] = ("cpu",),
    check: str | pathlib.Path | None = None,
    tolerance: float | None = None,
    profile: bool = False,
    shapes: dict[str, Sequence[int]] | None = None,
    out: str | pathlib.Path | None = None,
    progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Record:
    """Measure .tflite files on a device, in alternating blocks of one process each.

    Args:
        files: one or more .tflite files.
        device: "host", or an object that is a Device.
        threads: thread counts to try.
        accelerators: accelerators to try; the host has "cpu".
        check: NPZ of inputs, and expected outputs, by tensor or signature name; run before timing. A case that answers
            wrongly fails and is not timed.
        tolerance: largest error that `check` allows, in the unit of the output; None: 1e-3, or two output steps of an
            integer file.
        profile: also measure the time per operator, in runs of their own.
        shapes: {input name: shape} for files without fixed input shapes.
        out: folder for record.json, which is written after every block, so that an interruption leaves a valid one.
        progress: called with a sentence for people after every block.
        **settings: see plan.Settings (runs, min_seconds, blocks, ...).

    Returns:
        The record. Cases that failed or were refused say why; nothing is raised for them.

    Raises:
        UsageError: nothing to do, a wrong setting, or a file that is not there.
        Refused: the device is not known.
        BenchError: a file is no .tflite, or the record cannot be written.
        KeyboardInterrupt: after the record so far, flagged "interrupted", was written to `out`.
    """
    paths = [str(path) for path in ([files] if isinstance(files, str | pathlib.Path) else files)]
    values = Settings.of(**settings)
    grid = plan.cases(len(paths), [threads] if isinstance(threads, int) else list(threads), list(accelerators))
    described = [describe_model(path) for path in paths]
    if len(set(paths)) != len(paths):
        raise UsageError("The same file was given twice; a copy under another name is a way to measure the noise.")
    if len({entry["name"] for entry in described}) != len(paths):
        for entry, path in zip(described, paths, strict=True):
            entry["name"] = path
    if check is not None and not pathlib.Path(check).is_file():
        raise UsageError(f"There is no file {check}.")
    target = devices.find(device) if isinstance(device, str) else device
    session = _Session(target, values, out, progress or (lambda sentence: None))
    session.files(paths, described, {name: list(map(int, shape)) for name, shape in (shapes or {}).items()})
    return session.run(grid, check, tolerance, profile)


class _Session:
    """The steps of `run`, with the record that they fill."""

    def __init__(self, device: devices.Device, settings: Settings, out, progress: Callable[[str], None]):
        self.device = device
        self.settings = settings
        self.out = None if out is None else pathlib.Path(out) / "record.json"
        self.say = progress
        self.record = Record.begin(device.describe(), settings)
        self.record.data["flags"] += [dataclasses.asdict(flag) for flag in judge.shared(self.record.device)]
        self.paths: list[str] = []
        self.shapes: dict[str, list[int]] = {}

    def files(self, paths: list[str], described: list[dict], shapes: dict[str, list[int]]) -> None:
        self.paths, self.shapes = paths, shapes
        self.record.files.extend(described)

    def run(self, grid: list[plan.Case], check, tolerance: float | None, profile: bool) -> Record:
        for case in grid:
            self.record.add_case(case)
        self._note_samples(check, tolerance)
        self._save()
        try:
            self._prepare(grid)
            if check is not None:
                self._check(grid, str(check), tolerance)
            self._blocks(grid)
            if profile:
                self._profile(grid)
            self.record.data["status"] = "complete"
        except KeyboardInterrupt:
            flag = judge.Flag("interrupted", "the session was interrupted: blocks of the plan are missing")
            self.record.data["flags"].append(dataclasses.asdict(flag))
            raise
        finally:
            self._finish()
        return self.record

    def _finish(self) -> None:
        try:
            for index, case in enumerate(self.record.cases):
                self.record.summarize(index)
                if case["status"] == "pending" and case["latency"] is not None:
                    case["status"] = "ok"
            self.record.data["finished"] = now()
            self._save()
        finally:
            self.device.close()

    def _save(self) -> None:
        if self.out is not None:
            self.record.save(self.out)

    def _note_samples(self, check, tolerance: float | None) -> None:
        if check is not None:
            digest = hashlib.sha256(pathlib.Path(check).read_bytes()).hexdigest()
            self.record.data["settings"] |= {"samples": pathlib.Path(check).name, "samples_sha256": digest}
            self.record.data["settings"]["tolerance"] = tolerance

    def _stop(self, index: int, status: str, reason: str) -> None:
        case = self.record.cases[index]
        case["status"], case["reason"] = status, reason
        self.say(f"{self._title(index)}: {status}: {reason}")

    def _title(self, index: int) -> str:
        case = self.record.cases[index]
        return f"{self.record.label(case)}, {setting(case)}"

    def _prepare(self, grid: list[plan.Case]) -> None:
        """Open every file once, and refuse what would measure something else."""
        broken: dict[int, str] = {}
        for number, (path, entry) in enumerate(zip(self.paths, self.record.files, strict=True)):
            self.say(f"opening {entry['name']}")
            try:
                entry |= self.device.prepare(path, self.shapes)
            except BenchError as error:
                broken[number] = str(error)
            if self.shapes:
                entry["shapes"] = self.shapes
        for index, case in enumerate(grid):
            if case.file in broken:
                self._stop(index, "failed", broken[case.file])
            elif reason := self.device.refuse(case):
                self._stop(index, "refused", reason)
            else:
                self.record.cases[index]["delegated"] = self.record.files[case.file].get("delegated")

    def _delegation(self, index: int, found: dict[str, int] | None) -> None:
        """Note what the delegate took; an accelerator that did nothing is a failed case, not a slow one."""
        case = self.record.cases[index]
        case["delegated"] = found
        taken = None
        if found is not None:
            outcome = "none" if not found["nodes"] else "complete" if found["nodes"] == found["of"] else "partial"
            taken = judge.Delegation(outcome, **found)
        reason, flags = judge.delegated(case["accelerator"], taken)
        known = [flag["code"] for flag in case["flags"]]
        case["flags"] += [dataclasses.asdict(flag) for flag in flags if flag.code not in known]
        if reason:
            self._stop(index, "failed", reason)

    def _open_cases(self) -> list[int]:
        return [index for index, case in enumerate(self.record.cases) if case["status"] == "pending"]

    def _check(self, grid: list[plan.Case], samples: str, tolerance: float | None) -> None:
        for index in self._open_cases():
            try:
                result = self.device.check(self.paths[grid[index].file], grid[index], samples, tolerance)
            except BenchError as error:
                self._stop(index, "failed", f"the samples could not be run: {error}")
                continue
            self.record.cases[index]["check"] = result
            if not result["passed"]:
                self._stop(index, "failed", wrong(result))
            else:
                self.say(f"{self._title(index)}: {result['samples']} samples answered as expected")

    def _blocks(self, grid: list[plan.Case]) -> None:
        todo = self._open_cases()
        blocks = plan.alternate(len(todo), self.settings.blocks, self.settings.pause)
        spent: list[float] = []
        for number, block in enumerate(blocks):
            index = todo[block.case]
            if self.record.cases[index]["status"] != "pending":
                continue
            time.sleep(block.pause)
            start = time.monotonic()
            entry = self._block(grid, index, block)
            spent.append(time.monotonic() - start)
            entry["seconds"] = spent[-1]
            self.record.data["blocks"].append(entry)
            self._save()
            left = plan.seconds_left(spent, len(spent) + len(blocks) - number - 1, self.settings.pause)
            if entry["status"] == "ok":
                middle = stats.median(milliseconds(entry))
                self.say(
                    f"[{number + 1}/{len(blocks)}] {self._title(index)}: {middle:.4g} ms (about {left:.0f} s left)"
                )

    def _block(self, grid: list[plan.Case], index: int, block: plan.Block) -> dict[str, Any]:
        entry: dict[str, Any] = {"round": block.round, "case": index, "status": "ok", "reason": None, "started": now()}
        entry["state_before"] = self.device.state()
        try:
            measured = self.device.measure(self.paths[grid[index].file], grid[index], self.settings)
            found = measured.pop("delegated", self.record.cases[index].get("delegated"))
            entry |= measured
            self._delegation(index, found)
        except BenchError as error:
            entry |= {"status": "failed", "reason": str(error)}
            self._stop(index, "failed", f"block {block.round + 1}: {error}")
        entry["state_after"] = self.device.state()
        return entry

    def _profile(self, grid: list[plan.Case]) -> None:
        for index in self._open_cases():
            self.say(f"{self._title(index)}: profile per operator")
            entry: dict[str, Any] = {"reason": None, "operators": []}
            try:
                entry |= self.device.profile(self.paths[grid[index].file], grid[index], _PROFILED_RUNS)
            except BenchError as error:
                entry["reason"] = str(error)
            self.record.cases[index]["profile"] = entry


def setting(case: dict[str, Any]) -> str:
    """A case's setting in words.

    Example:
        >>> setting({"accelerator": "cpu", "threads": 2})
        'cpu, 2 threads'
    """
    if case["threads"] is None:
        return case["accelerator"]
    return f"{case['accelerator']}, {case['threads']} thread{'s' * (case['threads'] != 1)}"


def wrong(result: dict[str, Any]) -> str:
    """The sentence for samples that were answered wrongly."""
    for row in result["outputs"]:
        if not row["passed"]:
            error = "not finite" if row["max_error"] is None else f"off by up to {row['max_error']:.4g}"
            return f"wrong outputs: {row['name']!r} is {error}, {row['tolerance']:.4g} is allowed"
    return "wrong outputs: not all are finite"
