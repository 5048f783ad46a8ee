"""Whole models through .tfcz: .keras weight for weight, .tflite byte for byte, weights by name; and what is refused."""

import io
import json
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest

from tests.codecs.samples import attempt, index_of, mutate, per_channel, rng, same, sealed, sparse
from tfcompress import codecs
from tfcompress.codecs import tflite as tflite_module
from tfcompress.codecs.bits import deflate, text, varint
from tfcompress.codecs.container import Reader
from tfcompress.codecs.sources import restore
from tfcompress.errors import CompressionError


def c30_model(values=None, seed=0):
    """Case C30: Dense(512) Dense(512) Dense(10) on 64 inputs, 90 % exact zeros."""
    import keras

    model = keras.Sequential([keras.Input((64,)), *(keras.layers.Dense(n) for n in (512, 512, 10))], name="c30")
    for number, layer in enumerate(model.layers):
        layer.kernel.assign(sparse(layer.kernel.shape, 0.1, values, seed=seed + number))
    return model


def weights_equal(a, b):
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("values", "bound"), [(None, 0.20), (16, 0.035)], ids=["random survivors", "16 shared values"])
def test_c30_storage_of_zeros(values, bound, tmp_path):
    import keras

    model = c30_model(None if values is None else rng(5).standard_normal(values))
    file = tmp_path / "m.keras"
    model.save(file)
    # Zeros alone are not compression: the .keras file is as large as that of dense weights.
    dense = tmp_path / "dense.keras"
    keras.models.clone_model(model).save(dense)
    assert abs(file.stat().st_size - dense.stat().st_size) < 500

    report = codecs.pack(file)
    packed = tmp_path / "m.tfcz"
    assert report.file_bytes == packed.stat().st_size
    assert report.source_bytes == file.stat().st_size
    assert packed.stat().st_size <= bound * file.stat().st_size
    assert report.ratio == pytest.approx(file.stat().st_size / packed.stat().st_size)

    again = keras.saving.load_model(codecs.unpack(packed, tmp_path / "again.keras"))
    assert weights_equal(model.get_weights(), again.get_weights())
    x = rng(9).random((4, 64), np.float32)
    assert same(model.predict(x, verbose=0), again.predict(x, verbose=0))


def test_c30_a_tflite_file_of_zeros_unpacks_byte_for_byte(tmp_path, tflite_file):
    report = codecs.pack(tflite_file, tmp_path / "m.tfcz")
    assert report.file_bytes <= 0.035 * tflite_file.stat().st_size
    back = codecs.unpack(tmp_path / "m.tfcz", tmp_path / "again.tflite")
    assert back.read_bytes() == tflite_file.read_bytes()


@pytest.fixture(scope="module")
def tflite_file(tmp_path_factory):
    """C30's model as a float32 .tflite, with 16 shared values."""
    import tensorflow as tf

    weights = c30_model(rng(5).standard_normal(16)).get_weights()

    @tf.function(input_signature=[tf.TensorSpec((1, 64), tf.float32)])
    def call(x):
        for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
            x = tf.nn.relu(x @ tf.constant(kernel) + tf.constant(bias))
        return x

    converter = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()])
    path = tmp_path_factory.mktemp("tflite") / "m.tflite"
    path.write_bytes(converter.convert())
    return path


def test_constants_of_a_tflite_are_read_by_name_and_shape(tmp_path, tflite_file):
    codecs.pack(tflite_file, tmp_path / "m.tfcz")
    back = codecs.read(tmp_path / "m.tfcz")
    kernels = [array for array in back.values() if array.ndim == 2]
    expected = [layer.kernel.numpy().T for layer in c30_model(rng(5).standard_normal(16)).layers]
    assert sorted(k.shape for k in kernels) == sorted(k.shape for k in expected)
    assert all(any(same(k, np.ascontiguousarray(e)) for e in expected) for k in kernels)


def test_any_bytes_in_a_tflite_are_kept(tmp_path, tflite_file):
    data = bytearray(tflite_file.read_bytes())
    found = tflite_module.constants(bytes(data), "m")
    largest = max(found, key=lambda c: c.end - c.start)
    data[largest.start : largest.start + 400] = np.full(100, np.nan, np.float32).tobytes()
    file = tmp_path / "nan.tflite"
    file.write_bytes(data)
    codecs.pack(file)
    assert codecs.unpack(tmp_path / "nan.tfcz", tmp_path / "b.tflite").read_bytes() == bytes(data)


