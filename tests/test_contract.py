"""The contract of `tests/contract.py`, checked for every parametrization."""

import importlib
import inspect
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfcompress
from tests import contract
from tfcompress import carriers
from tfcompress.core.masks import Mask
from tfcompress.errors import CompressionError
from tfcompress.method import Each, copy_model
from tfcompress.parametrization import Parametrization, chains, parametrize

pytestmark = pytest.mark.jax

PAIRS = [
    pytest.param(cls, kind, id=f"{cls.__name__}-{kind}", marks=[] if default else [pytest.mark.slow])
    for cls, case in contract.CASES.items()
    for kind in contract.KINDS
    for default in [kind in case.kinds or case.every_kind]
]


def classes_of_the_package() -> set[type]:
    root = pathlib.Path(tfcompress.__file__).parent
    for path in root.rglob("*.py"):
        if "_worker" not in path.name and path.name not in ("cli.py", "__main__.py"):
            importlib.import_module(
                ".".join(("tfcompress", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
            )

    def below(cls):
        return {c for sub in cls.__subclasses__() for c in {sub, *below(sub)}}

    return {
        cls
        for cls in below(Parametrization)
        if cls.__module__.startswith("tfcompress.") and not cls.__name__.startswith("_") and not inspect.isabstract(cls)
    }


def test_every_parametrization_has_a_row():
    missing = {cls.__name__ for cls in classes_of_the_package()} - {cls.__name__ for cls in contract.CASES}
    assert not missing, f"no row in tests/contract.py for {sorted(missing)}"


_trained: dict = {}


def trained(cls, kind):
    """An attached model after four steps, made once per pair, with what it was before."""
    if (cls, kind) not in _trained:
        plain = contract.build(kind)
        before = [np.array(w) for w in plain.get_weights()]
        model = tfcompress.apply(plain, Each(contract.CASES[cls].make()), verbose=0)
        own_before = {
            v.path: np.array(v)
            for chain in contract.target_chains(model)
            for link in chain.links
            for v in link.__dict__.get("variables", [])
            if v.trainable
        }
        x, y = contract.data(kind)
        history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[tfcompress.Compression()])
        _trained[cls, kind] = plain, before, model, own_before, history
    return _trained[cls, kind]


@pytest.mark.parametrize(("cls", "kind"), PAIRS)
def test_attaches_and_trains(cls, kind):
    plain, before, model, own_before, history = trained(cls, kind)
    assert all(np.array_equal(a, b) for a, b in zip(before, plain.get_weights(), strict=True)), (
        "the caller's model changed"
    )
    assert not tfcompress.method.is_attached(plain)
    assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers]
    assert [type(layer).__name__ for layer in model.layers] == [type(layer).__name__ for layer in plain.layers]
    assert np.isfinite(history.history["loss"]).all()
    assert contract.target_chains(model), "nothing was attached to the target"
    for chain in contract.target_chains(model):
        assert tuple(chain.view.shape) == tuple(chain.raw.shape) == chain.numpy().shape
        assert chain.view.dtype == "float32"
        assert not chain.waiting
    after = {v.path: np.array(v) for v in model.trainable_variables}
    unmoved = [path for path, value in own_before.items() if np.array_equal(value, after[path])]
    assert not unmoved, f"no gradient reached {unmoved}"
    x, y = contract.data(kind)
    assert tfcompress.step(model) == 4
    assert np.isfinite(model.evaluate(x, y, verbose=0))


@pytest.mark.parametrize(("cls", "kind"), PAIRS)
def test_finalized_equals_attached(cls, kind):
    model = trained(cls, kind)[2]
    x, _ = contract.data(kind)
    plain = tfcompress.finalize(model, verbose=0)
    seen = {name: chain.numpy() for name, chain in chains(model)}
    layers = dict(tfcompress.select.layers(plain))
    for name, value in seen.items():
        path, weight = name.rsplit(".", 1)
        baked = np.array(getattr(layers[path], weight))
        assert baked.dtype == np.float32
        assert np.array_equal(baked, value), name
    assert not any(type(layer).__module__.startswith("tfcompress") for layer in [plain, *layers.values()])
    assert not any(hasattr(type(layer), "_tfcompress_base") for layer in [plain, *layers.values()])
    attached = keras.ops.convert_to_numpy(model(x, training=False))
    assert np.array_equal(attached, keras.ops.convert_to_numpy(plain(x, training=False)))
    assert np.allclose(model.predict(x, verbose=0), plain.predict(x, verbose=0), rtol=1e-6, atol=1e-7)
    original = trained(cls, kind)[0]
    assert [w.path.split("/")[-1] for w in plain.weights] == [w.path.split("/")[-1] for w in original.weights]


@pytest.mark.parametrize(("cls", "kind"), PAIRS)
def test_copies_and_clones_are_equal(cls, kind):
    model = trained(cls, kind)[2]
    x, _ = contract.data(kind)
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    assert np.array_equal(expected, keras.ops.convert_to_numpy(copy_model(model)(x, training=False)))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert np.array_equal(expected, keras.ops.convert_to_numpy(clone(x, training=False)))


LOADER = """
import sys
import tfcompress, keras, numpy as np
for path in sys.argv[1:]:
    model = keras.models.load_model(path + ".keras")
    arrays = np.load(path + ".npz")
    same = np.array_equal(arrays["y"], keras.ops.convert_to_numpy(model(arrays["x"], training=False)))
    print(path, "equal" if same and tfcompress.method.is_attached(model) else "DIFFERENT")
"""


