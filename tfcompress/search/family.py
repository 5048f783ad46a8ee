"""The assignments that one kind of file can hold: one width of activations, and by layer its weights' bits or float."""

import hashlib
import math

from tfcompress import select
from tfcompress.errors import CompressionError
from tfcompress.method import copy_model
from tfcompress.quantization import QAT
from tfcompress.quantization.ranges import ranges
from tfcompress.quantization.scheme import Scheme
from tfcompress.search import costs
from tfcompress.search.front import Point
from tfcompress.search.simulation import FLOAT_BITS, Simulation, Unit, attach_expanded

CHOICES = ("int4", "int8", "int16", "float")
# The runtime has 4-bit weights for these.
NARROW = {"Dense", "Conv2D"}
_BITS = {"int4": 4, "int8": 8, "int16": 8, "float": FLOAT_BITS}


class Family:
    """Assignments of one width of activations, and the network that they are measured on.

    Args:
        kind: "int8" or "int16"; also what layers have that are not chosen for. network: with ranges of that width.
        units: the layers to choose for. options: the choices of each. fixed: {layer: why it is not chosen for}. data:
            calibration inputs.
    """

    def __init__(
        self, kind: str, network: Simulation, units: list[Unit], options: list[list[str]], fixed: dict[str, str], data
    ):
        self.kind, self.network, self.units, self.options, self.fixed, self.data = (
            kind,
            network,
            units,
            options,
            fixed,
            data,
        )
        self.costs = costs.count(network)
        self._others = {k.path: 8 for k in network.kernels if k.path in fixed}

    @classmethod
    def all(cls, model, choices: tuple[str, ...], scheme: Scheme, data, chosen) -> "list[Family]":
        """The families that some choices make for a model.

        Args:
            model: a plain model with a graph. choices: in order of width. scheme: of grids and ranges. data: calibration inputs.
            chosen: selector of the layers to choose for.

        Raises:
            CompressionError: there is no layer to choose for.
        """
        found = []
        for kind, own in (("int8", ("int4", "int8", "float")), ("int16", ("int16", "float"))):
            mine = [choice for choice in own if choice in choices]
            if not set(mine) - {"float"}:
                continue
            network = Simulation(model, scheme.changed(bits=8, output_bits=int(kind[3:])), data)
            units, fixed = _units(network, chosen, kind)
            if not units:
                raise CompressionError(
                    f"Model {model.name!r} has no layer to choose a precision for: "
                    + ("; ".join(f"{path}: {why}" for path, why in fixed.items()) or "no layer has a kernel")
                    + "."
                )
            found.append(cls(kind, network, units, [_options(unit, mine, kind) for unit in units], fixed, data))
        return found

    def count(self) -> int:
        """How many assignments there are."""
        return math.prod(len(own) for own in self.options)

    def assignment(self, choice: tuple[str, ...]) -> dict[str, str]:
        """A choice by the layers' paths."""
        return {unit.path: one for unit, one in zip(self.units, choice, strict=True)}

    def name(self, choice: tuple[str, ...], short: bool = False) -> str:
        """A name of an assignment for notes, or a short one for files."""
        text = f"{self.kind}: {', '.join(choice)}"
        return f"{self.precision(choice)}-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if short else text

    def precision(self, choice: tuple[str, ...]) -> str:
        """The precision of the file that holds an assignment, as `export.tflite` takes it."""
        if set(choice) == {"float"} and not self.fixed:
            return "float32"
        if self.kind == "int16":
            return "int16x8"
        return "int4" if "int4" in choice else "int8"

    def holds(self, point: Point) -> bool:
        """Whether a point is one of this family's."""
        return point.precision in (("int16x8",) if self.kind == "int16" else ("int8", "int4", "float32"))

    def assign(self, choice: tuple[str, ...]) -> None:
        """Put the network in the state of an assignment in an integer file."""
        bits = {unit.path: _BITS[one] for unit, one in zip(self.units, choice, strict=True)}
        everything = {source for _, sources in self.network.points for source in sources}
        self.network.assign(self._others | bits, everything - self._unrounded(self.assignment(choice)))

    def floats(self, assignment: dict[str, str]) -> list[str]:
        """The call keys that run in float, activations behind the layers included."""
        return [key for unit in self.units if assignment[unit.path] == "float" for key in unit.keys]

    def _unrounded(self, assignment: dict[str, str]) -> set[str]:
        return self.network.unrounded(set(self.floats(assignment)))

    def attach(self, model, point: Point, data=None):
        """A copy of a model with `QAT` attached as an assignment says; see `Front.apply`."""
        own = {unit.path for unit in self.units}
        if set(point.assignment) != own:
            raise CompressionError(
                f"This point is of other layers ({', '.join(point.assignment)}); it is not of this front."
            )
        if point.precision == "float32":
            return copy_model(model)
        floats = {path for path, choice in point.assignment.items() if choice == "float"}
        narrow = {path for path, choice in point.assignment.items() if choice == "int4"}
        off = self._unrounded(point.assignment)

        def stays(path, layer, weight) -> bool:
            return path in off if weight == "output" else path in floats

        def narrows(path, layer, weight) -> bool:
            return weight != "output" and path in narrow

        method = QAT(
            scheme=self.network.scheme,
            keep_float=[select.where(stays)] if floats else None,
            mixed=[(select.where(narrows), 4)] if narrow else None,
        )
        attached = attach_expanded(model, method, self.data if data is None else data)
        if data is None:
            self.network.copy_ranges(attached)
        return attached

    def export(self, model, path, point: Point, options: dict):
        """A verified file of an assignment; see `Front.export`."""
        from tfcompress import export

        attached = model if ranges(model) else self.attach(model, point)
        options = {"calibration": self.data, **options}
        floats = self.floats(point.assignment) if point.precision != "float32" else []
        if floats:
            options = {"keep_float": floats, **options}
        return export.tflite(attached, path, point.precision, **options)


def _units(network: Simulation, chosen, kind: str) -> tuple[list[Unit], dict[str, str]]:
    """The layers to choose for, and why the others with kernels are not among them."""
    units = {unit.path: unit for unit in network.units()}
    fixed = {}
    for kernel in network.kernels:
        if kernel.path not in units:
            fixed[kernel.path] = f"part of a layer, {kind} in its whole"
        elif not any(
            chosen(other.path, other.layer, other.name) for other in network.kernels if other.path == kernel.path
        ):
            fixed[kernel.path] = f"not selected, {kind}"
    return [unit for path, unit in units.items() if path not in fixed], fixed


def _options(unit: Unit, choices: list[str], kind: str) -> list[str]:
    able = [choice for choice in choices if choice != "int4" or type(unit.layer).__name__ in NARROW]
    return able if set(able) - {"float"} else [kind, *able]
