"""Layers of tfcompress, ready to be used by hand."""

from tfcompress.layers.output_range import OutputRange

__all__ = ["OutputRange"]
