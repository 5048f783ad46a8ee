"""Networks of the kinds that phones run, small; each takes the Keras module, so that the peer's Keras builds it too."""


def unet(keras):
    """A U-Net: two levels down, transposed convolutions up, skip connections by concatenation."""
    layers = keras.layers

    def block(x, width, name):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
        return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))

    image = keras.Input((32, 32, 3), name="image")
    top = block(image, 8, "down1")
    middle = block(layers.MaxPooling2D(name="pool1")(top), 16, "down2")
    x = block(layers.MaxPooling2D(name="pool2")(middle), 32, "bottom")
    x = layers.Conv2DTranspose(16, 2, 2, name="rise1")(x)
    x = block(layers.Concatenate(name="skip1")([middle, x]), 16, "up1")
    x = layers.Conv2DTranspose(8, 2, 2, name="rise2")(x)
    x = block(layers.Concatenate(name="skip2")([top, x]), 8, "up2")
    return keras.Model(image, layers.Conv2D(5, 1, activation="softmax", name="pixels")(x), name="unet")


def detector(keras):
    """A single-shot detector: class and box for every cell of two feature maps."""
    layers = keras.layers

    def block(x, width, stride, name):
        x = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"{name}_depthwise")(x)
        x = layers.ReLU(6.0, name=f"{name}_relu1")(layers.BatchNormalization(name=f"{name}_bn1")(x))
        x = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_conv")(x)
        return layers.ReLU(6.0, name=f"{name}_relu2")(layers.BatchNormalization(name=f"{name}_bn2")(x))

    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, 2, "same", use_bias=False, name="stem")(image)
    x = layers.ReLU(6.0, name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    fine = block(block(x, 32, 2, "block1"), 48, 1, "block2")
    coarse = block(block(fine, 64, 2, "block3"), 64, 1, "block4")
    classes, boxes = [], []
    for name, maps, cells in (("fine", fine, 64), ("coarse", coarse, 16)):
        found = layers.Conv2D(5, 3, padding="same", name=f"{name}_classes")(maps)
        classes.append(layers.Reshape((cells, 5), name=f"{name}_classes_flat")(found))
        found = layers.Conv2D(4, 3, padding="same", name=f"{name}_boxes")(maps)
        boxes.append(layers.Reshape((cells, 4), name=f"{name}_boxes_flat")(found))
    scores = layers.Softmax(name="classes")(layers.Concatenate(axis=1, name="all_classes")(classes))
    outputs = {"boxes": layers.Concatenate(axis=1, name="boxes")(boxes), "classes": scores}
    return keras.Model(image, outputs, name="detector")


def enlarger(keras):
    """Super-resolution: convolutions, depth-to-space, and a resized copy of the input that they correct."""
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="conv1")(image)
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="conv2")(x)
    x = _depth_to_space(keras, layers.Conv2D(12, 3, padding="same", name="conv3")(x))
    plain = layers.Resizing(32, 32, interpolation="bilinear", name="resized")(image)
    return keras.Model(image, layers.Add(name="sum")([plain, x]), name="enlarger")


def _depth_to_space(keras, x):
    if hasattr(keras, "ops"):
        return keras.ops.depth_to_space(x, 2)
    import tensorflow as tf

    return tf.nn.depth_to_space(x, 2)


def lstm_text(keras):
    """A text classifier: Embedding, LSTM, Dense."""
    return _recurrent_text(keras, "LSTM")


def gru_text(keras):
    """A text classifier: Embedding, GRU, Dense."""
    return _recurrent_text(keras, "GRU")


def _recurrent_text(keras, kind: str):
    layers = keras.layers
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    x = layers.Embedding(32, 12, name="embedding")(tokens)
    x = getattr(layers, kind)(24, name="recurrent")(x)
    return keras.Model(tokens, layers.Dense(4, activation="softmax", name="scores")(x), name=f"{kind.lower()}_text")


