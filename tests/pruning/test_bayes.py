"""[23] Bayes by Backprop: exact posteriors, gradients, the limit of no noise, and pruning by signal to noise."""

import keras
import numpy as np
import pytest
from scipy import special, stats

import tfcompress
from tfcompress import Compression, apply, finalize, pruning
from tfcompress.core.variational import variational_links
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain
from tfcompress.pruning import BayesByBackprop, Gaussian, ScaleMixture, snr_prune

# XLA takes seconds to compile a step, and adds nothing here but on JAX, which is slow without; one test has it on both.
JIT = keras.backend.backend() == "jax"


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def spread(layer, weight="kernel"):
    """rho of a layer's weight."""
    return array(chain(layer, weight).links[0].spread.value).astype("float64")


@keras.saving.register_keras_serializable("tests")
def half_square(target, given):
    """-log of a likelihood with Gaussian noise of variance 1, up to a constant."""
    return keras.ops.sum(keras.ops.square(target - given), axis=-1) / 2


@pytest.mark.paper(23)
def test_linear_regression_finds_the_exact_mean_field_posterior():
    random = np.random.default_rng(0)
    n, noise, width = 16, 0.5, 0.8
    mix = np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 1.0]])  # correlated inputs
    x = (random.normal(size=(n, 3)) @ mix).astype("float32")
    y = (x @ np.array([[0.7], [-0.4], [0.2]]) + noise * random.normal(size=(n, 1))).astype("float32")
    precision = x.T.astype("float64") @ x / noise**2 + np.eye(3) / width**2
    mean = np.linalg.inv(precision) @ (x.T.astype("float64") @ y) / noise**2
    sigma = 1 / np.sqrt(np.diag(precision))
    marginal = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert (marginal / sigma).max() > 1.15  # the mean-field optimum is told apart from the marginals
    # Each unit is the same regression with draws of its own, so that their average has little noise of sampling.
    units, steps = 64, 2000
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, use_bias=False)])
    bayes = apply(model, BayesByBackprop(examples=n, prior=Gaussian(width), rho=-2.0, closed_form=True), verbose=0)
    rate = keras.optimizers.schedules.PolynomialDecay(0.02, steps, 0.0)
    bayes.compile(keras.optimizers.Adam(rate), half_square, steps_per_execution=500, jit_compile=False)
    x, y = np.tile(x / np.float32(noise), (500, 1)), np.tile(y / np.float32(noise), (500, units))
    bayes.fit(x, y, batch_size=n, epochs=steps // 500, shuffle=False, verbose=0)
    found = bayes.layers[0].kernel.numpy()
    np.testing.assert_allclose(found.mean(1, keepdims=True), mean, atol=0.03 * sigma.min())
    np.testing.assert_allclose(np.log1p(np.exp(spread(bayes.layers[0]))).mean(1), sigma, rtol=0.02)


def free_energy(mu, rho, bias, bias_rho, eps, bias_eps, x, y, prior, examples):
    """The loss of one mini-batch in float64, for a linear model with squared error."""
    total = 0.0
    drawn = []
    for m, r, e in ((mu, rho, eps), (bias, bias_rho, bias_eps)):
        sigma = np.log1p(np.exp(r))
        w = m + sigma * e
        drawn.append(w)
        parts = [stats.norm.logpdf(w, 0, s) for s in (prior.sigma1, prior.sigma2)]
        shares = np.array([prior.pi, 1 - prior.pi]).reshape(2, *[1] * w.ndim)
        total += (stats.norm.logpdf(w, m, sigma) - special.logsumexp(parts, axis=0, b=shares)).sum() / examples
    return total + np.mean((x @ drawn[0] + drawn[1] - y) ** 2)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_gradients_for_fixed_noise_pass_finite_differences():
    prior = ScaleMixture(0.4, 1.0, 0.2)
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.layers[0].bias.assign([0.3, -0.2])
    bayes = apply(model, BayesByBackprop(examples=20, prior=prior, rho=-1.0), verbose=0)
    random = np.random.default_rng(1)
    x, y = random.normal(size=(6, 3)).astype("float32"), random.normal(size=(6, 2)).astype("float32")
    layer = bayes.layers[0]
    links = dict(variational_links(bayes))
    names = [f"{layer.name}.kernel", f"{layer.name}.bias"]
    eps = [array(links[name].noise()).astype("float64") for name in names]
    start = [layer.kernel.numpy(), spread(layer), layer.bias.numpy(), spread(layer, "bias")]
    start = [np.asarray(value, "float64") for value in start]

    def energy(values):
        return free_energy(*values, *eps, x.astype("float64"), y.astype("float64"), prior, 20)

    bayes.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=JIT)
    assert float(bayes.train_on_batch(x, y)) == pytest.approx(energy(start), rel=1e-5)
    moved = [layer.kernel.numpy(), spread(layer), layer.bias.numpy(), spread(layer, "bias")]
    for position, value in enumerate(start):
        gradient = value - moved[position]
        for index in np.ndindex(value.shape):
            sides = []
            for sign in (1, -1):
                shifted = [v.copy() for v in start]
                shifted[position][index] += sign * 1e-5
                sides.append(energy(shifted))
            assert gradient[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=2e-4, abs=2e-5)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_without_noise_training_is_ordinary_back_propagation():
    """rho -> -inf under N(0, s^2): the same steps as a plain net with the L2 penalty 1 / (2 s^2 N)."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(64, 8)).astype("float32"), random.integers(0, 3, 64)

    def net(**kwargs):
        keras.utils.set_random_seed(5)
        return keras.Sequential(
            [keras.Input((8,)), keras.layers.Dense(6, activation="tanh", **kwargs), keras.layers.Dense(3, **kwargs)]
        )

    penalty = keras.regularizers.L2(1 / (2 * 0.3**2 * 64))
    plain = net(kernel_regularizer=penalty, bias_regularizer=penalty)
    bayes = apply(net(), BayesByBackprop(examples=64, prior=Gaussian(0.3), rho=-80.0), verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for model in (plain, bayes):
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, jit_compile=JIT)
        model.fit(x, y, batch_size=16, epochs=8, shuffle=False, verbose=0)
    for left, right in zip(plain.layers, bayes.layers, strict=True):
        np.testing.assert_allclose(left.kernel.numpy(), right.kernel.numpy(), rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(left.bias.numpy(), right.bias.numpy(), rtol=1e-4, atol=2e-6)
    assert max(spread(layer).max() for layer in bayes.layers) < -30  # there was no noise up to the end


@pytest.mark.paper(23)
@pytest.mark.jax
def test_the_pruned_model_has_exactly_the_requested_zeros():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(7)]
    )
    bayes = apply(model, BayesByBackprop(examples=100), verbose=0)
    total = 4 * 9 + 4 * 36 * 7
    zeros = {}
    for fraction in (0.0, 0.33, 0.75, 0.95, 1.0):
        pruned = snr_prune(bayes, fraction, verbose=0)
        plain = finalize(pruned, verbose=0)
        zeros[fraction] = [int((layer.kernel.numpy() == 0).sum()) for layer in (plain.layers[0], plain.layers[2])]
        assert sum(zeros[fraction]) == round(fraction * total)
        again = snr_prune(pruned, fraction, verbose=0)  # nothing more than asked for goes
        assert sum(int((layer.kernel.numpy() == 0).sum()) for layer in (again.layers[0], again.layers[2])) == sum(
            zeros[fraction]
        )
    # One ranking over the model: the layer of smaller weights loses more of them.
    assert zeros[0.75][1] / (4 * 36 * 7) > zeros[0.75][0] / 36
    assert (bayes.layers[2].kernel.numpy() != 0).all()  # the caller's model is as it was
    with_biases = snr_prune(bayes, 0.5, biases=True, verbose=0)
    found = sum(int((w == 0).sum()) for w in finalize(with_biases, verbose=0).get_weights())
    assert found == round(0.5 * (total + 11))
    assert sum(row.action == "skipped" for row in tfcompress.summary(pruned).rows) == 2


@pytest.mark.paper(23)
@pytest.mark.jax
def test_the_ranking_is_mu_over_sigma():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    bayes = apply(model, BayesByBackprop(examples=10), verbose=0)
    layer = bayes.layers[0]
    layer.kernel.assign(np.array([[1.0], [0.5], [-0.4], [0.3]]))
    sigma = np.array([[1.0], [0.1], [0.01], [0.3]])  # ratios 1, 5, 40, 1 - by magnitude the last ones would go
    chain(layer).links[0].spread.assign(np.log(np.expm1(sigma)))
    np.testing.assert_allclose(chain(layer).links[0].signal_to_noise(), [[1], [5], [40], [1]], rtol=1e-5)
    pruned = snr_prune(bayes, 0.5, verbose=0)
    assert (pruned.layers[0].kernel.numpy() != 0).ravel().tolist() == [False, True, True, False]
    figures = chain(layer).links[0].log()
    assert figures["snr_db"] == pytest.approx(10 * np.log10(3.0), abs=1e-4)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_deleted_weights_stay_deleted_and_leave_the_divergence():
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(8, use_bias=False)])
    bayes = apply(model, BayesByBackprop(examples=1, prior=Gaussian(1.0), closed_form=True), verbose=0)
    whole = float(array(bayes.losses[0]))
    pruned = snr_prune(bayes, 0.5, verbose=0)
    live = pruned.layers[0].kernel.numpy() != 0
    mu, sigma = bayes.layers[0].kernel.numpy().astype("float64"), np.log1p(np.exp(-5.0))
    each = np.log(1 / sigma) + (sigma**2 + mu**2) / 2 - 0.5
    assert float(array(pruned.losses[0])) == pytest.approx(each[live].sum(), rel=1e-5)
    assert whole == pytest.approx(each.sum(), rel=1e-5)
    random = np.random.default_rng(0)
    pruned.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=JIT)
    x, y = random.normal(size=(32, 10)).astype("float32"), random.normal(size=(32, 8)).astype("float32")
    history = pruned.fit(x, y, epochs=5, verbose=0, callbacks=[Compression()])
    assert history.history["sparsity"][-1] == pytest.approx(0.5)
    assert np.array_equal(pruned.layers[0].kernel.numpy() != 0, live)
    drawn = array(pruned(np.eye(10, dtype="float32"), training=True))
    assert ((drawn != 0) == live).all()
    plain = finalize(pruned, verbose=0)
    # The means alone can be trained on, with the zeros held.
    kept = apply(plain, pruning.Magnitude(quality=0.0), verbose=0)
    kept.compile("sgd", "mse", jit_compile=JIT)
    kept.fit(x, y, verbose=0, callbacks=[Compression()])
    assert np.array_equal(kept.layers[0].kernel.numpy() != 0, live)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_finalize_leaves_the_means():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
    bayes = apply(model, BayesByBackprop(examples=10), verbose=0)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    bayes.compile("adam", "mse", jit_compile=JIT)
    bayes.fit(x, np.ones((5, 2), "float32"), epochs=3, verbose=0)
    plain = finalize(snr_prune(bayes, 0.5, verbose=0), verbose=0)
    assert [type(layer) for layer in plain.layers] == [keras.layers.Dense] * 2
    assert plain.count_params() == model.count_params()
    means = finalize(bayes, verbose=0)
    assert np.array_equal(array(means(x)), array(bayes(x)))
    for layer, own in zip(means.layers, bayes.layers, strict=True):
        assert np.array_equal(layer.kernel.numpy(), array(chain(own).raw.value))


@pytest.mark.paper(23)
def test_signal_to_noise_is_no_worse_a_ranking_than_magnitude():
    """Weights of the same mean whose input hardly varies are noisy ones: |mu| cannot see that, the posterior can.

    A regression on inputs of very different size, where most inputs have nothing to do with the target.
    """
    random = np.random.default_rng(4)
    scales = np.geomspace(0.02, 1.0, 60)
    x = (random.normal(size=(512, 60)) * scales).astype("float32")
    true = np.where(np.arange(60) % 3 == 0, random.normal(size=60) * 0.6, 0.0)
    y = (x @ true[:, None] + 0.1 * random.normal(size=(512, 1))).astype("float32")
    model = keras.Sequential([keras.Input((60,)), keras.layers.Dense(1, use_bias=False)])
    bayes = apply(model, BayesByBackprop(examples=512, prior=Gaussian(1.0), rho=-3.0), verbose=0)
    bayes.compile(keras.optimizers.Adam(0.02), half_square, jit_compile=False, steps_per_execution=8)
    bayes.fit(10 * x, 10 * y, batch_size=64, epochs=100, verbose=0)
    mu = bayes.layers[0].kernel.numpy()
    for fraction in (0.5, 0.75, 0.9, 0.95):
        by_snr = finalize(snr_prune(bayes, fraction, verbose=0), verbose=0).layers[0].kernel.numpy()
        order = np.argsort(np.abs(mu).ravel())
        by_size = mu.copy()
        by_size[order[: round(fraction * 60)]] = 0
        assert (by_snr == 0).sum() == (by_size == 0).sum()
        assert not np.array_equal(by_snr == 0, by_size == 0)
        losses = [float(np.mean((x @ kernel - y) ** 2)) for kernel in (by_snr, by_size)]
        assert losses[0] < losses[1]


@pytest.mark.jax
def test_biases_get_posteriors_unless_asked_not_to():
    model = keras.Sequential([keras.Input((6, 4)), keras.layers.GRU(3), keras.layers.Dense(2)])
    with_biases = [name for name, _ in variational_links(apply(model, BayesByBackprop(examples=1), verbose=0))]
    assert sorted(name.rsplit(".")[-1] for name in with_biases) == [
        "bias", "bias", "kernel", "kernel", "recurrent_kernel"
    ]  # fmt: skip
    without = apply(model, BayesByBackprop(examples=1, biases=False), verbose=0)
    assert len(variational_links(without)) == 3


def test_a_frozen_layer_is_not_noisy():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.layers[0].trainable = False
    bayes = apply(model, BayesByBackprop(examples=1, rho=1.0, include_frozen=True), verbose=0)
    x = np.ones((2, 6), "float32")
    assert np.array_equal(array(bayes(x, training=True)), array(bayes(x)))


def test_bad_calls_are_named():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    with pytest.raises(CompressionError, match="no weights with a posterior"):
        snr_prune(model, 0.5)
    bayes = apply(model, BayesByBackprop(examples=1), verbose=0)
    with pytest.raises(CompressionError, match="between 0 and 1"):
        snr_prune(bayes, 1.5)
    report = str(tfcompress.summary(snr_prune(bayes, 0.5, verbose=0)))
    assert "9 of 18 weights deleted" in report


def test_a_model_that_is_not_built_gets_its_posteriors_when_it_is():
    model = keras.Sequential([keras.layers.Dense(4, use_bias=False), keras.layers.Dense(2)])
    bayes = apply(model, BayesByBackprop(examples=8), in_place=True, verbose=0)
    assert [row.weight for row in tfcompress.summary(bayes).rows if row.action == "done"] == [
        "kernel",
        "kernel",
        "bias",
    ]
    bayes.compile("sgd", "mse", jit_compile=JIT)
    bayes.fit(np.ones((8, 3), "float32"), np.ones((8, 2), "float32"), verbose=0, callbacks=[Compression()])
    assert len(variational_links(bayes)) == 3
