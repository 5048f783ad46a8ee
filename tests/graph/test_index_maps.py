"""Index maps alone: what is moved can be found again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfcompress.graph import index_maps

MAPS = {
    "flatten": lambda h, w, c: index_maps.Reshape((1, h, w, c), (1, h * w * c)),
    "blocks": lambda h, w, c: index_maps.Reshape((1, h * w * c), (1, h, w, c)),
    "permute": lambda h, w, c: index_maps.Permute((1, h, w, c), (0, 3, 1, 2)),
    "repeat": lambda h, w, c: index_maps.Repeat((h, c), w),
    "tile": lambda h, w, c: index_maps.Tile((h, c), w),
    "slice": lambda h, w, c: index_maps.Slice((1, h, w + c), -1, 0, w + c),
    "place": lambda h, w, c: index_maps.Place((1, h, c), -1, w, w + c + 2),
}
SIZES = st.integers(1, 4)


@pytest.mark.parametrize("name", MAPS)
@given(h=SIZES, w=SIZES, c=SIZES)
def test_reverse_of_forward_is_the_index(name, h, w, c):
    index_map = MAPS[name](h, w, c)
    for index in range(int(np.prod(index_map.shape))):
        positions = index_map.forward(index)
        assert len(positions)
        assert all(index_map.reverse(int(position)) == index for position in positions)


@given(h=SIZES, w=SIZES, c=SIZES)
def test_flatten_against_data(h, w, c):
    # The oracle is the data itself: every value of channel k lands where the map says.
    data = np.broadcast_to(np.arange(c), (1, h, w, c))
    labels = index_maps.expand(np.arange(c).reshape(1, 1, 1, c), (None, h, w, c))
    flat = index_maps.Reshape(labels.shape, (1, h * w * c))(labels)
    np.testing.assert_array_equal(flat.ravel(), data.reshape(-1))
    assert index_maps.compress(labels).shape == (1, 1, 1, c)


def test_parts_of_a_slice_and_a_concatenation():
    part = index_maps.Slice((1, 6), 1, 2, 5)
    assert [part.forward(i).tolist() for i in range(6)] == [[], [], [0], [1], [2], []]
    place = index_maps.Place((1, 2), 1, 3, 6)
    assert place.sources().tolist() == [[-1, -1, -1, 0, 1, -1]]


def test_unknown_size_cannot_be_expanded():
    with pytest.raises(ValueError, match="axis 1 is unknown"):
        index_maps.expand(np.zeros((1, 1, 2), int), (None, None, 2))
