"""Entropy coding of symbols by asymmetric numeral systems (constriction) with a static model a stream.

A model is a level for each symbol, its probability in steps of an eighth of an octave: the rounding costs less than 0.001
bit a symbol, and whole numbers alone decide, so that encoder and decoder agree on every machine.
"""

import constriction
import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, varint

_MANTISSA = np.array([256, 279, 304, 332, 362, 395, 431, 470], np.int64)  # 2 ** (8 + i / 8)
_STEPS = 8
SYMBOL_LIMIT = 1 << 16
TOP = 255  # the level of the commonest symbol
_INT32 = np.int32


def entropy_bytes(counts) -> float:
    """Zero-order entropy of a histogram, in bytes for all its symbols together.

    Example:
        >>> entropy_bytes([4, 4, 0, 8])
        3.0
    """
    counts = np.asarray(counts, np.float64)
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(counts.sum() / counts)) / 8)


def levels(counts) -> np.ndarray:
    """The shipped form of a histogram: 0 for an absent symbol, else 1..255, the commonest being 255."""
    counts = np.asarray(counts, np.float64)
    present = counts > 0
    if not present.any():
        return np.zeros(counts.size, np.uint8)
    relative = np.log2(np.where(present, counts, 1.0) / counts.max())
    return np.where(present, np.clip(np.rint(TOP + _STEPS * relative), 1, TOP), 0).astype(np.uint8)


def weights(table: np.ndarray) -> np.ndarray:
    """Relative probabilities of levels: whole numbers, 0 for an absent symbol."""
    step = np.maximum(table.astype(np.int64) - 1, 0)
    return np.where(table > 0, _MANTISSA[step % _STEPS] << (step // _STEPS), 0).astype(np.float64)


def _model(table: np.ndarray) -> tuple[np.ndarray, object | None]:
    """The symbols that occur, and the model over them (None where only one does)."""
    used = np.flatnonzero(table)
    if used.size < 2:
        return used, None
    found = weights(table[used])
    return used, constriction.stream.model.Categorical(found / found.sum(), perfect=False)


def encode_streams(streams, tables) -> bytes:
    """Code several runs of symbols, each by its own table of `levels`, into one stream of bytes.

    Args:
        streams: integer arrays, each over the symbols of its table. tables: uint8 arrays of levels.
    """
    coder = constriction.stream.stack.AnsCoder()
    for symbols, table in reversed(list(zip(streams, tables, strict=True))):
        used, model = _model(table)
        if model is None or not len(symbols):
            continue
        if used.size != table.size:
            rank = np.zeros(table.size, _INT32)
            rank[used] = np.arange(used.size, dtype=_INT32)
            symbols = rank[symbols]
        coder.encode_reverse(np.ascontiguousarray(symbols, _INT32), model)
    # The most significant bytes of the last word are zero or not: zeros need not be stored.
    data = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return varint(len(data)) + data


def decode_streams(cursor: Cursor, sizes, tables) -> list[np.ndarray]:
    """The inverse of `encode_streams`: one int32 array for each size and table."""
    data = bytes(cursor.take(cursor.varint()))
    if data[-1:] == b"\0":
        raise Corrupt("holds an entropy-coded stream with a stray end")
    coder = constriction.stream.stack.AnsCoder(np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32))
    out = []
    for size, table in zip(sizes, tables, strict=True):
        used, model = _model(table)
        if size and not used.size:
            raise Corrupt("has symbols but no probabilities for them")
        if model is None or not size:
            out.append(np.full(size, used[0] if size else 0, _INT32))
            continue
        symbols = coder.decode(model, size)
        out.append(symbols if used.size == table.size else used.astype(_INT32)[symbols])
    if not coder.is_empty():
        raise Corrupt("holds an entropy-coded stream that does not end where its symbols do")
    return out
