"""What a report holds about each variant of a model: plain records of measured figures. None means "not measured"."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Latency:
    """Measured time of one inference, in milliseconds.

    Args:
        median_ms, p5_ms, p95_ms: median, 5th and 95th percentile of the runs.
        interval_ms: lower and upper end of the confidence interval of the median.
        confidence: level of that interval.
        runs: number of timed runs.
        threads: number of threads of the runtime.
        device: where it ran ("host", a phone's name). accelerator: what ran it there ("cpu", "gpu").
        card: the processor or SoC that the device has.
    """

    median_ms: float
    p5_ms: float | None = None
    p95_ms: float | None = None
    interval_ms: tuple[float, float] | None = None
    confidence: float = 0.95
    runs: int | None = None
    threads: int | None = None
    device: str = "host"
    accelerator: str = "cpu"
    card: str = ""

    @property
    def setting(self) -> str:
        """What has to be equal for two latencies to be compared."""
        return _setting(self.device, self.accelerator, self.threads)


@dataclasses.dataclass(frozen=True)
class Energy:
    """Measured energy of one inference, in millijoules, idle power taken off.

    Args:
        millijoules: the estimate. interval_mj: its 95 % interval.
        source: what measured it ("power rails", "battery gauge", "external meter").
        threads, device, accelerator: as in `Latency`.
    """

    millijoules: float
    interval_mj: tuple[float, float] | None = None
    source: str = ""
    threads: int | None = None
    device: str = "host"
    accelerator: str = "cpu"

    @property
    def setting(self) -> str:
        """What has to be equal for two energies to be compared."""
        return _setting(self.device, self.accelerator, self.threads) + (f", {self.source}" if self.source else "")


@dataclasses.dataclass(frozen=True)
class Modelled:
    """A figure that a model of the hardware predicts. It never shares a column with measured figures.

    Args:
        quantity: what it is, e.g. "energy". value: the figure, in `unit`. model: name of the cost model.
    """

    quantity: str
    value: float
    unit: str
    model: str


@dataclasses.dataclass(frozen=True)
class Layer:
    """The weights of one layer, or of one tensor in a file.

    Args:
        name: the layer's name. kind: its class. shape: shape of its largest weight.
        parameters: number of values. nonzeros: those that are not 0. distinct: number of distinct values.
        bits: bits a value takes. bytes: what the values take in the file.
        minimum, maximum: range of the values.
        note: anything a reader has to know ("kept float because ...").
    """

    name: str
    kind: str = ""
    shape: tuple[int, ...] = ()
    parameters: int | None = None
    nonzeros: int | None = None
    distinct: int | None = None
    bits: float | None = None
    bytes: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    note: str = ""

    @property
    def sparsity(self) -> float | None:
        """Share of the values that are 0."""
        if self.parameters is None or self.nonzeros is None or not self.parameters:
            return None
        return 1 - self.nonzeros / self.parameters


@dataclasses.dataclass(frozen=True)
class Verification:
    """What comparing the exported file with the Keras model gave.

    Args:
        passed: whether it holds; None when it was not judged.
        figures: results by name, e.g. {"largest error, output steps": 1}.
        operators: {operator: how many} in the file.
        warnings: sentences about what is not as one would wish.
    """

    passed: bool | None
    figures: dict[str, str | int | float | bool | None] = dataclasses.field(default_factory=dict)
    operators: dict[str, int] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One variant of the model ("float32", "int8, 80 % pruned").

    Args:
        name: unique in the report. file: name of the model file.
        accuracy: fraction of the report's metric, 0 to 1.
        parameters, nonzeros: numbers of weights, and of those that are not 0. macs: multiply-accumulates of one
            inference, zeros included.
        file_bytes: measured size of the model file. packed_bytes: measured size of its .tfcz.
        latency, energy: measurements, one for each setting (device, accelerator, threads).
        modelled: predicted figures. layers: the weights layer by layer.
        verification: how the file compares with the Keras model. notes: sentences for the reader.
    """

    name: str
    file: str = ""
    accuracy: float | None = None
    parameters: int | None = None
    nonzeros: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    packed_bytes: int | None = None
    latency: tuple[Latency, ...] = ()
    energy: tuple[Energy, ...] = ()
    modelled: tuple[Modelled, ...] = ()
    layers: tuple[Layer, ...] = ()
    verification: Verification | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: dict) -> "Row":
        """The row that `dataclasses.asdict` made `data` of (after JSON, where tuples are lists)."""
        parts: dict[str, Any] = {
            "latency": tuple(Latency(**_tuples(item, "interval_ms")) for item in data.get("latency", ())),
            "energy": tuple(Energy(**_tuples(item, "interval_mj")) for item in data.get("energy", ())),
            "modelled": tuple(Modelled(**item) for item in data.get("modelled", ())),
            "layers": tuple(Layer(**_tuples(item, "shape")) for item in data.get("layers", ())),
            "notes": tuple(data.get("notes", ())),
        }
        if data.get("verification") is not None:
            parts["verification"] = Verification(**_tuples(data["verification"], "warnings"))
        return cls(**{**data, **parts})


def _setting(device: str, accelerator: str, threads: int | None) -> str:
    count = "" if threads is None else f", {threads} thread{'' if threads == 1 else 's'}"
    return f"{device} {accelerator}{count}"


def _tuples(data: dict, *names: str) -> dict:
    return {**data, **{name: tuple(data[name]) for name in names if data.get(name) is not None}}
