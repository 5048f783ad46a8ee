"""Small networks, one a structure, and the comparison of a cut model with its masked one."""

import keras
import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.graph.channels import Trace, groups_of
from tfcompress.graph.surgery import masked, plan, remove_channels

layers = keras.layers


def stir(model, seed=0):
    """Statistics, affine weights and biases as a trained model has them."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for variable in getattr(layer, "_trainable_variables", []) + getattr(layer, "_non_trainable_variables", []):
            if "gamma" in variable.path or "variance" in variable.path:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
            elif len(variable.shape) == 1 and variable.dtype.startswith("float"):
                variable.assign(rng.normal(size=variable.shape) * 0.3)
            elif "alpha" in variable.path:
                variable.assign(rng.uniform(0, 1, variable.shape))
    return model


def sample(model, n=2, seed=3):
    rng = np.random.default_rng(seed)
    data = []
    for tensor in model.inputs:
        shape = (n, *(size or 6 for size in tensor.shape[1:]))
        whole = tensor.dtype.startswith("int")
        data.append(rng.integers(0, 5, shape) if whole else rng.normal(size=shape).astype("float32"))
    return data[0] if len(data) == 1 else data


def distance(left, right, data):
    """The largest difference of two models' outputs, relative to the largest output."""
    pairs = list(zip(keras.tree.flatten(left(data)), keras.tree.flatten(right(data)), strict=True))
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max()) for a, b in pairs)


def choose(model, share=0.5, seed=0):
    """Random free channels of every group, fewer where a layer would be left without any."""
    rng = np.random.default_rng(seed)
    trace, removals = Trace(model), {}
    for group in groups_of(trace):
        free = rng.permutation(group.free)
        going = [int(slot) for slot in free[: min(round(share * len(group)), len(group) - 1)]]
        while going:
            try:
                plan(trace, {**removals, group.root: going})
            except CompressionError as error:
                if "cannot be removed" in str(error):
                    raise
                going.pop()
            else:
                removals[group.root] = going
                break
    return removals


def assert_cut_equals_masked(model, removals, tolerance=1e-5):
    """The cut model is smaller than the masked one and computes the same."""
    cut, mask = remove_channels(model, removals), masked(model, removals)
    data = sample(model)
    assert distance(cut, mask, data) <= tolerance
    assert cut.count_params() < model.count_params()
    assert cut.count_params() < mask.count_params()
    return cut
