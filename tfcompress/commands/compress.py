"""tfcompress compress: a model, a recipe and data in, a folder of files out."""

import pathlib
from typing import Any

from tfcompress.commands import Result, UsageError, models
from tfcompress.errors import CompressionError, nearest


def compress(
    model: pathlib.Path,
    recipe: str,
    data: str | None,
    out: pathlib.Path,
    *,
    training: bool = True,
    max_drop: float | None = None,
    resume: bool = False,
    loss: str | None = None,
    metrics: list[str] | None = None,
    epochs: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    precision: str | None = None,
    scale: float = 1.0,
    modules: list[str] | None = None,
    verbose: int = 1,
) -> Result:
    """Run a recipe on a saved model.

    Args:
        model: the .keras file. recipe: name or file. data: see `tfcompress.data.load`; None for recipes that need none.
        out: folder for the results. loss, metrics: for a model that was saved without. The rest: see `Recipe.run`.

    Raises:
        CompressionError: something does not fit, or no step stays within max_drop.
    """
    import keras

    from tfcompress import data as loading
    from tfcompress.recipe import Recipe

    steps = Recipe.load(recipe)
    if epochs is not None:
        steps = steps.with_epochs(epochs)
    if precision is not None:
        steps = steps.with_export(precision)
    models.suffix_check(model)
    models.import_modules(modules or [])
    keras.utils.set_random_seed(seed)
    net = models.load(model)
    _compile(net, loss, metrics)
    brought = None if data is None else loading.load(data, net, scale, seed)
    _need_data(steps, training, brought, net)
    outcome = steps.run(
        net,
        x=None if brought is None else brought.train,
        validation_data=None if brought is None else brought.validation,
        out=out,
        resume=resume,
        max_drop=max_drop,
        batch_size=batch_size,
        seed=seed,
        training=training,
        verbose=verbose,
    )
    if steps.steps and not outcome.kept:
        raise CompressionError(f"{outcome.stopped} What {out} holds is the model as it was.")
    shown: list[Any] = [outcome.report.table(), *outcome.notes]
    if outcome.stopped:
        shown.append(outcome.stopped)
    shown.append("\n".join(f"{kind:9} {path}" for kind, path in outcome.files.items()))
    return Result(shown, {"model": str(model), "out": str(out), **outcome.to_dict()})


def _compile(model, loss: str | None, metrics: list[str] | None) -> None:
    """Compile a model that was saved without, or with another loss or metrics than it was saved with."""
    import keras

    if loss is None and not metrics:
        return
    for name in [loss] if loss else []:
        known = _names(keras.losses)
        if name not in known:
            raise UsageError(f"--loss: Keras has no loss {name!r}. {nearest(name, known)}")
    for name in metrics or []:
        known = {"accuracy", "acc", *_names(keras.metrics)}
        if name not in known:
            raise UsageError(f"--metrics: Keras has no metric {name!r}. {nearest(name, known)}")
    compiled = getattr(model, "compiled", False)
    if not compiled and loss is None:
        raise UsageError("The model was saved without a loss; --metrics alone is not enough: give --loss too.")
    model.compile(
        optimizer=model.optimizer if compiled and model.optimizer is not None else "adam",
        loss=loss or model.loss,
        metrics=metrics or ["accuracy"],
    )


def _names(module) -> set[str]:
    """The names by which Keras takes what a module holds: functions, in snake case."""
    return {name for name, value in vars(module).items() if callable(value) and name.islower() and not name.startswith("_")} - {
        "get", "serialize", "deserialize",
    }  # fmt: skip


def _need_data(recipe, training: bool, brought, model) -> None:
    trains = [step for step in recipe.steps if step.epochs] if training else []
    if brought is None and trains:
        raise UsageError(
            f"Recipe {recipe.name!r} trains ({trains[0].name}, {trains[0].epochs} epochs): give --data, or --no-train to leave "
            "training out."
        )
    if brought is None and recipe.export and recipe.export["precision"] in ("int8", "int16x8", "int4"):
        raise UsageError(
            f"Recipe {recipe.name!r} writes {recipe.export['precision']}, which needs calibration data for the ranges of "
            "activations: give --data with a few hundred inputs."
        )
    if trains and not getattr(model, "compiled", False):
        raise UsageError(
            "The model was saved without compile settings, and the recipe trains: give --loss, e.g. --loss "
            "sparse_categorical_crossentropy --metrics accuracy."
        )
