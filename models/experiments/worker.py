"""One seed of one experiment, in a process of its own: python -m models.experiments.worker KEY --seed 0 ..."""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from importlib import metadata

from models import experiments
from tfcompress.errors import CompressionError
from tfcompress.files import replacing

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main(arguments=None) -> int:
    """Run one seed and write its record; 1 when the experiment fails with a CompressionError."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("key")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--mode", choices=experiments.MODES, required=True)
    parser.add_argument("--package", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args(arguments)
    start = time.monotonic()

    def log(text):
        print(f"{time.monotonic() - start:6.0f} s  {text}", flush=True)

    try:
        found = experiments.find(options.key, options.package)
        # An experiment that trains imports Keras with its module; one that only counts need not wait for it.
        if "keras" in sys.modules:
            sys.modules["keras"].utils.set_random_seed(options.seed)
        rows = experiments.normalized(
            found.run(seed=options.seed, quick=options.mode == "quick", full=options.mode == "full", log=log)
        )
        record = {
            "rows": rows,
            "seconds": round(time.monotonic() - start, 3),
            "code": code(found.module),
            "commit": commit(),
            "versions": versions(),
            "machine": machine(),
        }
        with replacing(options.out) as part:
            part.write_text(json.dumps(record, indent=1))
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def code(module: str) -> str:
    """SHA-256 of an experiment's source, by which a stored seed is known to be of this version."""
    path = pathlib.Path(*module.split(".")).with_suffix(".py")
    for folder in [ROOT, *map(pathlib.Path, sys.path)]:
        if (folder / path).exists():
            return hashlib.sha256((folder / path).read_bytes()).hexdigest()
    raise CompressionError(f"The source of {module} cannot be found.")


def commit() -> str | None:
    """The commit that is checked out, "-modified" when the code differs from it; None outside a git checkout."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if head is None:
        return None
    return f"{head}-modified" if _git("status", "--porcelain", "--", "tfcompress", "models") else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a figure depends on."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    found = {"python": platform.python_version()}
    for package in ("tfcompress", "keras", backend, "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict:
    """The model of the CPU and the number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()}


if __name__ == "__main__":
    sys.exit(main())
