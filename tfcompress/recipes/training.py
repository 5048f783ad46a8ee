"""Training that can be interrupted: what a recipe's step does around `fit`."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable

import keras

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError, nearest

SECONDS_BETWEEN_SAVES = 30.0


class Watch(keras.callbacks.Callback):
    """Follows a training, saves its state at ends of epochs, and ends it after a whole update when asked to.

    Args:
        save: function of (epochs done, batches done in the next one, model). dataset: is told the epoch, if it has an
            attribute for it. first: number of the first epoch. skipped: batches of it that were trained before.
        offset: added to the epochs' numbers, for a training that counts them from 0 again.
    """

    def __init__(self, save: Callable, dataset=None, first: int = 0, skipped: int = 0, offset: int = 0):
        super().__init__()
        self.save, self.dataset, self.offset = save, dataset, offset
        self.epoch, self.batches = first, skipped
        self.asked = False
        self._saved = time.monotonic()

    def on_epoch_begin(self, epoch, logs=None):
        epoch += self.offset
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, 0
        self._before = self.batches
        if hasattr(self.dataset, "epoch"):
            self.dataset.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.batches = self._before + batch + 1
        if self.asked:
            self.save(self.epoch, self.batches, self.model)
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.epoch, self.batches = epoch + self.offset + 1, 0
        if self.asked or time.monotonic() - self._saved > SECONDS_BETWEEN_SAVES:
            self.save(self.epoch, 0, self.model)
            self._saved = time.monotonic()
        if self.asked:
            raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible(watch: Watch):
    """Let Ctrl-C end a training after the update that is under way; a second one ends it at once.

    An exception in the middle of an update could leave weights and optimizer of different steps.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number, frame):
        if watch.asked:
            signal.default_int_handler(number, frame)
        watch.asked = True
        print("\nStopping after this update; Ctrl-C again stops at once.", file=sys.stderr, flush=True)

    # Whoever handles signals in a way of their own keeps it.
    taken = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is signal.default_int_handler]
    before = {s: signal.signal(s, ask) for s in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_optimizer(model, own, optimizer=None, learning_rate=None) -> None:
    """Give a compiled model a fresh optimizer.

    Args:
        own: the optimizer that the model was compiled with at first. optimizer: a Keras optimizer, its name, {name:
            arguments}, or None for one like `own`. learning_rate: a number, a Keras schedule, "x0.1" for a tenth of that
            of `own`, or None for the optimizer's.

    Raises:
        CompressionError: there is no optimizer of that name.
    """
    inner = getattr(own, "inner_optimizer", own)
    new = as_optimizer(inner if optimizer is None else optimizer)
    if learning_rate is not None:
        rate = learning_rate
        if isinstance(rate, str):
            rate = float(rate[1:]) * float(keras.ops.convert_to_numpy(inner.learning_rate))
        new = type(new).from_config({**new.get_config(), "learning_rate": rate})
    # Mixed precision scales the loss in an optimizer around the optimizer.
    model.optimizer = keras.optimizers.LossScaleOptimizer(new) if own is not inner else new
    _keras_compat.reset_functions(model)


def as_optimizer(given):
    """A fresh optimizer from an optimizer, its name, or {name: arguments}.

    Raises:
        CompressionError: an unknown name or argument.

    Example:
        >>> float(as_optimizer({"sgd": {"learning_rate": 0.5}}).learning_rate)
        0.5
    """
    if isinstance(given, keras.optimizers.Optimizer):
        return type(given).from_config(given.get_config())
    name, arguments = (given, {}) if isinstance(given, str) else next(iter(given.items()))
    known = {
        key.lower(): value
        for key, value in vars(keras.optimizers).items()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
        and key not in ("Optimizer", "LossScaleOptimizer")
    }  # fmt: skip
    if str(name).lower() not in known:
        raise CompressionError(f"There is no optimizer {name!r}. {nearest(str(name).lower(), known)}")
    try:
        return known[str(name).lower()](**(arguments or {}))
    except (TypeError, ValueError) as error:
        raise CompressionError(f"The optimizer {name!r} does not take {arguments}: {error}") from error


def batches_per_epoch(dataset) -> int | None:
    """How many batches an epoch has; None where a dataset does not say its length."""
    try:
        return len(dataset)
    except TypeError:
        return None


def accumulation(model) -> int:
    """How many batches make one optimizer update."""
    optimizer = getattr(model, "optimizer", None)
    return int(getattr(getattr(optimizer, "inner_optimizer", optimizer), "gradient_accumulation_steps", None) or 1)
