"""tfcompress: takes a Keras 3 model to a phone, smaller and faster, with proof.

Nothing heavy is imported here. What a saved model needs is registered with Keras as soon as both are imported, in
whichever order.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.1.0"

_WHERE = {
    "Compression": "callbacks",
    "CompressionError": "errors",
    "Method": "method",
    "Parametrization": "parametrization",
    "Recipe": "recipe",
    "apply": "method",
    "deparametrize": "parametrization",
    "finalize": "method",
    "parametrize": "parametrization",
    "step": "method",
    "summary": "method",
}
_METHODS = ("distillation", "pruning", "quantization", "factorization", "sparsity")
_PACKAGES = (
    *_METHODS,
    "codecs",
    "core",
    "cost",
    "export",
    "graph",
    "kernels",
    "layers",
    "report",
    "schedules",
    "select",
)
__all__ = [*_WHERE, *_PACKAGES]


def __getattr__(name):
    if name in _WHERE:
        return getattr(importlib.import_module(f"tfcompress.{_WHERE[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"tfcompress.{name}")
    raise AttributeError(f"module 'tfcompress' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])


def _register() -> None:
    """Import the modules whose classes saved models name."""
    for name in ("carriers", "layers", *_METHODS):
        importlib.import_module(f"tfcompress.{name}")


class _AfterKeras(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import keras` run as it would, and registers our classes when it is done."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("keras")
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterKeras())
