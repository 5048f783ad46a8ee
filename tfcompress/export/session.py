"""One export call: the model, its record and data, and the float files that all its precisions are made from."""

import dataclasses
import functools
import pathlib
import re
import tempfile
import time

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError
from tfcompress.export import calibrate, floatfile, likeness, match, points, rewrite, savedmodel
from tfcompress.export.data import as_inputs, batches, random_inputs
from tfcompress.export.flatbuffer import Graph
from tfcompress.export.normalise import Normalisation
from tfcompress.export.savedmodel import Signature
from tfcompress.export.worker import Worker, WorkerError
from tfcompress.graph.rebuild import rebuild
from tfcompress.method import deployable

_PROBES = 4
# Numbers in all activations together, beyond which two probes have to do.
_MANY = 5_000_000
_LARGEST = 2**31 - 2**20


@dataclasses.dataclass
class FloatFile:
    """A converted float file and how it hangs together with Keras.

    Args:
        data: the file. model: the Keras model that it is of. origins: {tensor: converter's name}. operations: {Keras
            operation: tensors that carry its value}. layers: {tensor: Keras operation}, for reports.
    """

    data: bytes
    model: keras.Model
    origins: dict[str, str]
    operations: dict[str, list[str]]
    layers: dict[str, str]

    @functools.cached_property
    def graph(self) -> Graph:
        """The parsed file; read only."""
        return Graph(self.data)


