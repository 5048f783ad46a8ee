"""Every private Keras name that tfcompress uses, checked with Keras 3.15.1.

Each is wrapped here once, so that a Keras release that moves one of them breaks one file; a slow test imports this file
against the newest Keras.
"""

import contextlib

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope, get_autocast_scope

CHECKED_WITH = "3.15.1"


def no_autocast() -> AutocastScope:
    """A scope in which variables are read in their own dtype."""
    return AutocastScope(None)


def autocast(value):
    """Cast a float tensor to the compute dtype of the layer that is being called, if one is."""
    scope = get_autocast_scope()
    return value if scope is None else scope.maybe_cast(value)


def training_now() -> bool:
    """Whether the layer call that is running is a training call; false outside any call."""
    context = global_state.get_global_attribute("current_call_ctx")
    return bool(context is not None and context.get_value("training"))


def values_readable() -> bool:
    """Whether variables hold values here: false while a graph or a stateless function is traced."""
    if in_stateless_scope():
        return False
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly()
    return True


@contextlib.contextmanager
def unlocked(layer):
    """Let variables be added to a layer that is built."""
    tracker = layer._tracker
    locked = tracker.locked
    tracker.unlock()
    try:
        yield
    finally:
        if locked:
            tracker.lock()


def own_variables(layer) -> list:
    """A layer's own weights, without those of its sub-layers: trainable ones first, as Keras saves them."""
    return list(layer._trainable_variables) + list(layer._non_trainable_variables)


def sublayers(layer) -> list:
    """The direct sub-layers that a layer tracks."""
    return list(layer._layers)


def track(layer, variable) -> None:
    """Add a variable to a layer's weights, whatever the state of the layer."""
    with unlocked(layer):
        trainable = variable.trainable
        # Keras files a variable by its flag, and a frozen layer's would go to the wrong list.
        layer._track_variable(variable)
        variable.trainable = trainable and layer.trainable


def untrack(layer, variable) -> None:
    """Take a variable out of a layer's weights."""
    layer._untrack_variable(variable)


def variable_lists(layer) -> tuple[list, list]:
    """The live lists (trainable, non-trainable) in which a layer keeps its own variables."""
    return layer._trainable_variables, layer._non_trainable_variables


def track_seed(layer, generator) -> None:
    """Make a SeedGenerator's state part of a layer's variables."""
    with unlocked(layer):
        layer._tracker.track(generator)


def untrack_seed(layer, generator) -> None:
    """The inverse of `track_seed`."""
    with unlocked(layer):
        layer._tracker.untrack(generator)


def strategy_scope(variable):
    """The tf.distribute scope in which a variable lives, so that companions are made in it; else an empty scope."""
    value = getattr(variable, "_value", None)
    strategy = getattr(value, "distribute_strategy", None)
    return strategy.scope() if strategy is not None else contextlib.nullcontext()


def read(variable) -> np.ndarray:
    """A variable's value as a read-only array, without a copy where the backend allows it."""
    value = variable._value
    if hasattr(value, "read_value") and not hasattr(value, "values"):
        return np.asarray(memoryview(value.read_value()))
    return np.asarray(value) if keras.backend.backend() == "jax" else keras.ops.convert_to_numpy(variable.value)


class VariableGroup:
    """Variables of one dtype that are read and assigned together: on TensorFlow in one call with one flat array.

    A step is short and networks have fifty kernels: calls, and arguments of calls, take longer than the bytes.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables):
        self.variables = list(variables)
        self._values = [variable._value for variable in self.variables]
        self._flat = all(hasattr(value, "read_value") and not hasattr(value, "values") for value in self._values)
        if self._flat:
            import tensorflow as tf

            sizes = [int(np.prod(value.shape)) for value in self._values]
            self._cuts = np.cumsum(sizes)[:-1]

            def read_flat():
                return tf.concat([tf.reshape(value.read_value(), [-1]) for value in self._values], 0)

            def assign_flat(array):
                for value, part in zip(self._values, tf.split(array, sizes), strict=True):
                    value.assign(tf.reshape(part, value.shape))

            self._read = tf.function(read_flat).get_concrete_function()
            signature = tf.TensorSpec([sum(sizes)], self._values[0].dtype)
            self._assign = tf.function(assign_flat).get_concrete_function(signature)

    def read(self) -> list[np.ndarray]:
        """The values, as read-only arrays."""
        if self._flat:
            parts = np.split(np.asarray(memoryview(self._read())), self._cuts)
            return [part.reshape(value.shape) for part, value in zip(parts, self._values, strict=True)]
        return [read(variable) for variable in self.variables]

    def assign(self, arrays) -> None:
        """Assign arrays of the variables' shapes and dtype."""
        if self._flat:
            self._assign(keras.ops.convert_to_tensor(np.concatenate([array.ravel() for array in arrays])))
        else:
            for variable, array in zip(self.variables, arrays, strict=True):
                variable.assign(array)


