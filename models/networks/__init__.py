"""The reference networks: functional Keras models with readable layer names, for any backend.

All end in logits unless `activation="softmax"` is asked for, and use batch-norm momentum 0.9: with Keras's 0.99 the
moving statistics have not settled after the few hundred steps that a short run has.
"""

import inspect
from collections.abc import Callable
from functools import partial

import keras

from models.networks.lenet import lenet5, lenet_300_100
from models.networks.mobilenet import mobilenet_v1, mobilenet_v2
from models.networks.residual import resnet
from models.networks.vgg import digits_cnn, vgg16, vgg_small
from tfcompress.errors import CompressionError, nearest

BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "lenet_300_100": lenet_300_100,
    "lenet5": lenet5,
    **{f"resnet{depth}": partial(resnet, depth) for depth in (8, 14, 20, 32, 56, 110)},
    "vgg16": vgg16,
    "vgg_small": vgg_small,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": mobilenet_v2,
    "digits_cnn": digits_cnn,
}


def names() -> list[str]:
    """The names that `build` knows."""
    return list(BUILDERS)


def build(name: str, **kwargs) -> keras.Model:
    """Build a reference network by its name; see `models.build`."""
    if name not in BUILDERS:
        raise CompressionError(f"There is no reference network {name!r}. {nearest(name, BUILDERS)}")
    accepted = inspect.signature(BUILDERS[name]).parameters
    for argument in kwargs:
        if argument not in accepted:
            raise CompressionError(f"The network {name!r} has no argument {argument!r}. {nearest(argument, accepted)}")
    return BUILDERS[name](**kwargs)
