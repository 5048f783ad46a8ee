"""Models that TensorFlow Model Optimization (TFMOT) wrapped, as Keras 3 models with our methods attached."""

import re

import keras
import numpy as np

from tfcompress import carriers
from tfcompress.errors import CompressionError
from tfcompress.method import SKIPPED, Report, Row, _reported, clock
from tfcompress.migrate import models, quantized, saved
from tfcompress.migrate.layers import CLUSTERED, PLAIN, PRUNED, QUANTIZED, Piece
from tfcompress.migrate.masks import attach_codebook, attach_mask

# Weights that a wrapper owns, by the last part of their name.
_OWN = {
    PRUNED: re.compile(r"(mask|threshold|pruning_step)(_\d+)?$"),
    CLUSTERED: re.compile(r"(cluster_centroids|pulling_indices)_.*"),
    QUANTIZED: re.compile(r"(optimizer_step|.*_min|.*_max|.*cluster_centroids.*|.*pulling_indices.*|ori_weights.*)$"),
    PLAIN: re.compile(r"(?!)"),
}
# Names that changed between tf_keras and Keras 3.
_SAME = {"depthwise_kernel": "kernel"}


def from_tfmot(model, *, custom_objects: dict | None = None, verbose: int = 1) -> keras.Model:
    """A Keras 3 model with the weights, masks, shared values and ranges of a tf_keras model that TFMOT wrapped.

    What TFMOT had attached is attached by our methods: `prune_low_magnitude` becomes the mask of `pruning.Magnitude` with
    its schedule at the step that training had reached, `cluster_weights` the codebook of `pruning.SharedWeights`,
    `quantize_model` the grids and ranges of `quantization.QAT` (with batch norm folded, as QAT does). The model predicts
    what TFMOT's does in inference. Go on training with `Compression()`, `finalize` it, or export it.

    TFMOT leaves some values unrounded (biases, what comes behind softmax); `apply(model, quantization.QAT(), data=...)` adds
    what is missing and keeps what is there. It rounds anew behind pooling and resizing, where a file has one range; the
    report marks these rows, and `export.tflite(..., strict=False)` takes the range before the layer for both.

    Args:
        model: the path of an .h5 file (saved with `model.save("model.h5")`; tf_keras and TFMOT are not needed), or the
            tf_keras model itself. custom_objects: {class name: Keras 3 layer class} for layers of your own.
        verbose: 0 prints nothing.

    Raises:
        CompressionError: the model is neither Sequential nor functional, or a layer of it has no counterpart; the message
            names it.

    Example:
        >>> small = from_tfmot("pruned.h5")     # doctest: +SKIP
    """
    source = saved.read(model)
    built = models.build(source.config, custom_objects or {})
    left = _set_weights(built, source)
    rows: list[Row] = []
    for path, piece in built.pieces.items():
        own = left[path]
        if piece.kind == PRUNED:
            rows += attach_mask(path, piece, own)
        elif piece.kind == CLUSTERED:
            rows += attach_codebook(path, piece, own)
        elif piece.kind != QUANTIZED:
            rows.append(Row(path, "", SKIPPED, "TFMOT had nothing attached"))
    new = built.model
    if built.input_ranges or any(piece.kind == QUANTIZED for piece in built.pieces.values()):
        new, more = quantized.attach(
            built, left, {name: source.weights.get(name, []) for name in built.input_ranges.values()}
        )
        rows += more
    carriers.carry_all(new)
    clock(new)
    return _reported(new, Report(f"from TFMOT: {new.name}", rows), verbose)


def _set_weights(built: models.Built, source: saved.Saved) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Give every layer its weights; what remains of each layer's list is its wrapper's."""
    left: dict[str, list[tuple[str, np.ndarray]]] = {}
    for path, piece in built.pieces.items():
        mine = _weights_of(path, piece, source, built)
        own = [(name, value) for name, value in mine if _OWN[piece.kind].match(_last(name))]
        rest = [(name, value) for name, value in mine if not _OWN[piece.kind].match(_last(name))]
        left[path] = own
        _assign(path, piece.layer, rest)
    return left


def _weights_of(path: str, piece: Piece, source: saved.Saved, built: models.Built) -> list[tuple[str, np.ndarray]]:
    """A layer's weights in the file: of its own group, or of its outermost model's."""
    folder, _, _ = path.partition("/")
    if "/" not in path:
        return source.weights.get(piece.name, [])
    names = {piece.name, piece.layer.name}
    return [(name, value) for name, value in source.weights.get(folder, []) if names & set(name.split("/")[:-1])]


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _assign(path: str, layer, values: list[tuple[str, np.ndarray]]) -> None:
    """Set a layer's variables by the last part of their name and their shape, in order."""
    variables = [v for v in layer.variables if "seed" not in v.path]
    values = list(values)
    for variable in variables:
        wanted = variable.path.rsplit("/", 1)[-1]
        place = next(
            (
                i
                for i, (name, value) in enumerate(values)
                if wanted in (_last(name), _SAME.get(_last(name))) and tuple(value.shape) == tuple(variable.shape)
            ),
            None,
        )
        if place is None:
            held = ", ".join(f"{name} {value.shape}" for name, value in values) or "nothing"
            raise CompressionError(
                f"Layer {path!r} ({type(layer).__name__}) needs a weight {wanted!r} of shape {tuple(variable.shape)}, and the file has "
                f"{held} for it. The layer may be another thing in Keras 3; pass custom_objects= for layers of your own."
            )
        variable.assign(values.pop(place)[1])
    # How many samples a Normalization was adapted to; Keras 3 does not keep it.
    values = [(name, value) for name, value in values if _last(name) != "count"]
    if values:
        raise CompressionError(
            f"Layer {path!r} has weights in the file that its Keras 3 form does not have: {', '.join(name for name, _ in values)}."
        )
