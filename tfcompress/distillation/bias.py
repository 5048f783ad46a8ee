"""[1] Classes that a transfer set lacked or over-stated: the bias of the last layer is corrected afterwards.

A student that never saw a 3 has learnt from the soft targets what a 3 looks like, but not how often there is one. The
bias of the class is raised until its mean predicted probability, over unlabelled data with natural frequencies, is the
frequency of the class.
"""

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.distillation.teachers import _TINY, gives_logits
from tfcompress.errors import CompressionError
from tfcompress.method import DONE, Method, Row


def _probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def class_bias(logits, priors: dict[int, float]) -> dict[int, float]:
    """The shifts of some classes' logits that make their mean predicted probabilities equal to given frequencies.

    Args:
        logits: [cases, classes] for unlabelled data with natural frequencies. priors: {class: frequency}, for at least
            one class and not for all.

    Returns:
        {class: shift}.

    Raises:
        CompressionError: a class does not exist, or the frequencies cannot be.

    References: paper 1 (Hinton, Vinyals, Dean, 2015), section 3; there the shift is tuned on the test error.

    Example:
        >>> shift = class_bias(np.zeros((4, 2)), {0: 0.8})
        >>> round(shift[0], 6) == round(float(np.log(4)), 6)
        True
    """
    from scipy.optimize import minimize

    z = np.asarray(logits, np.float64)
    classes = list(priors)
    wanted = np.array([priors[c] for c in classes], np.float64)
    if z.ndim != 2 or not len(z) or not classes or any(not 0 <= c < z.shape[1] for c in classes):
        raise CompressionError(f"`priors` names classes {classes}; the logits have shape {z.shape}.")
    if (wanted <= 0).any() or wanted.sum() >= 1 or len(classes) == z.shape[1]:
        raise CompressionError(
            f"`priors` must be above 0, add up to less than 1, and leave out at least one class; received {priors}."
        )

    # The mean of logsumexp(z + d) minus priors . d is convex in d; its gradient is what has to vanish.
    def objective(d):
        moved = z.copy()
        moved[:, classes] += d
        top = moved.max(axis=1)
        value = np.mean(top + np.log(np.exp(moved - top[:, None]).sum(axis=1))) - wanted @ d
        return value, _probabilities(moved)[:, classes].mean(axis=0) - wanted

    found = minimize(
        objective, np.zeros(len(classes)), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 1000}
    )
    if np.abs(found.jac).max() > 1e-5:
        raise CompressionError(
            f"No shift gives the classes {classes} the frequencies {wanted.tolist()}; the nearest is off by "
            f"{np.abs(found.jac).max():.2g}. The logits may be infinite or cut off."
        )
    return {c: float(d) for c, d in zip(classes, found.x, strict=True)}


def oracle_bias(logits, labels, classes, shifts=None) -> tuple[float, float]:
    """The one shift of some classes' logits that gives the fewest errors on labelled data: what the paper reports.

    It looks at the labels of the data that it is judged on, so it is a bound and not a method; see `class_bias`.

    Args:
        logits: [cases, classes]. labels: [cases]. classes: which to shift. shifts: values to try; -10 to 10 in tenths.

    Returns:
        (the shift, the share of errors with it); of several equal ones the smallest in absolute value.

    Example:
        >>> oracle_bias(np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([0, 1]), [0], shifts=[0.0, 2.0, 4.0])
        (2.0, 0.0)
    """
    z, labels = np.asarray(logits, np.float64), np.asarray(labels)
    tried = np.arange(-100, 101) / 10 if shifts is None else np.asarray(shifts, np.float64)
    errors = []
    for shift in tried:
        moved = z.copy()
        moved[:, list(classes)] += shift
        errors.append(float(np.mean(moved.argmax(axis=1) != labels)))
    best = min(range(len(tried)), key=lambda i: (errors[i], abs(tried[i])))
    return float(tried[best]), errors[best]


def shift_bias(model, shifts: dict[int, float]) -> None:
    """Add to the bias of a classifier's last layer, in place.

    Args:
        model: a Sequential or functional model whose last layer has a bias, with or without a softmax behind it.
        shifts: {class: what to add}.

    Raises:
        CompressionError: the last layer has no bias.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> shift_bias(model, {1: 0.5})
        >>> model.layers[-1].bias.numpy()
        array([0. , 0.5, 0. ], dtype=float32)
    """
    layer = last_layer(model)
    bias = keras.ops.convert_to_numpy(layer.bias.value).copy()
    for index, shift in shifts.items():
        bias[..., index] += shift
    layer.bias.assign(bias)


def last_layer(model):
    """The layer with a bias that makes a classifier's logits.

    Raises:
        CompressionError: there is none.
    """
    structure = _keras_compat.output_structure(model)
    operation = None if structure is None else _keras_compat.operation_of(keras.tree.flatten(structure)[0])
    while operation is not None and not getattr(operation, "use_bias", False):
        if isinstance(operation, keras.Model):
            return last_layer(operation)
        if isinstance(operation, keras.layers.InputLayer) or getattr(operation, "weights", None):
            operation = None
        else:
            operation = _keras_compat.operation_of(keras.tree.flatten(operation.input)[0])
    if operation is None:
        raise CompressionError(
            f"Model {model.name!r} has no last layer with a bias that tfcompress can find (it has to be Sequential or "
            "functional). Use class_bias on its logits, and add the shifts yourself."
        )
    return operation


class PriorBias(Method):
    """[1] Sets the bias of classes so that they are predicted as often as they occur; needs inputs, no labels, no training.

    Args:
        priors: {class: frequency in the data that the model will see}; the classes that the training data lacked or
            over-stated.

    Example:
        >>> import tfcompress
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> better = tfcompress.apply(model, PriorBias({2: 0.1}), data=np.ones((8, 2)), verbose=0)
        >>> bool(better.layers[-1].bias.numpy()[2] != 0)
        True
    """

    papers = (1,)
    trains = False

    def __init__(self, priors: dict):
        # JSON makes the keys strings.
        self.priors = {int(key): float(value) for key, value in dict(priors).items()}

    def attach(self, model, data=None):
        if data is None:
            raise CompressionError(
                "PriorBias compares predictions with frequencies: pass inputs with natural frequencies as data=."
            )
        last_layer(model)
        outputs = np.asarray(model.predict(data, verbose=0), np.float64)
        logits = outputs if gives_logits(model) else np.log(np.maximum(outputs, _TINY))
        shifts = class_bias(logits, self.priors)
        shift_bias(model, shifts)
        detail = ", ".join(f"class {c} {shift:+.3f}" for c, shift in shifts.items())
        return model, [Row(last_layer(model).name, "bias", DONE, detail)]
