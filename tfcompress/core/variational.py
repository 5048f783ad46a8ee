"""Variational weights: posteriors with reparametrized draws, priors, and the mini-batch share of the divergence.

Requirements that the engine meets:

- One draw a training step. Every use of a weight in a step (shared layers, recurrent loops, the penalty) sees the same
  noise, because it is a function of a stored counter that only `penalty` advances, and Keras evaluates that once a step.
- Inference sees the posterior's mean, by element-wise arithmetic over stored variables.
- A step of evaluation leaves the counter alone, so that validation does not change training.
"""

import abc
import math
import zlib

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError
from tfcompress.parametrization import Parametrization, chains

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def sigma_of(rho):
    """The standard deviation log(1 + exp(rho)) of a parameter rho.

    Example:
        >>> round(float(sigma_of(np.float32(-5.0))), 5)
        0.00672
    """
    return keras.ops.softplus(rho)


def log_sigma_of(rho):
    """The logarithm of `sigma_of(rho)`, finite and with a finite gradient for every finite rho."""
    # softplus(x) -> exp(x) for x -> -inf, where it would leave float32; the first omitted term is exp(x) / 2.
    small = rho < -15.0
    return keras.ops.where(small, rho, keras.ops.log(keras.ops.softplus(keras.ops.where(small, 0.0, rho))))


def rho_of(sigma):
    """The inverse of `sigma_of`, in NumPy.

    Example:
        >>> round(float(rho_of(0.006715348)), 4)
        -5.0
    """
    return np.log(np.expm1(np.asarray(sigma, "float64")))


def log_normal(value, mean, log_sigma):
    """log N(value; mean, sigma^2), element by element; broadcasts."""
    scaled = (value - mean) * keras.ops.exp(-log_sigma)
    return -0.5 * scaled * scaled - log_sigma - _HALF_LOG_2PI


class Prior(Configurable):
    """A prior that factorizes over the weights."""

    def log_density(self, value):
        """log P(w) of each element."""
        raise NotImplementedError

    def divergence(self, mean, rho):
        """KL(N(mean, sigma_of(rho)^2) || prior) of each element in closed form, or None where there is none."""
        return None


class Gaussian(Prior):
    """N(0, sigma^2).

    Args:
        sigma: standard deviation, > 0.

    Example:
        >>> round(float(Gaussian(1.0).log_density(np.float32(0.0))), 4)
        -0.9189
    """

    def __init__(self, sigma: float = 1.0):
        if not sigma > 0:
            raise CompressionError(f"`sigma` of a Gaussian prior must be above 0; received {sigma!r}.")
        self.sigma = float(sigma)

    def log_density(self, value):
        return log_normal(value, 0.0, math.log(self.sigma))

    def divergence(self, mean, rho):
        variance = self.sigma**2
        log_ratio = math.log(self.sigma) - log_sigma_of(rho)
        return log_ratio + (keras.ops.square(sigma_of(rho)) + keras.ops.square(mean)) / (2.0 * variance) - 0.5


class ScaleMixture(Prior):
    """pi N(0, sigma1^2) + (1 - pi) N(0, sigma2^2): most weights near 0, a few free; the prior of [23].

    Args:
        pi: weight of the first, wide component, 0 < pi < 1. sigma1: its standard deviation. sigma2: the narrow one's.

    Example:
        >>> bool(np.isfinite(ScaleMixture().log_density(np.float32(1e3))))
        True
    """

    def __init__(self, pi: float = 0.25, sigma1: float = 1.0, sigma2: float = math.exp(-6.0)):
        if not 0 < pi < 1:
            raise CompressionError(f"`pi` of a scale mixture must lie between 0 and 1; received {pi!r}.")
        if not sigma1 > sigma2 > 0:
            raise CompressionError(
                f"A scale mixture needs sigma1 > sigma2 > 0; received sigma1={sigma1!r}, sigma2={sigma2!r}."
            )
        self.pi, self.sigma1, self.sigma2 = float(pi), float(sigma1), float(sigma2)

    def log_density(self, value):
        wide = math.log(self.pi) + log_normal(value, 0.0, math.log(self.sigma1))
        narrow = math.log1p(-self.pi) + log_normal(value, 0.0, math.log(self.sigma2))
        return wide + keras.ops.softplus(narrow - wide)


