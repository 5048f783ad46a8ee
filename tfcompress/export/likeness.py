"""Whether calibration data and samples look like what a model was trained on: the usual cause of bad integer files.

Pixels 0..255 fed to a network that was trained on 0..1 (or the other way round) give ranges that are valid and useless.
Two witnesses tell: the statistics that batch normalization kept from training, and the ranges in the file.
"""

import keras
import numpy as np

from tfcompress.export.flatbuffer import INT8, INT16, TYPE_NAMES, UINT8, Graph
from tfcompress.export.points import Values
from tfcompress.graph.calls import all_calls

# Values outside a range, beyond which ranges and data do not belong together.
CLIPPED = 0.01
# A range of which the data uses less has lost more than four of its eight bits.
USED = 0.05
# Root mean square of normalized values, which is 1 on data like the training's; and its inverse.
_FAR, _NEAR = 10.0, 0.02


def of_normalizations(model, values: Values) -> str | None:
    """What batch normalization says of data: a sentence if its statistics were trained on something else.

    Args:
        model: a plain model with a graph. values: of its operations on the data, by call key (see `points.capture`).
    """
    made = {id(tensor): call.key for call in all_calls(model) for tensor in call.outputs}
    for call in all_calls(model):
        layer = call.operation
        if not isinstance(layer, keras.layers.BatchNormalization) or not call.inputs:
            continue
        seen = values.get(made.get(id(call.inputs[0]), ""))
        if not seen:
            continue
        mean, variance = (np.asarray(keras.ops.convert_to_numpy(v)) for v in (layer.moving_mean, layer.moving_variance))
        if not mean.any() and (variance == 1).all():
            continue  # never trained
        rms, spread = _normalized(
            np.concatenate([np.asarray(v) for v in seen]), layer.axis, mean, variance + layer.epsilon
        )
        moved = ((variance < 0.5) | (variance > 2)).mean() > 0.5
        if rms > _FAR:
            return (
                f"the calibration data does not look like the training data: before {call.key!r} it is {rms:.0f} times as far "
                "from the mean as batch normalization saw in training. Check the pixels' scale (0..255 or 0..1) and normalization, "
                "or train on until its statistics have settled"
            )
        if spread < _NEAR and moved:
            return (
                f"the calibration data does not look like the training data: before {call.key!r} it varies {1 / max(spread, 1e-6):.0f} "
                "times less than batch normalization saw in training. Check the pixels' scale (0..255 or 0..1) and normalization"
            )
    return None


def _normalized(value: np.ndarray, axis, mean: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Medians over the channels: root mean square of the normalized values, and their standard deviation."""
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(np.float64)
    normal = (rows - mean) / np.sqrt(variance)
    return float(np.median(np.sqrt((normal**2).mean(0)))), float(np.median(normal.std(0)))


def of_inputs(graph: Graph, fed: list[np.ndarray]) -> list[str]:
    """What the ranges of a file's inputs say of samples: a sentence on each input that they do not fit.

    Args:
        graph: the file. fed: float samples, one array an input in the file's order.
    """
    found = []
    for t, value in zip((int(t) for t in graph.subgraph.inputs), fed, strict=True):
        ends = _range_of_input(graph, t)
        if ends is None or value.dtype.kind != "f" or not value.size:
            continue
        low, high, half = ends
        least, most = float(value.min()), float(value.max())
        clipped = float(((value < low - half) | (value > high + half)).mean())
        used = (min(most, high) - max(least, low)) / (high - low)
        both = f"input {graph.name(t)!r}: the file's range is {low:.4g} to {high:.4g}, the samples lie in {least:.4g} to {most:.4g}"
        if clipped > CLIPPED:
            found.append(
                f"{both}, {clipped:.1%} of them clipped: calibration or training data and samples are scaled differently"
            )
        elif used < USED and most > least:
            found.append(
                f"{both}, {max(used, 0):.1%} of it: calibration or training data and samples are scaled differently"
            )
    return found


def _range_of_input(graph: Graph, t: int) -> tuple[float, float, float] | None:
    """(lowest, highest value, half a step) of an input's integers, behind a QUANTIZE or at once; None for float inputs."""
    readers = [graph.operators[i] for i in graph.consumers().get(t, [])]
    if readers and all(graph.kind(op) == "QUANTIZE" for op in readers):
        t = int(readers[0].outputs[0])
    tensor = graph.tensors[t]
    q = tensor.quantization
    if tensor.type not in (INT8, INT16, UINT8) or q is None or q.scale is None or len(q.scale) != 1:
        return None
    limits = np.iinfo(TYPE_NAMES[tensor.type])
    scale, zero = float(q.scale[0]), int(q.zeroPoint[0])
    return (limits.min - zero) * scale, (limits.max - zero) * scale, scale / 2
