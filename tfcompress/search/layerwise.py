"""Sensitivity layer by layer: what each layer's zeros or bits cost alone, with all others as they were."""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable, Sequence

from tfcompress import select
from tfcompress.core.sensitivity import Sensitivity
from tfcompress.errors import CompressionError, nearest
from tfcompress.files import replacing
from tfcompress.method import copy_model, deployable
from tfcompress.quantization.scheme import Scheme
from tfcompress.search.ledger import Ledger, beside, of_model
from tfcompress.search.scoring import Score, as_samples
from tfcompress.search.simulation import FLOAT_BITS, Simulation, Weights

KINDS = ("sparsity", "bits", "output_bits")


@dataclasses.dataclass(frozen=True)
class SensitivityRow:
    """One measurement.

    Args:
        layer: path of the layer, or key of the operation whose output was rounded. kind: "sparsity", "bits" (of weights) or
            "output_bits". value: the share of zeros, or the bits. score, drop, error: see `tfcompress.search.scoring.Measure`.
    """

    layer: str
    kind: str
    value: float
    score: float
    drop: float
    error: float


@dataclasses.dataclass
class SensitivityTable:
    """The result of `sensitivity`.

    Args:
        model: its name. metric: what was measured, with its unit. samples: on how many samples. baseline: the score of the
            model as it is. rows: the measurements. notes: what was not measured, and why.
    """

    model: str
    metric: str
    samples: int
    baseline: float
    rows: list[SensitivityRow]
    notes: list[str]

    def of(self, kind: str) -> dict[str, dict[float, SensitivityRow]]:
        """{layer: {value: row}} of one kind.

        Raises:
            CompressionError: there is no such kind.
        """
        if kind not in KINDS:
            raise CompressionError(f"`kind` is {', '.join(KINDS)}; received {kind!r}. {nearest(str(kind), KINDS)}")
        found: dict[str, dict[float, SensitivityRow]] = {}
        for row in self.rows:
            if row.kind == kind:
                found.setdefault(row.layer, {})[row.value] = row
        return found

    def allowed(self, kind: str, drop: float) -> dict[str, float]:
        """How far each layer can go alone: the largest sparsity, or the fewest bits, before the drop is exceeded once.

        Args:
            kind: as in the rows. drop: the largest, in the unit of the metric.
        """
        sign = 1 if kind == "sparsity" else -1
        scores = {
            layer: {sign * value: -row.drop for value, row in rows.items()} for layer, rows in self.of(kind).items()
        }
        found = Sensitivity(0.0, scores).allowed(drop)
        return {layer: sign * value if value else (0.0 if sign > 0 else FLOAT_BITS) for layer, value in found.items()}

    def to_dict(self) -> dict:
        """The table as plain values; what is not finite is None."""
        rows = [{key: _finite(value) for key, value in dataclasses.asdict(row).items()} for row in self.rows]
        return {**dataclasses.asdict(self), "rows": rows}

    def to_json(self, path=None) -> str:
        """The table as JSON, also written to `path` where one is given."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        if path is not None:
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
        return text

    def __rich__(self):
        from rich.table import Table

        heads = {(row.kind, row.value): None for row in self.rows}
        table = Table(
            title=f"Sensitivity of {self.model}: drop of {self.metric} on {self.samples:,} samples (as it is: {self.baseline:.4g})",
            title_justify="left",
        )
        table.add_column("layer")
        for kind, value in heads:
            table.add_column(_head(kind, value), justify="right")
        cells = {(row.layer, row.kind, row.value): row for row in self.rows}
        for layer in dict.fromkeys(row.layer for row in self.rows):
            drops = [cells.get((layer, *head)) for head in heads]
            table.add_row(layer, *("" if row is None else f"{row.drop:.4g}" for row in drops))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=160).print(self)
        return "\n".join([*(line.rstrip() for line in out.getvalue().splitlines()), *self.notes])

    def plot(self, path) -> pathlib.Path:
        """Draw the drops, one panel a kind, one line a value, and write them to `path` (.svg, .png, .pdf).

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from tfcompress.errors import import_extra

        import_extra("matplotlib", extra="report")
        from matplotlib.figure import Figure

        kinds = [kind for kind in KINDS if self.of(kind)]
        widest = max((len(self.of(kind)) for kind in kinds), default=1)
        figure = Figure(figsize=(max(6.0, 0.35 * widest + 2), 3.2 * max(1, len(kinds))), layout="constrained")
        for axes, kind in zip(figure.subplots(max(1, len(kinds)), squeeze=False)[:, 0], kinds, strict=False):
            found = self.of(kind)
            for value in sorted({value for rows in found.values() for value in rows}):
                drops = [rows[value].drop if value in rows else math.nan for rows in found.values()]
                axes.plot(range(len(found)), drops, marker="o", label=_head(kind, value))
            axes.set_xticks(range(len(found)), list(found), rotation=60, ha="right", fontsize=7)
            axes.set_ylabel(f"drop of {self.metric}")
            axes.legend(fontsize=8)
        path = pathlib.Path(path)
        with replacing(path) as part:
            figure.savefig(part)
        return path


