#!/usr/bin/env python3
"""Takes the networks of models/zoo through every precision, and writes docs/results/models/*.json and docs/models.md.

python tools/zoo.py --list
python tools/zoo.py                           # all that is not stored yet, one model after the other
python tools/zoo.py --models unet lstm_text   # these only
python tools/zoo.py --models unet --quick     # a few training steps; nothing is written under docs
python tools/zoo.py --page                    # docs/models.md anew from the JSON files

Every step is stored under build/zoo with a hash of the code that it depends on: an interrupted run goes on where it
stopped, and a step runs again when that code has changed (with --keep: only where there is no record).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from models.zoo import ENTRIES, find, page  # noqa: E402 - the checkout has to be found first
from tfcompress.errors import CompressionError  # noqa: E402
from tfcompress.files import replacing  # noqa: E402

RESULTS = "docs/results/models"
PAGE = "docs/models.md"
STEPS = ("float", "ptq", "qat", "latency", "stock", "tfmot")


def main(arguments=None) -> int:
    """The command; 0 when all that was asked for ran, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the models that there are")
    parser.add_argument("--models", nargs="+", default=list(ENTRIES), metavar="KEY", help="default: all")
    parser.add_argument("--steps", nargs="+", choices=STEPS, help="default: all; a quick run leaves the peers out")
    parser.add_argument("--quick", action="store_true", help="a few training steps, to see whether everything runs")
    parser.add_argument("--keep", action="store_true", help="take stored steps of other code as they are")
    parser.add_argument("--fresh", action="store_true", help="run stored steps again")
    parser.add_argument("--page", action="store_true", help=f"run nothing; write {PAGE} from the JSON files")
    parser.add_argument("--check", action="store_true", help=f"run nothing; 1 when {PAGE} is not up to date")
    parser.add_argument("--threads", type=int, default=1, help="threads of training and of the converter")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.list:
            for key in ENTRIES:
                print(f"{key:20} {ENTRIES[key].title}: {ENTRIES[key].about}")
            return 0
        if options.page or options.check:
            return _page(options.root, options.check)
        for key in options.models:
            find(key)
        failed = [key for key in options.models if not _run(key, options)]
        if not options.quick:
            _page(options.root, False)
        if failed:
            print(f"error: not whole: {', '.join(failed)}", file=sys.stderr)
        return 1 if failed else 0
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Finished steps are stored: the same command goes on with the others.", file=sys.stderr)
        return 130


def outdated(root: pathlib.Path) -> str | None:
    """What docs/models.md should be, if it is not."""
    text = page.page(page.read(root / RESULTS))
    path = root / PAGE
    return None if path.exists() and path.read_text() == text else text


def _page(root: pathlib.Path, check: bool) -> int:
    text = outdated(root)
    if text is not None and check:
        print(f"{PAGE} is not up to date: run python tools/zoo.py --page")
        return 1
    if text is not None:
        with replacing(root / PAGE) as part:
            part.write_text(text)
        print(f"written: {PAGE}")
    return 0


def _run(key: str, options) -> bool:
    """One model in a process of its own; whether all its steps came to an end."""
    store = options.root / "build/zoo" / ("quick" if options.quick else "")
    folder = store / key
    steps = options.steps or (STEPS[:4] if options.quick else STEPS)
    if options.fresh:
        for step in steps:
            (folder / f"{step}.json").unlink(missing_ok=True)
    done = False
    # A step that kills the process is recorded as that; the steps after it go on in a new process.
    for _ in steps:
        command = [sys.executable, "-m", "models.zoo.worker", key, "--root", str(store), "--steps", *steps]
        command += [flag for flag in ("--quick", "--keep") if getattr(options, flag[2:])]
        code = subprocess.run(command, cwd=ROOT, env=_environment(options.threads)).returncode
        done = code == 0
        if code >= 0 or not (folder / "running").exists():
            break
        _note_crash(folder, -code)
        options.keep = True
    result = page.assembled(key, folder)
    if result is not None and not options.quick:
        target = options.root / RESULTS / f"{key}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as part:
            part.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(f"written: {RESULTS}/{key}.json", flush=True)
    return done


def _note_crash(folder: pathlib.Path, signal: int) -> None:
    step = (folder / "running").read_text()
    record = {"code": "", "seconds": 0.0, "crash": f"the process died (signal {signal})", "at": time.time()}
    with replacing(folder / f"{step}.json") as part:
        part.write_text(json.dumps(record, indent=1))
    print(f"{step} died of signal {signal}", flush=True)


def _environment(threads: int) -> dict[str, str]:
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", **os.environ}
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        environment[name] = str(threads)
    return environment


if __name__ == "__main__":
    sys.exit(main())
