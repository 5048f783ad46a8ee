"""Samples that a file must still answer rightly: an NPZ of inputs, and of the outputs that are expected."""

import io
import pathlib
from typing import Any

import numpy as np

from android_bench.errors import BenchError, UsageError

# Float outputs are compared in their own unit; those of an integer file may be off by this many output steps.
FLOAT_TOLERANCE = 1e-3
STEPS_TOLERANCE = 2.0


class Tensors:
    """The inputs or outputs of an interpreter by every name that people use: signature name, tensor name.

    Args:
        side: "input" or "output".
        details: the interpreter's own list.
        signature: {signature name: tensor name or index}, from the interpreter's signature list.
    """

    def __init__(self, side: str, details: list[dict], signature: dict[str, Any]):
        self.side = side
        self.details = details
        self.names: dict[str, int] = {}
        for position, detail in enumerate(details):
            name = detail["name"]
            plain = name.removeprefix("serving_default_").split(":")[0]
            for alias in (name, name.split(":")[0], plain):
                self.names.setdefault(alias, position)
        for alias, tensor in signature.items():
            for position, detail in enumerate(details):
                if tensor in (detail["index"], detail["name"]):
                    self.names[alias] = position

    def label(self, position: int) -> str:
        """The shortest name of a tensor, which is the signature's where there is one."""
        return min((name for name, at in self.names.items() if at == position), key=len)

    def find(self, key: str) -> int | None:
        """Position of the tensor of this name, "input:name" and "output:name" included."""
        side, _, rest = key.partition(":")
        if side in ("input", "output") and rest:
            return self.names.get(rest) if side == self.side else None
        return self.names.get(key)


def signature_of(interpreter) -> tuple[dict[str, Any], dict[str, Any]]:
    """The names of the first signature: {name: index} of inputs and of outputs; empty without a signature."""
    full = interpreter._get_full_signature_list() if hasattr(interpreter, "_get_full_signature_list") else {}
    for signature in full.values():
        return dict(signature["inputs"]), dict(signature["outputs"])
    return {}, {}


def load(path) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file.

    Raises:
        UsageError: no such file, no NPZ, or pickled objects in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        # From memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} holds one array; write an .npz with named arrays (numpy.savez).")
            return {key: archive[key] for key in archive.files}
    except UsageError:
        raise
    except Exception as error:  # a damaged archive ends in zipfile's, zlib's or NumPy's own errors
        raise UsageError(f"{path} is not a readable .npz file ({error}).") from error


def assign(arrays: dict[str, np.ndarray], inputs: Tensors, outputs: Tensors) -> tuple[dict, dict]:
    """Sort arrays into inputs and expected outputs, by name.

    Returns:
        ({input position: array}, {output position: array}).

    Raises:
        UsageError: a name is neither, a tensor is named twice, or an input is missing.
    """
    given: dict[int, np.ndarray] = {}
    expected: dict[int, np.ndarray] = {}
    for key, array in arrays.items():
        at_input, at_output = inputs.find(key), outputs.find(key)
        if at_input is None and at_output is None:
            known = f"inputs {', '.join(sorted(inputs.names))}; outputs {', '.join(sorted(outputs.names))}"
            raise UsageError(f"The samples name {key!r}, which is no tensor of the file. It has {known}.")
        if at_input is not None and at_output is not None:
            raise UsageError(f"{key!r} is an input and an output of the file: write 'input:{key}' or 'output:{key}'.")
        target, position = (given, at_input) if at_input is not None else (expected, at_output)
        assert position is not None
        if position in target:
            raise UsageError(f"The samples name the same tensor twice; the second time as {key!r}.")
        target[position] = array
    for position in range(len(inputs.details)):
        if position not in given:
            raise UsageError(f"The samples hold nothing for the input {inputs.label(position)!r}.")
    return given, expected


def as_runs(array: np.ndarray, detail: dict) -> np.ndarray:
    """An array as (samples, *tensor shape), quantized when it is float and the tensor is not.

    Raises:
        UsageError: the shape or the type does not fit.
    """
    shape = tuple(int(size) for size in detail["shape"])
    if array.shape == shape:
        array = array[None]
    elif shape and array.shape[1:] == shape[1:] and shape[0] == 1:
        array = array[:, None]
    elif array.shape[1:] != shape:
        raise UsageError(f"The samples of {detail['name']!r} have the shape {array.shape}, the file takes {shape}.")
    dtype = np.dtype(detail["dtype"])
    if array.dtype == dtype:
        return array
    if np.issubdtype(array.dtype, np.floating) and np.issubdtype(dtype, np.integer):
        scale, zero = detail["quantization"]
        if scale == 0:
            raise UsageError(f"{detail['name']!r} is {dtype} without a scale; the samples for it must be {dtype}.")
        info = np.iinfo(dtype)
        return np.clip(np.round(array / scale) + zero, info.min, info.max).astype(dtype)
    if np.issubdtype(array.dtype, np.floating) and np.issubdtype(dtype, np.floating):
        return array.astype(dtype)
    raise UsageError(f"The samples of {detail['name']!r} are {array.dtype}, the file takes {dtype}.")


