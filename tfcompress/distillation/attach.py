"""How a student carries its teachers: a swapped model class whose `compute_loss` adds their terms.

Requirements that the mechanism meets:

- Plain `fit`, any data source, any kind of model; the layers, weights, names and saved files of the student stay what
  they are. A saved student is plain: the teacher is not in its file, and distillation is attached again after loading.
- The teacher is out of Keras's sight: neither weights, nor gradient, nor training mode. On JAX its weights become
  constants of the compiled step; for a large one, or for speed, use a cache.
- What is counted (the step of the schedules, the means of the terms) lives in a metric, which is part of the state that
  JAX threads through a compiled step, and part of no file.
- A copy of the student keeps the teacher; `finalize` takes it off.
"""

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress import _keras_compat, carriers
from tfcompress.distillation.losses import HardLabels
from tfcompress.distillation.teachers import as_logits, gives_logits, named, pick
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, FINALIZERS, MOVERS, Row
from tfcompress.parametrization import STATE
from tfcompress.schedules import Constant, Schedule

OWN = "_tfcompress_distillation"
LABELS, TEACHER = "labels", "teacher"
_CLASSES: dict[type, type] = {}


class _Mean(keras.losses.Loss):
    """The mean of given values, weighted and masked exactly as Keras does it for its own losses."""

    def __init__(self):
        super().__init__(name="distillation", dtype="float32")

    def call(self, y_true, y_pred):
        return y_true


@dataclasses.dataclass
class Signals:
    """All that a loss can look at for one batch.

    Args:
        model: the student. source: its `Teachers` or `Cache`. from_logits: what the user said about the student.
        x, labels, y_pred, sample_weight: of the batch, as in `compute_loss`. stored: teacher outputs out of a cache.
    """

    model: Any
    source: Any
    from_logits: bool | None
    x: Any
    labels: Any
    y_pred: Any
    sample_weight: Any
    stored: Any = None
    _members: list[dict] | None = None

    def _output(self, name: str | None):
        return pick(named(self.model, self.y_pred), name, f"Student {self.model.name!r}")

    def student_gives_logits(self, output: str | None) -> bool:
        """Whether the student's output are logits."""
        known = self.from_logits if self.from_logits is not None else gives_logits(self.model, output)
        if known is None:
            raise CompressionError(
                f"It is not clear whether student {self.model.name!r} gives logits or probabilities. Pass "
                "student_from_logits=True or False to Distillation."
            )
        return known

    def student(self, output: str | None):
        """The student's logits at an output, float32."""
        return as_logits(self._output(output), self.student_gives_logits(output))

    def members(self) -> list[dict]:
        """Each teacher's logits by output name; asked once a batch."""
        if self._members is None:
            self._members = self.source.members(self.x) if self.stored is None else self.source.split(self.stored)
        return self._members

    def teachers(self, output: str | None) -> list:
        """The logits of each teacher at an output."""
        return [pick(member, output, f"Teacher {self.source.name!r}") for member in self.members()]

    def mean(self, values, output: str | None = None):
        """The mean of [batch, ...] values over the batch, by the sample weights and the mask of an output."""
        weight = self.sample_weight
        if isinstance(weight, (dict, list, tuple)):
            of = weight if isinstance(weight, dict) else dict(zip(named(self.model, self.y_pred), weight, strict=True))
            weight = pick(of, output, "`sample_weight`")
        return _Mean()(values, self._output(output), weight)


