"""How many times faster is one than the other: ratios with intervals, in a sentence that says what they hold for."""

import dataclasses
from typing import Any

from android_bench import stats
from android_bench.errors import BenchError, Refused
from android_bench.record import Record
from android_bench.session import setting

_SAME = ("name", "kind", "harness", "cpu_model", "machine")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One case against the one that it is measured by.

    Args:
        base: name of the base. other: name of what is compared with it.
        setting: under which both ran.
        ratio: time of the base over time of the other: above 1, the other is faster.
        low: end of the interval. high: its other end.
        paired: whether the blocks alternated, so that a drift of the machine is taken out.
        sentence: all of it in words.
    """

    base: str
    other: str
    setting: str
    ratio: float
    low: float
    high: float
    paired: bool
    sentence: str


def compare(first: Record, second: Record | None = None, level: float = 0.95) -> list[Comparison]:
    """Compare within one record (blocks alternated: pairs), or the cases of two records of one machine.

    Args:
        first: a record. With `second` it is the base.
        second: another record of the same machine and harness.
        level: coverage of the intervals.

    Returns:
        Within one record, under each setting every file against the first one; with one file, every setting against
        the first one. Across two records, every setting that both have: by file name, or the one file of each.

    Raises:
        Refused: the records are of different machines or harnesses.
        BenchError: there is nothing to compare.
    """
    rows = _within(first, level) if second is None else _across(first, second, level)
    if not rows:
        reasons = [f"{first.label(case)}: {case['status']}" for case in first.cases if case["status"] != "ok"]
        raise BenchError("There is nothing to compare" + (f" ({'; '.join(reasons)})." if reasons else "."))
    return rows


def _measured(record: Record) -> list[int]:
    return [index for index, case in enumerate(record.cases) if case["latency"] is not None]


def _key(case: dict[str, Any]) -> tuple:
    return case["accelerator"], case["threads"]


def _within(record: Record, level: float) -> list[Comparison]:
    indices = _measured(record)
    if not indices:
        return []
    cases = record.cases
    pairs: list[tuple[int, int, str, str, str]] = []
    if len({cases[i]["file"] for i in indices}) > 1:
        for key in dict.fromkeys(_key(cases[i]) for i in indices):
            group = [i for i in indices if _key(cases[i]) == key]
            where = setting(cases[group[0]])
            pairs += [(group[0], i, record.label(cases[group[0]]), record.label(cases[i]), where) for i in group[1:]]
    else:
        base, label = indices[0], record.label(cases[indices[0]])
        pairs = [(base, i, setting(cases[base]), setting(cases[i]), label) for i in indices[1:]]
    return [_pair(record, *pair, level=level) for pair in pairs]


def _pair(
    record: Record, base: int, other: int, base_name: str, other_name: str, where: str, level: float
) -> Comparison:
    a, b = record.rounds_of(base), record.rounds_of(other)
    # An interruption may leave a round with one block of the two.
    rounds = sorted(a.keys() & b.keys())
    if not rounds:
        raise BenchError(f"{base_name} and {other_name} have no round in common.")
    values = stats.paired_ratio(
        [a[r] for r in rounds], [b[r] for r in rounds], level, seed=record.data["settings"]["seed"]
    )
    note = "" if len(rounds) > 1 else "; one pair of blocks only"
    return _comparison(base_name, other_name, where, values, True, f"{_place(record)}{note}")


def _across(first: Record, second: Record, level: float) -> list[Comparison]:
    for name in _SAME:
        if first.device.get(name) != second.device.get(name):
            raise Refused(
                f"The records differ in {name}: {first.device.get(name)!r} and {second.device.get(name)!r}. Times of "
                "different machines or harnesses are not compared; measure both files in one session."
            )
    rows = []
    one_each = len(first.files) == len(second.files) == 1
    for i in _measured(first):
        for j in _measured(second):
            a, b = first.cases[i], second.cases[j]
            if _key(a) != _key(b) or not (one_each or first.label(a) == second.label(b)):
                continue
            names = first.label(a), second.label(b)
            if names[0] == names[1]:
                names = f"{names[0]} (first record)", f"{names[1]} (second record)"
            values = stats.ratio(list(first.rounds_of(i).values()), list(second.rounds_of(j).values()), level)
            note = (
                f"{_place(first)}; two sessions, not alternated: what changed on the machine in between is part of it"
            )
            rows.append(_comparison(*names, setting(a), values, False, note))
    return rows


def _place(record: Record) -> str:
    device = record.device
    return f"on {device['name']}" + (f", {device['cpu_model']}" if device.get("cpu_model") else "")


def _comparison(base: str, other: str, where: str, values: tuple, paired: bool, note: str) -> Comparison:
    ratio, low, high = values
    return Comparison(
        base, other, where, ratio, low, high, paired, sentence(base, other, *values) + f" ({where}; {note})"
    )


def sentence(base: str, other: str, ratio: float, low: float, high: float) -> str:
    """The ratio in words; an interval that holds 1 shows no difference, and is said to.

    Example:
        >>> sentence("float", "int8", 2.1, 1.9, 2.3)
        'int8 is 2.10 [1.90, 2.30] times faster than float'
        >>> sentence("float", "int8", 0.5, 0.4, 0.8)
        'int8 is 2.00 [1.25, 2.50] times slower than float'
        >>> sentence("float", "int8", 1.01, 0.9, 1.1)
        'no difference is shown between int8 and float: the ratio is 1.01 [0.90, 1.10]'
    """
    if low <= 1 <= high:
        return f"no difference is shown between {other} and {base}: the ratio is {ratio:.2f} [{low:.2f}, {high:.2f}]"
    if ratio > 1:
        return f"{other} is {ratio:.2f} [{low:.2f}, {high:.2f}] times faster than {base}"
    return f"{other} is {1 / ratio:.2f} [{1 / high:.2f}, {1 / low:.2f}] times slower than {base}"
