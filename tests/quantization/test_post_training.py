"""Equalization, bias correction and learned rounding against brute force, closed forms and means taken by hand."""

import itertools

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import export, quantization
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chain
from tfcompress.quantization import bias_correction, equalization, post_training, rounding

pytestmark = pytest.mark.jax
L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def values(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def images(count=24, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 3)).astype("float32")


def block(x, name, nonlinearity="relu"):
    for layer in (
        L.DepthwiseConv2D(3, padding="same", name=f"{name}_dw"),
        L.Conv2D(6, 1, use_bias=False, name=f"{name}_pw"),
    ):
        x = L.Activation(nonlinearity, name=f"{layer.name}_act")(
            L.BatchNormalization(name=f"{layer.name}_bn")(layer(x))
        )
    return x


def network(kind="functional", nonlinearity="relu", seed=3):
    """A depthwise network whose channels differ by factors of hundreds, with trained-looking batch statistics."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 3), name="image")
    stem = [
        L.Conv2D(5, 3, name="stem"),
        L.BatchNormalization(name="stem_bn"),
        L.Activation(nonlinearity, name="stem_act"),
    ]
    tail = [L.GlobalAveragePooling2D(name="pool"), L.Dense(4, name="logits")]
    if kind == "sequential":
        middle = [
            L.DepthwiseConv2D(3, name="a_dw"),
            L.BatchNormalization(name="a_bn"),
            L.Activation(nonlinearity, name="a_act"),
        ]
        model = keras.Sequential([image, *stem, *middle, *tail])
    else:
        x = image
        for layer in stem:
            x = layer(x)
        x = block(x, "a", nonlinearity)
        if kind == "nested":
            inner = keras.Input(x.shape[1:], name="inner_in")
            x = keras.Model(inner, block(inner, "b", nonlinearity), name="inner")(x)
        else:
            x = L.Add(name="add")([x, block(x, "b", nonlinearity)])
        for layer in tail:
            x = layer(x)
        model = keras.Model(image, x, name=kind)
    rng = np.random.default_rng(seed)
    for layer in (
        keras.models.Model.layers.fget(model) if kind != "nested" else [*model.layers, *model.get_layer("inner").layers]
    ):
        if isinstance(layer, L.BatchNormalization):
            count = layer.gamma.shape[0]
            layer.set_weights(
                [
                    np.exp(rng.normal(0, 2, count)),
                    rng.normal(0.3, 1, count),
                    rng.normal(0, 0.3, count),
                    rng.uniform(0.5, 2, count),
                ]
            )
    return model


@pytest.mark.parametrize("kind", ["sequential", "functional", "nested"])
def test_equalization_keeps_the_function(kind):
    model = network(kind)
    x = images()
    before = values(model(x))
    equal = tfcompress.apply(model, quantization.Equalize(absorb=False), verbose=0)
    after = values(equal(x, training=False))
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert np.array_equal(values(model(x)), before)
    rows = [row for row in tfcompress.summary(equal).rows if "equalized with" in row.detail and row.action == "done"]
    assert rows
    folded, _ = tfcompress.graph.fold_batchnorm(model)
    known = dict(tfcompress.select.layers(folded)), dict(tfcompress.select.layers(equal))
    name = rows[0].layer
    spread = [np.ptp(np.log(np.abs(values(one[name].kernel)).reshape(-1, 5).max(0))) for one in known]
    assert spread[1] < spread[0]


def test_both_sides_of_a_pair_get_the_same_range_in_every_channel():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), L.Conv2D(3, 3, activation="relu", name="a"), L.MaxPooling2D(2), L.Flatten(), L.PReLU(), L.Dense(4, name="b")]
    )  # fmt: skip
    model.get_layer("a").kernel.assign(values(model.get_layer("a").kernel) * np.array([1.0, 30.0, 0.1]))
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 2)).astype("float32")
    equal = tfcompress.apply(model, quantization.Equalize(), verbose=0)
    a, b = (np.abs(values(equal.get_layer(name).kernel)) for name in "ab")
    first, second = np.abs(values(model.get_layer("a").kernel)), np.abs(values(model.get_layer("b").kernel))
    wanted = np.sqrt(first.max((0, 1, 2)) * second.reshape(4, 3, 4).max((0, 2)))
    assert np.allclose(a.max((0, 1, 2)), wanted, rtol=1e-4)
    assert np.allclose(b.reshape(4, 3, 4).max((0, 2)), wanted, rtol=1e-4)
    assert np.allclose(values(equal(x)), values(model(x)), rtol=1e-4, atol=1e-5)


def test_relu6_stops_factors_unless_it_is_replaced():
    model = network(nonlinearity="relu6")
    with_six, _ = tfcompress.graph.fold_batchnorm(model)
    found, reasons = equalization.pairs(with_six)
    assert not [pair for pair in found if pair.first in ("stem", "a_dw")]
    assert "relu6" in reasons["stem"] or "stem_act" in reasons["stem"]
    equal = tfcompress.apply(model, quantization.Equalize(replace_relu6=True), verbose=0)
    assert {layer.activation.__name__ for layer in equal.layers if isinstance(layer, L.Activation)} == {"relu"}
    assert {(pair.first, pair.second) for pair in equalization.pairs(equal)[0]} >= {("stem", "a_dw"), ("a_dw", "a_pw")}
    assert any("ReLU6 made ReLU" in row.detail for row in tfcompress.summary(equal).rows)


def test_what_cannot_be_equalized_says_why():
    x = keras.Input((4,))
    shared = L.Dense(4, activation="relu", name="shared")
    y = shared(shared(x))
    y = L.Dense(3, activation="sigmoid", name="squashed")(y)
    y = L.Dense(3, activation="relu", name="forked")(y)
    model = keras.Model(x, [y, L.Dense(2, name="end")(y)])
    found, reasons = equalization.pairs(model)
    assert found == []
    assert "more than once" in reasons["shared"]
    assert "sigmoid" in reasons["squashed"]
    assert "read more than once" in reasons["forked"]


def test_high_biases_are_absorbed_by_the_next_layer():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(5, name="a"),
            L.BatchNormalization(name="n"),
            L.ReLU(),
            L.Dense(3, use_bias=False, name="b"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(2000, 6)).astype("float32")
    made = x @ values(model.get_layer("a").kernel)
    beta = np.array([9.0, 0.0, 5.0, -4.0, 2.0])
    model.get_layer("n").set_weights([np.ones(5), beta, made.mean(0), made.var(0)])
    equal = tfcompress.apply(model, quantization.Equalize(), verbose=0)
    # gamma is 1: all that lies above 3 is moved on, and one value in 700 of a channel is clipped differently.
    plain = tfcompress.apply(model, quantization.Equalize(absorb=False), verbose=0)
    factor = values(plain.get_layer("a").bias) - values(equal.get_layer("a").bias)
    assert (factor > 0).tolist() == (beta > 3).tolist()
    assert equal.get_layer("b").bias is not None
    difference = np.abs(values(equal(x)) - values(model(x)))
    assert np.median(difference) < 1e-4
    assert (difference > 1e-3).mean() < 0.02
    assert "2 biases absorbed" in str([row.detail for row in tfcompress.summary(equal).rows])


def by_hand(model, x, name):
    """The mean of a layer's output before its activation, over samples and positions."""
    layer = model.get_layer(name)
    kept, layer.activation = layer.activation, keras.activations.linear
    try:
        out = values(keras.Model(model.input, layer.output)(x, training=False))
    finally:
        layer.activation = kept
    return out.reshape(-1, out.shape[-1]).mean(0)


