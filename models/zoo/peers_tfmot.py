"""TFMOT's quantization-aware training in its own environment: python -m models.zoo.peers_tfmot KEY FOLDER EPOCHS

The folder holds data.npz and weights.npz; it leaves tfmot.tflite and tfmot.npz (the simulation's outputs on the test
samples) and prints a line of JSON.
"""

import json
import os
import pathlib
import sys
import traceback
import warnings

import numpy as np

from models.zoo import find
from models.zoo.peers import read, sentence


def run(key: str, folder: pathlib.Path, epochs: int) -> None:
    """Quantize, train, convert; every error says where the tool ends."""
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from models.zoo import custom

    warnings.simplefilter("ignore")
    tf_keras.utils.set_random_seed(0)
    entry, data = find(key), read(folder)
    net = entry.build(tf_keras)
    with np.load(folder / "weights.npz") as stored:
        _fill(net, [stored[name] for name in sorted(stored.files, key=int)])
    net = tfmot.quantization.keras.quantize_model(net)
    loss = entry.loss
    if isinstance(loss, dict):
        loss = {k: getattr(custom, v[4:]) if v.startswith("zoo:") else v for k, v in loss.items()}
    targets = data["y"]
    if isinstance(targets, dict) and not isinstance(net.output, dict):
        # Where quantize_model gives lists, they are in the order of the names.
        targets, loss = ([part[name] for name in sorted(part)] for part in (targets, loss))
    net.compile(tf_keras.optimizers.Adam(entry.rate / 20), loss)
    net.fit(data["x"], targets, batch_size=entry.batch, epochs=epochs, verbose=0)
    simulated = net.predict(data["x_test"], batch_size=64, verbose=0)
    if isinstance(simulated, dict):
        simulated = [simulated[name] for name in sorted(simulated)]
    flat = simulated if isinstance(simulated, list) else [simulated]
    made = tf.lite.TFLiteConverter.from_keras_model(net)
    made.optimizations = [tf.lite.Optimize.DEFAULT]
    made.inference_input_type = made.inference_output_type = tf.int8
    (folder / "tfmot.tflite").write_bytes(made.convert())
    np.savez(folder / "tfmot.npz", **{f"{i:03d}": value for i, value in enumerate(flat)})


def _fill(net, arrays: list[np.ndarray]) -> None:
    """Give a network the weights of its twin, layer by layer."""
    place = 0
    for layer in _layers(net):
        own = layer.get_weights()
        layer.set_weights(arrays[place : place + len(own)])
        place += len(own)
    if place != len(arrays):
        raise ValueError(f"the twin in tf_keras has {place} weights, the network {len(arrays)}")


def _layers(net):
    for layer in net.layers:
        if hasattr(layer, "layers") and hasattr(layer, "compile"):
            yield from _layers(layer)
        else:
            yield layer


def main() -> None:
    """Run, and answer with one line; standard output holds nothing else."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    key, folder, epochs = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    for name in ("tfmot.tflite", "tfmot.npz"):
        (folder / name).unlink(missing_ok=True)
    try:
        run(key, folder, epochs)
        row = {"tool": "tfmot", "converts": True}
    except Exception as error:
        traceback.print_exc()
        row = {"tool": "tfmot", "converts": False, "reason": sentence(error)}
    answers.write(json.dumps(row) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
