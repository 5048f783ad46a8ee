"""Masks of zeros below their zero-order entropy: slices of an axis that differ in density get their own probability.

Pruning leaves some input channels and filters nearly empty. Every slice along an axis is put into one of a few classes
by its density; the classes of an element's slices are its context. The classes are written, so the context of every
element is known before the first bit is read, and whole arrays are coded at a time.
"""

import itertools

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, pack_bits, unpack_bits
from tfcompress.codecs.entropy import decode_streams, encode_streams, entropy_bytes, levels

_BITS = {"fast": (), "normal": (2, 3), "best": (1, 2, 3, 4)}  # of a class number
_MOST_AXES = 8


def _slice_counts(mask: np.ndarray, axis: int) -> np.ndarray:
    """Ones in each slice along the axis."""
    return np.count_nonzero(mask, axis=tuple(other for other in range(mask.ndim) if other != axis))


def _classes(mask: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """The class of each slice: equal steps of arcsin(sqrt(density)), in which sampling noise is alike everywhere."""
    density = _slice_counts(mask, axis) / (mask.size // mask.shape[axis])
    angle = np.arcsin(np.sqrt(density))
    spread = np.ptp(angle)
    if spread == 0:
        return np.zeros(density.size, np.int32)
    return np.minimum((angle - angle.min()) / spread * 2**bits, 2**bits - 1).astype(np.int32)


def _contexts(shape, chosen) -> tuple[np.ndarray, int]:
    """The context number of every element (of the mask's shape by broadcasting), and how many there are."""
    number: np.ndarray = np.zeros((1,) * len(shape), np.int32)
    total = 1
    for axis, bits, classes in chosen:
        view = [1] * len(shape)
        view[axis] = shape[axis]
        number = (number << bits) + classes.reshape(view)
        total <<= bits
    return np.broadcast_to(number, shape), total


def _counts(mask: np.ndarray, chosen) -> np.ndarray:
    """[contexts, 2] zeros and ones of each context."""
    number, total = _contexts(mask.shape, chosen)
    flat = np.bincount((number * 2 + mask).reshape(-1), minlength=2 * total)
    return flat.reshape(total, 2)


def _cost(counts: np.ndarray, chosen) -> float:
    """Bytes that a choice of contexts takes, tables and classes included."""
    coded = sum(entropy_bytes(pair) for pair in counts)
    return coded + 2 * len(counts) + sum(1 + bits * classes.size / 8 for _, bits, classes in chosen)


def _choose(mask: np.ndarray, effort: str) -> list:
    """The axes and classes that make the mask shortest; none where all slices are alike."""
    best: list = []
    cost = _cost(_counts(mask, []), [])
    axes = [axis for axis in range(min(mask.ndim, _MOST_AXES)) if 1 < mask.shape[axis] < mask.size]
    for bits in _BITS[effort]:
        single = [(axis, bits, _classes(mask, axis, bits)) for axis in axes]
        for count in (1, 2, 3):
            for chosen in itertools.combinations(single, count):
                if 2 ** (bits * count) * 16 > mask.size:
                    continue
                new = _cost(_counts(mask, chosen), chosen)
                if new < cost:
                    best, cost = list(chosen), new
    return best


def encode_mask(mask: np.ndarray, shape: tuple[int, ...], effort: str) -> bytes:
    """A flat boolean mask of a tensor of this shape."""
    shaped = mask.reshape(shape)
    chosen = _choose(shaped, effort) if mask.size >= 256 else []
    number, total = _contexts(shaped.shape, chosen)
    tables = levels_of(_counts(shaped, chosen))
    head = bytes([len(chosen)]) + b"".join(
        bytes([axis << 4 | bits]) + pack_bits(classes, bits) for axis, bits, classes in chosen
    )
    return head + tables.tobytes() + encode_streams(_split(mask, number, total), list(tables))


def levels_of(counts: np.ndarray) -> np.ndarray:
    """[contexts, 2] probability levels, by row."""
    return np.stack([levels(pair) for pair in counts])


def _split(mask: np.ndarray, number: np.ndarray, total: int) -> list[np.ndarray]:
    """The mask's bits by context, in scan order within each."""
    if total == 1:
        return [mask]
    flat = number.reshape(-1)
    order = np.argsort(flat.astype(np.uint16), kind="stable")
    return np.split(mask[order], np.cumsum(np.bincount(flat, minlength=total))[:-1])


def decode_mask(cursor: Cursor, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `encode_mask`: the flat mask."""
    count = cursor.byte()
    if count > 3:
        raise Corrupt(f"declares contexts over {count} axes")
    chosen = []
    for _ in range(count):
        head = cursor.byte()
        axis, bits = head >> 4, head & 15
        if axis >= len(shape) or not 1 <= bits <= 4:
            raise Corrupt("declares contexts along an axis that is not there")
        chosen.append((axis, bits, unpack_bits(cursor, shape[axis], bits).astype(np.int32)))
    number, total = _contexts(shape, chosen)
    tables = cursor.array(np.uint8, 2 * total).reshape(total, 2)
    flat = number.reshape(-1)
    sizes = np.bincount(flat, minlength=total)
    parts = decode_streams(cursor, sizes.tolist(), list(tables))
    if total == 1:
        return parts[0].astype(bool)
    mask = np.empty(flat.size, bool)
    mask[np.argsort(flat.astype(np.uint16), kind="stable")] = np.concatenate(parts)
    return mask
