"""Models that the real TFMOT saved (fixtures/make.py), without tf_keras: same outputs, masks, shared values, scales."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv

import h5py
import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import migrate, quantization, schedules
from tfcompress.errors import CompressionError
from tfcompress.layers import OutputRange
from tfcompress.method import step
from tfcompress.parametrization import chain, chains

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(path.stem for path in FIXTURES.glob("*.h5"))


def _facts(name, folder=FIXTURES):
    return dict(np.load(folder / f"{name}.npz"))


def _inputs(facts):
    return facts["x"] if "x" in facts else [facts[f"x_{i}"] for i in range(2)]


def _links(model):
    return {name: [type(link).__name__ for link in one.links] for name, one in chains(model)}


def _migrated(name, folder=FIXTURES):
    return migrate.from_tfmot(folder / f"{name}.h5", verbose=0), _facts(name, folder)


def _check_outputs(name, model, facts):
    got = model.predict(_inputs(facts), verbose=0)
    # Quantized networks: folding moves a value across a rounding boundary now and then, and softmax passes that on.
    tolerance = 4e-3 if "quantized" in name else 1e-5
    np.testing.assert_allclose(got, facts["y"], atol=tolerance)
    if "quantized" in name:
        assert np.median(np.abs(got - facts["y"])) < 1e-5


def test_the_fixtures_are_there():
    assert NAMES == [
        "clustered", "clustered_channels", "pruned", "pruned_partly", "pruned_text", "pruned_twins", "quantized",
        "quantized_clustered", "quantized_pruned", "quantized_unet",
    ]  # fmt: skip
    assert sum(path.stat().st_size for path in FIXTURES.iterdir()) < 1_500_000


@pytest.mark.jax
@pytest.mark.parametrize("name", NAMES)
def test_a_migrated_model_predicts_what_tfmots_did(name):
    model, facts = _migrated(name)
    _check_outputs(name, model, facts)


@pytest.mark.parametrize("name", ["pruned", "clustered", "quantized", "quantized_pruned"])
def test_it_saves_loads_and_finalizes_like_any_other(name, tmp_path):
    model, facts = _migrated(name)
    before = model.predict(_inputs(facts), verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(_inputs(facts), verbose=0), before)
    if name == "pruned":  # its schedule was not over
        with pytest.warns(UserWarning, match=r"reached 0\.7"):
            plain = tfcompress.finalize(model, verbose=0)
    else:
        plain = tfcompress.finalize(model, verbose=0)
    assert not chains(plain)
    np.testing.assert_array_equal(
        plain.get_layer("scores").kernel.numpy(), np.asarray(model.get_layer("scores").kernel)
    )


def test_pruning_arrives_with_masks_and_the_schedule_where_it_was():
    model, facts = _migrated("pruned")
    assert _links(model) == {"conv.kernel": ["MagnitudeMask"], "scores.kernel": ["MagnitudeMask"]}
    for layer in ("conv", "scores"):
        link = chain(model.get_layer(layer), "kernel").links[0]
        np.testing.assert_array_equal(link.alive, facts[f"mask_{layer}"] != 0)
        np.testing.assert_array_equal(
            np.asarray(model.get_layer(layer).kernel), facts[f"kernel_{layer}"] * facts[f"mask_{layer}"]
        )
        assert link.sparsity == schedules.Cubic(0.25, 0.75, steps=14, begin=2)
        assert link.frequency == 2
        # Twelve steps of TFMOT's training are behind it.
        assert step(model) - link.start == 12
    sparsity = float(np.mean(np.asarray(model.get_layer("scores").kernel) == 0))
    assert 0.25 < sparsity < 0.75
    report = str(tfcompress.summary(model))
    assert "mask with" in report
    assert "at step 12" in report


def test_pruning_goes_on_to_its_end():
    model, facts = _migrated("pruned")
    data = np.tile(facts["x"], (2, 1, 1, 1))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data, np.arange(16) % 3, batch_size=4, verbose=0, callbacks=[tfcompress.Compression()])
    for layer in ("conv", "scores"):
        kernel = np.asarray(model.get_layer(layer).kernel)
        assert np.count_nonzero(kernel == 0) == round(0.75 * kernel.size)
        assert not kernel[facts[f"mask_{layer}"] == 0].any()


def test_what_was_not_wrapped_stays_plain():
    model, facts = _migrated("pruned_partly")
    assert list(_links(model)) == ["hidden.kernel"]
    np.testing.assert_array_equal(chain(model.get_layer("hidden"), "kernel").links[0].alive, facts["mask_hidden"] != 0)
    rows = {row.layer: row.detail for row in tfcompress.summary(model).rows}
    assert rows["conv"] == "TFMOT had nothing attached"


def test_shared_values_arrive_with_their_assignment():
    model, facts = _migrated("clustered")
    assert _links(model) == {"conv.kernel": ["Codebook"], "scores.kernel": ["Codebook"]}
    for layer in ("conv", "scores"):
        kernel = np.asarray(model.get_layer(layer).kernel)
        np.testing.assert_array_equal(kernel, facts[f"kernel_{layer}"])
        assert set(np.unique(kernel)) <= set(facts[f"centroids_{layer}"])
        assert len(np.unique(kernel)) == len(np.unique(facts[f"kernel_{layer}"])) <= 4
    # The values go on learning, and stay shared.
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(facts["x"], np.arange(8) % 3, epochs=2, verbose=0, callbacks=[tfcompress.Compression()])
    trained = np.asarray(model.get_layer("scores").kernel)
    assert len(np.unique(trained)) <= 4
    assert not np.array_equal(trained, facts["kernel_scores"])


def test_quantization_arrives_with_scales_and_ranges():
    model, facts = _migrated("quantized")
    links = _links(model)
    assert links == {f"{name}.kernel": ["IntegerGrid"] for name in ("conv", "deep", "hidden", "scores")}
    assert not [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    # Layers without a batch normalization behind them have TFMOT's values to the bit; folded ones have its codes.
    with h5py.File(FIXTURES / "quantized.h5") as file:
        ends = {}
        file["model_weights"].visititems(
            lambda name, item: ends.update({name.rsplit(":", 1)[0]: item[()]}) if hasattr(item, "shape") else None
        )
    for layer in ("hidden", "scores"):
        kernel = np.asarray(model.get_layer(layer).kernel)
        np.testing.assert_allclose(kernel, facts[f"kernel_{layer}"], atol=1e-7)
        (high,) = [value for name, value in ends.items() if name.endswith(f"quant_{layer}/kernel_max")]
        unit = chain(model.get_layer(layer), "kernel").links[0].grid().unit
        np.testing.assert_allclose(unit.ravel(), high / 127, rtol=1e-6)
    for layer in ("conv", "deep"):
        unit = chain(model.get_layer(layer), "kernel").links[0].grid().unit
        codes = np.rint(np.asarray(model.get_layer(layer).kernel) / unit)
        (high,) = [
            value
            for name, value in ends.items()
            if name.endswith(f"quant_{layer}/{'depthwise_' if layer == 'deep' else ''}kernel_max")
        ]
        wanted = np.rint(facts[f"kernel_{layer}"] / (high / 127))
        np.testing.assert_array_equal(np.abs(codes), np.abs(wanted))
    ranges = {layer.name: layer for layer in model.layers if isinstance(layer, OutputRange)}
    assert {"image_range", "relu_range", "relu6_range", "sum_range", "hidden_range", "scores_range"} <= set(ranges)
    (low,) = [v for n, v in ends.items() if n.endswith("quantize_layer_min")]
    (high,) = [v for n, v in ends.items() if n.endswith("quantize_layer_max")]
    learned = ranges["image_range"].range
    assert learned.scale == pytest.approx((max(high, 0) - min(low, 0)) / 255, rel=1e-6)


def test_what_was_rounded_before_its_normalization_stays_apart_from_it(tmp_path):
    """A wrapper whose layer was rounded by itself, as a user's own QuantizeConfig makes it."""
    path = tmp_path / "q.h5"
    shutil.copy(FIXTURES / "quantized.h5", path)
    with h5py.File(path, "r+") as file:
        group = file["model_weights/quant_conv"]
        names = [*group.attrs["weight_names"], *(f"quant_conv/post_activation_{end}:0" for end in ("min", "max"))]
        group.attrs["weight_names"] = [str(name) for name in names]
        group["quant_conv/post_activation_min:0"], group["quant_conv/post_activation_max:0"] = -2.0, 1.0
    model = migrate.from_tfmot(path, verbose=0)
    assert [layer.name for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)] == ["norm"]
    learned = model.get_layer("conv_range").range
    assert learned.scale == pytest.approx(3 / 255)
    values = keras.Model(model.inputs[0], model.get_layer("conv_range").output)(_facts("quantized")["x"])
    codes = np.asarray(values) / learned.scale
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


