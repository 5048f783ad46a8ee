"""Attention over one axis of steps: products, a softmax and a mask that eight bits can hold."""

import keras
import numpy as np

from tfcompress.graph.expansions.base import Expansion
from tfcompress.graph.expansions.builder import array

L, ops = keras.layers, keras.ops

# What a masked score becomes; its range does not count it (`quantization.placement`).
MASKED = {"float32": -1e9, "float16": -3e4, "bfloat16": -1e9}


class Attention(Expansion):
    """Multi-head attention (Vaswani et al. 2017); 1 / sqrt(key_dim) goes into the query's kernel and bias."""

    @classmethod
    def obstacle(cls, layer, call):
        if reason := cls.shapes(layer, call):
            return reason
        output = layer._output_shape
        if output is not None and len(output) != 1:
            return f"its output_shape {tuple(output)} has several axes"
        if layer._kernel_constraint is not None or layer._bias_constraint is not None:
            return "a constraint holds for the kernels' own shapes"
        return ""

    @staticmethod
    def shapes(layer, call) -> str:
        """What the sizes forbid."""
        given = [t for t in call.inputs if str(t.dtype).startswith(("float", "bfloat"))]
        if any(len(t.shape) != 3 for t in given[:2]):
            return "its inputs have more axes than steps and features"
        if any(None in t.shape[1:] for t in given):
            return "the number of steps is not known; give the inputs a fixed length"
        return ""

    def sizes(self) -> tuple[int, int, int, int]:
        """Heads of queries, heads of keys, sizes of a key and of a value."""
        layer = self.layer
        return layer.num_heads, layer.num_heads, layer.key_dim, layer.value_dim

    def regularizers(self) -> dict:
        """Those of kernels and biases."""
        return {
            "kernel_regularizer": self.layer._kernel_regularizer,
            "bias_regularizer": self.layer._bias_regularizer,
        }

    @property
    def window(self) -> int | None:
        """How far a step sees, or None."""
        return self.layer._sliding_window

    @property
    def rate(self) -> float:
        """Of dropout on the weights."""
        return self.layer._dropout

    def project(self, role: str, x, dense, factor: float = 1.0, summed: int = 1, **config):
        """One of the layer's products as a Dense layer."""
        kernel = array(dense.kernel) * factor
        kernel = kernel.reshape(int(np.prod(kernel.shape[:summed])), -1)
        weights = [kernel, *([] if dense.bias is None else [array(dense.bias).ravel() * factor])]
        return self.b.call(
            role, L.Dense, x, weights, units=kernel.shape[1], use_bias=len(weights) > 1, **self.regularizers(), **config
        )

    def __call__(
        self, query, value, key=None, attention_mask=None, return_attention_scores=False, use_causal_mask=False
    ):
        b, layer = self.b, self.layer
        key = value if key is None else key
        heads, groups, size, value_size = self.sizes()
        steps, others = query.shape[1], value.shape[1]
        each = heads // groups
        q = self.project("query", query, layer._query_dense, size**-0.5)
        q = b.call("query_heads", L.Reshape, q, target_shape=(steps, heads, size))
        q = b.call("query_first", L.Permute, q, dims=(2, 1, 3))
        k = b.call(
            "key_heads", L.Reshape, self.project("key", key, layer._key_dense), target_shape=(others, groups, size)
        )
        k = b.call("key_last", L.Permute, k, dims=(2, 3, 1))
        v = self.project("value", value, layer._value_dense)
        v = b.call("value_heads", L.Reshape, v, target_shape=(others, groups, value_size))
        v = b.call("value_first", L.Permute, v, dims=(2, 1, 3))
        if each > 1:
            # The queries that share a key's head stand below one another.
            q = b.call("query_groups", L.Reshape, q, target_shape=(groups, each * steps, size))
        scores = b.op("scores", ops.matmul, q, k)
        if each > 1:
            scores = b.call("score_heads", L.Reshape, scores, target_shape=(heads, steps, others))
        weights = self.weights(scores, self.mask(steps, others, use_causal_mask), attention_mask)
        shares = b.call("dropout", L.Dropout, weights, rate=self.rate, seed=layer.seed) if self.rate else weights
        if each > 1:
            shares = b.call("weight_groups", L.Reshape, shares, target_shape=(groups, each * steps, others))
        x = b.op("attended", ops.matmul, shares, v)
        if each > 1:
            x = b.call("attended_heads", L.Reshape, x, target_shape=(heads, steps, value_size))
        x = b.call("attended_first", L.Permute, x, dims=(2, 1, 3))
        x = b.call("joined", L.Reshape, x, target_shape=(steps, heads * value_size))
        if self.gated:
            gate = self.project("gate", query, layer._gate_dense)
            x = b.call("gated", L.Multiply, [x, b.call("gate_sigmoid", L.Activation, gate, activation="sigmoid")])
        x = self.project("", x, layer._output_dense, summed=2)
        return [x, weights] if return_attention_scores else x

    @property
    def gated(self) -> bool:
        """Whether a gate multiplies the heads."""
        return self.layer._use_gate

    def mask(self, steps: int, others: int, causal: bool) -> np.ndarray | None:
        """Which scores count for all samples alike."""
        if not causal and self.window is None:
            return None
        row, column = np.arange(steps)[:, None], np.arange(others)[None]
        mask = np.ones((steps, others), bool)
        if causal:
            mask &= row >= column
        if self.window is not None:
            mask &= np.abs(row - column) < self.window
        return mask[None, None]

    def weights(self, scores, fixed: np.ndarray | None, given):
        """The softmax of the scores that a mask leaves."""
        b = self.b
        mask = fixed
        if given is not None:
            mask = given if str(given.dtype) == "bool" else b.op("mask_bool", ops.cast, given, "bool")
            while len(mask.shape) < 4:
                mask = b.op("mask_heads", ops.expand_dims, mask, axis=1 if len(mask.shape) == 3 else 0)
            mask = mask if fixed is None else b.op("mask_both", ops.logical_and, mask, fixed)
        if mask is not None:
            masked = MASKED[keras.backend.standardize_dtype(scores.dtype)]
            scores = b.op("masked", ops.where, mask, scores, masked)
        weights = b.call("softmax", L.Softmax, scores)
        if mask is None or (given is None and fixed is not None and fixed.any(-1).all()):
            return weights
        # Where nothing is left to attend to, the weights are 0.
        return b.op("shown", ops.where, mask, weights, 0.0)


class GroupedAttention(Attention):
    """Grouped-query attention (Ainslie et al. 2023), without repeating keys and values."""

    @classmethod
    def obstacle(cls, layer, call):
        if reason := cls.shapes(layer, call):
            return reason
        if layer.kernel_constraint is not None or layer.bias_constraint is not None:
            return "a constraint holds for the kernels' own shapes"
        return ""

    def sizes(self):
        layer = self.layer
        return layer.num_query_heads, layer.num_key_value_heads, layer.head_dim, layer.head_dim

    def regularizers(self):
        return {
            "kernel_regularizer": self.layer.kernel_regularizer,
            "bias_regularizer": self.layer.bias_regularizer,
        }

    @property
    def window(self):
        return self.layer.sliding_window

    @property
    def rate(self):
        return self.layer.dropout

    @property
    def gated(self):
        return self.layer.use_gate