def compare(got: np.ndarray, expected: np.ndarray, detail: dict, tolerance: float | None) -> dict:
    """One output against what was expected of it, in the unit of the real numbers that it stands for.

    Args:
        got: (samples, *shape), of the file's type.
        expected: the same shape; the file's type, or float.
        detail: the tensor's.
        tolerance: largest error that is allowed; None for 1e-3, or two steps of an integer output.

    Returns:
        {"max_error", "mean_error", "top1_agreement" (None for one value), "tolerance", "passed"}.
    """
    scale, zero = detail["quantization"]
    quantized = scale != 0 and np.issubdtype(got.dtype, np.integer)
    real = (got.astype(np.float64) - zero) * scale if quantized else got.astype(np.float64)
    if quantized and np.issubdtype(expected.dtype, np.integer):
        wanted = (expected.astype(np.float64) - zero) * scale
    else:
        wanted = expected.astype(np.float64)
    if tolerance is None:
        tolerance = float(STEPS_TOLERANCE * scale * (1 + 1e-6)) if quantized else FLOAT_TOLERANCE
    with np.errstate(invalid="ignore"):  # infinity less infinity; it does not pass
        error = np.abs(real - wanted)
    worst = float(error.max()) if error.size else 0.0
    finite = bool(np.all(np.isfinite(real)))
    top1 = None
    if real.ndim > 1 and real.shape[-1] > 1:
        top1 = float(np.mean(real.argmax(-1) == wanted.argmax(-1)))
    return {
        "max_error": worst if np.isfinite(worst) else None,
        "mean_error": float(error.mean()) if np.all(np.isfinite(error)) and error.size else None,
        "top1_agreement": top1,
        "tolerance": tolerance,
        "passed": finite and bool(worst <= tolerance),
    }


def check(interpreter, arrays: dict[str, np.ndarray], tolerance: float | None = None) -> dict:
    """Run every sample once and compare.

    Args:
        interpreter: allocated.
        arrays: by tensor or signature name; the first axis is the sample.
        tolerance: see `compare`.

    Returns:
        {"samples", "outputs": [{"name"} and see `compare`], "compared", "passed"}. Without expected outputs, only finite outputs
        are asked for, and "compared" is False.
    """
    names_in, names_out = signature_of(interpreter)
    inputs = Tensors("input", interpreter.get_input_details(), names_in)
    outputs = Tensors("output", interpreter.get_output_details(), names_out)
    given, expected = assign(arrays, inputs, outputs)
    runs = {position: as_runs(array, inputs.details[position]) for position, array in given.items()}
    counts = {len(array) for array in runs.values()}
    if len(counts) != 1 or 0 in counts:
        raise UsageError(f"The inputs must hold the same number of samples, at least one; they hold {sorted(counts)}.")
    count = counts.pop()
    got: list[list[np.ndarray]] = [[] for _ in outputs.details]
    for sample in range(count):
        for position, array in runs.items():
            interpreter.set_tensor(inputs.details[position]["index"], array[sample])
        interpreter.invoke()
        for position, detail in enumerate(outputs.details):
            got[position].append(interpreter.get_tensor(detail["index"]))
    finite = all(np.all(np.isfinite(np.asarray(values, np.float64))) for values in got)
    rows = []
    for position, wanted in sorted(expected.items()):
        detail = outputs.details[position]
        produced = np.stack(got[position])
        try:
            wanted = wanted.reshape(produced.shape)
        except ValueError:
            raise UsageError(
                f"The expected {outputs.label(position)!r} has the shape {wanted.shape}; {count} samples give {produced.shape}."
            ) from None
        rows.append({"name": outputs.label(position)} | compare(produced, wanted, detail, tolerance))
    passed = finite and all(row["passed"] for row in rows)
    return {"samples": count, "outputs": rows, "compared": bool(rows), "passed": passed}


def random_input(detail: dict, rng: np.random.Generator) -> np.ndarray:
    """Random data for a tensor: uniform in -1 to 1, or over the whole range of 8-bit integers, or 0 and 1 for others.

    Raises:
        BenchError: the type has no random data (strings).
    """
    shape, dtype = tuple(detail["shape"]), np.dtype(detail["dtype"])
    if np.issubdtype(dtype, np.floating):
        return rng.uniform(-1, 1, shape).astype(dtype)
    if dtype in (np.dtype(np.int8), np.dtype(np.uint8)):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer) or dtype == np.dtype(bool):
        # Indices and lengths: small numbers are the only ones that are always allowed.
        return rng.integers(0, 2, shape).astype(dtype)
    raise BenchError(f"The input {detail['name']!r} is of type {dtype}; give samples for it with --check.")
