"""The variational engine: densities and divergences against SciPy, shares of mini-batches, one draw a step, ensembles."""

import keras
import numpy as np
import pytest
from scipy import integrate, special, stats

from tfcompress import Compression, apply, finalize
from tfcompress.core import ensembles, variational
from tfcompress.core.variational import Gaussian, Repeated, ScaleMixture, variational_links
from tfcompress.errors import CompressionError
from tfcompress.pruning import BayesByBackprop, GaussianWeight

# XLA takes seconds to compile a step, and adds nothing here but on JAX, which is slow without; one test has it on both.
JIT = keras.backend.backend() == "jax"


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draws(model):
    return [int(array(link.draw.count)) for _, link in variational_links(model)]


def small_model(last="softmax"):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(7, activation="relu"), keras.layers.Dense(3, activation=last)]
    )


def tiny_model():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="softmax")])


def small_data(count=48):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 5)).astype("float32"), random.integers(0, 3, count)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_the_scale_mixture_is_scipys_and_finite_up_to_a_thousand():
    prior = ScaleMixture(pi=0.25, sigma1=1.0, sigma2=float(np.exp(-6)))
    w = np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 60)])
    w = np.concatenate([w, -w]).astype("float32")
    parts = [stats.norm.logpdf(w.astype("float64"), 0, s) for s in (prior.sigma1, prior.sigma2)]
    expected = special.logsumexp(parts, axis=0, b=np.array([[0.25], [0.75]]))
    given = array(prior.log_density(w))
    assert np.isfinite(given).all()
    np.testing.assert_allclose(given, expected, rtol=2e-5)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_the_gradient_of_the_scale_mixture_is_finite_far_out():
    layer = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((4,)), layer])
    layer.kernel.assign(np.array([[1e3], [-1e3], [0.0], [1e-3]]))
    bayes = apply(model, BayesByBackprop(examples=10, rho=-5.0), verbose=0)
    bayes.compile(keras.optimizers.SGD(1e-6), "mse", jit_compile=JIT)
    bayes.train_on_batch(np.ones((2, 4), "float32"), np.zeros((2, 1), "float32"))
    assert np.isfinite(bayes.layers[0].kernel.numpy()).all()


@pytest.mark.paper(23)
@pytest.mark.jax
def test_sampled_divergence_averages_to_the_closed_form():
    mu, rho, prior = np.float32([0.3, -1.2, 0.0]), np.float32([-2.0, 0.5, 1.0]), Gaussian(0.8)
    sigma = np.log1p(np.exp(rho.astype("float64")))
    exact = np.log(0.8 / sigma) + (sigma**2 + mu.astype("float64") ** 2) / (2 * 0.64) - 0.5
    np.testing.assert_allclose(array(prior.divergence(mu, rho)), exact, rtol=1e-5)
    for one in range(3):  # the closed form itself, by quadrature
        q = stats.norm(mu[one], sigma[one])
        value, _ = integrate.quad(
            lambda w, q=q: q.pdf(w) * (q.logpdf(w) - stats.norm.logpdf(w, 0, 0.8)), -20, 20, limit=400
        )
        assert value == pytest.approx(exact[one], abs=1e-6)
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(300, use_bias=False)])
    model.layers[0].kernel.assign(np.full((200, 300), -1.2))
    sums = []
    for closed in (True, False):
        bayes = apply(
            model, BayesByBackprop(examples=1, prior=prior, rho=0.5, closed_form=closed, biases=False), verbose=0
        )
        sums.append(float(array(bayes.losses[0])))
    # 60 000 weights of equal posterior are 60 000 draws; log q - log P has the standard deviation computed here.
    eps = np.random.default_rng(0).normal(size=400_000)
    w = -1.2 + sigma[1] * eps
    deviation = (stats.norm.logpdf(w, -1.2, sigma[1]) - stats.norm.logpdf(w, 0, 0.8)).std()
    assert sums[0] / 60_000 == pytest.approx(exact[1], rel=1e-5)
    assert abs(sums[1] / 60_000 - exact[1]) < 4 * deviation / np.sqrt(60_000)


