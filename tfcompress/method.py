"""Applying methods to models, and taking the finished model out: `apply` and `finalize` are mirror images.

Both work on a copy (unless `in_place=True`), return a model, and leave a report on it: one row a weight or layer, with
what was done, why something was skipped, or why it stays in float.
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable

import keras
import numpy as np

from tfcompress import _keras_compat, carriers, select
from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError
from tfcompress.parametrization import Parametrization, attach, chain, chains, deparametrize, state
from tfcompress.record import ATTRIBUTE, Range, Record

DONE, SKIPPED, FLOAT = "done", "skipped", "float"


@dataclasses.dataclass(frozen=True)
class Row:
    """What happened to one weight or layer.

    Args:
        layer: path. weight: its name, or "". action: "done", "skipped" or "float". detail: what, or why not.
    """

    layer: str
    weight: str
    action: str
    detail: str


@dataclasses.dataclass
class Report:
    """The rows of one `apply` or `finalize`, printable as a table."""

    title: str
    rows: list[Row]

    def __str__(self) -> str:
        import io

        from rich.console import Console
        from rich.table import Table

        table = Table("layer", "weight", "", "what", title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(row.layer, row.weight, row.action, row.detail)
        out = io.StringIO()
        Console(file=out, width=120).print(table)
        return out.getvalue()

    def to_dict(self) -> dict:
        """The report as plain data."""
        return dataclasses.asdict(self)


class Method(Configurable):
    """One step of compression: parametrizations to attach, layers to replace, or losses to add.

    Attributes:
        papers: numbers of the papers that the class implements.
        trains: whether the model has to be trained after attaching for the method to take effect.
        may_find_nothing: whether finding nothing to do is a result like any other, and no error of a recipe.
    """

    papers: tuple[int, ...] = ()
    trains = True
    may_find_nothing = False

    def attach(self, model, data=None) -> tuple[keras.Model, list[Row]]:
        """Do the method's work on a model that may be changed.

        Args:
            model: a copy of the user's model. data: calibration inputs, for methods that need them.

        Returns:
            The model to go on with (the same or a new one) and the report's rows.
        """
        raise NotImplementedError

    def callbacks(self) -> list:
        """Callbacks that training needs besides `Compression`."""
        return []


class WeightMethod(Method):
    """A method that puts a parametrization on each selected kernel.

    Args:
        layers: what to compress, as `tfcompress.select.get` takes it; all kernels by default.
        exclude: what of it to leave alone.
        include_frozen: compress layers with `trainable=False` too.
    """

    layers = None
    exclude = None
    include_frozen = False

    def parametrization(self, path: str, layer, weight: str) -> Parametrization | str:
        """A fresh parametrization for a weight, or the reason why it gets none."""
        raise NotImplementedError

    def attach(self, model, data=None):
        chosen = select.get(self.layers)
        left_out = select.get(self.exclude) if self.exclude is not None else ~select.everything
        check_no_shared_variables(model)
        rows = []
        for path, layer in [*own_layer(model), *select.layers(model)]:
            names = select.kernel_names(layer)
            if not names and (layer.built and _keras_compat.own_variables(layer)):
                rows.append(Row(path, "", SKIPPED, "no kernel: biases and normalization stay as they are"))
            for name in names:
                if not chosen(path, layer, name):
                    rows.append(Row(path, name, SKIPPED, f"not selected by layers={chosen}"))
                elif left_out(path, layer, name):
                    rows.append(Row(path, name, SKIPPED, f"left out by exclude={left_out}"))
                elif not layer.trainable and not self.include_frozen:
                    rows.append(Row(path, name, SKIPPED, "frozen (include_frozen=True takes it too)"))
                else:
                    link = self.parametrization(path, layer, name)
                    if isinstance(link, str):
                        rows.append(Row(path, name, SKIPPED, link))
                        continue
                    link.start = step(model)
                    attach(layer, name, [link])
                    rows.append(Row(path, name, DONE, repr(link)))
        if not any(row.action == DONE for row in rows):
            reasons = (
                "; ".join(f"{row.layer}.{row.weight}: {row.detail}" for row in rows[:5]) or "no layer has a kernel"
            )
            raise CompressionError(
                f"{type(self).__name__} applies to no weight of model {model.name!r} ({reasons})."
                + ("" if model.built else " The model is not built; build it or call it on a batch first.")
            )
        return model, rows


class Each(WeightMethod):
    """A plain parametrization as a method: a copy of it on each selected kernel.

    Args:
        prototype: the parametrization. layers, exclude, include_frozen: as in `WeightMethod`.
    """

    def __init__(self, prototype, layers=None, exclude=None, include_frozen=False):
        self.prototype, self.layers, self.exclude, self.include_frozen = prototype, layers, exclude, include_frozen
        self.papers = prototype.papers

    def parametrization(self, path, layer, weight):
        return self.prototype.copy()


def own_layer(model) -> list:
    """[(name, model)] for a bare layer or a model that owns weights itself, else []."""
    return [(model.name, model)] if _keras_compat.own_variables(model) and not state(model) else []


def check_no_shared_variables(model) -> None:
    """Refuse two layers that hold the same variable object: a chain belongs to one layer."""
    owner: dict[int, str] = {}
    for path, layer in select.layers(model):
        for variable in _keras_compat.own_variables(layer):
            if id(variable) in owner:
                raise CompressionError(
                    f"Layers {owner[id(variable)]!r} and {path!r} hold the same variable {variable.path!r}. Share the layer "
                    "instead of the variable, or leave both out with exclude=."
                )
            owner[id(variable)] = path


def require_built(model, why: str) -> None:
    """Raise when a model has no weights yet.

    Raises:
        CompressionError: the model is not built.
    """
    if not model.built:
        raise CompressionError(
            f"Model {model.name!r} is not built, and {why} needs its weights. Give it an Input, build it, or call it on a batch."
        )


def copy_model(model) -> keras.Model:
    """A copy of a model with its weights, compile settings and optimizer state.

    Raises:
        CompressionError: the model cannot be saved and loaded by Keras; the message says why.
    """
    classes = {carriers.base_class(layer) for layer in [model, *(layer for _, layer in select.layers(model))]}
    custom = {keras.saving.get_registered_name(c): c for c in classes if not c.__module__.startswith("keras.")}
    try:
        with keras.saving.custom_object_scope(custom), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are saving a model that has not yet been built")
            # An optimizer that has not run yet is saved without slots, which its copy has from the start.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            twin = copy.deepcopy(model)
    except Exception as error:
        raise CompressionError(
            f"Model {model.name!r} of class {type(model).__name__} cannot be copied, since Keras cannot save and load it: "
            f"{str(error).strip().splitlines()[0]} Give it get_config/from_config, or pass in_place=True."
        ) from error
    ours, theirs = model.variables, twin.variables
    if len(ours) != len(theirs) or any(
        not np.array_equal(np.asarray(a), np.asarray(b), equal_nan=a.dtype.startswith(("float", "bfloat")))
        for a, b in zip(ours, theirs, strict=True)
        if "seed" not in a.path
    ):
        raise CompressionError(
            f"Keras's copy of model {model.name!r} has other weights than the model itself (a subclassed model that was built "
            "but never called is not saved in full). Call it on a batch first, or pass in_place=True."
        )
    return twin


def apply(model, method, data=None, *, in_place: bool = False, verbose: int = 1):
    """Attach a method to a copy of a model, which is then compiled and fitted as always.

    Args:
        model: a Keras model of any kind. method: a `Method`, a `Parametrization` (a copy goes on each kernel), or a list
            of these, attached in order. data: calibration inputs for methods that need them.
        in_place: change `model` itself. verbose: 0 prints nothing.

    Returns:
        The attached model. If `model` was compiled, so is it, with the same settings.

    Raises:
        CompressionError: the method applies to no layer, the model cannot be copied, or values are needed and missing.

    Example:
        >>> from tfcompress import pruning
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
        >>> small = apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
        >>> int((small.get_layer("a").kernel.numpy() == 0).sum())
        4
    """
    methods = list(method) if isinstance(method, (list, tuple)) else [method]
    methods = [Each(m) if isinstance(m, Parametrization) else m for m in methods]
    for one in methods:
        if not isinstance(one, Method):
            raise CompressionError(f"Expected a tfcompress method or parametrization; received {one!r}.")
    if not isinstance(model, keras.Layer):
        kind = type(model)
        raise CompressionError(
            f"Expected a Keras 3 model; received {kind.__module__}.{kind.__name__}. tfcompress takes models of the package "
            "`keras` (version 3); load a tf_keras model with keras.saving.load_model or rebuild it with keras.layers."
        )
    twin = model if in_place else copy_model(model)
    compiled = twin.get_compile_config() if getattr(twin, "compiled", False) else None
    rows: list[Row] = []
    trained = {id(v) for v in twin.trainable_variables}
    for one in methods:
        before = twin
        twin, new = one.attach(twin, data)
        rows += new
        for mover in MOVERS if twin is not before else ():
            rows += mover(before, twin)
    carriers.carry_all(twin)
    if chains(twin):
        clock(twin)
    if compiled and not getattr(twin, "compiled", False):
        twin.compile_from_config(compiled)
    _restart(twin, trained)
    return _reported(twin, Report(f"{', '.join(type(m).__name__ for m in methods)} on {twin.name}", rows), verbose)


def _restart(model, trained: set[int]) -> None:
    """Make a changed model train and predict by its new graph; a new optimizer of the same settings where it must be."""
    _keras_compat.reset_functions(model)
    if getattr(model, "compiled", False) and {id(v) for v in model.trainable_variables} != trained:
        optimizer = model.optimizer
        if optimizer is not None and optimizer.built:
            model.optimizer = type(optimizer).from_config(optimizer.get_config())


def _reported(model, report: Report, verbose: int):
    model.__dict__["_tfcompress_report"] = report
    if verbose:
        print(report)
    return model


def summary(model) -> Report:
    """The report of the last `apply` or `finalize` that gave this model.

    Raises:
        CompressionError: the model came from neither, e.g. it was loaded from a file.
    """
    report = model.__dict__.get("_tfcompress_report")
    if report is None:
        raise CompressionError(f"Model {model.name!r} did not come from tfcompress.apply or finalize in this process.")
    return report


def clock(model):
    """The variable that counts a model's optimizer updates since compression began; made when missing."""
    for layer in [model, *(layer for _, layer in select.layers(model))]:
        own = state(layer)
        if own and own.clock is not None:
            return own.clock
    for layer in [model, *(layer for _, layer in select.layers(model))]:
        own = state(layer)
        if own and own.chains:
            return carriers.add_clock(layer)
    return None


