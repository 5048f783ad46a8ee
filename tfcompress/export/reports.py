"""What an export did and what verification found, as dataclasses that print as tables and become dictionaries."""

import dataclasses
import io

from tfcompress.export.census import Census


@dataclasses.dataclass(frozen=True)
class OutputError:
    """How far one output of the file is from the reference.

    Args:
        name: of the output. largest, mean: absolute error. relative: largest error over the reference's range.
        step: distance of two output codes, None for float outputs. largest_steps: largest error in steps. within_one,
            within_two: share of the numbers at most one, two steps off. exact: share less than half a step off.
        agreement: share of positions with the same largest entry along the last axis; None for single numbers.
    """

    name: str
    largest: float
    mean: float
    relative: float
    step: float | None
    largest_steps: float | None
    within_one: float | None
    within_two: float | None
    exact: float | None
    agreement: float | None


@dataclasses.dataclass(frozen=True)
class TensorError:
    """How far one activation of an integer file is from the float file's, on the samples.

    Args:
        tensor: its name. layer: the Keras operation that computes it, when known. step: its scale. largest: largest error.
        relative: largest error over the float tensor's range. clipped: share of the float values outside its range.
        range: smallest and largest value that its codes stand for. seen: of the float tensor on the samples.
    """

    tensor: str
    layer: str | None
    step: float
    largest: float
    relative: float
    clipped: float
    range: tuple[float, float] = (0.0, 0.0)
    seen: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass
class VerifyReport:
    """The findings about one file.

    Args:
        path: the file. size: its bytes. runtime: what ran it. samples: how many inputs. compared_with: the reference.
        outputs: errors with the default delegate (or without, where only that runs). runs: {"xnnpack", "builtin": "ok" or
            the runtime's refusal}. kernels_differ: largest difference of the two kernel sets, over the output's range.
        census: operators, multiply-accumulates, float remains. gpu: {"compatible", "reasons", "checked_by"}.
        target: {"name", "refusals", "checked_by"}. read_back: {"ranges", "weights": how many equal the trained ones}.
        normalization_left: MUL or ADD operators that stem from a batch normalization. tensors: errors tensor by tensor.
        warnings: sentences. runs_from: the first TensorFlow Lite release that has every operator of the file, and the
            operator that demands it in `demanded_by`. exactness: an `Exactness` for each output, where one is more than a step
            from its simulated network.
    """

    path: str
    size: int
    runtime: str
    samples: int
    compared_with: str
    outputs: list[OutputError]
    runs: dict[str, str]
    kernels_differ: float | None
    census: Census
    gpu: dict
    target: dict
    read_back: dict
    normalization_left: list[str]
    tensors: list[TensorError]
    warnings: list[str]
    runs_from: str = ""
    demanded_by: str = ""
    exactness: list = dataclasses.field(default_factory=list)

    @property
    def max_error(self) -> float:
        """Largest error over all outputs, relative to the output's range."""
        return max(o.relative for o in self.outputs)

    @property
    def max_steps(self) -> float | None:
        """Largest error over all outputs in output steps; None for float outputs."""
        steps = [o.largest_steps for o in self.outputs if o.largest_steps is not None]
        return max(steps) if steps else None

    @property
    def agreement(self) -> float | None:
        """Smallest top-1 agreement over all outputs that have classes."""
        shares = [o.agreement for o in self.outputs if o.agreement is not None]
        return min(shares) if shares else None

    def to_dict(self) -> dict:
        """Plain numbers and strings, for JSON."""
        plain = dataclasses.asdict(self)
        plain["census"]["integer_share"] = self.census.integer_share
        return plain | {"max_error": self.max_error, "max_steps": self.max_steps, "agreement": self.agreement}

    def __rich__(self):
        return _verify_table(self)

    def __str__(self) -> str:
        return as_text(self)


@dataclasses.dataclass
class ExportReport:
    """What one export wrote.

    Args:
        path: the file. precision, boundary, target, batch: as asked for. meaning: what runs, in words. size: bytes.
        ranges: {"trained", "fixed or tied", "calibrated": numbers of tensors}. weights: {"trained", "by extremes"}.
        calibrated: tensors whose range came from calibration although others were trained. fallbacks: what was tried and
            given up. notes: what the user should know. seconds: {phase: time}. verification: None with verify=False.
        runs_from: the first TensorFlow Lite release that has every operator of the file. free_batch: whether the model
            takes any batch, where the file takes `batch`.
    """

    path: str
    precision: str
    boundary: str
    target: str
    batch: int
    meaning: str
    size: int
    ranges: dict[str, int]
    weights: dict[str, int]
    calibrated: list[str]
    fallbacks: list[str]
    notes: list[str]
    seconds: dict[str, float]
    verification: VerifyReport | None = None
    runs_from: str = ""
    free_batch: bool = False

    def to_dict(self) -> dict:
        """Plain numbers and strings, for JSON."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "verification"}
        return plain | {"verification": self.verification.to_dict() if self.verification else None}

    def __rich__(self):
        return _export_table(self)

    def __str__(self) -> str:
        return as_text(self)


def as_text(report) -> str:
    """What rich would print of a report."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110)
    console.print(report)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _rows(title: str, rows: list[tuple[str, str]]):
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, value)
    return table


