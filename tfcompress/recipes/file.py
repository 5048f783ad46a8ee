"""Recipes as YAML files: reading, checking, and those that are shipped."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from tfcompress.errors import CompressionError, nearest

FOLDER = pathlib.Path(__file__).parent
KEYS = ("name", "about", "steps", "export", "pack")
STEP_KEYS = ("method", "arguments", "epochs", "optimizer", "learning_rate")


class _Loader(yaml.SafeLoader):
    """YAML with two traps taken out: 1e-3 is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str):
                if key.value in seen:
                    raise CompressionError(f"line {key.start_mark.line + 1}: the key {key.value!r} stands twice.")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def shipped() -> dict[str, str]:
    """The recipes that come with tfcompress: {name: what it is for}.

    Example:
        >>> "int8" in shipped()
        True
    """
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        about = yaml.load(path.read_text(encoding="utf-8"), _Loader).get("about", "")
        found[path.stem] = " ".join(about.split())
    return found


def text_of(name) -> tuple[str, str]:
    """(where it lies, text) of a recipe, by the name of a shipped one or the path of a file.

    Raises:
        CompressionError: there is neither.
    """
    path = pathlib.Path(name)
    known = [p.stem for p in FOLDER.glob("*.yaml")]
    if not path.is_file():
        if str(name) in known:
            path = FOLDER / f"{name}.yaml"
        elif path.suffix in (".yaml", ".yml"):
            raise CompressionError(f"There is no recipe file {path}.")
        else:
            raise CompressionError(f"There is no recipe {str(name)!r}. {nearest(str(name), known)}")
    try:
        return str(name), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CompressionError(f"Cannot read the recipe {path}: {error}.") from error


def parse(text: str, where: str = "recipe") -> dict[str, Any]:
    """The plain data of a recipe file, its keys checked; methods and their arguments are checked by `Recipe.from_dict`.

    Raises:
        CompressionError: it is no YAML, or a key is unknown, missing or of another type; the message names it.

    Example:
        >>> parse("steps: [{method: magnitude}]\\nexprot: int8")
        Traceback (most recent call last):
        tfcompress.errors.CompressionError: recipe has an unknown key 'exprot'. Did you mean 'export'?
    """
    try:
        data = yaml.load(text, _Loader)
    except CompressionError as error:
        raise CompressionError(f"{where}, {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise CompressionError(f"{where}{place} is no YAML: {getattr(error, 'problem', None) or error}.") from error
    return check(data, where)


def check(data, where: str) -> dict[str, Any]:
    """The same for data that is loaded already."""
    if not isinstance(data, Mapping):
        raise CompressionError(
            f"{where} must be a mapping with the keys {', '.join(KEYS)}; it is {type(data).__name__}."
        )
    _known(data, KEYS, where)
    steps = data.get("steps", [])
    if not isinstance(steps, list):
        raise CompressionError(f"{where}: `steps` must be a list; it is {type(steps).__name__}.")
    for number, step in enumerate(steps, 1):
        place = f"{where}, step {number}"
        if not isinstance(step, Mapping):
            raise CompressionError(f"{place} must be a mapping with the keys {', '.join(STEP_KEYS)}; it is {step!r}.")
        _known(step, STEP_KEYS, place)
        if not isinstance(step.get("method"), str):
            raise CompressionError(f"{place} needs `method`, the name of one; `tfcompress methods` lists them.")
    if not steps and not data.get("export"):
        raise CompressionError(f"{where} has neither `steps` nor `export`: it would do nothing.")
    return dict(data)


def _known(data: Mapping, keys: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in keys:
            raise CompressionError(f"{where} has an unknown key {key!r}. {nearest(str(key), keys)}")
