"""[23] Weight Uncertainty in Neural Networks (Blundell, Cornebise, Kavukcuoglu, Wierstra, 2015): Bayes by Backprop."""

import itertools

import keras
import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.core.variational import (
    Prior,
    ScaleMixture,
    VariationalWeight,
    log_sigma_of,
    sigma_of,
    variational_links,
)
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, SKIPPED, Report, Row, WeightMethod, copy_model, step
from tfcompress.parametrization import attach


class GaussianWeight(VariationalWeight):
    """w = mu + log(1 + exp(rho)) * eps, with the layer's own weight as mu and one draw of eps a mini-batch.

    Inference sees mu. Weights that `snr_prune` deleted are exactly 0 in both, and have no part in the divergence.

    Args:
        examples, batches, weighting, loss, passes, seed: see `tfcompress.core.variational.VariationalWeight`.
        prior: `ScaleMixture(pi, sigma1, sigma2)` or `Gaussian(sigma)`.
        rho: initial value, -5..-3 in the paper (sigma 0.007..0.05).
        closed_form: use the exact divergence instead of log q - log P of the draw; for a Gaussian prior only.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(1, kernel_initializer="ones")
        >>> layer.build((None, 2))
        >>> parametrize(layer, "kernel", GaussianWeight(examples=100))
        >>> layer.kernel.numpy().ravel()
        array([1., 1.], dtype=float32)
    """

    papers = (23,)

    def __init__(self, examples=None, batches=None, weighting="uniform", loss="mean", passes=1, seed=0,
                 prior=None, rho: float = -5.0, closed_form: bool = False):  # fmt: skip
        super().__init__(examples, batches, weighting, loss, passes, seed)
        prior = ScaleMixture() if prior is None else prior
        if not isinstance(prior, Prior):
            raise CompressionError(f"`prior` must be a ScaleMixture or a Gaussian; received {prior!r}.")
        if closed_form and type(prior).divergence is Prior.divergence:
            raise CompressionError(f"{type(prior).__name__} has no closed-form divergence; use closed_form=False.")
        if not np.isfinite(rho):
            raise CompressionError(f"`rho` must be a finite number; received {rho!r}.")
        self.prior, self.rho, self.closed_form = prior, float(rho), bool(closed_form)

    def build(self, layer, name, shape):
        super().build(layer, name, shape)
        self.spread = self.add_variable("rho", shape, keras.initializers.Constant(self.rho), trainable=True)
        self.alive = self.add_variable("alive", shape, "ones", dtype="bool")

    def mean(self, value):
        return keras.ops.where(self.alive.value, value, keras.ops.zeros_like(value))

    def sample(self, value):
        return self.mean(value + sigma_of(self.spread.value) * self.noise())

    def divergence(self, value):
        rho = self.spread.value
        if self.closed_form:
            each = self.prior.divergence(value, rho)
        else:
            eps = self.noise()
            # log q of the draw: (w - mu) / sigma is eps itself, and the constant is the prior's too.
            log_q = -0.5 * (keras.ops.square(eps) + np.log(2.0 * np.pi).astype("float32")) - log_sigma_of(rho)
            each = log_q - self.prior.log_density(value + sigma_of(rho) * eps)
        return keras.ops.sum(self.mean(each))

    def signal_to_noise(self) -> np.ndarray:
        """|mu| / sigma of each weight; -1 where the weight is deleted."""
        mu = self.chain.dense(self.chain.links.index(self)).astype("float64")
        # In float64 and with a floor: a sigma that training drove to 0 is a large ratio, not an overflow.
        sigma = np.logaddexp(0.0, keras.ops.convert_to_numpy(self.spread.value).astype("float64"))
        ratio = np.abs(mu) / np.maximum(sigma, 1e-200)
        return np.where(keras.ops.convert_to_numpy(self.alive.value), ratio, -1.0)

    def prune(self, keep: np.ndarray) -> None:
        """Delete the weights where `keep` is false: mu = sigma = 0 from now on."""
        self.alive.assign(keras.ops.convert_to_numpy(self.alive.value) & keep)

    def log(self):
        ratio = self.signal_to_noise()
        live = ratio[ratio >= 0]
        decibels = 10.0 * np.log10(np.maximum(np.median(live), 1e-12)) if live.size else 0.0
        return {"sparsity": 1.0 - live.size / ratio.size, "snr_db": float(decibels)}