def step(model) -> int:
    """How many optimizer updates an attached model has had.

    Example:
        >>> step(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
        0
    """
    for layer in [model, *(layer for _, layer in select.layers(model))]:
        own = state(layer)
        if own and own.clock is not None:
            return int(keras.ops.convert_to_numpy(own.clock.value))
    return 0


# What `finalize` does besides baking weights, by the packages that attach other things: model -> (model, rows, ranges).
Finalizer = Callable[[keras.Model], tuple[keras.Model, list[Row], dict[str, Range]]]
FINALIZERS: list[Finalizer] = []

# What is attached to a model as a whole and has to follow when a method makes a new model of it: (old, new) -> rows.
MOVERS: list[Callable[[keras.Model, keras.Model], list[Row]]] = []


def finalize(model, *, in_place: bool = False, force: bool = False, verbose: int = 1):
    """A plain Keras model that predicts what the attached one predicts in inference.

    Weights are baked bit for bit. Trained output ranges cannot live in plain Keras: they are left on the model as a
    `Record`, which `export` takes from there.

    Args:
        model: an attached model. in_place: change it itself. force: do it even if a schedule never began.
        verbose: 0 prints nothing.

    Raises:
        CompressionError: nothing is attached, or a schedule never advanced.

    Example:
        >>> from tfcompress import pruning
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> small = apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
        >>> type(finalize(small, verbose=0).layers[0]) is keras.layers.Dense
        True
    """
    rows = _progress_rows(model, force)
    twin = model if in_place else copy_model(model)
    trained = {id(v) for v in twin.trainable_variables}
    record = Record(weights=_grids(twin))
    for layer in [twin, *(layer for _, layer in select.layers(twin))]:
        if state(layer):
            deparametrize(layer)
            carriers.unswap(layer)
    for finalizer in FINALIZERS:
        twin, new, ranges = finalizer(twin)
        rows += new
        record.outputs.update(ranges)
    _restart(twin, trained)
    if record:
        twin.__dict__[ATTRIBUTE] = record
    return _reported(twin, Report(f"finalize {twin.name}", rows), verbose)


