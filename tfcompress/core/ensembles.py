"""Ensembles: plain models with weights drawn from their posteriors, and their averaged prediction."""

import zlib

import keras
import numpy as np

from tfcompress.core.variational import variational_links
from tfcompress.errors import CompressionError
from tfcompress.parametrization import chains

_SAMPLES_FROM = 1 << 30  # counters from here on are for prediction; training counts up from 0


def sampled(model, samples: int, seed: int = 0):
    """Plain models with weights drawn from the posterior: an ensemble to average or to export, at `samples` x the cost.

    Args:
        model: an attached model. samples: how many. seed: of the draws.

    Yields:
        A plain Keras model; always the same object, with new weights each time.

    Raises:
        CompressionError: no weight of the model has a posterior.
    """
    from tfcompress.method import finalize

    links = [link for _, link in variational_links(model)]
    plain = finalize(model, force=True, verbose=0)
    names = {name.rsplit(".", 1)[0] for name, _ in chains(model)}
    layers = {path: layer for path, layer in _layers(plain) if path in names}
    for number in range(samples):
        for name, chain in chains(model):
            path, weight = name.rsplit(".", 1)
            getattr(layers[path], weight).assign(_draw(chain, links, seed, number))
        yield plain


def _layers(model):
    from tfcompress import select

    return [(model.name, model), *select.layers(model)]


def _draw(chain, links, seed: int, number: int) -> np.ndarray:
    """A chain's value with noise that training never uses; the state of training stays as it is."""
    mine = [link for link in chain.links if any(link is other for other in links)]
    states = [keras.ops.convert_to_numpy(link.draw.state.value) for link in mine]
    try:
        for link, state in zip(mine, states, strict=True):
            key = zlib.crc32(f"{int(state[0])}/{seed}".encode()) & 0x7FFFFFFF
            link.draw.state.assign(np.array([key, _SAMPLES_FROM + number]))
            link.__dict__["_sampling"] = True
        return chain.numpy()
    finally:
        for link, state in zip(mine, states, strict=True):
            link.draw.state.assign(state)
            link.draw._used = False
            link.__dict__.pop("_sampling", None)


def average(model, x, samples: int = 10, seed: int = 0, transform=None, batch_size: int = 256) -> np.ndarray:
    """A model's prediction averaged over draws of its weights.

    Args:
        model: an attached model. x: inputs. samples: how many draws. seed: of the draws.
        transform: function of a member's output before averaging; of a classifier that gives logits it has to be the
            softmax, since the ensemble's prediction is the mean of the members' probabilities.
        batch_size: of prediction.

    Returns:
        The mean, as float32.

    Raises:
        CompressionError: no weight of the model has a posterior, or `samples` is below 1.
    """
    if samples < 1:
        raise CompressionError(f"`samples` must be at least 1; received {samples}.")
    total = np.zeros((), "float64")
    for plain in sampled(model, samples, seed):
        output = plain.predict(x, batch_size=batch_size, verbose=0)
        total = total + np.asarray(output if transform is None else transform(output), "float64")
    return (total / samples).astype("float32")
