"""When a measurement is good, flagged, failed or refused: pure functions, the same for host, phone and recorded logs.

failed: what was asked for did not happen (a GPU run of which the CPU did all). refused: the number would be false (a
debug build). flagged: the number stands, with what the reader must know beside it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_RISE = 0.15
_WIDE = 0.05
_SPREAD = 0.25
_ENOUGH_PROCESSES = 5
_CLOCKS = 20


@dataclasses.dataclass(frozen=True)
class Flag:
    """Something that a reader of the number must know: a short code, and the sentence."""

    code: str
    why: str


@dataclasses.dataclass(frozen=True)
class Delegation:
    """What a delegate took of the graph; a number that the log does not tell is None.

    Args:
        outcome: "complete", "partial", "none", or "incomplete" when the log says no more than "not all".
        nodes: taken. of: in all. partitions: how many pieces.
    """

    outcome: str
    nodes: int | None = None
    of: int | None = None
    partitions: int | None = None

    def __str__(self) -> str:
        if self.nodes is None:
            return {"complete": "all nodes", "partial": "a part of the nodes", "none": "no node"}.get(
                self.outcome, "not all nodes, perhaps none"
            )
        pieces = "" if self.partitions is None else f" in {self.partitions} partition{'s' * (self.partitions != 1)}"
        return f"{self.nodes} of {self.of} nodes{pieces}"


def delegated(accelerator: str, found: Delegation | None) -> tuple[str | None, list[Flag]]:
    """Did the accelerator that was asked for do the work?

    Args:
        accelerator: "cpu", "gpu", "nnapi", ...
        found: what its delegate took, None when nothing says.

    Returns:
        (why the run failed or None, flags).

    Example:
        >>> delegated("gpu", Delegation("none", 0, 31, 0))[0]
        'gpu was asked for, but its delegate took 0 of 31 nodes in 0 partitions: the CPU did the work'
        >>> delegated("gpu", Delegation("partial", 28, 31, 2))[1][0].code
        'partly-delegated'
    """
    if accelerator == "cpu":
        return None, []
    if found is None:
        return f"{accelerator} was asked for, but nothing says that a delegate took any node", []
    if found.outcome == "none":
        return f"{accelerator} was asked for, but its delegate took {found}: the CPU did the work", []
    if found.outcome != "complete":
        return None, [Flag("partly-delegated", f"the {accelerator} delegate took {found}; the rest ran on the CPU")]
    return None, []


def throttled(medians: Sequence[float]) -> list[Flag]:
    """A median that rises over the run, from the first third of the processes to the last.

    Args:
        medians: of the processes, in order of time.

    Example:
        >>> throttled([10, 10, 11, 12, 13, 14])[0].why
        'the median rose by 35 % from the first third of the run to the last: heat, or another load on the machine'
    """
    if len(medians) < 3:
        return []
    third = max(1, len(medians) // 3)
    first, last = np.median(medians[:third]), np.median(medians[-third:])
    if first <= 0 or last / first - 1 < _RISE:
        return []
    why = f"the median rose by {last / first - 1:.0%} from the first third of the run to the last"
    return [Flag("throttled", f"{why.replace('%', ' %')}: heat, or another load on the machine")]


def noisy(summary: dict, processes: int) -> list[Flag]:
    """An interval or a spread too wide to lean on.

    Args:
        summary: of stats.summarize.
        processes: how many blocks it holds.
    """
    flags = []
    low, high = summary["intervals"]["median"]
    middle = summary["median"]
    if processes < _ENOUGH_PROCESSES:
        why = f"{processes} process{'es' * (processes != 1)}: the interval says little about the next one"
        flags.append(Flag("few-processes", f"{why} (use {_ENOUGH_PROCESSES} or more)"))
    reasons = []
    if middle > 0 and (high - low) / 2 > _WIDE * middle:
        reasons.append(f"the interval of the median is {(high - low) / 2 / middle:.0%} to either side")
    if middle > 0 and summary["p75"] - summary["p25"] > _SPREAD * middle:
        reasons.append(f"half of the runs lie outside {summary['p25']:.3g} to {summary['p75']:.3g} ms")
    if reasons:
        flags.append(Flag("noisy", " and ".join(reasons).replace("%", " %")))
    return flags


def unsteady(blocks: Sequence[dict], cores: int | None) -> list[Flag]:
    """What the blocks themselves say about disturbances: no stable warm-up, a busy machine, a clock too coarse.

    Args:
        blocks: as in the record.
        cores: that the process may use.
    """
    flags = []
    loose = sum(not block["warmup"]["stable"] for block in blocks if block.get("warmup"))
    if loose:
        flags.append(
            Flag("warm-up-not-stable", f"in {loose} of {len(blocks)} blocks the warm-up ended without stable times")
        )
    loads = [
        state["load"] for block in blocks if (state := block.get("state_before")) and state.get("load") is not None
    ]
    # Our own children are one runnable process; the rest of the load is somebody else's.
    if loads and cores and max(loads) > cores + 1:
        flags.append(Flag("busy", f"the load average was up to {max(loads):.1f} on {cores} cores"))
    short = [block for block in blocks if block.get("times_ns") and block.get("clock_overhead_ns")]
    if short and min(np.median(b["times_ns"]) / b["clock_overhead_ns"] for b in short) < _CLOCKS:
        flags.append(
            Flag("short", f"a run takes less than {_CLOCKS} readings of the clock: the call itself is a part of it")
        )
    return flags


def desktop(device: dict, integer: bool) -> list[Flag]:
    """What the time of a file on this device does not say.

    Args:
        device: facts of the device.
        integer: whether the file computes in integers.
    """
    if device.get("kind") != "host" or not integer:
        return []
    machine = device.get("cpu_model") or "unknown processor"
    return [Flag("desktop-int8", f"int8 timing on this machine ({machine}) says nothing about a phone")]


def shared(device: dict) -> list[Flag]:
    """What holds for every number of this device.

    Args:
        device: its facts.
    """
    if device.get("virtual"):
        return [Flag("virtual-machine", "the processor is virtual: other guests share it")]
    return []
