"""Sample and calibration data as one array an input, checked before anything expensive runs."""

import numpy as np

from tfcompress.errors import CompressionError, nearest
from tfcompress.export.savedmodel import Port

_MOST_BATCHES = 100


def as_inputs(data, ports: tuple[Port, ...] | None, what: str) -> list[np.ndarray]:
    """One array an input, samples along the first axis, in the order of the ports.

    Args:
        data: an array (one input), a list or tuple of arrays, a dict by input name, or an iterable of such batches (a
            tf.data.Dataset, a generator; at most 100 batches are read; of (x, y) batches x is taken).
        ports: the model's inputs, or None where they are not known yet. what: the argument's name, for messages.

    Raises:
        CompressionError: wrong names, number, shapes or dtypes; no samples; NaN or infinite values.
    """
    arrays = _collect(data, ports, what)
    if ports is not None and len(arrays) != len(ports):
        raise CompressionError(
            f"{what} holds {len(arrays)} arrays, but the model has {len(ports)} inputs: {', '.join(p.name for p in ports)}."
        )
    counts = {len(array) for array in arrays}
    if len(counts) != 1 or 0 in counts:
        raise CompressionError(
            f"{what} needs at least one sample and the same number for every input; it has {sorted(counts)}."
        )
    checked = []
    for i, array in enumerate(arrays):
        name = ports[i].name if ports is not None else str(i)
        if array.dtype.kind not in "fiub":
            raise CompressionError(f"{what} for input {name!r} has dtype {array.dtype}; numbers are needed.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CompressionError(f"{what} for input {name!r} holds NaN or infinite values.")
        if ports is not None:
            array = _fit(array, ports[i], what)
        checked.append(array)
    return checked


def _collect(data, ports, what: str) -> list[np.ndarray]:
    if data is None:
        raise CompressionError(f"{what} is missing.")
    if isinstance(data, dict):
        names = [p.name for p in ports] if ports is not None else list(data)
        unknown = [name for name in data if name not in names]
        missing = [name for name in names if name not in data]
        if unknown or missing:
            hint = nearest(unknown[0], names) if unknown else ""
            raise CompressionError(
                f"{what} must have the inputs' names {names}; unknown {unknown}, missing {missing}. {hint}"
            )
        return [np.asarray(data[name]) for name in names]
    if isinstance(data, list | tuple):
        several = ports is not None and len(ports) > 1
        if several or all(hasattr(item, "shape") for item in data):
            return [np.asarray(item) for item in data]
        return [np.asarray(data)]
    if hasattr(data, "__array__"):
        return [np.asarray(data)]
    if hasattr(data, "__iter__"):
        return _from_batches(data, ports, what)
    raise CompressionError(
        f"{what} must be an array, a list or dict of arrays, or batches of them, not {type(data).__name__}."
    )


def _from_batches(data, ports, what: str) -> list[np.ndarray]:
    batches = []
    for number, batch in enumerate(data):
        if number == _MOST_BATCHES:
            break
        several = ports is not None and len(ports) > 1
        if isinstance(batch, tuple) and len(batch) in (2, 3) and not (several and len(batch) == len(ports)):
            batch = batch[0]
        batches.append(_collect(batch, ports, what))
    if not batches:
        raise CompressionError(f"{what} yields no batch.")
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def _fit(array: np.ndarray, port: Port, what: str) -> np.ndarray:
    shape = port.shape[1:]
    fits = len(array.shape) == len(port.shape) and all(
        w in (None, n) for n, w in zip(array.shape[1:], shape, strict=True)
    )
    if not fits:
        hint = ""
        if array.shape == shape:
            hint = " Samples go along a first axis: pass x[None]."
        elif array.shape[1:] + (1,) == shape:
            hint = " Add the channel axis: x[..., None]."
        raise CompressionError(
            f"{what} for input {port.name!r} has shape {array.shape}; expected (samples, {_text(shape)}).{hint}"
        )
    if port.dtype == "int32" and array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise CompressionError(
                f"{what} for input {port.name!r} holds {int(array.max())}, and a file's integers end at {limits.max}. Map the ids to "
                "smaller ones (a hash or a table) before the model."
            )
    return array.astype(port.dtype)


def _text(shape: tuple) -> str:
    return ", ".join("any" if size is None else str(size) for size in shape)


def batches(arrays: list[np.ndarray], batch: int, most: int | None = None) -> list[list[np.ndarray]]:
    """Cut the samples into runs of the file: lists of one array an input with `batch` rows; the last is filled up.

    Example:
        >>> [run[0].ravel().tolist() for run in batches([np.arange(3.0)[:, None]], 2)]
        [[0.0, 1.0], [2.0, 0.0]]
    """
    count = len(arrays[0]) if most is None else min(most, len(arrays[0]))
    runs = []
    for start in range(0, count, batch):
        rows = np.arange(start, start + batch)
        # Filled up with samples from the start, which are as typical as any; their outputs are dropped.
        rows = np.where(rows < count, rows, rows % count)
        runs.append([array[rows] for array in arrays])
    return runs


def random_inputs(ports: tuple[Port, ...], count: int) -> list[np.ndarray]:
    """Inputs for a check where the caller gives none: uniform in 0..1 for floats, 0 and 1 for integers."""
    generator = np.random.default_rng(0)
    made = []
    for port in ports:
        shape = (count, *port.shape[1:])
        drawn = generator.random(shape) if port.dtype.startswith("float") else generator.integers(0, 2, shape)
        made.append(drawn.astype(port.dtype))
    return made
