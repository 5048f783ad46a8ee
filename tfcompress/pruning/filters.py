"""[18] Pruning Filters for Efficient ConvNets (Li, Kadav, Durdanovic, Samet, Graf, 2016)."""

import collections
import contextlib
import dataclasses
from typing import Any

import keras
import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.core.scores import filter_norms, smallest
from tfcompress.core.sensitivity import Sensitivity, scan
from tfcompress.errors import CompressionError
from tfcompress.graph.channels import Group, Member, Trace, groups_of
from tfcompress.graph.surgery import apply_cut, changes, plan, rounded
from tfcompress.method import DONE, SKIPPED, Method, Row, require_built

FILTERS = (
    [f"Conv{n}D" for n in (1, 2, 3)]
    + [f"Conv{n}DTranspose" for n in (1, 2, 3)]
    + ["SeparableConv1D", "SeparableConv2D"]
)


def projection(group: Group, trace: Trace) -> Member | None:
    """The layer of a residual group that makes the shortcut: a 1x1 convolution that reads what the block reads.

    Args:
        group: a group with several layers that make its channels. trace: the model's labels.
    """
    calls = list(trace.calls.values())
    readers = collections.Counter(id(tensor) for call in calls for tensor in call.inputs)
    for member in group.producers:
        sizes = getattr(member.layer, "kernel_size", (0,))
        reads = [call.inputs[0] for call in calls if call.operation is member.layer]
        if all(size == 1 for size in sizes) and all(readers[id(tensor)] > 1 for tensor in reads):
            return member
    return None


