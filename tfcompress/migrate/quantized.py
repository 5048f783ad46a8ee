"""Grids and ranges of TFMOT's quantization wrappers, attached as quantization-aware training attaches its own."""

import keras
import numpy as np

from tfcompress import select
from tfcompress.core.grids import IntegerGrid, output_axes
from tfcompress.core.masks import Mask
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import all_calls, operations
from tfcompress.graph.fold import Fold, fold_batchnorm, foldable
from tfcompress.graph.rebuild import rebuild
from tfcompress.layers.output_range import OutputRange
from tfcompress.method import DONE, FLOAT, Row
from tfcompress.migrate.layers import QUANTIZED, Piece
from tfcompress.migrate.masks import Named, set_codebook
from tfcompress.migrate.models import Built
from tfcompress.parametrization import attach as parametrize
from tfcompress.quantization import placement

# TFMOT's ranges before any training.
_UNTRAINED = (-6.0, 6.0)
# A share of zeros up to which they are no structure.
_FEW = 0.05


def attach(built: Built, left: dict[str, Named], inputs: dict[str, Named]) -> tuple[keras.Model, list[Row]]:
    """Fold batch normalization, put grids on weights, and ranges where TFMOT rounded.

    Args:
        built: the plain model with its weights set. left: {path: weights of its wrapper}. inputs: {QuantizeLayer: weights}.

    Returns:
        The new model, and a row for everything that was done.
    """
    pieces = {path: piece for path, piece in built.pieces.items() if piece.kind == QUANTIZED}
    rows: list[Row] = []
    # Zeros and shared values first: folding scales whole channels, which keeps zeros and not shared values.
    for path, piece in pieces.items():
        rows += _structure(path, piece, left[path])
    grids = {(path, name): unit for path, piece in pieces.items() for name, unit in _units(path, piece, left[path])}
    # What was rounded before its normalization stays apart from it.
    rounded = [path for path in pieces if _has(left[path], "post_activation") or _has(left[path], "output")]
    skip = [fold.layer for fold in foldable(built.model) if fold.layer in rounded]
    folds = {fold.normalization: fold for fold in foldable(built.model, skip) if fold.layer}
    factors = {fold.layer: _factor(operations(built.model)[name]) for name, fold in folds.items()}
    model, _ = fold_batchnorm(built.model, skip, reuse=True)
    rows += [Row(fold.normalization, "", DONE, f"folded into {fold.layer}") for fold in folds.values()]
    known = operations(model)
    for (path, name), unit in grids.items():
        rows.append(_put_grid(path, known[path], name, unit, factors.get(path)))
    model, more = _put_ranges(model, pieces, left, inputs, built, folds)
    return model, rows + more


def _structure(path: str, piece: Piece, own: Named) -> list[Row]:
    """What the collaborative schemes keep: shared values (cluster preserve) and zeros (prune preserve).

    TFMOT says neither in the config. Shared values have variables of their own; zeros show in the weight, where chance
    makes none.
    """
    shared = any("cluster_centroids" in name.rsplit("/", 1)[-1] for name, _ in own)
    rows = []
    for name in select.kernel_names(piece.layer):
        raw = np.asarray(getattr(piece.layer, name))
        if shared:
            rows.append(Row(path, name, DONE, f"{set_codebook(piece.layer, name, raw)} shared values"))
        elif (raw == 0).mean() > _FEW:
            link = Mask()
            parametrize(piece.layer, name, [link])
            link.set(raw != 0)
            rows.append(Row(path, name, DONE, f"mask with {np.mean(raw == 0):.1%} zeros"))
    return rows


def _units(path: str, piece: Piece, own: Named) -> list[tuple[str, np.ndarray]]:
    """(weight's name, its step of the weight's rank) of every weight that the wrapper quantized."""
    found = []
    for name in select.kernel_names(piece.layer):
        ends = next((_ends(own, known) for known in (name, f"depthwise_{name}") if _has(own, known)), None)
        if ends is None:
            continue
        low, high = ends
        if not np.allclose(low, -high, rtol=1e-5):
            raise CompressionError(
                f"Layer {path!r} quantized {name!r} on an asymmetric range ({low.min():g} to {high.max():g}); int8 kernels want weights "
                "symmetric around 0."
            )
        shape = tuple(getattr(piece.layer, name).shape)
        # TFMOT counts channels along the last axis.
        unit = np.asarray(high, np.float64) / 127
        unit = (
            unit.reshape((1,) * len(shape)) if unit.size == 1 else unit.reshape((*(1,) * (len(shape) - 1), shape[-1]))
        )
        found.append((name, unit))
    return found


def _factor(normalization) -> np.ndarray:
    """What folding multiplies a channel's weights by."""
    variance = np.asarray(keras.ops.convert_to_numpy(normalization.moving_variance), np.float64)
    factor = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.gamma is not None:
        factor = factor * np.asarray(keras.ops.convert_to_numpy(normalization.gamma), np.float64)
    return factor


