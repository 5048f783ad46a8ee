"""Reading and rewriting Keras graphs: replay, folding, channel groups and surgery."""

from tfcompress.graph.calls import Call, all_calls, calls, operations
from tfcompress.graph.chains import replace_by_chain
from tfcompress.graph.channels import Group, groups
from tfcompress.graph.dead_units import DeadUnits, remove_dead_units
from tfcompress.graph.expand import expand_layers
from tfcompress.graph.fold import Fold, fold_batchnorm, foldable
from tfcompress.graph.probe import input_moments, watch
from tfcompress.graph.rebuild import Weighted, insertion_points, rebuild
from tfcompress.graph.surgery import Change, changes, masked, remove_channels

__all__ = [
    "Call",
    "Change",
    "DeadUnits",
    "Fold",
    "Group",
    "Weighted",
    "all_calls",
    "calls",
    "changes",
    "expand_layers",
    "fold_batchnorm",
    "foldable",
    "groups",
    "input_moments",
    "insertion_points",
    "masked",
    "operations",
    "rebuild",
    "remove_channels",
    "remove_dead_units",
    "replace_by_chain",
    "watch",
]
