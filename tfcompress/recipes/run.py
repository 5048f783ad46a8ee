"""One run of a recipe: attach, train, measure and save, step by step."""

import contextlib
import dataclasses
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import keras

from tfcompress import carriers, data, select
from tfcompress.callbacks import Compression
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, apply, clock, is_attached, step, summary
from tfcompress.recipes import registry, training
from tfcompress.recipes import state as saved
from tfcompress.recipes.checks import check
from tfcompress.recipes.outcome import Outcome, StepResult
from tfcompress.recipes.registry import Length

CALIBRATION = 200
# Beyond two points of rounding error, a drop is a drop.
_EPSILON = 1e-9


@dataclasses.dataclass
class Settings:
    """The arguments of `Recipe.run`, under their own names."""

    train: Callable | None
    evaluate: Callable | None
    x: Any
    y: Any
    validation_data: Any
    calibration: Any
    out: Any
    resume: bool
    max_drop: float | None
    batch_size: int
    seed: int
    training: bool
    verbose: int


class Run:
    """The work of `Recipe.run`.

    Args:
        recipe: the recipe. model: the user's model, which stays as it is. settings: see `Recipe.run`.
    """

    def __init__(self, recipe, model, settings: Settings):
        self.recipe, self.original, self.settings = recipe, model, settings
        self.samples = data.samples(settings.x, settings.y)
        held = settings.validation_data
        self.held = data.samples(held[0], held[1], "x_val") if isinstance(held, tuple) else data.samples(held)
        self.calibration = settings.calibration
        if self.calibration is None and self.samples is not None:
            self.calibration = data.first(self.samples, CALIBRATION)
        self.out = None if settings.out is None else pathlib.Path(settings.out)
        self.state = None if self.out is None else saved.State(self.out / "state")
        self.model = model  # of the last step that was kept
        self.kept_file: str | None = None
        self.results: list[StepResult] = []
        self.swapped: list[int] = []  # steps that swapped the model's own class, which a saved model does not keep
        self.methods: list = []
        self._built: dict[int, Any] = {}
        self._rows: list[dict[str, str]] = []  # what attaching the present step did
        self.notes: list[str] = []
        self.metric: str | None = None
        self.base: float | None = None
        self.kept, self.stopped = 0, ""
        self.under_way: tuple[Any, int, int] | None = None  # model, epochs and batches of a step that was interrupted

    def say(self, sentence: str) -> None:
        """Print a line of progress."""
        if self.settings.verbose:
            print(sentence, flush=True)

    def epochs(self, number: int) -> int:
        """How long a step trains in this run."""
        return self.recipe.steps[number].epochs if self.settings.training else 0

    def all(self) -> Outcome:
        """The whole run."""
        check(self)
        if not self._restore():
            self.metric, self.base, _ = self._measure(self.original)
            if self.settings.max_drop is not None and self.base is None:
                raise CompressionError(
                    "max_drop needs an accuracy to compare: compile the model with metrics=['accuracy'] and give labelled "
                    "data, or pass evaluate=, a function of the model."
                )
            if self.base is not None:
                self.say(f"Before: {self.metric} {self.base:.2%}")
        for number in range(len(self.results), len(self.recipe.steps)):
            if self.stopped or not self._step(number):
                break
        return self._deliver()

    # -- state on disk

    def _note(self, epoch: int = 0, batch: int = 0, finished: bool = False) -> dict[str, Any]:
        return {
            "recipe": [step.describe() for step in self.recipe.steps],
            "model": saved.checksum(self.original),
            "seed": self.settings.seed,
            "batch_size": self.settings.batch_size,
            "training": self.settings.training,
            "steps": len(self.results),
            "kept_steps": self.kept,
            "epoch": epoch,
            "batch": batch,
            "finished": finished or bool(self.stopped) or len(self.results) == len(self.recipe.steps),
            "swapped": self.swapped,
            "rows": self._rows,
            "metric": self.metric,
            "base": self.base,
            "stopped": self.stopped,
            "results": [dataclasses.asdict(result) for result in self.results],
        }

    def _restore(self) -> bool:
        """Take up what is on disk; whether there was something."""
        note = None if self.state is None else self.state.read()
        if note is None or self.state is None:
            return False
        if not self.settings.resume:
            if note["finished"]:
                return False
            raise CompressionError(
                f"{self.state.folder} holds an unfinished run (step {note['steps'] + 1} of {len(note['recipe'])}, "
                f"{note['epoch']} epochs done). Resume it (resume=True, --resume), or delete that folder."
            )
        for key, now in self._note().items():
            if key in ("recipe", "model", "seed", "batch_size", "training") and note[key] != now:
                what = {"recipe": "recipe", "model": "model (other weights)"}.get(key, f"{key}, {note[key]!r}")
                raise CompressionError(f"{self.state.folder} is the state of another {what}; delete it to begin anew.")
        self.metric, self.base, self.stopped = note["metric"], note["base"], note["stopped"]
        self.results = [StepResult(**result) for result in note["results"]]
        self.kept, self.swapped, self._rows = note["kept_steps"], list(note["swapped"]), list(note["rows"])
        for number in range(len(self.results) + bool(note["epoch"] or note["batch"])):
            self.methods.append(self.method(number))
        with keras.saving.custom_object_scope(self._custom_objects()):
            current = self._reattach(self.state.load(note["file"], note))
            if note["epoch"] or note["batch"]:
                self.under_way = current, note["epoch"], note["batch"]
                self.kept_file = note["kept"]
                self.model = self.original if note["kept"] is None else self.state.load(note["kept"])
            else:
                self.kept_file, self.model = note["file"], current
        self.say(f"Resuming in step {len(self.results) + 1} after {note['epoch']} epochs and {note['batch']} batches.")
        return True

    def _custom_objects(self) -> dict[str, Any]:
        """What the user's model is made of and Keras would not find by itself."""
        layers = [self.original, *(layer for _, layer in select.layers(self.original))]
        kinds = {carriers.base_class(layer) for layer in layers}
        found = {keras.saving.get_registered_name(c): c for c in kinds if not c.__module__.startswith("keras.")}
        for loss in keras.tree.flatten(getattr(self.original, "loss", None)):
            if callable(loss) and hasattr(loss, "__name__"):
                found[loss.__name__] = loss
        return found

    def _reattach(self, model):
        """A class that was swapped for training (a student's) is not saved with a model; swap it again."""
        for number in self.swapped:
            method = self.methods[number]
            if hasattr(method, "start"):
                method = method.copy()
                method.start = step(model)
            model = apply(model, method, self.calibration, in_place=True, verbose=0)
        return model

    # -- one step

    def method(self, number: int):
        """The method of a step, its schedules as long as its training; a function is asked for it once."""
        if number not in self._built:
            self._built[number] = self._build(number)
        return self._built[number]

    def _build(self, number: int):
        length = Length(None, None)
        if not self.settings.training:
            length = Length(1, 1)
        elif self.samples is not None:
            per_epoch = training.batches_per_epoch(self._batches(number))
            if per_epoch is not None:
                every = training.accumulation(self.original)
                length = Length(per_epoch * self.epochs(number) // every, per_epoch // every)
        try:
            method = self.recipe.steps[number].build(length)
        except CompressionError as error:
            raise CompressionError(f"{self.where(number)}: {error}") from error
        return method if self.settings.training else registry.at_end(method)

    def where(self, number: int) -> str:
        """A step in messages."""
        return f"Step {number + 1} of {len(self.recipe.steps)} ({self.recipe.steps[number].name})"

    def _batches(self, number: int, skip: int = 0):
        if not data.is_samples(self.samples):
            return self.samples
        return data.Batches(self.samples, self.settings.batch_size, self.settings.seed + number, skip)

    def _step(self, number: int) -> bool:
        """Run a step; whether its model is within `max_drop`."""
        start = time.monotonic()
        keras.utils.set_random_seed(self.settings.seed + number)
        if self.under_way is None:
            model, epoch, batch = self._attach(number), 0, 0
        else:
            (model, epoch, batch), self.under_way = self.under_way, None
        if self.epochs(number):
            self._train(number, model, epoch, batch)
        elif is_attached(model) and clock(model) is not None:
            Compression(model)  # brings what is attached up to date
        metric, accuracy, figures = self._measure(model)
        left = {row["layer"]: row["detail"] for row in self._rows if row["action"] != DONE}
        done = sum(row["action"] == DONE for row in self._rows)
        seconds = round(time.monotonic() - start, 3)
        name, epochs = self.recipe.steps[number].name, self.epochs(number)
        skipped = len(self._rows) - done
        self.results.append(StepResult(name, epochs, seconds, figures, accuracy, done, skipped, left))
        if accuracy is not None:
            self.say(f"  {metric} {accuracy:.2%}")
        within = self._within(number, accuracy)
        if within:
            self.model, self.kept = model, number + 1
        if self.state is not None and within:
            self.kept_file = self.state.save(model, self._note())
        elif self.state is not None:
            # What is kept is on disk already, or is the model that the user gave.
            self.state.save(self.model, self._note())
        return within

    def _within(self, number: int, accuracy: float | None) -> bool:
        allowed = self.settings.max_drop
        if allowed is None or self.base is None:
            return True
        if accuracy is None:
            raise CompressionError(f"{self.where(number)}: its accuracy cannot be measured, which max_drop needs.")
        drop = 100 * (self.base - accuracy)
        if drop <= allowed + _EPSILON:
            return True
        kept = f"the model of step {self.kept} is the result" if self.kept else "nothing was compressed"
        self.stopped = f"{self.where(number)} loses {drop:.2f} points, more than the {allowed:g} allowed: {kept}."
        self.say(self.stopped)
        return False

    def _attach(self, number: int):
        method = self.method(number)
        self.methods.append(method)
        where = self.where(number)
        epochs = self.epochs(number)
        self.say(f"{where}" + (f", {epochs} epochs" if epochs else ""))
        before = getattr(type(self.model), "_tfcompress_attached", False)
        try:
            model = apply(self.model, method, self.calibration, verbose=int(self.settings.verbose > 1))
        except CompressionError as error:
            raise type(error)(f"{where}: {error}") from error
        rows = summary(model).rows
        done = sum(row.action == DONE for row in rows)
        if not done and not all(getattr(one, "may_find_nothing", False) for one in flat(method)):
            reasons = "; ".join(f"{row.layer}: {row.detail}" for row in rows[:5]) or "it found none"
            raise CompressionError(f"{where} applies to no layer of model {self.model.name!r} ({reasons}).")
        if getattr(type(model), "_tfcompress_attached", False) and not before:
            self.swapped.append(number)
        self._rows = [{"layer": row.layer, "action": row.action, "detail": row.detail} for row in rows]
        self.say(f"  {done} taken, {len(rows) - done} left as they are")
        if epochs and getattr(model, "compiled", False) and self.original.optimizer is not None:
            given = self.recipe.steps[number]
            training.set_optimizer(model, self.original.optimizer, given.optimizer, given.learning_rate)
        return model

    def _train(self, number: int, model, epoch: int, batch: int) -> None:
        def save(epochs, batches, now):
            if self.state is not None:
                self.state.save(now, self._note(epochs, batches), kept=self.kept_file)

        batches = None if self.samples is None else self._batches(number)
        own = self.settings.train is not None
        # Only our own batches can be taken up in mid-epoch; other training begins the epoch anew.
        batch = batch if data.is_samples(self.samples) and not own else 0
        watch = training.Watch(save, batches, epoch, batch, epoch if own else 0)
        callbacks = [
            c for method in self.methods for one in flat(method) if hasattr(one, "callbacks") for c in one.callbacks()
        ]
        if is_attached(model):
            callbacks.append(Compression())
        callbacks.append(watch)
        guard = training.interruptible(watch) if self.state is not None else contextlib.nullcontext()
        try:
            with guard:
                if self.settings.train is not None:
                    self.settings.train(model, self.epochs(number) - epoch, callbacks)
                else:
                    self._fit(number, model, epoch, batch, callbacks, watch)
                if watch.asked:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            if self.state is not None and self.state.note.exists():
                self.say(
                    f"Interrupted. The state is in {self.state.folder}; resume=True (--resume) goes on from there."
                )
            raise

    def _fit(self, number: int, model, epoch: int, batch: int, callbacks: list, watch) -> None:
        held = data.Batches(self.held, self.settings.batch_size, None) if data.is_samples(self.held) else self.held
        options: dict[str, Any] = {
            "callbacks": callbacks,
            "validation_data": held,
            "verbose": (0, 2, 1)[min(self.settings.verbose, 2)],
        }
        if data.is_samples(self.samples):
            options["shuffle"] = False  # of the batches, by random numbers that a resumed run would not have
        rest = watch.dataset
        if data.is_samples(self.samples) and batch:
            # The rest of the epoch in which it was interrupted.
            watch.dataset = self._batches(number, skip=batch)
            if len(watch.dataset):
                with warnings.catch_warnings():
                    # That a schedule goes on behind this epoch is no news.
                    warnings.filterwarnings("ignore", message="The schedule of")
                    model.fit(watch.dataset, epochs=epoch + 1, initial_epoch=epoch, **options)
            epoch += 1
        watch.dataset = rest
        if epoch < self.epochs(number):
            model.fit(rest, epochs=self.epochs(number), initial_epoch=epoch, **options)

    # -- measuring and the end

    def _measure(self, model) -> tuple[str | None, float | None, dict[str, float]]:
        """(name of the accuracy, accuracy, all figures) of a model."""
        if self.settings.evaluate is not None:
            value = float(self.settings.evaluate(model))
            if not 0 <= value <= 1:
                raise CompressionError(
                    f"`evaluate` must return a share from 0 to 1, higher is better; it returned {value}."
                )
            return "accuracy", value, {"accuracy": value}
        samples = self.held if self.held is not None else self.samples
        labelled = not isinstance(samples, data.Arrays) or samples.y is not None
        if samples is None or not labelled or not getattr(model, "compiled", False) or model.loss is None:
            return None, None, {}
        given = data.Batches(samples, self.settings.batch_size, None) if data.is_samples(samples) else samples
        found = model.evaluate(given, verbose=0, return_dict=True)
        figures = {key: float(value) for key, value in found.items()}
        name = next((key for key in figures if "acc" in key.lower()), None)
        return name, figures.get(name) if name else None, figures

    def _deliver(self) -> Outcome:
        from tfcompress.recipes.deliver import deliver

        measured = "training" if self.held is None and self.samples is not None else ""
        if measured and self.base is not None and self.settings.evaluate is None:
            self.notes.append("Accuracy is that on the training data: there was no validation data.")
        return deliver(self)


def flat(method) -> list:
    """The methods of a step, one or a list of them, as a list."""
    return [one for part in method for one in flat(part)] if isinstance(method, (list, tuple)) else [method]
