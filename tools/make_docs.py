#!/usr/bin/env python3
"""Writes docs/methods.md and docs/results.md from the code, the tests and docs/results/*.json.

python tools/make_docs.py            # write both
python tools/make_docs.py --check    # 1 when one of them is not up to date
"""

import argparse
import ast
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from models.experiments import harness  # noqa: E402 - the checkout has to be found first
from tfcompress import papers  # noqa: E402
from tfcompress.errors import CompressionError  # noqa: E402
from tfcompress.files import replacing  # noqa: E402

NOTICE = "<!-- Written by tools/make_docs.py. Do not edit. -->"


def main(arguments=None) -> int:
    """The command; 1 for an error or a stale file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say what is not up to date")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        stale = outdated(options.root)
        if options.check:
            for path in stale:
                print(f"{path.relative_to(options.root)} is not up to date: run python tools/make_docs.py")
            return 1 if stale else 0
        for path, text in stale.items():
            with replacing(path) as part:
                part.write_text(text)
            print(f"written: {path.relative_to(options.root)}")
    except CompressionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def outdated(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """The files that are not what they should be, with what they should be."""
    results = read_results(root / "docs/results")
    wanted = {
        root / "docs/methods.md": methods(papers.implementations(), count_tests(root / "tests"), results),
        root / "docs/results.md": results_page(results),
    }
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def read_results(folder: pathlib.Path) -> dict[str, dict]:
    """The result files by their key: papers by number, then the others."""
    return {path.stem: harness.read(path) for path in sorted(folder.glob("*.json"))}


def count_tests(folder: pathlib.Path) -> dict[int, int]:
    """How many test functions carry `@pytest.mark.paper(number)`, on themselves, their class or their module."""
    counts: dict[int, int] = {}
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(), str(path))
        for numbers in _marked_tests(tree.body, _module_marks(tree)):
            for number in numbers:
                counts[number] = counts.get(number, 0) + 1
    return counts


def _marked_tests(body, inherited: set[int]):
    """The numbers of each test function in a module or class."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            yield inherited | _marks(node.decorator_list)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from _marked_tests(node.body, inherited | _marks(node.decorator_list))


def _module_marks(tree: ast.Module) -> set[int]:
    """The numbers in a module's `pytestmark`."""
    found: set[int] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "pytestmark" for target in node.targets):
            found |= _marks(node.value.elts if isinstance(node.value, (ast.List, ast.Tuple)) else [node.value])
    return found


def _marks(decorators) -> set[int]:
    """The numbers among decorators `pytest.mark.paper(number)`."""
    return {
        argument.value
        for node in decorators
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pytest.mark.paper", "mark.paper")
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }


def methods(where: dict[int, list[str]], tests: dict[int, int], results: dict[str, dict]) -> str:
    """docs/methods.md: a row for each of the 100 papers, by the survey's class."""
    lines = [
        NOTICE,
        "# The 100 papers",
        "",
        f"{len(where)} of {len(papers.papers())} are implemented. *Tests* are the test functions marked with the paper's "
        "number; *lines* are the properties that a right implementation has to have, each of which is to be tested. "
        "*Result* is the verdict of its experiment ([results.md](results.md)).",
    ]
    for group in dict.fromkeys(paper.survey_class for paper in papers.papers()):
        lines += [
            "",
            f"## {group}",
            "",
            "| paper | status | where | tests | lines | result |",
            "|---|---|---|--:|--:|---|",
        ]
        for paper in papers.papers():
            if paper.survey_class == group:
                names = ", ".join(f"`{name}`" for name in where.get(paper.number, []))
                key = f"{paper.number:03d}"
                result = f"[{_verdict(results[key]['met'])}](results.md#{_anchor(key)})" if key in results else ""
                cells = [
                    f"[{paper.number}] **{paper.name}**: {paper.title} ({paper.authors}, {paper.year})",
                    "implemented" if names else "not yet",
                    names, str(tests.get(paper.number, 0)), str(paper.lines), result,
                ]  # fmt: skip
                lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def results_page(results: dict[str, dict]) -> str:
    """docs/results.md: a table of all experiments, then each with its figures."""
    lines = [NOTICE, "# Results", ""]
    if not results:
        return "\n".join([*lines, "No experiment has been run yet."]) + "\n"
    lines += [
        "Each experiment runs a paper's claim at a size that two processor cores carry. Figures are means over the "
        "seeds, with the sample standard deviation. Targets are set before the run and judged by the program.",
        "",
        "| paper | experiment | targets met | seeds | time |",
        "|---|---|---|--:|--:|",
    ]
    for key, result in results.items():
        met = [target["met"] for target in result["target"]]
        verdict = f"{_verdict(result['met'])}: {met.count(True)} of {len(met)}" if met else _verdict(result["met"])
        link = f"[{result['name']}](#{_anchor(key)})"
        seeds = len(result["seeds"])
        lines.append(_row([_number(result), link, verdict, str(seeds), _time(result["seconds"] / seeds) + " a seed"]))
    for key, result in results.items():
        lines += ["", f'<a id="{_anchor(key)}"></a>', f"## {_number(result)} {result['name']}".replace("  ", " "), ""]
        lines += _details(result)
    return "\n".join(lines) + "\n"


def _details(result: dict) -> list[str]:
    """The claim, the figures, the targets, and how the result came about."""
    lines = [f"- Claim: {result['claim']}", f"- Data: {result['data']}"]
    if result["stand_in"]:
        lines.append(f"- Stand-in for the paper's data: {result['stand_in']}")
    if result["note"]:
        lines.append(f"- Note: {result['note']}")
    rows = {**result["baseline"], **result["measured"]}
    figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    lines += ["", _row(["", *figures]), _row(["---", *["--:"] * len(figures)])]
    for name, row in rows.items():
        label = f"{name} (baseline)" if name in result["baseline"] else name
        lines.append(_row([label, *(_figure(row[figure]) if figure in row else "" for figure in figures)]))
    if result["target"]:
        lines += ["", "| target | measured | |", "|---|--:|---|"]
    for target in result["target"]:
        name = target["text"] or f"{target['row']}: {target['figure']}"
        aim = f"{name} {target['relation']} {target['value']:g}"
        lines.append(_row([aim, f"{target['measured']:.4g}", _verdict(target["met"])]))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    machine = f"{result['machine']['cpu']}, {result['machine']['cores']} cores"
    return [
        *lines,
        "",
        f"`{result['command']}` at commit {result['commit']}, seeds {', '.join(map(str, result['seeds']))}, "
        f"{_time(result['seconds'])} in all, on {machine}; {versions}.",
    ]


def _row(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _anchor(key: str) -> str:
    return f"result-{key}"


def _number(result: dict) -> str:
    return "" if result["paper"] is None else f"[{result['paper']}]"


def _figure(one: dict) -> str:
    spread = "" if one["std"] is None else f" ± {one['std']:.2g}"
    return f"{one['mean']:.4g}{spread}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "missed", None: "reported as it is"}[met]


if __name__ == "__main__":
    sys.exit(main())
