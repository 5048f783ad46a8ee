"""The plots of a report: accuracy against bytes, layers, latency; without pyplot, so no window and no global state."""

import pathlib
from collections.abc import Callable

from tfcompress.errors import CompressionError, import_extra
from tfcompress.files import replacing
from tfcompress.report.columns import size

# Okabe and Ito's colours, which people with any kind of colour vision tell apart, and a shape for each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A5195")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK, FAINT = "#1F2328", "#C9CED6"
MOST_LAYERS = 60

SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "savefig.transparent": True,
}


def write_plots(report, folder, formats: tuple[str, ...] = ("svg",)) -> list[pathlib.Path]:
    """Write each plot that the figures allow to `folder`/NAME.FORMAT, and return the paths.

    Raises:
        MissingExtra: matplotlib is not installed. CompressionError: a format is neither svg nor png.
    """
    for kind in formats:
        if kind not in ("svg", "png"):
            raise CompressionError(f"Plots are written as svg or png; received {kind!r}.")
    paths = []
    for name, figure in figures(report).items():
        for kind in formats:
            path = pathlib.Path(folder, f"{name}.{kind}")
            with replacing(path) as part:
                save(figure, part, kind, name, transparent=False)
            paths.append(path)
    return paths


def save(figure, target, kind: str, name: str, transparent: bool) -> None:
    """Write a figure to a path or stream, the same bytes for the same figures."""
    matplotlib = import_extra("matplotlib", extra="report")
    # The salt makes the ids in the file repeatable, and different between plots on one page.
    metadata = {"Date": None} if kind == "svg" else {}
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(target, format=kind, metadata=metadata, dpi=160, transparent=transparent, bbox_inches="tight")


def figures(report) -> dict:
    """{plot's name: matplotlib Figure}, for the plots that the report has figures for."""
    matplotlib = import_extra("matplotlib", extra="report")
    makers: dict[str, Callable] = {"accuracy": _accuracy, "layers": _layers, "latency": _latency}
    with matplotlib.rc_context(SETTINGS):
        made = {name: make(report) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def _figure(width: float, height: float, columns: int = 1):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, sharey=columns > 1)
    return figure, list(axes[0])


def _style(report, row) -> dict:
    """Colour and shape of a variant: the same in every plot."""
    index = report.rows.index(row)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _accuracy(report):
    """Accuracy against bytes: the file filled, the packed file hollow, joined by a line."""
    rows = [row for row in report.rows if row.accuracy is not None and (row.file_bytes or row.packed_bytes)]
    if not rows:
        return None
    figure, (axis,) = _figure(5.6, 3.6)
    for row in rows:
        sizes = [value for value in (row.file_bytes, row.packed_bytes) if value]
        style, heights = _style(report, row), [100 * row.accuracy] * len(sizes)
        axis.plot(sizes, heights, color=style["color"], linewidth=1, zorder=2)
        if row.file_bytes:
            axis.plot([row.file_bytes], heights[:1], linestyle="none", markersize=8, label=row.name, **style, zorder=3)
        if row.packed_bytes:
            label = None if row.file_bytes else row.name
            face = {"markerfacecolor": "white", "markeredgewidth": 1.6}
            axis.plot(
                [row.packed_bytes], heights[:1], linestyle="none", markersize=8, label=label, **style, **face, zorder=3
            )
    all_sizes = [value for row in rows for value in (row.file_bytes, row.packed_bytes) if value]
    _byte_axis(axis, min(all_sizes), max(all_sizes))
    low, high = min(row.accuracy for row in rows) * 100, max(row.accuracy for row in rows) * 100
    # Less than two points are not blown up to the height of the plot: noise would look like a difference.
    centre, half = (low + high) / 2, max((high - low) * 0.65, 1.0)
    axis.set_ylim(max(centre - half, -2), centre + half)
    axis.set_ylabel(f"{report.metric}, %", parse_math=False)
    packed = any(row.packed_bytes for row in rows)
    axis.set_xlabel("size on disk" + (" (filled: the model file, hollow: packed as .tfcz)" if packed else ""))
    _legend(figure, axis, len(rows))
    return figure


