"""How operations move channels: small objects that arrange an array of channel labels as an operation arranges its data.

The labels of a tensor are an integer array of the tensor's rank. An axis along which all labels are equal has length 1
("uniform"): a convolution's output (batch, height, width, 16) has labels of shape (1, 1, 1, 16).
"""

import numpy as np


def expand(labels: np.ndarray, shape, axes=None) -> np.ndarray:
    """Repeat labels along uniform axes to the tensor's true size.

    Args:
        labels: integer array of the tensor's rank. shape: the tensor's shape; None where unknown.
        axes: the axes to expand; all but the batch axis by default.

    Raises:
        ValueError: a size that is needed is unknown.

    Example:
        >>> expand(np.array([[[7, 8]]]), (None, 2, 2))
        array([[[7, 8],
                [7, 8]]])
    """
    axes = range(1, labels.ndim) if axes is None else [axis % labels.ndim for axis in axes]
    target = list(labels.shape)
    for axis in axes:
        if shape[axis] is None:
            raise ValueError(f"the size of axis {axis} is unknown")
        target[axis] = shape[axis]
    return np.broadcast_to(labels, target)


def varying(labels: np.ndarray) -> list[int]:
    """The axes along which labels differ.

    Example:
        >>> varying(np.array([[[1, 2], [1, 2]]]))
        [2]
    """
    return [axis for axis in range(labels.ndim) if (labels != np.take(labels, [0], axis)).any()]


def compress(labels: np.ndarray) -> np.ndarray:
    """Shorten every axis along which all labels are equal to length 1.

    Example:
        >>> compress(np.array([[[1, 2], [1, 2]]])).shape
        (1, 1, 2)
    """
    vary = varying(labels)
    return labels[tuple(slice(None) if axis in vary else slice(0, 1) for axis in range(labels.ndim))]


class IndexMap:
    """An arrangement of labels: output position -> input index, and back to all positions that show an index.

    Args:
        shape: shape of the labels that go in.
    """

    def __init__(self, shape):
        self.shape = tuple(shape)

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """The labels as the operation arranges them."""
        raise NotImplementedError

    def sources(self) -> np.ndarray:
        """For every output position, the flat input index that it shows."""
        return self(np.arange(int(np.prod(self.shape))).reshape(self.shape))

    def reverse(self, position: int) -> int:
        """The flat input index that the flat output position shows."""
        return int(self.sources().ravel()[position])

    def forward(self, index: int) -> np.ndarray:
        """The flat output positions that show the flat input index; none if the operation drops it."""
        return np.flatnonzero(self.sources().ravel() == index)


class Reshape(IndexMap):
    """Data in C order under another shape, as Flatten and Reshape do; sizes are true ones, batch axis 1.

    Example:
        >>> Reshape((1, 2, 3), (1, 6)).forward(4), Reshape((1, 2, 3), (1, 6)).reverse(4)
        (array([4]), 4)
    """

    def __init__(self, shape, target):
        super().__init__(shape)
        self.target = tuple(target)

    def __call__(self, labels):
        return np.broadcast_to(labels, self.shape).reshape(self.target)


class Permute(IndexMap):
    """Axes in another order, the batch axis first.

    Example:
        >>> Permute((1, 2, 3), (0, 2, 1))(np.arange(6).reshape(1, 2, 3)).tolist()
        [[[0, 3], [1, 4], [2, 5]]]
    """

    def __init__(self, shape, axes):
        super().__init__(shape)
        self.axes = tuple(axes)

    def __call__(self, labels):
        return labels.transpose(self.axes)


class Slice(IndexMap):
    """A part [start, stop) of an axis; a split is several of these.

    Example:
        >>> Slice((1, 8), 1, 2, 5).forward(3), Slice((1, 8), 1, 2, 5).forward(6)
        (array([1]), array([], dtype=int64))
    """

    def __init__(self, shape, axis: int, start: int, stop: int):
        super().__init__(shape)
        self.axis, self.start, self.stop = axis % len(self.shape), start, stop

    def __call__(self, labels):
        return labels[(slice(None),) * self.axis + (slice(self.start, self.stop),)]


class Place(IndexMap):
    """One part of a concatenation along an axis: positions [offset, offset + size) show the part, others nothing.

    `sources` counts positions of the whole; those of other parts hold -1.

    Example:
        >>> Place((1, 3), 1, 2, 6).forward(0), Place((1, 3), 1, 2, 6).reverse(0)
        (array([2]), -1)
    """

    def __init__(self, shape, axis: int, offset: int, total: int):
        super().__init__(shape)
        self.axis, self.offset, self.total = axis % len(self.shape), offset, total

    def __call__(self, labels):
        size = self.shape[self.axis]
        whole = np.full([self.total if a == self.axis else n for a, n in enumerate(labels.shape)], -1, labels.dtype)
        whole[(slice(None),) * self.axis + (slice(self.offset, self.offset + size),)] = labels
        return whole


class Repeat(IndexMap):
    """Every channel `times` times in a row, as a depthwise convolution with a depth multiplier does.

    Example:
        >>> Repeat((3,), 2)(np.array([5, 6, 7])).tolist(), Repeat((3,), 2).reverse(3)
        ([5, 5, 6, 6, 7, 7], 1)
    """

    def __init__(self, shape, times: int, axis: int = -1):
        super().__init__(shape)
        self.times, self.axis = times, axis

    def __call__(self, labels):
        return np.repeat(labels, self.times, self.axis)


class Tile(IndexMap):
    """All channels in a row, `times` times over, as space-to-depth does.

    Example:
        >>> Tile((2,), 2)(np.array([5, 6])).tolist(), Tile((2,), 2).forward(1)
        ([5, 6, 5, 6], array([1, 3]))
    """

    def __init__(self, shape, times: int):
        super().__init__(shape)
        self.times = times

    def __call__(self, labels):
        return np.tile(labels, (1,) * (labels.ndim - 1) + (self.times,))
