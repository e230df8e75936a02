"""Exact selection of the smallest of scores that are sharded over the ranks.

The result is that of one process with whole tensors: the k smallest scores, and of equal scores
those that come last. The k-th smallest is found digit by digit from histograms, which are summed
over the ranks; no score leaves its rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

__all__ = ["keep_largest"]

_DIGIT = 16
"""Number of bits by which the search for the k-th smallest advances at a time."""


def keep_largest(
    scores: Mapping[str, Tensor], parameters: Mapping[str, Tensor], keep: int
) -> dict[str, Tensor]:
    """Return the masks of the ``keep`` largest scores of some parameters, over all ranks.

    Every rank has to call this function, with the parameters in the same order.

    Args:
        scores: Scores of this rank's part of each parameter, by name: finite, not negative, and of
            one floating-point type.
        parameters: Parameters by name: DTensors, or tensors that are equal on all ranks.
        keep: Number of weights kept, at most the number of all weights.

    Returns:
        Bool masks of this rank's part of each parameter, True where the weight is kept.
    """
    sizes = [parameter.numel() for parameter in parameters.values()]
    remove = sum(sizes) - keep
    if remove == 0:
        return {name: torch.ones_like(score, dtype=torch.bool) for name, score in scores.items()}
    first = [_is_first_copy(parameter) for parameter in parameters.values()]
    keys = [_as_integers(score) for score in scores.values()]
    bits = 8 * next(iter(scores.values())).element_size()
    own = [key.flatten() for key, counts in zip(keys, first, strict=True) if counts]
    device = keys[0].device
    threshold, smaller = _kth_smallest(own, remove, bits, device)
    masks = {name: key > threshold for name, key in zip(scores, keys, strict=True)}
    # If scores are equal to the threshold, the last of them are removed, so positions are counted
    # from the end.
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    ties = [(key == threshold).nonzero() for key in keys]
    places = [
        sum(sizes) - 1 - start - _global_positions(parameter, where)
        for start, parameter, where in zip(starts, parameters.values(), ties, strict=True)
    ]
    counted = [place for place, counts in zip(places, first, strict=True) if counts]
    last, _ = _kth_smallest(counted, remove - smaller, _bits(sum(sizes)), device)
    for mask, where, place in zip(masks.values(), ties, places, strict=True):
        mask[tuple(where.unbind(1))] = place > last
    return masks


def _as_integers(scores: Tensor) -> Tensor:
    """Return integers in the order of non-negative floating-point numbers."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[scores.element_size()]
    return scores.contiguous().view(integer)


def _bits(count: int) -> int:
    return _DIGIT * math.ceil(max(count, 1).bit_length() / _DIGIT)


def _kth_smallest(
    parts: Sequence[Tensor], k: int, bits: int, device: torch.device
) -> tuple[int, int]:
    """Return the k-th smallest of non-negative integers on all ranks, counted from 1.

    Args:
        parts: Integers (n,) of this rank.
        k: Position, from 1 to the number of integers on all ranks.
        bits: Number of bits of an integer, a multiple of 16.
        device: Device of the integers.

    Returns:
        The integer, and how many are smaller.
    """
    prefix, smaller = 0, 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=device)
        for part in parts:
            high = part >> shift
            digits = high[high >> _DIGIT == prefix] & ((1 << _DIGIT) - 1)
            histogram += digits.long().bincount(minlength=1 << _DIGIT)
        distributed.all_reduce(histogram)
        up_to = histogram.cumsum(0)
        digit = int(torch.searchsorted(up_to, torch.tensor(k - smaller, device=device)))
        smaller += int(up_to[digit] - histogram[digit])
        prefix = prefix << _DIGIT | digit
    return prefix, smaller


def _global_positions(parameter: Tensor, where: Tensor) -> Tensor:
    """Return the positions in a flattened whole parameter of entries of this rank's part.

    Args:
        parameter: Parameter.
        where: Indices (n, dimensions) in this rank's part.
    """
    offset: Sequence[int] = [0] * parameter.dim()
    if isinstance(parameter, DTensor):
        _, offset = compute_local_shape_and_global_offset(
            parameter.shape, parameter.device_mesh, parameter.placements
        )
    strides = [math.prod(parameter.shape[i + 1 :]) for i in range(parameter.dim())]
    indices = where + torch.tensor(offset, device=where.device)
    return (indices * torch.tensor(strides, device=where.device)).sum(1)


def _is_first_copy(parameter: Tensor) -> bool:
    """Return whether this rank's part is the first of its equal copies on several ranks."""
    if not isinstance(parameter, DTensor):
        return distributed.get_rank() == 0
    mesh = parameter.device_mesh
    # Other meshes of the same kind hold copies of all parts.
    coordinate = mesh.get_coordinate()
    return (
        coordinate is not None
        and int(mesh.mesh.min()) == 0
        and all(
            position == 0
            for position, placement in zip(coordinate, parameter.placements, strict=True)
            if placement.is_replicate()
        )
    )
