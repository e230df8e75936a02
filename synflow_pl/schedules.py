"""Schedules: the density after each round of pruning.

The exponential schedule is that of Tanaka et al. 2020, Algorithm 1: the density after round k of n
is rho ** (k / n). The linear schedule removes the same number of weights in every round. The cubic
schedule of Zhu & Gupta 2017 (Equation 1) removes the most in the first round. The last round uses
the requested density itself, not a float close to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise

__all__ = ["SCHEDULES", "as_density", "kept_per_group", "kept_per_round", "kept_weights"]


def exponential(density: Fraction, progress: Fraction) -> Fraction:
    """Return the density of a schedule that removes the same *fraction* of weights in each round.

    Args:
        density: Density after the last round, in (0, 1].
        progress: Fraction of the rounds that are completed, in [0, 1].
    """
    return Fraction(str(float(density) ** float(progress)))


def linear(density: Fraction, progress: Fraction) -> Fraction:
    """Return the density of a schedule that removes the same *number* of weights in each round.

    Args:
        density: Density after the last round, in (0, 1].
        progress: Fraction of the rounds that are completed, in [0, 1].
    """
    return 1 - (1 - density) * progress


def cubic(density: Fraction, progress: Fraction) -> Fraction:
    """Return the density of a schedule that approaches its end with the cube of the rounds left.

    Args:
        density: Density after the last round, in (0, 1].
        progress: Fraction of the rounds that are completed, in [0, 1].
    """
    return density + (1 - density) * (1 - progress) ** 3


SCHEDULES: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "exponential": exponential,
    "linear": linear,
    "cubic": cubic,
}


def as_density(density: float | Fraction, name: str = "density") -> Fraction:
    """Return a density, or another fraction of what is kept, as an exact rational number.

    A float is read as its shortest decimal representation, so 0.1 is 1/10.

    Args:
        density: The fraction.
        name: Name of the option, for messages.

    Raises:
        ValueError: If the density is not in (0, 1].

    Example:
        >>> as_density(0.1)
        Fraction(1, 10)
    """
    kept = {"flops": "FLOPs", "parameters": "parameters", "latency": "the time"}.get(
        name, "weights"
    )
    if isinstance(density, bool) or not isinstance(density, (int, float, Fraction)):
        raise ValueError(
            f"{name}: {density!r} is not a number; expected the fraction of {kept} kept, in (0, 1]"
        )
    if not (math.isfinite(density) and 0 < density <= 1):
        raise ValueError(
            f"{name}: {density} is not in (0, 1]; it is the fraction of {kept} kept,"
            " so 0.1 keeps a tenth"
        )
    return density if isinstance(density, Fraction) else Fraction(str(density))


def kept_weights(total: int, density: Fraction) -> int:
    """Return how many of ``total`` weights are kept at ``density``.

    The number is ``total - floor((1 - density) * total)``, which is at least one.

    Example:
        >>> kept_weights(10, as_density(0.25))
        3
    """
    return total - math.floor((1 - density) * total)


def kept_per_round(
    schedule: str, density: Fraction, rounds: int, sizes: Sequence[int]
) -> list[list[int]]:
    """Return how many weights each group of weights keeps after each of ``rounds`` rounds.

    The numbers of a group never increase. Each group keeps its share to within one weight, the
    first at least ``kept_weights(sizes[0], density)``. After the last round all groups together
    keep exactly ``kept_weights(sum(sizes), density)``.

    Args:
        schedule: Name of a schedule in ``SCHEDULES``.
        density: Density after the last round, in (0, 1].
        rounds: Number of rounds, at least 1.
        sizes: Number of weights in each group.

    Returns:
        One list of ``rounds`` numbers per group.

    Example:
        >>> kept_per_round("linear", as_density(0.2), 4, [100])
        [[80, 60, 40, 20]]
    """
    after_each_round = [
        kept_per_group(sizes, SCHEDULES[schedule](density, Fraction(k, rounds)))
        for k in range(1, rounds)
    ] + [kept_per_group(sizes, density)]
    # Shares that are rounded together may increase by one from one round to the next; the running
    # maximum from the last round backwards prevents that.
    return [
        list(accumulate(reversed(kept), max))[::-1] for kept in zip(*after_each_round, strict=True)
    ]


def kept_per_group(sizes: Sequence[int], density: Fraction) -> list[int]:
    """Return how many weights each group keeps at ``density``, rounded so that the sum is exact.

    Args:
        sizes: Number of weights in each group.
        density: Density of all groups together, in (0, 1].

    Example:
        >>> kept_per_group([10, 5, 5], as_density(0.5))
        [5, 3, 2]
    """
    sums = [kept_weights(total, density) for total in accumulate(sizes)]
    return [sums[0], *(right - left for left, right in pairwise(sums))]
