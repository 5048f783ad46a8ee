"""Multiply-accumulates and parameters against loops that count every product one by one."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress import cost, parametrization
from tfcompress.errors import CompressionError
from tfcompress.parametrization import Parametrization
from tfcompress.record import Grid


def built(*stack, shape, batch_shape=None):
    return keras.Sequential([keras.Input(shape), *stack], name="net")


def slide(size, kernel, stride, dilation, same):
    """How many places a window of one axis has, found by placing it."""
    reach = (kernel - 1) * dilation
    if same:
        return len(range(0, size, stride))
    return len([start for start in range(0, size, stride) if start + reach < size])


def conv_products(size, channels, kernel, filters, stride=1, dilation=1, same=False, groups=1):
    """The products of a convolution, by visiting each output, filter, tap and input map."""
    places = [range(slide(s, k, stride, dilation, same)) for s, k in zip(size, kernel, strict=True)]
    products = 0
    for _ in itertools.product(*places):
        for filter_ in range(filters):
            group = filter_ * groups // filters
            maps = [c for c in range(channels) if c * groups // channels == group]
            for _ in itertools.product(*(range(k) for k in kernel)):
                products += len(maps)
    return products


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(
    ("layer", "size", "kernel", "options"),
    [
        (layers.Conv1D, (9,), (3,), {"dilation": 2}),
        (layers.Conv1D, (9,), (4,), {"stride": 2}),
        (layers.Conv2D, (6, 5), (3, 2), {}),
        (layers.Conv2D, (7, 6), (3, 3), {"stride": 2}),
        (layers.Conv2D, (7, 6), (3, 3), {"groups": 2}),
        (layers.Conv3D, (4, 3, 5), (2, 3, 2), {"stride": 2}),
    ],
)
def test_convolutions(layer, size, kernel, options, same):
    keys = {"stride": "strides", "dilation": "dilation_rate", "groups": "groups"}
    arguments = {keys[key]: value for key, value in options.items()}
    model = built(layer(4, kernel, padding="same" if same else "valid", **arguments), shape=(*size, 6))
    assert cost.macs(model) == conv_products(size, 6, kernel, 4, same=same, **options)


@pytest.mark.parametrize("same", [False, True])
def test_depthwise_and_separable_are_their_parts(same):
    padding = "same" if same else "valid"
    one_map = conv_products((7, 6), 1, (3, 3), 2, stride=2, same=same)
    places = conv_products((7, 6), 1, (3, 3), 1, stride=2, same=same) // 9
    deep = built(layers.DepthwiseConv2D(3, 2, depth_multiplier=2, padding=padding), shape=(7, 6, 5))
    assert cost.macs(deep) == 5 * one_map
    separable = built(layers.SeparableConv2D(4, 3, 2, depth_multiplier=2, padding=padding), shape=(7, 6, 5))
    assert cost.macs(separable) == 5 * one_map + places * 10 * 4
    line = built(layers.DepthwiseConv1D(3, padding=padding), shape=(7, 5))
    assert cost.macs(line) == 5 * conv_products((7,), 1, (3,), 1, same=same)
    assert cost.macs(built(layers.SeparableConv1D(4, 3, padding=padding), shape=(7, 5))) == (
        cost.macs(line) + conv_products((7,), 1, (3,), 1, same=same) // 3 * 5 * 4
    )


def test_transposed_convolution_spreads_every_input_through_the_whole_kernel():
    products = sum(1 for _ in itertools.product(range(4), range(5), range(3), range(2), range(6), range(7)))
    for padding in ("same", "valid"):
        model = built(layers.Conv2DTranspose(7, (3, 2), 2, padding=padding), shape=(4, 5, 6))
        assert cost.macs(model) == products
    assert cost.macs(built(layers.Conv1DTranspose(7, 3, 2), shape=(4, 6))) == 4 * 3 * 6 * 7
    assert cost.macs(built(layers.Conv3DTranspose(3, 2), shape=(2, 3, 4, 5))) == 24 * 8 * 5 * 3


def test_channels_first():
    model = keras.Sequential([keras.Input((6, 8, 7)), layers.Conv2D(4, 3, data_format="channels_first")])
    assert cost.macs(model) == conv_products((8, 7), 6, (3, 3), 4)


def test_dense_on_sequences_and_einsum_dense():
    assert cost.macs(built(layers.Dense(5), shape=(7, 3))) == 7 * 3 * 5
    model = built(layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 5)), shape=(7, 3))
    assert cost.macs(model) == 7 * 3 * 4 * 5
    model = built(layers.EinsumDense("...x,xy->...y", output_shape=4), shape=(6, 3))
    assert cost.macs(model) == 6 * 3 * 4


def lstm_products(steps, features, units, gates):
    """For each step and gate: every input and every old state meets every unit."""
    return sum(units for _ in range(steps) for _ in range(gates) for _ in range(features + units))


def test_recurrent_layers():
    for kind, gates in ((layers.LSTM, 4), (layers.GRU, 3), (layers.SimpleRNN, 1)):
        model = built(kind(5, name="rnn"), shape=(6, 3))
        assert cost.macs(model) == lstm_products(6, 3, 5, gates)
        report = cost.count(model)
        assert report["rnn"].parameters == model.count_params()
        assert cost.macs(built(kind(5, unroll=True), shape=(6, 3))) == lstm_products(6, 3, 5, gates)
    both = built(layers.Bidirectional(layers.LSTM(5)), shape=(6, 3))
    assert cost.macs(both) == 2 * lstm_products(6, 3, 5, 4)
    cells = [layers.LSTMCell(5), layers.GRUCell(4)]
    stacked = built(layers.RNN(layers.StackedRNNCells(cells)), shape=(6, 3))
    assert cost.macs(stacked) == lstm_products(6, 3, 5, 4) + lstm_products(6, 5, 4, 3)


def test_convolutional_lstm():
    model = built(layers.ConvLSTM2D(4, 3, strides=2), shape=(3, 9, 8, 2))
    outputs = model.output_shape[1] * model.output_shape[2]
    gate = conv_products((9, 8), 2, (3, 3), 4, stride=2) + outputs * 9 * 4 * 4
    assert cost.macs(model) == 3 * 4 * gate
    same = built(layers.ConvLSTM1D(4, 3, padding="same"), shape=(3, 9, 2))
    assert cost.macs(same) == 3 * 4 * (9 * 3 * 2 * 4 + 9 * 3 * 4 * 4)


def test_multi_head_attention():
    query, value = keras.Input((5, 6)), keras.Input((7, 8))
    # On JAX, Keras's fast path stops at a value size of its own.
    size = 4 if keras.backend.backend() == "jax" else 2
    attention = layers.MultiHeadAttention(3, 4, value_dim=size, name="attention")
    model = keras.Model([query, value], attention(query, value))
    projections = 5 * 6 * 12 + 7 * 8 * 12 + 7 * 8 * 3 * size + 5 * 3 * size * 6
    products = sum(4 + size for _ in range(5) for _ in range(7) for _ in range(3))
    report = cost.count(model)
    assert report.macs == projections + products
    assert report["attention"].macs == products
    assert report.parameters == model.count_params()
    image = keras.Input((4, 5, 6))
    rows = keras.Model(image, layers.MultiHeadAttention(2, 3, attention_axes=(2,), name="rows")(image, image))
    assert cost.count(rows)["rows"].macs == 4 * 5 * 5 * 2 * (3 + 3)


def test_other_attention_layers():
    query, value = keras.Input((5, 6)), keras.Input((7, 6))
    grouped = layers.GroupQueryAttention(4, 6, 2, name="grouped")
    model = keras.Model([query, value], grouped(query, value))
    dense = 5 * 6 * 24 + 2 * (7 * 6 * 8) + 5 * 24 * 6
    assert cost.macs(model) == dense + 5 * 7 * 6 * (4 + 4)
    plain = keras.Model([query, value], layers.Attention()([query, value]))
    assert cost.macs(plain) == 5 * 7 * (6 + 6)
    additive = keras.Model([query, value], layers.AdditiveAttention()([query, value]))
    assert cost.macs(additive) == 5 * 7 * (6 + 6)


def test_time_distributed_repeats_the_inner_layer():
    inner = keras.Sequential([keras.Input((8, 7, 2)), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(4)])
    model = built(layers.TimeDistributed(inner), shape=(5, 8, 7, 2))
    assert cost.macs(model) == 5 * (conv_products((8, 7), 2, (3, 3), 3) + 6 * 5 * 3 * 4)
    assert cost.count(model).parameters == model.count_params()


@pytest.mark.jax
def test_operations_in_the_graph():
    left, right = keras.Input((5, 6)), keras.Input((6, 7))
    assert cost.macs(keras.Model([left, right], keras.ops.matmul(left, right))) == 5 * 6 * 7
    assert cost.macs(keras.Model([left, right], keras.ops.einsum("bij,bjk->bk", left, right))) == 5 * 6 * 7
    assert cost.macs(keras.Model([left, right], layers.Dot((2, 1))([left, right]))) == 5 * 6 * 7
    assert cost.macs(keras.Model(left, keras.ops.relu(left) * 2 + left)) == 0
    square = keras.Input((5, 5))
    unknown = keras.Model(square, keras.ops.cholesky(square))
    report = cost.count(unknown)
    assert len(report.not_counted) == 1
    with pytest.raises(CompressionError, match="cholesky"):
        _ = report.macs


def test_embedding_is_a_look_up():
    model = keras.Sequential([keras.Input((7,), dtype="int32"), layers.Embedding(100, 6), layers.Dense(2)])
    assert cost.macs(model) == 7 * 6 * 2


def test_shared_layers_count_for_every_call_and_once_in_parameters():
    shared = layers.Dense(4, name="shared")
    first, second = keras.Input((3,)), keras.Input((3,))
    model = keras.Model([first, second], layers.Add()([shared(first), shared(second)]))
    # A call in another model does not count here.
    shared(keras.Input((3,)))
    report = cost.count(model)
    assert report["shared"].calls == 2
    assert report.macs == 2 * 3 * 4
    assert report.parameters == 16 == model.count_params()


class Tower(keras.Model):
    """Blocks in a list, one of them called twice, one never."""

    def __init__(self):
        super().__init__(name="tower")
        self.blocks = [layers.Dense(4, name="a"), layers.Dense(4, name="b")]
        self.spare = layers.Dense(9, name="spare")

    def build(self, shape):
        self.blocks[0].build(shape)
        self.blocks[1].build((None, 4))
        self.spare.build((None, 2))

    def call(self, x):
        x = self.blocks[0](x)
        return self.blocks[1](self.blocks[1](x))


@pytest.mark.jax
def test_subclassed_and_nested_models():
    tower = Tower()
    with pytest.raises(CompressionError, match="no weights yet"):
        cost.count(tower)
    tower.build((None, 3))
    report = cost.count(tower)
    assert report.macs == 3 * 4 + 2 * 4 * 4
    assert report["spare"].calls == 0
    assert report.parameters == tower.count_params()
    image = keras.Input((3,))
    outer = keras.Model(image, layers.Dense(2, name="head")(tower(image)))
    assert cost.macs(outer) == 3 * 4 + 2 * 4 * 4 + 4 * 2
    assert {"tower/a", "tower/b", "head"} <= {row.path for row in cost.count(outer).layers}


class Mixing(keras.Model):
    """A call with two arguments."""

    def __init__(self):
        super().__init__()
        self.one, self.two = layers.Dense(4), layers.Dense(4)

    def call(self, query, value):
        return self.one(query) + self.two(value)


def test_models_whose_call_takes_several_arguments():
    model = Mixing()
    model(np.zeros((2, 3)), value=np.zeros((2, 5)))
    with pytest.raises(CompressionError, match=r"takes several arguments \(query, value\)"):
        cost.macs(model)
    assert cost.macs(model, inputs={"query": (1, 3), "value": (1, 5)}) == 3 * 4 + 5 * 4


def test_dictionary_inputs_and_lists():
    a, b = keras.Input((3,), name="a"), keras.Input((5,), name="b")
    model = keras.Model({"a": a, "b": b}, layers.Concatenate()([a, b]))
    assert cost.macs(model) == 0
    merged = keras.Model([a, b], layers.Dense(2)(layers.Concatenate()([a, b])))
    assert cost.macs(merged) == 16


def test_unknown_sizes_are_asked_for():
    model = built(layers.Conv2D(4, 3), shape=(None, None, 3))
    with pytest.raises(CompressionError, match=r"\(1, None, None, 3\).*inputs="):
        cost.macs(model)
    assert cost.macs(model, inputs=(1, 6, 6, 3)) == conv_products((6, 6), 3, (3, 3), 4)
    assert cost.macs(model, inputs=np.zeros((5, 6, 6, 3), "float32")) == conv_products((6, 6), 3, (3, 3), 4)


class Own(keras.Layer):
    """A layer of somebody's own that multiplies."""

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 4))

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)


