"""[11] Learning both Weights and Connections (Han, Pool, Tran, Dally, 2015), step 6: neurons without connections go."""

from tfcompress import _keras_compat
from tfcompress.graph.dead_units import remove_dead_units
from tfcompress.graph.surgery import changes
from tfcompress.method import DONE, SKIPPED, Method, Row, finalize, is_attached, require_built


class RemoveDeadUnits(Method):
    """[11] Removes units and filters whose incoming or outgoing weights are all 0, after pruning has made them so.

    What has no reader is removed; what has no input is the constant f(b), which goes into the next bias. Outputs stay
    equal. A model with masks is finalized first, so that the zeros are the weights' own.

    Example:
        >>> import keras, numpy as np, tfcompress
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])
        >>> model.get_layer("a").set_weights([np.eye(3, 4), np.ones(4)])
        >>> tfcompress.apply(model, RemoveDeadUnits(), verbose=0).get_layer("a").units
        3
    """

    papers = (11,)
    trains = False
    may_find_nothing = True

    def attach(self, model, data=None):
        require_built(model, "the removal of dead units")
        before = finalize(model, in_place=True, verbose=0) if is_attached(model) else model
        new, found = remove_dead_units(before)
        rows = []
        for group in found:
            gone = f"{group.unread} that nothing reads and {group.constant} constant channels removed"
            kept = f"; {group.kept} dead ones stay: {group.reason}" if group.kept else ""
            rows.append(Row(group.layer, "", DONE if group.unread + group.constant else SKIPPED, gone + kept))
        if new is not before:
            _keras_compat.compile_like(new, before)
            rows += [Row(c.layer, c.what, DONE, f"{c.before} -> {c.after}") for c in changes(before, new)]
        return new, rows or [Row(model.name, "", SKIPPED, "no channel is dead")]
