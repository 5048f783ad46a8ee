"""The model zoo: networks that people deploy, each with a toy set that it learns in a minute or two.

Nothing here imports Keras or tfcompress until it is asked to: the peer's tools read the same list in an environment with
another Keras.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from models.zoo import networks, toys
from models.zoo.applications import application


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network of the zoo and what it learns.

    Args:
        title: its name in tables. about: a sentence about its size.
        build: from the Keras module (`keras` or `tf_keras`) to a model. data: (count, seed) -> inputs and targets.
        score, least, criterion: from flat outputs and targets to a figure; what it has to reach; in words.
        loss: as for `compile`, the name of a function in `custom` where it starts with "zoo:".
        epochs, rate, samples, batch: of training, with Adam; it stops as soon as the criterion is met.
        again: epochs of quantization-aware training. tests: test samples. own: whether it is of ours and not of keras.applications.
        classified: whether top-1 agreement means something, and of which outputs (those with several classes).
    """

    title: str
    about: str
    build: Callable[[Any], Any]
    data: Callable[[int, int], tuple[Any, Any]]
    score: Callable[[Any, Any], float] = toys.top1
    least: float = 0.9
    criterion: str = "top-1 of 4 classes"
    loss: Any = "sparse_categorical_crossentropy"
    epochs: int = 30
    rate: float = 3e-3
    samples: int = 1024
    batch: int = 32
    again: int = 2
    tests: int = 256
    own: bool = True
    classified: bool = True


def _application(
    name: str, about: str, size: int = 32, span=(-1.0, 1.0), rate: float = 1e-3, samples: int = 512, **options
) -> Entry:
    return Entry(
        name,
        about,
        partial(application, name=name, size=size, **options),
        partial(toys.colours, size=size, low=span[0], high=span[1]),
        rate=rate,
        samples=samples,
        tests=128,
        epochs=12,
        again=1,
        own=False,
    )


_PIXELS = (0.0, 255.0)
ENTRIES = {
    "unet": Entry(
        "U-Net", "transposed convolutions, skip connections by concatenation; 32x32", networks.unet, toys.masks,
        toys.overlap, criterion="mean intersection over union of 5 classes",
    ),
    "detector": Entry(
        "detector", "SSD-like: class and box at 80 cells of two feature maps; 32x32", networks.detector, toys.boxes,
        toys.detected, criterion="objects with the right class, place and size 0.15 of the image off at most",
        loss={"classes": "zoo:class_loss", "boxes": "zoo:box_loss"}, epochs=60, samples=2048,
    ),
    "enlarger": Entry(
        "super-resolution", "depth-to-space plus bilinear resizing; 16x16 to 32x32", networks.enlarger,
        toys.enlargements, toys.sharpened, least=0.5, criterion="share of bilinear enlarging's squared error removed",
        loss="mse", classified=False,
    ),
    "lstm_text": Entry("LSTM text classifier", "16 tokens, 24 units", networks.lstm_text, toys.last_marker, rate=1e-2),
    "gru_text": Entry("GRU text classifier", "16 tokens, 24 units", networks.gru_text, toys.last_marker, rate=1e-2),
    "keyword_spotter": Entry(
        "1-D keyword spotter", "Conv1D on 256 samples of a wave", networks.keyword_spotter, toys.tones
    ),
    "vision_transformer": Entry(
        "vision transformer", "16 patches, width 32, 2 blocks", networks.vision_transformer, toys.colours, rate=1e-3
    ),
    "text_transformer": Entry(
        "text transformer", "16 tokens, width 32, 2 blocks", networks.text_transformer, toys.common_marker, rate=1e-3
    ),
    "autoencoder": Entry(
        "autoencoder", "16x16, a bottleneck of 64 numbers", networks.autoencoder, toys.copies, toys.explained,
        criterion="share of the variance explained", loss="mse", classified=False, epochs=60, samples=2048,
    ),
    "siamese": Entry(
        "siamese network", "one sub-model for two inputs", networks.siamese, toys.pairs, toys.alike,
        criterion="right answers of two", loss="binary_crossentropy", classified=False, epochs=60,
    ),
    "two_inputs": Entry(
        "two inputs, dict outputs", "an image and 8 readings", networks.two_inputs, toys.readings,
        criterion="top-1 of the worse output",
        loss={"colour": "sparse_categorical_crossentropy", "state": "sparse_categorical_crossentropy"},
    ),
    "subclassed": Entry("subclassed model", "a class with a `call`", networks.subclassed, toys.colours),
    "mobilenet": _application("MobileNet", "32x32, alpha 0.25", alpha=0.25, rate=3e-3),
    "mobilenet_v2": _application("MobileNetV2", "32x32, alpha 0.35", alpha=0.35, rate=3e-3),
    "mobilenet_v3_small": _application("MobileNetV3Small", "32x32, alpha 0.5, pixels in", span=_PIXELS, alpha=0.5, rate=3e-3),
    "efficientnet_b0": _application("EfficientNetB0", "32x32, pixels in", span=_PIXELS),
    "efficientnet_v2_b0": _application("EfficientNetV2B0", "32x32, pixels in", span=_PIXELS, samples=256),
    "resnet50_v2": _application("ResNet50V2", "32x32", samples=256),
    "densenet121": _application("DenseNet121", "32x32", samples=256),
    "convnext_tiny": _application("ConvNeXtTiny", "32x32, pixels in", span=_PIXELS, samples=256),
    "xception": _application("Xception", "71x71, the smallest that it permits", 71, samples=256),
    "inception_v3": _application("InceptionV3", "75x75, the smallest that it permits", 75, samples=256),
    "nasnet_mobile": _application("NASNetMobile", "32x32", samples=256),
}  # fmt: skip


def find(key: str) -> Entry:
    """The entry of this key.

    Raises:
        tfcompress.errors.CompressionError: there is none.

    Example:
        >>> find("unet").title
        'U-Net'
    """
    if key not in ENTRIES:
        from tfcompress.errors import CompressionError, nearest

        raise CompressionError(f"There is no model {key!r} in the zoo. {nearest(key, ENTRIES)}")
    return ENTRIES[key]
