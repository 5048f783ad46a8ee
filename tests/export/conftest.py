"""One converter process for all tests here, and a few small models."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def worker():
    from tfcompress.export.worker import Worker

    made = Worker(timeout=300)
    yield made
    made.close()


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).random((32, 16, 16, 3), dtype=np.float32)


@pytest.fixture(scope="session")
def convnet():
    """The network of cases C19 and C20, without the Reshape and Conv1D."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(image)))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.ReLU()(layers.Conv2D(32, 1)(x))
    return keras.Model(image, layers.Dense(10, name="scores")(layers.Flatten()(x)))
