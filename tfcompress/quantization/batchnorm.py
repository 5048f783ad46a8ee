"""Batch normalization that trains with batch statistics first, then frozen, in the form that a file will hold.

The layer before always computes its folded form: kernel * gamma / sigma and beta - mean * gamma / sigma from the moving
statistics, rounded to the file's grids. While batch statistics are live, the normalization behind it undoes the moving
statistics and applies the batch's; since the folded output is a positive or negative multiple of the plain one, plus an
offset, it needs no second convolution:

    gamma (z - mean_B) / sigma_B + beta  =  |gamma| (y - mean(y)) / sqrt(var(y) + epsilon f^2) + beta,  f = gamma / sigma

Frozen, and in inference, the normalization passes its input on. Krishnamoorthi, Quantizing deep convolutional networks for
efficient inference, 2018, section 3.2.2; Jacob et al., Quantization and training of neural networks for efficient
integer-arithmetic-only inference, 2018, section 3.2.
"""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.graph.calls import all_calls, graph_of, operations
from tfcompress.graph.fold import KERNELS, foldable
from tfcompress.graph.rebuild import Weighted, rebuild
from tfcompress.method import DONE, FINALIZERS, FLOAT, Row
from tfcompress.parametrization import Parametrization, attach

ops = keras.ops

# A smaller |gamma| is folded as this: the moving statistics could not be read back from a channel of zeros.
_LEAST = 1e-5


