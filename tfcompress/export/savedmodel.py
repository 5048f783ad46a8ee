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
    """An input or output of the file: its Keras name, its shape with the batch (None where the model leaves it free), its dtype."""

    name: str
    shape: tuple
    dtype: str


@dataclasses.dataclass(frozen=True)
class Signature:
    """What goes into the file and what comes out.

    Args:
        inputs: ports in the order in which the model takes them. outputs: names in the order of the flattened result.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]


def signature(model, samples, batch: int, trained: bool = False) -> Signature:
    """The signature that the file will have; sizes that the model leaves free are None until `fixed` knows the data.

    Args:
        model: a built Keras model. samples: arrays in the order of the inputs, needed where the model does not know its
            own input shapes (a subclassed model). batch: the fixed batch size. trained: whether quantization-aware training
            has split activations off layers.

    Raises:
        CompressionError: the model is not built, or an input is of a kind that no file takes.
    """
    if not getattr(model, "built", False):
        raise CompressionError(
            f"Model {model.name!r} is not built, so it has no weights to export. "
            "Call it once on a sample, e.g. model(x[:1]), or give it an Input layer."
        )
    tensors = _keras_compat.model_inputs(model)
    if tensors is not None:
        names = _input_names(model, tensors)
        named = [
            (n, tuple(t.shape), keras.backend.standardize_dtype(t.dtype)) for n, t in zip(names, tensors, strict=True)
        ]
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
        if not shape:
            raise CompressionError(
                f"Input {name!r} of model {model.name!r} is a single number; a file needs a batch axis."
            )
        ports.append(Port(name, (batch, *shape[1:]), _dtype(model, name, dtype)))
    _check_batch(model, named, batch)
    return Signature(tuple(_unique(ports)), tuple(_output_names(model, ports, trained)))


def _dtype(model, name: str, dtype: str) -> str:
    """The type of a file's input for a Keras input of type `dtype`."""
    if dtype == "string":
        raise CompressionError(
            f"Input {name!r} of model {model.name!r} is text, and a .tflite file takes numbers. Export the part behind the "
            "text's preprocessing (TextVectorization, StringLookup, ...), with an integer input for the ids."
        )
    if dtype.startswith("complex") or dtype in ("uint32", "uint64"):
        raise CompressionError(
            f"Input {name!r} of model {model.name!r} has dtype {dtype}, which a .tflite input cannot be. Give the model an "
            "input of float32 or int32."
        )
    if dtype.startswith(("float", "bfloat")):
        return "float32"
    # Delegates and phones' runtimes index with 32 bits.
    return "int32" if dtype in ("int64", "int16", "uint16") else dtype


def fixed(model, ports: Signature, arrays: list[np.ndarray] | None) -> tuple[Signature, list[str]]:
    """The signature with the sizes that the model leaves free taken from the data, and a sentence on each.

    Raises:
        CompressionError: there is no data to take them from.
    """
    made, notes = [], []
    for i, port in enumerate(ports.inputs):
        free = [axis for axis, size in enumerate(port.shape) if size is None]
        if free and arrays is None:
            raise CompressionError(
                f"Input {port.name!r} of model {model.name!r} has shape {(None, *port.shape[1:])}: dimension {free} is unknown, and "
                "phones need fixed shapes. Pass samples of the size that the phone will feed (calibration= or samples=), or "
                "rebuild the model with every dimension but the batch fixed."
            )
        if free and arrays is not None:
            port = dataclasses.replace(port, shape=(port.shape[0], *arrays[i].shape[1:]))
            notes.append(
                f"input {port.name!r} has free sizes in the model; the file takes {port.shape}, as the samples have"
            )
        made.append(port)
    return Signature(tuple(made), ports.outputs), notes


def _input_names(model, tensors) -> list[str]:
    """The keys under which a model takes its inputs: those of its dict, else the input layers' names."""
    structure = _keras_compat.input_structure(model)
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return keras.tree.flatten({key: key for key in structure})
    return [t.name for t in tensors]


def _check_batch(model, named, batch: int) -> None:
    for name, shape, _ in named:
        if shape[0] not in (None, batch):
            raise CompressionError(
                f"Input {name!r} of model {model.name!r} has the fixed batch {shape[0]}; export it with batch={shape[0]}."
            )


def _output_names(model, ports: list[Port], trained: bool) -> list[str]:
    """Dictionary keys where the model returns a dict, else the names of the output layers."""
    structure = _keras_compat.output_structure(model)
    if structure is None:
        structure = _keras_compat.call_with_list(model, [np.zeros(p.shape, p.dtype) for p in ports])
        names = [f"output_{i}" for i in range(len(keras.tree.flatten(structure)))]
    else:
        names = [_name_of_end(model, _keras_compat.operation_of(t), trained) for t in keras.tree.flatten(structure)]
    if isinstance(structure, dict) and len(structure) == len(names):
        # The order in which keras.tree flattens a dict.
        names = keras.tree.flatten({key: key for key in structure})
    return [name if names.index(name) == i else f"{name}_{names[:i].count(name)}" for i, name in enumerate(names)]


def _name_of_end(model, operation, trained: bool) -> str:
    """An output's name: of the user's layer where quantization-aware training split that layer's activation off.

    The last of the operations that were split off is called "<layer>_<activation>".
    """
    own = getattr(getattr(operation, "activation", None), "__name__", "")
    for layer in _keras_compat.flat_layers(model) if trained else []:
        prefix, _, applied = operation.name.partition(f"{layer.name}_")
        linear = getattr(layer, "activation", None) is keras.activations.linear
        if linear and not prefix and applied and (applied == own or hasattr(keras.activations, applied)):
            return layer.name
    return operation.name


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
                "rebuild",
                timeout,
                keras_file=str(path),
                saved_model=str(folder),
                inputs=[dataclasses.astuple(port) for port in ports.inputs],
                outputs=ports.outputs,
            )
        except WorkerError as error:
            raise CompressionError(
                f"On the {keras.backend.backend()} backend the model is handed to TensorFlow as a .keras file, which needs "
                f"every layer to be Keras's own or tfcompress's: {str(error)[:600]} "
                "Save the model, load it with KERAS_BACKEND=tensorflow where its classes are registered, and export there."
            ) from error


def float32_twin(model):
    """The model itself, or under another dtype policy a copy with the same weights that computes in float32.

    Raises:
        CompressionError: Keras quantized a layer of it, or it cannot be rebuilt.
    """
    layers = _keras_compat.flat_layers(model)
    quantized = [layer.name for layer in layers if getattr(layer, "quantization_mode", None)]
    if quantized:
        raise CompressionError(
            f"Layers {', '.join(quantized[:5])} of model {model.name!r} were quantized by Keras's own quantize(), whose integer "
            "products the converter has no kernel for. Export the model from before quantize(), with precision='int8' or 'int4'."
        )
    if all(layer.compute_dtype in (None, "float32") for layer in layers):
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
    return isinstance(name, str) and (name.startswith("mixed_") or name in ("float16", "bfloat16", "float64"))


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
            f"(to unroll recurrent layers, or to compute in float32): {error}"
        ) from error
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        if not np.array_equal(np.asarray(a, b.dtype), b, equal_nan=True):
            raise CompressionError(
                f"A copy of model {model.name!r} came out with other weights; its config does not describe it."
            )
    return twin
