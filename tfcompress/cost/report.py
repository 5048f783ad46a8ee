"""The result of counting: rows by layer, as a table or as a dictionary."""

import dataclasses
import io
import math

from tfcompress.cost.calls import Shape
from tfcompress.errors import CompressionError, nearest


@dataclasses.dataclass(frozen=True)
class WeightCost:
    """One weight tensor.

    Args:
        name: its attribute in the layer. shape: its shape.
        nonzeros: values that are not zero. distinct: different values; both None when values were not looked at.
        bits: width of one value.
    """

    name: str
    shape: tuple[int, ...]
    nonzeros: int | None
    distinct: int | None
    bits: int = 32

    @property
    def parameters(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def is_kernel(self) -> bool:
        """Whether it is a matrix or more, as papers count weights."""
        return len(self.shape) >= 2

    @property
    def bytes(self) -> int:
        """Bytes at the width `bits`, values packed without gaps."""
        return -(-self.parameters * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One layer or operation.

    Args:
        path: names from the model down, joined with "/". kind: the class's name.
        calls: how often it is called for one input; 0: it has weights, and the model does not call it.
        macs: multiply-accumulates for one sample, of all calls together; None: not counted, there is no rule.
        outputs: shapes of the tensors that the first call returns, batch axis first.
        weights: the layer's own weights.
    """

    path: str
    kind: str
    calls: int
    macs: int | None
    outputs: list[Shape]
    weights: list[WeightCost]

    @property
    def parameters(self) -> int:
        """The number of values in all weights."""
        return sum(weight.parameters for weight in self.weights)

    @property
    def kernel_parameters(self) -> int:
        """The number of values in kernels: weights of two or more dimensions."""
        return sum(weight.parameters for weight in self.weights if weight.is_kernel)

    @property
    def nonzeros(self) -> int | None:
        """Values that are not zero, in all weights."""
        return _sum(weight.nonzeros for weight in self.weights)

    @property
    def distinct(self) -> int | None:
        """Different values in the weight that has most of them; kernels only, where there are kernels."""
        weights = [weight for weight in self.weights if weight.is_kernel] or self.weights
        counts = [weight.distinct for weight in weights]
        return max((one for one in counts if one is not None), default=None)

    @property
    def float_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return 4 * self.parameters

    @property
    def bytes(self) -> int:
        """Bytes of the weights at their widths."""
        return sum(weight.bytes for weight in self.weights)


@dataclasses.dataclass(frozen=True)
class CostReport:
    """What a model costs, layer by layer. Bytes are of the weights alone: a file adds its own overhead.

    Args:
        name: of the model. layers: a row for each layer or operation, in the order of the first call.

    Example:
        >>> import keras
        >>> from tfcompress import cost
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")], name="net")
        >>> print(str(cost.count(model)).splitlines()[4])
          d       Dense   2                10           8          8      8   100.0      40
        >>> cost.count(model)["d"].macs
        8
    """

    name: str
    layers: list[LayerCost]

    def __getitem__(self, path: str) -> LayerCost:
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise CompressionError(f"There is no row {path!r}. {nearest(path, [layer.path for layer in self.layers])}")

    @property
    def parameters(self) -> int:
        """The number of values in all weights."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def kernel_parameters(self) -> int:
        """The number of values in kernels: weights of two or more dimensions."""
        return sum(layer.kernel_parameters for layer in self.layers)

    @property
    def nonzeros(self) -> int | None:
        """Values that are not zero; None when values were not looked at."""
        return _sum(layer.nonzeros for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one sample.

        Raises:
            CompressionError: some layers were not counted.
        """
        if self.not_counted:
            raise CompressionError(
                f"The multiply-accumulates of {', '.join(self.not_counted)} in {self.name!r} are not known. Register "
                "a rule for the class with tfcompress.cost.rule, or use `known_macs` without them."
            )
        return self.known_macs

    @property
    def known_macs(self) -> int:
        """Multiply-accumulates for one sample, without the layers in `not_counted`."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def not_counted(self) -> list[str]:
        """Paths of the layers without a rule."""
        return [layer.path for layer in self.layers if layer.macs is None]

    @property
    def float_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return sum(layer.float_bytes for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of the weights at their widths."""
        return sum(layer.bytes for layer in self.layers)

    def to_dict(self) -> dict:
        """The report as plain numbers, strings, lists and dictionaries."""
        figures = ("parameters", "kernel_parameters", "nonzeros", "float_bytes", "bytes")
        layers = [
            {
                "path": layer.path,
                "kind": layer.kind,
                "calls": layer.calls,
                "macs": layer.macs,
                "outputs": [list(shape) for shape in layer.outputs],
                "distinct": layer.distinct,
                **{figure: getattr(layer, figure) for figure in figures},
                "weights": [
                    dataclasses.asdict(weight) | {"shape": list(weight.shape), "bytes": weight.bytes}
                    for weight in layer.weights
                ],
            }
            for layer in self.layers
        ]
        total = {"macs": self.known_macs, **{figure: getattr(self, figure) for figure in figures}}
        return {"name": self.name, "layers": layers, "total": total, "not_counted": self.not_counted}

    def table(self):
        """The report as a `rich.table.Table`; rows without weights and multiply-accumulates are left out."""
        from rich import box
        from rich.table import Table

        table = Table(title=self.name, box=box.HORIZONTALS, show_footer=True)
        footer = ["total", "", "", self.parameters, self.nonzeros, "", self.known_macs, "", self.bytes]
        heads = ["layer", "kind", "output", "parameters", "non-zeros", "distinct", "MACs", "%", "bytes"]
        for number, (head, foot) in enumerate(zip(heads, footer, strict=True)):
            table.add_column(head, footer=_text(foot), justify="left" if number < 3 else "right")
        for layer in self.layers:
            if layer.weights or layer.macs != 0:
                table.add_row(*_row(layer, self.known_macs))
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=200).print(self.table())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _row(layer: LayerCost, total: int) -> list[str]:
    """The cells of a layer's row in the table."""
    outputs = " ".join("x".join(str(size) for size in shape[1:]) for shape in layer.outputs)
    name = layer.path if layer.calls == 1 else f"{layer.path} ({layer.calls} calls)"
    macs = "not counted" if layer.macs is None else f"{layer.macs:,}"
    share = f"{100 * (layer.macs or 0) / total:.1f}" if total else ""
    distinct = layer.distinct if layer.weights else ""
    counts = [_text(one) for one in (layer.parameters, layer.nonzeros, distinct)]
    return [name, layer.kind, outputs, *counts, macs, share, _text(layer.bytes)]


def _text(value) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else value


def _sum(values) -> int | None:
    values = list(values)
    return None if None in values else sum(values)
