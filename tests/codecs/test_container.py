"""The .tfcz file: round trips, random access, and refusal of everything that is not whole."""

import io
import os
import struct
import zlib

import numpy as np
import pytest

from tests.codecs.samples import attempt, index_of, mutate, one_of_each, rng, same, sealed, seeded, sparse
from tfcompress import codecs
from tfcompress.codecs import coding as coding_module
from tfcompress.codecs.bits import deflate, text, varint
from tfcompress.codecs.container import Reader
from tfcompress.errors import CompressionError

FUZZ = int(os.environ.get("TFCOMPRESS_FUZZ", "20000"))  # mutated files of the two fuzz tests together


@pytest.fixture(scope="module")
def whole():
    """(arrays, the bytes of their .tfcz), every coding among them."""
    arrays = one_of_each()
    arrays["seeded"], handed = seeded()
    return arrays, codecs.dumps(arrays, handed={"seeded": handed})


def row(name, shape, code, data, *, dtype=0, content=0):
    """A tensor's row of the index."""
    dims = bytes([len(shape)]) + b"".join(map(varint, shape))
    head = b"\0" + text(name) + bytes([dtype]) + dims + bytes([code]) + varint(len(data))
    return head + struct.pack("<II", zlib.crc32(data), content)


def test_all_arrays_come_back_in_order(whole):
    arrays, data = whole
    back = codecs.loads(data)
    assert list(back) == list(arrays)
    assert all(same(back[name], np.asarray(array)) for name, array in arrays.items())
    back["dense"][0] = 1  # what is read can be written to


def test_the_same_weights_give_the_same_bytes(whole):
    arrays, data = whole
    assert codecs.dumps(arrays, handed={"seeded": seeded()[1]}) == data


def test_one_tensor_is_read_without_the_others(whole, tmp_path):
    arrays, data = whole
    path = tmp_path / "a.tfcz"
    damaged = bytearray(data)
    reader = Reader(io.BytesIO(data), "a")
    for name, entry in reader.tensors.items():
        if name != "sparse":
            damaged[entry.offset : entry.offset + entry.bytes] = bytes(entry.bytes)
    path.write_bytes(damaged)
    assert same(codecs.read_tensor(path, "sparse"), arrays["sparse"])
    with pytest.raises(CompressionError, match=r"a\.tfcz is damaged: section 'dense' does not fit its checksum"):
        codecs.read_tensor(path, "dense")


def test_inspect_counts_every_byte(whole, tmp_path):
    arrays, data = whole
    path = tmp_path / "a.tfcz"
    path.write_bytes(data)
    found = codecs.inspect(path)
    assert found.file_bytes == len(data)
    assert sum(row.bytes for row in found.rows) + sum(found.other.values()) + found.overhead == len(data)
    assert [row.name for row in found.rows] == list(arrays)
    assert {row.coding for row in found.rows} == set(codecs.codings())
    assert found.to_dict()["rows"][0]["coding"] == "constant"
    assert "integer grid" in str(found)


def test_unknown_tensor_is_named_with_the_nearest(whole, tmp_path):
    path = tmp_path / "a.tfcz"
    path.write_bytes(whole[1])
    with pytest.raises(CompressionError, match=r"no tensor 'sprase'\. Did you mean 'sparse'"):
        codecs.read_tensor(path, "sprase")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a .tfcz file"),
        (b"PK\3\4" + bytes(100), "zip archive"),
        (b"\x89HDF\r\n" + bytes(100), "HDF5"),
        (b"TFCZ\x01\0\0\0", "cut off"),
        (b"TFCZ\x01\0\0\0" + bytes(50), "cut off or has been added to"),
    ],
)
def test_foreign_files_are_refused(data, words):
    with pytest.raises(CompressionError, match=words):
        codecs.loads(data)


def test_every_truncation_is_refused(whole):
    for length in range(0, len(whole[1]), 7):
        with pytest.raises(CompressionError):
            codecs.loads(whole[1][:length])


def test_every_bit_flip_is_refused():
    data = codecs.dumps({"a": sparse((10, 10), 0.2), "b": np.ones(3, np.float32)})
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CompressionError):
            codecs.loads(bytes(damaged))


def test_a_newer_format_is_named():
    data = bytearray(codecs.dumps({"a": np.ones(3, np.float32)}))
    data[4] = 2
    data[-8:-4] = struct.pack("<I", zlib.crc32(data[-24:-8], zlib.crc32(data[:8])))
    with pytest.raises(CompressionError, match="format 2; this version of tfcompress reads format 1"):
        codecs.loads(bytes(data))


