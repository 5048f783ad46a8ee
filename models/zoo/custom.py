"""Layers, losses and a model of the zoo's own, as users write them; on tf_keras where that stands in for Keras."""

import os

if os.environ.get("TF_USE_LEGACY_KERAS"):
    import tf_keras as keras
else:
    import keras


@keras.saving.register_keras_serializable(package="zoo")
class AddPosition(keras.layers.Layer):
    """Adds a learned vector for each place of a sequence."""

    def build(self, shape):
        self.position = self.add_weight(name="position", shape=tuple(shape[1:]), initializer="uniform")
        super().build(shape)

    def call(self, inputs):
        return inputs + self.position


@keras.saving.register_keras_serializable(package="zoo")
class Residual(keras.Model):
    """A convolutional network with shortcuts, written as a class with a `call`.

    Args:
        classes: of the output. width: channels.
    """

    def __init__(self, classes: int = 4, width: int = 16, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.width = classes, width
        layers = keras.layers
        self.stem = layers.Conv2D(width, 3, 2, "same", activation="relu", name="stem")
        self.convolutions = [layers.Conv2D(width, 3, 1, "same", activation="relu", name=f"conv{i}") for i in range(3)]
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.head = layers.Dense(classes, activation="softmax", name="head")

    def call(self, inputs):
        x = self.stem(inputs)
        for convolution in self.convolutions:
            x = x + convolution(x)
        return self.head(self.pool(x))

    def get_config(self):
        return {**super().get_config(), "classes": self.classes, "width": self.width}


def class_loss(y_true, y_pred):
    """Cross-entropy over the cells of a detector; those with an object count twenty times."""
    ops = getattr(keras, "ops", keras.backend)  # tf_keras has no `ops`
    y_true = ops.cast(y_true, "int32")
    weight = 1.0 + 19.0 * ops.cast(y_true > 0, "float32")
    return ops.mean(weight * keras.losses.sparse_categorical_crossentropy(y_true, y_pred), axis=-1)


def box_loss(y_true, y_pred):
    """Squared error of the boxes, where there is one."""
    ops = getattr(keras, "ops", keras.backend)  # tf_keras has no `ops`
    return ops.sum(y_true[..., :1] * (y_true[..., 1:] - y_pred) ** 2, axis=(1, 2))
