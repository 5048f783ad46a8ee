"""[11] Learning both Weights and Connections for Efficient Neural Networks (Han, Pool, Tran, Dally, 2015)."""

from typing import Any

import keras
import numpy as np

from tfcompress import _keras_compat, schedules
from tfcompress.core.masks import Mask
from tfcompress.errors import CompressionError
from tfcompress.method import WeightMethod
from tfcompress.parametrization import chains


def magnitude_mask(weights: np.ndarray, keep: int, alive: np.ndarray | None = None) -> np.ndarray:
    """The mask that keeps the `keep` largest |w|, exactly that many, and revives nothing that is not `alive`.

    Example:
        >>> magnitude_mask(np.array([3.0, -1.0, 2.0]), keep=2)
        array([ True, False,  True])
    """
    mask = np.ones(weights.shape, bool) if alive is None else np.array(alive, bool)
    surplus = int(mask.sum()) - keep
    if surplus > 0:
        mask.reshape(-1)[smallest_alive(np.abs(weights).ravel(), mask.ravel(), surplus)[0]] = False
    return mask


def smallest_alive(score, alive, number: int, level: float | None = None) -> tuple[np.ndarray, float]:
    """Where the `number` smallest scores lie among those alive.

    Args:
        score, alive: flat arrays. number: at least 1, at most as many as are alive.
        level: the largest score of the last such cut, if there was one: what is to go next lies little above it, and
            most scores need not be ranked.

    Returns:
        (indices, the largest of their scores).

    Example:
        >>> smallest_alive(np.array([3.0, 0.5, 2.0, 1.0]), np.array([True, False, True, True]), 2)
        (array([3, 2]), 2.0)
    """
    chosen = None
    if level is not None:
        for near in (1.1 * level, 1.5 * level):
            chosen = np.flatnonzero((score <= near) & alive)
            if len(chosen) >= number:
                break
    if chosen is None or len(chosen) < number:
        chosen = np.flatnonzero(alive)
    found = score[chosen]
    if len(chosen) > number:
        order = np.argpartition(found, number - 1)[:number]
        chosen, found = chosen[order], found[order]
    return chosen, float(found.max())


class MagnitudeMask(Mask):
    """A mask that keeps the largest weights, by a schedule of the sparsity or by the threshold q * std(W) of [11].

    A weight that is cut stays cut: the live count never rises.

    Args:
        sparsity: share of zeros, a number or a schedule. quality: q of the threshold, a number or a schedule; give one
            of the two. frequency: steps between updates of the mask. scope: "layer" ranks each weight tensor alone,
            "global" all that share the same schedule.
    """

    papers = (11,)

    def __init__(self, sparsity=None, quality=None, frequency: int = 1, scope: str = "layer"):
        if (sparsity is None) == (quality is None):
            raise CompressionError(
                "Give either `sparsity` (a share of zeros) or `quality` (q of the threshold q * std)."
            )
        if scope not in ("layer", "global"):
            raise CompressionError(f"`scope` must be 'layer' or 'global'; received {scope!r}.")
        if int(frequency) < 1:
            raise CompressionError(f"`frequency` must be at least 1 step; received {frequency}.")
        self.sparsity: Any = None if sparsity is None else schedules.fraction(sparsity, "sparsity")
        self.quality: Any = None if quality is None else schedules.get(quality)
        self.frequency, self.scope = int(frequency), scope

    def initialize(self, value):
        if self.scope == "layer":
            self.update_from(value, 0)

    def right_inverse(self, value):
        # An assigned weight brings its own zeros; the mask is drawn again from it at the next update.
        return value

    def schedules(self):
        if self.sparsity is not None:
            return [("sparsity", self.sparsity)]
        return [("quality", self.quality)]

    @property
    def alive(self) -> np.ndarray:
        """The present mask as an array."""
        return keras.ops.convert_to_numpy(self.mask.value)

    def begin(self):
        # Weights may have been loaded since; within a training the mask is changed here alone.
        for key in ("_known", "_level"):
            self.__dict__.pop(key, None)

    def _alive_now(self) -> tuple[np.ndarray, int]:
        """The mask and its live count, read once a training."""
        if "_known" not in self.__dict__:
            alive = self.alive
            self.__dict__["_known"] = alive, int(alive.sum())
        return self.__dict__["_known"]

    def set(self, mask):
        super().set(mask)
        self._note(np.asarray(mask, bool))

    def _note(self, mask: np.ndarray) -> None:
        self.__dict__["_known"] = mask, int(mask.sum())

    def update_from(self, value: np.ndarray, step: int) -> None:
        """Cut to what the schedule says at `step`, by the weights `value`."""
        if self._cut(value, step):
            self.set(self._alive_now()[0])

    def _cut(self, value: np.ndarray, step: int) -> bool:
        """Note the mask that `step` asks for, without assigning it; whether it differs."""
        alive, count = self._alive_now()
        if self.quality is not None:
            keep = int((np.abs(value[alive]) > self.quality(step) * value.std()).sum())
        else:
            keep = self._live_at(step)
        if keep >= count:
            return False
        mask = alive.copy()
        level = self.__dict__.get("_level")
        smallest, self.__dict__["_level"] = smallest_alive(np.abs(value).ravel(), alive.ravel(), count - keep, level)
        mask.reshape(-1)[smallest] = False
        self._note(mask)
        return True

    def _live_at(self, step: int) -> int:
        size = int(np.prod(self.shape))
        return size - round(self.sparsity(step) * size)

    def update(self, step):
        self.update_group([self], [step])

    @classmethod
    def update_group(cls, members, steps):
        everywhere: dict[tuple, list[tuple[MagnitudeMask, int]]] = {}
        alone = []
        for member, step in zip(members, steps, strict=True):
            if member.scope == "global":
                everywhere.setdefault((member.schedules()[0][1], member.start), []).append((member, step))
            else:
                alone.append((member, step))
        # What is cut stays cut, so an unchanged count is an unchanged mask, and the weights need not be read.
        if any(m.quality is not None or m._live_at(step) < m._alive_now()[1] for m, step in alone):
            cls._update_each(*zip(*alone, strict=True))
        for group in everywhere.values():
            cls._update_globally([member for member, _ in group], group[0][1])

    @classmethod
    def _update_each(cls, members, steps) -> None:
        """One read of all weights and one assignment of all masks: with fifty layers the calls are what takes time."""
        held = members[0].__dict__.get("_group")
        if held is None or held[0] != members:
            held = (
                members,
                *(
                    _keras_compat.VariableGroup(variables)
                    for variables in ([m.chain.raw for m in members], [m.mask for m in members])
                ),
            )
            members[0].__dict__["_group"] = held
        _, weights, masks = held
        first = all(m.chain.links[0] is m for m in members)
        values = weights.read() if first else [m._before() for m in members]
        changed = [m._cut(value, step) for m, value, step in zip(members, values, steps, strict=True)]
        if any(changed):
            masks.assign([m._alive_now()[0] for m in members])

    def _before(self) -> np.ndarray:
        """The weight that the mask acts on."""
        own = self.chain
        index = own.links.index(self)
        return _keras_compat.read(own.raw) if index == 0 else own.dense(index)

    @classmethod
    def _update_globally(cls, members, step) -> None:
        values = [member._before() for member in members]
        alive = [member._alive_now()[0] for member in members]
        flat = np.concatenate([value.ravel() for value in values])
        if members[0].sparsity is None:
            raise CompressionError("scope='global' ranks by sparsity; a quality threshold is per layer by definition.")
        keep = flat.size - round(members[0].sparsity(step) * flat.size)
        keep = min(keep, int(sum(a.sum() for a in alive)))
        mask = magnitude_mask(flat, keep, np.concatenate([a.ravel() for a in alive]))
        cuts = np.cumsum([value.size for value in values])[:-1]
        for member, part, old in zip(members, np.split(mask, cuts), alive, strict=True):
            if not np.array_equal(part, old.ravel()):
                member.set(part.reshape(old.shape))


