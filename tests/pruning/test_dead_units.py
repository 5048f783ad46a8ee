"""[11] step 6: after a hard magnitude cut, units without connections go and the outputs stay."""

import itertools

import keras
import numpy as np
import pytest

from tfcompress import apply, pruning, summary


@pytest.mark.paper(11)
def test_after_a_hard_cut_units_go_and_outputs_stay():
    layers = [keras.Input((20,)), keras.layers.Dense(30, "relu", name="a", bias_initializer="random_normal"),
              keras.layers.Dense(20, "relu", name="b", bias_initializer="random_normal"), keras.layers.Dense(4, name="c")]  # fmt: skip
    model = keras.Sequential(layers)
    model.compile("sgd", "mse")
    sparse = apply(model, pruning.Magnitude(sparsity=0.97), verbose=0)
    data = np.random.default_rng(0).normal(size=(16, 20)).astype("float32")
    want = np.asarray(sparse(data))
    # What is dead by counting alone, before anything cascades.
    kernels = [np.asarray(layer.kernel) for layer in sparse.layers]
    dead = [int((~(a.any(axis=0) & b.any(axis=1))).sum()) for a, b in itertools.pairwise(kernels)]
    small = apply(sparse, pruning.RemoveDeadUnits(), verbose=0)
    np.testing.assert_allclose(np.asarray(small(data)), want, atol=1e-6)
    assert small.get_layer("a").units <= 30 - dead[0] < 30
    assert small.get_layer("b").units <= 20 - dead[1] < 20
    assert type(small.get_layer("a")) is keras.layers.Dense
    small.fit(data, want, verbose=0)
    assert "constant channels removed" in str(summary(small))
    assert sparse.get_layer("a").units == 30
    again = apply(small, pruning.RemoveDeadUnits(), verbose=0)
    assert again.count_params() == small.count_params()
