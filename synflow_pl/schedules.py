"""Schedules: the density after each round.

The exponential schedule is that of Tanaka et al. 2020, Algorithm 1: after round k of n, density rho
** (k / n). The linear one takes the same number of weights off in every round; the cubic one, of
Zhu & Gupta 2017 (Equation 1), most in the first. The last round uses the density that was asked
for, not a float near it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

__all__ = ["SCHEDULES", "as_density", "keeps", "kept_weights"]


def exponential(density: Fraction, share: Fraction) -> Fraction:
    """Density after the ``share`` of the rounds, in [0, 1]: the same *fraction* of what is left
    falls in each round.
    """
    return Fraction(str(float(density) ** float(share)))


def linear(density: Fraction, share: Fraction) -> Fraction:
    """Density after the ``share`` of the rounds, in [0, 1]: the same *number* of weights falls in
    each round.
    """
    return 1 - (1 - density) * share


def cubic(density: Fraction, share: Fraction) -> Fraction:
    """Density after the ``share`` of the rounds, in [0, 1]: what is still to go falls with the cube
    of the rounds that are left.
    """
    return density + (1 - density) * (1 - share) ** 3


SCHEDULES: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "exponential": exponential,
    "linear": linear,
    "cubic": cubic,
}


def as_density(density: float | Fraction) -> Fraction:
    """A density as an exact rational: a float is read as its shortest decimal, so that 0.1 is 1/10.

    Raises:
        ValueError: unless it is in (0, 1].
    """
    if isinstance(density, bool) or not isinstance(density, (int, float, Fraction)):
        raise ValueError(
            f"density: {density!r} is not a number; expected the fraction of weights kept, in (0, 1]"
        )
    if not (math.isfinite(density) and 0 < density <= 1):
        raise ValueError(
            f"density: {density} is not in (0, 1]; it is the fraction of weights kept, so 0.1 keeps a tenth"
        )
    return density if isinstance(density, Fraction) else Fraction(str(density))


def kept_weights(total: int, density: Fraction) -> int:
    """How many of ``total`` weights live at ``density``: ``total - floor((1 - density) * total)``,
    at least one.
    """
    return total - math.floor((1 - density) * total)


def keeps(schedule: str, density: Fraction, rounds: int, sizes: Sequence[int]) -> list[list[int]]:
    """Weights kept after each of ``rounds`` rounds by parts of a network that compete apart, one
    list per part, never growing.

    Each part keeps its share to within one weight, the first at least ``kept_weights(sizes[0],
    density)``; after the last round all of them together keep exactly ``kept_weights(sum(sizes),
    density)``.
    """
    after = [
        _shares(sizes, SCHEDULES[schedule](density, Fraction(k, rounds))) for k in range(1, rounds)
    ] + [_shares(sizes, density)]
    parts = []
    for kept in zip(*after, strict=True):
        # Shares that are rounded together may grow by one from round to round; looked at from the
        # end, they may not.
        parts.append(list(accumulate(reversed(kept), max))[::-1])
    return parts


def _shares(sizes: Sequence[int], density: Fraction) -> list[int]:
    sums = [kept_weights(total, density) for total in accumulate(sizes)]
    return [sums[0], *(right - left for left, right in pairwise(sums))]