def minibatch_weights(batches: int, weighting: str = "uniform") -> np.ndarray:
    """The shares pi_1 .. pi_M of the divergence that the M mini-batches of an epoch carry; they sum to 1.

    Args:
        batches: M. weighting: "uniform" for 1 / M, "decreasing" for 2^(M-i) / (2^M - 1), where the prior counts first.

    Example:
        >>> minibatch_weights(2, "decreasing").round(3).tolist()
        [0.667, 0.333]
    """
    _check_weighting(weighting)
    if weighting == "uniform":
        return np.full(batches, 1.0 / batches)
    return np.exp2(-np.arange(1.0, batches + 1)) / -np.expm1(-batches * math.log(2.0))


def _check_weighting(weighting) -> None:
    if weighting not in ("uniform", "decreasing"):
        raise CompressionError(f"`weighting` must be 'uniform' or 'decreasing'; received {weighting!r}.")


class Draw(keras.random.SeedGenerator):
    """A seed that stays what it is until `advance` is called; its second number counts the draws.

    Example:
        >>> draw = Draw(1)
        >>> one, same = (float(keras.random.normal((), seed=draw)) for _ in range(2))
        >>> draw.advance()
        >>> one == same, one == float(keras.random.normal((), seed=draw))
        (True, False)
    """

    _used = False

    def next(self, ordered=True):
        return self.state.value * 1

    @property
    def count(self):
        """How often `advance` was called."""
        return self.state.value[1]

    def advance(self) -> None:
        """Go on to the next draw."""
        step = keras.ops.convert_to_tensor(np.array([0, 1]), dtype=self.state.dtype)
        self.state.assign(self.state.value + step)

    def use(self) -> "Draw":
        """Itself, and remember that the step that is running (or being traced) uses the draw."""
        self._used = True
        return self

    def finish(self) -> None:
        """At the end of a step, outside any loop: advance if the draw was used."""
        if self._used:
            self._used = False
            self.advance()


def track_draw(link: Parametrization, seed) -> Draw:
    """A `Draw` that belongs to a parametrization which is being built, and is saved with its layer."""
    # Equal seeds on two weights of one shape would give them equal noise. A method numbers its weights in the seed, as
    # text, so that a model that is made anew under other automatic names gets the same noise; else the name serves.
    text = seed if isinstance(seed, str) else f"{seed}/{link.layer.path}/{link.weight}/{link.shape}"
    draw = Draw(zlib.crc32(text.encode()) & 0x7FFFFFFF)
    _keras_compat.track_seed(link.layer, draw)
    link.__dict__.setdefault("seeds", []).append(draw)
    return draw


