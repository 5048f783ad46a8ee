#!/usr/bin/env python3
"""Seconds a training step: plain Keras, our methods, and TensorFlow Model Optimization's, alternating in one run.

    python tools/bench_training.py                       # all, with the peer (its environment is made on first use)
    python tools/bench_training.py --models lenet5 --rounds 5 --no-peer

Two child processes hold the same architectures, ours in Keras 3 and the peer's in tf_keras. In each round every variant
trains for a few steps, in a new random order, so that whatever else the machine does falls on all alike. A variant's ratio
is the median over the rounds of (its time / its own plain Keras's time in the same round). Prints a table, and with
--write the section of docs/performance.md.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PEER = ROOT / ".venv-tfmot"
PEER_PACKAGES = ("tensorflow==2.19.*", "tf_keras==2.19.*", "tensorflow-model-optimization==0.8.*")
BATCH = {"lenet5": 128, "resnet8": 32, "mobilenet_v2": 32}
OURS = ("plain", "prune every step", "prune every 100", "qat", "codebook")
STEPS = 20
RAMP = 2000  # steps over which sparsity rises to 90 %
# (variant, model) -> the most that its ratio to plain may be; the peer's own ratio is a second bar for all.
BARS = {
    "prune every 100": dict.fromkeys(BATCH, 1.05),
    "prune every step": {"lenet5": 1.10, "resnet8": 1.10, "mobilenet_v2": 1.25},
    "qat": dict.fromkeys(BATCH, 1.15),
    "codebook": dict.fromkeys(BATCH, 1.5),
}


# --- in the children


def network(name: str, keras):
    """The architecture, in whichever Keras it is given."""
    layers = keras.layers
    if name == "mobilenet_v2":
        return keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    if name == "lenet5":
        return keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                layers.Conv2D(20, 5),
                layers.MaxPooling2D(),
                layers.Conv2D(50, 5),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(500, activation="relu"),
                layers.Dense(10, activation="softmax"),
            ]
        )

    def block(x, width, stride):
        y = layers.Conv2D(width, 3, stride, "same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, 1, "same", use_bias=False)(y))
        if stride > 1:
            x = layers.BatchNormalization()(layers.Conv2D(width, 1, stride, use_bias=False)(x))
        return layers.ReLU()(layers.Add()([x, y]))

    i = keras.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, 1, "same", use_bias=False)(i)))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        x = block(x, width, stride)
    return keras.Model(i, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def compiled(model, keras, jit: bool):
    """The model with SGD and momentum, as all variants train."""
    model.compile(keras.optimizers.SGD(0.001, momentum=0.9), "sparse_categorical_crossentropy", jit_compile=jit)
    return model


def ours(name: str, jit: bool) -> dict:
    """{variant: (model, callbacks)} of tfcompress."""
    import keras

    import tfcompress
    from tfcompress import pruning, quantization, schedules

    made = {"plain": (compiled(network(name, keras), keras, jit), [])}
    # Long enough for the whole bench, so that the masks go on changing.
    methods = {
        "prune every step": pruning.Magnitude(sparsity=schedules.Linear(0.0, 0.9, steps=RAMP), frequency=1),
        "prune every 100": pruning.Magnitude(sparsity=schedules.Linear(0.0, 0.9, steps=RAMP), frequency=100),
        "qat": quantization.QAT(),
        "codebook": pruning.SharedWeights(bits=4),
    }
    for variant, method in methods.items():
        start = time.perf_counter()
        small = tfcompress.apply(network(name, keras), method, in_place=True, verbose=0)
        print(json.dumps({"attach": variant, "seconds": time.perf_counter() - start}), file=sys.stderr)
        made[variant] = (compiled(small, keras, jit), [tfcompress.Compression(per_layer=False)])
    return made


def peer(name: str) -> dict:
    """{variant: (model, callbacks)} of TensorFlow Model Optimization."""
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    made = {"plain": (compiled(network(name, keras), keras, False), [])}
    for variant, frequency in (("prune every step", 1), ("prune every 100", 100)):
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.9, 0, RAMP, power=1, frequency=frequency)
        model = tfmot.sparsity.keras.prune_low_magnitude(network(name, keras), pruning_schedule=schedule)
        made[variant] = (compiled(model, keras, False), [tfmot.sparsity.keras.UpdatePruningStep()])
    made["qat"] = (compiled(tfmot.quantization.keras.quantize_model(network(name, keras)), keras, False), [])
    linear = tfmot.clustering.keras.CentroidInitialization.LINEAR
    clustered = tfmot.clustering.keras.cluster_weights(
        network(name, keras), number_of_clusters=16, cluster_centroids_init=linear
    )
    made["codebook"] = (compiled(clustered, keras, False), [])
    return made


def child(side: str, name: str, jit: bool) -> None:
    """Answer each line "variant" on stdin with its seconds a step, after one round to compile."""
    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    variants = peer(name) if side == "peer" else ours(name, jit)
    shape = variants["plain"][0].input_shape[1:]
    rng = np.random.default_rng(0)
    x = rng.random((STEPS * BATCH[name], *shape), "float32")
    y = rng.integers(0, 10, len(x))

    def train(variant):
        model, callbacks = variants[variant]
        start = time.perf_counter()
        model.fit(x, y, batch_size=BATCH[name], epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
        return (time.perf_counter() - start) / STEPS

    for variant in variants:
        train(variant)
    print(json.dumps({"ready": list(variants)}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": train(line.strip())}), flush=True)


# --- in the parent


class Child:
    """A process that trains on demand."""

    def __init__(self, python, side: str, name: str, jit: bool):
        environment = {
            **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "TF_NUM_INTRAOP_THREADS": "1",
            "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "1",
        }  # fmt: skip
        command = [str(python), __file__, "--child", side, name, "jit" if jit else "nojit"]
        self.log = open(ROOT / "build" / f"bench_{side}_{name}.log", "w")  # noqa: SIM115 - lives as long as the child
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.variants = self._answer()["ready"]

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"The child process ended; the end of {self.log.name} says why.")

    def seconds(self, variant: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(variant + "\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.log.close()


def peer_python() -> pathlib.Path:
    """The interpreter of the peer's own environment, made when missing."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        print(f"Making {PEER.name} with {', '.join(PEER_PACKAGES)} (minutes) ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "setuptools<81", *PEER_PACKAGES], check=True)
        (PEER / "ready").touch()
    return python


