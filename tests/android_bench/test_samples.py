"""Samples by name, shape and type; the expected numbers come from Keras or from the hand."""

import numpy as np
import pytest

from android_bench import litert, samples
from android_bench.errors import BenchError, UsageError


class Net:
    """An interpreter in NumPy: y = 2 x, and z = the sum, with quantized tensors on request."""

    def __init__(self, dtype=np.float32, quantization=(0.0, 0), shape=(1, 3)):
        self.x = {"name": "serving_default_x:0", "index": 0, "shape": np.array(shape), "dtype": dtype}
        self.y = {"name": "Identity:0", "index": 1, "shape": np.array(shape), "dtype": dtype}
        for detail in (self.x, self.y):
            detail["quantization"] = quantization
        self.values = {}

    def _get_full_signature_list(self):
        return {"serving_default": {"inputs": {"x": 0}, "outputs": {"doubled": 1}}}

    def get_input_details(self):
        return [self.x]

    def get_output_details(self):
        return [self.y]

    def set_tensor(self, index, value):
        assert value.shape == tuple(self.x["shape"])
        assert value.dtype == self.x["dtype"]
        self.values[index] = value

    def invoke(self):
        zero = self.x["quantization"][1]
        self.values[1] = ((self.values[0].astype(np.float64) - zero) * 2 + zero).astype(self.y["dtype"])

    def get_tensor(self, index):
        return self.values[index].copy()


@pytest.mark.parametrize("x_name", ["x", "serving_default_x", "serving_default_x:0", "input:x"])
@pytest.mark.parametrize("y_name", ["doubled", "Identity", "Identity:0", "output:doubled"])
def test_tensors_go_by_signature_and_tensor_names(x_name, y_name):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    result = samples.check(Net(), {x_name: x, y_name: 2 * x})
    assert (result["samples"], result["passed"], result["compared"]) == (4, True, True)
    assert result["outputs"] == [
        {"name": "doubled", "max_error": 0, "mean_error": 0, "top1_agreement": 1, "tolerance": 1e-3, "passed": True}
    ]


def test_errors_and_agreement_are_those_of_the_outputs():
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    expected = 2 * x + np.array([[0.5, 0, 0], [0, 0, -5]], np.float32)
    (row,) = samples.check(Net(), {"x": x, "doubled": expected}, tolerance=4.9)["outputs"]
    assert row["max_error"] == pytest.approx(5)
    assert row["mean_error"] == pytest.approx(5.5 / 6)
    assert row["top1_agreement"] == 0.5
    assert not row["passed"]
    assert samples.check(Net(), {"x": x, "doubled": expected}, tolerance=5.1)["passed"]


def test_float_samples_are_quantized_and_compared_in_real_numbers():
    net = Net(np.int8, (0.5, 3))
    x = np.array([[1.0, -2.0, 4.0]])
    good = samples.check(net, {"x": x, "doubled": 2 * x})
    assert good["passed"]
    assert good["outputs"][0]["tolerance"] == pytest.approx(1.0)  # two steps of 0.5
    assert samples.check(net, {"x": x, "doubled": 2 * x + 0.99})["passed"]
    assert not samples.check(net, {"x": x, "doubled": 2 * x + 1.01})["passed"]
    codes = np.round(x / 0.5).astype(np.int8) + np.int8(3)
    assert samples.check(net, {"x": codes, "doubled": (4 * x + 3).astype(np.int8)})["outputs"][0]["max_error"] == 0


def test_not_finite_outputs_never_pass():
    x = np.full((1, 3), np.inf, np.float32)
    result = samples.check(Net(), {"x": x})
    assert (result["compared"], result["passed"]) == (False, False)
    result = samples.check(Net(), {"x": x, "doubled": x})
    assert not result["passed"]
    assert result["outputs"][0]["max_error"] is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 3), "f"), "q": np.zeros(1)}, "'q', which is no tensor of the file. It has inputs"),
        ({"doubled": np.zeros((2, 3), "f")}, "nothing for the input 'x'"),
        ({"x": np.zeros((2, 4), "f")}, r"\(2, 4\), the file takes \(1, 3\)"),
        ({"x": np.zeros((2, 3), "i4")}, "are int32, the file takes float32"),
        ({"x": np.zeros((2, 3), "f"), "doubled": np.zeros((5, 3), "f")}, r"\(5, 3\); 2 samples give"),
        ({"x": np.zeros((2, 3), "f"), "input:x": np.zeros((2, 3), "f")}, "same tensor twice"),
        ({"x": np.zeros((0, 3), "f")}, "at least one"),
    ],
)
def test_samples_that_do_not_fit_are_named(arrays, words):
    with pytest.raises(UsageError, match=words):
        samples.check(Net(), arrays)


def test_integer_input_without_a_scale_takes_no_floats():
    with pytest.raises(UsageError, match="without a scale"):
        samples.check(Net(np.int32), {"x": np.zeros((1, 3), "f")})


def test_files_that_are_no_npz(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    whole = tmp_path / "cut.npz"
    np.savez(whole, x=np.zeros(1000))
    whole.write_bytes(whole.read_bytes()[:500])
    for name in ("one.npy", "pickled.npz", "text.npz", "cut.npz", "absent.npz"):
        with pytest.raises(UsageError, match=name):
            samples.load(tmp_path / name)


@pytest.mark.parametrize("name", ["float", "int8"])
def test_files_answer_as_keras_did(models, name):
    """The expected outputs were computed by Keras when the files were made."""
    interpreter = litert.runtime().interpreter()(str(models / f"{name}.tflite"))
    interpreter.allocate_tensors()
    result = samples.check(interpreter, samples.load(models / "samples.npz"))
    assert result["passed"]
    assert result["outputs"][0]["name"] == "output_0"
    assert result["outputs"][0]["top1_agreement"] == 1


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("f4", -1, 1), ("f2", -1, 1), ("i1", -128, 127), ("u1", 0, 255), ("i4", 0, 1), ("?", 0, 1)],
)
def test_random_inputs_stay_in_their_range(dtype, low, high):
    value = samples.random_input({"name": "x", "shape": [50, 20], "dtype": np.dtype(dtype)}, np.random.default_rng(0))
    assert value.dtype == np.dtype(dtype)
    assert low <= value.min() < value.max() <= high


def test_strings_have_no_random_data():
    with pytest.raises(BenchError, match="--check"):
        samples.random_input({"name": "text", "shape": [1], "dtype": np.dtype("O")}, np.random.default_rng(0))
