"""Makes the small .tflite files beside it, and the samples with what Keras answered. Needs TensorFlow; run by hand.

python tests/android_bench/models/make.py
"""

import os
import pathlib
import sys
import tempfile

os.environ["KERAS_BACKEND"] = "tensorflow"

import flatbuffers
import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

HERE = pathlib.Path(__file__).resolve().parent


def network(size: int | None) -> keras.Model:
    """The same weights for every size: they come from the seed, and nothing depends on the size but the work."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 3), name="image")
    x = keras.layers.Conv2D(8, 3, activation="relu", name="conv")(image)
    x = keras.layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    # Wide weights, so that the scores differ from image to image by many output steps.
    wide = keras.initializers.RandomNormal(stddev=8, seed=3)
    return keras.Model(image, keras.layers.Dense(4, activation="softmax", kernel_initializer=wide, name="scores")(x))


def convert(model: keras.Model, shape: tuple, calibration: np.ndarray | None = None) -> bytes:
    """A float file, or an int8 one with int8 boundary when there is calibration data."""
    with tempfile.TemporaryDirectory() as folder:
        spec = keras.InputSpec(shape=shape, dtype="float32", name="image")
        model.export(folder, format="tf_saved_model", input_signature=[spec], verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[None]] for image in calibration)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        return converter.convert()


def with_unknown_operator(data: bytes) -> bytes:
    """The file with its SOFTMAX turned into a custom operator that no runtime has."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    for code in model.operatorCodes:
        if code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = b"Mystery"
    for subgraph in model.subgraphs:
        for operator in subgraph.operators:
            if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.CUSTOM:
                operator.builtinOptionsType, operator.builtinOptions = 0, None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def main() -> int:
    small = network(8)
    images = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 3)).astype("float32")
    files = {
        "float.tflite": convert(small, (1, 8, 8, 3)),
        "int8.tflite": convert(small, (1, 8, 8, 3), np.random.default_rng(1).uniform(-1, 1, (50, 8, 8, 3)).astype("f")),
        "large.tflite": convert(network(48), (1, 48, 48, 3)),
        "dynamic.tflite": convert(network(None), (1, None, None, 3)),
    }
    files["unknown.tflite"] = with_unknown_operator(files["float.tflite"])
    for name, data in files.items():
        (HERE / name).write_bytes(data)
        print(f"{name}: {len(data)} bytes")
    np.savez_compressed(HERE / "samples.npz", image=images, output_0=small.predict(images, verbose=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
