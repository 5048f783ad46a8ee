"""[11] Learning both Weights and Connections (Han, Pool, Tran, Dally, 2015): what stands around the cut.

The cut itself is `Magnitude`. Here: which layers bear how much, and how much dropout what is left needs.
"""

import contextlib
import math

import keras
import numpy as np

from tfcompress import select
from tfcompress.core.sensitivity import Sensitivity, scan
from tfcompress.errors import CompressionError
from tfcompress.method import copy_model, require_built
from tfcompress.pruning.magnitude import magnitude_mask


def sensitivity(model, evaluate, ratios=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95), layers=None) -> Sensitivity:
    """Prune one weight at a time, without retraining, and measure the score: sensitive layers get a smaller cut.

    Args:
        model: a built model; a copy of it is cut. evaluate: function of a model to a score, higher is better.
        ratios: shares of zeros to try. layers: which weights, as `tfcompress.select.get` takes it.

    Returns:
        Scores by "path.weight"; `.allowed(drop)` gives a dictionary for `Magnitude(sparsity=...)`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
        >>> found = sensitivity(model, lambda m: float(np.count_nonzero(m.layers[0].kernel.numpy())), ratios=(0.5,))
        >>> found.baseline, found.scores
        (8.0, {'a.kernel': {0.5: 4.0}})
    """
    require_built(model, "sensitivity analysis")
    if any(not 0 <= ratio <= 1 for ratio in ratios):
        raise CompressionError(f"`ratios` must lie between 0 and 1; received {tuple(ratios)}.")
    twin, chosen = copy_model(model), select.get(layers)
    weights = {
        f"{path}.{name}": getattr(layer, name)
        for path, layer in select.layers(twin)
        for name in select.kernel_names(layer)
        if chosen(path, layer, name)
    }

    @contextlib.contextmanager
    def cut(name, ratio):
        whole = keras.ops.convert_to_numpy(weights[name])
        keep = whole.size - round(ratio * whole.size)
        weights[name].assign(whole * magnitude_mask(whole, keep))
        try:
            yield
        finally:
            weights[name].assign(whole)

    return scan(weights, ratios, cut, lambda: evaluate(twin))


def shrunk_dropout(rate: float, connections: int, left: int) -> float:
    """The dropout rate for a layer of which `left` of `connections` connections survive: D sqrt(C_r / C_o).

    Example:
        >>> round(shrunk_dropout(0.5, 1000, 100), 3)
        0.158
    """
    return rate * math.sqrt(left / connections)


def shrink_dropout(model) -> dict[str, tuple[float, float]]:
    """Lower the rate of each Dropout layer by how much of the next layer's kernel is left, in place.

    Args:
        model: a functional or Sequential model, pruned (attached or finalized).

    Returns:
        {dropout layer: (old rate, new rate)}.

    Raises:
        CompressionError: the model has no graph.
    """
    from tfcompress.graph.calls import all_calls

    found = {}
    calls = list(all_calls(model))
    for call in calls:
        if not isinstance(call.operation, keras.layers.Dropout):
            continue
        reach, tensors = [], {id(t) for t in call.outputs}
        for later in calls:  # in the order of the graph, so that what passes the tensor on is met before its readers
            if tensors & {id(t) for t in later.inputs}:
                names = select.kernel_names(later.operation) if isinstance(later.operation, keras.Layer) else []
                reach += [keras.ops.convert_to_numpy(getattr(later.operation, name)) for name in names]
                if not names:
                    tensors |= {id(t) for t in later.outputs}
        size = sum(kernel.size for kernel in reach)
        if size:
            left = sum(int(np.count_nonzero(kernel)) for kernel in reach)
            old = call.operation.rate
            call.operation.rate = shrunk_dropout(old, size, left)
            found[call.path] = (old, call.operation.rate)
    from tfcompress import _keras_compat

    _keras_compat.reset_functions(model)  # the rate is a constant of the compiled step
    return found