@pytest.mark.paper(23)
@pytest.mark.jax
def test_sigma_and_its_logarithm_are_stable():
    rho = np.float32([-100.0, -40.0, -15.1, -14.9, -5.0, 0.0, 10.0, 60.0])
    exact = np.log1p(np.exp(rho.astype("float64")))
    np.testing.assert_allclose(array(variational.sigma_of(rho)), exact, rtol=1e-5, atol=1e-43)
    np.testing.assert_allclose(array(variational.log_sigma_of(rho)), np.log(exact), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variational.rho_of(np.log1p(np.exp([-5.0, 0.0, 3.0]))), [-5.0, 0.0, 3.0], atol=1e-12)


@pytest.mark.paper(23)
@pytest.mark.parametrize("batches", [1, 2, 7, 469, 5000])
def test_shares_sum_to_one(batches):
    for weighting in ("uniform", "decreasing"):
        shares = variational.minibatch_weights(batches, weighting)
        assert shares.shape == (batches,)
        assert np.isfinite(shares).all()
        assert shares.sum() == pytest.approx(1.0, abs=1e-12)
    if batches <= 7:
        exact = [2 ** (batches - i) / (2**batches - 1) for i in range(1, batches + 1)]
        np.testing.assert_allclose(shares, exact, rtol=1e-14)


@pytest.mark.paper(23)
@pytest.mark.jax
@pytest.mark.parametrize("weighting", ["uniform", "decreasing"])
@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_an_epoch_of_losses_is_the_free_energy(weighting, loss):
    """With sigma at 0 nothing is random but a constant: sum over mini-batches of F_i == KL - log-likelihood of all data."""
    x, y = small_data(40)
    batches, size = 5, 8
    method = BayesByBackprop(
        examples=40, batches=batches, weighting=weighting, prior=Gaussian(0.7), rho=-30.0, closed_form=True, loss=loss
    )
    bayes = apply(small_model(), method, verbose=0)
    reduction = "sum_over_batch_size" if loss == "mean" else "sum"
    bayes.compile(
        keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(reduction=reduction), jit_compile=JIT
    )
    terms = []
    for i in range(batches):
        part = slice(i * size, (i + 1) * size)
        terms.append(float(bayes.train_on_batch(x[part], y[part])) * (size if loss == "mean" else 1))
    plain = finalize(bayes, verbose=0)
    likelihood = np.log(plain.predict(x, verbose=0)[np.arange(40), y].astype("float64")).sum()
    sigma = np.exp(-30.0)
    weights = np.concatenate([w.ravel() for w in plain.get_weights()]).astype("float64")
    divergence = (np.log(0.7 / sigma) + (sigma**2 + weights**2) / (2 * 0.49) - 0.5).sum()
    assert sum(terms) == pytest.approx(divergence - likelihood, rel=1e-5)
    each = [
        -np.log(
            plain.predict(x[i * size : (i + 1) * size], verbose=0)[np.arange(size), y[i * size : (i + 1) * size]]
        ).sum()
        for i in range(batches)
    ]
    expected = [1 / batches] * batches if weighting == "uniform" else [16 / 31, 8 / 31, 4 / 31, 2 / 31, 1 / 31]
    np.testing.assert_allclose((np.array(terms) - each) / divergence, expected, rtol=1e-4)


@pytest.mark.paper(23)
@pytest.mark.jax
@pytest.mark.parametrize("jit", [False, True])
def test_a_step_makes_one_draw_and_evaluation_none(jit):
    x, y = small_data()
    bayes = apply(tiny_model(), BayesByBackprop(examples=48), verbose=0)
    bayes.compile("sgd", "sparse_categorical_crossentropy", jit_compile=jit)
    bayes.fit(x, y, batch_size=16, epochs=2, validation_data=(x, y), verbose=0, callbacks=[Compression()])
    assert draws(bayes) == [6, 6]
    bayes.evaluate(x, y, verbose=0)
    bayes.predict(x, verbose=0)
    [float(array(loss)) for loss in bayes.losses]
    assert draws(bayes) == [6, 6]


