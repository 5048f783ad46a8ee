"""Sensitivity layer by layer, against forward passes written in NumPy."""

import json

import keras
import numpy as np
import pytest

from tfcompress.errors import CompressionError
from tfcompress.search import sensitivity
from tfcompress.search.ledger import Ledger

pytestmark = pytest.mark.jax
L = keras.layers
RNG = np.random.default_rng(3)
X = RNG.random((24, 5)).astype("float32")


def network():
    made = keras.Sequential(
        [
            keras.Input((5,), name="x"),
            L.Dense(6, activation="relu", name="a"),
            L.Dense(4, activation="relu", name="b"),
            L.Dense(3, name="c"),
        ],
        name="net",
    )
    rng = np.random.default_rng(7)
    made.set_weights([rng.normal(size=w.shape).astype("float32") for w in made.get_weights()])
    return made


def forward(weights, x):
    (a, p), (b, q), (c, r) = weights
    return np.maximum(np.maximum(x @ a + p, 0) @ b + q, 0) @ c + r


def layers_of(model):
    return [[np.asarray(w, np.float64) for w in layer.get_weights()] for layer in model.layers]


def relative(outputs, reference):
    return np.square(outputs - reference).sum() / np.square(reference - reference.mean(0)).sum()


def without_smallest(w, share):
    limit = sorted(np.abs(w).ravel())[round(share * w.size) - 1] if share else -1.0
    return np.where(np.abs(w) <= limit, 0.0, w)


def rounded(w, bits):
    step = np.abs(w).max(0) / (2 ** (bits - 1) - 1)
    return np.round(w / step) * step


def scan(model, data=X, **options):
    return sensitivity(model, data, **{"sparsities": (), "bits": (), "output_bits": (), "verbose": 0, **options})


def test_zeros_and_bits_cost_what_a_forward_pass_says():
    model = network()
    before = [w.copy() for w in model.get_weights()]
    table = scan(model, sparsities=(0.0, 0.5, 0.9), bits=(32, 8, 3))
    plain = layers_of(model)
    reference = forward(plain, X)
    assert len(table.rows) == 3 * 6
    for row in table.rows:
        changed = [list(pair) for pair in plain]
        number = "abc".index(row.layer)
        kernel = plain[number][0]
        if row.kind == "sparsity":
            changed[number][0] = without_smallest(kernel, row.value)
        elif row.value < 32:
            changed[number][0] = rounded(kernel, row.value)
        wanted = relative(forward(changed, X), reference)
        assert row.error == pytest.approx(wanted, rel=1e-3, abs=1e-9)
        assert row.drop == row.error  # the metric without labels, whose baseline is 0
        if row.value in (0.0, 32):
            assert row.error == 0
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_an_output_is_rounded_alone():
    model = network()
    table = scan(model, output_bits=(8, 16, 32))
    (a, p), (b, q), (c, r) = layers_of(model)
    first = np.maximum(X @ a + p, 0)
    step = first.max() / 255
    wanted = relative(np.maximum(np.round(first / step) * step @ b + q, 0) @ c + r, forward(layers_of(model), X))
    rows = table.of("output_bits")
    assert list(rows) == ["x", "a", "b", "c"]
    assert rows["a"][8].error == pytest.approx(wanted, rel=0.05)
    assert rows["a"][16].error < 1e-3 * rows["a"][8].error
    assert all(one[32].error == 0 for one in rows.values())


def test_accuracy_is_in_per_cent_and_loss_is_the_compiled_one():
    model = network()
    labels = model.predict(X, verbose=0).argmax(-1)
    labels[:6] = (labels[:6] + 1) % 3
    table = scan(model, (X, labels), sparsities=(0.9,))
    assert table.metric == "accuracy (%)"
    assert table.baseline == 75.0
    cut = [list(pair) for pair in layers_of(model)]
    cut[2][0] = without_smallest(cut[2][0], 0.9)
    hits = 100 * (forward(cut, X).argmax(-1) == labels).mean()
    row = table.of("sparsity")["c"][0.9]
    assert (row.score, row.drop) == (pytest.approx(hits), pytest.approx(75.0 - hits))
    one_hot = scan(model, (X, np.eye(3)[labels]), sparsities=(0.9,))
    assert [r.drop for r in one_hot.rows] == [r.drop for r in table.rows]

    model.compile("sgd", "mean_squared_error")
    wanted = RNG.normal(size=(24, 3)).astype("float32")
    table = scan(model, (X, wanted), sparsities=(0.9,))
    assert table.metric == "loss"
    assert table.baseline == pytest.approx(np.square(forward(layers_of(model), X) - wanted).mean(), rel=1e-4)
    loss = np.square(forward(cut, X) - wanted).mean()
    assert table.of("sparsity")["c"][0.9].drop == pytest.approx(loss - table.baseline, rel=1e-3)


def test_allowed_stops_at_the_first_value_beyond_the_drop():
    table = scan(network(), sparsities=(0.3, 0.9), bits=(8, 2))
    small = {layer: rows[0.3].drop for layer, rows in table.of("sparsity").items()}
    allowed = table.allowed("sparsity", sorted(small.values())[1])
    assert sorted(allowed.values()) == [0.0, 0.3, 0.3]
    assert allowed[max(small, key=small.get)] == 0.0
    narrow = table.allowed("bits", max(rows[8].drop for rows in table.of("bits").values()))
    assert set(narrow.values()) <= {8, 2}
    assert 8 in narrow.values()
    assert set(table.allowed("bits", 0.0).values()) == {32}


