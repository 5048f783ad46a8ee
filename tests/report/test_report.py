import dataclasses
import io
import json
import math

import jsonschema
import numpy as np
import pytest
import rich.console

from tfcompress.errors import CompressionError
from tfcompress.report import SCHEMA_FILE, Energy, Latency, Layer, Modelled, Report, Row, Verification, environment
from tfcompress.report.columns import columns, layer_columns


def full_report() -> Report:
    report = Report(
        "A net <b>&amp; $x$</b>",
        data="digits",
        samples=200,
        environment=environment(),
        notes=["host only"],
        created="2026",
    )
    report.add_row(
        "float32",
        accuracy=0.975,
        parameters=1000,
        nonzeros=1000,
        macs=5000,
        file_bytes=4400,
        packed_bytes=4000,
        latency=[Latency(2.0, 1.5, 3.5, (1.9, 2.2), runs=50, threads=1), Latency(1.2, threads=2)],
        layers=[Layer("dense", "Dense", (10, 100), 1000, 1000, 990, 32, 4000, -1.0, 1.0)],
    )
    report.add_row(
        "int8",
        accuracy=0.97,
        parameters=1000,
        nonzeros=200,
        file_bytes=1100,
        packed_bytes=550,
        latency=Latency(0.5, 0.4, 0.9, (0.45, 0.55), threads=1),
        energy=Energy(0.25, (0.2, 0.3), "power rails", threads=1),
        modelled=[Modelled("energy", 12.5, "nJ", "45 nm")],
        layers=[Layer("dense", "Dense", (10, 100), 1000, 200, 17, 8, 1000, -1.0, 1.0, "a note")],
        verification=Verification(True, {"largest error": 1}, {"FULLY_CONNECTED": 1}, ("a warning",)),
        notes=["retrained"],
    )
    return report


def test_round_trip_through_json_is_exact(tmp_path):
    report = full_report()
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report


def test_written_json_satisfies_the_committed_schema():
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(full_report().to_json()), schema)


@pytest.mark.parametrize(
    ("kind", "place"),
    [(Row, "row"), (Latency, "latency"), (Energy, "energy"), (Modelled, "modelled"), (Layer, "layer"), (Verification, "verification")],
)  # fmt: skip
def test_schema_and_dataclasses_have_the_same_fields(kind, place):
    definition = json.loads(SCHEMA_FILE.read_text())["$defs"][place]
    assert set(definition["properties"]) == {field.name for field in dataclasses.fields(kind)}
    needed = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert set(definition["required"]) == needed


def test_numpy_scalars_become_json_numbers():
    report = Report("x")
    report.add_row("float32", accuracy=np.float32(0.5), parameters=np.int64(3), latency=Latency(np.float64(1.5)))
    row = json.loads(report.to_json())["rows"][0]
    assert (row["accuracy"], row["parameters"], row["latency"][0]["median_ms"]) == (0.5, 3, 1.5)


def test_ratios_are_of_file_bytes_against_the_baseline_file():
    report = full_report()
    assert report.ratio("int8") == 4400 / 1100
    assert report.ratio("int8", packed=True) == 4400 / 550
    report.add_row("unmeasured", accuracy=0.9)
    assert report.ratio("unmeasured") is None
    assert Report("no baseline", baseline="x", rows=[Row("y", file_bytes=1)]).ratio("y") is None


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"accuracy": 97.5}, ["rows[0].accuracy", "97.5"]),
        ({"accuracy": math.nan}, ["accuracy", "nan"]),
        ({"parameters": 1.5}, ["parameters", "1.5"]),
        ({"parameters": 10, "nonzeros": 11}, ["11 non-zeros", "10"]),
        ({"file_bytes": -1}, ["file_bytes", "-1"]),
        ({"file_byte": 1}, ["'file_byte'", "Did you mean 'file_bytes'"]),
        ({"latency": Latency(1.0, 2.0, 3.0)}, ["percentiles", "not in order"]),
        ({"layers": [Layer("a", parameters=1, nonzeros=2)]}, ["a has 2 non-zeros of 1"]),
    ],
)
def test_a_figure_that_cannot_be_right_is_refused_by_name(figures, words):
    report = Report("x")
    with pytest.raises(CompressionError) as caught:
        report.add_row("bad", **figures)
    assert all(word in str(caught.value) for word in words)
    assert report.rows == []


def test_a_name_is_given_once():
    report = Report("x")
    report.add_row("a")
    with pytest.raises(CompressionError, match="row 'a' already"):
        report.add_row("a")
    with pytest.raises(CompressionError, match="no row 'b'"):
        report.row("b")