@pytest.mark.paper(23)
@pytest.mark.jax
def test_every_use_in_a_step_sees_the_same_weight():
    """A shared layer on x and -x, and a recurrent cell on a constant input with an identity state."""
    shared = keras.layers.Dense(4, use_bias=False, name="shared")
    a, b = keras.Input((5,)), keras.Input((5,))
    model = keras.Model([a, b], keras.layers.Add()([shared(a), shared(b)]))
    bayes = apply(model, BayesByBackprop(examples=1, rho=1.0), verbose=0)
    x = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
    one = array(bayes([x, -x], training=True))
    assert np.abs(one).max() < 1e-5
    apart = array(bayes([x, 0 * x], training=True)) - array(bayes([x, 0 * x], training=False))
    assert np.abs(apart).max() > 0.1  # there is noise, and it cancelled above
    cell = keras.layers.SimpleRNN(
        1, activation="linear", use_bias=False, recurrent_initializer="ones", kernel_initializer="zeros",
        return_sequences=True,
    )  # fmt: skip
    recurrent = keras.Sequential([keras.Input((6, 1)), cell])
    bayes = apply(recurrent, BayesByBackprop(examples=1, rho=-1.0, layers="*.kernel"), verbose=0)
    states = array(bayes(np.ones((2, 6, 1), "float32"), training=True))[0, :, 0]
    assert abs(states[0]) > 1e-4
    np.testing.assert_allclose(np.diff(states), states[0], rtol=1e-5)  # the same increment at every step


@pytest.mark.paper(23)
@pytest.mark.jax
def test_forward_and_penalty_share_the_draw():
    layer = keras.layers.Dense(3, use_bias=False)
    model = keras.Sequential([keras.Input((4,)), layer])
    prior = ScaleMixture(0.5, 1.0, 0.1)
    bayes = apply(model, BayesByBackprop(examples=2, prior=prior, rho=-0.5), verbose=0)
    mu = bayes.layers[0].kernel.numpy().astype("float64")
    w = array(bayes(np.eye(4, dtype="float32"), training=True)).astype("float64")
    sigma = np.log1p(np.exp(-0.5))
    log_p = special.logsumexp(
        [stats.norm.logpdf(w, 0, 1.0), stats.norm.logpdf(w, 0, 0.1)], axis=0, b=np.full((2, 1, 1), 0.5)
    )
    expected = (stats.norm.logpdf(w, mu, sigma) - log_p).sum() / 2
    assert float(array(bayes.losses[0])) == pytest.approx(expected, rel=1e-5)
    after = array(bayes(np.eye(4, dtype="float32"), training=True))
    assert np.abs(after - w).max() > 0.01  # reading the losses ended the step


@pytest.mark.paper(23)
@pytest.mark.jax
def test_weights_of_one_shape_get_different_noise():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6), keras.layers.Dense(6)])
    bayes = apply(model, GaussianWeight(examples=1, seed=4), verbose=0)
    first, second = (array(link.noise()) for _, link in variational_links(bayes))
    assert np.abs(first - second).max() > 0.1
    noise = np.concatenate([array(link.noise((4000,))) for _, link in variational_links(bayes)])
    assert stats.kstest(noise, "norm").pvalue > 1e-3


