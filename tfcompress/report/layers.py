"""The rows that a report has for the layers of a Keras model."""

import math

import keras
import numpy as np

from tfcompress import select
from tfcompress.parametrization import chains
from tfcompress.record import ATTRIBUTE, Record
from tfcompress.report.rows import Layer


def layers(model, record: Record | None = None, notes: dict[str, str] | None = None) -> tuple[Layer, ...]:
    """Describe the kernels of a built model: one row a kernel, biases and normalizations left out.

    A layer of one kernel is a row of the layer's path; with several, "path.kernel_name". Effective weights are read,
    masks and grids applied. Bits are those of the integer grid where `record` has one, else those of the weight's type.

    Args:
        model: a built Keras model, attached or finalized.
        record: the grids that training left; by default the one that the model carries.
        notes: {layer path: sentence}, e.g. why a layer was kept float.

    Example:
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out", kernel_initializer="ones")])
        >>> row = layers(model)[0]
        >>> row.name, row.parameters, row.nonzeros, row.distinct, row.bits, row.bytes
        ('out', 6, 6, 1, 32, 24)
    """
    record = record or getattr(model, ATTRIBUTE, None) or Record()
    attached = dict(chains(model))
    rows = []
    for path, layer in select.layers(model):
        if not layer.built:
            continue
        # A kernel that comes from a parametrization's own variables is no variable of the layer any more.
        made = [key.rsplit(".", 1)[1] for key in attached if key.rsplit(".", 1)[0] == path]
        kernels = list(dict.fromkeys([*select.kernel_names(layer), *made]))
        for name in kernels:
            label, key = path if len(kernels) == 1 else f"{path}.{name}", f"{path}.{name}"
            grid = record.weights.get(key) or (attached[key].grid() if key in attached else None)
            values = keras.ops.convert_to_numpy(getattr(layer, name))
            rows.append(_row(label, type(layer).__name__, values, grid, (notes or {}).get(path, "")))
    return tuple(rows)


def _row(label: str, kind: str, values: np.ndarray, grid, note: str) -> Layer:
    bits = values.dtype.itemsize * 8 if grid is None else math.ceil(math.log2(grid.high - grid.low + 1))
    # bfloat16 and the like are no NumPy types of their own, so count on what all of them convert to.
    values = np.asarray(values, np.float32)
    return Layer(
        name=label,
        kind=kind,
        shape=values.shape,
        parameters=values.size,
        nonzeros=int(np.count_nonzero(values)),
        distinct=len(np.unique(values)),
        bits=bits,
        bytes=math.ceil(values.size * bits / 8),
        minimum=float(values.min()) if values.size else None,
        maximum=float(values.max()) if values.size else None,
        note=note,
    )
