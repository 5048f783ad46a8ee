"""What a student learns from its teacher: small objects that are added up, each with a weight that may follow a schedule.

Logits here are what a softmax turns into probabilities, [batch, ..., classes]; a network that ends in a softmax counts
through the logarithm of its output. Everything is computed in float32, whatever the precision of the networks.
"""

from keras import ops

from tfcompress import schedules
from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError


class TeacherLoss(Configurable):
    """A loss between a student's logits and its teachers'; subclass it and write `values` for one of your own.

    A loss that needs more than logits overrides `__call__`, which gets all that is known about the batch.

    Args:
        weight: factor in the total loss, a number or a schedule over optimizer updates.
        output: name of the student's output, where it has several.
        teacher_output: name of the teacher's output, where it is another one.

    Example:
        >>> class Agreement(TeacherLoss):
        ...     def values(self, student, teachers):
        ...         return ops.cast(ops.argmax(student, -1) != ops.argmax(teachers[0], -1), "float32")
        >>> Agreement(weight=0.5).weight(0)
        0.5
    """

    name = "teacher_loss"
    papers: tuple[int, ...] = ()
    # Logits from a softmax are known up to a constant only; losses that would see the constant refuse them.
    ignores_constant = True

    def __init__(self, weight=1.0, output: str | None = None, teacher_output: str | None = None):
        self.weight = schedules.get(weight)
        self.output, self.teacher_output = output, teacher_output

    def values(self, student, teachers: list):
        """The loss of every case, [batch, ...]: `student` are its logits, `teachers` those of each member."""
        raise NotImplementedError

    def __call__(self, signals):
        """The mean over the batch, by sample weights and masks as in Keras's own losses."""
        student = signals.student(self.output)
        teachers = signals.teachers(self.teacher_output or self.output)
        if not self.ignores_constant and not (
            signals.student_gives_logits(self.output) and signals.source.gives_logits
        ):
            raise CompressionError(
                f"{self!r} compares logits, but the {'student' if signals.source.gives_logits else 'teacher'} ends in a "
                "softmax, which leaves them open up to a constant. Use center=True, or a model that gives logits."
            )
        for member in teachers:
            if student.shape[-1] != member.shape[-1] or len(student.shape) != len(member.shape):
                raise CompressionError(mismatch(signals.model.name, student.shape, signals.source.name, member.shape))
        return signals.mean(self.values(student, teachers), self.output)


class HardLabels(TeacherLoss):
    """The student's own compiled loss on the labels, as one of the terms.

    Args:
        weight: factor, a number or a schedule; 1 with no other loss is plain training.

    References: paper 1, Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, 2015).

    Example:
        >>> HardLabels(0.1)
        HardLabels(weight=Constant(value=0.1))
    """

    name = "hard_labels"
    papers = (1,)

    def __init__(self, weight=0.1):
        super().__init__(weight)

    def __call__(self, signals):
        raise CompressionError("HardLabels is the model's own loss; it is added by the model that it is attached to.")


