"""How chains of parametrizations are saved: swapped classes, and carriers that list what lies below them.

A swapped class is a subclass of the layer's own, cached per base, with the base's `__name__` (Keras files layers under
it) and one registered name for all, since it does not exist in a fresh process. Its config is the base's, and in it
"tfcompress": the base's identity, the chains on the layer's own weights, and, for an ancestor whose config does not
list its children (LSTM, MultiHeadAttention, a subclassed model), those of its descendants by attribute path.
"""

import keras

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError, nearest
from tfcompress.parametrization import STATE, State, attach, state

_CLASSES: dict[type, type] = {}
_KEY = "tfcompress"


def base_class(layer) -> type:
    """A layer's class, without the swap.

    Example:
        >>> base_class(keras.layers.Dense(2)) is keras.layers.Dense
        True
    """
    return getattr(type(layer), "_tfcompress_base", type(layer))


def swap(layer) -> State:
    """Give a layer the swapped class and a state, if it has none, and return the state."""
    if STATE not in layer.__dict__:
        object.__setattr__(layer, "__class__", _swapped(type(layer)))
        layer.__dict__[STATE] = State(layer)
    return layer.__dict__[STATE]


def unswap(layer) -> None:
    """Give a layer its own class back."""
    object.__setattr__(layer, "__class__", base_class(layer))
    layer.__dict__.pop(STATE, None)


def carry(layer) -> None:
    """Make an ancestor carry its descendants' chains, unless its config lists its children."""
    if not lists_children(layer):
        swap(layer)


def lists_children(layer) -> bool:
    """Whether a layer's saved config holds the configs of its sub-layers: Sequential and functional models."""
    return base_class(layer) is keras.Sequential or base_class(layer).__name__ == "Functional"


def children(layer) -> dict[tuple[str, ...], keras.Layer]:
    """Direct sub-layers by the path that reaches them: by name in models, by attribute elsewhere."""
    if lists_children(layer):
        return {(child.name,): child for child in layer.layers}
    found: dict[tuple[str, ...], keras.Layer] = {}
    seen: set[int] = set()

    def look(path, value):
        if isinstance(value, keras.Layer) and not isinstance(value, keras.metrics.Metric):
            if id(value) not in seen:
                seen.add(id(value))
                found[path] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                look((*path, str(key)), item)
        elif isinstance(value, (list, tuple)):
            for key, item in enumerate(value):
                look((*path, str(key)), item)

    tracked = {id(child) for child in _keras_compat.sublayers(layer)}
    for key, value in layer.__dict__.items():
        if key not in ("_layers", "_metrics", "_tracker", "_tracked", "_functional", STATE) and not key.startswith(
            "_self_"
        ):
            look((key,), value)
    return {path: child for path, child in found.items() if id(child) in tracked}


def resolve(layer, path) -> keras.Layer:
    """The sub-layer at a path of names, attributes and indices.

    Raises:
        CompressionError: there is none.
    """
    path = tuple(path)
    while path:
        below = children(layer)
        match = next((key for key in below if path[: len(key)] == key), None)
        if match is None:
            known = {".".join(key) for key in below}
            raise CompressionError(
                f"Layer {layer.name!r} has no sub-layer at {'.'.join(path)!r}. {nearest(path[0], known)}"
            )
        layer, path = below[match], path[len(match) :]
    return layer


def parents(layer, path) -> list:
    """The layers on the way to `resolve(layer, path)`, without the last; empty for an empty path."""
    path, found = tuple(path), []
    while path:
        found.append(layer)
        below = children(layer)
        match = next(key for key in below if path[: len(key)] == key)
        layer, path = below[match], path[len(match) :]
    return found


def descendants(layer, prefix=()):
    """(path, layer) of everything below a layer, depth first; a shared layer under its first path."""
    seen: set[int] = set()

    def visit(parent, prefix):
        for path, child in children(parent).items():
            if id(child) not in seen:
                seen.add(id(child))
                yield (*prefix, *path), child
                yield from visit(child, (*prefix, *path))

    yield from visit(layer, tuple(prefix))


def carry_all(model) -> None:
    """Make every ancestor of a parametrized layer in a model a carrier where it has to be one."""

    def visit(layer) -> bool:
        below = [visit(child) for child in children(layer).values()]
        if any(below):
            carry(layer)
        own = state(layer)
        return any(below) or bool(own and (own.chains or own.pending))

    visit(model)


def show(cls: type, weight: str) -> None:
    """Make a swapped class answer `layer.<weight>` with the effective weight where there is a chain."""
    if weight in cls.__dict__:
        return
    inherited = getattr(cls._tfcompress_base, weight, None)  # type: ignore[attr-defined]

    def get(self):
        own = self.__dict__.get(STATE)
        if own is not None and weight in own.chains:
            return own.chains[weight].view
        if isinstance(inherited, property):
            return inherited.fget(self)
        try:
            return self.__dict__[weight]
        except KeyError:  # TensorFlow probes for attributes that are not there yet, and expects this error
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {weight!r}") from None

    def put(self, value):
        if isinstance(inherited, property):
            inherited.fset(self, value)
        else:
            self.__dict__[weight] = value

    setattr(cls, weight, property(get, put))


def _links_config(links) -> list[dict]:
    return [{"link": keras.saving.serialize_keras_object(link), "start": link.start} for link in links]


def _links_from(config) -> list:
    links = []
    for entry in config:
        link = keras.saving.deserialize_keras_object(entry["link"])
        link.start = entry["start"]
        links.append(link)
    return links


