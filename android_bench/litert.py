"""The one place that chooses an interpreter: LiteRT, else tflite_runtime, else the one inside TensorFlow."""

import dataclasses
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from android_bench.errors import BenchError

# Package to find, module with the interpreter, name of the distribution.
_CHOICES = (
    ("ai_edge_litert", "ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime", "tflite_runtime.interpreter", "tflite-runtime"),
    ("tensorflow", "tensorflow.lite", "tensorflow"),
)


@dataclasses.dataclass(frozen=True)
class Runtime:
    """An installed TFLite runtime.

    Args:
        name: its package. version: its version.
        folder: where the package lies.
        module: dotted name of the module that holds the Interpreter.
    """

    name: str
    version: str
    folder: pathlib.Path
    module: str

    def interpreter(self) -> Callable[..., Any]:
        """The Interpreter class; this imports the runtime."""
        return importlib.import_module(self.module).Interpreter

    def library(self) -> pathlib.Path | None:
        """The shared library that runs the models, where the package has one that is known."""
        for pattern in ("libLiteRt.so", "libLiteRt.dylib", "_pywrap_tensorflow_interpreter_wrapper*"):
            for path in sorted(self.folder.glob(pattern)):
                return path
        return None

    def facts(self) -> dict:
        """Name, version, and the hash of the library: differently built runtimes differ in speed."""
        library = self.library()
        digest = hashlib.sha256(library.read_bytes()).hexdigest() if library else None
        return {"runtime": self.name, "runtime_version": self.version, "runtime_sha256": digest}


def runtime() -> Runtime:
    """The first runtime that is installed. Nothing is imported yet.

    Raises:
        BenchError: there is none; the message names the extra.
    """
    for package, module, distribution in _CHOICES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        return Runtime(package, version, pathlib.Path(next(iter(spec.submodule_search_locations))), module)
    raise BenchError(
        "No TFLite runtime is installed (looked for ai_edge_litert, tflite_runtime, tensorflow). "
        'Install one with: pip install "tfcompress[bench]"'
    )
