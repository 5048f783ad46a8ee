"""tfcompress search: what each layer's zeros and bits cost, or which precision each layer gets within a drop."""

import pathlib
from typing import Any

from tfcompress.commands import Result, UsageError, models
from tfcompress.errors import CompressionError

CALIBRATION = 200


def numbers(text: str, kind: type, option: str) -> list:
    """Numbers with commas between them.

    Raises:
        UsageError: something else is among them.

    Example:
        >>> numbers("8,4", int, "--bits"), numbers("", float, "--sparsities")
        ([8, 4], [])
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them; received {text!r}.") from None


def search(
    model: pathlib.Path,
    data: str,
    out: pathlib.Path,
    *,
    max_drop: float | None,
    objective: str,
    choices: str,
    sparsities: str,
    bits: str,
    metric: str | None,
    limit: int,
    samples: int | None,
    batch_size: int,
    scale: float,
    seed: int,
    modules: list[str],
    verbose: int = 1,
) -> Result:
    """Measure layers one by one, or (with a drop) search for their precisions and write the cheapest within it.

    Args:
        model: the .keras file. data: see `tfcompress.data.load`; measured is on x_val, where there is one.
        out: folder for the results and the measurements so far, from which the same call goes on. The rest: see
            `tfcompress.search`.

    Raises:
        CompressionError: something does not fit.
    """
    from tfcompress import data as loading
    from tfcompress.search import mixed_precision, sensitivity

    values = numbers(sparsities, float, "--sparsities"), numbers(bits, int, "--bits")
    models.suffix_check(model)
    models.import_modules(modules)
    net = models.load(model)
    brought = loading.load(data, net, scale, seed)
    held = brought.validation if brought.validation is not None else brought.train
    if not loading.is_samples(held) or not loading.is_samples(brought.train):
        raise UsageError("search measures on arrays or images; --data gives a data set of another kind.")
    shared: dict[str, Any] = {
        "metric": metric, "samples": samples, "batch_size": batch_size, "seed": seed, "verbose": verbose,
        "calibration": loading.first(brought.train, CALIBRATION),
    }  # fmt: skip
    if max_drop is None:
        table = sensitivity(
            net, held, sparsities=values[0], bits=values[1], out=out / "sensitivity.json", **shared
        )  # fmt: skip
        return Result([table, *table.notes], {"model": str(model), "out": str(out), **table.to_dict()})
    chosen = [choice.strip() for choice in choices.split(",") if choice.strip()]
    front = mixed_precision(
        net, held, max_drop=max_drop, objective=objective, choices=chosen, limit=limit, out=out / "front.json", **shared
    )
    shown: list[Any] = [front, *front.notes]
    found = {"model": str(model), "out": str(out), **front.to_dict()}
    try:
        best = front.best()
        report = front.export(net, out / "model.tflite", best, verbose=0)
    except CompressionError as error:
        return Result([*shown, str(error)], {**found, "best": None, "why": str(error)}, failed=True)
    shown += [f"The cheapest within a drop of {max_drop:g}: {best}", report]
    return Result(shown, {**found, "best": best.assignment, "precision": best.precision, "export": report.to_dict()})