def test_a_layer_without_a_rule_is_said_and_can_get_one():
    model = built(Own(name="own"), layers.Dense(2), shape=(3,))
    report = cost.count(model)
    assert report.not_counted == ["own"]
    assert report.known_macs == 8
    with pytest.raises(CompressionError, match=r"own.*tfcompress\.cost\.rule"):
        _ = report.macs
    cost.rule(Own)(lambda layer, call: call.input.size * call.output[-1])
    assert cost.macs(model) == 3 * 4 + 8


@pytest.mark.jax
def test_tracing_changes_nothing():
    model = built(layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5), shape=(3,))
    before = [np.array(w) for w in model.get_weights()]
    call = keras.Operation.__call__
    cost.count(model)
    assert keras.Operation.__call__ is call
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.paper(18)
@pytest.mark.parametrize(
    ("name", "macs", "kernels"),
    [
        ("vgg16", 313_463_808, 14_977_728),
        ("resnet56", 125_485_696, 848_944),
    ],
)
def test_counts_of_the_filter_pruning_paper(name, macs, kernels):
    models = pytest.importorskip("models")
    report = cost.count(models.build(name), values=False)
    assert report.macs == macs
    assert report.kernel_parameters == kernels


@pytest.mark.paper(54)
def test_mobilenet_has_the_published_costs():
    models = pytest.importorskip("models")
    model = models.build("mobilenet_v1", input_shape=(None, None, 3))
    report = cost.count(model, inputs=(1, 224, 224, 3), values=False)
    assert report.macs / 1e6 == pytest.approx(568.7, abs=0.05)
    moving = sum(w.parameters for row in report.layers for w in row.weights if w.name.startswith("moving"))
    assert (report.parameters - moving) / 1e6 == pytest.approx(4.232, abs=0.0005)
    pointwise = sum(row.macs for row in report.layers if "pointwise" in row.path)
    depthwise = sum(row.macs for row in report.layers if "depthwise" in row.path)
    assert 100 * pointwise / report.macs == pytest.approx(94.9, abs=0.05)
    assert 100 * depthwise / report.macs == pytest.approx(3.1, abs=0.05)
    smaller = cost.count(model, inputs=(1, 128, 128, 3), values=False)
    assert smaller.macs / 1e6 == pytest.approx(186.4, abs=0.05)
    assert smaller.parameters == report.parameters
    assert cost.macs(models.build("mobilenet_v1", width=0.25)) / 1e6 == pytest.approx(41.0, abs=0.05)