def _grids(model) -> dict:
    return {name: grid for name, c in chains(model) if (grid := c.grid()) is not None}


def _progress_rows(model, force: bool) -> list[Row]:
    """A row a chain, with what its schedules have reached; refuses a model whose schedules never began."""
    now, rows = step(model), []
    for name, one in chains(model):
        path, weight = name.rsplit(".", 1)
        notes = []
        for link in one.links:
            for argument, schedule in link.schedules():
                reached, wanted = schedule(now - link.start), schedule(schedule.end)
                if schedule.end > 0 and now == link.start and not force:
                    raise CompressionError(
                        f"The schedule of `{argument}` on {name} never advanced: pass tfcompress.Compression() to fit, or call its "
                        "step() in your own loop. force=True finalizes all the same."
                    )
                notes.append(
                    f"{argument} {reached:.3f}" + ("" if np.isclose(reached, wanted) else f" of {wanted:.3f} planned")
                )
                if not np.isclose(reached, wanted):
                    warnings.warn(
                        f"{name}: `{argument}` reached {reached:.3f} of {wanted:.3f} planned, since training stopped at step "
                        f"{now - link.start} of {schedule.end}.",
                        stacklevel=3,
                    )
        kinds = " then ".join(type(link).__name__ for link in one.links)
        rows.append(Row(path, weight, DONE, f"{kinds} baked" + (f" ({', '.join(notes)})" if notes else "")))
    return rows


def is_attached(model) -> bool:
    """Whether anything of tfcompress is attached to a model."""
    return any(state(layer) for layer in [model, *(layer for _, layer in select.layers(model))]) or any(
        getattr(type(layer), "_tfcompress_attached", False)
        for layer in [model, *(layer for _, layer in select.layers(model))]
    )


def deployable(model, force: bool = False) -> tuple[keras.Model, Record]:
    """The plain model to export and the record of its trained grids, from an attached, finalized or plain model."""
    if is_attached(model):
        model = finalize(model, force=force, verbose=0)
    return model, model.__dict__.get(ATTRIBUTE, Record())


__all__ = ["Method", "Report", "Row", "WeightMethod", "apply", "chain", "deployable", "finalize", "step", "summary"]
