"""What will be run, in which order: pure functions from a request to a list of blocks.

Several files and settings become cases. A block is one case in one fresh process. Rounds go forwards and backwards in
turn (A B C, C B A, A B C, ...), so that a machine that slowly warms up or cools down treats all cases alike.
"""

import dataclasses
import difflib
import itertools
import math
from collections.abc import Sequence

from android_bench.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the result: a file under one setting.

    Args:
        file: index into the list of files.
        threads: of the runtime's thread pool.
        accelerator: "cpu"; a phone adds others.
    """

    file: int
    threads: int = 1
    accelerator: str = "cpu"


@dataclasses.dataclass(frozen=True)
class Block:
    """One process that measures one case.

    Args:
        round: which pass over the cases, from 0.
        case: index into the list of cases.
        pause: seconds to wait before it starts, to cool down.
    """

    round: int
    case: int
    pause: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How each block measures.

    Args:
        runs: least number of timed runs in a block.
        min_seconds: least time of the timed runs of a block.
        max_seconds: the timed runs of a block end after this, whatever `runs` says (but not before the first one).
        warmup_runs: least number of runs before the timed ones.
        warmup_seconds: least time of them.
        warmup_max_seconds: a case that is not stable after this is timed all the same, and flagged.
        blocks: processes for each case; an even number cancels a linear drift.
        pause: seconds between blocks.
        time_limit: seconds after which a block's process is ended, as a failure.
        seed: of the random inputs and of the bootstrap.

    Raises:
        UsageError: a value is out of its range.

    Example:
        >>> Settings(runs=10).blocks
        6
        >>> Settings(runs=0)
        Traceback (most recent call last):
        ...
        android_bench.errors.UsageError: runs must be at least 1; it is 0.
    """

    runs: int = 50
    min_seconds: float = 0.5
    max_seconds: float = 30.0
    warmup_runs: int = 10
    warmup_seconds: float = 0.2
    warmup_max_seconds: float = 5.0
    blocks: int = 6
    pause: float = 0.0
    time_limit: float = 300.0
    seed: int = 0

    def __post_init__(self):
        for name in ("runs", "warmup_runs", "blocks"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1; it is {getattr(self, name)}.")
        for name in ("min_seconds", "max_seconds", "warmup_seconds", "warmup_max_seconds", "pause", "time_limit"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a number of seconds, 0 or more; it is {value}.")
        for low, high in (("min_seconds", "max_seconds"), ("warmup_seconds", "warmup_max_seconds")):
            if getattr(self, low) > getattr(self, high):
                raise UsageError(f"{low} ({getattr(self, low)}) is above {high} ({getattr(self, high)}).")
        if self.max_seconds + self.warmup_max_seconds > self.time_limit:
            raise UsageError(
                f"A block may take {self.warmup_max_seconds} s of warm-up and {self.max_seconds} s of runs, "
                f"more than the time limit of {self.time_limit} s. Raise time_limit or lower max_seconds."
            )

    @classmethod
    def of(cls, **values) -> "Settings":
        """Settings from keywords; an unknown one is an error that names the nearest.

        Example:
            >>> Settings.of(run=3)
            Traceback (most recent call last):
            ...
            android_bench.errors.UsageError: There is no setting 'run'. Did you mean 'runs'?
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UsageError(
                    f"There is no setting {name!r}. "
                    + (f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}.")
                )
        return cls(**values)


def cases(files: int, threads: Sequence[int], accelerators: Sequence[str] = ("cpu",)) -> list[Case]:
    """Every file under every setting, files fastest, so that files of one setting run next to each other.

    Args:
        files: how many.
        threads: thread counts, each at least 1.
        accelerators: names.

    Raises:
        UsageError: nothing to do, or the same thing twice.

    Example:
        >>> [(c.file, c.threads) for c in cases(2, (1, 4))]
        [(0, 1), (1, 1), (0, 4), (1, 4)]
    """
    if files < 1:
        raise UsageError("No file was given.")
    if not threads or any(count < 1 for count in threads):
        raise UsageError(f"Thread counts must be 1 or more; they are {', '.join(map(str, threads)) or 'missing'}.")
    for name, values in (("threads", threads), ("accelerator", accelerators)):
        if len(set(values)) != len(values):
            raise UsageError(f"{name} names the same value twice: {', '.join(map(str, values))}.")
    return [Case(file, count, name) for name, count, file in itertools.product(accelerators, threads, range(files))]


def alternate(count: int, rounds: int, pause: float = 0.0) -> list[Block]:
    """The order of the blocks: forwards and backwards in turn.

    Args:
        count: number of cases.
        rounds: blocks for each case.
        pause: seconds before every block but the first.

    Example:
        >>> "".join("AB"[b.case] for b in alternate(2, 4))
        'ABBAABBA'
    """
    blocks: list[Block] = []
    for index in range(rounds):
        order = range(count) if index % 2 == 0 else reversed(range(count))
        blocks += [
            Block(index, case, pause if blocks or case_number else 0.0) for case_number, case in enumerate(order)
        ]
    return blocks


def seconds_left(done: Sequence[float], total: int, pause: float = 0.0) -> float | None:
    """Seconds until the last block ends, judged by those that have run; None before the first.

    Args:
        done: seconds that each finished block took, pauses left out.
        total: number of blocks in all.
        pause: seconds between blocks.

    Example:
        >>> seconds_left([1.0, 3.0], 4)
        4.0
    """
    if not done:
        return None
    return (total - len(done)) * (sum(done) / len(done) + pause)
