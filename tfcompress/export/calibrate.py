"""Statistics of a float file's tensors on calibration data, taken in the interpreter.

Min and max are the extremes, or percentiles where asked. litert-quantizer's own calibration is a moving average of the
extremes, which clips, and is not used.
"""

import dataclasses

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.export import litert
from tfcompress.export.flatbuffer import FLOAT32, Graph

# Values kept per tensor for percentiles; beyond it every run contributes an even sample.
_KEPT = 200_000


@dataclasses.dataclass
class Statistics:
    """Ranges seen on calibration data.

    Args:
        low, high: {tensor name: smallest, largest value}, percentiles where asked for.
        samples: how many samples were run.
    """

    low: dict[str, float]
    high: dict[str, float]
    samples: int


def collect(data: bytes, runs: list[list[np.ndarray]], percentile: float | None = None) -> Statistics:
    """Run a float file and note the range of every activation.

    Args:
        data: the float file. runs: inputs of each run, in the file's order.
        percentile: None for the extremes, else e.g. 99.99 for the range that holds this share of the values.

    Raises:
        CompressionError: an activation is not finite.
    """
    if percentile is not None and not 50 < percentile <= 100:
        raise CompressionError(f"percentile must be above 50 and at most 100, e.g. 99.99; got {percentile}.")
    graph = Graph(data)
    watched = activations(graph)
    made = litert.interpreter(data, delegate=False, keep_tensors=True)
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    kept: dict[str, list[np.ndarray]] = {}
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
            if percentile is not None:
                flat = value.ravel()
                kept.setdefault(name, []).append(flat[:: max(1, len(flat) * len(runs) // _KEPT)].copy())
    if percentile is not None:
        for name, parts in kept.items():
            low[name], high[name] = (
                float(q) for q in np.percentile(np.concatenate(parts), [100 - percentile, percentile])
            )
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
