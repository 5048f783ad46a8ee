"""Assignments as files: what stays float in them, and what they answer."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress.errors import CompressionError
from tfcompress.search import mixed_precision

if keras.backend.backend() != "tensorflow":
    pytest.skip("exports need TensorFlow", allow_module_level=True)
from tfcompress import export
from tfcompress.export.flatbuffer import FLOAT32, Graph

L = keras.layers


@pytest.fixture(scope="module")
def searched():
    image = keras.Input((6, 6, 2), name="image")
    x = L.ReLU(name="r")(L.BatchNormalization(name="n")(L.Conv2D(4, 3, use_bias=False, name="c")(image)))
    x = L.DepthwiseConv2D(3, activation="relu", name="w")(x)
    model = keras.Model(image, L.Dense(3, activation="softmax", name="d")(L.Flatten(name="f")(x)), name="net")
    data = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype("float32")
    choices = ("int4", "int8", "int16", "float")
    return model, data, mixed_precision(model, data, max_drop=0.1, choices=choices, verbose=0)


def kinds(path):
    """{operator: type of its first input} of the products of a file."""
    graph = Graph(path.read_bytes())
    names = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    return {
        graph.kind(op): {"weights": graph.tensors[int(op.inputs[1])].type == FLOAT32, "data": graph.tensors[int(op.inputs[0])].type == FLOAT32}
        for op in graph.operators
        if graph.kind(op) in names
    }  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "choices", "floats"),
    [
        ("int8", ("int8", "float", "int8"), {"DEPTHWISE_CONV_2D"}),
        ("int8", ("float", "float", "int8"), {"CONV_2D", "DEPTHWISE_CONV_2D"}),
        ("int4", ("int4", "int8", "float"), {"FULLY_CONNECTED"}),
        ("int16x8", ("int16", "float", "int16"), {"DEPTHWISE_CONV_2D"}),
        ("float32", ("float", "float", "float"), {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}),
    ],
)
def test_a_file_holds_the_assignment_and_answers_as_measured(searched, tmp_path, precision, choices, floats):
    model, data, front = searched
    point = next(p for p in front.measured if (p.precision, *p.assignment.values()) == (precision, *choices))
    path = tmp_path / "model.tflite"
    report = front.export(model, path, point, verbose=0)
    found = kinds(path)
    assert {kind for kind, one in found.items() if one["weights"]} == floats
    assert {kind for kind, one in found.items() if one["data"]} == floats
    output = report.verification.outputs[0]
    # One step of softmax; before a last layer in float, one step of an inner tensor may be off.
    assert output.largest <= (1.01 / 16384 if precision == "int16x8" else 1.01 / 256)
    answers, reference = export.Runner(path)(data), model.predict(data, verbose=0)
    error = np.square(answers - reference).sum() / np.square(reference - reference.mean(0)).sum()
    assert error == pytest.approx(point.error, rel=0.05, abs=1e-9)


def test_keep_float_names_something(searched, tmp_path):
    model, data, _ = searched
    attached = tfcompress.apply(model, tfcompress.quantization.QAT(), data=data, verbose=0)
    with pytest.raises(CompressionError, match="no operation 'depth'"):
        export.tflite(attached, tmp_path / "m.tflite", "int8", keep_float=["depth"], verbose=0)
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.slow
def test_latency_is_that_of_files_on_the_host(searched, tmp_path):
    model, data, _ = searched
    out = tmp_path / "front.json"
    options = {"max_drop": 1.0, "objective": "latency", "choices": ("int8", "float"), "files": 2, "verbose": 0}
    front = mixed_precision(model, data, out=out, **options)
    assert 1 <= len(front.points) <= 2
    assert all(p.cost == p.latency_ms > 0 for p in front.points)
    files = {path.stat().st_size for path in (tmp_path / "front.files").iterdir()}
    assert {p.file_bytes for p in front.measured} == files
    assert "host" in front.to_dict()["unit"]
    assert "phone" in front.notes[-1]
    assert mixed_precision(model, data, out=out, **options) == front
