"""What packing did to each tensor, in measured bytes."""

import dataclasses

from tfcompress.codecs.coding import element_count
from tfcompress.codecs.container import Reader


@dataclasses.dataclass(frozen=True)
class Row:
    """One stored tensor.

    Args:
        name, shape, dtype, coding: of the tensor. raw_bytes: of the plain array. bytes: of its section.
        elements, nonzeros, distinct, negative_zeros: counts; None where only the file was looked at, and distinct also
            where there are more than 65,536 values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    coding: str
    raw_bytes: int
    bytes: int
    elements: int
    nonzeros: int | None = None
    distinct: int | None = None
    negative_zeros: int | None = None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a .tfcz holds.

    Args:
        path: of the .tfcz, or a description. kind: arrays, h5, keras or tflite. file_bytes: of the whole file.
        rows: the tensors. other: {blob name: bytes in the file}. overhead: header, index and trailer.
    """

    path: str
    kind: str
    file_bytes: int
    rows: tuple[Row, ...]
    other: dict[str, int]

    @property
    def overhead(self) -> int:
        """Bytes of header, index and trailer."""
        return self.file_bytes - sum(row.bytes for row in self.rows) - sum(self.other.values())

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "rows": [dataclasses.asdict(row) for row in self.rows]} | {
            "overhead": self.overhead
        }

    def _lines(self) -> list[str]:
        width = max([len(row.name) for row in self.rows] + [10])
        lines = [f"{'tensor':{width}}  {'shape':>18} {'dtype':>8} {'raw bytes':>12} {'bytes':>11} {'ratio':>7}  coding"]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            ratio = f"{row.raw_bytes / row.bytes:.1f}x" if row.bytes else "-"
            lines.append(
                f"{row.name:{width}}  {shape:>18} {row.dtype:>8} {row.raw_bytes:>12,} {row.bytes:>11,} {ratio:>7}  "
                f"{row.coding}"
            )
        other = sum(self.other.values())
        lines.append(f"other parts {other:,} bytes, header and index {self.overhead:,} bytes")
        return lines

    def __str__(self) -> str:
        return "\n".join([*self._lines(), f"{self.path}: {self.file_bytes:,} bytes ({self.kind})"])


@dataclasses.dataclass(frozen=True)
class PackReport(Contents):
    """What `pack` wrote.

    Args:
        source: what was packed. source_bytes: of its file (without the optimizer's variables where they were dropped),
            or of its arrays with 4 bytes a float where there was no file. against_bytes: of the float32 file that the
            caller named.
    """

    source: str = ""
    source_bytes: int = 0
    against_bytes: int | None = None

    @property
    def ratio(self) -> float:
        """Bytes of the float32 file (`against`, else the source itself) over the bytes of the .tfcz."""
        return (self.against_bytes or self.source_bytes) / self.file_bytes

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        return super().to_dict() | {"ratio": self.ratio}

    def __str__(self) -> str:
        lines = self._lines()
        elements = sum(row.elements for row in self.rows)
        nonzeros = sum(row.nonzeros or 0 for row in self.rows)
        lines.append(f"parameters {elements:,}, nonzeros {nonzeros:,}")
        what = "against the file given" if self.against_bytes else "against the source"
        lines.append(
            f"{self.source} {self.against_bytes or self.source_bytes:,} bytes -> {self.path} {self.file_bytes:,} bytes: "
            f"{self.ratio:.2f}x {what}"
        )
        negative = sum(row.negative_zeros or 0 for row in self.rows)
        if negative > 0.01 * elements:
            lines.append(
                f"{negative:,} zeros are negative (a mask times a negative weight) and cost about a bit each: bake masks "
                "with where(mask, w, 0)."
            )
        return "\n".join(lines)


def rows_of(reader: Reader) -> tuple[Row, ...]:
    """The tensors of an open file, without decoding any."""
    return tuple(
        Row(e.name, e.shape, e.dtype, reader.coding(e.name), e.raw_bytes, e.bytes, element_count(e.shape))
        for e in reader.tensors.values()
    )
