"""An accuracy budget: which precision each layer gets, so that a network is small or fast within a drop."""

import dataclasses
import functools
import itertools
import math
import pathlib
import tempfile
from collections.abc import Sequence

from tfcompress import _keras_compat, select
from tfcompress.errors import CompressionError, nearest
from tfcompress.method import copy_model, deployable
from tfcompress.quantization.scheme import Scheme
from tfcompress.search import costs
from tfcompress.search.family import CHOICES, Family
from tfcompress.search.front import Front, Point, check_drop, non_dominated
from tfcompress.search.knapsack import predicted_front, spaced
from tfcompress.search.layerwise import as_text, first
from tfcompress.search.ledger import Ledger, beside, of_model
from tfcompress.search.scoring import Score, as_samples

Choices = tuple[str, ...]


def mixed_precision(
    model,
    data,
    *,
    max_drop: float,
    objective: str = "bytes",
    choices: Sequence[str] = ("int8", "int16", "float"),
    layers=None,
    exclude=None,
    metric=None,
    scheme: Scheme | None = None,
    calibration=None,
    limit: int = 64,
    files: int = 6,
    samples: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    out=None,
    verbose: int = 1,
) -> Front:
    """Find precisions layer by layer, and return those assignments that none beats in both drop and cost; no training.

    Every drop that is returned was measured on the network with the whole assignment at once, in the simulation that
    `QAT` attaches. If there are more assignments than `limit`, each layer is first measured alone; a knapsack over these
    errors proposes assignments, and from the cheapest within `max_drop` layers are narrowed as long as it holds.

    `QAT` and `export` give a file one width of integer activations. So the assignments are those of an int8 file ("int8",
    "int4", "float" by layer) and those of an int16x8 file ("int16": 8-bit weights, 16-bit activations; "float"); "int8" and
    "int16" do not meet in one. A layer in float costs a DEQUANTIZE before and a QUANTIZE behind it, which only latency counts.

    Args:
        model: a built Functional or Sequential model, attached or plain; it is not changed.
        data, metric, calibration, samples, seed, batch_size, verbose: as for `sensitivity`.
        max_drop: how much worse the metric may get, 0 or more (percentage points of accuracy).
        objective: "bytes" (of weights), "macs" (bit operations: multiply-accumulates x bits of weights x bits of activations,
            32 x 32 in float), or "latency" (of exported files on one thread of this computer, the host).
        choices: of "int4" (weights of dense layers and convolutions; activations int8), "int8", "int16" and "float".
        layers, exclude: selectors of the layers to choose for; others are int8 (int16 in an int16x8 file). Layers with
            tensors inside, such as LSTM, are chosen for by their parts ("lstm_input").
        scheme: how grids and ranges are found; its bits are those of the choices.
        limit: how many assignments are measured as a whole. files: how many are exported, for "latency".
        out: as for `sensitivity`; exported files lie in a folder beside it.

    Raises:
        CompressionError: the model has no graph or no layer to choose for, or an argument, the data or the state beside
            `out` does not fit.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
        >>> front = mixed_precision(model, np.eye(4, dtype="float32"), max_drop=0.1, choices=("int8", "float"), verbose=0)
        >>> front.points[0].assignment, front.points[-1].assignment
        ({'a': 'int8', 'b': 'int8'}, {'a': 'float', 'b': 'float'})
    """
    allowed, wanted = _checked(max_drop, objective, choices, limit, files)
    plain, record = deployable(model, force=True)
    if record.outputs:
        raise CompressionError(
            f"Model {plain.name!r} has trained ranges of outputs already: search on the network before QAT is attached."
        )
    if not any(select.kernel_names(layer) for _, layer in select.layers(plain)):
        raise CompressionError(f"Model {plain.name!r} has no layer to choose a precision for: none has a kernel.")
    if _keras_compat.functional(plain) is None:
        raise CompressionError(
            f"Model {plain.name!r} has no graph of layers: its outputs get their ranges at export, so that no assignment can be "
            "measured as a whole before. Write it with the functional API; search.sensitivity measures its weights."
        )
    brought = as_samples(data, plain, samples, seed)
    score = Score(copy_model(plain), brought, metric, batch_size)
    fed = first(brought.x if calibration is None else as_samples(calibration, plain).x)
    scheme = scheme or Scheme()
    options = f"mixed_precision, {objective}, {wanted}, {scheme!r}, {select.get(layers)!r} without {exclude!r}, drop {allowed}, limit {limit}, files {files}, batches of {batch_size}"  # fmt: skip
    whole = {"model": of_model(plain), **score.describe(), "options": options, "calibration": as_text(fed)}
    ledger = Ledger(beside(out), whole, verbose)
    score.baseline = ledger.get("baseline", score.original)
    families = Family.all(plain, wanted, scheme, fed, _selector(layers, exclude))
    search = _Search(families, score, ledger, allowed, objective, limit)
    measured = search.run()
    if objective == "latency":
        measured = search.timed(measured, plain, files, out)
    front = Front(plain.name, score.name, len(brought), score.baseline, objective, allowed, non_dominated(measured), measured,
                  families[0].fixed, search.notes, search.attach, search.export)  # fmt: skip
    if out is not None:
        front.to_json(out)
    return front


