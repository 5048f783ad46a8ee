"""Recipes: steps and their training, YAML, resumed runs, allowed drops, and what is refused."""

import json
import os
import signal

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import data, distillation, factorization, pruning, quantization, schedules
from tfcompress.errors import CompressionError
from tfcompress.recipe import Recipe, Step
from tfcompress.recipes import file, registry, training
from tfcompress.recipes.registry import Length

pytestmark = pytest.mark.jax

SAMPLES, BATCH = 40, 8  # five batches an epoch


def samples(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(SAMPLES, 6)).astype("float32")
    return x, (x @ np.random.default_rng(9).normal(size=(6, 3))).argmax(-1)


def net(rate=0.02, dropout=0.0, **compiled):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((6,), name="input"), keras.layers.Dense(8, activation="relu", name="a")]
    layers += [keras.layers.Dropout(dropout, name="drop")] if dropout else []
    model = keras.Sequential([*layers, keras.layers.Dense(3, activation="softmax", name="b")], name="net")
    settings = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], "jit_compile": False, **compiled}
    # Eager steps are quicker than tracing for a handful of batches.
    model.compile(keras.optimizers.Adam(rate), run_eagerly=keras.backend.backend() != "jax", **settings)
    return model


def zeros(model) -> int:
    return sum(int((np.asarray(layer.kernel) == 0).sum()) for layer in model.layers if hasattr(layer, "kernel"))


def run(recipe, model=None, **more):
    x, y = samples()
    return recipe.run(model or net(), **{"x": x, "y": y, "batch_size": BATCH, "verbose": 0, **more})


# Steps


def test_every_step_is_attached_trained_and_measured():
    model = net()
    before = [np.array(w) for w in model.get_weights()]
    recipe = Recipe([Step(pruning.Magnitude(sparsity=0.5), epochs=2), Step(pruning.SharedWeights(bits=2), epochs=1)])
    outcome = run(recipe, model, validation_data=samples(1))
    assert [step.name for step in outcome.steps] == ["pruning.Magnitude", "pruning.SharedWeights"]
    assert [(step.epochs, step.done) for step in outcome.steps] == [(2, 2), (1, 2)]
    assert tfcompress.step(outcome.model) == 15  # three epochs of five batches
    assert zeros(outcome.plain) == 36  # half of 48 and of 24 weights
    assert all(len(np.unique(layer.kernel)) <= 5 for layer in outcome.plain.layers)
    x, y = samples(1)
    right = float(np.mean(np.asarray(outcome.plain(x)).argmax(-1) == y))
    assert outcome.accuracy == pytest.approx(right)
    assert outcome.steps[1].figures["accuracy"] == outcome.accuracy
    assert outcome.metric == "accuracy"
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_own_training_and_own_measure():
    seen = []

    def train(model, epochs, callbacks):
        seen.append((epochs, [type(one).__name__ for one in callbacks]))
        x, y = samples()
        model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=callbacks, verbose=0)

    recipe = Recipe([Step(pruning.Magnitude(sparsity=0.25), epochs=3)])
    outcome = recipe.run(net(), train, lambda model: zeros(model) / 72, verbose=0)
    assert seen == [(3, ["Compression", "Watch"])]
    assert (outcome.base, outcome.accuracy) == (0.0, 0.25)


def test_rates_are_relative_to_the_model_as_it_was_compiled():
    rates = []

    def train(model, epochs, callbacks):
        rates.append((type(model.optimizer).__name__, round(float(np.asarray(model.optimizer.learning_rate)), 9)))

    grow = [Step(pruning.Magnitude(sparsity=s), epochs=1, learning_rate="x0.5") for s in (0.2, 0.4)]
    grow += [Step(pruning.Magnitude(sparsity=0.6), epochs=1, optimizer={"sgd": {"momentum": 0.9}}, learning_rate=0.25)]
    grow += [Step(pruning.Magnitude(sparsity=0.7), epochs=1)]
    Recipe(grow).run(net(rate=0.02), train, lambda model: 1.0, verbose=0)
    assert rates == [("Adam", 0.01), ("Adam", 0.01), ("SGD", 0.25), ("Adam", 0.02)]