def _put_grid(path: str, layer, name: str, unit: np.ndarray, factor: np.ndarray | None) -> Row:
    """Attach an integer grid with TFMOT's step, scaled as folding scaled the weight."""
    shape = tuple(getattr(layer, name).shape)
    axes = output_axes(layer, name, len(shape))
    if factor is not None:
        # A negative factor turns codes around, and their grid is symmetric.
        spread = np.abs(factor).reshape([shape[i] if i in axes else 1 for i in range(len(shape))])
        unit = unit * spread
    per_channel = unit.size > 1
    if per_channel and any(unit.shape[i] != 1 for i in range(len(shape)) if i not in axes):
        raise CompressionError(
            f"Layer {path!r} has scales along an axis of {name!r} that is no output channel: {unit.shape} for a weight of {shape}."
        )
    link = IntegerGrid(8, per_channel=per_channel)
    parametrize(layer, name, [link])
    link.unit.assign(np.broadcast_to(unit, tuple(link.unit.shape)).astype(np.float32))
    return Row(path, name, DONE, f"int8 grid, {'one scale a channel' if per_channel else 'one scale'}")


def _put_ranges(
    model, pieces: dict[str, Piece], left, inputs, built: Built, folds: dict[str, Fold]
) -> tuple[keras.Model, list[Row]]:
    """Insert a range wherever TFMOT rounded a value: behind inputs, before and behind activations, behind layers."""
    keys: dict[str, list[str]] = {}
    for call in all_calls(model):
        keys.setdefault(call.path, []).append(call.key)
    model, split = _split(model, pieces, left, keys)
    rows: list[Row] = []
    inserts: dict = {}
    for key, name in built.input_ranges.items():
        _plan(inserts, rows, [key], key, inputs[name], name, False)
    for path, piece in pieces.items():
        # What came out of a batch normalization comes out of the layer that it was folded into.
        place = folds[path].layer if path in folds and path not in keys else path
        for role in ("pre_activation", "post_activation", "output"):
            at = place if role == "pre_activation" else split.get(place, place)
            _plan(
                inserts, rows, list(keys.get(at, [at])), path, left[path], role, isinstance(piece.layer, placement.TIED)
            )
    return rebuild(model, insert=inserts, reuse=True), rows


def _split(model, pieces, left, keys):
    """Activations that TFMOT rounded before become layers, as quantization-aware training names them."""
    inserts, split = {}, {}
    known = operations(model)
    for path in pieces:
        layer = known.get(path)
        applied = getattr(layer, "activation", None)
        if not _has(left[path], "pre_activation") or applied in (None, keras.activations.linear):
            continue
        if isinstance(layer, keras.layers.Activation) or len(keys[path]) > 1:
            continue
        name = f"{layer.name}_{getattr(applied, '__name__', 'function')}"
        inserts[path] = keras.layers.Activation(applied, name=name, dtype=layer.dtype_policy)
        layer.activation = keras.activations.linear
        split[path] = f"{path.rpartition('/')[0]}/{name}".lstrip("/")
    return (rebuild(model, insert=inserts, reuse=True) if inserts else model), split


def _plan(inserts: dict, rows: list[Row], keys: list[str], path: str, own: Named, role: str, tied: bool) -> None:
    """Plan a range behind the calls `keys`, with the ends that `own` holds for `role`.

    `tied`: a file has the range of the layer's input there.
    """
    if not _has(own, role):
        return
    low, high = (float(end) for end in _ends(own, role))
    before = inserts.get(keys[0], [])
    name = f"{keys[0].rsplit('/', 1)[-1].replace('#', '_')}_range{len(before) + 1 if before else ''}"
    layer = OutputRange(name=name, dtype="float32")
    layer.build()
    if (low, high) == _UNTRAINED:
        rows.append(
            Row(path, "output", FLOAT, "TFMOT never saw data here; the first batch or calibration sets its range")
        )
    else:
        _set_grid(layer, min(low, 0.0), max(high, 0.0))
        note = "; an int8 file has its input's range there (export with strict=False)" if tied else ""
        rows.append(Row(path, "output", DONE, f"int8 range {low:.4g} to {high:.4g}{note}"))
    inserts.update({key: [*before, layer] for key in keys})


def _set_grid(layer: OutputRange, low: float, high: float) -> None:
    """Give a range TFMOT's own grid: 256 codes from end to end, moved so that 0.0 has one."""
    scale = np.float32((high - low) / 255)
    zero_point = np.clip(np.rint(-128 - low / np.float64(scale)), -128, 127)
    states = (layer.minimum, layer.maximum, layer.scale, layer.zero_point, layer.ready)
    for variable, value in zip(states, (low, high, scale, zero_point, 1), strict=True):
        variable.assign(np.float32(value))


def _has(own: Named, role: str) -> bool:
    return any(name.rsplit("/", 1)[-1] == f"{role}_min" for name, _ in own)


def _ends(own: Named, role: str) -> tuple[np.ndarray, np.ndarray]:
    found = {name.rsplit("/", 1)[-1]: value for name, value in own}
    return np.asarray(found[f"{role}_min"], np.float64), np.asarray(found[f"{role}_max"], np.float64)
