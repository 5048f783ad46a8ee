"""Mixed precision within a budget, against a network and a search over all assignments written in NumPy."""

import itertools
import json
import math

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress.errors import CompressionError
from tfcompress.quantization import QAT
from tfcompress.search import mixed_precision
from tfcompress.search.knapsack import predicted_front

L = keras.layers
RNG = np.random.default_rng(5)
X = RNG.random((24, 6)).astype("float32")
# The first input is never used, so that the kernel's first row can hold what spoils all scales.
X[:, 0] = 0.0
WIDE = 300.0


def dense(sizes=(8, 7, 3), spoiled=None, seed=11):
    """Dense layers a, b, c, ... without biases; an outlier that no sample meets makes one of them sensitive."""
    names = "abcdefgh"[: len(sizes)]
    layers = [
        L.Dense(n, activation="relu" if name != names[-1] else None, use_bias=False, name=name)
        for n, name in zip(sizes, names, strict=True)
    ]
    model = keras.Sequential([keras.Input((6,), name="x"), *layers], name="net")
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=w.shape).astype("float32") for w in model.get_weights()]
    for number, value in enumerate(values):
        if number:
            value[0] = 0.0  # nothing reads the first output of the layer before
        if names[number] == spoiled:
            value[0] = WIDE
            if number:
                values[number - 1][:, 0] = -1.0  # which is 0 behind its ReLU
    model.set_weights(values)
    return model


def relative(outputs, reference):
    return np.square(outputs - reference).sum() / np.square(reference - reference.mean(0)).sum()


def grid(w, bits):
    step = np.abs(w).max(0) / (2 ** (bits - 1) - 1)
    return np.round(w / np.where(step > 0, step, 1)) * step


def affine(value, low, high):
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    zero = np.clip(np.round(-128 - low / step), -128, 127)
    return (np.clip(np.round(value / step) + zero, -128, 127) - zero) * step


def simulate(kernels, assignment):
    """The outputs with all of an assignment ("4", "8" or "f" a layer) at once, in float64."""
    if set(assignment) == {"f"}:
        value = X.astype(np.float64)
        for number, kernel in enumerate(kernels):
            value = value @ kernel if number == len(kernels) - 1 else np.maximum(value @ kernel, 0)
        return value
    seen = X.astype(np.float64)
    value = affine(seen, seen.min(), seen.max())
    for number, (kernel, choice) in enumerate(zip(kernels, assignment, strict=True)):
        last = number == len(kernels) - 1
        narrow = kernel if choice == "f" else grid(kernel, int(choice))
        seen, value = seen @ kernel, value @ narrow
        if not last:
            seen, value = np.maximum(seen, 0), np.maximum(value, 0)
        if choice != "f" or (not last and assignment[number + 1] != "f"):
            value = affine(value, seen.min(), seen.max())
    return value


def all_costs(model, letters):
    """{assignment: (bytes, drop)} by brute force."""
    kernels = [w.astype(np.float64) for w in model.get_weights()]
    reference = simulate(kernels, "f" * len(kernels))
    width = {"4": 0.5, "8": 1, "f": 4}
    found = {}
    for letters_of in itertools.product(letters, repeat=len(kernels)):
        size = sum(math.ceil(k.size * width[c]) for k, c in zip(kernels, letters_of, strict=True))
        found[letters_of] = (size, relative(simulate(kernels, letters_of), reference))
    return found


LETTER = {"int4": "4", "int8": "8", "float": "f"}


def letters(point):
    return tuple(LETTER[choice] for choice in point.assignment.values())


@pytest.fixture(scope="module")
def searched():
    model = dense()
    return model, mixed_precision(model, X, max_drop=1e-3, choices=("int4", "int8", "float"), verbose=0)


def test_the_front_is_that_of_all_assignments(searched):
    model, front = searched
    wanted = all_costs(model, "48f")
    assert len(front.measured) == 27
    for point in front.measured:
        size, drop = wanted[letters(point)]
        assert point.bytes == point.cost == size
        assert point.error == pytest.approx(drop, rel=0.02, abs=1e-10)
    best = {
        key
        for key, (size, drop) in wanted.items()
        if not any((s <= size and d < drop) or (s < size and d <= drop) for s, d in wanted.values())
    }
    assert {letters(point) for point in front.points} == best
    assert [p.cost for p in front.points] == sorted(p.cost for p in front.points)
    assert [p.drop for p in front.points] == sorted((p.drop for p in front.points), reverse=True)
    cheapest = min((size, key) for key, (size, drop) in wanted.items() if drop <= 1e-3)
    assert letters(front.best()) == cheapest[1]
    assert front.best(0) == front.points[-1]
    assert front.points[-1].error == 0  # all in float is the model itself


