"""A report as a table for the terminal."""

from tfcompress.report.columns import Cell, columns

# Up to this many variants stand side by side, with the figures one under the other: that fits into 80 columns.
SIDE_BY_SIDE = 4


def rich_table(report):
    """The variants as a `rich.table.Table`: side by side when they are few, else one under the other."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text objects throughout, since names may hold what rich would take for markup.
    found = columns(report)
    side_by_side = 0 < len(report.rows) <= SIDE_BY_SIDE
    table = Table(title=Text(report.title), caption=Text(caption(report)), box=box.SIMPLE_HEAD, padding=(0, 1))
    headings = [Cell(column.title, column.detail) for column in found]
    if side_by_side:
        lines = [[headings[index], *column.cells] for index, column in enumerate(found)]
        lines[0][0] = Cell("")
    else:
        lines = [headings] + [[column.cells[number] for column in found] for number in range(len(report.rows))]
    for index, cell in enumerate(lines[0]):
        table.add_column(_text(cell), justify="left" if index == 0 else "right", overflow="fold")
    for line in lines[1:]:
        table.add_row(*[_text(cell) for cell in line])
    return table


def caption(report) -> str:
    """One sentence on what the accuracy and the ratios mean."""
    parts = []
    if report.data:
        parts.append(f"{report.metric[:1].upper()}{report.metric[1:]} on {report.data}")
    if report.samples:
        parts.append(f"one of {report.samples:,} samples is {100 / report.samples:.2f} points")
    parts.append(f"sizes are of files, ratios to the file of {report.baseline}")
    return "; ".join(parts) + "."


def _text(cell: Cell):
    from rich.text import Text

    text = Text(cell.text)
    if cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    return text