@pytest.mark.slow
@pytest.mark.paper(54)
def test_mobilenet_at_its_other_widths_and_sizes():
    models = pytest.importorskip("models")
    for size, width, millions in ((192, 1, 418.1), (160, 1, 290.7), (224, 0.75, 325.4), (224, 0.5, 149.5)):
        model = models.build("mobilenet_v1", input_shape=(size, size, 3), width=width)
        assert cost.macs(model) / 1e6 == pytest.approx(millions, abs=0.05)


def test_values_bits_and_bytes():
    model = built(layers.Dense(4, name="a"), layers.Dense(4, name="b"), shape=(3,))
    kernel = np.array([[0, 0, 1, -1], [2, 2, -0.0, 1], [0, 1, 1, 1]], "float32")
    model.get_layer("a").set_weights([kernel, np.arange(4)])
    report = cost.count(model, bits={"*": 8, "a": 2, "b.bias": 16})
    assert report["a"].nonzeros == 8 + 3
    assert report["a"].distinct == 4
    assert report["a"].bytes == 3 + 16
    assert report["b"].bytes == 16 + 8
    assert report.float_bytes == 4 * model.count_params()
    assert cost.count(model, bits=5).bytes == 8 + 16 + 10 + 16
    assert cost.count(model, bits=lambda path, name: 1 if name == "bias" else None)["a"].bytes == 48 + 1
    assert cost.count(model, values=False)["a"].nonzeros is None
    with pytest.raises(CompressionError, match="1 to 64"):
        cost.count(model, bits=0)
    with pytest.raises(CompressionError, match="no row"):
        report["c"]


