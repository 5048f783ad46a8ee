"""Bias correction: rounding a weight moves the mean of what a layer makes, and the bias takes that back."""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.core.grids import IntegerGrid
from tfcompress.errors import CompressionError
from tfcompress.graph.calls import all_calls, operations
from tfcompress.graph.fold import KERNELS
from tfcompress.graph.probe import batches
from tfcompress.method import DONE, SKIPPED, Method, Row, apply, copy_model, require_built
from tfcompress.parametrization import chain, chains, deparametrize, state
from tfcompress.quantization.equalization import Statistics
from tfcompress.quantization.lockstep import channel_means, correctable, lockstep
from tfcompress.quantization.placement import TRANSPARENT, activation_name

_AVERAGES = (
    keras.layers.AveragePooling1D, keras.layers.AveragePooling2D, keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
)  # fmt: skip


def correct(plain, layer, floats, rounded) -> float:
    """Give a rounded layer the float layer's mean outputs; the largest change, relative to their spread over channels.

    Args:
        plain, layer: the float and the rounded layer. floats, rounded: what they read, arrays a batch.
    """
    wanted, made = channel_means(plain, floats), channel_means(layer, rounded)
    layer.bias.assign(keras.ops.convert_to_numpy(layer.bias) + (wanted - made).astype("float32"))
    return float(np.abs(wanted - made).max() / max(np.abs(wanted).max(), 1e-12))


