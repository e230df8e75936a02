"""Statistics over seeds: mean, sample deviation and the 95 % interval of the mean, by Student's t,
of single numbers and of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["Summary", "paired", "quantile", "summarise"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Of ``count`` numbers: their mean, their sample deviation (over n - 1), and half of the width
    of the 95 % interval of the mean.

    The last two are ``None`` for a single number, which says nothing about its spread.
    """

    count: int
    mean: float
    deviation: float | None
    half: float | None


def summarise(numbers: Sequence[float]) -> Summary | None:
    """What there is to say of the numbers; ``None`` if there are none."""
    count = len(numbers)
    if count == 0:
        return None
    if count == 1:
        return Summary(1, numbers[0], None, None)
    deviation = stdev(numbers)
    return Summary(
        count, fmean(numbers), deviation, quantile(count - 1) * deviation / math.sqrt(count)
    )


def paired(numbers: Mapping[int, float], reference: Mapping[int, float]) -> Summary | None:
    """Of the differences to a reference, seed by seed, over the seeds that both have."""
    return summarise(
        [numbers[seed] - reference[seed] for seed in sorted(numbers.keys() & reference.keys())]
    )


def quantile(freedom: int) -> float:
    """The t that a variable with Student's distribution stays below in size with probability 0.95.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 13.0  # 12.71 is the quantile of one degree of freedom, the largest
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < _LEVEL else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): the finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for index in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (index - 1) / index
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (theta + (sine * total if freedom > 1 else 0.0))
