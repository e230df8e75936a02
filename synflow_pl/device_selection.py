"""Selection of scores on an accelerator, without a sort and without waiting for the device.

The wanted threshold is found bit by bit. The bits of floats, read as integers, are in the order of
the floats once those of negative numbers are flipped. One count of the scores below a trial value
decides one bit of the threshold, and the count stays on the device. The integers are compared 16
bits at a time, so that the memory needed beside the scores is half of theirs in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from synflow_pl.budget_selection import WithinBudget
from synflow_pl.order_statistics import concatenated

__all__ = ["smallest_mask", "smallest_within_budget_on_device"]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
# Number of bits of a threshold that one tensor of digits decides.
_DIGIT_BITS = 16
_LOWEST_DIGIT, _HIGHEST_DIGIT = -(1 << 15), (1 << 15) - 1
# Scores that are processed at a time, which bounds the temporary memory of the ranks of ties.
_CHUNK = 1 << 24


def smallest_mask(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], count: int
) -> list[Tensor]:
    """Return masks of the scores that :func:`smallest_of_many` selects.

    Args:
        parts: Scores, one float32 or float64 tensor (n_i,) without NaN per part.
        candidates: Bool tensors (n_i,), True where a score takes part.
        count: Number of scores to select, in [0, number of candidates].

    Returns:
        Bool tensors (n_i,).

    Example:
        >>> smallest_mask([torch.tensor([1.0, 0.5, 0.5])], [torch.ones(3, dtype=torch.bool)], 1)
        [tensor([False, False,  True])]
    """
    threshold, num_below = _order_statistic(parts, candidates, count)
    num_ties = count - num_below
    selected = [torch.empty_like(mask) for mask in candidates]
    # The last of the scores that are equal to the threshold are selected.
    for part, mask, into in reversed(list(_chunks(parts, candidates, selected))):
        keys = _ordered_integers(part)
        tied = (keys == threshold).logical_and_(mask)
        rank_from_start = tied.cumsum(0, dtype=torch.int32)
        rank_from_end = rank_from_start[-1] - rank_from_start
        torch.logical_and(keys < threshold, mask, out=into)
        into.logical_or_(tied.logical_and_(rank_from_end < num_ties))
        num_ties = num_ties - rank_from_start[-1]
    return selected


def smallest_within_budget_on_device(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], budget: float, most: int
) -> WithinBudget:
    """Return what :func:`smallest_within_budget` returns, up to rounding in the order of additions.

    The scores are summed once per bit of the threshold; one transfer from the device reads the
    result.

    Args:
        parts: See :func:`smallest_within_budget`.
        candidates: See :func:`smallest_within_budget`.
        budget: See :func:`smallest_within_budget`.
        most: See :func:`smallest_within_budget`.

    Example:
        >>> scores = torch.tensor([4.0, 1.0, 2.0, 0.0])
        >>> everything = [torch.ones(4, dtype=torch.bool)]
        >>> smallest_within_budget_on_device([scores], everything, budget=3.5, most=4)
        WithinBudget(num_scores=3, total=3.0, threshold=None, excess_ties=0)
    """
    parts, candidates = concatenated(parts), concatenated(candidates)
    dtype, device = parts[0].dtype, parts[0].device
    bits = torch.finfo(dtype).bits - 1  # the sign is 0
    threshold = torch.zeros((), dtype=_INTEGERS[dtype], device=device)
    num_below = torch.zeros((), dtype=torch.int64, device=device)
    sum_below = torch.zeros((), dtype=torch.float64, device=device)
    for bit in reversed(range(bits)):
        trial = threshold + (1 << bit)
        limit = trial.view(dtype)
        below = [
            (part < limit).logical_and_(mask) for part, mask in zip(parts, candidates, strict=True)
        ]
        counted = torch.stack([mask.sum() for mask in below]).sum()
        summed = torch.stack(
            [
                torch.where(mask, part, 0).sum(dtype=torch.float64)
                for part, mask in zip(parts, below, strict=True)
            ]
        ).sum()
        # Integers above that of infinity are NaN, which no score is below.
        fits = (summed <= budget).logical_and_(counted <= most).logical_and_(limit == limit)
        threshold = torch.where(fits, trial, threshold)
        num_below = torch.where(fits, counted, num_below)
        sum_below = torch.where(fits, summed, sum_below)
    tied = torch.stack(
        [
            (part == threshold.view(dtype)).logical_and_(mask).sum()
            for part, mask in zip(parts, candidates, strict=True)
        ]
    ).sum()
    found = torch.stack(
        [num_below.double(), sum_below, tied.double(), threshold.view(dtype).double()]
    )
    below_count, total, num_tied, value = found.tolist()
    more = min(num_tied, most - below_count)
    if value > 0:
        more = min(more, max(0.0, (budget - total) // value))
    # If all scores fit, the threshold is infinite.
    return WithinBudget(int(below_count + more), total + more * value if more else total)


def _order_statistic(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Return the ``count``-th smallest candidate and the number of candidates below it.

    Args:
        parts: See :func:`smallest_mask`.
        candidates: See :func:`smallest_mask`.
        count: See :func:`smallest_mask`. With 0, no candidate is below the value returned.

    Returns:
        The score as an ordered integer, and the number, both scalars on the device.
    """
    dtype, device = parts[0].dtype, parts[0].device
    digits = torch.empty(sum(part.numel() for part in parts), dtype=torch.int16, device=device)
    split = digits.split([part.numel() for part in parts])
    prefix = torch.zeros((), dtype=_INTEGERS[dtype], device=device)
    num_below = torch.zeros((), dtype=torch.int64, device=device)
    for shift in reversed(range(0, torch.finfo(dtype).bits, _DIGIT_BITS)):
        upper = shift + _DIGIT_BITS
        is_first = upper == torch.finfo(dtype).bits
        for part, mask, into in _chunks(parts, candidates, split):
            keys = _ordered_integers(part)
            if is_first:
                keys = keys >> shift
            else:
                mask = mask & (keys >> upper == prefix)
                keys = ((keys >> shift) & 0xFFFF) + _LOWEST_DIGIT
            # No trial value is above the highest digit, so scores with it are not counted.
            into.copy_(keys.masked_fill_(~mask, _HIGHEST_DIGIT))
        digit = torch.full((), _LOWEST_DIGIT, dtype=torch.int32, device=device)
        below_digit = torch.zeros((), dtype=torch.int64, device=device)
        for bit in reversed(range(_DIGIT_BITS)):
            trial = digit + (1 << bit)
            counted = (digits < trial).sum()
            is_below = num_below + counted < count
            digit = torch.where(is_below, trial, digit)
            below_digit = torch.where(is_below, counted, below_digit)
        num_below = num_below + below_digit
        if is_first:
            prefix = digit.to(prefix.dtype)
        else:
            prefix = (prefix << _DIGIT_BITS) + (digit - _LOWEST_DIGIT)
    return prefix, num_below


def _ordered_integers(scores: Tensor) -> Tensor:
    """Return integers (n,) in the order of the scores (n,); -0.0 equals 0.0."""
    integers = _INTEGERS[scores.dtype]
    bits = (scores + 0.0).view(integers)
    return bits ^ ((bits >> (torch.iinfo(integers).bits - 1)) & torch.iinfo(integers).max)


def _chunks(*several: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Yield views of the tensors (n_i,) of several lists, at most ``_CHUNK`` entries at a time."""
    for tensors in zip(*several, strict=True):
        yield from zip(*(tensor.split(_CHUNK) for tensor in tensors if tensor.numel()), strict=True)
