"""From which TensorFlow Lite release on a file runs: each operator's form came with some release.

The releases are facts of the format, read in LiteRT's tflite/tools/versioning/runtime_version.cc (November 2026), and
corrected where a release that was run here disagrees.
"""

import functools

import numpy as np

from tfcompress.export import litert
from tfcompress.export.flatbuffer import FLOAT32, INT4, INT8, Graph

_NAME = b"min_runtime_version"
# As the converter pads it.
_LENGTH = 16
# Operator, then the release of its version 1, 2, ...; "-" where a version was never released.
_RELEASES = """
ABS 1.13.0 2.4.0 2.5.0 2.6.0 2.12.0
ADD 1.5.0 1.14.0 2.4.0 2.6.0 2.13.0
ADD_N 1.14.0
ARG_MAX 1.9.0 1.14.0 2.9.0
ARG_MIN 1.9.0 1.14.0 2.9.0
ATAN2 2.10.0
AVERAGE_POOL_2D 1.5.0 1.14.0 2.3.0
BATCH_MATMUL 2.3.0 2.3.0 2.4.0 2.5.0
BATCH_TO_SPACE_ND 1.6.0 1.14.0 2.3.0 2.12.0
BROADCAST_ARGS 2.6.0
BROADCAST_TO - 2.5.0 2.5.0
CAST 1.5.0 2.7.0 2.8.0 2.9.0 2.12.0 2.15.0 2.17.0
CEIL 1.14.0
CONCATENATION 1.5.0 1.14.0 2.3.0 2.14.0
CONV_2D 1.5.0 1.14.0 1.14.0 2.3.0 2.4.0 2.9.0 2.11.0 2.15.0
CONV_3D 2.5.0
CONV_3D_TRANSPOSE 2.6.0
COS 1.14.0
CUMSUM 2.4.0
DENSIFY 2.2.0
DEPTHWISE_CONV_2D 1.5.0 1.12.0 1.14.0 2.2.0 2.3.0 2.3.0 2.11.0
DEPTH_TO_SPACE 2.1.0 2.5.0
DEQUANTIZE 1.13.1 1.14.0 1.15.0 2.2.0 2.7.0 2.18.0
DIV 1.6.0 2.3.0
DYNAMIC_UPDATE_SLICE 2.9.0 2.17.0 2.19.0 2.20.0
ELU 1.14.0
EMBEDDING_LOOKUP 1.13.0 1.14.0 1.14.0 2.18.0
EQUAL 1.14.0 1.14.0 2.3.0 2.13.0
EXP 1.7.0 2.12.0
EXPAND_DIMS 1.10.0
FILL 1.13.0 2.3.0 2.5.0 2.12.0
FLOOR 1.9.0
FLOOR_DIV 1.14.0 1.14.0 2.13.0
FLOOR_MOD 1.13.0 2.13.0
FULLY_CONNECTED 1.5.0 1.10.0 1.14.0 1.14.0 2.0.0 2.1.0 2.3.0 2.3.0 2.3.0 2.11.0 2.15.0 2.17.0 2.18.0
GATHER 1.6.0 1.14.0 1.15.0 2.4.0 2.5.0 2.13.0 2.15.0
GATHER_ND 1.14.0 2.3.0 2.5.0 2.13.0 2.16.0
GELU 2.9.0 2.9.0
GREATER 1.14.0 1.14.0
GREATER_EQUAL 1.14.0 1.14.0 2.13.0
HARD_SWISH 1.15.0
IF 1.15.0
L2_NORMALIZATION 1.5.0 1.14.0
L2_POOL_2D 1.5.0
LEAKY_RELU 1.13.1 2.3.0
LESS 1.14.0 1.14.0 2.13.0
LESS_EQUAL 1.14.0 1.14.0
LOG 1.14.0 2.15.0
LOGICAL_AND 1.11.0
LOGICAL_NOT 1.11.0
LOGICAL_OR 1.11.0
LOGISTIC 1.14.0 1.14.0 2.3.0
LOG_SOFTMAX 1.14.0 1.14.0
MAXIMUM 1.14.0 1.14.0 2.3.0 2.3.0
MAX_POOL_2D 1.5.0 1.14.0 2.3.0
MEAN 1.6.0 1.14.0 2.4.0
MINIMUM 1.14.0 1.14.0 2.3.0 2.3.0
MIRROR_PAD 1.13.1 2.3.0 2.12.0
MUL 1.5.0 1.14.0 1.15.0 2.3.0 2.6.0 2.11.0 2.13.0
NEG 1.9.0
NOT_EQUAL 1.14.0 1.14.0 2.3.0
ONE_HOT 1.11.0
PACK 1.11.0 1.14.0 2.3.0 2.13.0
PAD 1.5.0 1.14.0 2.4.0 2.6.0
PADV2 1.9.0 1.14.0 2.4.0 2.6.0
POW 1.10.0
PRELU 1.8.0
QUANTIZE 1.14.0 1.15.0 2.7.0
RANGE 1.13.0 2.14.0
RANK 1.14.0
REDUCE_ALL 2.6.0
REDUCE_ANY 1.11.0
REDUCE_MAX 1.11.0 1.14.0 2.5.0
REDUCE_MIN 1.11.0 1.14.0 2.5.0
REDUCE_PROD 1.11.0 2.6.0
REDUCE_WINDOW 2.15.0
RELU 1.5.0 2.1.0 2.5.0
RELU6 1.5.0 1.14.0 2.5.0
RELU_0_TO_1 2.10.0
RELU_N1_TO_1 1.5.0
RESHAPE 1.5.0
RESIZE_BILINEAR 1.7.0 1.14.0 2.2.0 2.5.0
RESIZE_NEAREST_NEIGHBOR 1.13.1 1.14.0 2.3.0 2.4.0
REVERSE_SEQUENCE 1.14.0
REVERSE_V2 1.14.0 2.2.0 2.5.0
ROUND 1.14.0
RSQRT 1.10.0 2.5.0 2.15.0
SCATTER_ND 2.1.0
SEGMENT_SUM 2.2.0
SELECT 1.14.0 1.14.0 2.12.0 2.12.0
SELECT_V2 2.2.0 2.12.0
SHAPE 1.10.0
SIGN 2.11.0 2.12.0
SIN 1.9.0
SLICE 1.14.0 1.14.0 1.14.0 2.4.0 2.5.0 2.14.0
SOFTMAX 1.5.0 1.14.0 2.3.0
SPACE_TO_BATCH_ND 1.6.0 1.14.0 2.3.0 2.12.0
SPACE_TO_DEPTH 1.5.0 1.14.0
SPARSE_TO_DENSE 1.9.0 1.14.0 1.15.0
SPLIT 1.5.0 1.14.0 1.14.0 2.3.0
SPLIT_V 1.13.1 2.3.0
SQRT 1.10.0
SQUARE 1.12.0
SQUARED_DIFFERENCE 1.13.1 2.5.0
SQUEEZE 1.6.0 2.5.0
STRIDED_SLICE 1.6.0 1.14.0 2.1.0 2.2.0 2.5.0 2.6.0 2.14.0 2.14.0
SUB 1.6.0 1.14.0 2.3.0 2.4.0 2.4.0
SUM 1.10.0 1.15.0
SVDF 1.5.0 1.14.0 2.2.0 2.3.0
TANH 1.14.0 1.14.0 2.3.0
TILE 1.10.1 2.2.0 2.8.0
TOPK_V2 1.7.0 1.14.0 2.13.0
TRANSPOSE 1.6.0 1.14.0 1.15.0 2.3.0 2.4.0 2.12.0 2.14.4
TRANSPOSE_CONV 1.9.0 2.2.0 2.3.0 2.13.0 2.15.0
UNIDIRECTIONAL_SEQUENCE_LSTM 1.13.1 1.14.0 2.3.0 2.12.0
UNPACK 1.11.0 1.14.0 2.2.0 2.3.0
WHERE 1.14.0 2.8.0
WHILE 1.15.0
ZEROS_LIKE 1.12.0
"""


