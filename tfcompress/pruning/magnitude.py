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
    score = np.abs(weights).ravel()
    if alive is not None:
        score = np.where(alive.ravel(), score, -1.0)
    mask = np.zeros(score.size, bool)
    if keep > 0:
        mask[np.argpartition(score, score.size - keep)[score.size - keep :]] = True
    return mask.reshape(weights.shape)


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
        self.__dict__.pop("_known", None)

    def _alive_now(self) -> tuple[np.ndarray, int]:
        """The mask and its live count, read once a training."""
        if "_known" not in self.__dict__:
            alive = self.alive
            self.__dict__["_known"] = alive, int(alive.sum())
        return self.__dict__["_known"]

    def set(self, mask):
        super().set(mask)
        self.__dict__["_known"] = np.asarray(mask, bool), int(np.sum(mask))

    def update_from(self, value: np.ndarray, step: int) -> None:
        """Cut to what the schedule says at `step`, by the weights `value`."""
        alive, count = self._alive_now()
        if self.quality is not None:
            keep = int((np.abs(value[alive]) > self.quality(step) * value.std()).sum())
        else:
            keep = self._live_at(step)
        if keep < count:
            self.set(magnitude_mask(value, keep, alive))

    def _live_at(self, step: int) -> int:
        size = int(np.prod(self.shape))
        return size - round(self.sparsity(step) * size)

    def update(self, step):
        self.update_group([self], [step])

    @classmethod
    def update_group(cls, members, steps):
        everywhere: dict[tuple, list[tuple[MagnitudeMask, int]]] = {}
        for member, step in zip(members, steps, strict=True):
            if member.scope == "global":
                everywhere.setdefault((member.schedules()[0][1], member.start), []).append((member, step))
            # What is cut stays cut, so an unchanged count is an unchanged mask, and the weights need not be read.
            elif member.quality is not None or member._live_at(step) < member._alive_now()[1]:
                member.update_from(member._before(), step)
        for group in everywhere.values():
            cls._update_globally([member for member, _ in group], group[0][1])

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