class Half(Parametrization):
    """Zeroes the first row, owns a variable, and lies on a grid."""

    def build(self, layer, name, shape):
        self.mask = self.add_variable("mask", shape, "ones")

    def initialize(self, value):
        self.mask.assign(np.r_[np.zeros((1, value.shape[1])), np.ones((value.shape[0] - 1, value.shape[1]))])

    def __call__(self, value):
        return value * self.mask

    def grid(self):
        return Grid(np.ones((1, 1), np.float32), -7, 7)


class Outer(Parametrization):
    """The kernel as the product of two vectors."""

    source = True

    def build(self, layer, name, shape):
        self.left = self.add_variable("left", (shape[0], 1), "ones", trainable=True)
        self.right = self.add_variable("right", (1, shape[1]), "ones", trainable=True)

    def __call__(self, value):
        return self.left * self.right


@pytest.mark.jax
def test_parametrized_layers_count_with_their_effective_weights():
    model = built(layers.Dense(4, name="a"), layers.Dense(4, name="b"), shape=(3,))
    plain = cost.count(model)
    parametrization.parametrize(model.get_layer("a"), "kernel", Half())
    parametrization.parametrize(model.get_layer("b"), "kernel", Outer())
    report = cost.count(model)
    assert report.macs == plain.macs
    assert [w.name for w in report["a"].weights] == ["kernel", "bias"]
    assert [w.name for w in report["b"].weights] == ["kernel", "bias"]
    assert report.parameters == plain.parameters
    assert report["a"].nonzeros == 8
    assert report["a"].weights[0].bits == 4
    assert report["b"].distinct == 1


class Watcher(layers.Layer):
    """A layer that finalize would take out."""

    attached_only = True

    def build(self, shape):
        self.seen = self.add_weight(name="seen", shape=(3,), trainable=False)

    def call(self, x):
        return x


def test_layers_of_attached_models_alone_have_no_parameters():
    cost.rule(Watcher)(lambda layer, call: 0)
    model = built(layers.Dense(4), Watcher(), shape=(3,))
    assert cost.count(model).parameters == 16 == model.count_params() - 3


def test_dictionary_and_table():
    model = built(layers.Dense(4, name="a"), layers.ReLU(name="relu"), layers.Dense(2, name="b"), shape=(3,))
    report = cost.count(model)
    data = report.to_dict()
    assert data["total"]["macs"] == 20 == sum(row["macs"] for row in data["layers"])
    assert [row["path"] for row in data["layers"]] == ["a", "relu", "b"]
    text = str(report)
    assert "60.0" in text
    assert "relu" not in text
    assert text.splitlines()[-2].split() == ["total", "26", "20", "20", "104"]
