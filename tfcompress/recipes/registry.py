"""Methods by name, as recipe files and the command line write them, and their arguments from plain values."""

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from tfcompress import schedules
from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError, nearest
from tfcompress.method import Method


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a step trains, which relative lengths in schedules refer to.

    Args:
        updates: of the optimizer, in the whole step. per_epoch: in one epoch.

    Example:
        >>> length = Length(updates=400, per_epoch=100)
        >>> length.of("auto"), length.of("75%"), length.of("2 epochs"), length.of(50)
        (400, 300, 200, 50)
    """

    updates: int | None
    per_epoch: int | None

    def of(self, text, where: str = "steps") -> int:
        """A number of updates from a number, "auto", a percentage, or a number of epochs.

        Raises:
            CompressionError: it is none of these, or the length of the data is not known.
        """
        if isinstance(text, int) and not isinstance(text, bool):
            return text
        match = re.fullmatch(r"\s*(?:(auto)|(\d+(?:\.\d+)?)\s*%|(\d+(?:\.\d+)?)\s*epochs?)\s*", str(text))
        if match is None:
            raise CompressionError(
                f"{where}: expected a number of steps, 'auto' (the step's whole training), '75%' of it, or '2 epochs'; received {text!r}."
            )
        if self.updates is None or self.per_epoch is None:
            raise CompressionError(
                f"{where}: {text!r} needs to know how many batches an epoch has, which this data does not say. Give a number."
            )
        if match[3]:
            return max(1, round(float(match[3]) * self.per_epoch))
        return max(1, round(self.updates * (1.0 if match[1] else float(match[2]) / 100)))


@functools.cache
def methods() -> dict[str, type[Method]]:
    """All methods by name, found in the packages that hold methods.

    Example:
        >>> methods()["pruning.Magnitude"].papers
        (11,)
    """
    import tfcompress

    found = {}
    for package in tfcompress._METHODS:
        module = importlib.import_module(f"tfcompress.{package}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, Method):
                found[f"{package}.{name}"] = value
    return dict(sorted(found.items()))


def short(name: str) -> str:
    """A class's name as the command line writes it.

    Example:
        >>> short("BayesByBackprop"), short("SVD")
        ('bayes-by-backprop', 'svd')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def find(name: str, where: str = "") -> str:
    """The full name of a method, from "pruning.Magnitude", "pruning.magnitude" or "magnitude".

    Raises:
        CompressionError: there is none, or several of that short name.

    Example:
        >>> find("bayes-by-backprop")
        'pruning.BayesByBackprop'
    """

    def folded(text: str) -> str:
        return text.replace("-", "").replace("_", "").lower()

    wanted = folded(str(name))
    matches = [full for full in methods() if wanted in (folded(full), folded(full.split(".")[1]))]
    if len(matches) == 1:
        return matches[0]
    before = f"{where}: " if where else ""
    if matches:
        raise CompressionError(f"{before}{name!r} could be {' or '.join(matches)}. Write the full name.")
    known = [short(full.split(".")[1]) for full in methods()]
    if "." in str(name):
        known = [f"{full.split('.')[0]}.{short(full.split('.')[1])}" for full in methods()]
    raise CompressionError(f"{before}There is no method {name!r}. {nearest(short(str(name)), known)}")


def name_of(method) -> str:
    """The name of a method, or of a list of them, in messages."""
    if isinstance(method, (list, tuple)):
        return " + ".join(map(name_of, method))
    for full, kind in methods().items():
        if type(method) is kind:
            return full
    return type(method).__name__