class Progress(keras.metrics.Metric):
    """Counts training steps and averages each term over an epoch; the count survives the epoch.

    Args:
        terms: their names. start: the count to begin with.
    """

    def __init__(self, terms: list[str], start: int = 0):
        super().__init__(name="distillation")
        self.terms = terms
        self.training = True
        self.step = self.add_variable(
            (), lambda shape, dtype=None: ops.full(shape, start, dtype), "int32", "only_first_replica", "step"
        )
        self.sums = self.add_variable((len(terms),), "zeros", "float32", name="sums")
        self.cases = self.add_variable((), "zeros", "float32", name="cases")
        self.broken = self.add_variable((), "zeros", "float32", name="broken")

    def update_state(self, values, cases, broken):
        """Add a batch: the value of each term, the number of cases, and how many had a teacher that is not finite."""
        self.sums.assign_add(ops.stack([ops.cast(v, "float32") for v in values]) * cases)
        self.cases.assign_add(cases)
        self.broken.assign_add(broken)

    def result(self):
        if not self.training:  # evaluation shows the compiled loss alone
            return {}
        means = ops.divide_no_nan(self.sums.value, self.cases.value)
        return {name: means[i] for i, name in enumerate(self.terms)}

    def reset_state(self):
        for variable in (self.sums, self.cases, self.broken):
            variable.assign(ops.zeros_like(variable.value))


class Own:
    """What a distilled student remembers outside Keras's sight.

    Args:
        model: the student. source: `Teachers` or a `Cache`. losses: the terms. from_logits: of the student, or None.
        start: the step with which the schedules begin.
    """

    def __init__(self, model, source, losses, from_logits: bool | None, start: int = 0):
        self.source, self.losses, self.from_logits = source, losses, from_logits
        names = [loss.name for loss in losses]
        names = [name if names.count(name) == 1 else f"{name}_{i}" for i, name in enumerate(names)]
        scope = _keras_compat.strategy_scope(model.variables[0]) if model.variables else _keras_compat.no_autocast()
        with scope:
            self.progress = Progress(names, start)
        self.took_training = _keras_compat.loss_takes_training(model)

    def again(self, model) -> "Own":
        """The same for a copy of the student."""
        step = int(keras.ops.convert_to_numpy(self.progress.step + 0))
        return Own(model, self.source, self.losses, self.from_logits, step)

    def split(self, y):
        """Labels and stored teacher outputs of a batch; the two come together where a cache is the teacher."""
        if self.source.cached and isinstance(y, dict) and TEACHER in y and set(y) <= {LABELS, TEACHER}:
            return y.get(LABELS), y[TEACHER]
        return y, None

    def signals(self, model, x, labels, y_pred, sample_weight, stored) -> Signals:
        if self.source.cached and stored is None:
            raise CompressionError(
                f"Student {model.name!r} learns from a cache, so its training data has to carry the stored outputs: "
                "student.fit(x, cache.targets(x, y)), or student.fit(cache.data(x, y)) with augmentation."
            )
        return Signals(model, self.source, self.from_logits, x, labels, y_pred, sample_weight, stored)

    def total(self, model, plain, signals: Signals):
        """The training loss; `plain()` is the model's own, regularizers included."""
        accumulation = int(getattr(model.optimizer, "gradient_accumulation_steps", None) or 1)
        step = self.progress.step.value // accumulation
        weights = [at(loss.weight, step) for loss in self.losses]
        hard = [w for loss, w in zip(self.losses, weights, strict=True) if isinstance(loss, HardLabels)]
        label_weight = sum(hard) if hard else 0.0
        rest = _keras_compat.additional_losses(model)
        extra = sum(rest) if rest else 0.0
        own = None
        if not _is(label_weight, 0.0):
            own = self._labelled(model, plain, signals)
        terms, parts = [], []
        for loss, weight in zip(self.losses, weights, strict=True):
            if isinstance(loss, HardLabels):
                terms.append(0.0 if own is None else own - extra)
            elif _is(weight, 0.0):
                terms.append(0.0)
            else:
                terms.append(loss(signals))
                parts.append(terms[-1] if _is(weight, 1.0) else weight * terms[-1])
        # A weight of exactly 1 leaves the model's own loss untouched, so that it trains bit for bit as without a teacher.
        if _is(label_weight, 1.0):
            parts.insert(0, own)
        elif own is not None:
            parts.insert(0, label_weight * (own - extra) + extra)
        elif rest:
            parts.insert(0, extra)
        self._count(signals, terms)
        return sum(parts[1:], parts[0]) if parts else ops.zeros(())

    def _labelled(self, model, plain, signals: Signals):
        if signals.labels is None or (model.loss is None and not _has_own_loss(model)):
            what = "labels in the data" if signals.labels is None else "a loss in compile()"
            raise CompressionError(
                f"The hard-label term of student {model.name!r} needs {what}. Without labels use alpha=0, or losses without "
                "HardLabels."
            )
        return plain()

    def _count(self, signals: Signals, terms) -> None:
        cases = ops.cast(ops.shape(keras.tree.flatten(signals.y_pred)[0])[0], "float32")
        broken = ops.zeros(())
        for member in signals._members or []:
            for value in member.values():
                finite = ops.all(ops.reshape(ops.isfinite(value), (ops.shape(value)[0], -1)), axis=1)
                broken = broken + ops.sum(ops.cast(ops.logical_not(finite), "float32"))
        values = [_keras_compat.unscaled(ops.stop_gradient(ops.convert_to_tensor(term, "float32"))) for term in terms]
        self.progress.update_state(values, cases, broken)
        self.progress.step.assign_add(1)


