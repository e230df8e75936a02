"""Statistics over seeds: mean, sample deviation, and 95 % confidence interval by Student's t."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["Summary", "paired", "quantile", "summarise"]

_LEVEL = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and spread of a sample.

    Attributes:
        count: Number of values, at least 1.
        mean: Mean of the values.
        deviation: Sample standard deviation (divisor n - 1); ``None`` for a single value.
        interval: 95 % confidence interval of the mean; ``None`` for a single value.
    """

    count: int
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def summarise(
    numbers: Sequence[float], limits: tuple[float, float] = (-math.inf, math.inf)
) -> Summary | None:
    """Return the summary of a sample, or ``None`` if it is empty.

    Args:
        numbers: Values of the sample.
        limits: Smallest and largest value that the mean can have; the interval ends there.
    """
    count = len(numbers)
    if count == 0:
        return None
    if count == 1:
        return Summary(1, numbers[0], None, None)
    mean, deviation = fmean(numbers), stdev(numbers)
    half = quantile(count - 1) * deviation / math.sqrt(count)
    interval = max(mean - half, limits[0]), min(mean + half, limits[1])
    return Summary(count, mean, deviation, interval)


def paired(
    numbers: Mapping[int, float],
    reference: Mapping[int, float],
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Summary | None:
    """Return the summary of the differences to a reference, over the seeds that both have.

    Args:
        numbers: Values by seed.
        reference: Values that are subtracted, by seed.
        limits: Smallest and largest possible difference.

    Returns:
        The summary, or ``None`` if they have no seed in common.
    """
    return summarise(
        [numbers[seed] - reference[seed] for seed in sorted(numbers.keys() & reference.keys())],
        limits,
    )


def quantile(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t distribution: P(abs(T) < t) = 0.95.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 13.0  # 12.71 is the quantile of one degree of freedom, the largest
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < _LEVEL else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """Return P(abs(T) < t), by the finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
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
