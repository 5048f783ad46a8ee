"""Linear-feedback shift registers as sources of masks: a few bits of seed stand for a whole column of connections.

A register of b bits is shifted right once a step; the XOR of its taps comes in at the top. Tap t is bit b - t, so that
tap b is the bit that falls out. NumPy only: files with such masks are read without Keras.
"""

import functools

import numpy as np

from tfcompress.errors import CompressionError

# Taps of maximal length, by number of bits.
TAPS = {
    3: (3, 2), 4: (4, 3), 5: (5, 3), 6: (6, 5), 7: (7, 6), 8: (8, 6, 5, 4), 9: (9, 5), 10: (10, 7), 11: (11, 9),
    12: (12, 6, 4, 1), 13: (13, 4, 3, 1), 14: (14, 5, 3, 1), 15: (15, 14), 16: (16, 15, 13, 4), 17: (17, 14),
    18: (18, 11), 19: (19, 6, 2, 1), 20: (20, 17),
}  # fmt: skip
MAX_BITS = max(TAPS)


def bits_for(inputs: int, outputs: int = 1) -> int:
    """The least width, 8 or more, whose period covers the inputs and has a phase for each output.

    Raises:
        CompressionError: there are more than 2^20 - 1 of either.

    Example:
        >>> bits_for(784, 512)
        10
    """
    need = max(inputs, outputs)
    for bits in range(8, MAX_BITS + 1):
        if 2**bits - 1 >= need:
            return bits
    raise CompressionError(
        f"A register of {MAX_BITS} bits has {2**MAX_BITS - 1} states, too few for {inputs} inputs and {outputs} outputs."
    )


def threshold(density: float, bits: int) -> int:
    """T of the comparator `state <= T`: over a full period exactly T of the 2^bits - 1 states pass.

    Example:
        >>> threshold(0.1, 10), threshold(1.0, 10)
        (102, 1023)
    """
    return min(max(round(density * 2**bits), 1), 2**bits - 1)


class Register:
    """A register of maximal period 2^bits - 1.

    Args:
        bits: width, 2..20. taps: positions 1..bits that are fed back; by default those of `TAPS`.

    Raises:
        CompressionError: the width is out of range, or the taps do not give the maximal period.

    Example:
        >>> register = Register(3)
        >>> register.cycle.tolist()
        [1, 4, 2, 5, 6, 7, 3]
    """

    def __init__(self, bits: int, taps=None):
        if bits not in TAPS:
            raise CompressionError(f"A register has {min(TAPS)} to {MAX_BITS} bits; received bits={bits!r}.")
        self.bits = int(bits)
        self.taps = TAPS[bits] if taps is None else tuple(int(t) for t in taps)
        if not self.taps or any(not 1 <= t <= bits for t in self.taps) or len(set(self.taps)) < len(self.taps):
            raise CompressionError(f"Taps are different numbers from 1 to {bits}; received {self.taps}.")
        self.period = 2**self.bits - 1
        self.cycle = _cycle(self.bits, self.taps)

    @property
    def feedback(self) -> int:
        """The taps as a bit mask: the parity of `state & feedback` comes in at the top."""
        return feedback(self.bits, self.taps)

    @functools.cached_property
    def position(self) -> np.ndarray:
        """Where in the cycle each state stands; entry 0 is unused."""
        place = np.zeros(self.period + 1, np.int64)
        place[self.cycle] = np.arange(self.period)
        return place

    def scattered(self, seed: int, outputs: int) -> np.ndarray:
        """`outputs` states that look random, all different while there are enough: one seed for each output.

        Args:
            seed: any integer >= 0. outputs: how many.
        """
        order = np.argsort(_scramble(np.arange(self.period, dtype=np.uint64), seed), kind="stable")
        return (1 + order[np.arange(outputs) % self.period]).astype(np.uint32)

    def strided(self, seed: int, stride: int, outputs: int) -> np.ndarray:
        """The states after 0, stride, 2 stride, ... steps from the state `seed`: one number stands for all outputs."""
        start = self.position[self._state(seed)]
        return self.cycle[(start + stride * np.arange(outputs, dtype=np.int64)) % self.period]

    def mask(self, seeds, limit: int, inputs: int) -> np.ndarray:
        """M[i, o] = state of stream o at step i <= limit; step 0 is the seed itself.

        Args:
            seeds: the streams' first states [outputs]. limit: T. inputs: steps.

        Returns:
            bool [inputs, outputs].
        """
        passes = self.cycle <= limit
        start = self.position[np.asarray(seeds, np.int64)]
        return passes[(start[None, :] + np.arange(inputs)[:, None]) % self.period]

    def _state(self, seed: int) -> int:
        if not 1 <= seed <= self.period:
            raise CompressionError(f"A state of {self.bits} bits lies between 1 and {self.period}; received {seed}.")
        return seed