def test_our_own_training_completes_what_tfmot_left_out():
    model, facts = _migrated("quantized")
    before = {layer.name: layer.range for layer in model.layers if isinstance(layer, OutputRange)}
    full = tfcompress.apply(model, quantization.QAT(), data=facts["x"], verbose=0)
    after = {layer.name: layer.range for layer in full.layers if isinstance(layer, OutputRange)}
    assert set(before) < set(after)
    assert all(after[name] == value for name, value in before.items())
    np.testing.assert_allclose(full.predict(facts["x"], verbose=0), facts["y"], atol=0.02)


def test_collaborative_schemes_keep_zeros_and_shared_values():
    model, facts = _migrated("quantized_pruned")
    for layer in ("conv", "scores"):
        assert _links(model)[f"{layer}.kernel"] == ["Mask", "IntegerGrid"]
        kernel = np.asarray(model.get_layer(layer).kernel)
        np.testing.assert_allclose(kernel, facts[f"kernel_{layer}"], atol=1e-7)
        assert np.mean(kernel == 0) >= 0.5
    clustered, _ = _migrated("quantized_clustered")
    # A convolution shares values channel by channel there.
    for layer, axis, most in (("conv", -1, 4), ("scores", None, 4)):
        assert _links(clustered)[f"{layer}.kernel"] == ["Codebook", "IntegerGrid"]
        kernel = np.asarray(clustered.get_layer(layer).kernel)
        parts = [kernel] if axis is None else [kernel[..., i] for i in range(kernel.shape[-1])]
        assert all(len(np.unique(part)) <= most for part in parts)