class VariationalWeight(Parametrization, abc.ABC):
    """A weight with a posterior: a subclass says what its mean, a draw and the divergence from the prior are.

    The loss of a mini-batch is the free energy F_i = pi_i * KL - log P(D_i | w), divided by the batch size if the
    model's loss is a mean over the batch, as Keras's losses are: then KL counts pi_i * batches / examples.

    Args:
        examples: size N of the training set; needed for loss="mean".
        batches: mini-batches M an epoch; needed for loss="sum" and for decreasing weights.
        weighting: "uniform" or "decreasing", see `minibatch_weights`.
        loss: "mean" or "sum": how the model's loss joins the negative log-likelihoods of a batch's examples.
        passes: how many steps in a row see the same mini-batch, each with a draw of its own; see `Repeated`.
        seed: of the draws; an integer is mixed with the weight's name, a text is taken as it is.
    """

    def __init__(self, examples=None, batches=None, weighting="uniform", loss="mean", passes=1, seed=0):
        _check_weighting(weighting)
        if loss not in ("mean", "sum"):
            raise CompressionError(f"`loss` must be 'mean' or 'sum', as the model's loss is; received {loss!r}.")
        if loss == "mean" and not (examples and examples > 0):
            raise CompressionError(
                "The prior has to be weighed against the data: give `examples`, the number of training examples "
                f"(received {examples!r}), or loss='sum' and `batches` if the model's loss is a sum over the batch."
            )
        if (loss == "sum" or weighting == "decreasing") and not (batches and batches > 0):
            raise CompressionError(
                f"loss={loss!r} with weighting={weighting!r} needs `batches`, the number of mini-batches an epoch "
                f"(examples / batch size, rounded up); received {batches!r}."
            )
        if int(passes) < 1:
            raise CompressionError(f"`passes` must be at least 1; received {passes!r}.")
        self.examples, self.batches, self.weighting = examples, batches, weighting
        self.loss, self.passes, self.seed = loss, int(passes), seed

    @abc.abstractmethod
    def mean(self, value):
        """What inference sees."""
        raise NotImplementedError

    @abc.abstractmethod
    def sample(self, value):
        """The weight with the present draw's noise, which `noise` gives."""
        raise NotImplementedError

    @abc.abstractmethod
    def divergence(self, value):
        """The summed divergence from the prior, sampled with the present draw or in closed form."""
        raise NotImplementedError

    def build(self, layer, name, shape):
        self.draw = track_draw(self, self.seed)

    def noise(self, shape=None):
        """Standard normal numbers of the present draw, of the weight's shape by default."""
        return keras.random.normal(self.shape if shape is None else shape, dtype="float32", seed=self.draw)

    @property
    def sampling(self) -> bool:
        """Whether the weight is drawn here: in training calls of a layer that is trained, and inside `sampled`."""
        return self.__dict__.get("_sampling", False) or (_keras_compat.training_now() and self.layer.trainable)

    def __call__(self, value):
        if not self.sampling:
            return self.mean(value)
        self.draw.use()
        return self.sample(value)

    def share(self):
        """What the divergence is multiplied by in this step's loss."""
        if self.weighting == "uniform":
            return 1.0 / (self.examples if self.loss == "mean" else self.batches)
        index = keras.ops.cast(keras.ops.mod(self.draw.count // self.passes, self.batches), "float32")
        shift = math.log2(-math.expm1(-self.batches * math.log(2.0)))
        scale = self.batches / self.examples if self.loss == "mean" else 1.0
        return scale * keras.ops.exp2(-(index + 1.0) - shift)

    def penalty(self):
        index = self.chain.links.index(self)
        value = self.divergence(self.chain.compute(index)) * self.share()
        self.draw.finish()  # evaluation has not used the draw, and does not change it
        return value

    def right_inverse(self, value):
        return value


class Repeated(keras.utils.PyDataset):
    """Mini-batches, each given `passes` times in a row, for several draws of the weights a mini-batch.

    With an optimizer of `gradient_accumulation_steps=passes` a step then follows the gradient's average over the draws.

    Args:
        x: inputs [n, ...]. y: targets [n, ...]. batch_size: examples a batch. passes: draws a mini-batch.
        seed: of the shuffling before each epoch, or None to keep the order.

    Example:
        >>> data = Repeated(np.arange(4), np.arange(4), batch_size=2, passes=2, seed=None)
        >>> [data[i][0].tolist() for i in range(len(data))]
        [[0, 1], [0, 1], [2, 3], [2, 3]]
    """

    def __init__(self, x, y, batch_size: int = 128, passes: int = 2, seed: int | None = 0, **kwargs):
        super().__init__(**kwargs)
        if len(x) != len(y) or not len(x):
            raise CompressionError(f"x and y must hold the same examples; received {len(x)} and {len(y)}.")
        self.x, self.y, self.batch_size, self.passes = np.asarray(x), np.asarray(y), int(batch_size), int(passes)
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(x))
        self.on_epoch_end()

    @property
    def batches(self) -> int:
        """Different mini-batches an epoch."""
        return -(-len(self.x) // self.batch_size)

    def __len__(self):
        return self.batches * self.passes

    def __getitem__(self, index):
        start = index // self.passes * self.batch_size
        rows = self._order[start : start + self.batch_size]
        return self.x[rows], self.y[rows]

    def on_epoch_end(self):
        if self._random is not None:
            self._order = self._random.permutation(self._order)


def variational_links(model) -> list[tuple[str, VariationalWeight]]:
    """The variational weights of a model with their names.

    Raises:
        CompressionError: there is none.
    """
    found = [(name, link) for name, c in chains(model) for link in c.links if isinstance(link, VariationalWeight)]
    if not found:
        raise CompressionError(
            f"Model {model.name!r} has no weights with a posterior. Apply a Bayesian method to it first, and do this "
            "before finalize."
        )
    return found