def test_damaged_tflite_files_are_refused_or_kept_byte_for_byte(tflite_file):
    data = tflite_file.read_bytes()
    kept = [constant for constant in tflite_module.constants(data, "m") if constant.start > 0]
    small = data[: kept[0].start] + data[kept[-1].end :]
    draw = rng(3)
    for _ in range(2000):
        damaged = mutate(small, draw)
        found, message = attempt(lambda damaged=damaged: tflite_module.constants(damaged, "m.tflite"))
        if message is not None:
            assert "m.tflite" in message
            continue
        parts = [damaged[c.start : c.end] for c in found]
        frame, rest = tflite_module.layout(damaged, found), tflite_module.between(damaged, found)
        assert tflite_module.rebuild(frame, rest, parts, len(damaged)) == damaged


def test_not_a_tflite(tmp_path):
    file = tmp_path / "m.tflite"
    file.write_bytes(b"hello, this is text")
    with pytest.raises(CompressionError, match="lacks the mark TFL3"):
        codecs.pack(file)
    assert not (tmp_path / "m.tfcz").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A compiled and trained model with batch norm, two convolutions, and its file."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, name="stem"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    model.compile("adam", "mse")
    model.fit(rng().random((16, 8, 8, 3)), rng().random((16, 4)), verbose=0)
    model.layers[0].kernel.assign(per_channel((3, 3, 3, 8)))
    path = tmp_path_factory.mktemp("keras") / "m.keras"
    model.save(path)
    return model, path


def test_the_optimizer_is_dropped_unless_asked_for(trained, tmp_path):
    import keras

    model, file = trained
    without = codecs.pack(file, tmp_path / "a.tfcz")
    assert not any("optimizer" in row.name for row in without.rows)
    assert without.source_bytes < file.stat().st_size
    out = codecs.unpack(tmp_path / "a.tfcz")
    assert out == tmp_path / "a.keras"
    assert without.source_bytes == out.stat().st_size
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        again = keras.saving.load_model(out)
    assert weights_equal(model.get_weights(), again.get_weights())
    assert again.loss == "mse"

    kept = codecs.pack(file, tmp_path / "b.tfcz", optimizer=True)
    assert kept.source_bytes == file.stat().st_size
    resumed = keras.saving.load_model(codecs.unpack(tmp_path / "b.tfcz"))
    ours, theirs = resumed.optimizer.variables, model.optimizer.variables
    assert weights_equal([v.numpy() for v in ours], [v.numpy() for v in theirs])


def test_config_and_metadata_are_kept_to_the_byte(trained, tmp_path):
    _, file = trained
    codecs.pack(file, tmp_path / "a.tfcz")
    codecs.unpack(tmp_path / "a.tfcz", tmp_path / "a.keras")
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(tmp_path / "a.keras") as after:
        assert set(before.namelist()) == set(after.namelist())
        for name in ("config.json", "metadata.json"):
            assert before.read(name) == after.read(name)


def test_groups_and_attributes_are_kept(trained, tmp_path):
    _, file = trained
    codecs.pack(file, tmp_path / "a.tfcz", optimizer=True)
    codecs.unpack(tmp_path / "a.tfcz", tmp_path / "a.keras")

    def listing(path):
        with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as root:
            found = {"": dict(root.attrs)}
            root.visititems(lambda name, item: found.update({name: {k: str(v) for k, v in item.attrs.items()}}))
            return found

    assert listing(file) == listing(tmp_path / "a.keras")


def test_a_model_in_memory_is_packed_like_its_file(trained, tmp_path):
    model, file = trained
    report = codecs.pack(model, tmp_path / "a.tfcz")
    assert report.source == f"model {model.name!r}"
    assert [row.coding for row in report.rows].count("integer grid") == 1
    with pytest.raises(CompressionError, match="give the path"):
        codecs.pack(model)
    assert codecs.pack(file, tmp_path / "b.tfcz").rows == report.rows


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_models(dtype, tmp_path):
    import keras

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, dtype=dtype)])
    model.save(tmp_path / "a.keras")
    codecs.pack(tmp_path / "a.keras")
    again = keras.saving.load_model(codecs.unpack(tmp_path / "a.tfcz", tmp_path / "b.keras"))
    assert again.layers[0].kernel.dtype == dtype
    before, after = (np.asarray(m.layers[0].kernel.value).tobytes() for m in (model, again))
    assert before == after


