"""Pruning: weights, filters and connections that are not needed."""

from tfcompress.pruning.magnitude import Magnitude, MagnitudeMask

__all__ = ["Magnitude", "MagnitudeMask"]
