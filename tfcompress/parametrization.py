"""The heart: a parametrization owns variables and yields the tensor that a layer uses in place of one of its weights.

Requirements that the mechanism meets:

- The layer's own variable stays where it is (name, optimizer slots, constraint, order of weights). It is the input of a
  chain of parametrizations; `layer.kernel` becomes a view whose value runs the chain.
- The layer's class is swapped for a subclass with the base's `__name__`, because Keras files layers under it.
- Ancestors whose config does not list their children carry the list of their descendants' chains (see `carriers`).
- `parametrize` and `deparametrize` are mirror images: afterwards class, config, and the order and identity of all
  variables are what they were.
"""

from typing import Any

import keras
import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError, nearest
from tfcompress.record import Grid
from tfcompress.schedules import Schedule

STATE = "_tfcompress"


class Parametrization(Configurable):
    """What a weight is made of: a base class with the identity as its map.

    A subclass says in `build` which variables it owns, in `initialize` what they are for a given dense weight, and in
    `__call__` what the layer sees. `__call__` in inference is element-wise over stored variables: a mean or maximum
    that is reduced there differs in the last bit under XLA, and `finalize` would not be exact; see `statistic`.

    Attributes:
        source: the value comes from own variables alone (low rank, hashed); such a link stands first in a chain.
        keeps_grid: values that lie on an integer grid still do after this link.
        shares_values: the whole weight takes few values, which a grid behind it must not tell apart by channel.
        scales: scaling output channels before or after this link is the same (true for masks).
        papers: numbers of the papers that the class implements.
        layer, weight, shape: where it is attached, set before `build`.
        start: the model's step at which it was attached; `update` counts from there.
        in_loop: the layer is a recurrent cell, in whose call no variable may be assigned.

    Example:
        >>> class Half(Parametrization):
        ...     def __call__(self, value):
        ...         return value / 2
        >>> layer = keras.layers.Dense(1, kernel_initializer="ones")
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", Half())
        >>> layer.kernel.numpy().ravel()
        array([0.5, 0.5], dtype=float32)
    """

    source = False
    keeps_grid = False
    scales = False
    shares_values = False
    papers: tuple[int, ...] = ()
    layer: Any = None
    weight: str = ""
    shape: tuple[int, ...] = ()
    start = 0
    in_loop = False

    def build(self, layer, name: str, shape: tuple[int, ...]) -> None:
        """Create own variables with `add_variable`, from the shape alone: no value can be read here."""

    def initialize(self, value: np.ndarray) -> None:
        """Set own variables from the weight that the previous link yields (float32), or from the dense one."""

    def __call__(self, value):
        """The effective weight, by keras.ops in float32; `value` is the previous link's output, None for a source."""
        return value

    def right_inverse(self, value: np.ndarray) -> np.ndarray:
        """For assignment: what the previous link must hold so that this link yields `value`, as well as it can."""
        raise CompressionError(
            f"{type(self).__name__} on {self.where} cannot take an assigned value. Assign before attaching it."
        )

    def begin(self) -> None:
        """Training begins: forget what was remembered of variables, which may have been loaded since."""

    def update(self, step: int) -> None:
        """Refresh own state outside the graph; `step` counts optimizer updates since attachment."""

    @classmethod
    def update_group(cls, members: list["Parametrization"], steps: list[int]) -> None:
        """Update all attached ones of this class at once; override where one call is cheaper than many."""
        for member, step in zip(members, steps, strict=True):
            member.update(step)

    def penalty(self):
        """A scalar tensor to add to the loss once a step, or None."""
        return None

    def grid(self) -> Grid | None:
        """The integer grid on which the values lie, or None."""
        return None

    def log(self) -> dict[str, float]:
        """Figures to log at the end of an epoch, by short name."""
        return {}

    def schedules(self) -> list[tuple[str, Schedule]]:
        """(argument's name, schedule) of what changes over training, to compare with its length."""
        return []

    @property
    def chain(self) -> "Chain":
        """The chain that this link is part of."""
        return state(self.layer).chains[self.weight]

    @property
    def where(self) -> str:
        """The layer and weight, for messages."""
        return f"{self.layer.name}.{self.weight}" if self.layer is not None else "an unattached weight"

    def add_variable(self, name: str, shape=(), initializer="zeros", trainable=False, dtype="float32", **kwargs):
        """A variable of this parametrization, saved with the layer.

        Args:
            name: unique in this class. shape: its shape. initializer: a name or a callable (shape, dtype).
            trainable: whether the optimizer changes it. dtype: its type. kwargs: passed to `Layer.add_weight`.
        """
        kwargs.setdefault(
            "aggregation", "none" if trainable else "mean" if dtype == "float32" else "only_first_replica"
        )
        with _keras_compat.unlocked(self.layer):
            variable = self.layer.add_weight(
                name=f"{self.weight}_{name}", shape=tuple(shape), initializer=initializer,
                trainable=trainable, dtype=dtype, autocast=False, **kwargs,
            )  # fmt: skip
        self.__dict__.setdefault("variables", []).append(variable)
        return variable

    def add_seed(self, seed: int | None = None):
        """A `keras.random.SeedGenerator` of this parametrization, saved with the layer."""
        generator = keras.random.SeedGenerator(seed)
        _keras_compat.track_seed(self.layer, generator)
        self.__dict__.setdefault("seeds", []).append(generator)
        return generator

    def statistic(self, variable, compute):
        """A reduced quantity: computed and stored in training calls, read back in all others.

        Args:
            variable: own float variable that holds it.
            compute: function without arguments that computes it with keras.ops.
        """
        if not _keras_compat.training_now() or self.in_loop:
            return keras.ops.convert_to_tensor(variable)
        value = keras.ops.stop_gradient(compute())
        variable.assign(value)
        return value


