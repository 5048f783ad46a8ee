"""What a device must be able to do, and how one is found by name.

The session asks only for what is here, so that a phone over adb becomes one more class; the plan, the statistics, the
verdicts and the record know nothing of where a block ran.
"""

from typing import Any, Protocol

from android_bench.errors import Refused
from android_bench.plan import Case, Settings


class Device(Protocol):
    """Where blocks run.

    Every method that measures returns plain data, and raises BenchError with a sentence when it cannot.
    """

    name: str
    kind: str

    def describe(self) -> dict[str, Any]:
        """Facts that do not change during a session: machine, cores, runtime and its version."""

    def state(self) -> dict[str, Any]:
        """What may change and disturb: load, clock speed, temperatures. Read before and after every block."""

    def refuse(self, case: Case) -> str | None:
        """Why this case would give a false number here, or None."""

    def prepare(self, path: str, shapes: dict[str, list[int]]) -> dict[str, Any]:
        """Bring a file to the device; return its inputs, outputs, operators and how many nodes are delegated."""

    def check(self, path: str, case: Case, samples: str, tolerance: float | None) -> dict[str, Any]:
        """Run the samples and compare (see samples.check)."""

    def measure(self, path: str, case: Case, settings: Settings) -> dict[str, Any]:
        """One block: a fresh process that warms up and runs; its raw times and memory as in the record's blocks.

        "delegated" may be among them where only the run itself tells what the accelerator took.
        """

    def profile(self, path: str, case: Case, runs: int) -> dict[str, Any]:
        """Time per operator, never mixed with a measured block."""

    def close(self) -> None:
        """Leave the device as it was found."""


def find(name: str) -> Device:
    """The device of this name.

    Args:
        name: "host" is the machine that this runs on.

    Raises:
        Refused: any other name; phones are not reached by this version.
    """
    if name == "host":
        from android_bench.host import Host

        return Host()
    raise Refused(
        f"The device {name!r} cannot be measured: this version reaches only 'host', the machine it runs on. "
        "Phones over adb are not part of it yet."
    )