def measure(name: str, rounds: int, with_peer: bool, with_jit: bool) -> list[dict]:
    """One row a (side, variant): median milliseconds, and the ratio to its own plain with its quartiles."""
    children = {"ours": Child(sys.executable, "ours", name, False)}
    if with_jit:
        children["ours, jit"] = Child(sys.executable, "ours", name, True)
    if with_peer:
        children["peer"] = Child(peer_python(), "peer", name, False)
    tasks = [(side, variant) for side, one in children.items() for variant in one.variants]
    times: dict[tuple[str, str], list[float]] = {task: [] for task in tasks}
    for number in range(rounds):
        random.shuffle(tasks)
        for side, variant in tasks:
            times[side, variant].append(children[side].seconds(variant))
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
    for one in children.values():
        one.close()
    rows = []
    for (side, variant), seconds in sorted(times.items()):
        ratios = sorted(a / b for a, b in zip(seconds, times[side, "plain"], strict=True))
        quarter = len(ratios) // 4
        rows.append(
            {"model": name, "side": side, "variant": variant, "ms": 1000 * statistics.median(seconds),
             "ratio": statistics.median(ratios), "low": ratios[quarter], "high": ratios[-1 - quarter], "rounds": rounds}
        )  # fmt: skip
    return rows


def import_seconds(rounds: int = 7) -> dict[str, float]:
    """Median seconds of importing keras, and keras with tfcompress, in fresh processes, alternating."""
    found: dict[str, list[float]] = {"keras": [], "keras, tfcompress": []}
    for _ in range(rounds):
        for modules in found:
            code = f"import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            found[modules].append(float(done.stdout.split()[-1]))
    return {modules: statistics.median(times) for modules, times in found.items()}


def attach_seconds() -> float:
    """Seconds that attaching pruning to MobileNetV2-0.35 takes, with the copy."""
    code = (
        "import time, keras, tfcompress; from tfcompress import pruning;"
        "m = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10);"
        "t = time.perf_counter(); tfcompress.apply(m, pruning.Magnitude(sparsity=0.5), verbose=0);"
        "print(time.perf_counter() - t)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def table(rows: list[dict]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| model | variant | ours | ours, jit | TFMOT | bar |", "|---|---|---|---|---|---|"]
    by_key = {(row["model"], row["variant"], row["side"]): row for row in rows}
    for name in dict.fromkeys(row["model"] for row in rows):
        for variant in OURS:
            cells = []
            for side in ("ours", "ours, jit", "peer"):
                row = by_key.get((name, variant, side))
                if row is None:
                    cells.append("-")
                elif variant == "plain":
                    cells.append(f"{row['ms']:.1f} ms")
                else:
                    cells.append(f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
            bar = BARS.get(variant, {}).get(name)
            lines.append(f"| {name} | {variant} | {' | '.join(cells)} | {bar if bar else ''} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and with --write put the section into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BATCH), choices=list(BATCH))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-peer", action="store_true", help="leave TensorFlow Model Optimization out")
    parser.add_argument("--no-jit", action="store_true", help="leave XLA out (it compiles deep networks for minutes)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    parser.add_argument("--child", nargs=3, metavar=("SIDE", "MODEL", "JIT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        side, name, jit = arguments.child
        child(side, name, jit == "jit")
        return
    (ROOT / "build").mkdir(exist_ok=True)
    rows = [
        row
        for name in arguments.models
        for row in measure(name, arguments.rounds, not arguments.no_peer, not arguments.no_jit)
    ]
    imports, attach = import_seconds(), attach_seconds()
    if arguments.json:
        print(json.dumps({"rows": rows, "import": imports, "attach": attach}, indent=1))
        return
    extra = imports["keras, tfcompress"] - imports["keras"]
    text = (
        f"{table(rows)}\n\nImport: keras {imports['keras']:.2f} s; tfcompress adds {extra:.2f} s. "
        f"Attaching pruning to MobileNetV2-0.35, copy included: {attach:.2f} s."
    )
    print(text)
    if arguments.write:
        write(text)


def write(text: str, section: str = "training") -> None:
    """Replace a section of docs/performance.md."""
    path = ROOT / "docs" / "performance.md"
    start, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    old = path.read_text()
    if start not in old or end not in old:
        sys.exit(f"{path} has no lines {start} and {end} to write between.")
    head, rest = old.split(start)
    path.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
