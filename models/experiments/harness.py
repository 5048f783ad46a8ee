"""Running an experiment over its seeds, and the file that says what came out.

Every finished seed is stored under build/experiments, so that an interrupted run goes on where it stopped.
"""

import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

from models.experiments import Experiment, Target, worker
from tfcompress.errors import CompressionError
from tfcompress.files import replacing

KEYS = (
    "paper", "name", "claim", "data", "stand_in", "seeds", "baseline", "measured", "target", "met", "note", "command",
    "commit", "versions", "machine", "seconds",
)  # fmt: skip


class Stopped(Exception):
    """The run was interrupted; finished seeds are stored."""


def reproduce(
    found: Experiment,
    mode: str = "standard",
    seeds: Sequence[int] | None = None,
    jobs: int = 1,
    threads: int = 1,
    fresh: bool = False,
    root: pathlib.Path = worker.ROOT,
    say: Callable[[str], None] = print,
) -> dict:
    """Run the seeds that are not stored yet, write the result file, and return what it holds.

    Args:
        found: the experiment. mode: "quick", "standard" or "full".
        seeds: which; default: as many as the experiment asks for, from 0; one in a quick run.
        jobs: how many seeds to run at a time. threads: of each of them.
        fresh: run stored seeds again.
        root: the folder in which build/experiments and docs/results lie.
        say: where lines about the progress go.

    Raises:
        CompressionError: a seed failed; its log is named.
        Stopped: by Ctrl-C.
    """
    if mode != "standard" and mode not in found.sizes:
        raise CompressionError(f"The experiment {found.key} has no {mode} size. It has: {', '.join(found.sizes)}.")
    seeds = range(1 if mode == "quick" else found.seeds) if seeds is None else seeds
    folder = root / "build/experiments" / found.key / mode
    records: dict[int, dict] = {}
    for seed in () if fresh else seeds:
        record = _stored(found, folder / f"seed-{seed}.json", say)
        if record is not None:
            records[seed] = record
            say(f"seed {seed}: stored, {record['seconds']:.0f} s at {record['commit']}")
    missing = [seed for seed in seeds if seed not in records]
    records |= _run(found, mode, missing, folder, jobs, threads, say)
    result = summarize(found, mode, {seed: records[seed] for seed in seeds})
    path = result_path(found.key, mode, root)
    write(result, path)
    say(f"written: {path.relative_to(root)}")
    return result


def result_path(key: str, mode: str, root: pathlib.Path = worker.ROOT) -> pathlib.Path:
    """Where a result file lies."""
    return root / "docs/results" / ("quick" if mode == "quick" else "") / f"{key}.json"


def write(result: Mapping, path: pathlib.Path) -> None:
    """Write a result file; the old one is intact when this fails."""
    with replacing(path) as part:
        part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def read(path: pathlib.Path) -> dict:
    """Read a result file.

    Raises:
        CompressionError: it is not one.
    """
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CompressionError(f"{path} is not a result file: {error}") from error
    if not isinstance(result, dict) or tuple(result) != KEYS:
        raise CompressionError(f"{path} is not a result file: it has to have the keys {', '.join(KEYS)}.")
    return result


def _stored(found: Experiment, path: pathlib.Path, say) -> dict | None:
    """The record of a seed that ran before, if it is of this code and these packages."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        same = record["code"] == worker.code(found.module) and record["versions"] == worker.versions()
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        say(f"{path.stem}: its record is of other code or packages, so it runs again")
    return record if same else None


def _run(found: Experiment, mode: str, seeds, folder: pathlib.Path, jobs: int, threads: int, say) -> dict[int, dict]:
    """The records of seeds that run now, some at a time."""
    children: list[subprocess.Popen] = []
    stopping = threading.Event()

    def one(seed: int) -> dict:
        if stopping.is_set():
            raise Stopped
        return _seed(found, mode, seed, folder, threads, say, children)

    with concurrent.futures.ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {seed: pool.submit(one, seed) for seed in seeds}
        try:
            return {seed: future.result() for seed, future in futures.items()}
        except KeyboardInterrupt as error:
            raise Stopped(
                "Interrupted. Finished seeds are stored: the same command goes on with the others."
            ) from error
        finally:
            # After an error too: no seed goes on alone behind it.
            stopping.set()
            for future in futures.values():
                future.cancel()
            for child in children:
                child.terminate()


def _seed(found, mode, seed, folder, threads, say, children) -> dict:
    """Run one seed in a process of its own, and pass its lines on."""
    out, log = folder / f"seed-{seed}.json", folder / f"seed-{seed}.log"
    folder.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    package = found.module.rsplit(".", 1)[0]
    arguments = [found.key, "--seed", str(seed), "--mode", mode, "--package", package, "--out", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-m", "models.experiments.worker", *arguments],
        env=_environment(threads), cwd=worker.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C goes to this process, which ends its children in order
    )  # fmt: skip
    children.append(child)
    say(f"seed {seed}: started ({found.sizes.get(mode, mode)})")
    assert child.stdout is not None
    last = ""
    with child.stdout, open(log, "w") as file:
        for line in child.stdout:
            file.write(line)
            file.flush()
            last = line.strip() or last
            if line[:6].strip().isdecimal() or line.startswith("error:"):
                say(f"seed {seed}: {line.rstrip()}")
    if child.wait() or not out.exists():
        raise CompressionError(f"Seed {seed} of the experiment {found.key} failed: {last} (log: {log})")
    return json.loads(out.read_text())


def _environment(threads: int) -> dict[str, str]:
    """The environment of a seed's process: a fixed number of threads, and no chatter."""
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    if threads == 1 and environment["KERAS_BACKEND"] == "jax":
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    return environment


