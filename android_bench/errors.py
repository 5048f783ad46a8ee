"""The errors people read. android_bench stands alone, so it has its own."""


class BenchError(ValueError):
    """Something the user gave or asked for cannot be measured; the message says what, where and what to do."""


class UsageError(BenchError):
    """The request itself is wrong (an unknown option value, a missing file): nothing was tried."""


class Refused(BenchError):
    """The measurement could be made, but the number would be false."""
