"""Rank rules: how many components of a singular value decomposition to keep, layer by layer or over the whole net."""

import dataclasses

import numpy as np

from tfcompress.configurable import Configurable
from tfcompress.errors import CompressionError


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix.

    Args:
        values: in falling order. rows, columns: the matrix's shape, m and n.
    """

    values: np.ndarray
    rows: int
    columns: int

    @property
    def worthwhile(self) -> int:
        """The largest rank at which two factors hold fewer numbers than the matrix: k (m + n) < m n."""
        return (self.rows * self.columns - 1) // (self.rows + self.columns)


def share_rank(values, share: float, power: int = 1) -> int:
    """The smallest k whose first k terms of sum_i s_i^power reach a share of the whole.

    Args:
        values: singular values in falling order. share: 0 to 1. power: 1 for the sum, 2 for the energy.

    Example:
        >>> share_rank([3.0, 2.0, 1.0], 0.8), share_rank([3.0, 2.0, 1.0], 0.6, power=2)
        (2, 1)
    """
    terms = np.asarray(values, np.float64) ** power
    total = np.cumsum(terms)
    if not len(terms) or total[-1] == 0:
        return min(1, len(terms))
    # The last digit of a running sum must not ask for one more component.
    return max(1, int(np.searchsorted(total, share * total[-1] * (1 - 1e-12)) + 1))


class RankRule(Configurable):
    """Chooses the ranks of several matrices from their spectra."""

    def __call__(self, spectra: list[Spectrum]) -> list[int]:
        """A rank for each spectrum, at least 1."""
        raise NotImplementedError


class FixedRank(RankRule):
    """The same number of components everywhere, at most what the matrix has.

    Example:
        >>> FixedRank(8)([Spectrum(np.ones(4), 4, 6)])
        [4]
    """

    def __init__(self, rank: int):
        if int(rank) != rank or rank < 1:
            raise CompressionError(f"A rank is a whole number of at least 1; received {rank!r}.")
        self.rank = int(rank)

    def __call__(self, spectra):
        return [min(self.rank, len(spectrum.values)) for spectrum in spectra]


class SumShare(RankRule):
    """The smallest rank that holds a share of the sum of the singular values, as [62] reads spectra.

    Example:
        >>> SumShare(0.8)([Spectrum(np.array([3.0, 2.0, 1.0]), 3, 3)])
        [2]
    """

    power = 1

    def __init__(self, share: float):
        if not 0 < share <= 1:
            raise CompressionError(f"A share of the spectrum lies above 0 and is at most 1; received {share!r}.")
        self.share = float(share)

    def __call__(self, spectra):
        return [share_rank(spectrum.values, self.share, self.power) for spectrum in spectra]


class EnergyShare(SumShare):
    """The smallest rank that holds a share of the sum of squares.

    Example:
        >>> EnergyShare(0.6)([Spectrum(np.array([3.0, 2.0, 1.0]), 3, 3)])
        [1]
    """

    power = 2


class ParameterBudget(RankRule):
    """Ranks for a number of kernel weights over all matrices together, by water-filling.

    The component with the smallest s_i^2 per weight saved goes first, whatever layer it is in, until the budget is met. A
    matrix that is left with too many components to pay stays whole and counts m n.

    Args:
        parameters: kernel weights in all, as a number, or as a share (below 1) of those of the whole matrices.

    Example:
        >>> flat, steep = np.ones(10), 0.5 ** np.arange(10)
        >>> ParameterBudget(0.5)([Spectrum(flat, 10, 10), Spectrum(steep, 10, 10)])
        [4, 1]
    """

    def __init__(self, parameters: float):
        if not parameters > 0:
            raise CompressionError(f"A budget of parameters is above 0; received {parameters!r}.")
        self.parameters = parameters

    def __call__(self, spectra):
        whole = sum(spectrum.rows * spectrum.columns for spectrum in spectra)
        budget = self.parameters * whole if self.parameters < 1 else self.parameters
        ranks = [len(spectrum.values) for spectrum in spectra]
        order = sorted(
            (float(value) ** 2 / (spectrum.rows + spectrum.columns), -place, number)
            for number, spectrum in enumerate(spectra)
            for place, value in enumerate(spectrum.values)
            if place
        )
        total = whole
        for _, _, number in order:
            if total <= budget:
                break
            total -= self._cost(spectra[number], ranks[number])
            ranks[number] -= 1
            total += self._cost(spectra[number], ranks[number])
        if total > budget:
            raise CompressionError(
                f"A budget of {int(budget)} kernel weights cannot be met: with one component a layer {int(total)} are left."
            )
        return ranks

    @staticmethod
    def _cost(spectrum: Spectrum, rank: int) -> int:
        return min(rank * (spectrum.rows + spectrum.columns), spectrum.rows * spectrum.columns)


RULES = {"rank": FixedRank, "sum": SumShare, "energy": EnergyShare, "parameters": ParameterBudget}


def get(rule) -> RankRule:
    """A rule from a rule, a whole number (rank), a fraction (share of the sum), or {"energy": 0.95} and the like.

    Raises:
        CompressionError: it is none of these.

    Example:
        >>> get(16), get(0.4), get({"parameters": 0.25})
        (FixedRank(rank=16), SumShare(share=0.4), ParameterBudget(parameters=0.25))
    """
    if isinstance(rule, RankRule):
        return rule
    if isinstance(rule, dict) and len(rule) == 1 and next(iter(rule)) in RULES:
        ((name, value),) = rule.items()
        return RULES[name](value)
    if isinstance(rule, (int, np.integer)) and not isinstance(rule, bool):
        return FixedRank(int(rule))
    if isinstance(rule, float):
        return SumShare(rule)
    raise CompressionError(
        "A rank is a whole number, a share of the singular values' sum between 0 and 1, or one of "
        f"{', '.join(f'{{{name!r}: ...}}' for name in RULES)}; received {rule!r}."
    )
