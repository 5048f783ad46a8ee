"""Reading the records of android_bench: which latency and energy a report's rows get from one."""

import dataclasses

from tfcompress.errors import CompressionError
from tfcompress.report.rows import Energy, Latency

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a record says about one file.

    Args:
        latency, energy: the measurements, one for each setting that worked.
        notes: what a reader has to know: settings that failed or were refused, and flags of the judge.
    """

    latency: tuple[Latency, ...] = ()
    energy: tuple[Energy, ...] = ()
    notes: tuple[str, ...] = ()


def read_bench(record: dict) -> tuple[dict[str, Measured], tuple[str, ...]]:
    """What a record of android_bench (its JSON as a dictionary) says of each file, by name, and of all of them.

    Raises:
        CompressionError: the dictionary is no such record, or of a version that is not known.
    """
    try:
        if record["android_bench"] != VERSION:
            raise CompressionError(
                f"This record of android_bench is of version {record['android_bench']!r}; known: {VERSION}."
            )
        found = {}
        for number, file in enumerate(record["files"]):
            cases = [case for case in record["cases"] if case["file"] == number]
            found[file["name"]] = _measured(cases, record["device"])
        return found, tuple(flag["why"] for flag in record["flags"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CompressionError(
            f"This is no record of android_bench: {error!r} is missing or of another type."
        ) from error


def _measured(cases: list[dict], device: dict) -> Measured:
    latency, energy, notes = [], [], []
    for case in cases:
        setting = {"threads": case["threads"], "device": device["name"], "accelerator": case["accelerator"]}
        label = f"{device['name']} {case['accelerator']}, threads: {case['threads']}"
        notes += [f"{label}: {flag['why']}" for flag in case["flags"]]
        figures = case["latency"]
        if case["status"] in ("failed", "refused"):
            notes.append(f"{label}: {case['status']}: {case['reason']}")
        elif figures is None:
            notes.append(f"{label}: not measured")
        elif figures["median_ms"] is None:
            notes.append(f"{label}: the program printed a mean only ({figures['mean_ms']:.4g} ms)")
        else:
            interval = figures["intervals"].get("median")
            latency.append(
                Latency(
                    figures["median_ms"],
                    figures.get("p5_ms"),
                    figures.get("p95_ms"),
                    None if interval is None else (interval[0], interval[1]),
                    confidence=figures["level"],
                    runs=figures["runs"],
                    card=device.get("cpu_model") or device.get("machine") or "",
                    **setting,
                )
            )
        joules = case["energy"]["joules"]
        if joules is not None:
            energy.append(Energy(1000 * joules, source=case["energy"]["kind"] or "", **setting))
    return Measured(tuple(latency), tuple(energy), tuple(notes))
