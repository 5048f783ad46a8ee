"""Whose rules a file has to obey: presets by name, and what each refuses."""

import dataclasses

from tfcompress.errors import CompressionError, nearest
from tfcompress.export.census import Census
from tfcompress.export.flatbuffer import kinds

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8", "int4")
# What runs, in words.
MEANING = {
    "float32": "float weights, float arithmetic",
    "float16": "weights stored in half precision, float arithmetic",
    "dynamic": "8-bit weights; activations float in the file, quantized by the kernels as they run",
    "int8": "8-bit weights and activations, integer arithmetic",
    "int16x8": "8-bit weights, 16-bit activations, integer arithmetic",
    "int4": "4-bit weights in CONV_2D and FULLY_CONNECTED, 8-bit elsewhere, 8-bit activations",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A set of rules.

    Args:
        name: of the preset. per_tensor_dense: one scale for each FULLY_CONNECTED weight. precisions: what it takes.
        boundaries: types of the file's ends that it takes. operators: the only operators that it runs, None for any.
        checked_by: "run" (files were run on it here) or "rules (source, date)": a table of rules is not a device.
    """

    name: str
    per_tensor_dense: bool
    precisions: tuple[str, ...]
    boundaries: tuple[str, ...]
    operators: frozenset[str] | None
    checked_by: str


_ALL_ENDS = ("float32", "int8", "uint8", "int16")
_EDGETPU = frozenset(
    kinds("""ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED L2_NORMALIZATION LOGISTIC
    MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL PACK PAD PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE
    RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SLICE SOFTMAX SPACE_TO_DEPTH SPLIT SQUEEZE STRIDED_SLICE SUB SUM
    SQUARED_DIFFERENCE TANH TRANSPOSE TRANSPOSE_CONV""")
)
_NNAPI = frozenset(
    kinds("""ABS ADD ARG_MAX ARG_MIN AVERAGE_POOL_2D BATCH_TO_SPACE_ND CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D
    DEPTH_TO_SPACE DEQUANTIZE DIV ELU EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS FLOOR FULLY_CONNECTED GATHER GREATER
    GREATER_EQUAL HARD_SWISH L2_NORMALIZATION LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX
    LSTM MAXIMUM MAX_POOL_2D MEAN MINIMUM MUL NEG NOT_EQUAL PACK PAD PADV2 POW PRELU QUANTIZE REDUCE_ANY REDUCE_MAX
    REDUCE_MIN RELU RELU6 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT SELECT SIN SLICE SOFTMAX
    SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SQRT SQUEEZE STRIDED_SLICE SUB SVDF TANH TILE TOPK_V2 TRANSPOSE
    TRANSPOSE_CONV UNPACK""")
)
_TFLM = frozenset(
    kinds("""ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO CALL_ONCE
    CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV ELU EQUAL EXP EXPAND_DIMS FILL
    FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF L2_NORMALIZATION L2_POOL_2D
    LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAX_POOL_2D MAXIMUM MEAN MINIMUM
    MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_MAX RELU RELU6 RESHAPE RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT
    SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM
    UNPACK VAR_HANDLE WHILE ZEROS_LIKE""")
)

TARGETS = {
    target.name: target
    for target in (
        Target("xnnpack", False, PRECISIONS, _ALL_ENDS, None, "run"),
        Target(
            "gpu",
            False,
            ("float32", "float16", "int8"),
            ("float32",),
            None,
            "rules (LiteRT's model analyzer, in the installed TensorFlow)",
        ),
        Target(
            "nnapi",
            True,
            ("float32", "float16", "int8"),
            ("float32", "int8", "uint8"),
            _NNAPI,
            "rules (NNAPI delegate of TensorFlow Lite 2.14, nnapi_delegate.cc; google-ai-edge/LiteRT issue 3596; November 2026; not run)",
        ),
        Target(
            "edgetpu",
            True,
            ("int8",),
            ("int8", "uint8"),
            _EDGETPU,
            "rules (coral.ai/docs/edgetpu/models-intro, supported operations; November 2026; not run)",
        ),
        Target(
            "tflm",
            False,
            ("float32", "int8", "int16x8"),
            ("float32", "int8", "int16"),
            _TFLM,
            "rules (tensorflow/tflite-micro, python_ops_resolver.cc; November 2026; not run)",
        ),
        Target(
            "tflm-legacy",
            True,
            ("float32", "int8"),
            ("float32", "int8"),
            _TFLM,
            "rules (tensorflow/tflite-micro python_ops_resolver.cc and PR 2602, before which FULLY_CONNECTED read one scale; November 2026; not run)",
        ),
    )
}


def target_of(name: str) -> Target:
    """The preset of this name.

    Raises:
        CompressionError: there is none.
    """
    if name not in TARGETS:
        raise CompressionError(f"Unknown target {name!r}. {nearest(name, TARGETS)}")
    return TARGETS[name]


def boundary_of(target: Target, boundary: str | None) -> str:
    """The type of an integer file's ends: as asked for, else float32, else the first that the target takes.

    Example:
        >>> boundary_of(TARGETS["edgetpu"], None), boundary_of(TARGETS["nnapi"], None)
        ('int8', 'float32')
    """
    if boundary is not None:
        return boundary
    return "float32" if "float32" in target.boundaries else target.boundaries[0]


def check_request(target: Target, precision: str, boundary: str) -> None:
    """Refuse a precision or boundary that the target cannot take, before anything is converted.

    Raises:
        CompressionError: it cannot.
    """
    if precision not in PRECISIONS:
        raise CompressionError(f"Unknown precision {precision!r}. {nearest(precision, PRECISIONS)}")
    if precision not in target.precisions:
        raise CompressionError(
            f"Target {target.name!r} takes {', '.join(target.precisions)}, not {precision!r} ({target.checked_by})."
        )
    if boundary not in _ALL_ENDS:
        raise CompressionError(f"Unknown boundary {boundary!r}. {nearest(boundary, _ALL_ENDS)}")
    if boundary not in target.boundaries:
        raise CompressionError(
            f"Target {target.name!r} takes the boundaries {', '.join(target.boundaries)}, not {boundary!r}."
        )
    integer = precision in ("int8", "int16x8", "int4")
    fits = ("float32", "int16") if precision == "int16x8" else ("float32", "int8", "uint8") if integer else ("float32",)
    if boundary not in fits:
        raise CompressionError(
            f"precision={precision!r} takes boundary {' or '.join(map(repr, fits))}, not {boundary!r}."
        )


def refusals(target: Target, census: Census) -> list[str]:
    """What of a finished file the target's rules refuse, in words."""
    found = []
    if census.precision in PRECISIONS and census.precision not in target.precisions:
        found.append(f"precision {census.precision} (it takes {', '.join(target.precisions)})")
    if target.operators is not None:
        for kind, count in census.operators.items():
            if kind not in target.operators:
                found.append(f"{count} {kind} not among the operators of {target.name}")
    if target.name == "edgetpu" and census.float_operators:
        found.append(f"{len(census.float_operators)} float operators, which run on the CPU")
    if target.name in ("gpu", "edgetpu", "tflm", "tflm-legacy") and census.dynamic:
        found.append(f"{len(census.dynamic)} tensors without a fixed shape")
    return found
