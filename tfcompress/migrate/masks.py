"""Masks and shared values of TFMOT's wrappers, attached as ours."""

import numpy as np

from tfcompress import schedules, select
from tfcompress.core.codebooks import Codebook
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, Row
from tfcompress.migrate.layers import Piece
from tfcompress.parametrization import attach
from tfcompress.pruning.magnitude import MagnitudeMask

Named = list[tuple[str, np.ndarray]]


def attach_mask(path: str, piece: Piece, own: Named) -> list[Row]:
    """Put the masks of a PruneLowMagnitude wrapper on the weights that it pruned."""
    masks = [value for name, value in own if _last(name).startswith("mask")]
    # -1 before any training, then the number of steps.
    done = max([0, *(int(value) for name, value in own if _last(name).startswith("pruning_step"))])
    schedule, frequency = schedule_from(path, piece.config["pruning_schedule"])
    rows = []
    kernels = kernels_below(piece.layer)
    for mask in masks:
        place = next((i for i, (_, layer, name) in enumerate(kernels) if _shape(layer, name) == mask.shape), None)
        if place is None:
            raise CompressionError(f"Layer {path!r} has a mask of shape {mask.shape}, and no weight of that shape.")
        below, layer, name = kernels.pop(place)
        link = MagnitudeMask(sparsity=schedule, frequency=frequency)
        attach(layer, name, [link])
        link.set(mask != 0)
        # The schedule goes on where TFMOT's had come to.
        link.start = -done
        raw = np.asarray(link.chain.raw)
        loose = int(((mask == 0) & (raw != 0)).sum())
        note = f"; {loose} weights that its mask had cut had come back" if loose else ""
        note += _shaped(piece.config)
        rows.append(
            Row(
                path + below, name, DONE, f"mask with {np.mean(mask == 0):.1%} zeros, {schedule!r} at step {done}{note}"
            )
        )
    return rows


def _shaped(config: dict) -> str:
    block = tuple(config.get("block_size") or (1, 1))
    return f"; its mask is in blocks of {block}, further pruning is weight by weight" if block != (1, 1) else ""


def schedule_from(path: str, config: dict):
    """TFMOT's pruning schedule as one of ours, and how often it updated masks."""
    kind, values = config.get("class_name", ""), config.get("config", {})
    frequency = int(values.get("frequency", 1))
    if kind == "ConstantSparsity":
        begin, target = int(values["begin_step"]), float(values["target_sparsity"])
        return (schedules.Constant(target) if begin <= 0 else schedules.Steps([begin], [0.0, target])), frequency
    if kind == "PolynomialDecay":
        first, last = float(values["initial_sparsity"]), float(values["final_sparsity"])
        begin, end, power = int(values["begin_step"]), int(values["end_step"]), float(values.get("power", 3))
        length = max(end - begin, 1)
        if power in (1.0, 3.0):
            return (schedules.Cubic if power == 3.0 else schedules.Linear)(
                first, last, steps=length, begin=begin
            ), frequency
        # Another power: its values at the steps at which TFMOT looked.
        at = list(range(begin, end, frequency)) + [end]
        values = [0.0] + [last + (first - last) * (1 - (step - begin) / length) ** power for step in at]
        return schedules.Steps(at, values), frequency
    raise CompressionError(
        f"Layer {path!r} was pruned by the schedule {kind!r}, which is not TFMOT's own. Strip the pruning (strip_pruning) and attach "
        "pruning.Magnitude with a schedule of tfcompress.schedules."
    )


def attach_codebook(path: str, piece: Piece, own: Named) -> list[Row]:
    """Put the shared values of a ClusterWeights wrapper on the weights that it clustered."""
    rows = []
    kernels = kernels_below(piece.layer)
    for name, centroids in own:
        if not _last(name).startswith("cluster_centroids"):
            continue
        place = next((i for i, one in enumerate(kernels) if _names(one, name)), None)
        if place is None:
            raise CompressionError(f"Layer {path!r} has shared values {name!r} for a weight that it does not have.")
        below, layer, weight = kernels.pop(place)
        indices = None
        if piece.config.get("preserve_sparsity"):
            # Zeros are kept by a mask that TFMOT does not save; the assignment of its last call knows them.
            indices = dict(own)[name.replace("cluster_centroids", "pulling_indices")]
        values = _clustered(path, np.asarray(getattr(layer, weight)), centroids, indices, layer)
        distinct = set_codebook(layer, weight, values)
        rows.append(Row(path + below, weight, DONE, f"{distinct} shared values"))
    return rows


def _clustered(path: str, raw: np.ndarray, centroids: np.ndarray, indices, layer) -> np.ndarray:
    """What TFMOT puts in the place of a weight: the nearest of its shared values, channel by channel where they are so."""
    if centroids.ndim == 1:
        nearest = np.abs(raw[..., None] - centroids).argmin(-1) if indices is None else indices.reshape(raw.shape)
        return centroids[nearest]
    if getattr(layer, "data_format", "channels_last") != "channels_last" or len(centroids) != raw.shape[-1]:
        raise CompressionError(
            f"Layer {path!r} shares values channel by channel along an axis that is not the last; strip the clustering "
            "(strip_clustering) and attach pruning.SharedWeights."
        )
    return np.stack(
        [
            _clustered(path, raw[..., i], centroids[i], None if indices is None else indices[..., i], layer)
            for i in range(len(centroids))
        ],
        axis=-1,
    )


def _names(kernel: tuple, name: str) -> bool:
    """Whether "cluster_centroids_kernel" and the like speak of a weight (by its old name for depthwise layers)."""
    wanted = name.split("cluster_centroids_")[-1].split("/")[0].split(".")[-1]
    return wanted in (kernel[2], "depthwise_kernel" if kernel[2] == "kernel" else kernel[2])


def set_codebook(layer, weight: str, values: np.ndarray) -> int:
    """Attach a codebook that holds the distinct values of an array, and gives a weight these; zeros stay zeros.

    Returns:
        How many values that is, zero included.
    """
    table, codes = np.unique(values, return_inverse=True)
    codes = codes.reshape(values.shape) + 1
    if (table == 0).any():
        zero = int(np.flatnonzero(table == 0)[0])
        table = np.delete(table, zero)
        codes = np.where(codes == zero + 1, 0, codes - (codes > zero + 1))
    link = Codebook(max(len(table), 1))
    attach(layer, weight, [link])
    if len(table):
        link.centroids.assign(table.astype(np.float32))
    link.codes.assign(codes)
    return len(np.unique(values))


def kernels_below(layer) -> list[tuple[str, object, str]]:
    """(path below the layer, owner, weight's name) of all kernels of a layer and of the layers inside it."""
    found = [("", layer, name) for name in select.kernel_names(layer)]
    for path, inner in select.layers(layer):
        found += [(f"/{path}", inner, name) for name in select.kernel_names(inner)]
    return found


def _shape(layer, name: str) -> tuple[int, ...]:
    return tuple(getattr(layer, name).shape)


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]
