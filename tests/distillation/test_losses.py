"""The terms of [1] against formulas in NumPy (float64) and finite differences."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, rel_entr, softmax

from tfcompress import schedules
from tfcompress.distillation import HardLabels, Logits, SoftTargets
from tfcompress.distillation.engine import at
from tfcompress.errors import CompressionError

pytestmark = pytest.mark.jax


def logits(seed, shape=(5, 10), scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype("float32")


def gradient(loss, z, v):
    """d sum(values) / dz by automatic differentiation, on whichever backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        z = tf.convert_to_tensor(z)
        with tf.GradientTape() as tape:
            tape.watch(z)
            total = ops.sum(loss.values(z, [ops.convert_to_tensor(one) for one in v]))
        return tape.gradient(total, z).numpy()
    import jax

    return np.asarray(jax.grad(lambda z: ops.sum(loss.values(z, [ops.convert_to_tensor(one) for one in v])))(z))


def values(loss, z, v):
    return ops.convert_to_numpy(loss.values(ops.convert_to_tensor(z), [ops.convert_to_tensor(one) for one in v]))


@pytest.mark.paper(1)
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_soft_targets_value_and_gradient(temperature):
    z, v = logits(1), logits(2)
    z64, v64 = z.astype("float64"), v.astype("float64")

    def oracle(z):
        return temperature**2 * rel_entr(softmax(v64 / temperature, -1), softmax(z / temperature, -1)).sum(-1)

    loss = SoftTargets(temperature)
    np.testing.assert_allclose(values(loss, z, [v]), oracle(z64), rtol=2e-4)
    found = gradient(loss, z, [v])
    formula = temperature * (softmax(z64 / temperature, -1) - softmax(v64 / temperature, -1))
    np.testing.assert_allclose(found, formula, atol=3e-6 * temperature)
    differences = np.empty_like(z64)
    for i in range(z.shape[1]):
        step = np.zeros(z.shape[1])
        step[i] = 1e-5
        differences[:, i] = (oracle(z64 + step) - oracle(z64 - step)) / 2e-5
    np.testing.assert_allclose(found, differences, atol=3e-6 * temperature)


@pytest.mark.paper(1)
def test_high_temperature_is_regression_of_centred_logits():
    z, v = logits(3, (50, 10)), logits(4, (50, 10))
    limit = (z - z.mean(1, keepdims=True) - v + v.mean(1, keepdims=True)) / 10
    distance = {}
    for temperature in (20.0, 100.0, 1000.0):
        found = gradient(SoftTargets(temperature), z, [v])
        distance[temperature] = np.linalg.norm(found - limit) / np.linalg.norm(limit)
    assert 0.02 < distance[20.0] < 0.15
    assert distance[100.0] < 0.03
    # In float32, where p(z) and p(v) differ in the fourth digit only.
    assert distance[1000.0] < 0.01
    centred = gradient(Logits(center=True), z, [v])
    np.testing.assert_allclose(centred / 10, limit, atol=1e-5)


@pytest.mark.paper(1)
def test_constants_and_a_perfect_match_change_nothing():
    z, v = logits(5), logits(6)
    for temperature in (1.0, 4.0):
        loss = SoftTargets(temperature)
        np.testing.assert_allclose(gradient(loss, z + 7, [v - 5]), gradient(loss, z, [v]), atol=1e-5)
        assert np.all(gradient(loss, z, [z]) == 0)
        assert np.all(values(loss, z, [z]) == 0)


@pytest.mark.paper(1)
def test_ensembles():
    z, v1, v2 = logits(7), logits(8), logits(9)
    one = values(SoftTargets(3.0), z, [v1])
    for kind in ("arithmetic", "geometric"):
        np.testing.assert_array_equal(values(SoftTargets(3.0, ensemble=kind), z, [v1]), one)
        np.testing.assert_allclose(values(SoftTargets(3.0, ensemble=kind), z, [v1, v1]), one, rtol=1e-4)
    q, log_q = SoftTargets(3.0, ensemble="geometric").target([ops.convert_to_tensor(v) for v in (v1, v2)])
    np.testing.assert_allclose(ops.convert_to_numpy(q), softmax((v1 + v2) / 6, -1), rtol=1e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(log_q), log_softmax((v1 + v2) / 6, -1), atol=1e-5)
    mean = (softmax(v1 / 3, -1) + softmax(v2 / 3, -1)) / 2
    q, log_q = SoftTargets(3.0).target([ops.convert_to_tensor(v) for v in (v1, v2)])
    np.testing.assert_allclose(ops.convert_to_numpy(q), mean, rtol=1e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(log_q), np.log(mean), atol=1e-5)
    np.testing.assert_allclose(gradient(SoftTargets(3.0), z, [v1, v2]), 3 * (softmax(z / 3, -1) - mean), atol=1e-5)


def test_without_t2_the_gradient_falls_as_one_over_t():
    z, v = logits(10), logits(11)
    plain = gradient(SoftTargets(8.0, scale_t2=False), z, [v])
    np.testing.assert_allclose(plain * 64, gradient(SoftTargets(8.0), z, [v]), atol=1e-5)


def test_impossible_classes_of_the_teacher_are_no_nan():
    v = logits(12)
    v[:, 3] = -np.inf
    z = logits(13)
    assert np.isfinite(values(SoftTargets(2.0), z, [v])).all()
    assert np.isfinite(gradient(SoftTargets(2.0), z, [v])).all()


def test_logits_regression():
    z, v1, v2 = logits(14), logits(15), logits(16)
    np.testing.assert_allclose(values(Logits(), z, [v1, v2]), 0.5 * ((z - (v1 + v2) / 2) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(gradient(Logits(), z, [v1]), z - v1, atol=1e-6)


def test_schedules_inside_a_compiled_step_are_the_schedule():
    schedule = schedules.Linear(4.0, 1.0, steps=7, begin=3)
    for step in (0, 3, 4, 9, 10, 50):
        assert float(at(schedule, ops.convert_to_tensor(step, "int32"))) == np.float32(schedule(step))
    assert at(schedules.Constant(0.25), None) == 0.25


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(CompressionError, match="temperature must be above 0; received"):
        SoftTargets(temperature)


def test_bad_arguments():
    with pytest.raises(CompressionError, match="'arithmetic' or 'geometric'; received 'median'"):
        SoftTargets(2.0, ensemble="median")
    with pytest.raises(CompressionError, match="at least two classes"):
        values(SoftTargets(2.0), logits(1, (4, 1)), [logits(2, (4, 1))])


def test_terms_are_written_down_and_read_back():
    for loss in (
        SoftTargets(3.0, schedules.Linear(1.0, 0.0, steps=5), "geometric"),
        Logits(0.5, True),
        HardLabels(0.2),
    ):
        twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
        assert type(twin) is type(loss)
        assert twin.get_config() == loss.get_config()
