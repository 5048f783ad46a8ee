"""The float file that every precision is made from: the converter's output under fixed names.

The converter names tensors after scopes and call counts, so that the same model gives other bytes each time. Here they
are named after operators and positions, inputs and outputs after the Keras model; the converter's names are kept aside
for messages.
"""

import re

import numpy as np

from tfcompress.export import match
from tfcompress.export.flatbuffer import Graph
from tfcompress.export.runtimes import stamp
from tfcompress.export.savedmodel import Signature

_ROLES = {
    "CONV_2D": ("input", "weights", "bias"),
    "DEPTHWISE_CONV_2D": ("input", "weights", "bias"),
    "FULLY_CONNECTED": ("input", "weights", "bias"),
    "CONV_3D": ("input", "weights", "bias"),
    "TRANSPOSE_CONV": ("shape", "weights", "input", "bias"),
    "GATHER": ("weights", "indices"),
}


def tidy(data: bytes, ports: Signature) -> tuple[bytes, dict[str, str]]:
    """Rename everything in a converted file.

    Returns:
        The file's bytes, and {our tensor name: the converter's name}.
    """
    graph = Graph(data)
    _own_biases(graph)
    origins: dict[str, str] = {}
    for view in graph.views():
        prefix = f"subgraph{view.index}/" if view.index else ""
        names = {int(t): name for t, name in _names(view, prefix).items()}
        if view.index == 0:
            _name_ends(view, names, ports)
        for index, tensor in enumerate(view.tensors):
            name = names.get(index, f"{prefix}unused_{index}")
            origins[name] = view.name(index)
            tensor.name = name.encode()
        view.subgraph.name = b"main" if view.index == 0 else f"subgraph{view.index}".encode()
    # The rest holds the converter's environment.
    graph.model.metadata = []
    stamp(graph)
    graph.model.description = b"tfcompress"
    return graph.to_bytes(share=False), origins


def _own_biases(graph: Graph) -> None:
    """Give every operator a bias of its own: integer biases have the scale of their operator's input and weights."""
    seen: set[int] = set()
    for op in graph.operators:
        slots = match.bias_slots(graph.kind(op))
        if slots is None or len(op.inputs) <= slots[2] or op.inputs[slots[2]] < 0:
            continue
        bias = int(op.inputs[slots[2]])
        values = graph.constant(bias)
        if bias in seen and values is not None:
            inputs = np.array(op.inputs, np.int32)
            inputs[slots[2]] = graph.add_tensor(graph.name(bias), values.shape, graph.tensors[bias].type, values)
            op.inputs = inputs
        seen.add(bias)


def _names(view: Graph, prefix: str) -> dict[int, str]:
    """Activations after the operator that writes them, constants after the first that reads them."""
    names = {int(t): f"{prefix}input_{i}" for i, t in enumerate(view.subgraph.inputs)}
    for position, op in enumerate(view.operators):
        stem = f"{prefix}{view.kind(op).lower()}_{position}"
        for i, t in enumerate(op.outputs):
            names.setdefault(int(t), f"{stem}:{i}" if len(op.outputs) > 1 else stem)
        roles = _ROLES.get(view.kind(op), ())
        for i, t in enumerate(op.inputs):
            if t >= 0 and view.is_constant(t):
                names.setdefault(int(t), f"{stem}/{roles[i] if i < len(roles) else f'operand{i}'}")
    return names


def _name_ends(view: Graph, names: dict[int, str], ports: Signature) -> None:
    """Keras names for the graph's ends, in the signature too, which the converter sorts by its own rules."""
    entry = view.signature()
    by_tensor = {int(item.tensorIndex): item.name.decode() for item in (entry.inputs or [])} if entry else {}
    order = [_port_of(by_tensor.get(int(t), ""), ports, i) for i, t in enumerate(view.subgraph.inputs)]
    for t, port in zip(view.subgraph.inputs, order, strict=True):
        names[int(t)] = port
    for item in (entry.outputs or []) if entry else []:
        names[int(item.tensorIndex)] = item.name.decode()
    taken: set[str] = set()
    for t, name in names.items():
        names[t] = name if name not in taken else f"{name}~{t}"
        taken.add(names[t])
    if entry is not None:
        # Keras's order, which the converter does not keep.
        entry.inputs = sorted(
            entry.inputs or [], key=lambda item: [p.name for p in ports.inputs].index(item.name.decode())
        )
        entry.outputs = sorted(entry.outputs or [], key=lambda item: ports.outputs.index(item.name.decode()))
        view.subgraph.inputs = _ordered(view.subgraph.inputs, entry.inputs)
        view.subgraph.outputs = _ordered(view.subgraph.outputs, entry.outputs)


def _port_of(name: str, ports: Signature, position: int) -> str:
    known = [p.name for p in ports.inputs]
    return name if name in known else known[position]


def _ordered(ends, items) -> np.ndarray:
    order = [int(item.tensorIndex) for item in items]
    return np.array(order + [int(t) for t in ends if int(t) not in order], np.int32)


def layer_of(origin: str, layers) -> str | None:
    """The Keras layer that a converter's tensor name speaks of, when one can be told.

    Example:
        >>> layer_of("functional_1/re_lu_1/Relu;functional_1/conv2d_1/convolution", ["conv2d", "re_lu"])
        're_lu'
    """
    known = set(layers)
    for part in re.split("[;/]", origin):
        for candidate in (part, re.sub(r"_\d+$", "", part)):
            if candidate in known:
                return candidate
    return None
