"""[23] Weight uncertainty on MNIST: Bayes by Backprop against dropout, then pruning by signal to noise, no retraining."""

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from tfcompress import apply, finalize, pruning
from tfcompress.core.variational import ScaleMixture

FRACTIONS = (0.5, 0.75, 0.9, 0.95, 0.98)


def network(seed: int, dropout: bool, width: int) -> keras.Model:
    """Two hidden layers of ReLU units, with dropout of 0.2 on the pixels and 0.5 on the units or without."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((784,), name="image")]
    for number in (1, 2):
        layers += [keras.layers.Dropout(0.2 if number == 1 else 0.5, seed=seed + number)] if dropout else []
        layers += [keras.layers.Dense(width, activation="relu", name=f"dense{number}")]
    layers += [keras.layers.Dropout(0.5, seed=seed + 3)] if dropout else []
    return keras.Sequential([*layers, keras.layers.Dense(10, name="logits")])


def by_magnitude(model, fraction: float) -> keras.Model:
    """The comparator: the smallest |mu| of all kernels together set to 0."""
    plain = finalize(model, verbose=0)
    kernels = [layer.kernel for layer in plain.layers if hasattr(layer, "kernel")]
    sizes = np.abs(np.concatenate([np.ravel(kernel.numpy()) for kernel in kernels]))
    threshold = np.sort(sizes)[round(fraction * sizes.size) - 1]
    for kernel in kernels:
        value = kernel.numpy()
        kernel.assign(np.where(np.abs(value) <= threshold, 0.0, value))
    return plain


def train(model, x, y, epochs: int, batch: int = 128) -> None:
    """Adam at 1e-3 on the cross-entropy."""
    fit(model, x, y, epochs, keras.optimizers.Adam(1e-3), batch)


@experiment(
    name="Bayes by Backprop, pruned by signal to noise",
    claim="regularizes like dropout; 95 % of the weights of a 1200-unit net go at 0.05 point, with no retraining",
    data="MNIST",
    sizes={
        "quick": "5 000 images, 784-100-100-10, 3 epochs",
        "standard": "60 000 images, 784-400-400-10, 10 epochs",
        "full": "60 000 images, 784-1200-1200-10, 300 epochs",
    },
    baseline="dropout",
    targets=[
        Target("Bayes", "<=", 0.3, figure="drop", text="points below dropout"),
        Target("75 % deleted by SNR", "<=", 0.1, figure="loss", text="points below the unpruned net"),
        Target("95 % deleted by SNR", "<=", 0.5, figure="loss", text="points below the unpruned net"),
        Target("95 % deleted by SNR", "<=", 0.0, figure="loss against |mu|", text="points below pruning by |mu| alone"),
    ],
    seeds=2,
    note="Prior 1/4 N(0, 1) + 3/4 N(0, e^-12), Adam 1e-3, no retraining after deletion. Networks are evaluated at the "
    "means; the average over 10 draws is a row of its own.",
    tolerances={"accuracy": 5.0, "drop": 5.0, "loss": 5.0, "loss against |mu|": 10.0},
)
def run(seed, quick, full, log):
    """Dropout and Bayes by Backprop on the same net, then 50 to 98 % of the kernel weights deleted, two ways."""
    from scipy.special import softmax

    images, width, epochs = (5_000, 100, 3) if quick else (60_000, 1200, 300) if full else (60_000, 400, 10)
    data = datasets.load("mnist")
    scale = np.float32(255.0 / 126.0)  # the paper divides pixels by 126
    x, y = data.x_train.reshape(-1, 784)[:images] * scale, data.y_train[:images]
    x_test, y_test = data.x_test.reshape(-1, 784) * scale, data.y_test
    dropped = network(seed, True, width)
    train(dropped, x, y, epochs)
    rows: dict[str, dict[str, float]] = {"dropout": {"accuracy": accuracy(dropped, x_test, y_test)}}
    log(f"dropout: {rows['dropout']}")
    method = pruning.BayesByBackprop(examples=len(x), prior=ScaleMixture(), seed=seed)
    bayes = apply(network(seed, False, width), method, verbose=0)
    train(bayes, x, y, epochs)
    whole = accuracy(bayes, x_test, y_test)
    mean = pruning.average(bayes, x_test, samples=10, seed=seed, transform=lambda logits: softmax(logits, -1))
    averaged = 100.0 * float(np.mean(mean.argmax(-1) == y_test))
    for name, value in (("Bayes", whole), ("Bayes, 10 draws averaged", averaged)):
        rows[name] = {"accuracy": value, "drop": rows["dropout"]["accuracy"] - value}
        log(f"{name}: {rows[name]}")
    for fraction in FRACTIONS:
        noisy = pruning.snr_prune(bayes, fraction, verbose=0)
        plain = finalize(noisy, verbose=0)
        zeros = sum(int((layer.kernel.numpy() == 0).sum()) for layer in plain.layers if hasattr(layer, "kernel"))
        left = accuracy(plain, x_test, y_test)
        small = accuracy(by_magnitude(bayes, fraction), x_test, y_test)
        rows[f"{fraction:.0%} deleted by SNR".replace("%", " %")] = {
            "accuracy": left, "loss": whole - left, "loss against |mu|": small - left, "zeros": zeros,
        }  # fmt: skip
        rows[f"{fraction:.0%} deleted by |mu|".replace("%", " %")] = {"accuracy": small, "loss": whole - small}
        log(f"{fraction:.0%}: SNR {left:.2f}, |mu| {small:.2f}, {zeros} zeros")
    return rows
