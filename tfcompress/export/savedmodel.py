"""Keras model -> SavedModel folder with a fixed batch and the Keras names in its signature."""

import dataclasses
import inspect
import pathlib
import tempfile
import warnings

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError
from tfcompress.export.worker import Worker, WorkerError


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of the file: its Keras name, its shape with the batch, its dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Signature:
    """What goes into the file and what comes out.

    Args:
        inputs: ports in the order in which the model takes them. outputs: names in the order of the flattened result.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]


def signature(model, samples, batch: int) -> Signature:
    """The signature that the file will have.

    Args:
        model: a built Keras model. samples: arrays in the order of the inputs, needed where the model does not know its
            own input shapes (a subclassed model). batch: the fixed batch size.

    Raises:
        CompressionError: the model is not built, or a dimension other than the batch is None.
    """
    if not getattr(model, "built", False):
        raise CompressionError(
            f"Model {model.name!r} is not built, so it has no weights to export. "
            "Call it once on a sample, e.g. model(x[:1]), or give it an Input layer."
        )
    tensors = _keras_compat.model_inputs(model)
    if tensors is not None:
        named = [(t.name, tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for t in tensors]
    elif samples:
        call = [p for p in inspect.signature(model.call).parameters if p not in ("training", "mask", "self")]
        names = call if len(call) == len(samples) else [f"input_{i}" for i in range(len(samples))]
        named = [(n, (None, *x.shape[1:]), str(x.dtype)) for n, x in zip(names, samples, strict=True)]
    else:
        raise CompressionError(
            f"Model {model.name!r} is subclassed and does not know its input shapes. Pass samples=x[:16] to the export."
        )
    ports = []
    for name, shape, dtype in named:
        unknown = [axis for axis, size in enumerate(shape) if size is None and axis > 0]
        if unknown or not shape:
            raise CompressionError(
                f"Input {name!r} of model {model.name!r} has shape {tuple(shape)}: dimension {unknown or 'batch'} is unknown, "
                "and phones need fixed shapes. Rebuild the model with every dimension but the batch fixed."
            )
        if dtype in ("string", "float64", "complex64"):
            raise CompressionError(
                f"Input {name!r} of model {model.name!r} has dtype {dtype}, which a .tflite input cannot be."
            )
        ports.append(
            Port(
                name,
                (batch, *(int(n) for n in shape[1:])),
                "float32" if dtype.startswith(("float", "bfloat")) else dtype,
            )
        )
    _check_batch(model, named, batch)
    return Signature(tuple(_unique(ports)), tuple(_output_names(model, ports)))


def _check_batch(model, named, batch: int) -> None:
    for name, shape, _ in named:
        if shape[0] not in (None, batch):
            raise CompressionError(
                f"Input {name!r} of model {model.name!r} has the fixed batch {shape[0]}; export it with batch={shape[0]}."
            )


def _output_names(model, ports: list[Port]) -> list[str]:
    """Dictionary keys where the model returns a dict, else the names of the output layers."""
    structure = _keras_compat.output_structure(model)
    if structure is None:
        structure = _keras_compat.call_with_list(model, [np.zeros(p.shape, p.dtype) for p in ports])
        names = [f"output_{i}" for i in range(len(keras.tree.flatten(structure)))]
    else:
        names = [_keras_compat.operation_of(t).name for t in keras.tree.flatten(structure)]
    if isinstance(structure, dict) and len(structure) == len(names):
        # The order in which keras.tree flattens a dict.
        names = keras.tree.flatten({key: key for key in structure})
    return [name if names.index(name) == i else f"{name}_{names[:i].count(name)}" for i, name in enumerate(names)]


def _unique(ports: list[Port]) -> list[Port]:
    seen: dict[str, int] = {}
    result = []
    for port in ports:
        count = seen[port.name] = seen.get(port.name, -1) + 1
        result.append(dataclasses.replace(port, name=f"{port.name}_{count}") if count else port)
    return result


def write(model, ports: Signature, folder: str | pathlib.Path) -> None:
    """Write a SavedModel with TensorFlow in this process (the TensorFlow backend only)."""
    import tensorflow as tf

    specs = [tf.TensorSpec(port.shape, port.dtype, name=port.name) for port in ports.inputs]

    def serve(*values):
        flat = keras.tree.flatten(_keras_compat.call_with_list(model, values))
        return {
            name: tf.cast(value, tf.float32) if value.dtype.is_floating else value
            for name, value in zip(ports.outputs, flat, strict=True)
        }

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serving_default", serve, specs)
        archive.write_out(str(folder), verbose=False)


def prepare(model, ports: Signature, folder: pathlib.Path, worker: Worker, timeout: float | None = None) -> None:
    """Write the SavedModel by the way that fits the backend.

    On the JAX and torch backends the worker loads the model's `.keras` file on TensorFlow, which needs every class in
    it to be Keras's or ours.

    Raises:
        CompressionError: a class of the model cannot be loaded in the worker.
    """
    if keras.backend.backend() == "tensorflow":
        write(model, ports, folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch, "model.keras")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(path)
        try:
            worker.request(
                "rebuild", timeout, keras_file=str(path), saved_model=str(folder), batch=ports.inputs[0].shape[0]
            )
        except WorkerError as error:
            raise CompressionError(
                f"On the {keras.backend.backend()} backend the model is handed to TensorFlow as a .keras file, which needs "
                f"every layer to be Keras's own or tfcompress's: {str(error)[:600]} "
                "Save the model, load it with KERAS_BACKEND=tensorflow where its classes are registered, and export there."
            ) from error


def float32_twin(model):
    """The model itself, or under a mixed-precision policy a copy that computes in float32 (weights are float32 anyway)."""
    if all(layer.compute_dtype in (None, "float32") for layer in _keras_compat.flat_layers(model)):
        return model
    return _twin(model, lambda key, value: "float32" if key == "dtype" and _is_policy(value) else value)


def unrolled_twin(model):
    """A copy in which every recurrent layer is unrolled over its time steps, or None when there is none to unroll."""
    rolled = [
        layer for layer in _keras_compat.flat_layers(model) if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    if not rolled:
        return None
    return _twin(model, lambda key, value: True if key == "unroll" else value)


def _is_policy(value) -> bool:
    name = value.get("config", {}).get("name") if isinstance(value, dict) else value
    return isinstance(name, str) and (name.startswith("mixed_") or name in ("float16", "bfloat16"))


def _twin(model, change):
    """A copy through the model's config with `change(key, value)` on every entry, and the same weights."""

    def walk(value):
        if isinstance(value, dict):
            return {k: change(k, walk(v)) for k, v in value.items()}
        return [walk(v) for v in value] if isinstance(value, list | tuple) else value

    try:
        serialized = keras.saving.serialize_keras_object(model)
        serialized.pop("compile_config", None)
        twin = keras.saving.deserialize_keras_object(walk(serialized))
        twin.name = model.name
        twin.set_weights(model.get_weights())
    except Exception as error:
        raise CompressionError(
            f"Model {model.name!r} cannot be rebuilt from its config, which this export needs "
            f"(to unroll recurrent layers or to leave mixed precision): {error}"
        ) from error
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        if not np.array_equal(a, b, equal_nan=True):
            raise CompressionError(
                f"A copy of model {model.name!r} came out with other weights; its config does not describe it."
            )
    return twin
