import html.parser
import re
import xml.etree.ElementTree

import pytest

from tests.report.test_report import full_report
from tfcompress.errors import CompressionError
from tfcompress.report import Latency, Layer, Modelled, Report, Verification
from tfcompress.report.page import tiles
from tfcompress.report.plots import MOST_LAYERS, figures

VOID = {"meta", "link", "br", "img", "hr"}


class Page(html.parser.HTMLParser):
    """Collects tags, attributes, ids and text, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = full_report().html(tmp_path_factory.mktemp("page") / "deep" / "report.html")
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_has_all_parts(page):
    parsed = Page(page)
    for words in [
        "Variants",
        "Accuracy against size on disk",
        "Latency of one inference",
        "Verification",
        "a warning",
        "a note",
    ]:
        assert words in parsed.text
    assert parsed.tags.count("svg") == 3


def test_page_needs_nothing_from_elsewhere(page):
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(parsed.tags)
    for name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "data", "poster"):
            assert value.startswith("#"), (name, value)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_every_reference_has_its_target(page):
    attributes = Page(page).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for name, value in attributes if name in ("href", "xlink:href")} | set(
        re.findall(r"url\(#([^)]*)\)", page)
    )
    assert used <= set(ids)


def test_plots_take_the_colours_of_the_page(page):
    drawings = page[page.index("<svg") : page.rindex("</svg>")]
    assert "var(--series-0)" in drawings
    assert "var(--ink)" in drawings
    defined = set(re.findall(r"(--[\w-]+):", page))
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= defined
    # Whatever colour is left in a drawing would not follow the dark theme.
    assert set(re.findall(r"#[0-9a-f]{6}", drawings)) == set()


NASTY = "<script>alert(1)</script>\"'&$\\frac$"


def test_all_text_of_users_is_escaped(tmp_path):
    report = Report(
        NASTY, baseline=NASTY, data=NASTY, metric=NASTY, notes=[NASTY], environment={NASTY: NASTY}, created=NASTY
    )
    report.add_row(
        NASTY,
        accuracy=0.5,
        file_bytes=10,
        latency=[Latency(1.0, device=NASTY), Latency(2.0, accelerator=NASTY)],
        modelled=[Modelled(NASTY, 1.0, NASTY, NASTY)],
        layers=[Layer(NASTY, NASTY, (2,), 2, 1, bits=8, note=NASTY)],
        verification=Verification(False, {NASTY: NASTY}, {NASTY: 2}, (NASTY,)),
        notes=[NASTY],
    )
    report.add_row(NASTY + "2", file_bytes=5)
    parsed = Page(report.html(tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "script" not in parsed.tags
    assert parsed.text.count("<script>alert(1)</script>") > 10


def test_headline_figures_are_against_the_baseline():
    assert tiles(full_report()) == [
        ("4.00\N{MULTIPLICATION SIGN}", "smaller file", "int8"),
        ("8.00\N{MULTIPLICATION SIGN}", "smaller packed", "int8"),
        ("4.00\N{MULTIPLICATION SIGN}", "as fast, host cpu, 1 thread", "int8"),
        ("\N{MINUS SIGN}0.50", "points of accuracy", "int8"),
    ]
    assert tiles(Report("x")) == []


def test_an_empty_report_still_has_a_page(tmp_path):
    assert "no variants yet" in Report("x").html(tmp_path / "r.html").read_text()


def test_plots_are_files_that_repeat_byte_for_byte(tmp_path):
    first = full_report().plots(tmp_path / "a", ("svg", "png"))
    second = full_report().plots(tmp_path / "b", ("svg", "png"))
    assert [path.name for path in first] == [
        f"{n}.{k}" for n in ("accuracy", "layers", "latency") for k in ("svg", "png")
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        if one.suffix == ".svg":
            assert xml.etree.ElementTree.parse(one).getroot().tag.endswith("svg")
        else:
            assert one.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CompressionError, match="'gif'"):
        full_report().plots(tmp_path, ("gif",))


def points(axis, label):
    return [(x, y) for line in axis.lines if line.get_label() == label for x, y in zip(*line.get_data(), strict=True)]


def test_accuracy_plot_has_a_point_a_variant_at_its_size():
    axis = figures(full_report())["accuracy"].axes[0]
    assert points(axis, "float32") == [(4400, 97.5)]
    assert points(axis, "int8") == [(1100, 97.0)]
    # Half a point of accuracy must not fill the plot.
    assert axis.get_ylim()[1] - axis.get_ylim()[0] >= 2


def test_layer_plot_shows_zeros_and_bits():
    zeros, bits = figures(full_report())["layers"].axes
    assert [x for x, _ in points(zeros, "int8")] == pytest.approx([80.0])
    assert [x for x, _ in points(bits, "int8")] == [8]
    assert [text.get_text() for text in zeros.get_yticklabels()] == ["dense"]


def test_a_deep_net_is_cut_to_its_largest_layers():
    report = Report("x")
    report.add_row(
        "float32", layers=[Layer(f"l{n}", parameters=n + 1, nonzeros=0, bits=8) for n in range(MOST_LAYERS + 5)]
    )
    axis = figures(report)["layers"].axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == [f"l{n}" for n in range(5, MOST_LAYERS + 5)]
    assert f"{MOST_LAYERS} largest of {MOST_LAYERS + 5}" in axis.get_title(loc="left")


def test_latency_plot_has_median_interval_and_percentiles_of_each_setting():
    axis = figures(full_report())["latency"].axes[0]
    spans = {tuple(line.get_xdata()) for line in axis.lines}
    assert {(2.0,), (0.5,), (1.2,), (1.5, 3.5), (1.9, 2.2), (0.4, 0.9), (0.45, 0.55)} == spans
    assert [text.get_text() for text in axis.get_yticklabels()][-1] == "float32\nhost cpu, 2 threads"


def test_no_figures_no_plots():
    report = Report("x")
    report.add_row("float32", parameters=3)
    assert figures(report) == {}
