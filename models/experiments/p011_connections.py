"""[11] LeNet-300-100 and LeNet-5 on MNIST, pruned by magnitude in rounds and retrained; iterated against one cut."""

import keras
import numpy as np

import models
from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from tfcompress import Compression, apply, pruning
from tfcompress.parametrization import chains

# Live weights of the three dense kernels after each round, as ratios of all; the third is the paper's 12x.
ROUNDS = (3.3, 6.5, 12.0, 19.6, 32.7)
# What the paper keeps a layer at 12x (dense layers 8 / 9 / 26 %, convolutions 66 / 12, dense 8 / 19 %).
KEPT = {
    "lenet_300_100": (0.08, 0.09, 0.26),
    "lenet5": (0.66, 0.12, 0.08, 0.19),
}


# Where training begins, of the dense nets and after every cut.
RATE = {"lenet_300_100": 0.1, "lenet5": 0.05}


def sgd(rate: float, epochs: int, images: int) -> keras.optimizers.SGD:
    """SGD with momentum and L2, as the paper trains: one for the dense net and a fresh one each round, with a falling rate."""
    falling = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-images // 128), 0.01)
    return keras.optimizers.SGD(falling, momentum=0.9, weight_decay=5e-4)


def shares(name: str, ratio: float) -> dict[str, float]:
    """The sparsity of each layer at a ratio: the paper's shares at 12x, scaled, the last layer's milder."""
    model = models.build(name)
    kernels = [layer for layer in model.layers if hasattr(layer, "kernel")]
    kept = np.array(KEPT[name])
    sizes = np.array([np.prod(layer.kernel.shape) for layer in kernels], float)
    wanted = sizes.sum() / ratio
    # One factor for all shares, each at most 1, found by bisection on the exact count.
    low, high = 0.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (np.minimum(kept * middle, 1) * sizes).sum() < wanted else (low, middle)
    return {layer.name: float(1 - min(k * high, 1.0)) for layer, k in zip(kernels, kept, strict=True)}


def prune(model, sparsity: dict[str, float], x, y, epochs: int):
    """One round: cut to a sparsity a layer, retrain the survivors from where they are."""
    small = apply(model, pruning.Magnitude(sparsity=sparsity), verbose=0)
    fit(small, x, y, epochs, sgd(RATE[model.name], epochs, len(x)), callbacks=[Compression()])
    return small


def measured(model, x_test, y_test, dense: float | None) -> dict[str, float]:
    """The row of a model: accuracy, drop, live weights and ratio."""
    found = accuracy(model, x_test, y_test)
    kernels = [chain.numpy() for _, chain in chains(model)] or [w.numpy() for w in model.weights if len(w.shape) > 1]
    live, size = (
        sum(int(n) for n in counts) for counts in ([np.count_nonzero(k) for k in kernels], [k.size for k in kernels])
    )
    return {
        "accuracy": found,
        "drop": (found if dense is None else dense) - found,
        "weights": live,
        "ratio": size / live,
    }


def rounds(name: str, ratios, x, y, x_test, y_test, dense_epochs: int, epochs: int, rows: dict, log) -> keras.Model:
    """Train dense, then prune in rounds; fills `rows` and returns the dense model."""
    dense = models.build(name)
    fit(dense, x, y, dense_epochs, sgd(RATE[name], dense_epochs, len(x)))
    rows[f"{name} dense"] = measured(dense, x_test, y_test, None)
    model = dense
    for ratio in ratios:
        model = prune(model, shares(name, ratio), x, y, epochs)
        row = f"{name} {ratio:g}x"
        rows[row] = measured(model, x_test, y_test, rows[f"{name} dense"]["accuracy"])
        log(f"{row}: {rows[row]}")
    return dense


@experiment(
    name="Learning both weights and connections",
    claim="12x fewer weights in LeNet-300-100 and LeNet-5 at no loss; pruning in rounds beats one cut",
    data="MNIST",
    sizes={
        "quick": "10 000 images for LeNet-300-100, 3 000 for LeNet-5, 1 or 2 epochs each",
        "standard": "60 000 images, LeNet-300-100: 15 epochs, 6 a round; LeNet-5: 5 epochs, 3 a round",
    },
    baseline="lenet_300_100 dense",
    targets=[
        Target("lenet_300_100 12x", "<=", 0.1, figure="drop", text="points below dense"),
        Target("lenet_300_100 32.7x", "<=", 0.5, figure="drop", text="points below dense"),
        Target("lenet_300_100 one cut", ">", 0.0, figure="behind rounds", text="points that rounds are ahead at 32.7x"),
        Target("lenet5 12x", "<=", 0.1, figure="drop", text="points below dense"),
    ],
    seeds=3,
    note="weights: live kernel weights; biases (410 and 580) are not pruned. One cut: from the dense net to 32.7x at "
    "once, retrained as long as all rounds together.",
    tolerances={"accuracy": 3.0, "drop": 3.0},
)
def run(seed, quick, full, log):
    """Rounds on both nets, and one cut on LeNet-300-100."""
    data = datasets.load("mnist")
    images = 10_000 if quick else 60_000
    x, y = data.x_train[:images], data.y_train[:images]
    rows: dict[str, dict[str, float]] = {}
    keras.utils.set_random_seed(seed)
    test = data.x_test, data.y_test
    epochs = 1 if quick else 6
    dense = rounds("lenet_300_100", ROUNDS, x, y, *test, 2 if quick else 15, epochs, rows, log)
    last = f"lenet_300_100 {ROUNDS[-1]:g}x"
    once = prune(dense, shares("lenet_300_100", ROUNDS[-1]), x, y, epochs * len(ROUNDS))
    rows["lenet_300_100 one cut"] = measured(once, *test, rows["lenet_300_100 dense"]["accuracy"])
    rows["lenet_300_100 one cut"]["behind rounds"] = rows[last]["accuracy"] - rows["lenet_300_100 one cut"]["accuracy"]
    few = slice(0, 3000 if quick else None)
    rounds("lenet5", (4.0, 12.0), x[few], y[few], *test, *((1, 1) if quick else (5, 3)), rows, log)
    return rows
