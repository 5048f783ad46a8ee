"""What training learned about integer grids, handed from an attached or finalized model to `export`.

Plain Keras cannot carry the ranges of a network's outputs, so `finalize` leaves them on the model as a `Record`, and a
saved model can have one beside it (`model.keras` and `model.ranges.json`).
"""

import dataclasses
import json
import pathlib

import numpy as np

from tfcompress.errors import CompressionError
from tfcompress.files import replacing

ATTRIBUTE = "_tfcompress_record"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid on which a weight's values lie: value = unit * code, low <= code <= high.

    Args:
        unit: float32 step, of the weight's rank with 1 on shared axes, e.g. (1, 1, 1, 16) for a convolution per channel.
        low: smallest code. high: largest code.
    """

    unit: np.ndarray
    low: int = -127
    high: int = 127


@dataclasses.dataclass(frozen=True)
class Range:
    """The affine grid of an operation's output: value = scale * (code - zero_point).

    Args:
        scale: float32 step. zero_point: the code of 0.0. bits: width of the signed code, 8 or 16.
    """

    scale: float
    zero_point: int = 0
    bits: int = 8

    @property
    def minimum(self) -> float:
        """The smallest value that a code stands for."""
        return float(np.float32(self.scale) * np.float32(-(2 ** (self.bits - 1)) - self.zero_point))

    @property
    def maximum(self) -> float:
        """The largest value that a code stands for."""
        return float(np.float32(self.scale) * np.float32(2 ** (self.bits - 1) - 1 - self.zero_point))


@dataclasses.dataclass
class Record:
    """Grids by weight and ranges by operation.

    Args:
        weights: {"layer/path.kernel": Grid}; nested layers are joined with "/".
        outputs: {operation name: Range}, input layers included; in nested models "outer/inner"; the second call of a
            shared operation is "name#1".

    Example:
        >>> record = Record(outputs={"relu": Range(0.5, -128)})
        >>> Record.from_json(record.to_json()).outputs["relu"].maximum
        127.5
    """

    weights: dict[str, Grid] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Range] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.weights or self.outputs)

    def to_json(self) -> str:
        """The record as JSON text; float32 values survive exactly."""
        weights = {
            key: {
                "shape": list(grid.unit.shape),
                "unit": [float(u) for u in grid.unit.ravel()],
                "low": grid.low,
                "high": grid.high,
            }
            for key, grid in self.weights.items()
        }
        outputs = {key: dataclasses.asdict(value) for key, value in self.outputs.items()}
        return json.dumps({"tfcompress_ranges": 1, "weights": weights, "outputs": outputs}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """The inverse of `to_json`."""
        try:
            data = json.loads(text)
            if data["tfcompress_ranges"] != 1:
                raise KeyError("tfcompress_ranges")
            weights = {
                key: Grid(np.asarray(v["unit"], np.float32).reshape(v["shape"]), v["low"], v["high"])
                for key, v in data["weights"].items()
            }
            return cls(weights, {key: Range(**v) for key, v in data["outputs"].items()})
        except (ValueError, KeyError, TypeError) as error:
            raise CompressionError(f"This is not a record of ranges as tfcompress writes it ({error!r}).") from error


def side_file(path) -> pathlib.Path:
    """Where the record of a saved model lies: `model.keras` -> `model.ranges.json`."""
    return pathlib.Path(path).with_suffix(".ranges.json")


def save_record(record: Record, path) -> pathlib.Path:
    """Write the record beside the saved model at `path`, and return the side file's path."""
    with replacing(side_file(path)) as part:
        part.write_text(record.to_json())
    return side_file(path)


def load_record(path) -> Record:
    """Read the record beside the saved model at `path`; empty when there is none."""
    side = side_file(path)
    return Record.from_json(side.read_text()) if side.exists() else Record()
