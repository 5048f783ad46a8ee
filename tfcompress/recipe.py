"""Recipes: methods one after the other, each with its training, then the files for the phone."""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from tfcompress.errors import CompressionError, nearest
from tfcompress.method import Method
from tfcompress.parametrization import Parametrization
from tfcompress.recipes import file as recipe_file
from tfcompress.recipes import registry
from tfcompress.recipes.outcome import Outcome
from tfcompress.recipes.registry import Length

# What `export` says about the file; the data and the model come from the run.
_FROM_THE_RUN = ("model", "files", "calibration", "samples", "record", "worker", "verbose", "simulated")


@dataclasses.dataclass
class Step:
    """One method and the training that it needs.

    Args:
        method: a method, a parametrization, a list of these, or a function of the step's number of optimizer updates that
            returns one, for schedules that are as long as the training.
        epochs: of training after it is attached; 0 for methods that do their work at once.
        optimizer: a Keras optimizer, its name, or {name: arguments}; by default the model's own, with its settings.
        learning_rate: a number, a Keras schedule, or "x0.1" for a tenth of the rate the model was compiled with.

    Raises:
        CompressionError: an argument is of the wrong kind.

    Example:
        >>> from tfcompress import pruning, schedules
        >>> step = Step(lambda updates: pruning.Magnitude(schedules.Cubic(0, 0.9, steps=updates)), epochs=10)
        >>> step.build(Length(1000, 100))
        Magnitude(sparsity=Cubic(initial=0.0, final=0.9, steps=1000))
    """

    method: Any
    epochs: int = 0
    optimizer: Any = None
    learning_rate: Any = None
    name: str = ""

    def __post_init__(self):
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise CompressionError(f"`epochs` must be a whole number, 0 or more; received {self.epochs!r}.")
        if isinstance(self.learning_rate, str):
            factor = self.learning_rate.removeprefix("x")
            if factor == self.learning_rate or not factor.replace(".", "", 1).isdigit() or not float(factor):
                raise CompressionError(
                    f"`learning_rate` is a number, or 'x0.1' for a tenth of the model's own; received {self.learning_rate!r}."
                )
        elif isinstance(self.learning_rate, (int, float)) and not 0 < self.learning_rate < float("inf"):
            raise CompressionError(f"`learning_rate` must be positive; received {self.learning_rate!r}.")
        if (self.optimizer is not None or self.learning_rate is not None) and not self.epochs:
            raise CompressionError("An optimizer or a learning rate is of no use without `epochs`.")
        if not _is_method(self.method) and not callable(self.method):
            raise CompressionError(
                f"A step takes a tfcompress method, a list of them, or a function of the number of updates; received {self.method!r}."
            )
        if not self.name:
            self.name = registry.name_of(self.method) if _is_method(self.method) else self.method.__name__

    def build(self, length: Length):
        """The method, its schedules as long as the training.

        Raises:
            CompressionError: a function returned something else, or a length is needed and not known.
        """
        if _is_method(self.method):
            return self.method
        if isinstance(self.method, _Written):
            return self.method.build(length)
        if length.updates is None:
            raise CompressionError("its method is a function of the number of updates, which this data does not say.")
        built = self.method(length.updates)
        if not _is_method(built):
            raise CompressionError(f"its function returned {built!r}, which is no method.")
        return built

    def describe(self) -> str:
        """What tells this step from another in a saved state."""
        what = repr(self.method) if _is_method(self.method) or isinstance(self.method, _Written) else self.name
        optimizer = self.optimizer.name if hasattr(self.optimizer, "name") else self.optimizer
        rate = type(self.learning_rate).__name__ if hasattr(self.learning_rate, "get_config") else self.learning_rate
        return f"{what}, epochs={self.epochs}, optimizer={optimizer}, learning_rate={rate}"


def _is_method(value) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_method, value))
    return isinstance(value, (Method, Parametrization))


