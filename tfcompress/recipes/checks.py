"""What can be told to be wrong before a recipe trains for hours."""

import importlib.util

import keras

from tfcompress import data, select
from tfcompress.errors import CompressionError, MissingExtra
from tfcompress.method import WeightMethod, require_built

INTEGER = ("int8", "int16x8", "int4")


def check(run) -> None:
    """Compare a run's model, data, settings and recipe with each other.

    Args:
        run: a `tfcompress.recipes.run.Run`.

    Raises:
        CompressionError: something does not fit; the message names it.
    """
    model, settings, steps = run.original, run.settings, run.recipe.steps
    if not isinstance(model, keras.Model):
        kind = type(model)
        raise CompressionError(
            f"A recipe takes a Keras 3 model; received {kind.__module__}.{kind.__name__}. Load tf_keras models with "
            "keras.saving.load_model, or rebuild them with keras.layers."
        )
    require_built(model, f"recipe {run.recipe.name!r}")
    _check_settings(run)
    trains = [number for number in range(len(steps)) if run.epochs(number)]
    if trains and settings.train is None:
        _check_training(run, trains[0])
    if any(steps[number].optimizer is not None or steps[number].learning_rate is not None for number in trains):
        _compiled(model, "its steps set the optimizer or the learning rate")
    for what, samples in (("x", run.samples), ("x_val", run.held)):
        data.check(model, samples, what)
    _check_selections(run)
    if run.recipe.export:
        _check_export(run, bool(trains))


def _check_settings(run) -> None:
    settings = run.settings
    if settings.max_drop is not None and not 0 <= settings.max_drop <= 100:
        raise CompressionError(f"`max_drop` is in percentage points, 0 to 100; received {settings.max_drop}.")
    if settings.resume and run.out is None:
        raise CompressionError("resume=True needs `out`, the folder that holds the state.")
    if not isinstance(settings.batch_size, int) or settings.batch_size < 1:
        raise CompressionError(f"`batch_size` must be a positive whole number; received {settings.batch_size!r}.")
    if run.out is not None and run.out.exists() and not run.out.is_dir():
        raise CompressionError(f"{run.out} is a file; `out` is the folder for the results.")


def _check_training(run, number: int) -> None:
    where = f"step {number + 1} ({run.recipe.steps[number].name}) trains for {run.epochs(number)} epochs"
    if run.samples is None:
        raise CompressionError(
            f"{where[0].upper()}{where[1:]}, and there is no data: give x and y, or training=False to leave training out."
        )
    _compiled(run.original, where)
    # A teacher's loss may need no labels.
    taught = any("distillation" in step.name for step in run.recipe.steps)
    unlabelled = isinstance(run.samples, data.Arrays) and run.samples.y is None
    if unlabelled and getattr(run.original, "loss", None) is not None and not taught:
        raise CompressionError(
            f"The data has no labels y, and {where} with the loss {data.loss_name(run.original.loss)}."
        )


def _compiled(model, why: str) -> None:
    if not getattr(model, "compiled", False):
        raise CompressionError(
            f"Model {model.name!r} is not compiled, and {why}: compile it with an optimizer, a loss and metrics."
        )


def _check_selections(run) -> None:
    """Refuse a step whose layers are not in the model, instead of finding out when its turn comes."""
    from tfcompress.recipes.run import flat

    for number in range(len(run.recipe.steps)):
        for method in flat(run.method(number)):
            if not isinstance(method, WeightMethod):
                return  # it may make other layers
            chosen = select.get(method.layers)
            left_out = select.get(method.exclude) if method.exclude is not None else ~select.everything
            weights = [
                (path, layer, name)
                for path, layer in [(run.original.name, run.original), *select.layers(run.original)]
                for name in select.kernel_names(layer)
            ]
            if weights and not any(chosen(*weight) and not left_out(*weight) for weight in weights):
                paths = list(dict.fromkeys(path for path, _, _ in weights))
                raise CompressionError(
                    f"{run.where(number)} applies to no layer: layers={method.layers!r} and exclude={method.exclude!r} select none "
                    f"of {', '.join(paths[:10])}{', ...' if len(paths) > 10 else ''}."
                )


def _check_export(run, trains: bool) -> None:
    for package in ("tensorflow", "ai_edge_litert"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(
                f"Recipe {run.recipe.name!r} exports, which needs the package {package!r}, and it is not installed. "
                'Install it with: pip install "tfcompress[export]"'
            )
    precision = run.recipe.export["precision"]
    if precision in INTEGER and run.calibration is None and not trains:
        raise CompressionError(
            f"Precision {precision!r} needs calibration data for the ranges of activations: give calibration=x[:200], "
            "inputs as the model is used with."
        )
