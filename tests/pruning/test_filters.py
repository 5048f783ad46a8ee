"""[18] Filter pruning: the paper's counts, surgery against masks, greedy and residual rules, order statistics."""

import keras
import numpy as np
import pytest

from models.networks import resnet, vgg16
from tests.graph.nets import distance, layers, sample, stir
from tfcompress import apply, summary
from tfcompress.core.scores import filter_norms, smallest
from tfcompress.cost import count
from tfcompress.errors import CompressionError
from tfcompress.graph.surgery import masked
from tfcompress.pruning import Filters, filter_sensitivity


def counted(model):
    """(MACs, kernel weights) of convolutions and dense layers, by the formula, from shapes alone."""
    macs = weights = 0
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            size = int(np.prod(layer.kernel.shape))
            positions = int(np.prod(layer.output.shape[1:-1]))
            macs, weights = macs + size * positions, weights + size
    return macs, weights


def stages(depth, shares, skip):
    """{first convolution of a block: share}, layers counted from the stem = 1, so that block b of all has 2 b and 2 b + 1."""
    blocks = (depth - 2) // 6
    found = {}
    for stage, share in enumerate(shares, 1):
        for block in range(1, blocks + 1):
            number = 2 * ((stage - 1) * blocks + block)
            if share and number not in skip:
                found[f"stage{stage}_block{block}_conv1"] = share
    return found


@pytest.mark.paper(18)
def test_counts_of_vgg16():
    model = vgg16()
    assert counted(model) == (313_463_808, 14_977_728)
    small = apply(model, Filters({f"conv{i}": 0.5 for i in (1, *range(8, 14))}), verbose=0)
    assert counted(small) == (206_279_680, 5_390_176)
    # The same from the cost report, which traces the pruned graph.
    report = count(small, values=False)
    assert report.kernel_parameters == 5_390_176


RESNETS = [
    (56, "A", (0.1, 0.1, 0.1), (16, 20, 38, 54), 10.4, 9.4),
    (56, "B", (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), 27.6, 13.8),
    (110, "A", (0.5, 0, 0), (36,), 15.9, 2.3),
    (110, "B", (0.5, 0.4, 0.3), (36, 38, 74), 38.7, 32.5),
]
WHOLE = {56: (125_485_696, 848_944), 110: (252_887_680, 1_719_856)}


@pytest.mark.paper(18)
@pytest.mark.parametrize(
    ("depth", "name", "shares", "skip", "fewer_macs", "fewer_weights"), RESNETS, ids=lambda v: str(v)
)
def test_counts_of_residual_nets(depth, name, shares, skip, fewer_macs, fewer_weights):
    model = resnet(depth)
    macs, weights = counted(model)
    assert (macs, weights) == WHOLE[depth]
    small, _ = Filters(stages(depth, shares, skip)).attach(model)
    after = counted(small)
    assert round(100 * (1 - after[0] / macs), 1) == fewer_macs
    assert round(100 * (1 - after[1] / weights), 1) == fewer_weights
    assert [layer.name for layer in small.layers] == [layer.name for layer in model.layers]


def plain_net(seed=0):
    i = keras.Input((12, 12, 3), name="image")
    x = i
    for name, filters in (("a", 8), ("b", 10), ("c", 6)):
        x = layers.ReLU()(layers.BatchNormalization(name=f"{name}_bn")(layers.Conv2D(filters, 3, name=name)(x)))
    return stir(keras.Model(i, layers.Dense(4, name="head")(layers.Flatten()(x))), seed)


@pytest.mark.paper(18)
@pytest.mark.parametrize("order", [1, 2])
def test_removed_are_the_smallest_norms_and_the_result_is_the_masked_model(order):
    model = plain_net()
    small = apply(model, Filters(0.35, order=order), verbose=0)
    removals = {}
    for name in "abc":
        kernel = np.asarray(model.get_layer(name).kernel)
        norms = [np.linalg.norm(kernel[..., j].ravel(), order) for j in range(kernel.shape[-1])]
        gone = np.argsort(norms)[: int(np.ceil(0.35 * len(norms)))]
        kept = np.setdiff1d(np.arange(len(norms)), gone)
        np.testing.assert_array_equal(
            np.asarray(small.get_layer(name).bias), np.asarray(model.get_layer(name).bias)[kept]
        )
        removals[name] = gone.tolist()
    assert distance(small, masked(model, removals), sample(model)) <= 1e-5
    # A zeroed filter alone is not the same: behind batch normalization it still speaks.
    zeroed = keras.models.clone_model(model)
    zeroed.set_weights(model.get_weights())
    for name, gone in removals.items():
        for weight in zeroed.get_layer(name).weights:
            value = np.array(weight)
            value[..., gone] = 0
            weight.assign(value)
    assert distance(small, zeroed, sample(model)) > 1e-2


