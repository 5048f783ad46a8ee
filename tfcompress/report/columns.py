"""The columns of a report's tables, as text: what the terminal and the page both show."""

import dataclasses
from collections.abc import Callable

from tfcompress.report.rows import Layer, Row

DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure and, under it, what qualifies it ("3.7x smaller", "95 %: 0.030 to 0.033")."""

    text: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: heading, what qualifies the heading, and one cell a row."""

    title: str
    detail: str
    cells: list[Cell]


def columns(report) -> list[Column]:
    """The columns that have at least one figure; measured and modelled figures, and different settings, stand apart."""
    rows = report.rows
    base = next((row for row in rows if row.name == report.baseline), None)
    found = [
        Column("Variant", "", [Cell(row.name) for row in rows]),
        Column(_capital(report.metric), "", [_accuracy(row, base) for row in rows]),
        Column("Parameters", "", [Cell(count(row.parameters)) for row in rows]),
        Column("Non-zeros", "", [_nonzeros(row) for row in rows]),
        Column("MACs", "", [Cell(count(row.macs)) for row in rows]),
        Column("File", "", [_size(row.file_bytes, report.ratio(row.name)) for row in rows]),
        Column("Packed", ".tfcz", [_size(row.packed_bytes, report.ratio(row.name, packed=True)) for row in rows]),
    ]
    found += [_latency_column(rows, setting) for setting in _settings(rows, lambda row: row.latency)]
    found += [_energy_column(rows, setting) for setting in _settings(rows, lambda row: row.energy)]
    predicted = dict.fromkeys((item.quantity, item.model) for row in rows for item in row.modelled)
    found += [_modelled_column(rows, quantity, model) for quantity, model in predicted]
    return [column for column in found if any(cell.text != DASH for cell in column.cells) or column.title == "Variant"]


def layer_columns(layers: tuple[Layer, ...]) -> list[Column]:
    """The columns of one variant's table of layers that have at least one figure."""
    found = [
        Column("Layer", "", [Cell(layer.name, layer.kind) for layer in layers]),
        Column("Shape", "", [Cell(TIMES.join(map(str, layer.shape)) or DASH) for layer in layers]),
        Column("Values", "", [Cell(count(layer.parameters)) for layer in layers]),
        Column("Sparsity", "", [Cell(percent(layer.sparsity)) for layer in layers]),
        Column("Distinct", "", [Cell(count(layer.distinct)) for layer in layers]),
        Column("Bits", "", [Cell(DASH if layer.bits is None else f"{layer.bits:.3g}") for layer in layers]),
        Column("Bytes", "", [Cell(count(layer.bytes)) for layer in layers]),
        Column("Range", "", [_range(layer) for layer in layers]),
        Column("Note", "", [Cell(layer.note or DASH) for layer in layers]),
    ]
    return [column for column in found if any(cell.text != DASH for cell in column.cells)]


def count(value: int | None) -> str:
    """A whole number with thin groups of three: 61706 -> "61,706"."""
    return DASH if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """A fraction in per cent with one decimal."""
    return DASH if value is None else f"{100 * value:.1f} %"


def size(value: int | None) -> str:
    """Bytes in the unit that fits, three figures: 34560 -> "34.6 kB" (1 kB = 1000 bytes).

    Example:
        >>> size(999), size(34560), size(2_500_000), size(999_950)
        ('999 B', '34.6 kB', '2.50 MB', '1.00 MB')
    """
    if value is None:
        return DASH
    if value < 1000:
        return f"{value} B"
    amount = float(value)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.5 or unit == "TB":
            break
    return f"{amount:.{2 if amount < 9.995 else 1 if amount < 99.95 else 0}f} {unit}"


def significant(value: float) -> str:
    """A number with three significant figures, without an exponent where it can be helped.

    Example:
        >>> significant(0.03129), significant(12.34), significant(1234.5), significant(0.0)
        ('0.0313', '12.3', '1,234', '0')
    """
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:#.3g}"
    return text.rstrip(".") if "e" not in text else f"{value:.2e}"


def _accuracy(row: Row, base: Row | None) -> Cell:
    if row.accuracy is None:
        return Cell(DASH)
    text = f"{100 * row.accuracy:.2f} %"
    if base is None or base is row or base.accuracy is None:
        return Cell(text)
    return Cell(text, f"{100 * (row.accuracy - base.accuracy):+.2f} points".replace("-", MINUS))


def _nonzeros(row: Row) -> Cell:
    zeros = (
        f"{100 * (1 - row.nonzeros / row.parameters):.1f} % zeros"
        if row.nonzeros is not None and row.parameters
        else ""
    )
    return Cell(count(row.nonzeros), "" if zeros.startswith("0.0") else zeros)


def _size(value: int | None, ratio: float | None) -> Cell:
    if ratio is None or ratio == 1:
        return Cell(size(value))
    return Cell(size(value), f"{ratio:.2f}{TIMES} smaller" if ratio >= 1 else f"{1 / ratio:.2f}{TIMES} larger")


def _latency_column(rows: list[Row], setting: str) -> Column:
    """The latencies of one setting, all in microseconds when they are all below a millisecond."""
    items = [next((item for item in row.latency if item.setting == setting), None) for row in rows]
    short = all(item.median_ms < 1 for item in items if item)
    factor, unit = (1000, "\N{MICRO SIGN}s") if short else (1, "ms")
    cells = []
    for item in items:
        if item is None:
            cells.append(Cell(DASH))
            continue
        details = []
        if item.interval_ms is not None:
            details.append(f"{100 * item.confidence:.0f} %: {_span(item.interval_ms, factor)}")
        if item.p5_ms is not None and item.p95_ms is not None:
            details.append(f"p5{DASH}p95: {_span((item.p5_ms, item.p95_ms), factor)}")
        cells.append(Cell(f"{significant(factor * item.median_ms)} {unit}", "\n".join(details)))
    return Column("Latency", setting, cells)


def _energy_column(rows: list[Row], setting: str) -> Column:
    cells = []
    for row in rows:
        item = next((item for item in row.energy if item.setting == setting), None)
        detail = f"95 %: {_span(item.interval_mj)}" if item and item.interval_mj else ""
        cells.append(Cell(f"{significant(item.millijoules)} mJ", detail) if item else Cell(DASH))
    return Column("Energy", setting, cells)


def _modelled_column(rows: list[Row], quantity: str, model: str) -> Column:
    cells = []
    for row in rows:
        item = next((item for item in row.modelled if (item.quantity, item.model) == (quantity, model)), None)
        cells.append(Cell(f"{significant(item.value)} {item.unit}" if item else DASH))
    return Column(f"{_capital(quantity)}, modelled", model, cells)


def _span(ends: tuple[float, float], factor: float = 1) -> str:
    return f"{significant(factor * ends[0])}{DASH}{significant(factor * ends[1])}"


def _range(layer: Layer) -> Cell:
    if layer.minimum is None or layer.maximum is None:
        return Cell(DASH)
    return Cell(f"{significant(layer.minimum)} to {significant(layer.maximum)}".replace("-", MINUS))


def _settings(rows: list[Row], items: Callable) -> list[str]:
    """Every setting that some row was measured in, in order of appearance."""
    return list(dict.fromkeys(item.setting for row in rows for item in items(row)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