def at(schedule: Schedule, step):
    """A schedule's value at a step that is known only inside a compiled function: a number where it is constant."""
    if isinstance(schedule, Constant) or schedule.end == 0:
        return schedule(0)
    table = np.asarray([schedule(s) for s in range(schedule.end + 1)], "float32")
    return ops.take(ops.convert_to_tensor(table), ops.minimum(step, schedule.end))


def _is(weight, value: float) -> bool:
    return isinstance(weight, (int, float)) and weight == value


def _has_own_loss(model) -> bool:
    """Whether the user's class computes its loss itself."""
    base = type(model)._tfcompress_below
    return base.compute_loss is not keras.Model.compute_loss


class Guard(keras.callbacks.Callback):
    """Stops a training whose teacher gives NaN, after the first batch or at the end of an epoch."""

    def __init__(self):
        super().__init__()
        self._looked = False

    def on_train_batch_end(self, batch, logs=None):
        if not self._looked:
            self._looked = True
            self._check(f"in the first {batch + 1} batch(es)")

    def on_epoch_end(self, epoch, logs=None):
        self._check(f"in epoch {epoch + 1}")

    def _check(self, when: str) -> None:
        own = self.model.__dict__.get(OWN)
        if own is None:
            return
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        broken = int(keras.ops.convert_to_numpy(own.progress.broken + 0.0))  # reduced over replicas
        if broken:
            raise CompressionError(
                f"Teacher {own.source.name!r} gave NaN or infinite values for {broken} inputs {when}; the student's weights "
                "are spoilt from there on. Check the inputs, and that the teacher takes them in this form."
            )


