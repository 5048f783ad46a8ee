"""[1]'s specialists and the bias of missing classes, against closed forms, SciPy's minimisers and Bayes' rule."""

import keras
import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import rel_entr, softmax
from scipy.stats import norm

import tfcompress
from tfcompress import distillation
from tfcompress.distillation import PriorBias, SpecialistEnsemble, combine, confusable_sets
from tfcompress.errors import CompressionError

pytestmark = pytest.mark.paper(1)


def distribution(rng, *shape):
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def test_no_active_specialist_leaves_the_generalist_alone():
    rng = np.random.default_rng(0)
    p = distribution(rng, 8, 6)
    assert np.array_equal(combine(p, []), p)
    p[:, 0] = 0.9
    p /= p.sum(1, keepdims=True)
    np.testing.assert_array_equal(combine(p, [([3, 4], distribution(rng, 8, 3))]), p)  # its classes are never on top


def test_one_specialist_has_a_closed_form():
    rng = np.random.default_rng(1)
    p, inside = distribution(rng, 20, 6), np.array([1, 4])
    p[:, 1] += 2  # so that it is active everywhere
    p /= p.sum(1, keepdims=True)
    expert = distribution(rng, 20, 3)
    expected = np.empty_like(p)
    expected[:, inside] = (p[:, inside] + expert[:, :2]) / 2
    outside = np.setdiff1d(np.arange(6), inside)
    total = (p[:, outside].sum(1) + expert[:, 2]) / 2
    expected[:, outside] = p[:, outside] * (total / p[:, outside].sum(1))[:, None]
    np.testing.assert_allclose(combine(p, [(inside, expert)]), expected, atol=1e-8)


def test_overlapping_specialists_are_at_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(2)
    sets = [np.array([0, 1, 2]), np.array([2, 3])]
    p = distribution(rng, 1, 6)
    p[0, 2] = 1
    p /= p.sum()
    experts = [distribution(rng, 1, len(s) + 1) for s in sets]
    found = combine(p, list(zip(sets, experts, strict=True)))[0]

    def objective(z):
        q = softmax(z)
        value = rel_entr(p[0], q).sum()
        for classes, expert in zip(sets, experts, strict=True):
            outside = np.setdiff1d(np.arange(6), classes)
            value += rel_entr(expert[0], np.append(q[classes], q[outside].sum())).sum()
        return value

    for start in range(5):
        best = minimize(objective, rng.normal(size=6) + start, method="BFGS", options={"gtol": 1e-10})
        q = softmax(best.x)
        assert objective(np.log(found)) <= best.fun + 1e-9
        np.testing.assert_allclose(found, q, atol=2e-6)  # as far as BFGS gets with numerical gradients

    def constrained(q):
        value = rel_entr(p[0], q).sum()
        gradient = -p[0] / q
        for classes, expert in zip(sets, experts, strict=True):
            outside = np.setdiff1d(np.arange(6), classes)
            value += rel_entr(expert[0], np.append(q[classes], q[outside].sum())).sum()
            gradient[classes] -= expert[0, :-1] / q[classes]
            gradient[outside] -= expert[0, -1] / q[outside].sum()
        return value, gradient

    sum_to_one = {"type": "eq", "fun": lambda q: q.sum() - 1, "jac": lambda q: np.ones_like(q)}
    for _ in range(5):
        best = minimize(
            constrained, rng.dirichlet(np.ones(6) * 5), jac=True, method="SLSQP", bounds=[(1e-6, 1)] * 6,
            constraints=[sum_to_one], options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(found, best.x, atol=1e-6)
        assert constrained(found)[0] <= best.fun + 1e-12


def test_activity_follows_the_n_most_probable_classes():
    p = np.array([[0.6, 0.3, 0.1]])
    expert = [([1], np.array([[0.9, 0.1]]))]
    np.testing.assert_array_equal(combine(p, expert, n=1), p)
    assert combine(p, expert, n=2)[0, 1] == pytest.approx(0.6)


def test_prior_repair_is_bayes_rule():
    """Two Gaussians; the specialist was trained at half and half, the data has 7 % of the first."""
    fraction, x = 0.07, np.linspace(-4, 4, 9)
    densities = np.stack([norm.pdf(x, 1.0, 1.0), norm.pdf(x, -1.0, 1.5)], axis=1)
    trained = np.log(densities * [0.5, 0.5])
    trained[:, 1] += distillation.dustbin_shift(fraction, 0.5)
    bayes = densities * [fraction, 1 - fraction]
    np.testing.assert_allclose(softmax(trained, 1), bayes / bayes.sum(1, keepdims=True), rtol=1e-14)


def test_confusable_sets_are_found():
    rng = np.random.default_rng(3)
    groups = [[0, 5, 7], [1, 2], [3, 4, 6, 8]]
    p = np.full((600, 9), 0.002)
    for i in range(600):
        members = groups[i % 3]
        p[i, members] = rng.dirichlet(np.ones(len(members)) * 20)
    p /= p.sum(1, keepdims=True)
    assert [g.tolist() for g in confusable_sets(p, 3)] == groups
    assert [g.tolist() for g in confusable_sets(p, 3, seed=9)] == groups
    with pytest.raises(CompressionError, match="Cannot make 10 sets"):
        confusable_sets(p, 10)
    with pytest.raises(CompressionError, match="do not fall into 4 sets"):
        confusable_sets(np.full((10, 6), 1 / 6), 4)


def test_the_missing_class_gets_its_frequency():
    rng = np.random.default_rng(4)
    z = rng.normal(0, 3, (500, 10))
    (shift,) = distillation.class_bias(z, {3: 0.1}).values()

    def off(d):
        moved = z.copy()
        moved[:, 3] += d
        return softmax(moved, 1)[:, 3].mean() - 0.1

    assert shift == pytest.approx(brentq(off, -20, 20), abs=1e-5)
    wanted = {7: 0.3, 8: 0.02}
    both = distillation.class_bias(z, wanted)
    for c, d in both.items():
        z[:, c] += d
    np.testing.assert_allclose(softmax(z, 1).mean(0)[[7, 8]], [0.3, 0.02], atol=1e-5)


def test_bad_priors():
    z = np.zeros((4, 3))
    with pytest.raises(CompressionError, match=r"names classes \[5\]; the logits have shape \(4, 3\)"):
        distillation.class_bias(z, {5: 0.1})
    for priors in ({0: 0.0}, {0: 0.7, 1: 0.4}, {0: 0.3, 1: 0.3, 2: 0.3}):
        with pytest.raises(CompressionError, match="must be above 0, add up to less than 1"):
            distillation.class_bias(z, priors)


def test_oracle_bias_counts_errors():
    rng = np.random.default_rng(5)
    z, labels = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    shift, error = distillation.oracle_bias(z, labels, [2], shifts=np.arange(-3, 4))
    counted = {}
    for d in range(-3, 4):
        moved = z + d * np.eye(4)[2]
        counted[d] = np.mean(moved.argmax(1) != labels)
    assert error == min(counted.values())
    assert counted[int(shift)] == error


@pytest.mark.jax
@pytest.mark.parametrize("softmax_end", [False, True])
def test_prior_bias_as_a_method(softmax_end):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    if softmax_end:
        model.add(keras.layers.Softmax())
    x = np.random.default_rng(6).normal(size=(300, 4)).astype("float32")
    better = tfcompress.apply(model, PriorBias({1: 0.2}), data=x, verbose=0)
    outputs = better.predict(x, verbose=0)
    p = outputs if softmax_end else softmax(outputs, 1)
    assert p[:, 1].mean() == pytest.approx(0.2, abs=1e-4)
    assert np.all(model.layers[0].bias.numpy() == 0)
    with pytest.raises(CompressionError, match="pass inputs with natural frequencies"):
        tfcompress.apply(model, PriorBias({1: 0.2}), verbose=0)
    no_bias = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False)])
    with pytest.raises(CompressionError, match="no last layer with a bias"):
        tfcompress.apply(no_bias, PriorBias({1: 0.2}), data=x, verbose=0)