def own_config(layer) -> dict:
    """The chains on a layer's own weights, as plain data."""
    own = state(layer)
    if own is None:
        return {}
    weights = {name: _links_config(chain.links) for name, chain in own.chains.items()}
    weights.update({name: _links_config(links) for name, links in own.pending.items()})
    return {"weights": weights, "clock": own.clock is not None or own.wants_clock}


def restore(layer, config: dict) -> None:
    """Attach what `own_config` described, unless it is there; weights are expected to be loaded or initialized later."""
    if not config.get("weights") and not config.get("clock"):
        return
    own = swap(layer)
    own.wants_clock = own.wants_clock or bool(config.get("clock"))
    for weight, entries in config["weights"].items():
        if weight not in own.chains and weight not in own.pending:
            attach(layer, weight, _links_from(entries), initialize=False)
    if layer.built and own.wants_clock:
        add_clock(layer)


def add_clock(layer):
    """The variable that counts a model's steps, on the layer that holds it."""
    own = swap(layer)
    if own.clock is None:
        first = next(iter(own.chains.values()))
        with _keras_compat.strategy_scope(first.raw), _keras_compat.unlocked(layer):
            own.clock = layer.add_weight(
                name="step", shape=(), initializer="zeros", dtype="int32", trainable=False, autocast=False,
                aggregation="only_first_replica",
            )  # fmt: skip
        own.wants_clock = False
        own.sort(layer)
    return own.clock


def _restore_carried(layer, last: bool) -> None:
    """Attach what a carrier lists below itself; what does not exist yet waits for the build, the `last` chance."""
    own = layer.__dict__[STATE]
    waiting = []
    for entry in own.carried:
        try:
            target = resolve(layer, entry["path"])
        except CompressionError:
            if last:
                raise
            waiting.append(entry)
            continue
        restore(target, entry["config"])
    own.carried = waiting


class Swapped:
    """The methods that all swapped classes share."""

    _tfcompress_base: type

    def get_config(self):
        config = super().get_config()
        base = self._tfcompress_base
        entry = {
            "base": {
                "name": base.__name__,
                "module": base.__module__,
                "registered": keras.saving.get_registered_name(base),
            },
            "own": own_config(self),
        }
        if not lists_children(self):
            below = [(path, own_config(child)) for path, child in descendants(self) if state(child)]
            entry["below"] = [{"path": list(path), "config": c} for path, c in below if c["weights"] or c["clock"]]
            entry["below"] += self.__dict__[STATE].carried
        return {**config, _KEY: entry}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        entry = config.pop(_KEY)
        layer = _base_from(entry["base"]).from_config(config)
        own = swap(layer)
        restore(layer, entry["own"])
        own.carried = list(entry.get("below", []))
        _restore_carried(layer, last=False)
        return layer

    def _post_build(self):
        super()._post_build()
        own = self.__dict__[STATE]
        own.remember_order(self)
        for weight, links in list(own.pending.items()):
            del own.pending[weight]
            attach(self, weight, links, initialize=True)
        if own.wants_clock:
            add_clock(self)
        if own.carried:
            _restore_carried(self, last=False)

    def build_from_config(self, config):
        super().build_from_config(config)
        if self.__dict__[STATE].carried:
            _restore_carried(self, last=True)

    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)
        for number, seed in enumerate(self.__dict__[STATE].seeds()):
            store[f"seed{number}"] = seed.state

    def load_own_variables(self, store):
        own = self.__dict__[STATE]
        variables, seeds = _keras_compat.own_variables(self), own.seeds()
        keys = set(store.keys())
        if len(keys) == len(variables) + len(seeds):
            for number, variable in enumerate(variables):
                variable.assign(store[str(number)])
            for number, seed in enumerate(seeds):
                seed.state.assign(store[f"seed{number}"])
            for chain in own.chains.values():
                chain.waiting = []
        elif own.order and len(keys) == len(own.order):
            self._load_plain(store)
        else:
            raise CompressionError(
                f"Layer {self.name!r} has {len(variables)} variables ({len(own.order or [])} without its "
                f"parametrizations), but the file holds {len(keys)}: it was saved from another model."
            )

    def _load_plain(self, store):
        """Weights saved before the model was compressed: they are assigned through the chains."""
        own = self.__dict__[STATE]
        by_raw = {id(chain.raw): chain for chain in own.chains.values()}
        for number, variable in enumerate(own.order):
            chain = by_raw.get(id(variable))
            variable.assign(store[str(number)])
            if chain is not None:
                chain.waiting = list(chain.links)
                chain.initialize()


def _base_from(identity: dict) -> type:
    """The class that a config names: a registered one, or one of Keras's own."""
    registered = keras.saving.get_registered_object(identity["registered"])
    if registered is not None:
        return registered
    if identity["module"].split(".")[0] == "keras":
        import importlib

        found = getattr(importlib.import_module(identity["module"]), identity["name"], None)
        if isinstance(found, type) and issubclass(found, keras.Layer):
            return found
    raise CompressionError(
        f"The saved model needs the class {identity['registered']!r} ({identity['module']}.{identity['name']}), which is "
        "not registered here. Import its module, and register it with @keras.saving.register_keras_serializable()."
    )


def _swapped(base: type) -> type:
    if base not in _CLASSES:
        body = {"_tfcompress_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
        cls = type(base)(base.__name__, (Swapped, base), body)
        keras.saving.register_keras_serializable(_KEY, "Parametrized")(cls)
        # One name for all of them, and the last registration is the one that loads.
        keras.saving.register_keras_serializable(_KEY, "Parametrized")(_Factory)
        _CLASSES[base] = cls
    return _CLASSES[base]


class _Factory(Swapped, keras.layers.Layer):
    """What the registered name stands for when a model is loaded: it makes the right class from the config."""


keras.saving.register_keras_serializable(_KEY, "Parametrized")(_Factory)