def test_schedules_are_as_long_as_the_step():
    made = []

    def method(updates):
        made.append(updates)
        return pruning.Magnitude(schedules.Linear(0, 0.5, steps=updates))

    run(Recipe([Step(method, epochs=2)]))
    assert made == [10]
    written = {
        "method": "magnitude",
        "arguments": {"sparsity": {"cubic": {"initial": 0, "final": 0.5, "steps": "auto"}}},
    }
    outcome = run(Recipe.from_dict({"steps": [{**written, "epochs": 3}]}))
    (_, chain), *_ = tfcompress.parametrization.chains(outcome.model)
    assert chain.links[0].sparsity == schedules.Cubic(0, 0.5, steps=15)
    assert zeros(outcome.plain) == 36


def test_accumulated_gradients_make_fewer_updates():
    model = net()
    model.compile(
        keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    made = []

    def method(updates):
        made.append(updates)
        return pruning.Magnitude(0.5)

    run(Recipe([Step(method, epochs=4)]), model)
    assert made == [10]  # twenty batches


def test_without_training_schedules_stand_at_their_end():
    ramp = schedules.Cubic(0.0, 0.75, steps=4000)
    for method in (
        pruning.Magnitude(ramp),
        pruning.Magnitude({"a": ramp, "b": 0.75}),
        pruning.Magnitude(ramp, scope="global"),
    ):
        outcome = run(Recipe([Step(method, epochs=50)]), training=False)
        assert outcome.steps[0].epochs == 0
        assert zeros(outcome.plain) == 54


def test_seed_decides_the_result():
    results = [
        run(Recipe([Step(pruning.Magnitude(0.5), epochs=1)]), net(dropout=0.2), seed=seed).plain.get_weights()
        for seed in (1, 1, 2)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not np.array_equal(results[0][0], results[2][0])


# The allowed drop


def scripted(*shares):
    """A measure that gives these values one after the other."""
    left = list(shares)
    return lambda model: left.pop(0)


def test_the_last_step_within_the_allowed_drop_is_the_result(tmp_path):
    recipe = Recipe([Step(pruning.Magnitude(s)) for s in (0.25, 0.5, 0.75)])
    given = {"max_drop": 1.0, "out": tmp_path}
    outcome = run(recipe, evaluate=scripted(0.90, 0.89, 0.8899), **given)
    assert outcome.kept == 1
    assert len(outcome.steps) == 2
    assert zeros(outcome.plain) == 18
    assert outcome.accuracy == 0.89
    assert outcome.stopped == (
        "Step 2 of 3 (pruning.Magnitude) loses 1.01 points, more than the 1 allowed: the model of step 1 is the result."
    )
    again = run(recipe, evaluate=scripted(), resume=True, **given)
    assert (again.kept, again.stopped) == (1, outcome.stopped)
    assert zeros(again.plain) == 18


def test_where_no_step_stays_within_it_the_model_is_as_it_was():
    outcome = run(Recipe([pruning.Magnitude(0.9)]), evaluate=scripted(0.9, 0.1), max_drop=2)
    assert outcome.kept == 0
    assert outcome.stopped.endswith("nothing was compressed.")
    assert zeros(outcome.plain) == 0


# Interrupted runs


class Interrupting(data.Arrays):
    """Samples during whose reading Ctrl-C is pressed."""

    def __init__(self, x, y, at: int):
        super().__init__(x, y)
        self.left = at

    def take(self, indices):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return super().take(indices)


def grown():
    ramp = schedules.Linear(0.0, 0.6, steps=10)
    first = Step(pruning.Magnitude(ramp), epochs=2)
    return Recipe([first, Step(pruning.SharedWeights(bits=3), epochs=2, learning_rate="x0.5")])


@pytest.fixture(scope="module")
def whole():
    return run(grown(), net(dropout=0.25), validation_data=samples(1))


@pytest.mark.parametrize("at", [8, 18])
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(tmp_path, at, whole):
    x, y = samples()
    with pytest.raises(KeyboardInterrupt):
        run(grown(), net(dropout=0.25), x=Interrupting(x, y, at), y=None, validation_data=samples(1), out=tmp_path)
    note = json.loads((tmp_path / "state" / "state.json").read_text())
    assert not note["finished"]
    assert (note["epoch"], note["batch"]) != (0, 0)
    resumed = run(grown(), net(dropout=0.25), validation_data=samples(1), out=tmp_path, resume=True)
    for a, b in zip(whole.plain.get_weights(), resumed.plain.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert [(s.accuracy, s.done) for s in resumed.steps] == [(s.accuracy, s.done) for s in whole.steps]
    assert json.loads((tmp_path / "state" / "state.json").read_text())["finished"]
    assert len(list((tmp_path / "state").glob("*.keras"))) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_crash_loses_what_came_after_the_last_saved_epoch(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_SAVES", 0.0)
    x, y = samples()

    class Crashing(data.Arrays):
        left = 11

        def take(self, indices):
            self.left -= 1
            if not self.left:
                raise RuntimeError("the cable was pulled")
            return super().take(indices)

    with pytest.raises(Exception, match="the cable was pulled"):
        run(grown(), net(dropout=0.25), x=Crashing(x, y), y=None, validation_data=samples(1), out=tmp_path)
    note = json.loads((tmp_path / "state" / "state.json").read_text())
    assert (note["steps"], note["epoch"], note["batch"]) == (0, 1, 0)
    resumed = run(grown(), net(dropout=0.25), validation_data=samples(1), out=tmp_path, resume=True)
    for a, b in zip(whole.plain.get_weights(), resumed.plain.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_own_training_is_resumed_at_the_epoch(tmp_path):
    x, y = samples()
    asked = []

    def train(model, epochs, callbacks):
        asked.append(epochs)
        stop = [keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)] if len(asked) < 3 else []
        model.fit(x, y, batch_size=BATCH, epochs=epochs, callbacks=[*stop, *callbacks], verbose=0)

    def interrupt(epoch, logs):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    recipe = Recipe([Step(pruning.Magnitude(0.5), epochs=4)])
    for done in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            recipe.run(net(), train, lambda model: 1.0, out=tmp_path, resume=True, verbose=0)
        assert json.loads((tmp_path / "state" / "state.json").read_text())["epoch"] == done
    recipe.run(net(), train, lambda model: 1.0, out=tmp_path, resume=True, verbose=0)
    assert asked == [4, 3, 2]


def test_datasets_of_other_kinds():
    class Own(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            x, y = samples()
            return x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH]

    made = []

    def method(updates):
        made.append(updates)
        return pruning.Magnitude(0.5)

    outcome = Recipe([Step(method, epochs=2)]).run(net(), x=Own(), validation_data=samples(1), verbose=0)
    assert made == [10]
    assert zeros(outcome.plain) == 36


def test_a_student_is_attached_again_when_its_run_resumes(tmp_path):
    teacher = net()
    teacher.save(tmp_path / "teacher.keras")
    x, y = samples()
    method = distillation.Distillation(str(tmp_path / "teacher.keras"), alpha=0.3)
    recipe = Recipe([Step(method, epochs=3)])
    student = net(rate=0.05)
    student.set_weights([w * 0.5 for w in student.get_weights()])
    whole = run(recipe, student, validation_data=samples(1))
    given = Interrupting(x, y, 9)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, student, x=given, y=None, validation_data=samples(1), out=tmp_path / "out")
    resumed = run(recipe, student, validation_data=samples(1), out=tmp_path / "out", resume=True)
    for a, b in zip(whole.plain.get_weights(), resumed.plain.get_weights(), strict=True):
        assert np.array_equal(a, b)


def test_an_unfinished_run_is_not_overwritten_and_another_not_resumed(tmp_path):
    x, y = samples()
    with pytest.raises(KeyboardInterrupt):
        run(grown(), x=Interrupting(x, y, 5), y=None, validation_data=samples(1), out=tmp_path)
    with pytest.raises(CompressionError, match=r"holds an unfinished run \(step 1 of 2, 0 epochs done\).*--resume"):
        run(grown(), out=tmp_path)
    with pytest.raises(CompressionError, match="is the state of another recipe"):
        run(Recipe([Step(pruning.Magnitude(0.5), epochs=3)]), out=tmp_path, resume=True)
    other = net()
    other.layers[0].kernel.assign(np.ones((6, 8)))
    with pytest.raises(CompressionError, match=r"is the state of another model \(other weights\)"):
        run(grown(), other, out=tmp_path, resume=True)
    (tmp_path / "state" / "state.json").write_text("{}")
    with pytest.raises(CompressionError, match="is no state that can be resumed"):
        run(grown(), out=tmp_path, resume=True)


def test_a_full_disk_leaves_the_old_state(tmp_path, monkeypatch):
    recipe = Recipe([Step(pruning.Magnitude(0.25)), Step(pruning.Magnitude(0.5))])
    save = keras.Sequential.save
    calls = []

    def full(self, path, *args, **kwargs):
        calls.append(path)
        save(self, path, *args, **kwargs)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Sequential, "save", full)
    with pytest.raises(CompressionError, match=r"Cannot write .*No space left on device"):
        run(recipe, out=tmp_path, evaluate=lambda model: 1.0)
    monkeypatch.undo()
    assert len(list((tmp_path / "state").iterdir())) == 2  # the note and the model of step 1
    outcome = run(recipe, out=tmp_path, evaluate=lambda model: 1.0, resume=True)
    assert [step.done for step in outcome.steps] == [2, 2]
    assert zeros(outcome.plain) == 36


def test_out_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(CompressionError, match="is a file"):
        run(Recipe([pruning.Magnitude(0.5)]), out=tmp_path / "taken")


# What is refused


def test_a_step_that_applies_to_no_layer_is_named():
    trained = []
    train = lambda *args: trained.append(args)  # noqa: E731
    steps = [Step(pruning.Magnitude(0.5), epochs=1), pruning.Magnitude(0.5, layers="conv*")]
    with pytest.raises(
        CompressionError, match=r"Step 2 of 2 \(pruning.Magnitude\) applies to no layer.*'conv\*'.*none of a, b"
    ):
        run(Recipe(steps), train=train)
    assert not trained  # it is said before anything runs
    with pytest.raises(CompressionError, match=r"Step 1 of 1 \(pruning.Filters\): Filters applies to no layer"):
        run(Recipe([pruning.Filters(0.5)]))
    with pytest.raises(
        CompressionError, match=r"Step 1 of 1 \(factorization.SVD\) applies to no layer.*not fewer than"
    ):
        run(Recipe([factorization.SVD(rank=6)]))
    assert run(Recipe([pruning.RemoveDeadUnits()])).steps[0].done == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None, "y": None}, "Step 1 (pruning.Magnitude) trains for 1 epochs, and there is no data"),
        ({"y": None}, "The data has no labels y"),
        ({"x": np.zeros((40, 5), "float32")}, "samples of shape (5,); input 'input' of model 'net' takes (6,)"),
        ({"x": np.full((40, 6), np.nan)}, "NaN"),
        ({"y": np.zeros(39)}, "holds 40 samples and its labels 39"),
        ({"y": np.full(40, 3)}, "holds the label 3; model 'net' has 3 classes, 0 to 2"),
        ({"y": np.zeros((40, 3))}, "has labels of shape (3,)"),
        ({"max_drop": -1}, "percentage points"),
        ({"resume": True}, "needs `out`"),
        ({"batch_size": 0}, "positive whole number"),
        ({"evaluate": lambda model: 97.0}, "share from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_said_before_training(change, words):
    with pytest.raises(CompressionError) as error:
        run(Recipe([Step(pruning.Magnitude(0.5), epochs=1)]), **change)
    assert words in str(error.value)


def test_models_that_cannot_be_trained_or_judged():
    recipe = Recipe([Step(pruning.Magnitude(0.5), epochs=1)])
    plain = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)], name="plain")
    with pytest.raises(CompressionError, match="'plain' is not compiled"):
        run(recipe, plain)
    with pytest.raises(CompressionError, match="not built"):
        run(recipe, keras.Sequential([keras.layers.Dense(3)]))
    with pytest.raises(CompressionError, match="takes a Keras 3 model"):
        run(recipe, "model.keras")
    with pytest.raises(CompressionError, match="max_drop needs an accuracy"):
        run(recipe, net(metrics=[]), max_drop=1)


