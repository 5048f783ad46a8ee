"""What every method has to hold, as one table: it leaves the caller's model alone, reports, repeats itself, saves, ends."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest

import tfcompress
from tests.test_contract import classes_of_the_package
from tfcompress import distillation, factorization, pruning, quantization, select, sparsity
from tfcompress.errors import CompressionError
from tfcompress.method import Each, Method, WeightMethod, is_attached

pytestmark = pytest.mark.jax
L = keras.layers
ON_TF = keras.backend.backend() == "tensorflow"


def network(seed=0):
    """A convolution, a wide dense layer and a head, compiled."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2), name="image"),
            L.Conv2D(6, 3, activation="relu", name="conv"),
            L.Flatten(),
            L.Dense(24, activation="relu", name="wide"),
            L.Dense(4, name="head"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(24, 6, 6, 2)).astype("float32"), rng.normal(size=(24, 4)).astype("float32")


@dataclasses.dataclass(frozen=True)
class Case:
    """How a method is checked: a fresh one, a call that it must refuse with a part of the message, and what it leaves.

    Args:
        make: the method. bad: a call that raises. message: what its error says. surgery: the result is a plain model.
        saved: whether what it attaches is saved with the model.
    """

    make: Callable[[], Method]
    bad: Callable[[], object]
    message: str
    surgery: bool = False
    saved: bool = True


def distilled() -> Method:
    return distillation.Distillation(network(seed=9), losses=[distillation.Logits()])


CASES: dict[type, Case] = {
    pruning.Magnitude: Case(lambda: pruning.Magnitude(sparsity=0.5), lambda: pruning.Magnitude(sparsity=2), "between 0"),
    pruning.SharedWeights: Case(lambda: pruning.SharedWeights(bits=3), lambda: pruning.SharedWeights(bits=40), "1 to 16"),
    pruning.Filters: Case(
        lambda: pruning.Filters(0.5, layers="conv"), lambda: pruning.Filters(1.5), "share of the filters", surgery=True
    ),
    pruning.RemoveDeadUnits: Case(
        pruning.RemoveDeadUnits, lambda: pruning.RemoveDeadUnits().attach(keras.Sequential([L.Dense(2)])), "not built",
        surgery=True,
    ),
    pruning.BayesByBackprop: Case(
        lambda: pruning.BayesByBackprop(examples=24, prior=pruning.Gaussian(1.0)),
        lambda: pruning.BayesByBackprop(examples=0),
        "examples",
    ),
    quantization.QAT: Case(quantization.QAT, lambda: quantization.QAT(bits=1), "2 to 8"),
    quantization.QuantizedWeights: Case(
        quantization.QuantizedWeights, lambda: quantization.QuantizedWeights(bits=1), "2 to 8"
    ),
    quantization.Equalize: Case(
        quantization.Equalize, lambda: tfcompress.apply(keras.Sequential([L.Dense(2)]), quantization.Equalize(), verbose=0),
        "not built", surgery=True,
    ),
    quantization.PostTraining: Case(
        lambda: quantization.PostTraining(bits=4, rounding="learned", steps=4, verbose=0),
        lambda: quantization.PostTraining(rounding="up"), "nearest, learned",
    ),
    factorization.SVD: Case(lambda: factorization.SVD(rank=3, layers="wide"), lambda: factorization.SVD(rank=0), "rank", surgery=True),
    sparsity.LFSR: Case(lambda: sparsity.LFSR(0.5, seed=1), lambda: sparsity.LFSR(0.0), "density"),
    distillation.PriorBias: Case(
        lambda: distillation.PriorBias({2: 0.3}),
        lambda: tfcompress.apply(network(), distillation.PriorBias({2: 0.3}), verbose=0),
        "natural frequencies",
        surgery=True,
    ),
    distillation.Distillation: Case(
        distilled, lambda: distillation.Distillation(network(), temperature=0), "temperature", saved=False
    ),
}  # fmt: skip

ALL = pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
_trained: dict = {}