class Magnitude(WeightMethod):
    """[11] Prunes the smallest weights, by a schedule during ordinary `fit`; survivors keep their values and train on.

    Args:
        sparsity: share of zeros: a number, a schedule, or {layer pattern: number or schedule} (others are left alone).
        quality: instead, q of the paper's threshold q * std(W): a number, a schedule, or such a dictionary.
        frequency: steps between updates of the masks. scope: "layer", or "global" for one ranking over all weights.
        layers, exclude, include_frozen: which weights; see `tfcompress.select`.

    Example:
        >>> model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
        >>> from tfcompress import apply
        >>> small = apply(model, Magnitude(sparsity=0.8), verbose=0)
        >>> int(np.count_nonzero(small.layers[0].kernel.numpy()))
        20
    """

    papers = (11,)

    def __init__(self, sparsity=None, quality=None, frequency: int = 1, scope: str = "layer",
                 layers=None, exclude=None, include_frozen: bool = False):  # fmt: skip
        self.sparsity, self.quality, self.frequency, self.scope = sparsity, quality, frequency, scope
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen
        for one in self._each(sparsity) or self._each(quality) or [None]:
            MagnitudeMask(**self._arguments_for(one))  # bad arguments are refused here, before any model is touched

    @staticmethod
    def _each(value) -> list:
        return [] if value is None else list(value.values()) if isinstance(value, dict) else [value]

    def _arguments_for(self, amount) -> dict:
        which = "sparsity" if self.sparsity is not None else "quality"
        both = {"quality": self.quality} if self.sparsity is not None and self.quality is not None else {}
        return {which: amount, "frequency": self.frequency, "scope": self.scope, **both}

    def attach(self, model, data=None):
        model, rows = super().attach(model, data)
        if self.scope == "global" and model.built:
            masks = [link for _, c in chains(model) for link in c.links[-1:] if isinstance(link, MagnitudeMask)]
            MagnitudeMask.update_group(masks, [0] * len(masks))
        return model, rows

    def parametrization(self, path, layer, weight):
        amount = self.sparsity if self.sparsity is not None else self.quality
        if isinstance(amount, dict):
            from tfcompress import select

            amount = next((v for pattern, v in amount.items() if select.get(pattern)(path, layer, weight)), None)
            if amount is None:
                return "no pattern of the given dictionary matches"
        return MagnitudeMask(**self._arguments_for(amount))
