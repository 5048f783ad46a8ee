"""A record as a plain table."""

import contextlib
from collections.abc import Sequence
from typing import Any

from android_bench.comparison import compare
from android_bench.errors import BenchError
from android_bench.record import Record
from android_bench.session import setting

_OPERATORS = 10


def table(record: Record) -> str:
    """The cases, one line each; below, the comparison, the operators, and what must be known."""
    parts = [_cases(record)]
    with contextlib.suppress(BenchError):  # one case alone
        parts.append("\n".join(row.sentence for row in compare(record)))
    parts += [_operators(record, case) for case in record.cases if case["profile"]]
    parts.append(_notes(record))
    return "\n\n".join(part for part in parts if part)


def _cases(record: Record) -> str:
    header = [
        "file",
        "accelerator",
        "threads",
        "median ms",
        "95 % interval",
        "p90",
        "p99",
        "first",
        "init",
        "runs",
        "MB",
        "kB",
        "flags",
    ]
    rows = [header]
    for case in record.cases:
        size = record.files[case["file"]]["bytes"]
        start = [record.label(case), case["accelerator"], _cell(case["threads"])]
        latency = case["latency"]
        if latency is None or case["status"] in ("failed", "refused"):
            rows.append([*start, case["status"], *["-"] * (len(header) - 6), _scaled(size, 1e3), ""])
            continue
        kind = "mean" if latency["median_ms"] is None else "median"
        interval = latency["intervals"].get(kind)
        rows.append(
            [
                *start,
                _cell(latency[f"{kind}_ms"]) + " (mean)" * (kind == "mean"),
                "-" if interval is None else f"{_cell(interval[0])} to {_cell(interval[1])}",
                _cell(latency.get("p90_ms")),
                _cell(latency.get("p99_ms")),
                _cell(case.get("first_ms")),
                _cell(case.get("init_ms")),
                f"{latency['runs']}/{latency['processes']}",
                _scaled(case.get("peak_memory_bytes"), 1e6),
                _scaled(size, 1e3),
                ", ".join(flag["code"] for flag in case["flags"]),
            ]
        )
    return aligned(rows)


def _operators(record: Record, case: dict[str, Any]) -> str:
    profile = case["profile"]
    title = f"Operators of {record.label(case)} ({setting(case)})"
    if profile["reason"]:
        return f"{title}: no profile, {profile['reason']}."
    rows = [["share", "mean us", "calls", "where", "operator"]]
    for row in sorted(profile["operators"], key=lambda row: -row["share"])[:_OPERATORS]:
        rows.append([f"{row['share']:.1%}", _cell(row["mean_us"]), str(row["calls"]), row["kind"], row["name"]])
    left = len(profile["operators"]) - _OPERATORS
    more = f"\n({left} more in the record)" if left > 0 else ""
    return f"{title}, profiled apart from the timed runs, clock of 1 us:\n{aligned(rows)}{more}"


def _notes(record: Record) -> str:
    lines = [f"{record.label(case)}: {case['status']}: {case['reason']}" for case in record.cases if case["reason"]]
    flags = [flag for case in record.cases for flag in case["flags"]] + record.data["flags"]
    lines += [f"{code}: {why}" for code, why in dict.fromkeys((flag["code"], flag["why"]) for flag in flags)]
    joules = [case["energy"] for case in record.cases if case["latency"]]
    for case in record.cases:
        if case["energy"]["joules"] is not None:
            lines.append(
                f"{record.label(case)}: {case['energy']['joules']:.3g} J per inference ({case['energy']['kind']})"
            )
    lines += [f"energy: {reason}" for reason in dict.fromkeys(entry["reason"] for entry in joules if entry["reason"])]
    for case in record.cases:
        if case["check"]:
            lines.append(f"{record.label(case)}: {_checked(case['check'])}")
    return "\n".join(dict.fromkeys(lines))


def _checked(check: dict[str, Any]) -> str:
    if not check["compared"]:
        return f"{check['samples']} samples ran, outputs finite; nothing was expected of them"
    parts = []
    for row in check["outputs"]:
        error = "not finite" if row["max_error"] is None else f"largest error {row['max_error']:.3g}"
        top1 = "" if row["top1_agreement"] is None else f", top-1 agreement {row['top1_agreement']:.1%}"
        parts.append(f"{row['name']}: {error} (allowed {row['tolerance']:.3g}){top1}")
    return f"{check['samples']} samples, " + "; ".join(parts)


def _cell(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _scaled(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text with aligned columns.

    Example:
        >>> print(aligned([["file", "ms"], ["a.tflite", "1.5"]]))
        file      ms
        a.tflite  1.5
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
