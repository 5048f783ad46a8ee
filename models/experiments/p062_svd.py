"""[62] A dense net on MNIST, every hidden matrix replaced by its truncated SVD and fine-tuned for one epoch."""

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from tfcompress import apply, factorization

RANKS = (64, 32, 16, 8)


def network() -> keras.Model:
    """784-512-512-10, as the entry's orientation run has it."""
    layers = [keras.Input((784,), name="image")]
    layers += [keras.layers.Dense(512, activation="relu", name=f"hidden{i}") for i in (1, 2)]
    return keras.Sequential([*layers, keras.layers.Dense(10, name="logits")])


def train(model, x, y, epochs: int, rate: float) -> None:
    """Adam."""
    fit(model, x, y, epochs, keras.optimizers.Adam(rate))


@experiment(
    name="SVD restructuring",
    claim="most parameters of a trained dense net go by truncated SVD at no loss, after a light fine-tuning",
    data="MNIST",
    stand_in="the paper's speech models and data are not available",
    sizes={
        "quick": "10 000 images, 2 epochs and 1 of fine-tuning",
        "standard": "60 000 images, 4 epochs and 1 of fine-tuning",
    },
    baseline="dense",
    targets=[
        Target("rank 64", "<=", 0.4, figure="drop", text="points below dense, about 4x fewer parameters"),
        Target("rank 32", "<=", 0.6, figure="drop", text="points below dense, about 8x fewer parameters"),
        Target("sum 0.3", "<=", 0.7, figure="drop one-shot", text="points below dense, without fine-tuning"),
        Target(
            "data-aware", ">=", 0.0, figure="worst gain", text="points ahead of plain SVD, one-shot, at the worst rank"
        ),
    ],
    seeds=3,
    note="one-shot: before fine-tuning. random start: the same factors from random values, with the same one epoch.",
    tolerances={"accuracy": 3.0, "drop": 3.0, "drop one-shot": 10.0, "accuracy one-shot": 10.0, "worst gain": 10.0},
)
def run(seed, quick, full, log):
    """Four ranks with and without data, and the sum rule."""
    data = datasets.load("mnist")
    images = 10_000 if quick else 60_000
    x, y = data.x_train.reshape(-1, 784)[:images], data.y_train[:images]
    test = data.x_test.reshape(-1, 784), data.y_test
    calibration = x[:1000]
    keras.utils.set_random_seed(seed)
    dense = network()
    train(dense, x, y, 2 if quick else 4, 1e-3)
    whole = accuracy(dense, *test)
    rows: dict[str, dict[str, float]] = {"dense": {"accuracy": whole, "parameters": dense.count_params()}}
    gains = []
    for rank in RANKS:
        small = apply(dense, factorization.SVD(rank=rank, layers="hidden*"), verbose=0)
        once = accuracy(small, *test)
        aware = apply(
            dense, factorization.SVD(rank=rank, layers="hidden*", data_aware=True), data=calibration, verbose=0
        )
        gains.append(accuracy(aware, *test) - once)
        fresh = keras.models.clone_model(small)
        train(small, x, y, 1, 2e-4)
        train(fresh, x, y, 1, 1e-3)
        found = accuracy(small, *test)
        rows[f"rank {rank}"] = {
            "accuracy": found,
            "drop": whole - found,
            "accuracy one-shot": once,
            "data-aware one-shot": once + gains[-1],
            "random start": accuracy(fresh, *test),
            "parameters": small.count_params(),
            "fewer": dense.count_params() / small.count_params(),
        }
        log(f"rank {rank}: {rows[f'rank {rank}']}")
    rows["data-aware"] = {"worst gain": float(np.min(gains)), "mean gain": float(np.mean(gains))}
    small = apply(dense, factorization.SVD(rank=0.3, layers="hidden*"), verbose=0)
    once = accuracy(small, *test)
    rows["sum 0.3"] = {
        "accuracy one-shot": once, "drop one-shot": whole - once, "fewer": dense.count_params() / small.count_params(),
    }  # fmt: skip
    return rows
