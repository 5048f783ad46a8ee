"""Running a finished file against its Keras model, and reading back what it holds."""

import dataclasses
import pathlib
import re
from collections.abc import Callable

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError
from tfcompress.export import calibrate, census, exactness, likeness, litert, runtimes, targets
from tfcompress.export.data import as_inputs
from tfcompress.export.flatbuffer import INT8, INT16, Graph
from tfcompress.export.floatfile import layer_of
from tfcompress.export.readback import Expected, read_back
from tfcompress.export.reports import OutputError, TensorError, VerifyReport
from tfcompress.export.runner import Runner
from tfcompress.export.worker import Worker, WorkerError, shared

_LARGE = 0.1
_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Origin:
    """What an export knows of its file beyond the file.

    Args:
        label: the file's name in messages. compared_with: the reference's name in the report.
        expected: what the file has to hold. float_file: the float file it was made from, for errors tensor by tensor.
        layers: {tensor: Keras operation}. origins: {tensor: converter's name}.
        feed: from the list of sample arrays to what the file is fed, where that is not the same.
        random: whether the samples are drawn numbers, which say nothing of real data.
    """

    label: str | None = None
    compared_with: str | None = None
    expected: Expected = dataclasses.field(default_factory=lambda: Expected({}, {}))
    float_file: bytes | None = None
    layers: dict[str, str] = dataclasses.field(default_factory=dict)
    origins: dict[str, str] = dataclasses.field(default_factory=dict)
    feed: Callable[[list], list] | None = None
    random: bool = False


def verify(
    path, reference, samples, *, target: str = "xnnpack", worker: Worker | None = None, origin: Origin | None = None
) -> VerifyReport:
    """Run a .tflite file with and without the default delegate and compare it with its reference.

    Args:
        path: the file, or its bytes. reference: a Keras model (plain, or attached: then it is the simulated network), a
            function of the input arrays, or its outputs (an array, or a list or dict of them) on `samples`.
        samples: inputs as the Keras model takes them: an array, or a list or dict of arrays, samples first.
        target: whose rules to check, a key of `TARGETS`.
        worker: the converter process, asked for the GPU verdict; by default the session's, if TensorFlow is installed.
        origin: what an export knows of its file; None for a file from elsewhere.

    Returns:
        A `VerifyReport`; `print` shows it as a table.

    Raises:
        CompressionError: the file does not run at all, an output is not finite, the file does not hold what is expected.

    Example:
        >>> print(verify("model.tflite", model, x_test[:100]))     # doctest: +SKIP
    """
    origin = origin or Origin()
    data = _read(path)
    label = origin.label or ("the file" if isinstance(path, bytes | bytearray) else str(path))
    graph = Graph(data)
    runners, runs = _runners(data)
    runner = runners.get("xnnpack") or runners["builtin"]
    arrays = as_inputs(samples, runner.ports() if origin.feed is None else None, "samples")
    fed = arrays if origin.feed is None else origin.feed(arrays)
    results = _run_all(label, runners, runs, fed)
    main = results.get("xnnpack") or results["builtin"]
    _check_finite(main, runner, label)
    found, read, floats = read_back(graph, origin.expected)
    if found:
        raise CompressionError(f"{label} does not hold what was trained:\n  - " + "\n  - ".join(found))
    release, because = runtimes.oldest(graph)
    counted, preset = census.take(graph, origin.layers), targets.target_of(target)
    wanted = reference_outputs(
        reference, dict(zip((p.name for p in runner.inputs), arrays, strict=True)), runner.outputs
    )
    compared = zip(runner.outputs, main, wanted, runner.steps(), strict=True)
    integer = counted.precision in ("int8", "int16x8", "int4")
    tensors = _tensor_errors(data, origin.float_file, fed, origin.layers) if origin.float_file and integer else []
    report = VerifyReport(
        path=label,
        size=len(data),
        runtime=litert.version(),
        samples=len(arrays[0]),
        compared_with=origin.compared_with or _name_of(reference),
        outputs=[output_error(name, got, want, step) for name, got, want, step in compared],
        runs=runs,
        kernels_differ=_kernels_differ(results),
        census=counted,
        gpu=_gpu(data, counted, worker),
        target={"name": preset.name, "refusals": targets.refusals(preset, counted), "checked_by": preset.checked_by},
        read_back=read,
        normalization_left=_normalization_left(graph, origin.origins, origin.layers),
        tensors=tensors,
        warnings=floats + ([] if origin.random else likeness.of_inputs(graph, fed)),
        runs_from=release,
        demanded_by=because,
    )
    if isinstance(reference, keras.Model) and integer:
        given = _in_order(reference, dict(zip((p.name for p in runner.inputs), arrays, strict=True)))
        report.exactness = exactness.against_float64(reference, given, report.outputs, main, wanted)
    return _judged(report)


