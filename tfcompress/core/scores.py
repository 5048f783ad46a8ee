"""Importance scores: numbers by which weights, filters and units are ranked."""

import math

import numpy as np


def filter_norms(kernel, axis: int = -1, order: int = 1, kept=None, kept_axis: int = -2) -> np.ndarray:
    """The norm of each filter: s_j = sum over (kh, kw, c_in) of |W[kh, kw, c_in, j]|, or the root of the squares' sum.

    Args:
        kernel: the weights. axis: where the filters are. order: 1 or 2.
        kept: booleans over `kept_axis`; input maps that are left out of the sum are False (the greedy form).

    Example:
        >>> kernel = np.array([[3.0, -1.0], [4.0, 1.0]])
        >>> filter_norms(kernel), filter_norms(kernel, order=2), filter_norms(kernel, kept=[True, False])
        (array([7., 2.]), array([5.        , 1.41421356]), array([3., 1.]))
    """
    w = np.asarray(kernel, np.float64)
    if kept is not None:
        w = np.compress(kept, w, axis=kept_axis)
    w = np.moveaxis(w, axis, -1).reshape(-1, w.shape[axis])
    return np.abs(w).sum(axis=0) if order == 1 else np.sqrt((w**2).sum(axis=0))


def smallest(scores, ratio: float) -> np.ndarray:
    """The indices of the ceil(ratio * n) smallest scores, smallest first; ties in order.

    Example:
        >>> smallest([3.0, 1.0, 2.0, 1.0], 0.3)
        array([1, 3])
    """
    # 0.1 * 30 is 3.0000000000000004, and not four filters.
    count = math.ceil(round(ratio * len(scores), 9))
    return np.argsort(np.asarray(scores), kind="stable")[:count]
