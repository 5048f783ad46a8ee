"""[1] Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, 2015)."""

import os
import pathlib

from tfcompress import _keras_compat
from tfcompress.distillation.attach import attach, is_distilled
from tfcompress.distillation.caching import META, Cache
from tfcompress.distillation.engine import Own
from tfcompress.distillation.losses import HardLabels, SoftTargets, TeacherLoss, mismatch
from tfcompress.distillation.teachers import Teachers, gives_logits, named, pick
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, Method, Row


class Distillation(Method):
    """[1] Lets a student learn from a teacher during ordinary `fit`, on labels, soft targets or both.

    With the default losses, L = (1 - alpha) T^2 KL(softmax(v / T) || softmax(z / T)) + alpha * (compiled loss). In
    evaluation the compiled loss stands alone. The teacher runs in inference mode, gets no gradient, and is not saved with
    the student: a student that is loaded from a file is plain, and is attached again if its training goes on.

    Data may come from arrays, tf.data, PyDataset or generators, without labels for alpha = 0. With a `Cache` in place of
    the teacher, training costs what plain training costs; the data is then `cache.targets(x, y)` or `cache.data(x, y)`.

    Args:
        teacher: a built Keras model, the path of a saved one, a list of these (an ensemble), or a `Cache` or its folder.
        losses: what is learnt, e.g. [SoftTargets(20), HardLabels(0.1), Logits(0.5)], or own subclasses of `TeacherLoss`.
        temperature: T of the default losses.
        alpha: weight of the labels in the default losses, 0 to 1. 1 is plain training, bit for bit; 0 needs no labels.
        teacher_from_logits, student_from_logits: whether these models give logits; found out from the last layer, or for
            subclassed models from the compiled loss.
        start: step of the schedules at which training begins, for a student that is attached again after loading.

    Raises:
        CompressionError: an argument is out of range, or (in `apply`) the two do not fit.

    References: paper 1, Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, 2015).

    Example:
        >>> import keras, numpy as np, tfcompress
        >>> big = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="big")
        >>> small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)], name="small")
        >>> student = tfcompress.apply(small, Distillation(big, temperature=4, alpha=0), verbose=0)
        >>> student.compile("adam")
        >>> history = student.fit(np.ones((8, 4)), verbose=0)
        >>> sorted(history.history)
        ['loss', 'soft_targets']
        >>> type(tfcompress.finalize(student, verbose=0)) is keras.Sequential
        True
    """

    papers = (1,)

    def __init__(self, teacher, losses=None, temperature: float = 4.0, alpha: float = 0.1,
                 teacher_from_logits: bool | None = None, student_from_logits: bool | None = None, start: int = 0):  # fmt: skip
        if not 0.0 <= float(alpha) <= 1.0:
            raise CompressionError(f"`alpha`, the weight of the labels, must lie between 0 and 1; received {alpha}.")
        self.teacher, self.losses, self.temperature, self.alpha = teacher, losses, temperature, float(alpha)
        self.teacher_from_logits, self.student_from_logits = teacher_from_logits, student_from_logits
        self.start = int(start)
        self.terms()  # bad arguments are refused here, before any model is touched

    def terms(self) -> list[TeacherLoss]:
        """The losses that are added up."""
        if self.losses is None:
            default = [SoftTargets(self.temperature, weight=1.0 - self.alpha), HardLabels(self.alpha)]
            return [loss for loss in default if loss.weight(0) > 0]
        losses = list(self.losses) if isinstance(self.losses, (list, tuple)) else [self.losses]
        for loss in losses:
            if not isinstance(loss, TeacherLoss):
                raise CompressionError(
                    f"`losses` holds {loss!r}; expected SoftTargets, Logits, HardLabels or a subclass of TeacherLoss."
                )
        if not losses:
            raise CompressionError(
                "`losses` is empty, so there is nothing to learn. Leave it out for the default losses."
            )
        return losses

    def get_config(self):
        teachers = self.teacher if isinstance(self.teacher, (list, tuple)) else [self.teacher]
        if not all(isinstance(teacher, (str, os.PathLike)) for teacher in teachers):
            raise CompressionError(
                "A Distillation can be written down only if its teacher is a path: save the teacher, and give its file."
            )
        paths = [str(teacher) for teacher in teachers]
        return {**super().get_config(), "teacher": paths if isinstance(self.teacher, (list, tuple)) else paths[0]}

    def source(self):
        """The teachers or the cache."""
        teacher = self.teacher
        if isinstance(teacher, (str, os.PathLike)) and (pathlib.Path(teacher) / META).exists():
            teacher = Cache(teacher)
        if isinstance(teacher, Cache):
            return teacher
        return Teachers(teacher if isinstance(teacher, (list, tuple)) else [teacher], self.teacher_from_logits)

    def attach(self, model, data=None):
        if is_distilled(model):
            raise CompressionError(
                f"Student {model.name!r} has a teacher already. Give all teachers and losses to one Distillation, or finalize "
                "the student first."
            )
        source, losses = self.source(), self.terms()
        shared = {id(v) for v in source.variables()} & {id(v) for v in model.variables}
        if shared:
            raise CompressionError(
                f"Student {model.name!r} and teacher {source.name!r} share {len(shared)} weights, so the teacher would change "
                "while it teaches. Give it a copy as the teacher, e.g. keras.models.clone_model with the weights set."
            )
        self._check_fit(model, source, losses)
        if data is not None:
            source.probe(data)
        attach(model, Own(model, source, losses, self.student_from_logits, self.start))
        what = ", ".join(repr(loss) for loss in losses)
        detail = f"learns from {source.name!r} by {what}; the teacher is not saved with it (attach again after loading)"
        return model, [Row(model.name, "", DONE, detail)]

    def _check_fit(self, model, source, losses) -> None:
        """Compare what is known of the two models' outputs before any batch is seen."""
        structure = _keras_compat.output_structure(model)
        if structure is None:
            return
        outputs = {name: tuple(tensor.shape) for name, tensor in named(model, structure).items()}
        given = source.shapes()
        for loss in losses:
            if isinstance(loss, HardLabels):
                continue
            mine = pick(outputs, loss.output, f"Student {model.name!r}")
            if self.student_from_logits is None:
                gives_logits(model, loss.output)
            if given:
                theirs = pick(given, loss.teacher_output or loss.output, f"Teacher {source.name!r}")
                if mine[-1] != theirs[-1]:
                    raise CompressionError(mismatch(model.name, mine, source.name, theirs))