def test_empirical_correction_gives_every_layer_the_float_means():
    model, x = network(), images(40)
    plain = tfcompress.apply(model, quantization.Equalize(absorb=False), verbose=0)
    options = {"bits": 3, "equalize": False, "verbose": 0, "per_channel": False}
    off = tfcompress.apply(model, quantization.PostTraining(bias_correction=None, **options), data=x, verbose=0)
    on = tfcompress.apply(model, quantization.PostTraining(**options), data=x, verbose=0)
    folded, _ = tfcompress.graph.fold_batchnorm(model)
    for name in ("stem", "a_dw", "a_pw", "b_dw", "logits"):
        wanted = by_hand(folded, x, name)
        assert np.allclose(by_hand(on, x, name), wanted, atol=1e-3 * np.abs(wanted).max()), name
    assert np.abs(by_hand(off, x, "logits") - by_hand(folded, x, "logits")).max() > 0.01
    assert plain is not model


def test_bias_correction_of_weights_that_are_on_grids():
    model, x = network("sequential"), images(40)
    rounded = tfcompress.apply(model, [quantization.Equalize(), quantization.QuantizedWeights(bits=3)], verbose=0)
    fixed = quantization.correct_biases(rounded, x, verbose=0)
    wanted = values(model(x)).mean(0)
    gaps = [np.abs(values(one(x)).mean(0) - wanted).max() for one in (rounded, fixed)]
    assert gaps[1] < 1e-3 * np.abs(wanted).max() < gaps[0]
    with pytest.raises(CompressionError, match="No weight"):
        quantization.correct_biases(model, x, verbose=0)
    with pytest.raises(CompressionError, match="needs data"):
        quantization.correct_biases(rounded, None, verbose=0)