@keras.saving.register_keras_serializable("tfcompress")
class ScheduledBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization behind a layer into which it is folded: live for some training steps, then the identity.

    Args:
        freeze: steps (training calls) with batch statistics. A fraction of the training's length is turned into steps by
            the callback `FreezeBatchNorm`; until then statistics are live.
        kwargs: as for BatchNormalization.

    Example:
        >>> layer = ScheduledBatchNormalization(freeze=10)
        >>> ops.convert_to_numpy(layer(np.array([[3.0, -2.0]], "float32"))).tolist()
        [[3.0, -2.0]]
    """

    attached_only = True

    def __init__(self, freeze: float = 0, **kwargs):
        super().__init__(**kwargs)
        self.freeze = freeze

    def add_weight(self, *args, **kwargs):
        # Under tf.distribute Keras's moving statistics differ by replica; a kernel that is folded with them must not.
        if kwargs.get("trainable") is False:
            kwargs.setdefault("aggregation", "mean")
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)

        def count(name, value):
            return self.add_weight(
                name=name, shape=(), initializer=keras.initializers.Constant(value), trainable=False, autocast=False,
                dtype="float32", aggregation="mean",
            )  # fmt: skip

        self.updates = count("updates", 0.0)
        self.freeze_at = count("freeze_at", -1.0 if 0 < self.freeze < 1 else float(self.freeze))

    def folded(self):
        """The factor and the offset a channel of the folded form, float32 tensors."""
        mean, variance = _keras_compat.as_tensor(self.moving_mean), _keras_compat.as_tensor(self.moving_variance)
        factor = self._gamma(mean) / ops.sqrt(variance + self.epsilon)
        offset = -mean * factor
        return factor, offset if self.beta is None else offset + _keras_compat.as_tensor(self.beta)

    def _gamma(self, like):
        if self.gamma is None:
            return ops.ones_like(like)
        gamma = _keras_compat.as_tensor(self.gamma)
        return ops.where(ops.abs(gamma) < _LEAST, ops.where(gamma < 0, -_LEAST, _LEAST), gamma)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return inputs
        with _keras_compat.no_autocast():
            value = ops.cast(inputs, "float32")
            live = ops.logical_or(self.freeze_at.value < 0, self.updates.value < self.freeze_at.value)
            normalized = self._normalized(value, ops.cast(live, "float32"), mask)
            self.updates.assign(self.updates.value + 1)
            return ops.cast(ops.where(live, normalized, value), inputs.dtype)

    def _normalized(self, value, live, mask):
        """The value under batch statistics, which the moving ones follow by 1 - momentum while `live` is 1."""
        mean, variance = _keras_compat.moments(self, value, mask)
        factor, offset = self.folded()
        keep = 1 - live * (1 - self.momentum)
        plain_mean = ops.stop_gradient((mean - offset) / factor)
        plain_variance = ops.stop_gradient(variance / (factor * factor))
        shape = [1] * len(value.shape)
        shape[self.axis] = value.shape[self.axis]
        scale = ops.sign(factor) / ops.sqrt(variance + self.epsilon * ops.square(factor))
        if self.gamma is not None:
            scale = scale * _keras_compat.as_tensor(self.gamma)
        shift = -mean * scale if self.beta is None else _keras_compat.as_tensor(self.beta) - mean * scale
        self.moving_mean.assign(self.moving_mean.value * keep + plain_mean * (1 - keep))
        self.moving_variance.assign(self.moving_variance.value * keep + plain_variance * (1 - keep))
        return value * ops.reshape(scale, shape) + ops.reshape(shift, shape)

    def get_config(self):
        return {**super().get_config(), "freeze": self.freeze}


def normalization_of(layer):
    """The scheduled normalization behind a layer in the graph it was last called in, or None."""
    found = (one for one in _keras_compat.readers(layer) if isinstance(one, ScheduledBatchNormalization))
    return next((one for one in found if one.built), None)


class FoldedKernel(Parametrization):
    """A kernel times gamma / sigma of the scheduled batch normalization behind its layer; as it is where there is none."""

    scales = True

    def _factor(self):
        behind = normalization_of(self.layer)
        if behind is None:
            return None
        _, axes = KERNELS[_kind(self.layer)]
        shape = [1] * len(self.shape)
        for axis in axes:
            shape[axis] = self.shape[axis]
        return ops.reshape(behind.folded()[0], shape)

    def __call__(self, value):
        factor = self._factor()
        return value if factor is None else value * factor

    def right_inverse(self, value):
        factor = self._factor()
        return value if factor is None else value / ops.convert_to_numpy(factor)


class FoldedBias(Parametrization):
    """The bias beta - mean * gamma / sigma of the normalization behind its layer; as it is where there is none.

    The layer's own bias has no part in it: batch statistics take any constant out.
    """

    def __call__(self, value):
        behind = normalization_of(self.layer)
        return value if behind is None else behind.folded()[1] + 0.0 * value

    def right_inverse(self, value):
        return value


class FreezeBatchNorm(keras.callbacks.Callback):
    """Turns a fraction of the training's length into the step at which batch statistics freeze.

    `QAT(freeze_batchnorm=0.5).callbacks()` returns it; a number of steps needs no callback.

    Args:
        fraction: of all steps of the `fit` that it is passed to, above 0 and below 1.
    """

    def __init__(self, fraction: float):
        super().__init__()
        self.fraction = fraction

    def on_train_begin(self, logs=None):
        steps = (self.params or {}).get("steps")
        waiting = [n for n in scheduled(self.model) if _number(n.freeze_at) < 0]
        if steps:
            self._set(waiting, steps * (self.params.get("epochs") or 1))
        self._waiting = [] if steps else waiting

    def on_epoch_end(self, epoch, logs=None):
        # A generator's length is known after its first epoch.
        if self._waiting:
            done = _number(self._waiting[0].updates)
            self._set(self._waiting, done * (self.params.get("epochs") or 1))
            self._waiting = []

    def _set(self, layers, total: float) -> None:
        for layer in layers:
            layer.freeze_at.assign(max(1.0, float(round(self.fraction * total))))


def _number(variable) -> float:
    return float(ops.convert_to_numpy(_keras_compat.as_tensor(variable)))


def scheduled(model) -> list[ScheduledBatchNormalization]:
    """The scheduled normalizations of a model."""
    return [layer for layer in _keras_compat.flat_layers(model) if isinstance(layer, ScheduledBatchNormalization)]


def schedule(model, freeze: float):
    """Put every normalization that can be folded on the schedule, in place.

    Args:
        model: a Functional or built Sequential model. freeze: steps, or a fraction of the training.

    Returns:
        (model, rows).
    """
    folds = foldable(model)
    found, kept = [row for row in folds if row.layer], [row for row in folds if not row.layer]
    old = operations(model)
    replacements = {row.normalization: _scheduled(old[row.normalization], old[row.layer], freeze) for row in found}
    model = rebuild(model, replace=replacements, reuse=True)
    layers = operations(model)
    for row in found:
        layer = layers[row.layer]
        layers[row.normalization].trainable = old[row.normalization].trainable
        if layer.bias is None:
            _keras_compat.add_bias(layer, len(replacements[row.normalization].weights[-4]))
        else:
            layer.bias.assign(np.zeros(layer.bias.shape, "float32"))
        attach(layer, KERNELS[_kind(layer)][0], [FoldedKernel()])
        attach(layer, "bias", [FoldedBias()])
    when = f"{freeze:g} of training" if 0 < freeze < 1 else f"{freeze:g} steps"
    rows = [Row(r.normalization, "", DONE, f"folded into {r.layer}; batch statistics for {when}") for r in found]
    return model, rows + [
        Row(r.normalization, "", FLOAT, f"not folded: {r.reason}; a scale and a shift whose output is rounded")
        for r in kept
    ]


def _scheduled(normalization, layer, freeze: float) -> Weighted:
    """The new layer with the old one's weights, and the bias before it taken into its mean."""
    new = ScheduledBatchNormalization.from_config({**normalization.get_config(), "renorm": False, "freeze": freeze})
    kept = [normalization.gamma, normalization.beta, normalization.moving_mean, normalization.moving_variance]
    weights = [ops.convert_to_numpy(_keras_compat.as_tensor(v)) for v in kept if v is not None]
    if layer.bias is not None:
        weights[-2] = weights[-2] - ops.convert_to_numpy(_keras_compat.as_tensor(layer.bias))
    return Weighted(new, [*weights, np.float32(0), np.float32(freeze if freeze >= 1 else -1)])


def _kind(layer) -> str:
    from tfcompress import carriers

    return carriers.base_class(layer).__name__


def _take_out(model):
    """The finalizer: a folded normalization leaves the graph, whose layer has its factor and offset in its weights."""
    if _keras_compat.functional(model) is None or not scheduled(model):
        return model, [], {}
    outputs = {id(_keras_compat.operation_of(tensor)) for tensor in graph_of(model).outputs}
    rows, drop, ends = [], [], {}
    for call in all_calls(model):
        if not isinstance(call.operation, ScheduledBatchNormalization) or call.path in drop:
            continue
        layer = call.operation
        done, until = _number(layer.updates), _number(layer.freeze_at)
        live = until < 0 or done < until
        detail = "folded with its moving statistics" + (
            f", never frozen (step {done:g})" if live else f", frozen at step {until:g}"
        )
        rows.append(Row(call.path, "", DONE, detail))
        if id(layer) in outputs:
            ends[call.path] = keras.layers.Identity(name=layer.name, dtype=layer.dtype_policy)
        else:
            drop.append(call.path)
    return rebuild(model, replace=ends, drop=drop, reuse=True), rows, {}


FINALIZERS.insert(0, _take_out)
