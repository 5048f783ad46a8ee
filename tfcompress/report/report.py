"""`Report`: one record of a model's variants, from which the table, the plots and the page come."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

from tfcompress.errors import CompressionError, nearest
from tfcompress.files import replacing
from tfcompress.report.bench import read_bench
from tfcompress.report.reading import from_export, from_pack
from tfcompress.report.rows import Energy, Latency, Layer, Modelled, Row, Verification

SCHEMA_FILE = pathlib.Path(__file__).with_name("report.schema.json")
VERSION = 1


@dataclasses.dataclass
class Report:
    """Accuracy, size, latency and energy of a model's variants, side by side.

    Ratios are of measured file bytes, against the file of the row named `baseline`. What was not measured is None and
    shown as a dash; what a hardware model predicted stands in columns of its own.

    Args:
        title: heading of the page. baseline: name of the row that ratios refer to.
        data: what accuracy was measured on, in words. metric: name of that figure, a fraction, higher is better.
        samples: number of samples behind each accuracy.
        environment: versions and machine, by name; see `tfcompress.report.environment`.
        notes: sentences for the reader. created: ISO 8601 time.

    Example:
        >>> report = Report("LeNet-5", baseline="float32")
        >>> _ = report.add_row("float32", accuracy=0.992, file_bytes=246_000)
        >>> _ = report.add_row("int8", accuracy=0.991, file_bytes=66_000, latency=Latency(0.031))
        >>> round(report.ratio("int8"), 2)
        3.73
        >>> Report.from_json(report.to_json()) == report
        True
    """

    title: str
    baseline: str = "float32"
    data: str = ""
    metric: str = "accuracy"
    samples: int | None = None
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    created: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)

    def add_row(
        self,
        name: str,
        *,
        latency: Latency | list[Latency] | tuple[Latency, ...] = (),
        energy: Energy | list[Energy] | tuple[Energy, ...] = (),
        modelled: list[Modelled] | tuple[Modelled, ...] = (),
        layers: list[Layer] | tuple[Layer, ...] = (),
        verification: Verification | None = None,
        notes: list[str] | tuple[str, ...] = (),
        export: Any = None,
        packed: Any = None,
        **figures: Any,
    ) -> Row:
        """Add a variant, and return its row.

        Args:
            name: unique name of the variant. export: an `ExportReport` or `VerifyReport`, which gives the file's name,
                bytes, multiply-accumulates and verification. packed: a `PackReport`, which gives the packed bytes; both
                also as their dictionaries. The others are the fields of `Row`, and win over these two; one latency or
                energy may stand without a list.

        Raises:
            CompressionError: a figure does not exist or cannot be right (twice the same name, an accuracy above 1).
        """
        read = {
            **(from_export(export) if export is not None else {}),
            **(from_pack(packed) if packed is not None else {}),
        }
        notes = (*read.pop("notes", ()), *notes)
        read_verification = read.pop("verification", None)
        verification = verification or read_verification
        figures = {**read, **figures}
        known = [field.name for field in dataclasses.fields(Row)]
        for figure in figures:
            if figure not in known:
                raise CompressionError(f"A report's row has no figure {figure!r}. {nearest(figure, known)}")
        row = Row(
            name=name,
            latency=(latency,) if isinstance(latency, Latency) else tuple(latency),
            energy=(energy,) if isinstance(energy, Energy) else tuple(energy),
            modelled=tuple(modelled),
            layers=tuple(layers),
            verification=verification,
            notes=tuple(notes),
            **{figure: _plain(value) for figure, value in figures.items()},
        )
        _check({**self._head(), "rows": [_as_json(row)]}, what=f"The row {name!r}")
        if any(other.name == name for other in self.rows):
            raise CompressionError(f"The report has a row {name!r} already: give every variant its own name.")
        self.rows.append(row)
        return row

    def add_bench(self, record: dict) -> list[str]:
        """Add what a record of android_bench measured to the rows whose `file` it names, and return these rows' names.

        Args:
            record: the record's JSON as a dictionary. Files are matched by name, and by folder where both have one.

        Raises:
            CompressionError: the record names no file of this report or it is not clear which, or it is no record.
        """
        measured, shared = read_bench(record)
        rows = {name: [row for row in self.rows if row.file and _same_file(row.file, name)] for name in measured}
        matched = [row.name for found in rows.values() for row in found]
        if not matched or any(len(found) > 1 for found in rows.values()) or len(matched) > len(set(matched)):
            raise CompressionError(
                f"The record measured {sorted(measured)}, and the report's rows are of {[row.file for row in self.rows]}: "
                "give each row the name of the file that was measured for it, with its folder where names are equal."
            )
        for name, found in rows.items():
            for row in found:
                self.rows[self.rows.index(row)] = dataclasses.replace(
                    row,
                    latency=row.latency + measured[name].latency,
                    energy=row.energy + measured[name].energy,
                    notes=row.notes + measured[name].notes,
                )
        self.notes += [note for note in shared if note not in self.notes]
        return matched

    def row(self, name: str) -> Row:
        """The row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise CompressionError(f"The report has no row {name!r}. {nearest(name, [row.name for row in self.rows])}")

    def ratio(self, name: str, packed: bool = False) -> float | None:
        """How many times smaller the row's file (or its .tfcz) is than the baseline's file; None where not measured."""
        base = next((row.file_bytes for row in self.rows if row.name == self.baseline), None)
        own = self.row(name).packed_bytes if packed else self.row(name).file_bytes
        return base / own if base and own else None

    def to_json(self) -> str:
        """The record as JSON text, as report.schema.json describes it."""
        data = {**self._head(), "rows": [_as_json(row) for row in self.rows]}
        _check(data, what="The report")
        return json.dumps(data, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The inverse of `to_json`.

        Raises:
            CompressionError: the text is no report; the message names the place.
        """
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CompressionError(f"This is not a report: no valid JSON ({error}).") from error
        _check(data, what="This report")
        data = {key: value for key, value in data.items() if key != "tfcompress_report"}
        return cls(**{**data, "rows": [Row.from_dict(row) for row in data["rows"]]})

    def save(self, path) -> None:
        """Write the JSON record to `path`."""
        text = self.to_json()
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path) -> "Report":
        """Read a record that `save` wrote."""
        try:
            text = pathlib.Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CompressionError(f"Cannot read the report {path}: {error}.") from error
        return cls.from_json(text)

    def table(self):
        """The variants as a `rich.table.Table`; print it with `rich.print`."""
        from tfcompress.report.table import rich_table

        return rich_table(self)

    def plots(self, folder, formats: tuple[str, ...] = ("svg",)) -> list[pathlib.Path]:
        """Write the plots that the figures allow into `folder`, and return the paths; formats: "svg", "png"."""
        from tfcompress.report.plots import write_plots

        return write_plots(self, folder, formats)

    def html(self, path) -> pathlib.Path:
        """Write the self-contained page to `path`, and return the path."""
        from tfcompress.report.page import write_page

        return write_page(self, path)

    def _head(self) -> dict[str, Any]:
        names = ("title", "created", "data", "metric", "samples", "baseline", "notes")
        head = {"tfcompress_report": VERSION, **{name: getattr(self, name) for name in names}}
        head["environment"] = {key: _plain(value) for key, value in self.environment.items()}
        return head


def _same_file(one: str, other: str) -> bool:
    """Whether two names may be of one file: equal from the end, as far as both go."""
    first, second = pathlib.PurePath(one).parts[::-1], pathlib.PurePath(other).parts[::-1]
    return all(a == b for a, b in zip(first, second, strict=False))


@functools.cache
def _validator():
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def _check(data: Any, what: str) -> None:
    """Raise a CompressionError that names the place where `data` is not a report."""
    errors = sorted(_validator().iter_errors(data), key=lambda error: len(error.absolute_path), reverse=True)
    if errors:
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in errors[0].absolute_path)
        raise CompressionError(f"{what} is not valid at {place.lstrip('.') or 'its top'}: {errors[0].message[:300]}.")
    names = [row["name"] for row in data["rows"]]
    for name in names:
        if names.count(name) > 1:
            raise CompressionError(f"{what} has {names.count(name)} rows named {name!r}.")
    for row in data["rows"]:
        for place, value in _numbers(row, row["name"]):
            if not math.isfinite(value):
                raise CompressionError(
                    f"{what} is not valid: {place} is {value}. Leave it out (None) when not measured."
                )
        for part in (row, *row.get("layers", ())):
            total, nonzeros = part.get("parameters"), part.get("nonzeros")
            if total is not None and nonzeros is not None and nonzeros > total:
                raise CompressionError(
                    f"{what} is not valid: {part['name']} has {nonzeros} non-zeros of {total} values."
                )
        for item in row.get("latency", ()):
            spread = [item.get(key) for key in ("p5_ms", "median_ms", "p95_ms")]
            known = [value for value in spread if value is not None]
            if known != sorted(known):
                raise CompressionError(
                    f"{what} is not valid: the percentiles {spread} of {row['name']} are not in order."
                )


def _numbers(value: Any, place: str):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{place}[{index}]")
    elif isinstance(value, float):
        yield place, value


def _as_json(value: Any) -> Any:
    """Dataclasses, tuples and NumPy scalars as what JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    return _plain(value)


def _plain(value: Any) -> Any:
    """A NumPy or backend scalar as a Python number."""
    if value is None or isinstance(value, (str, bool, int, float, tuple, list, dict)):
        return value
    return value.item() if hasattr(value, "item") else value


def _refuse_constant(name: str):
    raise CompressionError(f"This is not a report: {name} is no JSON number.")