@pytest.mark.paper(23)
@pytest.mark.jax
def test_same_seed_same_training_and_resume_goes_on(tmp_path):
    x, y = small_data()

    def fresh():
        bayes = apply(small_model(), BayesByBackprop(examples=48, seed=5), verbose=0)
        bayes.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", jit_compile=JIT)
        return bayes

    one, two = fresh(), fresh()
    for epochs in (3, 3):
        one.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    # Made anew under other automatic names: the noise is the same all the same.
    two.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    two.save(tmp_path / "m.keras")
    two = keras.saving.load_model(tmp_path / "m.keras")
    assert draws(two) == [9] * 4
    two.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0)
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.paper(23)
def test_several_draws_a_mini_batch_average_their_gradients():
    """passes=2 with gradient accumulation over 2 steps: one update by the mean of the two draws' gradients."""
    x, y = small_data(8)
    y = np.eye(3, dtype="float32")[y] @ np.ones((3, 1), "float32") * 0.3

    def fresh(optimizer):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
        bayes = apply(model, BayesByBackprop(examples=8, prior=Gaussian(1.0), rho=-1.0, passes=2), verbose=0)
        bayes.compile(optimizer, "mse", jit_compile=JIT)
        return bayes

    data = Repeated(x, y, batch_size=8, passes=2, seed=None)
    assert (len(data), data.batches) == (2, 1)
    bayes = fresh(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    start = bayes.layers[0].kernel.numpy().astype("float64")
    link = variational_links(bayes)[0][1]
    sigma, eps = np.log1p(np.exp(-1.0)), []
    for _ in range(2):
        eps.append(array(link.noise()).astype("float64"))
        link.draw.advance()
    link.draw.state.assign(array(link.draw.state.value) - np.array([0, 2], array(link.draw.state.value).dtype))
    bayes.fit(data, epochs=1, verbose=0)
    gradients = []
    for e in eps:
        w = start + sigma * e
        # d/dw of mean squared error and of -log P / N with P = N(0, 1); log q has no gradient in mu once w is fixed.
        gradients.append(2 * x.astype("float64").T @ (x @ w - y) / 8 + w / 8)
    np.testing.assert_allclose(
        bayes.layers[0].kernel.numpy(), start - 0.1 * np.mean(gradients, 0), rtol=1e-4, atol=1e-6
    )


@pytest.mark.paper(23)
def test_repeated_batches_shuffle_and_cover_all():
    data = Repeated(np.arange(10), np.arange(10), batch_size=3, passes=2, seed=1)
    first = [data[i][0].tolist() for i in range(len(data))]
    assert len(first) == 8
    assert first[0::2] == first[1::2]
    assert sorted(np.concatenate(first[0::2])) == list(range(10))
    data.on_epoch_end()
    assert [data[i][0].tolist() for i in range(len(data))] != first
    with pytest.raises(CompressionError, match="same examples"):
        Repeated(np.arange(3), np.arange(2))


@pytest.mark.paper(23)
@pytest.mark.jax
def test_ensembles_draw_from_the_posterior_and_leave_training_alone():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((30,)), keras.layers.Dense(40, use_bias=False)])
    bayes = apply(model, BayesByBackprop(examples=10, rho=-1.0), verbose=0)
    mu = bayes.layers[0].kernel.numpy()
    before = draws(bayes)
    kernels = np.array([plain.layers[0].kernel.numpy() for plain in ensembles.sampled(bayes, 30, seed=2)])
    assert type(next(ensembles.sampled(bayes, 1)).layers[0]) is keras.layers.Dense
    assert draws(bayes) == before
    standard = (kernels - mu) / np.log1p(np.exp(-1.0))
    assert stats.kstest(standard.ravel(), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(standard[0].ravel(), standard[1].ravel())[0, 1]) < 0.15
    again = np.array([plain.layers[0].kernel.numpy() for plain in ensembles.sampled(bayes, 2, seed=2)])
    assert np.array_equal(again, kernels[:2])
    other = next(ensembles.sampled(bayes, 1, seed=3)).layers[0].kernel.numpy()
    assert not np.array_equal(other, kernels[0])
    x = np.random.default_rng(0).normal(size=(4, 30)).astype("float32")
    mean = ensembles.average(bayes, x, samples=5, seed=2, transform=np.tanh)
    np.testing.assert_allclose(mean, np.mean([np.tanh(x @ k) for k in kernels[:5]], 0), rtol=1e-4, atol=1e-5)
    assert np.array_equal(array(bayes(x)), array(model(x)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "`examples`"),
        ({"examples": 10, "weighting": "decreasing"}, "`batches`"),
        ({"examples": 10, "loss": "sum"}, "`batches`"),
        ({"examples": 10, "weighting": "late"}, "weighting"),
        ({"examples": 10, "loss": "max"}, "loss"),
        ({"examples": 10, "passes": 0}, "passes"),
        ({"examples": 10, "prior": "mixture"}, "prior"),
        ({"examples": 10, "closed_form": True}, "closed-form"),
        ({"examples": 10, "rho": float("-inf")}, "rho"),
    ],
)
def test_bad_arguments_are_named(given, message):
    with pytest.raises(CompressionError, match=message):
        BayesByBackprop(**given)
    with pytest.raises(CompressionError, match=message):
        GaussianWeight(**given)


def test_bad_priors_and_models_are_named():
    for make, message in [
        (lambda: Gaussian(0.0), "sigma"),
        (lambda: ScaleMixture(pi=1.0), "pi"),
        (lambda: ScaleMixture(sigma1=0.1, sigma2=0.2), "sigma1 > sigma2"),
        (lambda: ensembles.average(small_model(), np.ones((1, 5))), "no weights with a posterior"),
    ]:
        with pytest.raises(CompressionError, match=message):
            make()