class EffectiveWeight(keras.Variable):
    """What a parametrized layer sees as its weight: a variable without storage whose value runs the chain."""

    @property
    def value(self):
        return _keras_compat.autocast(self._chain.compute())

    def assign(self, value):
        self._chain.assign(value)
        return self.value

    def numpy(self):
        return self._chain.numpy()

    def __array__(self, dtype=None, copy=None):
        array = self._chain.numpy()
        return array if dtype is None else array.astype(dtype)


class Chain:
    """The parametrizations of one weight, over the layer's own variable `raw`.

    Args:
        layer: the layer, whose class is swapped. weight: the attribute's name. raw: the layer's variable.
    """

    def __init__(self, layer, weight: str, raw):
        self.layer, self.weight, self.raw = layer, weight, raw
        self.links: list[Parametrization] = []
        self.regularizer, self.constraint = raw.regularizer, raw.constraint
        self.waiting: list[Parametrization] = []  # not yet initialized from the dense value
        self.view = _keras_compat.fresh_variable_view(EffectiveWeight, raw, {"_chain": self})

    @property
    def source(self) -> bool:
        """Whether the value comes from the first link's own variables, and `raw` is out of use."""
        return bool(self.links) and self.links[0].source

    @property
    def where(self) -> str:
        return f"{self.layer.name}.{self.weight}"

    def compute(self, links: int | None = None):
        """The value after the first `links` links (default: all), as a float32 tensor."""
        with _keras_compat.no_autocast():
            value = None if self.source else keras.ops.convert_to_tensor(self.raw)
            for link in self.links[:links]:
                value = link(value)
        return value

    def numpy(self, links: int | None = None) -> np.ndarray:
        """The value as an array."""
        return keras.ops.convert_to_numpy(self.compute(links))

    def dense(self, links: int = 0) -> np.ndarray:
        """What stands before link number `links`: the raw weight, or the previous link's value."""
        return keras.ops.convert_to_numpy(self.raw.value) if links == 0 else self.numpy(links)

    def assign(self, value) -> None:
        """Set the effective weight, by the right inverses from the last link back."""
        value = np.asarray(keras.ops.convert_to_numpy(value), "float32")
        if value.shape != tuple(self.raw.shape):
            raise CompressionError(
                f"{self.where} has shape {tuple(self.raw.shape)}; received an array of shape {value.shape}."
            )
        for link in reversed(self.links):
            value = link.right_inverse(value)
        if not self.source:
            self.raw.assign(value)

    def grid(self) -> Grid | None:
        """The grid of the effective weight, or None."""
        for link in reversed(self.links):
            grid = link.grid()
            if grid is not None or not link.keeps_grid:
                return grid
        return None

    def add(self, link: Parametrization, initialize: bool = True) -> None:
        """Append a link and build it; `initialize` it from the dense value where values can be read."""
        if link.layer is not None:
            raise CompressionError(
                f"This {type(link).__name__} is attached to {link.where} already; give each weight its own."
            )
        if link.source and self.links:
            raise CompressionError(
                f"{type(link).__name__} makes its value from nothing but its own variables, so it must come first on "
                f"{self.where}, which has {[type(other).__name__ for other in self.links]}."
            )
        link.layer, link.weight, link.shape = self.layer, self.weight, tuple(self.raw.shape)
        link.in_loop = hasattr(self.layer, "state_size")
        with _keras_compat.strategy_scope(self.raw):
            link.build(self.layer, self.weight, link.shape)
        self.links.append(link)
        if link.source:
            _keras_compat.untrack(self.layer, self.raw)
        self._place_penalty()
        self.waiting.append(link)
        if initialize and _keras_compat.values_readable() and _keras_compat.initialized(self.raw):
            self.initialize()
            shape = tuple(self.compute().shape)
            if shape != link.shape:
                raise CompressionError(
                    f"{type(link).__name__} turned {self.where} of shape {link.shape} into {shape}; "
                    "a parametrization has to keep the shape."
                )

    def initialize(self) -> None:
        """Initialize the links that have waited for a dense value."""
        for link in self.waiting:
            value = self.dense(self.links.index(link))
            if not np.isfinite(value).all():
                raise CompressionError(
                    f"{self.where} holds NaN or infinite values, so {type(link).__name__} cannot start from it. "
                    "Check the model's training before compressing it."
                )
            link.initialize(value)
        self.waiting = []

    def _place_penalty(self) -> None:
        """Penalties ride on the regularizer of a trained variable, which Keras evaluates once a step."""
        host = self._host()
        has_penalty = any(type(link).penalty is not Parametrization.penalty for link in self.links)
        if host is not None and (has_penalty or (self.source and self.regularizer is not None)):
            host.regularizer = ChainPenalty(self)

    def _host(self):
        if not self.source:
            return self.raw
        return next((v for v in self.links[0].__dict__.get("variables", []) if v.trainable), None)

    def remove(self) -> None:
        """Undo everything but the value: own variables go, the raw weight, its regularizer and constraint come back."""
        host = self._host()
        if host is not None and isinstance(host.regularizer, ChainPenalty):
            host.regularizer = None
        for link in self.links:
            for variable in link.__dict__.pop("variables", []):
                _keras_compat.untrack(self.layer, variable)
            for seed in link.__dict__.pop("seeds", []):
                _keras_compat.untrack_seed(self.layer, seed)
            link.layer = None
        if self.source:
            _keras_compat.track(self.layer, self.raw)
        self.raw.regularizer, self.raw.constraint = self.regularizer, self.constraint