class SoftTargets(TeacherLoss):
    """[1] Soft targets: T^2 KL(q || softmax(z / T)) with q = softmax(v / T), student logits z and teacher logits v.

    The gradient by z is T (softmax(z / T) - q): the same as that of the cross-entropy, but the value is 0 where the
    student matches. For T large against the logits it tends to the regression of centred logits, (z - v) / classes. T^2
    keeps the balance with other terms when T changes. Predictions are made at T = 1.

    Args:
        temperature: T > 0. The paper's students want 2.5 to 4 when very small, and above 8 otherwise.
        weight: factor, a number or a schedule over optimizer updates.
        ensemble: of several teachers: "arithmetic" mean of the softened probabilities, or "geometric" (mean of logits).
        scale_t2: multiply by T^2; False is the form of FitNets (paper 2).
        output, teacher_output: as in `TeacherLoss`.

    Raises:
        CompressionError: T is not positive, or there is no such kind of mean.

    References: paper 1, Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, 2015), section 2.

    Example:
        >>> z = ops.convert_to_tensor([[2.0, 0.0, -1.0]])
        >>> float(SoftTargets(temperature=4).values(z, [z])[0])
        0.0
    """

    name = "soft_targets"
    papers = (1,)

    def __init__(self, temperature: float = 4.0, weight=1.0, ensemble: str = "arithmetic", scale_t2: bool = True,
                 output: str | None = None, teacher_output: str | None = None):  # fmt: skip
        super().__init__(weight, output, teacher_output)
        if not float(temperature) > 0:
            raise CompressionError(
                f"The temperature must be above 0; received {temperature}. 1 is the plain softmax, 2 to 20 are usual."
            )
        if ensemble not in ("arithmetic", "geometric"):
            raise CompressionError(f"`ensemble` must be 'arithmetic' or 'geometric'; received {ensemble!r}.")
        self.temperature, self.ensemble, self.scale_t2 = float(temperature), ensemble, bool(scale_t2)

    def target(self, teachers: list):
        """The softened distribution of the teachers and its logarithm."""
        t = self.temperature
        if self.ensemble == "geometric" or len(teachers) == 1:
            logits = teachers[0] if len(teachers) == 1 else ops.mean(ops.stack(teachers), axis=0)
            return ops.softmax(logits / t), ops.log_softmax(logits / t)
        stacked = ops.stack(teachers) / t
        log = ops.logsumexp(ops.log_softmax(stacked), axis=0) - ops.log(float(len(teachers)))
        return ops.mean(ops.softmax(stacked), axis=0), log

    def values(self, student, teachers):
        if student.shape[-1] is not None and student.shape[-1] < 2:
            raise CompressionError(
                f"Soft targets need at least two classes, but the output has shape {tuple(student.shape)}. Give the network "
                "two outputs with a softmax, or use distillation.Logits."
            )
        t = self.temperature
        q, log_q = (ops.stop_gradient(part) for part in self.target(teachers))
        log_p = ops.log_softmax(student / t)
        terms = ops.where(q > 0, q * (log_q - log_p), 0.0)
        value = ops.stop_gradient(ops.sum(terms, axis=-1)) * (t * t if self.scale_t2 else 1.0)
        # Differentiating log_softmax leaves p * (sum(q) - 1), not zero in float32 where student and teacher agree, and
        # times T; the gradient is written out instead, on a term whose value is 0.
        gradient = (ops.softmax(student / t) - q) * (t if self.scale_t2 else 1.0 / t)
        pull = ops.sum(student * ops.stop_gradient(gradient), axis=-1)
        return value + (pull - ops.stop_gradient(pull))


class Logits(TeacherLoss):
    """Regression of logits: half the squared distance to the mean of the teachers' logits, summed over classes.

    Args:
        weight: factor, a number or a schedule over optimizer updates.
        center: subtract each case's mean over classes from both sides first; a softmax would not see it.
        output, teacher_output: as in `TeacherLoss`.

    References: paper 1, section 2.1, the limit of high temperature; paper 4, Do Deep Nets Really Need to be Deep?

    Example:
        >>> z, v = ops.convert_to_tensor([[1.0, 3.0]]), ops.convert_to_tensor([[0.0, 2.0]])
        >>> float(Logits().values(z, [v])[0]), float(Logits(center=True).values(z, [v])[0])
        (1.0, 0.0)
    """

    name = "logits"
    papers = (1,)

    def __init__(self, weight=1.0, center: bool = False, output: str | None = None, teacher_output: str | None = None):
        super().__init__(weight, output, teacher_output)
        self.center = bool(center)

    @property
    def ignores_constant(self) -> bool:  # type: ignore[override]
        return self.center

    def values(self, student, teachers):
        target = ops.stop_gradient(teachers[0] if len(teachers) == 1 else ops.mean(ops.stack(teachers), axis=0))
        difference = student - target
        if self.center:
            difference = difference - ops.mean(difference, axis=-1, keepdims=True)
        return 0.5 * ops.sum(ops.square(difference), axis=-1)


def mismatch(student: str, student_shape, teacher: str, teacher_shape) -> str:
    """The sentence about outputs that do not fit each other."""
    return (
        f"Student {student!r} gives {student_shape[-1]} numbers a case (output shape {tuple(student_shape)}) and teacher "
        f"{teacher!r} gives {teacher_shape[-1]} (output shape {tuple(teacher_shape)}). Both have to end in the same classes "
        "in the same order."
    )
