"""The model zoo: its toy sets, its networks, one whole run, and the page that is made from its results."""

import importlib.util
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest

from models.zoo import ENTRIES, find, page, toys
from tfcompress.errors import CompressionError

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN = [key for key, entry in ENTRIES.items() if entry.own]
needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="exports")


def script():
    """tools/zoo.py as a module."""
    spec = importlib.util.spec_from_file_location("zoo_script", ROOT / "tools/zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(value):
    return list(value.values()) if isinstance(value, dict) else [value]


@pytest.mark.parametrize("key", list(ENTRIES))
def test_toy_sets_are_the_same_for_a_seed_and_use_every_class(key):
    data = ENTRIES[key].data
    x, y = data(96, 5)
    again, _ = data(96, 5)
    other, _ = data(96, 6)
    for a, b, c in zip(flat(x), flat(again), flat(other), strict=True):
        assert len(a) == 96
        assert np.isfinite(a).all()
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)
    for target in flat(y):
        assert len(target) == 96
        assert len(np.unique(target)) > 1


def test_a_colour_can_be_read_off_the_brightest_pixels():
    image, colour = toys.colours(200, 3)
    bright = image.reshape(200, -1, 3)[np.arange(200), image.reshape(200, -1, 3).max(-1).argmax(-1)]
    nearest = np.abs(bright[:, None] - (2 * toys.COLOURS - 1)[None]).sum(-1).argmin(-1)
    assert (nearest == colour).mean() > 0.97


def test_the_last_marker_is_the_last():
    tokens, last = toys.last_marker(50, 1)
    for row, label in zip(tokens.tolist(), last.tolist(), strict=True):
        assert [token for token in row if token < 4][-1] == label


def test_the_common_marker_is_the_most_common():
    tokens, kind = toys.common_marker(50, 1)
    counts = np.stack([(tokens == c).sum(1) for c in range(4)], 1)
    assert (counts.argmax(1) == kind).all()
    assert (counts.max(1) == 3).all()


def test_a_tone_has_its_pitch():
    wave, pitch = toys.tones(60, 1)
    peak = np.abs(np.fft.rfft(wave[..., 0], axis=1))[:, 1:].argmax(1) + 1
    found = np.abs(peak[:, None] - np.array([5, 11, 23, 41])).argmin(1)
    assert (found == pitch).all()


def test_a_box_lies_around_the_drawn_shape():
    drawn = toys.draw(40, 9)
    _, y = toys.boxes(40, 9)
    for i in range(40):
        (place,) = np.flatnonzero(y["classes"][i])
        assert y["classes"][i, place] == drawn["colour"][i] + 1
        cells, first = (8, 0) if place < 64 else (4, 64)
        row, column = divmod(place - first, cells)
        _, down, across, height, width = y["boxes"][i, place]
        centre = np.array([(row + down), (column + across)]) / cells * toys.SIZE
        half = np.array([height, width]) / 2 * toys.SIZE
        inside = np.argwhere(drawn["mask"][i]) + 0.5
        assert (np.abs(inside - centre) <= half + 1e-3).all()


def test_alike_pairs_have_one_colour():
    inputs, y = toys.pairs(60, 4)
    colour = []
    for name in ("first", "second"):
        pixels = inputs[name].reshape(60, -1, 3)
        bright = pixels[np.arange(60), pixels.max(-1).argmax(-1)]
        colour.append(np.abs(bright[:, None] - (2 * toys.COLOURS - 1)[None]).sum(-1).argmin(-1))
    assert ((colour[0] == colour[1]) == y).mean() > 0.97


def test_scores_are_one_for_the_truth_and_less_for_anything_else():
    _, y = toys.masks(16, 0)
    assert toys.overlap([np.eye(5)[y]], y) == 1.0
    assert toys.overlap([np.eye(5)[np.zeros_like(y)]], y) < 0.3
    small, image = toys.enlargements(16, 0)
    assert toys.sharpened([image], image) == 1.0
    assert small.shape == (16, 16, 16, 3)
    # Keras's own bilinear enlarging removes nothing of its own error.
    plain = keras.ops.convert_to_numpy(keras.ops.image.resize(small.astype("float32"), (32, 32)))
    assert abs(toys.sharpened([plain], image)) < 1e-4
    _, y = toys.boxes(16, 0)
    scores = np.eye(5)[y["classes"]]
    assert toys.detected([y["boxes"][..., 1:], scores], y) == 1.0
    assert toys.detected([y["boxes"][..., 1:] + 0.2, scores], y) == 0.0
    assert toys.detected([y["boxes"][..., 1:], scores[:, ::-1]], y) < 0.5


