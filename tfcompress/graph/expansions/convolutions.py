"""Separable convolutions, EinsumDense and TimeDistributed as the plain layers that they compute."""

import keras
import numpy as np

from tfcompress.graph.expansions.base import Expansion
from tfcompress.graph.expansions.builder import Weight, array

L = keras.layers


class Separable(Expansion):
    """A separable convolution: a depthwise and a pointwise one."""

    movable = frozenset({"depthwise_kernel", "pointwise_kernel", "bias"})

    def __call__(self, inputs):
        layer = self.layer
        depthwise, pointwise = (L.DepthwiseConv2D, L.Conv2D) if layer.rank == 2 else (L.DepthwiseConv1D, L.Conv1D)
        x = self.b.call(
            "depthwise", depthwise, inputs, [Weight(layer, "depthwise_kernel")], kernel_size=layer.kernel_size,
            strides=layer.strides, padding=layer.padding, dilation_rate=layer.dilation_rate, use_bias=False,
            depth_multiplier=layer.depth_multiplier, data_format=layer.data_format,
            depthwise_regularizer=layer.depthwise_regularizer, depthwise_constraint=layer.depthwise_constraint,
        )  # fmt: skip
        weights = [Weight(layer, "pointwise_kernel"), *([Weight(layer, "bias")] if layer.use_bias else [])]
        return self.b.call(
            "", pointwise, x, weights, filters=layer.filters, kernel_size=1, use_bias=layer.use_bias,
            activation=layer.activation, data_format=layer.data_format,
            kernel_regularizer=layer.pointwise_regularizer, kernel_constraint=layer.pointwise_constraint,
            bias_regularizer=layer.bias_regularizer, bias_constraint=layer.bias_constraint,
        )  # fmt: skip


class Einsum(Expansion):
    """A product over the last axes of its input: a Dense layer between two reshapes."""

    @staticmethod
    def axes(layer) -> tuple[int, int] | None:
        """(axes that are summed over, axes that are made), where they are the last ones in order; else None."""
        inputs, rest = layer.equation.replace(" ", "").split(",")
        kernel, output = rest.split("->")
        inputs, output = inputs.replace("...", "0"), output.replace("...", "0")
        summed = [c for c in kernel if c in inputs and c not in output]
        made = [c for c in kernel if c in output and c not in inputs]
        free = inputs[: len(inputs) - len(summed)]
        fits = kernel == "".join(summed + made) and inputs == free + "".join(summed) and output == free + "".join(made)
        return (len(summed), len(made)) if fits and summed and made and free else None

    @classmethod
    def obstacle(cls, layer, call):
        axes = cls.axes(layer)
        if axes is None:
            return f"the equation {layer.equation!r} is no product over the last axes"
        if axes != (1, 1) and None in call.inputs[0].shape[1:]:
            return "an axis beside the batch has no fixed size"
        if layer.bias is not None and layer.bias.shape != layer.kernel.shape[axes[0] :]:
            return "its bias is shared over axes of the output"
        if layer.kernel_constraint is not None or layer.bias_constraint is not None:
            return "a constraint holds for the kernel's own shape"
        return ""

    def __call__(self, inputs):
        layer, (summed, _) = self.layer, self.axes(self.layer)
        kernel = array(layer.kernel)
        kernel = kernel.reshape(int(np.prod(kernel.shape[:summed])), -1)
        weights = [kernel, *([] if layer.bias is None else [array(layer.bias).ravel()])]
        free = tuple(inputs.shape[1 : len(inputs.shape) - summed])
        target = (*free, *layer.kernel.shape[summed:])
        flat = len(target) == len(free) + 1
        elementwise = getattr(layer.activation, "__name__", "") not in ("softmax", "log_softmax")
        dense = {
            "units": kernel.shape[1], "use_bias": layer.bias is not None, "kernel_regularizer": layer.kernel_regularizer,
            "bias_regularizer": layer.bias_regularizer, "activation": layer.activation if flat or elementwise else None,
        }  # fmt: skip
        x = inputs if summed == 1 else self.b.call("flat", L.Reshape, inputs, target_shape=(*free, kernel.shape[0]))
        x = self.b.call("" if flat else "product", L.Dense, x, weights, **dense)
        if flat:
            return x
        x = self.b.call("" if elementwise else "shaped", L.Reshape, x, target_shape=target)
        return x if elementwise else self.b.call("", L.Activation, x, activation=layer.activation)


# Layers that treat every sample alike, so that steps may stand among the samples.
_BY_SAMPLE = (
    L.Dense, L.EinsumDense, L.Activation, L.ReLU, L.LeakyReLU, L.ELU, L.Softmax, L.Dropout, L.Flatten, L.Reshape, L.Permute,
    L.Conv1D, L.Conv2D, L.DepthwiseConv1D, L.DepthwiseConv2D, L.SeparableConv1D, L.SeparableConv2D, L.Conv1DTranspose,
    L.Conv2DTranspose, L.LayerNormalization, L.MaxPooling1D, L.MaxPooling2D, L.AveragePooling1D, L.AveragePooling2D,
    L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.ZeroPadding1D,
    L.ZeroPadding2D, L.Cropping1D, L.Cropping2D, L.UpSampling1D, L.UpSampling2D,
)  # fmt: skip


class Distributed(Expansion):
    """TimeDistributed: a Dense layer itself, or another one with the steps among the samples."""

    # The layer itself moves, with all that is attached to it.
    movable = frozenset({"kernel", "bias", "depthwise_kernel", "pointwise_kernel", "gamma", "beta"})

    @classmethod
    def obstacle(cls, layer, call):
        if not any(type(layer.layer).__name__ == kind.__name__ for kind in _BY_SAMPLE):
            return f"its layer {type(layer.layer).__name__} may not treat all samples alike"
        if None in call.inputs[0].shape[1:]:
            return "an axis beside the batch has no fixed size"
        return ""

    def __call__(self, inputs):
        inner = self.layer.layer
        alike = type(inner).__name__ == "Dense"
        if "inner" not in self.b.made:
            self.b.inside(inner, "" if alike else "layer")
            self.b.made["inner"] = inner
        if alike:
            return inner(inputs)
        steps, *rest = inputs.shape[1:]
        x = self.b.op("samples", keras.ops.reshape, inputs, (-1, *rest))
        x = inner(x)
        return self.b.op("", keras.ops.reshape, x, (-1, steps, *x.shape[1:]))