def keyword_spotter(keras):
    """A keyword spotter on a raw wave: 1-D convolutions with batch normalization, pooling, Dense."""
    layers = keras.layers
    wave = keras.Input((256, 1), name="wave")
    x = wave
    for i, (width, kernel, stride) in enumerate(((16, 16, 4), (24, 5, 2), (32, 5, 2))):
        x = layers.Conv1D(width, kernel, stride, "same", use_bias=False, name=f"conv{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(name=f"bn{i}")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    x = layers.Dropout(0.1, name="dropout")(x)
    return keras.Model(wave, layers.Dense(4, activation="softmax", name="scores")(x), name="keyword_spotter")


def _encoder(keras, x, width: int, name: str):
    """A transformer block: attention and a two-layer perceptron, layer normalization before each."""
    layers = keras.layers
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm1")(x)
    y = layers.MultiHeadAttention(2, width // 2, name=f"{name}_attention")(y, y)
    x = layers.Add(name=f"{name}_sum1")([x, y])
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm2")(x)
    y = layers.Dense(2 * width, activation="gelu", name=f"{name}_dense1")(y)
    y = layers.Dense(width, name=f"{name}_dense2")(y)
    return layers.Add(name=f"{name}_sum2")([x, y])


def vision_transformer(keras):
    """A vision transformer: 16 patches, learned positions, two blocks."""
    from models.zoo.custom import AddPosition

    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(32, 8, 8, name="patches")(image)
    x = AddPosition(name="positions")(layers.Reshape((16, 32), name="sequence")(x))
    for i in (1, 2):
        x = _encoder(keras, x, 32, f"block{i}")
    x = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(epsilon=1e-5, name="norm")(x))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="scores")(x), name="vision_transformer")


def text_transformer(keras):
    """A text transformer: embedded tokens, learned positions, two blocks."""
    from models.zoo.custom import AddPosition

    layers = keras.layers
    tokens = keras.Input((16,), dtype="int32", name="tokens")
    x = AddPosition(name="positions")(layers.Embedding(32, 32, name="embedding")(tokens))
    for i in (1, 2):
        x = _encoder(keras, x, 32, f"block{i}")
    x = layers.GlobalAveragePooling1D(name="pool")(layers.LayerNormalization(epsilon=1e-5, name="norm")(x))
    return keras.Model(tokens, layers.Dense(4, activation="softmax", name="scores")(x), name="text_transformer")


def autoencoder(keras):
    """A convolutional autoencoder with a bottleneck of 64 numbers."""
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(16, 3, 2, "same", activation="relu", name="conv1")(image)
    x = layers.Conv2D(32, 3, 2, "same", activation="relu", name="conv2")(x)
    code = layers.Dense(64, name="code")(layers.Flatten(name="flat")(x))
    x = layers.Reshape((4, 4, 32), name="unflat")(layers.Dense(512, activation="relu", name="opened")(code))
    x = layers.Conv2DTranspose(16, 3, 2, "same", activation="relu", name="rise1")(x)
    x = layers.Conv2DTranspose(3, 3, 2, "same", activation="sigmoid", name="rise2")(x)
    return keras.Model(image, x, name="autoencoder")


def siamese(keras):
    """Two images through one shared sub-model; are they of one kind?"""
    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(12, 3, 2, "same", activation="relu", name="conv1")(image)
    x = layers.Conv2D(24, 3, 2, "same", activation="relu", name="conv2")(x)
    x = layers.Dense(16, activation="relu", name="features")(layers.GlobalMaxPooling2D(name="pool")(x))
    branch = keras.Model(image, x, name="branch")
    first, second = keras.Input((32, 32, 3), name="first"), keras.Input((32, 32, 3), name="second")
    apart = layers.Subtract(name="apart")([branch(first), branch(second)])
    x = layers.Multiply(name="squared")([apart, apart])
    x = layers.Dense(16, activation="relu", name="hidden")(x)
    return keras.Model(
        {"first": first, "second": second}, layers.Dense(1, activation="sigmoid", name="alike")(x), name="siamese"
    )


def two_inputs(keras):
    """An image and sensor readings in, two classifications out, both by name."""
    layers = keras.layers
    image, sensors = keras.Input((32, 32, 3), name="image"), keras.Input((8,), name="sensors")
    x = layers.Conv2D(12, 3, 2, "same", activation="relu", name="conv1")(image)
    x = layers.Conv2D(24, 3, 2, "same", activation="relu", name="conv2")(x)
    seen = layers.GlobalMaxPooling2D(name="pool")(x)
    read = layers.Dense(16, activation="relu", name="read")(sensors)
    x = layers.Dense(32, activation="relu", name="both")(layers.Concatenate(name="joined")([seen, read]))
    outputs = {
        "colour": layers.Dense(4, activation="softmax", name="colour")(x),
        "state": layers.Dense(4, activation="softmax", name="state")(x),
    }
    return keras.Model({"image": image, "sensors": sensors}, outputs, name="two_inputs")


def subclassed(keras):
    """A model written as a class with a `call`, without a graph."""
    from models.zoo.custom import Residual

    model = Residual(name="subclassed")
    if hasattr(keras, "ops"):
        model(keras.ops.zeros((1, 32, 32, 3)))
    else:
        model.build((None, 32, 32, 3))
    return model
