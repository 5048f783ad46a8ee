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

import inspect
from typing import Any

import keras

from tfcompress import _keras_compat, carriers
from tfcompress.distillation.engine import Own, has_own_loss
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, FINALIZERS, MOVERS, Row
from tfcompress.parametrization import STATE

OWN = "_tfcompress_distillation"
_CLASSES: dict[type, type] = {}


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
        if not training and labels is not None and (self.loss is not None or has_own_loss(self)):
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
