"""One precision's file from the float file, before it is checked and written."""

import dataclasses

from tfcompress.errors import CompressionError, nearest
from tfcompress.export import boundary as ends
from tfcompress.export import halffloat, quantize, ranges
from tfcompress.export.calibrate import Estimator
from tfcompress.export.flatbuffer import Graph
from tfcompress.export.match import file_weights
from tfcompress.export.ranges import Trained
from tfcompress.export.readback import Expected
from tfcompress.export.repair import repair
from tfcompress.export.session import FloatFile, Session
from tfcompress.export.targets import Target
from tfcompress.export.versions import set_versions
from tfcompress.export.worker import WorkerError
from tfcompress.record import Range, Record

INTEGER = ("int8", "int16x8", "int4")


@dataclasses.dataclass(frozen=True)
class Options:
    """What one file is asked to be; the names are those of `tflite`, the estimator is of the ranges."""

    precision: str
    boundary: str
    target: Target
    strict: bool
    sparse: bool
    estimator: Estimator
    per_tensor_dense: bool
    keep_float: tuple[str, ...] = ()


@dataclasses.dataclass
class Built:
    """A finished file before it is written.

    Args:
        data: the file. source: the float file that it was made from. prepended: whether it normalises by operators.
        trained: what of the record was found. expected: what reading back has to find. ranges, weights, calibrated, notes,
        fallbacks: as in `ExportReport`.
    """

    data: bytes
    source: FloatFile
    prepended: bool
    trained: Trained
    expected: Expected
    ranges: dict[str, int]
    weights: dict[str, int]
    calibrated: list[str]
    notes: list[str]
    fallbacks: list[str] = dataclasses.field(default_factory=list)


def floating(session: Session, options: Options, _collapse: bool) -> Built:
    """A float32, float16 or dynamic-range file."""
    source = session.float_file(False, bool(session.normalisation))
    trained, data = Trained(), source.data
    expected = Expected({}, {})
    if options.precision == "float16":
        data = halffloat.halve(data)
    elif options.precision == "dynamic":
        only_weights = Record(session.record.weights, {})
        trained = ranges.locate(source.graph, source.model, only_weights, source.operations, options.strict)
        graph = Graph(quantize.dynamic(data, trained, options.per_tensor_dense))
        quantize.seal(graph, source.graph, {}, trained)
        set_versions(graph)
        data = graph.to_bytes()
        expected = _expected(source.graph, {}, trained)
    weights = {"trained": len(expected.weights)}
    return Built(data, source, bool(session.normalisation), trained, expected, {}, weights, [], list(trained.notes))


def integer(session: Session, options: Options, collapse: bool) -> Built:
    """A file with integer activations.

    Args:
        collapse: whether operators that litert-quantizer leaves float get their integer form (see `repair`).
    """
    bits = 16 if options.precision == "int16x8" else 8
    folds = bool(session.normalisation) and session.normalisation.foldable() and options.boundary in ("int8", "uint8")
    prepended = bool(session.normalisation) and not folds
    unrolled = session.recurrent()
    source = session.float_file(unrolled, prepended, True)
    notes = ["recurrent layers are unrolled: the converter's loop has no integer form"] if unrolled else []
    fed, more = session.normalisation.input_ranges() if folds else ({}, [])
    trained = ranges.locate(source.graph, source.model, session.record, source.operations, options.strict)
    for name, value in fed.items():
        # Without a trained range the raw pixels' range is the input's own, and no conversion is needed.
        trained.ranges.setdefault(name, (name, value))
    plan, calibrated = _ranges(session, options, source, trained, unrolled, prepended, bits)
    floats = _floats(source, options.keep_float)
    narrow = _narrow(source.graph, trained, session.record, floats) if options.precision == "int4" else set()
    try:
        quantized = quantize.static(source.data, plan, trained, bits, options.per_tensor_dense, narrow, floats)
    except quantize.Refusal as error:
        return _by_the_converter(session, options, source, unrolled, prepended, error)
    graph = Graph(quantized)
    quantize.split_joined(graph, plan)
    repair(graph, plan, collapse)
    quantize.seal(graph, source.graph, plan, trained)
    ends.set_boundary(graph, options.boundary, fed)
    data = graph.to_bytes()
    known = {
        name: (operation, plan[name])
        for name, (operation, _) in trained.ranges.items()
        if name in plan and name not in floats  # behind a float operator a copy of the tensor has the range
    }
    expected = _expected(source.graph, known, trained)
    counts = {
        "trained": len(known),
        "calibrated": len(calibrated),
        "fixed or tied": len(plan) - len(known) - len(calibrated),
    }
    products = [
        w for w in file_weights(source.graph) if w.axis is not None and w.tensor not in _read_by(source.graph, floats)
    ]
    weights = {
        "trained": len(expected.weights),
        "by extremes": sum(source.graph.name(w.tensor) not in trained.scales for w in products),
    }
    listed = [source.layers.get(name, name) for name in calibrated] if session.record.outputs else []
    return Built(
        data,
        source,
        prepended,
        trained,
        expected,
        counts,
        weights,
        list(dict.fromkeys(listed)),
        (session.unlike_training if calibrated else []) + notes + more + trained.notes,
    )


