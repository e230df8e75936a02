"""The number of smallest scores whose sum stays within a budget, found without sorting all scores.

The bits of non-negative floats, read as integers, are in the order of the floats. A histogram over
their leading bits, with the number of scores and their sum in each bucket, shows in which bucket
the sum of the smallest scores crosses the budget. Only the scores in that bucket are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synflow_pl.order_statistics import nonzero_indices

__all__ = ["WithinBudget", "smallest_within_budget"]

# Number of leading bits that make a bucket; the first of them is the sign, which is 0.
_LEADING_BITS = 16
_BUCKETS = 1 << (_LEADING_BITS - 1)
# Scores that are processed at a time, which bounds the memory of their keys and of their float64
# copies. With at most this many scores in total, all of them are sorted.
_CHUNK = 1 << 16
_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


class WithinBudget(NamedTuple):
    """The smallest scores that fit into a budget.

    Attributes:
        num_scores: Number of the scores.
        total: Sum of the scores.
    """

    num_scores: int
    total: float


def smallest_within_budget(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], budget: float, most: int
) -> WithinBudget:
    """Return how many of the smallest scores add up to at most ``budget``, and their sum.

    Sums are computed in float64. The count is that of a full sort and a cumulative sum in float64,
    except where rounding in the order of additions decides.

    Args:
        parts: Non-negative finite scores, one float32 or float64 tensor (n_i,) per part.
        candidates: Bool tensors (n_i,), True where a score takes part.
        budget: Largest allowed sum, at least 0.
        most: Largest allowed count, in [0, number of candidates].

    Example:
        >>> scores = torch.tensor([4.0, 1.0, 2.0, 0.0])
        >>> smallest_within_budget([scores], [torch.ones(4, dtype=torch.bool)], budget=3.5, most=4)
        WithinBudget(num_scores=3, total=3.0)
    """
    if sum(part.numel() for part in parts) <= _CHUNK:
        below, total = 0, 0.0
        close = torch.cat([part[mask] for part, mask in zip(parts, candidates, strict=True)])
    else:
        counts, sums = _histogram(parts, candidates)
        passed = (sums.cumsum(0) > budget) | (counts.cumsum(0) > most)
        if not bool(passed.any()):
            return WithinBudget(int(counts.sum()), float(sums.sum()))
        bucket = int(passed.to(torch.uint8).argmax())
        below, total = int(counts[:bucket].sum()), float(sums[:bucket].sum())
        close = torch.cat(
            [_in_bucket(part, mask, bucket) for part, mask in zip(parts, candidates, strict=True)]
        )
    reached = close.double().sort().values.cumsum(0) + total
    within = min(int(torch.searchsorted(reached, budget, right=True)), most - below)
    return WithinBudget(below + within, float(reached[within - 1]) if within else total)


def _histogram(parts: Sequence[Tensor], candidates: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the numbers, int64, and the sums, float64, of the scores in each bucket."""
    device = parts[0].device
    # The last entry collects the scores that do not take part.
    counts = torch.zeros(_BUCKETS + 1, dtype=torch.int64, device=device)
    sums = torch.zeros(_BUCKETS + 1, dtype=torch.float64, device=device)
    for part, mask in zip(parts, candidates, strict=True):
        bits, shift = part.view(_BITS[part.dtype]), _shift(part.dtype)
        for start in range(0, part.numel(), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            # The clamp is for -0.0.
            keys = (bits[chunk] >> shift).clamp_(min=0).masked_fill_(~mask[chunk], _BUCKETS)
            counts += torch.bincount(keys, minlength=_BUCKETS + 1)
            sums += torch.bincount(keys, part[chunk].double(), minlength=_BUCKETS + 1)
    return counts[:-1], sums[:-1]


def _in_bucket(part: Tensor, mask: Tensor, bucket: int) -> Tensor:
    """Return the scores (k,) of one part that take part and are in a bucket."""
    low, high = (
        torch.tensor(index << _shift(part.dtype), dtype=_BITS[part.dtype], device=part.device).view(
            part.dtype
        )
        for index in (bucket, bucket + 1)
    )
    inside = (part >= low).logical_and_(part < high).logical_and_(mask)
    return part.index_select(0, nonzero_indices(inside))


def _shift(dtype: torch.dtype) -> int:
    """Return the number of bits of a float that do not decide its bucket."""
    return torch.finfo(dtype).bits - _LEADING_BITS
