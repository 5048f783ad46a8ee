"""Teachers: networks that are only asked, never trained, and how the outputs of any network are read as logits."""

import os

import keras
import numpy as np
from keras import ops

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError

_TINY = 1.1754944e-38  # the smallest normal float32: a probability below it cannot be told from 0
_PASSING = ("Reshape", "Flatten", "Identity", "ExpandDims", "Squeeze", "Cast")


def as_logits(tensor, from_logits: bool):
    """An output as float32 logits: itself, or the logarithm of probabilities, without rounding where Keras keeps them."""
    if not from_logits:
        behind = _keras_compat.logits_behind(tensor)
        if behind is None:
            return ops.log(ops.maximum(ops.cast(tensor, "float32"), _TINY))
        tensor = behind
    return ops.cast(tensor, "float32")


def named(model, outputs) -> dict:
    """A network's outputs by name: the keys of a dictionary, else Keras's output names, else "output", "output_1", ..."""
    if isinstance(outputs, dict):
        return dict(outputs)
    flat = keras.tree.flatten(outputs)
    names = list(getattr(model, "output_names", None) or [])
    if len(names) != len(flat) or len(set(names)) != len(flat):
        names = ["output" if i == 0 else f"output_{i}" for i in range(len(flat))]
    return dict(zip(names, flat, strict=True))


def pick(found: dict, name: str | None, who: str):
    """The output that a loss asks for: the only one, or the one of that name.

    Raises:
        CompressionError: the name is missing or unknown.
    """
    if name is None or (len(found) == 1 and name not in found):
        # A single output needs no name: the two networks will rarely call it the same.
        if len(found) == 1:
            return next(iter(found.values()))
        raise CompressionError(
            f"{who} has {len(found)} outputs, {', '.join(map(repr, found))}: say which one a loss is about, "
            "e.g. SoftTargets(4, output=...)."
        )
    if name not in found:
        from tfcompress.errors import nearest

        raise CompressionError(f"{who} has no output {name!r}. {nearest(name, found)}")
    return found[name]


def gives_logits(model, name: str | None = None) -> bool | None:
    """Whether a network's output are logits; None when neither its graph nor its compiled loss tells.

    Raises:
        CompressionError: it ends in a sigmoid, whose classes do not exclude each other, or in a rounded softmax.
    """
    structure = _keras_compat.output_structure(model)
    if structure is None:
        return _compiled_from_logits(model)
    operation = _keras_compat.operation_of(pick(named(model, structure), name, f"Model {model.name!r}"))
    rounded = False
    while type(operation).__name__ in _PASSING or getattr(operation, "attached_only", False):
        rounded = rounded or getattr(operation, "attached_only", False)
        operation = _keras_compat.operation_of(operation.input)
    if isinstance(operation, keras.Model):
        return gives_logits(operation)
    activation = getattr(operation, "activation", None)
    if activation is keras.activations.sigmoid or type(operation).__name__ == "Sigmoid":
        raise CompressionError(
            f"Model {model.name!r} ends in a sigmoid. Soft targets need classes that exclude each other: end it in a softmax "
            "or in logits."
        )
    softmax = activation is keras.activations.softmax or type(operation).__name__ == "Softmax"
    if softmax and rounded:
        raise CompressionError(
            f"Model {model.name!r} ends in a softmax whose output is rounded to a few bits, so that its logits are lost. End it "
            "in logits while it is distilled, and add the softmax for the export."
        )
    return not softmax


def _compiled_from_logits(model) -> bool | None:
    loss = getattr(model, "loss", None)
    if isinstance(loss, str) and loss.endswith("categorical_crossentropy"):
        return False
    if isinstance(loss, keras.losses.Loss):
        return loss.get_config().get("from_logits")
    return None