def test_nested_models_stay_nested_and_shared():
    model, facts = _migrated("pruned_twins")
    assert sorted(_links(model)) == ["out.kernel", "tower/shared.kernel"]
    tower = model.get_layer("tower")
    assert np.mean(np.asarray(tower.get_layer("shared").kernel) == 0) == 0.5
    np.testing.assert_allclose(model.predict(_inputs(facts), verbose=0), facts["y"], atol=1e-5)


def _changed(tmp_path, name, change):
    """A fixture with another config."""
    path = tmp_path / f"{name}.h5"
    shutil.copy(FIXTURES / f"{name}.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        change(config)
        file.attrs["model_config"] = json.dumps(config)
    return path


def _entry(config, wrapper):
    return next(layer for layer in config["config"]["layers"] if layer["config"]["name"] == wrapper)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda c: _entry(c, "prune_low_magnitude_scores").update(class_name="MyOwnWrapper"),
            "'prune_low_magnitude_scores' is a MyOwnWrapper, unknown here.*custom_objects=.*strip that wrapper",
        ),
        (
            lambda c: _entry(c, "prune_low_magnitude_scores")["config"]["layer"].update(class_name="Maxout"),
            "'scores' is a Maxout",
        ),
        (
            lambda c: _entry(c, "prune_low_magnitude_scores")["config"]["layer"]["config"].update(
                activation="hard_sigmoid"
            ),
            "'scores' uses the activation 'hard_sigmoid', which is another function in Keras 3",
        ),
        (
            lambda c: _entry(c, "prune_low_magnitude_scores")["config"]["pruning_schedule"].update(
                class_name="MySchedule"
            ),
            "'scores' was pruned by the schedule 'MySchedule'",
        ),
        (
            lambda c: _entry(c, "prune_low_magnitude_scores")["config"]["layer"]["config"].update(units=4),
            "'scores'.*needs a weight 'kernel' of shape",
        ),
        (lambda c: c.update(class_name="TheirModel"), "is a TheirModel"),
    ],
)
def test_what_is_unknown_is_one_error_that_names_the_layer(tmp_path, change, match):
    path = _changed(tmp_path, "pruned", change)
    with pytest.raises(CompressionError, match=match):
        migrate.from_tfmot(path, verbose=0)


def test_other_powers_of_the_polynomial_become_steps(tmp_path):
    def change(config):
        _entry(config, "prune_low_magnitude_scores")["config"]["pruning_schedule"]["config"]["power"] = 2

    model = migrate.from_tfmot(_changed(tmp_path, "pruned", change), verbose=0)
    schedule = chain(model.get_layer("scores"), "kernel").links[0].sparsity
    for at in (0, 1, 2, 4, 10, 14, 16, 99):
        gone = min(max((at - at % 2 - 2) / 14, 0), 1)
        wanted = 0.0 if at < 2 else 0.75 + (0.25 - 0.75) * (1 - gone) ** 2
        assert schedule(at) == pytest.approx(wanted), at


def test_custom_layers_come_with_custom_objects(tmp_path):
    class Scores(keras.layers.Dense):
        pass

    def change(config):
        _entry(config, "prune_low_magnitude_scores")["config"]["layer"].update(class_name="Mine>Scores")

    path = _changed(tmp_path, "pruned", change)
    model = migrate.from_tfmot(path, custom_objects={"Scores": Scores}, verbose=0)
    np.testing.assert_allclose(model.predict(_facts("pruned")["x"], verbose=0), _facts("pruned")["y"], atol=1e-5)