def sensitivity(
    model,
    data,
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.9),
    bits: Sequence[int] = (8, 4),
    output_bits: Sequence[int] = (8,),
    metric=None,
    layers=None,
    exclude=None,
    scheme: Scheme | None = None,
    calibration=None,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    out=None,
    verbose: int = 1,
) -> SensitivityTable:
    """Measure what zeros and few bits cost, one layer at a time, with all others as they were; no training.

    Sparsities cut the smallest weights of a layer's kernels. Bits round its kernels as `QAT` does, with batch
    normalization folded. Bits of outputs round one operation's output by its calibrated range.

    Args:
        model: a built model, attached or plain; it is not changed.
        data: (x, y), or x alone, which is compared with the model's own outputs; x is an array, or a list or dictionary of
            arrays for several inputs.
        sparsities: shares of zeros, 0 to 1. bits: of weights, 2 to 8, or 32 for float. output_bits: 8, 16 or 32.
        metric: "accuracy" (in per cent; the default for labels that are classes), "loss" (the compiled one), "error" (squared
            error of the outputs over their variance; the default without labels), or a function (labels or own outputs,
            predictions) -> number, higher is better.
        layers, exclude: selectors of layers, as `tfcompress.select.get` takes them. scheme: for grids and ranges.
        calibration: inputs for the ranges of outputs, by default the first 200 of x.
        samples: draw so many of the data, by `seed`. batch_size: samples a batch.
        out: write the table there as JSON, with the measurements so far beside it (.state.json): an interrupted run goes on
            where it stopped. verbose: 0 shows nothing.

    Raises:
        CompressionError: the data, an argument or the state beside `out` does not fit.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
        >>> table = sensitivity(model, np.eye(4, dtype="float32"), sparsities=[0, 1], bits=[], output_bits=[], verbose=0)
        >>> [(row.layer, row.value, row.drop > 0) for row in table.rows]
        [('a', 0.0, False), ('a', 1.0, True), ('b', 0.0, False), ('b', 1.0, True)]
    """
    _check(sparsities, bits, output_bits)
    plain, _ = deployable(model, force=True)
    brought = as_samples(data, plain, samples, seed)
    score = Score(copy_model(plain), brought, metric, batch_size)
    fed = first(brought.x if calibration is None else as_samples(calibration, plain).x)
    scheme = scheme or Scheme()
    whole = {
        "model": of_model(plain),
        **score.describe(),
        "options": f"sensitivity, {scheme!r}, batches of {batch_size}",
    }
    ledger = Ledger(beside(out), whole | {"calibration": as_text(fed)}, verbose)
    score.baseline = ledger.get("baseline", score.original)
    bench = _Bench(plain, score, scheme, fed)
    work = bench.work(select.get(layers), select.get(exclude) if exclude is not None else ~select.everything,
                      sparsities, bits, output_bits)  # fmt: skip
    if not work:
        raise CompressionError(f"There is nothing to measure in model {plain.name!r}: no selected layer has a kernel.")
    found = ledger.all("sensitivity", [("/".join(map(str, key)), measure) for key, measure in work.items()])
    rows = [SensitivityRow(*key, **value) for key, value in zip(work, found.values(), strict=True)]
    table = SensitivityTable(plain.name, score.name, len(brought), score.baseline, rows, bench.notes)
    if out is not None:
        table.to_json(out)
    return table