def _byte_axis(axis, low: float, high: float) -> None:
    """A logarithmic axis of bytes with ticks at 1, 2, 5 times a power of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_xscale("log")
    axis.set_xlim(low / 1.35, high * 1.35)
    ticks = [step * 10**power for power in range(14) for step in (1, 2, 5)]
    inside = [tick for tick in ticks if low / 1.35 <= tick <= high * 1.35]
    if len(inside) > 8:
        inside = [tick for tick in inside if str(tick)[0] == "1"]
    axis.xaxis.set_major_locator(FixedLocator(inside))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: size(round(value)).replace(".00", "").replace(".0 ", " "))
    )


def _layers(report):
    """Sparsity and bits of each layer: a row a layer, a point a variant."""
    rows = [row for row in report.rows if row.layers]
    if not rows:
        return None
    largest: dict[str, int] = {}
    for row in rows:
        for layer in row.layers:
            largest[layer.name] = max(largest.get(layer.name, 0), layer.parameters or 0)
    kept = set(sorted(largest, key=lambda name: -largest[name])[:MOST_LAYERS])
    names = [name for name in largest if name in kept]
    place = {name: index for index, name in enumerate(names)}
    figure, axes = _figure(5.6, 1.5 + 0.26 * len(names), columns=2)
    for shift, row in enumerate(rows):
        # Variants that agree would hide each other.
        offset = 0.0 if len(rows) == 1 else 0.36 * (shift / (len(rows) - 1) - 0.5)
        for axis, value_of in zip(axes, (lambda layer: layer.sparsity, lambda layer: layer.bits), strict=True):
            points = [(value_of(layer), place[layer.name] + offset) for layer in row.layers if layer.name in place]
            # No bits at all (a constant tensor) has no place on the logarithmic axis.
            points = [point for point in points if point[0] is not None and (axis is axes[0] or point[0] > 0)]
            factor = 100 if axis is axes[0] else 1
            axis.plot(
                [factor * value for value, _ in points], [height for _, height in points],
                linestyle="none", markersize=6, label=row.name, **_style(report, row), clip_on=False, zorder=3,
            )  # fmt: skip
    axes[0].set_yticks(range(len(names)), names, parse_math=False)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    axes[0].set_xlim(0, 100)
    axes[0].set_xlabel("zeros, %")
    _bit_axis(axes[1], [layer.bits for row in rows for layer in row.layers if layer.bits])
    if len(kept) < len(largest):
        axes[0].set_title(f"The {len(kept)} largest of {len(largest)} layers", loc="left", fontsize=10)
    _legend(figure, axes[0], len(rows))
    return figure


def _bit_axis(axis, bits: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    low, high = min([*bits, 1]), max([*bits, 32])
    axis.set_xscale("log", base=2)
    axis.set_xlim(low / 1.3, high * 1.3)
    axis.xaxis.set_major_locator(
        FixedLocator([tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= tick <= high])
    )
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel("bits a value")


def _latency(report):
    """Latency: the median, its interval as a thick line, 5th to 95th percentile as a thin one."""
    entries = [(row, item) for row in report.rows for item in row.latency]
    if not entries:
        return None
    settings = list(dict.fromkeys(item.setting for _, item in entries))
    entries.sort(key=lambda entry: settings.index(entry[1].setting))
    several = len(settings) > 1
    short = all(item.median_ms < 1 for _, item in entries)
    factor, unit = (1000, "microseconds") if short else (1, "milliseconds")
    figure, (axis,) = _figure(5.6, 1.1 + 0.34 * len(entries))
    for height, (row, item) in enumerate(entries):
        style = _style(report, row)
        line = {"color": style["color"], "zorder": 2}
        if item.p5_ms is not None and item.p95_ms is not None:
            axis.plot([factor * item.p5_ms, factor * item.p95_ms], [height] * 2, linewidth=1.2, **line)
        if item.interval_ms is not None:
            ends = [factor * end for end in item.interval_ms]
            axis.plot(ends, [height] * 2, linewidth=6, alpha=0.45, solid_capstyle="butt", **line)
        axis.plot([factor * item.median_ms], [height], linestyle="none", markersize=6, **style)
    labels = [f"{row.name}\n{item.setting}" if several else row.name for row, item in entries]
    axis.set_yticks(range(len(entries)), labels, parse_math=False)
    axis.set_ylim(len(entries) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="y", visible=False)
    where = "" if several else f" on {settings[0]}"
    axis.set_xlabel(f"{unit}{where}\n(mark: median, thick: its interval, thin: p5 to p95)", parse_math=False)
    return figure


def _legend(figure, axis, variants: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=min(variants, 3), handletextpad=0.3, columnspacing=1.2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
