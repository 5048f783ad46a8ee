"""What of a file's difference from the simulated network is the simulation's own float32 noise."""

import dataclasses

import keras
import numpy as np

from tfcompress.export.reports import OutputError

# Samples that the float64 simulation runs.
_MOST = 64


@dataclasses.dataclass(frozen=True)
class Exactness:
    """One output of the file, the float32 simulation and the float64 simulation of the same network, in output steps.

    Args:
        output: its name. samples: how many were compared. simulations: largest difference of the two simulations.
        file: largest difference of the file from the float64 simulation. equal: share of its numbers that are equal.
        within: whether the file is within `simulations` and one step of the float32 simulation.
    """

    output: str
    samples: int
    simulations: float
    file: float
    equal: float
    within: bool

    def __str__(self) -> str:
        return (
            f"float32 and float64 simulation differ by {self.simulations:.2f} steps, the file and the float64 one by "
            f"{self.file:.2f} ({self.equal:.1%} equal): {'within' if self.within else 'NOT within'} the gap plus one step"
        )


def against_float64(model, arrays: list[np.ndarray], outputs: list[OutputError], got, wanted) -> list[Exactness]:
    """Compare a file whose outputs are more than one step from its simulated network with that network in float64.

    Args:
        model: the reference; nothing is compared unless it is a network with ranges attached. arrays: its inputs, in order.
        outputs: the errors against it. got, wanted: outputs of the file and of the model on `arrays`.

    Returns:
        An `Exactness` for each output with steps; none where every output is within one step, or nothing can be compared.
    """
    from tfcompress.quantization.gap import Twin
    from tfcompress.quantization.ranges import ranges

    far = [o for o in outputs if o.largest_steps is not None and o.largest_steps > 1.001]
    if not far or not isinstance(model, keras.Model) or keras.backend.backend() != "tensorflow" or not ranges(model):
        return []
    exact = Twin(model)([array[:_MOST] for array in arrays])
    found = []
    for error, own, theirs, best in zip(outputs, got, wanted, exact, strict=True):
        if error.step is None:
            continue
        own, theirs = (value[: len(best)].astype(np.float64).reshape(best.shape) for value in (own, theirs))
        simulations = float(np.abs(theirs - best).max(initial=0.0)) / error.step
        apart = np.abs(own - best) / error.step
        steps = float(np.abs(own - theirs).max(initial=0.0)) / error.step
        found.append(
            Exactness(
                error.name, len(best), simulations, float(apart.max(initial=0.0)), float((apart < 0.5).mean()),
                steps <= simulations + 1.001,
            )
        )  # fmt: skip
    return found