def attached(cls, seed=0):
    """(plain model, its weights before, the attached model after an epoch), made once a class and seed."""
    if (cls, seed) not in _trained:
        plain = network(seed)
        before = [np.array(w) for w in plain.get_weights()]
        x, y = data()
        keras.utils.set_random_seed(5)
        method = CASES[cls].make()
        model = tfcompress.apply(plain, method, data=x, verbose=0)
        report = tfcompress.summary(model)
        # Surgery leaves a plain model with nothing to drive.
        callbacks = [] if CASES[cls].surgery else [tfcompress.Compression(), *method.callbacks()]
        history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=callbacks).history
        assert np.isfinite(history["loss"]).all()
        _trained[cls, seed] = plain, before, model, report
    return _trained[cls, seed]


def values(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_every_method_has_a_row():
    classes_of_the_package()

    def below(cls):
        return {c for sub in cls.__subclasses__() for c in {sub, *below(sub)}}

    found = {cls for cls in below(Method) if cls.__module__.startswith("tfcompress.")} - {WeightMethod, Each}
    missing = {cls.__name__ for cls in found if not cls.__name__.startswith("_")} - {cls.__name__ for cls in CASES}
    assert not missing, f"no row in tests/test_method_contract.py for {sorted(missing)}"


@ALL
def test_the_callers_model_is_untouched(cls):
    plain, before, model, _ = attached(cls)
    assert model is not plain
    assert not is_attached(plain)
    assert all(np.array_equal(a, b) for a, b in zip(before, plain.get_weights(), strict=True))


@ALL
def test_the_report_has_a_row_for_every_layer_with_weights(cls):
    plain, _, _, report = attached(cls)
    named = " ".join(f"{row.layer} {row.detail}" for row in report.rows)
    if cls in (distillation.Distillation, distillation.PriorBias, pruning.RemoveDeadUnits):
        assert report.rows or cls is pruning.RemoveDeadUnits
        return
    for path, layer in select.layers(plain):
        if layer.weights:
            assert path in named, f"nothing is said of layer {path!r}"
    assert all(row.action in ("done", "skipped", "float") and row.detail for row in report.rows)
    assert str(report)


@ALL
def test_same_seed_same_result(cls):
    first = attached(cls)[2]
    _trained.pop((cls, 0))
    second = attached(cls)[2]
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


@ALL
def test_saves_and_loads(cls, tmp_path):
    _, _, model, _ = attached(cls)
    x, _ = data()
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert np.array_equal(values(model(x, training=False)), values(again(x, training=False)))
    assert is_attached(again) == (is_attached(model) and CASES[cls].saved)


@ALL
def test_finalized_is_plain_keras(cls, tmp_path):
    _, _, model, _ = attached(cls)
    x, _ = data()
    plain = tfcompress.finalize(model, verbose=0)
    assert not is_attached(plain)
    assert {type(layer).__module__.split(".")[0] for layer in [plain, *plain.layers]} == {"keras"}
    expected, seen = values(model(x, training=False)), values(plain(x, training=False))
    # Rounded outputs cannot live in plain Keras; everything else is equal to the bit.
    assert np.abs(expected - seen).max() < 0.2 if cls is quantization.QAT else np.array_equal(expected, seen)
    plain.save(tmp_path / "plain.keras")
    assert np.array_equal(seen, values(keras.models.load_model(tmp_path / "plain.keras")(x, training=False)))


@ALL
def test_bad_input_is_refused_with_a_sentence(cls):
    with pytest.raises(CompressionError, match=CASES[cls].message):
        CASES[cls].bad()


@pytest.mark.skipif(not ON_TF, reason="conversions are tested on TensorFlow")
@ALL
def test_exports_to_a_file_that_agrees(cls, tmp_path):
    _, _, model, _ = attached(cls)
    x, _ = data()
    report = tfcompress.export.tflite(model, tmp_path / "m.tflite", precision="float32", samples=x)
    deployed = tfcompress.export.Runner(tmp_path / "m.tflite")(x)
    deployed = next(iter(deployed.values())) if isinstance(deployed, dict) else deployed
    expected = values(tfcompress.finalize(model, verbose=0)(x, training=False))
    assert np.abs(np.asarray(deployed) - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    assert report
