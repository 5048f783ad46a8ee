"""Every coding: exact to the bit, near the entropy, bounded overhead, and chosen where it is the smallest."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.codecs.samples import one_of_each, per_channel, rng, same, sparse, specials, zero_order_bits
from tfcompress import codecs
from tfcompress.codecs.bits import Corrupt, Cursor, pack_bits, unpack_bits, varint
from tfcompress.codecs.coding import check_effort, decode
from tfcompress.codecs.entropy import weights as weights_of
from tfcompress.codecs.tables import decode_symbols, encode_symbols, pack_table, unpack_table
from tfcompress.codecs.words import alphabet
from tfcompress.errors import CompressionError

DTYPES = [np.float32, np.float16, np.float64, np.int8, np.uint8, np.int16, np.int32, np.int64, np.bool_]


def through(coding, array, effort="normal"):
    """The array after one coding and back, and its bytes; None where the coding does not apply."""
    tensor = codecs.Tensor(array)
    data = coding.encode(tensor, effort)
    if data is None:
        return None
    words = decode(coding.code, data, tensor.shape, tensor.dtype)
    return words.view(tensor.dtype).reshape(tensor.shape), len(data)


def exact(array, efforts=codecs.coding.EFFORTS):
    """Check every coding that applies; the number of those."""
    applied = 0
    for effort in efforts:
        for coding in codecs.codings().values():
            back = through(coding, array, effort)
            if back is not None:
                assert same(back[0], array), (coding.name, effort)
                applied += 1
        chosen, data = codecs.smallest(codecs.Tensor(array), effort)
        assert len(data) <= array.nbytes
        assert same(decode(chosen.code, data, array.shape, array.dtype).view(array.dtype).reshape(array.shape), array)
    return applied


@st.composite
def weights(draw):
    """Arrays as compression leaves them: any bits, or few values, or many zeros, of up to four axes."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    count = int(np.prod(shape))
    kind = draw(st.sampled_from(["bits", "few", "zeros"]))
    seed = draw(st.integers(0, 2**32 - 1))
    words = np.frombuffer(rng(seed).bytes(count * dtype.itemsize), dtype)
    if dtype.kind == "b":  # other bytes than 0 and 1 are no booleans
        words = rng(seed).random(count) < 0.5
    if kind == "few" and count:
        words = rng(seed).choice(words[: draw(st.integers(1, 20))], count)
    if kind == "zeros":
        words = np.where(rng(seed).random(count) < draw(st.floats(0, 1)), words, dtype.type(0))
    return words.astype(dtype, copy=False).reshape(shape)


@pytest.mark.paper(12)
@given(weights())
@settings(max_examples=300, deadline=None)
def test_any_array_comes_back_bit_for_bit(array):
    exact(array)


@pytest.mark.parametrize("name", sorted(one_of_each()))
def test_samples_come_back_bit_for_bit(name):
    assert exact(one_of_each()[name]) >= 3


def test_zeros_of_both_signs_denormals_and_infinities_survive():
    assert exact(specials()) >= 6
    assert np.signbit(specials()[specials() == 0]).any()


def test_nan_payloads_survive():
    array = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0] * 8, np.uint32).view(np.float32)
    assert exact(array) >= 3


def test_each_coding_is_the_smallest_somewhere():
    chosen = {codecs.smallest(codecs.Tensor(array))[0].name for array in one_of_each().values()}
    assert chosen == set(codecs.codings()) - {"handed"}


def floor_bytes(array):
    """Zero-order entropy of the whole tensor, and its distinct values written once."""
    return zero_order_bits(array) / 8 + np.unique(array).nbytes