class ChainPenalty(keras.regularizers.Regularizer):
    """The layer's own regularizer and the penalties of a chain's links, as one regularizer."""

    def __init__(self, chain: Chain):
        self.chain = chain

    def __call__(self, value):
        total = keras.ops.zeros((), "float32")
        if self.chain.regularizer is not None:
            total += keras.ops.cast(
                self.chain.regularizer(self.chain.compute() if self.chain.source else value), "float32"
            )
        with _keras_compat.no_autocast():
            for link in self.chain.links:
                penalty = link.penalty()
                if penalty is not None:
                    total += keras.ops.cast(penalty, "float32")
        return total


class State:
    """What a swapped layer remembers: its chains, the order of its own variables, and whether it holds the clock."""

    def __init__(self, layer):
        self.chains: dict[str, Chain] = {}
        self.pending: dict[str, list[Parametrization]] = {}  # for a layer that is not built
        self.order: list | None = None
        self.clock = None
        self.wants_clock = False
        self.carried: list[dict] = []  # what a carrier has still to attach below itself
        if layer.built:
            self.remember_order(layer)

    def remember_order(self, layer) -> None:
        if self.order is None:
            trainable, rest = _keras_compat.variable_lists(layer)
            self.order = [*trainable, *rest]

    def own_variables(self) -> list:
        """Variables of all links in order, then the clock."""
        links = [link for chain in self.chains.values() for link in chain.links]
        clock = [] if self.clock is None else [self.clock]
        return [v for link in links for v in link.__dict__.get("variables", [])] + clock

    def seeds(self) -> list:
        return [s for chain in self.chains.values() for link in chain.links for s in link.__dict__.get("seeds", [])]

    def sort(self, layer) -> None:
        """The layer's own weights first, in their old order, then ours: the same after any sequence of attachments."""
        rank = {id(v): i for i, v in enumerate([*(self.order or []), *self.own_variables()])}
        for variables in _keras_compat.variable_lists(layer):
            variables.sort(key=lambda v: rank.get(id(v), len(rank)))


def state(layer) -> Any:
    """The `State` of a swapped layer, or None."""
    return layer.__dict__.get(STATE)