def test_integer_files_need_calibration_data():
    with pytest.raises(CompressionError, match="'int8' needs calibration data"):
        Recipe([], export="int8").run(net(), verbose=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": 3}, "function of the number of updates"),
        ({"method": pruning.Magnitude(0.5), "epochs": -1}, "0 or more"),
        ({"method": pruning.Magnitude(0.5), "learning_rate": 0.1}, "without `epochs`"),
        ({"method": pruning.Magnitude(0.5), "epochs": 1, "learning_rate": -0.1}, "positive"),
        ({"method": pruning.Magnitude(0.5), "epochs": 1, "learning_rate": "x"}, "tenth"),
    ],
)
def test_steps_that_make_no_sense(arguments, words):
    with pytest.raises(CompressionError, match=words):
        Step(**arguments)


# YAML

GOOD = """
name: mine
steps:
  - method: magnitude
    arguments: {sparsity: {linear: {initial: 0, final: 0.5, steps: 2 epochs}}, exclude: [b, "type:Conv2D"]}
    epochs: 4
    optimizer: {sgd: {momentum: 0.9}}
    learning_rate: 1e-3
"""


def test_a_recipe_file(tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD)
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert (recipe.name, recipe.export, recipe.pack) == ("mine", {}, False)
    (step,) = recipe.steps
    assert (step.epochs, step.learning_rate) == (4, 0.001)
    built = step.build(Length(400, 100))
    assert built.sparsity == schedules.Linear(0, 0.5, steps=200)
    assert built.exclude == ["b", "type:Conv2D"]
    assert zeros(run(recipe).plain) == 24  # of the layer a


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps:", "stepz:", "recipe 'r.yaml' has an unknown key 'stepz'. Did you mean 'steps'?"),
        ("epochs: 4", "epoch: 4", "step 1 has an unknown key 'epoch'. Did you mean 'epochs'?"),
        ("magnitude", "magnitud", "mine, step 1: There is no method 'magnitud'. Did you mean 'magnitude'?"),
        ("magnitude", "pruning.magnitud", "Did you mean 'pruning.magnitude'?"),
        ("sparsity:", "sparsty:", "Magnitude has no argument 'sparsty'. Did you mean 'sparsity'?"),
        ("linear:", "linaer:", "There is no schedule 'linaer'. Did you mean 'linear'?"),
        ("final:", "finall:", "Linear has no argument 'finall'. Did you mean 'final'?"),
        ("initial: 0, ", "", "Linear needs the argument 'initial'"),
        ("2 epochs", "soon", "'auto' (the step's whole training), '75%' of it, or '2 epochs'; received 'soon'"),
        ("final: 0.5", "final: 1.5", "`sparsity` must lie between 0 and 1; received 1.5"),
        ("epochs: 4", "epochs: four", "step 1: `epochs` must be a whole number"),
        ("{sgd: {momentum: 0.9}}", "sgdd", "There is no optimizer 'sgdd'. Did you mean 'sgd'?"),
        ("momentum", "momentun", "does not take"),
        ("learning_rate: 1e-3", "learning_rate: fast", "'x0.1' for a tenth"),
        ("epochs: 4", "epochs: 4\n    epochs: 5", "line 7: the key 'epochs' stands twice"),
        ("arguments: {", "arguments: [", "is no YAML"),
        ("name: mine", "name: mine\nexport: int9", "unknown precision 'int9'. Did you mean 'int8'?"),
        (
            "name: mine",
            "name: mine\nexport: {precision: int8, targit: gpu}",
            "no option 'targit'. Did you mean 'target'?",
        ),
        ("name: mine", "name: mine\nexport: {boundary: int8}", "takes boundary 'float32'"),
        ("name: mine", "name: mine\npack: zip", "`pack` is true, false, 'tflite' or 'keras'"),
        ("name: mine", "name: mine\npack: tflite", "needs `export`"),
    ],
)
def test_what_is_wrong_in_a_recipe_file_is_named(tmp_path, monkeypatch, old, new, words):
    assert old in GOOD
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(GOOD.replace(old, new, 1))
    with pytest.raises(CompressionError) as error:
        Recipe.load("r.yaml")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "steps: 3", "steps: [3]", "steps: [{epochs: 3}]", "name: x", "steps: [\x00]"]
)
def test_files_that_are_no_recipe(text):
    with pytest.raises(CompressionError, match="recipe"):
        Recipe.from_dict(file.parse(text))


