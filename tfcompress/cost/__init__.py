"""What a model costs: parameters, multiply-accumulates and bytes, layer by layer."""

from tfcompress.cost.calls import Call, Shape
from tfcompress.cost.count import count, macs
from tfcompress.cost.report import CostReport, LayerCost, WeightCost
from tfcompress.cost.rules import rule

__all__ = ["Call", "CostReport", "LayerCost", "Shape", "WeightCost", "count", "macs", "rule"]