def test_loads_in_a_fresh_process(tmp_path):
    """One child loads every default pair with nothing but `import tfcompress`."""
    names = []
    for param in PAIRS:
        if param.marks:
            continue
        cls, kind = param.values
        model = trained(cls, kind)[2]
        x, _ = contract.data(kind)
        path = str(tmp_path / param.id)
        model.save(path + ".keras")
        np.savez(path + ".npz", x=x, y=keras.ops.convert_to_numpy(model(x, training=False)))
        names.append(path)
    done = subprocess.run([sys.executable, "-c", LOADER, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert results == ["equal"] * len(names), done.stdout


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("cls", contract.CASES, ids=lambda cls: cls.__name__)
def test_c09_mixed_precision(cls, policy):
    keras.config.set_dtype_policy(policy)
    model = tfcompress.apply(contract.build("dense"), Each(contract.CASES[cls].make()), verbose=0)
    x, y = contract.data("dense")
    history = model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[tfcompress.Compression()])
    assert np.isfinite(history.history["loss"]).all()
    assert all(v.dtype in ("float32", "bool", "int32", "uint32", "uint8", "int8") for v in model.weights)
    plain = tfcompress.finalize(model, verbose=0, force=True)
    assert {w.dtype for w in plain.weights} == {"float32"}
    assert np.array_equal(
        keras.ops.convert_to_numpy(model(x, training=False)), keras.ops.convert_to_numpy(plain(x, training=False))
    )


@pytest.mark.parametrize("cls", contract.CASES, ids=lambda cls: cls.__name__)
def test_stacks_with_a_mask(cls):
    case = contract.CASES[cls]
    kept = np.random.default_rng(3).random((6, 5)) > 0.5
    layer = keras.layers.Dense(5, name="target")
    layer.build((None, 6))
    if cls.source:
        with pytest.raises(CompressionError, match="must come first"):
            parametrize(layer, "kernel", Mask(), case.make())
        return
    first = Mask()
    parametrize(layer, "kernel", first)
    first.set(kept)
    parametrize(layer, "kernel", case.make())
    if case.keeps_zeros:
        assert (layer.kernel.numpy()[~kept] == 0).all()
    last = Mask()
    parametrize(layer, "kernel", last)
    last.set(~kept)
    assert (layer.kernel.numpy()[kept] == 0).all()
    assert np.isfinite(layer.kernel.numpy()).all()


@pytest.mark.parametrize("cls", contract.CASES, ids=lambda cls: cls.__name__)
def test_assignment(cls):
    case = contract.CASES[cls]
    layer = keras.layers.Dense(5)
    layer.build((None, 6))
    parametrize(layer, "kernel", case.make())
    wanted = np.random.default_rng(4).normal(size=(6, 5)).astype("float32")
    if case.assign == "raises":
        with pytest.raises(CompressionError, match="cannot take an assigned value"):
            layer.kernel.assign(wanted)
        return
    layer.kernel.assign(wanted)
    seen = layer.kernel.numpy()
    if case.assign == "exact":
        assert np.array_equal(seen, wanted)
    layer.kernel.assign(seen)
    assert np.allclose(layer.kernel.numpy(), seen, rtol=1e-5, atol=1e-6)
    with pytest.raises(CompressionError, match="shape"):
        layer.kernel.assign(wanted[:2])


@pytest.mark.parametrize("cls", contract.CASES, ids=lambda cls: cls.__name__)
def test_attach_and_detach_are_mirror_images(cls):
    layer = keras.layers.Dense(5, kernel_regularizer="l2", kernel_constraint="max_norm", name="target")
    layer.build((None, 6))
    kernel, variables, config = layer.kernel, list(layer.variables), layer.get_config()
    regularizer, constraint = kernel.regularizer, kernel.constraint
    parametrize(layer, "kernel", contract.CASES[cls].make())
    assert isinstance(layer, keras.layers.Dense)
    assert carriers.base_class(layer) is keras.layers.Dense
    assert {k: v for k, v in layer.get_config().items() if k != "tfcompress"} == config
    tfcompress.deparametrize(layer)
    assert type(layer) is keras.layers.Dense
    assert layer.get_config() == config
    assert layer.kernel is kernel
    assert kernel.regularizer is regularizer
    assert kernel.constraint is constraint
    assert [id(v) for v in layer.variables] == [id(v) for v in variables]
    assert not [key for key in layer.__dict__ if "tfcompress" in key]


@pytest.mark.parametrize("cls", contract.CASES, ids=lambda cls: cls.__name__)
def test_config_round_trip(cls):
    link = contract.CASES[cls].make()
    assert repr(link.copy()) == repr(link)
    assert set(link.get_config()) == set(type(link)._arguments())


@pytest.mark.parametrize("cls", contract.CASES, ids=lambda cls: cls.__name__)
def test_nan_weights_are_refused_by_name(cls):
    layer = keras.layers.Dense(2, name="broken")
    layer.build((None, 3))
    layer.kernel.assign(np.full((3, 2), np.nan))
    with pytest.raises(CompressionError, match=r"broken\.kernel holds NaN"):
        parametrize(layer, "kernel", contract.CASES[cls].make())
