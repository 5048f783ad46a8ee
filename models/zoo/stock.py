"""What other tools make of a model of the zoo: each in a process that may die of it, their files measured as ours are."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

from models.zoo import steps

PEER = steps.ROOT / ".venv-tfmot"
TOOLS = ("converter", "keras", "quantizer")
_LIMIT = 1200


def tried(model) -> dict:
    """Rows of the plain TFLiteConverter, of Keras's own quantize and export, and of ai-edge-quantizer (litert-quantizer).

    Args:
        model: a `steps.Model` whose steps "float" and "ptq" are done.
    """
    wanted = steps.answers(model.trained(), model.x_test)
    _hand_over(model)
    rows: dict[str, dict] = {}
    # A tool that kills the process costs itself; the others go on in a new one.
    while missing := [tool for tool in TOOLS if tool not in rows]:
        answered, end = _ask([sys.executable, "-m", "models.zoo.peers", str(model.folder), *missing], model)
        rows |= answered
        if missing[0] not in rows:
            left = [tool for tool in missing if tool not in answered]
            rows[left[0]] = {"converts": False, "reason": end}
    return {tool: _measured(model, tool, row, wanted) for tool, row in rows.items()}


def tried_with_tfmot(model) -> dict:
    """The row of TFMOT's quantize_model: a few epochs with the same weights, converted, against its own simulation."""
    python = PEER / "bin/python"
    if not python.exists():
        return {"converts": None, "reason": "not tried: the environment of tools/bench_training.py is not there"}
    _hand_over(model)
    net = model.trained()
    weights: dict = {f"{i}": np.asarray(v) for i, v in enumerate(_layer_weights(net))}
    np.savez(model.path("weights.npz"), **weights)
    command = [str(python), "-m", "models.zoo.peers_tfmot", model.key, str(model.folder), str(model.entry.again)]
    answered, end = _ask(command, model, {"TF_USE_LEGACY_KERAS": "1"})
    row = answered.get("tfmot", {"converts": False, "reason": end})
    simulated = model.path("tfmot.npz")
    if not row["converts"] or not simulated.exists():
        return row
    outputs = [value for _, value in sorted(np.load(simulated).items())]
    return _measured(model, "tfmot", row, outputs) | {"simulated score": model.entry.score(outputs, model.y_test)}


def _layer_weights(net):
    """The arrays of every layer in order, nested models opened, as tf_keras lists them."""
    for layer in net.layers:
        if isinstance(layer, keras.Model):
            yield from _layer_weights(layer)
        else:
            yield from layer.get_weights()


def _hand_over(model) -> None:
    """Inputs and targets for the other process."""
    flat: dict = {}
    for name, value in (("x", model.x), ("y", model.y), ("x_test", model.x_test)):
        parts = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}/{key}": part for key, part in parts.items()}
    np.savez(model.path("data.npz"), **flat)


def _ask(command: list[str], model, more: dict | None = None) -> tuple[dict, str]:
    """Rows that a child printed as JSON lines, and how it ended."""
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **os.environ}
    with open(model.path(f"{pathlib.Path(command[2]).name}.log"), "w") as log:
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, text=True, timeout=_LIMIT, cwd=steps.ROOT,
                env=environment | (more or {}),
            )  # fmt: skip
            text, end = done.stdout, _ending(done.returncode)
        except subprocess.TimeoutExpired as expired:
            text = (expired.stdout or b"").decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
            end = f"did not end within {_LIMIT} s"
    rows = {}
    for line in text.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            rows[row.pop("tool")] = row
    return rows, end


def _ending(code: int) -> str:
    return f"the process died (signal {-code})" if code < 0 else f"the process ended with status {code}"


def _measured(model, tool: str, row: dict, wanted) -> dict:
    """A tool's row with what its file does on the test samples."""
    if not row["converts"]:
        return row
    try:
        return row | steps.measured(model, model.path(f"{tool}.tflite"), wanted, any_order=True)
    except Exception as error:
        reason = steps.failure(error)["reason"]
        return row | {"converts": False, "reason": f"its file does not run: {reason}"}
