"""tfcompress export, verify, inspect, pack and unpack: one file in, one file or its figures out."""

import dataclasses
import pathlib
import tempfile
from typing import Any

from tfcompress.commands import Result, UsageError, models
from tfcompress.errors import CompressionError

SAMPLES = 200


def _inputs(spec: str | None, model, count: int, scale: float, held: bool):
    """Inputs from --data: of the validation samples where they are wanted and there are some."""
    from tfcompress import data

    if spec is None:
        return None
    brought = data.load(spec, model, scale)
    chosen = brought.validation if held and brought.validation is not None else brought.train
    data.check(model, chosen, "x")
    return data.first(chosen, count)


def export(
    model: pathlib.Path,
    precision: str,
    out: pathlib.Path,
    data: str | None,
    *,
    boundary: str | None,
    target: str,
    batch: int,
    sparse: bool,
    samples: int,
    scale: float,
    modules: list[str],
) -> Result:
    """Write a .keras file as a verified .tflite file."""
    from tfcompress.export import PRECISIONS, TARGETS, tflite
    from tfcompress.export.targets import check_request, target_of

    models.suffix_check(model)
    if precision not in PRECISIONS or target not in TARGETS:
        check_request(target_of(target), precision, boundary or "float32")
    if out.suffix != ".tflite":
        raise UsageError(f"--out has to be called .tflite; it is {out}.")
    models.import_modules(modules)
    net = models.load(model, compiled=False)
    calibration = _inputs(data, net, samples, scale, held=False)
    report = tflite(
        net, out, precision, calibration=calibration, boundary=boundary, target=target, batch=batch, sparse=sparse, verbose=0
    )  # fmt: skip
    return Result([report], report.to_dict())


def verify(
    file: pathlib.Path, model: pathlib.Path, data: str, *, target: str, samples: int, scale: float, modules: list[str]
) -> Result:
    """Compare a .tflite file with its Keras model; failed where no runtime runs it or the target refuses it."""
    from tfcompress import export
    from tfcompress.report.reading import verification

    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    models.import_modules(modules)
    net = models.load(model, compiled=False)
    inputs = _inputs(data, net, samples, scale, held=True)
    try:
        report = export.verify(file, net, inputs, target=target)
    except CompressionError as error:
        raise type(error)(str(error) if str(file) in str(error) else f"{file}: {error}") from error
    passed = bool(verification(report.to_dict()).passed)
    verdict = "passed" if passed else f"refused: {'; '.join(report.target['refusals']) or 'no runtime runs it'}"
    return Result([report, verdict], {"passed": passed, **report.to_dict()}, failed=not passed)


def inspect(file: pathlib.Path, modules: list[str], label: str | None = None) -> Result:
    """What a .keras, .tflite or .tfcz file holds, called `label` where its path is of no interest."""
    if not file.is_file() and not file.is_dir():
        raise UsageError(f"There is no file {file}.")
    models.import_modules(modules)
    if file.suffix == ".tflite":
        from tfcompress.export import inspect as look

        try:
            info = look(file)
        except CompressionError as error:
            raise type(error)(str(error) if str(file) in str(error) else f"{file}: {error}") from error
        nonzeros = sum(round(_size(c.shape) * (1 - c.zeros)) for c in info.constants)
        head = {
            "kind": "tflite",
            "path": str(file),
            "file_bytes": info.size,
            "macs": info.census.macs,
            "nonzeros": nonzeros,
        }
        return Result([dataclasses.replace(info, path=label or str(file))], {**info.to_dict(), **head})
    if file.suffix == ".tfcz":
        return _packed(file, modules)
    return _keras(file, label or str(file))


def _size(shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _keras(file: pathlib.Path, label: str) -> Result:
    from tfcompress import cost, report
    from tfcompress.method import deployable, is_attached
    from tfcompress.parametrization import chains
    from tfcompress.record import load_record

    model = models.load(file, compiled=False)
    counted, size = cost.count(model), file.stat().st_size
    attached = {name: [type(link).__name__ for link in chain.links] for name, chain in chains(model)}
    record = load_record(file) or (deployable(model, force=True)[1] if is_attached(model) else load_record(file))
    layers = report.layers(model, record)
    zeros = 1 - (counted.nonzeros or 0) / counted.parameters if counted.parameters else 0.0
    whole = all(layer.macs is not None for layer in counted.layers)
    data: dict[str, Any] = {
        "kind": "keras",
        "path": str(file),
        "file_bytes": size,
        "model": model.name,
        "class": type(model).__name__,
        "parameters": counted.parameters,
        "nonzeros": counted.nonzeros,
        "sparsity": zeros,
        "macs": counted.macs if whole else None,
        "trained_ranges": len(record.outputs),
        "attached": attached,
        "layers": counted.to_dict()["layers"],
        "kernels": [{"name": r.name, "sparsity": r.sparsity, "distinct": r.distinct, "bits": r.bits} for r in layers],
    }
    lines = [f"{label}: {size:,} bytes, {zeros:.1%} zeros, {len(record.outputs)} trained output ranges"]
    lines += [f"attached to {name}: {' then '.join(kinds)}" for name, kinds in attached.items()]
    return Result([str(counted), *lines], data)


def _packed(file: pathlib.Path, modules: list[str]) -> Result:
    """A .tfcz: its sections from the index, and the model inside."""
    from tfcompress import codecs

    contents = codecs.inspect(file)
    data: dict[str, Any] = {**contents.to_dict(), "kind": "tfcz", "holds": contents.kind, "path": str(file)}
    shown: list[Any] = [str(contents)]
    if contents.kind in ("keras", "tflite"):
        with tempfile.TemporaryDirectory() as folder:
            inner = inspect(
                codecs.unpack(file, pathlib.Path(folder, f"{file.stem}.{contents.kind}")), modules, f"in {file}"
            )
        data["model"] = {key: value for key, value in inner.data.items() if key != "path"}
        shown += inner.shown
    return Result(shown, data)


def pack(
    file: pathlib.Path, out: pathlib.Path | None, *, effort: str, against: pathlib.Path | None, optimizer: bool
) -> Result:
    """Write a model file as .tfcz."""
    from tfcompress import codecs

    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    report = codecs.pack(file, out, effort=effort, against=against, optimizer=optimizer)
    return Result([str(report)], report.to_dict())


def unpack(file: pathlib.Path, out: pathlib.Path | None) -> Result:
    """Write the file that a .tfcz holds."""
    from tfcompress import codecs

    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    if file.suffix != ".tfcz":
        raise CompressionError(f"{file} is no .tfcz file, as tfcompress pack writes it.")
    written = codecs.unpack(file, out)
    size = written.stat().st_size
    return Result([f"{written}: {size:,} bytes"], {"path": str(written), "bytes": size, "source": str(file)})
