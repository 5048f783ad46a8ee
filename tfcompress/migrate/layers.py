"""One tf_keras layer's config as a Keras 3 layer, out of TFMOT's wrapper."""

import dataclasses
import inspect
from typing import Any

import keras

from tfcompress.errors import CompressionError

PRUNED, CLUSTERED, QUANTIZED, PLAIN, INPUT_RANGE = "pruned", "clustered", "quantized", "plain", "input range"
_WRAPPERS = {
    "PruneLowMagnitude": PRUNED,
    "ClusterWeights": CLUSTERED,
    "ClusterWeightsRNN": CLUSTERED,
    "ClusterWeightsMHA": CLUSTERED,
    "QuantizeWrapper": QUANTIZED,
    "QuantizeWrapperV2": QUANTIZED,
    "QuantizeAnnotate": PLAIN,
}
# Arguments whose name changed.
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
# What the same name means another thing by, in Keras 3.
_CHANGED = {"hard_sigmoid": "0.2 x + 0.5 between 0 and 1 in tf_keras, relu6(x + 3) / 6 in Keras 3"}


@dataclasses.dataclass
class Piece:
    """One layer of the old model.

    Args:
        name: of the old layer, wrapper included. kind: what was wrapped around it. layer: the Keras 3 layer, None for an
            input range. config: the wrapper's.
    """

    name: str
    kind: str
    layer: Any
    config: dict


def piece(entry: dict, custom_objects: dict) -> Piece:
    """A layer's entry in a config, unwrapped.

    Raises:
        CompressionError: the layer or its wrapper is unknown, or means another thing in Keras 3.
    """
    kind = entry["class_name"].rsplit(">", 1)[-1]
    config = entry["config"]
    name = config.get("name") or entry.get("name", kind)
    if kind == "QuantizeLayer":
        return Piece(name, INPUT_RANGE, None, config)
    if kind in _WRAPPERS:
        return Piece(name, _WRAPPERS[kind], layer_from(config["layer"], custom_objects), config)
    return Piece(name, PLAIN, layer_from(entry, custom_objects), {})


def layer_from(entry: dict, custom_objects: dict) -> keras.Layer:
    """A Keras 3 layer from the config of a tf_keras layer."""
    kind, config = entry["class_name"].rsplit(">", 1)[-1], dict(entry["config"])
    name = config.get("name", kind)
    found: Any = custom_objects.get(kind) or getattr(keras.layers, kind, None)
    if not (inspect.isclass(found) and issubclass(found, keras.Layer)) or kind == "Lambda":
        own = (
            "Python code that no config holds"
            if kind in ("Lambda", "TFOpLambda", "SlicingOpLambda")
            else "unknown here"
        )
        raise CompressionError(
            f"Layer {name!r} is a {entry['class_name']}, {own}. If it is a layer of yours, pass custom_objects={{'{kind}': "
            "YourKeras3Layer}; if TFMOT or you wrapped a layer in it, strip that wrapper first; else rebuild that part of the model."
        )
    config = {
        _RENAMED.get(kind, {}).get(key, key): _value(name, key, value, custom_objects) for key, value in config.items()
    }
    if config.pop("time_major", False):
        raise CompressionError(
            f"Layer {name!r} has time_major=True, which Keras 3 does not know. Transpose its input instead."
        )
    cls: type[keras.Layer] = found
    known = _arguments(cls)
    try:
        return cls.from_config({key: value for key, value in config.items() if known is None or key in known})
    except (TypeError, ValueError, KeyError) as error:
        raise CompressionError(f"Layer {name!r} ({kind}) cannot be made in Keras 3 from its config: {error}") from error


def _arguments(cls) -> set[str] | None:
    """What a layer's constructor takes; None for a class that is not Keras's own, which gets all."""
    if not cls.__module__.startswith("keras."):
        return None
    found = {"name", "trainable", "dtype", "activity_regularizer"}
    for base in cls.__mro__:
        if issubclass(base, keras.Layer) and base is not keras.Layer and "__init__" in vars(base):
            signature = inspect.signature(base.__init__).parameters
            found |= set(signature)
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values()):
                break
    return found - {"self", "kwargs", "args"}


def _value(name: str, key: str, value, custom_objects: dict):
    """A config's value in Keras 3's words."""
    if key == "dtype":
        return _dtype(value)
    if key == "axis" and isinstance(value, list) and len(value) == 1:
        return value[0]
    if key == "cell" or (key in ("layer", "backward_layer") and isinstance(value, dict)):
        return keras.saving.serialize_keras_object(layer_from(value, custom_objects))
    if key.endswith("activation"):
        return _activation(name, value)
    return value


def _dtype(value):
    if isinstance(value, dict):
        return value.get("config", {}).get("name", "float32")
    return value


def _activation(name: str, value):
    """An activation without what TFMOT puts around or in the place of it."""
    if isinstance(value, dict):
        kind = value.get("class_name", "").rsplit(">", 1)[-1]
        if kind == "NoOpActivation":
            return "linear"
        if kind == "QuantizeAwareActivation":
            return _activation(name, value["config"]["activation"])
    if value in _CHANGED:
        raise CompressionError(
            f"Layer {name!r} uses the activation {value!r}, which is another function in Keras 3 ({_CHANGED[value]}). Replace it in "
            "the old model, train on, and migrate then."
        )
    return value
