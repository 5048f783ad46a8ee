"""A report as one self-contained HTML page: no script, no font, no picture from elsewhere."""

import io
import pathlib
import re

from tfcompress.errors import import_extra
from tfcompress.files import replacing
from tfcompress.report import plots
from tfcompress.report.columns import MINUS, TIMES, columns, layer_columns, significant
from tfcompress.report.table import caption

TEMPLATE = "page.html"
CAPTIONS = {
    "accuracy": "Accuracy against size on disk",
    "latency": "Latency of one inference",
    "layers": "Layers",
}


def write_page(report, path) -> pathlib.Path:
    """Write the page to `path`, and return the path.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    jinja2 = import_extra("jinja2", extra="report")
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    # Everything that a user named (variants, layers, files) is escaped; the plots alone are markup.
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn = plots.figures(report)
    text = environment.get_template(TEMPLATE).render(
        report=report,
        caption=caption(report),
        tiles=tiles(report),
        columns=columns(report),
        layer_columns=layer_columns,
        plots=[(CAPTIONS[name], inline_svg(drawn[name], name)) for name in CAPTIONS if name in drawn],
    )
    path = pathlib.Path(path)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def inline_svg(figure, name: str) -> str:
    """The figure as an <svg> element that takes its colours and its font from the page.

    Args:
        figure: a matplotlib Figure of `plots.figures`. name: the plot's name, which makes its ids unique on the page.
    """
    stream = io.StringIO()
    plots.save(figure, stream, "svg", name, transparent=True)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A fixed size would not shrink on a phone.
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = text.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    variables = {plots.INK: "ink", plots.FAINT: "line", "#FFFFFF": "paper"}
    variables |= {colour: f"series-{index}" for index, colour in enumerate(plots.COLOURS)}
    for colour, variable in variables.items():
        text = text.replace(colour.lower(), f"var(--{variable})")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{CAPTIONS[name]}"', 1)


def tiles(report) -> list[tuple[str, str, str]]:
    """Up to four headline figures (value, what it is, of which variant), all measured, all against the baseline."""
    found = []
    base = next((row for row in report.rows if row.name == report.baseline), None)
    others = [row for row in report.rows if row is not base]
    if base is None or not others:
        return []
    sized = [row for row in others if row.file_bytes]
    if base.file_bytes and sized:
        best = min(sized, key=lambda row: row.file_bytes)
        found.append((f"{significant(base.file_bytes / best.file_bytes)}{TIMES}", "smaller file", best.name))
    packed = [row for row in others if row.packed_bytes]
    if base.file_bytes and packed:
        best = min(packed, key=lambda row: row.packed_bytes)
        found.append((f"{significant(base.file_bytes / best.packed_bytes)}{TIMES}", "smaller packed", best.name))
    speedups = [
        (reference.median_ms / item.median_ms, row.name, item.setting)
        for reference in base.latency
        for row in others
        for item in row.latency
        if item.setting == reference.setting and item.median_ms > 0
    ]
    if speedups:
        best_speed, name, setting = max(speedups)
        found.append((f"{significant(best_speed)}{TIMES}", f"as fast, {setting}", name))
    scored = [row for row in others if row.accuracy is not None]
    if base.accuracy is not None and scored:
        smallest = min(scored, key=lambda row: row.packed_bytes or row.file_bytes or 0)
        change = f"{100 * (smallest.accuracy - base.accuracy):+.2f}".replace("-", MINUS)
        found.append((change, f"points of {report.metric}", smallest.name))
    return found
