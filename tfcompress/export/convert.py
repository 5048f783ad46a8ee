"""The two calls people make: one file, or several precisions from one float conversion."""

import pathlib
import tempfile
import time
from typing import Any

from tfcompress.errors import CompressionError
from tfcompress.export import runtimes, sparse_rules, targets
from tfcompress.export import sparse as sparsity
from tfcompress.export.build import INTEGER, Built, Options, floating, integer
from tfcompress.export.calibrate import Estimator
from tfcompress.export.flatbuffer import Graph
from tfcompress.export.readback import Expected, read_back
from tfcompress.export.reports import ExportReport, VerifyReport
from tfcompress.export.session import Session
from tfcompress.export.targets import Target
from tfcompress.export.verify import Origin
from tfcompress.export.verify import verify as verify_file
from tfcompress.export.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout, shared
from tfcompress.files import write_bytes
from tfcompress.record import Record

# Samples that verification runs.
_MOST = 512


def tflite(model, path, precision: str = "float32", **options) -> ExportReport:
    """Write a Keras model as a verified .tflite file.

    Args:
        model: a built Keras model: plain, attached (its trained grids and ranges arrive in the file), or finalized.
        path: the file to write; nothing is written unless verification passes.
        precision: "float32", "float16" (weights), "dynamic" (8-bit weights), "int8", "int16x8" (16-bit activations) or
            "int4" (4-bit weights where the runtime has them).
        options: as for `convert`.

    Returns:
        An `ExportReport` with a `VerifyReport` in it; it prints unless verbose=0.

    Raises:
        CompressionError: the model, the data or the target forbids it; the message says what to do.

    Example:
        >>> report = tflite(model, "model.tflite", "int8", calibration=x_train[:200])   # doctest: +SKIP
    """
    return convert(model, {path: precision}, **options)[path]


def convert(
    model,
    files: dict,
    *,
    calibration=None,
    boundary: str | None = None,
    batch: int = 1,
    target: str = "xnnpack",
    samples=None,
    record: Record | None = None,
    normalisation=None,
    strict: bool = True,
    sparse: bool = False,
    verify: bool = True,
    simulated=None,
    calibration_method: str | None = None,
    percentile: float | None = None,
    per_tensor_dense: bool | None = None,
    keep_float=(),
    custom_ops: bool = False,
    timeout: float = 600.0,
    worker: Worker | None = None,
    force: bool = False,
    verbose: int = 1,
) -> dict:
    """Write several files of one model from one float conversion.

    Args:
        model: a built Keras model. files: {path: precision}.
        calibration: typical inputs, samples first: an array, a list or dict of arrays, or batches; needed for integer
            activations that have no trained range. At most a few hundred samples pay.
        boundary: type of the ends of integer files: "float32", "int8", "uint8", "int16" (int16x8 only); by default float32,
            or what the target takes. Float files keep float32. batch: the fixed batch size.
        target: whose rules the files obey: "xnnpack", "gpu", "nnapi", "edgetpu", "tflm", "tflm-legacy".
        samples: inputs for matching and verification (the first 512); by default the calibration data.
        record: trained grids and ranges, by default those on the model.
        normalisation: (mean, std) of the pixels 0..255 that the model was trained on as (x - mean) / std, or
            {input: (mean, std)}; the file then takes raw pixels.
        strict: whether a trained range or weight that the file cannot hold is an error, or calibrated with a note.
        sparse: store weights that are mostly zeros as positions and values. verify: run the files before writing them.
        simulated: the simulated network (a function or outputs on the samples) that integer files are compared with; by
            default the attached model, else the float model.
        calibration_method: how ranges come from the calibration data: "minmax" (the extremes, the default), "percentile",
            "mse" (least squared error of the codes) or "kl" (least KL divergence). percentile: for "percentile", by default
            99.99; given alone, it means that method.
        per_tensor_dense: one scale for each dense weight; by default what the target needs.
        keep_float: names of layers and operations that integer files compute in float, between a DEQUANTIZE and a QUANTIZE;
            the activation that a layer's kernel takes in goes with it and has to be named too.
        custom_ops: allow custom operators (such a float file is written unverified). timeout: seconds that a conversion may take. worker: the converter process.
        force: export although a schedule never advanced. verbose: 0 prints nothing.

    Returns:
        {path: ExportReport}.

    Raises:
        CompressionError: see `tflite`.
    """
    plans = _plans(
        files, boundary, targets.target_of(target), strict, sparse, (calibration_method, percentile), per_tensor_dense,
        keep_float,
    )  # fmt: skip
    session = Session(
        model, record=record, samples=samples, calibration=calibration, batch=batch, normalisation=normalisation,
        worker=worker or shared(), timeout=timeout, custom_ops=custom_ops, force=force,
    )  # fmt: skip
    return {path: _write(session, path, options, verify, simulated, verbose) for path, options in plans.items()}


def _write(session: Session, path, options: Options, check: bool, simulated, verbose: int) -> ExportReport:
    start, shared_before = time.perf_counter(), sum(session.seconds.values())
    built = _build(session, options)
    own = time.perf_counter() - start - (sum(session.seconds.values()) - shared_before)
    report = _finish(session, path, options, built, check, simulated, own)
    if verbose:
        _show(report)
    return report