@pytest.mark.paper(18)
def test_ratio_zero_is_the_same_function():
    model = plain_net()
    small = apply(model, Filters(0.0), verbose=0)
    np.testing.assert_array_equal(np.asarray(small(sample(model))), np.asarray(model(sample(model))))


@pytest.mark.paper(18)
def test_greedy_and_independent():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(2, 1, name="a"),
            layers.Conv2D(2, 1, name="b"),
            layers.Conv2D(1, 1, name="c"),
        ]
    )
    # Map 0 of a is the small one; b's filter 0 has its large weight on it and little else.
    model.get_layer("a").kernel.assign(np.array([0.1, 1.0]).reshape(1, 1, 1, 2))
    model.get_layer("b").kernel.assign(np.array([[9.0, 1.0], [0.1, 1.0]]).reshape(1, 1, 2, 2))
    found = {}
    for greedy in (False, True):
        small = apply(model, Filters(0.5, greedy=greedy, exclude="c"), verbose=0)
        found[greedy] = [np.asarray(small.get_layer(name).kernel).ravel().tolist() for name in "ab"]
    assert found[False] == [[1.0], [pytest.approx(0.1)]]
    assert found[True] == [[1.0], [1.0]]
    deep = plain_net()
    one, two = (apply(deep, Filters(0.4, greedy=greedy, layers="a"), verbose=0) for greedy in (False, True))
    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    same = [apply(deep, Filters(0.0, greedy=greedy), verbose=0).get_weights() for greedy in (False, True)]
    assert all(np.array_equal(a, b) for a, b in zip(*same, strict=True))


@pytest.mark.paper(18)
def test_residual_group_goes_by_its_projection():
    model = stir(resnet(14, (16, 16, 3), width=8, shortcut="projection"))
    small = apply(model, Filters({"stage2*": 0.4, "stage3*conv1": 0.3}, shortcuts=True), verbose=0)
    rows = {row.layer: row for row in summary(small).rows if row.weight == "kernel"}
    kernel = np.abs(np.asarray(model.get_layer("stage2_block1_shortcut").kernel)).sum(axis=(0, 1, 2))
    gone = np.argsort(kernel)[:7]  # ceil(0.4 * 16)
    kept = np.setdiff1d(np.arange(16), gone)
    assert "7 of 16" in rows["stage2_block1_shortcut"].detail
    for name in ("stage2_block1_shortcut", "stage2_block1_conv2", "stage2_block2_conv2"):
        new, old = (np.asarray(m.get_layer(f"{name}_bn").gamma) for m in (small, model))
        np.testing.assert_array_equal(new, old[kept])
        assert name in rows["stage2_block1_shortcut"].detail or name.endswith("shortcut")
    assert small.get_layer("stage3_block1_conv1").kernel.shape[2] == 9
    assert "no projection" in rows["stem"].detail
    # Nothing but the first convolutions of blocks without the option.
    alone = apply(model, Filters(0.5), verbose=0)
    done = {row.layer for row in summary(alone).rows if row.action == "done" and row.weight == "kernel"}
    assert {f"stage{s}_block{b}_conv1" for s in (1, 2, 3) for b in (1, 2)} <= done
    assert alone.get_layer("stage2_block1_shortcut").filters == 16


@pytest.mark.paper(18)
def test_add_nodes_match_in_nested_sequential_and_functional_models():
    i = keras.Input((8, 8, 6), name="in")
    block = keras.Model(i, layers.Add()([layers.Conv2D(6, 3, padding="same", name="b2")(
        layers.Conv2D(10, 3, padding="same", name="b1")(i)), i]), name="block")  # fmt: skip
    stem = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(6, 3, padding="same", name="s1"), layers.ReLU(),
                             layers.Conv2D(6, 1, name="s2")], name="stem")  # fmt: skip
    x = keras.Input((8, 8, 3), name="image")
    y = layers.DepthwiseConv2D(3, name="dw")(
        layers.Concatenate()([block(stem(x)), layers.Conv2D(4, 1, name="side")(x)])
    )
    model = stir(keras.Model(x, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(y))))
    small = apply(model, Filters(0.5), verbose=0)
    assert small.get_layer("stem").layers[0].filters == 3
    assert small.get_layer("block").get_layer("b1").filters == 5
    assert small.get_layer("block").get_layer("b2").filters == 6
    removals = {
        "stem/s1": smallest(filter_norms(np.asarray(stem.layers[0].kernel)), 0.5),
        "block/b1": smallest(filter_norms(np.asarray(block.get_layer("b1").kernel)), 0.5),
        "side": smallest(filter_norms(np.asarray(model.get_layer("side").kernel)), 0.5),
    }
    assert distance(small, masked(model, removals), sample(model)) <= 1e-5


