"""The record of a session: one JSON document from which every table, comparison and report is made."""

import dataclasses
import datetime
import json
import pathlib
import re
from typing import Any

import numpy as np

from android_bench import __version__, energy, judge, stats
from android_bench.errors import BenchError, UsageError
from android_bench.files import write_text
from android_bench.plan import Case, Settings

VERSION = 1
SCHEMA = pathlib.Path(__file__).with_name("record.schema.json")
_NUMBERS = re.compile(r"\[\s+([-+.eE0-9]+(?:,\s+[-+.eE0-9]+)*)\s+\]")
_FIGURES = ("median", "mean", "min", "max", *(f"p{q}" for q in stats.PERCENTILES))
_MEMORY_KIND = "VmHWM of the measuring process, Python and runtime included"


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Record:
    """What was measured, where, how, and what must be known beside it.

    Args:
        data: a document of the form that record.schema.json describes. It is held, not copied.

    Example:
        >>> from android_bench.plan import Settings
        >>> record = Record.begin({"name": "host", "kind": "host", "harness": "none"}, Settings())
        >>> Record.from_json(record.to_json()).status
        'partial'
    """

    def __init__(self, data: dict[str, Any]):
        self.data = data

    @classmethod
    def begin(cls, device: dict[str, Any], settings: Settings) -> "Record":
        """An empty record."""
        return cls(
            {
                "android_bench": VERSION,
                "status": "partial",
                "created": now(),
                "finished": None,
                "tool_version": __version__,
                "device": device,
                "settings": dataclasses.asdict(settings),
                "files": [],
                "cases": [],
                "blocks": [],
                "flags": [],
            }
        )

    @property
    def status(self) -> str:
        """Either "complete" or "partial": blocks of the plan are missing."""
        return self.data["status"]

    @property
    def device(self) -> dict[str, Any]:
        """Facts of the device."""
        return self.data["device"]

    @property
    def files(self) -> list[dict[str, Any]]:
        """The measured files."""
        return self.data["files"]

    @property
    def cases(self) -> list[dict[str, Any]]:
        """One entry for each file under each setting."""
        return self.data["cases"]

    @property
    def ok(self) -> bool:
        """Whether everything that was asked for was measured."""
        return self.status == "complete" and bool(self.cases) and all(case["status"] == "ok" for case in self.cases)

    def label(self, case: dict[str, Any]) -> str:
        """The name of a case's file."""
        return self.files[case["file"]]["name"]

    def add_case(self, case: Case) -> dict[str, Any]:
        """A new entry, pending."""
        entry: dict[str, Any] = {
            "file": case.file,
            "threads": case.threads,
            "accelerator": case.accelerator,
            "status": "pending",
            "reason": None,
            "flags": [],
            "latency": None,
            "check": None,
            "profile": None,
            "energy": {"joules": None, "kind": None, "reason": "nothing was run"},
        }
        self.cases.append(entry)
        return entry

    def blocks_of(self, case: int) -> list[dict[str, Any]]:
        """The blocks of a case that were measured, in order of time."""
        return [block for block in self.data["blocks"] if block["case"] == case and block["status"] == "ok"]

    def rounds_of(self, case: int) -> dict[int, list[float]]:
        """Times in milliseconds by round; those of a program that prints no single runs count as one run a process.

        Args:
            case: index of the case.
        """
        return {block["round"]: milliseconds(block) for block in self.blocks_of(case)}

    def summarize(self, index: int) -> None:
        """Fill in a case's figures and flags from its blocks; a case that failed keeps its reason."""
        case, blocks = self.cases[index], self.blocks_of(index)
        if not blocks or case["status"] in ("failed", "refused"):
            return
        series = [milliseconds(block) for block in blocks]
        summary = stats.summarize(series, seed=self.data["settings"]["seed"])
        flags = judge.noisy(summary, len(blocks)) + judge.throttled([stats.median(times) for times in series])
        flags += judge.unsteady(blocks, self.device.get("cores_usable"))
        flags += judge.desktop(self.device, self.files[case["file"]].get("integer", False))
        kept = {flag["code"]: flag for flag in case["flags"]}
        case["flags"] = list((kept | {flag.code: dataclasses.asdict(flag) for flag in flags}).values())
        case["latency"] = _latency(summary, blocks)
        case["init_ms"] = _middle(blocks, "init_ns")
        case["first_ms"] = _middle(blocks, "first_ns")
        for name in ("peak_memory_bytes", "model_memory_bytes"):
            case[name] = max((block[name] for block in blocks if block.get(name) is not None), default=None)
        case.setdefault("memory_kind", _MEMORY_KIND)
        case["energy"] = energy.per_inference(blocks)

    def table(self) -> str:
        """The cases as plain text, one line each, with what must be known below."""
        from android_bench.report import table

        return table(self)

    def to_json(self) -> str:
        """The document as text, lists of numbers on one line each."""
        text = json.dumps(self.data, indent=1, allow_nan=False)
        return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)

    def save(self, path) -> pathlib.Path:
        """Write it in one step: a reader sees the old record or the new one."""
        write_text(path, self.to_json() + "\n")
        return pathlib.Path(path)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """The inverse of `to_json`.

        Raises:
            BenchError: not a record, or one of another version; the message names the place.
        """
        import jsonschema

        try:
            data = json.loads(text)
        except ValueError as error:
            raise BenchError(f"This is not JSON ({error}).") from error
        version = data.get("android_bench") if isinstance(data, dict) else None
        if version != VERSION:
            raise BenchError(f"This is not a record of version {VERSION} ('android_bench' reads {version!r}).")
        found = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(data)
        first = min(found, key=lambda e: list(map(str, e.absolute_path)), default=None)
        if first is not None:
            place = "/".join(map(str, first.absolute_path)) or "the top"
            raise BenchError(f"The record is damaged at {place}: {first.message[:300]}")
        for entries, limit, name in (
            (data["cases"], len(data["files"]), "file"),
            (data["blocks"], len(data["cases"]), "case"),
        ):
            if any(entry[name] >= limit for entry in entries):
                raise BenchError(f"The record is damaged: an entry names a {name} that is not there.")
        return cls(data)

    @classmethod
    def load(cls, path) -> "Record":
        """Read a record from a file, or from the folder that `--out` named.

        Raises:
            UsageError: there is no such file. BenchError: it is no record.
        """
        path = pathlib.Path(path)
        if path.is_dir():
            path = path / "record.json"
        if not path.is_file():
            raise UsageError(f"There is no file {path}.")
        try:
            record = cls.from_json(path.read_text(encoding="utf-8"))
        except (BenchError, UnicodeDecodeError) as error:
            raise BenchError(f"{path}: {error}") from error
        if record.status == "partial":
            # A session that was killed had no time to sum up.
            for index in range(len(record.cases)):
                record.summarize(index)
        return record


