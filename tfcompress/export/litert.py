"""The one place that knows which LiteRT is installed: ai-edge-litert, else tflite-runtime, else tf.lite."""

import functools
import importlib
import importlib.metadata
import pathlib
import warnings
from types import ModuleType
from typing import Any

import numpy as np

from tfcompress.errors import CompressionError, MissingExtra

_INTERPRETERS = {
    "ai_edge_litert": ("ai_edge_litert.interpreter", "ai-edge-litert"),
    "tflite_runtime": ("tflite_runtime.interpreter", "tflite-runtime"),
    "tf.lite": ("tensorflow.lite.python.interpreter", "tensorflow"),
}
_SCHEMAS = ("ai_edge_litert.schema_py_generated", "tensorflow.lite.python.schema_py_generated")


@functools.cache
def _runtime() -> tuple[str, ModuleType, str]:
    for name, (module, package) in _INTERPRETERS.items():
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        return name, found, importlib.metadata.version(package)
    raise MissingExtra('Running a .tflite file needs LiteRT. Install it with: pip install "tfcompress[export]"')


@functools.cache
def schema() -> ModuleType:
    """The generated classes of the .tflite flatbuffer (ModelT, TensorT, BuiltinOperator, ...)."""
    for module in _SCHEMAS:
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise MissingExtra('Reading a .tflite file needs its schema. Install it with: pip install "tfcompress[export]"')


def version() -> str:
    """Name and version of the runtime that runs the files, e.g. 'ai_edge_litert 2.3.0'."""
    name, _, number = _runtime()
    return f"{name} {number}"


def interpreter(content, *, delegate: bool = True, threads: int = 1, keep_tensors: bool = False) -> Any:
    """An interpreter with its tensors allocated.

    Args:
        content: path of a .tflite file, or its bytes.
        delegate: with the default delegate (XNNPACK), or with the built-in kernels alone.
        threads: CPU threads. keep_tensors: keep the values of intermediate tensors readable after a run.

    Raises:
        CompressionError: the runtime refuses the file; the message holds the runtime's own sentence.
    """
    _, module, _ = _runtime()
    resolver = module.OpResolverType.AUTO if delegate else module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    arguments: dict = {"model_content": bytes(content)} if _is_bytes(content) else {"model_path": str(content)}
    if not _is_bytes(content) and not pathlib.Path(content).is_file():
        raise CompressionError(f"There is no file {content}.")
    with warnings.catch_warnings():
        # The runtimes warn that kept tensors cost memory (which is what is asked for) and that tf.lite will go.
        warnings.simplefilter("ignore")
        try:
            made = module.Interpreter(
                **arguments,
                num_threads=threads,
                experimental_op_resolver_type=resolver,
                experimental_preserve_all_tensors=keep_tensors,
            )
            made.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            kernels = "the default delegate (XNNPACK)" if delegate else "the built-in kernels"
            raise CompressionError(f"{version()} with {kernels} refuses the file: {_sentence(error)}") from error
    return made


def invoke(made, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Run an interpreter once on raw tensors in the order of the file's inputs, and copy its outputs.

    Raises:
        CompressionError: an operator fails while it runs.
    """
    for detail, value in zip(made.get_input_details(), inputs, strict=True):
        made.set_tensor(detail["index"], np.ascontiguousarray(value, detail["dtype"]).reshape(detail["shape"]))
    try:
        made.invoke()
    except (RuntimeError, ValueError) as error:
        raise CompressionError(f"{version()} fails while it runs the file: {_sentence(error)}") from error
    return [np.array(made.get_tensor(detail["index"])) for detail in made.get_output_details()]


def _is_bytes(content) -> bool:
    return isinstance(content, bytes | bytearray | memoryview)


def _sentence(error: Exception) -> str:
    """The runtime's message on one line."""
    return " ".join(str(error).split())
