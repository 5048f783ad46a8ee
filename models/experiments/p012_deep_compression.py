"""[12] Deep Compression of LeNet-300-100 and LeNet-5 on MNIST: pruned, weights shared, coded into a file."""

import pathlib
import tempfile

import keras

import models
from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from models.experiments.p011_connections import RATE, ROUNDS, prune, sgd, shares
from tfcompress import Compression, apply, codecs, finalize, pruning


def file_bytes(name: str, model) -> tuple[int, int]:
    """(bytes of the float32 `.keras` file, bytes of the `.tfcz` that it unpacks from weight for weight)."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.keras")
        plain = models.build(name)  # not compiled: no optimizer slots in either file
        plain.set_weights(model.get_weights())
        plain.save(path)
        return path.stat().st_size, codecs.pack(path, effort="best").file_bytes


def share(name, model, bits, x, y, epochs: int, x_test, y_test, dense: float) -> dict[str, float]:
    """Share weights, train the shared values, write the file: one row."""
    small = apply(model, pruning.SharedWeights(bits=bits), verbose=0)
    before = accuracy(small, x_test, y_test)
    fit(small, x, y, epochs, sgd(1e-3, epochs, len(x)), callbacks=[Compression()])
    plain = finalize(small, verbose=0)
    found = accuracy(plain, x_test, y_test)
    whole, packed = file_bytes(name, plain)
    return {
        "accuracy": found,
        "drop": dense - found,
        "regained": found - before,
        "file bytes": packed,
        "float32 file bytes": whole,
        "ratio": whole / packed,
    }


def compress(name, x, y, x_test, y_test, epochs, ratios, plans, rows, log) -> None:
    """Train, prune in rounds to about 12x, then share at several bit widths."""
    dense_epochs, round_epochs, share_epochs = epochs
    model = models.build(name)
    fit(model, x, y, dense_epochs, sgd(RATE[name], dense_epochs, len(x)))
    dense = accuracy(model, x_test, y_test)
    rows[f"{name} dense"] = {"accuracy": dense, "drop": 0.0}
    for ratio in ratios:
        model = prune(model, shares(name, ratio), x, y, round_epochs)
    found = accuracy(model, x_test, y_test)
    whole, packed = file_bytes(name, finalize(model, verbose=0))
    rows[f"{name} pruned"] = {
        "accuracy": found, "drop": dense - found, "file bytes": packed, "float32 file bytes": whole, "ratio": whole / packed,
    }  # fmt: skip
    for label, bits in plans.items():
        rows[f"{name} {label}"] = share(name, model, bits, x, y, share_epochs, x_test, y_test, dense)
        log(f"{name} {label}: {rows[f'{name} {label}']}")


@experiment(
    name="Deep Compression",
    claim="LeNet-300-100 40x and LeNet-5 39x smaller at no loss of accuracy, by pruning, shared weights and coding",
    data="MNIST",
    sizes={
        "quick": "10 000 images for LeNet-300-100, 3 000 for LeNet-5, 1 or 2 epochs each",
        "standard": "60 000 images; LeNet-300-100: 15 epochs, 6 a round, 3 of shared values; LeNet-5: 5, 3, 2",
    },
    baseline="lenet_300_100 dense",
    targets=[
        Target("lenet_300_100 4 bits", ">=", 35.0, figure="ratio", text="of measured file bytes"),
        Target("lenet_300_100 4 bits", "<=", 0.1, figure="drop", text="points below dense"),
        Target(
            "lenet_300_100 2 bits", ">=", 0.5, figure="regained", text="points that training the shared values regains"
        ),
        Target("lenet5 5 bits", ">=", 35.0, figure="ratio", text="of measured file bytes"),
        Target("lenet5 5 bits", "<=", 0.1, figure="drop", text="points below dense"),
    ],
    seeds=3,
    note="ratio: bytes of the float32 .keras file over bytes of its .tfcz, headers, configuration, biases and codebooks in "
    "both. LeNet-5 shares 8 bits in convolutions and 5 (or as named) in dense layers.",
    tolerances={"accuracy": 3.0, "drop": 3.0, "regained": 3.0},
)
def run(seed, quick, full, log):
    """Bit widths 6 to 2 on LeNet-300-100, 5 and 4 on LeNet-5."""
    data = datasets.load("mnist")
    images = 10_000 if quick else 60_000
    x, y = data.x_train[:images], data.y_train[:images]
    rows: dict[str, dict[str, float]] = {}
    keras.utils.set_random_seed(seed)
    plans = {f"{bits} bits": bits for bits in (6, 5, 4, 3, 2)}
    test = data.x_test, data.y_test
    compress("lenet_300_100", x, y, *test, (2, 1, 1) if quick else (15, 6, 3), ROUNDS[:3], plans, rows, log)
    mixed = {f"{bits} bits": {"conv*": 8, "*": bits} for bits in (5, 4)}
    few = slice(0, 3000 if quick else None)
    compress("lenet5", x[few], y[few], *test, (1, 1, 1) if quick else (5, 3, 2), (4.0, 12.0), mixed, rows, log)
    return rows
