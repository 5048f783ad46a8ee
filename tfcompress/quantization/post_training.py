"""Post-training quantization of weights: equalization, the best scales, learned rounding and bias correction, each on or off."""

import keras

from tfcompress.errors import CompressionError, nearest
from tfcompress.graph.calls import all_calls, graph_of, operations
from tfcompress.graph.fold import KERNELS
from tfcompress.graph.probe import batches
from tfcompress.method import DONE, SKIPPED, Method, Row, copy_model, require_built
from tfcompress.parametrization import chain
from tfcompress.quantization import bias_correction
from tfcompress.quantization.equalization import Statistics, batch_statistics, equalize_folded, folded
from tfcompress.quantization.fixed_grid import FixedGrid
from tfcompress.quantization.lockstep import correctable, lockstep
from tfcompress.quantization.placement import activation_name
from tfcompress.quantization.rounding import learn_codes
from tfcompress.quantization.weights import QuantizedWeights

CORRECTIONS = ("empirical", "analytic")
ROUNDINGS = ("nearest", "learned")
_BATCH = 64


class _Grids(QuantizedWeights):
    """`QuantizedWeights` with scales that stay."""

    def parametrization(self, path, layer, weight):
        link = super().parametrization(path, layer, weight)
        return link if isinstance(link, str) else FixedGrid(link.bits, link.per_channel, self.weight_range)


