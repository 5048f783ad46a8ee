"""Quantizing a float file with litert-quantizer under statistics of ours, for activations and for weights.

litert-quantizer prefers a statistic to a weight's own extremes (undocumented, true for 0.11, tested): with -127 s and
127 s its scale is s to one unit in the last place, whatever codes the weight uses. `seal` then writes the exact numbers.
"""

import contextlib
import copy
import importlib.metadata
import io
import logging
import re
import warnings

import numpy as np

from tfcompress.errors import CompressionError, import_extra
from tfcompress.export import match
from tfcompress.export.flatbuffer import FLOAT32, Graph
from tfcompress.export.ranges import Trained
from tfcompress.export.ties import JOINED
from tfcompress.record import Range

_PINNED = "0.11."
# litert-quantizer has 4-bit kernels' policy for these two only.
NARROW = ("CONV_2D", "FULLY_CONNECTED")
_NAMES = {"CONV_2D": "CONV_2D", "FULLY_CONNECTED": "FULLY_CONNECTED"}


class Refusal(CompressionError):
    """litert-quantizer cannot take the file."""


def dynamic(data: bytes, trained: Trained, per_tensor_dense: bool) -> bytes:
    """8-bit weights, float activations that the kernels quantize as they run."""

    def recipe(quantizer, names, granularity):
        quantizer.add_dynamic_config(".*", names.ALL_SUPPORTED, 8)
        if per_tensor_dense:
            quantizer.add_dynamic_config(".*", names.FULLY_CONNECTED, 8, granularity.TENSORWISE)

    graph = Graph(data)
    return _run(data, recipe, _weight_statistics(graph, trained, {}, per_tensor_dense))


def static(
    data: bytes,
    ranges: dict[str, Range],
    trained: Trained,
    bits: int,
    per_tensor_dense: bool,
    narrow: set[str],
    floats: frozenset[str] = frozenset(),
) -> bytes:
    """Integer activations and weights.

    Args:
        data: the float file. ranges: {activation: range}. trained: scales of weights. bits: of activations, 8 or 16.
        per_tensor_dense: one scale for each FULLY_CONNECTED weight. narrow: weights stored in 4 bits. floats: outputs of the
            operators that stay float.

    Raises:
        Refusal: litert-quantizer cannot take the file.
    """
    graph = Graph(data)

    def recipe(quantizer, names, granularity):
        quantizer.add_static_config(".*", names.ALL_SUPPORTED, bits, 8)
        if per_tensor_dense:
            quantizer.add_static_config(".*", names.FULLY_CONNECTED, bits, 8, granularity.TENSORWISE)
        for op in graph.operators:
            kind = graph.kind(op)
            if kind in NARROW and graph.name(int(op.inputs[1])) in narrow:
                scope = "^" + re.escape(graph.name(int(op.outputs[0]))) + ";"
                grain = (
                    granularity.TENSORWISE
                    if per_tensor_dense and kind == "FULLY_CONNECTED"
                    else granularity.CHANNELWISE
                )
                quantizer.add_static_config(scope, names(_NAMES[kind]), bits, 4, grain)
        for op in graph.operators:
            # Of several entries that fit an operator the last one counts.
            if graph.name(int(op.outputs[0])) in floats:
                scope = "^" + re.escape(graph.name(int(op.outputs[0]))) + ";"
                quantizer.update_quantization_recipe(scope, names.ALL_SUPPORTED, algorithm_key="no_quantize")

    # 16-bit ranges are symmetric to litert-quantizer: the larger extreme over 32767 is the scale.
    statistics = {
        name: {"min": np.float32(-r.maximum if bits == 16 else r.minimum), "max": np.float32(r.maximum)}
        for name, r in ranges.items()
    }
    statistics |= _weight_statistics(graph, trained, statistics, per_tensor_dense, narrow)
    return _run(data, recipe, statistics)


def _weight_statistics(graph: Graph, trained: Trained, taken: dict, per_tensor_dense: bool, narrow=frozenset()) -> dict:
    """Statistics that make litert-quantizer choose the trained scales, for the weights that have some."""
    statistics = {}
    flat = per_tensor(graph) if per_tensor_dense else set()
    for weight in match.file_weights(graph):
        name = graph.name(weight.tensor)
        if name not in trained.scales or name in taken:
            continue
        source, _, scales = trained.scales[name]
        scales = scales.astype(np.float64)
        if weight.axis is None or name in flat:
            if (scales != scales[0]).any():
                raise CompressionError(
                    f"Weight {source!r} was trained with {len(scales)} scales, but this target takes one for the whole weight. "
                    "Train it per tensor, or choose another target."
                )
            scales = scales[:1].reshape((1,) * weight.values.ndim)
        else:
            scales = scales.reshape([-1 if i == weight.axis else 1 for i in range(weight.values.ndim)])
        # A constant operand is quantized like an activation, whose smallest code is -128.
        low, high = (-128, 127) if weight.axis is None else (-7, 7) if name in narrow else (-127, 127)
        shaped = scales.reshape(()) if weight.axis is None else scales
        statistics[name] = {"min": (low * shaped).astype(np.float32), "max": (high * shaped).astype(np.float32)}
    return statistics


