"""Statistics of a float file's tensors on calibration data, taken in the interpreter, in memory that does not grow.

A range is the extremes, or what `core.range_estimators` makes of a histogram of the values. litert-quantizer's own
calibration is a moving average of the extremes, which clips, and is not used.
"""

import dataclasses

import numpy as np

from tfcompress.core import range_estimators
from tfcompress.errors import CompressionError, nearest
from tfcompress.export import litert
from tfcompress.export.flatbuffer import FLOAT32, Graph

# Values of a tensor that one run contributes to its histogram; of more, an even sample. Extremes are of all values.
_COUNTED = 1_000_000


@dataclasses.dataclass(frozen=True)
class Estimator:
    """How ranges are made of values.

    Args:
        method: one of `range_estimators.METHODS`. percentile: for "percentile". bits: of the codes, for "mse" and "kl";
            16-bit codes are symmetric.

    Example:
        >>> Estimator.of(None, 99.9), Estimator.of("mse", None, bits=16).bits
        (Estimator(method='percentile', percentile=99.9, bits=8), 16)
    """

    method: str = "minmax"
    percentile: float = range_estimators.PERCENTILE
    bits: int = 8

    @classmethod
    def of(cls, method: str | None, percentile: float | None, bits: int = 8) -> "Estimator":
        """From the options `calibration_method` and `percentile`, each of which may be None.

        Raises:
            CompressionError: the method is unknown, or a percentile is given with another one.
        """
        if method is None:
            method = "minmax" if percentile is None else "percentile"
        if method not in range_estimators.METHODS:
            known = range_estimators.METHODS
            raise CompressionError(f"calibration_method is one of {', '.join(known)}. {nearest(str(method), known)}")
        if percentile is not None:
            range_estimators.check_percent(percentile)
            if method != "percentile":
                raise CompressionError(
                    f"percentile={percentile} belongs to calibration_method='percentile', not {method!r}."
                )
        # Extremes and percentiles do not depend on the codes.
        own = bits if method in ("mse", "kl") else 8
        return cls(method, range_estimators.PERCENTILE if percentile is None else percentile, own)

    def ends(self, histogram: range_estimators.Histogram) -> tuple[float, float]:
        """The range of a tensor from its histogram."""
        return range_estimators.estimate(
            histogram, self.method, percent=self.percentile, bits=self.bits, symmetric=self.bits == 16
        )


@dataclasses.dataclass
class Statistics:
    """Ranges seen on calibration data.

    Args:
        low, high: {tensor name: smallest, largest value}, or what an estimator makes of them.
        samples: how many samples were run.
    """

    low: dict[str, float]
    high: dict[str, float]
    samples: int


def collect(data: bytes, runs: list[list[np.ndarray]], estimator: Estimator | None = None) -> Statistics:
    """Run a float file and note the range of every activation.

    Args:
        data: the float file. runs: inputs of each run, in the file's order. estimator: by default the extremes.

    Raises:
        CompressionError: an activation is not finite.
    """
    estimator = estimator or Estimator()
    graph = Graph(data)
    watched = activations(graph)
    made = litert.interpreter(data, delegate=False, keep_tensors=True)
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    histograms: dict[str, range_estimators.Histogram] = {}
    for run in runs:
        litert.invoke(made, run)
        for index, name in watched.items():
            value = _tensor(made, index)
            if value is None or value.size == 0:
                continue
            least, most = float(value.min()), float(value.max())
            if not (np.isfinite(least) and np.isfinite(most)):
                raise CompressionError(f"Tensor {name!r} holds NaN or infinite values on the calibration data.")
            low[name] = min(least, low.get(name, least))
            high[name] = max(most, high.get(name, most))
            if estimator.method != "minmax":
                flat = value.ravel()
                histograms.setdefault(name, range_estimators.Histogram()).add(flat[:: -(-len(flat) // _COUNTED)])
    for name, histogram in histograms.items():
        low[name], high[name] = estimator.ends(histogram)
    return Statistics(low, high, sum(len(run[0]) for run in runs))


def activations(graph: Graph) -> dict[int, str]:
    """The float tensors of the main graph that are computed or fed: {index: name}."""
    written = {int(t) for op in graph.operators for t in op.outputs} | {int(t) for t in graph.subgraph.inputs}
    return {t: graph.name(t) for t in sorted(written) if graph.tensors[t].type == FLOAT32 and not graph.is_constant(t)}


def values(data: bytes, run: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Every activation of one run of a float file, by tensor name."""
    graph = Graph(data)
    made = litert.interpreter(data, delegate=False, keep_tensors=True)
    litert.invoke(made, run)
    read = {name: _tensor(made, index) for index, name in activations(graph).items()}
    return {name: np.array(value) for name, value in read.items() if value is not None}


def _tensor(made, index: int) -> np.ndarray | None:
    """A tensor's value; None for those that a loop allocates for itself."""
    try:
        return made.get_tensor(index)
    except ValueError:
        return None