def chain(layer, weight: str = "kernel") -> Chain | None:
    """The chain of a layer's weight, or None."""
    own = state(layer)
    return own.chains.get(weight) if own else None


def chains(model) -> list[tuple[str, Chain]]:
    """All chains of a model (or layer), each with its name "path.weight"."""
    found = [(f"{model.name}.{name}", c) for name, c in (state(model).chains.items() if state(model) else ())]
    for path, layer in select.layers(model):
        own = state(layer)
        if own:
            found += [(f"{path}.{name}", c) for name, c in own.chains.items()]
    return found


def has_pending(model) -> bool:
    """Whether something waits for a layer of the model to be built."""
    layers = [model, *(layer for _, layer in select.layers(model))]
    return any(state(layer) and (state(layer).pending or state(layer).carried) for layer in layers)


def is_parametrized(layer, weight: str | None = None) -> bool:
    """Whether a layer (or one of its weights) is parametrized.

    Example:
        >>> is_parametrized(keras.layers.Dense(2))
        False
    """
    own = state(layer)
    return bool(
        own and (own.chains or own.pending) and (weight is None or weight in own.chains or weight in own.pending)
    )


def parametrize(layer, weight: str, *links: Parametrization, initialize: bool = True) -> None:
    """Put parametrizations on a weight of a layer, after those that are there.

    Args:
        layer: a Keras layer, built or not. weight: attribute name, or a path from the layer such as "cell.kernel" or
            "blocks.0.conv.kernel"; give the outermost layer whose config is saved, so that it can carry the list.
        links: parametrizations, in the order in which they act.
        initialize: set them from the layer's present weight.

    Raises:
        CompressionError: there is no such weight; the layer uses LoRA or Keras's own quantization; a shape changes.

    Example:
        >>> from tfcompress.core.masks import Mask
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", Mask())
        >>> [type(link).__name__ for link in chain(layer, "kernel").links]
        ['Mask']
    """
    from tfcompress import carriers

    *path, weight = weight.replace("/", ".").split(".")
    target = carriers.resolve(layer, path)
    for parent in carriers.parents(layer, path):
        carriers.carry(parent)
    attach(target, weight, links, initialize)


def attach(layer, weight: str, links, initialize: bool = True) -> None:
    """`parametrize` for a weight of this very layer."""
    from tfcompress import carriers

    if not links:
        return
    if getattr(layer, "lora_enabled", False) or layer.quantization_mode is not None:
        raise CompressionError(
            f"Layer {layer.name!r} uses {'LoRA' if getattr(layer, 'lora_enabled', False) else 'Keras quantization'}, "
            "which reads its kernel behind the parametrization's back. Attach before it, or to a plain copy."
        )
    own = carriers.swap(layer)
    if not layer.built:
        own.pending.setdefault(weight, []).extend(links)
        return
    names = select.weight_names(layer)
    if weight not in own.chains:
        if weight not in names:
            if own.chains or own.pending or own.carried:
                known = [*names, *own.chains]
            else:
                carriers.unswap(layer)
                known = list(names)
            raise CompressionError(f"Layer {layer.name!r} has no weight {weight!r}. {nearest(weight, known)}")
        own.chains[weight] = Chain(layer, weight, names[weight])
        carriers.show(type(layer), weight)
    for link in links:
        own.chains[weight].add(link, initialize)
    own.sort(layer)


def deparametrize(layer, weight: str | None = None, bake: bool = True) -> None:
    """Take the parametrizations of a weight (default: all of a layer's) away: the mirror image of `parametrize`.

    Args:
        layer: the layer. weight: its name. bake: leave the effective value as the weight; else the raw one.

    Example:
        >>> layer = keras.layers.Dense(3)
        >>> layer.build((None, 2))
        >>> from tfcompress.core.masks import Mask
        >>> parametrize(layer, "kernel", Mask())
        >>> deparametrize(layer)
        >>> type(layer) is keras.layers.Dense
        True
    """
    from tfcompress import carriers

    own = state(layer)
    if own is None:
        return
    names = list(own.chains) if weight is None else [weight]
    # All values first: a bias's grid may depend on the kernel's.
    values = {name: own.chains[name].numpy() for name in names} if bake else {}
    for name in names:
        own.chains[name].remove()
        if bake:
            own.chains[name].raw.assign(values[name])
        del own.chains[name]
    own.sort(layer)
    if not own.chains:
        if own.clock is not None:
            _keras_compat.untrack(layer, own.clock)
        carriers.unswap(layer)
