"""Floats that are a unit times a small integer, with a unit for each slice along an axis: weights trained for int8.

Per channel, 255 codes times 64 channels are 16,320 distinct floats and no codebook; seen as codes they are one byte each,
and less when coded. The encoder finds the units in the values and keeps the form only where it is exact to the bit.
"""

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor
from tfcompress.codecs.coding import Coding, decode_nested, element_count, encode_nested, register, word_dtype
from tfcompress.codecs.words import Tensor

_MOST = 127
_PROBE = 64  # values of a slice that a unit is first tried on
_NEGATIVE_ZERO = -128  # the code of -0.0, which rounding a small negative weight leaves


def _slices(array: np.ndarray, axis: int) -> np.ndarray:
    """[slices, values] along the axis."""
    return np.ascontiguousarray(np.moveaxis(array, axis, 0)).reshape(array.shape[axis], -1)


def _largest_codes(rows: np.ndarray) -> np.ndarray | None:
    """For each slice the smallest n such that all values are near multiples of max|value| / n; None without any.

    Args:
        rows: [slices, values] float32.
    """
    top = np.abs(rows).max(axis=1)
    # The nonzero magnitudes that are hardest to meet by chance: evenly spaced among the sorted ones.
    columns = np.linspace(0, rows.shape[1] - 1, min(_PROBE, rows.shape[1])).astype(int)
    probe = np.sort(np.abs(rows), axis=1)[:, columns].astype(np.float64)
    ratio = probe / np.where(top > 0, top, 1.0)[:, None]
    found = np.where(top > 0, 0, 1)
    for n in range(1, _MOST + 1):
        multiple = ratio * n
        fits = (np.abs(multiple - np.rint(multiple)) <= 2.0**-21 * n).all(axis=1)
        found[(found == 0) & fits] = n
        if n == _MOST and (found == 0).any():
            return None
    return found


def _exact_units(rows: np.ndarray, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Units [slices] and codes [slices, values] with float32(code) * unit == value everywhere, or None."""
    top = np.abs(rows).max(axis=1)
    near = (top / largest.astype(np.float32)).astype(np.float32)
    codes = np.rint(rows / np.where(near > 0, near, 1)[:, None]).astype(np.float32)
    units = np.zeros_like(near)
    done = np.zeros(near.size, bool)
    # The unit is max / n up to rounding; its neighbours differ in the last bits only.
    for step in (0, 1, -1, 2, -2):
        trial = (near.view(np.int32) + np.int32(step)).view(np.float32)
        rest = np.flatnonzero(~done)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = (codes[rest] * trial[rest, None] == rows[rest]).all(axis=1)
        units[rest[exact]] = trial[rest[exact]]
        done[rest[exact]] = True
        if done.all():
            return units, codes
    return None


@register
class Grid(Coding):
    """Units and int8 codes, each stored by the smallest coding of its own."""

    code = 9
    name = "integer grid"
    effort = "normal"
    depth = 4

    def encode(self, tensor: Tensor, effort: str = "normal") -> bytes | None:
        if tensor.dtype_name != "float32" or tensor.sample.values.size <= 16:
            return None
        array = tensor.array()
        axes = [axis for axis in dict.fromkeys((array.ndim - 1, array.ndim - 2)) if axis >= 0]
        for axis in axes:
            slices = array.shape[axis]
            if tensor.size < 8 * slices:
                continue
            # One slice tells most tensors apart before the whole is looked at.
            first = _slices(np.take(array, [slices // 2], axis), axis)
            if not np.isfinite(first).all() or _largest_codes(first) is None:
                continue
            rows = _slices(array, axis)
            largest = _largest_codes(rows) if np.isfinite(rows).all() else None
            found = None if largest is None else _exact_units(rows, largest)
            if found is not None:
                return self._pack(array, axis, rows, *found, effort)
        return None

    def _pack(self, array, axis, rows, units, codes, effort) -> bytes:
        codes = np.where((rows == 0) & np.signbit(rows), _NEGATIVE_ZERO, codes).astype(np.int8)
        rest = array.shape[:axis] + array.shape[axis + 1 :]
        shaped = np.moveaxis(codes.reshape((array.shape[axis], *rest)), 0, axis)
        parts = (encode_nested(part, effort, self.depth) for part in (units, shaped))
        return bytes([axis]) + b"".join(parts)

    def decode(self, cursor: Cursor, shape, dtype) -> np.ndarray:
        axis = cursor.byte()
        if dtype != np.float32 or axis >= len(shape) or not element_count(shape):
            raise Corrupt("declares an integer grid along an axis that is not there")
        units = decode_nested(cursor, (shape[axis],), dtype, self.depth).view(np.float32)
        codes = decode_nested(cursor, shape, np.dtype(np.int8), self.depth).view(np.int8).reshape(shape)
        view = [1] * len(shape)
        view[axis] = shape[axis]
        if not np.isfinite(units).all():
            raise Corrupt("holds a grid whose unit is not finite")
        with np.errstate(over="ignore"):
            values = codes.astype(np.float32) * units.reshape(view)
        values[codes == _NEGATIVE_ZERO] = np.float32(-0.0)
        return np.ascontiguousarray(values, np.float32).reshape(-1).view(word_dtype(dtype))
