"""Choosing one option a layer so that the sum of errors is small for the sum of costs."""

from collections.abc import Sequence

# Partial fronts longer than this are thinned: their ends and an even choice between them stay.
_LONGEST = 400


def predicted_front(options: Sequence[Sequence[tuple[float, float]]], longest: int = _LONGEST) -> list[tuple[int, ...]]:
    """The choices that none beats in both sums, where both add up: the multiple-choice knapsack, layer after layer.

    Exact as long as no partial front is longer than `longest`.

    Args:
        options: for each layer, the (cost, error) of each option.

    Returns:
        For each choice the number of the option of each layer, cheapest first.

    Example:
        >>> predicted_front([[(1, 9), (4, 0)], [(1, 1), (4, 0)]])
        [(0, 0), (1, 0), (1, 1)]
    """
    front: list[tuple[float, float, tuple[int, ...]]] = [(0.0, 0.0, ())]
    for layer in options:
        grown = [
            (cost + more, error + worse, (*choice, number))
            for cost, error, choice in front
            for number, (more, worse) in enumerate(layer)
        ]
        grown.sort(key=lambda entry: (entry[0], entry[1]))
        front = []
        for entry in grown:
            if not front or entry[1] < front[-1][1]:
                front.append(entry)
        front = spaced(front, longest)
    return [choice for *_, choice in front]


def spaced(items: Sequence, most: int) -> list:
    """At most so many of a sequence, evenly, its ends among them.

    Example:
        >>> spaced("abcdefg", 3), spaced("ab", 3), spaced("abc", 1)
        (['a', 'd', 'g'], ['a', 'b'], ['a'])
    """
    if len(items) <= most:
        return list(items)
    if most < 2:
        return list(items[:most])
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]
