"""Reading a Keras graph: its operations' calls, in an order in which they can be replayed, under stable names."""

import dataclasses
from collections.abc import Iterator

import keras

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError, nearest


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation in a model's graph.

    Args:
        key: the operation's path; "path#1" is its second call, "path#2" the third.
        path: names of the enclosing nested models and of the operation, joined with "/".
        operation: the layer or `keras.ops` operator.
        args, kwargs: what it was called with; symbolic tensors stand for the data.
        inputs, outputs: the symbolic tensors, flat.
    """

    key: str
    path: str
    operation: keras.Operation
    args: tuple
    kwargs: dict
    inputs: tuple
    outputs: tuple

    def __repr__(self) -> str:
        return f"Call({self.key!r})"


def graph_of(model):
    """The Functional graph of a model; a Sequential's is behind it.

    Raises:
        CompressionError: the model has no graph (subclassed), or is not built yet.
    """
    found = _keras_compat.functional(model)
    if found is not None:
        return found
    name = getattr(model, "name", model)
    if isinstance(model, keras.Sequential):
        raise CompressionError(
            f"The Sequential model {name!r} is not built, so its graph is unknown. "
            "Begin it with keras.Input(shape), or call model.build(input_shape) first."
        )
    raise CompressionError(
        f"The model {name!r} ({type(model).__name__}) has no graph of layers: its connections are in the Python code of "
        "`call`. Write it with the functional API (keras.Model(inputs, outputs)), or apply this to its functional parts."
    )


def is_nested(operation) -> bool:
    """Whether an operation is a model with a graph of its own.

    Example:
        >>> is_nested(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])), is_nested(keras.layers.Dense(1))
        (True, False)
    """
    return isinstance(operation, keras.Model) and _keras_compat.functional(operation) is not None


def calls(model, prefix: str = "") -> list[Call]:
    """The calls of a model's own graph in an order in which they can be replayed, those of input layers first.

    Args:
        model: a Functional or built Sequential model; the calls inside nested models are not listed.
        prefix: put before the names, as "outer/".

    Example:
        >>> x = keras.Input((4,), name="x")
        >>> dense = keras.layers.Dense(4, name="dense")
        >>> [call.key for call in calls(keras.Model(x, dense(dense(x))))]
        ['x', 'dense', 'dense#1']
    """
    nodes = _keras_compat.graph_nodes(graph_of(model))
    of_operation: dict[int, list] = {}
    for node in nodes:
        of_operation.setdefault(id(node.operation), []).append(node)
    number: dict[int, int] = {}
    after: dict[int, int | None] = {}
    for own in of_operation.values():
        order = {id(node): index for index, node in enumerate(_keras_compat.inbound_nodes(own[0].operation))}
        own.sort(key=lambda node: order[id(node)])
        for index, node in enumerate(own):
            number[id(node)] = index
            after[id(node)] = id(own[index - 1]) if index else None
    inputs = [node for node in nodes if node.is_input]
    waiting = [node for node in nodes if not node.is_input]
    known = {id(tensor) for node in inputs for tensor in node.outputs}
    known |= {id(tensor) for tensor in graph_of(model).inputs}
    done: set[int | None] = {None}
    found = [_call(node, 0, prefix) for node in inputs]
    while waiting:
        later = []
        for node in waiting:
            # A second call is replayed after the first, so that the numbers stay the same in the new graph.
            if after[id(node)] in done and all(id(tensor) in known for tensor in node.input_tensors):
                done.add(id(node))
                known |= {id(tensor) for tensor in node.outputs}
                found.append(_call(node, number[id(node)], prefix))
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise CompressionError(
                f"The graph of model {model.name!r} is not connected at {later[0].operation.name!r}."
            )
        waiting = later
    return found


def _call(node, number: int, prefix: str) -> Call:
    path = prefix + node.operation.name
    return Call(
        key=f"{path}#{number}" if number else path,
        path=path,
        operation=node.operation,
        args=node.arguments.args,
        kwargs=node.arguments.kwargs,
        inputs=tuple(node.input_tensors),
        outputs=tuple(node.outputs),
    )


def all_calls(model, prefix: str = "") -> Iterator[Call]:
    """Every call of a model's graph and, after each nested model's first call, of the graph inside it.

    Example:
        >>> inner = keras.Sequential([keras.Input((2,), name="in"), keras.layers.Dense(1, name="d")], name="inner")
        >>> x = keras.Input((2,), name="x")
        >>> [call.key for call in all_calls(keras.Model(x, inner(x)))]
        ['x', 'inner', 'inner/in', 'inner/d']
    """
    seen = set()
    for call in calls(model, prefix):
        yield call
        if is_nested(call.operation) and id(call.operation) not in seen:
            seen.add(id(call.operation))
            yield from all_calls(call.operation, call.path + "/")


def operations(model) -> dict[str, keras.Operation]:
    """Every layer and operator of a model's graph by its path, nested ones as "outer/inner".

    Example:
        >>> x = keras.Input((2,), name="x")
        >>> list(operations(keras.Model(x, keras.ops.relu(keras.layers.Dense(2, name="d")(x)))))[:2]
        ['x', 'd']
    """
    return {call.path: call.operation for call in all_calls(model)}


def check_names(model, wanted, known, what: str = "operation") -> None:
    """Refuse names that a model's graph does not have.

    Raises:
        CompressionError: it names the first unknown one and the nearest that exists.
    """
    known = set(known)
    for name in wanted:
        if name not in known:
            raise CompressionError(f"The model {model.name!r} has no {what} {name!r}. {nearest(name, known)}")
