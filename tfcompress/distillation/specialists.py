"""[1] Specialists: experts for classes that a generalist confuses, combined with it at inference.

The combination solves a small problem for every case; it is made for a server, or for the host beside a phone's network.
"""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.distillation.bias import _probabilities, last_layer
from tfcompress.distillation.teachers import _TINY, gives_logits
from tfcompress.errors import CompressionError
from tfcompress.method import copy_model, is_attached


def confusable_sets(probabilities, sets: int, *, restarts: int = 10, seed: int = 0) -> list[np.ndarray]:
    """Group classes that a generalist predicts together: k-means on the columns of its predictions' covariance matrix.

    Args:
        probabilities: [cases, classes] predicted by the generalist; no labels are needed. Soften those of a generalist that
            is mostly right (a temperature of about 5), or k-means finds single classes and one set of all the others.
        sets: number of groups. restarts: starts of which the best is kept. seed: of the starts.

    Returns:
        Arrays of classes, ascending, each class in one of them; ordered by their first class.

    Raises:
        CompressionError: there are not that many distinct classes.

    References: paper 1 (Hinton, Vinyals, Dean, 2015), section 5.2.

    Example:
        >>> p = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0.4, 0.6, 0, 0], [0, 0, 0.6, 0.4]])
        >>> [group.tolist() for group in confusable_sets(p, 2)]
        [[0, 1], [2, 3]]
    """
    from scipy.cluster.vq import ClusterError, kmeans2

    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or len(p) < 2 or not 1 <= sets <= p.shape[1]:
        raise CompressionError(f"Cannot make {sets} sets of classes from predictions of shape {p.shape}.")
    columns = np.cov(p, rowvar=False).T
    best = None
    rng = np.random.default_rng(seed)
    distinct = len(np.unique(columns, axis=0))
    if distinct < sets:
        raise CompressionError(
            f"The {p.shape[1]} classes do not fall into {sets} sets: {distinct} of them are distinct."
        )
    for _ in range(max(1, restarts)):
        try:
            centers, found = kmeans2(columns, sets, iter=100, minit="++", missing="raise", rng=rng)
        except ClusterError:  # a set ran empty
            continue
        inertia = float(np.square(columns - centers[found]).sum())
        if best is None or inertia < best[0]:
            best = inertia, found
    if best is None:
        raise CompressionError(
            f"No start of k-means found {sets} sets in the {p.shape[1]} classes; ask for fewer, or for more restarts."
        )
    groups = [np.flatnonzero(best[1] == index) for index in range(sets)]
    return sorted(groups, key=lambda group: int(group[0]))


def specialist(generalist, classes) -> keras.Model:
    """A specialist: a copy of the generalist, weights and all, that tells `classes` apart and all others as "dustbin".

    Args:
        generalist: a Sequential or functional classifier whose last layer is Dense. classes: its set of classes.

    Returns:
        A model with len(classes) + 1 logits, the dustbin last. Its head starts from the generalist's: the rows of the
        classes, and the mean of the others for the dustbin.

    Raises:
        CompressionError: the generalist does not end in a Dense layer, or the classes are not a proper subset.
    """
    if is_attached(generalist):
        raise CompressionError(
            f"Finalize the generalist {generalist.name!r} first; a specialist starts as a plain copy."
        )
    twin = copy_model(generalist)
    layer = last_layer(twin)
    if not isinstance(layer, keras.layers.Dense):
        raise CompressionError(f"The generalist {generalist.name!r} ends in {type(layer).__name__}, not in Dense.")
    classes = _subset(classes, layer.units)
    others = np.setdiff1d(np.arange(layer.units), classes)
    graph = _keras_compat.functional(twin)
    if layer not in graph.layers:
        raise CompressionError(
            f"The last layer of {generalist.name!r} lies inside a nested model; give that model instead."
        )
    head = keras.layers.Dense(len(classes) + 1, name=f"{layer.name}_specialist")
    outputs = head(layer.input)
    kernel, bias = (keras.ops.convert_to_numpy(v.value) for v in (layer.kernel, layer.bias))
    head.kernel.assign(np.concatenate([kernel[:, classes], kernel[:, others].mean(axis=1, keepdims=True)], axis=1))
    head.bias.assign(np.concatenate([bias[classes], bias[others].mean(keepdims=True)]))
    return keras.Model(
        graph.inputs[0] if len(graph.inputs) == 1 else graph.inputs, outputs, name=f"{twin.name}_specialist"
    )


def _subset(classes, total: int) -> np.ndarray:
    classes = np.unique(np.asarray(classes, int))
    if not len(classes) or classes[0] < 0 or classes[-1] >= total or len(classes) >= total:
        raise CompressionError(
            f"A specialist's classes must be some, and not all, of 0..{total - 1}; received {classes.tolist()}."
        )
    return classes