def _plans(files, boundary, preset: Target, strict, sparse, ranges, per_tensor_dense, keep_float) -> dict[Any, Options]:
    """Every file's options, checked before anything is converted."""
    per_tensor = preset.per_tensor_dense if per_tensor_dense is None else per_tensor_dense
    method, percentile = ranges
    floats = (keep_float,) if isinstance(keep_float, str) else tuple(keep_float or ())
    plans = {}
    for path, precision in files.items():
        own = targets.boundary_of(preset, boundary) if precision in INTEGER else "float32"
        targets.check_request(preset, precision, own)
        if sparse:
            sparsity.check_offered(precision)
        estimator = Estimator.of(method, percentile, 16 if precision == "int16x8" else 8)
        plans[path] = Options(precision, own, preset, strict, sparse, estimator, per_tensor, floats)
    return plans


def _build(session: Session, options: Options) -> Built:
    """The bytes of one file, run once in the worker; a file that the repair pass breaks is made again without it."""
    build = integer if options.precision in INTEGER else floating
    built = build(session, options, True)
    custom = Graph(built.data).custom()
    if custom:
        built.notes.append(f"not run here: {', '.join(custom)} need the plug-in that brings these custom operators")
        return built
    problem = _smoke(session, built.data, options.strict)
    if problem and options.precision in INTEGER:
        again = build(session, options, False)
        if not _smoke(session, again.data, options.strict):
            again.notes.append(
                f"operators unknown to litert-quantizer stay float: integer forms of them do not run ({problem})"
            )
            built, problem = again, None
    if problem:
        more = " strict=False accepts a file that runs with the built-in kernels alone." if options.strict else ""
        raise CompressionError(f"The {options.precision} file does not run: {problem}{more}")
    if options.sparse:
        found, _, _ = read_back(Graph(built.data), built.expected)
        if found:
            raise CompressionError("The file does not hold what was trained:\n  - " + "\n  - ".join(found))
        dense = len(built.data)
        built.data, names = sparsity.sparsify(built.data)
        built.notes.append(
            f"{len(names)} weights stored sparse: {len(built.data):,} bytes, {dense:,} dense; no faster on x86"
        )
        built.notes.append(str(sparse_rules.arm_rules(built.data)))
        problem = _smoke(session, built.data, options.strict)
        if problem:
            raise CompressionError(f"sparse=True is not possible for this {options.precision} file: {problem}")
    return built


def _smoke(session: Session, data: bytes, strict: bool) -> str | None:
    """Why the file cannot be handed over, found by running it on zeros in the worker, which may die of it.

    A file that only the default delegate refuses passes when strict is false; verification then says so.
    """
    refused = []
    with tempfile.TemporaryDirectory(prefix="tfcompress-") as scratch:
        path = pathlib.Path(scratch, "model.tflite")
        path.write_bytes(data)
        for delegate in (True, False):
            try:
                session.worker.request("smoke", session.timeout, path=str(path), delegate=delegate)
            except (WorkerCrash, WorkerTimeout) as error:
                return str(error)
            except WorkerError as error:
                refused.append((delegate, str(error)))
    fatal = len(refused) == 2 or (strict and refused and refused[0][0])
    return "; ".join(text for _, text in refused) if fatal else None


def _finish(
    session: Session, path, options: Options, built: Built, check: bool, simulated, seconds: float
) -> ExportReport:
    graph = Graph(built.data)
    report = ExportReport(
        path=str(path),
        precision=options.precision,
        boundary=options.boundary,
        target=options.target.name,
        batch=session.batch,
        meaning=targets.MEANING[options.precision],
        size=len(built.data),
        ranges=built.ranges,
        weights=built.weights,
        calibrated=built.calibrated,
        fallbacks=session.fallbacks + built.fallbacks,
        notes=session.notes + built.notes,
        seconds={**session.seconds, "this file": seconds},
        runs_from=runtimes.oldest(graph)[0],
        free_batch=session.free_batch,
    )
    if check and not graph.custom():
        start = time.perf_counter()
        report.verification = _verified(session, path, options, built, simulated)
        report.seconds["verification"] = time.perf_counter() - start
    write_bytes(path, built.data)
    return report


def _verified(session: Session, path, options: Options, built: Built, simulated) -> VerifyReport:
    in_integers = options.precision in INTEGER
    reference, name = session.plain, "the float Keras model"
    if in_integers and simulated is not None:
        reference, name = simulated, "the simulated network"
    elif in_integers and session.attached is not None and session.record:
        reference, name = session.attached, "the simulated network (the attached model)"
    origin = Origin(
        label=str(path),
        compared_with=name,
        # A sparse file's weights were read back before they were made sparse.
        expected=Expected({}, {}) if options.sparse else built.expected,
        float_file=built.source.data,
        layers=built.source.layers,
        origins=built.source.origins,
        feed=session.normalisation.raw if built.prepended else None,
        random=not session.has_samples,
    )
    # Outputs that were given are of all samples; else some hundred show what there is to see.
    given = in_integers and simulated is not None and not callable(simulated)
    samples = session.samples if given else [array[:_MOST] for array in session.samples]
    report = verify_file(
        built.data, reference, samples, target=options.target.name, worker=session.worker, origin=origin
    )
    if options.per_tensor_dense and in_integers and report.max_error > 0.1:
        report.warnings.append(
            "the largest error is above 10 % of the range; one scale a dense weight may be too coarse for this model"
        )
    return report


def _show(report: ExportReport) -> None:
    from rich.console import Console

    Console().print(report)
