"""Writing files so that an interrupted write or a full disk leaves the old file intact."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from tfcompress.errors import CompressionError


@contextlib.contextmanager
def replacing(path) -> Iterator[pathlib.Path]:
    """Give a temporary path beside `path`, which takes its place when the block ends without an error.

    Args:
        path: the file to write; its folder is made when missing.

    Raises:
        CompressionError: the folder cannot be written or the disk is full; `path` is then as it was.

    Example:
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp(), "a.txt")
        >>> with replacing(target) as part:
        ...     _ = part.write_text("done")
        >>> target.read_text()
        'done'
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Same folder, so that the rename is atomic; same suffix, since Keras and NumPy look at it.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise CompressionError(f"Cannot write {path}: {error.strerror or error}.") from error
    os.close(handle)
    part = pathlib.Path(name)
    try:
        yield part
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except OSError as error:
        raise CompressionError(
            f"Cannot write {path}: {error.strerror or error}. The old file, if any, is intact."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path, data: bytes) -> None:
    """Write `data` to `path` by `replacing` it."""
    with replacing(path) as part:
        part.write_bytes(data)
