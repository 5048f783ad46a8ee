"""The steps that a model of the zoo goes through: trained, exported in every precision, trained in 8 bits, timed.

Every step keeps its result in the model's folder, with a hash of what it depends on.
"""

import hashlib
import inspect
import itertools
import json
import pathlib
import time
import traceback

import keras
import numpy as np

from models.experiments import worker as records
from models.zoo import Entry, custom, find
from tfcompress import Compression, _keras_compat, apply, export, quantization
from tfcompress.errors import CompressionError
from tfcompress.export import census
from tfcompress.export.flatbuffer import Graph
from tfcompress.files import replacing

ROOT = records.ROOT
# One call of `export.convert` each, of which float32 comes first: (precisions, type of their ends).
PRECISIONS = ((("float32", "float16", "dynamic", "int8", "int4"), "int8"), (("int16x8",), "int16"))
CALIBRATION = 128
_PARTS = {
    "float": (),
    "ptq": ("export", "graph"),
    "qat": ("export", "graph", "quantization", "layers", "core"),
    "latency": ("export", "graph", "quantization", "layers", "core"),
    "stock": (),
    "tfmot": (),
}


class Model:
    """One model of the zoo at work.

    Args:
        key: of the entry. root: the folder under which every model has its own. quick: a few training steps only.
    """

    def __init__(self, key: str, root: pathlib.Path, quick: bool = False):
        self.key, self.quick, self.entry = key, quick, find(key)
        self.folder = root / key
        self.folder.mkdir(parents=True, exist_ok=True)
        few = 64 if quick else None
        self.x, self.y = self.entry.data(few or self.entry.samples, 1)
        self.x_test, self.y_test = self.entry.data(few or self.entry.tests, 2)

    def path(self, name: str) -> pathlib.Path:
        """A file in the model's folder."""
        return self.folder / name

    def trained(self):
        """The float network that the step "float" left."""
        return keras.saving.load_model(self.path("float.keras"), compile=False)

    def code(self, step: str) -> str:
        """SHA-256 of what a step's result depends on, but the packages."""
        return code(self.entry, step)

    def stored(self, step: str) -> dict | None:
        """The record of a finished step."""
        path = self.path(f"{step}.json")
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, step: str, keep: bool, say) -> dict:
        """A step's record, stored or made now.

        Args:
            step: a key of `STEPS`. keep: take a stored record of other code too. say: where a line goes.
        """
        record = self.stored(step)
        if record is not None and (keep or record["code"] == self.code(step)):
            say(f"{self.key}: {step} is stored")
            return record
        say(f"{self.key}: {step}")
        start, mark = time.monotonic(), self.code(step)
        result = STEPS[step](self)
        record = {"code": mark, "seconds": round(time.monotonic() - start, 1), "result": result}
        with replacing(self.path(f"{step}.json")) as part:
            part.write_text(json.dumps(record, indent=1))
        return record