def summarize(found: Experiment, mode: str, records: Mapping[int, Mapping]) -> dict:
    """The result file's content, from the records of the seeds."""
    rows = _over_seeds([record["rows"] for record in records.values()])
    means = {row: {figure: one["mean"] for figure, one in figures.items()} for row, figures in rows.items()}
    for row in found.baseline:
        if row not in rows:
            raise CompressionError(f"The baseline {row!r} of the experiment {found.key} is not among its rows.")
    judged = [_judged(target, means, mode) for target in found.targets]
    met = None if mode == "quick" or not judged else all(one["met"] for one in judged)
    options = "" if mode == "standard" else f" --{mode}"
    if list(records) == list(range(len(records))):
        options += f" --seeds {len(records)}"
    else:
        options += "".join(f" --seed {seed}" for seed in records)
    size = found.sizes.get(mode)
    return {
        "paper": found.paper,
        "name": found.name,
        "claim": found.claim,
        "data": f"{found.data}: {size}" if size else found.data,
        "stand_in": found.stand_in,
        "seeds": list(records),
        "baseline": {row: rows[row] for row in found.baseline},
        "measured": {row: figures for row, figures in rows.items() if row not in found.baseline},
        "target": judged,
        "met": met,
        "note": found.note,
        "command": f"python tools/reproduce.py {found.paper or found.key}{options}",
        "commit": _joined(record["commit"] for record in records.values()),
        "versions": {
            name: _joined(record["versions"].get(name) for record in records.values())
            for name in next(iter(records.values()))["versions"]
        },
        "machine": {
            "cpu": _joined(record["machine"]["cpu"] for record in records.values()),
            "cores": max(record["machine"]["cores"] for record in records.values()),
        },
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
    }


def _over_seeds(each: Sequence[Mapping]) -> dict[str, dict[str, dict]]:
    """Mean, sample standard deviation (None for one seed) and values of every figure."""
    shape = {row: set(figures) for row, figures in each[0].items()}
    if any({row: set(figures) for row, figures in one.items()} != shape for one in each):
        raise CompressionError("The seeds have different rows or figures; run them --fresh with the same code.")

    def one(row, figure):
        values = [rows[row][figure] for rows in each]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return {
            "mean": _rounded(statistics.fmean(values)),
            "std": None if deviation is None else _rounded(deviation),
            "values": [_rounded(value) for value in values],
        }

    return {row: {figure: one(row, figure) for figure in figures} for row, figures in each[0].items()}


def _judged(target: Target, means: Mapping[str, Mapping[str, float]], mode: str) -> dict:
    """A target with what was measured; a quick run is too small to be judged."""
    met = None if mode == "quick" else target.judge(means)
    return {
        "row": target.row,
        "figure": target.figure,
        "relation": target.relation,
        "value": target.value,
        "measured": target.measured(means),
        "met": met,
        "text": target.text,
    }


def _joined(values) -> str | None:
    """The one value that all have, or all that there are."""
    found = list(dict.fromkeys(value for value in values if value is not None))
    return ", ".join(found) if found else None


def _rounded(value: float) -> float:
    return float(f"{value:.7g}")


def differences(old: Mapping, new: Mapping, tolerances: Mapping[str, float] | None = None) -> list[str]:
    """Where two results of the same experiment differ by more than they may; see `experiment`.

    Example:
        >>> row = {"dense": {"accuracy": {"mean": 90.0}}}
        >>> differences({"baseline": row, "measured": {}}, {"baseline": {}, "measured": row})
        []
    """
    first = {**old["baseline"], **old["measured"]}
    second = {**new["baseline"], **new["measured"]}
    found = [f"the row {row!r} is in one of them only" for row in sorted(first.keys() ^ second.keys())]
    for row in first.keys() & second.keys():
        for figure in sorted(first[row].keys() | second[row].keys()):
            if figure not in first[row] or figure not in second[row]:
                found.append(f"{row!r} has the figure {figure!r} in one of them only")
                continue
            before, after = first[row][figure]["mean"], second[row][figure]["mean"]
            allowed = (tolerances or {}).get(figure, 0.2 * max(abs(before), abs(after)))
            if abs(before - after) > allowed:
                found.append(f"{figure!r} of {row!r}: {before:g} and {after:g} differ by more than {allowed:g}")
    return found