@dataclasses.dataclass
class _Written:
    """A method as a recipe file writes it, whose relative lengths wait for the data."""

    name: str
    arguments: dict
    where: str = dataclasses.field(default="", repr=False)

    def build(self, length: Length):
        return registry.build(registry.methods()[self.name], self.arguments, length, self.where)

    def __call__(self, updates: int):
        return self.build(Length(updates, None))


class Recipe:
    """An ordered list of steps, and what becomes of the model in the end.

    Args:
        steps: `Step`s, or methods that need no training.
        export: the .tflite file to write: a precision, or {"precision": ..., other arguments of `tfcompress.export.tflite`};
            None for no such file.
        pack: the .tfcz file to write: "tflite" or "keras" says which file is packed, True takes the .tflite if there is one;
            False for none.
        name: in messages and reports. about: one sentence.

    Raises:
        CompressionError: a step is no step, or an export option is unknown.

    Example:
        >>> import keras, numpy as np
        >>> from tfcompress import pruning
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> recipe = Recipe([Step(pruning.Magnitude(sparsity=0.5), epochs=1)])
        >>> outcome = recipe.run(model, x=np.ones((8, 4)), y=np.ones((8, 2)), verbose=0)
        >>> int((outcome.plain.layers[0].kernel.numpy() == 0).sum())
        4
    """

    def __init__(self, steps, export=None, pack=False, name: str = "recipe", about: str = ""):
        self.steps = [step if isinstance(step, Step) else Step(step) for step in steps]
        self.export = self._export_options(export, name)
        if pack not in (True, False, "tflite", "keras"):
            raise CompressionError(f"{name}: `pack` is true, false, 'tflite' or 'keras'; received {pack!r}.")
        if pack == "tflite" and not self.export:
            raise CompressionError(f"{name}: pack='tflite' needs `export`.")
        self.pack = ("tflite" if self.export else "keras") if pack is True else pack
        self.name, self.about = name, about

    @staticmethod
    def _export_options(export, name: str) -> dict[str, Any]:
        if export is None or export is False:
            return {}
        options = {"precision": export} if isinstance(export, str) else export
        if not isinstance(options, Mapping):
            raise CompressionError(f"{name}: `export` is a precision or a mapping of options; received {export!r}.")
        from tfcompress.export import PRECISIONS, TARGETS, convert
        from tfcompress.export.targets import check_request

        known = [key for key in inspect.signature(convert).parameters if key not in _FROM_THE_RUN]
        for key in options:
            if key not in ("precision", *known):
                raise CompressionError(
                    f"{name}: `export` has no option {key!r}. {nearest(str(key), ['precision', *known])}"
                )
        options = {"precision": "float32", **options}
        if options["precision"] not in PRECISIONS:
            raise CompressionError(
                f"{name}: unknown precision {options['precision']!r}. {nearest(str(options['precision']), PRECISIONS)}"
            )
        target = options.get("target", "xnnpack")
        if target not in TARGETS:
            raise CompressionError(f"{name}: unknown target {target!r}. {nearest(str(target), TARGETS)}")
        check_request(TARGETS[target], options["precision"], options.get("boundary", "float32"))
        return options

    @classmethod
    def load(cls, name) -> "Recipe":
        """A recipe by the name of a shipped one, or from a YAML file.

        Args:
            name: e.g. "prune-qat", or the path of a file.

        Raises:
            CompressionError: an unknown key, method or argument; the message names it and the nearest valid one.

        Example:
            >>> [step.name for step in Recipe.load("prune-qat").steps]
            ['pruning.Magnitude', 'quantization.QAT']
        """
        where, text = recipe_file.text_of(name)
        return cls.from_dict(recipe_file.parse(text, f"recipe {where!r}"), pathlib.Path(where).stem)

    @classmethod
    def from_dict(cls, data: Mapping, name: str = "recipe") -> "Recipe":
        """A recipe from what its YAML file holds.

        Example:
            >>> Recipe.from_dict({"steps": [{"method": "magnitude", "arguments": {"sparsty": 0.5}}]})
            Traceback (most recent call last):
            tfcompress.errors.CompressionError: recipe, step 1: Magnitude has no argument 'sparsty'. Did you mean 'sparsity'?
        """
        name = str(data.get("name", name))
        data = recipe_file.check(data, name)
        steps = []
        for number, step in enumerate(data.get("steps") or [], 1):
            where = f"{name}, step {number}"
            full = registry.find(step["method"], where)
            written = _Written(full, dict(_mapping(step.get("arguments"), f"{where}, arguments")), where)
            written.build(Length(10_000, 100))  # what is wrong is said before anything runs
            options = {key: step[key] for key in ("epochs", "optimizer", "learning_rate") if step.get(key) is not None}
            if "optimizer" in options:
                from tfcompress.recipes.training import as_optimizer

                _try(lambda o=options["optimizer"]: as_optimizer(o), where)
            steps.append(_try(lambda w=written, o=options, n=full: Step(w, name=n, **o), where))
        return cls(
            steps, data.get("export"), data.get("pack", False), name, " ".join(str(data.get("about", "")).split())
        )

    def with_epochs(self, epochs: int) -> "Recipe":
        """The same recipe with another number of epochs in every step that trains."""
        steps = [dataclasses.replace(s, epochs=epochs) if s.epochs else s for s in self.steps]
        return Recipe(steps, self.export or None, self.pack, self.name, self.about)

    def with_export(self, precision: str) -> "Recipe":
        """The same recipe, which exports in another precision."""
        options = {key: value for key, value in self.export.items() if key != "boundary"}
        return Recipe(self.steps, {**options, "precision": precision}, self.pack, self.name, self.about)

    def run(
        self,
        model,
        train: Callable | None = None,
        evaluate: Callable | None = None,
        *,
        x=None,
        y=None,
        validation_data=None,
        calibration=None,
        out=None,
        resume: bool = False,
        max_drop: float | None = None,
        batch_size: int = 32,
        seed: int = 0,
        training: bool = True,
        verbose: int = 1,
    ) -> Outcome:
        """Compress a copy of a model by the steps.

        Training is `model.fit` with the model's compile settings and the callbacks that the methods need. After every
        step, from time to time within one, and on Ctrl-C the state is written to `out`/state; `resume` goes on from there
        as if nothing had happened: the same weights, where the data are arrays or images.

        Args:
            model: a built Keras model, compiled unless `train` is given or nothing trains.
            train: own training, a function (model, epochs, callbacks); it passes the callbacks to its `fit`.
            evaluate: own measure, a function of the model that returns a share from 0 to 1, higher is better; by default
                the accuracy that the model was compiled with.
            x, y: training data as `fit` takes it: arrays, or a dataset in x. validation_data: (x, y) or a dataset.
            calibration: inputs for methods and export; by default 200 samples of x.
            out: folder for the state and the files: model.keras (finalized, with model.ranges.json), model.tflite,
                model.tfcz, report.json, report.html, as far as the recipe asks for them.
            resume: go on from the state in `out`, if there is one.
            max_drop: largest loss of accuracy in percentage points: the model of the last step within it is the result.
            batch_size: samples a batch. seed: of the samples' order and of what methods draw.
            training: False skips all training; schedules then stand at their end.
            verbose: 0 prints nothing, 1 a line a step and epoch, 2 everything.

        Returns:
            The `Outcome`: the model, what each step gave, the files.

        Raises:
            CompressionError: something does not fit; a step applies to no layer; `out` holds an unfinished run.
            KeyboardInterrupt: after the state is on disk.
        """
        from tfcompress.recipes.run import Run, Settings

        settings = Settings(train, evaluate, x, y, validation_data, calibration, out, resume, max_drop, batch_size, seed, training, verbose)  # fmt: skip
        return Run(self, model, settings).all()


def _mapping(value, where: str) -> Mapping:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise CompressionError(f"{where} must be a mapping; received {value!r}.")
    return value


def _try(function: Callable, where: str):
    """What the function returns; its error with the place in front."""
    try:
        return function()
    except CompressionError as error:
        raise CompressionError(f"{where}: {error}") from error