def code(entry: Entry, step: str) -> str:
    """SHA-256 of what a step's result for an entry depends on, but the packages."""
    build = getattr(entry.build, "func", entry.build)
    data = getattr(entry.data, "func", entry.data)
    digest = hashlib.sha256()
    for part in (build, data):
        digest.update(inspect.getsource(part).encode())
    digest.update(repr((entry.loss, entry.epochs, entry.rate, entry.samples, entry.batch, entry.tests)).encode())
    digest.update(repr([getattr(f, "keywords", {}) for f in (entry.build, entry.data)]).encode())
    for package in _PARTS[step]:
        for path in sorted((ROOT / "tfcompress" / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


# Training


def train(model: Model) -> dict:
    """Train the float network on its toy set, and store it."""
    keras.utils.set_random_seed(0)
    entry, net = model.entry, model.entry.build(keras)
    for layer in _keras_compat.flat_layers(net):
        if isinstance(layer, keras.layers.BatchNormalization):
            # With Keras's 0.99 the moving statistics have not settled after so few steps.
            layer.momentum = 0.8
    stop = _StopWhenLearned(model)
    net.compile(keras.optimizers.Adam(entry.rate, clipnorm=1.0), losses(entry), jit_compile=False)
    net.fit(
        model.x, model.y, batch_size=entry.batch, epochs=2 if model.quick else entry.epochs, verbose=0, callbacks=[stop]
    )
    net.save(model.path("float.keras"))
    return {
        "score": entry.score(answers(net, model.x_test), model.y_test),
        "epochs": stop.epochs,
        "parameters": net.count_params(),
        "layers": len(net.layers),
    }


class _StopWhenLearned(keras.callbacks.Callback):
    """Ends the training when the criterion holds on the training set's last 128 samples, by a margin."""

    def __init__(self, model: Model):
        super().__init__()
        self.epochs, self.entry = 0, model.entry
        self.x, self.y = (keras.tree.map_structure(lambda a: a[-128:], part) for part in (model.x, model.y))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs = epoch + 1
        aim = self.entry.least + 0.6 * (1 - self.entry.least)
        if self.entry.score(answers(self.model, self.x), self.y) >= aim:
            self.model.stop_training = True


def losses(entry: Entry):
    """The losses of an entry, as `compile` takes them."""

    def one(name):
        return getattr(custom, name[4:]) if name.startswith("zoo:") else name

    return {key: one(name) for key, name in entry.loss.items()} if isinstance(entry.loss, dict) else one(entry.loss)


def answers(net, x) -> list[np.ndarray]:
    """A network's flat outputs in inference, computed call by call: compiling takes longer for so few samples."""
    parts = []
    count = len(keras.tree.flatten(x)[0])
    for start in range(0, count, 64):
        chunk = keras.tree.map_structure(lambda a, at=start: keras.ops.convert_to_tensor(a[at : at + 64]), x)
        parts.append([keras.ops.convert_to_numpy(v) for v in keras.tree.flatten(net(chunk, training=False))])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


# Files


def calibrated(model: Model) -> dict:
    """Every precision by post-training quantization, measured against the float network."""
    net = model.trained()
    wanted = answers(net, model.x_test)
    rows: dict[str, dict] = {}
    for precisions, ends in PRECISIONS:
        files = {precision: model.path(f"{precision}.tflite") for precision in precisions}
        for path in files.values():
            path.unlink(missing_ok=True)
        try:
            rows |= _rows(model, _convert(net, model, files, ends), files, wanted)
        except Exception:
            for precision, path in files.items():
                rows[precision] = _tried(model, net, {precision: path}, ends, wanted)
    return rows


def _tried(model: Model, net, files: dict, ends: str, wanted) -> dict:
    """The row of one precision, or of its failure."""
    precision = next(iter(files))
    try:
        return _rows(model, _convert(net, model, files, ends), files, wanted)[precision]
    except Exception as error:
        return failure(error)


def _convert(net, model: Model, files: dict, ends: str) -> dict:
    plan = {path: precision for precision, path in files.items()}
    calibration = keras.tree.map_structure(lambda a: a[:CALIBRATION], model.x)
    reports = export.convert(net, plan, calibration=calibration, samples=model.x_test, boundary=ends, verbose=0)
    return {precision: reports[path] for precision, path in files.items()}


def _rows(model: Model, reports: dict, files: dict, wanted) -> dict:
    return {p: measured(model, files[p], wanted) | of_report(report) for p, report in reports.items()}


def trained_in_8_bits(model: Model) -> dict:
    """Quantization-aware training, saved, loaded and exported; measured against its own simulation."""
    keras.utils.set_random_seed(0)
    calibration = keras.tree.map_structure(lambda a: a[:CALIBRATION], model.x)
    path = model.path("qat.tflite")
    path.unlink(missing_ok=True)
    try:
        net = apply(model.trained(), quantization.QAT(), data=calibration, verbose=0)
        net.compile(keras.optimizers.Adam(model.entry.rate / 20), losses(model.entry), jit_compile=False)
        net.fit(
            model.x, model.y, batch_size=model.entry.batch, epochs=1 if model.quick else model.entry.again, verbose=0,
            callbacks=[Compression(per_layer=False)],
        )  # fmt: skip
        net.save(model.path("qat.keras"))
        net = keras.saving.load_model(model.path("qat.keras"), compile=False)
        simulated = answers(net, model.x_test)
        report = export.tflite(
            net, path, "int8", calibration=calibration, samples=model.x_test, boundary="int8", verbose=0
        )
        row = measured(model, path, simulated) | of_report(report)
        return row | {"simulated score": model.entry.score(simulated, model.y_test)}
    except Exception as error:
        return failure(error)


def failure(error: Exception) -> dict:
    """The row of what did not work: the reason in a sentence, all of it in the log."""
    traceback.print_exception(error)
    text = " ".join(str(error).split())
    kind = "" if isinstance(error, CompressionError) else f"{type(error).__name__}: "
    return {"converts": False, "reason": shortened(kind + text)}


def shortened(text: str, most: int = 400) -> str:
    """A reason without its tail."""
    return text if len(text) <= most else text[: most - 3] + "..."


def of_report(report) -> dict:
    """What of a row is the export's own account."""
    checked = report.verification
    return {
        "gpu": checked.gpu["compatible"],
        "gpu reasons": [shortened(reason, 160) for reason in checked.gpu["reasons"]][:3],
        "trained ranges": report.ranges.get("trained", 0),
        "calibrated": report.calibrated,
        "fall-backs": report.fallbacks,
        "notes": [shortened(note, 300) for note in report.notes],
        "seconds": round(sum(report.seconds.values()), 1),
    }


def measured(model: Model, path: pathlib.Path, wanted: list[np.ndarray], any_order: bool = False) -> dict:
    """Run a file on the test samples and compare it with the flat outputs that its reference gave.

    Errors are those of the worst output, in steps of that output where it has steps, and relative to its range. With
    `any_order` the outputs are paired as fits best: other tools name and order them as they like.
    """
    runner = export.Runner(path)
    found = runner(**model.x_test) if isinstance(model.x_test, dict) else runner(model.x_test)
    outputs = [found[name] for name in runner.outputs] if isinstance(found, dict) else [found]
    steps = runner.steps()
    if any_order:
        outputs, steps = _paired(outputs, steps, wanted)
    return compared(model.entry, outputs, wanted, steps) | {
        "converts": True,
        "score": model.entry.score(outputs, model.y_test),
        "bytes": path.stat().st_size,
        **_operators(path),
    }


def _paired(outputs, steps, wanted):
    """Outputs and their steps in the order of the reference's outputs that they come closest to."""

    def apart(order):
        return sum(
            np.abs(outputs[i] - w).mean() if outputs[i].shape == w.shape else np.inf
            for i, w in zip(order, wanted, strict=True)
        )

    best = min(itertools.permutations(range(len(outputs))), key=apart)
    return [outputs[i] for i in best], [steps[i] for i in best]


def compared(entry: Entry, outputs, wanted, steps) -> dict:
    """Errors and top-1 agreement of one file's outputs.

    Top-1 counts where the reference's margin exceeds two steps: below that a rounding decides.
    """
    errors = [np.abs(o.astype(np.float64) - w) for o, w in zip(outputs, wanted, strict=True)]
    row: dict = {
        "relative": max(float(e.max() / (np.ptp(w) or 1.0)) for e, w in zip(errors, wanted, strict=True)),
        "largest": None,
        "mean": None,
        "within one": None,
        "agreement": None,
        "counted": None,
    }
    pairs = [(e, step) for e, step in zip(errors, steps, strict=True) if step]
    if pairs:
        row["largest"] = max(float(e.max() / step) for e, step in pairs)
        row["mean"] = max(float(e.mean() / step) for e, step in pairs)
        # A scale's last bit must not make one step two.
        row["within one"] = min(float((e <= 1.001 * step).mean()) for e, step in pairs)
    if entry.classified:
        scored = [three for three in zip(outputs, wanted, steps, strict=True) if _has_classes(three[1])]
        shares = [_agreement(*three) for three in scored]
        row["agreement"] = min((same for same, _ in shares if same is not None), default=None)
        row["counted"] = min((share for _, share in shares), default=None)
    return row


def _has_classes(wanted) -> bool:
    """Whether an output is scores: they are not negative and sum up to 1."""
    return wanted.shape[-1] > 1 and bool((wanted >= 0).all() and np.allclose(wanted.sum(-1), 1, atol=0.05))


def _agreement(output, want, step) -> tuple[float | None, float]:
    ordered = np.sort(want, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 2 * (step or 0.0)
    same = output.reshape(want.shape).argmax(-1) == want.argmax(-1)
    return (float(same[clear].mean()) if clear.any() else None), float(clear.mean())


def _operators(path: pathlib.Path) -> dict:
    counted = census.take(Graph(path.read_bytes()))
    floats: dict[str, int] = {}
    for op in counted.float_operators:
        floats[op.kind] = floats.get(op.kind, 0) + 1
    return {
        "holds": counted.precision,
        "operators": counted.operators,
        "float": floats,
        "integer share": counted.integer_share,
    }


def latencies(model: Model, rounds: int = 15) -> dict:
    """Milliseconds of one run of every file on one thread, the files taking turns, and the ratio to float32."""
    from models.zoo.timing import alternate

    files = {p: model.path(f"{p}.tflite") for group, _ in PRECISIONS for p in group} | {"qat": model.path("qat.tflite")}
    present = {name: path for name, path in files.items() if path.exists()}
    if "float32" not in present:
        return {}
    return alternate(present, "float32", 3 if model.quick else rounds)


def stock(model: Model) -> dict:
    """What the stock tools make of the same trained network."""
    from models.zoo.stock import tried

    return tried(model)


def tfmot(model: Model) -> dict:
    """What TensorFlow Model Optimization's quantization-aware training makes of the same network, in tf_keras."""
    from models.zoo.stock import tried_with_tfmot

    return tried_with_tfmot(model)


STEPS = {
    "float": train,
    "ptq": calibrated,
    "qat": trained_in_8_bits,
    "latency": latencies,
    "stock": stock,
    "tfmot": tfmot,
}