def test_weights_h5_and_npz(trained, tmp_path):
    import keras

    model, _ = trained
    model.save_weights(tmp_path / "a.weights.h5")
    report = codecs.pack(tmp_path / "a.weights.h5")
    assert report.path == str(tmp_path / "a.tfcz")
    other = keras.models.clone_model(model)
    other.load_weights(codecs.unpack(tmp_path / "a.tfcz", tmp_path / "b.weights.h5"))
    assert weights_equal(model.get_weights(), other.get_weights())

    arrays = {"layer/kernel": sparse((30, 40), 0.2), "file": np.arange(3), "half": np.ones(3, np.float16)}
    np.savez(tmp_path / "c.npz", **{"layer/kernel": arrays["layer/kernel"], "half": arrays["half"]})
    codecs.pack(arrays, tmp_path / "c.tfcz")
    with np.load(codecs.unpack(tmp_path / "c.tfcz", tmp_path / "d.npz")) as back:
        assert all(same(back[name], array) for name, array in arrays.items())
    codecs.pack(tmp_path / "c.npz", tmp_path / "e.tfcz")
    assert same(codecs.read(tmp_path / "e.tfcz")["layer/kernel"], arrays["layer/kernel"])


@pytest.mark.paper(12)
def test_nan_is_refused_by_name(tmp_path):
    import keras

    bad = sparse((10, 10), 0.5)
    bad[3, 4] = np.nan
    with pytest.raises(CompressionError, match=r"Tensor 'dense\.kernel' of the weights has 1 NaN values among 100"):
        codecs.pack({"ok": np.ones(3, np.float32), "dense.kernel": bad}, tmp_path / "a.tfcz")
    model = keras.Sequential([keras.Input((10,)), keras.layers.Dense(10)])
    model.layers[0].kernel.assign(bad)
    model.save(tmp_path / "m.keras")
    with pytest.raises(CompressionError, match=r"Tensor 'layers/dense/vars/0' of .*m\.keras has 1 NaN"):
        codecs.pack(tmp_path / "m.keras")
    assert not (tmp_path / "a.tfcz").exists()
    assert not (tmp_path / "m.tfcz").exists()


def test_ratio_is_taken_against_the_file_that_is_named(trained, tmp_path, tflite_file):
    _, file = trained
    report = codecs.pack(tflite_file, tmp_path / "a.tfcz", against=file)
    assert report.ratio == file.stat().st_size / (tmp_path / "a.tfcz").stat().st_size
    assert "against the file given" in str(report)
    with pytest.raises(CompressionError, match="Cannot read"):
        codecs.pack(file, tmp_path / "b.tfcz", against=tmp_path / "none.keras")


def test_counts_have_their_own_names_and_negative_zeros_are_pointed_out(tmp_path):
    kernel = rng().standard_normal((100, 100)).astype(np.float32) * (rng(1).random((100, 100)) < 0.1)
    report = codecs.pack({"kernel": kernel}, tmp_path / "a.tfcz")
    row = report.rows[0]
    assert row.negative_zeros == int(np.signbit(kernel[kernel == 0]).sum())
    assert row.nonzeros == np.count_nonzero(kernel)
    assert row.distinct == np.unique(kernel.view(np.uint32)).size
    assert "zeros are negative" in str(report)
    assert "nonzeros" in str(report)
    clean = codecs.pack({"kernel": kernel + np.float32(0)}, tmp_path / "b.tfcz")
    assert "zeros are negative" not in str(clean)
    assert clean.file_bytes < report.file_bytes


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("m.keras", b"not a zip", "is not a whole .keras file"),
        ("m.weights.h5", b"not HDF5", "no readable HDF5"),
        ("m.npz", b"not an npz", "not an .npz of arrays"),
        ("m.onnx", b"", "none of the files that can be packed"),
    ],
)
def test_files_that_are_not_what_they_are_named(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CompressionError, match=words):
        codecs.pack(tmp_path / name)


