"""Accuracy budgets: what each layer's zeros and bits cost, and which precision each layer gets."""

from tfcompress.search.budget import mixed_precision
from tfcompress.search.front import Front, Point
from tfcompress.search.layerwise import SensitivityRow, SensitivityTable, sensitivity

__all__ = ["Front", "Point", "SensitivityRow", "SensitivityTable", "mixed_precision", "sensitivity"]
