"""Settings for all tests: backend, threads, seeds, and fixtures that more than one package uses."""

import os
import signal
import threading

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(name, "1")

# A script that runs in the background passes an ignored Ctrl-C on, which tests of interruption send to their children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest


@pytest.fixture(autouse=True)
def _seeded(request):
    """The same random numbers whatever ran before, and no dtype policy left over from a test."""
    import numpy as np

    np.random.seed(0)  # noqa: NPY002 - for libraries that draw from the global state
    if "android_bench" in str(request.path):
        yield
        return
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)
