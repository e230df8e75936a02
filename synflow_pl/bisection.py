"""Bisection: how much to ask for, to get nearest to a wanted number."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["nearest_attainable"]


def nearest_attainable(measure: Callable[[int], int], wanted: int, highest: int) -> int:
    """A whole number at which ``measure`` comes nearest to ``wanted``.

    Exact where ``measure`` never falls. Where it falls here and there (the effective weights of an
    iterated pruner), what is found is the nearest of what was tried, next to a place where it
    crosses ``wanted``.

    Args:
        measure: gives at most as much as it is asked for.
        wanted: in [1, highest].
        highest: the most that can be asked for.
    """
    tried: dict[int, int] = {}

    def short(asked: int) -> int:
        tried[asked] = measure(asked)
        return wanted - tried[asked]

    # Mostly little is missing, so look nearby first, and then ever further.
    low, high = wanted, wanted
    while (missing := short(high)) > 0 and high < highest:
        low, high = high + 1, min(highest, high + 2 * max(missing, high - low))
    while low < high and wanted not in tried.values():
        middle = (low + high) // 2
        if short(middle) > 0:
            low = middle + 1
        else:
            high = middle
    return min(tried, key=lambda asked: (abs(tried[asked] - wanted), asked))