def feedback(bits: int, taps) -> int:
    """The taps of a register as a bit mask."""
    return sum(1 << (bits - tap) for tap in taps)


@functools.lru_cache(32)
def _cycle(bits: int, taps: tuple[int, ...]) -> np.ndarray:
    """All states from 1 on, in order. The step is linear over GF(2), so a block of states gives the next one at once."""
    unit = np.left_shift(np.uint32(1), np.arange(bits, dtype=np.uint32))
    odd = np.array([bin(int(u) & feedback(bits, taps)).count("1") & 1 for u in unit], np.uint32)
    jump = (unit >> 1) | (odd << np.uint32(bits - 1))  # where each bit goes in `done` steps
    states, done = np.empty(2**bits - 1, np.uint32), 1
    states[0] = 1
    while done < states.size:
        count = min(done, states.size - done)
        states[done : done + count] = _apply(jump, states[:count])
        jump, done = _apply(jump, jump), 2 * done
    if np.bincount(states, minlength=2**bits)[1:].min() == 0:
        raise CompressionError(
            f"Taps {taps} do not give a register of {bits} bits its full period of {2**bits - 1} states; use {TAPS[bits]}."
        )
    states.flags.writeable = False
    return states


def _apply(columns: np.ndarray, states: np.ndarray) -> np.ndarray:
    """The linear map that sends bit j to columns[j], on each state."""
    out = np.zeros_like(states)
    for j, column in enumerate(columns):
        out ^= np.where(states >> np.uint32(j) & np.uint32(1), column, np.uint32(0))
    return out


def _scramble(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A fixed bijective hash of 64 bits (the finalizer of splitmix64): the same on every machine and NumPy."""
    x = numbers + np.uint64(((seed + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def to_values(matrix: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The entries under the mask in scan order: neuron after neuron, inputs ascending."""
    return matrix.T[mask.T]


def from_values(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The inverse of `to_values`, with zeros elsewhere."""
    matrix = np.zeros(mask.shape[::-1], values.dtype)
    matrix[mask.T] = values
    return matrix.T


def product(x: np.ndarray, values: np.ndarray, register: Register, seeds, limit: int) -> np.ndarray:
    """x @ (W .* M) from the values alone: every stream walks its register and takes the next value where it passes.

    The reference of the C kernel: no mask and no matrix is made, and inputs are read where a bit is 1 only.

    Args:
        x: inputs [n, inputs]. values: in scan order. register, seeds, limit: of the mask.

    Returns:
        [n, outputs], summed over inputs in ascending order.
    """
    inputs, feed = x.shape[1], np.uint32(register.feedback)
    first = np.asarray(seeds, np.uint32)
    counts = np.zeros(first.size, np.int64)
    for state in _walk(first, feed, register.bits, inputs):
        counts += state <= limit
    cursor = np.cumsum(counts) - counts
    out = np.zeros((x.shape[0], first.size), np.result_type(x, values))
    for i, state in enumerate(_walk(first, feed, register.bits, inputs)):
        on = np.flatnonzero(state <= limit)
        out[:, on] += x[:, i, None] * values[cursor[on]]
        cursor[on] += 1
    return out


def _walk(states: np.ndarray, feed: np.uint32, bits: int, steps: int):
    """The states of all streams at each step."""
    for _ in range(steps):
        yield states
        odd = np.bitwise_count(states & feed).astype(np.uint32) & np.uint32(1)
        states = (states >> np.uint32(1)) | (odd << np.uint32(bits - 1))