class Session:
    """What the files of one export call share.

    Args:
        model: the user's model, attached or plain. record: its ranges, None to take those on the model.
        samples, calibration: data as `data.as_inputs` takes it, or None. batch: fixed batch size.
        normalisation: for the inputs, see `normalise`. worker: the converter process. timeout: seconds a conversion.
        custom_ops: whether custom operators may be in the file. force: export although a schedule never advanced.
    """

    def __init__(
        self, model, *, record, samples, calibration, batch, normalisation, worker: Worker, timeout, custom_ops, force
    ):
        if not isinstance(model, keras.Model):
            raise CompressionError(f"export takes a keras.Model, not {type(model).__name__}.")
        if not isinstance(batch, int) or batch < 1:
            raise CompressionError(f"batch must be a positive whole number, not {batch!r}: phones need fixed shapes.")
        self.worker, self.timeout, self.custom_ops = worker, timeout, custom_ops
        self.notes: list[str] = []
        self.fallbacks: list[str] = []
        self.seconds: dict[str, float] = {}
        plain, own = deployable(model, force)
        self.attached = model if plain is not model else None
        self.record = own if record is None else record
        _check_size(plain)
        self.plain = savedmodel.float32_twin(plain)
        if self.plain is not plain:
            self.notes.append(f"the model computes in {_computes_in(plain)} in Keras; the file computes in float32")
        self.batch = batch
        self.ports, self.calibration, given = self._ends(samples, calibration)
        if given is None:
            self.notes.append("no samples were given: probes and verification ran on random inputs")
        self.samples = random_inputs(self.ports.inputs, 16 * batch) if given is None else given
        self.has_samples = given is not None
        tensors = _keras_compat.model_inputs(self.plain)
        self.free_batch = tensors is None or any(t.shape[0] is None for t in tensors)
        self.normalisation = Normalisation.of(normalisation, self.ports)
        self._float_files: dict[tuple[bool, bool, bool], FloatFile] = {}
        self._statistics: dict[tuple[bool, bool, calibrate.Estimator], calibrate.Statistics] = {}

    def _ends(self, samples, calibration) -> tuple[Signature, list | None, list | None]:
        """The file's ends with fixed sizes, the calibration data and the samples (or the former in their place)."""
        first = None
        if _keras_compat.model_inputs(self.plain) is None and not (samples is None and calibration is None):
            first = as_inputs(samples if samples is not None else calibration, None, "samples")
            # Batches that a generator yields come once.
            samples, calibration = (first, calibration) if samples is not None else (None, first)
        ports = savedmodel.signature(self.plain, first, self.batch, trained=bool(self.record))
        fed = None if calibration is None else as_inputs(calibration, ports.inputs, "calibration")
        given = fed if samples is None else as_inputs(samples, ports.inputs, "samples")
        ports, notes = savedmodel.fixed(self.plain, ports, given)
        if notes:
            shapes = zip(_keras_compat.model_inputs(self.plain) or [], ports.inputs, strict=False)
            sizes = {t.name: (t.shape[0], *port.shape[1:]) for t, port in shapes}
            self.plain = rebuild(self.plain, input_shapes=sizes)
        self.notes += notes + [
            f"input {name!r} is {dtype} in Keras and int32 in the file" for name, dtype in _narrowed(self.plain, ports)
        ]
        if fed is not None and samples is not None:
            as_inputs(fed, ports.inputs, "calibration")  # sizes that the samples fixed hold for it too
        return ports, fed, given

    @functools.cached_property
    def unlike_training(self) -> list[str]:
        """What batch normalization says of the calibration data, where it was trained on something else."""
        layers = _keras_compat.flat_layers(self.plain)
        if self.calibration is None or not any(isinstance(layer, keras.layers.BatchNormalization) for layer in layers):
            return []
        if _keras_compat.functional(self.plain) is None:
            return []
        count = _PROBES if self.free_batch and self.batch == 1 else self.batch
        values = points.capture(self.plain, batches(self.calibration, count, count)[0])
        sentence = likeness.of_normalizations(self.plain, values)
        return [sentence] if sentence else []

    def float_file(self, unrolled: bool, prepended: bool, integers: bool = False) -> FloatFile:
        """The float file, converted at most once in each form.

        Args:
            unrolled: with recurrent layers unrolled. prepended: with the normalisation as operators in front.
            integers: with operators that have no integer kernel rewritten.
        """
        key = (unrolled, prepended, integers)
        if key not in self._float_files:
            if integers:
                plain = self.float_file(unrolled, prepended)
                self._float_files[key] = dataclasses.replace(plain, data=rewrite.for_integers(plain.data))
            else:
                self._float_files[key] = self._convert(unrolled, prepended)
        return self._float_files[key]

    def recurrent(self) -> bool:
        """Whether unrolling changes the model."""
        return any(
            isinstance(layer, keras.layers.RNN) and not layer.unroll for layer in _keras_compat.flat_layers(self.plain)
        )

    def runs(self, arrays: list[np.ndarray], prepended: bool, most: int | None = None) -> list[list[np.ndarray]]:
        """Samples cut into runs of the float file, raw where it normalises by itself."""
        return batches(self.normalisation.raw(arrays) if prepended else arrays, self.batch, most)

    def statistics(self, unrolled: bool, prepended: bool, estimator: calibrate.Estimator) -> calibrate.Statistics:
        """Ranges on the calibration data (the samples where a record leaves little to calibrate), taken once."""
        key = (unrolled, prepended, estimator)
        if key not in self._statistics:
            arrays = self.calibration if self.calibration is not None else self.samples
            with self._timed("calibration"):
                self._statistics[key] = calibrate.collect(
                    self.float_file(unrolled, prepended, True).data, self.runs(arrays, prepended), estimator
                )
        return self._statistics[key]

    def saved_model(self, unrolled: bool, prepended: bool, folder: pathlib.Path) -> keras.Model:
        """Write the SavedModel of one form into `folder`, and return the Keras model that went in."""
        model = (savedmodel.unrolled_twin(self.plain) or self.plain) if unrolled else self.plain
        whole = self.normalisation.prepend(model, self.ports) if prepended else model
        savedmodel.prepare(whole, self.ports, folder, self.worker, self.timeout)
        return model

    def stock(self, unrolled: bool, prepended: bool, precision: str) -> bytes:
        """The stock converter's own post-training quantization, under our names; the ends are float."""
        arrays = self.calibration if self.calibration is not None else self.samples
        fed = self.normalisation.raw(arrays) if prepended else arrays
        with tempfile.TemporaryDirectory(prefix="tfcompress-") as scratch:
            folder, out, data = (pathlib.Path(scratch, name) for name in ("saved_model", "stock.tflite", "data.npz"))
            self.saved_model(unrolled, prepended, folder)
            named: dict = {p.name: value for p, value in zip(self.ports.inputs, fed, strict=True)}
            np.savez(data, **named)
            self.worker.request(
                "stock", self.timeout, saved_model=str(folder), out=str(out), precision=precision, data=str(data)
            )
            return floatfile.tidy(out.read_bytes(), self.ports)[0]

    def _convert(self, unrolled: bool, prepended: bool) -> FloatFile:
        with tempfile.TemporaryDirectory(prefix="tfcompress-") as scratch:
            folder, out = pathlib.Path(scratch, "saved_model"), pathlib.Path(scratch, "float.tflite")
            with self._timed("saved model"):
                model = self.saved_model(unrolled, prepended, folder)
            with self._timed("float conversion"):
                try:
                    self.worker.request(
                        "convert", self.timeout, saved_model=str(folder), out=str(out), custom_ops=self.custom_ops
                    )
                except WorkerError as error:
                    return self._without_loops(unrolled, prepended, error)
            data, origins = floatfile.tidy(out.read_bytes(), self.ports)
        with self._timed("matching"):
            operations = self._match(data, model, prepended)
        layers = {tensor: name for name, tensors in reversed(operations.items()) for tensor in tensors}
        return FloatFile(data, model, origins, operations, layers)

    def _without_loops(self, unrolled: bool, prepended: bool, error: WorkerError) -> FloatFile:
        """The fall-back of a failed conversion: recurrent layers unrolled."""
        if unrolled or not self.recurrent():
            raise CompressionError(explain(error)) from error
        self.fallbacks.append(
            f"float conversion failed ({str(error).splitlines()[0]}); converted with recurrent layers unrolled"
        )
        return self.float_file(True, prepended)

    def _match(self, data: bytes, model: keras.Model, prepended: bool) -> dict[str, list[str]]:
        """Which tensors carry the value of which Keras operation, on probes drawn from the samples."""
        graph = Graph(data)
        if graph.custom():
            return {port.name: [port.name] for port in self.ports.inputs}
        size = sum(int(np.prod(graph.shape(t))) for t in calibrate.activations(graph))
        count = self.batch * (_PROBES if size < _MANY else 2)
        probes = batches(self.samples, self.batch, count)
        named = [points.capture(model, probe) for probe in probes]
        fed = batches(self.normalisation.raw(self.samples), self.batch, count) if prepended else probes
        found = match.activations(named, [calibrate.values(data, run) for run in fed])
        for port in self.ports.inputs:
            found.setdefault(port.name, [port.name])
        return found

    def _timed(self, what: str):
        return _Timer(self.seconds, what)


