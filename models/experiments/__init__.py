"""The reproductions of the papers.

One module a paper, `pNNN_name.py` (or `name.py` for what is not one of the 100 papers), with a function `run` that is
decorated by `experiment`:

    @experiment(
        name="Magnitude pruning of LeNet-300-100",
        claim="12x fewer weights at no loss of accuracy",
        data="MNIST",
        sizes={"quick": "5 000 images, 2 epochs", "standard": "60 000 images, 15 epochs"},
        baseline="dense",
        targets=[Target("12x", "<=", 0.1, figure="drop")],
    )
    def run(seed, quick, full, log):
        ...
        return {"dense": {"accuracy": 98.4}, "12x": {"accuracy": 98.4, "drop": 0.0}}

`tools/reproduce.py` runs it, one process a seed, and writes what it returns, with whether the targets are met, to
docs/results.
"""

import dataclasses
import importlib
import math
import operator
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from tfcompress.errors import CompressionError, nearest

MODES = ("quick", "standard", "full")
RELATIONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq}
# A row that is one number has one figure, which is called so.
VALUE = "value"


@dataclasses.dataclass(frozen=True)
class Target:
    """What a figure has to be: the mean over the seeds stands in this relation to a number.

    Args:
        row: the row of the result. relation: "<=", ">=", "<", ">" or "==".
        value: the number. figure: the figure in that row, "value" for rows that are one number.
        text: what it means, where row and figure do not say it.

    Example:
        >>> Target("12x", "<=", 0.1, figure="drop").judge({"12x": {"drop": 0.04}})
        True
    """

    row: str
    relation: str
    value: float
    figure: str = VALUE
    text: str = ""

    def __post_init__(self):
        if self.relation not in RELATIONS:
            raise CompressionError(f"A target's relation is one of {', '.join(RELATIONS)}, not {self.relation!r}.")

    def measured(self, rows: Mapping[str, Mapping[str, float]]) -> float:
        """The figure in the rows.

        Raises:
            CompressionError: the rows do not have it.
        """
        if self.row not in rows:
            raise CompressionError(f"A target names the row {self.row!r}. {nearest(self.row, rows)}")
        if self.figure not in rows[self.row]:
            raise CompressionError(
                f"A target names the figure {self.figure!r} of the row {self.row!r}. "
                f"{nearest(self.figure, rows[self.row])}"
            )
        return rows[self.row][self.figure]

    def judge(self, rows: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether the rows meet the target."""
        return bool(RELATIONS[self.relation](self.measured(rows), self.value))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an experiment is about, beside the function that runs it; the arguments are those of `experiment`."""

    key: str
    paper: int | None
    module: str
    run: Callable
    name: str
    claim: str
    data: str
    sizes: Mapping[str, str]
    baseline: Sequence[str]
    targets: Sequence[Target]
    stand_in: str | None
    seeds: int
    note: str
    tolerances: Mapping[str, float]


def experiment(
    *,
    name: str,
    claim: str,
    data: str,
    sizes: Mapping[str, str],
    baseline: str | Sequence[str],
    targets: Sequence[Target] = (),
    stand_in: str | None = None,
    seeds: int = 1,
    note: str = "",
    tolerances: Mapping[str, float] | None = None,
):
    """Make a function an experiment.

    The function takes `seed` (int), `quick` and `full` (bool) and `log` (a function of a line of text), and returns
    rows: {row: {figure: number}}, or {row: number}. Differences and ratios that a target is about are figures as well.

    Args:
        name: of the experiment, a few words. claim: of the paper, with its numbers.
        data: the data sets. sizes: by mode ("quick", "standard", "full"), how much of it, for how long.
        baseline: the row or rows to compare with.
        targets: what has to hold in the standard and full modes; none: report as it is.
        stand_in: what replaces the paper's own data, if it cannot be had.
        seeds: how many are run by default.
        note: what a reader of the row has to know.
        tolerances: by figure, by how much two quick runs may differ; others may by a fifth.
    """
    for mode in sizes:
        if mode not in MODES:
            raise CompressionError(f"`sizes` is by mode: {', '.join(MODES)}; received {mode!r}.")

    def register(run):
        module = run.__module__
        key, paper = _key(module.rsplit(".", 1)[-1])
        rows = (baseline,) if isinstance(baseline, str) else tuple(baseline)
        run.experiment = Experiment(
            key, paper, module, run, name, claim, data, dict(sizes), rows, tuple(targets), stand_in, seeds, note,
            dict(tolerances or {}),
        )  # fmt: skip
        return run

    return register


def _key(module: str) -> tuple[str, int | None]:
    """The key of a module's experiment and its paper: "p012_name" -> ("012", 12), "name" -> ("name", None)."""
    match = re.fullmatch(r"p(\d{3})_\w+", module)
    return (match[1], int(match[1])) if match else (module, None)


def modules(package: str = __name__) -> dict[str, str]:
    """The experiments that there are: key -> module.

    Raises:
        CompressionError: a paper has two modules.
    """
    folder = pathlib.Path(str(importlib.import_module(package).__file__)).parent
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith("_") or path.stem in ("harness", "worker"):
            continue
        key, _ = _key(path.stem)
        if key in found:
            raise CompressionError(f"{found[key]} and {package}.{path.stem} are both experiments of paper {key}.")
        found[key] = f"{package}.{path.stem}"
    return found


def find(key: str | int, package: str = __name__) -> Experiment:
    """The experiment of a paper (by number) or of another name.

    Raises:
        CompressionError: there is none, or its module has no decorated function `run`.
    """
    known = modules(package)
    key = f"{int(key):03d}" if str(key).isdecimal() else str(key)
    if key not in known:
        names = [name.lstrip("0") or name for name in known]
        raise CompressionError(f"There is no experiment {key.lstrip('0')!r}. {nearest(key.lstrip('0'), names)}")
    run = getattr(importlib.import_module(known[key]), "run", None)
    found = getattr(run, "experiment", None)
    if found is None:
        raise CompressionError(f"{known[key]} has no function run(seed, quick, full, log) under @experiment.")
    return found


def normalized(rows) -> dict[str, dict[str, float]]:
    """What an experiment returned, as {row: {figure: float}}.

    Raises:
        CompressionError: it is something else, or a number is not finite.

    Example:
        >>> normalized({"dense": 98.4})
        {'dense': {'value': 98.4}}
    """
    if not isinstance(rows, Mapping) or not rows:
        raise CompressionError(f"An experiment returns rows, {{row: {{figure: number}}}}; received {rows!r}.")
    result = {}
    for row, figures in rows.items():
        figures = figures if isinstance(figures, Mapping) else {VALUE: figures}
        result[str(row)] = {str(figure): _number(row, figure, value) for figure, value in figures.items()}
    return result


def _number(row, figure, value) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise CompressionError(f"{figure!r} of the row {row!r} is not a number: {value!r}.") from error
    if not math.isfinite(number):
        raise CompressionError(f"{figure!r} of the row {row!r} is {number}; the training diverged, or a ratio is off.")
    return number
