"""What is rounded to how many values, and how the values' spacing is found: one object for weights and outputs."""

import keras

from tfcompress import select
from tfcompress.configurable import Configurable
from tfcompress.core.grids import WEIGHT_RANGES
from tfcompress.errors import CompressionError, nearest
from tfcompress.layers.output_range import FROM_DATA, OUTPUT_RANGES


class Scheme(Configurable):
    """Bits and ranges of weights and outputs, within what an int8 file can hold.

    Weights are symmetric integers (zero point 0), with one scale an output channel or one for all; outputs have one scale
    each. Kernels of 16-bit outputs take symmetric ones only.

    Args:
        bits: of the weights, 2 to 8. output_bits: of the outputs, 8 or 16; one width for a whole model.
        symmetric: outputs have zero point 0; by default 16-bit ones have, and 8-bit ones are affine.
        per_channel: one scale an output channel of the weights, or one for the whole weight.
        weight_range: where a weight's scale comes from: "minmax" (its largest magnitude, followed), "mse" (the share of it
            that rounds with the least squared error, found when it is attached), or "lsq" (learned with the network).
        output_range: where an output's range comes from: "moving" (average of the batches' extremes), "minmax" (extremes of
            all batches so far), "percentile" or "mse" (of calibration data, then kept), or "lsq" (learned, from those of
            calibration data). The last three need `data` when they are attached.
        momentum: of "moving". percentile: of "percentile", above 50 up to 100.

    Papers: learned step size quantization, Esser et al. 2020; LSQ+ (offsets), Bhalgat et al. 2020.

    Raises:
        CompressionError: a value is none of these, or asks for what no file can hold.

    Example:
        >>> Scheme(bits=4, output_range="lsq")
        Scheme(bits=4, output_range='lsq')
        >>> Scheme(output_bits=16).symmetric_outputs
        True
    """

    def __init__(self, bits: int = 8, output_bits: int = 8, symmetric: bool | None = None, per_channel: bool = True,
                 weight_range: str = "minmax", output_range: str = "moving", momentum: float = 0.99,
                 percentile: float = 99.99):  # fmt: skip
        if isinstance(bits, bool) or bits not in range(2, 9):
            raise CompressionError(f"`bits` of weights must be 2 to 8; received {bits!r}.")
        if isinstance(output_bits, bool) or output_bits not in (8, 16):
            raise CompressionError(f"`output_bits` must be 8 or 16; received {output_bits!r}.")
        if output_bits == 16 and symmetric is False:
            raise CompressionError(
                "`symmetric=False` has no 16-bit form: kernels take 16-bit outputs with zero point 0 only. Leave it out."
            )
        for name, value, known in (
            ("weight_range", weight_range, WEIGHT_RANGES),
            ("output_range", output_range, OUTPUT_RANGES),
        ):
            if value not in known:
                raise CompressionError(
                    f"`{name}` must be one of {', '.join(known)}; received {value!r}. {nearest(str(value), known)}"
                )
        if not 0 <= momentum < 1:
            raise CompressionError(f"`momentum` must lie in 0..1, without 1; received {momentum}.")
        if not 50 < percentile <= 100:
            raise CompressionError(f"`percentile` must be above 50 and at most 100, e.g. 99.99; received {percentile}.")
        self.bits, self.output_bits, self.symmetric, self.per_channel = (
            int(bits),
            int(output_bits),
            symmetric,
            per_channel,
        )
        self.weight_range, self.output_range = weight_range, output_range
        self.momentum, self.percentile = float(momentum), float(percentile)

    @property
    def symmetric_outputs(self) -> bool:
        """Whether outputs have zero point 0."""
        return self.output_bits == 16 or bool(self.symmetric)

    @property
    def needs_data(self) -> bool:
        """Whether ranges of outputs cannot begin with the first batch of training."""
        return self.output_range in FROM_DATA

    def changed(self, **arguments) -> "Scheme":
        """The same scheme with some arguments replaced.

        Example:
            >>> Scheme(output_bits=16).changed(bits=4)
            Scheme(bits=4, output_bits=16)
        """
        return type(self)(**{**{name: getattr(self, name) for name in self._arguments()}, **arguments})

    @classmethod
    def of(cls, value, base: "Scheme", what: str = "scheme") -> "Scheme":
        """A scheme from a scheme, from bits of the weights, or from arguments by name that change `base`.

        Raises:
            CompressionError: the value is none of these.

        Example:
            >>> Scheme.of({"weight_range": "lsq"}, Scheme(bits=4)), Scheme.of(4, Scheme())
            (Scheme(bits=4, weight_range='lsq'), Scheme(bits=4))
        """
        if value is None:
            return base
        if isinstance(value, Scheme):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return base.changed(bits=value)
        if isinstance(value, dict):
            for name in value:
                if name not in cls._arguments():
                    raise CompressionError(
                        f"`{what}`: a Scheme has no argument {name!r}. {nearest(str(name), cls._arguments())}"
                    )
            return base.changed(**value)
        raise CompressionError(
            f"`{what}` takes a Scheme, bits of the weights, or arguments by name; received {value!r}."
        )