@pytest.mark.parametrize("high", [6.0, np.inf])
def test_moments_of_a_clipped_normal(high):
    mean, deviation = np.array([-2.0, 0.0, 1.0, 5.0, 9.0]), np.array([1.0, 2.0, 0.1, 2.0, 0.5])
    drawn = np.clip(np.random.default_rng(0).normal(mean, deviation, (400_000, 5)), 0, high)
    found = bias_correction.clipped_normal(mean, deviation, high)
    assert np.allclose(found[0], drawn.mean(0), atol=0.02)
    assert np.allclose(found[1], drawn.std(0), atol=0.02)


def test_analytic_correction_needs_no_data():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((40,)),
            L.Dense(30, name="a"),
            L.BatchNormalization(name="n"),
            L.Activation("relu"),
            L.Dense(6, name="b"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(20_000, 40)).astype("float32")
    made = x @ values(model.get_layer("a").kernel)
    gamma, beta = np.random.default_rng(1).uniform(0.5, 2, 30), np.random.default_rng(2).normal(0.5, 1, 30)
    model.get_layer("n").set_weights([gamma, beta, made.mean(0), made.var(0)])
    options = {"bits": 3, "equalize": False, "verbose": 0, "exclude": "a"}
    plain, corrected = (
        tfcompress.apply(model, quantization.PostTraining(bias_correction=one, **options), verbose=0)
        for one in (None, "analytic")
    )
    wanted = values(model(x)).mean(0)
    gaps = [np.abs(values(one(x)).mean(0) - wanted).max() for one in (plain, corrected)]
    assert gaps[1] < 0.1 * gaps[0]
    first = tfcompress.apply(model, quantization.PostTraining(bias_correction="analytic", verbose=0), verbose=0)
    assert any(
        "no batch normalization tells" in row.detail for row in tfcompress.summary(first).rows if row.layer == "a"
    )


