"""The number of smallest scores whose sum stays within a budget, found without sorting all scores.

A small sample of the scores gives a bracket around the score at which the sum of the smaller ones
crosses the budget. One pass adds up the scores below the bracket, and only the scores in it are
sorted. The result is exact for every input; an unrepresentative sample costs time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from synflow_pl.order_statistics import (
    DEVIATIONS,
    at_most,
    concatenated,
    nonzero_indices,
    sample_of,
)

__all__ = ["WithinBudget", "smallest_within_budget"]

# Scores that are processed at a time, so that no new pages of memory are needed.
_CHUNK = 1 << 17


class WithinBudget(NamedTuple):
    """The smallest scores that fit into a budget.

    Attributes:
        num_scores: Number of the scores.
        total: Sum of the scores.
        threshold: A number, as a scalar, such that exactly the scores up to it fit, apart from
            ``excess_ties``; ``None`` if it is not determined.
        excess_ties: Number of scores that equal the threshold but do not fit.
    """

    num_scores: int
    total: float
    threshold: Tensor | None = None
    excess_ties: int = 0


def smallest_within_budget(
    parts: Sequence[Tensor],
    candidates: Sequence[Tensor],
    num_candidates: int,
    budget: float,
    most: int,
) -> WithinBudget:
    """Return how many of the smallest scores add up to at most ``budget``, and their sum.

    Sums are computed in float64. The count is that of a full sort and a cumulative sum in float64,
    except where rounding in the order of additions decides.

    Args:
        parts: Non-negative finite scores, one float32 or float64 tensor (n_i,) per part.
        candidates: Bool tensors (n_i,), True where a score takes part.
        num_candidates: Total number of candidates.
        budget: Largest allowed sum, at least 0.
        most: Largest allowed count, in [0, ``num_candidates``].

    Example:
        >>> scores = torch.tensor([4.0, 1.0, 2.0, 0.0])
        >>> found = smallest_within_budget([scores], [scores >= 0], 4, budget=3.5, most=4)
        >>> found.num_scores, found.total, found.threshold
        (3, 3.0, tensor(2.))
    """
    if not num_candidates:
        return WithinBudget(0, 0.0)
    parts, candidates = concatenated(parts), concatenated(candidates)
    sample = sample_of(parts, candidates, num_candidates)
    low, high = _bracket(sample, num_candidates, budget, most)
    while True:
        below, total, close = _split(parts, candidates, low, high)
        if below > most or total > budget:
            low = sample.new_tensor(-1.0)
            continue
        sums = close.astype(np.float64).cumsum() + total
        within = min(int(sums.searchsorted(budget, side="right")), most - below)
        if within < len(close) or below + within == most or high == torch.inf:
            break
        low, high = high, sample.new_tensor(torch.inf)
    if not within:
        threshold = torch.nextafter(low, low.new_tensor(-torch.inf))
        return WithinBudget(below, total, threshold)
    largest = close[within - 1]
    ties_end = int(close.searchsorted(largest, side="right"))
    return WithinBudget(
        below + within, float(sums[within - 1]), sample.new_tensor(largest), ties_end - within
    )


def _bracket(sample: Tensor, n: int, budget: float, most: int) -> tuple[Tensor, Tensor]:
    """Return two values that very likely enclose the first score that does not fit.

    They are ``DEVIATIONS`` standard deviations of the estimated sums and counts away from it.

    Args:
        sample: Sample (m,) of the scores, in any order.
        n: Number of scores.
        budget: Largest allowed sum.
        most: Largest allowed count.
    """
    values = np.sort(sample.numpy())
    if not len(values):
        return sample.new_tensor(-1.0), sample.new_tensor(torch.inf)
    scale = n / len(values)
    exact = values.astype(np.float64)
    unit = float(exact[-1]) or 1.0  # squares stay in range
    sums = exact.cumsum() * scale
    deviations = np.sqrt(((exact / unit) ** 2).cumsum()) * (unit * scale)
    ranks = np.arange(1, len(values) + 1)
    counts, count_deviations = ranks * scale, np.sqrt(ranks) * scale
    fits = (sums + DEVIATIONS * deviations <= budget) & (
        counts + DEVIATIONS * count_deviations <= most
    )
    exceeds = (sums - DEVIATIONS * deviations > budget) | (
        counts - DEVIATIONS * count_deviations > most
    )
    num_fitting = int(fits.argmin()) if not fits.all() else len(values)
    low = values[num_fitting - 1] if num_fitting else -1.0
    # Without a value that exceeds, the scores above the largest sampled one are few.
    high = values[int(exceeds.argmax()) if exceeds.any() else -1]
    return sample.new_tensor(low), sample.new_tensor(high)


def _split(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], low: Tensor, high: Tensor
) -> tuple[int, float, np.ndarray]:
    """Return number and sum of the candidates below ``low``, and the ascending ones up to ``high``.

    Args:
        parts: See :func:`smallest_within_budget`.
        candidates: See :func:`smallest_within_budget`.
        low: Smallest score that is returned.
        high: Largest score that is returned.
    """
    num_below, total = 0, 0.0
    close = []
    chunks = (
        chunk
        for pair in zip(parts, candidates, strict=True)
        for chunk in zip(*(tensor.split(_CHUNK) for tensor in pair), strict=True)
    )
    for part, mask in chunks:
        indices = nonzero_indices(at_most(part, high).logical_and_(mask))
        values = part.index_select(0, indices).numpy()
        inside = np.flatnonzero(values >= low.numpy())
        close.append(values[inside])
        values[inside] = 0
        num_below += values.size - inside.size
        total += float(values.sum(dtype=np.float64))
    return num_below, total, np.sort(np.concatenate(close))