def arguments(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class's constructor."""
    return dict(list(inspect.signature(kind).parameters.items()))


def build(kind: type, given: Mapping[str, Any] | None, length: Length, where: str):
    """An object of a class from plain values; schedules and other parts are {name: arguments} in them.

    Args:
        kind: a method's class, or that of a part. given: arguments by name. length: see `Length`. where: for messages.

    Raises:
        CompressionError: an argument is unknown, missing or refused; the message names it.

    Example:
        >>> build(methods()["pruning.Magnitude"], {"sparsity": {"cubic": {"initial": 0, "final": 0.9, "steps": "auto"}}},
        ...       Length(400, 100), "step 1")
        Magnitude(sparsity=Cubic(initial=0.0, final=0.9, steps=400))
    """
    if given is not None and not isinstance(given, Mapping):
        raise CompressionError(
            f"{where}: {kind.__name__} takes arguments by name ({{name: value}}); received {given!r}."
        )
    known, given = arguments(kind), dict(given or {})
    for key in given:
        if key not in known:
            raise CompressionError(f"{where}: {kind.__name__} has no argument {key!r}. {nearest(str(key), known)}")
    parts = _parts(kind)
    values = {key: _value(value, parts, length, f"{where}.{key}") for key, value in given.items()}
    if issubclass(kind, schedules.Schedule):
        for key in ("steps", "begin"):
            if key in values:
                values[key] = length.of(values[key], f"{where}.{key}") if values[key] != 0 else 0
        if isinstance(values.get("boundaries"), list):
            values["boundaries"] = [length.of(b, f"{where}.boundaries") for b in values["boundaries"]]
    missing = [
        key for key, p in known.items() if p.default is p.empty and key not in values and p.kind is not p.VAR_KEYWORD
    ]
    if missing:
        raise CompressionError(f"{where}: {kind.__name__} needs the argument {missing[0]!r}.")
    try:
        return kind(**values)
    except CompressionError as error:
        raise type(error)(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CompressionError(f"{where}: {kind.__name__} refuses {given}: {error}") from error


def _parts(kind: type) -> dict[str, type]:
    """What may stand as {name: arguments} in the arguments of a class: schedules, and parts from the class's own package."""
    import tfcompress

    found = {short(key): value for key, value in vars(schedules).items() if _is_part(value)}
    package = kind.__module__.rsplit(".", 1)[0]
    if package.removeprefix("tfcompress.") in tfcompress._METHODS:
        found |= {short(key): value for key, value in vars(importlib.import_module(package)).items() if _is_part(value)}
    return found


def _is_part(value) -> bool:
    return (
        inspect.isclass(value)
        and issubclass(value, Configurable)
        and not issubclass(value, Method)
        and not value.__name__.startswith("_")
        and value not in (Configurable, schedules.Schedule)
    )


def _value(value, parts: dict[str, type], length: Length, where: str):
    if isinstance(value, list):
        return [_value(item, parts, length, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1:
        key, inner = next(iter(value.items()))
        name = str(key).lower().replace("_", "-")
        if name in parts and (inner is None or isinstance(inner, Mapping)):
            return build(parts[name], inner, length, f"{where}.{key}")
        # {pattern: number} is a dictionary by layers; a dictionary of a schedule's arguments is a schedule misspelt.
        ramp = {key for kind in parts.values() if issubclass(kind, schedules.Schedule) for key in arguments(kind)}
        if isinstance(inner, Mapping) and inner and set(inner) <= ramp:
            known = [n for n, kind in parts.items() if issubclass(kind, schedules.Schedule)]
            raise CompressionError(f"{where}: There is no schedule {key!r}. {nearest(name, known)}")
    return {key: _value(item, parts, length, f"{where}.{key}") for key, item in value.items()}


def at_end(method):
    """A copy of a method whose schedules stand at their last value, for compression without training.

    Example:
        >>> at_end(methods()["pruning.Magnitude"](schedules.Linear(0, 0.5, steps=10))).sparsity
        Constant(value=0.5)
    """
    if isinstance(method, (list, tuple)):
        return [at_end(one) for one in method]

    def ended(value):
        if isinstance(value, schedules.Schedule):
            return schedules.Constant(value(value.end))
        if isinstance(value, dict):
            return {key: ended(item) for key, item in value.items()}
        return [ended(item) for item in value] if isinstance(value, list) else value

    values = {key: getattr(method, key) for key in method._arguments()}
    return type(method)(**{key: ended(value) for key, value in values.items()})