def clipped_normal(mean: np.ndarray, deviation: np.ndarray, high: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a normal variable clipped to 0..high.

    Example:
        >>> mean, deviation = clipped_normal(np.array([0.0]), np.array([1.0]))
        >>> mean.round(4).tolist(), deviation.round(4).tolist()
        ([0.3989], [0.5838])
    """
    from scipy.stats import norm

    deviation = np.maximum(deviation, 1e-12)
    a, b = (0 - mean) / deviation, (high - mean) / deviation
    inside = norm.cdf(b) - norm.cdf(a)
    edge = norm.pdf(a) - norm.pdf(b)
    top, above = (high, norm.sf(b)) if np.isfinite(high) else (0.0, 0.0)
    first = mean * inside + deviation * edge + top * above
    weighted = (a * norm.pdf(a) if np.isfinite(a).all() else 0.0) - (b * norm.pdf(b) if np.isfinite(high) else 0.0)
    second = (mean**2 + deviation**2) * inside + 2 * mean * deviation * edge + deviation**2 * weighted + top**2 * above
    return first, np.sqrt(np.maximum(second - first**2, 0.0))


def expected_inputs(model, statistics: Statistics) -> dict[str, np.ndarray]:
    """{path of a layer: the mean of each channel that it reads}, where batch normalization's statistics tell it.

    Args:
        model: with batch normalization folded. statistics: of the folded layers' outputs.
    """
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    found = {}
    for call in all_calls(model):
        operation = call.operation
        read = [known[id(tensor)] for tensor in call.inputs if id(tensor) in known]
        if type(operation).__name__ in KERNELS and read:
            found[call.path] = read[0][0]
        made = None
        if call.path in statistics:
            made = _activated(statistics[call.path], getattr(operation, "activation", None))
        elif not read or len(read) != len(call.inputs):
            continue
        elif isinstance(operation, (*TRANSPARENT, *_AVERAGES)):
            made = read[0]
        elif type(operation).__name__ == "Add" and len({one[0].shape for one in read}) == 1 and len(read) > 1:
            # Sums of independent variables.
            means, variances = (np.stack(parts) for parts in ([m for m, _ in read], [d**2 for _, d in read]))
            made = means.sum(axis=0), np.sqrt(variances.sum(axis=0))
        elif activation_name(operation) in ("relu", "relu6"):
            mean, deviation = read[0]
            made = clipped_normal(mean, deviation, 6.0 if activation_name(operation) == "relu6" else np.inf)
        if made is not None:
            known.update({id(tensor): made for tensor in call.outputs})
    return found


def _activated(values, activation):
    name = getattr(activation, "__name__", "linear")
    if name == "linear":
        return values
    return clipped_normal(*values, 6.0 if name == "relu6" else np.inf) if name in ("relu", "relu6") else None


def correct_by_statistics(plain, model, statistics: Statistics, chosen) -> list[Row]:
    """Bias correction without data: the rounding error of each weight times the mean of what its layer reads.

    Args:
        plain, model: the float model and its rounded twin, of one graph. statistics: of the layers' outputs.
        chosen: paths of the layers to correct.
    """
    means = expected_inputs(model, statistics)
    rows = []
    originals = operations(plain)
    for path, layer in operations(model).items():
        if path not in chosen:
            continue
        if path not in means:
            rows.append(Row(path, "bias", SKIPPED, "not corrected: no batch normalization tells the mean of its input"))
            continue
        name, _ = KERNELS[type(layer).__name__]
        old, new = (
            np.asarray(keras.ops.convert_to_numpy(getattr(one, name)), np.float64) for one in (originals[path], layer)
        )
        error, kind = new - old, type(layer).__name__
        if "Separable" in kind or "Transpose" in kind or len(means[path]) != error.shape[-2]:
            rows.append(Row(path, "bias", SKIPPED, f"not corrected: no closed form for {kind} here"))
            continue
        weighted = error * means[path][:, None]
        spatial = tuple(range(error.ndim - 2))
        shift = weighted.sum(spatial).ravel() if "Depthwise" in kind else weighted.sum((*spatial, error.ndim - 2))
        layer.bias.assign(keras.ops.convert_to_numpy(layer.bias) - shift.astype("float32"))
        rows.append(Row(path, "bias", DONE, f"corrected by up to {np.abs(shift).max():.3g}, from batch statistics"))
    return rows


def correct_biases(model, data, *, samples: int = 256, verbose: int = 1):
    """Correct biases for the rounding of weights on integer grids, layer by layer, on a few hundred samples.

    Each layer's bias gets the difference of the mean outputs of the float and the rounded network, both over samples and
    positions, with all layers before rounded and corrected (Nagel et al., Data-free quantization through weight equalization
    and bias correction, 2019, appendix D). The float network is the one of the weights under their grids.

    Args:
        model: a model with weights on grids, as `QuantizedWeights` or `QAT` leave it. data: inputs as the model is used
            with. samples: of them, at most. verbose: 0 shows no progress and no report.

    Returns:
        A copy with other biases.

    Raises:
        CompressionError: there is no data, no weight is on an integer grid, or the model has no graph.

    Example:
        >>> from tfcompress.quantization.weights import QuantizedWeights
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> x = np.ones((8, 4), "float32")
        >>> small = correct_biases(apply(model, QuantizedWeights(bits=2), verbose=0), x, verbose=0)
        >>> bool(np.allclose(small.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5))
        True
    """
    return apply(model, _BiasCorrection(samples, verbose), data, verbose=verbose)


class _BiasCorrection(Method):
    trains = False

    def __init__(self, samples: int = 256, verbose: int = 1):
        if samples < 1:
            raise CompressionError(f"`samples` must be at least 1; received {samples}.")
        self.samples, self.verbose = int(samples), int(verbose)

    def attach(self, model, data=None):
        require_built(model, "bias correction")
        if data is None:
            raise CompressionError("correct_biases needs data: some hundred inputs as the model is used with.")
        plain = copy_model(model)
        for layer in operations(plain).values():
            if state(layer):
                deparametrize(layer, bake=False)
        reasons = correctable(model)
        known = operations(model)
        rounded = {path for path in reasons if _on_grid(known[path])}
        if not rounded:
            raise CompressionError(
                f"No weight of model {model.name!r} is on an integer grid. Apply quantization.QuantizedWeights or QAT first, or use "
                "quantization.PostTraining, which does both."
            )
        rows = [Row(path, "bias", SKIPPED, f"not corrected: {reason}") for path, reason in reasons.items() if reason]
        rows += [Row(path, "", SKIPPED, "not rounded") for path in reasons if path not in rounded]
        chosen = {path for path in rounded if not reasons[path] and chain(known[path], "bias") is None}
        fed = batches(model, data)
        kept = limited(fed, self.samples)
        shifts: dict[str, np.ndarray] = {}
        work = copy_model(model)
        with_biases(work, chosen)
        progress = keras.utils.Progbar(len(chosen), unit_name="layer", verbose=self.verbose)

        def visit(before, now, floats, values):
            if now.path in chosen:
                change = correct(before.operation, now.operation, floats, values)
                rows.append(Row(now.path, "bias", DONE, f"corrected by up to {change:.2%} of its largest mean output"))
                shifts[now.path] = keras.ops.convert_to_numpy(now.operation.bias)
                progress.add(1)

        lockstep(plain, work, kept, visit)
        with_biases(model, chosen)
        for path, value in shifts.items():
            known[path].bias.assign(value)
        return model, rows


def _on_grid(layer) -> bool:
    return any(isinstance(link, IntegerGrid) for _, one in chains(layer) for link in one.links)


def limited(fed: list, samples: int) -> list:
    """Batches of the first samples."""
    kept: list = []
    taken = 0
    for batch in fed:
        if taken < samples:
            kept.append([array[: samples - taken] for array in batch])
            taken += len(kept[-1][0])
    return kept


def with_biases(model, paths) -> None:
    """Give the named layers biases of zeros where they have none."""
    for path, layer in operations(model).items():
        if path in paths and layer.bias is None:
            name, axes = KERNELS[type(layer).__name__]
            _keras_compat.add_bias(layer, int(np.prod([getattr(layer, name).shape[axis] for axis in axes])))
