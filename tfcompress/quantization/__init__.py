"""Quantization: weights and outputs on few values."""

from tfcompress.core.grids import IntegerGrid, LearnedGrid
from tfcompress.quantization.batchnorm import FreezeBatchNorm
from tfcompress.quantization.bias_correction import correct_biases
from tfcompress.quantization.equalization import Equalize
from tfcompress.quantization.fixed_grid import FixedGrid
from tfcompress.quantization.gap import simulation_gap
from tfcompress.quantization.post_training import PostTraining
from tfcompress.quantization.qat import QAT
from tfcompress.quantization.ranges import calibrate
from tfcompress.quantization.scheme import Scheme
from tfcompress.quantization.weights import BiasGrid, QuantizedWeights

__all__ = [
    "QAT",
    "BiasGrid",
    "Equalize",
    "FixedGrid",
    "FreezeBatchNorm",
    "IntegerGrid",
    "LearnedGrid",
    "PostTraining",
    "QuantizedWeights",
    "Scheme",
    "calibrate",
    "correct_biases",
    "simulation_gap",
]
