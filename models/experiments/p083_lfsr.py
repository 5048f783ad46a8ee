"""[83] Fully connected layers on MNIST under masks from shift registers, real and binary, against dense and i.i.d. masks."""

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from tfcompress import Method, apply, codecs, finalize, sparsity
from tfcompress.core.masks import Mask
from tfcompress.core.signs import SignWeight
from tfcompress.method import DONE, Row
from tfcompress.parametrization import parametrize

HIDDEN = ("hidden1", "hidden2", "hidden3")


class Bernoulli(Method):
    """The comparator: each connection of a layer kept with equal probability, independently."""

    def __init__(self, density: float, seed: int):
        self.density, self.seed = density, seed

    def attach(self, model, data=None):
        random = np.random.default_rng(self.seed)
        for name in HIDDEN:
            mask = Mask()
            parametrize(model.get_layer(name), "kernel", mask)
            mask.set(random.random(mask.shape) < self.density)
        return model, [Row(name, "kernel", DONE, repr(self)) for name in HIDDEN]


class Binary(Method):
    """Binary weights in the hidden layers, by the deterministic sign."""

    def attach(self, model, data=None):
        for name in HIDDEN:
            parametrize(model.get_layer(name), "kernel", SignWeight())
        return model, [Row(name, "kernel", DONE, "binary") for name in HIDDEN]


def network(seed: int, width: int) -> keras.Model:
    """Three hidden layers with batch normalization, ReLU and dropout."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((784,), name="image")]
    for number, name in enumerate(HIDDEN):
        layers += [
            keras.layers.Dense(width, use_bias=False, name=name),
            keras.layers.BatchNormalization(momentum=0.9, name=f"norm{number + 1}"),
            keras.layers.ReLU(name=f"relu{number + 1}"),
            keras.layers.Dropout(0.2, seed=seed + number, name=f"dropout{number + 1}"),
        ]
    return keras.Sequential([*layers, keras.layers.Dense(10, name="logits")])


def train(model, x, y, epochs: int, rate: float, batch: int = 128) -> None:
    """Adam with an exponentially decaying learning rate, to a thirtieth at the end."""
    steps = epochs * -(-len(x) // batch)
    schedule = keras.optimizers.schedules.ExponentialDecay(rate, steps, 1 / 30)
    fit(model, x, y, epochs, keras.optimizers.Adam(schedule), batch)


@experiment(
    name="LFSR masks in fully connected layers",
    claim="up to 90 % of the connections removed before training at no loss; only values and seeds are stored",
    data="MNIST",
    sizes={
        "quick": "10 000 images, width 256, 2 epochs",
        "standard": "60 000 images, width 512, 8 epochs",
        "full": "60 000 images, width 1024, 15 epochs",
    },
    baseline="dense",
    targets=[
        Target("90 % off", "<=", 0.4, figure="drop", text="points below dense"),
        Target("50 % off", "<=", 0.15, figure="drop", text="points below dense"),
        Target(
            "90 % off", "<=", 0.2, figure="drop against i.i.d.", text="points below an i.i.d. mask of equal density"
        ),
        Target("90 % off, binary", "<=", 0.8, figure="drop", text="points below dense"),
    ],
    seeds=3,
    note="Hidden layers masked, the output layer dense. kernel bytes: the three hidden kernels in one .tfcz, header and "
    "all. The paper's energy figures come from synthesized hardware and are not repeated.",
    tolerances={"accuracy": 3.0, "drop": 3.0, "drop against i.i.d.": 3.0},
)
def run(seed, quick, full, log):
    """Dense, 50, 80 and 90 % removed, an i.i.d. mask at 90 %, and binary weights under the mask at 90 %."""
    images, width, epochs = (10_000, 256, 2) if quick else (60_000, 1024, 15) if full else (60_000, 512, 8)
    data = datasets.load("mnist")
    x, y = data.x_train.reshape(-1, 784)[:images], data.y_train[:images]
    x_test, y_test = data.x_test.reshape(-1, 784), data.y_test
    plans: dict[str, tuple[list, float]] = {
        "dense": ([], 3e-3),
        "50 % off": ([sparsity.LFSR(0.5, seed=seed, layers="hidden?")], 3e-3),
        "80 % off": ([sparsity.LFSR(0.2, seed=seed, layers="hidden?")], 3e-3),
        "90 % off": ([sparsity.LFSR(0.1, seed=seed, layers="hidden?")], 3e-3),
        "90 % off, i.i.d.": ([Bernoulli(0.1, seed)], 3e-3),
        "90 % off, binary": ([Binary(), sparsity.LFSR(0.1, seed=seed, layers="hidden?")], 3e-3),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, (methods, rate) in plans.items():
        model = network(seed, width)
        model = apply(model, methods, verbose=0) if methods else model
        train(model, x, y, epochs, rate)
        right = accuracy(model, x_test, y_test)
        rows[name] = {"accuracy": right, "drop": rows.get("dense", {"accuracy": right})["accuracy"] - right}
        plain = finalize(model, verbose=0) if methods else model
        kernels = {f"{layer}.kernel": plain.get_layer(layer).kernel.numpy() for layer in HIDDEN}
        rows[name]["connections"] = sum(int(np.count_nonzero(kernel)) for kernel in kernels.values())
        own = {key: coding for key, coding in sparsity.handed(model).items() if key in kernels}
        rows[name]["kernel bytes"] = len(codecs.dumps(kernels, handed=own or None))
        log(f"{name}: {rows[name]}")
    rows["90 % off"]["drop against i.i.d."] = rows["90 % off, i.i.d."]["accuracy"] - rows["90 % off"]["accuracy"]
    return rows