@pytest.mark.parametrize("bits", [2, 4])
def test_learned_rounding_is_among_the_best_of_all_roundings(bits):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(bits)
    layer = L.Dense(1, name="d")
    layer.build((None, 8))
    x = rng.normal(1.0, 1.0, (200, 8)).astype("float32") @ rng.normal(size=(8, 8)).astype("float32")
    high = 2 ** (bits - 1) - 1
    kernel = values(layer.kernel).astype(np.float64)
    unit = np.abs(kernel).max(keepdims=True) / high
    codes, nearest, found = rounding.learn_codes(layer, unit, high, [x], [x], steps=400)
    below = np.floor(kernel / unit)
    assert set(np.unique(codes - below)) <= {0.0, 1.0}
    assert np.abs(codes).max() <= high
    errors = []
    for choice in itertools.product([0, 1], repeat=8):
        tried = np.clip(below[:, 0] + np.array(choice), -high, high) * unit[0, 0]
        errors.append(np.mean((x.astype(np.float64) @ (tried - kernel[:, 0])) ** 2))
    by_definition = np.mean((x.astype(np.float64) @ (codes * unit - kernel)) ** 2)
    assert found == pytest.approx(by_definition, rel=1e-3)
    assert found <= nearest
    # Among the best seventh of all 256 roundings, and far better than the nearest where that is not good.
    assert found <= np.quantile(errors, 0.15)
    assert found < 0.5 * nearest or nearest <= np.quantile(errors, 0.05)


def test_learned_rounding_lowers_the_error_of_convolutions():
    # Pixels like a camera's: none is negative, so that rounding errors of one kernel add up.
    x = np.abs(images(32)) + 1.0
    for layer in (
        L.Conv2D(4, 3, strides=2, activation="relu"),
        L.DepthwiseConv2D(3, padding="same"),
        L.Conv2DTranspose(4, 3),
    ):
        keras.utils.set_random_seed(1)
        layer.build((None, 8, 8, 3))
        before = [w.copy() for w in layer.get_weights()]
        grid = quantization.FixedGrid(bits=3)
        from tfcompress.core.grids import output_axes
        from tfcompress.core.range_estimators import mse_units

        unit = mse_units(values(layer.kernel), grid.high, output_axes(layer, "kernel", 4))
        _, nearest, found = rounding.learn_codes(layer, unit, grid.high, [x], [x], steps=150)
        assert found < 0.95 * nearest, type(layer).__name__
        assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))


def test_annealing_and_regularizer_are_the_papers():
    sigmoid = 1 / (1 + np.exp(-np.array([-3.0, -0.4, 0.0, 0.4, 3.0])))
    assert np.allclose(
        values(rounding.rectified_sigmoid(np.array([-3.0, -0.4, 0.0, 0.4, 3.0], "float32"))),
        np.clip(sigmoid * 1.2 - 0.1, 0, 1),
    )
    exponents = [float(values(rounding.annealed(np.float32(n), 100))) for n in range(101)]
    assert exponents[:21] == [20.0] * 21
    assert exponents[-1] == pytest.approx(2.0)
    assert all(a >= b for a, b in itertools.pairwise(exponents))


@pytest.mark.parametrize(
    ("kind", "bits", "way"), [("functional", 8, "nearest"), ("nested", 4, "learned"), ("sequential", 4, "learned")]
)
def test_the_result_lies_on_its_grid_saves_and_finalizes(kind, bits, way, tmp_path):
    model, x = network(kind), images()
    method = quantization.PostTraining(bits=bits, rounding=way, steps=8, samples=16, verbose=0)
    small = tfcompress.apply(model, method, data=x, verbose=0)
    grids = {name: (chain.numpy(), chain.grid()) for name, chain in tfcompress.parametrization.chains(small)}
    assert len(grids) == {"functional": 6, "nested": 6, "sequential": 3}[kind]
    for value, grid in grids.values():
        codes = value / grid.unit
        assert np.allclose(codes, np.rint(codes), atol=1e-4)
        assert np.abs(codes).max() <= 2 ** (bits - 1) - 1 + 1e-4
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    plain = tfcompress.finalize(small, verbose=0)
    assert np.array_equal(values(again(x)), values(small(x)))
    assert np.array_equal(values(plain(x)), values(small(x)))
    rows = tfcompress.summary(small).rows
    assert any("rounding learned" in row.detail for row in rows) == (way == "learned")


