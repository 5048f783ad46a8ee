"""Normalisation folded into the file, so that a phone feeds raw pixels.

A model trained on (x - mean) / std of pixels 0..255 takes such pixels directly when the input's quantization says so:
scale 1 / std and zero point mean give exactly that value to the code p. Where that cannot be (float files, one mean a
channel), the arithmetic goes in front of the model as operators.
"""

import dataclasses

import keras
import numpy as np

from tfcompress import _keras_compat
from tfcompress.errors import CompressionError, nearest
from tfcompress.export.savedmodel import Signature
from tfcompress.record import Range


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What the file does to its inputs: {input: (mean, std)}, each a number or one a channel (last axis); empty for none."""

    of_input: dict[str, tuple[np.ndarray, np.ndarray]]
    order: tuple[str, ...]

    @classmethod
    def of(cls, given, ports: Signature) -> "Normalisation":
        """From the argument: None, (mean, std) for all float inputs, or {input: (mean, std)}.

        Raises:
            CompressionError: an unknown input, a std that is not positive, shapes that are not channels.
        """
        names = tuple(port.name for port in ports.inputs)
        if given is None:
            return cls({}, names)
        floats = [port for port in ports.inputs if port.dtype == "float32"]
        pairs = given if isinstance(given, dict) else {port.name: given for port in floats}
        made = {}
        for name, pair in pairs.items():
            port = next((p for p in floats if p.name == name), None)
            if port is None:
                raise CompressionError(
                    f"normalisation names {name!r}, which is no float input. {nearest(name, [p.name for p in floats])}"
                )
            try:
                mean, std = (np.asarray(v, np.float32) for v in pair)
            except (TypeError, ValueError) as error:
                raise CompressionError(f"normalisation of {name!r} must be (mean, std), got {pair!r}.") from error
            channels = port.shape[-1]
            if (
                any(v.size != 1 and v.shape != (channels,) for v in (mean, std))
                or not (std > 0).all()
                or not np.isfinite(mean).all()
            ):
                raise CompressionError(
                    f"normalisation of {name!r} must be finite numbers, std above 0, one or {channels} (channels) each; got mean {mean}, std {std}."
                )
            made[name] = (mean, std)
        return cls(made, names)

    def __bool__(self) -> bool:
        return bool(self.of_input)

    def foldable(self) -> bool:
        """Whether one scale and zero point can hold it: single numbers, and a mean that is a pixel value."""
        return all(m.size == 1 and s.size == 1 and 0 <= float(m.ravel()[0]) <= 255 for m, s in self.of_input.values())

    def input_ranges(self) -> tuple[dict[str, Range], list[str]]:
        """{input: the int8 range under which pixel p (less 128) is its normalised value}, and notes on rounding."""
        ranges, notes = {}, []
        for name, (mean, std) in self.of_input.items():
            centre = float(mean.ravel()[0])
            # The integer that a raw 0 would have; a fraction is rounded, which moves every pixel by under half a level.
            ranges[name] = Range(float(np.float32(1 / float(std.ravel()[0]))), int(np.rint(centre)) - 128, 8)
            if centre != np.rint(centre):
                notes.append(
                    f"input {name!r}: mean {centre:g} became {np.rint(centre):g}, the nearest zero point ({abs(centre - np.rint(centre)):g} levels)"
                )
        return ranges, notes

    def raw(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """The pixels whose normalised values the arrays are."""
        return [
            (value * self.of_input[name][1] + self.of_input[name][0]).astype(np.float32)
            if name in self.of_input
            else value
            for name, value in zip(self.order, arrays, strict=True)
        ]

    def prepend(self, model, ports: Signature) -> keras.Model:
        """The model with the arithmetic in front of it."""
        inputs = [keras.Input(batch_shape=port.shape, dtype=port.dtype, name=port.name) for port in ports.inputs]
        inner = []
        for tensor, port in zip(inputs, ports.inputs, strict=True):
            if port.name in self.of_input:
                mean, std = self.of_input[port.name]
                scale, offset = 1.0 / std, -mean / std
                plain = mean.size == 1 and std.size == 1
                tensor = keras.layers.Rescaling(
                    float(scale.ravel()[0]) if plain else np.broadcast_to(scale, port.shape[-1:]).tolist(),
                    float(offset.ravel()[0]) if plain else np.broadcast_to(offset, port.shape[-1:]).tolist(),
                )(tensor)
            inner.append(tensor)
        return keras.Model(inputs, _keras_compat.call_with_list(model, inner), name=f"{model.name}_raw")