class _Bench:
    """The networks that a scan measures on, made when they are first needed."""

    def __init__(self, model, score: Score, scheme: Scheme, data):
        self.model, self.score, self.scheme, self.data = model, score, scheme, data
        self.notes: list[str] = []
        self._networks: dict[int, Weights] = {}

    def network(self, output_bits: int) -> Weights:
        """The plain network (0), or the one with ranges of so many bits."""
        if output_bits not in self._networks:
            made = Weights(copy_model(self.model)) if not output_bits else None
            self._networks[output_bits] = made or Simulation(
                self.model, self.scheme.changed(output_bits=output_bits), self.data
            )
        return self._networks[output_bits]

    def work(self, chosen, left_out, sparsities, bits, output_bits) -> dict[tuple[str, str, float], Callable]:
        """{(layer, kind, value): measure} in the order of the table."""
        from tfcompress import _keras_compat

        def wanted(path, layer, name) -> bool:
            return chosen(path, layer, name) and not left_out(path, layer, name)

        graph = _keras_compat.functional(self.model) is not None
        work: dict[tuple[str, str, float], Callable] = {}
        kernels = {k.path: k for k in self.network(0).kernels if wanted(k.path, k.layer, k.name)}
        for path, kernel in kernels.items():
            for share in sparsities:
                work[path, "sparsity", float(share)] = lambda p=path, s=float(share): self._sparse(p, s)
            for width in bits if kernel.rounds else ():
                work[path, "bits", width] = lambda p=path, b=width: self._narrow(p, b, graph)
        if output_bits and not graph:
            self.notes.append("Outputs were not rounded: the model has no graph, so their ranges have no place in it.")
        for width in output_bits if graph else ():
            network = self.network(16 if width == 16 else 8)
            assert isinstance(network, Simulation)
            for _, sources in network.points:
                key = sources[0]
                if wanted(key, network.calls[key].operation, "output"):
                    work[key, "output_bits", width] = lambda n=network, k=key, w=width: self._rounded(n, k, w)
        return work

    def _sparse(self, path: str, share: float) -> dict[str, float]:
        network = self.network(0)
        network.cut({path: share})
        return self.score.measure(network.model)

    def _narrow(self, path: str, bits: int, graph: bool) -> dict[str, float]:
        # In float nothing is folded, so that nothing changes.
        network = self.network(8 if graph and bits < FLOAT_BITS else 0)
        if isinstance(network, Simulation):
            network.assign({path: bits}, set())
        else:
            network.round({path: bits}, self.scheme)
        return self.score.measure(network.model)

    def _rounded(self, network: Simulation, key: str, bits: int) -> dict[str, float]:
        if bits >= FLOAT_BITS:
            return self._narrow("", FLOAT_BITS, graph=True)
        network.assign({}, {key})
        return self.score.measure(network.model)


def first(x, count: int = 200):
    """The first samples of a nest of arrays."""
    import keras

    return keras.tree.map_structure(lambda a: a[:count], x)


def as_text(x) -> str:
    """A fingerprint of calibration data."""
    from tfcompress.search.ledger import fingerprint

    return fingerprint(x)


def _check(sparsities, bits, output_bits) -> None:
    for share in sparsities:
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise CompressionError(f"`sparsities` are shares of zeros, 0 to 1; received {share!r}.")
    for name, values, known in (("bits", bits, (*range(2, 9), 32)), ("output_bits", output_bits, (8, 16, 32))):
        for value in values:
            if isinstance(value, bool) or value not in known:
                raise CompressionError(f"`{name}` are of {', '.join(map(str, known))}; received {value!r}.")
    if not (len(sparsities) or len(bits) or len(output_bits)):
        raise CompressionError("There is nothing to measure: give `sparsities`, `bits` or `output_bits`.")


def _head(kind: str, value: float) -> str:
    if kind == "sparsity":
        return f"{100 * value:.0f} % zeros"
    return f"{value:.0f}-bit {'weights' if kind == 'bits' else 'output'}"


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
