"""The child process that holds the TFLite converter: run as `python -m tfcompress.export._worker`.

It reads one JSON request a line from its standard input and answers with one JSON line. It sees folders and files and
never the user's objects, so that a crash of the converter (a segmentation fault on a recurrent int8 network, say) costs
a child and not the user's Python. `worker.Worker` is the other end.
"""

import json
import os
import pathlib
import sys
import traceback


def convert(saved_model: str, out: str, custom_ops: bool = False) -> dict:
    """SavedModel folder -> float32 .tflite file."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    converter.allow_custom_ops = custom_ops
    pathlib.Path(out).write_bytes(converter.convert())
    return {}


def stock(saved_model: str, out: str, precision: str, data: str) -> dict:
    """The stock converter's own post-training quantization; `data` is an .npz with one array an input, by its name."""
    import numpy as np
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    arrays = dict(np.load(data))
    count = min(len(value) for value in arrays.values())

    def samples():
        for i in range(count):
            yield {name: value[i : i + 1] for name, value in arrays.items()}

    converter.representative_dataset = samples
    wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    # The float operators stay allowed, so that what has no integer kernel is kept float and reported.
    narrow = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.target_spec.supported_ops = [wide, tf.lite.OpsSet.TFLITE_BUILTINS] if precision == "int16x8" else narrow
    converter.inference_input_type = converter.inference_output_type = tf.float32
    pathlib.Path(out).write_bytes(converter.convert())
    return {}


def rebuild(keras_file: str, saved_model: str, inputs: list, outputs: list) -> dict:
    """A saved .keras file -> SavedModel, on this process's TensorFlow backend, whatever backend trained it.

    `inputs` and `outputs` are a signature's (name, shape, dtype) triples and names.
    """
    import keras

    import tfcompress  # noqa: F401  its layers have to be registered before loading
    from tfcompress.export import savedmodel

    model = keras.saving.load_model(keras_file, compile=False)
    ports = tuple(savedmodel.Port(name, tuple(shape), dtype) for name, shape, dtype in inputs)
    savedmodel.write(model, savedmodel.Signature(ports, tuple(outputs)), saved_model)
    return {}


def analyze(path: str) -> dict:
    """LiteRT's own model analyzer on GPU-delegate compatibility: the sentences that speak of the GPU delegate."""
    import tensorflow as tf
    from tensorflow.lite.python.analyzer_wrapper import _pywrap_analyzer_wrapper

    text = _pywrap_analyzer_wrapper.ModelAnalyzer(path, True, True)
    lines = [line.strip() for line in text.splitlines() if "GPU" in line]
    return {"lines": lines, "version": tf.__version__}


def smoke(path: str, delegate: bool) -> dict:
    """Run a file once on zeros: a runtime that dies on it dies here."""
    import numpy as np

    from tfcompress.export import litert

    made = litert.interpreter(path, delegate=delegate)
    litert.invoke(made, [np.zeros(d["shape"], d["dtype"]) for d in made.get_input_details()])
    return {}


COMMANDS = {f.__name__: f for f in (convert, stock, rebuild, analyze, smoke)}


def main() -> None:
    """Serve requests until the parent closes the pipe."""
    # Libraries print to file descriptor 1: give them the log, and keep the pipe for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": True, **COMMANDS[request["do"]](**request["with"])}
        except BaseException as error:  # the parent decides what an interrupt or a failed import means
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
