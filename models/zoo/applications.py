"""Networks of keras.applications at the smallest input that each permits, four classes, random weights."""


def application(keras, name: str, size: int = 32, **options):
    """A network of keras.applications (or of tf_keras's) with four classes."""
    build = getattr(keras.applications, name)
    return build(input_shape=(size, size, 3), weights=None, classes=4, **options)