def as_tensor(value):
    """A value as a tensor of the backend; `keras.ops.convert_to_tensor` returns variables as they are."""
    value = value.value if isinstance(value, keras.Variable) else keras.ops.convert_to_tensor(value)
    return value.read_value() if hasattr(value, "read_value") else value


def initialized(variable) -> bool:
    """Whether a variable holds a value already (it may wait for the end of a traced build)."""
    return getattr(variable, "_value", None) is not None


def reset_functions(model) -> None:
    """Drop compiled train, test and predict functions, which still run the graph from before a change."""
    for name in ("train_function", "test_function", "predict_function"):
        if hasattr(model, name):
            setattr(model, name, None)


def fresh_variable_view(cls, like, attributes: dict):
    """An instance of a `keras.Variable` subclass that owns no storage and looks like the variable `like`."""
    view = object.__new__(cls)
    state = {key: value for key, value in like.__dict__.items() if not key.startswith("_self_")}
    state.update({"_value": None, "_regularizer": None, "_constraint": None, **attributes})
    for key, value in state.items():
        object.__setattr__(view, key, value)
    return view


# Graphs of operations (used by tfcompress/graph).


def functional(model):
    """The Functional graph of a model: itself, or the one behind a built Sequential; None where there is none."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if isinstance(model, keras.Function) and isinstance(model, keras.Model) else None


def graph_nodes(functional_model) -> list:
    """The calls that make up a Functional model, deepest (nearest to the inputs) first."""
    by_depth = functional_model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def inbound_nodes(operation) -> list:
    """Every call of an operation that Keras recorded, in the order of the calls, whatever model they belong to."""
    return operation._inbound_nodes


def operation_of(tensor):
    """The operation whose output a symbolic tensor is."""
    return tensor._keras_history.operation


def forget_calls(operation, inputs_too: bool = True) -> None:
    """Let an operation forget the graphs in which it was called, so that it can be called anew as if for the first time."""
    if inputs_too:
        operation._inbound_nodes.clear()
    operation._outbound_nodes.clear()


def fresh_copy(operation):
    """A copy of an operator (it holds no weights) that was never called."""
    import copy

    new = copy.copy(operation)
    new._inbound_nodes, new._outbound_nodes = [], []
    return new


def input_layer(sequential):
    """The input layer that a built Sequential keeps in front of its listed layers."""
    return sequential._layers[0]


def rewire_functional(model, inputs, outputs) -> None:
    """Give a Functional model another graph and keep the object: its compile state, attributes and class."""
    from keras.src.ops.function import map_graph

    flat_inputs, flat_outputs = keras.tree.flatten(inputs), keras.tree.flatten(outputs)
    nodes, nodes_by_depth, operations, operations_by_depth = map_graph(flat_inputs, flat_outputs)
    before = [operation for operation in model._operations if isinstance(operation, keras.Layer)]
    # Under this scope the lists are stored as they are, as in the constructor of Functional.
    from keras.src.utils.tracking import DotNotTrackScope

    automatic = getattr(model, "_self_setattr_tracking", True)
    model._self_setattr_tracking = False
    with DotNotTrackScope():
        model._inputs_struct, model._outputs_struct = inputs, outputs
        model._inputs, model._outputs = flat_inputs, flat_outputs
        model._nodes, model._nodes_by_depth = nodes, nodes_by_depth
        model._operations, model._operations_by_depth = operations, operations_by_depth
    model._self_setattr_tracking = automatic
    now = [operation for operation in operations if isinstance(operation, keras.Layer)]
    for layer in before:
        model._tracker.untrack(layer)
    others = list(model._layers)
    for layer in others:
        model._tracker.untrack(layer)
    for layer in [*now, *others]:
        model._tracker.track(layer)
    reset_functions(model)


def rewire_sequential(model, layers) -> None:
    """Give a Sequential other layers (the input layer first) and keep the object."""
    model._layers = list(layers)
    model._maybe_rebuild()
    reset_functions(model)


def functional_constructor(cls) -> bool:
    """Whether a model class is constructed from inputs and outputs, as Functional is."""
    from keras.src.models.functional import functional_like_constructor

    return functional_like_constructor(cls)


def trusted_config():
    """A scope in which a layer may be made from the config of one that is in memory, Lambda layers included."""
    from keras.src.saving.serialization_lib import SafeModeScope

    return SafeModeScope(False)


# Signatures of models (used by tfcompress/export).


def model_inputs(model) -> list | None:
    """A model's symbolic inputs, flat; None for a subclassed model, which has none."""
    graph = functional(model)
    return None if graph is None else list(graph.inputs)


