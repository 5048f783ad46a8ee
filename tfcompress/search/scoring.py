"""How well a model does on samples: the score that a search looks at, and how far its outputs are from the original's."""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.data import Arrays
from tfcompress.errors import CompressionError, nearest
from tfcompress.search.ledger import fingerprint

METRICS = ("accuracy", "loss", "error")


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a search measures of a network.

    Args:
        score: by the metric. drop: how much worse than the original's score; positive is worse. error: squared difference
            of the outputs from the original's, over the variance of those.
    """

    score: float
    drop: float
    error: float


class Score:
    """A metric on samples.

    Args:
        model: the original, which is predicted with once. samples: the inputs, with labels or without. metric: see
            `sensitivity`. batch_size: samples a batch.

    Raises:
        CompressionError: the metric is not known or does not fit, or the samples do not fit the model.
    """

    def __init__(self, model, samples: Arrays, metric=None, batch_size: int = 32):
        self.model, self.samples, self.batch_size = model, samples, batch_size
        self.metric = _default(model, samples) if metric is None else metric
        if not callable(self.metric) and self.metric not in METRICS:
            raise CompressionError(
                f"`metric` is {', '.join(METRICS)} or a function (labels, predictions) -> number, higher is better; received "
                f"{self.metric!r}. {nearest(str(self.metric), METRICS)}"
            )
        if self.metric in ("accuracy", "loss") and samples.y is None:
            raise CompressionError(f"metric={self.metric!r} needs labels: give data=(x, y).")
        self.loss = _loss(model) if self.metric == "loss" else None
        self.baseline = math.nan
        self._reference: list[np.ndarray] | None = None

    @property
    def name(self) -> str:
        """The metric's name, with its unit."""
        if callable(self.metric):
            return getattr(self.metric, "__qualname__", type(self.metric).__qualname__)
        return {"accuracy": "accuracy (%)", "error": "relative squared error"}.get(self.metric, self.metric)

    def describe(self) -> dict[str, str]:
        """The metric as a name and the samples as a fingerprint."""
        return {"metric": self.name, "data": fingerprint([self.samples.x, self.samples.y])}

    def predict(self, model) -> list[np.ndarray]:
        """A model's outputs on all samples, flat."""
        answers = model.predict(self.samples.x, batch_size=self.batch_size, verbose=0)
        return [np.asarray(answer, np.float32) for answer in keras.tree.flatten(answers)]

    @property
    def reference(self) -> list[np.ndarray]:
        """The original's outputs."""
        if self._reference is None:
            try:
                self._reference = self.predict(self.model)
            except (ValueError, TypeError, RuntimeError) as error:
                raise CompressionError(
                    f"Model {self.model.name!r} cannot be run on the data: {str(error).strip().splitlines()[0]}"
                ) from error
            if not all(np.isfinite(one).all() for one in self._reference):
                raise CompressionError(f"Model {self.model.name!r} itself gives NaN or infinite outputs on the data.")
        return self._reference

    def original(self) -> float:
        """The original's own score."""
        return self._score(self.reference)

    def measure(self, model) -> dict[str, float]:
        """A network's score, drop and error as plain numbers; `baseline` has to be known."""
        outputs = self.predict(model)
        error = _difference(outputs, self.reference)
        if not math.isfinite(error):
            return dataclasses.asdict(Measure(math.nan, math.inf, math.inf))
        score = self._score(outputs)
        higher = callable(self.metric) or self.metric == "accuracy"
        return dataclasses.asdict(Measure(score, self.baseline - score if higher else score - self.baseline, error))

    def _score(self, outputs: list[np.ndarray]) -> float:
        if self.metric == "error":
            return _difference(outputs, self.reference)
        if callable(self.metric):
            given = outputs[0] if len(outputs) == 1 else outputs
            own = self.reference[0] if len(outputs) == 1 else self.reference
            return float(self.metric(own if self.samples.y is None else self.samples.y, given))
        labels = keras.tree.flatten(self.samples.y)
        if len(outputs) != 1 or len(labels) != 1:
            raise CompressionError(
                f"metric={self.metric!r} takes one output and one array of labels; the model has {len(outputs)}, the data "
                f"{len(labels)}. Pass metric=, a function (labels, predictions) -> number, higher is better."
            )
        if self.metric == "accuracy":
            return 100 * accuracy(labels[0], outputs[0])
        return _mean_loss(self.loss, labels[0], outputs[0])


