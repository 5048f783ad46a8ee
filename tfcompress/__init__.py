"""tfcompress: takes a Keras 3 model to a phone, smaller and faster, with proof.

Nothing heavy is imported here. What a saved model needs is registered with Keras as soon as both are imported, in
whichever order.
"""

import importlib
import importlib.abc
import importlib.util
import pkgutil
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
    "search",
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
    core = importlib.import_module("tfcompress.core")
    parts = [f"core.{module.name}" for module in pkgutil.iter_modules(core.__path__)]
    for name in ("carriers", *parts, "layers", *_METHODS):
        importlib.import_module(f"tfcompress.{name}")


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Lets `import keras` run as it would, and registers our classes when it is done.

    If it is a module of ours that imports keras first, that module has to be complete before others can import it: the
    classes are then registered when the outermost import of ours ends.
    """

    depth, waiting, busy = 0, False, False

    def find_spec(self, name, path=None, target=None):
        if self.busy or (name != "keras" and not name.startswith("tfcompress.")):
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def done(self, name):
        """Register the classes if this was the import that they wait for."""
        self.waiting = self.waiting or name == "keras"
        if self.waiting and not self.depth:
            sys.meta_path.remove(self)
            _register()


class _Loader(importlib.abc.Loader):
    """A loader that tells `_AfterKeras` when its module is complete."""

    def __init__(self, loader, owner):
        self.loader, self.owner = loader, owner

    def __getattr__(self, name):
        # What else loaders have: `python -m` asks for get_code, and reading package data for get_resource_reader.
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        ours = module.__name__ != "keras"
        self.owner.depth += ours
        try:
            self.loader.exec_module(module)
        finally:
            self.owner.depth -= ours
        self.owner.done(module.__name__)


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _AfterKeras())
