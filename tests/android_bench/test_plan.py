"""The order of blocks, and settings that cannot be."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from android_bench import plan
from android_bench.errors import UsageError


def test_rounds_go_forwards_and_backwards():
    assert "".join("ABC"[block.case] for block in plan.alternate(3, 4)) == "ABCCBAABCCBA"


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 8))
def test_every_case_has_one_block_in_each_round(count, rounds):
    blocks = plan.alternate(count, rounds)
    assert collections.Counter((block.round, block.case) for block in blocks) == {
        (r, c): 1 for r in range(rounds) for c in range(count)
    }


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(1, 4))
def test_an_even_number_of_rounds_gives_every_case_the_same_mean_place(count, pairs):
    places = collections.defaultdict(list)
    for place, block in enumerate(plan.alternate(count, 2 * pairs)):
        places[block.case].append(place)
    means = [sum(values) / len(values) for values in places.values()]
    assert max(means) == pytest.approx(min(means))


def test_pause_stands_before_every_block_but_the_first():
    assert [block.pause for block in plan.alternate(2, 2, pause=3)] == [0, 3, 3, 3]


def test_cases_keep_files_of_one_setting_together():
    cases = plan.cases(2, [1, 2], ["cpu", "gpu"])
    assert [(c.accelerator, c.threads, c.file) for c in cases][:4] == [
        ("cpu", 1, 0),
        ("cpu", 1, 1),
        ("cpu", 2, 0),
        ("cpu", 2, 1),
    ]
    assert len(cases) == 8


@pytest.mark.parametrize(("files", "threads"), [(0, [1]), (1, []), (1, [0]), (1, [-2]), (1, [2, 2])])
def test_cases_that_cannot_be(files, threads):
    with pytest.raises(UsageError):
        plan.cases(files, threads)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"runs": 0}, "runs"),
        ({"blocks": 0}, "blocks"),
        ({"warmup_runs": 0}, "warmup_runs"),
        ({"min_seconds": -1}, "min_seconds"),
        ({"min_seconds": float("nan")}, "min_seconds"),
        ({"min_seconds": 5, "max_seconds": 2}, "above"),
        ({"warmup_seconds": 9}, "warmup_max_seconds"),
        ({"time_limit": 10}, "time limit"),
        ({"min_second": 1}, "Did you mean 'min_seconds'"),
        ({"zzz": 1}, "Known: runs"),
    ],
)
def test_settings_that_cannot_be_are_named(values, words):
    with pytest.raises(UsageError, match=words):
        plan.Settings.of(**values)


def test_seconds_left_counts_the_pauses():
    assert plan.seconds_left([], 4) is None
    assert plan.seconds_left([2.0, 4.0], 5, pause=1.0) == 12.0
    assert plan.seconds_left([2.0], 1) == 0.0
