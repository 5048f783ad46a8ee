"""Sensitivity analysis: cut one thing at a time, at several ratios, and measure what it costs."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager


@dataclasses.dataclass
class Sensitivity:
    """Scores by what was cut and how much of it.

    Args:
        baseline: the score uncut. scores: {name: {ratio: score}}; higher is better.
    """

    baseline: float
    scores: dict[str, dict[float, float]]

    def allowed(self, drop: float) -> dict[str, float]:
        """The largest ratio of each name up to which the score has never fallen by more than `drop`; 0 if none.

        Example:
            >>> Sensitivity(0.9, {"a": {0.5: 0.89, 0.8: 0.7}, "b": {0.5: 0.6, 0.8: 0.9}}).allowed(0.02)
            {'a': 0.5, 'b': 0.0}
        """
        found = {}
        for name, by_ratio in self.scores.items():
            found[name] = 0.0
            for ratio in sorted(by_ratio):
                if self.baseline - by_ratio[ratio] > drop:
                    break
                found[name] = ratio
        return found

    def __str__(self) -> str:
        ratios = sorted({ratio for by_ratio in self.scores.values() for ratio in by_ratio})
        width = max((len(name) for name in self.scores), default=0)
        lines = [
            f"{'':{width}}  " + "  ".join(f"{ratio:>6.2f}" for ratio in ratios) + f"   (uncut {self.baseline:.4f})"
        ]
        for name, by_ratio in self.scores.items():
            lines.append(f"{name:{width}}  " + "  ".join(f"{by_ratio[ratio]:>6.4f}" for ratio in ratios))
        return "\n".join(lines)


def scan(
    names: Iterable[str],
    ratios: Sequence[float],
    cut: Callable[[str, float], AbstractContextManager],
    evaluate: Callable[[], float],
) -> Sensitivity:
    """Evaluate with each thing cut alone at each ratio.

    Args:
        names: what can be cut. ratios: shares to cut. cut: (name, ratio) -> a context in which it is cut.
        evaluate: the score of the model as it is; higher is better.
    """
    scores: dict[str, dict[float, float]] = {}
    for name in names:
        for ratio in ratios:
            with cut(name, ratio):
                scores.setdefault(name, {})[ratio] = float(evaluate())
    return Sensitivity(float(evaluate()), scores)