@pytest.mark.parametrize("spoiled", ["a", "b", "c"])
@pytest.mark.parametrize("limit", [2, 64])
def test_the_layer_with_a_large_dynamic_range_is_kept_wide(spoiled, limit):
    front = mixed_precision(dense(spoiled=spoiled), X, max_drop=0.01, choices=("int8", "float"), limit=limit, verbose=0)
    if limit == 64:
        assert front.best().assignment == {name: "float" if name == spoiled else "int8" for name in "abc"}
    for point in front.points:
        assert (point.drop > 0.01) == (point.assignment[spoiled] == "int8")


def test_a_guided_search_finds_what_a_search_over_all_finds():
    model = dense((9, 8, 7, 6, 5, 3), spoiled="c")
    wanted = all_costs(model, "8f")
    allowed = sorted(drop for _, drop in wanted.values())[20]
    front = mixed_precision(model, X, max_drop=allowed, choices=("int8", "float"), limit=20, verbose=0)
    assert len(front.measured) <= 20 < len(wanted)
    assert front.best().cost == min(size for size, drop in wanted.values() if drop <= allowed)
    for point in front.measured:
        assert point.error == pytest.approx(wanted[letters(point)][1], rel=0.02, abs=1e-10)


@pytest.mark.jax
def test_a_point_is_what_the_attached_model_does():
    image = keras.Input((6, 6, 2), name="image")
    x = L.ReLU(name="r")(L.BatchNormalization(name="n")(L.Conv2D(4, 3, use_bias=False, name="c")(image)))
    x = L.Concatenate(name="j")([x, L.Conv2D(3, 1, activation="relu", name="p")(x)])
    model = keras.Model(image, L.Dense(3, activation="softmax", name="d")(L.Flatten(name="f")(x)), name="net")
    model.get_layer("n").moving_variance.assign(np.full(4, 0.3, "float32"))
    model.get_layer("d").bias.assign(np.array([0.31, -0.2, 0.07], "float32"))
    data = np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype("float32")
    front = mixed_precision(model, data, max_drop=0.01, choices=("int4", "int8", "int16", "float"), limit=60, verbose=0)
    assert len(front.measured) == 27 + 8 - 1
    reference = model.predict(data, verbose=0)
    by_choice = {(p.precision, *p.assignment.values()): p for p in front.measured}
    for key in [
        ("int4", "int8", "float", "int4"), ("int8", "float", "float", "int8"), ("int16x8", "int16", "float", "int16"),
        ("float32", "float", "float", "float"),
    ]:  # fmt: skip
        attached = front.apply(model, by_choice[key])
        error = relative(attached.predict(data, verbose=0), reference)
        assert error == pytest.approx(by_choice[key].error, rel=1e-3, abs=1e-10)
    plain = tfcompress.finalize(front.apply(model, by_choice["int4", "int8", "float", "int4"]), verbose=0)
    assert len(np.unique(plain.get_layer("d").kernel.numpy()[:, 0])) <= 15
    assert len(np.unique(plain.get_layer("p").kernel.numpy())) == 12  # as it was: no two alike


def test_bit_operations_count_both_widths(searched):
    model, front = searched
    macs = dict(zip("abc", (6 * 8, 8 * 7, 7 * 3), strict=True))
    width = {"int4": 32, "int8": 64, "float": 1024}
    for point in front.measured:
        assert point.bit_operations == sum(macs[name] * width[choice] for name, choice in point.assignment.items())
    by_macs = mixed_precision(model, X, max_drop=1, objective="macs", choices=("int8", "int16"), verbose=0)
    assert [(p.precision, p.cost) for p in by_macs.points] == [("int8", 64 * 125), ("int16x8", 128 * 125)]
    assert "bits of activations" in by_macs.to_dict()["unit"]


class Interrupted:
    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def __call__(self, labels, predictions):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return -float(np.abs(labels - predictions).mean())


@pytest.mark.parametrize("limit", [8, 4])
def test_an_interrupted_search_measures_only_the_rest(tmp_path, limit):
    model, out = dense(), tmp_path / "front.json"
    options = {"max_drop": 0.01, "choices": ("int8", "float"), "limit": limit, "verbose": 0}
    whole = Interrupted()
    wanted = mixed_precision(model, X, metric=whole, **options)
    with pytest.raises(KeyboardInterrupt):
        mixed_precision(model, X, metric=Interrupted(6), out=out, **options)
    assert len(json.loads(out.with_suffix(".state.json").read_text())["done"]) == 5
    rest = Interrupted()
    front = mixed_precision(model, X, metric=rest, out=out, **options)
    assert rest.calls == whole.calls - 5
    assert front == wanted
    assert json.loads(out.read_text()) == json.loads(json.dumps(front.to_dict()))
    with pytest.raises(CompressionError, match="another options"):
        mixed_precision(model, X, metric=rest, out=out, **{**options, "max_drop": 0.02})