@pytest.mark.parametrize("key", OWN)
def test_own_networks_build_take_their_data_and_are_scored(key):
    entry = find(key)
    model = entry.build(keras)
    x, y = entry.data(8, 0)
    outputs = [keras.ops.convert_to_numpy(v) for v in keras.tree.flatten(model(x, training=False))]
    assert -100 < entry.score(outputs, y) <= 1
    assert model.count_params() < 200_000


def test_an_unknown_model_is_named():
    with pytest.raises(CompressionError, match="lstm_text"):
        find("lstm_txt")


def test_top1_counts_only_clear_samples():
    from models.zoo import steps

    wanted = np.array([[0.50, 0.48, 0.02], [0.10, 0.80, 0.10], [0.05, 0.05, 0.90], [0.34, 0.33, 0.33]])
    got = np.array([[0.48, 0.50, 0.02], [0.10, 0.80, 0.10], [0.60, 0.10, 0.30], [0.33, 0.34, 0.33]])
    row = steps.compared(find("subclassed"), [got], [wanted], [1 / 64])
    # Steps of 1/64: margins of 0.02 and 0.01 do not count; of the other two one agrees.
    assert row["counted"] == 0.5
    assert row["agreement"] == 0.5
    assert row["largest"] == pytest.approx(0.60 * 64)
    assert row["mean"] == pytest.approx(np.abs(got - wanted).mean() * 64)


@needs_tensorflow
def test_one_model_passes_whole(tmp_path):
    """The quick run of the smallest network, as the script does it, page included."""
    made = script()
    assert made.main(["--models", "two_inputs", "--quick", "--root", str(tmp_path)]) == 0
    folder = tmp_path / "build/zoo/quick/two_inputs"
    result = page.assembled("two_inputs", folder)
    for name, row in result["rows"].items():
        assert row["converts"], (name, row)
        assert row["bytes"] == (folder / f"{name}.tflite").stat().st_size
    assert result["rows"]["qat"]["largest"] <= 2
    assert result["rows"]["int8"]["bytes"] < result["rows"]["float32"]["bytes"]
    assert result["latency"]["float32"]["ratio"] == 1.0
    text = page.page([result])
    assert "two inputs, dict outputs" in text
    assert not (tmp_path / "docs").exists()
    # A second run finds everything stored.
    before = (folder / "ptq.json").stat().st_mtime_ns
    assert made.main(["--models", "two_inputs", "--quick", "--root", str(tmp_path)]) == 0
    assert (folder / "ptq.json").stat().st_mtime_ns == before


def test_a_page_says_why_a_cell_failed():
    (stored,) = [r for r in page.read(ROOT / "docs/results/models") if r["key"] == "two_inputs"] or [None]
    assert stored is not None
    broken = json.loads(json.dumps(stored))
    broken["rows"]["qat"] = {"converts": False, "reason": "the moon was full"}
    text = page.page([broken])
    assert "the moon was full" in text
    assert "fails" in text


def test_the_page_is_that_of_the_results(tmp_path):
    made = script()
    assert made.outdated(ROOT) is None, "run python tools/zoo.py --page"
    # And the check sees a difference.
    shutil.copytree(ROOT / "docs/results/models", tmp_path / "docs/results/models")
    (tmp_path / "docs/models.md").write_text("old")
    assert made.main(["--check", "--root", str(tmp_path)]) == 1


@pytest.mark.slow
@needs_tensorflow
@pytest.mark.parametrize("key", list(ENTRIES))
def test_the_zoo(key, tmp_path):
    made = script()
    assert made.main(["--models", key, "--steps", "float", "ptq", "qat", "latency", "--root", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"docs/results/models/{key}.json").read_text())
    entry = find(key)
    assert result["float"]["score"] >= entry.least
    stored = json.loads((ROOT / f"docs/results/models/{key}.json").read_text())
    for name, row in result["rows"].items():
        assert row["converts"] == stored["rows"][name]["converts"], (name, row.get("reason"))
        if row["converts"]:
            assert row["float"] == stored["rows"][name]["float"], name