def per_tensor(graph: Graph) -> set[str]:
    """Names of the FULLY_CONNECTED weights."""
    return {graph.name(int(op.inputs[1])) for op in graph.operators if graph.kind(op) == "FULLY_CONNECTED"}


def _run(data: bytes, recipe, statistics: dict) -> bytes:
    module = import_extra("litert_quantizer.quantizer", extra="export")
    version = importlib.metadata.version("litert-quantizer")
    if not version.startswith(_PINNED):
        raise CompressionError(
            f"litert-quantizer {version} is installed; the export stands on behaviour of {_PINNED}x that its makers do not "
            'promise. Install it with: pip install "litert-quantizer==0.11.*"'
        )
    types = import_extra("litert_quantizer.qtyping", extra="export")
    # It prints progress bars and logs every overruled recipe entry.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            quantizer = module.Quantizer(bytearray(data))
            recipe(quantizer, types.TFLOperationName, types.QuantGranularity)
            result = quantizer.quantize(statistics or None, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
        raise Refusal(f"litert-quantizer {version} refuses the file: {error}") from error
    finally:
        logging.disable(before)
    return bytes(result.quantized_model)


def split_joined(graph: Graph, ranges: dict[str, Range]) -> None:
    """Put a QUANTIZE before a concatenation whose input was trained with another range than its output.

    litert-quantizer gives such an input the output's range instead, when nobody else reads it.
    """
    for op in list(graph.operators):
        target = ranges.get(graph.name(int(op.outputs[0]))) if graph.kind(op) in JOINED else None
        if target is None:
            continue
        inputs = np.array(op.inputs, np.int32)
        for position, t in enumerate(int(t) for t in op.inputs):
            own = ranges.get(graph.name(t)) if t >= 0 and not graph.is_constant(t) else None
            q = graph.tensors[t].quantization
            if own is None or own == target or q is None or q.scale is None or _near(q, own):
                continue
            made = graph.add_tensor(
                f"{graph.name(t)}/requantized", graph.shape(t), graph.tensors[t].type, None, copy.deepcopy(q)
            )
            q.scale, q.zeroPoint = np.array([own.scale], np.float32), np.array([own.zero_point], np.int64)
            inputs[position] = made
            place = next(i for i, other in enumerate(graph.operators) if other is op)
            graph.operators.insert(place, graph.make_operator("QUANTIZE", [t], [made]))
        op.inputs = inputs


def _near(quantization, known: Range) -> bool:
    return (
        int(quantization.zeroPoint[0]) == known.zero_point
        and abs(float(quantization.scale[0]) - known.scale) <= 1e-6 * known.scale
    )


def seal(graph: Graph, float_graph: Graph, ranges: dict[str, Range], trained: Trained) -> None:
    """Write the exact scales, and biases rounded with them, over what litert-quantizer came to by float arithmetic."""
    for t in range(len(graph.tensors)):
        tensor, name = graph.tensors[t], graph.name(t)
        q = tensor.quantization
        if q is None or q.scale is None or not len(q.scale):
            continue
        if name in trained.scales and graph.is_constant(t) and len(trained.scales[name][2]) == len(q.scale):
            q.scale = trained.scales[name][2].astype(np.float32)
        elif name in trained.scales and graph.is_constant(t) and len(q.scale) == 1:
            q.scale = trained.scales[name][2][:1].astype(np.float32)
        elif len(q.scale) == 1 and (exact := _snap(float(q.scale[0]), int(q.zeroPoint[0]), ranges, name)) is not None:
            q.scale = np.array([exact], np.float32)
    floats = float_graph.by_name()
    for op in graph.operators:
        slots = match.bias_slots(graph.kind(op))
        if slots is None or len(op.inputs) <= slots[2] or op.inputs[slots[2]] < 0:
            continue
        data, weights, bias = (int(op.inputs[i]) for i in slots)
        if graph.name(bias) in floats and graph.tensors[bias].type != FLOAT32 and graph.tensors[data].type != FLOAT32:
            _seal_bias(graph, data, weights, bias, float_graph.constant(floats[graph.name(bias)]))


def _seal_bias(graph: Graph, data: int, weights: int, bias: int, values: np.ndarray | None) -> None:
    stored = graph.constant(bias)
    if values is None or stored is None:
        return
    step = np.float32(graph.tensors[data].quantization.scale[0]) * np.asarray(
        graph.tensors[weights].quantization.scale, np.float32
    )
    graph.tensors[bias].quantization.scale = step
    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(values.astype(np.float64) / step.astype(np.float64)), limits.min, limits.max)
    graph.set_constant(bias, codes.astype(stored.dtype))


def _snap(scale: float, zero_point: int, ranges: dict[str, Range], name: str) -> float | None:
    """The known scale that this one is up to rounding: its own tensor's, else anyone's (copies that were inserted)."""
    own = ranges.get(name)
    for known in [own] if own is not None else ranges.values():
        if known.zero_point == zero_point and abs(known.scale - scale) <= 1e-6 * known.scale:
            return known.scale
    return None