class Distilled:
    """The methods that all distilled classes share."""

    _tfcompress_attached = True
    _tfcompress_below: type

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        own = self.__dict__.get(OWN)
        labels, stored = (y, None) if own is None else own.split(y)

        def plain():
            kwargs = {"training": training} if own is None or own.took_training else {}
            return super(Distilled, self).compute_loss(x, labels, y_pred, sample_weight, **kwargs)

        if own is None:
            return plain()
        own.progress.training = bool(training)
        if not training and labels is not None and (self.loss is not None or _has_own_loss(self)):
            return plain()
        signals = own.signals(self, x, labels, y_pred, sample_weight, stored)
        return own.total(self, plain, signals)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        own = self.__dict__.get(OWN)
        labels = y if own is None else own.split(y)[0]
        if labels is None and own is not None:
            return self.get_metrics_result()  # compiled metrics have nothing to compare with
        return super().compute_metrics(x, labels, y_pred, sample_weight)

    def get_metrics_result(self):
        results: dict = {}
        for metric in self.metrics:
            if getattr(metric, "built", True):  # in training without labels, compiled metrics never are
                result = metric.result()
                results.update(result if isinstance(result, dict) else {metric.name: result})
        return results

    @property
    def metrics(self):
        own = self.__dict__.get(OWN)
        return super().metrics + ([] if own is None else [own.progress])

    def fit(self, *args, **kwargs):
        fit = super().fit
        bound = inspect.signature(fit).bind(*args, **kwargs)
        given = bound.arguments.get("callbacks")
        if isinstance(given, keras.callbacks.CallbackList):
            given.append(Guard())
        else:
            bound.arguments["callbacks"] = [*keras.tree.flatten(given if given is not None else []), Guard()]
        return fit(*bound.args, **bound.kwargs)

    def __deepcopy__(self, memo):
        make, arguments = self.__reduce__()
        twin = make(*arguments)
        own = self.__dict__.get(OWN)
        if own is not None:
            attach(twin, own.again(twin))
        return twin

    @classmethod
    def from_config(cls, *args, **kwargs):
        return cls._tfcompress_below.from_config(*args, **kwargs)  # type: ignore[attr-defined]


def distilled_class(below: type) -> type:
    """The distilled subclass of a model's class, cached; Keras saves its instances under the name of the class below."""
    if below not in _CLASSES:
        body = {
            "_tfcompress_below": below,
            "_tfcompress_base": getattr(below, "_tfcompress_base", below),
            "__module__": below.__module__,
            "__doc__": below.__doc__,
        }
        cls = type(below)(below.__name__, (Distilled, below), body)
        name = keras.saving.get_registered_name(below)
        current = keras.saving.get_registered_object(name)
        if current is not None and ">" in name:
            package, short = name.split(">", 1)
            keras.saving.register_keras_serializable(package, short)(cls)
            # The last registration is the one that loads.
            keras.saving.register_keras_serializable(package, short)(current)
        _CLASSES[below] = cls
    return _CLASSES[below]


def is_distilled(model) -> bool:
    """Whether a model learns from a teacher.

    Example:
        >>> is_distilled(keras.Sequential([keras.layers.Dense(2)]))
        False
    """
    return isinstance(model, Distilled) and OWN in model.__dict__


def attach(model, own: Own) -> None:
    """Give a student its distilled class."""
    object.__setattr__(model, "__class__", distilled_class(type(model)))
    model.__dict__[OWN] = own
    _keras_compat.loss_takes_training(model, True)
    _keras_compat.reset_functions(model)


def detach(model) -> None:
    """The mirror image of `attach`."""
    own = model.__dict__.pop(OWN)
    _keras_compat.loss_takes_training(model, own.took_training)
    cls: Any = type(model)
    if cls in _CLASSES.values():
        object.__setattr__(model, "__class__", cls._tfcompress_below)
    else:
        # The model became a carrier of parametrizations later: the carrier's class is made anew over the student's own.
        carried = model.__dict__.pop(STATE)
        object.__setattr__(model, "__class__", cls._tfcompress_base._tfcompress_below)
        carriers.swap(model)
        model.__dict__[STATE] = carried
    _keras_compat.reset_functions(model)


def _take_off(model):
    """What `finalize` does: the student is its own class again, without teacher."""
    rows = []
    for one in _keras_compat.flat_layers(model):
        if is_distilled(one):
            rows.append(Row(one.name, "", DONE, f"teacher {one.__dict__[OWN].source.name!r} taken off"))
            detach(one)
    return model, rows, {}


def _move(old, new) -> list[Row]:
    """What `apply` does when a method made a new model of a student, as surgery does: the teacher goes along."""
    if not is_distilled(old) or is_distilled(new):
        return []
    attach(new, old.__dict__[OWN].again(new))
    return [Row(new.name, "", DONE, f"goes on learning from {old.__dict__[OWN].source.name!r}")]


FINALIZERS.append(_take_off)
MOVERS.append(_move)
