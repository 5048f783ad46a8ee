"""Sentences with intervals, and comparisons that are refused."""

import copy
import json

import pytest

import android_bench
from android_bench import BenchError, Record, Refused
from android_bench.comparison import sentence

from .conftest import FakeDevice


def measured(files, times, names=("float.tflite", "int8.tflite"), **more):
    more = {"runs": 5, "blocks": 6, "min_seconds": 0} | more
    return android_bench.run(files(*names), FakeDevice(times), **more)


def drifting(name, case, n):
    """int8 takes half of float's time, on a machine that gets slower with every block."""
    return (2.0 if name == "float.tflite" else 1.0) * (1 + n / 20)


def test_paired_ratio_of_one_record(files):
    (row,) = android_bench.compare(measured(files, drifting))
    assert row.paired
    assert (row.base, row.other) == ("float.tflite", "int8.tflite")
    # A B B A: each pair holds neighbours, and the drift goes one way as often as the other.
    assert row.ratio == pytest.approx(2.0, rel=0.01)
    assert row.low < 2 < row.high
    assert row.sentence.startswith("int8.tflite is 2.0")
    assert "times faster than float.tflite (cpu, 1 thread; on fake, Abacus 9)" in row.sentence


def test_equal_files_show_no_difference(files):
    (row,) = android_bench.compare(measured(files, lambda name, case, n: 1.0 + (n % 3) / 10))
    assert row.sentence.startswith("no difference is shown")


def test_one_file_compares_its_settings(files):
    record = measured(files, lambda name, case, n: 3.0 / case.threads, names=("a.tflite",), threads=(1, 3))
    (row,) = android_bench.compare(record)
    assert (row.base, row.other, row.ratio) == ("cpu, 1 thread", "cpu, 3 threads", pytest.approx(3.0))


def test_every_setting_of_several_files(files):
    record = measured(files, lambda name, case, n: 1.0, names=("a.tflite", "b.tflite", "c.tflite"), threads=(1, 2))
    assert [(row.other, row.setting) for row in android_bench.compare(record)] == [
        ("b.tflite", "cpu, 1 thread"),
        ("c.tflite", "cpu, 1 thread"),
        ("b.tflite", "cpu, 2 threads"),
        ("c.tflite", "cpu, 2 threads"),
    ]


def test_two_records_are_not_paired_and_say_so(files):
    first = measured(files, lambda *a: 4.0, names=("float.tflite",))
    second = measured(files, lambda *a: 2.0, names=("int8.tflite",))
    (row,) = android_bench.compare(first, second)
    assert not row.paired
    assert row.ratio == pytest.approx(2)
    assert "two sessions, not alternated" in row.sentence


def test_two_records_of_the_same_names(files):
    first, second = (measured(files, lambda *a, t=t: t) for t in (1.0, 2.0))
    rows = android_bench.compare(first, second)
    assert [row.base for row in rows] == ["float.tflite (first record)", "int8.tflite (first record)"]
    assert all("2.00 [2.00, 2.00] times slower" in row.sentence for row in rows)


@pytest.mark.parametrize("fact", ["cpu_model", "harness", "kind", "name"])
def test_other_machines_and_harnesses_are_refused(files, fact):
    first = measured(files, lambda *a: 1.0)
    second = Record(copy.deepcopy(first.data))
    second.device[fact] = "another"
    with pytest.raises(Refused, match=f"differ in {fact}"):
        android_bench.compare(first, second)


def test_nothing_to_compare(files):
    with pytest.raises(BenchError, match="nothing to compare"):
        android_bench.compare(measured(files, lambda *a: 1.0, names=("a.tflite",)))
    record = measured(files, lambda *a: BenchError("it crashed"))
    with pytest.raises(BenchError, match=r"float\.tflite: failed"):
        android_bench.compare(record)


def test_an_interrupted_round_is_left_out(files, tmp_path):
    def times(name, case, n):
        if n == 3:  # a round of float, int8, then int8 of the second round
            raise KeyboardInterrupt
        return 2.0 if name == "float.tflite" else 1.0

    with pytest.raises(KeyboardInterrupt):
        measured(files, times, out=tmp_path)
    (row,) = android_bench.compare(Record.load(tmp_path))
    assert row.ratio == pytest.approx(2.0)
    assert "one pair of blocks only" in row.sentence


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((2.1, 1.9, 2.3), "b is 2.10 [1.90, 2.30] times faster than a"),
        ((0.5, 0.4, 0.8), "b is 2.00 [1.25, 2.50] times slower than a"),
        ((1.2, 1.0, 1.4), "no difference is shown between b and a: the ratio is 1.20 [1.00, 1.40]"),
    ],
)
def test_sentences(values, words):
    assert sentence("a", "b", *values) == words


def test_records_survive_a_round_trip(files, tmp_path):
    record = measured(files, drifting)
    record.save(tmp_path / "r.json")
    assert Record.load(tmp_path / "r.json").data == record.data
    assert json.loads((tmp_path / "r.json").read_text()) == record.data


def test_numbers_of_a_block_stand_on_one_line(files):
    text = measured(files, lambda *a: [1.0, 2.0, 3.0]).to_json()
    assert '"times_ns": [1000000, 2000000, 3000000]' in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(android_bench=2), "version 1"),
        (lambda d: d.pop("cases"), "'cases' is a required property"),
        (lambda d: d["cases"][0].update(status="fine"), "cases/0/status"),
        (lambda d: d["blocks"][0].update(times_ns=[-5]), "blocks/0/times_ns/0"),
        (lambda d: d["cases"][0].update(file=7), "names a file that is not there"),
        (lambda d: d["blocks"][0].update(case=9), "names a case that is not there"),
        (lambda d: d.update(surprise=1), "surprise"),
    ],
)
def test_damaged_records_are_refused_with_the_place(files, tmp_path, change, words):
    data = copy.deepcopy(measured(files, lambda *a: 1.0).data)
    change(data)
    (tmp_path / "record.json").write_text(json.dumps(data))
    with pytest.raises(BenchError, match=words) as caught:
        Record.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "\udcff"])
def test_text_that_is_no_record(tmp_path, text):
    (tmp_path / "r.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BenchError):
        Record.load(tmp_path / "r.json")


def test_a_failed_write_leaves_the_old_record(files, tmp_path, monkeypatch):
    record = measured(files, lambda *a: 1.0)
    record.save(tmp_path / "r.json")
    before = (tmp_path / "r.json").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(BenchError, match="No space left on device"):
        record.save(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "r.json" in path.name or path.suffix == ".part"] == ["r.json"]
