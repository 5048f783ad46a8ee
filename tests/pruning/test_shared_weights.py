"""[12]: shared weights with trained values (the coding is tested with the codecs)."""

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import pruning, quantization
from tfcompress.core.codebooks import Codebook
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain, chains, parametrize

L = keras.layers


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def distinct(array) -> int:
    return len(np.unique(array[array != 0]))


@pytest.mark.paper(12)
def test_gradient_of_a_shared_value_is_the_sum_of_its_weights():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the tape is TensorFlow's")
    import tensorflow as tf

    layer = L.Dense(6)
    layer.build((None, 9))
    parametrize(layer, "kernel", Codebook(clusters=4))
    link = chain(layer).links[0]
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 9)).astype("float32"))

    def loss():
        return tf.reduce_sum(tf.tanh(layer(x)) ** 2)

    with tf.GradientTape() as tape:
        value = loss()
    gradient = values(tf.convert_to_tensor(tape.gradient(value, link.centroids.value)))
    start, step = values(link.centroids.value).astype("float64"), 1e-2
    for k in range(4):
        ends = []
        for sign in (1, -1):
            moved = start.copy()
            moved[k] += sign * step
            link.centroids.assign(moved)
            ends.append(float(loss()))
        assert gradient[k] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=2e-2, abs=1e-3)
    link.centroids.assign(start)
    # Summed, not averaged: by the dense gradient of the baked layer.
    plain = L.Dense(6)
    plain.build((None, 9))
    plain.kernel.assign(layer.kernel.numpy())
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.tanh(plain(x)) ** 2)
    dense = tape.gradient(value, plain.kernel.value).numpy()
    codes = values(link.codes.value)
    assert np.allclose(gradient, [dense[codes == k + 1].sum() for k in range(4)], rtol=1e-4, atol=1e-5)


@pytest.mark.paper(12)
@pytest.mark.jax
def test_distinct_values_and_zeros_after_training():
    model = keras.Sequential([keras.Input((20,)), L.Dense(30, name="a"), L.Dense(10, name="b")])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    x = np.random.default_rng(0).normal(size=(32, 20)).astype("float32")
    y = np.random.default_rng(1).normal(size=(32, 10)).astype("float32")
    small = tfcompress.apply(model, pruning.Magnitude(sparsity=0.8), verbose=0)
    small.fit(x, y, verbose=0, callbacks=[tfcompress.Compression()])
    zeros = {name: c.numpy() == 0 for name, c in chains(small)}
    both = tfcompress.apply(small, pruning.SharedWeights(bits=3), verbose=0)
    start = {name: c.numpy() for name, c in chains(both)}
    history = both.fit(x, y, epochs=3, verbose=0, callbacks=[tfcompress.Compression()]).history
    plain = tfcompress.finalize(both, verbose=0)
    for name in zeros:
        kernel = values(plain.get_layer(name.split(".")[0]).kernel)
        assert distinct(kernel) <= 8
        assert np.array_equal(kernel == 0, zeros[name])
        assert not np.array_equal(kernel, start[name]), "the shared values did not learn"
    assert history["a.kernel:distinct"][-1] == 8


@pytest.mark.paper(12)
@pytest.mark.jax
def test_as_many_clusters_as_values_lose_nothing():
    layer = L.Dense(4)
    layer.build((None, 5))
    kernel = values(layer.kernel)
    parametrize(layer, "kernel", Codebook(clusters=50))
    assert chain(layer).links[0].size == 20, "clamped to the number of weights"
    assert np.array_equal(values(layer.kernel), kernel)


@pytest.mark.paper(12)
def test_rate_of_the_papers_example():
    assert pruning.sharing_rate(235_200, 32) == pytest.approx(6.394, abs=5e-4)


def test_c07_depthwise_is_clustered_and_pruned():
    model = keras.Sequential([keras.Input((16, 16, 3)), L.DepthwiseConv2D(3), L.Flatten(), L.Dense(10)])
    shared = tfcompress.apply(model, pruning.SharedWeights(bits=1), verbose=0)
    assert distinct(values(shared.layers[0].kernel)) == 2
    three = tfcompress.apply(model, Codebook(clusters=3), verbose=0)
    assert distinct(values(three.layers[0].kernel)) == 3
    both = tfcompress.apply(model, [pruning.Magnitude(sparsity=0.5), Codebook(clusters=3)], verbose=0)
    kernel = values(both.layers[0].kernel)
    assert distinct(kernel) == 3
    assert (kernel == 0).sum() == 14


def test_c13_stacked_methods_keep_each_others_structure(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((32,)), L.Dense(256, name="a", activation="relu"), L.Dense(10, name="b")])
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 32)).astype("float32"), rng.normal(size=(60, 10)).astype("float32")

    def fit(m):
        m.fit(x, y, batch_size=1, verbose=0, callbacks=[tfcompress.Compression()])
        return m

    pruned = fit(tfcompress.apply(model, pruning.Magnitude(sparsity=0.8), verbose=0))
    zeros = {name: c.numpy() == 0 for name, c in chains(pruned)}
    clustered = fit(tfcompress.apply(pruned, Codebook(clusters=16), verbose=0))
    final = fit(tfcompress.apply(clustered, quantization.QAT(), data=x, verbose=0))
    plain = tfcompress.finalize(final, verbose=0)
    for name in zeros:
        kernel = values(plain.get_layer(name.split(".")[0]).kernel)
        assert zeros[name].mean() >= 0.8 - 1e-3
        assert (kernel[zeros[name]] == 0).all()
        assert distinct(kernel) <= 16
    if keras.backend.backend() != "tensorflow":
        return
    path = tmp_path / "m.tflite"
    tfcompress.export.tflite(final, path, precision="int8", calibration=x)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    found = {}
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and tuple(detail["shape"]) in ((256, 32), (10, 256)):
            found[tuple(detail["shape"])] = interpreter.get_tensor(detail["index"])
    for name, shape in (("a.kernel", (256, 32)), ("b.kernel", (10, 256))):
        codes = found[shape]
        assert len(np.unique(codes)) <= 17
        assert np.array_equal(codes == 0, values(plain.get_layer(name[0]).kernel).T == 0)


@pytest.mark.parametrize(("bits", "message"), [(0.5, "1 to 16"), (17, "1 to 16"), ({"a": 20}, "1 to 16")])
def test_bad_bits_are_refused(bits, message):
    with pytest.raises(CompressionError, match=message):
        pruning.SharedWeights(bits=bits)
    with pytest.raises(CompressionError, match="at least 1"):
        Codebook(clusters=0)
