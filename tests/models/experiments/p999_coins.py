"""A small experiment without any training: how often a coin of a given seed shows heads."""

import os
import random
import time

from models.experiments import Target, experiment


@experiment(
    name="Coins",
    claim="half of all coins show heads",
    data="pseudo-random coins",
    sizes={"quick": "10 coins", "standard": "1 000 coins"},
    baseline="expected",
    targets=[
        Target("tossed", "<=", 0.1, figure="off"),
        Target("tossed", ">=", 0.9, figure="heads", text="share of heads"),
    ],
    stand_in="a generator in place of coins",
    seeds=2,
    note="the second target cannot be met",
)
def run(seed, quick, full, log):
    """Toss; the environment can make one seed fail or wait, for the tests of errors and of Ctrl-C."""
    if os.environ.get("COINS_FAIL") == str(seed):
        raise RuntimeError("the coin rolled away")
    log(f"tossing with {os.environ['OMP_NUM_THREADS']} thread")
    if os.environ.get("COINS_WAIT") == str(seed):
        time.sleep(60)
    time.sleep(0.05)
    draw = random.Random(seed)
    count = 10 if quick else 1000
    heads = sum(draw.random() < 0.5 for _ in range(count)) / count
    return {"expected": {"heads": 0.5}, "tossed": {"heads": heads, "off": abs(heads - 0.5)}}