class _Timer:
    def __init__(self, seconds: dict[str, float], what: str):
        self._seconds, self._what = seconds, what

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self._seconds[self._what] = self._seconds.get(self._what, 0.0) + time.perf_counter() - self._start


def _check_size(model) -> None:
    size = sum(int(np.prod(w.shape)) * 4 for w in model.weights)
    if size > _LARGEST:
        raise CompressionError(
            f"Model {model.name!r} has {size / 2**30:.1f} GiB of float32 weights, and a .tflite file ends at 2 GiB (an integer file "
            "is made from a float one). Export it in parts, each a model of its own, or make it smaller first."
        )


def _computes_in(model) -> str:
    names = {
        layer.dtype_policy.name
        for layer in _keras_compat.flat_layers(model)
        if layer.compute_dtype not in (None, "float32")
    }
    return ", ".join(sorted(names))


def _narrowed(model, ports: Signature) -> list[tuple[str, str]]:
    """(name, Keras dtype) of the inputs that are wider integers in Keras than in the file."""
    tensors = _keras_compat.model_inputs(model) or []
    pairs = [(port, keras.backend.standardize_dtype(t.dtype)) for port, t in zip(ports.inputs, tensors, strict=False)]
    return [(port.name, dtype) for port, dtype in pairs if dtype == "int64" and port.dtype == "int32"]


def explain(error: WorkerError) -> str:
    """The converter's wall of text as a sentence: the operator, and what to write in its place."""
    text = str(error)
    operators = sorted(set(re.findall(r"'?tf\.(\w+)'? op is neither a custom op nor a flex op", text)))
    if not operators:
        return f"The TFLite converter failed. {text[:2000]}"
    hints = {
        "Erf": "write gelu with approximate=True",
        "Cholesky": "it has no mobile form",
        "XlaDynamicSlice": "slice with fixed sizes",
    }
    advice = "; ".join(hints[name] for name in operators if name in hints)
    layers = sorted(set(re.findall(r'"([\w/.:-]+)"', text)))[:4]
    where = f" It comes from {', '.join(layers)}." if layers else ""
    return f"TFLite has no kernel for {', '.join(operators)}.{where} {advice or 'Write it with other operations'}; or pass custom_ops=True."
