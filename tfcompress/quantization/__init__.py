"""Quantization: weights and outputs on few values."""

from tfcompress.core.grids import IntegerGrid, LearnedGrid
from tfcompress.quantization.batchnorm import FreezeBatchNorm
from tfcompress.quantization.gap import simulation_gap
from tfcompress.quantization.qat import QAT
from tfcompress.quantization.ranges import calibrate
from tfcompress.quantization.scheme import Scheme
from tfcompress.quantization.weights import BiasGrid, QuantizedWeights

__all__ = [
    "QAT",
    "BiasGrid",
    "FreezeBatchNorm",
    "IntegerGrid",
    "LearnedGrid",
    "QuantizedWeights",
    "Scheme",
    "calibrate",
    "simulation_gap",
]
