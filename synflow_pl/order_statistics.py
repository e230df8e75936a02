"""Exact selection of the `count` smallest of many scores without sorting them.

A small sample of the scores gives a bracket around the wanted order statistic. One pass lists the
scores below the upper end of the bracket, and only these are compared with each other. The result
is exact for every input; an unrepresentative sample costs time only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "DEVIATIONS",
    "at_most",
    "concatenated",
    "nonzero_indices",
    "sample_of",
    "smallest",
    "smallest_of_many",
    "smallest_up_to",
]

# Size of the sample: this fraction of the scores, within these bounds.
_SAMPLE_FRACTION, _MIN_SAMPLE, _MAX_SAMPLE = 1 / 256, 1 << 12, 1 << 16
# Several tensors with at most this many scores in total are concatenated.
_SMALL = 1 << 20
# Half the width of the bracket, in standard deviations of the wanted rank in a random sample.
DEVIATIONS = 6


def smallest(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` smallest scores.

    Ties are broken by position: of equal scores the later ones are selected first.

    Args:
        scores: Scores (n,) without NaN; infinities are allowed.
        count: Number of indices, in [0, n].

    Returns:
        Indices (count,), int64 and ascending.
    """
    return next(
        smallest_of_many(
            [scores], [torch.ones_like(scores, dtype=torch.bool)], scores.numel(), count
        )
    )


def smallest_of_many(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], num_candidates: int, count: int
) -> Iterator[Tensor]:
    """Yield for each of several tensors the indices of its scores among the ``count`` smallest.

    Only scores that are marked as candidates are compared. Ties are broken by position in the
    concatenation of all tensors: of equal scores the later ones are selected first.

    Args:
        parts: Scores, one tensor (n_i,) without NaN per part.
        candidates: Bool tensors (n_i,), True where a score takes part.
        num_candidates: Total number of candidates.
        count: Number of scores to select, in [0, ``num_candidates``].

    Yields:
        Indices (count_i,) into each part, int64 and ascending. All of them are determined before
        the first is yielded, so the caller may change ``parts`` between two of them.
    """
    if len(pieces := concatenated(parts)) < len(parts):
        (selected,) = smallest_of_many(pieces, concatenated(candidates), num_candidates, count)
        ends = torch.tensor([part.numel() for part in parts], device=selected.device).cumsum(0)
        by_part = selected.tensor_split(torch.searchsorted(selected, ends[:-1]).cpu())
        yield from (
            indices - (end - part.numel())
            for indices, end, part in zip(by_part, ends, parts, strict=True)
        )
        return
    if count == 0:
        yield from (torch.empty(0, dtype=torch.int64, device=part.device) for part in parts)
        return
    sample = sample_of(parts, candidates, num_candidates)
    low, high = (
        _bracket(sample, count / num_candidates)
        if sample.numel()
        else (sample.new_tensor(-torch.inf), sample.new_tensor(torch.inf))
    )
    listed, values = _gather(
        parts,
        (
            at_most(part, high).logical_and_(mask)
            for part, mask in zip(parts, candidates, strict=True)
        ),
    )
    if sum(indices.numel() for indices in listed) < count:
        listed, values = _gather(parts, candidates)
    close = torch.cat([value.index_select(0, nonzero_indices(value >= low)) for value in values])
    num_below = sum(value.numel() for value in values) - close.numel()
    if num_below >= count:
        num_below, close = 0, torch.cat(values)
    threshold = close.kthvalue(count - num_below).values
    # Scores equal to the threshold that are not selected; the earliest are left out.
    excess_ties = num_below + int(torch.count_nonzero(close <= threshold)) - count
    del close
    for index, value in enumerate(values):
        selected = value <= threshold
        if excess_ties:
            tied = nonzero_indices(value == threshold)[:excess_ties]
            excess_ties -= tied.numel()
            selected.index_fill_(0, tied, False)
        yield listed[index].index_select(0, nonzero_indices(selected)).long()
        listed[index] = values[index] = value.new_empty(0)  # frees their memory


def smallest_up_to(
    parts: Sequence[Tensor], candidates: Sequence[Tensor], threshold: Tensor, excess_ties: int
) -> Iterator[Tensor]:
    """Yield for each of several tensors a mask of its scores up to a threshold.

    Args:
        parts: Scores, one tensor (n_i,) without NaN per part.
        candidates: Bool tensors (n_i,), True where a score takes part.
        threshold: Largest score that is selected, a scalar.
        excess_ties: Number of candidates that equal the threshold and are not selected; the
            earliest in the concatenation of all tensors are left out.

    Yields:
        Bool tensors (n_i,). The caller may change the tensors of a part between two of them.
    """
    pieces, sizes = concatenated(parts), [part.numel() for part in parts]
    for part, mask in zip(pieces, concatenated(candidates), strict=True):
        selected = at_most(part, threshold).logical_and_(mask)
        if excess_ties:
            tied = nonzero_indices((part == threshold).logical_and_(mask))[:excess_ties]
            excess_ties -= tied.numel()
            selected.index_fill_(0, tied, False)
        yield from selected.split(sizes) if len(pieces) < len(parts) else [selected]


def _gather(parts: Sequence[Tensor], masks: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the ascending indices (k_i,) where each mask is True, and the scores there.

    Indices are int32 where that is enough, which halves their memory.
    """
    listed, values = [], []
    for part, mask in zip(parts, masks, strict=True):
        indices = nonzero_indices(mask)
        values.append(part.index_select(0, indices))
        listed.append(indices.int() if part.numel() <= 1 << 31 else indices)
    return listed, values


def concatenated(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Concatenate several small tensors (n_i,) into one; return large ones as they are.

    For small tensors the overhead of a call exceeds the cost of its work.
    """
    are_small = len(parts) > 1 and sum(part.numel() for part in parts) <= _SMALL
    return [torch.cat(list(parts))] if are_small else parts


def nonzero_indices(mask: Tensor) -> Tensor:
    """Return the indices (k,), int64 and ascending, where ``mask`` (n,) is True."""
    # On the CPU, NumPy takes at most a fifth of the time on the same memory.
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)


def at_most(scores: Tensor, high: Tensor) -> Tensor:
    """Return a mask of the scores that are not larger than ``high``."""
    if scores.device.type == "cpu":  # NumPy is faster here, as in `nonzero_indices`
        return torch.from_numpy(np.less_equal(scores.numpy(), high.numpy()))
    return scores <= high


def sample_of(parts: Sequence[Tensor], candidates: Sequence[Tensor], n: int) -> Tensor:
    """Return candidates (k,) at equal distances in each part.

    Args:
        parts: See :func:`smallest_of_many`.
        candidates: See :func:`smallest_of_many`.
        n: Number of candidates.
    """
    step = max(1, n // min(_MAX_SAMPLE, max(_MIN_SAMPLE, int(n * _SAMPLE_FRACTION))))
    return torch.cat(
        [part[::step][mask[::step]] for part, mask in zip(parts, candidates, strict=True)]
    )


def _bracket(sample: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Return two values that very likely enclose the ``fraction``-quantile of all scores."""
    size = sample.numel()
    expected = size * fraction
    reach = DEVIATIONS * math.sqrt(expected * (1 - fraction)) + 1
    ranks = max(0, math.floor(expected - reach)) + 1, min(size - 1, math.ceil(expected + reach)) + 1
    low, high = (sample.kthvalue(rank).values for rank in ranks)
    return low, high
