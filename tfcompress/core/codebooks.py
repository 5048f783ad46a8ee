"""Codebooks: weights that share a few values, which go on learning."""

import keras
import numpy as np

from tfcompress.core.clusters import kmeans_1d
from tfcompress.errors import CompressionError
from tfcompress.parametrization import Parametrization

ops = keras.ops


class Codebook(Parametrization):
    """W[i] = C[I[i]]: the assignment I is fixed, the values C are trained; exact zeros stay zeros.

    The gradient of a shared value is the sum of its weights' gradients, which is what differentiating the look-up gives.
    With as many clusters as distinct values, or more, nothing changes at first.

    Args:
        clusters: number of shared values besides zero. init: how k-means starts, as `core.clusters.kmeans_1d` says;
            "linear" keeps the few large weights, which matter most.

    Example:
        >>> from tfcompress.parametrization import parametrize
        >>> layer = keras.layers.Dense(8)
        >>> layer.build((None, 8))
        >>> parametrize(layer, "kernel", Codebook(clusters=4))
        >>> len(np.unique(layer.kernel.numpy()))
        4
    """

    shares_values = True

    def __init__(self, clusters: int = 16, init: str = "linear"):
        if int(clusters) < 1:
            raise CompressionError(f"`clusters` must be at least 1; received {clusters}.")
        self.clusters, self.init = int(clusters), init

    def build(self, layer, name, shape):
        # More clusters than weights would only repeat values.
        self.size = min(self.clusters, int(np.prod(shape)))
        spread = keras.initializers.RandomUniform(-0.1, 0.1, seed=0)
        self.centroids = self.add_variable("centroids", (self.size,), spread, trainable=True)
        # Code 0 is the zero that pruning left; code i is centroid i - 1.
        self.codes = self.add_variable("codes", shape, "ones", dtype="uint8" if self.size < 256 else "int32")

    def initialize(self, value):
        alive = value != 0
        codes = np.zeros(value.shape, "int32")
        if alive.any():
            centroids, assignments, _ = kmeans_1d(value[alive], self.size, init=self.init)
            codes[alive] = assignments + 1
            self.centroids.assign(centroids.astype("float32"))
        self.codes.assign(codes)

    def __call__(self, value):
        table = ops.concatenate([ops.zeros((1,)), self.centroids.value])
        shared = ops.take(table, ops.cast(self.codes.value, "int32"))
        # The raw weight has no part in the value; its gradient is zero rather than missing, which trainers warn of.
        return shared + value * 0.0

    def right_inverse(self, value):
        self.initialize(value)
        return value

    def log(self):
        array = ops.convert_to_numpy(self.codes.value)
        return {"distinct": float(len(np.unique(array[array > 0]))), "sparsity": float((array == 0).mean())}
