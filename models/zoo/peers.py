"""The stock tools in a process of their own: python -m models.zoo.peers FOLDER TOOL...

The folder holds float.keras, float32.tflite and data.npz; each tool leaves TOOL.tflite and prints a line of JSON.
"""

import json
import pathlib
import re
import sys

import numpy as np

CALIBRATION = 128


def read(folder: pathlib.Path) -> dict:
    """{"x", "y", "x_test": an array, or a dict of arrays}."""
    data: dict = {}
    with np.load(folder / "data.npz") as stored:
        for name in stored.files:
            part, _, key = name.partition("/")
            if key:
                data.setdefault(part, {})[key] = stored[name]
            else:
                data[part] = stored[name]
    return data


def converter(folder: pathlib.Path, calibration) -> None:
    """The plain TFLiteConverter with integer ends, as its guide for full integer quantization says."""
    import tensorflow as tf

    model = _load(folder, calibration)
    made = tf.lite.TFLiteConverter.from_keras_model(model)
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    made.inference_input_type = made.inference_output_type = tf.int8
    parts = calibration if isinstance(calibration, dict) else {"": calibration}
    if any(part.dtype.kind == "i" for part in parts.values()):
        made.inference_input_type = tf.float32  # whole numbers stay as they are
    single = list(parts) == [""]
    made.representative_dataset = lambda: (
        [calibration[i : i + 1]] if single else {name: part[i : i + 1] for name, part in parts.items()}
        for i in range(CALIBRATION)
    )
    (folder / "converter.tflite").write_bytes(made.convert())


def keras_export(folder: pathlib.Path, calibration) -> None:
    """Keras's own quantize("int8") and export(format="litert")."""
    model = _load(folder, calibration)
    model.quantize("int8")
    model.export(str(folder / "keras.tflite"), format="litert", verbose=False)


def quantizer(folder: pathlib.Path, calibration) -> None:
    """litert-quantizer (the former ai-edge-quantizer): static int8 with its own calibration."""
    from litert_quantizer import quantizer as module
    from litert_quantizer import recipe

    from tfcompress.export import Runner

    path = folder / "float32.tflite"
    runner = Runner(path)
    made = module.Quantizer(str(path), recipe.static_wi8_ai8())
    parts = calibration if isinstance(calibration, dict) else {runner.inputs[0].name: calibration}
    samples = [{name: value[i : i + 1] for name, value in parts.items()} for i in range(CALIBRATION)]
    statistics = made.calibrate({"serving_default": samples}, num_threads=1)
    (folder / "quantizer.tflite").write_bytes(made.quantize(statistics).quantized_model)


def _load(folder: pathlib.Path, calibration):
    """The trained network, called once: without a graph it has no shapes before."""
    import keras

    from models.zoo import custom  # noqa: F401 - its classes have to be registered before loading

    model = keras.saving.load_model(folder / "float.keras", compile=False)
    model.predict(keras.tree.map_structure(lambda a: a[:1], calibration), verbose=0)
    return model


_RUN = {"converter": converter, "keras": keras_export, "quantizer": quantizer}


def sentence(error: BaseException) -> str:
    """The first line of an error that says something, with its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("Exception encountered when calling", "in user code:"))]
    telling = [
        line for line in lines if "error:" in line.lower() or "op is neither" in line or "failed" in line.lower()
    ]
    text = (telling or lines or ["no message"])[0]
    # The converter puts the whole call stack of a node before what it has to say.
    text = re.sub(r"(<unknown>:0: )?error: loc\(.*\): (?=\S)", "", text)
    return f"{type(error).__name__}: {text[:300]}"


def main() -> None:
    """Run the tools one after the other; standard output holds the answers alone."""
    import os

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, tools = pathlib.Path(sys.argv[1]), sys.argv[2:]
    x = read(folder)["x"]
    for tool in tools:
        (folder / f"{tool}.tflite").unlink(missing_ok=True)
        try:
            _RUN[tool](folder, x)
            row = {"tool": tool, "converts": True}
        except Exception as error:
            import traceback

            traceback.print_exc()
            row = {"tool": tool, "converts": False, "reason": sentence(error)}
        answers.write(json.dumps(row) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
