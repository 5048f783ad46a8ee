"""The 100 papers that tfcompress is about, and where in it each is implemented.

The table itself is papers.csv; `lines` there is the number of properties that hold for a right implementation of the
paper, each of which is a test marked `@pytest.mark.paper(number)`.
"""

import csv
import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil

from tfcompress.errors import CompressionError


@dataclasses.dataclass(frozen=True)
class Paper:
    """One paper.

    Args:
        number: 1 to 100, as in the survey that lists them.
        survey_class: the survey's class, e.g. "Pruning".
        name: the short name of its method. title: of the paper.
        authors: last names. year: of its first publication.
        lines: how many properties its implementation has to have.
    """

    number: int
    survey_class: str
    name: str
    title: str
    authors: str
    year: int
    lines: int


@functools.cache
def papers() -> tuple[Paper, ...]:
    """All papers by number.

    Example:
        >>> len(papers()), papers()[11].title[:16]
        (100, 'Deep compression')
    """
    with open(pathlib.Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
        return tuple(
            Paper(
                int(row["number"]), row["class"], row["short"], row["title"], row["authors"], int(row["year"]),
                int(row["lines"]),
            )
            for row in csv.DictReader(file)
        )  # fmt: skip


def paper(number: int) -> Paper:
    """The paper with this number.

    Raises:
        CompressionError: the number is not 1 to 100.

    Example:
        >>> paper(23).name
        'Bayes by Backprop'
    """
    if not 1 <= number <= len(papers()):
        raise CompressionError(f"Papers have numbers from 1 to {len(papers())}; received {number}.")
    return papers()[number - 1]


def implementations() -> dict[int, list[str]]:
    """Where papers are implemented: number -> full names of the classes and functions that say `papers = (number, ...)`.

    Imports every module of tfcompress.

    Raises:
        CompressionError: something claims a paper that there is not.
    """
    import tfcompress

    found: dict[int, set[str]] = {}
    for module in pkgutil.walk_packages(tfcompress.__path__, "tfcompress."):
        if not module.name.rsplit(".", 1)[-1].startswith("__"):
            for name, numbers in _claims(importlib.import_module(module.name)):
                for number in numbers:
                    paper_exists = isinstance(number, int) and 1 <= number <= len(papers())
                    if not paper_exists:
                        raise CompressionError(f"{name} claims the paper {number!r}; they are 1 to {len(papers())}.")
                    found.setdefault(number, set()).add(name)
    return {number: sorted(names) for number, names in sorted(found.items())}


def _claims(module) -> list[tuple[str, tuple[int, ...]]]:
    """(public name, numbers) of what a module defines that names papers, the module itself included."""
    claims = []
    if isinstance(vars(module).get("papers"), tuple):
        claims.append((module.__name__, module.papers))
    for name, value in vars(module).items():
        if not (inspect.isclass(value) or inspect.isfunction(value)) or value.__module__ != module.__name__:
            continue
        numbers = vars(value).get("papers")
        if isinstance(numbers, tuple) and numbers:
            claims.append((_public_name(module, name, value), numbers))
    return claims


def _public_name(module, name: str, value) -> str:
    """The name under the package that exports the object, else under its module."""
    package, _, _ = module.__name__.rpartition(".")
    exported = getattr(importlib.import_module(package), name, None) is value
    return f"{package if exported else module.__name__}.{name}"
