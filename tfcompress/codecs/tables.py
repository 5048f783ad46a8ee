"""Probability tables in few bytes: what an entropy-coded stream pays before its first symbol.

A byte a symbol is a tenth of a small int8 layer. Neighbouring symbols mostly have like probabilities, and a histogram of
few elements is known roughly only, so a table is rounded as coarsely as its stream allows and stored as differences in a
Rice code. The unary parts and the remainders are kept apart, so that whole arrays are read at a time.
"""

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, pack_bits, unpack_bits, varint
from tfcompress.codecs.entropy import SYMBOL_LIMIT, TOP, decode_streams, encode_streams, levels, weights

_SHIFTS = range(4)  # steps of an eighth of an octave, a quarter, a half, a whole
_RICE = range(7)


def _rounded(table: np.ndarray, shift: int) -> tuple[np.ndarray, int]:
    """0 for an absent symbol, else 1 for the rarest and upwards, in steps of 2**shift levels; and the rarest's depth."""
    present = table > 0
    depth = np.minimum((TOP - table.astype(np.int64) + (1 << shift >> 1)) >> shift, (TOP - 1) >> shift)
    deepest = int(depth[present].max(initial=0))
    return np.where(present, 1 + deepest - depth, 0), deepest


def _restored(ranks: np.ndarray, deepest: int, shift: int) -> np.ndarray:
    """The levels of rounded ranks."""
    return np.where(ranks > 0, TOP - (1 + deepest - ranks << shift), 0).astype(np.uint8)


def _zigzag(ranks: np.ndarray) -> np.ndarray:
    step = np.diff(ranks, prepend=0)
    return np.where(step < 0, -2 * step - 1, 2 * step)


def pack_table(counts) -> tuple[bytes, np.ndarray]:
    """The shipped table of a histogram, and the levels that encoder and decoder will both use.

    The rounding is the one for which table and stream together are the shortest.

    Example:
        >>> data, table = pack_table([8, 4, 4, 0, 1])
        >>> unpack_table(Cursor(data), 5).tolist() == table.tolist(), len(data) < 8
        (True, True)
    """
    counts = np.asarray(counts, np.int64)
    fine = levels(counts)
    best: tuple[float, int, int, int, np.ndarray] | None = None
    for shift in _SHIFTS:
        ranks, deepest = _rounded(fine, shift)
        model = weights(_restored(ranks, deepest, shift))
        used = counts > 0
        stream = float(np.sum(counts[used] * np.log2(model.sum() / model[used])))
        differences = _zigzag(ranks)
        for rice in _RICE:
            bits = int((differences >> rice).sum()) + differences.size * (1 + rice)
            if best is None or stream + bits < best[0]:
                best = stream + bits, shift, rice, deepest, ranks
    assert best is not None
    _, shift, rice, deepest, ranks = best
    differences = _zigzag(ranks)
    ends = np.cumsum((differences >> rice) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.uint8)
    unary[ends] = 1
    packed = np.packbits(unary).tobytes()
    rest = pack_bits(differences & (1 << rice) - 1, rice) if rice else b""
    data = bytes([shift << 3 | rice, deepest]) + varint(len(packed)) + packed + rest
    return data, _restored(ranks, deepest, shift)


def unpack_table(cursor: Cursor, k: int) -> np.ndarray:
    """The inverse of `pack_table`: levels of k symbols."""
    head, deepest = cursor.byte(), cursor.byte()
    shift, rice = head >> 3, head & 7
    if shift not in _SHIFTS or rice not in _RICE or deepest > (TOP - 1) >> shift:
        raise Corrupt("holds a probability table of unknown form")
    # A difference is below twice the number of ranks, so no unary part is longer than this.
    unary = cursor.array(np.uint8, cursor.varint(k * (2 * TOP + 2) // 8 + 1))
    ends = np.flatnonzero(np.unpackbits(unary))
    if ends.size != k or (k and ends[-1] // 8 != unary.size - 1):
        raise Corrupt("holds a probability table that does not fit its symbols")
    differences = np.diff(ends, prepend=-1) - 1
    if rice:
        differences = differences << rice | unpack_bits(cursor, k, rice).astype(np.int64)
    ranks = np.cumsum(np.where(differences & 1, -(differences + 1 >> 1), differences >> 1))
    if k and (ranks.min() < 0 or ranks.max() > deepest + 1):
        raise Corrupt("holds a probability table with impossible steps")
    return _restored(ranks, deepest, shift)


def encode_symbols(symbols: np.ndarray, k: int) -> bytes:
    """Symbols 0..k-1 with their table in front.

    Example:
        >>> data = encode_symbols(np.array([0, 1, 1, 1]), 2)
        >>> decode_symbols(Cursor(data), 4, 2).tolist()
        [0, 1, 1, 1]
    """
    data, table = pack_table(np.bincount(symbols, minlength=k))
    return data + encode_streams([symbols], [table])


def decode_symbols(cursor: Cursor, size: int, k: int) -> np.ndarray:
    """The inverse of `encode_symbols`, as int32."""
    if k > SYMBOL_LIMIT:
        raise Corrupt(f"declares {k} symbols where at most {SYMBOL_LIMIT} can be")
    table = unpack_table(cursor, k)
    return decode_streams(cursor, [size], [table])[0]