def test_layers_that_are_left_out_are_named_and_int8():
    model = dense()
    front = mixed_precision(model, X, max_drop=1, choices=("int8", "float"), layers=["a", "b"], exclude="b", verbose=0)
    by_choice = {point.assignment["a"]: point for point in front.measured}
    assert [list(point.assignment) for point in front.measured] == [["a"], ["a"]]
    assert front.fixed == {"b": "not selected, int8", "c": "not selected, int8"}
    kernels = [w.astype(np.float64) for w in model.get_weights()]
    wanted = relative(simulate(kernels, "f88"), simulate(kernels, "fff"))
    assert by_choice["float"].error == pytest.approx(wanted, rel=0.02)
    assert by_choice["float"].bytes == 4 * 6 * 8 + 8 * 7 + 7 * 3


def test_recurrent_layers_are_chosen_for_by_their_parts():
    model = keras.Sequential([keras.Input((4, 3), name="x"), L.LSTM(2, name="lstm"), L.Dense(2, name="d")], name="net")
    data = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32")
    front = mixed_precision(model, data, max_drop=1, choices=("int8", "float"), limit=8, verbose=0)
    names = set(front.points[0].assignment)
    assert "d" in names
    assert len([name for name in names if name.startswith("lstm")]) == 2
    point = next(p for p in front.measured if p.precision == "int8" and "float" in p.assignment.values())
    attached = front.apply(model, point)
    error = relative(attached.predict(data, verbose=0), model.predict(data, verbose=0))
    assert error == pytest.approx(point.error, rel=1e-2)


def test_the_front_is_shown(searched, tmp_path):
    _, front = searched
    text = str(front)
    assert "bytes of weights" in text
    assert "all float" in text
    assert json.loads(front.to_json(tmp_path / "f.json")) == json.loads((tmp_path / "f.json").read_text())
    pytest.importorskip("matplotlib")
    assert "</svg>" in front.plot(tmp_path / "front.svg").read_text()


def test_best_says_what_is_least_if_nothing_is_within():
    front = mixed_precision(dense(), X, max_drop=0, choices=("int4", "int8"), verbose=0)
    with pytest.raises(CompressionError, match="the least is"):
        front.best()
    assert front.best(10) == front.points[0]
    with pytest.raises(CompressionError, match="0 or more"):
        front.best(-1)


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (X[:0], {}, "at least one sample"),
        ((X, np.full(24, 9)), {}, "3 classes"),
        (X, {"max_drop": -0.1}, "0 or more"),
        (X, {"max_drop": float("nan")}, "0 or more"),
        (X, {"objective": "latancy"}, "Did you mean 'latency'"),
        (X, {"choices": ("int9",)}, "Did you mean"),
        (X, {"choices": ("float",)}, "at least one of int4, int8 and int16"),
        (X, {"limit": 1}, "`limit`"),
        (X, {"files": 0}, "`files`"),
        (X, {"layers": "zzz"}, "no layer to choose"),
    ],
)
def test_errors_say_what_is_wrong(data, options, words):
    with pytest.raises(CompressionError, match=words):
        mixed_precision(dense(), data, **{"max_drop": 1.0, "verbose": 0, **options})


def test_models_that_cannot_be_searched_are_refused():
    no_kernel = keras.Sequential([keras.Input((6,)), L.ReLU()])
    with pytest.raises(CompressionError, match="no layer to choose"):
        mixed_precision(no_kernel, X, max_drop=1, verbose=0)
    attached = tfcompress.apply(dense(), QAT(), data=X, verbose=0)
    with pytest.raises(CompressionError, match="before QAT is attached"):
        mixed_precision(attached, X, max_drop=1, verbose=0)

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = L.Dense(2, name="inner")

        def call(self, x):
            return self.inner(x)

        def get_config(self):
            return {}

    own = Own()
    own(X)
    with pytest.raises(CompressionError, match="no graph"):
        mixed_precision(own, X, max_drop=1, verbose=0)


def test_a_knapsack_is_exact():
    rng = np.random.default_rng(0)
    options = [
        [(int(c), float(e)) for c, e in zip(rng.integers(1, 9, 3), rng.random(3), strict=True)] for _ in range(5)
    ]
    sums = {
        choice: (sum(o[i][0] for o, i in zip(options, choice, strict=True)), sum(o[i][1] for o, i in zip(options, choice, strict=True)))
        for choice in itertools.product(range(3), repeat=5)
    }  # fmt: skip
    wanted = {
        pair
        for pair in sums.values()
        if not any((c <= pair[0] and e < pair[1]) or (c < pair[0] and e <= pair[1]) for c, e in sums.values())
    }
    found = {sums[choice] for choice in predicted_front(options)}
    assert {(c, round(e, 9)) for c, e in found} == {(c, round(e, 9)) for c, e in wanted}


def test_of_equal_bytes_fewer_bit_operations_come_first():
    front = mixed_precision(dense(), X, max_drop=1, choices=("int8", "int16"), verbose=0)
    assert [(p.precision, p.cost) for p in front.points] == [("int8", 125), ("int16x8", 125)]
    assert front.points[1].drop < front.points[0].drop
    assert front.best() == front.points[0]
    assert front.best(front.points[1].drop) == front.points[1]
