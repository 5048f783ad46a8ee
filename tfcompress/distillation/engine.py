"""What is computed in a training step of a student: the terms, their weights by schedule, and what is logged of them."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress import _keras_compat
from tfcompress.distillation.losses import HardLabels
from tfcompress.distillation.teachers import as_logits, gives_logits, named, pick
from tfcompress.errors import CompressionError
from tfcompress.schedules import Constant, Schedule

LABELS, TEACHER = "labels", "teacher"


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
        if signals.labels is None or (model.loss is None and not has_own_loss(model)):
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


def has_own_loss(model) -> bool:
    """Whether the user's class computes its loss itself."""
    base = type(model)._tfcompress_below
    return base.compute_loss is not keras.Model.compute_loss