class Filters(Method):
    """[18] Removes whole filters with the smallest norms, with their maps and the next layer's kernels of these maps.

    The result is a smaller plain model; retrain it once, briefly, at a small constant rate (the paper: 1e-3 for a quarter
    of the original epochs). From each layer ceil(ratio * n) filters go. In residual nets the first convolution of a block
    is free; layers whose outputs are added form one group, which is left alone unless `shortcuts=True`: then the indices
    are chosen by the shortcut's 1x1 projection and imposed on all (the paper's ResNet-34-C).

    Args:
        ratio: share of the filters to remove, or {layer pattern: share} (first match; others are left alone). A residual
            group goes by its projection's name.
        order: 1 for the L1 norm, 2 for L2. greedy: leave the input slices of maps that are already removed out of the
            sums, layer after layer; better at high ratios. shortcuts: prune residual groups as well.
        round_to: leave a multiple of this many filters, e.g. 8.
        layers, exclude, include_frozen: which layers, see `tfcompress.select`; all convolutions by default.

    Example:
        >>> from tfcompress import apply
        >>> net = [keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(4, 3, name="b")]
        >>> apply(keras.Sequential(net), Filters(0.5, layers="a"), verbose=0).get_layer("a").filters
        4
    """

    papers = (18,)
    trains = False

    def __init__(self, ratio: Any = 0.5, order: int = 1, greedy: bool = False, shortcuts: bool = False, round_to: int = 1,
                 layers=None, exclude=None, include_frozen: bool = False):  # fmt: skip
        for one in ratio.values() if isinstance(ratio, dict) else [ratio]:
            if not isinstance(one, (int, float)) or not 0 <= one < 1:
                raise CompressionError(f"`ratio` is a share of the filters, at least 0 and below 1; received {one!r}.")
        if order not in (1, 2):
            raise CompressionError(f"`order` is 1 (sum of absolute values) or 2 (Euclidean); received {order!r}.")
        if int(round_to) < 1:
            raise CompressionError(f"`round_to` must be at least 1; received {round_to!r}.")
        self.ratio, self.order, self.greedy, self.shortcuts = ratio, order, greedy, shortcuts
        self.round_to, self.layers, self.exclude, self.include_frozen = round_to, layers, exclude, include_frozen

    def attach(self, model, data=None):
        require_built(model, "filter pruning")
        trace, rows, chosen = Trace(model), list[Row](), False
        removed: set[int] = set()
        removals: dict[str, list[int]] = {}
        for group in groups_of(trace):
            member, reason = self._leader(group, trace)
            ratio = self._ratio(member)
            reason = reason or self._obstacle(group, member, ratio)
            if reason:
                rows.append(Row(member.path, "kernel", SKIPPED, reason))
                continue
            chosen = True
            going = self._going(group, member, smallest_share=ratio, scores=self._scores(member, trace, removed))
            if going:
                removals[group.root] = going
                removed |= set(group.classes[going].tolist())
            others = [other.path for other in group.producers if other is not member]
            detail = f"{len(going)} of {len(group)} filters removed" + (f", with {', '.join(others)}" if others else "")
            rows.append(Row(member.path, "kernel", DONE, detail))
        if not chosen:
            reasons = "; ".join(f"{row.layer}: {row.detail}" for row in rows[:5]) or "it makes no channels"
            raise CompressionError(f"Filters applies to no layer of model {model.name!r} ({reasons}).")
        new = apply_cut(model, plan(trace, dict(removals))) if removals else model
        if new is not model:
            _keras_compat.compile_like(new, model)
            named = {(row.layer, row.weight): i for i, row in enumerate(rows)}
            for c in changes(model, new):
                i = named.get((c.layer, c.what))
                if i is None:
                    rows.append(Row(c.layer, c.what, DONE, f"{c.before} -> {c.after}"))
                elif rows[i].action == SKIPPED:
                    rows[i] = dataclasses.replace(rows[i], detail=f"{rows[i].detail}; follows: {c.before} -> {c.after}")
        return new, rows

    def _going(self, group: Group, member: Member, smallest_share, scores: np.ndarray) -> list[int]:
        slots = group.slots(member.path)
        # Filters that can only go together (the parts of a grouped convolution) are ranked by their sum.
        own = np.unique(slots)
        going = own[smallest(np.bincount(slots, weights=scores)[own], smallest_share)]
        # A layer keeps one filter; the largest of the smallest are spared when the count is rounded.
        going = going[: len(group) - 1]
        return going[: rounded(group, len(going), self.round_to)].tolist()

    def _leader(self, group: Group, trace: Trace) -> tuple[Member, str]:
        """The layer whose filters are ranked for a group, and why there may be none."""
        first, *others = group.producers
        if not others:
            return first, ""
        names = ", ".join(member.path for member in group.producers)
        if not self.shortcuts:
            return first, f"its output is joined with others ({names}); shortcuts=True prunes them together"
        found = projection(group, trace)
        return (
            found or first,
            "" if found else f"joined ({names}) by an identity shortcut: there is no projection to rank",
        )

    def _ratio(self, member: Member) -> float | None:
        if not isinstance(self.ratio, dict):
            return self.ratio
        matching = (share for p, share in self.ratio.items() if select.get(p)(member.path, member.layer, member.weight))
        return next(matching, None)

    def _obstacle(self, group: Group, member: Member, ratio: float | None) -> str:
        chosen = select.get(self.layers) if self.layers is not None else select.types(*FILTERS)
        arguments = (member.path, member.layer, member.weight)
        if not chosen(*arguments):
            return f"not selected by layers={chosen}"
        if self.exclude is not None and select.get(self.exclude)(*arguments):
            return f"left out by exclude={select.get(self.exclude)}"
        if ratio is None:
            return "no pattern of `ratio` matches"
        if group.fixed:
            return next(iter(group.fixed.values()))
        frozen = [other.path for other in group.producers if not other.layer.trainable]
        return f"{frozen[0]} is frozen (include_frozen=True takes it too)" if frozen and not self.include_frozen else ""

    def _scores(self, member: Member, trace: Trace, removed: set[int]) -> np.ndarray:
        layer = member.layer
        kernel = keras.ops.convert_to_numpy(getattr(layer, member.weight))
        if not np.isfinite(kernel).all():
            raise CompressionError(
                f"The kernel of {member.path!r} holds NaN or infinity; its filters cannot be ranked."
            )
        reading = next((m for m in trace.members.values() if m.layer is layer and m.role == "in"), None)
        kept = None
        if self.greedy and reading is not None and reading.weight == member.weight:
            kept = ~np.isin(trace.classes.find(reading.labels), sorted(removed))
        return filter_norms(kernel, member.axis, self.order, kept, reading.axis if reading else -2)


def filter_sensitivity(model, evaluate, ratios=(0.1, 0.3, 0.5, 0.7, 0.9), retrain=None, **options) -> Sensitivity:
    """Prune each layer's filters alone, and measure the score: skip sensitive layers, or give them a smaller ratio.

    Args:
        model: a Functional or built Sequential model. evaluate: function of a model to a score, higher is better.
        ratios: shares of filters to remove. retrain: called on each pruned model before it is evaluated; not by default.
        options: of `Filters`, e.g. order or layers.

    Returns:
        Scores by layer; `.allowed(drop)` gives a dictionary for `Filters(ratio=...)`.

    Example:
        >>> net = [keras.Input((8, 8, 1)), keras.layers.Conv2D(8, 3, name="a"), keras.layers.Conv2D(4, 3, name="b")]
        >>> filter_sensitivity(keras.Sequential(net), lambda model: model.count_params(), ratios=[0.5]).scores
        {'a': {0.5: 188.0}}
    """
    _, rows = Filters(0.0, **options).attach(model)
    now = [model]

    @contextlib.contextmanager
    def cut(name, ratio):
        now[0], _ = Filters({name: ratio}, **options).attach(model)
        if retrain is not None:
            retrain(now[0])
        yield
        now[0] = model

    return scan([row.layer for row in rows if row.action == DONE], ratios, cut, lambda: evaluate(now[0]))
