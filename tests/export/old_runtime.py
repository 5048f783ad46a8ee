"""tflite-runtime 2.14.0, the last of its name on PyPI and what phones in the field have, in an environment of its own."""

import json
import pathlib
import subprocess
import sys
import venv

import numpy as np
import pytest

_FOLDER = pathlib.Path(__file__).parents[2] / "build" / "tflite-runtime-2.14"
_PACKAGES = ("tflite-runtime==2.14.0", "numpy<2")
_PROGRAM = """
import json, sys
import numpy as np
from tflite_runtime.interpreter import Interpreter, OpResolverType

found = {}
for path, delegate in json.loads(sys.stdin.read()):
    kind = OpResolverType.AUTO if delegate else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        made = Interpreter(model_path=path, experimental_op_resolver_type=kind)
        made.allocate_tensors()
        inputs = np.load(path + ".in.npz")
        runner = made.get_signature_runner()
        count = len(inputs[inputs.files[0]])
        rows = [runner(**{name: inputs[name][i:i + 1] for name in inputs.files}) for i in range(count)]
        np.savez(path + f".out{int(delegate)}.npz", **{k: np.concatenate([row[k] for row in rows]) for k in rows[0]})
        found[f"{path} {int(delegate)}"] = "ok"
    except (RuntimeError, ValueError) as error:
        found[f"{path} {int(delegate)}"] = " ".join(str(error).split())
print(json.dumps(found))
"""


def python() -> pathlib.Path:
    """The environment's interpreter; the environment is made at the first call."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite-runtime 2.14.0 has wheels up to Python 3.11")
    found = _FOLDER / "bin" / "python"
    if not (_FOLDER / "done").exists():
        venv.create(_FOLDER, with_pip=True, clear=True)
        subprocess.run([found, "-m", "pip", "install", "--quiet", *_PACKAGES], check=True, timeout=600)
        (_FOLDER / "done").touch()
    return found


def run(files: list, inputs: dict[str, np.ndarray]) -> dict:
    """Run files on the same inputs, each with and without the default delegate.

    Returns:
        {(file, delegate): outputs by name, or the runtime's refusal as a string}.
    """
    jobs = [(str(path), delegate) for path in files for delegate in (True, False)]
    for path in files:
        np.savez(f"{path}.in.npz", **inputs)
    done = subprocess.run(
        [python(), "-c", _PROGRAM], input=json.dumps(jobs), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout.splitlines()[-1])
    found = {}
    for path, delegate in jobs:
        verdict = verdicts[f"{path} {int(delegate)}"]
        found[pathlib.Path(path), delegate] = (
            dict(np.load(f"{path}.out{int(delegate)}.npz")) if verdict == "ok" else verdict
        )
    return found
