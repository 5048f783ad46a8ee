"""The result of a search for precisions: assignments of which none is worse than another in both drop and cost."""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from tfcompress.errors import CompressionError
from tfcompress.files import replacing

UNITS = {
    "bytes": "bytes of weights",
    "macs": "bit operations (multiply-accumulates x bits of weights x bits of activations)",
    "latency": "ms, median on one thread of the host (this computer, no phone)",
}


@dataclasses.dataclass(frozen=True)
class Point:
    """One assignment of precisions, measured as a whole.

    Args:
        assignment: {path of a layer: "int4", "int8", "int16" or "float"}. precision: of the file that holds it, as
            `export.tflite` takes it. cost: in the objective's unit. score, drop, error: of the network with all of it at
            once, see `tfcompress.search.scoring.Measure`. bytes: of the weights. bit_operations: multiply-accumulates x
            bits of weights x bits of activations. file_bytes, latency_ms: of the exported file on the host, where there was one.
    """

    assignment: dict[str, str]
    precision: str
    cost: float
    score: float
    drop: float
    error: float
    bytes: int
    bit_operations: int
    file_bytes: int | None = None
    latency_ms: float | None = None

    def __str__(self) -> str:
        return f"{self.precision}: " + ", ".join(f"{path} {choice}" for path, choice in self.assignment.items())


def non_dominated(points: Iterable[Point]) -> list[Point]:
    """The points that no other one beats in drop and cost, cheapest first.

    Of equal costs the one with fewer bit operations is cheaper: int8 and int16 have the same bytes. Of points that are equal
    in all of this, the one with the least error is taken.

    Example:
        >>> made = [Point({}, "int8", cost, 0, drop, 0, 0, 0) for cost, drop in ((1, 5), (2, 5), (3, 1), (3, 2))]
        >>> [(point.cost, point.drop) for point in non_dominated(made)]
        [(1, 5), (3, 1)]
    """
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.bit_operations, p.drop, p.error)):
        if math.isfinite(point.drop) and (not found or point.drop < found[-1].drop):
            found.append(point)
    return found


@dataclasses.dataclass
class Front:
    """Assignments of precisions that are worth having, cheapest first.

    Args:
        model: its name. metric, samples, baseline: what the drops are of. objective: "bytes", "macs" or "latency". max_drop:
            the drop that was asked for. points: the front. measured: every assignment that was measured as a whole. fixed:
            {layer: why it was not chosen for}. notes: sentences.
    """

    model: str
    metric: str
    samples: int
    baseline: float
    objective: str
    max_drop: float
    points: list[Point]
    measured: list[Point]
    fixed: dict[str, str]
    notes: list[str]
    _attach: Callable[[Any, Point, Any], Any] | None = dataclasses.field(default=None, repr=False, compare=False)
    _export: Callable | None = dataclasses.field(default=None, repr=False, compare=False)

    def best(self, max_drop: float | None = None) -> Point:
        """The cheapest point within a drop.

        Args:
            max_drop: the largest drop, by default the one that was asked for.

        Raises:
            CompressionError: no point is within it.
        """
        allowed = self.max_drop if max_drop is None else check_drop(max_drop)
        for point in self.points:
            if point.drop <= allowed:
                return point
        least = min((point.drop for point in self.points), default=math.inf)
        raise CompressionError(
            f"No assignment stays within a drop of {allowed:g} in {self.metric}; the least is {least:.4g}. Allow that much, let "
            'layers stay "float" (choices), or train: front.apply(model, point) gives the network to fine-tune.'
        )

    def apply(self, model, point: Point | None = None, data=None):
        """Attach an assignment to a copy of a model, as `QAT` does, with the ranges that were measured with.

        Args:
            model: the model that was searched, or one of the same layers. point: by default `best()`.
            data: calibration inputs, for a model with other weights: its ranges are calibrated anew.

        Returns:
            The attached model, to fine-tune or to hand to `export`.
        """
        if self._attach is None:
            raise CompressionError("This front was not made by mixed_precision in this process; search again.")
        return self._attach(model, point or self.best(), data)

    def export(self, model, path, point: Point | None = None, **options):
        """Write an assignment as a verified .tflite file.

        Args:
            model: the model that was searched, or what `apply` gave, trained further. path: the file. point: by default
                `best()`. options: as for `export.tflite`.

        Returns:
            Its `ExportReport`.

        Raises:
            CompressionError: the export is refused.
        """
        if self._export is None:
            raise CompressionError("This front was not made by mixed_precision in this process; search again.")
        return self._export(model, path, point or self.best(), options)

    def to_dict(self) -> dict:
        """The front as plain values."""
        names = ("model", "metric", "samples", "baseline", "objective", "max_drop", "fixed", "notes")
        lists = {
            "points": [dataclasses.asdict(point) for point in self.points],
            "measured": [dataclasses.asdict(point) for point in self.measured],
        }
        return plain({**{name: getattr(self, name) for name in names}, "unit": UNITS[self.objective], **lists})

    def to_json(self, path=None) -> str:
        """The front as JSON, also written to `path` where one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
        return text

    def __rich__(self):
        from rich.table import Table

        title = f"{self.model}: drop of {self.metric} on {self.samples:,} samples against {UNITS[self.objective]}"
        table = Table(title=title, title_justify="left")
        for head in ("drop", "error", "cost", "file"):
            table.add_column(head, justify="right" if head != "file" else "left")
        table.add_column("layers", overflow="fold")
        for point in self.points:
            cost = f"{point.cost:.4g}" if self.objective == "latency" else f"{point.cost:,.0f}"
            table.add_row(f"{point.drop:.4g}", f"{point.error:.3g}", cost, point.precision, _layers(point))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=140).print(self)
        return "\n".join([*(line.rstrip() for line in out.getvalue().splitlines()), *self.notes])

    def plot(self, path) -> pathlib.Path:
        """Draw drop against cost, all that was measured and the front, to `path` (.svg, .png, .pdf).

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from tfcompress.errors import import_extra

        import_extra("matplotlib", extra="report")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.0, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot([p.cost for p in self.measured], [p.drop for p in self.measured], ".", color="0.7", label="measured")
        axes.step([p.cost for p in self.points], [p.drop for p in self.points], "o-", where="post", label="front")
        axes.axhline(self.max_drop, linestyle=":", color="0.4", label="largest drop asked for")
        axes.set_xlabel(UNITS[self.objective])
        axes.set_ylabel(f"drop of {self.metric}")
        axes.legend(fontsize=8)
        path = pathlib.Path(path)
        with replacing(path) as part:
            figure.savefig(part)
        return path


def check_drop(value) -> float:
    """A largest drop, or an error that says what one is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise CompressionError(
            f"`max_drop` is how much worse the metric may get, 0 or more (percentage points of accuracy); received {value!r}."
        )
    return float(value)


def plain(value):
    """The same values, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _layers(point: Point) -> str:
    """The assignment in words: what most layers have, and the others by name."""
    choices = list(point.assignment.values())
    common = max(dict.fromkeys(choices), key=choices.count)
    others = [f"{path} {choice}" for path, choice in point.assignment.items() if choice != common]
    return f"all {common}" if not others else f"{', '.join(others)}; else {common}"
