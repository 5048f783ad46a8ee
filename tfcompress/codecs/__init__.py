"""Storage of weights and models: lossless codings, and the .tfcz file that holds a whole model.

    from tfcompress import codecs

    report = codecs.pack("model.keras")        # writes model.tfcz, each tensor by the smallest of its codings
    print(report)
    codecs.unpack("model.tfcz", "again.keras")

Codings look at the baked values: constants, shared values, zeros, integer grids and float exponents are found. What
cannot be found (a mask from a seed, factors, vector codebooks) a method hands over, see `Handed`.
"""

from tfcompress.codecs import codebook, deep_compression, grid, lfsr, simple  # noqa: F401  (they register their codings)
from tfcompress.codecs.api import dumps, inspect, loads, pack, read, read_tensor, unpack
from tfcompress.codecs.coding import Coding, codings, register, smallest
from tfcompress.codecs.handed import Handed, pack_parts, register_handed, unpack_parts
from tfcompress.codecs.report import Contents, PackReport, Row
from tfcompress.codecs.words import Tensor

__all__ = [
    "Coding",
    "Contents",
    "Handed",
    "PackReport",
    "Row",
    "Tensor",
    "codings",
    "dumps",
    "inspect",
    "loads",
    "pack",
    "pack_parts",
    "read",
    "read_tensor",
    "register",
    "register_handed",
    "smallest",
    "unpack",
    "unpack_parts",
]