def specialist_data(labels, classes, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A specialist's training set: half from its classes, half from all others.

    Args:
        labels: [cases] of the whole training set. classes: the specialist's. seed: of the draw.

    Returns:
        Indices into the training set in random order, and the labels there: 0.. by the order of `classes`, then the
        dustbin. The smaller of the two sides is used up, the other drawn without repetition.

    Example:
        >>> index, y = specialist_data(np.array([0, 1, 2, 2, 2, 0]), [0, 1])
        >>> sorted(y.tolist())
        [0, 0, 1, 2, 2, 2]
    """
    labels = np.asarray(labels)
    classes = np.unique(np.asarray(classes, int))
    rng = np.random.default_rng(seed)
    inside, outside = np.flatnonzero(np.isin(labels, classes)), np.flatnonzero(~np.isin(labels, classes))
    count = min(len(inside), len(outside))
    if count == 0:
        raise CompressionError(
            f"The labels hold {len(inside)} cases of the classes {classes.tolist()} and {len(outside)} others."
        )
    index = np.concatenate([rng.permutation(inside)[:count], rng.permutation(outside)[:count]])
    index = rng.permutation(index)
    new = np.where(np.isin(labels[index], classes), np.searchsorted(classes, labels[index]), len(classes))
    return index, new


def dustbin_shift(fraction: float, trained_fraction: float = 0.5) -> float:
    """What to add to a specialist's dustbin logit, since its training set held its classes too often.

    Args:
        fraction: true share of its classes in the data. trained_fraction: their share in its training set.

    Example:
        >>> dustbin_shift(0.5, 0.5)
        0.0
    """
    if not (0 < fraction < 1 and 0 < trained_fraction < 1):
        raise CompressionError(f"Both shares must lie between 0 and 1; received {fraction} and {trained_fraction}.")
    return float(np.log((1 - fraction) / (1 - trained_fraction)) - np.log(fraction / trained_fraction))


def combine(generalist, specialists, *, n: int = 1, iterations: int = 2000, tolerance: float = 1e-12) -> np.ndarray:
    """The distribution nearest to the generalist's and to those of the active specialists.

    For each case it minimises KL(p_g || q) + sum over active m of KL(p_m || q_m), q_m = q with all classes outside S_m
    added up as the dustbin, by an EM iteration; the problem is convex.

    Args:
        generalist: probabilities [cases, classes].
        specialists: list of (classes S_m, probabilities [cases, len(S_m) + 1] with the dustbin last).
        n: a specialist is active for a case if one of its classes is among the generalist's n most probable ones.
        iterations: most steps. tolerance: it stops when no probability changes by more.

    Returns:
        q, [cases, classes], float64.

    References: paper 1 (Hinton, Vinyals, Dean, 2015), section 5.4, equation 5.

    Example:
        >>> combine(np.array([[0.6, 0.2, 0.2]]), [([0], np.array([[0.8, 0.2]]))]).round(3)
        array([[0.7 , 0.15, 0.15]])
    """
    p = np.asarray(generalist, np.float64)
    cases, total = p.shape
    if not 1 <= n <= total:
        raise CompressionError(f"`n` must lie between 1 and the {total} classes; received {n}.")
    top = np.zeros((cases, total), bool)
    np.put_along_axis(top, np.argsort(-p, axis=1, kind="stable")[:, :n], True, axis=1)
    experts = []
    for classes, given in specialists:
        classes, given = _subset(classes, total), np.asarray(given, np.float64)
        if given.shape != (cases, len(classes) + 1):
            raise CompressionError(
                f"The specialist for classes {classes.tolist()} must give probabilities of shape {(cases, len(classes) + 1)}, "
                f"the dustbin last; received {given.shape}."
            )
        member = np.isin(np.arange(total), classes)
        rows = np.flatnonzero(top[:, member].any(axis=1))
        inside = np.zeros((len(rows), total))
        inside[:, classes] = given[rows, :-1]
        experts.append((member, rows, inside, given[rows, -1:]))
    active = np.ones((cases, 1))
    for _, rows, _, _ in experts:
        active[rows] += 1
    q = np.full_like(p, 1 / total)
    for _ in range(iterations):
        new = p.copy()
        for member, rows, inside, dustbin in experts:
            outside = np.where(member, 0.0, q[rows])
            mass = outside.sum(axis=1, keepdims=True)
            new[rows] += inside + dustbin * np.divide(outside, mass, out=np.zeros_like(outside), where=mass > 0)
        new /= active
        change = np.abs(new - q).max(initial=0.0)
        q = new
        if change <= tolerance:
            break
    return q


class SpecialistEnsemble:
    """A generalist and its specialists as one classifier.

    Args:
        generalist: the classifier. members: list of (classes, trained model of `specialist`).
        fractions: each member's true share of its classes in the data. trained_fraction: the share it was trained with.
        n: as in `combine`.

    References: paper 1 (Hinton, Vinyals, Dean, 2015), section 5.
    """

    def __init__(self, generalist, members, fractions, trained_fraction: float = 0.5, n: int = 1):
        self.generalist, self.members, self.n = generalist, list(members), n
        if len(fractions) != len(self.members):
            raise CompressionError(f"There are {len(self.members)} specialists and {len(fractions)} fractions.")
        self.shifts = [dustbin_shift(fraction, trained_fraction) for fraction in fractions]

    def predict(self, x, batch_size: int = 256) -> np.ndarray:
        """Probabilities [cases, classes]."""
        experts = []
        for (classes, model), shift in zip(self.members, self.shifts, strict=True):
            logits = _logits_of(model, x, batch_size)
            logits[:, -1] += shift
            experts.append((classes, _probabilities(logits)))
        return combine(_probabilities(_logits_of(self.generalist, x, batch_size)), experts, n=self.n)


def _logits_of(model, x, batch_size: int) -> np.ndarray:
    outputs = np.asarray(model.predict(x, batch_size=batch_size, verbose=0), np.float64)
    return outputs if gives_logits(model) else np.log(np.maximum(outputs, _TINY))
