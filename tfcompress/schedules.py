"""Schedules: pure functions from a step (one optimizer update) to a value."""

import bisect
import math

from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError


class Schedule(Configurable):
    """A pure function of the step; `end` is the step after which the value no longer changes."""

    end: int = 0

    def __call__(self, step: int) -> float:
        raise NotImplementedError

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self)))


class Constant(Schedule):
    """The same value at every step.

    Args:
        value: the value.

    Example:
        >>> Constant(0.5)(100)
        0.5
    """

    def __init__(self, value: float):
        self.value = float(value)

    def __call__(self, step: int) -> float:
        return self.value


class _Ramp(Schedule):
    """From `initial` to `final` between the steps `begin` and `begin + steps`, by `_shape` of the fraction gone."""

    def __init__(self, initial: float, final: float, steps: int, begin: int = 0):
        if steps < 1 or begin < 0:
            raise CompressionError(
                f"{type(self).__name__} needs steps >= 1 and begin >= 0; received steps={steps}, begin={begin}."
            )
        self.initial, self.final, self.steps, self.begin = float(initial), float(final), int(steps), int(begin)

    @property
    def end(self) -> int:  # type: ignore[override]
        return self.begin + self.steps

    def __call__(self, step: int) -> float:
        gone = min(max((step - self.begin) / self.steps, 0.0), 1.0)
        if gone in (0.0, 1.0):
            return self.final if gone else self.initial
        return self._between(gone)

    def _between(self, gone: float) -> float:
        raise NotImplementedError


class Linear(_Ramp):
    """A straight line from `initial` to `final`.

    Args:
        initial: value up to `begin`. final: value from `begin + steps` on. steps: length. begin: first step.

    Example:
        >>> Linear(0.0, 1.0, steps=10)(5)
        0.5
    """

    def _between(self, gone: float) -> float:
        return self.initial + (self.final - self.initial) * gone


class Cubic(_Ramp):
    """final + (initial - final) (1 - t)^3 for t from 0 to 1: fast while much is left to prune, slow at the end.

    Args:
        initial: value up to `begin`. final: value from `begin + steps` on. steps: length. begin: first step.

    Example:
        >>> round(Cubic(0.0, 0.9, steps=1000)(200), 3)
        0.439
    """

    def _between(self, gone: float) -> float:
        return self.final + (self.initial - self.final) * (1.0 - gone) ** 3


class Exponential(_Ramp):
    """initial (final / initial)^t for t from 0 to 1; both ends positive.

    Args:
        initial: value up to `begin`. final: value from `begin + steps` on. steps: length. begin: first step.

    Raises:
        CompressionError: an end is not positive.

    Example:
        >>> round(Exponential(1.0, 0.01, steps=100)(50), 6)
        0.1
    """

    def __init__(self, initial: float, final: float, steps: int, begin: int = 0):
        super().__init__(initial, final, steps, begin)
        if initial <= 0 or final <= 0:
            raise CompressionError(f"Exponential needs positive ends; received initial={initial}, final={final}.")

    def _between(self, gone: float) -> float:
        return self.initial * math.exp(gone * math.log(self.final / self.initial))


class Steps(Schedule):
    """values[i] from boundaries[i - 1] on, and values[0] before the first boundary.

    Args:
        boundaries: ascending steps. values: one more than boundaries.

    Example:
        >>> [Steps([10, 20], [0.0, 0.5, 0.8])(step) for step in (9, 10, 20)]
        [0.0, 0.5, 0.8]
    """

    def __init__(self, boundaries, values):
        self.boundaries, self.values = [int(b) for b in boundaries], [float(v) for v in values]
        if len(self.values) != len(self.boundaries) + 1 or self.boundaries != sorted(self.boundaries):
            raise CompressionError(
                "Steps needs ascending boundaries and one more value than boundaries; "
                f"received boundaries={boundaries}, values={values}."
            )

    @property
    def end(self) -> int:  # type: ignore[override]
        return self.boundaries[-1] if self.boundaries else 0

    def __call__(self, step: int) -> float:
        return self.values[bisect.bisect_right(self.boundaries, step)]


def get(value) -> Schedule:
    """A schedule from a schedule or a number.

    Example:
        >>> get(0.5)
        Constant(value=0.5)
    """
    if isinstance(value, Schedule):
        return value
    if isinstance(value, (int, float)):
        return Constant(value)
    raise CompressionError(f"Expected a number or a tfcompress.schedules object; received {value!r}.")


def fraction(value, name: str) -> Schedule:
    """A schedule whose values must lie in 0..1, such as a sparsity.

    Raises:
        CompressionError: a value that the schedule takes is outside 0..1.

    Example:
        >>> fraction(1.5, "sparsity")
        Traceback (most recent call last):
        tfcompress.errors.CompressionError: `sparsity` must lie between 0 and 1; received 1.5.
    """
    schedule = get(value)
    extremes = getattr(schedule, "values", None) or [schedule(0), schedule(schedule.end)]
    for extreme in extremes:
        if not 0.0 <= extreme <= 1.0:
            raise CompressionError(f"`{name}` must lie between 0 and 1; received {extreme:g}.")
    return schedule
