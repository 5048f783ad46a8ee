"""Codings that a method hands over: stored as given, checked, used only where they are the smallest."""

import numpy as np
import pytest

from tests.codecs.samples import same, seeded
from tfcompress import codecs
from tfcompress.errors import CompressionError


@pytest.mark.paper(83)
def test_a_seeded_mask_is_stored_as_values_and_seeds(tmp_path):
    kernel, handed = seeded(784, 512, 0.1)
    report = codecs.pack({"dense.kernel": kernel}, tmp_path / "a.tfcz", handed={"dense.kernel": handed})
    row = report.rows[0]
    assert row.coding == "handed"
    assert same(codecs.read_tensor(tmp_path / "a.tfcz", "dense.kernel"), kernel)
    # Binary values in one bit, a 9-bit seed in two bytes, no index of any kind.
    values, seeds = np.count_nonzero(kernel) / 8, 2 * 512
    assert row.bytes <= values + seeds + 160
    found = codecs.pack({"dense.kernel": kernel}, tmp_path / "b.tfcz")
    assert row.bytes < 0.3 * found.rows[0].bytes


def test_handed_codings_are_matched_by_value_and_used_only_where_smaller(tmp_path):
    kernel, handed = seeded()
    report = codecs.pack({"layers/dense/vars/0": kernel, "b": np.ones(3)}, tmp_path / "a.tfcz", handed={"d.k": handed})
    assert [row.coding for row in report.rows] == ["handed", "constant"]
    tiny, small = seeded(4, 2, 0.5)
    report = codecs.pack({"k": tiny}, tmp_path / "b.tfcz", handed={"k": small})
    assert report.rows[0].coding != "handed"


def test_handed_codings_that_do_not_fit_are_errors(tmp_path):
    kernel, handed = seeded()
    other = kernel.copy()
    other[0] += 1
    with pytest.raises(CompressionError, match="rebuilds other values than the tensor"):
        codecs.pack({"k": other}, tmp_path / "a.tfcz", handed={"k": handed})
    with pytest.raises(CompressionError, match="no tensor of that name or value"):
        codecs.pack({"k": other}, tmp_path / "a.tfcz", handed={"dense.kernel": handed})

    class Stranger(type(handed)):
        coding = "test: never registered"

    handed.__class__ = Stranger
    with pytest.raises(CompressionError, match="Stranger, which is not registered"):
        codecs.pack({"k": kernel}, tmp_path / "a.tfcz", handed={"k": handed})


def test_a_file_names_the_handed_coding_that_is_missing(monkeypatch):
    kernel, handed = seeded()
    data = codecs.dumps({"k": kernel}, handed={"k": handed})
    monkeypatch.setattr("tfcompress.codecs.handed._CLASSES", {})
    with pytest.raises(
        CompressionError, match=r"cannot be read here: section 'k' .* import the module that defines it"
    ):
        codecs.loads(data)


def test_two_classes_may_not_share_a_handed_name():
    class Thief(type(seeded()[1])):
        pass

    with pytest.raises(ValueError, match="both register"):
        codecs.register_handed(Thief)


def test_parts_of_handed_codings_are_bounded():
    data = codecs.pack_parts({"a": np.zeros(1000, np.float32)}, {"seed": 2**40})
    parts, numbers = codecs.unpack_parts(data)
    assert parts["a"].shape == (1000,)
    assert numbers == {"seed": 2**40}
    with pytest.raises(CompressionError, match="larger than allowed"):
        codecs.unpack_parts(data, limit=3999)
