"""A tf_keras model's config as a Keras 3 model, with a note of what TFMOT had put around each layer."""

import dataclasses

import keras

from tfcompress.errors import CompressionError
from tfcompress.migrate.layers import INPUT_RANGE, Piece, piece


@dataclasses.dataclass
class Built:
    """A model and where its layers come from.

    Args:
        model: of Keras 3, unwrapped, with fresh weights. pieces: by path, "outer/inner" for nested models; the wrappers'
            names in the old model are in them. input_ranges: {call key: the QuantizeLayer's name} of values that were
            rounded as they came in.
    """

    model: keras.Model
    pieces: dict[str, Piece]
    input_ranges: dict[str, str]


def build(config: dict, custom_objects: dict) -> Built:
    """Rebuild a Sequential or Functional model.

    Raises:
        CompressionError: the model is of another kind, or a layer of it is unknown; the message names it.
    """
    built = Built(None, {}, {})  # type: ignore[arg-type]
    built.model = _model(config, "", custom_objects, built)
    return built


def _model(entry: dict, prefix: str, custom_objects: dict, built: Built) -> keras.Model:
    kind, config = entry["class_name"].rsplit(">", 1)[-1], entry["config"]
    if kind == "Sequential":
        return _sequential(config, prefix, custom_objects, built)
    if kind in ("Functional", "Model") and "input_layers" in config:
        return _Graph(config, prefix, custom_objects, built).model()
    raise CompressionError(
        f"The model is a {entry['class_name']}; TFMOT wraps Sequential and functional models, and only those can be migrated."
    )


def _is_model(entry: dict) -> bool:
    return entry["class_name"].rsplit(">", 1)[-1] in ("Sequential", "Functional", "Model")


def _make(entry: dict, prefix: str, custom_objects: dict, built: Built):
    """(name in the old model, layer or nested model or None)."""
    if _is_model(entry):
        name = entry["config"]["name"]
        return name, _model(entry, f"{prefix}{name}/", custom_objects, built)
    made = piece(entry, custom_objects)
    if made.layer is not None:
        built.pieces[prefix + made.layer.name] = made
    return made.name, made.layer


def _input(config: dict):
    shape = config.get("batch_input_shape", config.get("batch_shape"))
    return keras.Input(batch_shape=tuple(shape or ()), dtype=config.get("dtype"), name=config.get("name"))


def _sequential(config: dict, prefix: str, custom_objects: dict, built: Built) -> keras.Model:
    entries = config["layers"]
    if entries[0]["class_name"] == "InputLayer":
        front, entries = entries[0]["config"], entries[1:]
    else:
        front = {"batch_input_shape": entries[0]["config"].get("batch_input_shape") or config.get("build_input_shape")}
    if front.get("batch_input_shape", front.get("batch_shape")) is None:
        raise CompressionError(f"Model {config['name']!r} was not built when it was saved: its input shape is unknown.")
    chain = [_input(front)]
    for entry in entries:
        name, layer = _make(entry, prefix, custom_objects, built)
        if layer is None:
            built.input_ranges[prefix + chain[-1].name] = name
        else:
            chain.append(layer)
    return keras.Sequential(chain, name=config["name"])


class _Graph:
    """Replays the calls of a functional model's config."""

    def __init__(self, config: dict, prefix: str, custom_objects: dict, built: Built):
        self.config, self.prefix, self.custom_objects, self.built = config, prefix, custom_objects, built
        self.layers: dict[str, object] = {}
        self.values: dict[tuple[str, int], list] = {}

    def model(self) -> keras.Model:
        """Make the layers, call them in an order in which their inputs are there, and close the graph."""
        waiting = []
        for entry in self.config["layers"]:
            if entry["class_name"] == "InputLayer":
                tensor = _input(entry["config"])
                self.values[entry["name"], 0] = [tensor]
                continue
            name, layer = _make(entry, self.prefix, self.custom_objects, self.built)
            self.layers[entry.get("name", name)] = layer
            first = _first_call(entry)
            waiting += [(entry.get("name", name), first + i, node) for i, node in enumerate(entry["inbound_nodes"])]
            if first:
                self.values[entry.get("name", name), 0] = []
        while waiting:
            later = [one for one in waiting if not self._call(*one)]
            if len(later) == len(waiting):
                raise CompressionError(f"The saved graph is not connected at layer {later[0][0]!r}.")
            waiting = later
        inputs = _structure(self.config["input_layers"], self._tensor)
        outputs = _structure(self.config["output_layers"], self._tensor)
        return keras.Model(_single(inputs), _single(outputs), name=self.config["name"])

    def _call(self, name: str, index: int, node) -> bool:
        """Replay one call, unless a value of it or the call before it is still missing."""
        if index and (name, index - 1) not in self.values:
            return False
        if isinstance(node, dict) or not all(_is_reference(part) for part in node):
            raise CompressionError(
                f"Layer {name!r} is called in a form that is not read here (constants or keyword tensors among its inputs). "
                "Rebuild that part with keras.layers, or write it as a layer of its own."
            )
        if any((str(part[0]), int(part[1])) not in self.values for part in node):
            return False
        tensors = [self._tensor(part) for part in node]
        kwargs = {key: value for key, value in (node[0][3] if len(node[0]) > 3 else {}).items() if value is not None}
        if any(isinstance(value, (list, dict)) for value in kwargs.values()):
            raise CompressionError(
                f"Layer {name!r} is called with tensors as keyword arguments, which is not read here."
            )
        layer = self.layers[name]
        if layer is None:
            self.built.input_ranges[self._key(tensors[0])] = name
            self.values[name, index] = tensors
            return True
        result = layer(tensors if len(tensors) > 1 else tensors[0], **kwargs)  # type: ignore[operator]
        self.values[name, index] = keras.tree.flatten(result)
        return True

    def _key(self, tensor) -> str:
        from tfcompress import _keras_compat

        return self.prefix + _keras_compat.operation_of(tensor).name

    def _tensor(self, reference):
        return self.values[str(reference[0]), int(reference[1])][int(reference[2])]


def _first_call(entry: dict) -> int:
    """The number of a layer's first call: a model with inputs of its own counts its own graph as a call."""
    if not _is_model(entry):
        return 0
    layers = entry["config"]["layers"]
    return int(entry["class_name"].rsplit(">", 1)[-1] != "Sequential" or layers[0]["class_name"] == "InputLayer")


def _is_reference(part) -> bool:
    return isinstance(part, (list, tuple)) and len(part) >= 3 and isinstance(part[0], str) and part[1] >= 0


def _structure(value, take):
    """A config's nest of references [name, call, output] with the tensors in their place."""
    if isinstance(value, dict):
        return {key: _structure(part, take) for key, part in value.items()}
    if isinstance(value, (list, tuple)) and len(value) == 3 and isinstance(value[0], str):
        return take(value)
    return [_structure(part, take) for part in value]


def _single(structure):
    """One tensor alone rather than in a list of one."""
    return structure[0] if isinstance(structure, list) and len(structure) == 1 else structure


__all__ = ["INPUT_RANGE", "Built", "build"]
