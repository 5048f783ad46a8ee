"""The whole path on a small network: train, prune, quantize, export, verify, pack, measure, report.

Run by ./tools/demo, which makes the environment. What it prints is measured here and now.
"""

import argparse
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# models/ is no part of the installed package.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SPARSITY = 0.8
# Epochs of plain training, of pruning, and of quantization-aware retraining.
EPOCHS = {"digits": (20, 20, 8), "mnist": (3, 3, 2)}
BATCH = {"digits": 32, "mnist": 128}
# Larger images get fewer filters, so that either takes a minute or two on two cores.
FILTERS = {"digits": (32, 64), "mnist": (8, 16)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./tools/demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", choices=sorted(EPOCHS), default="digits", help="data set (default: digits, ships with scikit-learn)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("build/demo"),
        help="folder for the files (default: build/demo)",
    )
    arguments = parser.parse_args()

    from tfcompress.errors import CompressionError

    try:
        Demo(arguments.data, arguments.out).run()
    except CompressionError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. ./tools/demo starts again from the beginning.")


class Demo:
    """The steps, one method each, and what they hand on.

    Args:
        data: name of the data set. out: folder for the files.
    """

    def __init__(self, data: str, out: pathlib.Path):
        self.start = time.monotonic()
        self.out = out
        self.say("Starting TensorFlow and Keras")
        import keras

        from models import datasets

        keras.utils.set_random_seed(0)
        self.data = load(data, datasets)
        self.epochs, self.batch = EPOCHS[data], BATCH[data]
        out.mkdir(parents=True, exist_ok=True)

    def say(self, sentence: str) -> None:
        """Print a step with the seconds since the start."""
        print(f"[{time.monotonic() - self.start:5.1f} s] {sentence}", flush=True)

    def run(self) -> None:
        model = self.train()
        small = self.compress(model)
        files = self.export(model, small)
        self.report(model, small, files)

    def fit(self, model, epochs: int, rate: float, callbacks: tuple = ()) -> None:
        """Ordinary Keras training."""
        import keras

        model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
        model.fit(
            self.data.x_train,
            self.data.y_train,
            batch_size=self.batch,
            epochs=epochs,
            verbose=0,
            callbacks=list(callbacks),
        )
        _, accuracy = model.evaluate(self.data.x_test, self.data.y_test, batch_size=500, verbose=0)
        self.say(f"  {epochs} epochs, accuracy {accuracy:.2%} on {len(self.data.x_test):,} images that it has not seen")

    def train(self):
        """A small convolutional network, trained as always."""
        from keras import Input, Sequential, layers

        shape = self.data.x_train.shape[1:]
        parts = [Input(shape)]
        for filters in FILTERS[self.data.name]:
            parts += [
                layers.Conv2D(filters, 3, padding="same", use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ]
            parts.append(layers.MaxPooling2D())
        parts += [
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(self.data.classes, activation="softmax"),
        ]
        model = Sequential(parts, name=f"cnn_{self.data.name}")
        self.say(
            f"Training a convolutional network of {model.count_params():,} parameters on {self.data.name} ({self.data.split})"
        )
        self.fit(model, self.epochs[0], 1e-3)
        return model

    def compress(self, model):
        """Prune while training, then train with 8-bit weights and outputs; both on copies."""
        import tfcompress
        from tfcompress import pruning, quantization, schedules

        _, prune, quantize = self.epochs
        steps = -(-len(self.data.x_train) // self.batch)
        self.say(f"Pruning {SPARSITY:.0%} of its weights while it trains on")
        # The last quarter of the training is for the weights that are left.
        sparsity = schedules.Cubic(0.0, SPARSITY, steps=steps * prune * 3 // 4)
        small = tfcompress.apply(model, pruning.Magnitude(sparsity=sparsity, frequency=10), verbose=0)
        self.fit(small, prune, 1e-3, (tfcompress.Compression(),))
        self.say("Training it with 8-bit weights and outputs, the pruned weights staying zero")
        small = tfcompress.apply(small, quantization.QAT(), data=self.data.x_train[:200], verbose=0)
        self.fit(small, quantize, 2e-4, (tfcompress.Compression(),))
        return small

    def export(self, model, small) -> dict:
        """{variant: (path, export's report, packing's report)}; each file is verified against its Keras model."""
        from tfcompress import codecs, export

        files = {}
        for name, source, precision in (
            ("float32", model, "float32"),
            (f"int8, {100 * SPARSITY:.0f} % pruned", small, "int8"),
        ):
            path = self.out / f"{precision}.tflite"
            self.say(f"Exporting {path}, and checking its answers against the Keras model")
            exported = export.tflite(source, path, precision, calibration=self.data.x_train[:200], verbose=0)
            checked = exported.verification
            agreement = "" if checked.agreement is None else f", top-1 agreement {checked.agreement:.1%}"
            self.say(f"  largest error {checked.max_error:.2%} of the output's range{agreement}")
            packed = codecs.pack(path, path.with_suffix(".tfcz"))
            codecs.unpack(path.with_suffix(".tfcz"), path.with_suffix(".unpacked.tflite"))
            if path.with_suffix(".unpacked.tflite").read_bytes() != path.read_bytes():
                raise SystemExit(f"Error: {path} did not come out of its .tfcz as it went in; please report this.")
            path.with_suffix(".unpacked.tflite").unlink()
            self.say(f"  packed to {packed.file_bytes:,} of {exported.size:,} bytes, and unpacked again byte for byte")
            files[name] = path, exported, packed
        return files

    def measure(self, files: dict):
        """The latency of the files on this machine, in alternating processes."""
        import android_bench

        self.say("Measuring both files on this machine, in turns, on one thread")
        record = android_bench.run(
            [path for path, _, _ in files.values()], threads=(1,), min_seconds=0.3, blocks=6, out=self.out
        )
        for comparison in android_bench.compare(record):
            self.say(f"  {comparison.sentence}")
        return record

    def report(self, model, small, files: dict) -> None:
        """One record; from it the table here and the page."""
        import json

        import numpy as np
        import rich

        import tfcompress
        from tfcompress import cost, export, report

        record = self.measure(files)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        name, split = self.data.name, self.data.split
        result = report.Report(
            f"A small convolutional network on {name}",
            data=split if name in split else f"{name}, {split}",
            samples=len(self.data.x_test),
            environment=report.environment(),
            created=made,
        )
        plain = tfcompress.finalize(small, verbose=0)
        _, prune, quantize = self.epochs
        result.notes.append(
            f"The int8 network is the float32 one after {prune} more epochs of pruning and {quantize} in 8 bits; accuracies are "
            "those of the .tflite files in LiteRT."
        )
        for (name, (path, exported, packed)), source in zip(files.items(), (model, plain), strict=True):
            answers = export.Runner(path)(self.data.x_test)
            counted = cost.count(source)
            result.add_row(
                name,
                export=exported,
                packed=packed,
                accuracy=float(np.mean(answers.argmax(-1) == self.data.y_test)),
                parameters=counted.parameters,
                nonzeros=counted.nonzeros,
                macs=counted.macs,
                layers=report.layers(source),
            )
        result.add_bench(json.loads(record.to_json()))
        result.save(self.out / "report.json")
        page = result.html(self.out / "report.html")
        self.say("Done\n")
        rich.print(result.table())
        print(f"The page with plots: {page}\nThe figures as JSON: {self.out / 'report.json'}")


def load(name: str, datasets):
    """The data set, fetched by Keras where neither a cache nor npm has it."""
    from tfcompress.errors import CompressionError

    try:
        return datasets.load(name)
    except CompressionError:
        import keras

        try:
            getattr(keras.datasets, name).load_data()
        except Exception:  # whatever the download fails with, the first message says what can be done
            pass
        else:
            return datasets.load(name)
        raise


if __name__ == "__main__":
    main()
