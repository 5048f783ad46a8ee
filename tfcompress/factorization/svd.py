"""[62] Restructuring of deep neural network acoustic models with singular value decomposition (Xue, Li, Gong, 2013)."""

from typing import Any, NamedTuple

import numpy as np

from tfcompress import _keras_compat, select
from tfcompress.errors import CompressionError
from tfcompress.factorization import pointwise, ranks
from tfcompress.graph.chains import replace_by_chain
from tfcompress.graph.probe import input_moments
from tfcompress.graph.rebuild import rebuild
from tfcompress.method import DONE, SKIPPED, Method, Row, require_built


class Factors(NamedTuple):
    """W ~ A B, and what it costs.

    Args:
        a: [m, k]. b: [k, n]. values: all singular values that the choice was made from, in falling order.
        shift: what to add to the bias, mean (W - A B), or None without a mean.
    """

    a: np.ndarray
    b: np.ndarray
    values: np.ndarray
    shift: np.ndarray | None


def truncated_svd(weights, k: int | None = None, balanced: bool = False, covariance=None, mean=None) -> Factors:
    """The best rank-k factors of a matrix W: in the Frobenius norm, or for the outputs x W on given inputs.

    Plain, A = U_k and B = diag(s_k) V_k^T minimise ||W - A B||_F. With C = E[x^T x] = L L^T (and 1e-6 trace(C) / m on its
    diagonal), the SVD of L^T W gives A = L^-T U_k, B = S_k V_k^T, which minimise E ||x W - x A B||^2. With a mean as well,
    the bias takes mean (W - A B), so that C is centred first: what the bias can take need not be kept in the factors.

    Args:
        weights: W, [m, n]. k: components to keep; all by default.
        balanced: the square root of the singular values on both factors, better conditioned for fine-tuning and int8.
        covariance: C, [m, m], not centred. mean: E[x], [m].

    Raises:
        CompressionError: W is no matrix or not finite, or shapes do not fit.

    Example:
        >>> factors = truncated_svd(np.diag([3.0, 2.0, 1.0]), 2)
        >>> np.round(factors.a @ factors.b, 6).diagonal(), factors.values
        (array([3., 2., 0.]), array([3., 2., 1.]))
    """
    w = np.asarray(weights, np.float64)
    if w.ndim != 2 or not np.isfinite(w).all():
        raise CompressionError(
            f"An SVD takes a finite matrix; received shape {w.shape}, finite: {np.isfinite(w).all()}."
        )
    left = None
    if covariance is not None:
        c = np.asarray(covariance, np.float64)
        if mean is not None:
            c = c - np.outer(mean, mean)
        if c.shape != (len(w), len(w)):
            raise CompressionError(f"The covariance of {len(w)} inputs is {len(w)} x {len(w)}; received {c.shape}.")
        left = np.linalg.cholesky(c + max(1e-6 * np.trace(c) / len(w), 1e-12) * np.eye(len(w)))
    u, s, vt = np.linalg.svd(w if left is None else left.T @ w, full_matrices=False)
    k = len(s) if k is None else min(k, len(s))
    a = u[:, :k] if left is None else np.linalg.solve(left.T, u[:, :k])
    b = s[:k, None] * vt[:k]
    if balanced:
        # In the weighted form the columns of A are not of unit length; the scales meet in the middle either way.
        scale = np.sqrt(np.linalg.norm(b, axis=1) / np.maximum(np.linalg.norm(a, axis=0), 1e-30))
        scale = np.where(scale > 0, scale, 1.0)
        a, b = a * scale, b / scale[:, None]
    return Factors(a, b, s, None if mean is None else np.asarray(mean, np.float64) @ (w - a @ b))


def rerank(a, b, k: int, balanced: bool = False) -> Factors:
    """The best rank-k factors of a product A B, without forming it: QR of both factors, SVD of the small core.

    Args:
        a: [m, r]. b: [r, n]. k, balanced: as in `truncated_svd`.

    Example:
        >>> old = truncated_svd(np.diag([3.0, 2.0, 1.0]))
        >>> new = rerank(old.a, old.b, 1)
        >>> np.round(new.a @ new.b, 6).diagonal()
        array([3., 0., 0.])
    """
    qa, ra = np.linalg.qr(np.asarray(a, np.float64))
    qb, rb = np.linalg.qr(np.asarray(b, np.float64).T)
    core = truncated_svd(ra @ rb.T, k, balanced)
    return Factors(qa @ core.a, core.b @ qb.T, core.values, None)


