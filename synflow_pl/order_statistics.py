"""Selection: exactly the `count` smallest of many scores, without sorting them.

A small sample gives a bracket around the wanted order statistic; one pass lists what lies below its
upper end, and only that is looked at closely. A sample that misleads costs time, never exactness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["concatenated", "nonzero_indices", "smallest", "smallest_mask", "smallest_of_many"]

# The sample is this share of the scores, within these bounds.
_SHARE, _FEWEST, _MOST = 1 / 256, 1 << 12, 1 << 16
# So many scores of several parameters are looked at as one.
_FEW = 1 << 20
# How far the bracket reaches on either side of the wanted rank, in standard deviations of that rank
# in a random sample.
_DEVIATIONS = 6


def smallest(scores: Tensor, count: int) -> Tensor:
    """Where the ``count`` smallest scores are. Ties are settled by position: of equal scores the
    earlier one survives.

    Args:
        scores: (n,), no NaN; infinities are ordinary numbers here.
        count: in [0, n].

    Returns:
        (count,) int64 positions, ascending.
    """
    return next(
        smallest_of_many(
            [scores], [torch.ones_like(scores, dtype=torch.bool)], scores.numel(), count
        )
    )


def smallest_of_many(
    parts: Sequence[Tensor], among: Sequence[Tensor], alive: int, count: int
) -> Iterator[Tensor]:
    """The same over several tensors, of those scores alone that are marked; positions count through
    all parts where they tie.

    Args:
        parts: of scores, (n_i,) each, no NaN.
        among: (n_i,) bool each, True where a score takes part.
        alive: how many take part.
        count: in [0, alive].

    Yields:
        For each part (count_i,) int64 positions, ascending. All of them are settled before the
        first is told, so what has been told may be acted upon.
    """
    if len(pieces := concatenated(parts)) < len(parts):
        (gone,) = smallest_of_many(pieces, concatenated(among), alive, count)
        ends = torch.tensor([part.numel() for part in parts], device=gone.device).cumsum(0)
        each = gone.tensor_split(torch.searchsorted(gone, ends[:-1]).cpu())
        yield from (
            at - (end - part.numel()) for at, end, part in zip(each, ends, parts, strict=True)
        )
        return
    if count == 0:
        yield from (torch.empty(0, dtype=torch.int64, device=part.device) for part in parts)
        return
    step = _step(alive)
    sample = torch.cat(
        [part[::step][marks[::step]] for part, marks in zip(parts, among, strict=True)]
    )
    low, high = (
        _bracket(sample, count / alive)
        if sample.numel()
        else (sample.new_tensor(-torch.inf), sample.new_tensor(torch.inf))
    )
    listed, values = _listed(
        parts,
        (
            _at_most(part, high).logical_and_(marks)
            for part, marks in zip(parts, among, strict=True)
        ),
    )
    if sum(at.numel() for at in listed) < count:
        listed, values = _listed(parts, among)
    close = torch.cat([value.index_select(0, nonzero_indices(value >= low)) for value in values])
    certain = sum(value.numel() for value in values) - close.numel()
    if certain >= count:
        certain, close = 0, torch.cat(values)
    threshold = close.kthvalue(count - certain).values
    spared = (
        certain + int(torch.count_nonzero(close <= threshold)) - count
    )  # ties with the last that goes
    del close
    for index, value in enumerate(values):
        going = value <= threshold
        if spared:
            tied = nonzero_indices(value == threshold)[:spared]
            spared -= tied.numel()
            going.index_fill_(0, tied, False)
        yield listed[index].index_select(0, nonzero_indices(going)).long()
        listed[index] = values[index] = value.new_empty(0)  # told, and so given back


def _listed(parts: Sequence[Tensor], marks: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What is marked of each part: positions (k_i,), ascending, in half the memory where that is
    enough; and the scores there.
    """
    listed, values = [], []
    for part, smallest_mask in zip(parts, marks, strict=True):
        at = nonzero_indices(smallest_mask)
        values.append(part.index_select(0, at))
        listed.append(at.int() if part.numel() <= 1 << 31 else at)
    return listed, values


def smallest_mask(parts: Sequence[Tensor], among: Sequence[Tensor], count: int) -> list[Tensor]:
    """What :func:`smallest_of_many` finds, as marks (n_i,) bool, by one stable sort: more work, but
    nothing of it waits for a device's answer.
    """
    listed = torch.cat(
        [torch.where(marks, part, torch.inf) for part, marks in zip(parts, among, strict=True)]
    )
    order = listed.sort(descending=True, stable=True).indices
    gone = torch.zeros_like(listed, dtype=torch.bool).index_fill_(
        0, order[listed.numel() - count :], True
    )
    return list(gone.split([part.numel() for part in parts]))


def concatenated(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Many small tensors (n_i,) as one, since calls cost more than what they do to so few numbers;
    large ones as they are.
    """
    few = len(parts) > 1 and sum(part.numel() for part in parts) <= _FEW
    return [torch.cat(list(parts))] if few else parts


def nonzero_indices(marks: Tensor) -> Tensor:
    """Positions (k,), int64 and ascending, of what is True among ``marks`` (n,)."""
    # On the CPU NumPy, on the same memory, takes a fifth of the time and less.
    if marks.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(marks.numpy()))
    return marks.nonzero().squeeze(1)


def _at_most(scores: Tensor, high: Tensor) -> Tensor:
    """Marks of the scores that are no larger than ``high``."""
    if scores.device.type == "cpu":  # as in `where`
        return torch.from_numpy(np.less_equal(scores.numpy(), high.numpy()))
    return scores <= high


def _step(n: int) -> int:
    """One of so many scores is sampled."""
    return max(1, n // min(_MOST, max(_FEWEST, int(n * _SHARE))))


def _bracket(sample: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Two values that the score below which ``share`` of all lie is very likely between."""
    size = sample.numel()
    expected = size * share
    reach = _DEVIATIONS * math.sqrt(expected * (1 - share)) + 1
    ranks = max(0, math.floor(expected - reach)) + 1, min(size - 1, math.ceil(expected + reach)) + 1
    low, high = (sample.kthvalue(rank).values for rank in ranks)
    return low, high
