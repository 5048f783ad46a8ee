"""Reading what was given and writing so that an interrupted write or a full disk leaves the old file intact."""

import hashlib
import os
import pathlib
import tempfile

from android_bench.errors import BenchError, UsageError

_IDENTIFIER = b"TFL3"


def write_text(path, text: str) -> None:
    """Write `text` to `path` in one step: the file is either the old one or the whole new one.

    Args:
        path: the file to write; its folder is made when missing.
        text: the new content.

    Raises:
        BenchError: the folder cannot be written or the disk is full; `path` is then as it was.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp(), "record.json")
        >>> write_text(target, "{}")
        >>> target.read_text()
        '{}'
    """
    path = pathlib.Path(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
        part = pathlib.Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        raise BenchError(f"Cannot write {path}: {error.strerror or error}. The old file, if any, is intact.") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def describe_model(path) -> dict:
    """The facts of a .tflite file that need no runtime: name, size, hash.

    Args:
        path: the file.

    Returns:
        {"name", "bytes", "sha256"}.

    Raises:
        UsageError: there is no such file.
        BenchError: the file is not a TFLite flatbuffer.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    data = path.read_bytes()
    if data[4:8] != _IDENTIFIER:
        hint = " It looks like a Keras file: export it first." if path.suffix in (".keras", ".h5") else ""
        raise BenchError(f"{path} is not a .tflite file: bytes 4 to 7 must read TFL3, they are {data[4:8]!r}.{hint}")
    return {"name": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