@pytest.mark.jax
def test_a_specialist_starts_as_the_generalist_and_the_ensemble_helps():
    rng = np.random.default_rng(7)
    centres = np.array([[0, 0], [0, 1], [6, 0], [6, 1]], "float32")
    y = rng.integers(0, 4, 1200)
    x = (centres[y] + rng.normal(0, 0.45, (1200, 2))).astype("float32")
    keras.utils.set_random_seed(1)
    generalist = keras.Sequential([keras.Input((2,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(4)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    generalist.compile(keras.optimizers.Adam(0.01), loss)
    generalist.fit(x, y, epochs=1, verbose=0)
    before = generalist.predict(x, verbose=0)
    sets = confusable_sets(softmax(before, 1), 2)
    members = []
    for number, classes in enumerate(sets):
        expert = distillation.specialist(generalist, classes)
        assert expert.output_shape == (None, len(classes) + 1)
        np.testing.assert_allclose(expert.predict(x, verbose=0)[:, :-1], before[:, classes], rtol=1e-4, atol=1e-5)
        index, labels = distillation.specialist_data(y, classes, seed=number)
        assert np.mean(labels < len(classes)) == 0.5
        for i, label in zip(index[:50], labels[:50], strict=True):
            assert label == (list(classes).index(y[i]) if y[i] in classes else len(classes))
        expert.compile(keras.optimizers.Adam(0.02), loss)
        expert.fit(x[index], labels, epochs=10, verbose=0)
        members.append((classes, expert))
    np.testing.assert_array_equal(generalist.predict(x, verbose=0), before)
    ensemble = SpecialistEnsemble(generalist, members, [np.isin(y, classes).mean() for classes in sets])
    q = ensemble.predict(x)
    np.testing.assert_allclose(q.sum(1), 1, atol=1e-6)
    assert np.mean(q.argmax(1) == y) > np.mean(before.argmax(1) == y) + 0.01


def test_bad_specialists():
    generalist = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4)])
    for classes in ([], [0, 1, 2, 3], [4]):
        with pytest.raises(CompressionError, match="some, and not all"):
            distillation.specialist(generalist, classes)
    with pytest.raises(CompressionError, match=r"must give probabilities of shape \(2, 2\)"):
        combine(np.full((2, 3), 1 / 3), [([0], np.ones((2, 3)))])
    with pytest.raises(CompressionError, match="0 cases of the classes"):
        distillation.specialist_data(np.array([0, 0]), [1])
    with pytest.raises(CompressionError, match="must lie between 0 and 1; received 0"):
        distillation.dustbin_shift(0.0)
    with pytest.raises(CompressionError, match="2 specialists and 1 fractions"):
        SpecialistEnsemble(generalist, [([0], None), ([1], None)], [0.5])
