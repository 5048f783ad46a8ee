"""The loops in simulated time."""

from array import array

import pytest

from android_bench import timing


class Clock:
    """Nanoseconds that pass only in runs."""

    def __init__(self, costs, rest=None):
        self.now = 0
        self.costs = iter(costs)
        self.rest = rest

    def __call__(self):
        return self.now

    def invoke(self):
        self.now += next(self.costs, self.rest)


MS = 1_000_000


def test_warm_up_waits_until_times_are_stable():
    falling = [50 * MS - i * 4 * MS for i in range(10)]  # 50, 46, ... 14 ms
    clock = Clock(falling, rest=10 * MS)
    result = timing.warm_up(clock.invoke, runs=1, seconds=0, max_seconds=60, clock=clock)
    assert result["stable"]
    # Both windows of five must hold settled times at their middles: three of the first window, so 8 after the fall.
    assert result["runs"] == 18


def test_warm_up_of_a_steady_model_takes_what_was_asked_for():
    clock = Clock([], rest=MS)
    assert timing.warm_up(clock.invoke, runs=25, seconds=0.0, max_seconds=60, clock=clock)["runs"] == 25
    assert timing.warm_up(clock.invoke, runs=1, seconds=0.1, max_seconds=60, clock=clock)["runs"] == 100


def test_warm_up_gives_up_and_says_so():
    clock = Clock(MS * 2**i for i in range(60))
    result = timing.warm_up(clock.invoke, runs=1, seconds=0, max_seconds=2, clock=clock)
    assert not result["stable"]
    assert result["seconds"] >= 2


def test_timed_meets_both_minima():
    clock = Clock([], rest=MS)
    assert len(timing.timed(clock.invoke, 7, 0.0, 10, clock)) == 7
    assert len(timing.timed(clock.invoke, 7, 0.05, 10, clock)) == 50


def test_timed_ends_at_the_maximum_but_runs_once():
    clock = Clock([], rest=400 * MS)
    assert len(timing.timed(clock.invoke, 100, 0.1, 1.0, clock)) == 3
    assert list(timing.timed(clock.invoke, 100, 0.0, 0.0, clock)) == [400 * MS]


def test_timed_gives_each_run_its_own_time():
    clock = Clock([3, 5, 9], rest=1)
    assert list(timing.timed(clock.invoke, 3, 0, 1, clock)) == [3, 5, 9]


@pytest.mark.parametrize(("size", "keep"), [(1, 4), (4, 4), (5, 4), (1000, 7), (999, 1000)])
def test_thin_keeps_at_most_so_many_in_order(size, keep):
    kept, every = timing.thin(array("q", range(size)), keep)
    assert len(kept) <= keep
    assert kept == list(range(0, size, every))


def test_clock_overhead_is_what_an_empty_run_reads():
    ticks = iter(range(0, 10**9, 30))
    assert timing.clock_overhead(lambda: next(ticks)) == 30