class PostTraining(Method):
    """Rounds a trained model's weights without training it: for export to int8 and int4.

    In order: batch normalization is folded; channels are equalized (`Equalize`); every kernel gets its scales; layer by
    layer, with all layers before rounded, codes are rounded to nearest or learned (AdaRound, Nagel et al. 2020) and the bias
    corrected (Nagel et al. 2019). Ranges of outputs come from calibration at export. The model is changed at the very end:
    work that is interrupted leaves it as it was. Memory holds the tensors between two layers, of all samples.

    Args:
        bits: of the weights, 2 to 8. per_channel: one scale an output channel, or one a weight.
        weight_range: "mse" for the scales of least squared error, or "minmax".
        equalize: whether channels are equalized. replace_relu6: so that ReLU6 lets factors pass.
        bias_correction: "empirical" (on data), "analytic" (from batch normalization's statistics), or None.
        rounding: "nearest" or "learned" (on data). steps: of learned rounding, a layer.
        samples: of the data, at most; some hundred. seed: of the batches. layers, exclude: which weights.
        verbose: 0 shows no progress.

    Raises:
        CompressionError: the model has no graph or is not built, or data is needed and missing.

    Example:
        >>> import numpy as np
        >>> from tfcompress import apply
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2, name="d")])
        >>> small = apply(model, PostTraining(bits=4, verbose=0), data=np.ones((8, 4), "float32"), verbose=0)
        >>> [type(link).__name__ for link in chain(small.get_layer("d"), "kernel").links]
        ['FixedGrid']
    """

    trains = False

    def __init__(self, bits: int = 8, per_channel: bool = True, weight_range: str = "mse", equalize: bool = True,
                 replace_relu6: bool = False, bias_correction: str | None = "empirical", rounding: str = "nearest",
                 steps: int = 1000, samples: int = 256, seed: int = 0, layers=None, exclude=None, verbose: int = 1):  # fmt: skip
        for name, value, known in (
            ("rounding", rounding, ROUNDINGS), ("bias_correction", bias_correction, (*CORRECTIONS, None))
        ):  # fmt: skip
            if value not in known:
                words = [str(one) for one in known]
                raise CompressionError(f"`{name}` is one of {', '.join(words)}. {nearest(str(value), words)}")
        if steps < 1 or samples < 1:
            raise CompressionError(f"`steps` and `samples` must be at least 1; received {steps} and {samples}.")
        self.bits, self.per_channel, self.weight_range = bits, per_channel, weight_range
        self.equalize, self.replace_relu6 = bool(equalize), bool(replace_relu6)
        self.bias_correction, self.rounding, self.steps = bias_correction, rounding, int(steps)
        self.samples, self.seed, self.verbose = int(samples), int(seed), int(verbose)
        self.layers, self.exclude = layers, exclude
        self._grids = _Grids(bits, per_channel, layers, exclude, weight_range=weight_range)

    def attach(self, model, data=None):
        require_built(model, "post-training quantization")
        graph_of(model)
        needs = self.rounding == "learned" or self.bias_correction == "empirical"
        if needs and data is None:
            raise CompressionError(
                "PostTraining needs data= for learned rounding and empirical bias correction: some hundred inputs as the model "
                'is used with. Without data, use rounding="nearest" and bias_correction="analytic" or None.'
            )
        fed = bias_correction.limited(batches(model, data, _BATCH), self.samples) if needs else []
        work, statistics, rows = self._prepared(copy_model(model))
        biased = {path for path, layer in operations(work).items()
                  if type(layer).__name__ in KERNELS and layer.bias is not None}  # fmt: skip
        plain = copy_model(work)
        work, more = self._grids.attach(work)
        rows += more
        chosen = {row.layer for row in more if row.action == DONE}
        if needs:
            rows += self._layerwise(plain, work, fed, chosen)
        if self.bias_correction == "analytic":
            free = {path for path, reason in correctable(work).items() if not reason and path in chosen}
            rows += bias_correction.correct_by_statistics(plain, work, statistics, free)
        # Everything is computed; what follows takes no time.
        model, _ = folded(model, self.replace_relu6)
        bias_correction.with_biases(model, biased)
        model, _ = self._grids.attach(model)
        model.set_weights(work.get_weights())
        return model, rows

    def _prepared(self, model) -> tuple[keras.Model, Statistics, list[Row]]:
        """A model folded and equalized, every layer that will be corrected with a bias."""
        statistics = batch_statistics(model)
        model, rows = folded(model, self.replace_relu6)
        if self.equalize:
            rows += equalize_folded(model, statistics)
        if self.bias_correction is not None:
            bias_correction.with_biases(model, {path for path, reason in correctable(model).items() if not reason})
        return model, statistics, rows

    def _layerwise(self, plain, work, fed: list, chosen: set[str]) -> list[Row]:
        """One pass through both networks: codes and biases of each layer, with those before it done."""
        reasons = correctable(work)
        activations = _activations(work)
        rows = [Row(path, "", SKIPPED, f"rounded to nearest, bias as it was: {reason}")
                for path, reason in reasons.items() if reason and path in chosen]  # fmt: skip
        todo = {path for path, reason in reasons.items() if not reason and path in chosen}
        progress = keras.utils.Progbar(len(todo), unit_name="layer", verbose=self.verbose)

        def visit(before, now, floats, rounded):
            path, layer = now.path, now.operation
            if path not in todo:
                return
            if self.rounding == "learned":
                rows.append(self._learn(path, before.operation, layer, floats, rounded, activations.get(path)))
            if self.bias_correction == "empirical":
                change = bias_correction.correct(before.operation, layer, floats, rounded)
                rows.append(Row(path, "bias", DONE, f"corrected by up to {change:.2%} of its largest mean output"))
            progress.add(1)

        lockstep(plain, work, fed, visit)
        return rows

    def _learn(self, path: str, plain, layer, floats, rounded, activation) -> Row:
        name, _ = KERNELS[type(layer).__name__]
        own = chain(layer, name)
        if own is None or len(own.links) != 1 or not isinstance(own.links[0], FixedGrid):
            return Row(path, name, SKIPPED, "rounded to nearest: other parametrizations hold its values")
        link = own.links[0]
        unit = keras.ops.convert_to_numpy(link.step())
        codes, before, after = learn_codes(plain, unit, link.high, floats, rounded, activation, self.steps, self.seed)
        own.raw.assign(unit * codes.astype("float32"))
        return Row(path, name, DONE, f"rounding learned: squared error of the output {before:.3g} to {after:.3g}")


def _activations(model) -> dict[str, object]:
    """{path: the function of a ReLU layer that alone reads a layer's output}: what reconstruction looks through."""
    outputs = {id(tensor) for tensor in graph_of(model).outputs}
    readers: dict[int, list] = {}
    for call in all_calls(model):
        for tensor in call.inputs:
            readers.setdefault(id(tensor), []).append(call.operation)
    found: dict[str, object] = {}
    for call in all_calls(model):
        if type(call.operation).__name__ not in KERNELS or len(call.outputs) != 1 or id(call.outputs[0]) in outputs:
            continue
        following = readers.get(id(call.outputs[0]), [])
        bare = call.operation.activation is keras.activations.linear
        name = activation_name(following[0]) if bare and len(following) == 1 else ""
        if name in ("relu", "relu6"):
            found[call.path] = getattr(keras.activations, name)
    return found
