"""Integer networks in NumPy, and grids made awkward on purpose: what the tests compare files with."""

import contextlib

import keras
import numpy as np

from tfcompress.record import Grid, Range


def bake(layer, axis: int, seed: int, largest: tuple[float, float] = (0.85, 1.3)) -> tuple[Grid, np.ndarray]:
    """Put a layer's kernel on an awkward per-channel grid (codes clip at 127 or stop well below), and return the codes."""
    weight = np.asarray(layer.get_weights()[0])
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    spread = np.random.default_rng(seed).uniform(*largest, weight.shape[axis])
    spread = spread.reshape([-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)])
    unit = (np.abs(weight).max(axis=others, keepdims=True) / 127 * spread).astype(np.float32)
    codes = np.clip(np.rint(weight / unit), -127, 127)
    layer.set_weights([(codes * unit).astype(np.float32), *layer.get_weights()[1:]])
    return Grid(unit), codes.astype(np.int64)


def to_codes(value: np.ndarray, r: Range) -> np.ndarray:
    limit = 2 ** (r.bits - 1)
    return np.clip(np.rint(value.astype(np.float32) / np.float32(r.scale)) + r.zero_point, -limit, limit - 1).astype(
        np.int64
    )


def rescale(accumulator: np.ndarray, source: Range, unit: np.ndarray, target: Range, relu: bool = False) -> np.ndarray:
    """Accumulators to output codes with one rounding, in float64."""
    real = accumulator * (np.float64(np.float32(source.scale)) * unit.astype(np.float64).ravel())
    limit = 2 ** (target.bits - 1)
    codes = np.rint(real / np.float64(np.float32(target.scale))) + target.zero_point
    return np.clip(codes, target.zero_point if relu else -limit, limit - 1).astype(np.int64)


def bias_codes(bias: np.ndarray, source: Range, unit: np.ndarray) -> np.ndarray:
    step = np.float32(source.scale) * unit.astype(np.float32).ravel()
    return np.rint(bias.astype(np.float64) / step.astype(np.float64)).astype(np.int64)


def dense(x: np.ndarray, source: Range, codes, unit, bias, target: Range, relu=False) -> np.ndarray:
    total = (x - source.zero_point) @ codes + bias_codes(bias, source, unit)
    return rescale(total, source, unit, target, relu)


def conv_valid(x: np.ndarray, source: Range, codes, unit, bias, target: Range, relu=False) -> np.ndarray:
    """Stride 1, no padding; codes in (height, width, in, out)."""
    windows = np.lib.stride_tricks.sliding_window_view(x - source.zero_point, codes.shape[:2], axis=(1, 2))
    total = np.einsum("nyxchw,hwco->nyxo", windows, codes) + bias_codes(bias, source, unit)
    return rescale(total, source, unit, target, relu)


def depthwise_valid(x: np.ndarray, source: Range, codes, unit, bias, target: Range, relu=False) -> np.ndarray:
    """Stride 1, no padding, multiplier 1; codes in (height, width, channels, 1)."""
    windows = np.lib.stride_tricks.sliding_window_view(x - source.zero_point, codes.shape[:2], axis=(1, 2))
    total = np.einsum("nyxchw,hwc->nyxc", windows, codes[..., 0]) + bias_codes(bias, source, unit)
    return rescale(total, source, unit, target, relu)


def stored(path) -> dict[str, dict]:
    """What LiteRT's own interpreter says of every tensor: scales, zero points and, for constants, values."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    made = Interpreter(
        model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    made.allocate_tensors()
    found = {}
    for detail in made.get_tensor_details():
        q = detail["quantization_parameters"]
        entry = {
            "scales": q["scales"],
            "zero_points": q["zero_points"],
            "axis": q["quantized_dimension"],
            "dtype": detail["dtype"],
        }
        try:
            entry["values"] = np.array(made.get_tensor(detail["index"]))
        except ValueError:
            entry["values"] = None
        found[detail["name"]] = entry
    return found


def operators(path) -> list[str]:
    """LiteRT's own list of operators, without the delegate's."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    made = Interpreter(
        model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    return [op["op_name"] for op in made._get_ops_details()]


def run_codes(path, inputs: np.ndarray, delegate: bool = True) -> np.ndarray:
    """Raw outputs of an int8-boundary file for raw int8 inputs, sample by sample."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    made = Interpreter(model_path=str(path), experimental_op_resolver_type=kind)
    made.allocate_tensors()
    into, out = made.get_input_details()[0], made.get_output_details()[0]
    results = []
    for sample in inputs:
        made.set_tensor(into["index"], sample[None].astype(into["dtype"]))
        made.invoke()
        results.append(made.get_tensor(out["index"])[0].astype(np.int64))
    return np.array(results)


@contextlib.contextmanager
def dtype_policy(name: str):
    """Layers made inside have this policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
