"""Layers with layers or arithmetic inside, written as subgraphs, so that every tensor of an integer file has a name."""

import dataclasses
from collections.abc import Callable

import keras

from tfcompress import carriers
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import Call, all_calls, calls, graph_of, is_nested
from tfcompress.graph.expansions import EXPANSIONS, OPERATORS, Builder, Expansion
from tfcompress.graph.expansions.activations import COMPOSITE
from tfcompress.graph.expansions.base import common_obstacle, of_keras
from tfcompress.graph.expansions.builder import array
from tfcompress.graph.expansions.custom import Traced
from tfcompress.graph.expansions.folding import fold, targets
from tfcompress.graph.rebuild import rebuild
from tfcompress.method import DONE, FLOAT, Row, clock, copy_model, step

L = keras.layers

# Of Keras's own layers with something inside, those that no expansion knows.
_OPAQUE = (L.RNN, L.Wrapper, L.Attention, L.AdditiveAttention)
_NORMALIZATIONS = (L.LayerNormalization, L.RMSNormalization)


def expand_layers(model, keep=None, *, reuse: bool = False):
    """Write layers that have tensors inside as subgraphs of plain Keras layers and operators with the same weights.

    Expanded are SeparableConv, EinsumDense (products over the last axes), TimeDistributed, LayerNormalization,
    RMSNormalization, GroupNormalization, UnitNormalization, LSTM, GRU, SimpleRNN, RNN over their cells, Bidirectional,
    MultiHeadAttention, GroupedQueryAttention, silu and elu, squares and negatives, and layers of the user's own whose
    `call` consists of layers and `keras.ops`. The model predicts the same, to 1e-5 of its largest output, and trains the
    same weights, but: gamma and beta of a normalization go into the products behind it where they alone read it,
    1 / sqrt(key_dim) goes into the query's product, and a GRU's recurrent bias that the reset gate multiplies is trained
    by itself in the first step. Parts are named after the layer (`lstm_input`, `lstm_c`), and the one that makes its
    output has its name.

    Args:
        model: a Functional or built Sequential model; a Sequential becomes Functional.
        keep: None, or a function (path, layer) -> bool that says which layers stay as they are.
        reuse: change `model` itself instead of a copy.

    Returns:
        (model, rows): the new model, and a `Row` for every layer with tensors inside; those that stay have the reason
        and their share of the multiply-accumulates.

    Raises:
        CompressionError: the model has no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), L.SeparableConv2D(4, 3, name="s"), L.LayerNormalization(name="n")])
        >>> new, rows = expand_layers(model)
        >>> [layer.name for layer in new.layers][1:3], rows[0].layer
        (['s_depthwise', 's'], 's')
    """
    graph_of(model)
    model = model if reuse else copy_model(model)
    keep = keep or (lambda path, layer: False)
    now = step(model)
    costs = _costs(model)
    rows: dict[str, Row] = {}
    taken = {call.operation.name for call in all_calls(model)}
    model = _split(model, keep, taken)
    while True:
        builders: dict[str, Builder] = {}
        found = _round(model, keep, taken, rows, costs, builders)
        if not found:
            # The count of updates lives on a layer that may be gone.
            if step(model) != now and (counter := clock(model)) is not None:
                counter.assign(now)
            return model, list(rows.values())
        model = rebuild(model, replace=dict(found), reuse=True)
        for path, builder in builders.items():
            holders = [part.name for part in builder.made.values() if part.weights and part is not builder.layer]
            if holders and path in rows:
                detail = f"{rows[path].detail}; weights in {', '.join(holders)}"
                rows[path] = dataclasses.replace(rows[path], detail=detail)


def _round(
    model, keep, taken: set[str], rows: dict[str, Row], costs, builders: dict[str, Builder]
) -> dict[str, Callable]:
    """What replaces the layers that can be expanded now; a row for each, and for those that cannot."""
    replace: dict[str, Callable] = {}
    by_path: dict[str, list[Call]] = {}
    for call in all_calls(model):
        by_path.setdefault(call.path, []).append(call)
    folded = _fold(model, keep)
    for path, found in by_path.items():
        operation = found[0].operation
        kind = _kind(operation)
        if kind is None or not found[0].inputs:
            continue
        if keep(path, operation):
            rows.setdefault(path, Row(path, "", FLOAT, "kept as it is"))
            continue
        reason = next((reason for call in found if (reason := _obstacle(kind, operation, call))), "")
        if reason:
            rows.setdefault(path, Row(path, "", FLOAT, f"not expanded: {reason}; {_share(path, costs)}"))
            continue
        builder = builders[path] = Builder(operation, path, taken)
        taken.discard(operation.name)
        expansion = kind(operation, builder)
        if path in folded:
            expansion.folded = True
        replace[path] = _replacement(expansion, builder)
        into = f", gamma and beta folded into {', '.join(folded[path])}" if path in folded else ""
        if isinstance(operation, keras.Layer):
            rows[path] = Row(path, "", DONE, f"{type(operation).__name__} expanded into plain layers{into}")
    return replace