def as_samples(data, model, most: int | None = None, seed: int = 0) -> Arrays:
    """A user's data as arrays that fit a model.

    Args:
        data: (x, y), or x alone: an array, or a list or dictionary of arrays for several inputs. model: for its inputs.
        most: draw so many of them. seed: of the draw.

    Raises:
        CompressionError: there are no samples, counts differ, or they hold NaN.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> len(as_samples((np.ones((9, 2)), np.ones(9)), model, most=4))
        4
    """
    if isinstance(data, Arrays):
        samples = data
    elif hasattr(data, "take") and hasattr(data, "files"):  # images on disk
        samples = _arrays(*data.take(range(len(data))))
    elif isinstance(data, tuple):
        if len(data) not in (1, 2):
            raise CompressionError(f"`data` is x, or (x, y); received a tuple of {len(data)}.")
        samples = _arrays(*data)
    else:
        samples = _arrays(data)
    arrays = keras.tree.flatten(samples.x)
    inputs = _keras_compat.model_inputs(model)
    if inputs is not None and len(inputs) != len(arrays):
        raise CompressionError(
            f"Model {model.name!r} has {len(inputs)} inputs and the data {len(arrays)}. Give a list or dictionary of arrays; "
            "a tuple is (x, y)."
        )
    if any(np.issubdtype(a.dtype, np.floating) and not np.isfinite(a).all() for a in arrays):
        raise CompressionError("`data` holds NaN or infinite values; nothing can be measured on them.")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise CompressionError(f"`samples` is how many of the data are measured on, at least 1; received {most!r}.")
    if most is not None and most < len(samples):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(samples))[:most])
        samples = Arrays(*samples.take(chosen))
    return samples


def _arrays(x, y=None) -> Arrays:
    return Arrays(x, y, what="data")


def accuracy(labels: np.ndarray, outputs: np.ndarray) -> float:
    """The share of right classes.

    Args:
        labels: numbers of classes, or one-hot rows; 0 or 1 for outputs of one number. outputs: scores along the last axis.

    Raises:
        CompressionError: the labels do not fit the outputs.

    Example:
        >>> accuracy(np.array([1, 0]), np.array([[0.1, 0.9], [0.2, 0.8]]))
        0.5
    """
    classes = outputs.shape[-1] if outputs.ndim > 1 else 1
    flat = outputs.reshape(-1, classes)
    one_hot = classes > 1 and labels.shape == outputs.shape
    if not one_hot and labels.size != len(flat):
        raise CompressionError(
            f"Labels of shape {labels.shape} do not fit outputs of shape {outputs.shape}: give one class number a row, or "
            "one-hot rows."
        )
    if classes == 1:
        return float(((flat[:, 0] > 0.5) == (labels.reshape(-1) > 0.5)).mean())
    wanted = labels.reshape(-1, classes).argmax(-1) if one_hot else labels.reshape(-1)
    if wanted.min() < 0 or wanted.max() >= classes:
        raise CompressionError(
            f"Labels run from {wanted.min()} to {wanted.max()}, but the model has {classes} classes, 0 to {classes - 1}."
        )
    return float((flat.argmax(-1) == wanted).mean())


def _difference(outputs: list[np.ndarray], reference: list[np.ndarray]) -> float:
    shares = []
    for mine, theirs in zip(outputs, reference, strict=True):
        theirs = theirs.astype(np.float64)
        spread = float(np.square(theirs - theirs.mean(0)).sum()) or float(np.square(theirs).sum()) or 1.0
        shares.append(float(np.square(mine.astype(np.float64) - theirs).sum()) / spread)
    return float(np.mean(shares))


def _default(model, samples: Arrays) -> str:
    """The metric where the user names none."""
    if samples.y is None:
        return "error"
    labels = keras.tree.flatten(samples.y)
    if len(labels) == 1:
        one = labels[0]
        hot = one.ndim == 2 and one.shape[1] > 1 and bool(((one == 0) | (one == 1)).all() and (one.sum(1) == 1).all())
        if np.issubdtype(one.dtype, np.integer) or one.dtype == bool or hot:
            return "accuracy"
    if getattr(model, "loss", None):
        return "loss"
    raise CompressionError(
        "These labels are no classes, and the model is not compiled with a loss: pass metric=, a function (labels, "
        "predictions) -> number, higher is better, or compile the model."
    )


def _loss(model) -> Callable:
    loss = getattr(model, "loss", None)
    if isinstance(loss, (str, keras.losses.Loss)) or callable(loss):
        return keras.losses.get(loss)
    raise CompressionError(
        f"metric='loss' takes a model that is compiled with one loss; {model.name!r} has {loss!r}. Pass metric=, a function."
    )


def _mean_loss(loss, labels: np.ndarray, outputs: np.ndarray) -> float:
    try:
        return float(np.mean(keras.ops.convert_to_numpy(loss(labels, outputs))))
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise CompressionError(
            f"Labels of shape {labels.shape} do not fit outputs of shape {outputs.shape}: {str(error).strip().splitlines()[0]}"
        ) from error