def call_with_list(model, values):
    """Call a model in inference mode with its inputs as a flat list, whatever structure it was made with."""
    graph = functional(model)
    if graph is None:
        return model(*values, training=False)
    return model(keras.tree.pack_sequence_as(graph._inputs_struct, list(values)), training=False)


def output_structure(model):
    """The structure of a graph model's outputs; None for a subclassed model."""
    graph = functional(model)
    return None if graph is None else graph._outputs_struct


def flat_layers(model) -> list:
    """A model and all layers below it."""
    return list(model._flatten_layers())


# Tracing without computing (used by tfcompress/cost).


def trace_shapes(function, *args, **kwargs):
    """Run a function on KerasTensors as the backend traces it: nothing is computed and no variable changes."""
    from keras.src import backend

    return backend.compute_output_spec(function, *args, **kwargs)


# Training (used by tfcompress/distillation).


def logits_behind(tensor):
    """The logits of which a tensor is the softmax, where Keras noted them (not on JAX); None otherwise."""
    return getattr(tensor, "_keras_logits", None)


def loss_takes_training(model, value: bool | None = None) -> bool:
    """Whether Keras tells a model's `compute_loss` if it trains (it looks once, in the constructor); sets it with `value`."""
    before = model._compute_loss_has_training_arg
    if value is not None:
        model._compute_loss_has_training_arg = value
    return before


def unscaled(loss):
    """A loss as it was before it was divided by the number of replicas (tf.distribute)."""
    from keras.src.losses.loss import unscale_loss_for_distribution

    return unscale_loss_for_distribution(loss)


def additional_losses(model) -> list:
    """Regularizers' and add_loss terms as scalars, as `Model.compute_loss` adds them up."""
    return [model._aggregate_additional_loss(loss) for loss in model.losses]


def add_bias(layer, size: int) -> None:
    """Give a built Dense or convolution layer that has no bias one of zeros, as if it had been made with it."""
    with unlocked(layer), keras.name_scope(layer.name):
        layer.use_bias = True
        layer.bias = layer.add_weight(
            name="bias",
            shape=(size,),
            initializer="zeros",
            regularizer=layer.bias_regularizer,
            constraint=layer.bias_constraint,
        )


def readers(operation) -> list:
    """The operations that read an operation's outputs in the graph it was last called in."""
    return [node.operation for node in operation._outbound_nodes]


def compile_like(new, old) -> None:
    """Compile a model that surgery made with the settings of the one it was made of, if that one was compiled."""
    if not getattr(old, "compiled", False):
        return

    def fresh(metrics):
        return keras.tree.map_structure(
            lambda m: type(m).from_config(m.get_config()) if isinstance(m, keras.metrics.Metric) else m, metrics
        )

    metrics = getattr(old, "_compile_metrics", None)
    optimizer = getattr(old, "optimizer", None)
    new.compile(
        optimizer=type(optimizer).from_config(optimizer.get_config()) if optimizer is not None else "rmsprop",
        loss=getattr(old, "loss", None),
        loss_weights=getattr(getattr(old, "_compile_loss", None), "_user_loss_weights", None),
        metrics=fresh(getattr(metrics, "_user_metrics", None)),
        weighted_metrics=fresh(getattr(metrics, "_user_weighted_metrics", None)),
        run_eagerly=old.run_eagerly,
        steps_per_execution=old.steps_per_execution,
        jit_compile=old.jit_compile,
    )


def input_structure(model):
    """The structure in which a graph model takes its inputs; None for a subclassed model."""
    graph = functional(model)
    return None if graph is None else graph._inputs_struct


def moments(normalization, inputs, mask=None):
    """Mean and variance of a batch along the axes of a BatchNormalization layer, as the layer takes them."""
    return normalization._moments(inputs, mask)


def is_builtin(layer) -> bool:
    """Whether a layer is one of `keras.layers`, or made from one, so that what its weights do is known."""
    # Where Keras keeps its layers; the module of the base class of all is among them.
    modules = [base.__module__ for base in type(layer).__mro__ if base is not keras.layers.Layer]
    return any(module.startswith("keras.src.layers.") for module in modules)


def mask_of(tensor):
    """The mask that goes with a symbolic tensor (as Embedding with mask_zero and Masking make one), or None."""
    from keras.src.backend import get_keras_mask

    return get_keras_mask(tensor)


def output_index(tensor) -> int:
    """Which of its operation's outputs a symbolic tensor is."""
    return tensor._keras_history.tensor_index
