"""One primitive under all surgery: replay a model's graph with operations replaced, inserted or dropped.

Two modes. A *copy* makes new layers from their configs and gives them the old weights: the caller's model is untouched.
With `reuse=True` the layer objects themselves are called anew, and the model objects keep their identity where they can:
attached parametrizations, compile state and optimizer slots survive, and the old graph is gone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import keras

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import Call, all_calls, calls, check_names, graph_of, is_nested, operations


class Weighted(NamedTuple):
    """A new layer and the arrays for its weights, set when it is built; they are in the order of `layer.variables`.

    Args:
        layer: a layer that is not built.
        weights: one array a variable; trailing variables (seed states) may be left out.
    """

    layer: keras.Layer
    weights: list


# What may stand for an operation: an operation, weights with it, a function of the call's arguments, or a chain of these.
Replacement: TypeAlias = "keras.Operation | Weighted | Callable | list"


def rebuild(
    model,
    *,
    replace: Mapping[str, Replacement] | None = None,
    insert: Mapping[str, Replacement] | None = None,
    drop=(),
    reuse: bool = False,
    input_shapes: dict[str, tuple] | None = None,
):
    """Replay the graph of a Functional or Sequential model, nested models included, with changes.

    Names, nesting, input and output structure, output names (until the model is saved), dtype policies, trainable flags and
    weights are kept. A Sequential stays one if its result is a chain of layers.

    Args:
        model: a Functional or built Sequential model.
        replace: {operation path: replacement}, for all calls of the operation. In a list, the first takes the call's
            arguments and each other the output of the one before; a function takes the arguments.
        insert: {call key: replacement}, called on the output of that one call; everything that read the output, and the
            model's output if it was one, then reads the inserted one. Input layers have keys too.
        drop: paths of operations to take out; their first tensor is passed on.
        reuse: call the layer objects themselves instead of copies. Other models that share these layers keep working,
            but must not be saved afterwards.
        input_shapes: {path of an input layer: new shape with the batch dimension} (copies only).

    Returns:
        The new model; with `reuse` the same object, unless a Sequential is no chain any more.

    Raises:
        CompressionError: the model has no graph, a name is unknown, or a layer cannot be copied.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"), keras.layers.Dense(2, name="b")])
        >>> new = rebuild(model, insert={"a": keras.layers.ReLU(name="a_range")})
        >>> [layer.name for layer in new.layers], type(new).__name__
        (['a', 'a_range', 'b'], 'Sequential')
    """
    replace, insert, drop, input_shapes = dict(replace or {}), dict(insert or {}), set(drop), dict(input_shapes or {})
    known = operations(model)
    check_names(model, [*replace, *drop, *input_shapes], known)
    check_names(model, insert, [call.key for call in all_calls(model)], what="call")
    changes = {id(known[path]): value for path, value in replace.items()}
    changes |= {id(known[path]): [] for path in drop}
    work = _Rebuild(changes, insert, input_shapes, reuse)
    work.prepare(model, "")
    new = work.model(model, "")
    work.set_weights()
    names = getattr(model, "output_names", None)
    if names is not None and hasattr(new, "output_names"):
        new.output_names = list(names)
    return new


def insertion_points(model) -> list[str]:
    """The keys behind which `rebuild` can insert: every call with a single output, and the inputs.

    Example:
        >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3, name="a")])
        >>> insertion_points(model)
        ['x', 'a']
    """
    return [call.key for call in all_calls(model) if len(call.outputs) == 1 and not is_nested(call.operation)]


class _Rebuild:
    """One replay: what is replaced (by identity of the operation), and what was made for what."""

    def __init__(self, changes: dict[int, Any], insert: dict[str, Any], input_shapes: dict[str, tuple], reuse: bool):
        self.changes, self.insert, self.input_shapes, self.reuse = changes, insert, input_shapes, reuse
        self.made: dict[int, Any] = {}
        self.calls: dict[int, list[Call]] = {}
        self.copied: list[tuple[keras.Layer, keras.Layer]] = []
        self.weighted: list[Weighted] = []

    def prepare(self, model, prefix: str) -> None:
        """Read every graph before any changes; with `reuse`, then let the operations forget them."""
        self._read(model, prefix)
        if self.reuse:
            for call in [call for found in self.calls.values() for call in found]:
                _keras_compat.forget_calls(call.operation, inputs_too=bool(call.inputs))

    def _read(self, model, prefix: str) -> None:
        if id(model) not in self.calls:
            self.calls[id(model)] = calls(model, prefix)
            for call in self.calls[id(model)]:
                if is_nested(call.operation):
                    self._read(call.operation, call.path + "/")

    # Models

    def model(self, model, prefix: str):
        """The new form of a model and of the models in it, made once."""
        if id(model) in self.made:
            return self.made[id(model)]
        links = self._links(model, prefix) if isinstance(model, keras.Sequential) else None
        if links is not None:
            new = self._sequential(model, links)
        else:
            new = self._functional(model, prefix)
        self.made[id(model)] = new
        return new

    def _links(self, model, prefix: str) -> list | None:
        """The layers of the new Sequential, or None where it is no chain of layers any more."""
        graph_of(model)
        front = _keras_compat.input_layer(model)
        links = [(front, prefix + front.name), *self._values(self.insert.get(prefix + front.name, []))]
        count: dict[int, int] = {}
        for layer in model.layers:
            number = count[id(layer)] = count.get(id(layer), -1) + 1
            path = prefix + layer.name
            if id(layer) in self.changes:
                links += self._values(self.changes[id(layer)])
            else:
                links.append((layer, path))
            links += self._values(self.insert.get(f"{path}#{number}" if number else path, []))
        layers = all(
            isinstance(value.layer if isinstance(value, Weighted) else value, keras.Layer) for value, _ in links
        )
        return links if layers and len(links) > 1 else None

    @staticmethod
    def _values(value) -> list:
        return [(part, None) for part in (value if isinstance(value, list) else [value])]

    def _sequential(self, model, links):
        first, *rest = links
        front = first[0] if self.reuse else self._input(*first)
        layers = [front]
        for value, path in rest:
            if path is None:
                layers.append(self._given(value))
            else:
                layers.append(self.operation(value, path))
        if not self.reuse:
            return keras.Sequential(layers, name=model.name, trainable=model.trainable)
        _keras_compat.rewire_sequential(model, layers)
        return model

    def _functional(self, model, prefix: str):
        graph = graph_of(model)
        values: dict[int, Any] = {}
        for call in self.calls[id(model)]:
            if not call.inputs:
                layer = call.operation if self.reuse else self._input(call.operation, call.path)
                outputs = self._insert(call, keras.tree.flatten(layer.output))
                values[id(call.outputs[0])] = outputs[0]
                self.made[id(call.operation)] = layer
            else:
                outputs = self._insert(call, self._replay(call, values))
                values.update({id(old): new for old, new in zip(call.outputs, outputs, strict=True)})
        inputs = keras.tree.map_structure(lambda t: self.made[id(_keras_compat.operation_of(t))].output, graph.input)
        outputs = keras.tree.map_structure(lambda t: values[id(t)], graph.output)
        if self.reuse and not isinstance(model, keras.Sequential):
            _keras_compat.rewire_functional(model, inputs, outputs)
            return model
        cls = type(model) if _keras_compat.functional_constructor(type(model)) else keras.Model
        new = cls(inputs, outputs, name=model.name)
        if not model.trainable:
            new.trainable = False
        return new

    def _replay(self, call: Call, values: dict) -> list:
        def switch(value):
            return values[id(value)] if isinstance(value, keras.KerasTensor) else value

        args, kwargs = keras.tree.map_structure(switch, (call.args, call.kwargs))
        if id(call.operation) not in self.changes:
            outputs = self.operation(call.operation, call.path)(*args, **kwargs)
        else:
            chain = self.changes[id(call.operation)]
            outputs = self._chain(chain if isinstance(chain, list) else [chain], args, kwargs)
        outputs = keras.tree.flatten(outputs)
        if len(outputs) != len(call.outputs):
            raise CompressionError(
                f"The replacement of {call.key!r} returns {len(outputs)} tensors where {len(call.outputs)} are read."
            )
        return outputs

    def _chain(self, chain: list, args, kwargs):
        outputs = None
        # Keras records `mask=None` and the like, which another layer may not take.
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        for index, value in enumerate(chain):
            step = self._given(value)
            outputs = step(outputs) if index else step(*args, **kwargs)
        if not chain:
            tensors = [t for t in keras.tree.flatten((args, kwargs)) if isinstance(t, keras.KerasTensor)]
            outputs = tensors[0]
        return outputs

    def _insert(self, call: Call, outputs: list) -> list:
        if call.key not in self.insert:
            return outputs
        if len(outputs) != 1:
            raise CompressionError(
                f"Nothing can be inserted behind {call.key!r}: it has {len(outputs)} outputs. Insert behind its consumers."
            )
        value = self.insert[call.key]
        return keras.tree.flatten(self._chain(value if isinstance(value, list) else [value], (outputs[0],), {}))

    # Operations

    def _given(self, value):
        """A layer or function that the caller gave; the weights of a Weighted are set at the end, when it is built."""
        if isinstance(value, Weighted):
            if all(value is not known for known in self.weighted):
                self.weighted.append(value)
            return value.layer
        return value

    def operation(self, operation, path: str):
        """The new form of an operation, made once: shared layers stay shared."""
        if is_nested(operation):
            return self.model(operation, path + "/")
        if self.reuse:
            return operation
        if id(operation) not in self.made:
            self.made[id(operation)] = self._copy(operation, path)
        return self.made[id(operation)]

    def _copy(self, operation, path: str):
        if not isinstance(operation, keras.Layer):
            return _keras_compat.fresh_copy(operation)
        try:
            with _keras_compat.trusted_config():
                new = type(operation).from_config(operation.get_config())
        except (NotImplementedError, TypeError) as error:
            raise CompressionError(
                f"The layer {path!r} ({type(operation).__name__}) cannot be copied from its config: {error}. "
                "Give the class a complete get_config."
            ) from error
        self.copied.append((operation, new))
        return new

    def _input(self, layer, path: str | None):
        config = layer.get_config()
        if path in self.input_shapes:
            config["batch_shape"] = tuple(self.input_shapes[path])
        return type(layer).from_config(config)

    def set_weights(self) -> None:
        """Give copies the weights and flags of their originals, and new layers those they came with."""
        for old, new in self.copied:
            copy_state(old, new)
        for layer, weights in self.weighted:
            own = layer.variables
            if len(own) < len(weights) or any(
                tuple(v.shape) != tuple(w.shape) for v, w in zip(own, weights, strict=False)
            ):
                raise CompressionError(
                    f"The new layer {layer.name!r} has weights of shapes {[tuple(v.shape) for v in own]}, and was given "
                    f"{[tuple(w.shape) for w in weights]}."
                )
            for variable, value in zip(own, weights, strict=False):
                variable.assign(value)


def copy_state(old, new) -> None:
    """Give a layer the weights and trainable flags of another that was made from its config.

    Raises:
        CompressionError: their weights do not correspond.
    """
    if [tuple(v.shape) for v in old.variables] != [tuple(v.shape) for v in new.variables]:
        raise CompressionError(
            f"The layer {old.name!r} ({type(old).__name__}) made from its own config has other weights than the original "
            f"({len(new.variables)} against {len(old.variables)}). Its get_config must say everything that shapes them."
        )
    for target, source in zip(new.variables, old.variables, strict=True):
        target.assign(source)
    _copy_flags(old, new)


def _copy_flags(old, new) -> None:
    if new.trainable != old.trainable:
        new.trainable = old.trainable
    for inner, other in zip(_keras_compat.sublayers(old), _keras_compat.sublayers(new), strict=False):
        _copy_flags(inner, other)
