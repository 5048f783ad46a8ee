"""The rows that a report has for the layers of a Keras model."""

import math

import keras

from tfcompress import cost, select
from tfcompress.record import ATTRIBUTE, Record
from tfcompress.report.rows import Layer


def layers(model, record: Record | None = None, notes: dict[str, str] | None = None) -> tuple[Layer, ...]:
    """Describe the kernels of a built model: one row a kernel, biases and normalizations left out.

    A layer of one kernel is a row of the layer's path; with several, "path.kernel_name". Effective weights are read,
    masks and grids applied. Bits are those of the integer grid where `record` (or what is attached) has one, else 32.

    Args:
        model: a built Keras model, attached or finalized.
        record: the grids that training left; by default the one that the model carries.
        notes: {layer path: sentence}, e.g. why a layer was kept float.

    Raises:
        CompressionError: the model cannot be counted; see `tfcompress.cost.count`.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out", kernel_initializer="ones")])
        >>> row = layers(model)[0]
        >>> row.name, row.parameters, row.nonzeros, row.distinct, row.bits, row.bytes
        ('out', 6, 6, 1, 32, 24)
    """
    grids = (record or getattr(model, ATTRIBUTE, None) or Record()).weights

    def width(path: str, name: str) -> int | None:
        grid = grids.get(f"{path}.{name}")
        return None if grid is None else math.ceil(math.log2(grid.high - grid.low + 1))

    by_path = dict(select.layers(model))
    rows = []
    for counted in cost.count(model, bits=width).layers:
        kernels = [weight for weight in counted.weights if weight.is_kernel and "bias" not in weight.name]
        for weight in kernels:
            # The layer's attribute is the effective weight; a variable that no attribute names has no range here.
            seen = getattr(by_path.get(counted.path), weight.name, None)
            values = None if seen is None else keras.ops.convert_to_numpy(seen)
            rows.append(
                Layer(
                    name=counted.path if len(kernels) == 1 else f"{counted.path}.{weight.name}",
                    kind=counted.kind,
                    shape=weight.shape,
                    parameters=weight.parameters,
                    nonzeros=weight.nonzeros,
                    distinct=weight.distinct,
                    bits=weight.bits,
                    bytes=weight.bytes,
                    minimum=None if values is None or not values.size else float(values.min()),
                    maximum=None if values is None or not values.size else float(values.max()),
                    note=(notes or {}).get(counted.path, ""),
                )
            )
    return tuple(rows)