def without(data, key):
    return {name: value for name, value in data.items() if name != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: "{", "no valid JSON"),
        (lambda data: "[]", "is not valid at its top"),
        (lambda data: json.dumps(without(data, "rows")), "'rows' is a required property"),
        (lambda data: json.dumps({**data, "tfcompress_report": 2}), "tfcompress_report: 1 was expected"),
        (lambda data: json.dumps({**data, "rows": [{"name": "a", "speed": 1}]}), "'speed' was unexpected"),
        (lambda data: json.dumps({**data, "rows": [{"name": "a"}, {"name": "a"}]}), "2 rows named 'a'"),
        (lambda data: json.dumps({**data, "rows": [{"name": "a", "accuracy": math.nan}]}), "NaN is no JSON number"),
        (lambda data: "[" * 100_000, "no valid JSON"),
    ],
)
def test_foreign_json_is_refused_with_a_sentence(change, words):
    text = change(json.loads(full_report().to_json()))
    with pytest.raises(CompressionError) as caught:
        Report.from_json(text)
    assert words in str(caught.value)


def test_unreadable_file_is_refused_with_a_sentence(tmp_path):
    with pytest.raises(CompressionError, match=r"Cannot read the report .*none\.json"):
        Report.load(tmp_path / "none.json")


def cells(report, title, detail=""):
    column = next(c for c in columns(report) if c.title == title and detail in c.detail)
    return [(cell.text, cell.detail) for cell in column.cells]


def test_columns_hold_the_figures_in_words():
    report = full_report()
    assert cells(report, "Accuracy") == [("97.50 %", ""), ("97.00 %", "\N{MINUS SIGN}0.50 points")]
    assert cells(report, "Non-zeros") == [("1,000", ""), ("200", "80.0 % zeros")]
    assert cells(report, "File") == [("4.40 kB", ""), ("1.10 kB", "4.00\N{MULTIPLICATION SIGN} smaller")]
    assert cells(report, "Packed")[1] == ("550 B", "8.00\N{MULTIPLICATION SIGN} smaller")
    assert cells(report, "MACs") == [("5,000", ""), ("\N{EN DASH}", "")]


def test_settings_and_modelled_figures_never_share_a_column():
    report = full_report()
    assert [text for text, _ in cells(report, "Latency", "host cpu, 1 thread")] == ["2.00 ms", "0.500 ms"]
    assert [text for text, _ in cells(report, "Latency", "host cpu, 2 threads")] == ["1.20 ms", "\N{EN DASH}"]
    assert [text for text, _ in cells(report, "Energy", "power rails")] == ["\N{EN DASH}", "0.250 mJ"]
    assert [text for text, _ in cells(report, "Energy, modelled", "45 nm")] == ["\N{EN DASH}", "12.5 nJ"]


def test_short_latencies_are_in_microseconds():
    report = Report("x")
    report.add_row("float32", latency=Latency(0.0312, 0.03, 0.04, (0.031, 0.0315)))
    text, detail = cells(report, "Latency")[0]
    assert text == "31.2 \N{MICRO SIGN}s"
    assert detail == "95 %: 31.0\N{EN DASH}31.5\np5\N{EN DASH}p95: 30.0\N{EN DASH}40.0"


def test_what_nobody_measured_has_no_column():
    report = Report("x")
    report.add_row("float32", accuracy=0.5)
    assert [column.title for column in columns(report)] == ["Variant", "Accuracy"]
    assert [column.title for column in columns(Report("empty"))] == ["Variant"]


def test_layer_columns_show_sparsity_and_range():
    found = {column.title: column.cells[0].text for column in layer_columns(full_report().row("int8").layers)}
    assert found["Sparsity"] == "80.0 %"
    assert found["Bits"] == "8"
    assert found["Range"] == "\N{MINUS SIGN}1.00 to 1.00"
    assert found["Note"] == "a note"


def printed(report, width):
    stream = io.StringIO()
    rich.console.Console(width=width, file=stream).print(report.table())
    return stream.getvalue()


def test_table_fits_into_80_columns_and_shows_markup_as_text():
    text = printed(full_report(), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "A net <b>&amp; $x$</b>" in text
    assert "4.00\N{MULTIPLICATION SIGN} smaller" in text
    assert "one of 200 samples is 0.50 points" in text


def test_many_variants_stand_one_under_the_other():
    report = Report("x")
    for number in range(7):
        report.add_row(f"[red]v{number}", accuracy=0.5, file_bytes=100 + number)
    lines = printed(report, 80).splitlines()
    assert sum("[red]v" in line for line in lines) == 7


def test_environment_names_the_machine():
    found = environment()
    assert found["cores"] >= 1
    assert {"python", "keras", "numpy", "processor"} <= set(found)
