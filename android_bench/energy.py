"""Energy on the host: the package counter of the powercap tree where it can be read, else the reason why there is none.

Joules per inference on a phone are measured in blocks of idle and load; the counter here gives only what the whole
package drew while the runs went on, everything else on the machine included, and is named so.
"""

import dataclasses
import pathlib

TREE = "/sys/class/powercap"


@dataclasses.dataclass(frozen=True)
class Zone:
    """One energy counter.

    Args:
        name: as the kernel calls it ("package-0"), with the folder before it.
        microjoules: what it reads.
        wraps_at: the largest value, after which it starts at 0.
    """

    name: str
    microjoules: int
    wraps_at: int


def read_powercap(root: str | pathlib.Path = TREE) -> tuple[list[Zone], str | None]:
    """The counters of the whole packages, and the reason when there are none.

    Sub-zones (cores, memory controllers) are left out, since the package holds them already; so is psys, which holds
    the packages.

    Args:
        root: the powercap tree, /sys/class/powercap.

    Returns:
        (zones, None) or ([], why not).
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        return [], f"no meter: this machine has no {root} (usual in virtual machines)"
    zones, denied = [], 0
    for folder in sorted(root.glob("*:*")):
        if folder.name.count(":") != 1:
            continue
        try:
            name = (folder / "name").read_text().strip()
            if name == "psys":
                continue
            energy = int((folder / "energy_uj").read_text())
            wraps = int((folder / "max_energy_range_uj").read_text())
        except PermissionError:
            denied += 1
        except (OSError, ValueError):
            continue
        else:
            zones.append(Zone(f"{folder.name} {name}", energy, wraps))
    if denied:
        # One package of two would be half the truth.
        return [], f"no meter: the energy counters under {root} may be read by root only"
    return (zones, None) if zones else ([], f"no meter: {root} holds no readable package counter")


def joules_between(before: list[Zone], after: list[Zone]) -> float | None:
    """Joules drawn by all packages between two readings, at most one wrap of each counter included.

    Args:
        before: the first reading. after: the second.

    Returns:
        None when a counter went away or came new, or its range is not positive.

    Example:
        >>> joules_between([Zone("p", 900, 1000)], [Zone("p", 100, 1000)])
        0.0002
    """
    if not before or [z.name for z in before] != [z.name for z in after]:
        return None
    total = 0
    for a, b in zip(before, after, strict=True):
        drawn = b.microjoules - a.microjoules
        if drawn < 0:
            drawn += a.wraps_at
        if drawn < 0:
            return None
        total += drawn
    return total / 1e6


def per_inference(blocks: list[dict]) -> dict:
    """The energy entry of a case, from its blocks' readings.

    Args:
        blocks: each with "count" and "energy" = {"joules", "reason"}.

    Returns:
        {"joules", "kind", "reason"}: gross joules per inference, or None with the reason.
    """
    entries = [block.get("energy") or {"joules": None, "reason": "not read"} for block in blocks]
    missing = [entry["reason"] for entry in entries if not entry["joules"]]
    if missing or not entries:
        reason = next((why for why in missing if why), "the counter did not move during the runs")
        return {"joules": None, "kind": None, "reason": reason if entries else "nothing was run"}
    joules = sum(entry["joules"] for entry in entries) / sum(block["count"] for block in blocks)
    kind = "gross: the whole package with everything that ran on it, idle power included"
    return {"joules": joules, "kind": kind, "reason": None}
