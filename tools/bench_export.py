#!/usr/bin/env python3
"""Exported int8 files against the stock converter's of the same model: latency, operators, seconds of conversion.

    python tools/bench_export.py                         # prints the table
    python tools/bench_export.py --models mobilenet_v2 --rounds 5
    python tools/bench_export.py --write                 # also the section of docs/performance.md

The models are those of the zoo, trained by `tools/zoo.py` (their step "float" runs here where it has not). Both tools
convert in this process, in turns, with TensorFlow loaded and 128 calibration samples; both files have int8 ends. Files are
timed in turns too, so that whatever else the machine does falls on both alike. The training step of quantization-aware
training is in tools/bench_training.py.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
for _name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

MODELS = ("unet", "detector", "mobilenet", "mobilenet_v2", "efficientnet_b0")
LATENCY_BAR = 1.05


def measure(key: str, rounds: int, conversions: int) -> dict:
    """One model: seconds of both conversions, ratio of the latencies, and the operators that only one file has."""
    from models.zoo import peers, steps, timing
    from tfcompress import export
    from tfcompress.export import census
    from tfcompress.export.flatbuffer import Graph

    model = steps.Model(key, ROOT / "build/zoo")
    model.run("float", True, lambda text: print(text, file=sys.stderr))
    calibration = model.x[: peers.CALIBRATION]
    net = model.trained()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        (folder / "float.keras").symlink_to(model.path("float.keras"))
        files = {"stock": folder / "converter.tflite", "ours": folder / "ours.tflite"}

        def ours(verify: bool):
            export.tflite(
                net, files["ours"], "int8", calibration=calibration, boundary="int8", verify=verify, verbose=0
            )

        def stock():
            with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():  # Keras lists every variable
                warnings.simplefilter("ignore")
                peers.converter(folder, calibration)

        tasks = {
            "stock": stock,
            "ours": lambda: ours(False),
            "ours, verified": lambda: ours(True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for task in tasks.values():
            task()  # imports, the converter process, first traces
        for _ in range(conversions):
            for name, task in tasks.items():
                start = time.perf_counter()
                task()
                seconds[name].append(time.perf_counter() - start)
        times = timing.alternate(files, "stock", rounds)
        counts = {
            name: collections.Counter(census.take(Graph(path.read_bytes())).operators) for name, path in files.items()
        }
        return {
            "model": key,
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "latency": times["ours"],
            "stock ms": times["stock"]["ms"],
            "only ours": dict(counts["ours"] - counts["stock"]),
            "only stock": dict(counts["stock"] - counts["ours"]),
            "bytes": {name: path.stat().st_size for name, path in files.items()},
        }


def table(rows: list[dict]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| model | latency, ours / stock | stock ms | operators more in ours | operators more in the stock file | conversion s: stock | ours | "
        "ours, verified | bytes, ours / stock |",
        "|---|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        latency, seconds = row["latency"], row["seconds"]
        more, less = (
            ", ".join(f"{n} {kind}" for kind, n in row[which].items()) or "none"
            for which in ("only ours", "only stock")
        )
        lines.append(
            f"| {row['model']} | {latency['ratio']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}] | {row['stock ms']:.3f} "
            f"| {more} | {less} | {seconds['stock']:.1f} | {seconds['ours']:.1f} | {seconds['ours, verified']:.1f} "
            f"| {row['bytes']['ours'] / row['bytes']['stock']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and with --write put the section into docs/performance.md; 1 where a file is slower than it may be."""
    from bench_training import write

    from models.zoo import find

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="KEY")
    parser.add_argument("--rounds", type=int, default=25, help="turns of the latency measurement")
    parser.add_argument("--conversions", type=int, default=3, help="turns of the conversions")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    arguments = parser.parse_args()
    for key in arguments.models:
        find(key)
    rows = []
    for key in arguments.models:
        print(f"measuring {key}", file=sys.stderr)
        rows.append(measure(key, arguments.rounds, arguments.conversions))
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(table(rows))
    if arguments.write:
        write(table(rows), "export")
    slow = [row["model"] for row in rows if row["latency"]["ratio"] > LATENCY_BAR]
    if slow:
        print(f"slower than {LATENCY_BAR} times the stock converter's file: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
