"""[1], part (d): specialists for confusable classes beside a generalist, on pairs of MNIST digits."""

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from tfcompress import distillation

SETS = 10
# Of the predictions that are grouped. A generalist that is mostly right has nearly orthogonal columns of covariance, for
# which every grouping has the same inertia, and k-means gives nine single classes and all the others.
TEMPERATURE = 5.0


def pairs(x, y, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images side by side, [count, 1568], and their class, ten times the left digit and the right one."""
    left, right = np.random.default_rng(seed).integers(0, len(x), (2, count))
    return np.concatenate([x[left], x[right]], axis=1), 10 * y[left] + y[right]


def generalist() -> keras.Model:
    """1568 - 200 - 100."""
    return keras.Sequential(
        [
            keras.Input((1568,), name="pair"),
            keras.layers.Dense(200, activation="relu", name="hidden"),
            keras.layers.Dense(100, name="classes"),
        ],
        name="generalist",
    )


def experts(model, x, y, epochs: int, rate: float, seed: int, log):
    """Specialists grown from a trained generalist: an ensemble with it, and the sets of classes."""
    logits = model.predict(x[:20_000], batch_size=500, verbose=0)
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits / TEMPERATURE))
    sets = distillation.confusable_sets(probabilities, SETS, seed=seed)
    members, fractions = [], []
    for number, classes in enumerate(sets):
        one = distillation.specialist(model, classes)
        index, labels = distillation.specialist_data(y, classes, seed=seed + number)
        fit(one, x[index], labels, epochs, keras.optimizers.Adam(rate), jit=False)
        members.append((classes, one))
        fractions.append(float(np.isin(y, classes).mean()))
    log(f"sizes of the sets: {[len(classes) for classes in sets]}")
    return distillation.SpecialistEnsemble(model, members, fractions)


@experiment(
    name="Specialists beside a generalist",
    claim="[1] 61 specialists of 300 classes lift a generalist on JFT from 25.0 to 26.1 % (4.4 % relative)",
    data="MNIST",
    stand_in="100 classes, pairs of digits side by side, for the 15 000 classes of JFT",
    sizes={
        "quick": "10 000 pairs, 2 epochs, 2 of each specialist",
        "standard": "100 000 pairs, generalist 1568-200-100, 5 epochs; 10 specialists, 12 epochs each on their half and half",
    },
    baseline=("generalist", "generalist, trained on"),
    targets=[
        Target("with specialists", ">=", 1.0, "gain", "points above the generalist where a specialist is active"),
    ],
    seeds=3,
    note="Sets of classes from the generalist's predictions at T = 5. Accuracy on 10 000 pairs of test images; the ten sets hold all classes, so a specialist is active for every pair. "
    "Trained on: the generalist for as many more epochs as each specialist trains. The combination (step 6e) solves a small "
    "problem for every case, so it is for a server.",
    tolerances={"accuracy": 6.0, "gain": 6.0, "gain over training on": 6.0},
)
def run(seed, quick, full, log):
    """The generalist, its specialists combined with it, and the generalist that trains on instead."""
    count, epochs, more = (10_000, 2, 2) if quick else (100_000, 5, 12)
    data = datasets.load("mnist")
    x, y = pairs(data.x_train.reshape(-1, 784), data.y_train, count, seed)
    x_test, y_test = pairs(data.x_test.reshape(-1, 784), data.y_test, 10_000, seed + 1)
    keras.utils.set_random_seed(seed)
    model = generalist()
    fit(model, x, y, epochs, keras.optimizers.Adam(1e-3))
    base = accuracy(model, x_test, y_test)
    log(f"generalist: {base:.2f} %")
    ensemble = experts(model, x, y, more, 3e-4, seed, log)
    found = 100.0 * float(np.mean(ensemble.predict(x_test).argmax(-1) == y_test))
    longer = keras.models.clone_model(model)
    longer.set_weights(model.get_weights())
    fit(longer, x, y, more, keras.optimizers.Adam(3e-4))
    control = accuracy(longer, x_test, y_test)
    return {
        "generalist": {"accuracy": base},
        "generalist, trained on": {"accuracy": control},
        "with specialists": {"accuracy": found, "gain": found - base, "gain over training on": found - control},
    }
