"""The converter process: real crashes, time limits, restarts, and the fall-backs that are named (case C23)."""

import os
import signal
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest

from tfcompress import export
from tfcompress.errors import CompressionError
from tfcompress.export import savedmodel
from tfcompress.export.worker import Worker, WorkerCrash, WorkerError, WorkerTimeout

layers = keras.layers


@pytest.fixture(scope="module")
def recurrent():
    keras.utils.set_random_seed(0)
    x = keras.Input((10, 4), name="x")
    return keras.Model(x, layers.Dense(3, name="y")(layers.LSTM(8, name="l")(x)))


def test_c23_a_crash_of_the_stock_converter_is_an_error_and_not_the_end(worker, recurrent, tmp_path):
    """The segmentation fault that ends Python elsewhere: stock int8 conversion of a rolled LSTM."""
    savedmodel.write(recurrent, savedmodel.signature(recurrent, None, 1), tmp_path / "saved")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(8, 10, 4)).astype(np.float32))
    starts = worker.starts
    with pytest.raises(WorkerCrash, match=r"died during 'stock' \(SIG") as caught:
        worker.request(
            "stock",
            saved_model=str(tmp_path / "saved"),
            out=str(tmp_path / "o.tflite"),
            precision="int8",
            data=str(tmp_path / "data.npz"),
        )
    assert "log" in str(caught.value)
    # The next request starts a new process and works.
    worker.request("convert", saved_model=str(tmp_path / "saved"), out=str(tmp_path / "f.tflite"))
    assert worker.starts == max(starts, 1) + 1
    assert (tmp_path / "f.tflite").stat().st_size > 1000


@pytest.fixture
def dying(worker, monkeypatch):
    """The worker, whose process is killed while it works on its next conversion."""
    request, killed = worker.request, []

    def kill():
        for _ in range(3000):
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGKILL)
                return
            time.sleep(0.01)

    def deadly(do, timeout=None, **arguments):
        if do == "convert" and not killed:
            killed.append(do)
            threading.Timer(0.0, kill).start()
        return request(do, timeout, **arguments)

    monkeypatch.setattr(worker, "request", deadly)
    return worker


def test_c23_a_crash_in_the_float_conversion_falls_back_to_unrolling(dying, recurrent, tmp_path):
    data = np.random.default_rng(0).normal(size=(8, 10, 4)).astype(np.float32)
    report = export.tflite(recurrent, tmp_path / "f.tflite", samples=data, worker=dying, verbose=0)
    assert "SIGKILL" in report.fallbacks[0]
    assert "unrolled" in report.fallbacks[0]
    assert "WHILE" not in report.verification.census.operators
    assert report.verification.max_error < 1e-5


def test_a_crash_without_a_fall_back_is_a_clear_error(dying, convnet, images, tmp_path):
    with pytest.raises(CompressionError, match="SIGKILL"):
        export.tflite(convnet, tmp_path / "f.tflite", samples=images, worker=dying, verbose=0)
    assert not (tmp_path / "f.tflite").exists()


def test_a_time_limit_ends_the_process(tmp_path):
    worker = Worker()
    try:
        with pytest.raises(WorkerTimeout, match="larger timeout"):
            worker.request("smoke", 0.05, path=str(tmp_path / "none.tflite"), delegate=True)
        assert worker.pid is None
    finally:
        worker.close()


def test_a_refusal_leaves_the_process_alive(worker, tmp_path):
    with pytest.raises(WorkerError):
        worker.request("convert", saved_model=str(tmp_path / "missing"), out=str(tmp_path / "o.tflite"))
    pid = worker.pid
    assert pid is not None
    with pytest.raises(WorkerError, match="no file"):
        worker.request("smoke", path=str(tmp_path / "missing.tflite"), delegate=True)
    assert worker.pid == pid


def test_an_operator_without_kernel_is_named(worker, tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Lambda(keras.ops.erf, name="bell")(x))
    with pytest.raises(CompressionError, match=r"no kernel for Erf.*custom_ops"):
        export.tflite(model, tmp_path / "e.tflite", worker=worker, verbose=0)
    report = export.tflite(model, tmp_path / "e.tflite", custom_ops=True, worker=worker, verbose=0)
    assert report.verification is None
    assert any("Erf need the plug-in" in note for note in report.notes)
    assert export.inspect(tmp_path / "e.tflite").census.operators == {"Erf": 1}
    with pytest.raises(CompressionError, match="Erf"):
        export.tflite(
            model,
            tmp_path / "i.tflite",
            "int8",
            calibration=np.ones((4, 4), np.float32),
            custom_ops=True,
            worker=worker,
            verbose=0,
        )


_JAX_SESSION = """
import keras, numpy as np
from tfcompress import export
from tfcompress.export.worker import shared
from tfcompress.errors import CompressionError
class Own(keras.layers.Layer):
    def call(self, x): return x + 1.0
x = keras.Input((6,), name="x")
y = keras.layers.Dense(5, activation="relu", name="a")(x)
data = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
model = keras.Model(x, keras.layers.Dense(3, name="b")(y))
report = export.tflite(model, "{folder}/j.tflite", "int8", calibration=data, verbose=0)
print(keras.backend.backend(), report.verification.max_error, report.verification.agreement)
try:
    export.tflite(keras.Model(x, Own()(y)), "{folder}/k.tflite", samples=data, verbose=0)
except CompressionError as error:
    print(" ".join(str(error).split()))
print(shared().pid, shared()._log)
"""


@pytest.fixture(scope="module")
def jax_session(tmp_path_factory):
    """Lines printed by a session on the JAX backend; one process, since its imports take most of the time."""
    code = _JAX_SESSION.format(folder=tmp_path_factory.mktemp("jax"))
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_model_trained_on_jax_is_exported_through_its_keras_file(jax_session):
    backend, error, agreement = jax_session[0].split()
    assert backend == "jax"
    assert float(error) < 0.02
    assert float(agreement) == 1.0


def test_on_jax_a_class_that_the_worker_cannot_load_is_a_clear_error(jax_session):
    assert jax_session[1].startswith("On the jax backend")
    assert "Own" in jax_session[1]
    assert "KERAS_BACKEND=tensorflow" in jax_session[1]


def test_the_converter_process_ends_with_its_parent(jax_session):
    pid, log = jax_session[2].split()
    assert not os.path.exists(log)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
