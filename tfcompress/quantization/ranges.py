"""Ranges of outputs: putting range layers into a graph, calibrating them, and taking them out again as a record."""

import warnings

import keras
import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import all_calls
from tfcompress.graph.rebuild import rebuild
from tfcompress.layers.output_range import OutputRange
from tfcompress.method import DONE, FINALIZERS, FLOAT, SKIPPED, Row
from tfcompress.quantization import placement
from tfcompress.quantization.scheme import Choice


def split_activations(model):
    """Layers' own activations become layers where the value before them has a tensor of its own, in place."""
    inserts = {}
    operations = {call.key: call.operation for call in all_calls(model)}
    for key, name in placement.split_activations(model).items():
        layer = operations[key]
        suffix = key.rsplit("#", 1)[1:] if "#" in key else []
        inserts[key] = keras.layers.Activation(
            layer.activation, name="_".join([layer.name, name, *suffix]), dtype=layer.dtype_policy
        )
    for key in inserts:
        operations[key].activation = keras.activations.linear
    return rebuild(model, insert=inserts, reuse=True) if inserts else model


def insert_ranges(model, choice: Choice, layers=None, exclude=None):
    """Put an `OutputRange` behind every operation whose output an integer file rounds, in place.

    Args:
        model: with batch normalization folded and activations split. choice: schemes. layers, exclude: selectors of outputs.

    Returns:
        (model, rows).
    """
    chosen = select.get(layers)
    left_out = select.get(exclude) if exclude is not None else ~select.everything
    operations = {call.key: call.operation for call in all_calls(model)}
    inserts, rows = {}, []
    for point in placement.points(model):
        key = point.keys[0]
        operation = operations[key]
        given = (key, operation, "output")
        if isinstance(operation, OutputRange) or any(
            isinstance(reader, OutputRange) for reader in _keras_compat.readers(operation)
        ):
            rows.append(Row(key, "output", SKIPPED, "it has a range already"))
        elif choice.stays_float(*given):
            rows.append(Row(key, "output", FLOAT, "kept float by keep_float="))
        elif not chosen(*given) or left_out(*given):
            rows.append(Row(key, "output", FLOAT, "left out by layers= or exclude=; its range comes from calibration"))
        else:
            scheme = choice.of(*given)
            fixed = placement.fixed_range(point, scheme.output_bits)
            layer = OutputRange(
                scheme.output_bits, scheme.momentum, fixed, scheme.symmetric_outputs, scheme.output_range, scheme.percentile,
                point.positive, point.room,
                name=f"{operation.name}{'_' + key.rsplit('#', 1)[1] if '#' in key else ''}_range", dtype="float32",
            )  # fmt: skip
            inserts.update(dict.fromkeys(point.keys, layer))
            how = " (fixed)" if fixed else "" if scheme.output_range == "moving" else f" by {scheme.output_range}"
            more = f" and {len(point.keys) - 4} more" if len(point.keys) > 4 else ""
            shared = f", shared with {', '.join(point.keys[1:4])}{more}" if len(point.keys) > 1 else ""
            rows.append(Row(key, "output", DONE, f"int{scheme.output_bits} range{how}{shared}"))
    return rebuild(model, insert=inserts, reuse=True), rows


def ranges(model) -> list[OutputRange]:
    """The range layers of a model."""
    return [layer for _, layer in select.layers(model) if isinstance(layer, OutputRange)]


def calibrate(model, data, batch_size: int = 32) -> None:
    """Set all ranges by what calibration data takes, one batch at a time, as their estimators say.

    Ranges by extremes or moving averages begin with the data's extremes; those by "percentile", "mse" and "lsq" are
    estimated from histograms of all values.

    Args:
        model: a model with ranges. data: an array, or a list or dict of arrays for several inputs.
        batch_size: samples a batch.

    Raises:
        CompressionError: there are no samples, or they hold NaN.
    """
    arrays = keras.tree.flatten(data)
    if not arrays or not len(arrays[0]):
        raise CompressionError(
            "Calibration data holds no samples; give some hundred that look like what the phone will see."
        )
    if any(np.issubdtype(np.asarray(a).dtype, np.floating) and not np.isfinite(a).all() for a in arrays):
        raise CompressionError("Calibration data holds NaN or infinite values; ranges cannot be set by them.")
    observed = ranges(model)
    for layer in observed:
        layer.observe(True)
    try:
        for start in range(0, len(arrays[0]), batch_size):
            model(
                keras.tree.map_structure(lambda a, at=start: np.asarray(a[at : at + batch_size]), data), training=False
            )
    finally:
        for layer in observed:
            layer.observe(False)


def _take_ranges_out(model):
    """The finalizer: ranges leave the graph and become a record."""
    if _keras_compat.functional(model) is None or not ranges(model):
        return model, [], {}
    maker = {}
    found, rows, drop, missing = {}, [], [], []
    for call in all_calls(model):
        maker.update({id(tensor): call for tensor in call.outputs})
    for call in all_calls(model):
        if isinstance(call.operation, OutputRange):
            source = maker[id(call.inputs[0])]
            drop.append(call.path)
            learned = call.operation.range
            if learned is None:
                missing.append(source.key)
                rows.append(Row(source.key, "output", FLOAT, "its range was never updated; calibration will set it"))
            else:
                found[source.key] = learned
                rows.append(
                    Row(source.key, "output", DONE, f"range {learned.minimum:.4g} to {learned.maximum:.4g} recorded")
                )
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(drop)} output ranges were never updated ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}): give `data` to apply, or train the attached model; export calibrates them.",
            stacklevel=4,
        )
    return rebuild(model, drop=drop, reuse=True), rows, found


FINALIZERS.append(_take_ranges_out)
