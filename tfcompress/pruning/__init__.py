"""Pruning: weights, filters and connections that are not needed."""

from tfcompress.core.variational import Gaussian, ScaleMixture, average, sampled
from tfcompress.pruning.bayes import BayesByBackprop, GaussianWeight, snr_prune
from tfcompress.pruning.magnitude import Magnitude, MagnitudeMask

__all__ = [
    "BayesByBackprop",
    "Gaussian",
    "GaussianWeight",
    "Magnitude",
    "MagnitudeMask",
    "ScaleMixture",
    "average",
    "sampled",
    "snr_prune",
]
