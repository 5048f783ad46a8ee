"""Students of every kind, trained with every kind of data, by teachers that never change."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, rel_entr, softmax

import tfcompress
from tfcompress import distillation, factorization, pruning, quantization, schedules
from tfcompress.distillation import Distillation, HardLabels, Logits, SoftTargets, TeacherLoss
from tfcompress.errors import CompressionError

pytestmark = pytest.mark.jax
ON_TF = keras.backend.backend() == "tensorflow"


def net(name, units=16, classes=3, softmax_end=False, dropout=0.0, norm=False, seed=None):
    keras.utils.set_random_seed(sum(map(ord, name)) if seed is None else seed)
    layers = [keras.Input((6,)), keras.layers.Dense(units, activation="relu", name=f"{name}_hidden")]
    if norm:
        layers.append(keras.layers.BatchNormalization(name=f"{name}_norm"))
    if dropout:
        layers.append(keras.layers.Dropout(dropout, seed=3))
    layers.append(keras.layers.Dense(classes, activation="softmax" if softmax_end else None, name=f"{name}_head"))
    return keras.Sequential(layers, name=name)


def data(n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype("float32")
    return x, (x[:, :3].argmax(axis=1)).astype("int32")


def cross_entropy(from_logits=True):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def step_loss(model, *batch):
    """The loss of one training step."""
    model.reset_metrics()
    return float(model.train_on_batch(*batch, return_dict=True)["loss"])


def weights(model):
    return [ops.convert_to_numpy(v.value) for v in model.variables]


def distil(student, method, **kwargs):
    return tfcompress.apply(student, method, verbose=0, **kwargs)


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    """A subclassed model, whose graph nobody sees."""

    def __init__(self, units=8, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@pytest.mark.paper(1)
def test_alpha_1_is_plain_training_bit_for_bit():
    x, y = data()

    def trained(teach):
        student = net("small", dropout=0.3, norm=True, seed=5)
        if teach:
            student = distil(student, Distillation(net("big", 32), alpha=1.0))
        student.compile(keras.optimizers.Adam(0.01), cross_entropy())
        keras.utils.set_random_seed(11)
        history = student.fit(x, y, epochs=3, batch_size=8, verbose=0, shuffle=False)
        return weights(student)[:-1], history.history["loss"]  # the last variable is the seed of dropout

    plain, losses = trained(False)
    taught, taught_losses = trained(True)
    assert losses == taught_losses
    for a, b in zip(plain, taught, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.paper(1)
def test_nothing_of_the_teacher_changes():
    x, y = data()
    teacher = net("big", 32, dropout=0.5, norm=True)
    teacher.compile("sgd", cross_entropy())
    teacher.fit(x, y, verbose=0)  # batch-norm statistics that are not the initial ones
    before = weights(teacher)
    student = distil(net("small"), Distillation(teacher, temperature=2.0, alpha=0.5))
    student.compile("adam", cross_entropy())
    first = student.fit(x, y, epochs=3, verbose=0).history
    for a, b in zip(before, weights(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    mine = {id(v) for v in [*student.variables, *student.optimizer.variables]}
    assert not mine & {id(v) for v in teacher.variables}
    assert all(layer.trainable for layer in teacher.layers)
    assert first["soft_targets"][-1] < first["soft_targets"][0]


@pytest.mark.paper(1)
def test_loss_is_the_formula_with_regularizers_and_sample_weights():
    x, y = data(16)
    sample_weight = np.random.default_rng(3).uniform(0, 2, 16).astype("float32")
    teacher, plain = net("big", 32), net("small", seed=2)
    plain.layers[0].kernel_regularizer = keras.regularizers.L2(0.1)
    plain.layers[0].kernel.regularizer = plain.layers[0].kernel_regularizer
    student = distil(plain, Distillation(teacher, temperature=5.0, alpha=0.3))
    student.compile("sgd", cross_entropy())
    loss = float(
        ops.convert_to_numpy(
            student.compute_loss(x, y, student(x), sample_weight=ops.convert_to_tensor(sample_weight), training=True)
        )
    )
    z, v = (model.predict(x, verbose=0).astype("float64") for model in (plain, teacher))
    soft = 25 * rel_entr(softmax(v / 5, -1), softmax(z / 5, -1)).sum(1)
    hard = -log_softmax(z, -1)[np.arange(16), y]
    regularizer = 0.1 * (weights(plain)[0].astype("float64") ** 2).sum()
    expected = (sample_weight * (0.7 * soft + 0.3 * hard)).mean() + regularizer
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.paper(1)
def test_a_student_fits_its_teacher_without_labels():
    x, _ = data(200)
    teacher = net("big", 32)
    student = distil(net("small", 32, seed=9), Distillation(teacher, temperature=3.0, alpha=0))
    student.compile(keras.optimizers.Adam(0.02))
    student.fit(x, epochs=40, batch_size=50, verbose=0)
    agree = np.mean(student.predict(x, verbose=0).argmax(1) == teacher.predict(x, verbose=0).argmax(1))
    assert agree > 0.93


@pytest.mark.parametrize("kind", ["arrays", "unlabelled arrays", "generator", "pydataset", "tf.data"])
def test_data_sources(kind):
    x, y = data(32)
    teacher = net("big")
    labelled = kind != "unlabelled arrays"
    student = distil(net("small"), Distillation(teacher, alpha=0.1 if labelled else 0.0))
    student.compile("adam", cross_entropy() if labelled else None)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]

    if kind == "arrays":
        history = student.fit(x, y, batch_size=8, verbose=0)
    elif kind == "unlabelled arrays":
        history = student.fit(x, batch_size=8, verbose=0)
    elif kind == "generator":
        history = student.fit(((x[:8], y[:8]) for _ in range(4)), steps_per_epoch=4, verbose=0, shuffle=False)
    elif kind == "pydataset":
        history = student.fit(Batches(), verbose=0)
    else:
        tf = pytest.importorskip("tensorflow")
        history = student.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"][0])
    assert history.history["soft_targets"][0] > 0
    assert int(ops.convert_to_numpy(student.optimizer.iterations.value)) == 4


def test_a_compiled_metric_and_validation_see_only_labels():
    x, y = data(32)
    student = distil(net("small"), Distillation(net("big"), alpha=0.2))
    student.compile("adam", cross_entropy(), metrics=["accuracy"])
    history = student.fit(x, y, verbose=0, epochs=2, validation_data=(x, y)).history
    assert set(history) == {"loss", "accuracy", "soft_targets", "hard_labels", "val_loss", "val_accuracy"}
    plain = tfcompress.finalize(student, verbose=0)
    plain.compile("adam", cross_entropy(), metrics=["accuracy"])
    assert plain.evaluate(x, y, verbose=0) == pytest.approx(
        [history["val_loss"][-1], history["val_accuracy"][-1]], rel=1e-5
    )


def test_unlabelled_training_with_metrics_for_labelled_validation():
    x, y = data(32)
    student = distil(net("small"), Distillation(net("big"), alpha=0))
    student.compile("adam", cross_entropy(), metrics=["accuracy"])
    history = student.fit(x, verbose=0, validation_data=(x, y)).history
    assert {"loss", "soft_targets", "val_accuracy", "val_loss"} <= set(history)


def test_probabilities_and_logits_teach_the_same():
    x, _ = data(16)
    student = net("small")
    teachers = {}
    for end in (True, False):
        teachers[end] = net("big", softmax_end=end, seed=4)
    losses = {}
    for end, teacher in teachers.items():
        taught = distil(student, Distillation(teacher, temperature=4.0, alpha=0))
        taught.compile("sgd")
        losses[end] = float(ops.convert_to_numpy(taught.compute_loss(x, None, taught(x), training=True)))
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_a_student_that_ends_in_softmax():
    x, y = data(64)
    teacher = net("big", 32)
    student = distil(net("small", 32, softmax_end=True), Distillation(teacher, temperature=4.0, alpha=0.1))
    student.compile(keras.optimizers.Adam(0.01), cross_entropy(from_logits=False))
    history = student.fit(x, y, epochs=20, verbose=0).history["soft_targets"]
    assert history[-1] < 0.5 * history[0]
    logits = distil(net("small", softmax_end=True), Distillation(teacher, losses=[Logits()]))
    logits.compile("sgd")
    with pytest.raises(CompressionError, match="the student ends in a softmax"):
        logits.fit(x, verbose=0)


def test_subclassed_students_ask_the_compiled_loss():
    x, y = data(32)
    student = Own()
    student(x[:1])
    taught = distil(student, Distillation(net("big"), alpha=0.5))
    taught.compile("adam", cross_entropy())
    taught.fit(x, y, verbose=0)
    plain = tfcompress.finalize(taught, verbose=0)
    assert type(plain) is Own
    np.testing.assert_array_equal(plain.predict(x, verbose=0), taught.predict(x, verbose=0))
    unclear = distil(student, Distillation(net("big"), alpha=0))
    unclear.compile("adam")
    with pytest.raises(CompressionError, match="Pass student_from_logits"):
        unclear.fit(x, verbose=0)


@pytest.mark.parametrize("order", ["together", "pruning first", "teacher first"])
@pytest.mark.parametrize("subclassed", [False, True])
def test_with_pruning_in_the_same_run(order, subclassed):
    x, y = data(32)
    student = Own() if subclassed else net("small")
    student(x[:1])
    pruned, taught = pruning.Magnitude(sparsity=0.5), Distillation(net("big"), alpha=0.5)
    if order == "together":
        small = distil(student, [pruned, taught])
    else:
        small = student
        for method in [pruned, taught] if order == "pruning first" else [taught, pruned]:
            small = distil(small, method)
    assert distillation.is_distilled(small)
    small.compile("adam", cross_entropy())
    history = small.fit(x, y, epochs=2, verbose=0, callbacks=[tfcompress.Compression()]).history
    assert history["soft_targets"][0] > 0
    assert history["sparsity"][-1] == pytest.approx(0.5, abs=0.02)
    plain = tfcompress.finalize(small, verbose=0)
    assert type(plain) is type(student)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), small.predict(x, verbose=0))
    kernel = (plain.hidden if subclassed else plain.layers[0]).kernel
    assert np.mean(ops.convert_to_numpy(kernel) == 0) == 0.5
    assert not tfcompress.method.is_attached(plain)


@pytest.mark.parametrize("method", ["qat", "svd"])
@pytest.mark.parametrize("order", ["method first", "teacher first"])
def test_with_quantization_and_surgery(method, order):
    """Outputs that are rounded in training, and a method that makes a new model of the student."""
    x, y = data(32)
    other = quantization.QAT() if method == "qat" else factorization.SVD(rank=2)
    small = net("small", 40)
    taught = Distillation(net("big"), alpha=0.5)
    for one in [other, taught] if order == "method first" else [taught, other]:
        small = distil(small, one, data=x)
    small.compile("adam", cross_entropy())
    history = small.fit(x, y, epochs=3, verbose=0).history
    assert history["soft_targets"][-1] < history["soft_targets"][0]
    plain = tfcompress.finalize(small, verbose=0)
    assert type(plain) is keras.Sequential
    assert not tfcompress.method.is_attached(plain)


def test_a_rounded_softmax_is_refused():
    x, _ = data(32)
    small = distil(net("small", softmax_end=True), quantization.QAT(), data=x)
    with pytest.raises(CompressionError, match="whose output is rounded to a few bits"):
        distil(small, Distillation(net("big")))


def test_in_place_and_back():
    x, y = data(16)
    student = net("small")
    classes = [type(layer) for layer in student.layers]
    same = distil(student, Distillation(net("big")), in_place=True)
    assert same is student
    assert student.name == "small"
    assert type(student).__name__ == "Sequential"
    student.compile("adam", cross_entropy())
    student.fit(x, y, verbose=0)
    back = tfcompress.finalize(student, in_place=True, verbose=0)
    assert back is student
    assert type(student) is keras.Sequential
    assert [type(layer) for layer in student.layers] == classes
    assert not [key for key in student.__dict__ if key.startswith("_tfcompress_distillation")]
    student.fit(x, y, verbose=0)  # trains as it did before


def test_saved_student_is_plain_in_a_fresh_process(tmp_path):
    x, y = data(16)
    teacher = net("big", 64)
    student = distil(net("small", 4), Distillation(teacher))
    student.compile("adam", cross_entropy())
    student.fit(x, y, verbose=0)
    path = tmp_path / "student.keras"
    student.save(path)
    plain_path = tmp_path / "plain.keras"
    net("small", 4).save(plain_path)
    assert path.stat().st_size < plain_path.stat().st_size + 20_000  # optimizer slots, but no teacher
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; m = keras.saving.load_model(sys.argv[1]); assert type(m) is keras.Sequential, type(m);"
        "assert 'tfcompress' not in sys.modules; np.save(sys.argv[3], m.predict(np.load(sys.argv[2]), verbose=0))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        check=True,
        timeout=300,
    )
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), student.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    again = distil(keras.saving.load_model(path), Distillation(teacher, start=1))
    again.fit(x, y, verbose=0)


def test_saving_a_registered_subclass_loads_that_class(tmp_path):
    x, y = data(16)
    student = Own()
    student(x[:1])
    taught = distil(student, Distillation(net("big"), student_from_logits=True))
    taught.compile("adam", cross_entropy())
    taught.fit(x, y, verbose=0)
    taught.save(tmp_path / "own.keras")
    loaded = keras.saving.load_model(tmp_path / "own.keras")
    assert type(loaded) is Own
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), taught.predict(x, verbose=0))


def test_several_outputs():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="relu")(inputs)
    student = keras.Model(inputs, {"a": keras.layers.Dense(3)(hidden), "b": keras.layers.Dense(2)(hidden)}, name="two")
    teacher = keras.Model(
        inputs, [keras.layers.Dense(3, name="ta")(inputs), keras.layers.Dense(2, name="tb")(inputs)], name="big"
    )
    x, y = data(16)
    losses = [
        SoftTargets(2.0, output="a", teacher_output="ta"),
        SoftTargets(3.0, 0.5, output="b", teacher_output="tb"),
        HardLabels(0.1),
    ]
    taught = distil(student, Distillation(teacher, losses))
    taught.compile("sgd", {"a": cross_entropy(), "b": cross_entropy()})
    history = taught.fit(x, {"a": y, "b": y % 2}, verbose=0).history
    assert {"soft_targets_0", "soft_targets_1", "hard_labels"} <= set(history)
    z, v = student.predict(x, verbose=0), teacher.predict(x, verbose=0)

    def kl(v, z, t):
        return t * t * rel_entr(softmax(v / t, -1), softmax(z / t, -1)).sum(1).mean()

    assert history["soft_targets_0"][0] == pytest.approx(kl(v[0], z["a"], 2.0), rel=1e-4)
    assert history["soft_targets_1"][0] == pytest.approx(kl(v[1], z["b"], 3.0), rel=1e-4)
    with pytest.raises(CompressionError, match="has 2 outputs, 'a', 'b': say which"):
        distil(student, Distillation(teacher))
    with pytest.raises(CompressionError, match="Teacher 'big' has no output 'tx'"):
        distil(student, Distillation(teacher, [SoftTargets(2.0, output="a", teacher_output="tx")]))


def test_frames_with_a_mask_count_alike_whatever_the_padding():
    """[6] as a user of the same engine: a class for each frame, and padding that weighs nothing."""

    def tagger(name, seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((None, 2)), keras.layers.Masking(0.0), keras.layers.TimeDistributed(keras.layers.Dense(4))], name=name)  # fmt: skip

    teacher, student = tagger("rnn", 1), tagger("window", 2)
    taught = distil(
        student, Distillation(teacher, temperature=1.0, alpha=0, teacher_from_logits=True, student_from_logits=True)
    )
    taught.compile("sgd")
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype("float32")
    padded = np.concatenate([x, np.zeros((3, 7, 2), "float32")], axis=1)
    losses = [
        float(ops.convert_to_numpy(taught.compute_loss(part, None, taught(part), training=True)))
        for part in (x, padded)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    x, y = data(32)
    keras.config.set_dtype_policy(policy)
    teacher, student = net("big", 32), net("small")
    taught = distil(student, Distillation(teacher, temperature=20.0, alpha=0.1))
    taught.compile("adam", cross_entropy())
    history = taught.fit(x, y, epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    z, v = (model.predict(x, verbose=0).astype("float64") for model in (student, teacher))
    loss = taught_loss = 400 * rel_entr(softmax(v / 20, -1), softmax(z / 20, -1)).sum(1).mean()
    fresh = distil(student, Distillation(teacher, temperature=20.0, alpha=0))
    fresh.compile("sgd")
    taught_loss = float(ops.convert_to_numpy(fresh.compute_loss(x, None, fresh(x), training=True)))
    assert taught_loss == pytest.approx(loss, rel=2e-2)


@pytest.mark.parametrize(
    "how", [{"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}, {"steps_per_execution": 2}]
)
def test_ways_of_running(how):
    x, y = data(32)
    student = distil(net("small"), Distillation([net("big", seed=1), net("other", seed=2)], alpha=0.1))
    student.compile("adam", cross_entropy(), **how)
    history = student.fit(x, y, batch_size=8, epochs=4, verbose=0).history
    assert history["soft_targets"][-1] < history["soft_targets"][0]


def test_a_weight_follows_its_schedule_by_optimizer_steps():
    """[2] anneals the weight of its soft targets."""
    x, _ = data(32)

    class One(TeacherLoss):
        """Its value is 1, so that the total shows the weight."""

        def values(self, student, teachers):
            return 1.0 + 0.0 * student[..., 0]

    ramp = schedules.Linear(4.0, 1.0, steps=6, begin=2)
    student = distil(net("small"), Distillation(net("big"), [One(ramp)]))
    student.compile("sgd")
    seen = []
    for _ in range(10):
        seen.append(step_loss(student, x))
    np.testing.assert_allclose(seen, [ramp(step) for step in range(10)], rtol=1e-6)
    # Accumulated gradients: a step is an update of the optimizer, not a batch.
    student = distil(net("small"), Distillation(net("big"), [One(ramp)]))
    student.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    seen = [step_loss(student, x) for _ in range(10)]
    np.testing.assert_allclose(seen, [ramp(step // 2) for step in range(10)], rtol=1e-6)
    # A student that is attached again goes on where it was told to.
    student = distil(net("small"), Distillation(net("big"), [One(ramp)], start=5))
    student.compile("sgd")
    assert step_loss(student, x) == pytest.approx(ramp(5))


def test_a_copy_keeps_teacher_and_step():
    import copy

    x, _ = data(32)
    student = distil(net("small"), Distillation(net("big"), [SoftTargets(2.0, schedules.Linear(1.0, 0.0, steps=4))]))
    student.compile("sgd")
    for _ in range(3):
        student.train_on_batch(x)
    twin = copy.deepcopy(student)
    assert distillation.is_distilled(twin)
    assert step_loss(twin, x) == pytest.approx(step_loss(student, x), rel=1e-6)


def test_own_compute_loss_is_the_hard_term():
    class Odd(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3)

        def call(self, x):
            return self.head(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):  # an old signature
            return ops.convert_to_tensor(2.0) + 0.0 * ops.mean(y_pred)

    x, y = data(8)
    student = Odd()
    student(x)
    taught = distil(student, Distillation(net("big"), [HardLabels(0.5), SoftTargets(1.0, 0.0)]), in_place=True)
    taught.compile("sgd")
    assert step_loss(taught, x, y) == pytest.approx(1.0)
    assert float(taught.test_on_batch(x, y, return_dict=True)["loss"]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "case", ["classes", "temperature", "alpha", "losses", "kind", "unbuilt", "nan weights", "shared"]
)
def test_bad_input_is_refused_before_training(case):
    student, teacher = net("small"), net("big")
    if case == "classes":
        with pytest.raises(CompressionError, match=r"'small' gives 3 numbers a case .* teacher 'large' gives 100"):
            distil(student, Distillation(net("large", classes=100)))
    elif case == "temperature":
        with pytest.raises(CompressionError, match="temperature must be above 0; received 0"):
            Distillation(teacher, temperature=0)
    elif case == "alpha":
        with pytest.raises(CompressionError, match=r"between 0 and 1; received 1\.5"):
            Distillation(teacher, alpha=1.5)
    elif case == "losses":
        with pytest.raises(CompressionError, match=r"`losses` holds 'mse'"):
            Distillation(teacher, losses=["mse"])
    elif case == "kind":
        with pytest.raises(CompressionError, match="A teacher is a Keras 3 model"):
            distil(student, Distillation(lambda x: x))
    elif case == "unbuilt":
        with pytest.raises(CompressionError, match="is not built"):
            distil(student, Distillation(keras.Sequential([keras.layers.Dense(3)])))
    elif case == "nan weights":
        kernel = ops.convert_to_numpy(teacher.layers[0].kernel.value).copy()
        kernel[2, 2] = np.nan
        teacher.layers[0].kernel.assign(kernel)
        with pytest.raises(CompressionError, match=r"holds NaN or infinite values in '.*big_hidden.*kernel"):
            distil(student, Distillation(teacher))
    else:
        with pytest.raises(CompressionError, match="share 4 weights"):
            distil(student, Distillation(student), in_place=True)


def test_two_teachers_one_after_the_other_are_refused():
    student = distil(net("small"), Distillation(net("big")))
    with pytest.raises(CompressionError, match="has a teacher already"):
        distil(student, Distillation(net("other")))


def test_mismatch_of_a_subclassed_student_shows_at_the_first_batch():
    x, y = data(8)
    student = Own()
    student(x)
    taught = distil(student, Distillation(net("large", classes=7), student_from_logits=True))
    taught.compile("sgd", cross_entropy())
    with pytest.raises(CompressionError, match=r"gives 3 numbers a case .* gives 7"):
        taught.fit(x, y, verbose=0)


def test_a_teacher_that_gives_nan():
    x, y = data(32)
    x[5, 0] = -1.0
    inputs = keras.Input((6,))
    teacher = keras.Model(
        inputs, keras.layers.Dense(3)(ops.log(ops.abs(inputs[:, :1]) + inputs[:, :1]) * 0 + inputs), name="odd"
    )
    assert np.isnan(teacher.predict(x, verbose=0)).any()
    with pytest.raises(CompressionError, match=r"'odd' gives NaN or infinite values at output .* of 32 inputs"):
        distil(net("small"), Distillation(teacher), data=x)
    student = distil(net("small"), Distillation(teacher))
    student.compile("sgd", cross_entropy())
    with pytest.raises(CompressionError, match="'odd' gave NaN or infinite values for"):
        student.fit(x, y, batch_size=32, verbose=0)


def test_probabilities_that_are_none():
    x, _ = data(8)
    with pytest.raises(CompressionError, match="Pass from_logits=True"):
        distil(net("small"), Distillation(net("big"), teacher_from_logits=False), data=x)


def test_hard_term_without_labels_or_loss():
    x, y = data(8)
    student = distil(net("small"), Distillation(net("big"), alpha=0.5))
    student.compile("sgd", cross_entropy())
    with pytest.raises(CompressionError, match="needs labels in the data"):
        student.fit(x, verbose=0)
    student = distil(net("small"), Distillation(net("big"), alpha=0.5))
    student.compile("sgd")
    with pytest.raises(CompressionError, match=r"needs a loss in compile\(\)"):
        student.fit(x, y, verbose=0)


def test_a_sigmoid_is_refused():
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="sigmoid")])
    with pytest.raises(CompressionError, match="ends in a sigmoid"):
        distil(student, Distillation(net("big")))


def test_a_teacher_from_a_file(tmp_path):
    x, _ = data(16)
    teacher = net("big")
    teacher.save(tmp_path / "teacher.keras")
    method = Distillation(str(tmp_path / "teacher.keras"), temperature=2.0, alpha=0)
    method = Distillation.from_config(method.get_config())
    losses = []
    for one in (method, Distillation(teacher, temperature=2.0, alpha=0)):
        student = distil(net("small"), one)
        student.compile("sgd")
        losses.append(step_loss(student, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with pytest.raises(CompressionError, match="only if its teacher is a path"):
        Distillation(teacher).get_config()


MIRRORED = """
import contextlib
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np, tfcompress
from tfcompress.distillation import Distillation
x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
seen = []
for scope in (contextlib.nullcontext(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()):
    keras.utils.set_random_seed(0)
    with scope:
        teacher = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
        student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), keras.layers.Dense(2, kernel_regularizer="l2")])
        student = tfcompress.apply(student, Distillation(teacher, alpha=0.3), in_place=True, verbose=0)
        student.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = student.fit(x, (x[:, 0] > 0).astype("int32"), batch_size=16, epochs=2, verbose=0, shuffle=False).history
    seen.append([*history["loss"], *history["soft_targets"], *history["hard_labels"]])
np.testing.assert_allclose(*seen, rtol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.skipif(not ON_TF, reason="tf.distribute exists on TensorFlow only")
def test_two_replicas_train_as_one():
    subprocess.run([sys.executable, "-c", MIRRORED], check=True, timeout=300)
