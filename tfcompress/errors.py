"""The errors people read: what was wrong, where, and what to do about it."""

import importlib
from types import ModuleType


class CompressionError(ValueError):
    """Something the user gave or asked for cannot work; the message says what, where and what to do."""


class MissingExtra(CompressionError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say which extra of tfcompress brings it.

    Args:
        module: dotted name of the module to import.
        extra: the extra in setup.cfg that installs it.

    Raises:
        MissingExtra: the module is not installed.

    Example:
        >>> import_extra("json", extra="dev").dumps([1])
        '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise MissingExtra(
            f"This needs the package {module.split('.')[0]!r}, which is not installed. "
            f'Install it with: pip install "tfcompress[{extra}]"'
        ) from error


def nearest(name: str, known) -> str:
    """The end of an error sentence that names the closest valid spelling, or lists what there is.

    Example:
        >>> nearest("kernle", ["kernel", "bias"])
        "Did you mean 'kernel'?"
        >>> nearest("zzz", ["kernel", "bias"])
        'Known: bias, kernel.'
    """
    import difflib

    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}."
