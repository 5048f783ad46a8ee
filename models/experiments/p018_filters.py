"""[18] A small VGG on CIFAR-10: whole filters removed by their L1 norms, retrained once at a constant rate."""

import keras
import numpy as np

from models import datasets
from models.experiments import Target, experiment
from models.experiments._training import accuracy, fit
from models.networks import vgg_small
from tfcompress import apply, cost, pruning
from tfcompress.graph.channels import groups
from tfcompress.graph.surgery import remove_channels

# Half of the first and of the wide late layers, as the paper prunes its VGG-16.
RATIOS = {"conv1": 0.5, "conv4": 0.3, "conv5": 0.5, "conv6": 0.5}


def train(model, x, y, epochs: int, rate: float) -> None:
    """SGD with momentum; the rate falls to a hundredth along a cosine, or stays when there is one epoch or two."""
    steps = epochs * -(-len(x) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps, 0.01) if epochs > 2 else rate
    fit(model, x, y, epochs, keras.optimizers.SGD(schedule, momentum=0.9), batch=64)


def by_order(model, layers: dict[str, float], kind: str, seed: int):
    """The model without the same numbers of filters, chosen at random or as those of the largest norms."""
    rng = np.random.default_rng(seed)
    removals = {}
    for group in groups(model):
        name = group.producers[0].path if group.producers else ""
        if name in layers:
            kernel = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
            norms = np.abs(kernel).sum(axis=(0, 1, 2))
            count = int(np.ceil(layers[name] * len(norms)))
            order = rng.permutation(len(norms)) if kind == "random" else np.argsort(-norms)
            removals[group.root] = order[:count].tolist()
    return remove_channels(model, removals)


@experiment(
    name="Pruning filters for efficient convnets",
    claim="a third of the MACs of a VGG on CIFAR-10 go with whole filters, at no loss after one short retraining",
    data="CIFAR-10",
    stand_in="a VGG of six convolutions for the paper's thirteen",
    sizes={
        "quick": "1 000 images, 1 epoch",
        "standard": "8 000 images, 8 epochs, 2 of retraining",
        "full": "50 000 images, 40 epochs, 10 of retraining",
    },
    baseline="whole",
    targets=[
        Target("smallest L1", ">=", 34.0, figure="MACs removed %"),
        Target("smallest L1", "<=", 0.5, figure="drop", text="points below the whole net"),
        Target("smallest L1", ">", 0.0, figure="one-shot against random", text="points, before retraining"),
        Target("random", ">", 0.0, figure="one-shot against largest", text="points, before retraining"),
        Target("smallest L1", ">=", 0.0, figure="against from scratch", text="points; equal total epochs"),
    ],
    seeds=2,
    note="Accuracy on 5 000 test images. From scratch: the pruned shape from random weights for as many epochs as training "
    "and retraining together.",
    tolerances={"accuracy": 8.0, "drop": 8.0, "one-shot against random": 15.0, "one-shot against largest": 15.0},
)
def run(seed, quick, full, log):
    """Smallest, random and largest norms before retraining; smallest after it, and the same shape from scratch."""
    images, epochs, again = (1_000, 1, 1) if quick else (50_000, 40, 10) if full else (8_000, 8, 2)
    data = datasets.load("cifar10")
    x, y = data.x_train[:images], data.y_train[:images].ravel()
    test = data.x_test[:5000], data.y_test[:5000].ravel()
    keras.utils.set_random_seed(seed)
    whole = vgg_small()
    train(whole, x, y, epochs, 0.01)
    base, macs = accuracy(whole, *test), cost.macs(whole)
    rows: dict[str, dict[str, float]] = {"whole": {"accuracy": base, "MACs": macs, "parameters": whole.count_params()}}
    shots = {}
    for kind in ("random", "largest"):
        shots[kind] = accuracy(by_order(whole, RATIOS, kind, seed), *test)
    small = apply(whole, pruning.Filters(RATIOS), verbose=0)
    shots["smallest"] = accuracy(small, *test)
    log(f"one-shot: {shots}")
    scratch = keras.models.clone_model(small)
    train(small, x, y, again, 1e-3)
    train(scratch, x, y, epochs + again, 0.01)
    found, other = accuracy(small, *test), accuracy(scratch, *test)
    rows["smallest L1"] = {
        "accuracy": found,
        "drop": base - found,
        "accuracy one-shot": shots["smallest"],
        "MACs removed %": 100 * (1 - cost.macs(small) / macs),
        "parameters": small.count_params(),
        "one-shot against random": shots["smallest"] - shots["random"],
        "against from scratch": found - other,
    }
    rows["random"] = {
        "accuracy one-shot": shots["random"],
        "one-shot against largest": shots["random"] - shots["largest"],
    }
    rows["largest L1"] = {"accuracy one-shot": shots["largest"]}
    rows["from scratch"] = {"accuracy": other}
    return rows