def _export_table(report: ExportReport):
    from rich.console import Group

    rows = [
        ("file", f"{report.path} ({report.size:,} bytes)"),
        ("precision", f"{report.precision}: {report.meaning}"),
        ("boundary, target", f"{report.boundary}, {report.target}"),
        (
            "batch",
            f"{report.batch}"
            + (" (any in the model: batch= or --batch makes a file for another)" if report.free_batch else ""),
        ),
        ("runs from runtime", "" if report.verification else f"{report.runs_from} on"),
        ("ranges", ", ".join(f"{n} {kind}" for kind, n in report.ranges.items() if n)),
        ("weights", ", ".join(f"{n} {kind}" for kind, n in report.weights.items() if n)),
        ("range by calibration, not trained", ", ".join(report.calibrated)),
        ("fall-backs", "\n".join(report.fallbacks)),
        ("notes", "\n".join(report.notes)),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())),
    ]
    table = _rows("Export", rows)
    return Group(table, _verify_table(report.verification)) if report.verification else table


def _verify_table(report: VerifyReport):
    census = report.census
    rows = [("file", f"{report.path} ({report.size:,} bytes)"), ("run by", report.runtime)]
    if report.runs_from:
        demand = f" (for {report.demanded_by})" if report.demanded_by else ""
        rows.append(
            ("runs from runtime", f"{report.runs_from} on{demand}; by LiteRT's table of operators, corrected by runs")
        )
    rows += [("with XNNPACK, without", ", ".join(f"{k}: {v}" for k, v in report.runs.items()))]
    for o in report.outputs:
        text = f"largest error {o.largest:.3g} ({o.relative:.2%} of the range), mean {o.mean:.3g}"
        if o.largest_steps is not None:
            text += f"; {o.largest_steps:.2f} steps, {o.within_one:.1%} within one, {o.exact:.1%} exact"
        if o.agreement is not None:
            text += f"; top-1 agreement {o.agreement:.1%}"
        rows.append((f"output {o.name}", text))
    rows += [(f"float64 {e.output}", str(e)) for e in report.exactness]
    rows += [
        ("compared with", f"{report.compared_with} on {report.samples} samples"),
        ("operators", ", ".join(f"{kind} {n}" for kind, n in census.operators.items())),
        ("multiply-accumulates", f"{census.macs:,}, {census.integer_share:.1%} on integers" if census.macs else ""),
        ("stay float", "\n".join(_float_line(f, census.macs) for f in census.float_operators)),
        ("float constants", ", ".join(f"{name} ({n:,} bytes)" for name, n in census.float_tensors.items())),
        ("no fixed shape", ", ".join(census.dynamic)),
        ("shape operators", ", ".join(f"{kind} {n}" for kind, n in census.shape_operators.items())),
        ("batch normalization left", ", ".join(report.normalization_left)),
        ("GPU delegate", _gpu_line(report.gpu)),
        (
            f"target {report.target['name']}",
            f"{'refuses ' + '; '.join(report.target['refusals']) if report.target['refusals'] else 'accepts it'} "
            f"(checked by {report.target['checked_by']})",
        ),
        ("read back", ", ".join(f"{n} {kind} as trained" for kind, n in report.read_back.items() if n)),
        ("worst tensors", "\n".join(_tensor_line(t) for t in sorted(report.tensors, key=lambda t: -t.relative)[:3])),
        ("warnings", "\n".join(report.warnings)),
    ]
    return _rows("Verification", rows)


def _float_line(f, total: int) -> str:
    share = f.macs / total if total else 0.0
    layer = f" (layer {f.layer})" if f.layer else ""
    return (
        f"{f.kind} {f.tensor}{layer}: {share:.1%} of the MACs, {f.elements:,} numbers, "
        f"{f.dequantize} DEQUANTIZE before and {f.quantize} QUANTIZE behind it"
    )


def _tensor_line(t: TensorError) -> str:
    layer = f" (layer {t.layer})" if t.layer else ""
    return f"{t.tensor}{layer}: {t.relative:.2%} of its range, {t.clipped:.2%} clipped"


def _gpu_line(gpu: dict) -> str:
    if gpu["compatible"] is None:
        return "not checked: " + "; ".join(gpu["reasons"])
    verdict = "compatible" if gpu["compatible"] else "not compatible: " + "; ".join(gpu["reasons"])
    return f"{verdict} (by {gpu['checked_by']})"