@pytest.mark.skipif(not ON_TF, reason="files are written on TensorFlow")
@pytest.mark.parametrize("bits", [8, 4])
def test_the_file_holds_exactly_these_codes(bits, tmp_path):
    model, x = network("sequential"), images(32)
    method = quantization.PostTraining(bits=bits, rounding="learned", steps=10, samples=16, verbose=0)
    small = tfcompress.apply(model, method, data=x, verbose=0)
    path = tmp_path / "m.tflite"
    report = export.tflite(
        small, path, "int4" if bits == 4 else "int8", calibration=x, calibration_method="mse", verbose=0
    )
    assert report.weights["trained"] == 3
    stored = [np.sort(codes) for codes in integers_of(path)]
    for name in ("stem", "a_dw", "logits"):
        own = chain(small.get_layer(name), "kernel")
        codes = np.sort(np.rint(own.numpy() / own.grid().unit).astype(int), axis=None)
        assert any(np.array_equal(codes, one) for one in stored), name


def integers_of(path):
    """The integers of every 8-bit and 4-bit constant of a file, unpacked here."""
    from tfcompress.export.flatbuffer import Graph

    model = Graph(path.read_bytes()).model
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or tensor.type not in (9, 17):
            continue
        raw = np.array(data, np.uint8)
        if tensor.type == 17:
            nibbles = np.stack([raw & 15, raw >> 4], axis=1).ravel().astype(int)[: int(np.prod(tensor.shape))]
            yield np.where(nibbles > 7, nibbles - 16, nibbles)
        else:
            yield raw.view(np.int8).astype(int)


@pytest.mark.parametrize("in_place", [False, True])
def test_interrupted_work_leaves_the_model_unchanged(monkeypatch, in_place):
    model, x = network(), images()
    before = [w.copy() for w in model.get_weights()]
    names = [layer.name for layer in model.layers]
    done = []

    def stopped(*args, **kwargs):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return rounding.learn_codes(*args, **kwargs)

    monkeypatch.setattr(post_training, "learn_codes", stopped)
    with pytest.raises(KeyboardInterrupt):
        tfcompress.apply(
            model,
            quantization.PostTraining(bits=4, rounding="learned", steps=3, verbose=0),
            data=x,
            in_place=in_place,
            verbose=0,
        )
    assert [layer.name for layer in model.layers] == names
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not tfcompress.method.is_attached(model)


def test_progress_is_shown(capsys):
    tfcompress.apply(network("sequential"), quantization.PostTraining(), data=images(), verbose=0)
    assert "3/3" in capsys.readouterr().out


def test_shared_layers_and_two_inputs():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    shared = L.Dense(5, activation="relu", name="shared")
    model = keras.Model([a, b], L.Dense(2, name="end")(L.Concatenate()([shared(a), shared(b)])))
    x = [np.random.default_rng(n).normal(size=(20, 6)).astype("float32") for n in (0, 1)]
    small = tfcompress.apply(
        model, quantization.PostTraining(bits=4, rounding="learned", steps=5, verbose=0), data=x, verbose=0
    )
    rows = {(row.layer, row.detail[:20]) for row in tfcompress.summary(small).rows}
    assert any(layer == "shared" and detail.startswith("rounded to nearest") for layer, detail in rows)
    assert np.allclose(values(small(x)).mean(0), values(model(x)).mean(0), atol=0.05)


def test_what_cannot_be_done_is_said():
    with pytest.raises(CompressionError, match="Did you mean 'learned'"):
        quantization.PostTraining(rounding="lerned")
    with pytest.raises(CompressionError, match="at least 1"):
        quantization.PostTraining(steps=0)
    with pytest.raises(CompressionError, match="needs data="):
        tfcompress.apply(network(), quantization.PostTraining(), verbose=0)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.ones((1, 3), "float32"))
    with pytest.raises(CompressionError, match="no graph"):
        tfcompress.apply(model, quantization.PostTraining(), data=np.ones((4, 3)), in_place=True, verbose=0)
