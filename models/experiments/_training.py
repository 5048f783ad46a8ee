"""What the classification experiments share: one loss, one way to fit, one way to count what is right."""

import keras
import numpy as np


def fit(model, x, y, epochs: int, optimizer, batch: int = 128, callbacks=(), jit: bool | None = None) -> None:
    """Compile a model that ends in logits and train it on labels.

    Args:
        model: the model. x, y: images and whole-number labels. epochs: of training. optimizer: a fresh one.
        batch: images a step. callbacks: of `fit`.
        jit: with XLA; by default for dense networks, as its convolutions are the slower ones on a processor.
    """
    if jit is None:
        jit = not any("Conv" in type(layer).__name__ for layer in model.layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, jit_compile=jit)
    model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))


def accuracy(model, x, y) -> float:
    """Percent of the images whose largest output is the label's."""
    return 100.0 * float(np.mean(model.predict(x, batch_size=500, verbose=0).argmax(-1) == y))