def test_fuzz_mutated_files_are_refused_or_whole(whole):
    arrays, data = whole
    draw = rng(11)
    refused = 0
    for _ in range(FUZZ // 2):
        damaged = mutate(data, draw)
        back, message = attempt(lambda damaged=damaged: codecs.loads(damaged))
        if message is not None:
            refused += 1
            assert "in memory" in message
            assert "\n" not in message
        else:
            assert damaged == data
            assert all(same(back[name], np.asarray(array)) for name, array in arrays.items())
    assert refused > 0.9 * (FUZZ // 2)


def test_fuzz_mutations_under_right_checksums_never_crash_nor_lie(whole):
    """What a checksum would catch, sealed again: the decoders themselves have to hold."""
    arrays, data = whole
    draw = rng(12)
    offset, index = index_of(data)
    entries = [entry for entry in Reader(io.BytesIO(data), "a").tensors.values() if entry.bytes]
    kept = 0
    for number in range(FUZZ - FUZZ // 2):
        if number % 4 == 0:  # the index: anything may come of it but a crash
            file = sealed(data[8:offset], mutate(index, draw))
            _, message = attempt(lambda file=file: codecs.loads(file, limit=1 << 24))
            assert message is None or "\n" not in message
            continue
        entry = entries[number % len(entries)]
        section = mutate(data[entry.offset : entry.offset + entry.bytes], draw)
        code = int(draw.integers(0, 12)) if number % 20 == 1 else entry.code
        one = row(entry.name, entry.shape, code, section, dtype=index_dtype(entry), content=entry.content)
        file = sealed(section, b"\0\1" + one)
        back, message = attempt(lambda file=file: codecs.loads(file, limit=1 << 24))
        if message is not None:
            assert repr(entry.name) in message
        else:
            kept += 1
            assert same(back[entry.name], np.asarray(arrays[entry.name]))
    assert kept < FUZZ // 10


def index_dtype(entry):
    return codecs.words.DTYPES.index(entry.dtype)


@pytest.mark.slow
def test_fuzz_at_length(whole, monkeypatch):
    monkeypatch.setattr("tests.codecs.test_container.FUZZ", 200_000)
    test_fuzz_mutated_files_are_refused_or_whole(whole)
    test_fuzz_mutations_under_right_checksums_never_crash_nor_lie(whole)


def test_sizes_are_bounded_before_memory_is_taken():
    def crafted(shape, code, payload):
        return sealed(payload, b"\0\1" + row("bomb", shape, code, payload))

    huge = (1 << 20, 1 << 20)
    word = bytes(4)
    with pytest.raises(CompressionError, match="declares 4,398,046,511,104 decoded bytes, more than the limit"):
        codecs.loads(crafted(huge, 1, word))
    with pytest.raises(CompressionError, match="more than the limit of 1,000"):
        codecs.loads(crafted((1000,), 1, word), limit=1000)
    zeros = codecs.dumps({"a": np.zeros(1000, np.float32)})
    assert codecs.loads(zeros, limit=4000)["a"].size == 1000
    # A zstandard frame that would inflate to 64 megabytes where a kilobyte is declared.
    bomb = deflate(bytes(1 << 26), 1)
    with pytest.raises(CompressionError, match="frame of 67108864 bytes where 1024 are declared"):
        codecs.loads(crafted((256,), 4, bomb))
    with pytest.raises(CompressionError, match=r"impossible shape|does not decode"):
        codecs.loads(crafted((1 << 40, 1 << 40, 0), 0, b""))


def test_nested_parts_cannot_nest_without_end():
    sparse_again = bytes([6]) + varint(8)
    payload = bytes(4) + varint(1) + b"\0" + b"\xff\xf0" + varint(0) + sparse_again + bytes(8)
    with pytest.raises(CompressionError, match="'a'"):
        codecs.loads(sealed(payload, b"\0\1" + row("a", (4,), 6, payload)))


def test_a_coding_of_the_future_is_not_called_damage():
    payload = bytes(4)
    with pytest.raises(CompressionError, match=r"cannot be read here: .* coding 77, which this version"):
        codecs.loads(sealed(payload, b"\0\1" + row("a", (1,), 77, payload)))


def test_a_coding_that_fails_to_reproduce_is_reported_not_written(monkeypatch):
    raw = coding_module.by_code(0)
    monkeypatch.setattr(raw, "encode", lambda tensor, effort: bytes(tensor.nbytes))
    with pytest.raises(CompressionError, match="'raw' does not reproduce tensor 'a'"):
        codecs.smallest(codecs.Tensor(np.arange(3, dtype=np.float32), "a"), among=["raw"])


def test_two_codings_may_not_share_a_number():
    class Another(codecs.Coding):
        code = 0
        name = "another"

    with pytest.raises(ValueError, match="number 0"):
        codecs.register(Another)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.tfcz"
    codecs.pack({"a": np.ones(4, np.float32)}, path)
    old = path.read_bytes()

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tfcompress.codecs.container.Writer.finish", full)
    with pytest.raises(CompressionError, match=r"No space left on device.*intact"):
        codecs.pack({"a": np.zeros(4, np.float32)}, path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.tfcz"]
