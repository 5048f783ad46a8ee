#!/usr/bin/env python3
"""Reproduces a paper at a size for this class of machine, and writes what came out to docs/results.

python tools/reproduce.py --list
python tools/reproduce.py 12 --seeds 3 --jobs 2
python tools/reproduce.py 12 --quick
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from models import experiments  # noqa: E402 - the checkout has to be found first
from models.experiments import harness  # noqa: E402
from tfcompress.errors import CompressionError  # noqa: E402


def main(arguments=None) -> int:
    """The command; 0 when it ran, 1 for an error, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", nargs="?", help="number of a paper, or the name of another experiment")
    parser.add_argument("--list", action="store_true", help="the experiments that there are")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a minute: does it still run and come out the same?")
    size.add_argument("--full", action="store_true", help="the paper's size")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, metavar="K", help="seeds 0 to K-1 (default: as the experiment asks)")
    which.add_argument("--seed", type=int, action="append", metavar="S", help="this seed; can be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="seeds to run at a time (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one training (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="run seeds again that are stored in build/experiments")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--package", default="models.experiments", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.list == (options.paper is not None):
        parser.error("give the number of a paper, or --list")
    if options.seeds is not None and options.seeds < 1:
        parser.error("--seeds has to be 1 or more")
    try:
        if options.list:
            _list(options.package, options.root)
            return 0
        found = experiments.find(options.paper, options.package)
        seeds = range(options.seeds) if options.seeds else options.seed
        mode = "quick" if options.quick else "full" if options.full else "standard"
        result = harness.reproduce(
            found, mode, seeds, options.jobs, options.threads, options.fresh, options.root.resolve(), _say
        )
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (harness.Stopped, KeyboardInterrupt) as error:
        print(str(error) or "Interrupted.", file=sys.stderr)
        return 130
    _show(result)
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def _list(package: str, root: pathlib.Path) -> None:
    """One line an experiment: its name, and what the last result says."""
    from rich.console import Console
    from rich.table import Table

    table = Table("paper", "experiment", "sizes", "seeds", "result")
    for key in experiments.modules(package):
        found = experiments.find(key, package)
        path = harness.result_path(key, "standard", root)
        state = _verdict(harness.read(path)["met"]) if path.exists() else "not run yet"
        table.add_row(str(found.paper or key), found.name, ", ".join(found.sizes), str(found.seeds), state)
    Console().print(table)


def _show(result: dict) -> None:
    """The rows with their figures, then the targets."""
    from rich.console import Console
    from rich.table import Table

    rows = {**result["baseline"], **result["measured"]}
    figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    table = Table(title=f"{result['name']} ({result['data']})", title_justify="left")
    table.add_column("")
    for figure in figures:
        table.add_column(figure, justify="right")
    for row, values in rows.items():
        cells = [_figure(values[figure]) if figure in values else "" for figure in figures]
        table.add_row(f"{row} (baseline)" if row in result["baseline"] else row, *cells)
    console = Console()
    console.print(table)
    for target in result["target"]:
        name = target["text"] or f"{target['row']}: {target['figure']}"
        line = f"{name} {target['relation']} {target['value']:g}, measured {target['measured']:.4g}"
        console.print(f"{_verdict(target['met'])}: {line}", highlight=False)
    if result["note"]:
        console.print(result["note"], highlight=False)


def _figure(one: dict) -> str:
    spread = "" if one["std"] is None else f" ± {one['std']:.2g}"
    return f"{one['mean']:.4g}{spread}"


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "reported as it is"}[met]


if __name__ == "__main__":
    sys.exit(main())