def test_other_things_than_a_saved_model_are_refused(tmp_path):
    with pytest.raises(CompressionError, match="There is no file"):
        migrate.from_tfmot(tmp_path / "none.h5")
    (tmp_path / "model.keras").write_bytes(b"PK\x03\x04" + bytes(20))
    with pytest.raises(CompressionError, match=r"no HDF5 file.*model\.save\('model\.h5'"):
        migrate.from_tfmot(tmp_path / "model.keras")
    with pytest.raises(CompressionError, match="load the SavedModel"):
        migrate.from_tfmot(tmp_path)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("model_weights")
    with pytest.raises(CompressionError, match="weights without a model"):
        migrate.from_tfmot(tmp_path / "w.h5")
    with pytest.raises(CompressionError, match="Keras 3 model already"):
        migrate.from_tfmot(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    with pytest.raises(CompressionError, match="not int"):
        migrate.from_tfmot(3)


def test_a_migrated_model_becomes_an_int8_file(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("export needs the converter")
    from tfcompress import export

    model, facts = _migrated("quantized")
    report = export.tflite(model, tmp_path / "q.tflite", "int8", samples=facts["x"], verbose=0)
    assert report.verification.read_back["weights"] == 4
    assert report.ranges["trained"] >= 6
    assert report.verification.outputs[0].name == "scores"
    got = export.Runner(tmp_path / "q.tflite")(facts["x"])
    np.testing.assert_allclose(got, facts["y"], atol=0.02)


def test_ranges_behind_pooling_are_marked_and_exported_with_strict_false(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("export needs the converter")
    from tfcompress import export

    model, facts = _migrated("quantized_unet")
    marked = [row.layer for row in tfcompress.summary(model).rows if "strict=False" in row.detail]
    assert marked == ["near", "average"]
    options = {"samples": facts["x"], "calibration": facts["x"], "verbose": 0}
    with pytest.raises(CompressionError, match=r"'average'.*'mix'(.|\n)*strict=False"):
        export.tflite(model, tmp_path / "no.tflite", "int8", **options)
    report = export.tflite(model, tmp_path / "u.tflite", "int8", strict=False, **options)
    assert report.weights == {"trained": 6, "by extremes": 0}
    assert report.verification.max_steps <= 1.001


def test_shared_values_of_each_channel_and_masks_in_tables_and_cells():
    model, _ = _migrated("clustered_channels")
    kernel = np.asarray(model.get_layer("conv").kernel)
    assert all(len(np.unique(kernel[..., i])) <= 3 for i in range(4))
    assert len(np.unique(kernel)) > 3
    text, facts = _migrated("pruned_text")
    assert list(_links(text)) == ["table.embeddings", "scores.kernel"]
    assert np.mean(np.asarray(text.get_layer("table").embeddings) == 0) == 0.5
    np.testing.assert_allclose(text.predict(facts["x"], verbose=0), facts["y"], atol=1e-6)


@pytest.mark.slow
def test_the_real_tfmot_makes_the_fixtures_anew(tmp_path):
    """In an environment of its own; what it saves today is read as the committed files are."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("TensorFlow 2.19 has wheels up to Python 3.12, and the fixtures were made on 3.11")
    folder = ROOT / "build" / "tfmot"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = ("tensorflow-cpu==2.19.1", "tf_keras==2.19.0", "tensorflow-model-optimization==0.8.1", "numpy<2.2")
        subprocess.run(
            [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=1800
        )
        (folder / "done").touch()
    command = [folder / "bin" / "python", FIXTURES / "make.py", tmp_path]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KERAS")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in NAMES:
        model, facts = _migrated(name, tmp_path)
        _check_outputs(name, model, facts)
        assert _links(model) == _links(_migrated(name)[0])


@pytest.mark.slow
def test_a_model_in_memory_needs_no_file(tmp_path):
    """tf_keras, TFMOT and Keras 3 in one process, as somebody who migrates has them."""
    folder = ROOT / "build" / "tfmot"
    if not (folder / "done").exists():
        pytest.skip("the environment is made by the test before this one")
    code = f"""
import sys, os
sys.path.insert(0, {str(ROOT)!r})
sys.path.append({str(pathlib.Path(keras.__file__).parents[1])!r})
sys.path.insert(0, {str(FIXTURES)!r})
import make, numpy as np
x = np.random.default_rng(0).random((64, 6, 6, 2), dtype=np.float32)
model, facts = make.pruned(x)
from tfcompress import migrate
ours = migrate.from_tfmot(model, verbose=0)
print(float(np.abs(ours.predict(x, verbose=0) - model.predict(x, verbose=0)).max()), type(ours).__module__)
"""
    done = subprocess.run(
        [folder / "bin" / "python", "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    error, module = done.stdout.split()[-2:]
    assert float(error) < 1e-5
    assert module.startswith("keras.")