class Choice:
    """Which scheme a layer gets: the first entry of `mixed` that selects it, else the general one; or none, in float.

    Args:
        scheme: the general one. mixed: {selector: Scheme, bits or arguments}, or pairs of these. keep_float: a selector of
            what is not rounded, or None.
    """

    def __init__(self, scheme: Scheme, mixed=None, keep_float=None):
        self.scheme = scheme
        if mixed is not None and not isinstance(mixed, (dict, list, tuple)):
            raise CompressionError(f"`mixed` takes {{pattern: bits or Scheme}}; received {mixed!r}.")
        pairs = mixed.items() if isinstance(mixed, dict) else (mixed or ())
        self.mixed = [(key, select.get(key), Scheme.of(value, scheme, f"mixed[{key!r}]")) for key, value in pairs]
        self.floats = [(key, select.get(key)) for key in _listed(keep_float)]
        widths = {one.output_bits for one in (scheme, *(one for *_, one in self.mixed))}
        if len(widths) > 1:
            raise CompressionError(
                "`mixed` gives outputs of 8 and of 16 bits, but a file has one width of outputs. Mix bits of weights instead."
            )

    def of(self, path: str, layer, weight: str) -> Scheme:
        """The scheme of a weight, or of an output (`weight` is "output")."""
        return next((one for _, test, one in self.mixed if test(path, layer, weight)), self.scheme)

    def stays_float(self, path: str, layer, weight: str) -> bool:
        """Whether `keep_float` names it."""
        return any(test(path, layer, weight) for _, test in self.floats)

    @property
    def needs_data(self) -> bool:
        """Whether any output's range comes from calibration data."""
        return any(one.needs_data for one in (self.scheme, *(one for *_, one in self.mixed)))

    def check(self, model, names) -> None:
        """Refuse an entry of `mixed` or `keep_float` that selects nothing in a model.

        Args:
            model: the model, for the message. names: (path, layer, weight or "output") of all that could be selected.

        Raises:
            CompressionError: it names the entry, and the nearest path where the entry is a name.
        """
        names = list(names)
        for what, key, test in (
            *(("mixed", k, t) for k, t, _ in self.mixed),
            *(("keep_float", k, t) for k, t in self.floats),
        ):
            if not any(test(*name) for name in names):
                near = nearest(key, {path for path, *_ in names}) if isinstance(key, str) else ""
                raise CompressionError(f"`{what}`: {key!r} selects nothing in model {model.name!r}. {near}".rstrip())


def _listed(spec) -> list:
    if spec is None:
        return []
    return list(spec) if isinstance(spec, (list, tuple)) else [spec]


def selectable(model) -> list[tuple[str, keras.Operation, str]]:
    """(path, layer, weight or "output") of what schemes are chosen for: weights of layers, and outputs of operations."""
    from tfcompress import _keras_compat
    from tfcompress.graph.calls import all_calls

    found = [
        (path, layer, name) for path, layer in select.layers(model) for name in [*select.kernel_names(layer), "output"]
    ]
    if _keras_compat.functional(model) is not None:
        found += [(call.path, call.operation, "output") for call in all_calls(model)]
    return found
