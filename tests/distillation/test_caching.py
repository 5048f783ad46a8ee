"""Teacher outputs on disk: the same as on the fly, resumable, and refused for anything else."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import tfcompress
from tests.distillation.test_distillation import cross_entropy, data, distil, net, step_loss
from tfcompress import distillation
from tfcompress.distillation import Cache, Distillation, SoftTargets, caching
from tfcompress.errors import CompressionError

pytestmark = pytest.mark.jax


def shake(block, rng):
    """An augmentation: noise of its own for every input."""
    return block + rng.normal(0, 0.5, block.shape).astype("float32")


@pytest.mark.paper(1)
def test_cached_targets_are_those_computed_on_the_fly(tmp_path):
    x, y = data(37)
    teachers = [net("big", 32, softmax_end=True), net("other", 8, dropout=0.5, norm=True)]
    cache = distillation.cache(teachers, x, tmp_path / "cache", batch_size=8, from_logits=None)
    stored = cache.targets(x, y)
    assert stored["labels"] is y
    (outputs,) = stored["teacher"].values()
    assert outputs.shape == (37, 2, 3)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs[:, 1], teachers[1].predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.exp(outputs[:, 0]) / np.exp(outputs[:, 0]).sum(1, keepdims=True),
        teachers[0].predict(x, verbose=0),
        rtol=1e-4,
    )
    losses = []
    for source, targets in ((teachers, y), (cache, stored)):
        student = distil(net("small"), Distillation(source, [SoftTargets(3.0), distillation.HardLabels(0.2)]))
        student.compile("sgd", cross_entropy(), metrics=["accuracy"])
        history = student.fit(
            x, targets, batch_size=8, epochs=2, verbose=0, shuffle=False, validation_data=(x, y)
        ).history
        losses.append([*history["loss"], *history["soft_targets"], *history["val_loss"]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.paper(1)
def test_student_and_teacher_see_the_same_augmented_inputs(tmp_path):
    x, y = data(21)
    teacher = net("big", 32)
    cache = distillation.cache(teacher, x, tmp_path / "cache", batch_size=4, augment=shake, copies=2, seed=7)
    batches = cache.data(x, y, batch_size=5, seed=3)
    assert len(batches) == 5
    seen = []
    for _ in range(3):
        images = []
        for index in range(len(batches)):
            inputs, targets = batches[index]
            (outputs,) = targets["teacher"].values()
            np.testing.assert_allclose(outputs[:, 0], ops.convert_to_numpy(teacher(inputs)), rtol=1e-4, atol=1e-5)
            images.append((inputs, targets["labels"]))
        inputs, labels = (np.concatenate(parts) for parts in zip(*images, strict=True))
        assert sorted(labels) == sorted(y)
        seen.append(inputs[np.lexsort(inputs.T)])
        batches.on_epoch_end()
    assert not np.allclose(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])  # two copies, so the third epoch is the first again
    student = distil(net("small"), Distillation(cache, alpha=0.1))
    student.compile("adam", cross_entropy())
    assert student.fit(cache.data(x, y), epochs=2, verbose=0).history["soft_targets"][0] > 0
    with pytest.raises(CompressionError, match="outputs for augmented inputs"):
        cache.targets(x)


@pytest.mark.paper(1)
def test_the_key_includes_the_seed_of_the_augmentation(tmp_path):
    x, _ = data(12)
    teacher = net("big")
    first = distillation.cache(teacher, x, tmp_path / "a", augment=shake, seed=1)
    second = distillation.cache(teacher, x, tmp_path / "b", augment=shake, seed=2)
    assert not np.allclose(next(iter(first.outputs.values())), next(iter(second.outputs.values())))
    with pytest.raises(CompressionError, match="was made with another augmentation"):
        distillation.cache(teacher, x, tmp_path / "a", augment=shake, seed=2)
    with pytest.raises(CompressionError, match=r"give Cache\(path, augment=...\) the same function"):
        Cache(tmp_path / "a", augment=lambda block, rng: block).data(x)


def test_half_precision_is_close_and_small(tmp_path):
    x, _ = data(64)
    teacher = net("big", 32)
    full, half = (distillation.cache(teacher, x, tmp_path / d, dtype=d) for d in ("float32", "float16"))
    a, b = (next(iter(cache.outputs.values())) for cache in (full, half))
    assert b.dtype == np.float16
    np.testing.assert_allclose(a, b.astype("float32"), rtol=2e-3, atol=1e-3)
    huge = net("huge")
    huge.layers[-1].bias.assign([1e5, 0.0, 0.0])
    with pytest.raises(CompressionError, match=r"'huge' gives NaN or infinite values at output"):
        distillation.cache(huge, x, tmp_path / "huge", dtype="float16")


def test_an_interrupted_cache_goes_on_where_it_stopped(tmp_path, monkeypatch):
    x, _ = data(70)
    teacher = net("big")
    calls = []
    members = distillation.Teachers.members

    def counted(self, batch, stop_at=66):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(batch))
        return members(self, batch)

    monkeypatch.setattr(distillation.Teachers, "members", counted)
    with pytest.raises(KeyboardInterrupt):
        distillation.cache(teacher, x, tmp_path / "cache", batch_size=1)
    with pytest.raises(CompressionError, match=r"is not finished: 64 of 70 blocks"):
        Cache(tmp_path / "cache")
    monkeypatch.setattr(distillation.Teachers, "members", lambda self, batch: counted(self, batch, 1000))
    calls.clear()
    cache = distillation.cache(teacher, x, tmp_path / "cache", batch_size=1)
    assert len(calls) == 6
    np.testing.assert_allclose(
        cache.targets(x)["teacher"]["output"][:, 0], teacher.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    calls.clear()
    distillation.cache(teacher, x, tmp_path / "cache", batch_size=1)
    assert not calls


def test_other_data_and_other_teachers_are_refused(tmp_path):
    x, y = data(12)
    teacher = net("big")
    cache = distillation.cache(teacher, x, tmp_path / "cache")
    for other in (x[::-1], x * 255, x[:6]):
        with pytest.raises(CompressionError, match=r"was made with other data \(12 cases\)"):
            cache.targets(other, y)
    with pytest.raises(CompressionError, match="was made with other data"):
        distillation.cache(teacher, x + 1, tmp_path / "cache")
    teacher.layers[0].bias.assign(np.ones(16))
    with pytest.raises(CompressionError, match="another teacher"):
        distillation.cache(teacher, x, tmp_path / "cache")
    with pytest.raises(CompressionError, match="made with other data"):
        distil(net("small"), Distillation(cache), data=x + 1)


def test_a_teacher_that_gives_nan_names_the_input(tmp_path):
    x, _ = data(30)
    x[17, 2] = np.nan
    with pytest.raises(CompressionError, match=r"'big' gives NaN or infinite values .* the first of them number 17"):
        distillation.cache(net("big"), x, tmp_path / "cache", batch_size=8)


def test_outputs_that_do_not_fit_and_forgotten_targets(tmp_path):
    x, y = data(12)
    cache = distillation.cache(net("large", classes=5), x, tmp_path / "five")
    with pytest.raises(CompressionError, match=r"'small' gives 3 numbers a case .*'large' gives 5"):
        distil(net("small"), Distillation(cache))
    distillation.cache(net("big"), x, tmp_path / "three")
    student = distil(net("small"), Distillation(str(tmp_path / "three"), alpha=0.5))
    student.compile("sgd", cross_entropy())
    with pytest.raises(CompressionError, match=r"student.fit\(x, cache.targets\(x, y\)\)"):
        student.fit(x, y, verbose=0)


def test_arguments_and_broken_files(tmp_path):
    x, _ = data(12)
    teacher = net("big")
    with pytest.raises(CompressionError, match="'float32' or 'float16'"):
        distillation.cache(teacher, x, tmp_path / "c", dtype="int8")
    with pytest.raises(CompressionError, match="without `augment`"):
        distillation.cache(teacher, x, tmp_path / "c", copies=3)
    with pytest.raises(CompressionError, match="takes arrays of the same number of cases"):
        distillation.cache(teacher, iter([x]), tmp_path / "c")
    with pytest.raises(CompressionError, match="holds no teacher's cache"):
        Cache(tmp_path / "nothing")
    cache = distillation.cache(teacher, x, tmp_path / "c")
    (tmp_path / "c" / "output0.npy").write_bytes(b"short")
    with pytest.raises(CompressionError, match=r"Cannot open .*output0.npy"):
        Cache(tmp_path / "c")
    (tmp_path / "c" / caching.META).write_text(json.dumps({**cache.meta, "cases": 13}))
    np.save(tmp_path / "c" / "output0.npy", np.zeros((1, 12, 1, 3), "float32"))
    with pytest.raises(CompressionError, match="Delete the folder"):
        Cache(tmp_path / "c")


def test_sample_weights_and_no_labels(tmp_path):
    x, _ = data(16)
    cache = distillation.cache(net("big"), x, tmp_path / "c")
    targets = cache.targets(x)
    assert set(targets) == {"teacher"}
    student = distil(net("small"), Distillation(cache, alpha=0))
    student.compile("sgd")
    plain = step_loss(student, x, targets)
    again = distil(net("small"), Distillation(cache, alpha=0))
    again.compile("sgd")
    assert step_loss(again, x, targets, np.full(16, 2.0, "float32")) == pytest.approx(2 * plain, rel=1e-5)
    assert type(tfcompress.finalize(again, verbose=0)) is keras.Sequential
