"""What a layer's weights are, as the layer sees them: a parametrized weight counts with its effective value."""

import fnmatch
import math

import keras
import numpy as np

from tfcompress import _keras_compat, parametrization, select
from tfcompress.cost.report import WeightCost
from tfcompress.errors import CompressionError


def measure(layer, path: str, bits, values: bool, seen: set[int]) -> list[WeightCost]:
    """The cost of each of a layer's own weights.

    Args:
        layer: the layer. path: its path in the model.
        bits: see `count`. values: whether to look at the values.
        seen: ids of the variables that were reported before; those found here are added.
    """
    costs: list[WeightCost] = []
    # Layers that only an attached model has, such as the ranges of outputs.
    if getattr(type(layer), "attached_only", False):
        return costs
    for name, variable, chain in _weights(layer):
        if id(variable) in seen:
            continue
        seen.add(id(variable))
        shape = tuple(variable.shape)
        width = _bits(bits, path, name, shape)
        if width is None:
            grid = chain.grid() if chain is not None else None
            width = 32 if grid is None else math.ceil(math.log2(grid.high - grid.low + 1))
        nonzeros = distinct = None
        if values:
            array = chain.numpy() if chain is not None else keras.ops.convert_to_numpy(variable.value)
            nonzeros, distinct = int(np.count_nonzero(array)), len(np.unique(array))
        costs.append(WeightCost(name, shape, nonzeros, distinct, width))
    return costs


def _weights(layer) -> list[tuple[str, keras.Variable, parametrization.Chain | None]]:
    """(name, variable, chain or None) of a layer's own weights, without what parametrizations own beside them."""
    state = parametrization.state(layer)
    chains = state.chains if state is not None else {}
    extra = {id(variable) for variable in state.own_variables()} if state is not None else set()
    names = {id(variable): name for name, variable in select.weight_names(layer).items()}
    names |= {id(chain.raw): name for name, chain in chains.items()}
    # The raw weight of a source (low rank, hashed) is out of use and not among the layer's variables.
    hidden = [chain.raw for chain in chains.values() if chain.source]
    found = []
    for variable in [*hidden, *(v for v in _keras_compat.own_variables(layer) if id(v) not in extra)]:
        name = names.get(id(variable), variable.name)
        found.append((name, variable, chains.get(name)))
    return found


def _bits(bits, path: str, name: str, shape: tuple[int, ...]) -> int | None:
    """The width that was asked for: one for all kernels, by name pattern, or by function; None where it was not."""
    if bits is None or isinstance(bits, int):
        width = bits if len(shape) >= 2 else None
    elif callable(bits):
        width = bits(path, name)
    elif isinstance(bits, dict):
        keys = (path, path.rsplit("/", 1)[-1], f"{path}.{name}")
        fitting = [width for pattern, width in bits.items() if any(fnmatch.fnmatchcase(key, pattern) for key in keys)]
        # As with the integer, a layer's pattern means its kernels.
        exact = f"{path}.{name}" in bits
        width = fitting[-1] if fitting and (exact or len(shape) >= 2) else None
    else:
        raise CompressionError(f"`bits` is a number, a dictionary by name pattern or a function; received {bits!r}.")
    if width is not None and not (isinstance(width, int) and 1 <= width <= 64):
        raise CompressionError(f"A weight takes 1 to 64 bits; `bits` says {width!r} for {path}.{name}.")
    return width
