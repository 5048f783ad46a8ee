"""Quantization: weights and outputs on few values."""

from tfcompress.core.grids import IntegerGrid
from tfcompress.quantization.qat import QAT, BiasGrid, QuantizedWeights, calibrate

__all__ = ["QAT", "BiasGrid", "IntegerGrid", "QuantizedWeights", "calibrate"]