class SVD(Method):
    """[62] Replaces dense layers by two, a linear bottleneck of the truncated SVD between them.

    y = x W + b becomes y = (x A) B + b: the first layer `<name>_1` has neither bias nor activation, the second keeps the
    layer's name, bias and activation. Takes Dense, 1x1 convolutions and EinsumDense with a matrix as kernel. A layer
    whose factors would not be smaller, k (m + n) >= m n, is left. A pair of layers that is factored already is factored
    again without forming the product. Fine-tune afterwards, at about a fifth to a tenth of the learning rate.

    Args:
        rank: a number, a share of the sum of the singular values (0.4), {"energy": 0.9}, {"parameters": 0.25} (share or
            number of kernel weights, water-filled over all layers), or {layer pattern: one of these}; see `ranks`.
        balanced: sqrt(s) on both factors.
        data_aware: minimise the error of the outputs on calibration inputs (about 1000) instead of that of the weights.
        layers, exclude, include_frozen: which layers; see `tfcompress.select`.

    Example:
        >>> import keras, tfcompress
        >>> model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(32, name="a")])
        >>> [layer.name for layer in tfcompress.apply(model, SVD(rank=4), verbose=0).layers]
        ['a_1', 'a']
    """

    papers = (62,)
    trains = False

    def __init__(self, rank: Any = 0.5, balanced: bool = False, data_aware: bool = False, layers=None, exclude=None,
                 include_frozen: bool = False):  # fmt: skip
        self.rank, self.balanced, self.data_aware = rank, balanced, data_aware
        self.layers, self.exclude, self.include_frozen = layers, exclude, include_frozen
        self._rules()  # a wrong rule is refused before any model is touched

    def _rules(self) -> dict[str, ranks.RankRule]:
        if isinstance(self.rank, dict) and not (len(self.rank) == 1 and next(iter(self.rank)) in ranks.RULES):
            return {pattern: ranks.get(rule) for pattern, rule in self.rank.items()}
        return {"*": ranks.get(self.rank)}

    def attach(self, model, data=None):
        require_built(model, "SVD")
        rows: list[Row] = []
        found = [matrix for matrix in pointwise.matrices(model, rows) if self._wanted(matrix, rows)]
        if not found:
            reasons = "; ".join(f"{row.layer}: {row.detail}" for row in rows[:5]) or "no layer has a matrix as kernel"
            raise CompressionError(f"SVD applies to no layer of model {model.name!r} ({reasons}).")
        moments = self._moments(model, found, data) if self.data_aware else None
        whole = [self._factors(matrix, None, moments) for matrix in found]
        chosen = self._ranks(found, [factors.values for factors in whole])
        chains, pairs = {}, {}
        for matrix, k in zip(found, chosen, strict=True):
            (m, n), before = matrix.shape, matrix.size
            if k * (m + n) >= before:
                more = f"rank {k} would hold {k * (m + n)} weights, not fewer than the layer's {before}"
                rows.append(Row(matrix.path, "kernel", SKIPPED, more))
                continue
            factors = self._factors(matrix, k, moments)
            if matrix.first is not None:
                pairs.update(matrix.relink(factors))
            else:
                chains[matrix.path] = matrix.links(factors)
            values = factors.values
            kept = f"{(values[:k] ** 2).sum() / max((values**2).sum(), 1e-30):.1%} of the energy"
            detail = f"rank {k} of {len(values)}, {kept}, {before} -> {k * (m + n)} weights"
            rows.append(Row(matrix.path, "kernel", DONE, detail))
        new = replace_by_chain(model, chains) if chains else model
        new = rebuild(new, replace=pairs) if pairs else new
        if new is not model:
            _keras_compat.compile_like(new, model)
        return new, rows

    def _wanted(self, matrix, rows: list[Row]) -> bool:
        arguments = (matrix.path, matrix.layer, "kernel")
        reason = ""
        if not select.get(self.layers)(*arguments):
            reason = f"not selected by layers={select.get(self.layers)}"
        elif self.exclude is not None and select.get(self.exclude)(*arguments):
            reason = f"left out by exclude={select.get(self.exclude)}"
        elif not matrix.layer.trainable and not self.include_frozen:
            reason = "frozen (include_frozen=True takes it too)"
        elif self._rule(matrix) is None:
            reason = "no pattern of `rank` matches"
        if reason:
            rows.append(Row(matrix.path, "kernel", SKIPPED, reason))
        return not reason

    def _rule(self, matrix) -> str | None:
        return next((p for p in self._rules() if select.get(p)(matrix.path, matrix.layer, "kernel")), None)

    def _ranks(self, found: list, values: list[np.ndarray]) -> list[int]:
        chosen = [0] * len(found)
        for pattern, rule in self._rules().items():
            mine = [i for i, matrix in enumerate(found) if self._rule(matrix) == pattern]
            spectra = [ranks.Spectrum(values[i], *found[i].shape) for i in mine]
            for i, k in zip(mine, rule(spectra), strict=True):
                chosen[i] = k
        return chosen

    def _moments(self, model, found: list, data):
        if data is None:
            raise CompressionError("SVD(data_aware=True) needs calibration inputs: pass data=x[:1000] to apply.")
        return input_moments(model, data, [matrix.reads for matrix in found if matrix.first is None])

    def _factors(self, matrix, k: int | None, moments) -> Factors:
        if matrix.first is not None:
            a, b = matrix.product
            return rerank(a, b, k if k is not None else len(b), self.balanced)
        if moments is None:
            return truncated_svd(matrix.value, k, self.balanced)
        mean = moments.mean(matrix.reads) if matrix.has_bias else None
        return truncated_svd(matrix.value, k, self.balanced, moments.second(matrix.reads), mean)