def _judged(report: VerifyReport) -> VerifyReport:
    """The report with what follows from its parts together."""
    if report.target["name"] == "gpu":
        report.target["refusals"] += report.gpu["reasons"]
    report.warnings += _warnings(report)
    return report


def _run_all(label: str, runners: dict[str, Runner], runs: dict[str, str], fed: list) -> dict[str, list[np.ndarray]]:
    """Outputs by kernel set; a set that fails is noted in `runs`, both failing is an error."""
    results = {}
    for name, made in runners.items():
        try:
            results[name] = made.run(fed)
        except CompressionError as error:
            runs[name] = str(error)
    if not results:
        raise CompressionError(f"{label} does not run: " + "; ".join(f"{k}: {v}" for k, v in runs.items()))
    return results


def reference_outputs(reference, named: dict[str, np.ndarray], names: tuple[str, ...]) -> list[np.ndarray]:
    """The reference's outputs on samples, in the order of the file's outputs.

    Args:
        reference: as in `verify`. named: {input: samples} in the file's order. names: the file's outputs.

    Raises:
        CompressionError: their number or size does not fit the file.
    """
    if isinstance(reference, keras.Model):
        outputs = _model_outputs(reference, named)
    else:
        result = reference(*named.values()) if callable(reference) else reference
        if isinstance(result, dict):
            outputs = [np.asarray(result[name]) for name in names if name in result]
        else:
            outputs = [np.asarray(v) for v in (result if isinstance(result, list | tuple) else [result])]
    if len(outputs) != len(names):
        raise CompressionError(
            f"The reference has {len(outputs)} outputs and the file {len(names)}: {', '.join(names)}."
        )
    return outputs


