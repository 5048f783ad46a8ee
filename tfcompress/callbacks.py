"""The one callback that drives whatever is attached to a model."""

import warnings

import keras
import numpy as np

from tfcompress import carriers
from tfcompress.errors import CompressionError
from tfcompress.method import clock
from tfcompress.parametrization import Chain, Parametrization, chains, has_pending


class Compression(keras.callbacks.Callback):
    """Counts optimizer updates, lets attached parametrizations follow their schedules, and logs their figures.

    With `steps_per_execution=k` it is called every k updates, so that updates of masks fall on multiples of k.

    Args:
        model: the attached model, for own training loops: `Compression(model).step()` after every update.
        per_layer: put each weight's figures into `logs`, not only their means; by default for up to eight weights, so
            that the progress bar of a deep network stays readable.
        log_dir: write them for TensorBoard into this folder as well (needs TensorFlow). A `keras.callbacks.TensorBoard`
            that stands after this callback writes them by itself.
        verbose: 1 prints a line an epoch.

    Raises:
        CompressionError: nothing is attached to the model.

    Example:
        >>> from tfcompress import apply, pruning
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> small = apply(model, pruning.Magnitude(sparsity=0.5), verbose=0)
        >>> small.compile("sgd", "mse")
        >>> history = small.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[Compression()])
        >>> round(history.history["sparsity"][-1], 3)
        0.5
    """

    def __init__(self, model=None, *, per_layer: bool | None = None, log_dir=None, verbose: int = 0):
        super().__init__()
        self.per_layer, self.log_dir, self.verbose = per_layer, log_dir, verbose
        self._chains: list[tuple[str, Chain]] = []
        self._now = 0
        self._counted = 0  # updates of the optimizer that have been seen
        if model is not None:
            self.set_model(model)
            self.begin()

    def begin(self) -> None:
        """Find what is attached, initialize what waits for values, and bring it up to the present step."""
        carriers.carry_all(self.model)
        self._clock = clock(self.model)
        self._chains = chains(self.model)
        # On TensorFlow a model without input shapes is built inside its first training step, and so are its chains.
        self._waits_for_build = has_pending(self.model)
        if (
            not self._chains
            and not self._waits_for_build
            and not getattr(type(self.model), "_tfcompress_attached", False)
        ):
            raise CompressionError(
                f"Nothing is attached to model {self.model.name!r}. Train the model that tfcompress.apply returned "
                "(it is a copy), or leave Compression() out."
            )
        for _, chain in self._chains:
            chain.initialize()
            for link in chain.links:
                link.begin()
        self._now = int(keras.ops.convert_to_numpy(self._clock.value)) if self._clock is not None else 0
        self._groups: dict[type[Parametrization], list[Parametrization]] = {}
        for _, chain in self._chains:
            for link in chain.links:
                if type(link).update is not Parametrization.update or "update_group" in type(link).__dict__:
                    self._groups.setdefault(type(link), []).append(link)
        self._next_due = self._now
        self._update(self._now)

    def step(self, updates: int = 1) -> None:
        """Tell that the optimizer has made `updates` more updates."""
        before, self._now = self._now, self._now + updates
        if self._clock is not None:
            self._clock.assign(self._now)
        self._update(before + 1)

    def _update(self, since: int) -> None:
        """Update the links of which a step between `since` and now is due."""
        if self._now < self._next_due:
            return
        for kind, members in self._groups.items():
            due = [link for link in members if self._due_from(link, since) <= self._now]
            if due:
                kind.update_group(due, [self._now - link.start for link in due])
        links = (link for group in self._groups.values() for link in group)
        self._next_due = min((self._due_from(link, self._now + 1) for link in links), default=self._now + 1)

    @staticmethod
    def _due_from(link: Parametrization, step: int) -> int:
        """The first step at or after `step` at which a link is updated: its start, every `frequency`, and its schedules' ends."""
        every = int(getattr(link, "frequency", 1) or 1)
        own = max(step - link.start, 0)
        ends = [schedule.end for _, schedule in link.schedules() if schedule.end >= own]
        return link.start + min([-(-own // every) * every, *ends])

    def _sync(self) -> None:
        # On JAX the variables' values live in the trainer's own state during fit.
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()

    def on_train_begin(self, logs=None):
        self._first = self._counted = self._updates()
        self.begin()
        self._first_epoch: int | None = None

    def on_epoch_begin(self, epoch, logs=None):
        # Only here does Keras say at which epoch training begins (`initial_epoch`).
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._warn_if_too_short((self.params or {}).get("steps"), epoch)

    def _warn_if_too_short(self, steps_per_epoch, epoch: int) -> None:
        """Compare the schedules with what the epochs from `epoch` on will reach."""
        if not steps_per_epoch:
            return
        left = (self.params.get("epochs") or 1) - epoch
        will_reach = self._now + steps_per_epoch * left // self._accumulation()
        for name, chain in self._chains:
            for link in chain.links:
                for argument, schedule in link.schedules():
                    if will_reach < link.start + schedule.end:
                        warnings.warn(
                            f"The schedule of `{argument}` on {name} needs {schedule.end} steps, but training will stop at step "
                            f"{will_reach - link.start}, where it reaches {schedule(will_reach - link.start):.3f} instead of "
                            f"{schedule(schedule.end):.3f}. Train longer or shorten the schedule.",
                            stacklevel=2,
                        )
                        return

    def _accumulation(self) -> int:
        return int(getattr(self.model.optimizer, "gradient_accumulation_steps", None) or 1)

    def on_train_batch_end(self, batch, logs=None):
        updates = self._updates() - self._counted
        if updates:
            self._counted += updates
            if self._waits_for_build:
                self.begin()
            self.step(updates)

    def _updates(self) -> int:
        """The updates that the optimizer has made: batches are not, under accumulation or several steps an execution."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        self._sync()
        return int(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(optimizer.iterations)))

    def on_epoch_end(self, epoch, logs=None):
        if (self.params or {}).get("steps") is None and epoch == self._first_epoch:
            # A generator's length is known after its first epoch, which is counted in the present step already.
            self._warn_if_too_short((self._counted - self._first) * self._accumulation(), epoch + 1)
        self._sync()
        figures = self.figures()
        means: dict[str, list[float]] = {}
        for key, value in figures.items():
            means.setdefault(key.rsplit(":", 1)[1], []).append(value)
        totals = {key: float(np.mean(values)) for key, values in means.items() if key not in ("low", "high")}
        if "sparsity" in totals:
            totals["sparsity"] = self._overall_sparsity(figures)
        if logs is not None:
            logs.update(totals)
            if self.per_layer or (self.per_layer is None and len(self._chains) <= 8):
                logs.update(figures)
        if self.log_dir is not None:
            self._write(epoch, {**totals, **figures})
        if self.verbose:
            shown = ", ".join(f"{key} {value:.4g}" for key, value in totals.items())
            print(f"compression: step {self._now}, {shown}")

    def figures(self) -> dict[str, float]:
        """What each parametrization reports, by "path.weight:figure"."""
        found = {}
        for name, chain in self._chains:
            for link in chain.links:
                found.update({f"{name}:{key}": float(value) for key, value in link.log().items()})
        return found

    def _overall_sparsity(self, figures) -> float:
        sizes = {name: int(np.prod(chain.raw.shape)) for name, chain in self._chains}
        rows = [(sizes[key.rsplit(":", 1)[0]], value) for key, value in figures.items() if key.endswith(":sparsity")]
        return float(sum(size * value for size, value in rows) / sum(size for size, _ in rows))

    def _write(self, epoch: int, figures: dict[str, float]) -> None:
        from tfcompress.errors import import_extra

        tf = import_extra("tensorflow", extra="export")
        if not hasattr(self, "_writer"):
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        with self._writer.as_default():
            for key, value in figures.items():
                tf.summary.scalar(f"compression/{key.replace(':', '/')}", value, step=epoch)
        self._writer.flush()