def test_other_refusals(tmp_path):
    with pytest.raises(CompressionError, match=r"Cannot read .*none\.keras"):
        codecs.pack(tmp_path / "none.keras")
    with pytest.raises(CompressionError, match=r"Cannot read .*none\.tfcz"):
        codecs.read(tmp_path / "none.tfcz")
    with pytest.raises(CompressionError, match="Cannot pack a list"):
        codecs.pack([1, 2], tmp_path / "a.tfcz")
    with pytest.raises(CompressionError, match="'words' has dtype"):
        codecs.pack({"words": np.array(["a"])}, tmp_path / "a.tfcz")
    with pytest.raises(CompressionError, match=r"has to be called \.tfcz"):
        codecs.pack({"a": np.ones(3)}, tmp_path / "a.keras")
    with pytest.raises(CompressionError, match="must be strings; received 1"):
        codecs.pack({1: np.ones(3)}, tmp_path / "a.tfcz")
    codecs.pack({"a": np.ones(3, np.float32)}, tmp_path / "a.tfcz")
    with pytest.raises(CompressionError, match=r"holds a \.npz file; .* has another suffix"):
        codecs.unpack(tmp_path / "a.tfcz", tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "z.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(CompressionError, match=r"no model\.weights\.h5"):
        codecs.pack(tmp_path / "z.keras")
    with h5py.File(tmp_path / "s.weights.h5", "w") as root:
        root["a"] = np.ones(3)
        root["link"] = h5py.SoftLink("/a")
    with pytest.raises(CompressionError, match="'link' is a link"):
        codecs.pack(tmp_path / "s.weights.h5")


def test_tensors_may_be_called_like_parts_of_the_file(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as root:
        root["skeleton"] = np.ones(3)
    codecs.pack(tmp_path / "a.weights.h5")
    with h5py.File(codecs.unpack(tmp_path / "a.tfcz", tmp_path / "b.weights.h5")) as root:
        assert root["skeleton"][()].tolist() == [1, 1, 1]


def with_blob(data, name, change):
    """The file with one blob changed, under right checksums."""
    reader = Reader(io.BytesIO(data), "a")
    offset, index = index_of(data)
    entry = reader.blobs[name]
    plain = change(reader.blob(name))
    packed = deflate(plain, 3)
    old = b"\1" + text(name) + varint(entry.raw_bytes) + varint(entry.bytes) + struct.pack("<I", entry.crc)
    new = b"\1" + text(name) + varint(len(plain)) + varint(len(packed)) + struct.pack("<I", zlib.crc32(packed))
    assert old in index
    sections = data[8 : entry.offset] + packed + data[entry.offset + entry.bytes : offset]
    return sealed(sections, index.replace(old, new))


def test_unpacking_altered_skeletons_never_crashes(trained):
    model_data = codecs.dumps(trained[1])
    draw = rng(21)
    outcomes = set()
    for number in range(300):
        blob = "skeleton" if number % 3 else "members"
        data = with_blob(model_data, blob, lambda plain: mutate(plain, draw))
        _, message = attempt(lambda data=data: restore(Reader(io.BytesIO(data), "a.tfcz"), io.BytesIO()))
        assert message is None or "a.tfcz" in message
        outcomes.add(message is None)
    assert outcomes == {True, False}


def test_a_skeleton_as_deep_as_it_likes_is_refused():
    data = codecs.dumps({"a": np.ones(3, np.float32)})
    reader = Reader(io.BytesIO(data), "a.tfcz")
    reader.kind = "h5"
    reader.blob = lambda name: b"[" * 100_000
    with pytest.raises(CompressionError, match="skeleton cannot be read"):
        restore(reader, io.BytesIO())


def test_altered_layout_of_a_tflite_is_refused(tflite_file):
    data = codecs.dumps(tflite_file)
    for change in (lambda p: p[:-1], lambda p: p[:4] + b"\0" + p[5:], lambda p: p[:-1] + bytes([p[-1] ^ 1])):
        with pytest.raises(CompressionError, match=r"a\.tfcz is damaged: section 'layout'"):
            restore(Reader(io.BytesIO(with_blob(data, "layout", change)), "a.tfcz"), io.BytesIO())


def test_reading_a_keras_file_does_not_import_keras(tmp_path):
    import subprocess
    import sys

    file = tmp_path / "a.keras"
    weights = io.BytesIO()
    with h5py.File(weights, "w") as root:
        root["layers/dense/vars/0"] = np.ones((3, 3), np.float32)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.h5", weights.getvalue())
    code = (
        "import sys, types, pathlib\n"
        "root = types.ModuleType('tfcompress'); root.__path__ = [sys.argv[1]]; sys.modules['tfcompress'] = root\n"
        "from tfcompress import codecs\n"
        "codecs.pack(sys.argv[2]); codecs.unpack(sys.argv[2][:-5] + 'tfcz', sys.argv[2] + '.keras')\n"
        "assert not {'keras', 'tensorflow', 'jax'} & set(sys.modules), 'imported'\n"
    )
    package = str(codecs.__path__[0]).rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", code, package, str(file)], check=True)
    assert (tmp_path / "a.keras.keras").exists()