def _by_the_converter(
    session: Session, options: Options, source: FloatFile, unrolled: bool, prepended: bool, error: Exception
) -> Built:
    """The fall-back where litert-quantizer refuses a file: the stock converter quantizes it, in the worker."""
    asked = options.precision == "int4" or options.per_tensor_dense or options.keep_float
    if session.record or options.boundary != "float32" or asked:
        raise CompressionError(
            f"{error} The stock converter cannot take its place here: it knows no trained grids, no 4 bits, no single scale "
            "a dense weight, and its ends are float."
        ) from error
    try:
        data = session.stock(unrolled, prepended, options.precision)
    except WorkerError as second:
        raise CompressionError(f"{error} The stock converter, tried next, failed too: {second}") from second
    note = f"quantized by the stock converter with its own calibration, since {str(error).splitlines()[0][:200]}"
    return Built(data, source, prepended, Trained(), Expected({}, {}), {}, {}, [], [], [note])


def _ranges(
    session, options, source: FloatFile, trained: Trained, unrolled, prepended, bits
) -> tuple[dict[str, Range], list[str]]:
    """One range an activation, with calibration where something is left to calibrate."""
    have_data = session.calibration is not None or (bool(session.record.outputs) and session.has_samples)
    if not have_data:
        _, missing = ranges.spread(source.graph, trained, ranges.Statistics({}, {}, 0), bits, options.strict)
        if missing:
            known = ", ".join(dict.fromkeys(source.layers.get(name, name) for name in missing[:5]))
            raise CompressionError(
                f"precision={options.precision!r} needs calibration data for {len(missing)} activations without a trained range "
                f"({known}, ...). Pass calibration=x[:200], inputs as the model is used with."
            )
        seen = ranges.Statistics({}, {}, 0)
    else:
        seen = session.statistics(unrolled, prepended, options.estimator)
    return ranges.spread(source.graph, trained, seen, bits, options.strict)


def _floats(source: FloatFile, names: tuple[str, ...]) -> frozenset[str]:
    """The tensors that carry the values of some Keras operations; what writes them stays float."""
    found: set[str] = set()
    for name in names:
        if name not in source.operations:
            raise CompressionError(
                f"keep_float: the model has no operation {name!r}. {nearest(name, source.operations)}"
            )
        found |= set(source.operations[name])
    if names and not found:
        raise CompressionError(
            f"keep_float: no tensor of the file carries the value of {', '.join(names)} (the converter folded it into its "
            "neighbour); name the operation behind it too."
        )
    return frozenset(found)


def _read_by(graph: Graph, outputs: frozenset[str]) -> set[int]:
    """What the operators that write some tensors read."""
    writers = (op for op in graph.operators if graph.name(int(op.outputs[0])) in outputs)
    return {int(t) for op in writers for t in op.inputs}


def _narrow(graph: Graph, trained: Trained, record: Record, floats: frozenset[str]) -> set[str]:
    """The weights to be stored in 4 bits: all that the runtime has a kernel for, and whose grid fits where one was trained."""
    able = {
        graph.name(int(op.inputs[1]))
        for op in graph.operators
        if graph.kind(op) in quantize.NARROW and graph.name(int(op.outputs[0])) not in floats
    }
    able = {name for name in able if graph.is_constant(graph.by_name()[name])}
    wide = {
        name
        for name in able
        if name in trained.scales and (trained.scales[name][1].high > 7 or trained.scales[name][1].low < -8)
    }
    if not able - wide:
        reason = (
            "its grids hold codes up to 127; train it with 4 bits"
            if wide
            else "it has no CONV_2D or FULLY_CONNECTED weight"
        )
        raise CompressionError(
            f"precision='int4' has nothing to store in 4 bits in this model: {reason}, or export int8."
        )
    return able - wide


def _expected(float_graph: Graph, known: dict[str, tuple[str, Range]], trained: Trained) -> Expected:
    """What the finished file has to hold: every trained range and every trained weight that was found."""
    weights = {}
    for weight in file_weights(float_graph):
        name = float_graph.name(weight.tensor)
        if name in trained.scales:
            source, grid, scales = trained.scales[name]
            weights[name] = (source, grid, scales, weight.values)
    return Expected(known, weights)
