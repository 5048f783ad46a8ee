"""The private Keras names that tfcompress uses are all in one file, and are there."""

import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfcompress
from tfcompress import _keras_compat

ROOT = pathlib.Path(tfcompress.__file__).parent

# One use of each wrapper that a whole model's tests might not reach first, for a release that moves a name.
PROBE = """
import keras, numpy as np, tfcompress
from tfcompress import pruning, quantization, schedules
x = np.random.default_rng(0).normal(size=(16, 6, 6, 2)).astype("float32")
model = keras.Sequential([
    keras.Input((6, 6, 2)), keras.layers.Conv2D(4, 3, use_bias=False), keras.layers.BatchNormalization(),
    keras.layers.ReLU(), keras.layers.Flatten(), keras.layers.Dense(3),
])
model.compile("adam", "mse")
small = tfcompress.apply(model, pruning.Magnitude(sparsity=schedules.Linear(0, 0.5, steps=2)), verbose=0)
small.fit(x, np.ones((16, 3)), batch_size=8, verbose=0, callbacks=[tfcompress.Compression()])
both = tfcompress.apply(small, quantization.QAT(), data=x, verbose=0)
both.fit(x, np.ones((16, 3)), batch_size=8, verbose=0, callbacks=[tfcompress.Compression()])
both.save("attached.keras")
again = keras.models.load_model("attached.keras")
assert np.array_equal(np.asarray(both(x)), np.asarray(again(x)))
plain = tfcompress.finalize(again, verbose=0)
print(keras.__version__, plain.count_params())
"""


def test_no_other_file_imports_private_keras():
    pattern = re.compile(r"keras\.src|from keras\._")
    guilty = [
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if path.name != "_keras_compat.py" and pattern.search(path.read_text())
    ]
    assert not guilty


@pytest.mark.jax
def test_wrappers_do_what_they_say():
    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    assert [v.name for v in _keras_compat.own_variables(layer)] == ["kernel", "bias"]
    assert _keras_compat.values_readable()
    assert not _keras_compat.training_now()
    assert np.array_equal(_keras_compat.read(layer.kernel), keras.ops.convert_to_numpy(layer.kernel))
    kernel = layer.kernel
    _keras_compat.untrack(layer, kernel)
    assert [v.name for v in layer.weights] == ["bias"]
    _keras_compat.track(layer, kernel)
    assert {v.name for v in layer.weights} == {"kernel", "bias"}
    assert keras.__version__.split(".")[:2] == _keras_compat.CHECKED_WITH.split(".")[:2]


@pytest.mark.slow
def test_the_newest_keras(tmp_path):
    """Pruning, QAT, saving and finalizing with the newest release of Keras that the index has."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "new"), "keras"]
    subprocess.run(install, check=True, timeout=600)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**__import__("os").environ, "PYTHONPATH": f"{tmp_path / 'new'}:{ROOT.parent}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
