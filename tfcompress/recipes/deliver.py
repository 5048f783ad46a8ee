"""The end of a recipe: the finished model, its files, and the report about them."""

import os
import time
from typing import Any

import numpy as np

from tfcompress import data
from tfcompress.errors import CompressionError, MissingExtra
from tfcompress.method import finalize, is_attached
from tfcompress.parametrization import chains
from tfcompress.recipes.outcome import Outcome
from tfcompress.recipes.state import save_model
from tfcompress.record import ATTRIBUTE, Record, save_record, side_file

# So many samples run through a .tflite file for its accuracy.
MOST_SAMPLES = 10_000
BASELINE = "float32"


def deliver(run) -> Outcome:
    """Finalize the model of a run, and write what its recipe asks for into its folder.

    Args:
        run: a `tfcompress.recipes.run.Run` that has done its steps.

    Raises:
        CompressionError: a file cannot be written, or the export is refused; what was written before it stays.
    """
    plain = finalize(run.model, verbose=0) if is_attached(run.model) else run.model
    outcome = Outcome(
        run.recipe.name, run.model, plain, run.metric, run.base, run.results, run.kept, run.stopped, run.notes
    )
    if run.out is None:
        return outcome
    outcome.files["keras"] = run.out / "model.keras"
    save_model(plain, outcome.files["keras"])
    record = plain.__dict__.get(ATTRIBUTE, Record())
    if record:
        outcome.files["ranges"] = save_record(record, outcome.files["keras"])
    else:
        side_file(outcome.files["keras"]).unlink(missing_ok=True)
    baseline = _export(run, outcome) if run.recipe.export else None
    if run.recipe.pack:
        _pack(run, outcome)
    _report(run, outcome, baseline)
    return outcome


def _export(run, outcome: Outcome):
    """Write model.tflite, and float32.tflite of the model as it was, whose report is returned."""
    from tfcompress import export

    options = {key: value for key, value in run.recipe.export.items() if key != "precision"}
    precision = run.recipe.export["precision"]
    shared = {"calibration": run.calibration, "verbose": 0}
    run.say(f"Exporting {run.out / 'model.tflite'} ({precision}), and checking its answers")
    outcome.files["tflite"] = run.out / "model.tflite"
    outcome.export = export.tflite(run.model, outcome.files["tflite"], precision, **shared, **options)
    keep = {key: options[key] for key in ("batch", "timeout", "custom_ops") if key in options}
    try:
        report = export.tflite(run.original, run.out / "float32.tflite", "float32", **shared, **keep)
    except CompressionError as error:
        outcome.notes.append(f"There is no float32 file to compare with: {error}")
        return None
    outcome.files["float32"] = run.out / "float32.tflite"
    return report


def _pack(run, outcome: Outcome) -> None:
    from tfcompress import codecs

    handed = {}
    if run.recipe.pack == "keras":
        # A file that is regenerated from a seed cannot be told from noise by its values.
        ends = {name: chain.links[-1] for name, chain in chains(run.model) if chain.links}
        handed = {name: link.coding() for name, link in ends.items() if hasattr(link, "coding")}
    outcome.files["tfcz"] = run.out / "model.tfcz"
    outcome.packed = codecs.pack(
        outcome.files[run.recipe.pack], outcome.files["tfcz"], handed=handed, against=outcome.files.get("float32")
    )


def _report(run, outcome: Outcome, baseline) -> None:
    from tfcompress import report

    samples = run.held if run.held is not None else run.samples
    known = data.is_samples(samples) and run.settings.evaluate is None and run.base is not None
    what = "validation" if run.held is not None else "training"
    result = report.Report(
        f"{run.original.name}: recipe {run.recipe.name}",
        baseline=BASELINE,
        data=f"{len(samples):,} {what} samples" if known else "",
        metric=(run.metric or "accuracy").replace("_", " "),
        samples=len(samples) if known else None,
        environment=report.environment(),
        notes=[*outcome.notes, *([outcome.stopped] if outcome.stopped else [])],
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    result.add_row(BASELINE, accuracy=run.base, export=baseline, **_counts(run.original, {}))
    measured, notes = _file_accuracy(run, outcome)
    reasons = {layer: why for step in outcome.steps[: outcome.kept] for layer, why in step.reasons.items()}
    result.add_row(
        run.recipe.name if run.recipe.name != BASELINE else "compressed",
        accuracy=outcome.accuracy if measured is None else measured,
        export=outcome.export,
        packed=outcome.packed,
        notes=notes,
        **_counts(outcome.plain, reasons),
    )
    outcome.report = result
    outcome.files["json"] = run.out / "report.json"
    result.save(outcome.files["json"])
    try:
        outcome.files["html"] = result.html(run.out / "report.html")
    except MissingExtra as error:
        outcome.notes.append(f"report.html was not written: {error}")


def _counts(model, reasons: dict[str, str]) -> dict[str, Any]:
    """What a row of the report says about a model; multiply-accumulates only where every layer has a rule."""
    from tfcompress import cost, report

    counted = cost.count(model)
    figures = {
        "parameters": counted.parameters,
        "nonzeros": counted.nonzeros,
        "layers": report.layers(model, notes=reasons),
    }
    whole = all(layer.macs is not None for layer in counted.layers)
    return {**figures, "macs": counted.macs} if whole else figures


def _file_accuracy(run, outcome: Outcome) -> tuple[float | None, list[str]]:
    """Accuracy of the .tflite file itself, with a note where it is that of the Keras model instead."""
    if outcome.export is None or outcome.accuracy is None:
        return None, []
    why = "its accuracy is that of the Keras model"
    samples = run.held if run.held is not None else run.samples
    plain_metric = run.metric in (
        "accuracy",
        "acc",
        "sparse_categorical_accuracy",
        "categorical_accuracy",
        "binary_accuracy",
    )
    if run.settings.evaluate is not None or not plain_metric or not data.is_samples(samples):
        return None, [f"{why}: only class accuracy on arrays or images is measured on the file"]
    if len(samples) > MOST_SAMPLES:
        return None, [f"{why}: its data has more than {MOST_SAMPLES:,} samples"]
    from tfcompress import export

    runner = export.Runner(
        outcome.files["tflite"], threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    )
    right = total = 0
    for start in range(0, len(samples), 256):
        x, y = samples.take(range(start, min(start + 256, len(samples))))
        answers = runner(**x) if isinstance(x, dict) else runner(*x) if isinstance(x, (list, tuple)) else runner(x)
        if isinstance(answers, dict) or answers.ndim != 2:
            return None, [f"{why}: the file has more than one output, or one that is no vector of classes"]
        wanted = np.asarray(y)
        if answers.shape[1] == 1:
            got, wanted = answers[:, 0] > 0.5, wanted.reshape(len(wanted)) > 0.5
        else:
            got = answers.argmax(-1)
            wanted = wanted.argmax(-1) if wanted.ndim == 2 and wanted.shape[1] > 1 else wanted.reshape(len(wanted))
        right, total = right + int((got == wanted).sum()), total + len(got)
    return right / total, []