class Teachers:
    """One network or several, in inference mode, without gradient, and read as logits.

    Args:
        models: built Keras models or paths of saved ones. from_logits: whether they give logits; found out by default.

    Raises:
        CompressionError: something is not a Keras model, is not built, or holds NaN.

    Example:
        >>> big = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")], name="big")
        >>> Teachers([big]).gives_logits
        False
    """

    cached = False

    def __init__(self, models, from_logits: bool | None = None):
        self.models = [self._checked(model) for model in models]
        if not self.models:
            raise CompressionError("There is no teacher in the list of teachers.")
        self.name = " and ".join(model.name for model in self.models)
        self.member_logits = [self._logits(model, from_logits) for model in self.models]
        self.gives_logits = all(self.member_logits)

    @staticmethod
    def _checked(model):
        if isinstance(model, (str, os.PathLike)):
            model = keras.saving.load_model(model, compile=False)
        if not isinstance(model, keras.Layer):
            raise CompressionError(
                f"A teacher is a Keras 3 model, the path of one, or a distillation.Cache; received {model!r}."
            )
        if not model.built:
            raise CompressionError(
                f"Teacher {model.name!r} is not built. Call it on a batch, or load its weights, first."
            )
        for variable in model.variables:
            value = keras.ops.convert_to_numpy(variable.value)
            if value.dtype.kind not in "biuU" and not np.isfinite(value.astype("float32")).all():
                raise CompressionError(
                    f"Teacher {model.name!r} holds NaN or infinite values in {variable.path!r}; a student cannot learn from it."
                )
        return model

    @staticmethod
    def _logits(model, from_logits: bool | None) -> bool:
        if from_logits is not None:
            return from_logits
        structure = _keras_compat.output_structure(model)
        names = [None] if structure is None else list(named(model, structure))
        kinds = {gives_logits(model, name) for name in names}
        if len(kinds) == 1 and None not in kinds:
            return bool(kinds.pop())
        raise CompressionError(
            f"It is not clear whether teacher {model.name!r} gives logits or probabilities. Pass from_logits=True or False."
        )

    def members(self, x) -> list[dict]:
        """Each member's logits by output name, for a batch of inputs."""
        found = []
        for model, logits in zip(self.models, self.member_logits, strict=True):
            outputs = named(model, model(x, training=False))
            found.append({key: ops.stop_gradient(as_logits(value, logits)) for key, value in outputs.items()})
        return found

    def shapes(self) -> dict:
        """The shape of each output of the first member by name; empty where it is not known before a call."""
        structure = _keras_compat.output_structure(self.models[0])
        return {} if structure is None else {k: tuple(v.shape) for k, v in named(self.models[0], structure).items()}

    def variables(self) -> list:
        """All variables of all members."""
        return [variable for model in self.models for variable in model.variables]

    def probe(self, x) -> None:
        """Ask the teachers about real inputs and raise when an answer is not finite or no distribution."""
        for model, logits in zip(self.models, self.member_logits, strict=True):
            for name, value in named(model, model(x, training=False)).items():
                check_outputs(keras.ops.convert_to_numpy(ops.cast(value, "float32")), logits, model.name, name)


def check_outputs(value: np.ndarray, logits: bool, teacher: str, output: str, first: int = 0) -> None:
    """Raise when outputs are not finite, or said to be probabilities and do not add up to 1.

    Args:
        value: [cases, ..., classes]. logits: what they are said to be. teacher, output: names for the message.
        first: number of the first case in the data.
    """
    bad = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
    if bad.any():
        raise CompressionError(
            f"Teacher {teacher!r} gives NaN or infinite values at output {output!r} for {int(bad.sum())} of {len(value)} "
            f"inputs, the first of them number {first + int(np.argmax(bad))}. Check the inputs and the teacher."
        )
    if not logits and value.size and (value.min() < 0 or np.abs(value.sum(axis=-1) - 1).max() > 0.02):
        raise CompressionError(
            f"Teacher {teacher!r} is said to give probabilities, but its output {output!r} lies in "
            f"{value.min():.3g}..{value.max():.3g} and adds up to {value.sum(axis=-1).flat[0]:.3g}. Pass from_logits=True."
        )
