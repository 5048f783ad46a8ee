"""What an assignment of precisions costs: bytes of weights, bit operations, and the latency of its file on this computer."""

import dataclasses
import math
import pathlib

from tfcompress import cost
from tfcompress.errors import CompressionError
from tfcompress.search.simulation import Weights

OBJECTIVES = ("bytes", "macs", "latency")
# Bits of weights and of activations.
WIDTHS = {"int4": (4, 8), "int8": (8, 8), "int16": (8, 16), "float": (32, 32)}


@dataclasses.dataclass(frozen=True)
class Costs:
    """What layers cost at each precision.

    Args:
        kernels: {path: values in kernels}. tables: paths whose kernel is an embedding's table, which is stored like an output.
        macs: {path: multiply-accumulates a sample}. rest: bytes of all other weights (biases, batch normalization that is
            not folded), 4 each. notes: what was not counted.
    """

    kernels: dict[str, int]
    tables: frozenset[str]
    macs: dict[str, int]
    rest: int
    notes: list[str]

    def of(self, path: str, choice: str, objective: str) -> float:
        """A layer's share of the cost.

        Args:
            path: of the layer. choice: "int4", "int8", "int16" or "float". objective: "bytes" (of its kernels), or another, for
                which bit operations count: multiply-accumulates x bits of weights x bits of activations.
        """
        weights, activations = WIDTHS[choice]
        if objective == "bytes":
            return math.ceil(self.kernels.get(path, 0) * (activations if path in self.tables else weights) / 8)
        return self.macs.get(path, 0) * weights * activations

    def bytes(self, assignment: dict[str, str], others: str) -> int:
        """Bytes of all weights; a file adds its operators, scales and names.

        Args:
            assignment: {path: choice}. others: the choice of layers that are not in it.
        """
        return self.rest + round(sum(self.of(path, assignment.get(path, others), "bytes") for path in self.kernels))

    def bit_operations(self, assignment: dict[str, str], others: str) -> int:
        """Multiply-accumulates, each times the bits of its weight and of its activation; arguments as for `bytes`."""
        return round(sum(self.of(path, assignment.get(path, others), "macs") for path in self.macs))


def count(network: Weights) -> Costs:
    """What the layers of a simulated network cost; its ranges do not count."""
    counted = cost.count(network.model, values=False)
    kernels: dict[str, int] = {}
    for kernel in network.kernels:
        kernels[kernel.path] = kernels.get(kernel.path, 0) + kernel.value.size
    macs: dict[str, int] = {}
    for row in counted.layers:
        macs[row.path] = macs.get(row.path, 0) + (row.macs or 0)
    return Costs(
        kernels,
        frozenset(kernel.path for kernel in network.kernels if not kernel.rounds),
        macs,
        4 * (counted.parameters - sum(kernels.values())),
        [f"Multiply-accumulates of {path} are not known, and count as none." for path in counted.not_counted],
    )


def host_latency(paths: list[pathlib.Path]) -> dict[str, float | str]:
    """The median latency of .tflite files on one thread of this computer, measured in alternating processes.

    Args:
        paths: the files.

    Returns:
        {file name: milliseconds, or the reason why there are none}.

    Raises:
        CompressionError: the benchmark cannot run here.
    """
    import android_bench
    from tfcompress.report.bench import read_bench

    try:
        record = android_bench.run(paths, threads=(1,), min_seconds=0.2, max_seconds=5.0, blocks=4)
    except android_bench.BenchError as error:
        raise CompressionError(f"The latency of the files cannot be measured: {error}") from error
    measured, _ = read_bench(record.data)
    return {
        name: one.latency[0].median_ms if one.latency else "; ".join(one.notes) or "not measured"
        for name, one in measured.items()
    }