@functools.cache
def _releases() -> dict[str, tuple[str, ...]]:
    rows = (line.split() for line in _RELEASES.split("\n") if line)
    return {kind: tuple(numbers) for kind, *numbers in rows}


def of_operator(kind: str, version: int) -> str | None:
    """The first release with this version of an operator; None where the table does not say.

    Example:
        >>> of_operator("CONV_2D", 7), of_operator("CONV_2D", 99)
        ('2.11.0', None)
    """
    known = _releases().get(kind, ())
    release = known[version - 1] if 0 < version <= len(known) else "-"
    return None if release == "-" else release


def oldest(graph: Graph) -> tuple[str, str]:
    """The first release that has every operator of a file, and the operator that demands it.

    Returns:
        ("2.11.0", "CONV_2D version 7"), or ("1.5.0", "") for a file without operators.
    """
    release, reason = "1.5.0", ""
    for view in graph.views():
        for op in view.operators:
            kind, version = view.kind(op), view.model.operatorCodes[op.opcodeIndex].version
            named = of_operator(kind, version)
            for wanted, why in ((named, f"{kind} version {version}"), _measured(view, op, kind) or (None, "")):
                if wanted is not None and before(release, wanted):
                    release, reason = wanted, why
    return release, reason


def before(one: str, other: str) -> bool:
    """Whether a release is older than another.

    Example:
        >>> before("2.4.0", "2.14.0"), before("2.14.0", "2.14.0")
        (True, False)
    """
    return _numbers(one) < _numbers(other)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _measured(graph: Graph, op, kind: str) -> tuple[str, str] | None:
    """Where releases that have an operator's version refuse its form all the same: the first that takes it, and the form."""
    if kind not in ("FULLY_CONNECTED", "TRANSPOSE_CONV") or len(op.inputs) < 2:
        return None
    weights = graph.tensors[int(op.inputs[1])].type
    data = graph.tensors[int(op.inputs[2 if kind == "TRANSPOSE_CONV" else 0])].type
    if kind == "FULLY_CONNECTED" and weights == INT4 and data == INT8:
        return INT4_DENSE, "FULLY_CONNECTED with 4-bit weights and 8-bit activations"
    if kind == "TRANSPOSE_CONV" and weights == INT8 and data == FLOAT32:
        return HYBRID_TRANSPOSED, "TRANSPOSE_CONV with 8-bit weights and float activations"
    return None


# Run here: refused by tflite-runtime 2.14.0 and ai-edge-litert 1.0.1, taken by ai-edge-litert 1.1.0, of the months of TensorFlow 2.19.
INT4_DENSE = "2.19.0"
# Run here: refused by tflite-runtime 2.14.0, taken by ai-edge-litert 1.0.1, of the months of TensorFlow 2.18.
HYBRID_TRANSPOSED = "2.18.0"


def stamp(graph: Graph) -> None:
    """Write the oldest release into the file's `min_runtime_version`, where the converter keeps it."""
    schema = litert.schema()
    text = oldest(graph)[0].encode()
    entry = schema.MetadataT()
    entry.name, entry.buffer = _NAME, graph.add_buffer(np.frombuffer(text.ljust(_LENGTH, b"\0"), np.uint8))
    others = [m for m in graph.model.metadata or [] if m.name != _NAME]
    graph.model.metadata = [*others, entry]


def stamped(graph: Graph) -> str | None:
    """What a file says of its oldest release; None where it says nothing."""
    for entry in graph.model.metadata or []:
        if entry.name == _NAME:
            data = graph.model.buffers[entry.buffer].data
            return bytes(np.asarray(data, np.uint8)).split(b"\0")[0].decode() if data is not None else None
    return None
