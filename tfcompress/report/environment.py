"""Versions and machine, as a report records them."""

import importlib.metadata
import os
import pathlib
import platform
import re

PACKAGES = ("tfcompress", "keras", "tensorflow", "jax", "torch", "ai-edge-litert", "litert-quantizer", "numpy")


def environment() -> dict[str, str | int | float | None]:
    """Versions of what computes, and the machine: processor, cores that this process may use, memory.

    Example:
        >>> environment()["cores"] >= 1
        True
    """
    found: dict[str, str | int | float | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    found["system"] = f"{platform.system()} {platform.release()}"
    found["processor"] = processor()
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = _first_match("/proc/meminfo", r"MemTotal:\s+(\d+) kB")
    if memory:
        found["memory_gib"] = round(int(memory) / 2**20, 1)
    return found


def processor() -> str:
    """Name of this machine's processor."""
    name = _first_match("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine()
    return re.sub(r"\s+", " ", name).strip()


def _first_match(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, pathlib.Path(path).read_text(errors="replace"))
    except OSError:
        return None
    return match.group(1) if match else None