class Interrupted:
    """A metric that fails once, at a given call."""

    def __init__(self, at, error):
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, labels, predictions):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return -float(np.abs(labels - predictions).mean())


@pytest.mark.parametrize("error", [RuntimeError("out"), KeyboardInterrupt()])
def test_an_interrupted_scan_measures_only_the_rest(tmp_path, error):
    model, options = network(), {"sparsities": (0.5, 0.9), "bits": (4,)}
    metric = Interrupted(5, error)
    with pytest.raises(type(error)):
        scan(model, metric=metric, out=tmp_path / "table.json", **options)
    assert not (tmp_path / "table.json").exists()
    state = json.loads((tmp_path / "table.state.json").read_text())
    assert len(state["done"]) == 4  # the baseline and three rows
    assert [path.name for path in tmp_path.iterdir()] == ["table.state.json"]

    again = Interrupted(None, None)
    table = scan(model, metric=again, out=tmp_path / "table.json", **options)
    assert again.calls == 1 + 9 - 4
    whole = scan(model, metric=Interrupted(None, None), **options)
    assert table.rows == whole.rows
    assert table.baseline == whole.baseline
    assert json.loads((tmp_path / "table.json").read_text()) == table.to_dict()
    third = Interrupted(None, None)
    assert scan(model, metric=third, out=tmp_path / "table.json", **options) == table
    assert not third.calls


def test_state_of_something_else_is_refused(tmp_path):
    out = tmp_path / "table.json"
    model = network()
    scan(model, sparsities=(0.5,), out=out)
    with pytest.raises(CompressionError, match="another data"):
        scan(model, X[:8], sparsities=(0.5,), out=out)
    model.layers[0].kernel.assign(model.layers[0].kernel.numpy() + 1)
    with pytest.raises(CompressionError, match="another model"):
        scan(model, sparsities=(0.5,), out=out)
    (tmp_path / "table.state.json").write_text("{")
    with pytest.raises(CompressionError, match="Delete it"):
        scan(model, sparsities=(0.5,), out=out)


def test_other_values_take_up_the_state(tmp_path):
    model, out = network(), tmp_path / "table.json"
    scan(model, sparsities=(0.5,), metric=Interrupted(None, None), out=out)
    more = Interrupted(None, None)
    assert len(scan(model, sparsities=(0.5, 0.7), metric=more, out=out).rows) == 6
    assert more.calls == 3


def test_samples_are_drawn_by_the_seed():
    model = network()
    tables = [scan(model, sparsities=(0.5,), samples=7, seed=seed) for seed in (1, 1, 2)]
    assert tables[0] == tables[1]
    assert tables[0].samples == 7
    assert tables[0].rows != tables[2].rows


def test_a_model_without_a_graph_is_measured_by_its_weights():
    @keras.saving.register_keras_serializable("tests_search")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = L.Dense(3, name="inner")

        def call(self, x):
            return keras.ops.tanh(self.inner(x))

    model = Own(name="own")
    model(X)
    table = scan(model, bits=(8, 2), output_bits=(8,))
    assert [(row.layer, row.value) for row in table.rows] == [("inner", 8), ("inner", 2)]
    assert 0 < table.rows[0].error < table.rows[1].error
    assert "no graph" in table.notes[0]
    assert "no graph" in str(table)


def test_layers_are_selected_and_shown():
    table = scan(network(), sparsities=(0.5,), layers=["a", "b"], exclude="b")
    assert [row.layer for row in table.rows] == ["a"]
    assert "50 % zeros" in str(table)
    assert "Sensitivity of net" in str(table)
    assert json.loads(table.to_json())["rows"][0]["kind"] == "sparsity"


def test_a_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    path = scan(network(), sparsities=(0.5,), output_bits=(8,)).plot(tmp_path / "drops.svg")
    text = path.read_text()
    assert text.lstrip().startswith("<?xml")
    assert "</svg>" in text


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        (X[:0], {}, "at least one sample"),
        ((X, np.zeros(5, int)), {}, "go in pairs"),
        ((X, np.full(24, 3)), {}, "3 classes"),
        ((X, np.full((24, 2), 1)), {"metric": "accuracy"}, "do not fit"),
        ((X, X, X), {}, "tuple of 3"),
        ([X, X], {}, "1 inputs and the data 2"),
        (np.full((4, 5), np.nan), {}, "NaN"),
        (X[:, :3], {}, "cannot be run on the data"),
        ((X, np.ones((24, 3)) / 2), {}, "pass metric="),
        (X, {"metric": "acuracy"}, "Did you mean 'accuracy'"),
        (X, {"metric": "accuracy"}, "needs labels"),
        (X, {"sparsities": (1.5,)}, "0 to 1"),
        (X, {"bits": (1,)}, "`bits` are of"),
        (X, {"output_bits": (4,)}, "`output_bits` are of"),
        (X, {"sparsities": ()}, "nothing to measure"),
        (X, {"layers": "nothing"}, "no selected layer"),
        (X, {"samples": 0}, "at least 1"),
    ],
)
def test_errors_say_what_is_wrong(data, options, words):
    with pytest.raises(CompressionError, match=words):
        scan(network(), data, **{"sparsities": (0.5,), **options})


def test_a_ledger_is_replaced_as_a_whole(tmp_path):
    ledger = Ledger(tmp_path / "a.json", {"data": "1"})
    assert ledger.get("one", lambda: {"value": 1.5}) == {"value": 1.5}
    with pytest.raises(ZeroDivisionError):
        ledger.get("two", lambda: 1 / 0)
    again = Ledger(tmp_path / "a.json", {"data": "1"})
    assert again.done == {"one": {"value": 1.5}}
    assert "two" not in again
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