class _Search:
    """Which assignments are measured, and what came out."""

    def __init__(self, families: list[Family], score: Score, ledger: Ledger, allowed, objective: str, limit: int):
        self.families, self.score, self.ledger = families, score, ledger
        self.allowed, self.objective, self.limit = allowed, objective, limit
        self.notes = list(families[0].costs.notes)
        self.measured: dict[tuple[str, Choices], Point] = {}

    def run(self) -> list[Point]:
        """Measure; all assignments where they are few."""
        if sum(family.count() for family in self.families) <= self.limit:
            self._measure([(f, choice) for f in self.families for choice in itertools.product(*f.options)])
        else:
            share = max(2, self.limit // len(self.families))
            for family in self.families:
                self._guided(family, share)
        # All in float is the same network in every family.
        return list({(p.precision, *p.assignment.items()): p for p in self.measured.values()}.values())

    def _measure(self, work: list[tuple[Family, Choices]], title: str = "assignments") -> None:
        jobs = {
            family.name(choice): (family, choice)
            for family, choice in work
            if (family.kind, choice) not in self.measured
        }
        found = self.ledger.all(title, [(name, functools.partial(self._joint, *job)) for name, job in jobs.items()])
        for name, (family, choice) in jobs.items():
            self.measured[family.kind, choice] = self._point(family, choice, found[name])

    def _joint(self, family: Family, choice: Choices) -> dict[str, float]:
        if family.precision(choice) == "float32":
            return self.score.measure(self.score.model)
        return self._rounded(family, choice)

    def _rounded(self, family: Family, choice: Choices) -> dict[str, float]:
        family.assign(choice)
        return self.score.measure(family.network.model)

    def _point(self, family: Family, choice: Choices, values: dict) -> Point:
        assignment = family.assignment(choice)
        others = "float" if family.precision(choice) == "float32" else family.kind
        size, operations = family.costs.bytes(assignment, others), family.costs.bit_operations(assignment, others)
        # Until files are timed, bit operations stand for latency.
        cost = size if self.objective == "bytes" else operations
        return Point(assignment, family.precision(choice), cost, **values, bytes=size, bit_operations=operations)

    def _guided(self, family: Family, budget: int) -> None:
        """Measure each layer alone, then what a knapsack over these errors proposes, then on from the best."""
        if family.count() <= budget:
            self._measure([(family, choice) for choice in itertools.product(*family.options)])
            return
        start = tuple("float" if "float" in own else own[-1] for own in family.options)
        alone = [
            (unit, choice, (*start[:unit], choice, *start[unit + 1 :]))
            for unit, own in enumerate(family.options)
            for choice in own
        ]
        jobs = {f"alone {family.name(whole)}": whole for *_, whole in alone}
        found = self.ledger.all(
            "layers alone", [(n, functools.partial(self._rounded, family, whole)) for n, whole in jobs.items()]
        )
        # What is rounded whatever is chosen (inputs, sums) is no layer's own.
        base = found[f"alone {family.name(start)}"]["error"]
        table: list[list[tuple[float, float]]] = [[] for _ in family.options]
        for unit, choice, whole in alone:
            error = found[f"alone {family.name(whole)}"]["error"] - base
            path = family.units[unit].path
            table[unit].append(
                (family.costs.of(path, choice, self.objective), max(0.0, error) if math.isfinite(error) else 1e9)
            )
        proposed = predicted_front(table)
        picked = spaced(proposed, max(2, budget // 2))
        self._measure([(family, tuple(own[i] for own, i in zip(family.options, one, strict=True))) for one in picked])
        self._refine(family, table, budget - len(picked))

    def _refine(self, family: Family, table: list[list[tuple[float, float]]], budget: int) -> None:
        """From the cheapest assignment within the drop, narrow one layer at a time; from outside of it, widen."""
        own = {choice: point for (kind, choice), point in self.measured.items() if kind == family.kind}
        within = [choice for choice, point in own.items() if point.drop <= self.allowed]
        now = min(within, key=lambda c: own[c].cost) if within else min(own, key=lambda c: (own[c].drop, own[c].error))
        while budget > 0:
            tried = [
                choice
                for choice in self._moves(family, table, now, bool(within))
                if (family.kind, choice) not in self.measured
            ]
            better = None
            for choice in tried[:budget]:
                self._measure([(family, choice)], "narrowing" if within else "widening")
                budget -= 1
                point, before = self.measured[family.kind, choice], self.measured[family.kind, now]
                if (point.drop <= self.allowed) if within else (point.drop, point.error) < (before.drop, before.error):
                    better = choice
                    break
            if better is None:
                return
            now = better
            within = within or ([now] if self.measured[family.kind, now].drop <= self.allowed else [])

    def _moves(self, family: Family, table, now: Choices, narrow: bool) -> list[Choices]:
        """The assignments one layer away that cost less (or more), those first that pay most by the layers' own errors."""
        moves = []
        for unit, own in enumerate(family.options):
            cost, error = table[unit][own.index(now[unit])]
            for choice, (other, worse) in zip(own, table[unit], strict=True):
                saved = cost - other if narrow else other - cost
                if saved > 0:
                    moves.append(((worse - error) / saved, unit, choice))
        return [(*now[:unit], choice, *now[unit + 1 :]) for _, unit, choice in sorted(moves)]

    def timed(self, points: list[Point], model, most: int, out) -> list[Point]:
        """The points of the front by bit operations, exported and timed on the host; their cost is the latency."""
        front = non_dominated(points)
        within = [point for point in front if point.drop <= self.allowed]
        chosen = spaced(within, most)
        chosen += spaced([point for point in front if point not in within], most - len(chosen))
        with tempfile.TemporaryDirectory(prefix="tfcompress-") as scratch:
            folder = pathlib.Path(scratch) if out is None else pathlib.Path(out).with_suffix(".files")
            folder.mkdir(parents=True, exist_ok=True)
            written: dict[str, Point] = {}
            for point in chosen:
                path = folder / f"{self._family(point).name(tuple(point.assignment.values()), short=True)}.tflite"
                found = self._written(model, path, point)
                if isinstance(found, str):
                    self.notes.append(f"Not timed, since its export is refused: {point}. {found}")
                else:
                    written[path.name] = dataclasses.replace(point, file_bytes=found)
            if not written:
                raise CompressionError("No assignment could be exported. " + " ".join(self.notes[-1:]))
            paths = [folder / name for name in written]
            times = self.ledger.get("latency of " + " ".join(written), lambda: costs.host_latency(paths))
        self.notes.append(
            "Latency is the median on one thread of this computer (host), which says nothing about a phone."
        )
        self.notes += [f"Not timed: {name}: {time}" for name, time in times.items() if isinstance(time, str)]
        return [
            dataclasses.replace(point, cost=times[name], latency_ms=times[name])
            for name, point in written.items()
            if not isinstance(times[name], str)
        ]

    def _written(self, model, path: pathlib.Path, point: Point) -> int | str:
        """Bytes of a point's file, which is written if it is not there; or why it cannot be."""
        name = f"file {path.name}"
        if name in self.ledger and not isinstance(self.ledger.done[name], str) and not path.is_file():
            del self.ledger.done[name]

        def write() -> int | str:
            try:
                return self.export(model, path, point, {"verbose": 0}).size
            except CompressionError as error:
                return str(error)

        return self.ledger.get(name, write)

    def _family(self, point: Point) -> Family:
        return next((f for f in self.families if f.holds(point)), self.families[0])

    def attach(self, model, point: Point, data):
        """See `Front.apply`."""
        return self._family(point).attach(model, point, data)

    def export(self, model, path, point: Point, options: dict):
        """See `Front.export`."""
        return self._family(point).export(model, path, point, options)


def _selector(layers, exclude):
    chosen = select.get(layers)
    return chosen if exclude is None else chosen & ~select.get(exclude)


def _checked(max_drop, objective, choices, limit, files) -> tuple[float, Choices]:
    """The largest drop, and the choices in the order of their width."""
    allowed = check_drop(max_drop)
    if objective not in costs.OBJECTIVES:
        raise CompressionError(
            f"`objective` is {', '.join(costs.OBJECTIVES)}; received {objective!r}. {nearest(str(objective), costs.OBJECTIVES)}"
        )
    given = [choices] if isinstance(choices, str) else list(choices)
    for choice in given:
        if choice not in CHOICES:
            raise CompressionError(
                f"`choices` are of {', '.join(CHOICES)}; received {choice!r}. {nearest(str(choice), CHOICES)}"
            )
    if not set(given) - {"float"}:
        raise CompressionError(f"`choices` need at least one of int4, int8 and int16; received {given}.")
    for name, value in (("limit", limit), ("files", files)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise CompressionError(f"`{name}` must be a whole number, at least 2; received {value!r}.")
    return allowed, tuple(choice for choice in CHOICES if choice in given)
