"""The table of the 100 papers, what claims to implement them, and the generated pages."""

import importlib.util
import json
import pathlib
import sys
import types

import pytest

from tfcompress import papers
from tfcompress.errors import CompressionError

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def make_docs():
    pytest.importorskip("models")
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_complete():
    table = papers.papers()
    assert [paper.number for paper in table] == list(range(1, 101))
    classes = {"Transfer": 7, "Pruning": 18, "Quantization": 28, "Decomposition and Low-Rank": 17, "Sparse": 18}
    counted = {}
    for paper in table:
        counted[paper.survey_class] = counted.get(paper.survey_class, 0) + 1
        assert 4 <= paper.lines <= 7
        assert 1990 <= paper.year <= 2017
        assert paper.title
        assert paper.authors
    assert counted == {**classes, "Design": 12}
    assert len({paper.name for paper in table}) == 100
    assert len({paper.title for paper in table}) == 100


def test_known_rows():
    paper = papers.paper(18)
    assert (paper.name, paper.year, paper.lines, paper.survey_class) == ("Filter pruning", 2016, 5, "Pruning")
    assert paper.authors == "Li, Kadav, Durdanovic, Samet, Graf"
    assert papers.paper(51).authors == "Holt, Hwang"
    for number in (0, 101):
        with pytest.raises(CompressionError, match="1 to 100"):
            papers.paper(number)


def test_implementations_come_from_the_classes_themselves():
    from tfcompress.pruning import Magnitude

    found = papers.implementations()
    for number in Magnitude.papers:
        assert "tfcompress.pruning.Magnitude" in found[number]
    for names in found.values():
        for name in names:
            module, _, attribute = name.rpartition(".")
            assert hasattr(importlib.import_module(module), attribute)


def claiming(monkeypatch, module, **contents):
    """A module of the given contents in tfcompress.pruning, found by the walk."""
    made = types.ModuleType(f"tfcompress.pruning.{module}")
    made.__dict__.update(contents)
    for value in contents.values():
        if isinstance(value, type):
            value.__module__ = made.__name__
    monkeypatch.setitem(sys.modules, made.__name__, made)
    info = [types.SimpleNamespace(name=made.__name__)]
    monkeypatch.setattr(papers.pkgutil, "walk_packages", lambda *a: info)


def test_inherited_and_imported_claims_do_not_count(monkeypatch):
    base = type("Base", (), {"papers": (11,)})
    heir = type("Heir", (base,), {})
    foreign = type("Foreign", (), {"papers": (12,)})
    claiming(monkeypatch, "made_up", Base=base, Heir=heir)
    sys.modules["tfcompress.pruning.made_up"].Foreign = foreign
    assert papers.implementations() == {11: ["tfcompress.pruning.made_up.Base"]}


def test_a_claim_of_no_paper_is_an_error(monkeypatch):
    claiming(monkeypatch, "made_up", Wrong=type("Wrong", (), {"papers": (101,)}))
    with pytest.raises(CompressionError, match=r"made_up.Wrong claims the paper 101"):
        papers.implementations()


def test_marked_tests_are_counted(make_docs, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "test_a.py").write_text(
        "import pytest\n"
        "@pytest.mark.paper(11)\ndef test_one(): pass\n"
        "@pytest.mark.slow\n@pytest.mark.paper(11)\n@pytest.mark.paper(12)\ndef test_two(): pass\n"
        "@pytest.mark.paper(11)\ndef helper(): pass\n"
        "def test_three(): pass\n"
    )
    (tmp_path / "sub/test_b.py").write_text(
        "import pytest\n"
        "pytestmark = [pytest.mark.paper(18), pytest.mark.slow]\n"
        "@pytest.mark.paper(23)\nclass TestThing:\n"
        "    def test_one(self): pass\n"
        "    @pytest.mark.paper(23)\n    def test_two(self): pass\n"
    )
    (tmp_path / "other.py").write_text("import pytest\n@pytest.mark.paper(11)\ndef test_one(): pass\n")
    assert make_docs.count_tests(tmp_path) == {11: 2, 12: 1, 18: 2, 23: 2}


def result(**changes):
    """A result file's content."""
    figure = {"mean": 98.4, "std": 0.1, "values": [98.3, 98.5]}
    target = {
        "row": "12x", "figure": "drop", "relation": "<=", "value": 0.1, "measured": 0.04, "met": True, "text": "",
    }  # fmt: skip
    return {
        "paper": 11, "name": "Pruning", "claim": "12x | no loss", "data": "MNIST: all", "stand_in": None,
        "seeds": [0, 1], "baseline": {"dense": {"accuracy": figure}},
        "measured": {"12x": {"drop": {"mean": 0.04, "std": None, "values": [0.04]}}}, "target": [target], "met": True,
        "note": "", "command": "python tools/reproduce.py 11 --seeds 2", "commit": "abc", "versions": {"python": "3"},
        "machine": {"cpu": "a CPU", "cores": 2}, "seconds": 300.0, **changes,
    }  # fmt: skip


def test_results_page(make_docs, tmp_path):
    (tmp_path / "011.json").write_text(json.dumps(result()))
    (tmp_path / "qat.json").write_text(json.dumps(result(paper=None, name="Int8", target=[], met=None)))
    page = make_docs.results_page(make_docs.read_results(tmp_path))
    assert "| [11] | [Pruning](#result-011) | met: 1 of 1 | 2 | 2 min a seed |" in page
    assert "| dense (baseline) | 98.4 ± 0.1 |  |" in page
    assert "| 12x |  | 0.04 |" in page
    assert "| 12x: drop <= 0.1 | 0.04 | met |" in page
    assert "reported as it is" in page
    assert "5 min in all" in page
    assert "Claim: 12x | no loss" in page
    (tmp_path / "012.json").write_text(json.dumps({"paper": 12}))
    with pytest.raises(CompressionError, match=r"012\.json is not a result file"):
        make_docs.read_results(tmp_path)
    assert "No experiment has been run yet" in make_docs.results_page({})


def test_methods_page_has_a_row_for_each_paper(make_docs):
    page = make_docs.methods({11: ["tfcompress.pruning.Magnitude"]}, {11: 6}, {"011": result(met=False)})
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(rows) == 100
    (row,) = [line for line in rows if line.startswith("| [11] ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["implemented", "`tfcompress.pruning.Magnitude`", "6", "5", "[missed](results.md#result-011)"]
    assert sum("| not yet |" in line for line in rows) == 99
    assert "1 of 100 are implemented" in page


def test_generated_pages_are_up_to_date(make_docs):
    stale = [str(path.relative_to(ROOT)) for path in make_docs.outdated(ROOT)]
    assert not stale, f"{stale} are not up to date: run python tools/make_docs.py"


def test_the_command_checks_and_writes(make_docs, tmp_path, capsys):
    (tmp_path / "tests").mkdir()
    assert make_docs.main(["--check", "--root", str(tmp_path)]) == 1
    assert "docs/methods.md is not up to date" in capsys.readouterr().out
    assert make_docs.main(["--root", str(tmp_path)]) == 0
    assert make_docs.main(["--check", "--root", str(tmp_path)]) == 0
    (tmp_path / "docs/results.md").write_text("typed by hand")
    assert make_docs.main(["--check", "--root", str(tmp_path)]) == 1