def test_number_removed_is_the_ceiling():
    for n in (7, 16, 30, 64):
        for p in (0.1, 0.3, 0.5, 0.6):
            assert len(smallest(np.arange(n), p)) == -(-round(p * 10) * n // 10)
    np.testing.assert_array_equal(smallest([2.0, 1.0, 1.0, 0.5], 0.75), [3, 1, 2])


def test_rounding_grouped_filters_and_the_last_filter():
    model = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(24, 3, name="a"), layers.Conv2D(8, 1, groups=2, name="g"), layers.Conv2D(2, 1, name="end")])  # fmt: skip
    small = apply(model, Filters({"a": 0.4, "g": 0.99}, round_to=8), verbose=0)
    assert (small.get_layer("a").filters, small.get_layer("g").filters) == (16, 8)
    small = apply(model, Filters({"g": 0.5}), verbose=0)
    kernel = np.abs(np.asarray(model.get_layer("g").kernel)).sum(axis=(0, 1, 2))
    gone = np.argsort(kernel[:4] + kernel[4:])[:2]  # filters of the two groups go in pairs
    kept = np.setdiff1d(np.arange(8), [*gone, *(gone + 4)])
    np.testing.assert_array_equal(
        np.asarray(small.get_layer("g").kernel), np.asarray(model.get_layer("g").kernel)[..., kept]
    )
    assert apply(model, Filters({"a": 0.99}), verbose=0).get_layer("a").filters == 2


def test_sensitivity_table():
    model = plain_net()
    data = sample(model, 4)
    want = np.asarray(model(data))
    seen = []
    table = filter_sensitivity(
        model, lambda m: -float(np.abs(np.asarray(m(data)) - want).mean()), ratios=(0.0, 0.5), retrain=seen.append, layers=["a", "c"]
    )  # fmt: skip
    assert set(table.scores) == {"a", "c"}
    assert len(seen) == 4
    assert table.baseline == table.scores["a"][0.0] == 0
    assert table.scores["a"][0.5] < 0
    assert Filters(table.allowed(0.0)).ratio == {"a": 0.0, "c": 0.0}


def test_compile_settings_and_rows():
    model = plain_net()
    model.compile(keras.optimizers.SGD(0.125), keras.losses.MeanSquaredError(), metrics=["mae"])
    small = apply(model, Filters({"a": 0.5}), verbose=0)
    small.fit(sample(model), np.zeros((2, 4)), verbose=0)
    assert float(small.optimizer.learning_rate) == 0.125
    details = {(row.layer, row.weight): row.detail for row in summary(small).rows}
    assert details["b", "kernel"] == "no pattern of `ratio` matches; follows: (3, 3, 8, 10) -> (3, 3, 4, 10)"
    assert details["a_bn", "gamma"] == "(8,) -> (4,)"
    assert model.get_layer("a").filters == 8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Filters(1.0), "below 1"),
        (lambda: Filters({"a": -0.1}), "at least 0"),
        (lambda: Filters(order=3), "`order`"),
        (lambda: Filters(round_to=0), "`round_to`"),
        (lambda: apply(plain_net(), Filters(0.5, layers="q"), verbose=0), "applies to no layer"),
        (lambda: apply(keras.Sequential([layers.Dense(2)]), Filters(), verbose=0), "not built"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(CompressionError, match=words):
        make()


def test_nan_frozen_and_fixed_layers():
    model = plain_net()
    model.get_layer("b").trainable = False
    small = apply(model, Filters(0.5), verbose=0)
    assert small.get_layer("b").filters == 10
    assert {row.layer: row.detail for row in summary(small).rows if row.weight == "kernel"}["b"].startswith(
        "b is frozen"
    )
    assert apply(model, Filters(0.5, include_frozen=True), verbose=0).get_layer("b").filters == 5
    kernel = np.array(model.get_layer("a").kernel)
    kernel[0, 0, 0, 0] = np.nan
    model.get_layer("a").kernel.assign(kernel)
    with pytest.raises(CompressionError, match="'a' holds NaN"):
        apply(model, Filters(0.5), verbose=0)
