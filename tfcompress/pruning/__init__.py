"""Pruning: weights, filters and connections that are not needed."""

from tfcompress.core.ensembles import average, sampled
from tfcompress.core.variational import Gaussian, ScaleMixture
from tfcompress.pruning.bayes import BayesByBackprop, GaussianWeight, snr_prune
from tfcompress.pruning.connections import sensitivity, shrink_dropout, shrunk_dropout
from tfcompress.pruning.dead_units import RemoveDeadUnits
from tfcompress.pruning.filters import Filters, filter_sensitivity
from tfcompress.pruning.magnitude import Magnitude, MagnitudeMask
from tfcompress.pruning.shared_weights import SharedWeights, sharing_rate

__all__ = [
    "BayesByBackprop",
    "Filters",
    "Gaussian",
    "GaussianWeight",
    "Magnitude",
    "MagnitudeMask",
    "RemoveDeadUnits",
    "ScaleMixture",
    "SharedWeights",
    "average",
    "filter_sensitivity",
    "sampled",
    "sensitivity",
    "sharing_rate",
    "shrink_dropout",
    "shrunk_dropout",
    "snr_prune",
]