class BayesByBackprop(WeightMethod):
    """[23] Learns a Gaussian posterior for every weight by ordinary `fit`; `snr_prune` then deletes the noisy weights.

    The model's loss has to be the negative log-likelihood (cross-entropy, or squared error over 2 sigma^2), as a mean
    over the examples unless loss="sum". `finalize` leaves the means: a dense file of the old size, whose zeros the
    sparse codec or a compressed download turn into bytes saved; stock runtimes are not faster by them.

    Args:
        examples: number N of training examples. batches: mini-batches M an epoch, for weighting="decreasing" or
            loss="sum". weighting: "uniform" (1/M) or "decreasing" (2^(M-i) / (2^M - 1): the prior counts first).
        prior: by default the paper's mixture, ScaleMixture(pi=1/4, sigma1=1, sigma2=exp(-6)).
        rho: initial rho. biases: give biases a posterior too. closed_form, loss, passes, seed: as in `GaussianWeight`.
        layers, exclude, include_frozen: which weights; see `tfcompress.select`.

    Example:
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> bayes = apply(model, BayesByBackprop(examples=1000), verbose=0)
        >>> len(bayes.trainable_variables)
        4
    """

    papers = (23,)

    def __init__(self, examples=None, batches=None, weighting="uniform", prior=None, rho: float = -5.0,
                 biases: bool = True, closed_form: bool = False, loss="mean", passes: int = 1, seed: int = 0,
                 layers=None, exclude=None, include_frozen: bool = False):  # fmt: skip
        self.examples, self.batches, self.weighting, self.prior, self.rho = examples, batches, weighting, prior, rho
        self.biases, self.closed_form, self.loss, self.passes, self.seed = biases, closed_form, loss, passes, seed
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen
        self._numbers = itertools.count()
        self._weight()  # bad arguments are refused here, before any model is touched

    def _weight(self) -> GaussianWeight:
        seed = f"{self.seed}/{next(self._numbers)}"
        return GaussianWeight(
            self.examples, self.batches, self.weighting, self.loss, self.passes, seed, self.prior, self.rho,
            self.closed_form,
        )  # fmt: skip

    def parametrization(self, path, layer, weight):
        return self._weight()

    def attach(self, model, data=None):
        self._numbers = itertools.count()
        model, rows = super().attach(model, data)
        if not self.biases:
            return model, rows
        reached = dict(select.layers(model))
        reached[model.name] = model
        for path in dict.fromkeys(row.layer for row in rows if row.action == DONE):
            layer = reached[path]
            names = select.weight_names(layer) if layer.built else ["bias"] * bool(getattr(layer, "use_bias", False))
            for name in [name for name in names if "bias" in name]:
                link = self._weight()
                link.start = step(model)
                attach(layer, name, [link])
                rows.append(Row(path, name, DONE, repr(link)))
        return model, rows


def snr_prune(model, fraction: float, *, biases: bool = False, in_place: bool = False, verbose: int = 1):
    """Delete the weights of the lowest signal-to-noise ratio |mu| / sigma, ranked over the whole model; no retraining.

    To train on what is left, fit the result on (the deleted weights stay deleted), or finalize it and go on with
    `pruning.Magnitude(quality=0.0)`, which holds the zeros.

    Args:
        model: a model with posteriors. fraction: share of the ranked weights to be 0, counting those deleted before.
        biases: rank biases too. in_place: change `model` itself. verbose: 0 prints nothing.

    Returns:
        The pruned model, still attached.

    Raises:
        CompressionError: `fraction` is outside 0..1, or no weight has a posterior.
    """
    if not 0 <= fraction <= 1:
        raise CompressionError(f"`fraction` must lie between 0 and 1; received {fraction!r}.")
    variational_links(model)
    twin = model if in_place else copy_model(model)
    links = [(name, link) for name, link in variational_links(twin) if isinstance(link, GaussianWeight)]
    ranked = [(name, link) for name, link in links if biases or "bias" not in name.rsplit(".", 1)[1]]
    if not ranked:
        raise CompressionError(f"Model {model.name!r} has no kernel with a Gaussian posterior: apply BayesByBackprop.")
    ratios = [link.signal_to_noise() for _, link in ranked]
    flat = np.concatenate([ratio.ravel() for ratio in ratios])
    keep = np.ones(flat.size, bool)
    keep[np.argsort(flat, kind="stable")[: round(fraction * flat.size)]] = False
    cuts = np.cumsum([ratio.size for ratio in ratios])[:-1]
    rows = []
    for (name, link), part, ratio in zip(ranked, np.split(keep, cuts), ratios, strict=True):
        link.prune(part.reshape(ratio.shape))
        path, weight = name.rsplit(".", 1)
        rows.append(Row(path, weight, DONE, f"{part.size - part.sum()} of {part.size} weights deleted"))
    for name, _ in [pair for pair in links if pair not in ranked]:
        path, weight = name.rsplit(".", 1)
        rows.append(Row(path, weight, SKIPPED, "biases=False"))
    _keras_compat.reset_functions(twin)
    report = Report(f"snr_prune({fraction}) on {twin.name}", rows)
    twin.__dict__["_tfcompress_report"] = report
    if verbose:
        print(report)
    return twin