def test_recipes_and_files_that_are_not_there():
    with pytest.raises(CompressionError, match=r"no recipe 'prune-qatt'\. Did you mean 'prune-qat'"):
        Recipe.load("prune-qatt")
    with pytest.raises(CompressionError, match=r"no recipe file nowhere\.yaml"):
        Recipe.load("nowhere.yaml")


def test_shipped_recipes():
    known = {"magnitude", "int8", "qat", "prune-qat", "deep-compression", "filters", "svd"}
    assert known <= set(file.shipped())
    for name, about in file.shipped().items():
        recipe = Recipe.load(name)
        assert recipe.name == name
        assert about.endswith(".")
        assert recipe.export
        assert recipe.pack == "tflite"
    assert not Recipe.load("int8").steps
    prune, quantize = (step.build(Length(100, 10)) for step in Recipe.load("prune-qat").steps)
    assert prune.sparsity == schedules.Cubic(0, 0.8, steps=75)
    assert isinstance(quantize, quantization.QAT)
    assert [s.epochs for s in Recipe.load("prune-qat").with_epochs(2).steps] == [2, 2]
    assert Recipe.load("magnitude").with_export("float16").export["precision"] == "float16"


def test_methods_are_found_by_name():
    found = registry.methods()
    for package in ("distillation", "pruning", "quantization", "factorization", "sparsity"):
        module = getattr(tfcompress, package)
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, tfcompress.Method):
                assert found[f"{package}.{name}"] is value
    for name in ("pruning.Magnitude", "pruning.magnitude", "magnitude", "MAGNITUDE"):
        assert registry.find(name) == "pruning.Magnitude"
    for name in ("bayes-by-backprop", "bayes_by_backprop", "BayesByBackprop"):
        assert registry.find(name) == "pruning.BayesByBackprop"


def test_parts_of_methods_are_written_by_name():
    method = registry.build(
        registry.methods()["distillation.Distillation"],
        {"teacher": "big.keras", "losses": [{"soft_targets": {"temperature": 8}}, {"hard_labels": {"weight": 0.2}}]},
        Length(10, 10),
        "step 1",
    )
    assert [type(loss) for loss in method.losses] == [distillation.SoftTargets, distillation.HardLabels]
    factors = registry.build(registry.methods()["factorization.SVD"], {"rank": {"energy": 0.9}}, Length(1, 1), "step 1")
    assert factors.rank == {"energy": 0.9}
