"""What the commands of `tfcompress` do, once their arguments are read. Everything heavy is imported from here on."""

import dataclasses
from typing import Any

from tfcompress.errors import CompressionError


class UsageError(CompressionError):
    """The request itself is wrong (a missing file, a wrong combination of options): nothing was tried."""


@dataclasses.dataclass
class Result:
    """What a command found.

    Args:
        shown: text or rich renderables, for people. data: plain values, for --json. failed: whether the exit code is 1.
    """

    shown: list[Any]
    data: dict[str, Any]
    failed: bool = False
