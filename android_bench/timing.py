"""The two loops around a run: until it is stable, and the timed one. Pure but for the clock that they are given."""

import time
from array import array
from collections.abc import Callable
from statistics import median

_WINDOW = 5
_STABLE = 0.05
KEPT = 1000


def warm_up(
    invoke: Callable[[], object],
    runs: int,
    seconds: float,
    max_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict:
    """Run until enough runs and seconds have passed and the times are stable.

    Stable means: the medians of the last two windows of five runs differ by less than 5 %.

    Args:
        invoke: one run.
        runs: least number of runs.
        seconds: least time.
        max_seconds: end here even when the times are not stable.
        clock: nanoseconds.

    Returns:
        {"runs", "seconds", "stable"}.
    """
    times: list[int] = []
    start = last = clock()
    while True:
        invoke()
        now = clock()
        times.append(now - last)
        last = now
        spent = (now - start) / 1e9
        stable = len(times) >= 2 * _WINDOW and _alike(times[-2 * _WINDOW : -_WINDOW], times[-_WINDOW:])
        if spent >= max_seconds or (len(times) >= runs and spent >= seconds and stable):
            return {"runs": len(times), "seconds": spent, "stable": stable}


def _alike(before: list[int], after: list[int]) -> bool:
    a, b = median(before), median(after)
    return abs(a - b) <= _STABLE * max(a, b)


def timed(
    invoke: Callable[[], object],
    runs: int,
    min_seconds: float,
    max_seconds: float,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> array:
    """Wall time of every run, in nanoseconds: at least `runs` runs and `min_seconds`, at most `max_seconds`.

    Args:
        invoke: one run.
        runs: least number of runs.
        min_seconds: least time in all.
        max_seconds: no run is started after this, except the first.
        clock: nanoseconds.
    """
    times = array("q")
    start = clock()
    low, high = start + int(min_seconds * 1e9), start + int(max_seconds * 1e9)
    while True:
        before = clock()
        invoke()
        after = clock()
        times.append(after - before)
        if after >= high or (len(times) >= runs and after >= low):
            return times


def thin(times: array, keep: int = KEPT) -> tuple[list[int], int]:
    """Every k-th time, so that at most `keep` stay, and k. The order of time is kept.

    Example:
        >>> thin(array("q", range(10)), keep=4)
        ([0, 3, 6, 9], 3)
    """
    every = max(1, -(-len(times) // keep))
    return list(times[::every]), every


def clock_overhead(clock: Callable[[], int] = time.perf_counter_ns) -> int:
    """What the clock reads around nothing, in nanoseconds (median of 200): every timed run holds this too much."""
    return int(median(timed(lambda: None, 200, 0.0, 1.0, clock)))