@pytest.mark.parametrize("density", [0.01, 0.05, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("k", [1, 2, 16, 64])
@pytest.mark.parametrize("shape", [(300, 100), (3, 3, 64, 128), (784, 300)])
def test_pruned_and_clustered_is_within_two_percent_of_the_entropy(density, k, shape):
    values = rng(k).standard_normal(k).astype(np.float32)
    array = sparse(shape, density, values, seed=7)
    bytes_ = len(codecs.smallest(codecs.Tensor(array))[1])
    assert bytes_ <= 1.02 * floor_bytes(array) + 64


@pytest.mark.paper(82)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_pruned_floats_are_within_two_percent_of_positions_and_survivors(density):
    array = sparse((500, 400), density)
    kept = int(np.count_nonzero(array))
    share = kept / array.size
    positions = array.size * (-share * np.log2(share) - (1 - share) * np.log2(1 - share)) / 8
    assert len(codecs.smallest(codecs.Tensor(array))[1]) <= 1.02 * (positions + 4 * kept) + 64


def test_file_header_is_at_most_64_bytes_a_tensor():
    arrays = {f"layers/dense_{i}/vars/0": sparse((200, 100), 0.1, [0.5, -0.5], seed=i) for i in range(20)}
    data = codecs.dumps(arrays)
    sections = sum(len(codecs.smallest(codecs.Tensor(array))[1]) for array in arrays.values())
    assert (len(data) - sections) / len(arrays) <= 64
    assert len(data) <= 1.02 * sum(map(floor_bytes, arrays.values())) + 64 * len(arrays)


def channelwise_sparse(seed=0):
    """A convolution kernel whose input channels and filters differ in density, as magnitude pruning leaves it."""
    draw = rng(seed)
    density = draw.beta(0.7, 4, (1, 1, 64, 1)) * draw.beta(2, 2, (1, 1, 1, 128)) * 2
    kept = draw.random((3, 3, 64, 128)) < density
    return np.where(kept, draw.choice(draw.standard_normal(16), kept.shape), 0).astype(np.float32)


def test_channels_of_different_density_go_below_the_zero_order_entropy():
    array = channelwise_sparse()
    assert len(codecs.smallest(codecs.Tensor(array))[1]) < 0.97 * floor_bytes(array)


def test_contexts_cost_next_to_nothing_where_there_are_none():
    array = sparse((3, 3, 64, 128), 0.1, [0.25, 0.5])
    plain = codecs.codings()["sparse"].encode(codecs.Tensor(array), "fast")
    searched = codecs.codings()["sparse"].encode(codecs.Tensor(array), "best")
    assert len(searched) <= len(plain)


@pytest.mark.parametrize(("k", "bits"), [(2, 1.0), (3, 1.6), (4, 2.0), (5, 8 / 3), (16, 4.0)])
def test_packed_digits_have_their_length(k, bits):
    array = rng().choice(np.arange(k).astype(np.float32), (64, 30))
    back, size = through(codecs.codings()["packed"], array)
    assert same(back, array)
    assert size == 1 + 4 * k + int(np.ceil(array.size * bits / 8))


@pytest.mark.parametrize("shape", [(3, 3, 16, 32), (64, 100), (5, 5, 1, 7)])
def test_per_channel_int8_weights_take_a_byte_or_less(shape):
    array = per_channel(shape)
    units = np.unique(np.abs(array).max(tuple(range(len(shape) - 1)))).size
    coding, data = codecs.smallest(codecs.Tensor(array))
    assert coding.name == "integer grid"
    assert len(data) <= array.size + 4 * units + 64
    # One element off the grid, and the form does not apply.
    array[(0,) * len(shape)] = np.nextafter(array.flat[0] + np.float32(1e-3), np.float32(1))
    assert codecs.codings()["integer grid"].encode(codecs.Tensor(array)) is None


def test_depthwise_units_lie_along_the_axis_before_the_last():
    array = np.swapaxes(per_channel((3, 3, 1, 24)), 2, 3).copy()
    assert exact(array) > 5
    assert codecs.smallest(codecs.Tensor(array))[0].name == "integer grid"


def test_dense_floats_shrink_by_their_exponents():
    array = (rng().standard_normal((200, 200)) * 0.05).astype(np.float32)
    exponent = zero_order_bits((array.view(np.uint32) >> 23 & 0xFF).astype(np.uint8)) / array.size
    assert len(codecs.smallest(codecs.Tensor(array))[1]) * 8 / array.size <= 24 + 1.02 * exponent + 0.1


def test_more_effort_is_never_larger():
    for name, array in one_of_each().items():
        sizes = [len(codecs.smallest(codecs.Tensor(array), effort)[1]) for effort in codecs.coding.EFFORTS]
        assert sizes == sorted(sizes, reverse=True), name


def test_unknown_effort_is_named():
    with pytest.raises(CompressionError, match="fast, normal, best"):
        check_effort("high")


@given(st.lists(st.integers(0, 9), max_size=200), st.integers(10, 300))
@settings(max_examples=100, deadline=None)
def test_entropy_coded_symbols_come_back(symbols, k):
    array = np.array(symbols, np.int64)
    cursor = Cursor(encode_symbols(array, k))
    assert decode_symbols(cursor, array.size, k).tolist() == symbols
    cursor.end()


@given(st.lists(st.one_of(st.just(0), st.integers(1, 3), st.integers(1, 10**9)), min_size=1, max_size=300))
@settings(max_examples=200, deadline=None)
def test_probability_tables_come_back_and_are_close(counts):
    data, table = pack_table(counts)
    cursor = Cursor(data)
    np.testing.assert_array_equal(unpack_table(cursor, len(counts)), table)
    cursor.end()
    np.testing.assert_array_equal(table > 0, np.array(counts) > 0)
    if sum(counts):
        # Whole octaves at the coarsest: no symbol pays more than a bit and a half more than its due.
        share = np.array(counts) / sum(counts)
        model = weights_of(table) / weights_of(table).sum()
        used = share > 2.0**-31
        assert (np.log2(share[used]) - np.log2(model[used])).max() <= 1.5


@pytest.mark.parametrize("n", [2_000, 20_000, 200_000])
def test_small_int8_layers_do_not_pay_for_their_table(n):
    array = np.clip(np.rint(rng().standard_normal(n) * 32), -127, 127).astype(np.int8)
    assert len(codecs.smallest(codecs.Tensor(array))[1]) <= 1.02 * zero_order_bits(array) / 8 + 64


@given(st.lists(st.integers(0, 2**62)))
def test_varints_come_back(values):
    cursor = Cursor(b"".join(map(varint, values)))
    assert [cursor.varint() for _ in values] == values
    cursor.end()


@given(st.integers(1, 17), st.data())
def test_packed_bits_come_back_and_stray_bits_are_refused(width, data):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=40))
    packed = bytearray(pack_bits(np.array(values), width))
    assert unpack_bits(Cursor(packed), len(values), width).tolist() == values
    if len(values) * width % 8:
        packed[-1] ^= 1
        with pytest.raises(Corrupt, match="stray bits"):
            unpack_bits(Cursor(packed), len(values), width)


def test_alphabet_finds_what_the_sample_missed():
    words = np.zeros(1_000_000, np.uint32)
    words[[1, 77_777, 999_999]] = [5, 9, 2]
    table, index = alphabet(words)
    assert table.tolist() == [0, 2, 5, 9]
    np.testing.assert_array_equal(table[index], words)
    assert alphabet(rng().integers(0, 2**32, 200_000, np.uint32)) is None
    assert alphabet(np.arange(100_000, dtype=np.uint32) % 99_999, np.zeros(1, np.uint32)) is None


@pytest.mark.slow
def test_ten_megabytes_of_symbols_take_two_seconds_each_way():
    symbols = rng().choice(np.arange(-8, 8, dtype=np.int8), 10_000_000, p=np.r_[0.85, np.full(15, 0.01)])
    start = time.process_time()
    coding, data = codecs.smallest(codecs.Tensor(symbols))
    middle = time.process_time()
    decode(coding.code, data, symbols.shape, symbols.dtype)
    assert middle - start <= 2
    assert time.process_time() - middle <= 2