def _replacement(expansion: Expansion, builder: Builder) -> Callable:
    def replacement(*args, training=None, **kwargs):
        # Keras notes a default `training` with each call, and gives the running one to all layers.
        return builder.finished(expansion(*args, **kwargs))

    return replacement


def _kind(operation) -> type[Expansion] | None:
    """The expansion of an operation that has tensors inside; `Expansion` itself where none is known; None without."""
    if is_nested(operation):
        return None
    if not isinstance(operation, keras.Layer):
        return OPERATORS.get(type(operation).__name__)
    base = carriers.base_class(operation)
    kind = EXPANSIONS.get(base)
    if kind is not None:
        return kind if kind.needed(operation) else None
    if base.__module__.startswith("tfcompress."):
        return None
    if not base.__module__.startswith("keras."):
        return Traced
    return Expansion if isinstance(operation, _OPAQUE) else None


def _obstacle(kind: type[Expansion], operation, call: Call) -> str:
    if kind is Expansion:
        return f"no expansion of {type(operation).__name__} is known"
    if not isinstance(operation, keras.Layer):
        return ""
    return common_obstacle(kind, operation, call) or kind.obstacle(operation, call)


def _split(model, keep, taken: set[str]):
    """Layers' own activations that are expanded become layers."""
    inserts: dict = {}
    layers: list = []
    for call in all_calls(model):
        layer = call.operation
        if isinstance(layer, L.Activation) or not isinstance(layer, keras.Layer) or keep(call.path, layer):
            continue
        name = of_keras(getattr(layer, "activation", None))
        if name not in COMPOSITE or not hasattr(layer, "kernel") or len(call.outputs) != 1:
            continue
        builder = Builder(layer, call.path, taken)
        builder.name("")
        inserts[call.key] = L.Activation(name, name=builder.name(name), dtype=layer.dtype_policy)
        builder.mark(inserts[call.key])
        layers.append(layer)
    for layer in layers:
        layer.activation = keras.activations.linear
    return rebuild(model, insert=inserts, reuse=True) if inserts else model


def _fold(model, keep, prefix: str = "", seen: set[int] | None = None) -> dict[str, list[str]]:
    """Fold normalizations into the products behind them; {their path: names of the products}."""
    seen = set() if seen is None else seen
    found = calls(model, prefix)
    times: dict[int, int] = {}
    readers: dict[int, list[Call | None]] = {id(tensor): [None] for tensor in graph_of(model).outputs}
    for call in found:
        times[id(call.operation)] = times.get(id(call.operation), 0) + 1
        for tensor in {id(t): t for t in call.inputs}.values():
            readers.setdefault(id(tensor), []).append(call)
    done: dict[str, list[str]] = {}
    for call in found:
        layer = call.operation
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_nested(layer):
            done |= _fold(layer, keep, call.path + "/", seen)
        elif isinstance(layer, keras.Layer) and carriers.base_class(layer) in _NORMALIZATIONS and times[id(layer)] == 1:
            kind = EXPANSIONS[carriers.base_class(layer)]
            behind = readers.get(id(call.outputs[0]), [])
            gamma = getattr(layer, "gamma", None) if isinstance(layer, L.LayerNormalization) else layer.scale
            beta = getattr(layer, "beta", None)
            if gamma is None or keep(call.path, layer) or _obstacle(kind, layer, call):
                continue
            if any(one is not None and (keep(one.path, one.operation) or is_nested(one.operation)) for one in behind):
                continue
            products = targets(layer, behind, times)
            if products is None:
                continue
            for product in products:
                fold(product, array(gamma), None if beta is None else array(beta))
            done[call.path] = list(dict.fromkeys(one.operation.name for one in behind if one is not None))
    return done


def _costs(model) -> dict[str, float]:
    """Each layer's share of the multiply-accumulates, where they can be counted."""
    from tfcompress.cost import count

    try:
        report = count(model, values=False)
    except CompressionError:
        return {}
    total = report.known_macs
    return {layer.path: (layer.macs or 0) / total for layer in report.layers if layer.macs is not None} if total else {}


def _share(path: str, costs: dict[str, float]) -> str:
    share = f" ({costs[path]:.0%} of the multiply-accumulates)" if path in costs else ""
    return f"its inner ranges are calibrated at export, not trained{share}"
