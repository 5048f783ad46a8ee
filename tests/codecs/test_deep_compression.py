"""The published format of Deep Compression: round trip, Huffman's bounds, predicted bytes, the product on the coded form."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.codecs.samples import rng, same, sparse, specials
from tfcompress import codecs
from tfcompress.codecs import deep_compression as dc
from tfcompress.codecs import huffman
from tfcompress.codecs.bits import Corrupt, Cursor
from tfcompress.errors import CompressionError

counts_lists = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 10**6)), min_size=1, max_size=60)


def heap_bits(counts):
    """Length of the Huffman-coded message: the sum of all merged weights of the textbook heap construction."""
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def entropy(counts):
    """Bits per symbol."""
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts if c)


def back(array, p=None):
    return dc.decode(dc.encode(array, p), array.shape, array.dtype).array()


@pytest.mark.paper(12)
@given(
    st.integers(0, 400), st.floats(0, 1), st.sampled_from([None, 1, 2, 3, 5, 8]), st.integers(0, 20), st.integers(0, 9)
)
@settings(max_examples=300, deadline=None)
def test_round_trip_over_shapes_and_densities(size, density, p, k, seed):
    values = rng(seed).standard_normal(k).astype(np.float32) if k else None
    shape = (size // 4, 4) if size % 4 == 0 else (size,)
    array = sparse(shape, density, values, seed=seed)
    assert same(back(array, p), array)


@pytest.mark.paper(12)
@pytest.mark.parametrize("p", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("where", ["first", "later", "last"])
def test_gaps_at_the_edge_of_p_bits(p, where):
    for gap, fillers in [(2**p - 1, 0), (2**p, 0), (2**p + 1, 1), (2 * 2**p, 1), (3 * 2**p, 2), (3 * 2**p + 1, 3)]:
        before = 0 if where == "first" else 3
        array = np.zeros(before + gap + (0 if where == "last" else 2), np.float32)
        if before:
            array[:before] = [0.5, -1, 2]
        array[before + gap - 1] = 0.25
        coded = dc.to_coded(array, p)
        assert coded.gaps.size == before + 1 + fillers, gap
        assert coded.gaps.max() < 2**p
        # A filler bridges the largest gap and carries the value zero.
        np.testing.assert_array_equal(coded.gaps[before : before + fillers], 2**p - 1)
        np.testing.assert_array_equal(coded.codebook[coded.codes[before : before + fillers]], 0)
        assert same(back(array, p), array)


@pytest.mark.paper(12)
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5), np.float32),
        np.full((4, 5), 0.25, np.float32),
        np.array([0.5], np.float32),
        np.array([0.0], np.float32),
        np.array([-0.0], np.float32),
        np.float32(2.0).reshape(()),
        np.zeros((0, 3), np.float32),
        specials(),
    ],
    ids=["all zero", "all equal", "one element", "one zero", "minus zero", "scalar", "empty", "specials"],
)
def test_degenerate_tensors(array):
    for p in (None, 1, 5, 16):
        assert same(back(array, p), array)


@pytest.mark.paper(12)
def test_nan_is_refused():
    with pytest.raises(CompressionError, match="NaN"):
        dc.encode(np.array([1.0, np.nan], np.float32))
    assert (
        codecs.codings()["deep-compression"].encode(codecs.Tensor(np.array([0, 0, 0, np.nan] * 9, np.float32))) is None
    )


@pytest.mark.paper(12)
@pytest.mark.paper(48)
@given(counts_lists)
@settings(max_examples=300, deadline=None)
def test_huffman_lengths_are_optimal_complete_and_within_a_bit_of_the_entropy(counts):
    lengths = huffman.code_lengths(counts)
    assert (lengths > 0).sum() == (0 if np.count_nonzero(counts) < 2 else np.count_nonzero(counts))
    bits = int(np.dot(np.array(counts, np.int64), lengths.astype(np.int64)))
    assert bits == heap_bits(counts)
    if sum(counts):
        mean = bits / sum(counts)
        assert entropy(counts) - 1e-9 <= mean < entropy(counts) + 1
    if np.count_nonzero(counts) > 1:
        assert huffman.kraft_sum(lengths) == 1.0


@pytest.mark.paper(48)
@given(counts_lists)
@settings(max_examples=100, deadline=None)
def test_canonical_codes_are_prefix_free(counts):
    lengths = huffman.code_lengths(counts)
    symbols, codes = huffman.canonical_codes(lengths)
    words = [f"{int(code):0{lengths[symbol]}b}" for symbol, code in zip(symbols, codes, strict=True)]
    assert all(not b.startswith(a) for a in words for b in words if a is not b)
    assert words == sorted(words)


def test_codes_as_deep_as_fibonacci_counts_make_them():
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    lengths = huffman.code_lengths(counts)
    assert lengths.max() == 29
    symbols = rng().integers(0, 30, 5000)
    data = huffman.encode(symbols, lengths)
    np.testing.assert_array_equal(huffman.decode(data, 5000, lengths), symbols)


def test_huffman_streams_longer_than_a_block():
    symbols = rng().choice(5, 600_000, p=[0.6, 0.2, 0.1, 0.05, 0.05])
    lengths = huffman.code_lengths(np.bincount(symbols))
    data = huffman.encode(symbols, lengths)
    np.testing.assert_array_equal(huffman.decode(data, symbols.size, lengths), symbols)
    with pytest.raises(Corrupt):
        huffman.decode(data, symbols.size + 100, lengths)
    with pytest.raises(Corrupt):
        huffman.decode(data, symbols.size - 100, lengths)


def test_incomplete_code_lengths_are_refused():
    for lengths in ([1, 2, 3], [1, 1, 1], [0, 0, 5]):
        with pytest.raises(Corrupt, match="prefix code"):
            huffman.unpack_lengths(Cursor(huffman.pack_lengths(np.array(lengths, np.uint8))), 3)


def varint_bytes(value):
    return max(1, math.ceil(value.bit_length() / 7))


@pytest.mark.paper(12)
@pytest.mark.parametrize("p", [3, 5, 8])
@pytest.mark.parametrize("k", [1, 4, 31])
def test_file_bytes_are_the_predicted_bits_rounded_up_per_section(p, k):
    array = sparse((120, 80), 0.06, np.arange(1, k + 1), seed=p)
    # Entries, counted one by one from the flat tensor.
    gaps, codes, last = [], [], -1
    for position in np.flatnonzero(array):
        gap = int(position) - last
        while gap > 2**p:
            gaps.append(2**p - 1)
            codes.append(0.0)
            gap -= 2**p
        gaps.append(gap - 1)
        codes.append(float(array.flat[position]))
        last = int(position)
    alphabet = sorted(set(codes) | set(array[array != 0].tolist()))
    gap_counts = np.bincount(gaps, minlength=2**p).tolist()
    code_counts = [codes.count(value) for value in alphabet]

    def table(counts):
        if sum(c > 0 for c in counts) < 2:
            return 1 + varint_bytes(counts.index(max(counts)))
        width = int(huffman.code_lengths(counts).max()).bit_length()
        return 1 + math.ceil(width * len(counts) / 8)

    code_bytes = math.ceil(heap_bits(code_counts) / 8)
    header = 1 + varint_bytes(len(gaps)) + varint_bytes(len(alphabet)) + varint_bytes(code_bytes)
    predicted = header + 4 * len(alphabet) + table(gap_counts) + table(code_counts)
    predicted += code_bytes + math.ceil(heap_bits(gap_counts) / 8)
    assert len(dc.encode(array, p)) == predicted

    found = dc.stages(array, p)
    assert found.dense == 32 * array.size
    assert found.prune == len(gaps) * (32 + p)
    assert found.share == len(gaps) * (math.ceil(math.log2(len(alphabet))) + p) + 32 * len(alphabet)
    assert found.huffman == 8 * predicted
    shares = found.shares()
    assert shares["+Huffman"] == pytest.approx(8 * predicted / (32 * array.size))
    assert list(shares) == ["prune", "+share", "+Huffman"]


@pytest.mark.paper(12)
def test_a_model_counts_its_biases_in_full():
    weights = {"a": sparse((80, 60), 0.1, [1, 2, 3]), "b": np.ones(60, np.float32), "c": sparse((60, 10), 0.2, [4, 5])}
    total = dc.model_stages(weights, p=5)
    parts = [dc.stages(weights[name], 5) for name in "ac"]
    for field in ("dense", "prune", "share", "huffman"):
        assert getattr(total, field) == sum(getattr(part, field) for part in parts) + 32 * 60


def test_the_chosen_p_is_the_best_of_all():
    for density in (0.3, 0.05, 0.004):
        array = sparse((300, 100), density, [1, 2, 3, 4])
        sizes = {p: len(dc.encode(array, p)) for p in range(2, 11)}
        assert len(dc.encode(array)) == min(sizes.values())


@pytest.mark.paper(12)
@pytest.mark.parametrize("p", [2, 5])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
def test_product_on_the_coded_form_equals_the_dense_one(p, density):
    kernel = sparse((60, 37), density, rng(1).standard_normal(16))
    data = dc.encode(kernel, p)
    coded = dc.read_coded(Cursor(data), kernel.shape, kernel.dtype)
    x = rng(2).standard_normal((5, 60)).astype(np.float32) * (rng(3).random((5, 60)) < 0.7)
    np.testing.assert_allclose(coded.matvec(x), x.astype(float) @ kernel.astype(float), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(coded.matvec(x[0]), x[0].astype(float) @ kernel.astype(float), rtol=1e-5, atol=1e-5)
    assert coded.matvec(x).dtype == np.float32


def test_product_refuses_what_does_not_fit():
    coded = dc.to_coded(sparse((6, 4), 0.5))
    with pytest.raises(CompressionError, match=r"\(6, 4\) cannot multiply x of shape \(4,\)"):
        coded.matvec(np.ones(4))
    with pytest.raises(CompressionError, match="cannot multiply"):
        dc.to_coded(np.ones(4, np.float32)).matvec(np.ones(4))


def test_gap_bits_out_of_range_are_named():
    with pytest.raises(CompressionError, match="1 to 16; received 0"):
        dc.encode(np.ones(4, np.float32), p=0)
