import dataclasses

import pytest

from tfcompress.codecs.report import PackReport
from tfcompress.errors import CompressionError
from tfcompress.export.census import Census, FloatOperator
from tfcompress.export.reports import ExportReport, OutputError, VerifyReport
from tfcompress.report import Report

VERIFIED = VerifyReport(
    path="build/int8.tflite",
    size=1100,
    runtime="ai-edge-litert 2.3",
    samples=64,
    compared_with="the attached model",
    outputs=[OutputError("dense", 0.25, 0.01, 0.02, 0.25, 1.0, 0.998, 1.0, 0.9, 0.984375)],
    runs={"xnnpack": "ok", "builtin": "ok"},
    kernels_differ=0.0,
    census=Census({"CONV_2D": 2, "SOFTMAX": 1}, 4000, 3000, [FloatOperator("SOFTMAX", "t", "probs", 1000, 10, 1, 1)], {}, [], {}, "int8"),
    gpu={"compatible": False, "reasons": ["SOFTMAX is float"], "checked_by": "run"},
    target={"name": "xnnpack", "refusals": [], "checked_by": "run"},
    read_back={"ranges": 3, "weights": 0},
    normalization_left=[],
    tensors=[],
    warnings=["5 % clipped"],
)  # fmt: skip
EXPORTED = ExportReport(
    "build/int8.tflite",
    "int8",
    "float32",
    "xnnpack",
    1,
    "integers",
    1100,
    {},
    {},
    [],
    ["unrolled"],
    ["a note"],
    {},
    VERIFIED,
)
PACKED = PackReport("build/int8.tfcz", "tflite", 550, (), {}, "build/int8.tflite", 1100)


@pytest.mark.parametrize("form", [lambda report: report, lambda report: report.to_dict()])
def test_a_row_takes_its_figures_from_export_and_packing(form):
    report = Report("x")
    row = report.add_row("int8", export=form(EXPORTED), packed=form(PACKED), notes=["mine"], accuracy=0.5)
    assert (row.file, row.file_bytes, row.macs, row.packed_bytes, row.accuracy) == ("int8.tflite", 1100, 4000, 550, 0.5)
    assert row.notes == ("unrolled", "a note", "mine")
    found = row.verification
    assert found.passed is True
    assert found.operators == {"CONV_2D": 2, "SOFTMAX": 1}
    assert found.figures["largest error in output steps"] == 1.0
    assert found.figures["outputs within one step"] == "99.80%"
    assert found.figures["top-1 agreement"] == "98.44%"
    assert found.figures["multiply-accumulates on integers"] == "75.0%"
    assert found.figures["ranges read back as trained"] == 3
    assert "weights read back as trained" not in found.figures
    assert found.warnings == ("SOFTMAX stays float (layer probs): 25.0% of the multiply-accumulates", "5 % clipped")
    assert Report.from_json(report.to_json()) == report


def test_what_the_caller_says_wins():
    row = Report("x").add_row("int8", export=EXPORTED, file_bytes=7, macs=9)
    assert (row.file_bytes, row.macs) == (7, 9)


def test_a_verification_alone_and_one_that_the_target_refuses():
    assert Report("x").add_row("a", export=VERIFIED).verification.passed
    refused = dataclasses.replace(
        VERIFIED, target={"name": "edgetpu", "refusals": ["float input"], "checked_by": "rules"}
    )
    found = Report("x").add_row("a", export=refused).verification
    assert found.passed is False
    assert "float input" in found.warnings


def test_an_export_without_verification_has_none():
    row = Report("x").add_row("a", export=dataclasses.replace(EXPORTED, verification=None))
    assert (row.verification, row.file_bytes) == (None, 1100)


@pytest.mark.parametrize("wrong", [{"export": {"size": 3}}, {"export": 3}, {"packed": {}}, {"packed": "x"}])
def test_what_is_no_report_is_refused(wrong):
    with pytest.raises(CompressionError, match="report"):
        Report("x").add_row("a", **wrong)
