"""Canonical Huffman codes: lengths from counts, codes from lengths, and array-wide encoding and decoding.

Only the code lengths travel with a stream; the codes follow from them (shorter first, then in order of the symbols).
"""

import numpy as np

from tfcompress.codecs.bits import Corrupt, Cursor, pack_bits, unpack_bits

LONGEST = 56  # a window of 57 bits can be cut from 8 bytes at any bit
_BLOCK = 1 << 19  # bits decoded at a time, so that memory does not grow with the stream


def code_lengths(counts) -> np.ndarray:
    """Bits of each symbol's code, of least total length; 0 for an absent symbol and for a symbol that is alone.

    The two-queue construction: leaves in ascending order in one queue, sums in the other, whose order is ascending by
    itself.

    Example:
        >>> code_lengths([5, 1, 1, 0, 2]).tolist()
        [1, 3, 3, 0, 2]
    """
    counts = np.asarray(counts, np.int64)
    lengths = np.zeros(counts.size, np.uint8)
    used = np.flatnonzero(counts)
    if used.size < 2:
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    weights = counts[order].tolist()
    leaves = len(weights)
    parents = [0] * (2 * leaves - 1)
    leaf, node = 0, leaves
    for made in range(leaves, 2 * leaves - 1):
        total = 0
        for _ in range(2):
            if leaf < leaves and (node >= made or weights[leaf] <= weights[node]):
                child, leaf = leaf, leaf + 1
            else:
                child, node = node, node + 1
            parents[child] = made
            total += weights[child]
        weights.append(total)
    depth = [0] * (2 * leaves - 1)
    for index in range(2 * leaves - 3, -1, -1):
        depth[index] = depth[parents[index]] + 1
    lengths[order] = depth[:leaves]
    return lengths


def kraft_sum(lengths) -> float:
    """Sum of 2 ** -length over the symbols that have a code: 1 for a complete code.

    Example:
        >>> kraft_sum([1, 3, 3, 0, 2])
        1.0
    """
    return _kraft(lengths) / (1 << LONGEST)


def _kraft(lengths) -> int:
    """The Kraft sum in units of 2 ** -LONGEST: exact, where a float would round 1 - 2 ** -56 to 1."""
    counts = np.bincount(np.asarray(lengths, np.int64), minlength=1).tolist()
    return sum(count << LONGEST - length for length, count in enumerate(counts) if length)


def canonical_codes(lengths) -> tuple[np.ndarray, np.ndarray]:
    """The symbols that have a code, in order of their codes, and the codes (uint64, aligned to the right).

    Example:
        >>> symbols, codes = canonical_codes([1, 3, 3, 0, 2])
        >>> [f"{symbol}:{code:b}" for symbol, code in zip(symbols, codes)]
        ['0:0', '4:10', '1:110', '2:111']
    """
    lengths = np.asarray(lengths)
    used = np.flatnonzero(lengths)
    symbols = used[np.argsort(lengths[used], kind="stable")]
    codes, code, last = [], 0, 0
    for length in lengths[symbols].tolist():
        code <<= length - last
        codes.append(code)
        code, last = code + 1, length
    return symbols, np.array(codes, np.uint64)


def encode(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    """The codes of the symbols one behind the other, the last byte filled with zeros."""
    order, codes = canonical_codes(lengths)
    if not order.size or not len(symbols):
        return b""
    table = np.zeros(lengths.size, np.uint64)
    table[order] = codes
    size = lengths[symbols].astype(np.int64)
    ends = np.cumsum(size)
    bits = np.zeros(int(ends[-1]), np.uint8)
    words = table[symbols]
    for place in range(int(size.max())):
        has = np.flatnonzero(size > place)
        bits[ends[has] - 1 - place] = words[has] >> np.uint64(place) & np.uint64(1)
    return np.packbits(bits).tobytes()


def decode(data, count: int, lengths: np.ndarray) -> np.ndarray:
    """The inverse of `encode` for `count` symbols; needs at least two symbols with a code.

    At every bit of a block the code that would start there is looked up at once; the codes that really start are
    then found by following lengths from the first bit.
    """
    order, codes = canonical_codes(lengths)
    size = np.asarray(lengths)[order].astype(np.int64)
    # Left-aligned in 57 bits, canonical codes ascend: the code of a window is the last one that is not above it.
    starts = codes << (np.uint64(57) - size.astype(np.uint64))
    raw = np.frombuffer(data, np.uint8)
    total = raw.size * 8
    padded = np.concatenate([raw, np.zeros(16, np.uint8)])
    found: list[np.ndarray] = []
    done = at = 0
    while done < count:
        if at >= total:
            raise Corrupt("holds a Huffman stream that ends before its symbols do")
        first = at // 8
        width = min(_BLOCK, total - first * 8)
        near = padded[first : first + width // 8 + 16].astype(np.uint64)
        eight = np.zeros(width // 8 + 1, np.uint64)
        for byte in range(8):
            eight |= near[byte : byte + eight.size] << np.uint64(56 - 8 * byte)
        bit = np.arange(width, dtype=np.uint64)
        window = eight[bit >> np.uint64(3)] << (bit & np.uint64(7)) >> np.uint64(7)
        rank = np.searchsorted(starts, window, side="right") - 1
        step = size[rank].tolist()
        here, wanted = at - first * 8, count - done
        places: list[int] = []
        stop = width if first * 8 + width == total else width - LONGEST
        while here < stop and len(places) < wanted:
            places.append(here)
            here += step[here]
        found.append(order[rank[places]])
        done += len(places)
        at = first * 8 + here
    if at > total or total - at >= 8 or (at < total and raw[-1] & (1 << (total - at)) - 1):
        raise Corrupt("holds a Huffman stream that does not end where its symbols do")
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def pack_lengths(lengths: np.ndarray) -> bytes:
    """A table of code lengths: the width of an entry, then the entries in that many bits each."""
    width = max(1, int(lengths.max(initial=0)).bit_length())
    return bytes([width]) + pack_bits(lengths, width)


def unpack_lengths(cursor: Cursor, k: int) -> np.ndarray:
    """The inverse of `pack_lengths` for k symbols; refuses what is no complete prefix code."""
    width = cursor.byte()
    if not 1 <= width <= 6:
        raise Corrupt(f"holds code lengths of {width} bits")
    lengths = unpack_bits(cursor, k, width).astype(np.uint8)
    if lengths.max(initial=0) > LONGEST or (lengths.any() and _kraft(lengths) != 1 << LONGEST):
        raise Corrupt("holds code lengths that are no complete prefix code")
    return lengths
