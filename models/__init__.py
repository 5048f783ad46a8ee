"""Reference networks, data sets and the reproductions of the papers; run from a checkout, not in the wheel."""


def build(name: str, **kwargs):
    """Build a reference network by its name.

    Args:
        name: one of `names()`, e.g. "resnet20".
        kwargs: passed to the network's builder, e.g. `input_shape`, `classes`, `activation`, `width`.

    Returns:
        A `keras.Model`, built, with random weights.

    Raises:
        tfcompress.errors.CompressionError: no network has this name, or it does not take one of the arguments.

    Example:
        >>> import models
        >>> models.build("lenet_300_100").count_params()
        266610
    """
    from models import networks

    return networks.build(name, **kwargs)


def names() -> list[str]:
    """The names that `build` knows.

    Example:
        >>> import models
        >>> "mobilenet_v2" in models.names()
        True
    """
    from models import networks

    return networks.names()
