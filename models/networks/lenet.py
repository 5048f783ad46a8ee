"""The two LeNets that the compression papers report on."""

import keras


def lenet_300_100(input_shape=(28, 28, 1), classes: int = 10, activation: str | None = None) -> keras.Model:
    """LeNet-300-100: two hidden dense layers of ReLU units.

    266 610 parameters at 28x28x1, of which 266 200 are in kernels (LeCun et al., Gradient-based learning applied to
    document recognition, 1998).

    Args:
        input_shape: of one image, any rank; it is flattened.
        classes: number of outputs.
        activation: of the output, None for logits.

    Example:
        >>> from models.networks import lenet_300_100
        >>> [layer.name for layer in lenet_300_100().layers]
        ['image', 'flatten', 'dense1', 'dense2', 'logits']
    """
    image = keras.Input(input_shape, name="image")
    x = keras.layers.Flatten(name="flatten")(image)
    x = keras.layers.Dense(300, activation="relu", name="dense1")(x)
    x = keras.layers.Dense(100, activation="relu", name="dense2")(x)
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name="lenet_300_100")


def lenet5(
    input_shape=(28, 28, 1),
    classes: int = 10,
    activation: str | None = None,
    conv_activation: str | None = None,
) -> keras.Model:
    """LeNet-5 in the variant that ships with Caffe: 20 and 50 maps, 500 units.

    431 080 parameters at 28x28x1, of which 430 500 are in kernels. Only the hidden dense layer has a ReLU there.

    Args:
        input_shape: of one image.
        classes: number of outputs.
        activation: of the output, None for logits.
        conv_activation: of the two convolutions, None as in Caffe's definition.

    Example:
        >>> from models.networks import lenet5
        >>> lenet5().count_params()
        431080
    """
    image = keras.Input(input_shape, name="image")
    x = keras.layers.Conv2D(20, 5, activation=conv_activation, name="conv1")(image)
    x = keras.layers.MaxPooling2D(2, name="pool1")(x)
    x = keras.layers.Conv2D(50, 5, activation=conv_activation, name="conv2")(x)
    x = keras.layers.MaxPooling2D(2, name="pool2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(500, activation="relu", name="dense1")(x)
    logits = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return keras.Model(image, logits, name="lenet5")