def milliseconds(block: dict[str, Any]) -> list[float]:
    """The times of a block, or the one figure that its program printed: the median, in old builds only the mean."""
    if "times_ns" in block:
        return [value / 1e6 for value in block["times_ns"]]
    printed = block["printed"]
    return [(printed["avg"] if printed.get("median") is None else printed["median"]) / 1000]


def _middle(blocks: list[dict[str, Any]], name: str) -> float | None:
    values = [block[name] for block in blocks if block.get(name) is not None]
    return float(np.median(values)) / 1e6 if values else None


def _latency(summary: dict, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of the record, from single runs or from printed figures."""
    if any("printed" in block for block in blocks):
        return _printed(summary, blocks)
    return _counted(summary, blocks) | {"intervals": summary["intervals"]} | {f"{n}_ms": summary[n] for n in _FIGURES}


def _counted(summary: dict, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    runs = sum(block["count"] for block in blocks)
    return {"runs": runs, "processes": len(blocks), "level": summary["level"]}


def _printed(summary: dict, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a program's own figures allow: no percentile that was not printed, no interval from one process."""
    result: dict[str, Any] = _counted(summary, blocks) | {f"{name}_ms": None for name in _FIGURES}
    for name, key, pick in (
        ("median", "median", np.median),
        ("mean", "avg", np.mean),
        ("min", "min", np.min),
        ("max", "max", np.max),
        ("p5", "p5", np.median),
        ("p95", "p95", np.median),
    ):
        values = [block["printed"][key] for block in blocks if block["printed"].get(key) is not None]
        if len(values) == len(blocks):
            result[f"{name}_ms"] = float(pick(values)) / 1000
    kind = "mean" if result["median_ms"] is None else "median"
    result["intervals"] = {kind: summary["intervals"][kind]} if len(blocks) > 1 else {}
    return result