def _model_outputs(model: keras.Model, named: dict[str, np.ndarray]) -> list[np.ndarray]:
    """A Keras model's flat outputs."""
    arrays = _in_order(model, named)
    parts = []
    for start in range(0, len(arrays[0]), _CHUNK):
        chunk = [keras.ops.convert_to_tensor(a[start : start + _CHUNK]) for a in arrays]
        flat = keras.tree.flatten(_keras_compat.call_with_list(model, chunk))
        parts.append([np.array(keras.ops.convert_to_numpy(v)) for v in flat])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _in_order(model, named: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Inputs in the model's order: by name where the names agree, else as they are."""
    order = [t.name for t in _keras_compat.model_inputs(model) or []]
    return [named[name] for name in order] if set(order) == set(named) else list(named.values())


def output_error(name: str, got: np.ndarray, want: np.ndarray, step: float | None) -> OutputError:
    """Compare one output with its reference.

    Raises:
        CompressionError: their sizes differ.

    Example:
        >>> output_error("y", np.array([[0.0, 1.0]]), np.array([[0.0, 2.0]]), step=0.5).largest_steps
        2.0
    """
    if got.size != want.size:
        raise CompressionError(f"Output {name!r} of the file has shape {got.shape}, of the reference {want.shape}.")
    got, want = got.astype(np.float64).reshape(want.shape), want.astype(np.float64)
    error = np.abs(got - want)
    extent = float(np.ptp(want)) or float(np.abs(want).max()) or 1.0
    steps = None if step is None else error / step
    classes = want.ndim > 1 and want.shape[-1] > 1
    return OutputError(
        name=name,
        largest=float(error.max()),
        mean=float(error.mean()),
        relative=float(error.max()) / extent,
        step=step,
        largest_steps=None if steps is None else float(steps.max()),
        # A scale's last bit must not make one step two.
        within_one=None if steps is None else float((steps <= 1.001).mean()),
        within_two=None if steps is None else float((steps <= 2.001).mean()),
        exact=None if steps is None else float((steps < 0.5).mean()),
        agreement=float((got.argmax(-1) == want.argmax(-1)).mean()) if classes else None,
    )


def _read(path) -> bytes:
    if isinstance(path, bytes | bytearray):
        return bytes(path)
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise CompressionError(f"Cannot read {path}: {error.strerror or error}.") from error


def _runners(data: bytes) -> tuple[dict[str, Runner], dict[str, str]]:
    runners, runs = {}, {}
    for name, delegate in (("xnnpack", True), ("builtin", False)):
        try:
            runners[name] = Runner(data, delegate=delegate)
            runs[name] = "ok"
        except CompressionError as error:
            runs[name] = str(error)
    if not runners:
        raise CompressionError("The file does not run: " + "; ".join(f"{k}: {v}" for k, v in runs.items()))
    return runners, runs


def _check_finite(outputs: list[np.ndarray], runner: Runner, path) -> None:
    for name, value in zip(runner.outputs, outputs, strict=True):
        if not np.isfinite(value.astype(np.float64)).all():
            raise CompressionError(
                f"Output {name!r} of {path} holds NaN or infinite values on the samples. Check the weights and the samples "
                "(float16 ends at 65504)."
            )


def _kernels_differ(results: dict[str, list[np.ndarray]]) -> float | None:
    if len(results) < 2:
        return None
    worst = 0.0
    for a, b in zip(results["xnnpack"], results["builtin"], strict=True):
        extent = float(np.ptp(b)) or 1.0
        worst = max(worst, float(np.abs(a.astype(np.float64) - b).max()) / extent)
    return worst


def _gpu(data: bytes, counted: census.Census, worker: Worker | None) -> dict:
    """The verdict of LiteRT's analyzer, asked in the worker since it is TensorFlow's."""
    import importlib.util
    import tempfile

    if importlib.util.find_spec("tensorflow") is None:
        return {"compatible": None, "reasons": ["TensorFlow is not installed"], "checked_by": ""}
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(data)
        file.flush()
        try:
            answer = (worker or shared()).request("analyze", path=file.name)
        except WorkerError as error:
            return {"compatible": None, "reasons": [str(error)[:300]], "checked_by": ""}
    lines = answer["lines"]
    good = any("looks compatible" in line for line in lines)
    bad = [line for line in lines if "COMPATIBILITY WARNING" in line or "Not supported" in line]
    reasons = [re.sub(r"^.*?(COMPATIBILITY WARNING|WARNING):\\s*", "", line) for line in bad]
    # The analyzer looks at one subgraph and not at shapes that are known only at run time.
    reasons += [f"{kind} (control flow)" for kind in ("WHILE", "IF") if kind in counted.operators]
    reasons += [f"{len(counted.dynamic)} tensors without a fixed shape"] if counted.dynamic else []
    return {
        "compatible": good and not reasons,
        "reasons": reasons,
        "checked_by": f"LiteRT's model analyzer, TensorFlow {answer['version']}; rules, no device",
    }


def _normalization_left(graph: Graph, origins: dict[str, str], layers: dict[str, str]) -> list[str]:
    """MUL and ADD operators whose names speak of a batch normalization that was not folded."""
    found = []
    for op in graph.operators:
        name = graph.name(int(op.outputs[0]))
        origin = origins.get(name, "")
        if graph.kind(op) in ("MUL", "ADD", "SUB") and re.search(r"batch_?norm", origin, re.IGNORECASE):
            found.append(f"{graph.kind(op)} {layers.get(name) or layer_of(origin, set(layers.values())) or origin}")
    return found


@dataclasses.dataclass
class _Worst:
    scale: float
    range: tuple[float, float]
    error: float = 0.0
    low: float = np.inf
    high: float = -np.inf
    clipped: float = 0.0
    runs: int = 0


def _tensor_errors(data: bytes, float_file: bytes, fed: list[np.ndarray], layers: dict[str, str]) -> list[TensorError]:
    """Per-tensor errors on the first few runs, tensors found by their names, which both files share."""
    graph = Graph(data)
    integer = litert.interpreter(data, delegate=False, keep_tensors=True)
    runner = Runner(data, delegate=False)
    batch = max(1, runner.inputs[0].shape[0])
    names = {
        re.sub(r"/int(8|16)$", "", graph.name(t)): t
        for t in range(len(graph.tensors))
        if graph.tensors[t].type in (INT8, INT16) and not graph.is_constant(t)
    }
    worst: dict[str, _Worst] = {}
    for start in range(0, min(len(fed[0]), 8 * batch), batch):
        run = [a[start : start + batch] for a in fed]
        if len(run[0]) < batch:
            break
        floats = calibrate.values(float_file, run)
        litert.invoke(integer, [runner.enter(value, i) for i, value in enumerate(run)])
        for name in names.keys() & floats.keys():
            t = names[name]
            q = graph.tensors[t].quantization
            if q is None or q.scale is None or len(q.scale) != 1 or not floats[name].size:
                continue
            scale, zero = float(q.scale[0]), int(q.zeroPoint[0])
            got = (integer.get_tensor(t).astype(np.float64) - zero) * scale
            limits = np.iinfo(np.int8 if graph.tensors[t].type == INT8 else np.int16)
            low, high = (limits.min - zero - 0.5) * scale, (limits.max - zero + 0.5) * scale
            want = floats[name]
            entry = worst.setdefault(name, _Worst(scale, ((limits.min - zero) * scale, (limits.max - zero) * scale)))
            entry.error = max(entry.error, float(np.abs(got.ravel() - want.ravel()).max()))
            entry.low, entry.high = min(entry.low, float(want.min())), max(entry.high, float(want.max()))
            entry.clipped += float(((want < low) | (want > high)).mean())
            entry.runs += 1
    return [
        TensorError(
            name,
            layers.get(name),
            w.scale,
            w.error,
            w.error / ((w.high - w.low) or 1.0),
            w.clipped / w.runs,
            range=w.range,
            seen=(w.low, w.high),
        )
        for name, w in sorted(worst.items())
    ]


def _name_of(reference) -> str:
    if isinstance(reference, keras.Model):
        return f"the Keras model {reference.name}"
    return "the given function" if callable(reference) else "the given outputs"


def _warnings(report: VerifyReport) -> list[str]:
    found = [f"does not run with {name}: {text}" for name, text in report.runs.items() if text != "ok"]
    clipped = sorted((t for t in report.tensors if t.clipped > likeness.CLIPPED), key=lambda t: -t.clipped)
    if clipped:
        worst = "; ".join(_clipped_line(t) for t in clipped[:3])
        found.append(
            f"{len(clipped)} tensors clip more than {likeness.CLIPPED:.0%} of their values on the samples: the calibration or "
            f"training data does not look like the samples ({worst})"
        )
    if report.max_error > _LARGE:
        furthest = max(report.tensors, key=lambda t: t.relative, default=None)
        where = (
            f"; the tensor that is furthest off is {furthest.tensor} ({furthest.layer or 'no layer known'})"
            if furthest
            else ""
        )
        found.append(f"the largest error is {report.max_error:.0%} of the output's range{where}")
    if report.census.shape_operators:
        found.append(
            "the file computes shapes at run time (SHAPE operators), which a fixed batch avoids; GPU delegates refuse them"
        )
    return found


def _clipped_line(t: TensorError) -> str:
    layer = f", layer {t.layer}" if t.layer else ""
    return (
        f"{t.tensor}{layer}: its range is {t.range[0]:.4g} to {t.range[1]:.4g}, the samples reach {t.seen[0]:.4g} to "
        f"{t.seen[1]:.4g}, {t.clipped:.1%} clipped"
    )
